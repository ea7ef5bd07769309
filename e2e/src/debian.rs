//! Debian packages that the build and the nodes need.

use std::process::Command;

use anyhow::{Result, bail};

use crate::step::Steps;

/// Package, and what needs it.
const PACKAGES: &[(&str, &str)] = &[
    ("gcc", "linking, the images' small C programs"),
    ("libc6-dev", "the same"),
    ("make", "libcontainer's eBPF build, busybox"),
    ("pkg-config", "finding libseccomp"),
    ("libseccomp-dev", "libcontainer"),
    ("libelf-dev", "libcontainer's device rules on cgroup v2"),
    ("zlib1g-dev", "the same"),
    ("iproute2", "namespaces and links of the nodes"),
    ("nftables", "the pod network and kube-proxy"),
    ("iptables", "upstream's kubelet and CNI plugins"),
    ("conntrack", "kube-proxy"),
    ("curl", "the tests' requests as a stranger"),
    ("util-linux", "nsenter, unshare"),
    ("procps", "sysctl"),
    ("dbus-daemon", "tests of what the kubelet asks of logind"),
    ("strace", "`bench starts` counts calls that wait for a disk"),
    ("mmdebstrap", "the root file system of the test images"),
    ("bzip2", "unpacking busybox's source"),
    ("xz-utils", "unpacking sources"),
    ("python3-venv", "a provider of nodes written in Python"),
    ("dpkg-dev", "fetching busybox's source"),
    ("ca-certificates", "package mirrors over TLS"),
];

/// What `cargo e2e test page` needs beside: some 100 MB, so not of every run.
pub const BROWSER: &[&str] = &["chromium", "chromium-driver"];

/// Installs what is missing.
///
/// # Errors
/// Root is needed and we are not root; or apt fails.
pub fn install_missing(steps: &Steps) -> Result<()> {
    let packages: Vec<&str> = PACKAGES.iter().map(|(name, _)| *name).collect();
    install(steps, &packages)
}

/// Installs those of the packages that are missing.
///
/// # Errors
/// Root is needed and we are not root; or apt fails.
pub fn install(steps: &Steps, packages: &[&str]) -> Result<()> {
    let missing: Vec<&str> = packages
        .iter()
        .copied()
        .filter(|name| !installed(name))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    require_root(&format!(
        "install the Debian packages {}",
        missing.join(" ")
    ))?;
    let step = steps.start("install Debian packages", None)?;
    step.message(&missing.join(" "));
    step.run(Command::new("apt-get").args(["update", "-q"]))?;
    step.run(
        Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "-y", "-q", "--no-install-recommends"])
            .args(&missing),
    )?;
    step.done();
    Ok(())
}

fn installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f=${Status}", package])
        .output()
        .is_ok_and(|out| out.status.success() && out.stdout.ends_with(b"install ok installed"))
}

/// # Errors
/// We are not root; the error says what root is needed for.
pub fn require_root(what: &str) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("root is needed to {what}: run the same command as root (sudo -E cargo e2e …)");
    }
    Ok(())
}
