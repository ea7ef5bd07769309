//! The kernel's settings that the kubelet wants, and `protectKernelDefaults`.
//!
//! Owns: their list, and whether they are set or only looked at. Upstream: `setupKernelTunables` in
//! `pkg/kubelet/cm/container_manager_linux.go`, v1.36.

use std::io;
use std::path::Path;

/// Name below /proc/sys, wanted value: overcommit always; an OOM kills a process, not the machine; a panic restarts the machine
/// after ten seconds; an oops is a panic; keys enough for a node full of containers.
const WANTED: [(&str, i64); 6] = [
    ("vm/overcommit_memory", 1),
    ("vm/panic_on_oom", 0),
    ("kernel/panic", 10),
    ("kernel/panic_on_oops", 1),
    ("kernel/keys/root_maxkeys", 1_000_000),
    ("kernel/keys/root_maxbytes", 25_000_000),
];

/// The node's settings are not the wanted ones, and `protectKernelDefaults` forbids to change them.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join(", "))]
pub struct TunablesError(Vec<String>);

/// Looks at every setting; with `protect` a wrong one is an error, otherwise it is set.
///
/// DIFFERS: one that cannot be set is a warning, as it was not in upstream's: a node in a container may not be allowed to.
///
/// # Errors
/// With `protect`: all that differ, in upstream's words.
pub fn set_up(protect: bool) -> Result<(), TunablesError> {
    let root = Path::new("/proc/sys");
    let read = |name: &str| std::fs::read_to_string(root.join(name));
    let write = |name: &str, value: i64| std::fs::write(root.join(name), value.to_string());
    set_up_with(protect, read, write)
}

fn set_up_with(
    protect: bool,
    read: impl Fn(&str) -> io::Result<String>,
    mut write: impl FnMut(&str, i64) -> io::Result<()>,
) -> Result<(), TunablesError> {
    let mut wrong = Vec::new();
    for (name, wanted) in WANTED {
        let actual = match read(name).map(|text| text.trim().parse::<i64>()) {
            Ok(Ok(actual)) if actual == wanted => continue,
            Ok(Ok(actual)) => actual.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        if protect {
            wrong.push(format!(
                "invalid kernel flag: {name}, expected value: {wanted}, actual value: {actual}"
            ));
            continue;
        }
        match write(name, wanted) {
            Ok(()) => tracing::info!(flag = name, wanted, actual, "Updating kernel flag"),
            Err(error) => {
                tracing::warn!(flag = name, wanted, actual, %error, "Updating kernel flag failed")
            }
        }
    }
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(TunablesError(wrong)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(protect: bool, panic: &str) -> (Result<(), TunablesError>, Vec<(String, i64)>) {
        let mut written = vec![];
        let read = |name: &str| match name {
            "kernel/panic" => Ok(panic.to_owned()),
            _ => Ok(format!(
                "{}\n",
                WANTED.iter().find(|(known, _)| *known == name).unwrap().1
            )),
        };
        let outcome = set_up_with(protect, read, |name, value| {
            written.push((name.to_owned(), value));
            Ok(())
        });
        (outcome, written)
    }

    #[test]
    fn protected_settings_are_looked_at_and_others_set() {
        assert_eq!(check(true, "10\n"), (Ok(()), vec![]));
        let (outcome, written) = check(true, "0\n");
        assert_eq!(
            outcome.unwrap_err().to_string(),
            "invalid kernel flag: kernel/panic, expected value: 10, actual value: 0"
        );
        assert!(written.is_empty());
        let (outcome, written) = check(false, "0\n");
        assert_eq!(outcome, Ok(()));
        assert_eq!(written, [("kernel/panic".to_owned(), 10)]);
    }
}
