//! The two base layers: a small Debian root, and busybox built from Debian's source package.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::layer::{Blob, Tar};
use crate::programs::Outputs;
use crate::step::{Steps, output};

/// Programs in `e2e/images/NAME.c`.
const C_PROGRAMS: &[(&str, &str)] = &[
    ("pause", include_str!("../../images/pause.c")),
    ("nnp", include_str!("../../images/nnp.c")),
];

pub fn debian_tar(outputs: &Outputs) -> PathBuf {
    outputs.images().join("debian.tar")
}

/// A small program built here.
pub fn built(outputs: &Outputs, name: &str) -> PathBuf {
    outputs.images().join("built").join(name)
}

/// Makes the Debian root, if it is not there or is of other packages.
///
/// # Errors
/// mmdebstrap fails.
pub fn debian(steps: &Steps, outputs: &Outputs, suite: &str, packages: &[String]) -> Result<()> {
    let tar = debian_tar(outputs);
    let holds = tar.with_extension("packages");
    let wanted = format!("{suite}: {}\n", packages.join(" "));
    if tar.exists() && fs::read_to_string(&holds).is_ok_and(|has| has == wanted) {
        return Ok(());
    }
    let step = steps.start("Debian root of the images", None)?;
    let half = tar.with_extension("half.tar");
    step.run(
        Command::new("mmdebstrap")
            .env("SOURCE_DATE_EPOCH", "1700000000")
            .arg("--variant=minbase")
            .arg(format!("--include={}", packages.join(",")))
            .arg(suite)
            .arg(&half),
    )?;
    fs::rename(&half, &tar)?;
    fs::write(&holds, wanted)?;
    step.done();
    Ok(())
}

/// One file of the Debian root.
///
/// # Errors
/// It is not in there.
pub fn debian_file(outputs: &Outputs, path: &str) -> Result<Vec<u8>> {
    let mut archive = tar::Archive::new(fs::File::open(debian_tar(outputs))?);
    for entry in archive.entries()? {
        let mut entry = entry?;
        if entry
            .path()?
            .strip_prefix("./")
            .is_ok_and(|inside| inside == std::path::Path::new(path))
        {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            return Ok(bytes);
        }
    }
    bail!("the Debian root has no {path}")
}

/// Builds a static busybox with upstream's default configuration. Debian's own program is not
/// taken: it drops environment names such as `data-1`.
///
/// # Errors
/// The source cannot be had, or does not build.
pub fn busybox(steps: &Steps, outputs: &Outputs) -> Result<()> {
    let program = built(outputs, "busybox");
    if program.exists() {
        return Ok(());
    }
    let step = steps.start("busybox", None)?;
    let work = outputs.images().join("busybox");
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    for dir in ["lists/partial", "source"] {
        fs::create_dir_all(work.join(dir))?;
    }
    fs::write(
        work.join("sources.list"),
        "deb-src http://deb.debian.org/debian bookworm main\n",
    )?;
    let apt = || {
        let mut command = Command::new("apt-get");
        command
            .current_dir(&work)
            .args(["-q", "-o", "Dir::Etc::sourceparts=-"])
            .arg("-o")
            .arg(format!(
                "Dir::Etc::sourcelist={}",
                work.join("sources.list").display()
            ))
            .arg("-o")
            .arg(format!(
                "Dir::State::lists={}",
                work.join("lists").display()
            ))
            // The sandbox user cannot write below the workspace.
            .args(["-o", "APT::Sandbox::User=root"]);
        command
    };
    step.message("fetch the source");
    step.run(apt().arg("update"))?;
    step.run(apt().args(["source", "--download-only", "busybox"]))?;
    let source = fs::read_dir(&work)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.to_string_lossy().contains(".orig.tar."))
        .context("the source package has no original archive")?;
    step.run(
        Command::new("tar")
            .args(["--strip-components=1", "-C"])
            .arg(work.join("source"))
            .arg("-xf")
            .arg(source),
    )?;
    step.message("build");
    let make = || {
        let mut command = Command::new("make");
        command
            .current_dir(work.join("source"))
            .env("SOURCE_DATE_EPOCH", "1700000000")
            .env("KCONFIG_NOTIMESTAMP", "1");
        command
    };
    step.run(make().arg("defconfig"))?;
    let config = work.join("source/.config");
    let text = fs::read_to_string(&config)?;
    // Needs kernel headers that newer ones lack.
    let text = text
        .replace("# CONFIG_STATIC is not set", "CONFIG_STATIC=y")
        .replace("CONFIG_TC=y", "# CONFIG_TC is not set")
        .replace(
            "CONFIG_FEATURE_TC_INGRESS=y",
            "# CONFIG_FEATURE_TC_INGRESS is not set",
        );
    fs::write(&config, text)?;
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    step.run(make().arg(format!("-j{jobs}")).arg("busybox"))?;
    fs::create_dir_all(program.parent().expect("a program lies in a folder"))?;
    fs::rename(work.join("source/busybox"), &program)?;
    fs::remove_dir_all(&work)?;
    step.done();
    Ok(())
}

/// The root file system of the busybox images: the program, a link an applet, users and groups.
///
/// # Errors
/// busybox cannot be run.
pub fn busybox_layer(outputs: &Outputs) -> Result<Blob> {
    let program = built(outputs, "busybox");
    let applets = output(Command::new(&program).arg("--list-full"))?;
    let mut tar = Tar::default();
    for (path, mode) in [
        ("bin/", 0o755),
        ("dev/", 0o755),
        ("etc/", 0o755),
        ("home/", 0o755),
        ("lib/", 0o755),
        ("proc/", 0o755),
        ("root/", 0o700),
        ("sbin/", 0o755),
        ("sys/", 0o755),
        ("tmp/", 0o1777),
        ("usr/", 0o755),
        ("usr/bin/", 0o755),
        ("usr/sbin/", 0o755),
        ("var/", 0o755),
        ("var/spool/", 0o755),
        ("var/spool/mail/", 0o755),
        ("var/www/", 0o755),
    ] {
        tar.directory(path, mode)?;
    }
    tar.file("bin/busybox", 0o755, &fs::read(&program)?)?;
    let mut links = BTreeSet::new();
    for applet in applets
        .lines()
        .filter(|applet| !matches!(*applet, "bin/busybox" | "linuxrc"))
    {
        links.insert(applet.to_owned());
        // Every applet is found in /bin too, wherever it belongs.
        links.insert(format!(
            "bin/{}",
            applet.rsplit('/').next().unwrap_or(applet)
        ));
    }
    for link in links {
        tar.link(&link, "/bin/busybox")?;
    }
    tar.file("etc/passwd", 0o644, PASSWD.as_bytes())?;
    tar.file("etc/group", 0o644, GROUP.as_bytes())?;
    tar.file("etc/shadow", 0o600, b"root:*:10933:0:99999:7:::\n")?;
    tar.finish()
}

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
sys:x:3:3:sys:/dev:/bin/false
sync:x:4:100:sync:/bin:/bin/sync
mail:x:8:8:mail:/var/spool/mail:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
operator:x:37:37:Operator:/var:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
";
const GROUP: &str = "root:x:0:
daemon:x:1:
bin:x:2:
sys:x:3:
adm:x:4:
tty:x:5:
disk:x:6:
wheel:x:10:root
mail:x:8:
www-data:x:33:
users:x:100:
nogroup:x:65534:
";

/// Builds the static C programs.
///
/// # Errors
/// gcc fails.
pub fn c_programs(steps: &Steps, outputs: &Outputs) -> Result<()> {
    let dir = outputs.images().join("built");
    fs::create_dir_all(&dir)?;
    let step = steps.start("small C programs of the images", None)?;
    for (name, source) in C_PROGRAMS {
        let file = dir.join(format!("{name}.c"));
        fs::write(&file, source)?;
        step.run(
            Command::new("gcc")
                .args(["-static", "-Os", "-s", "-Wl,--build-id=none", "-o"])
                .arg(dir.join(name))
                .arg(&file),
        )?;
    }
    step.done();
    Ok(())
}
