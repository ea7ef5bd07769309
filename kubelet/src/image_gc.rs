//! Removes images nobody uses: when the disk fills up, when they grow too old, and when eviction asks.
//!
//! Owns: what is known of the images' use, [`candidates`] and [`excess`] (pure), and the task. One for the whole kubelet,
//! so that whoever frees space knows the history. As upstream, the history begins anew with the process. Upstream:
//! `pkg/kubelet/images/image_gc_manager.go`, v1.36.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use runtime::api::{ImageStatus, Runtime, RuntimeError};
use tokio_util::sync::CancellationToken;

use crate::cm::machine::fs_stats;
use crate::configuration::KubeletConfiguration;
use crate::events::{KubeletRecorder, Type, reason};
use crate::image_manager::pull_manager::PullManager;
use crate::metrics;
use crate::off_thread::spawn_blocking;

/// Upstream: `ImageGCPeriod`.
const PERIOD: Duration = Duration::from_secs(300);

/// When images go.
#[derive(Clone, Copy, Debug)]
pub struct ImageGcPolicy {
    /// From this use of the disk on, in percent. 100: space alone removes nothing.
    pub high_threshold_percent: u64,
    /// Down to this.
    pub low_threshold_percent: u64,
    /// Younger images stay.
    pub min_age: Duration,
    /// Unused for longer, an image goes however much space there is. Zero: never.
    pub max_age: Duration,
}

impl From<&KubeletConfiguration> for ImageGcPolicy {
    fn from(config: &KubeletConfiguration) -> Self {
        Self {
            high_threshold_percent: u64::try_from(config.image_gc_high_threshold_percent)
                .unwrap_or(85),
            low_threshold_percent: u64::try_from(config.image_gc_low_threshold_percent)
                .unwrap_or(80),
            min_age: config.image_minimum_gc_age.0,
            max_age: config.image_maximum_gc_age.0,
        }
    }
}

/// Why a round did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum ImageGcError {
    #[error("{0}")]
    Runtime(#[from] RuntimeError),
    #[error("cannot look at the image filesystem: {0}")]
    FileSystem(#[source] std::io::Error),
    #[error("invalid capacity 0 on image filesystem")]
    NoCapacity,
    #[error(
        "wanted to free {wanted} bytes, but freed {freed} bytes space with errors in image deletion: {errors}"
    )]
    Deletion {
        wanted: String,
        freed: u64,
        errors: String,
    },
    #[error(
        "wanted to free images older than {age}, encountered errors in image deletion: {errors}"
    )]
    OldDeletion { age: String, errors: String },
    #[error(
        "Insufficient free disk space on the node's image filesystem ({percent}% of {capacity} used). Failed to free sufficient space by deleting unused images (freed {freed} bytes). Investigate disk usage, as it could be used by active images, logs, volumes, or other data."
    )]
    Insufficient {
        percent: u64,
        capacity: String,
        freed: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    first_detected: Timestamp,
    /// `None`: not used since it was first seen.
    last_used: Option<Timestamp>,
}

/// An image that may go, if age allows.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Candidate {
    id: String,
    size_bytes: u64,
    first_detected: Timestamp,
    last_used: Option<Timestamp>,
}

fn age(since: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since)).unwrap_or_default()
}

impl Candidate {
    fn is_old(&self, policy: &ImageGcPolicy, began: Timestamp, now: Timestamp) -> bool {
        // Nothing is known of the time before the kubelet began.
        !policy.max_age.is_zero()
            && age(began, now) > policy.max_age
            && self
                .last_used
                .is_none_or(|used| age(used, now) > policy.max_age)
    }

    fn is_young(&self, policy: &ImageGcPolicy, now: Timestamp) -> bool {
        age(self.first_detected, now) < policy.min_age
    }
}

/// Images that are neither used nor pinned, the least recently used first. Upstream: `imagesInEvictionOrder`.
fn candidates(
    images: &[ImageStatus],
    in_use: &BTreeSet<String>,
    records: &BTreeMap<String, Record>,
) -> Vec<Candidate> {
    let mut out: Vec<Candidate> = images
        .iter()
        .filter(|i| !i.pinned && !in_use.contains(&i.id))
        .filter_map(|i| {
            let record = records.get(&i.id)?;
            Some(Candidate {
                id: i.id.clone(),
                size_bytes: i.size_bytes,
                first_detected: record.first_detected,
                last_used: record.last_used,
            })
        })
        .collect();
    out.sort_by_key(|c| (c.last_used, c.first_detected));
    out
}

/// The percentage in use, and the bytes to free if that is too much. As upstream, the percentage is rounded up.
fn excess(policy: &ImageGcPolicy, capacity: u64, available: u64) -> (u64, Option<u64>) {
    let share = |part: u64, whole: u64| u128::from(part) * 100 / u128::from(whole.max(1));
    let available = available.min(capacity);
    let free = u64::try_from(share(available, capacity)).unwrap_or(100);
    let percent = 100 - free.min(100);
    if percent < policy.high_threshold_percent {
        return (percent, None);
    }
    let wanted_free =
        u128::from(capacity) * u128::from(100 - policy.low_threshold_percent.min(100)) / 100;
    let wanted = u64::try_from(wanted_free).unwrap_or(u64::MAX);
    (percent, Some(wanted.saturating_sub(available)))
}

/// Upstream: `formatSize`.
fn format_size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
    let mut size = bytes as f64 / 1024.0;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{size:.1} {}", UNITS[unit])
}

/// Shared by its own task and eviction.
pub struct ImageGcManager {
    runtime: Arc<dyn Runtime>,
    recorder: KubeletRecorder,
    pulls: Option<Arc<PullManager>>,
    policy: ImageGcPolicy,
    began: Timestamp,
    records: Mutex<BTreeMap<String, Record>>,
}

impl ImageGcManager {
    /// `pulls`: whose records go with their images.
    pub fn new(
        runtime: Arc<dyn Runtime>,
        recorder: KubeletRecorder,
        pulls: Option<Arc<PullManager>>,
        policy: ImageGcPolicy,
    ) -> Self {
        Self {
            runtime,
            recorder,
            pulls,
            policy,
            began: Timestamp::now(),
            records: Mutex::default(),
        }
    }

    fn records(&self) -> MutexGuard<'_, BTreeMap<String, Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at what there is and what is used: by any container that has not been removed, running or not, as its root
    /// or as a volume.
    async fn detect(&self, now: Timestamp) -> Result<Vec<Candidate>, RuntimeError> {
        let images = self.runtime.list_images().await?;
        let containers = self.runtime.list_containers().await?;
        let mut in_use: BTreeSet<String> = containers.iter().map(|c| c.image_id.clone()).collect();
        in_use.extend(
            containers
                .iter()
                .flat_map(|c| c.mounts.iter().filter_map(|m| m.image.clone())),
        );
        let mut records = self.records();
        for image in &images {
            let record = records.entry(image.id.clone()).or_insert(Record {
                first_detected: now,
                last_used: None,
            });
            if in_use.contains(&image.id) {
                record.last_used = Some(now);
            }
        }
        records.retain(|id, _| images.iter().any(|i| i.id == *id));
        Ok(candidates(&images, &in_use, &records))
    }

    async fn remove(&self, image: &Candidate, why: &str) -> Result<u64, RuntimeError> {
        tracing::info!(
            image = image.id,
            size = image.size_bytes,
            why,
            "removing image to free bytes"
        );
        self.runtime.remove_image(&image.id).await?;
        metrics::IMAGES_GARBAGE_COLLECTED
            .with_label_values(&[why])
            .inc();
        // Eviction and the task may both have had it: it is counted once.
        let known = self.records().remove(&image.id).is_some();
        Ok(if known { image.size_bytes } else { 0 })
    }

    /// Removes what was unused for too long; answers the rest.
    async fn free_old_images(
        &self,
        images: Vec<Candidate>,
        now: Timestamp,
    ) -> Result<Vec<Candidate>, ImageGcError> {
        let (old, rest): (Vec<_>, Vec<_>) = images
            .into_iter()
            .partition(|image| image.is_old(&self.policy, self.began, now));
        let mut errors = vec![];
        for image in &old {
            if let Err(error) = self.remove(image, "age").await {
                errors.push(error.to_string());
            }
        }
        if errors.is_empty() {
            return Ok(rest);
        }
        Err(ImageGcError::OldDeletion {
            age: component_base::duration::format(self.policy.max_age),
            errors: errors.join(", "),
        })
    }

    /// Frees so many bytes if there is so much to free; `None`: all there is.
    async fn free_space(
        &self,
        images: &[Candidate],
        wanted: Option<u64>,
        now: Timestamp,
    ) -> Result<u64, ImageGcError> {
        let (mut freed, mut errors) = (0, vec![]);
        for image in images.iter().filter(|i| !i.is_young(&self.policy, now)) {
            match self.remove(image, "space").await {
                Ok(size) => freed += size,
                Err(error) => errors.push(error.to_string()),
            }
            if wanted.is_some_and(|wanted| freed >= wanted) {
                break;
            }
        }
        if errors.is_empty() {
            return Ok(freed);
        }
        Err(ImageGcError::Deletion {
            wanted: wanted.map_or_else(|| "all".to_owned(), |n| n.to_string()),
            freed,
            errors: errors.join(", "),
        })
    }

    /// Removes every unused image that is not too young; returns the bytes freed.
    ///
    /// # Errors
    /// The runtime cannot list, or an image could not be removed; the others are.
    pub async fn delete_unused_images(&self) -> Result<u64, ImageGcError> {
        let now = Timestamp::now();
        let images = self.detect(now).await?;
        let freed = self.free_space(&images, None, now).await;
        self.prune_pull_records().await;
        freed
    }

    /// One round of the policy.
    ///
    /// # Errors
    /// See [`ImageGcError`]; the next round tries again.
    pub async fn garbage_collect(&self) -> Result<(), ImageGcError> {
        let now = Timestamp::now();
        let images = self.detect(now).await?;
        let result = self.collect(images, now).await;
        self.prune_pull_records().await;
        result
    }

    async fn collect(&self, images: Vec<Candidate>, now: Timestamp) -> Result<(), ImageGcError> {
        // Upstream: `StartGarbageCollection` then does nothing.
        if self.policy.high_threshold_percent >= 100 && self.policy.max_age.is_zero() {
            return Ok(());
        }
        let images = self.free_old_images(images, now).await?;
        let usage = self.runtime.image_fs_info().await?;
        let fs = spawn_blocking(move || fs_stats(&usage.mountpoint))
            .await
            .map_err(|e| ImageGcError::FileSystem(std::io::Error::other(e)))?
            .map_err(|e| ImageGcError::FileSystem(e.into()))?;
        if fs.capacity_bytes == 0 {
            let error = ImageGcError::NoCapacity;
            self.recorder.node(
                Type::Warning,
                reason::INVALID_DISK_CAPACITY,
                error.to_string(),
            );
            return Err(error);
        }
        let (percent, Some(wanted)) = excess(&self.policy, fs.capacity_bytes, fs.available_bytes)
        else {
            return Ok(());
        };
        tracing::info!(
            percent,
            high = self.policy.high_threshold_percent,
            wanted,
            low = self.policy.low_threshold_percent,
            "disk usage on image filesystem is over the high threshold, trying to free bytes down to the low threshold"
        );
        let freed = self.free_space(&images, Some(wanted), now).await?;
        if freed >= wanted {
            return Ok(());
        }
        let error = ImageGcError::Insufficient {
            percent,
            capacity: format_size(fs.capacity_bytes),
            freed,
        };
        self.recorder.node(
            Type::Warning,
            reason::FREE_DISK_SPACE_FAILED,
            error.to_string(),
        );
        Err(error)
    }

    /// DIFFERS: upstream keeps only the records of images that it looked at and left, and so loses those of images in
    /// use, which are everybody's after that. Here a record goes when its image is gone.
    async fn prune_pull_records(&self) {
        let Some(pulls) = self.pulls.clone() else {
            return;
        };
        let until = Timestamp::now();
        match self.runtime.list_images().await {
            Ok(images) => {
                let pruned = spawn_blocking(move || pulls.prune(&images, until)).await;
                if let Err(error) = pruned {
                    tracing::error!(%error, "failed to prune image pull records");
                }
            }
            Err(error) => tracing::warn!(%error, "cannot list images: pull records stay"),
        }
    }

    /// Looks every five minutes until `shutdown`.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut failed_before = false;
        let mut ticker = tokio::time::interval(PERIOD);
        ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = ticker.tick() => {}
            }
            match self.garbage_collect().await {
                Ok(()) => failed_before = false,
                // As upstream: an event only if it goes on failing.
                Err(error) if failed_before => {
                    tracing::error!(%error, "image garbage collection failed multiple times in a row");
                    self.recorder
                        .node(Type::Warning, reason::IMAGE_GC_FAILED, error.to_string());
                }
                Err(error) => {
                    tracing::warn!(%error, "image garbage collection failed once");
                    failed_before = true;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
