//! The one loop: everything that happens to pods passes here, one event at a time.
//!
//! Owns: the closed list of events, admission, and handing work to the pod workers. Never waits for a pod: slow things
//! are done by workers and tasks. Upstream: `syncLoopIteration` in `pkg/kubelet/kubelet.go`, v1.36.
//!
//! **Invariant:** nothing is cleaned up before every source told of its pods once.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ::devices::PodRequest;
use component_base::tasks::spawn_helper;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use k8s_openapi::api::core::v1::{Node, Pod};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::admission::{AdmissionInput, Rejection, Shortage, Verdict, decide};
use crate::config::{PodUpdate, Source};
use crate::device_plugins;
use crate::events::{Type, reason};
use crate::features;
use crate::kubelet::Kubelet;
use crate::metrics;
use crate::node_shutdown;
use crate::pending::Pending;
use crate::pod;
use crate::pod_actions::ProbeResult;
use crate::pod_workers::Update;
use crate::preemption;
use crate::prober::{ProbeType, ProbeUpdate};
use crate::status::generate::ForcedFailure;

/// How often traces are looked for without a cause; upstream cleans up every 2 s, we when something ended.
const HOUSEKEEPING_PERIOD: Duration = Duration::from_secs(60);

/// Everything that can happen.
#[derive(Debug)]
pub enum Event {
    Config(PodUpdate),
    /// Something happened to a container or the sandbox of this pod.
    Pleg(String),
    Probe(ProbeUpdate),
    /// A ConfigMap or Secret of this pod changed.
    ObjectsChanged(String),
    /// A pod's worker is through.
    PodFinished(String),
    /// Devices, CPUs and memory of a pod were given out, or were not.
    Allocated(String, Result<(), Rejection>),
    /// The node's own object was read, for the first time.
    NodeRead,
    Housekeeping,
}

/// Updates of pods that the sources may be ahead of the loop; then they wait.
pub const CONFIG_QUEUE: usize = 64;

/// Where events come from.
pub struct Channels {
    pub config: mpsc::Receiver<PodUpdate>,
    /// UIDs of pods of which the runtime told something.
    pub pleg: Arc<Pending<String>>,
    pub probes: Arc<Pending<ProbeUpdate>>,
    /// UIDs of pods whose ConfigMaps or Secrets changed.
    pub objects: Arc<Pending<String>>,
    /// UIDs of pods whose workers are through.
    pub finished: Arc<Pending<String>>,
}

impl Channels {
    /// `None`: the sources are gone for good, the kubelet ends.
    async fn next(&mut self, housekeeping: &mut tokio::time::Interval) -> Option<Event> {
        tokio::select! {
            biased;
            update = self.config.recv() => update.map(Event::Config),
            uid = self.pleg.next() => Some(Event::Pleg(uid)),
            update = self.probes.next() => Some(Event::Probe(update)),
            uid = self.finished.next() => Some(Event::PodFinished(uid)),
            uid = self.objects.next() => Some(Event::ObjectsChanged(uid)),
            _ = housekeeping.tick() => Some(Event::Housekeeping),
        }
    }
}

/// The loop's own memory.
pub struct SyncLoop {
    kubelet: Arc<Kubelet>,
    /// Sources that have not told of their pods yet.
    waiting_for: BTreeSet<Source>,
    /// UIDs that ran before this kubelet started: adopted without being admitted again.
    adopted: BTreeSet<String>,
    /// UIDs of pods that are decided on once the Node was read, in the order they came.
    postponed: VecDeque<String>,
    /// UIDs of critical pods and of static pods whose manifest was changed, and of the pods that end before they are decided on again.
    preempting: Vec<(String, BTreeSet<String>)>,
    /// UIDs of pods whose devices, CPUs and memory are asked for. They count meanwhile.
    allocating: BTreeSet<String>,
    allocations: FuturesUnordered<BoxFuture<'static, (String, Result<(), Rejection>)>>,
    cleaning: Option<tokio::task::JoinHandle<()>>,
    /// Clean-ups after pods that ended, by UID; cancelled when they are done.
    ending: HashMap<String, CancellationToken>,
}

impl SyncLoop {
    /// `sources`: those that are configured.
    pub fn new(
        kubelet: Arc<Kubelet>,
        sources: BTreeSet<Source>,
        adopted: BTreeSet<String>,
    ) -> Self {
        Self {
            kubelet,
            waiting_for: sources,
            adopted,
            postponed: VecDeque::new(),
            preempting: Vec::new(),
            allocating: BTreeSet::new(),
            allocations: FuturesUnordered::new(),
            cleaning: None,
            ending: HashMap::new(),
        }
    }

    /// Until `shutdown`.
    pub async fn run(mut self, mut channels: Channels, shutdown: CancellationToken) {
        let start = tokio::time::Instant::now() + HOUSEKEEPING_PERIOD;
        let mut housekeeping = tokio::time::interval_at(start, HOUSEKEEPING_PERIOD);
        housekeeping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let node = self.kubelet.node.clone();
        let read = node.until_read();
        tokio::pin!(read);
        let mut node_is_read = false;
        loop {
            self.kubelet
                .loop_turned
                .store(Arc::new(Some(self.kubelet.clock.monotonic())));
            let event = tokio::select! {
                () = shutdown.cancelled() => return,
                () = &mut read, if !node_is_read => {
                    node_is_read = true;
                    Some(Event::NodeRead)
                }
                Some((uid, outcome)) = self.allocations.next() => {
                    Some(Event::Allocated(uid, outcome))
                }
                event = channels.next(&mut housekeeping) => event,
            };
            match event {
                Some(event) => self.handle(event).await,
                None => return,
            }
        }
    }

    async fn handle(&mut self, event: Event) {
        match event {
            Event::Config(PodUpdate::Set(pod)) => self.handle_pod_set(pod).await,
            Event::Config(PodUpdate::Removed(pod)) => self.handle_pod_remove(&pod).await,
            Event::Config(PodUpdate::Ready(source)) => {
                tracing::info!(?source, "source of pods is ready");
                self.waiting_for.remove(&source);
                let all = self.waiting_for.is_empty();
                self.kubelet.sources_told.store(all, Ordering::Release);
                self.housekeeping();
            }
            Event::Pleg(uid) => self.kubelet.workers.wake(&uid),
            Event::Probe(update) => self.handle_probe(update),
            Event::ObjectsChanged(uid) => self.handle_objects(uid),
            Event::PodFinished(uid) => {
                self.handle_room_made(&uid).await;
                self.end_or_restart(&uid).await;
            }
            Event::Allocated(uid, outcome) => self.handle_allocated(&uid, outcome),
            Event::NodeRead => self.handle_node_read().await,
            Event::Housekeeping => self.housekeeping(),
        }
    }

    /// What a pod's worker left is cleaned up, or the pod begins anew: never both at a time.
    async fn end_or_restart(&mut self, uid: &str) {
        self.ending.retain(|_, done| !done.is_cancelled());
        let (kubelet, of) = (self.kubelet.clone(), uid.to_owned());
        if let Some(done) = self.ending.get(uid).cloned() {
            spawn_helper("end of a pod", async move {
                done.cancelled().await;
                kubelet.finished.add(of);
            });
            return;
        }
        if self.is_undecided(uid) {
            return;
        }
        if let Some(pod) = self.kubelet.static_pod_to_restart(uid) {
            return self.handle_pod_addition(pod).await;
        }
        let done = CancellationToken::new();
        let guard = done.clone().drop_guard();
        self.ending.insert(uid.to_owned(), done);
        spawn_helper("end of a pod", async move {
            kubelet.handle_pod_finished(&of).await;
            drop(guard);
        });
    }

    /// Decides on the pods that waited, one after the other: those behind do not count yet.
    async fn handle_node_read(&mut self) {
        tracing::info!(postponed = self.postponed.len(), "the Node was read");
        while let Some(uid) = self.postponed.pop_front() {
            if let Some(pod) = self.kubelet.pods.get_pod_by_uid(&uid) {
                self.handle_pod_addition(pod).await;
            }
        }
    }

    fn housekeeping(&mut self) {
        if !self.waiting_for.is_empty() || self.cleaning.as_ref().is_some_and(|t| !t.is_finished())
        {
            return;
        }
        let kubelet = self.kubelet.clone();
        let cleaning = async move { kubelet.handle_pod_cleanups().await };
        self.cleaning = Some(spawn_helper("clean-up of pods", cleaning));
    }

    async fn handle_pod_set(&mut self, pod: Arc<Pod>) {
        let kubelet = self.kubelet.clone();
        let uid = pod::uid(&pod).to_owned();
        if pod::is_mirror(&pod) {
            kubelet.pods.update_pod(pod.clone());
            if let Some(owner) = kubelet.pods.get_pod_by_mirror_pod(&pod) {
                let wrong =
                    pod::is_deleted(&pod) || pod::mirror_hash(&pod) != pod::config_hash(&owner);
                kubelet.status.reconcile_as(&owner, &pod);
                if wrong {
                    kubelet.workers.wake(pod::uid(&owner));
                }
            } else if self.waiting_for.is_empty() {
                self.housekeeping();
            }
            return;
        }
        let before = kubelet.pods.get_pod_by_uid(&uid);
        kubelet.pods.update_pod(pod.clone());
        kubelet.status.reconcile(&pod);
        match before {
            // Its newest form is decided on when the time comes; but what ended needs no decision.
            Some(_) if self.is_undecided(&uid) => {
                if ended(&pod) {
                    self.decide_no_more(&uid);
                    self.handle_pod_addition(pod).await;
                }
            }
            // It was rejected and is nobody's work. What was told of it stays; one that was deleted before it was told goes.
            Some(_) if kubelet.workers.status(&uid).is_none() && !pod::is_deleted(&pod) => {}
            Some(before) => {
                if differs(&before, &pod) {
                    self.check_declared_features(&before, &pod);
                    kubelet.workers.update_pod(&uid, Update::Pod(pod));
                }
            }
            None => self.handle_pod_addition(pod).await,
        }
    }

    /// The API server refuses such changes; one that came past it is told of.
    fn check_declared_features(&self, old: &Pod, new: &Pod) {
        let kubelet = &self.kubelet;
        let missing = features::missing_for_update(old, new, &kubelet.declared_features);
        if !missing.is_empty() {
            let message = format!(
                "Pod requires node features that are not available: {}",
                missing.join(", ")
            );
            let reason = reason::FAILED_NODE_DECLARED_FEATURES_CHECK;
            kubelet.recorder.pod(new, Type::Warning, reason, message);
        }
    }

    async fn handle_pod_addition(&mut self, pod: Arc<Pod>) {
        let uid = pod::uid(&pod).to_owned();
        if pod::is_static(&pod) && self.kubelet.workers.status(&uid).is_none() {
            self.kubelet.status.begin_anew(&uid);
        }
        if !ended(&pod)
            && !self.adopted.contains(&uid)
            && !self.kubelet.workers.is_termination_requested(&uid)
        {
            if pod::is_static(&pod) {
                // Another manifest of the same name: what its former self has is its own once that is gone.
                let name = pod::full_name(&pod);
                let former = self.kubelet.workers.former_selves(&uid, &name);
                if !former.is_empty() {
                    return self.preempting.push((uid, former));
                }
            }
            match self.admit(&pod) {
                Verdict::Admit => {
                    let request = device_plugins::request(&pod);
                    // After a restart: with what it was granted.
                    let granted = self.kubelet.allocation.granted(&pod);
                    if self.kubelet.needs_allocation(&granted, &request) {
                        return self.allocate(uid, granted, request);
                    }
                    self.kubelet.observe_topology_admission(Duration::ZERO);
                }
                Verdict::Reject(rejection) => return self.kubelet.reject_pod(&pod, &rejection),
                Verdict::Preempt(shortages) => return self.preempt(&pod, &shortages),
                Verdict::Wait => return self.postponed.push_back(uid),
            }
        }
        let workers = &self.kubelet.workers;
        workers.update_pod(&uid, Update::Pod(pod.clone()));
        if workers.request_restart(&pod) {
            self.kubelet.finished.add(uid);
        }
    }

    /// Asks for the pod's devices, CPUs and memory; nobody else waits for the answer.
    ///
    /// DIFFERS: upstream's loop does, and it has no deadline.
    fn allocate(&mut self, uid: String, pod: Arc<Pod>, request: PodRequest) {
        let kubelet = self.kubelet.clone();
        let (tell, told) = oneshot::channel();
        spawn_helper("resources of a pod", async move {
            // Nobody listens at the end.
            let _ = tell.send(kubelet.allocate_resources(&pod, &request).await);
        });
        self.allocating.insert(uid.clone());
        let outcome = async move {
            let lost = |_| Err(device_plugins::lost());
            (uid, told.await.unwrap_or_else(lost))
        };
        self.allocations.push(outcome.boxed());
    }

    fn handle_allocated(&mut self, uid: &str, outcome: Result<(), Rejection>) {
        let kubelet = self.kubelet.clone();
        let pod = kubelet.pods.get_pod_by_uid(uid);
        let Some(pod) = pod.filter(|_| self.allocating.remove(uid)) else {
            // It went meanwhile.
            self.allocating.remove(uid);
            spawn_helper("devices of a pod that went", async move {
                kubelet.free_devices().await
            });
            return;
        };
        // It may have been resized meanwhile, and its newest form is what starts. It keeps its devices.
        match outcome.map(|()| self.admit(&pod)) {
            Ok(Verdict::Admit) => kubelet.workers.update_pod(uid, Update::Pod(pod)),
            Ok(Verdict::Preempt(shortages)) => self.preempt(&pod, &shortages),
            Ok(Verdict::Wait) => self.postponed.push_back(uid.to_owned()),
            Ok(Verdict::Reject(rejection)) | Err(rejection) => kubelet.reject_pod(&pod, &rejection),
        }
    }

    fn is_undecided(&self, uid: &str) -> bool {
        self.allocating.contains(uid)
            || self.postponed.iter().any(|waiting| waiting == uid)
            || self.preempting.iter().any(|(waiting, _)| waiting == uid)
    }

    fn decide_no_more(&mut self, uid: &str) {
        self.allocating.remove(uid);
        self.postponed.retain(|waiting| waiting != uid);
        self.preempting.retain(|(waiting, _)| waiting != uid);
    }

    /// Ends the pods that make room for this one, which is decided on again when they are gone. It counts meanwhile: the room
    /// is nobody else's.
    fn preempt(&mut self, pod: &Arc<Pod>, shortages: &[Shortage]) {
        let active = self.others(pod::uid(pod));
        let victims = match preemption::victims(pod, &active, shortages) {
            Ok(victims) => victims,
            Err(error) => {
                let rejection = Rejection {
                    reason: preemption::UNEXPECTED.to_owned(),
                    message: error.to_string(),
                };
                return self.kubelet.reject_pod(pod, &rejection);
            }
        };
        let signal = shortages.first().map_or("", |short| &short.resource);
        for victim in &victims {
            tracing::info!(pod = %pod::format(victim), for_pod = %pod::format(pod), "preempting a pod to free resources");
            let (reason, message) = (preemption::REASON, preemption::MESSAGE);
            let recorder = &self.kubelet.recorder;
            recorder.pod(victim, Type::Warning, reason, message.to_owned());
            let kill = Update::Kill {
                pod: victim.clone(),
                grace_period_seconds: None,
                forced: Some(ForcedFailure {
                    reason: reason.to_owned(),
                    message: message.to_owned(),
                    disruption: Some(preemption::CONDITION_MESSAGE.to_owned()),
                    spares_success: false,
                }),
            };
            self.kubelet.workers.update_pod(pod::uid(victim), kill);
            metrics::PREEMPTIONS.with_label_values(&[signal]).inc();
        }
        let ending = victims.iter().map(|p| pod::uid(p).to_owned()).collect();
        self.preempting.push((pod::uid(pod).to_owned(), ending));
    }

    /// A pod ended: decides on those who waited for it and no other.
    async fn handle_room_made(&mut self, ended: &str) {
        for (_, victims) in &mut self.preempting {
            victims.remove(ended);
        }
        let waiting = std::mem::take(&mut self.preempting);
        let (ready, waiting) = waiting.into_iter().partition(|(_, v)| v.is_empty());
        self.preempting = waiting;
        let ready: Vec<(String, BTreeSet<String>)> = ready;
        for (uid, _) in ready {
            if let Some(pod) = self.kubelet.pods.get_pod_by_uid(&uid) {
                self.handle_pod_addition(pod).await;
            }
        }
    }

    /// Every other pod that counts, with what it was granted.
    fn others(&self, uid: &str) -> Vec<Arc<Pod>> {
        let postponed = |p: &Arc<Pod>| self.postponed.iter().any(|w| w == pod::uid(p));
        self.kubelet
            .active_pods()
            .into_iter()
            .filter(|p| pod::uid(p) != uid && !postponed(p))
            .collect()
    }

    fn admit(&self, pod: &Arc<Pod>) -> Verdict {
        let kubelet = &self.kubelet;
        let active = self.others(pod::uid(pod));
        // After a restart: with what it was granted, not with a resize that waits.
        let pod = &kubelet.allocation.granted(pod);
        let node_object = kubelet.node.node.load();
        let node: &Node = node_object.as_deref().unwrap_or(&kubelet.node.initial);
        let verdict = decide(
            pod,
            &AdmissionInput {
                node,
                allocatable: &kubelet.node.allocatable.load(),
                active: &active,
                allowed_unsafe_sysctls: &kubelet.config.allowed_unsafe_sysctls,
                apparmor: kubelet.security.apparmor,
                memory_pressure: kubelet.node.under_pressure("MemoryPressure"),
                declared_features: &kubelet.declared_features,
                disk_pressure: kubelet.node.under_pressure("DiskPressure"),
                pid_pressure: kubelet.node.under_pressure("PIDPressure"),
                is_of_plugin: &|resource| kubelet.devices.is_of_plugin(resource),
            },
            kubelet.node.is_read(),
        );
        match kubelet.node.is_shutting_down() {
            true => node_shutdown::admit(verdict),
            false => verdict,
        }
    }

    async fn handle_pod_remove(&mut self, pod: &Arc<Pod>) {
        let kubelet = self.kubelet.clone();
        kubelet.pods.remove_pod(pod);
        let uid = pod::uid(pod);
        if pod::is_mirror(pod) {
            if let Some(owner) = kubelet.pods.get_pod_by_mirror_pod(pod) {
                kubelet.workers.wake(pod::uid(&owner));
            }
            return;
        }
        self.adopted.remove(uid);
        self.decide_no_more(uid);
        if kubelet.workers.is_finished(uid) {
            return self.end_or_restart(uid).await;
        }
        if kubelet.workers.status(uid).is_some() {
            let kill = Update::Kill {
                pod: pod.clone(),
                grace_period_seconds: None,
                forced: None,
            };
            kubelet.workers.update_pod(uid, kill);
        }
        if pod::is_static(pod) {
            // Its mirror has no owner any longer.
            self.housekeeping();
        }
    }

    fn handle_probe(&self, update: ProbeUpdate) {
        let kubelet = &self.kubelet;
        let Some(pod) = kubelet.pods.get_pod_by_uid(&update.pod_uid) else {
            return;
        };
        let results = kubelet.probes.results();
        // As it is now; the container is gone otherwise.
        let Some(result) = results.get(update.probe_type, &update.container_id) else {
            return;
        };
        let passed = result == ProbeResult::Success;
        match update.probe_type {
            ProbeType::Liveness if passed => return,
            ProbeType::Liveness => {}
            ProbeType::Readiness => {
                kubelet
                    .status
                    .set_container_readiness(&pod, &update.container_id, passed)
            }
            ProbeType::Startup => {
                kubelet
                    .status
                    .set_container_startup(&pod, &update.container_id, passed);
                if passed {
                    kubelet.probes.trigger_after_startup(&update.pod_uid);
                }
            }
        }
        kubelet.workers.wake(&update.pod_uid);
    }

    fn handle_objects(&self, uid: String) {
        let Some(pod) = self.kubelet.pods.get_pod_by_uid(&uid) else {
            return;
        };
        if self.kubelet.workers.is_termination_requested(&uid) {
            return;
        }
        let kubelet = self.kubelet.clone();
        spawn_helper("refresh of a pod's volumes", async move {
            if let Err(error) = kubelet.volumes.refresh_pod(&pod).await {
                tracing::warn!(pod = %pod::format(&pod), %error, "failed to refresh the pod's volumes");
            }
            // A container may wait for just this object.
            kubelet.workers.wake(&uid);
        });
    }
}

fn ended(pod: &Pod) -> bool {
    pod::is_deleted(pod) || pod::is_terminal_phase(pod::phase(pod))
}

/// Is there anything in the new version that the kubelet did not write itself?
fn differs(old: &Pod, new: &Pod) -> bool {
    let foreign = |p: &Pod| {
        let conditions: Vec<_> = p
            .status
            .iter()
            .flat_map(|s| s.conditions.iter().flatten())
            .filter(|c| !crate::status::conditions::KUBELET_CONDITIONS.contains(&c.type_.as_str()))
            .cloned()
            .collect();
        (conditions, pod::is_terminal_phase(pod::phase(p)))
    };
    let annotations = |p: &Pod| {
        let mut a = p.metadata.annotations.clone().unwrap_or_default();
        a.remove(pod::CONFIG_FIRST_SEEN_ANNOTATION);
        a
    };
    old.spec != new.spec
        || old.metadata.labels != new.metadata.labels
        || annotations(old) != annotations(new)
        || old.metadata.deletion_timestamp != new.metadata.deletion_timestamp
        || old.metadata.deletion_grace_period_seconds != new.metadata.deletion_grace_period_seconds
        || foreign(old) != foreign(new)
}

#[cfg(test)]
mod tests;
