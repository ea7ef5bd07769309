//! Podman as this command uses it: its own storage, networks and configuration, beside whatever the machine's users have.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::resource::{Resource, getrlimit};

use crate::step::output;

/// The nodes' network. kind would make one with an IPv6 range, which not every machine has.
pub const NETWORK: &str = "gantry-kind";
/// Where containers' cgroups are where no systemd runs; podman's own default.
pub const CGROUP: &str = "libpod_parent";
/// Podman's volatile state.
const RUN: &str = "/run/gantry-e2e-kind";
const MODULES: &str = "/lib/modules";
/// In the folder if this command made the one above.
const MADE_MODULES: &str = "made-lib-modules";
/// In the folder if there was no rule of netavark's before this command's network.
const FIRST_RULES: &str = "first-rules";
/// In the names of netavark's chains.
const RULES: &str = "NETAVARK";
/// What is asked for where the machine allows more. Podman asks for a million of each, which it is refused without CAP_SYS_RESOURCE.
const MOST_FILES: u64 = 1_048_576;
const MOST_PROCESSES: u64 = 20_000;

/// Program, and the Debian package that has it.
const PROGRAMS: &[(&str, &str)] = &[
    ("podman", "podman"),
    ("runc", "runc"),
    ("netavark", "netavark"),
    ("aardvark-dns", "aardvark-dns"),
    ("iptables", "iptables"),
    ("mmdebstrap", "mmdebstrap"),
];
/// Where they are; podman finds its helpers in the last two.
const FOLDERS: &[&str] = &[
    "/usr/bin",
    "/usr/sbin",
    "/usr/local/bin",
    "/usr/lib/podman",
    "/usr/libexec/podman",
];

/// # Errors
/// A program is missing; the text says what to install.
pub fn check() -> Result<()> {
    let missing: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| {
            !FOLDERS
                .iter()
                .any(|dir| Path::new(dir).join(program).exists())
        })
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "programs are missing. Install them as root: apt-get install --no-install-recommends {}",
        missing.join(" ")
    )
}

fn conf(dir: &Path) -> PathBuf {
    dir.join("containers.conf")
}

fn storage_conf(dir: &Path) -> PathBuf {
    dir.join("storage.conf")
}

/// Podman, or a program that calls it.
pub fn command(dir: &Path, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command
        .env("CONTAINERS_CONF", conf(dir))
        .env("CONTAINERS_STORAGE_CONF", storage_conf(dir));
    command
}

/// Writes the configuration. Nothing is started by it.
///
/// # Errors
/// A file cannot be written.
pub fn prepare(dir: &Path) -> Result<()> {
    let networks = dir.join("networks");
    fs::create_dir_all(&networks).with_context(|| format!("make {}", networks.display()))?;
    let files = getrlimit(Resource::RLIMIT_NOFILE)?.1.min(MOST_FILES);
    let processes = getrlimit(Resource::RLIMIT_NPROC)?.1.min(MOST_PROCESSES);
    let has_systemd = Path::new("/run/systemd/system").exists();
    let (manager, logger) = if has_systemd {
        ("systemd", "journald")
    } else {
        ("cgroupfs", "file")
    };
    let text = format!(
        "[containers]\ndefault_ulimits = [\"nofile={files}:{files}\", \"nproc={processes}:{processes}\"]\nlog_driver = \"k8s-file\"\n\
         [engine]\ncgroup_manager = \"{manager}\"\nevents_logger = \"{logger}\"\nruntime = \"runc\"\n\
         [network]\nnetwork_backend = \"netavark\"\nnetwork_config_dir = \"{}\"\n",
        networks.display()
    );
    fs::write(conf(dir), text)?;
    let text = format!(
        "[storage]\ndriver = \"overlay\"\ngraphroot = \"{}\"\nrunroot = \"{RUN}\"\n",
        dir.join("storage").display()
    );
    fs::write(storage_conf(dir), text)?;
    // kind mounts it into every node.
    if !Path::new(MODULES).exists() {
        fs::create_dir_all(MODULES).with_context(|| format!("make {MODULES}"))?;
        fs::write(dir.join(MADE_MODULES), "")?;
    }
    Ok(())
}

/// Makes the nodes' network, if it is not there.
///
/// # Errors
/// podman fails.
pub fn make_network(dir: &Path) -> Result<()> {
    if !has_network(dir)? {
        if !rules()?.contains(RULES) {
            fs::write(dir.join(FIRST_RULES), "")?;
        }
        let make = ["network", "create", "--driver", "bridge", NETWORK];
        output(command(dir, "podman").args(make))?;
    }
    Ok(())
}

fn has_network(dir: &Path) -> Result<bool> {
    let list = ["network", "ls", "--format", "{{.Name}}"];
    let networks = output(command(dir, "podman").args(list))?;
    Ok(networks.lines().any(|name| name == NETWORK))
}

/// Removes it, and what netavark leaves of its rules where it had none before.
///
/// # Errors
/// podman or iptables fails.
pub fn remove_network(dir: &Path) -> Result<()> {
    if has_network(dir)? {
        output(command(dir, "podman").args(["network", "rm", "--force", NETWORK]))?;
    }
    let marker = dir.join(FIRST_RULES);
    if marker.exists() {
        if let Some(removal) = removal(&rules()?) {
            let mut child = Command::new("iptables-restore")
                .arg("--noflush")
                .stdin(Stdio::piped())
                .spawn()
                .context("start iptables-restore")?;
            let mut input = child.stdin.take().expect("stdin is piped");
            input.write_all(removal.as_bytes())?;
            drop(input);
            ensure!(
                child.wait()?.success(),
                "iptables-restore failed:\n{removal}"
            );
        }
        fs::remove_file(marker)?;
    }
    Ok(())
}

fn rules() -> Result<String> {
    output(&mut Command::new("iptables-save"))
}

/// What `iptables-restore` is to be told so that no rule and no chain of netavark's is there. `None`: none is, or some are of a network
/// that is in use.
fn removal(rules: &str) -> Option<String> {
    let own: Vec<&str> = rules.lines().filter(|line| line.contains(RULES)).collect();
    // A rule of a network names its addresses.
    if own.is_empty()
        || own
            .iter()
            .any(|line| line.contains(" -d ") || line.contains(" -s "))
    {
        return None;
    }
    let mut text = String::new();
    let (mut rules_go, mut chains_go) = (String::new(), String::new());
    for line in rules.lines() {
        if line.starts_with('*') {
            (rules_go, chains_go) = (format!("{line}\n"), String::new());
        } else if line == "COMMIT" {
            text += &format!("{rules_go}{chains_go}COMMIT\n");
        } else if let Some(rule) = line.strip_prefix("-A ").filter(|rule| rule.contains(RULES)) {
            rules_go += &format!("-D {rule}\n");
        } else if let Some(chain) = line.strip_prefix(':').filter(|chain| chain.contains(RULES)) {
            let chain = chain.split(' ').next().unwrap_or_default();
            chains_go += &format!("-X {chain}\n");
        }
    }
    Some(text)
}

/// Unmounts what podman keeps mounted of its storage, so that the folder can be removed like any other, and gives back what was made
/// outside of it.
///
/// # Errors
/// A mount stays.
pub fn release(dir: &Path) -> Result<()> {
    let storage = dir.join("storage");
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mut own: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|place| Path::new(place).starts_with(&storage) || Path::new(place).starts_with(RUN))
        .collect();
    // The innermost first.
    own.sort_by_key(|place| std::cmp::Reverse(place.len()));
    for place in own {
        output(Command::new("umount").arg(place))?;
    }
    if Path::new(RUN).exists() {
        fs::remove_dir_all(RUN).with_context(|| format!("remove {RUN}"))?;
    }
    let marker = dir.join(MADE_MODULES);
    if marker.exists() {
        // Others may have put something there since.
        let _ = fs::remove_dir(MODULES);
        fs::remove_file(marker)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEFT: &str = "*filter
:FORWARD ACCEPT [0:0]
:NETAVARK_FORWARD - [0:0]
-A FORWARD -m comment --comment \"netavark firewall plugin rules\" -j NETAVARK_FORWARD
COMMIT
*nat
:OUTPUT ACCEPT [0:0]
:NETAVARK-HOSTPORT-MASQ - [0:0]
-A NETAVARK-HOSTPORT-MASQ -j MASQUERADE
COMMIT
";

    #[test]
    fn what_is_left_of_the_rules_goes_and_nothing_else() {
        assert_eq!(
            removal(LEFT).unwrap(),
            "*filter\n-D FORWARD -m comment --comment \"netavark firewall plugin rules\" -j NETAVARK_FORWARD\n-X NETAVARK_FORWARD\nCOMMIT\n\
             *nat\n-D NETAVARK-HOSTPORT-MASQ -j MASQUERADE\n-X NETAVARK-HOSTPORT-MASQ\nCOMMIT\n"
        );
        assert_eq!(removal("*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"), None);
        let in_use = format!("{LEFT}-A NETAVARK_FORWARD -d 10.89.0.0/24 -j ACCEPT\n");
        assert_eq!(removal(&in_use), None);
    }
}
