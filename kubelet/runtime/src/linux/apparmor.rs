//! AppArmor: which profile a container's programs run under, and the runtime's own profile.
//!
//! Upstream: containerd's `generateApparmorSpecOpts` and `contrib/apparmor`, v2.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::api::SecurityProfile;

/// What the kernel has loaded: a line each, `name (mode)`.
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";
const PARSER: &str = "/sbin/apparmor_parser";
/// The runtime's own profile.
const DEFAULT_NAME: &str = "gantry-default";

/// Confines a container as containerd's default profile does: everything that its capabilities allow, but for
/// writing to the kernel's switches in /proc and /sys, mounting, and touching processes outside.
const DEFAULT_PROFILE: &str = r#"#include <tunables/global>

profile gantry-default flags=(attach_disconnected,mediate_deleted) {
  #include <abstractions/base>

  network,
  capability,
  file,
  umount,

  signal (receive) peer=unconfined,
  signal (send,receive) peer=gantry-default,
  ptrace (trace,read,tracedby,readby) peer=gantry-default,

  deny mount,
  deny @{PROC}/* w,
  deny @{PROC}/{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9]*}/** w,
  deny @{PROC}/sys/[^k]** w,
  deny @{PROC}/sys/kernel/{?,??,[^s][^h][^m]**} w,
  deny @{PROC}/sysrq-trigger rwklx,
  deny @{PROC}/mem rwklx,
  deny @{PROC}/kmem rwklx,
  deny @{PROC}/kcore rwklx,
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}
"#;

/// Why a container does not get its profile.
#[derive(Debug, thiserror::Error)]
pub enum AppArmorError {
    #[error("apparmor profile not found {0:?}")]
    NotLoaded(String),
    #[error("apparmor is not supported: read {LOADED}: {0}")]
    NotSupported(#[source] std::io::Error),
    #[error("load the default AppArmor profile: {PARSER}: {0}")]
    Parser(#[source] std::io::Error),
    #[error("load the default AppArmor profile: {PARSER}: {0}")]
    Refused(String),
}

/// The profile's name for `execve`; `None`: unconfined. Blocks.
///
/// # Errors
/// The profile is not loaded, or cannot be. The container must not run without it.
pub fn profile(wanted: &SecurityProfile) -> Result<Option<String>, AppArmorError> {
    choose(wanted, Path::new(LOADED), &load_default)
}

fn choose(
    wanted: &SecurityProfile,
    loaded: &Path,
    load: &dyn Fn() -> Result<(), AppArmorError>,
) -> Result<Option<String>, AppArmorError> {
    let name = match wanted {
        SecurityProfile::Unconfined => return Ok(None),
        SecurityProfile::RuntimeDefault => DEFAULT_NAME.to_owned(),
        SecurityProfile::Localhost(path) => {
            let text = path.display().to_string();
            text.strip_prefix("localhost/").unwrap_or(&text).to_owned()
        }
    };
    if is_loaded(&name, loaded)? {
        return Ok(Some(name));
    }
    if *wanted != SecurityProfile::RuntimeDefault {
        return Err(AppArmorError::NotLoaded(name));
    }
    load()?;
    Ok(Some(name))
}

fn is_loaded(name: &str, loaded: &Path) -> Result<bool, AppArmorError> {
    let text = std::fs::read_to_string(loaded).map_err(AppArmorError::NotSupported)?;
    Ok(text.lines().any(|line| {
        line.rsplit_once(" (")
            .is_some_and(|(known, _)| known == name)
    }))
}

fn load_default() -> Result<(), AppArmorError> {
    let mut child = Command::new(PARSER)
        .arg("-Kr")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(AppArmorError::Parser)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(DEFAULT_PROFILE.as_bytes())
            .map_err(AppArmorError::Parser)?;
    }
    let output = child.wait_with_output().map_err(AppArmorError::Parser)?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(AppArmorError::Refused(format!("{}: {text}", output.status)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn only_loaded_profiles_are_given() {
        let directory = tempfile::tempdir().unwrap();
        let loaded = directory.path().join("profiles");
        std::fs::write(&loaded, "mine (enforce)\na b (complain)\n").unwrap();
        let times = Cell::new(0);
        let load = || {
            times.set(times.get() + 1);
            Ok(())
        };
        let ask = |wanted: SecurityProfile| {
            choose(&wanted, &loaded, &load).map_err(|error| error.to_string())
        };
        let local = |name: &str| SecurityProfile::Localhost(name.into());
        assert_eq!(ask(SecurityProfile::Unconfined), Ok(None));
        assert_eq!(ask(local("mine")), Ok(Some("mine".into())));
        assert_eq!(ask(local("localhost/a b")), Ok(Some("a b".into())));
        assert_eq!(
            ask(local("other")).unwrap_err(),
            "apparmor profile not found \"other\""
        );
        assert_eq!(times.get(), 0);
        assert_eq!(
            ask(SecurityProfile::RuntimeDefault),
            Ok(Some(DEFAULT_NAME.into()))
        );
        assert_eq!(times.get(), 1, "it is loaded where it is not yet");
        assert!(DEFAULT_PROFILE.contains(&format!("profile {DEFAULT_NAME} ")));

        std::fs::remove_file(&loaded).unwrap();
        assert!(
            ask(local("mine"))
                .unwrap_err()
                .starts_with("apparmor is not supported")
        );
        assert_eq!(ask(SecurityProfile::Unconfined), Ok(None));
    }
}
