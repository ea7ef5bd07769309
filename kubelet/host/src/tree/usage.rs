//! How much disk a tree takes. Upstream: pkg/volume/metrics_du.go.

use std::collections::HashSet;
use std::ffi::CStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::Stat;

use super::walk::{Flow, Outcome, Visit, walk};

/// Inodes with several names that are remembered; beyond, each name counts.
const MAX_LINKED: usize = 1 << 20;

/// What the files below a directory occupy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    pub bytes: u64,
    pub inodes: u64,
    /// Part of the tree could not be looked at: there is at least so much.
    pub partial: bool,
}

impl std::ops::AddAssign for DiskUsage {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.inodes += other.inodes;
        self.partial |= other.partial;
    }
}

#[derive(Default)]
struct Count {
    usage: DiskUsage,
    linked: HashSet<u64>,
}

impl Count {
    fn add(&mut self, stat: &Stat) {
        // Signed on some machines.
        self.usage.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        self.usage.inodes += 1;
    }
}

impl Visit for Count {
    fn enter(&mut self, _: BorrowedFd<'_>, _: &CStr, stat: &Stat) -> io::Result<Flow> {
        self.add(stat);
        Ok(Flow::Continue)
    }

    fn file(&mut self, _: BorrowedFd<'_>, _: &CStr, stat: &Stat) -> io::Result<Flow> {
        #[allow(clippy::useless_conversion, clippy::unnecessary_cast)]
        let inode = stat.st_ino as u64;
        let seen = stat.st_nlink > 1
            && if self.linked.len() < MAX_LINKED {
                !self.linked.insert(inode)
            } else {
                self.linked.contains(&inode)
            };
        if !seen {
            self.add(stat);
        }
        Ok(Flow::Continue)
    }

    fn leave(&mut self, _: Option<BorrowedFd<'_>>) -> io::Result<Flow> {
        Ok(Flow::Continue)
    }
}

/// Counts every inode once, `dir` included, and stays on its mount. What vanishes meanwhile does not count. Blocks.
///
/// # Errors
/// `dir` itself cannot be read.
pub fn disk_usage(dir: &Path) -> io::Result<DiskUsage> {
    let mut count = Count::default();
    let outcome = walk(dir, &mut count)?;
    count.usage.partial = outcome != Outcome::Whole;
    Ok(count.usage)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::tree::walk::tests::{deep, on_small_stack, quick_dir};

    #[test]
    fn everything_counts_once() {
        let dir = quick_dir();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/file"), vec![1; 10_000]).unwrap();
        fs::hard_link(dir.path().join("sub/file"), dir.path().join("again")).unwrap();
        std::os::unix::fs::symlink("/usr", dir.path().join("link")).unwrap();
        let usage = disk_usage(dir.path()).unwrap();
        assert_eq!((usage.inodes, usage.partial), (4, false));
        assert!(usage.bytes >= 10_000 && usage.bytes < 100_000, "{usage:?}");
        assert!(disk_usage(&dir.path().join("none")).is_err());
    }

    #[test]
    fn no_depth_hides_anything() {
        on_small_stack(|| {
            let dir = quick_dir();
            deep(dir.path(), 20_000);
            assert_eq!(disk_usage(dir.path()).unwrap().inodes, 20_001);
            crate::remove_tree(dir.path()).unwrap();
        });
    }
}
