//! [`InformerListers`]: plugins' cached reads, from the process's informers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use component_base::informer::{Factory, Informer, InformerOptions};
use dynamic_resources::Features;
use framework::{DeviceCache, Listers, PodGroupCache, VolumeCache};
use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{
    Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController, Service,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::{DeviceClass, DeviceTaintRule, ResourceClaim, ResourceSlice};
use k8s_openapi::api::scheduling::v1beta1::PodGroup;
use k8s_openapi::api::storage::v1::{
    CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment,
};

/// The kinds the scheduler watches.
#[derive(Clone)]
pub struct Informers {
    /// Pods that have not ended.
    pub pods: Informer<Pod>,
    /// Nodes.
    pub nodes: Informer<Node>,
    /// Namespaces, for namespace selectors.
    pub namespaces: Informer<Namespace>,
    /// Services, for default spreading.
    pub services: Informer<Service>,
    /// For default spreading.
    pub replication_controllers: Informer<ReplicationController>,
    /// For default spreading.
    pub replica_sets: Informer<ReplicaSet>,
    /// For default spreading.
    pub stateful_sets: Informer<StatefulSet>,
    /// For preemption.
    pub pod_disruption_budgets: Informer<PodDisruptionBudget>,
    /// What volumes are made of.
    pub storage: StorageInformers,
    /// Devices and claims to them.
    pub devices: DeviceInformers,
    /// Groups of pods; `None` with the gate `GenericWorkload` off.
    pub pod_groups: Option<Informer<PodGroup>>,
}

/// The kinds that go into the [`DeviceCache`].
#[derive(Clone)]
pub struct DeviceInformers {
    /// Claims.
    pub claims: Informer<ResourceClaim>,
    /// Devices.
    pub slices: Informer<ResourceSlice>,
    /// Classes.
    pub classes: Informer<DeviceClass>,
    /// Taints on devices; `None` with the gate `DRADeviceTaintRules` off.
    pub taint_rules: Option<Informer<DeviceTaintRule>>,
}

impl DeviceInformers {
    fn start(factory: &Factory, features: Features) -> Self {
        let all = InformerOptions::default;
        DeviceInformers {
            claims: factory.informer(all()),
            slices: factory.informer(all()),
            classes: factory.informer(all()),
            taint_rules: features.device_taint_rules.then(|| factory.informer(all())),
        }
    }

    async fn wait_for_sync(&self) -> bool {
        let rules = async {
            match &self.taint_rules {
                Some(rules) => rules.wait_for_sync().await,
                None => true,
            }
        };
        let waits = tokio::join!(
            self.claims.wait_for_sync(),
            self.slices.wait_for_sync(),
            self.classes.wait_for_sync(),
            rules,
        );
        waits.0 && waits.1 && waits.2 && waits.3
    }

    fn has_synced(&self) -> bool {
        self.claims.has_synced()
            && self.slices.has_synced()
            && self.classes.has_synced()
            && self.taint_rules.as_ref().is_none_or(Informer::has_synced)
    }
}

/// The kinds that go into the [`VolumeCache`].
#[derive(Clone)]
pub struct StorageInformers {
    /// Volumes.
    pub volumes: Informer<PersistentVolume>,
    /// Claims.
    pub claims: Informer<PersistentVolumeClaim>,
    /// Classes.
    pub classes: Informer<StorageClass>,
    /// What drivers say of nodes.
    pub csi_nodes: Informer<CSINode>,
    /// Drivers.
    pub csi_drivers: Informer<CSIDriver>,
    /// Where there is room.
    pub capacities: Informer<CSIStorageCapacity>,
    /// What is attached to nodes.
    pub attachments: Informer<VolumeAttachment>,
}

impl StorageInformers {
    fn start(factory: &Factory) -> Self {
        let all = InformerOptions::default;
        StorageInformers {
            volumes: factory.informer(all()),
            claims: factory.informer(all()),
            classes: factory.informer(all()),
            csi_nodes: factory.informer(all()),
            csi_drivers: factory.informer(all()),
            capacities: factory.informer(all()),
            attachments: factory.informer(all()),
        }
    }

    async fn wait_for_sync(&self) -> bool {
        let waits = tokio::join!(
            self.volumes.wait_for_sync(),
            self.claims.wait_for_sync(),
            self.classes.wait_for_sync(),
            self.csi_nodes.wait_for_sync(),
            self.csi_drivers.wait_for_sync(),
            self.capacities.wait_for_sync(),
            self.attachments.wait_for_sync(),
        );
        waits.0 && waits.1 && waits.2 && waits.3 && waits.4 && waits.5 && waits.6
    }

    fn has_synced(&self) -> bool {
        self.volumes.has_synced()
            && self.claims.has_synced()
            && self.classes.has_synced()
            && self.csi_nodes.has_synced()
            && self.csi_drivers.has_synced()
            && self.capacities.has_synced()
            && self.attachments.has_synced()
    }
}

impl Informers {
    /// Starts watching; groups of pods, too, if there are `pod_groups`.
    pub fn start(factory: &Factory, features: Features, pod_groups: bool) -> Self {
        let all = InformerOptions::default;
        Informers {
            pods: factory.informer(all().fields("status.phase!=Succeeded,status.phase!=Failed")),
            nodes: factory.informer(all()),
            namespaces: factory.informer(all()),
            services: factory.informer(all()),
            replication_controllers: factory.informer(all()),
            replica_sets: factory.informer(all()),
            stateful_sets: factory.informer(all()),
            pod_disruption_budgets: factory.informer(all()),
            storage: StorageInformers::start(factory),
            devices: DeviceInformers::start(factory, features),
            pod_groups: pod_groups.then(|| factory.informer(all())),
        }
    }

    /// Waits until all have listed once; false when the process ends before.
    pub async fn wait_for_sync(&self) -> bool {
        let groups = async {
            match &self.pod_groups {
                Some(groups) => groups.wait_for_sync().await,
                None => true,
            }
        };
        let waits = tokio::join!(
            self.pods.wait_for_sync(),
            self.nodes.wait_for_sync(),
            self.namespaces.wait_for_sync(),
            self.services.wait_for_sync(),
            self.replication_controllers.wait_for_sync(),
            self.replica_sets.wait_for_sync(),
            self.stateful_sets.wait_for_sync(),
            self.pod_disruption_budgets.wait_for_sync(),
            self.storage.wait_for_sync(),
            self.devices.wait_for_sync(),
            groups,
        );
        let rest = waits.5 && waits.6 && waits.7 && waits.8 && waits.9 && waits.10;
        waits.0 && waits.1 && waits.2 && waits.3 && waits.4 && rest
    }

    /// Have all listed once?
    pub fn has_synced(&self) -> bool {
        self.pods.has_synced()
            && self.nodes.has_synced()
            && self.namespaces.has_synced()
            && self.services.has_synced()
            && self.replication_controllers.has_synced()
            && self.replica_sets.has_synced()
            && self.stateful_sets.has_synced()
            && self.pod_disruption_budgets.has_synced()
            && self.storage.has_synced()
            && self.devices.has_synced()
            && self.pod_groups.as_ref().is_none_or(Informer::has_synced)
    }
}

/// Counts changes of kinds whose revision plugins ask for.
#[derive(Default)]
pub struct Revisions {
    /// Namespaces.
    pub namespaces: AtomicU64,
    /// Services.
    pub services: AtomicU64,
}

/// See the module.
pub struct InformerListers {
    informers: Informers,
    revisions: Arc<Revisions>,
    volumes: VolumeCache,
    devices: DeviceCache,
    pod_groups: PodGroupCache,
}

impl InformerListers {
    /// Reads from `informers`; whoever handles their events counts in `revisions` and tells the caches of volumes and devices.
    pub fn new(informers: Informers, revisions: Arc<Revisions>, features: Features) -> Self {
        InformerListers {
            pod_groups: PodGroupCache::new(informers.pod_groups.is_some()),
            informers,
            revisions,
            volumes: VolumeCache::new(),
            devices: DeviceCache::new(features),
        }
    }

    /// The same with the gate `TopologyAwareWorkloadScheduling` like this.
    pub fn with_topology_aware(self, on: bool) -> Self {
        InformerListers {
            pod_groups: self.pod_groups.with_topology_aware(on),
            ..self
        }
    }
}

impl Listers for InformerListers {
    fn namespace_labels(&self, namespace: &str) -> Arc<BTreeMap<String, String>> {
        let object = self.informers.namespaces.get("", namespace);
        Arc::new(
            object
                .and_then(|n| n.metadata.labels.clone())
                .unwrap_or_default(),
        )
    }
    fn namespaces(&self) -> Vec<String> {
        self.informers
            .namespaces
            .list()
            .iter()
            .filter_map(|n| n.metadata.name.clone())
            .collect()
    }
    fn namespaces_revision(&self) -> u64 {
        self.revisions.namespaces.load(Ordering::Acquire)
    }
    fn pod_disruption_budgets(&self) -> Vec<Arc<PodDisruptionBudget>> {
        self.informers.pod_disruption_budgets.list()
    }
    fn services(&self, namespace: &str) -> Vec<Arc<Service>> {
        self.informers.services.list_namespace(namespace)
    }
    fn services_revision(&self) -> u64 {
        self.revisions.services.load(Ordering::Acquire)
    }
    fn replication_controller(
        &self,
        namespace: &str,
        name: &str,
    ) -> Option<Arc<ReplicationController>> {
        self.informers.replication_controllers.get(namespace, name)
    }
    fn replica_set(&self, namespace: &str, name: &str) -> Option<Arc<ReplicaSet>> {
        self.informers.replica_sets.get(namespace, name)
    }
    fn stateful_set(&self, namespace: &str, name: &str) -> Option<Arc<StatefulSet>> {
        self.informers.stateful_sets.get(namespace, name)
    }
    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.informers.pods.get(namespace, name)
    }
    fn node(&self, name: &str) -> Option<Arc<Node>> {
        self.informers.nodes.get("", name)
    }
    fn volumes(&self) -> &VolumeCache {
        &self.volumes
    }
    fn devices(&self) -> &DeviceCache {
        &self.devices
    }
    fn pod_groups(&self) -> &PodGroupCache {
        &self.pod_groups
    }
}
