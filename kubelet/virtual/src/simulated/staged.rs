//! Carrying out kwok's stages: each state of a pod that the API server tells of is looked at, its stage is waited out, and what comes
//! next is written.
//!
//! Owns: the writes of that. [`super::stage`] decides. A pod that no stage selects costs nothing here.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use component_base::client::{is_conflict, is_not_found};
use component_base::clock::Clock;
use component_base::shutdown::Shutdown;
use controller_runtime::work_queue::{Queues, RateLimit, WorkQueue};
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kubelet_provider::{
    EventLevel, Features, PodEvents, PodId, PodMode, PodReport, Provider, ProviderError,
};
use serde_json::{Value, json};

use super::Addresses;
use super::stage::{Stage, choose};
use super::template::Context;
use crate::metrics;

/// Pods that are written at the same time.
const WORKERS: usize = 32;
/// Pauses after an error: the first one, and the longest.
const RETRY: RateLimit = RateLimit {
    base: Duration::from_millis(500),
    max: Duration::from_secs(60),
    qps: 0.0,
    burst: 0,
};

type Uid = Arc<str>;

/// A pod that waits for its stage to be over.
struct Waiting {
    id: PodId,
    pod: Arc<Pod>,
    stage: usize,
    due: Timestamp,
}

/// What templates ask about.
struct Facts {
    clock: Clock,
    started: Timestamp,
    node_ip: Option<IpAddr>,
    port: i32,
    addresses: Mutex<(Addresses, HashMap<String, std::net::Ipv4Addr>)>,
}

/// Pods that live by stages.
#[derive(Clone)]
pub struct Staged {
    shared: Arc<Shared>,
}

struct Shared {
    stages: Vec<Stage>,
    client: kube::Client,
    waiting: Mutex<HashMap<Uid, Waiting>>,
    queue: WorkQueue<Uid>,
    events: OnceLock<PodEvents>,
    facts: Facts,
    shutdown: Shutdown,
}

/// What the provider needs.
pub struct Parts {
    pub stages: Vec<Stage>,
    pub client: kube::Client,
    pub pod_cidr: Ipv4Net,
    pub node_ip: Option<IpAddr>,
    pub port: i32,
    pub clock: Clock,
    pub queues: Queues,
    pub shutdown: Shutdown,
}

impl Staged {
    pub fn new(parts: Parts) -> Self {
        let facts = Facts {
            started: parts.clock.now(),
            node_ip: parts.node_ip,
            port: parts.port,
            addresses: Mutex::new((Addresses::new(parts.pod_cidr), HashMap::new())),
            clock: parts.clock,
        };
        Self {
            shared: Arc::new(Shared {
                stages: parts.stages,
                client: parts.client,
                waiting: Mutex::default(),
                queue: parts.queues.queue_with("stages", RETRY),
                events: OnceLock::new(),
                facts,
                shutdown: parts.shutdown,
            }),
        }
    }
}

fn time(at: Timestamp) -> String {
    let at = Timestamp::from_second(at.as_second()).unwrap_or(at);
    at.to_string()
}

impl Context for Facts {
    fn now(&self) -> String {
        time(self.clock.now())
    }

    fn start_time(&self) -> String {
        time(self.started)
    }

    fn version(&self) -> String {
        component_base::version::GIT_VERSION.to_owned()
    }

    fn node_ip(&self, _node: &str) -> String {
        self.node_ip.map(|ip| ip.to_string()).unwrap_or_default()
    }

    fn node_name(&self) -> String {
        String::new()
    }

    fn node_port(&self) -> i64 {
        self.port.into()
    }

    fn pod_ip(&self, node: &str, host_network: bool, uid: &str) -> String {
        if host_network {
            return self.node_ip(node);
        }
        let addresses = self.addresses.lock();
        let mut addresses = addresses.expect("no panic while the lock is held");
        let (free, given) = &mut *addresses;
        let address = given.entry(uid.to_owned()).or_insert_with(|| free.take());
        address.to_string()
    }
}

impl Facts {
    fn forget(&self, uid: &str) {
        let addresses = self.addresses.lock();
        let mut addresses = addresses.expect("no panic while the lock is held");
        let (free, given) = &mut *addresses;
        if let Some(address) = given.remove(uid) {
            free.give_back(address);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<Uid, Waiting>> {
        let waiting = self.waiting.lock();
        waiting.expect("no panic while the lock is held")
    }

    /// Looks at a state of a pod.
    fn observe(&self, id: &PodId, pod: Arc<Pod>) {
        let object = serde_json::to_value(&*pod).unwrap_or_default();
        let now = self.facts.clock.now();
        let mut waiting = self.lock();
        if let Some(before) = waiting.get_mut(&id.uid)
            && self.stages[before.stage].matches(&object)
        {
            // It waits already.
            before.pod = pod;
            return;
        }
        let Some(stage) = choose(&self.stages, &object, rand::random()) else {
            waiting.remove(&id.uid);
            return;
        };
        let delay = self.stages[stage].delay(&object, now, rand::random());
        let wait = k8s_openapi::jiff::SignedDuration::try_from(delay).unwrap_or_default();
        let due = now.checked_add(wait).unwrap_or(Timestamp::MAX);
        let entry = Waiting {
            id: id.clone(),
            pod,
            stage,
            due,
        };
        waiting.insert(id.uid.clone(), entry);
        drop(waiting);
        match delay.is_zero() {
            true => self.queue.add(id.uid.clone()),
            false => self.queue.add_after(id.uid.clone(), delay),
        }
    }

    async fn work(self: Arc<Self>) {
        while let Some(uid) = self.queue.get().await {
            let ready = {
                let mut waiting = self.lock();
                match waiting.get(&uid).map(|w| w.due) {
                    None => None,
                    Some(due) if due > self.facts.clock.now() => {
                        let wait = due.duration_since(self.facts.clock.now());
                        let wait = Duration::try_from(wait).unwrap_or_default();
                        self.queue
                            .add_after(uid.clone(), wait.max(Duration::from_millis(1)));
                        None
                    }
                    Some(_) => waiting.remove(&uid),
                }
            };
            if let Some(ready) = ready {
                match self.carry_out(&ready).await {
                    Ok(()) => self.queue.forget(&uid),
                    Err(error) => {
                        tracing::warn!(pod = %ready.id, %error, "A stage could not be carried out, will retry");
                        self.lock().entry(uid.clone()).or_insert(ready);
                        self.queue.add_rate_limited(uid.clone());
                    }
                }
            }
            self.queue.done(&uid);
        }
    }

    async fn carry_out(&self, waiting: &Waiting) -> kube::Result<()> {
        let (id, stage) = (&waiting.id, &self.stages[waiting.stage]);
        if let (Some(event), Some(events)) = (&stage.event, self.events.get()) {
            let level = match event.type_.as_str() {
                "Warning" => EventLevel::Warning,
                _ => EventLevel::Normal,
            };
            events.message(id, level, &event.reason, event.message.as_str());
        }
        let have = waiting.pod.metadata.finalizers.as_deref();
        let mut newest = None;
        if let Some(finalizers) = stage.finalizers(have.unwrap_or_default()) {
            let body = json!({ "metadata": { "uid": &*id.uid, "finalizers": finalizers } });
            newest = self.patch(id, None, Patch::Merge(body)).await?;
        }
        if stage.delete {
            return self.delete(id).await;
        }
        if let Some(template) = &stage.status {
            let object = serde_json::to_value(&*waiting.pod).unwrap_or_default();
            let rendered = template
                .render(&object, &self.facts)
                .map_err(|e| e.to_string());
            let status: Result<Value, String> =
                rendered.and_then(|text| serde_saphyr::from_str(&text).map_err(|e| e.to_string()));
            match status {
                Ok(Value::Null) => {}
                Ok(status) => {
                    let body = json!({ "metadata": { "uid": &*id.uid }, "status": status });
                    newest = self
                        .patch(id, Some("status"), Patch::Strategic(body))
                        .await?;
                }
                // No retry helps: it is said where the user looks.
                Err(error) => {
                    tracing::error!(pod = %id, stage = stage.name, error, "The status template failed");
                    if let Some(events) = self.events.get() {
                        let text = format!("stage {:?}: {error}", stage.name);
                        events.message(id, EventLevel::Warning, "StageFailed", text);
                    }
                }
            }
        }
        if let (true, Some(pod)) = (stage.immediate_next, newest) {
            self.observe(id, Arc::new(pod));
        }
        Ok(())
    }

    /// `None`: there is no such pod any more.
    async fn patch(
        &self,
        id: &PodId,
        subresource: Option<&str>,
        patch: Patch<Value>,
    ) -> kube::Result<Option<Pod>> {
        let request = kube::core::Request::new(format!("/api/v1/namespaces/{}/pods", id.namespace));
        let params = PatchParams::default();
        let request = match subresource {
            Some(name) => request.patch_subresource(name, &id.name, &params, &patch),
            None => request.patch(&id.name, &params, &patch),
        };
        let request = request.map_err(kube::Error::BuildRequest)?;
        let outcome = self.client.request::<Pod>(request).await;
        metrics::pod_write(subresource.unwrap_or("metadata"), outcome.is_ok());
        match outcome {
            Ok(pod) => Ok(Some(pod)),
            Err(error) if is_not_found(&error) || is_conflict(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn delete(&self, id: &PodId) -> kube::Result<()> {
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: Some(id.uid.to_string()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let api: kube::Api<Pod> = kube::Api::namespaced(self.client.clone(), &id.namespace);
        let outcome = api.delete(&id.name, &params).await;
        metrics::pod_write("delete", outcome.is_ok());
        match outcome {
            Ok(_) => Ok(()),
            Err(error) if is_not_found(&error) || is_conflict(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[async_trait]
impl Provider for Staged {
    fn name(&self) -> &str {
        "simulated"
    }

    fn features(&self) -> Features {
        Features::all()
    }

    fn mode(&self) -> PodMode {
        PodMode::Driven
    }

    async fn start(&self, events: PodEvents) -> Result<(), ProviderError> {
        let twice = |_| ProviderError::Failed("started twice".to_owned());
        self.shared.events.set(events).map_err(twice)?;
        let shutdown = &self.shared.shutdown;
        for _ in 0..WORKERS {
            shutdown.spawn_essential("stage worker", self.shared.clone().work());
        }
        let (queue, ends) = (self.shared.queue.clone(), shutdown.clone());
        shutdown.spawn_guarded("end of stages", async move {
            ends.triggered().await;
            queue.shut_down();
        });
        Ok(())
    }

    async fn pods(&self) -> Result<Vec<(PodId, PodReport)>, ProviderError> {
        // The API server has all there is.
        Ok(Vec::new())
    }

    async fn create_pod(&self, pod: Arc<Pod>) -> Result<(), ProviderError> {
        self.shared.observe(&PodId::of(&pod), pod);
        Ok(())
    }

    async fn update_pod(&self, pod: Arc<Pod>) -> Result<(), ProviderError> {
        self.shared.observe(&PodId::of(&pod), pod);
        Ok(())
    }

    async fn delete_pod(&self, pod: &PodId, _grace: Duration) -> Result<(), ProviderError> {
        self.shared.lock().remove(&pod.uid);
        self.shared.facts.forget(&pod.uid);
        Err(ProviderError::NotFound)
    }
}
