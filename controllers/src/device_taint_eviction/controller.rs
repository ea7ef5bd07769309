//! The shell: slices, rules, claims and Pods in; deletions and conditions of rules out. Timers are delayed keys of the work queue.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use component_base::clock::Clock;
use component_base::events::EventType;
use component_base::informer::{Informer, InformerEvent, InformerOptions};
use component_base::metrics::make;
use component_base::shutdown::Shutdown;
use component_helpers::pod as pod_helpers;
use component_helpers::resource_claim::{
    allocated_devices, entries, extended_status, is_allocated, is_pod_consumer, reserved_for,
    statuses,
};
use controller_runtime::{
    Action, ApiError, Controller, DeleteOptions, Executor, ObjectKey, Watches, WorkQueue,
    run_controller,
};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::api::resource::v1::{DeviceTaintRule, ResourceClaim, ResourceSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use prometheus::{Histogram, IntCounter};
use serde_json::json;

use super::rule_status::{self, Counts, PERIOD};
use super::sync::{
    Devices, Eviction, NO_EXECUTE, NONE, has_evicting_taint, newest, pod_eviction, rule_matches,
};
use crate::context::{ControllerContext, Running, StartError};
use crate::uid_cache::UidCache;

/// The gate of the controller.
pub const DEVICE_TAINTS: &str = "DRADeviceTaints";
/// The gate of DeviceTaintRules.
pub const DEVICE_TAINT_RULES: &str = "DRADeviceTaintRules";
pub(super) const NAME: &str = "device-taint-eviction-controller";

/// The index of slices by pool, and of claims by the pools of their devices: `driver/pool`.
const BY_POOL: &str = "pool";

/// What a worker looks at.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Key {
    /// Rules are told about before Pods go.
    Rule(String),
    Pod(ObjectKey),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(name) => write!(f, "rule:{name}"),
            Self::Pod(key) => write!(f, "pod:{key}"),
        }
    }
}

/// A Pod that is to go.
pub(super) struct Scheduled {
    uid: String,
    eviction: Eviction,
}

component_base::metrics! {
    pub(super) struct Metrics {
        deleted: IntCounter = make::counter(
            "device_taint_eviction_controller_pod_deletions_total",
            "Total number of Pods deleted by DeviceTaintEvictionController since its start.",
        ),
        latency: Histogram = make::histogram(
            "device_taint_eviction_controller_pod_deletion_duration_seconds",
            "Latency, in seconds, between the time when a device taint effect has been activated and a Pod's deletion via DeviceTaintEvictionController.",
            vec![ 0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 30.0, 60.0, 120.0, 180.0, 240.0 ],
        ),
    }
}

pub(super) struct DeviceTaintEviction {
    pub(super) pods: Informer<Pod>,
    pub(super) claims: Informer<ResourceClaim>,
    pub(super) slices: Informer<ResourceSlice>,
    /// `None` with the gate off, or where the API server has no rules.
    pub(super) rules: Option<Informer<DeviceTaintRule>>,
    /// Pods that are to go.
    pub(super) scheduled: Mutex<HashMap<ObjectKey, Scheduled>>,
    /// Pods that were deleted already; the cache may show them for a while.
    pub(super) evicted: UidCache,
    /// How many Pods each rule evicted, by its uid.
    pub(super) evicted_by: Mutex<HashMap<String, u64>>,
    pub(super) queue: WorkQueue<Key>,
    pub(super) executor: Executor,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
}

/// Builds the controller; with its gate off, or an API server without ResourceSlices, it has nothing to do.
///
/// # Errors
/// When no client can be had, or the server does not say what it has.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    if !context.features.enabled(DEVICE_TAINTS) || !context.serves::<ResourceSlice>().await? {
        return Ok(context.nothing_to_do(NAME));
    }
    let with_rules =
        context.features.enabled(DEVICE_TAINT_RULES) && context.serves::<DeviceTaintRule>().await?;
    let informers = &context.informers;
    let executor = context.executor(NAME, NAME).await?;
    let controller = Arc::new(DeviceTaintEviction {
        pods: informers.informer(InformerOptions::default()),
        claims: informers.informer(InformerOptions::default()),
        slices: informers.informer(InformerOptions::default()),
        rules: with_rules.then(|| informers.informer(InformerOptions::default())),
        scheduled: Mutex::default(),
        evicted: UidCache::default(),
        evicted_by: Mutex::default(),
        queue: context.queues.queue(NAME),
        executor,
        clock: context.clock.clone(),
        metrics: Metrics::register(&context.metrics)?,
    });
    let watches = controller.watch(&context.shutdown);
    let workers = context.options.workers("device-taint-eviction");
    let queue = controller.queue.clone();
    Ok(run_controller(controller, queue, watches, workers, context.shutdown).boxed())
}

fn pool_key(driver: &str, pool: &str) -> String {
    format!("{driver}/{pool}")
}

/// The Pods a claim is reserved for. Claims of pod groups are not known here.
fn users(claim: &ResourceClaim) -> impl Iterator<Item = ObjectKey> {
    let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
    let pods = reserved_for(claim).iter().filter(|c| is_pod_consumer(c));
    pods.map(move |consumer| ObjectKey::new(namespace, &*consumer.name))
}

/// What of a Pod matters here. Its conditions do not: the controller writes one itself.
fn is_same(old: &Pod, new: &Pod) -> bool {
    pod_helpers::uid(old) == pod_helpers::uid(new)
        && pod_helpers::node_name(old) == pod_helpers::node_name(new)
        && statuses(old) == statuses(new)
        && extended_status(old) == extended_status(new)
        && pod_helpers::is_terminal(old) == pod_helpers::is_terminal(new)
}

impl DeviceTaintEviction {
    pub(super) fn watch(self: &Arc<Self>, shutdown: &Shutdown) -> Watches {
        self.slices.add_index(BY_POOL, |slice| {
            vec![pool_key(&slice.spec.driver, &slice.spec.pool.name)]
        });
        self.claims.add_index(BY_POOL, |claim| {
            let pools: BTreeSet<_> = allocated_devices(claim)
                .iter()
                .map(|device| pool_key(&device.driver, &device.pool))
                .collect();
            pools.into_iter().collect()
        });
        let mut watches = Watches::new(shutdown.clone());
        if let Some(rules) = &self.rules {
            let this = self.clone();
            watches.on(rules, move |event| this.rule_changed(&event));
        }
        let this = self.clone();
        watches.on(&self.slices, move |event| this.slice_changed(&event));
        let this = self.clone();
        watches.on(&self.claims, move |event| this.claim_changed(&event));
        let this = self.clone();
        watches.on(&self.pods, move |event| {
            let pod = event.object();
            let uses_claims = !entries(pod).is_empty() || extended_status(pod).is_some();
            let same = matches!(&event, InformerEvent::Updated { old, new } if is_same(old, new));
            if uses_claims && !same {
                this.queue.add(Key::Pod(ObjectKey::of(&**pod)));
            }
        });
        watches
    }

    fn rule_changed(&self, event: &InformerEvent<DeviceTaintRule>) {
        let name = |rule: &DeviceTaintRule| rule.metadata.name.clone().unwrap_or_default();
        let concerned: Vec<&Arc<DeviceTaintRule>> = match event {
            InformerEvent::Updated { old, new } if old.spec == new.spec => return,
            InformerEvent::Updated { old, new } => vec![old, new],
            InformerEvent::Added(rule) | InformerEvent::Deleted(rule) => vec![rule],
        };
        match event {
            InformerEvent::Deleted(rule) => {
                let uid = rule.metadata.uid.as_deref().unwrap_or_default();
                lock(&self.evicted_by).remove(uid);
            }
            event => self.queue.add(Key::Rule(name(event.object()))),
        }
        let evicting: Vec<_> = concerned
            .into_iter()
            .filter(|rule| rule.spec.taint.effect == NO_EXECUTE)
            .collect();
        if !evicting.is_empty() {
            for claim in self.claims.list() {
                let is_concerned = |rule: &&Arc<DeviceTaintRule>| is_about(rule, &claim);
                if evicting.iter().any(is_concerned) {
                    self.look_at_users(&claim);
                }
            }
        }
    }

    fn slice_changed(&self, event: &InformerEvent<ResourceSlice>) {
        let changed: Vec<&Arc<ResourceSlice>> = match event {
            InformerEvent::Updated { old, new } if old.spec == new.spec => return,
            InformerEvent::Updated { old, new } => vec![old, new],
            InformerEvent::Added(slice) | InformerEvent::Deleted(slice) => vec![slice],
        };
        let pools: BTreeSet<_> = changed
            .iter()
            .map(|slice| pool_key(&slice.spec.driver, &slice.spec.pool.name))
            .collect();
        for pool in pools {
            // A new generation takes the taints of older slices away, too.
            let others = self.slices.by_index(BY_POOL, &pool);
            let mut all = changed.iter().copied().chain(&others);
            if all.any(|slice| has_evicting_taint(slice)) {
                for claim in self.claims.by_index(BY_POOL, &pool) {
                    self.look_at_users(&claim);
                }
            }
        }
    }

    fn claim_changed(&self, event: &InformerEvent<ResourceClaim>) {
        match event {
            InformerEvent::Updated { old, new } => {
                let status = |claim: &ResourceClaim| {
                    let status = claim.status.as_ref();
                    status.map(|s| (s.allocation.clone(), s.reserved_for.clone()))
                };
                if (is_allocated(old) || is_allocated(new)) && status(old) != status(new) {
                    self.look_at_users(old);
                    self.look_at_users(new);
                }
            }
            InformerEvent::Added(claim) | InformerEvent::Deleted(claim) => {
                if is_allocated(claim) {
                    self.look_at_users(claim);
                }
            }
        }
    }

    fn look_at_users(&self, claim: &ResourceClaim) {
        users(claim).for_each(|pod| self.queue.add(Key::Pod(pod)));
    }

    fn slices_of(&self, driver: &str, pool: &str) -> Vec<Arc<ResourceSlice>> {
        self.slices.by_index(BY_POOL, &pool_key(driver, pool))
    }

    fn eviction(&self, pod: &Pod, rules: &[Arc<DeviceTaintRule>]) -> Option<Eviction> {
        let namespace = pod_helpers::namespace(pod);
        let devices = Devices {
            slices: &|driver, pool| self.slices_of(driver, pool),
            rules,
        };
        pod_eviction(pod, |name| self.claims.get(namespace, name), &devices)
    }

    async fn sync_pod(&self, key: &ObjectKey) -> Result<Option<Duration>, ApiError> {
        let going = |pod: &Pod| pod_helpers::is_terminating(pod);
        let Some(pod) = self.pods.get_key(key).filter(|pod| !going(pod)) else {
            // Gone or going: nothing is left to be done, or to be said of the Pod.
            self.forget(key);
            return Ok(None);
        };
        let uid = pod_helpers::uid(&pod);
        if self.evicted.has(uid) {
            return Ok(None);
        }
        let rules = self.rules.as_ref().map(Informer::list).unwrap_or_default();
        let Some(eviction) = self.eviction(&pod, &rules) else {
            if self.forget(key).as_deref() == Some(uid) {
                self.tell(&pod, "Cancelling deletion").await;
            }
            return Ok(None);
        };
        let scheduled = Scheduled {
            uid: uid.to_owned(),
            eviction: eviction.clone(),
        };
        lock(&self.scheduled).insert(key.clone(), scheduled);
        // More may change at the same time; the rule's status waits for it.
        self.look_at_rules(&eviction);
        let left = eviction.when.duration_since(self.clock.now());
        if let Ok(left) = Duration::try_from(left)
            && !left.is_zero()
        {
            return Ok(Some(left));
        }
        if self.evict(key, uid).await? {
            let latency = self.clock.now().duration_since(eviction.when);
            let reasons: Vec<_> = eviction.reasons.iter().map(ToString::to_string).collect();
            let reason = reasons.join(", ");
            tracing::info!(pod = %key, ?latency, reason, "Evicted pod by deleting it");
            self.metrics.deleted.inc();
            self.metrics.latency.observe(latency.as_secs_f64());
            let mut evicted_by = lock(&self.evicted_by);
            for (_, rule) in eviction.rules() {
                *evicted_by.entry(rule.to_owned()).or_default() += 1;
            }
        }
        self.evicted.add(uid);
        self.forget(key);
        Ok(None)
    }

    /// The Pod is not to go any more; its uid. DIFFERS: the rules it was to go for are told, too, where it just ended by itself;
    /// upstream's go on to say that it is pending.
    fn forget(&self, key: &ObjectKey) -> Option<String> {
        let was = lock(&self.scheduled).remove(key)?;
        self.look_at_rules(&was.eviction);
        Some(was.uid)
    }

    fn look_at_rules(&self, eviction: &Eviction) {
        for (rule, _) in eviction.rules() {
            self.queue.add_after(Key::Rule(rule.to_owned()), PERIOD);
        }
    }

    async fn tell(&self, pod: &Pod, message: &str) {
        let reason = "DeviceTaintManagerEviction";
        let event = Action::event(pod, EventType::Normal, reason, message);
        // Recording only queues; it has no failure that anyone could act on.
        let _ = self.executor.execute(&event).await;
    }

    /// Says why in a condition, then deletes; whether there was anything to delete. The server is asked first: the cache may be
    /// behind, and an event is only for a deletion.
    async fn evict(&self, key: &ObjectKey, uid: &str) -> Result<bool, ApiError> {
        let pod: Option<Pod> = self.executor.get(&key.namespace, &key.name).await?;
        let Some(pod) = pod.filter(|pod| pod_helpers::uid(pod) == uid) else {
            return Ok(false);
        };
        if pod_helpers::is_terminating(&pod) {
            return Ok(false);
        }
        self.tell(&pod, "Marking for deletion").await;
        let condition = PodCondition {
            type_: pod_helpers::condition::DISRUPTION_TARGET.into(),
            status: "True".into(),
            reason: Some("DeletionByDeviceTaintManager".into()),
            message: Some("Device Taint manager: deleting due to NoExecute taint".into()),
            observed_generation: pod.metadata.generation,
            ..PodCondition::default()
        };
        let mut status = pod.status.unwrap_or_default();
        let now = Time(self.clock.now());
        if pod_helpers::update_pod_condition(&mut status, condition, &now) {
            // Only the one condition: the others are the kubelet's, and may be newer on the server.
            let type_ = pod_helpers::condition::DISRUPTION_TARGET;
            let condition = pod_helpers::get_pod_condition(&status, type_);
            let patch =
                json!({ "metadata": { "uid": uid }, "status": { "conditions": [condition] } });
            let patch = Action::status_patch::<Pod>(&key.namespace, &key.name, patch);
            match self.executor.execute(&patch).await {
                Err(ApiError::NotFound(_)) => return Ok(false),
                result => result.map(drop)?,
            }
        }
        let options = DeleteOptions {
            uid: Some(uid.to_owned()),
            ..DeleteOptions::default()
        };
        let delete = Action::delete::<Pod>(&key.namespace, &key.name, options);
        match self.executor.execute(&delete).await {
            // A namesake is there now.
            Err(ApiError::Conflict(_)) => Ok(false),
            result => result.map(|_| true),
        }
    }

    async fn sync_rule(&self, name: &str) -> Result<Option<Duration>, ApiError> {
        let rule = self.rules.as_ref().and_then(|rules| rules.get("", name));
        let Some(rule) = rule else {
            return Ok(None);
        };
        let now = self.clock.now();
        if let Some(left) = rule_status::wait(&rule, now) {
            return Ok(Some(left));
        }
        if let Some(action) = rule_status::sync(&rule, &self.counts(&rule), now) {
            match self.executor.execute(&action).await {
                Ok(_) | Err(ApiError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// What a rule does; for the effect `None`, what it would do as `NoExecute`.
    fn counts(&self, rule: &Arc<DeviceTaintRule>) -> Counts {
        let uid = rule.metadata.uid.as_deref().unwrap_or_default();
        let mut counts = Counts {
            evicted: lock(&self.evicted_by).get(uid).copied().unwrap_or(0),
            ..Counts::default()
        };
        let evicting = match rule.spec.taint.effect.as_str() {
            NO_EXECUTE => rule.clone(),
            NONE => {
                let mut simulated = (**rule).clone();
                simulated.spec.taint.effect = NO_EXECUTE.to_owned();
                counts.published = self.count_published(rule);
                Arc::new(simulated)
            }
            _ => return counts,
        };
        let mut candidates = HashSet::new();
        for claim in self.claims.list() {
            let devices = allocated_devices(&claim).iter();
            let about = devices.filter(|d| rule_matches(rule, &d.driver, &d.pool, &d.device));
            let about = about.count();
            if about > 0 {
                counts.allocated += about;
                candidates.extend(users(&claim));
            }
        }
        let rules = [evicting];
        let mut namespaces = HashSet::new();
        for key in candidates {
            let pod = self.pods.get_key(&key);
            let Some(pod) = pod.filter(|p| !pod_helpers::is_terminating(p)) else {
                continue;
            };
            let eviction = self.eviction(&pod, &rules);
            if eviction.is_some_and(|e| e.rules().any(|(_, rule)| rule == uid)) {
                counts.pods += 1;
                namespaces.insert(key.namespace);
            }
        }
        counts.namespaces = namespaces.len();
        counts
    }

    fn count_published(&self, rule: &DeviceTaintRule) -> usize {
        let mut pools: HashMap<String, Vec<Arc<ResourceSlice>>> = HashMap::new();
        for slice in self.slices.list() {
            let key = pool_key(&slice.spec.driver, &slice.spec.pool.name);
            pools.entry(key).or_default().push(slice);
        }
        let slices = pools.values().flat_map(|slices| newest(slices));
        let selected = slices.map(|slice| {
            let (driver, pool) = (&slice.spec.driver, &slice.spec.pool.name);
            let devices = slice.spec.devices.iter().flatten();
            devices
                .filter(|d| rule_matches(rule, driver, pool, &d.name))
                .count()
        });
        selected.sum()
    }
}

/// Whether a rule is about a device of the claim.
fn is_about(rule: &DeviceTaintRule, claim: &ResourceClaim) -> bool {
    let mut devices = allocated_devices(claim).iter();
    devices.any(|d| rule_matches(rule, &d.driver, &d.pool, &d.device))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic while the lock is held")
}

#[async_trait]
impl Controller for DeviceTaintEviction {
    type Key = Key;
    type Error = ApiError;

    fn name(&self) -> &'static str {
        NAME
    }

    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, ApiError> {
        match key {
            Key::Pod(key) => self.sync_pod(key).await,
            Key::Rule(name) => self.sync_rule(name).await,
        }
    }
}
