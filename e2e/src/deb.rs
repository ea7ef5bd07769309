//! `cargo e2e deb`: the node as a Debian package, and a trial of it in a Debian root of its own: installed, its units verified, its
//! programs started, removed, purged.
//!
//! What the package holds is in `kubelet/Cargo.toml` and `kubelet/debian/`. Nothing of the trial runs as a service: the root has no systemd
//! that was booted, as in the build of a machine's image.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::debian;
use crate::programs::{self, KUBERNETES_VERSION, Outputs, Profile};
use crate::step::{Steps, output};

/// The package.
const PACKAGE: &str = "gantry-node";
/// What builds it.
const CARGO_DEB: &str = "3.8.0";
const SUITE: &str = "bookworm";
/// Every file, its mode, what is in it that must be there.
const FILES: &[(&str, u32)] = &[
    ("usr/bin/kubelet", 0o755),
    ("usr/bin/gantry-shim", 0o755),
    ("usr/bin/gantry-cri", 0o755),
    ("usr/bin/ctr", 0o755),
    ("usr/bin/kube-proxy", 0o755),
    ("usr/lib/systemd/system/kubelet.service", 0o644),
    (
        "usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf",
        0o644,
    ),
    ("usr/lib/systemd/system/gantry-cri.socket", 0o644),
    ("usr/lib/systemd/system/gantry-cri.service", 0o644),
    ("usr/lib/systemd/system/kube-proxy.service", 0o644),
    ("usr/lib/sysctl.d/60-gantry-node.conf", 0o644),
    ("etc/default/kubelet", 0o644),
];
/// What stays of a removed package: the administrator's.
const CONFFILE: &str = "etc/default/kubelet";
const UNITS: [&str; 4] = [
    "kubelet.service",
    "gantry-cri.socket",
    "gantry-cri.service",
    "kube-proxy.service",
];
/// Enabled at the installation, by these links.
const ENABLED: [&str; 2] = [
    "etc/systemd/system/multi-user.target.wants/kubelet.service",
    "etc/systemd/system/sockets.target.wants/gantry-cri.socket",
];
/// dpkg's own books, which it writes whatever is installed, the loader's cache, and what is of memory on a machine.
const BOOKS: &[&str] = &[
    "run",
    "var/lib/dpkg",
    "var/log",
    "var/cache/ldconfig",
    "etc/ld.so.cache",
];

#[derive(Args)]
pub struct DebOptions {
    /// How our programs are built.
    #[arg(long, value_enum, default_value = "release")]
    profile: Profile,
}

/// # Errors
/// The package cannot be built, or is not as it should be.
pub fn run(options: &DebOptions) -> Result<()> {
    debian::require_root("install a package in a root of its own")?;
    let outputs = Outputs::find().with_profile(options.profile);
    let steps = Steps::new(outputs.logs())?;
    debian::install_missing(&steps)?;
    programs::build_ours(&steps, &outputs, &["kubelet", "shim", "cri", "kube-proxy"])?;
    let package = build(&steps, &outputs)?;
    let tar = root(&steps, &outputs, &package)?;
    let step = steps.start("try it in a root of its own", None)?;
    let trial = Trial::unpack(&tar)?;
    trial.run(&package)?;
    step.done();
    println!(
        "{} ({:.1} MiB)",
        package.display(),
        fs::metadata(&package)?.len() as f64 / f64::from(1 << 20)
    );
    Ok(())
}

/// The package, by cargo-deb.
fn build(steps: &Steps, outputs: &Outputs) -> Result<PathBuf> {
    let cargo_deb = cargo_deb(steps, outputs)?;
    let folder = outputs.e2e().join("deb");
    fs::create_dir_all(&folder)?;
    let package = folder.join(format!("{PACKAGE}_{KUBERNETES_VERSION}_amd64.deb"));
    let step = steps.start("build the package", None)?;
    // What is only tried need not be small.
    let compression: &[&str] = match outputs.profile {
        Profile::Release => &[],
        Profile::Dev => &["--fast"],
    };
    step.run(
        Command::new(cargo_deb)
            .current_dir(&outputs.workspace)
            .env("SOURCE_DATE_EPOCH", "1700000000")
            .args(["deb", "--no-build", "--strip", "--package", "kubelet"])
            .args(["--profile", outputs.profile.name()])
            .args(compression)
            .arg("--deb-version")
            .arg(KUBERNETES_VERSION)
            .arg("--output")
            .arg(&package),
    )?;
    step.done();
    Ok(package)
}

/// The one that is in the PATH, or one that is built here.
fn cargo_deb(steps: &Steps, outputs: &Outputs) -> Result<PathBuf> {
    let tools = outputs.e2e().join("tools");
    let own = tools.join("bin/cargo-deb");
    for program in [PathBuf::from("cargo-deb"), own.clone()] {
        let version = Command::new(&program).arg("--version").output();
        let is_right = |out: std::process::Output| {
            String::from_utf8_lossy(&out.stdout)
                .trim()
                .ends_with(CARGO_DEB)
        };
        if version.is_ok_and(is_right) {
            return Ok(program);
        }
    }
    let step = steps.start("build cargo-deb", None)?;
    step.run(
        Command::new("cargo")
            .args(["install", "cargo-deb", "--locked", "--version", CARGO_DEB])
            .arg("--root")
            .arg(&tools),
    )?;
    step.done();
    Ok(own)
}

/// A field of a package.
fn field(package: &Path, name: &str) -> Result<String> {
    let text = output(
        Command::new("dpkg-deb")
            .arg("--field")
            .arg(package)
            .arg(name),
    )?;
    Ok(text.trim().to_owned())
}

/// The names in a field of relations: the first of alternatives, without versions.
fn names(relations: &str) -> Vec<&str> {
    let word = |one: &'_ str| -> Option<usize> { one.find([' ', '(', '|']) };
    relations
        .split(',')
        .map(str::trim)
        .filter(|one| !one.is_empty())
        .map(|one| &one[..word(one).unwrap_or(one.len())])
        .collect()
}

/// A Debian root with systemd and all that the package depends on, and no more.
fn root(steps: &Steps, outputs: &Outputs, package: &Path) -> Result<PathBuf> {
    let depends = field(package, "Depends")?;
    let mut include = names(&depends);
    include.push("systemd");
    let wanted = format!("{SUITE}: {}\n", include.join(" "));
    let tar = outputs.e2e().join("deb/root.tar");
    let holds = tar.with_extension("packages");
    if tar.exists() && fs::read_to_string(&holds).is_ok_and(|has| has == wanted) {
        return Ok(tar);
    }
    let step = steps.start("Debian root with what it depends on", None)?;
    let half = tar.with_extension("half.tar");
    step.run(
        Command::new("mmdebstrap")
            .args(["--variant=minbase", "--mode=root"])
            .arg(format!("--include={}", include.join(",")))
            .arg(SUITE)
            .arg(&half),
    )?;
    fs::rename(&half, &tar)?;
    fs::write(&holds, wanted)?;
    step.done();
    Ok(tar)
}

/// An unpacked root.
struct Trial {
    folder: tempfile::TempDir,
}

/// Every path with what tells one file from another.
type Snapshot = BTreeMap<PathBuf, (u32, u64, i64)>;

impl Trial {
    fn unpack(tar: &Path) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        output(
            Command::new("tar")
                .args(["--numeric-owner", "--xattrs", "-xpf"])
                .arg(tar)
                .arg("-C")
                .arg(folder.path())
                // Made by programs in the root as they need them.
                .args([
                    "--exclude=./dev/*",
                    "--exclude=./proc/*",
                    "--exclude=./sys/*",
                ]),
        )?;
        Ok(Self { folder })
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.folder.path().join(inside)
    }

    /// In namespaces of its own: what is mounted there goes with the command.
    fn command(&self, words: &[&str]) -> Result<String> {
        let script = "mount -t proc proc \"$0/proc\" && mount --rbind /dev \"$0/dev\" && root=\"$0\" && exec chroot \"$root\" \"$@\"";
        output(
            Command::new("unshare")
                .args(["--mount", "--propagation", "private", "--pid", "--fork"])
                .args(["sh", "-c", script])
                .arg(self.folder.path())
                .args(words)
                .env("DEBIAN_FRONTEND", "noninteractive"),
        )
        .with_context(|| words.join(" "))
    }

    fn run(&self, package: &Path) -> Result<()> {
        let before = self.snapshot()?;
        fs::copy(package, self.path("tmp/node.deb"))?;
        self.command(&["dpkg", "--install", "/tmp/node.deb"])?;
        fs::remove_file(self.path("tmp/node.deb"))?;
        self.is_installed()?;
        self.units_are_right()?;
        self.programs_start()?;

        self.command(&["dpkg", "--remove", PACKAGE])?;
        let left = changed(&before, &self.snapshot()?);
        ensure!(
            left == [PathBuf::from(CONFFILE)],
            "dpkg --remove leaves {left:?}, and not {CONFFILE} alone"
        );
        self.command(&["dpkg", "--purge", PACKAGE])?;
        let left = changed(&before, &self.snapshot()?);
        ensure!(left.is_empty(), "dpkg --purge leaves {left:?}");
        Ok(())
    }

    fn is_installed(&self) -> Result<()> {
        for (path, mode) in FILES {
            let meta =
                fs::metadata(self.path(path)).with_context(|| format!("{path} is not there"))?;
            let has = meta.permissions().mode() & 0o7777;
            ensure!(
                has == *mode && meta.uid() == 0 && meta.gid() == 0,
                "{path} is {has:o} of {}:{}, not {mode:o} of root's",
                meta.uid(),
                meta.gid()
            );
        }
        let listed = self.command(&["dpkg", "--listfiles", PACKAGE])?;
        let unknown: Vec<&str> = listed
            .lines()
            .filter(|line| !self.path(line.trim_start_matches('/')).is_dir())
            .filter(|line| !line.starts_with("/usr/share/doc/"))
            .filter(|line| {
                !FILES
                    .iter()
                    .any(|(path, _)| line.trim_start_matches('/') == *path)
            })
            .collect();
        ensure!(
            unknown.is_empty(),
            "files that nobody asked for: {unknown:?}"
        );
        for link in ENABLED {
            ensure!(
                self.path(link).is_symlink(),
                "{link} is not there: the unit is not enabled"
            );
        }
        Ok(())
    }

    /// As systemd reads them, with the drop-in.
    fn units_are_right(&self) -> Result<()> {
        for unit in UNITS {
            let said = self.command(&["systemd-analyze", "verify", "--man=no", unit])?;
            ensure!(said.trim().is_empty(), "{unit}: {said}");
        }
        let shown = self.command(&[
            "cat",
            "/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf",
        ])?;
        for place in [
            "--config=/var/lib/kubelet/config.yaml",
            "--kubeconfig=/etc/kubernetes/kubelet.conf",
            "--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf",
            "EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env",
            "EnvironmentFile=-/etc/default/kubelet",
        ] {
            ensure!(shown.contains(place), "10-kubeadm.conf lacks {place}");
        }
        Ok(())
    }

    /// With the libraries of the root alone.
    fn programs_start(&self) -> Result<()> {
        let version = format!("Kubernetes v{KUBERNETES_VERSION}");
        for program in ["kubelet", "kube-proxy"] {
            let said = self.command(&[program, "--version"])?;
            ensure!(said.trim() == version, "{program} --version says {said:?}");
        }
        for program in ["gantry-shim", "gantry-cri", "ctr"] {
            let path = format!("/usr/bin/{program}");
            let said = self.command(&["ldd", &path])?;
            if said.contains("not found") {
                bail!("{program} lacks a library:\n{said}");
            }
        }
        Ok(())
    }

    fn snapshot(&self) -> Result<Snapshot> {
        let mut found = Snapshot::new();
        collect(self.folder.path(), Path::new(""), &mut found)?;
        Ok(found)
    }
}

fn collect(root: &Path, below: &Path, found: &mut Snapshot) -> Result<()> {
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if BOOKS.iter().any(|book| path.starts_with(book)) {
            continue;
        }
        let meta = entry.metadata()?;
        // A folder's size and time change with what was in it for a while.
        let (size, time) = if meta.is_dir() {
            (0, 0)
        } else {
            (meta.size(), meta.mtime())
        };
        found.insert(path.clone(), (meta.mode(), size, time));
        if meta.is_dir() {
            collect(root, &path, found)?;
        }
    }
    Ok(())
}

/// Paths that are new, gone or other than before; not the folders above one of them.
fn changed(before: &Snapshot, after: &Snapshot) -> Vec<PathBuf> {
    let paths = before.keys().chain(after.keys());
    let mut all: Vec<PathBuf> = paths
        .filter(|path| before.get(*path) != after.get(*path))
        .cloned()
        .collect();
    all.sort();
    all.dedup();
    let is_above = |path: &PathBuf| {
        all.iter()
            .any(|other| other != path && other.starts_with(path))
    };
    all.iter().filter(|path| !is_above(path)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relations_are_read() {
        assert_eq!(
            names("libc6 (>= 2.34), libelf1 | libelf1t64, nftables,  mount"),
            ["libc6", "libelf1", "nftables", "mount"]
        );
        assert!(names("").is_empty());
    }

    #[test]
    fn what_changed_is_named_once() {
        let one = |path: &str, size| (PathBuf::from(path), (0o644, size, 0));
        let before = Snapshot::from([one("a", 1), one("b", 1), one("c", 1)]);
        let after = Snapshot::from([one("a", 1), one("b", 2), one("d", 0), one("d/e", 1)]);
        let check = |expect: &[&str]| {
            let expect: Vec<PathBuf> = expect.iter().map(PathBuf::from).collect();
            assert_eq!(changed(&before, &after), expect);
        };
        check(&["b", "c", "d/e"]);
        assert!(changed(&after, &after).is_empty());
    }
}
