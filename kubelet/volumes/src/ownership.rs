//! `fsGroup`: hands the files of a volume to a group. Upstream: pkg/volume/volume_linux.go.

use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;

const RW_MASK: u32 = 0o660;
const RO_MASK: u32 = 0o440;
const EXEC_MASK: u32 = 0o110;
const SET_GID: u32 = 0o2000;

/// `spec.securityContext.fsGroupChangePolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChangePolicy {
    #[default]
    Always,
    /// Skip the walk if the volume's root already looks right.
    OnRootMismatch,
}

/// Gives every file below `dir`, and `dir` last, to `fs_group`, readable (and unless `read_only`,
/// writable) for it. Directories get the set-group-ID bit, so that new files are the group's too.
/// A file that refuses is logged and left; the walk goes on, as upstream's does.
///
/// # Errors
/// A directory that cannot be read. A retry may help.
pub fn change_permissions(
    dir: &Path,
    fs_group: u32,
    read_only: bool,
    policy: ChangePolicy,
) -> io::Result<()> {
    if policy == ChangePolicy::OnRootMismatch
        && !requires_permission_change(dir, fs_group, read_only)
    {
        return Ok(());
    }
    walk_deep(dir, fs_group, read_only)
}

fn walk_deep(path: &Path, fs_group: u32, read_only: bool) -> io::Result<()> {
    let info = match fs::symlink_metadata(path) {
        Ok(info) => info,
        // A file that goes away under our feet needs no owner.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    if info.is_dir() {
        for entry in fs::read_dir(path)? {
            walk_deep(&entry?.path(), fs_group, read_only)?;
        }
    }
    change_file_permission(path, &info, fs_group, read_only);
    Ok(())
}

fn change_file_permission(path: &Path, info: &Metadata, fs_group: u32, read_only: bool) {
    if let Err(error) = lchown(path, None, Some(fs_group)) {
        tracing::error!(path = %path.display(), %error, "Lchown failed");
    }
    // chmod follows links: the mode of a link means nothing and must not reach its target.
    if info.is_symlink() {
        return;
    }
    let mode = info.mode() & 0o7777 | mask(info, read_only);
    if let Err(error) = fs::set_permissions(path, Permissions::from_mode(mode)) {
        tracing::error!(path = %path.display(), %error, "chmod failed");
    }
}

fn mask(info: &Metadata, read_only: bool) -> u32 {
    let mask = if read_only { RO_MASK } else { RW_MASK };
    if info.is_dir() {
        mask | SET_GID | EXEC_MASK
    } else {
        mask
    }
}

fn requires_permission_change(root: &Path, fs_group: u32, read_only: bool) -> bool {
    let Ok(info) = fs::metadata(root) else {
        return true;
    };
    if !info.is_dir() || info.gid() != fs_group {
        return true;
    }
    let wanted = mask(&info, read_only);
    info.mode() & wanted != wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn gives_files_to_the_group_and_keeps_other_bits() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("v");
        fs::create_dir(&root).unwrap();
        fs::set_permissions(&root, Permissions::from_mode(0o777)).unwrap();
        let file = root.join("f");
        fs::write(&file, "x").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o400)).unwrap();
        std::os::unix::fs::symlink("f", root.join("l")).unwrap();

        change_permissions(&root, 1234, true, ChangePolicy::Always).unwrap();
        assert_eq!(mode(&file), 0o440);
        assert_eq!(mode(&root), 0o2777);
        assert_eq!(fs::symlink_metadata(root.join("l")).unwrap().gid(), 1234);

        change_permissions(&root, 1234, false, ChangePolicy::OnRootMismatch).unwrap();
        assert_eq!(
            mode(&file),
            0o440,
            "the root matches: nothing below is touched"
        );
        change_permissions(&root, 1234, false, ChangePolicy::Always).unwrap();
        assert_eq!(mode(&file), 0o660);
    }
}
