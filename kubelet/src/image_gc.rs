//! Removes images nobody uses when the disk fills up.
//!
//! Owns: [`plan`] (pure) and the task. Upstream: `pkg/kubelet/images/image_gc_manager.go`, v1.36.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use runtime::api::{ImageStatus, RuntimeError};
use tokio_util::sync::CancellationToken;

use crate::cm::machine::fs_stats;
use crate::events::Type;
use crate::kubelet::Kubelet;

/// Upstream: `ImageGCPeriod`.
const PERIOD: Duration = Duration::from_secs(300);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    first_detected: Timestamp,
    /// `None`: not used since it was first seen.
    last_used: Option<Timestamp>,
}

/// Images to remove, the least recently used first, until `to_free` bytes are free.
fn plan(
    images: &[ImageStatus],
    in_use: &BTreeSet<String>,
    records: &BTreeMap<String, Record>,
    min_age: Duration,
    to_free: u64,
    now: Timestamp,
) -> Vec<String> {
    let mut candidates: Vec<(&ImageStatus, &Record)> = images
        .iter()
        .filter(|i| !i.pinned && !in_use.contains(&i.id))
        .filter_map(|i| Some((i, records.get(&i.id)?)))
        .filter(|(_, r)| {
            Duration::try_from(now.duration_since(r.first_detected)).unwrap_or_default() >= min_age
        })
        .collect();
    candidates.sort_by_key(|(_, r)| (r.last_used, r.first_detected));
    let mut freed = 0;
    let mut out = vec![];
    for (image, _) in candidates {
        if freed >= to_free {
            break;
        }
        freed += image.size_bytes;
        out.push(image.id.clone());
    }
    out
}

/// What is known of the images between two rounds.
#[derive(Default)]
pub struct ImageGc {
    records: BTreeMap<String, Record>,
}

impl ImageGc {
    async fn detect(
        &mut self,
        kubelet: &Kubelet,
    ) -> Result<(Vec<ImageStatus>, BTreeSet<String>), RuntimeError> {
        let runtime = kubelet.runtime.runtime();
        let images = runtime.list_images().await?;
        let containers = runtime.list_containers().await?;
        let mut in_use: BTreeSet<String> = containers.iter().map(|c| c.image_id.clone()).collect();
        // Image volumes, too.
        in_use.extend(
            containers
                .iter()
                .flat_map(|c| c.mounts.iter().filter_map(|m| m.image.clone())),
        );
        let now = Timestamp::now();
        for image in &images {
            let record = self.records.entry(image.id.clone()).or_insert(Record {
                first_detected: now,
                last_used: None,
            });
            if in_use.contains(&image.id) {
                record.last_used = Some(now);
            }
        }
        self.records
            .retain(|id, _| images.iter().any(|i| i.id == *id));
        Ok((images, in_use))
    }

    /// Frees at least so many bytes if there is so much to free; returns what was freed.
    ///
    /// # Errors
    /// The runtime cannot list.
    pub async fn free(
        &mut self,
        kubelet: &Kubelet,
        to_free: u64,
        min_age: Duration,
    ) -> Result<u64, RuntimeError> {
        let (images, in_use) = self.detect(kubelet).await?;
        let victims = plan(
            &images,
            &in_use,
            &self.records,
            min_age,
            to_free,
            Timestamp::now(),
        );
        let mut freed = 0;
        for id in victims {
            let size = images
                .iter()
                .find(|i| i.id == id)
                .map_or(0, |i| i.size_bytes);
            match kubelet.runtime.runtime().remove_image(&id).await {
                Ok(()) => {
                    tracing::info!(image = id, size, "removed image to free space");
                    self.records.remove(&id);
                    freed += size;
                }
                Err(error) => tracing::warn!(image = id, %error, "failed to remove image"),
            }
        }
        Ok(freed)
    }
}

/// Looks after the image file system until `shutdown`.
pub async fn run(kubelet: Arc<Kubelet>, shutdown: CancellationToken) {
    let config = &kubelet.config;
    let high = u64::try_from(config.image_gc_high_threshold_percent).unwrap_or(85);
    let low = u64::try_from(config.image_gc_low_threshold_percent).unwrap_or(80);
    let min_age = config.image_minimum_gc_age.0;
    let mut gc = ImageGc::default();
    let mut ticker = tokio::time::interval(PERIOD);
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticker.tick() => {}
        }
        let usage = match kubelet.runtime.runtime().image_fs_info().await {
            Ok(usage) => usage,
            Err(error) => {
                tracing::warn!(%error, "image garbage collection failed once");
                continue;
            }
        };
        let Ok(fs) = fs_stats(&usage.mountpoint) else {
            continue;
        };
        if fs.capacity_bytes == 0 {
            continue;
        }
        let used = fs.capacity_bytes.saturating_sub(fs.available_bytes);
        let percent = used * 100 / fs.capacity_bytes;
        if high >= 100 || percent < high {
            // Only to know since when images are there.
            if let Err(error) = gc.detect(&kubelet).await {
                tracing::warn!(%error, "cannot look at images");
            }
            continue;
        }
        let wanted = used.saturating_sub(fs.capacity_bytes * low / 100);
        tracing::info!(
            percent,
            high,
            wanted,
            "disk usage on image filesystem is over the high threshold, trying to free bytes down to the low threshold"
        );
        match gc.free(&kubelet, wanted, min_age).await {
            Ok(freed) if freed < wanted => {
                let message = format!(
                    "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only found {freed} bytes eligible to free."
                );
                kubelet
                    .recorder
                    .node(Type::Warning, "FreeDiskSpaceFailed", message);
            }
            Ok(_) => {}
            Err(error) => kubelet
                .recorder
                .node(Type::Warning, "ImageGCFailed", error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first() {
        let t = |s| Timestamp::from_second(s).unwrap();
        let image = |id: &str| ImageStatus {
            id: id.into(),
            size_bytes: 10,
            ..Default::default()
        };
        let images = [image("a"), image("b"), image("c")];
        let record = |used| Record {
            first_detected: t(0),
            last_used: used,
        };
        let records = [
            ("a", record(Some(t(5)))),
            ("b", record(None)),
            ("c", record(Some(t(1)))),
        ]
        .map(|(k, v)| (k.to_owned(), v))
        .into();
        let check = |in_use: &[&str], to_free, now| {
            let in_use = in_use.iter().map(|s| (*s).to_owned()).collect();
            plan(
                &images,
                &in_use,
                &records,
                Duration::from_secs(60),
                to_free,
                t(now),
            )
        };
        assert_eq!(check(&[], 15, 100), ["b", "c"]);
        assert_eq!(check(&["b"], 15, 100), ["c", "a"]);
        assert!(check(&[], 15, 30).is_empty());
    }
}
