//! The folder of the kubelet's socket, of plugins' sockets and of the checkpoint. Blocking calls: not for async threads.
//!
//! Upstream: `CleanupPluginDirectory`, `Start` in plugin/v1beta1/server.go.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use tokio::runtime::Handle;

use crate::checkpoint::{self, FILE};
use crate::pod_devices::PodDevices;

/// Where a file goes that is not whole, the last one of them.
const CORRUPT: &str = "kubelet_internal_checkpoint.corrupt";

/// Runs `work`, which waits for files, on a thread where that holds nobody up; in its turn among the tasks where one thread does
/// everything ([`host::alone`]).
pub(crate) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let done = match host::alone::works_alone() {
        true => Handle::current().spawn(async move { work() }),
        false => tokio::task::spawn_blocking(work),
    };
    done.await.map_err(io::Error::other).flatten()
}

/// Where plugins register. Upstream: `KubeletSocket`.
pub(crate) fn socket(dir: &Path) -> PathBuf {
    dir.join("kubelet.sock")
}

/// Makes the folder and removes the sockets in it: plugins that see the kubelet's go know that they have to register anew.
///
/// # Errors
/// What could not be done first; the rest was.
pub(crate) fn listen(dir: &Path) -> io::Result<UnixListener> {
    fs::create_dir_all(dir)?;
    fs::set_permissions(dir, Permissions::from_mode(0o750))?;
    let mut failed = None;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        // Through links, as upstream's.
        let is_socket = fs::metadata(&path).is_ok_and(|data| data.file_type().is_socket());
        if is_socket
            && let Err(error) = fs::remove_file(&path)
            // Its plugin did it.
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::error!(path = %path.display(), %error, "Failed to remove file");
            failed = failed.or(Some(error));
        }
    }
    if let Some(error) = failed {
        return Err(error);
    }
    let listener = UnixListener::bind(socket(dir))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// What a kubelet before this one gave out, and the resources there were. A file that says nothing is kept beside its place.
///
/// # Errors
/// It is there and cannot be read: what was given out would be given out again.
pub(crate) fn read(dir: &Path) -> io::Result<(PodDevices, Vec<String>)> {
    let path = dir.join(FILE);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Default::default()),
        Err(error) => return Err(error),
    };
    let read = match checkpoint::decode(&text) {
        Ok(read) => read,
        Err(error) => {
            let aside = dir.join(CORRUPT);
            tracing::error!(path = %path.display(), kept = %aside.display(), %error, "cannot understand which devices were given out; running pods keep theirs unknown to us");
            fs::rename(&path, &aside)?;
            return Ok(Default::default());
        }
    };
    for error in &read.lost {
        tracing::error!(path = %path.display(), %error, "cannot understand which devices a container was given; it keeps them unknown to us");
    }
    Ok((read.pods, read.registered))
}

/// # Errors
/// I/O; the old file stands.
pub(crate) fn write(dir: &Path, text: &str) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    host::atomic_file::write(&dir.join(FILE), text.as_bytes())
}
