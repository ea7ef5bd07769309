//! Rotates container logs that grew too long.
//!
//! Owns: `0.log` -> `0.log.<time>` (compressed but for the newest), so many files a container. Upstream:
//! `pkg/kubelet/logs/container_log_manager.go`, v1.36.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use component_helpers::quantity::Amount;
use flate2::Compression;
use flate2::write::GzEncoder;
use host::{FileError, Links, Root};
use runtime::api::{ContainerState, ContainerStatus, Runtime};
use tokio_util::sync::CancellationToken;

use crate::configuration::KubeletConfiguration;
use crate::off_thread::{off_thread, spawn_blocking};
use crate::paths::Paths;

/// Entries of a log directory that are looked at.
const MAX_ENTRIES: usize = 10_000;

/// How many files, how long.
#[derive(Clone, Copy, Debug)]
struct Policy {
    max_bytes: u64,
    max_files: usize,
}

/// Looks at the logs of running containers until `shutdown`.
pub async fn run(
    runtime: Arc<dyn Runtime>,
    paths: Paths,
    config: Arc<KubeletConfiguration>,
    shutdown: CancellationToken,
) {
    let Some(max_bytes) = max_bytes(&config.container_log_max_size) else {
        return shutdown.cancelled().await;
    };
    let policy = Policy {
        max_bytes,
        max_files: usize::try_from(config.container_log_max_files).unwrap_or(5),
    };
    let mut ticker = tokio::time::interval(config.container_log_monitor_interval.0);
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticker.tick() => {}
        }
        let containers = match runtime.list_containers().await {
            Ok(list) => list,
            Err(error) => {
                tracing::warn!(%error, "failed to rotate container logs");
                continue;
            }
        };
        for container in containers
            .iter()
            .filter(|c| c.state == ContainerState::Running)
        {
            let (places, log) = (paths.clone(), container.log_path.clone());
            let len = off_thread(move || {
                let file = open(&places, &log)?;
                Ok::<_, FileError>(file.metadata().map_or(0, |m| m.len()))
            });
            let done = match len.await {
                Ok(Ok(len)) if len >= policy.max_bytes => {
                    rotate(runtime.as_ref(), &paths, container, policy).await
                }
                // Somebody removed it: the container writes where nobody reads.
                Ok(Err(error)) if error.is_not_found() => reopen(runtime.as_ref(), container).await,
                _ => Ok(()),
            };
            if let Err(error) = done {
                tracing::error!(log = %container.log_path.display(), %error, "failed to rotate log for container");
            }
        }
    }
}

/// `containerLogMaxSize`. `None`: logs are not rotated, as upstream's negative sizes say.
fn max_bytes(size: &str) -> Option<u64> {
    // Validated before.
    let size = size.parse::<Amount>().map_or(10 << 20, |a| a.value());
    u64::try_from(size).ok()
}

async fn reopen(runtime: &dyn Runtime, container: &ContainerStatus) -> io::Result<()> {
    let reopened = runtime.reopen_container_log(&container.id).await;
    reopened.map_err(io::Error::other)
}

async fn rotate(
    runtime: &dyn Runtime,
    paths: &Paths,
    container: &ContainerStatus,
    policy: Policy,
) -> io::Result<()> {
    let (paths, log) = (paths.clone(), container.log_path.clone());
    // Compressing takes its time: no deadline, but off the async threads.
    let prepared = spawn_blocking(move || prepare(&paths, &log, policy));
    let (directory, name, rotated) = prepared.await.map_err(io::Error::other)??;
    // The shim goes on in the renamed file until it is told.
    if let Err(error) = reopen(runtime, container).await {
        off_thread(move || directory.rename(&rotated, &name))
            .await
            .map_err(io::Error::other)?
            .map_err(io::Error::other)?;
        return Err(error);
    }
    Ok(())
}

/// The directory of a log, and the log's name in it. A link on the way below the pods' logs is refused: pods may have
/// /var/log mounted, and a link of theirs must not lead to the node's files.
fn directory_of(paths: &Paths, log: &Path) -> Result<(Root, PathBuf), FileError> {
    let name = PathBuf::from(log.file_name().unwrap_or_default());
    let parent = log.parent().unwrap_or(Path::new("/"));
    let directory = match parent.strip_prefix(paths.pod_logs_root()) {
        Ok(below) => Root::open(paths.pod_logs_root())?.open_directory(below, Links::Refused)?,
        Err(_) => Root::open(parent)?,
    };
    Ok((directory, name))
}

/// Opens a container's log for reading. Blocks.
///
/// # Errors
/// It is not there, no regular file, or a link stands on the way.
pub fn open(paths: &Paths, log: &Path) -> Result<File, FileError> {
    let (directory, name) = directory_of(paths, log)?;
    directory.open_regular(&name, Links::Refused)
}

/// Removes a log with the rotated ones; what is gone is what is wanted. Blocks.
pub fn remove(paths: &Paths, log: &Path) {
    let Ok((directory, name)) = directory_of(paths, log) else {
        return;
    };
    let rotated = rotated_files(&directory, &name).unwrap_or_default();
    for file in rotated.iter().chain([&name]) {
        if let Err(error) = directory.remove_file(file) {
            tracing::warn!(%error, "failed to remove log");
        }
    }
}

/// `0.log.<time>[.gz]` beside `0.log`, by name.
fn rotated_files(directory: &Root, log: &Path) -> Result<Vec<PathBuf>, FileError> {
    let prefix = format!("{}.", log.display());
    let all = directory.entries(MAX_ENTRIES)?;
    Ok(all
        .into_iter()
        .filter(|(name, is_directory)| !is_directory && name.to_string_lossy().starts_with(&prefix))
        .map(|(name, _)| name.into())
        .collect())
}

/// Makes room, compresses what is old, and renames the log.
fn prepare(
    paths: &Paths,
    log: &Path,
    policy: Policy,
) -> Result<(Root, PathBuf, PathBuf), FileError> {
    let (directory, name) = directory_of(paths, log)?;
    let mut old = rotated_files(&directory, &name)?;
    let extension = |file: &Path, wanted| file.extension().is_some_and(|e| e == wanted);
    for file in old.iter().filter(|f| extension(f, "tmp")) {
        directory.remove_file(file)?;
    }
    old.retain(|f| !extension(f, "tmp"));
    // The log itself and the one it is about to become count, too.
    let keep = policy.max_files.saturating_sub(2);
    while old.len() > keep {
        directory.remove_file(&old.remove(0))?;
    }
    for file in old.iter().filter(|f| !extension(f, "gz")) {
        match compress(&directory, file) {
            // Somebody put something else there: it is no log, and goes.
            Err(FileError::NotRegular { .. }) => directory.remove_file(file)?,
            other => other?,
        }
    }
    let stamp = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
    let rotated = PathBuf::from(format!("{}.{stamp}", name.display()));
    directory.rename(&name, &rotated)?;
    Ok((directory, name, rotated))
}

fn compress(directory: &Root, file: &Path) -> Result<(), FileError> {
    let io = |source| FileError::Io {
        path: directory.path().join(file),
        source,
    };
    let mut from = directory.open_regular(file, Links::Refused)?;
    let temporary = PathBuf::from(format!("{}.tmp", file.display()));
    let to = directory.create_new(&temporary, 0o640)?;
    let mut encoder = GzEncoder::new(to, Compression::default());
    io::copy(&mut from, &mut encoder).map_err(io)?;
    encoder.finish().and_then(|to| to.sync_all()).map_err(io)?;
    directory.rename(&temporary, &PathBuf::from(format!("{}.gz", file.display())))?;
    directory.remove_file(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_files_stay() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        for stamp in [
            "20260101-000000.gz",
            "20260102-000000.gz",
            "20260103-000000",
            "x.tmp",
        ] {
            std::fs::write(dir.path().join(format!("0.log.{stamp}")), "old").unwrap();
        }
        std::fs::write(&log, "new").unwrap();
        // Planted by a pod that has /var/log mounted: what compression would write to, and what it would read.
        let victim = dir.path().join("victim");
        std::fs::write(&victim, "keep").unwrap();
        std::os::unix::fs::symlink(&victim, dir.path().join("0.log.planted.tmp")).unwrap();
        let paths = Paths::new(dir.path().into(), dir.path().into());
        let policy = Policy {
            max_bytes: 1,
            max_files: 4,
        };
        let (_, _, rotated) = prepare(&paths, &log, policy).unwrap();
        let rotated = dir.path().join(rotated);
        assert_eq!(std::fs::read_to_string(rotated).unwrap(), "new");
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "keep");
        std::fs::remove_file(&victim).unwrap();
        let mut names: Vec<String> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names.len(), 3, "{names:?}");
        assert_eq!(
            &names[..2],
            ["0.log.20260102-000000.gz", "0.log.20260103-000000.gz"]
        );
    }

    #[test]
    fn a_negative_size_rotates_nothing() {
        for (size, expect) in [("10Mi", Some(10 << 20)), ("1k", Some(1000)), ("-1", None)] {
            assert_eq!(max_bytes(size), expect, "{size}");
        }
    }

    #[test]
    fn no_link_below_the_logs_is_gone_through() {
        let dir = tempfile::tempdir().unwrap();
        let logs = dir.path().join("pods");
        let outside = dir.path().join("outside");
        std::fs::create_dir_all(logs.join("ns_p_u/c")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("0.log"), "secret").unwrap();
        std::fs::write(logs.join("ns_p_u/c/0.log"), "log").unwrap();
        std::os::unix::fs::symlink(&outside, logs.join("ns_p_u/evil")).unwrap();
        std::os::unix::fs::symlink(outside.join("0.log"), logs.join("ns_p_u/c/1.log")).unwrap();
        let paths = Paths::new(dir.path().into(), logs.clone());
        for (log, ok) in [
            ("ns_p_u/c/0.log", true),
            ("ns_p_u/c/1.log", false),
            ("ns_p_u/evil/0.log", false),
        ] {
            assert_eq!(open(&paths, &logs.join(log)).is_ok(), ok, "{log}");
            remove(&paths, &logs.join(log));
        }
        assert_eq!(
            std::fs::read_to_string(outside.join("0.log")).unwrap(),
            "secret"
        );
        assert_eq!(std::fs::read_dir(logs.join("ns_p_u/c")).unwrap().count(), 0);
    }
}
