//! The shell: what drivers are asked for pods, and what is written down of it.
//!
//! Owns: the turn of each claim, and the files. Decides nothing ([`Claims`] and [`Health`] do). Drivers come and go in `plugins`.
//! Upstream: manager.go.
//!
//! **Invariant:** that a pod uses a claim is on disk before a driver hears of it, and for as long as not every driver let go of it.
//! **Invariant:** one pod at a time is at a claim: a driver is not asked to prepare what another call unprepares.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use component_base::clock::Clock;
use tokio::sync::OwnedMutexGuard;

use crate::claims::{ClaimError, ClaimInfo, ClaimKey, ClaimRequest, Claims, Device, Work};
use crate::health::{Changed, DeviceHealth, Health, HealthStatus};
use crate::observer::{Observer, Operation, Slices};
use crate::plugin::{CallError, Claim, Plugin, shortened};
use crate::plugins::Plugins;
use crate::{checkpoint, directory};

/// What a driver says of one claim; it is kept, and written down with all others, as long as the claim is in use.
const MOST_BYTES: usize = 256 << 10;

/// Why a pod does not get its claims, or does not let go of them. Another try may help.
#[derive(Debug, thiserror::Error)]
pub enum DraError {
    #[error("DRA driver {0} is not registered")]
    NotRegistered(String),
    #[error(transparent)]
    Claim(#[from] ClaimError),
    #[error("{operation}: {source}")]
    Call {
        operation: Operation,
        #[source]
        source: CallError,
    },
    #[error("{operation} returned result for unknown claim UID {uid}")]
    UnknownUid { operation: Operation, uid: String },
    #[error("{operation} failed for ResourceClaim {claim}: {message}")]
    Failed {
        operation: Operation,
        claim: String,
        message: String,
    },
    #[error("{operation} skipped {count} ResourceClaims")]
    Skipped { operation: Operation, count: usize },
    #[error(
        "DRA driver {driver} has {bytes} bytes to say of ResourceClaim {claim}, more than {MOST_BYTES}"
    )]
    TooLong {
        driver: String,
        claim: String,
        bytes: usize,
    },
    #[error("checkpoint ResourceClaim state: {0}")]
    Checkpoint(#[source] std::io::Error),
}

/// Nobody can say what is prepared. Another start may.
#[derive(Debug, thiserror::Error)]
#[error("read which claims are prepared from {}: {source}", path.display())]
pub struct LoadError {
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

/// Shared by all that ask.
pub struct Manager {
    dir: PathBuf,
    pub(crate) clock: Clock,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) slices: Option<Arc<dyn Slices>>,
    plugins: Mutex<Plugins>,
    claims: Mutex<Claims>,
    health: Mutex<Health>,
    turns: Mutex<HashMap<ClaimKey, Arc<tokio::sync::Mutex<()>>>>,
    /// What the files say. Held by the write itself, which goes on when nobody waits for it any more.
    written: Arc<tokio::sync::Mutex<Option<String>>>,
    written_health: Arc<tokio::sync::Mutex<()>>,
}

impl Manager {
    /// `dir`: the kubelet's root. Reads the files; blocking. `slices`: `None` without an API server.
    ///
    /// # Errors
    /// What was prepared is written there and cannot be read.
    pub fn load(
        dir: PathBuf,
        clock: Clock,
        observer: Arc<dyn Observer>,
        slices: Option<Arc<dyn Slices>>,
    ) -> Result<Self, LoadError> {
        let claims = directory::read_claims(&dir).map_err(|source| LoadError {
            path: dir.join(checkpoint::FILE),
            source,
        })?;
        let health = directory::read_health(&dir);
        Ok(Self {
            dir,
            clock,
            observer,
            slices,
            plugins: Mutex::default(),
            claims: Mutex::new(claims),
            health: Mutex::new(health),
            turns: Mutex::default(),
            written: Arc::default(),
            written_health: Arc::default(),
        })
    }

    pub(crate) fn plugins(&self) -> MutexGuard<'_, Plugins> {
        self.plugins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claims(&self) -> MutexGuard<'_, Claims> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn plugin(&self, driver: &str) -> Result<Arc<dyn Plugin>, DraError> {
        let plugin = self.plugins().get(driver);
        plugin.ok_or_else(|| DraError::NotRegistered(driver.to_owned()))
    }

    /// Every claim of the pod is prepared. What is prepared already stays as it is.
    ///
    /// # Errors
    /// The first thing that failed. The pod may be noted at its claims already: [`Manager::unprepare`] is for it, too.
    pub async fn prepare(&self, pod: &str, wanted: &[ClaimRequest]) -> Result<(), DraError> {
        let begin = self.clock.monotonic();
        let outcome = self.prepare_all(pod, wanted).await;
        let took = self.clock.monotonic() - begin;
        self.observer
            .operated(Operation::Prepare, outcome.is_err(), took);
        outcome
    }

    async fn prepare_all(&self, pod: &str, wanted: &[ClaimRequest]) -> Result<(), DraError> {
        if wanted.is_empty() {
            return Ok(());
        }
        // Before anything is noted: a pod whose driver was never here can go at any time.
        for driver in Claims::needed(wanted) {
            self.plugin(driver)?;
        }
        let keys: Vec<ClaimKey> = wanted.iter().map(|claim| claim.key.clone()).collect();
        let _turns = self.turns(&keys).await;
        let work = self.claims().attach(pod, wanted)?;
        self.write().await?;
        self.tell_skipped(Operation::Prepare, &work);
        for (driver, batch) in &work.batches {
            self.prepare_by(driver, batch).await?;
        }
        self.claims().set_prepared(&work.claims);
        self.write().await
    }

    async fn prepare_by(&self, driver: &str, batch: &[ClaimKey]) -> Result<(), DraError> {
        const OPERATION: Operation = Operation::Prepare;
        let by_uid = self.by_uid(batch);
        let answer = self.plugin(driver)?.prepare(asked(&by_uid)).await;
        let answer = answer.map_err(|source| DraError::Call {
            operation: OPERATION,
            source,
        })?;
        let answered = answer.len();
        for (uid, of_claim) in answer {
            let key = claim_of(&by_uid, OPERATION, uid)?;
            let devices = of_claim.map_err(|message| failed(OPERATION, key, message))?;
            let bytes: usize = devices.iter().map(bytes_of).sum();
            if bytes > MOST_BYTES {
                return Err(DraError::TooLong {
                    driver: driver.to_owned(),
                    claim: key.name.clone(),
                    bytes,
                });
            }
            tracing::info!(driver, claim = %key, devices = devices.len(), "prepared a claim");
            self.claims().took(key, driver, devices);
        }
        whole(OPERATION, by_uid.len(), answered)
    }

    /// The pod lets go of its claims, once none of its containers can run any more. Idempotent.
    ///
    /// # Errors
    /// A driver did not let go of one: the pod keeps them all until the next try.
    pub async fn unprepare(&self, pod: &str) -> Result<(), DraError> {
        let begin = self.clock.monotonic();
        let outcome = self.unprepare_all(pod).await;
        let took = self.clock.monotonic() - begin;
        self.observer
            .operated(Operation::Unprepare, outcome.is_err(), took);
        outcome
    }

    async fn unprepare_all(&self, pod: &str) -> Result<(), DraError> {
        let keys = self.claims().of_pod(pod);
        if keys.is_empty() {
            return Ok(());
        }
        let _turns = self.turns(&keys).await;
        let work = self.claims().detach(pod, &keys);
        self.tell_skipped(Operation::Unprepare, &work);
        for (driver, batch) in &work.batches {
            self.unprepare_by(driver, batch).await?;
        }
        self.claims().forget(&work.claims);
        self.write().await
    }

    async fn unprepare_by(&self, driver: &str, batch: &[ClaimKey]) -> Result<(), DraError> {
        const OPERATION: Operation = Operation::Unprepare;
        let by_uid = self.by_uid(batch);
        let answer = self.plugin(driver)?.unprepare(asked(&by_uid)).await;
        let answer = answer.map_err(|source| DraError::Call {
            operation: OPERATION,
            source,
        })?;
        let answered = answer.len();
        for (uid, of_claim) in answer {
            let key = claim_of(&by_uid, OPERATION, uid)?;
            of_claim.map_err(|message| failed(OPERATION, key, message))?;
            tracing::info!(driver, claim = %key, "unprepared a claim");
        }
        whole(OPERATION, by_uid.len(), answered)
    }

    /// Lets go of what pods have that are not `active`. Upstream: `reconcileLoop`.
    pub async fn reconcile(&self, active: impl Fn(&str) -> bool) {
        let stale = self.claims().stale(active);
        for pod in stale {
            if let Err(error) = self.unprepare(&pod).await {
                tracing::info!(pod, %error, "Unpreparing pod resources in reconcile loop failed, will retry");
            }
        }
    }

    /// Whether the pod has claims still. Upstream: `PodMightNeedToUnprepareResources`.
    pub fn holds(&self, pod: &str) -> bool {
        !self.claims().of_pod(pod).is_empty()
    }

    /// A claim in use. `None`: nobody on this node uses it.
    pub fn claim(&self, key: &ClaimKey) -> Option<ClaimInfo> {
        self.claims().get(key).cloned()
    }

    /// Names of the CDI devices of a claim, those of a request alone if one is named.
    ///
    /// # Errors
    /// Nobody on this node uses the claim.
    pub fn cdi_devices(
        &self,
        key: &ClaimKey,
        request: Option<&str>,
    ) -> Result<Vec<String>, DraError> {
        let claims = self.claims();
        let info = claims.get(key);
        let info = info.ok_or_else(|| ClaimError::Unknown(key.clone()))?;
        Ok(info.cdi_devices(request).cloned().collect())
    }

    /// How many claims are prepared, by driver, and all of them.
    pub fn in_use(&self) -> (BTreeMap<String, usize>, usize) {
        self.claims().in_use()
    }

    /// How a device is, and what its driver says besides.
    pub fn device_health(&self, driver: &str, pool: &str, device: &str) -> (HealthStatus, String) {
        let now = self.clock.now();
        let health = self.health();
        let (status, message) = health.of(driver, pool, device, now);
        (status, message.to_owned())
    }

    pub(crate) async fn health_told(&self, driver: &str, devices: Vec<DeviceHealth>) {
        let now = self.clock.now();
        let changed = self.health().update(driver, devices, now);
        if changed.left_out > 0 {
            tracing::error!(
                driver,
                ignored = changed.left_out,
                "Health report contains more devices than the cache keeps per driver"
            );
        }
        self.health_changed(driver, changed).await;
    }

    /// The driver tells no more.
    pub(crate) async fn clear_health(&self, driver: &str) {
        let changed = self.health().clear(driver);
        self.health_changed(driver, changed).await;
    }

    async fn health_changed(&self, driver: &str, changed: Changed) {
        let mut pods = BTreeSet::new();
        {
            let claims = self.claims();
            let users = claims.users_of(driver);
            for (pool, device) in &changed.devices {
                let of_device = users.get(&(pool.as_str(), device.as_str()));
                pods.extend(of_device.into_iter().flatten().map(|pod| (*pod).to_owned()));
            }
        }
        for pod in &pods {
            self.observer.health_changed(pod);
        }
        if changed.to_write
            && let Err(error) = self.write_health().await
        {
            tracing::error!(%error, "Failed to save health checkpoint after update. Kubelet restart may lose the device health information.");
        }
    }

    fn tell_skipped(&self, operation: Operation, work: &Work) {
        for driver in &work.skipped {
            self.observer.skipped(operation, driver);
        }
    }

    /// The claims with their UIDs; those that went meanwhile are none.
    fn by_uid(&self, batch: &[ClaimKey]) -> Vec<(String, ClaimKey)> {
        let claims = self.claims();
        let one = |key: &ClaimKey| Some((claims.get(key)?.uid.clone(), key.clone()));
        batch.iter().filter_map(one).collect()
    }

    /// All of them at once, always in the same order: nobody waits in a circle.
    async fn turns(&self, keys: &[ClaimKey]) -> Vec<OwnedMutexGuard<()>> {
        let mut sorted = keys.to_vec();
        sorted.sort();
        sorted.dedup();
        let mut held = Vec::new();
        for key in sorted {
            let turn = {
                let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
                // Nobody waits for those.
                turns.retain(|_, turn| Arc::strong_count(turn) > 1);
                turns.entry(key).or_default().clone()
            };
            held.push(turn.lock_owned().await);
        }
        held
    }

    /// Cancelled it is carried out all the same.
    async fn write(&self) -> Result<(), DraError> {
        let mut written = self.written.clone().lock_owned().await;
        let claims = self.claims().clone();
        let dir = self.dir.clone();
        let done = directory::off_thread(move || {
            let text = checkpoint::encode(&claims);
            if written.as_ref() == Some(&text) {
                return Ok(());
            }
            *written = None;
            directory::write_claims(&dir, &text)?;
            *written = Some(text);
            Ok(())
        });
        done.await.map_err(DraError::Checkpoint)
    }

    async fn write_health(&self) -> std::io::Result<()> {
        let held = self.written_health.clone().lock_owned().await;
        let (text, dir) = (self.health().encode(), self.dir.clone());
        let done = directory::off_thread(move || {
            let _held = held;
            directory::write_health(&dir, &text)
        });
        done.await
    }
}

fn asked(by_uid: &[(String, ClaimKey)]) -> Vec<Claim> {
    let one = |(uid, key): &(String, ClaimKey)| Claim {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        uid: uid.clone(),
    };
    by_uid.iter().map(one).collect()
}

fn claim_of(
    by_uid: &[(String, ClaimKey)],
    operation: Operation,
    uid: String,
) -> Result<&ClaimKey, DraError> {
    let found = by_uid.iter().find(|(own, _)| *own == uid);
    // Somebody's words for an event, if it is none.
    let unknown = || DraError::UnknownUid {
        operation,
        uid: shortened(&uid),
    };
    found.map(|(_, key)| key).ok_or_else(unknown)
}

fn failed(operation: Operation, key: &ClaimKey, message: String) -> DraError {
    DraError::Failed {
        operation,
        claim: key.name.clone(),
        message: shortened(&message),
    }
}

/// Every claim has an answer.
fn whole(operation: Operation, asked: usize, answered: usize) -> Result<(), DraError> {
    match asked.saturating_sub(answered) {
        0 => Ok(()),
        count => Err(DraError::Skipped { operation, count }),
    }
}

fn bytes_of(device: &Device) -> usize {
    let lists = device.request_names.iter().chain(&device.cdi_device_ids);
    let named = [&device.pool_name, &device.device_name];
    let texts = lists.chain(named).chain(&device.share_id);
    // An empty text takes room, too.
    texts.map(|text| text.len() + 16).sum()
}

#[cfg(test)]
mod tests;
