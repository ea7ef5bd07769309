//! The shell: Pods, claims, volumes and drivers in, events out.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use component_base::events::EventType;
use component_base::informer::{Informer, InformerEvent, InformerOptions};
use component_base::shutdown::Shutdown;
use component_helpers::persistent_volume::{claim_ref, volume_name};
use component_helpers::pod;
use controller_runtime::{
    Action, ApiError, Controller, Executor, ObjectKey, Watches, WorkQueue, run_controller,
};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use k8s_openapi::api::storage::v1::CSIDriver;

use super::cache::{Conflict, Use, Volumes};
use super::label::{
    Labelled, RECURSIVE, change_policy, is_mounted, mount_labels, of_inline, of_persistent_volume,
};
use super::metrics;
use crate::context::{ControllerContext, Running, StartError};
use crate::persistentvolume_attach_detach::{Lookup, persistent_volume};
use crate::pods_by_claim;

const NAME: &str = "selinux-warning-controller";

pub(super) struct SeLinuxWarning {
    pub(super) pods: Informer<Pod>,
    pub(super) claims: Informer<PersistentVolumeClaim>,
    pub(super) volumes: Informer<PersistentVolume>,
    pub(super) drivers: Informer<CSIDriver>,
    pub(super) used: Arc<Mutex<Volumes>>,
    pub(super) queue: WorkQueue,
    pub(super) executor: Executor,
}

/// Builds the controller.
///
/// # Errors
/// When it gets no client.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let executor = context.executor(NAME, "selinux_warning").await?;
    let informers = &context.informers;
    let controller = Arc::new(SeLinuxWarning {
        pods: informers.informer(InformerOptions::default()),
        claims: informers.informer(InformerOptions::default()),
        volumes: informers.informer(InformerOptions::default()),
        drivers: informers.informer(InformerOptions::default()),
        used: Arc::default(),
        queue: context.queues.queue("selinux_warning"),
        executor,
    });
    metrics::register(&context.metrics, &controller.used)?;
    let watches = controller.watch(&context.shutdown);
    let queue = controller.queue.clone();
    Ok(run_controller(controller, queue, watches, 1, context.shutdown).boxed())
}

/// The uid of the claim a volume is bound to; `None` where the binding is not complete.
fn bound_to(volume: &PersistentVolume) -> Option<&str> {
    claim_ref(volume)?
        .uid
        .as_deref()
        .filter(|uid| !uid.is_empty())
}

fn takes_labels(driver: &CSIDriver) -> bool {
    driver.spec.se_linux_mount == Some(true)
}

impl SeLinuxWarning {
    pub(super) fn watch(self: &Arc<Self>, shutdown: &Shutdown) -> Watches {
        pods_by_claim::add_index(&self.pods);
        let mut watches = Watches::new(shutdown.clone());
        let this = self.clone();
        watches.on(&self.pods, move |event| {
            // All that matters of a Pod never changes, but that it ends; a namesake may hide in an update.
            let same = matches!(&event, InformerEvent::Updated { old, new }
                if pod::uid(old) == pod::uid(new) && pod::is_terminal(old) == pod::is_terminal(new));
            if !same {
                this.queue.add(ObjectKey::of(&**event.object()));
            }
        });
        let this = self.clone();
        watches.on(&self.claims, move |event| {
            let new = match &event {
                InformerEvent::Added(claim) => !volume_name(claim).is_empty(),
                InformerEvent::Updated { old, new } => {
                    volume_name(old) != volume_name(new) || phase(old) != phase(new)
                }
                InformerEvent::Deleted(_) => false,
            };
            if new {
                this.look_at_users(&ObjectKey::of(&**event.object()));
            }
        });
        let this = self.clone();
        watches.on(&self.volumes, move |event| {
            let new = match &event {
                InformerEvent::Added(volume) => bound_to(volume).is_some(),
                InformerEvent::Updated { old, new } => {
                    bound_to(new).is_some() && bound_to(old) != bound_to(new)
                }
                InformerEvent::Deleted(_) => false,
            };
            if let Some(claim) = claim_ref(event.object()).filter(|_| new) {
                let namespace = claim.namespace.clone().unwrap_or_default();
                let name = claim.name.clone().unwrap_or_default();
                this.look_at_users(&ObjectKey::new(namespace, name));
            }
        });
        let this = self.clone();
        watches.on(&self.drivers, move |event| {
            let changed = match &event {
                InformerEvent::Added(driver) | InformerEvent::Deleted(driver) => {
                    takes_labels(driver)
                }
                InformerEvent::Updated { old, new } => takes_labels(old) != takes_labels(new),
            };
            if changed {
                let driver = event.object().metadata.name.as_deref().unwrap_or_default();
                let users = this.used().pods_of_driver(driver);
                users.into_iter().for_each(|pod| this.queue.add(pod));
            }
        });
        watches
    }

    fn used(&self) -> MutexGuard<'_, Volumes> {
        self.used.lock().expect("no panic while the lock is held")
    }

    fn look_at_users(&self, claim: &ObjectKey) {
        for pod in pods_by_claim::users(&self.pods, claim) {
            self.queue.add(ObjectKey::of(&*pod));
        }
    }

    /// A volume of a Pod, if labels matter to it; `Err` when nothing can be said of it yet, and an event will come.
    fn labelled(&self, pod: &Pod, volume: &Volume) -> Result<Option<Labelled>, ()> {
        match persistent_volume(pod, volume, self) {
            Ok(Some(found)) => Ok(of_persistent_volume(&found)),
            Ok(None) => Ok(of_inline(volume)),
            Err(error) => {
                tracing::debug!(pod = pod::key(pod), volume = volume.name, %error, "Error processing volume for pod");
                Err(())
            }
        }
    }

    fn supports_labels(&self, labelled: &Labelled) -> bool {
        let Some(driver) = &labelled.driver else {
            return true;
        };
        let driver = self.drivers.get("", driver);
        driver.is_some_and(|driver| takes_labels(&driver))
    }

    /// Judges one volume of a Pod.
    ///
    /// DIFFERS: a Pod with two labels for one volume is told at each look, which are few; upstream fails, retries, and tells it again
    /// each time.
    async fn sync_volume(&self, key: &ObjectKey, pod: &Pod, volume: &Volume) {
        let Ok(labelled) = self.labelled(pod, volume) else {
            return;
        };
        let mut labels = mount_labels(pod, &volume.name);
        if labels.len() > 1 {
            let message = format!(
                "Volume {:?} is mounted twice with different SELinux labels inside this pod",
                volume.name
            );
            let reason = "MultipleSELinuxLabels";
            self.tell(Action::event(pod, EventType::Warning, reason, message))
                .await;
            return;
        }
        let Some(labelled) = labelled else {
            return;
        };
        let mut policy = change_policy(pod);
        let mut label = labels.pop_first().unwrap_or_default();
        if policy == RECURSIVE || !self.supports_labels(&labelled) {
            label.clear();
        }
        if label.is_empty() {
            // Without a label there is nothing to mount with.
            policy = RECURSIVE;
        }
        let used = Use {
            label,
            change_policy: policy.to_owned(),
        };
        let driver = labelled.driver.as_deref();
        let conflicts = self.used().add(&labelled.unique_name, driver, key, used);
        for conflict in &conflicts {
            self.report(conflict).await;
        }
    }

    async fn report(&self, conflict: &Conflict) {
        // One that is gone has no conflicts any more.
        if let Some(pod) = self.pods.get_key(&conflict.pod) {
            let (reason, message) = (conflict.property.reason(), conflict.message());
            self.tell(Action::event(&*pod, EventType::Normal, reason, message))
                .await;
        }
    }

    async fn tell(&self, event: Action) {
        // Recording only queues; it has no failure that anyone could act on.
        let _ = self.executor.execute(&event).await;
    }
}

fn phase(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.status.as_ref()?.phase.as_deref()
}

impl Lookup for SeLinuxWarning {
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

#[async_trait]
impl Controller for SeLinuxWarning {
    type Key = ObjectKey;
    type Error = ApiError;

    fn name(&self) -> &'static str {
        NAME
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, ApiError> {
        let pod = self.pods.get_key(key).filter(|pod| !pod::is_terminal(pod));
        let Some(pod) = pod else {
            self.used().remove(key);
            return Ok(None);
        };
        let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
        for volume in volumes.into_iter().flatten() {
            if is_mounted(&pod, &volume.name) {
                self.sync_volume(key, &pod, volume).await;
            }
        }
        Ok(None)
    }
}
