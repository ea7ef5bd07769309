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
//! <state>/containers/<id>/rootfs lower/ volumes/ images/   mount points
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

/// Removes a directory tree; a missing one is fine.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
