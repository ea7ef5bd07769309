//! Files that are whole or not there: a temporary name beside them, then a rename.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Replaces `path` by `bytes`, readable by root alone. After a crash of the machine the old file is there or the new one.
/// Two writers of one path must not run at once.
///
/// # Errors
/// I/O; the old file stands untouched.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_by(&temporary(path), path, bytes)
}

/// As [`write`], by a temporary name of the caller's, on the same file system.
///
/// # Errors
/// I/O; the old file stands untouched.
pub fn write_by(temporary: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = create(temporary, bytes)?;
    file.sync_all()?;
    std::fs::rename(temporary, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// As [`write`], for what matters only as long as the machine runs: a crash of the program leaves the old file or the new
/// one, a crash of the machine may leave anything.
///
/// # Errors
/// I/O; the old file stands untouched.
pub fn write_unsynced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary(path);
    create(&temporary, bytes)?;
    std::fs::rename(&temporary, path)
}

/// Beside `path`, and out of the way of who lists files by their ending.
fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.tmp"))
}

fn create(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    // One that a crash left may have another mode.
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(bytes)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_whole_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record.json");
        // What a crash left: too long, readable by all.
        let left = dir.path().join(".record.json.tmp");
        std::fs::write(&left, "x".repeat(100)).unwrap();
        std::fs::set_permissions(&left, Permissions::from_mode(0o644)).unwrap();
        let all: [fn(&Path, &[u8]) -> io::Result<()>; 2] = [write, write_unsynced];
        for replace in all {
            replace(&path, b"new").unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"new");
            let mode = path.metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            assert!(!left.exists());
        }
        assert!(write(&dir.path().join("none/record"), b"").is_err());
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        write(&path, b"old").unwrap();
        // The temporary name is taken by something that is no file.
        std::fs::create_dir(dir.path().join(".record.tmp")).unwrap();
        assert!(write(&path, b"new").is_err());
        assert!(write_unsynced(&path, b"new").is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
    }
}
