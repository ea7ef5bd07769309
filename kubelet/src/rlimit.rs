//! How many files this process may have open.
//!
//! Owns: `maxOpenFiles`, and what counts as the node's own want of files. Upstream: `pkg/util/rlimit`, and Go's runtime, which
//! raises the soft limit of every program; v1.36.

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// A soft and a hard limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub soft: u64,
    pub hard: u64,
}

/// What to set when `wanted` is allowed, and what when it is not: raising the hard limit takes a right.
fn plan(before: Limits, wanted: u64) -> [Limits; 2] {
    let both = |n| Limits { soft: n, hard: n };
    let reachable = Limits {
        soft: before.hard.min(wanted.max(before.soft)),
        hard: before.hard,
    };
    [both(wanted), reachable]
}

/// Sets the limit of open files to `max_open_files`; returns what was there, which is what containers are to have. Without the
/// right to raise the hard limit, the soft one is raised to it.
pub fn set_num_files(max_open_files: i64) -> Option<Limits> {
    let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(error) => {
            tracing::error!(%error, "Failed to read rlimit on max file handles");
            return None;
        }
    };
    let before = Limits { soft, hard };
    let set = |to: Limits| setrlimit(Resource::RLIMIT_NOFILE, to.soft, to.hard);
    let [wanted, reachable] = plan(before, u64::try_from(max_open_files).unwrap_or(0));
    if let Err(error) = set(wanted) {
        tracing::error!(max_open_files, %error, "Failed to set rlimit on max file handles");
        if let Err(error) = set(reachable) {
            tracing::error!(soft = reachable.soft, %error, "Failed to raise the soft rlimit on max file handles");
        }
    }
    Some(before)
}

/// Whether the node is short of files or memory: that says nothing of whoever was to be reached.
pub fn is_shortage(error: &std::io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_is_acted_on_and_the_soft_limit_never_falls_without_need() {
        let limits = |soft, hard| Limits { soft, hard };
        for (before, wanted, expect) in [
            (
                limits(1024, 524_288),
                1_000_000,
                [limits(1_000_000, 1_000_000), limits(524_288, 524_288)],
            ),
            (
                limits(1024, 4096),
                2048,
                [limits(2048, 2048), limits(2048, 4096)],
            ),
            (
                limits(65_536, 65_536),
                1024,
                [limits(1024, 1024), limits(65_536, 65_536)],
            ),
        ] {
            assert_eq!(plan(before, wanted), expect, "{before:?} {wanted}");
        }
    }

    #[test]
    fn too_many_open_files_is_the_node_s_matter() {
        let error = |errno: Errno| std::io::Error::from_raw_os_error(errno as i32);
        assert!(is_shortage(&error(Errno::EMFILE)) && is_shortage(&error(Errno::ENFILE)));
        assert!(
            !is_shortage(&error(Errno::ECONNREFUSED)) && !is_shortage(&error(Errno::ETIMEDOUT))
        );
        assert!(!is_shortage(&std::io::Error::other("lookup")));
    }
}
