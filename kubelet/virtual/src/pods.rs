//! The pods of all nodes of the process: one watch, one queue, some workers.
//!
//! Owns: which pods are ours, when the provider is called, what is written of them. [`record`] decides, [`status`] words it; this is
//! the shell around both. Upstream: what `virtual-kubelet/virtual-kubelet` does in `node/pod.go` and `node/podcontroller.go`, and
//! the kubelet in `pkg/kubelet/status/status_manager.go`, v1.36.

pub mod record;
pub mod status;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use component_base::client::{is_conflict, is_not_found};
use component_base::clock::Clock;
use component_base::events::{EventType, Recorder};
use component_base::shutdown::Shutdown;
use controller_runtime::work_queue::{Queues, RateLimit, WorkQueue};
use futures::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::{ObjectReference, Pod, PodStatus};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::runtime::watcher;
use kubelet_provider::{
    EventLevel, Features, PodId, PodMode, PodReport, Provider, ProviderError, ProviderEvent,
    ProviderEvents, unsupported_fields,
};
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use crate::metrics;
use crate::nodes::Nodes;
use record::{Record, Refusal, Step, json_hash};

/// Pods that are worked on at the same time.
const WORKERS: usize = 32;
/// Pauses after an error: the first one, and the longest.
const RETRY: RateLimit = RateLimit {
    base: Duration::from_millis(500),
    max: Duration::from_secs(60),
    qps: 0.0,
    burst: 0,
};
/// Pause before the provider is asked again what it has.
const LIST_RETRY: Duration = Duration::from_secs(1);

type Uid = Arc<str>;
type Name = (Arc<str>, Arc<str>);

#[derive(Default)]
struct State {
    records: HashMap<Uid, Record>,
    by_name: HashMap<Name, Uid>,
    /// What the provider had at the start and no object was seen of yet.
    adopted: HashMap<Uid, (PodId, PodReport)>,
    /// Of a list that is not complete yet.
    seen: Option<HashSet<Uid>>,
    namespaces: HashSet<Arc<str>>,
    synced: bool,
}

/// What everything about pods needs.
pub struct Parts {
    pub provider: Arc<dyn Provider>,
    pub client: kube::Client,
    pub recorder: Recorder,
    /// `status.hostIP`, where the provider names none.
    pub host_ip: Option<IpAddr>,
    pub nodes: Arc<Nodes>,
    pub clock: Clock,
    pub queues: Queues,
}

/// The pods of the process. Clones are handles.
#[derive(Clone)]
pub struct Pods {
    inner: Arc<Inner>,
}

struct Inner {
    parts: Parts,
    mode: PodMode,
    features: Features,
    queue: WorkQueue<Uid>,
    state: Mutex<State>,
}

/// A pod that somebody asks for by name.
#[derive(Clone, Debug)]
pub struct Found {
    pub id: PodId,
    pub shape: record::Shape,
}

/// What an API call or the provider says against it; a retry helps.
#[derive(Debug, thiserror::Error)]
enum SyncError {
    #[error("{0}")]
    Api(#[from] kube::Error),
    #[error("{0}")]
    Provider(#[from] ProviderError),
}

impl Pods {
    pub fn new(parts: Parts) -> Self {
        Self {
            inner: Arc::new(Inner {
                mode: parts.provider.mode(),
                features: parts.provider.features(),
                queue: parts.queues.queue_with("pods", RETRY),
                state: Mutex::default(),
                parts,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let state = self.inner.state.lock();
        state.expect("no panic while the lock is held")
    }

    /// Asks the provider what it has, then follows the API server and the provider until shutdown.
    pub async fn run<S>(self, watch: S, events: ProviderEvents, shutdown: Shutdown)
    where
        S: Stream<Item = watcher::Result<watcher::Event<Pod>>> + Send + 'static,
    {
        if shutdown.run_until(self.adopt()).await.is_none() {
            return;
        }
        for _ in 0..WORKERS {
            let pods = self.clone();
            shutdown.spawn_essential("pod worker", pods.work());
        }
        let pods = self.clone();
        shutdown.spawn_essential("provider events", {
            let shutdown = shutdown.clone();
            async move {
                let mut events = events;
                while let Some(event) = shutdown.run_until(events.next()).await {
                    pods.provider_event(event);
                }
            }
        });
        let mut watch = std::pin::pin!(watch);
        while let Some(Some(event)) = shutdown.run_until(watch.next()).await {
            match event {
                Ok(event) => self.watched(event),
                // The stream itself waits before it goes on.
                Err(error) => tracing::warn!(%error, "The watch of pods failed, will retry"),
            }
        }
        self.inner.queue.shut_down();
    }

    async fn adopt(&self) {
        loop {
            match self.inner.parts.provider.pods().await {
                Ok(pods) => {
                    tracing::info!(pods = pods.len(), "The provider's pods are adopted");
                    let pods = pods.into_iter();
                    self.lock().adopted = pods.map(|(id, r)| (id.uid.clone(), (id, r))).collect();
                    return;
                }
                Err(error) => {
                    tracing::error!(%error, "Cannot list the provider's pods, will retry");
                    self.inner.parts.clock.sleep(LIST_RETRY).await;
                }
            }
        }
    }

    /// Whether the pods of the API server were all seen once.
    pub fn has_synced(&self) -> bool {
        self.lock().synced
    }

    /// The pod of this name.
    pub fn find(&self, namespace: &str, name: &str) -> Option<Found> {
        let state = self.lock();
        let uid = state.by_name.get(&(namespace.into(), name.into()))?;
        let record = state.records.get(uid)?;
        Some(Found {
            id: record.id.clone(),
            shape: record.shape.clone(),
        })
    }

    /// The pods that the provider has and that have not ended, with their containers.
    pub fn running(&self) -> Vec<Found> {
        let state = self.lock();
        let running = state.records.values().filter(|r| !r.has_ended());
        let found = running.map(|record| Found {
            id: record.id.clone(),
            shape: record.shape.clone(),
        });
        found.collect()
    }

    /// How many pods there are, and how many of them the provider runs.
    pub fn count(&self) -> (usize, usize) {
        let state = self.lock();
        let running = state.records.values().filter(|r| !r.has_ended()).count();
        (state.records.len(), running)
    }

    /// Takes in an event of the watch.
    pub fn watched(&self, event: watcher::Event<Pod>) {
        match event {
            watcher::Event::Init => self.lock().seen = Some(HashSet::new()),
            watcher::Event::InitApply(pod) | watcher::Event::Apply(pod) => self.applied(pod),
            watcher::Event::InitDone => self.listed(),
            watcher::Event::Delete(pod) => {
                let uid = pod.metadata.uid.unwrap_or_default();
                let mut state = self.lock();
                self.vanish(&mut state, &uid);
            }
        }
    }

    fn applied(&self, mut pod: Pod) {
        let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref());
        let Some(node) = node.and_then(|node| self.inner.parts.nodes.name(node)) else {
            return;
        };
        pod.metadata.managed_fields = None;
        let pod = Arc::new(pod);
        let uid: Uid = pod.metadata.uid.as_deref().unwrap_or_default().into();
        let mut state = self.lock();
        let state = &mut *state;
        if let Some(seen) = &mut state.seen {
            seen.insert(uid.clone());
        }
        if let Some(record) = state.records.get_mut(&uid) {
            if record.observe(pod, self.inner.mode) {
                self.inner.queue.add(uid);
            }
            return;
        }
        let had = state.adopted.remove(&uid).map(|(_, report)| report);
        let mut record = Record::new(pod, had);
        record.id.node = node;
        match state.namespaces.get(&record.id.namespace) {
            Some(namespace) => record.id.namespace = namespace.clone(),
            None => drop(state.namespaces.insert(record.id.namespace.clone())),
        }
        let name = (record.id.namespace.clone(), record.id.name.clone());
        if let Some(before) = state.by_name.insert(name, uid.clone()) {
            // The watch was away while it went.
            self.vanish(state, &before);
        }
        state.records.insert(uid.clone(), record);
        self.inner.queue.add(uid);
    }

    fn vanish(&self, state: &mut State, uid: &str) {
        if let Some(record) = state.records.get_mut(uid) {
            record.vanished = true;
            self.inner.queue.add(record.id.uid.clone());
        }
    }

    fn listed(&self) {
        let mut state = self.lock();
        let state = &mut *state;
        let Some(seen) = state.seen.take() else {
            return;
        };
        let known = state.records.keys();
        let gone: Vec<Uid> = known.filter(|uid| !seen.contains(*uid)).cloned().collect();
        for uid in gone {
            self.vanish(state, &uid);
        }
        // What nobody wants any more.
        for (uid, (id, report)) in std::mem::take(&mut state.adopted) {
            tracing::info!(pod = %id, uid = %uid, "The API server has no such pod: it is ended");
            let pod = Pod::default();
            let mut record = Record::new(Arc::new(pod), Some(report));
            record.id = id;
            record.desired = None;
            record.vanished = true;
            state.records.insert(uid.clone(), record);
            self.inner.queue.add(uid);
        }
        state.synced = true;
    }

    fn provider_event(&self, event: ProviderEvent) {
        match event {
            ProviderEvent::Report(id, report) => self.with_record(&id, |r| r.reported(report)),
            ProviderEvent::Gone(id) => self.with_record(&id, |record| {
                let wanted = record.terminating.is_some();
                record.gone(wanted);
                true
            }),
            ProviderEvent::NodeConditions(node, conditions) => {
                self.inner.parts.nodes.set_conditions(&node, conditions);
            }
            ProviderEvent::Message {
                pod,
                level,
                reason,
                message,
            } => {
                let event_type = match level {
                    EventLevel::Normal => EventType::Normal,
                    EventLevel::Warning => EventType::Warning,
                };
                self.tell(&pod, event_type, &reason, message);
            }
        }
    }

    fn with_record(&self, id: &PodId, change: impl FnOnce(&mut Record) -> bool) {
        let mut state = self.lock();
        match state.records.get_mut(&id.uid) {
            Some(record) => {
                if change(record) {
                    self.inner.queue.add(id.uid.clone());
                }
            }
            None => tracing::debug!(pod = %id, "The provider tells of a pod that is not known"),
        }
    }

    fn tell(&self, id: &PodId, event_type: EventType, reason: &str, message: impl Into<String>) {
        let regarding = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(id.namespace.to_string()),
            name: Some(id.name.to_string()),
            uid: Some(id.uid.to_string()),
            ..ObjectReference::default()
        };
        let recorder = &self.inner.parts.recorder;
        recorder.event(&regarding, event_type, reason, reason, message);
    }

    async fn work(self) {
        let queue = &self.inner.queue;
        while let Some(uid) = queue.get().await {
            match self.sync(&uid).await {
                Ok(()) => queue.forget(&uid),
                Err(error) => {
                    tracing::warn!(%uid, %error, "A pod's round failed, will retry");
                    queue.add_rate_limited(uid.clone());
                }
            }
            queue.done(&uid);
        }
    }

    /// Does step after step until there is none.
    async fn sync(&self, uid: &Uid) -> Result<(), SyncError> {
        loop {
            let (step, id) = match self.lock().records.get(uid) {
                Some(record) => (record.step(self.inner.mode), record.id.clone()),
                None => return Ok(()),
            };
            match step {
                Step::Idle => return Ok(()),
                Step::Create(pod) => self.create(&id, pod).await?,
                Step::Update(pod) => self.update(&id, pod).await?,
                Step::Delete(grace) => self.delete(&id, grace).await?,
                Step::Write => self.write(&id).await?,
                Step::Remove => self.remove(&id).await?,
                Step::Forget => {
                    let mut state = self.lock();
                    let name = (id.namespace.clone(), id.name.clone());
                    if state.by_name.get(&name) == Some(uid) {
                        state.by_name.remove(&name);
                    }
                    state.records.remove(uid);
                    return Ok(());
                }
            }
        }
    }

    fn change(&self, id: &PodId, change: impl FnOnce(&mut Record)) {
        if let Some(record) = self.lock().records.get_mut(&id.uid) {
            change(record);
        }
    }

    async fn create(&self, id: &PodId, pod: Arc<Pod>) -> Result<(), SyncError> {
        let refused = match &pod.spec {
            Some(spec) if self.inner.mode == PodMode::Reported => {
                unsupported_fields(spec, &self.inner.features)
            }
            _ => Vec::new(),
        };
        let provider = &self.inner.parts.provider;
        let outcome = if refused.is_empty() {
            self.change(id, |record| record.tried = true);
            let began = Instant::now();
            let outcome = provider.create_pod(pod.clone()).await;
            metrics::called("create_pod", began, outcome.is_ok());
            outcome
        } else {
            let paths: Vec<&str> = refused.iter().map(|f| f.path.as_str()).collect();
            let message = format!(
                "the provider {:?} does not support: {}",
                provider.name(),
                paths.join(", ")
            );
            self.refuse(id, "UnsupportedPodField", message);
            return Ok(());
        };
        match outcome {
            Ok(()) => {
                self.change(id, |record| {
                    record.created = true;
                    record.told = false;
                    handed_over(record, &pod);
                });
                Ok(())
            }
            Err(error @ (ProviderError::Invalid { .. } | ProviderError::Unsupported(_))) => {
                self.refuse(id, "ProviderRefused", error.to_string());
                Ok(())
            }
            Err(error) => Err(self.failed(id, "ProviderCreateFailed", error)),
        }
    }

    fn refuse(&self, id: &PodId, reason: &'static str, message: String) {
        self.tell(id, EventType::Warning, reason, message.as_str());
        self.change(id, |record| {
            record.refused = Some(Refusal { reason, message });
            record.tried = false;
            record.desired = None;
            record.dirty = true;
        });
    }

    /// People hear of the first error of a row.
    fn failed(&self, id: &PodId, reason: &str, error: ProviderError) -> SyncError {
        let mut first = false;
        self.change(id, |record| {
            first = !std::mem::replace(&mut record.told, true);
        });
        if first {
            self.tell(id, EventType::Warning, reason, error.to_string());
        }
        error.into()
    }

    async fn update(&self, id: &PodId, pod: Arc<Pod>) -> Result<(), SyncError> {
        let began = Instant::now();
        let outcome = self.inner.parts.provider.update_pod(pod.clone()).await;
        metrics::called("update_pod", began, outcome.is_ok());
        let mut adopted = false;
        let mut done = |record: &mut Record| {
            adopted = std::mem::replace(&mut record.adopted, false);
            record.told = false;
            handed_over(record, &pod);
        };
        match outcome {
            Ok(()) => self.change(id, done),
            Err(error @ (ProviderError::Unsupported(_) | ProviderError::Invalid { .. })) => {
                self.change(id, &mut done);
                if !adopted {
                    let text = error.to_string();
                    self.tell(id, EventType::Warning, "ProviderUpdateFailed", text);
                }
            }
            // It lost it: the provider's word on what is left counts.
            Err(ProviderError::NotFound) => self.change(id, |record| {
                done(record);
                record.lost = true;
                record.dirty = true;
            }),
            Err(error) => return Err(self.failed(id, "ProviderUpdateFailed", error)),
        }
        Ok(())
    }

    async fn delete(&self, id: &PodId, grace: i64) -> Result<(), SyncError> {
        let began = Instant::now();
        let seconds = Duration::from_secs(u64::try_from(grace).unwrap_or(0));
        let outcome = self.inner.parts.provider.delete_pod(id, seconds).await;
        metrics::called("delete_pod", began, outcome.is_ok());
        match outcome {
            Ok(()) => self.change(id, |record| {
                record.delete_sent = Some(grace);
                record.told = false;
            }),
            Err(ProviderError::NotFound) => self.change(id, |record| {
                record.delete_sent = Some(grace);
                record.gone(true);
            }),
            Err(error) => return Err(self.failed(id, "FailedKillPod", error)),
        }
        Ok(())
    }

    /// Writes the status, unless the API server has it already.
    async fn write(&self, id: &PodId) -> Result<(), SyncError> {
        let now = self.inner.parts.clock.now();
        let host_ip = self.inner.parts.host_ip;
        let (status, hash, baseline, report) = {
            let mut state = self.lock();
            let Some(record) = state.records.get_mut(&id.uid) else {
                return Ok(());
            };
            let (status, transitions) = status::generate(record, host_ip, now);
            record.transitions = transitions;
            record.started = status.start_time.as_ref().map(|t| t.0);
            // What comes while it is being written makes it dirty anew.
            record.dirty = false;
            let hash = json_hash(&status);
            if hash == record.written {
                return Ok(());
            }
            (status, hash, record.baseline.take(), record.report.clone())
        };
        let written = |record: &mut Record| record.written = hash;
        let old = baseline.as_ref().and_then(|pod| pod.status.as_ref());
        if old.is_some_and(|old| is_written(old, &status)) {
            self.change(id, written);
            return Ok(());
        }
        let body = json!({ "metadata": { "uid": &*id.uid }, "status": patch(&status) });
        let url = format!("/api/v1/namespaces/{}/pods", id.namespace);
        let params = PatchParams::default();
        let request = kube::core::Request::new(url)
            .patch_subresource("status", &id.name, &params, &Patch::Strategic(body))
            .map_err(kube::Error::BuildRequest)?;
        let outcome = self.inner.parts.client.request::<IgnoredAny>(request).await;
        metrics::pod_write("status", outcome.is_ok());
        match outcome {
            Ok(_) => {
                self.change(id, written);
                Ok(())
            }
            // The object is another one, or none: the watch will tell.
            Err(error) if is_not_found(&error) || is_conflict(&error) => {
                tracing::debug!(pod = %id, %error, "The status found no pod");
                Ok(())
            }
            Err(error) => {
                self.change(id, |record| {
                    // Unless something newer came, which is dirty already.
                    record.dirty |= record.report == report;
                    record.baseline = baseline;
                });
                Err(error.into())
            }
        }
    }

    async fn remove(&self, id: &PodId) -> Result<(), SyncError> {
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: Some(id.uid.to_string()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let url = format!("/api/v1/namespaces/{}/pods", id.namespace);
        let request = kube::core::Request::new(url)
            .delete(&id.name, &params)
            .map_err(kube::Error::BuildRequest)?;
        let outcome = self.inner.parts.client.request::<IgnoredAny>(request).await;
        metrics::pod_write("delete", outcome.is_ok());
        match outcome {
            Ok(_) => {}
            Err(error) if is_not_found(&error) || is_conflict(&error) => {}
            Err(error) => return Err(error.into()),
        }
        self.change(id, |record| record.removed = true);
        Ok(())
    }
}

/// The provider has this state of the object.
fn handed_over(record: &mut Record, pod: &Arc<Pod>) {
    if record.desired.as_ref().is_some_and(|d| Arc::ptr_eq(d, pod)) {
        record.desired = None;
    }
}

/// As a strategic merge: what is no more is taken away, conditions of others stay.
fn patch(status: &PodStatus) -> Value {
    let mut value = serde_json::to_value(status).unwrap_or_default();
    let clear = |value: &mut Value| {
        if let Some(object) = value.as_object_mut() {
            for field in ["reason", "message"] {
                object.entry(field).or_insert(Value::Null);
            }
        }
    };
    clear(&mut value);
    // Conditions are merged by their type: what is left out would stay.
    let conditions = value.get_mut("conditions").and_then(Value::as_array_mut);
    conditions.into_iter().flatten().for_each(clear);
    value
}

/// Whether `old` says all that `new` does.
fn is_written(old: &PodStatus, new: &PodStatus) -> bool {
    let plain = |status: &PodStatus| {
        let mut value = serde_json::to_value(status).unwrap_or_default();
        without_empty(&mut value);
        value
    };
    let (Value::Object(mut old), Value::Object(mut new)) = (plain(old), plain(new)) else {
        return false;
    };
    let take = |object: &mut serde_json::Map<String, Value>| match object.remove("conditions") {
        Some(Value::Array(list)) => list,
        _ => Vec::new(),
    };
    let (before, after) = (take(&mut old), take(&mut new));
    let told = |condition: &Value| before.contains(condition);
    after.iter().all(told)
        && ["reason", "message"]
            .iter()
            .all(|f| old.get(*f) == new.get(*f))
        && new
            .iter()
            .all(|(field, value)| old.get(field) == Some(value))
}

/// The API server says `{}` where we say nothing.
fn without_empty(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.values_mut().for_each(without_empty);
            object.retain(|_, field| field.as_object().is_none_or(|o| !o.is_empty()));
        }
        Value::Array(list) => list.iter_mut().for_each(without_empty),
        _ => {}
    }
}
