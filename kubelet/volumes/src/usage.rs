//! How much disk a volume uses, for the summary API and eviction. Upstream: pkg/volume/metrics_du.go.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What the files below a directory occupy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    pub bytes: u64,
    pub inodes: u64,
}

/// Counts every inode once, and stays on the file system of `dir`. Files that vanish meanwhile do not count. Blocks.
///
/// # Errors
/// `dir` itself cannot be read.
pub fn disk_usage(dir: &Path) -> io::Result<DiskUsage> {
    let device = fs::symlink_metadata(dir)?.dev();
    let (mut usage, mut seen) = (DiskUsage::default(), HashSet::new());
    let mut stack = vec![dir.to_owned()];
    while let Some(path) = stack.pop() {
        let Ok(info) = fs::symlink_metadata(&path) else {
            continue;
        };
        if info.dev() != device || (info.nlink() > 1 && !info.is_dir() && !seen.insert(info.ino()))
        {
            continue;
        }
        usage.bytes += info.blocks() * 512;
        usage.inodes += 1;
        if info.is_dir()
            && let Ok(entries) = fs::read_dir(&path)
        {
            stack.extend(entries.flatten().map(|e| e.path()));
        }
    }
    Ok(usage)
}
