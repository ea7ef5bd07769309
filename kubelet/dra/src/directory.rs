//! The files: what was prepared, and how devices are. Blocking calls: not for async threads.
//!
//! Upstream: state/checkpointer.go, pkg/kubelet/checkpointmanager.

use std::fs;
use std::io;
use std::path::Path;

use tokio::runtime::Handle;

use crate::checkpoint;
use crate::claims::Claims;
use crate::health::{self, Health};

/// Where a file goes that is not whole, the last one of them.
const CORRUPT: &str = "dra_manager_state.corrupt";

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

/// What a kubelet before this one prepared. A file that says nothing is kept beside its place. DIFFERS: upstream's kubelet does not start with it, until
/// somebody drains the node and removes the file.
///
/// # Errors
/// It is there and cannot be read: what is prepared would never be unprepared.
pub(crate) fn read_claims(dir: &Path) -> io::Result<Claims> {
    let path = dir.join(checkpoint::FILE);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Claims::default()),
        Err(error) => return Err(error),
    };
    match checkpoint::decode(&text) {
        Ok(claims) => Ok(claims),
        Err(error) => {
            let aside = dir.join(CORRUPT);
            tracing::error!(path = %path.display(), kept = %aside.display(), %error, "cannot understand which claims are prepared: drivers are asked again for those that pods use, and not told of the others");
            fs::rename(&path, &aside)?;
            Ok(Claims::default())
        }
    }
}

/// # Errors
/// I/O; the old file stands.
pub(crate) fn write_claims(dir: &Path, text: &str) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    host::atomic_file::write(&dir.join(checkpoint::FILE), text.as_bytes())
}

/// Drivers say it all again: what cannot be read is nothing.
pub(crate) fn read_health(dir: &Path) -> Health {
    let path = dir.join(health::FILE);
    let read = match fs::read(&path) {
        Ok(text) => Health::decode(&text).map_err(io::Error::from),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Health::default(),
        Err(error) => Err(error),
    };
    read.unwrap_or_else(|error| {
        tracing::error!(path = %path.display(), %error, "Failed to load health checkpoint, proceeding with empty cache");
        Health::default()
    })
}

/// # Errors
/// I/O; the old file stands.
pub(crate) fn write_health(dir: &Path, text: &str) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    host::atomic_file::write_unsynced(&dir.join(health::FILE), text.as_bytes())
}
