//! Which sockets there are below a directory, and what changed since the last look.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What makes a socket the one it was: one that was removed and made again under the same name is another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
    /// `None`: the file system does not know.
    born: Option<SystemTime>,
}

/// Sockets by path.
pub(crate) type Sockets = BTreeMap<PathBuf, Identity>;

/// Directories and sockets at and below `dir`; names that begin with a dot are left out. What goes away meanwhile was not there.
/// `enter` is called with each directory before it is read.
///
/// # Errors
/// `dir` itself cannot be read.
pub(crate) fn scan(dir: &Path, enter: &mut dyn FnMut(&Path)) -> io::Result<Sockets> {
    let mut found = Sockets::new();
    enter(dir);
    let mut entries: Vec<PathBuf> = children(fs::read_dir(dir)?);
    while let Some(path) = entries.pop() {
        // Not through links, as upstream's walk.
        let Ok(info) = fs::symlink_metadata(&path) else {
            continue;
        };
        if info.is_dir() {
            enter(&path);
            if let Ok(below) = fs::read_dir(&path) {
                entries.extend(children(below));
            }
        } else if info.file_type().is_socket() {
            let identity = Identity {
                device: info.dev(),
                inode: info.ino(),
                born: info.created().ok(),
            };
            found.insert(path, identity);
        }
    }
    Ok(found)
}

fn children(entries: fs::ReadDir) -> Vec<PathBuf> {
    entries
        .flatten()
        .filter(|e| !e.file_name().as_encoded_bytes().starts_with(b"."))
        .map(|e| e.path())
        .collect()
}

/// The sockets that went, and those that came; one that was made anew did both.
pub(crate) fn diff(before: &Sockets, now: &Sockets) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let other = |a: &Sockets, b: &Sockets| {
        let changed = a
            .iter()
            .filter(|(path, identity)| b.get(*path) != Some(*identity));
        changed.map(|(path, _)| path.clone()).collect()
    };
    (other(before, now), other(now, before))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn sockets_of_directories_below_come_and_go() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path();
        fs::create_dir(dir.join("driver")).unwrap();
        fs::write(dir.join("file"), "").unwrap();
        let _hidden = UnixListener::bind(dir.join(".hidden.sock")).unwrap();
        let a = dir.join("a.sock");
        let b = dir.join("driver/b.sock");
        let _a = UnixListener::bind(&a).unwrap();
        let _b = UnixListener::bind(&b).unwrap();
        let mut entered = Vec::new();
        let first = scan(dir, &mut |d| entered.push(d.to_owned())).unwrap();
        assert_eq!(entered, [dir.to_owned(), dir.join("driver")]);
        let all = vec![a.clone(), b.clone()];
        assert_eq!(diff(&Sockets::new(), &first), (vec![], all));
        assert_eq!(diff(&first, &first), (vec![], vec![]));

        fs::remove_file(&a).unwrap();
        let _anew = UnixListener::bind(&a).unwrap();
        fs::remove_file(&b).unwrap();
        let second = scan(dir, &mut |_| {}).unwrap();
        assert_eq!(diff(&first, &second), (vec![a.clone(), b], vec![a]));
    }
}
