//! Where everything lies, and how records are written.
//!
//! ```text
//! <root>/sandboxes/<id>/sandbox.json        survives a reboot
//! <root>/containers/<id>/container.json     what it was made from
//!                       /exit.json          written by the shim
//!                       /config.json        libcontainer's
//!                       /upper /work        the writable layer
//! <root>/seccomp/<hash>.bpf                 compiled profiles
//! <state>/sandboxes/<id>/shim.sock shim.json shim.log ns/ shm/ resolv.conf hostname
//!                       /record.json        a second copy of sandbox.json
//! <state>/containers/<id>/rootfs lower/ volumes/ images/   mount points
//!                        /record.json       a second copy of container.json
//! <state>/pods/<uid>.lock                   held by the running sandbox's shim
//! ```

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

#[derive(Clone, Debug)]
pub struct Layout {
    pub root: PathBuf,
    pub state: PathBuf,
}

impl Layout {
    pub fn sandboxes(&self) -> PathBuf {
        self.root.join("sandboxes")
    }

    pub fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    pub fn sandbox(&self, id: &str) -> PathBuf {
        self.sandboxes().join(id)
    }

    pub fn container(&self, id: &str) -> PathBuf {
        self.containers().join(id)
    }

    pub fn sandbox_record(&self, id: &str) -> PathBuf {
        self.sandbox(id).join("sandbox.json")
    }

    pub fn container_record(&self, id: &str) -> PathBuf {
        self.container(id).join("container.json")
    }

    /// Beside what runs, and gone with it: stands in for a record that cannot be read.
    pub fn sandbox_copy(&self, id: &str) -> PathBuf {
        self.sandbox_state(id).join("record.json")
    }

    /// As [`Self::sandbox_copy`].
    pub fn container_copy(&self, id: &str) -> PathBuf {
        self.container_state(id).join("record.json")
    }

    pub fn exit_file(&self, id: &str) -> PathBuf {
        self.container(id).join("exit.json")
    }

    pub fn sandbox_states(&self) -> PathBuf {
        self.state.join("sandboxes")
    }

    pub fn container_states(&self) -> PathBuf {
        self.state.join("containers")
    }

    pub fn sandbox_state(&self, id: &str) -> PathBuf {
        self.sandbox_states().join(id)
    }

    pub fn container_state(&self, id: &str) -> PathBuf {
        self.container_states().join(id)
    }

    pub fn rootfs(&self, id: &str) -> PathBuf {
        self.container_state(id).join("rootfs")
    }

    pub fn namespaces(&self, sandbox: &str) -> PathBuf {
        self.sandbox_state(sandbox).join("ns")
    }

    pub fn pod_lock(&self, uid: &str) -> PathBuf {
        self.state.join("pods").join(format!("{uid}.lock"))
    }

    pub fn seccomp(&self) -> PathBuf {
        self.root.join("seccomp")
    }
}

/// Writes by a temporary name, synced, and renames: a crash leaves the old file or the new one.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    if let Some(parent) = path.parent() {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

pub fn write_record<T: Serialize>(path: &Path, record: &T) -> io::Result<()> {
    write_atomically(path, &serde_json::to_vec(record)?)
}

/// Writes a record and, where there is a directory for it, its copy. The copy is not synced: it matters
/// as long as the machine runs.
pub fn write_with_copy<T: Serialize>(path: &Path, copy: &Path, record: &T) -> io::Result<()> {
    let bytes = serde_json::to_vec(record)?;
    write_atomically(path, &bytes)?;
    let mut temporary = copy.as_os_str().to_owned();
    temporary.push(".tmp");
    match write_private(Path::new(&temporary), &bytes)
        .and_then(|()| std::fs::rename(&temporary, copy))
    {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Only for the node's root to read: a record has what a container is started with.
fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)
}

/// What is left of a record.
#[derive(Debug)]
pub enum Found<T> {
    Whole(T),
    /// From the copy: the record itself could not be read, for this reason.
    Copy(T, String),
    /// Neither can be read.
    Torn(String),
    /// There is none.
    Nothing,
}

/// Reads a record, or else its copy.
pub fn find_record<T: DeserializeOwned>(path: &Path, copy: &Path) -> Found<T> {
    let reason = match read_record(path) {
        Ok(Some(record)) => return Found::Whole(record),
        Ok(None) => None,
        Err(error) => Some(format!("{}: {error}", path.display())),
    };
    match (read_record(copy), reason) {
        (Ok(Some(record)), reason) => {
            let missing = || format!("{} is missing", path.display());
            Found::Copy(record, reason.unwrap_or_else(missing))
        }
        (Ok(None), None) => Found::Nothing,
        (Ok(None), Some(reason)) => Found::Torn(reason),
        (Err(error), reason) => {
            let copy = format!("{}: {error}", copy.display());
            Found::Torn(match reason {
                Some(reason) => format!("{reason}; {copy}"),
                None => copy,
            })
        }
    }
}

/// `None`: no such file.
pub fn read_record<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Names of the entries of a directory; none if it is not there.
pub fn entries(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut names: Vec<_> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// Removes a directory tree, however deep a container made it; a missing one is fine.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    host::remove_tree(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(path: &Path, copy: &Path) -> Found<Vec<String>> {
        find_record(path, copy)
    }

    #[test]
    fn a_record_torn_at_any_length_is_read_from_its_copy_or_known_as_torn() {
        let directory = tempfile::tempdir().unwrap();
        let (path, copy) = (directory.path().join("a"), directory.path().join("b"));
        let record = vec!["sandbox".to_owned(), "container".to_owned()];
        assert!(matches!(find(&path, &copy), Found::Nothing));
        write_with_copy(&path, &copy, &record).unwrap();
        let whole = std::fs::read(&path).unwrap();
        assert!(matches!(find(&path, &copy), Found::Whole(found) if found == record));
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            std::fs::write(&copy, &whole).unwrap();
            assert!(
                matches!(find(&path, &copy), Found::Copy(found, _) if found == record),
                "{length}"
            );
            std::fs::write(&copy, &whole[..length]).unwrap();
            assert!(matches!(find(&path, &copy), Found::Torn(_)), "{length}");
            std::fs::remove_file(&copy).unwrap();
            assert!(matches!(find(&path, &copy), Found::Torn(_)), "{length}");
            std::fs::write(&path, &whole).unwrap();
            std::fs::write(&copy, &whole[..length]).unwrap();
            assert!(matches!(find(&path, &copy), Found::Whole(_)), "{length}");
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&copy, &whole).unwrap();
        assert!(matches!(find(&path, &copy), Found::Copy(..)));
    }

    #[test]
    fn a_record_without_a_place_for_its_copy_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let (path, copy) = (directory.path().join("a"), directory.path().join("none/b"));
        write_with_copy(&path, &copy, &vec!["x"]).unwrap();
        assert!(matches!(find(&path, &copy), Found::Whole(_)));
    }
}
