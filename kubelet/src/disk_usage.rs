//! How much directories hold, counted seldom.
//!
//! Owns: [`DiskUsages`]: a count stands for as long as its reader says, and for [`REST`] times as long as it took: a
//! tree of millions of files must not keep the node counting.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use host::DiskUsage;

/// Counting takes one part in so many of the time.
const REST: u32 = 20;
/// A count nobody asked for since is forgotten.
const FORGET: Duration = Duration::from_secs(600);

#[derive(Clone, Copy, Debug)]
struct Known {
    at: Instant,
    took: Duration,
    usage: DiskUsage,
}

impl Known {
    fn stands(&self, now: Instant, max_age: Duration) -> bool {
        now.duration_since(self.at) < max_age.max(self.took * REST)
    }
}

/// Counts as they were when last taken.
#[derive(Debug, Default)]
pub struct DiskUsages {
    known: Mutex<HashMap<PathBuf, Known>>,
}

impl DiskUsages {
    /// What `directory` holds; one that is not there holds nothing. Blocks.
    pub fn of(&self, directory: &Path, max_age: Duration) -> DiskUsage {
        let lock = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = Instant::now();
        let known = lock().get(directory).copied();
        if let Some(known) = known.filter(|known| known.stands(begin, max_age)) {
            return known.usage;
        }
        let usage = host::disk_usage(directory).unwrap_or_default();
        let now = Instant::now();
        let known = Known {
            at: now,
            took: now.duration_since(begin),
            usage,
        };
        let mut all = lock();
        all.retain(|_, known| now.duration_since(known.at) < FORGET);
        all.insert(directory.to_owned(), known);
        usage
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_stands_as_long_as_it_may_and_longer_the_dearer_it_was() {
        let at = Instant::now();
        for (took_ms, age_ms, stands) in [
            (0, 9_000, true),
            (0, 11_000, false),
            (1_000, 19_000, true),
            (1_000, 21_000, false),
        ] {
            let known = Known {
                at,
                took: Duration::from_millis(took_ms),
                usage: DiskUsage::default(),
            };
            let now = at + Duration::from_millis(age_ms);
            assert_eq!(
                known.stands(now, Duration::from_secs(10)),
                stands,
                "{took_ms} {age_ms}"
            );
        }
        let dir = tempfile::tempdir().unwrap();
        let usages = DiskUsages::default();
        let age = Duration::from_secs(60);
        assert_eq!(usages.of(dir.path(), age).inodes, 1);
        std::fs::write(dir.path().join("file"), "x").unwrap();
        assert_eq!(usages.of(dir.path(), age).inodes, 1);
        assert_eq!(usages.of(&dir.path().join("none"), age).inodes, 0);
    }
}
