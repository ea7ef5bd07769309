//! Where everything lies, who may walk there, and how records are written.
//!
//! ```text
//! <root>/sandboxes/<id>/sandbox.json        survives a reboot
//!                      /resolv.conf hostname   what the pod's containers see; theirs to write
//! <root>/containers/<id>/container.json     what it was made from
//!                       /exit.json          written by the shim
//!                       /config.json        libcontainer's
//!                       /upper /work        the writable layer
//! <root>/seccomp/<hash>.bpf                 compiled profiles
//! <state>/sandboxes/<id>/shim.sock shim.json shim.log ns/ shm/
//!                       /record.json        a second copy of sandbox.json
//! <state>/containers/<id>/rootfs lower/ mounts/ images/    mount points
//!                        /record.json       a second copy of container.json
//!                        /environment.json  what execs need of it
//! <state>/pods/<uid>.lock                   held by the running sandbox's shim
//! ```
//!
//! **Invariant:** every directory is root's alone (0700) and every record 0600: they hold what Secrets hold. Where
//! pods with user namespaces run, their root must walk to its own pins and mount points: the directories above are
//! 0711 then, and the pod's own ones 0710 with the group that is its root.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use host::atomic_file;
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
        self.pods().join(format!("{uid}.lock"))
    }

    pub fn pods(&self) -> PathBuf {
        self.state.join("pods")
    }

    pub fn seccomp(&self) -> PathBuf {
        self.root.join("seccomp")
    }

    /// The pod's resolv.conf or hostname. Those of pods of an earlier version lie on the state's side.
    pub fn pod_file(&self, sandbox: &str, name: &str) -> PathBuf {
        let before = self.sandbox_state(sandbox).join(name);
        if before.exists() {
            return before;
        }
        self.sandbox(sandbox).join(name)
    }

    /// Makes every directory that all pods share, for root alone.
    pub fn create(&self) -> io::Result<()> {
        for directory in [
            self.root.clone(),
            self.state.clone(),
            self.sandboxes(),
            self.containers(),
            self.seccomp(),
            self.sandbox_states(),
            self.container_states(),
            self.pods(),
        ] {
            private_directory(&directory).map_err(|error| named(&directory, "create", error))?;
        }
        Ok(())
    }

    /// Lets the roots of user namespaces walk (not look) through what all pods share of the state's side.
    ///
    /// # Errors
    /// A directory above is closed to them: nothing of ours may open it.
    pub fn open_for_user_namespaces(&self) -> io::Result<()> {
        for above in self.state.ancestors().skip(1) {
            let mode = std::fs::metadata(above)
                .map_err(|error| named(above, "stat", error))?
                .permissions()
                .mode();
            if mode & 0o001 == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    format!(
                        "user namespaces need every directory above {} to be searchable by all users: {} has mode {:04o}",
                        self.state.display(),
                        above.display(),
                        mode & 0o7777
                    ),
                ));
            }
        }
        for directory in [
            self.state.clone(),
            self.sandbox_states(),
            self.container_states(),
        ] {
            std::fs::set_permissions(&directory, Permissions::from_mode(0o711))
                .map_err(|error| named(&directory, "chmod", error))?;
        }
        Ok(())
    }
}

fn named(path: &Path, what: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
}

/// A directory (with its parents) that only root may enter.
pub fn private_directory(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o700))
}

/// As [`private_directory`], with a way through for one group: the root of a user namespace.
pub fn passage(path: &Path, gid: u32) -> io::Result<()> {
    private_directory(path)?;
    chown(path, Some(0), Some(gid))?;
    std::fs::set_permissions(path, Permissions::from_mode(0o710))
}

pub fn write_record<T: Serialize>(path: &Path, record: &T) -> io::Result<()> {
    atomic_file::write(path, &serde_json::to_vec(record)?)
}

/// Writes a record and, where there is a directory for it, its copy. The copy is not synced: it matters
/// as long as the machine runs.
pub fn write_with_copy<T: Serialize>(path: &Path, copy: &Path, record: &T) -> io::Result<()> {
    let bytes = serde_json::to_vec(record)?;
    atomic_file::write(path, &bytes)?;
    match atomic_file::write_unsynced(copy, &bytes) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
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

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn user_namespaces_get_a_way_or_hear_what_is_in_it() {
        let top = tempfile::tempdir().unwrap();
        let layout = Layout {
            root: top.path().join("root"),
            state: top.path().join("state"),
        };
        layout.create().unwrap();
        assert_eq!(mode(&layout.sandbox_states()), 0o700);
        std::fs::set_permissions(top.path(), Permissions::from_mode(0o700)).unwrap();
        let error = layout.open_for_user_namespaces().unwrap_err().to_string();
        let closed = format!("{} has mode 0700", top.path().display());
        assert!(error.ends_with(&closed), "{error}");

        std::fs::set_permissions(top.path(), Permissions::from_mode(0o711)).unwrap();
        layout.open_for_user_namespaces().unwrap();
        for open in [
            &layout.state,
            &layout.sandbox_states(),
            &layout.container_states(),
        ] {
            assert_eq!(mode(open), 0o711, "{}", open.display());
        }
        for closed in [&layout.root, &layout.pods(), &layout.containers()] {
            assert_eq!(mode(closed), 0o700, "{}", closed.display());
        }
    }
}
