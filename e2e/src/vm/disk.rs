//! What the machine boots from: Debian's kernel, a first program that loads the disk's drivers, and the disk: the node image of
//! `cargo e2e kind` with the kernel's modules, the runtime's tests and the console in it.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::kind::Kind;
use crate::step::{Step, output};

/// Debian's package that depends on the newest kernel made for virtual machines.
const KERNEL: &str = "linux-image-cloud-amd64";
const SIZE: &str = "8G";
const INIT: &str = include_str!("init.c");
const CONSOLE: &str = include_str!("console.sh");

const CONSOLE_UNIT: &str = "[Unit]
Description=Scripts over the second serial line
After=multi-user.target
[Service]
ExecStart=/usr/local/bin/vm-console
StandardInput=null
OOMScoreAdjust=-999
[Install]
WantedBy=multi-user.target
";

/// One address, from which nothing leaves: kubeadm wants a default route.
const NETWORK_UNIT: &str = "[Unit]
Description=The one link
DefaultDependencies=no
Before=network.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'ip link add eth0 type dummy; ip link set eth0 up; ip address add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2 dev eth0'
[Install]
WantedBy=multi-user.target
";

/// What boots.
pub struct Boot {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub disk: PathBuf,
}

/// The host's name in the machine.
pub const NODE: &str = "gantry-vm";
/// Where the runtime's tests are in it.
pub const TESTS: &str = "/opt/gantry/runtime-tests";

/// Builds what is missing; the disk anew each time, since a machine writes on it.
///
/// # Errors
/// A package, program or image cannot be had.
pub fn build(kind: &Kind, dir: &Path, image: &str) -> Result<Boot> {
    let modules = kernel(kind, dir)?;
    let step = kind.steps.start("disk of the virtual machine", None)?;
    let version = version_of(&modules)?;
    let initrd = dir.join("initrd");
    initial_disk(
        &step,
        dir,
        &modules.join("lib/modules").join(&version),
        &initrd,
    )?;
    let tests = runtime_tests(kind, &step)?;
    let disk = dir.join("disk.ext4");
    let container = "gantry-vm-root";
    let _ = output(kind.podman().args(["rm", "--force", container]));
    output(kind.podman().args(["create", "--name", container, image]))?;
    let root = output(kind.podman().args(["mount", container]))?;
    let root = PathBuf::from(root.trim());
    let filled = fill(&step, &root, &modules, &version, &tests).and_then(|()| {
        step.message("file system");
        let _ = fs::remove_file(&disk);
        step.run(
            Command::new("mke2fs")
                .args(["-q", "-F", "-t", "ext4", "-d"])
                .arg(&root)
                .arg(&disk)
                .arg(SIZE),
        )
    });
    output(kind.podman().args(["umount", container]))?;
    output(kind.podman().args(["rm", "--force", container]))?;
    filled?;
    step.done();
    Ok(Boot {
        kernel: modules.join("boot").join(format!("vmlinuz-{version}")),
        initrd,
        disk,
    })
}

/// The unpacked package of the kernel.
fn kernel(kind: &Kind, dir: &Path) -> Result<PathBuf> {
    let unpacked = dir.join("kernel");
    if unpacked.join("lib/modules").exists() {
        return Ok(unpacked);
    }
    let step = kind.steps.start("Debian's kernel", None)?;
    fs::create_dir_all(dir)?;
    let depends = output(Command::new("apt-cache").args(["depends", KERNEL]))?;
    let package = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .with_context(|| format!("{KERNEL} depends on no kernel"))?;
    step.run(
        Command::new("apt-get")
            .current_dir(dir)
            .args(["download", package]),
    )?;
    let archive = fs::read_dir(dir)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|ending| ending == "deb"))
        .context("apt-get left no package")?;
    let half = dir.join("kernel.half");
    step.run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&half))?;
    fs::remove_file(archive)?;
    let version = version_of(&half)?;
    step.run(Command::new("depmod").arg("-b").arg(&half).arg(version))?;
    fs::rename(half, &unpacked)?;
    step.done();
    Ok(unpacked)
}

fn version_of(unpacked: &Path) -> Result<String> {
    let modules = unpacked.join("lib/modules");
    let entry = fs::read_dir(&modules)
        .with_context(|| format!("read {}", modules.display()))?
        .next()
        .context("the kernel has no modules")??;
    Ok(entry.file_name().to_string_lossy().into_owned())
}

/// The modules that `wanted` needs and itself, in the order in which they are loaded. `listing` is a `modules.dep`.
fn load_order(listing: &str, wanted: &[&str]) -> Result<Vec<String>> {
    let mut order: Vec<String> = Vec::new();
    for name in wanted {
        let line = listing
            .lines()
            .find(|line| {
                line.split(':')
                    .next()
                    .is_some_and(|path| path.ends_with(&format!("/{name}.ko")))
            })
            .with_context(|| format!("the kernel has no module {name}"))?;
        let (module, needs) = line
            .split_once(':')
            .context("a line of modules.dep has a colon")?;
        // The last is what nothing else of the line is needed for.
        for path in needs.split_whitespace().rev().chain([module]) {
            if !order.iter().any(|known| known == path) {
                order.push(path.to_owned());
            }
        }
    }
    Ok(order)
}

fn initial_disk(step: &Step, dir: &Path, modules: &Path, to: &Path) -> Result<()> {
    let source = dir.join("init.c");
    let program = dir.join("init");
    fs::write(&source, INIT)?;
    step.run(
        Command::new("gcc")
            .args(["-static", "-O1", "-o"])
            .args([&program, &source]),
    )?;
    let listing = fs::read_to_string(modules.join("modules.dep"))?;
    let mut archive = Archive::default();
    archive.add("init", 0o100_755, &fs::read(&program)?);
    archive.add("modules", 0o040_755, &[]);
    let mut order = String::new();
    for path in load_order(&listing, &["virtio_pci", "virtio_blk"])? {
        let name = path.rsplit('/').next().unwrap_or(&path);
        archive.add(
            &format!("modules/{name}"),
            0o100_644,
            &fs::read(modules.join(&path))?,
        );
        order += &format!("/modules/{name}\n");
    }
    archive.add("modules/order", 0o100_644, order.as_bytes());
    fs::write(to, archive.finish()).with_context(|| format!("write {}", to.display()))
}

/// An archive in the form that the kernel unpacks ("newc" of cpio). Source: `Documentation/driver-api/early-userspace/buffer-format.rst`.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.entries += 1;
        let (inode, size, name_size) = (self.entries, data.len(), name.len() + 1);
        let fields = [
            inode,
            mode,
            0,
            0,
            1,
            0,
            size as u32,
            0,
            0,
            0,
            0,
            name_size as u32,
            0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(data);
        self.pad();
    }

    fn pad(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

/// The runtime's tests on real containers, as a program.
fn runtime_tests(kind: &Kind, step: &Step) -> Result<PathBuf> {
    step.message("the runtime's tests");
    let listing = output(
        Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .current_dir(&kind.outputs.workspace)
            .args([
                "test",
                "--no-run",
                "--message-format=json",
                "--package",
                "runtime",
            ])
            .args(["--test", "linux"]),
    )?;
    let program = listing
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "linux")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    program.context("cargo names no program of the runtime's tests")
}

/// Puts what a machine needs beside a container into the root.
fn fill(step: &Step, root: &Path, kernel: &Path, version: &str, tests: &Path) -> Result<()> {
    step.message("modules, tests, console");
    let put = |path: &str, text: &str, mode: u32| -> Result<()> {
        let file = root.join(path);
        fs::create_dir_all(file.parent().expect("a file lies in a folder"))?;
        let mut written =
            fs::File::create(&file).with_context(|| format!("write {}", file.display()))?;
        written.write_all(text.as_bytes())?;
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).map_err(Into::into)
    };
    // kubeadm reads there what the kernel has.
    let config = format!("config-{version}");
    fs::create_dir_all(root.join("boot"))?;
    fs::copy(
        kernel.join("boot").join(&config),
        root.join("boot").join(&config),
    )?;
    let modules = root.join("lib/modules");
    ensure!(
        !modules.join(version).exists(),
        "the node image has modules of its own"
    );
    fs::create_dir_all(&modules)?;
    step.run(
        Command::new("cp")
            .arg("-a")
            .arg(kernel.join("lib/modules").join(version))
            .arg(&modules),
    )?;
    let program = root.join(TESTS.trim_start_matches('/'));
    fs::create_dir_all(program.parent().expect("below /opt"))?;
    step.run(
        Command::new("strip")
            .args(["--strip-debug", "-o"])
            .args([&program, tests]),
    )?;
    put("usr/local/bin/vm-console", CONSOLE, 0o755)?;
    put("etc/systemd/system/vm-console.service", CONSOLE_UNIT, 0o644)?;
    put("etc/systemd/system/vm-network.service", NETWORK_UNIT, 0o644)?;
    put("etc/fstab", "/dev/vda / ext4 defaults 0 1\n", 0o644)?;
    put("etc/hostname", &format!("{NODE}\n"), 0o644)?;
    put(
        "etc/hosts",
        &format!("127.0.0.1 localhost\n10.0.2.15 {NODE}\n"),
        0o644,
    )?;
    put(
        "etc/modules-load.d/kubernetes.conf",
        "overlay\nbr_netfilter\nnf_tables\nvxlan\ndummy\n",
        0o644,
    )?;
    put(
        "etc/sysctl.d/99-kubernetes.conf",
        "net.ipv4.ip_forward = 1\n",
        0o644,
    )?;
    // What a kubelet in a container needs and one of a machine must not have: it wants the root cgroup without processes.
    fs::remove_file(root.join("etc/systemd/system/kubelet.service.d/11-kind.conf"))
        .context("kind's own part of the kubelet's unit")?;
    for unit in ["vm-console.service", "vm-network.service"] {
        let wants = root
            .join("etc/systemd/system/multi-user.target.wants")
            .join(unit);
        let _ = fs::remove_file(&wants);
        symlink(format!("/etc/systemd/system/{unit}"), &wants)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_loaded_after_what_they_need() {
        let listing = "kernel/a/virtio_pci.ko: kernel/a/legacy.ko kernel/a/virtio.ko kernel/a/ring.ko\nkernel/b/virtio_blk.ko: kernel/a/virtio.ko kernel/a/ring.ko\n";
        let order = load_order(listing, &["virtio_pci", "virtio_blk"]).unwrap();
        assert_eq!(
            order,
            [
                "kernel/a/ring.ko",
                "kernel/a/virtio.ko",
                "kernel/a/legacy.ko",
                "kernel/a/virtio_pci.ko",
                "kernel/b/virtio_blk.ko"
            ]
        );
        assert!(load_order(listing, &["none"]).is_err());
    }

    #[test]
    fn an_archive_is_as_the_kernel_reads_it() {
        let mut archive = Archive::default();
        archive.add("init", 0o100_755, b"12345");
        let bytes = archive.finish();
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(bytes.len() % 4, 0);
        // Header and name end at a multiple of four, and so do the data.
        assert_eq!(&bytes[110..115], b"init\0");
        assert_eq!(&bytes[116..121], b"12345");
        assert_eq!(&bytes[124..130], b"070701");
    }
}
