//! What is mounted, from `/proc/thread-self/mountinfo`: the truth after a crash.

use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One mount of this process's mount namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPoint {
    pub path: PathBuf,
    pub fs_type: String,
    /// Of the super block, e.g. `rw,size=65536k`.
    pub super_options: String,
}

/// Every mount, in the kernel's order: a later one on the same path covers the earlier.
pub fn list() -> io::Result<Vec<MountPoint>> {
    Ok(parse(&std::fs::read("/proc/thread-self/mountinfo")?))
}

/// The mounts at `dir` or below, deepest first, the covering before the covered.
pub fn at_or_below(mounts: &[MountPoint], dir: &Path) -> Vec<MountPoint> {
    let mut found: Vec<_> = mounts
        .iter()
        .filter(|m| m.path.starts_with(dir))
        .cloned()
        .collect();
    found.reverse();
    found.sort_by_key(|m| std::cmp::Reverse(m.path.components().count()));
    found
}

/// The mount exactly at `path`, the topmost.
pub fn at<'a>(mounts: &'a [MountPoint], path: &Path) -> Option<&'a MountPoint> {
    mounts.iter().rev().find(|m| m.path == path)
}

/// Lines that do not parse are left out; the kernel writes none.
pub fn parse(text: &[u8]) -> Vec<MountPoint> {
    text.split(|b| *b == b'\n').filter_map(parse_line).collect()
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn parse_line(line: &[u8]) -> Option<MountPoint> {
    let mut fields = line.split(|b| *b == b' ');
    let path = fields.nth(4)?;
    let mut after = fields.skip_while(|f| *f != b"-").skip(1);
    let fs_type = after.next()?;
    let super_options = after.nth(1).unwrap_or_default();
    Some(MountPoint {
        path: PathBuf::from(std::ffi::OsString::from_vec(unescape(path))),
        fs_type: String::from_utf8_lossy(fs_type).into_owned(),
        super_options: String::from_utf8_lossy(super_options).into_owned(),
    })
}

/// The kernel writes space, tab, newline and backslash as `\ooo`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'\\' && tail.len() >= 3 && tail[..3].iter().all(|b| (b'0'..=b'7').contains(b)) {
            out.push(
                tail[..3]
                    .iter()
                    .fold(0u8, |n, b| n.wrapping_mul(8).wrapping_add(b - b'0')),
            );
            rest = &tail[3..];
        } else {
            out.push(byte);
            rest = tail;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"22 1 0:20 / / rw - ext4 /dev/root rw\n\
        36 22 0:40 / /pods/u/volumes/x rw,relatime shared:1 - tmpfs tmpfs rw,size=64k\n\
        37 36 0:41 / /pods/u/volumes/x/deep\\040er rw - tmpfs tmpfs rw\n\
        38 36 0:42 / /pods/u/volumes/x rw - hugetlbfs nodev rw,pagesize=2M\n\
        39 22 0:43 / /pods/ux rw - tmpfs tmpfs rw\n";

    #[test]
    fn finds_what_is_below_deepest_first() {
        let mounts = parse(TEXT);
        assert_eq!(mounts.len(), 5);
        let below: Vec<_> = at_or_below(&mounts, Path::new("/pods/u"))
            .into_iter()
            .map(|m| (m.path, m.fs_type))
            .collect();
        assert_eq!(
            below,
            [
                (
                    PathBuf::from("/pods/u/volumes/x/deep er"),
                    "tmpfs".to_owned()
                ),
                (PathBuf::from("/pods/u/volumes/x"), "hugetlbfs".to_owned()),
                (PathBuf::from("/pods/u/volumes/x"), "tmpfs".to_owned()),
            ]
        );
        assert_eq!(
            at(&mounts, Path::new("/pods/u/volumes/x")).unwrap().fs_type,
            "hugetlbfs"
        );
        assert!(at(&mounts, Path::new("/pods")).is_none());
    }
}
