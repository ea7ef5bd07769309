//! Rotates container logs that grew too long.
//!
//! Owns: `0.log` -> `0.log.<time>` (compressed but for the newest), so many files a container. Upstream:
//! `pkg/kubelet/logs/container_log_manager.go`, v1.36.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use component_helpers::quantity::Amount;
use flate2::Compression;
use flate2::write::GzEncoder;
use runtime::api::{ContainerState, ContainerStatus};
use tokio_util::sync::CancellationToken;

use crate::kubelet::Kubelet;
use crate::kuberuntime::gc::log_files;

/// How many files, how long.
#[derive(Clone, Copy, Debug)]
struct Policy {
    max_bytes: u64,
    max_files: usize,
}

/// Looks at the logs of running containers until `shutdown`.
pub async fn run(kubelet: Arc<Kubelet>, shutdown: CancellationToken) {
    let config = &kubelet.config;
    let max_bytes = config
        .container_log_max_size
        .parse::<Amount>()
        .map_or(10 << 20, |a| a.value());
    let policy = Policy {
        max_bytes: u64::try_from(max_bytes).unwrap_or(10 << 20),
        max_files: usize::try_from(config.container_log_max_files).unwrap_or(5),
    };
    let mut ticker = tokio::time::interval(config.container_log_monitor_interval.0);
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticker.tick() => {}
        }
        let containers = match kubelet.runtime.runtime().list_containers().await {
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
            if std::fs::metadata(&container.log_path).is_ok_and(|m| m.len() >= policy.max_bytes)
                && let Err(error) = rotate(&kubelet, container, policy).await
            {
                tracing::error!(log = %container.log_path.display(), %error, "failed to rotate log for container");
            }
        }
    }
}

async fn rotate(kubelet: &Kubelet, container: &ContainerStatus, policy: Policy) -> io::Result<()> {
    let log = container.log_path.clone();
    let prepared = tokio::task::spawn_blocking(move || prepare(&log, policy));
    let rotated = prepared.await.map_err(io::Error::other)??;
    // The shim goes on in the renamed file until it is told.
    if let Err(error) = kubelet
        .runtime
        .runtime()
        .reopen_container_log(&container.id)
        .await
    {
        std::fs::rename(&rotated, &container.log_path)?;
        return Err(io::Error::other(error));
    }
    Ok(())
}

/// Makes room, compresses what is old, and renames the log.
fn prepare(log: &Path, policy: Policy) -> io::Result<PathBuf> {
    let mut old: Vec<PathBuf> = log_files(log).into_iter().filter(|f| f != log).collect();
    for file in old
        .iter()
        .filter(|f| f.extension().is_some_and(|e| e == "tmp"))
    {
        std::fs::remove_file(file)?;
    }
    old.retain(|f| f.extension().is_none_or(|e| e != "tmp"));
    old.sort();
    // The log itself and the one it is about to become count, too.
    let keep = policy.max_files.saturating_sub(2);
    while old.len() > keep {
        std::fs::remove_file(old.remove(0))?;
    }
    for file in old
        .iter()
        .filter(|f| f.extension().is_none_or(|e| e != "gz"))
    {
        compress(file)?;
    }
    let stamp = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
    let rotated = PathBuf::from(format!("{}.{stamp}", log.display()));
    std::fs::rename(log, &rotated)?;
    Ok(rotated)
}

fn compress(file: &Path) -> io::Result<()> {
    let temporary = PathBuf::from(format!("{}.tmp", file.display()));
    let mut encoder = GzEncoder::new(std::fs::File::create(&temporary)?, Compression::default());
    io::copy(&mut std::fs::File::open(file)?, &mut encoder)?;
    encoder.finish()?.sync_all()?;
    std::fs::rename(&temporary, format!("{}.gz", file.display()))?;
    std::fs::remove_file(file)
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
        let rotated = prepare(
            &log,
            Policy {
                max_bytes: 1,
                max_files: 4,
            },
        )
        .unwrap();
        assert_eq!(std::fs::read_to_string(rotated).unwrap(), "new");
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
}
