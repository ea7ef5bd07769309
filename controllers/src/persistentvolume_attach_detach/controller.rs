//! The shell: watches into the state, rounds out of it, writes.
//!
//! One task runs the rounds and writes nodes' statuses; VolumeAttachments are created and deleted by tasks of their own.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use component_base::clock::Clock;
use component_base::events::{EventType, object_reference};
use component_base::informer::{Informer, InformerEvent, InformerOptions, ObjectKey};
use component_base::shutdown::Shutdown;
use component_helpers::csi_migration::InTreePlugin;
use component_helpers::persistent_volume::{annotation, claim_ref};
use component_helpers::pod;
use controller_runtime::{Action, ApiError, DeleteOptions, Executor, Watches};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use serde_json::json;
use tokio::sync::Notify;

use super::desired::Place;
use super::metrics::{self, Metrics};
use super::sync::{
    Call, FAILED_ATTACH, Round, State, View, abandon_detach, called, lost, sync, to_verify,
};
use super::volume::{Lookup, Volume, attach_required, split_unique_name};
use crate::context::{ControllerContext, Running, StartError};
use crate::options::AttachDetachOptions;
use crate::pods_by_claim;

const NAME: &str = "persistentvolume-attach-detach-controller";
/// On nodes whose kubelets leave attaching to this controller. Upstream: `ControllerManagedAttachAnnotation`.
const MANAGED: &str = "volumes.kubernetes.io/controller-managed-attach-detach";
/// At least so long between two rounds. Upstream: `ReconcilerLoopPeriod`.
const ROUND_PERIOD: Duration = Duration::from_millis(100);
/// Without any event, a round after this time.
const IDLE_PERIOD: Duration = Duration::from_secs(60);
/// After a node's status could not be written.
const RETRY: Duration = Duration::from_secs(1);

pub(super) struct AttachDetach {
    pub(super) pods: Informer<Pod>,
    pub(super) nodes: Informer<Node>,
    pub(super) claims: Informer<PersistentVolumeClaim>,
    pub(super) volumes: Informer<PersistentVolume>,
    pub(super) drivers: Informer<CSIDriver>,
    pub(super) attachments: Informer<VolumeAttachment>,
    pub(super) executor: Executor,
    pub(super) options: AttachDetachOptions,
    pub(super) clock: Clock,
    pub(super) state: Arc<Mutex<State>>,
    pub(super) changed: Notify,
    pub(super) metrics: Metrics,
}

impl Lookup for AttachDetach {
    fn claim(&self, key: &ObjectKey) -> Option<Arc<PersistentVolumeClaim>> {
        self.claims.get_key(key)
    }
    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
        self.volumes.get("", name)
    }
    fn driver(&self, name: &str) -> Option<Arc<CSIDriver>> {
        self.drivers.get("", name)
    }
}

impl View for AttachDetach {
    fn node(&self, name: &str) -> Option<Arc<Node>> {
        self.nodes.get("", name)
    }
    fn attachment(&self, name: &str) -> Option<Arc<VolumeAttachment>> {
        self.attachments.get("", name)
    }
}

/// Builds the controller.
///
/// # Errors
/// When it gets no client.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let executor = context
        .executor("attachdetach-controller", "attachdetach-controller")
        .await?;
    let informers = &context.informers;
    let controller = Arc::new(AttachDetach {
        pods: informers.informer(InformerOptions::default()),
        nodes: informers.informer(InformerOptions::default()),
        claims: informers.informer(InformerOptions::default()),
        volumes: informers.informer(InformerOptions::default()),
        drivers: informers.informer(InformerOptions::default()),
        attachments: informers.informer(InformerOptions::default()),
        executor,
        options: context.options.attach_detach.clone(),
        clock: context.clock.clone(),
        state: Arc::default(),
        changed: Notify::new(),
        metrics: Metrics::register(&context.metrics, context.storage_operations.clone())?,
    });
    pods_by_claim::add_index(&controller.pods);
    let watches = controller.watch(&context.shutdown);
    metrics::register(&context.metrics, &controller.state)?;
    Ok(controller.run(watches, context.shutdown).boxed())
}

impl AttachDetach {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics with it")
    }

    /// Puts events into the state.
    pub(super) fn watch(self: &Arc<Self>, shutdown: &Shutdown) -> Watches {
        let mut watches = Watches::new(shutdown.clone());
        let this = self.clone();
        watches.on(&self.pods, move |event| {
            this.refuse_inline(&event);
            match &event {
                InformerEvent::Deleted(pod) => this.lock().desired.remove(&ObjectKey::of(&**pod)),
                other => this.lock().desired.pod_changed(other.object(), &*this),
            }
            this.changed.notify_one();
        });
        let this = self.clone();
        watches.on(&self.nodes, move |event| this.node_event(&event));
        let this = self.clone();
        watches.on(&self.claims, move |event| {
            if !matches!(event, InformerEvent::Deleted(_)) {
                this.claim_changed(&ObjectKey::of(&**event.object()));
            }
        });
        let this = self.clone();
        watches.on(&self.volumes, move |event| {
            if let (Some(claim), false) = (
                claim_ref(event.object()),
                matches!(event, InformerEvent::Deleted(_)),
            ) {
                let namespace = claim.namespace.clone().unwrap_or_default();
                let name = claim.name.clone().unwrap_or_default();
                this.claim_changed(&ObjectKey::new(namespace, name));
            }
        });
        let this = self.clone();
        watches.on(&self.drivers, move |event| {
            // Only what it says of attaching matters.
            let same = matches!(&event, InformerEvent::Updated { old, new }
                if old.spec.attach_required == new.spec.attach_required);
            if !same {
                let pods = this.pods.list();
                let mut state = this.lock();
                for pod in pods
                    .iter()
                    .filter(|pod| pod.spec.as_ref().is_some_and(|s| s.volumes.is_some()))
                {
                    state.desired.pod_changed(pod, &*this);
                }
                drop(state);
                this.changed.notify_one();
            }
        });
        let this = self.clone();
        watches.on(&self.attachments, move |_| this.changed.notify_one());
        watches
    }

    /// Tells a pod that comes to a node of volumes that nobody will attach.
    fn refuse_inline(&self, event: &InformerEvent<Pod>) {
        let came = match event {
            InformerEvent::Added(pod) => pod::node_name(pod).is_some(),
            InformerEvent::Updated { old, new } => {
                pod::node_name(old).is_none() && pod::node_name(new).is_some()
            }
            InformerEvent::Deleted(_) => false,
        };
        let pod = event.object();
        let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
        for volume in volumes.into_iter().flatten().filter(|_| came) {
            let Some(plugin) = InTreePlugin::of_inline(volume) else {
                continue;
            };
            let message = format!(
                "AttachVolume.Attach failed for volume {:?} : inline volumes of {} are not supported, use a PersistentVolumeClaim",
                volume.name,
                plugin.name()
            );
            let reason = FAILED_ATTACH;
            let reference = object_reference(&**pod);
            let recorder = self.executor.recorder();
            recorder.event(&reference, EventType::Warning, reason, reason, message);
        }
    }

    fn node_event(&self, event: &InformerEvent<Node>) {
        let node = event.object();
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let in_use = node
            .status
            .as_ref()
            .and_then(|s| s.volumes_in_use.as_deref());
        let mut state = self.lock();
        state.actual.set_in_use(name, in_use.unwrap_or_default());
        match event {
            InformerEvent::Deleted(_) => {
                // This node, and those before it that had something attached when they went.
                let exists = |node: &str| self.nodes.get("", node).is_some();
                state.desired.forget_absent(exists);
                state.actual.forget_absent(exists);
            }
            _ if annotation(&node.metadata, MANAGED).is_some() => state.desired.manage(name),
            _ => {}
        }
        if matches!(event, InformerEvent::Added(_)) {
            // A node that was made anew has lost what was written to it.
            let says = node
                .status
                .as_ref()
                .and_then(|s| s.volumes_attached.as_deref());
            if !state.actual.says_the_same(name, says.unwrap_or_default()) {
                state.actual.set_stale(name);
            }
        }
        drop(state);
        self.changed.notify_one();
    }

    fn claim_changed(&self, claim: &ObjectKey) {
        let users = pods_by_claim::users(&self.pods, claim);
        if users.is_empty() {
            return;
        }
        let mut state = self.lock();
        for pod in users {
            state.desired.pod_changed(&pod, self);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// What nodes and VolumeAttachments tell at the start. Upstream: `populateActualStateOfWorld`, `processVolumeAttachments`.
    pub(super) fn populate(&self) {
        let mut state = self.lock();
        for node in self.nodes.list() {
            state.actual.read_node(&node);
            if annotation(&node.metadata, MANAGED).is_some() {
                let name = node.metadata.name.as_deref().unwrap_or_default();
                state.desired.manage(name);
            }
        }
        for attachment in self.attachments.list() {
            let source = &attachment.spec.source.persistent_volume_name;
            let volume = source.as_ref().and_then(|name| self.volumes.get("", name));
            let Some(volume) = volume.as_deref().and_then(Volume::of) else {
                tracing::info!(
                    va = attachment.metadata.name,
                    "Skipping the va: no CSI volume is known for it"
                );
                continue;
            };
            if volume.driver != attachment.spec.attacher {
                continue;
            }
            let place = Place {
                volume: volume.unique_name(),
                node: attachment.spec.node_name.clone(),
            };
            state.actual.populate(&place, volume);
        }
        for pod in self.pods.list() {
            state.desired.pod_changed(&pod, self);
        }
    }

    pub(super) async fn run(self: Arc<Self>, mut watches: Watches, shutdown: Shutdown) {
        tracing::info!(controller = NAME, "Starting controller");
        if !watches.wait_for_sync().await {
            return;
        }
        self.populate();
        let mut last_verified = self.clock.monotonic();
        let rounds = async {
            loop {
                let next = self.round(&shutdown).await;
                let now = self.clock.monotonic();
                let period = self.options.sync_period;
                if period.is_some_and(|period| now.saturating_sub(last_verified) > period) {
                    self.verify().await;
                    last_verified = self.clock.monotonic();
                }
                self.clock.sleep(ROUND_PERIOD).await;
                let now = self.clock.monotonic();
                let idle = period.map_or(IDLE_PERIOD, |period| period.min(IDLE_PERIOD));
                let pause = next.map_or(idle, |at| at.saturating_sub(now).min(idle));
                tokio::select! {
                    () = self.changed.notified() => {}
                    () = self.clock.sleep(pause) => {}
                }
            }
        };
        shutdown.run_until(rounds).await;
        tracing::info!(controller = NAME, "Shutting down controller");
    }

    /// One round; when to look again.
    pub(super) async fn round(self: &Arc<Self>, shutdown: &Shutdown) -> Option<Duration> {
        let mut round = {
            let now = self.clock.monotonic();
            let disable_force_detach = self.options.disable_force_detach;
            sync(&mut self.lock(), &**self, disable_force_detach, now)
        };
        self.tell(&round).await;
        // What is to be detached must be taken off the nodes' statuses before.
        let failed = self.write_statuses().await;
        let mut next = round.next;
        if !failed.is_empty() {
            next = Some(self.clock.monotonic() + RETRY).min(next.or(Some(Duration::MAX)));
        }
        for (key, place, call) in round.calls.drain(..) {
            if matches!(call, Call::Detach { .. }) && failed.contains(&place.node) {
                abandon_detach(&mut self.lock(), &key, &place);
                continue;
            }
            let this = self.clone();
            let name = format!("call of {NAME}");
            let calling = async move {
                let result = this.call(&place, &call).await;
                let now = this.clock.monotonic();
                let round = called(&mut this.lock(), &key, result, now);
                this.tell(&round).await;
                this.changed.notify_one();
            };
            shutdown.spawn_guarded(name, calling);
        }
        next
    }

    async fn tell(&self, round: &Round) {
        for measured in &round.measured {
            self.metrics.record_operation(measured);
        }
        for event in &round.events {
            // Recording only queues; it has no failure that anyone could act on.
            let _ = self.executor.execute(event).await;
        }
    }

    /// Begins an operation; whether it is over already.
    async fn call(&self, place: &Place, call: &Call) -> Result<bool, String> {
        match call {
            Call::Attach(attachment) => {
                let name = attachment.metadata.name.as_deref().unwrap_or_default();
                if self.attachments.get("", name).is_some() {
                    return Ok(false);
                }
                match self.executor.execute(&Action::create(&**attachment)).await {
                    Ok(_) | Err(ApiError::AlreadyExists(_)) => Ok(false),
                    Err(error) => Err(format!("attacher.Attach failed: {error}")),
                }
            }
            Call::Detach { attachment, forced } => {
                match forced {
                    Some(forced) => {
                        tracing::info!(
                            volume = place.volume,
                            node = place.node,
                            ?forced,
                            "force detaching"
                        );
                        self.metrics.record_forced(*forced);
                    }
                    None => self.verify_safe(place).await?,
                }
                let options = DeleteOptions::default();
                let delete = Action::delete::<VolumeAttachment>("", attachment, options);
                match self.executor.execute(&delete).await {
                    // There was none: the executor answers with nothing.
                    Ok(answer) => Ok(answer.is_null()),
                    Err(error) => Err(format!(
                        "detacher.Detach failed to delete VolumeAttachment [{attachment}]: {error}"
                    )),
                }
            }
        }
    }

    /// Asks the API server whether the node uses the volume. Upstream: `verifyVolumeIsSafeToDetach`.
    async fn verify_safe(&self, place: &Place) -> Result<(), String> {
        let node = self.executor.get::<Node>("", &place.node).await;
        let node =
            node.map_err(|e| format!("DetachVolume failed fetching node from API server: {e}"))?;
        let in_use = node.and_then(|node| node.status?.volumes_in_use);
        if in_use.is_some_and(|in_use| in_use.contains(&place.volume)) {
            return Err("volume is still in use by node, according to Node status".to_owned());
        }
        Ok(())
    }

    /// Writes what nodes' statuses shall say; the nodes where that failed.
    async fn write_statuses(&self) -> Vec<String> {
        let nodes = self.lock().actual.stale();
        let mut failed = Vec::new();
        for node in nodes {
            let attached = self.lock().actual.take_report(&node);
            if self.nodes.get("", &node).is_none() {
                continue;
            }
            let patch = json!({ "status": { "volumesAttached": attached } });
            let action = Action::status_patch::<Node>("", &node, patch);
            match self.executor.execute(&action).await {
                Ok(_) | Err(ApiError::NotFound(_)) => {}
                Err(error) => {
                    tracing::warn!(node, %error, "Could not update node status; re-marking for update");
                    self.lock().actual.set_stale(&node);
                    failed.push(node);
                }
            }
        }
        failed
    }

    /// Compares what is taken for attached with the VolumeAttachments. Upstream: `VerifyVolumesAreAttached`.
    pub(super) async fn verify(&self) {
        let places = to_verify(&self.lock());
        for (place, name) in places {
            let driver = split_unique_name(&place.volume).map_or("", |(driver, _)| driver);
            if !attach_required(self, driver) {
                continue;
            }
            let attachment = match self.attachments.get("", &name) {
                Some(attachment) => Some(attachment),
                // The cache may not know it yet.
                None => match self.executor.get::<VolumeAttachment>("", &name).await {
                    Ok(found) => found.map(Arc::new),
                    Err(error) => {
                        tracing::warn!(va = name, %error, "VolumesAreAttached failed");
                        continue;
                    }
                },
            };
            let attached =
                attachment.is_some_and(|a| a.status.as_ref().is_some_and(|s| s.attached));
            if !attached {
                tracing::info!(
                    volume = place.volume,
                    node = place.node,
                    "VerifyVolumesAreAttached determined that the volume is no longer attached, therefore it was marked as detached"
                );
                lost(&mut self.lock(), &place);
                self.changed.notify_one();
            }
        }
    }
}
