//! The cloud where there is none: load balancers' addresses from pools, which the nodes announce themselves.
//!
//! Owns which Service has which address. What brings packets to a node is `gantry-announcer` (`kubelet/announcer/`), which reads
//! the same file and Services' statuses; what brings them to endpoints is kube-proxy.
//!
//! ```yaml
//! pools:
//!   - name: lan
//!     addresses: [192.0.2.16-192.0.2.31, 192.0.2.128/26, 'fd00:1::100/120']
//!     autoAssign: true        # false: only for Services that ask for the pool or an address of it
//!     namespaces: [shop]      # whose Services may have them; all if left out
//!     interfaces: [eth0]      # links of the nodes; those whose subnet holds the address if left out
//!     nodes: {row: a}         # labels of Nodes that announce them; all Nodes if left out
//! ```
//!
//! The file is read again when it changes; while it is not right, nothing is given out, and nothing is taken away.
//! Of Nodes it knows what they say themselves: no Node is ever said to be gone. It has no routes: nodes that share a link get those
//! to each other's pods from the pod network.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{
    LoadBalancerIngress, LoadBalancerStatus, Node, NodeAddress, Service,
};
use tokio::sync::watch;

use crate::config::{ConfigError, Version, version};
use crate::{Cloud, CloudError, InstanceMetadata, Instances, LoadBalancer, ServiceLister};
use allocate::{Ledger, Pending, allocate};
use pools::Pools;

pub mod allocate;
pub mod pools;
pub mod service;
#[cfg(test)]
mod tests;

/// As in `--cloud-provider`.
pub const NAME: &str = "gantry";
/// The kubelet's `--node-ip`.
const PROVIDED_NODE_IP: &str = "alpha.kubernetes.io/provided-node-ip";

/// The cloud.
pub struct Gantry {
    path: PathBuf,
    read: Mutex<(Version, Arc<Pools>)>,
    services: OnceLock<ServiceLister>,
    pending: Mutex<Pending>,
    freed: watch::Sender<u64>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic while the lock is held")
}

impl Gantry {
    /// Reads the file.
    ///
    /// # Errors
    /// When it cannot be read, or is not right.
    pub fn open(path: &Path) -> Result<Self, ConfigError> {
        let read = (version(path)?, Arc::new(Pools::load(path)?));
        Ok(Self {
            path: path.to_owned(),
            read: Mutex::new(read),
            services: OnceLock::new(),
            pending: Mutex::default(),
            freed: watch::Sender::new(0),
        })
    }

    /// What the file says now.
    fn pools(&self) -> Result<Arc<Pools>, CloudError> {
        let failed = |error: ConfigError| CloudError::Failed(error.to_string());
        let now = version(&self.path).map_err(failed)?;
        let mut read = lock(&self.read);
        if read.0 != now {
            *read = (now, Arc::new(Pools::load(&self.path).map_err(failed)?));
            drop(read);
            // Whoever got nothing may get something of the new pools.
            self.tell_freed();
            return self.pools();
        }
        Ok(read.1.clone())
    }

    fn tell_freed(&self) {
        self.freed.send_modify(|times| *times += 1);
    }

    /// All Services.
    fn services(&self) -> Result<Vec<Arc<Service>>, CloudError> {
        let lister = self.services.get();
        let missing = || CloudError::Failed("no Services are known yet".into());
        Ok(lister.ok_or_else(missing)?())
    }

    /// Who has which address; what is pending of Services that are gone is forgotten.
    fn ledger(services: &[Arc<Service>], pending: &mut Pending, service: &Service) -> Ledger {
        let is_known = |uid: &String| {
            let known = services
                .iter()
                .any(|s| s.metadata.uid.as_ref() == Some(uid));
            known || service.metadata.uid.as_ref() == Some(uid)
        };
        pending.given.retain(|uid, _| is_known(uid));
        Ledger::read(services, pending)
    }

    fn uid(service: &Service) -> String {
        service.metadata.uid.clone().unwrap_or_default()
    }
}

fn status(addresses: &[std::net::IpAddr]) -> LoadBalancerStatus {
    let ingress = addresses.iter().map(|address| LoadBalancerIngress {
        ip: Some(address.to_string()),
        ip_mode: Some("VIP".into()),
        ..LoadBalancerIngress::default()
    });
    LoadBalancerStatus {
        ingress: Some(ingress.collect()),
    }
}

impl Cloud for Gantry {
    fn name(&self) -> &str {
        NAME
    }
    fn instances(&self) -> Option<&dyn Instances> {
        Some(self)
    }
    fn load_balancer(&self) -> Option<&dyn LoadBalancer> {
        Some(self)
    }
    fn use_services(&self, lister: ServiceLister) {
        // A process has one set of informers.
        let _ = self.services.set(lister);
    }
}

/// There is no inventory: a Node is what its kubelet says.
#[async_trait]
impl Instances for Gantry {
    async fn exists(&self, _: &Node) -> Result<bool, CloudError> {
        Ok(true)
    }

    async fn is_shut_down(&self, _: &Node) -> Result<bool, CloudError> {
        Ok(false)
    }

    async fn metadata(&self, node: &Node) -> Result<Option<InstanceMetadata>, CloudError> {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let known = node.status.as_ref().and_then(|s| s.addresses.clone());
        let mut addresses = known.unwrap_or_default();
        let annotations = node.metadata.annotations.as_ref();
        let provided = annotations.and_then(|a| a.get(PROVIDED_NODE_IP));
        for ip in provided.into_iter().flat_map(|text| text.split(',')) {
            if addresses.iter().all(|address| address.address != ip) {
                addresses.push(NodeAddress {
                    type_: "InternalIP".into(),
                    address: ip.to_owned(),
                });
            }
        }
        Ok(Some(InstanceMetadata {
            provider_id: format!("{NAME}://{name}"),
            node_addresses: addresses,
            ..InstanceMetadata::default()
        }))
    }
}

#[async_trait]
impl LoadBalancer for Gantry {
    fn class(&self) -> Option<&'static str> {
        Some(pools::CLASS)
    }

    fn freed(&self) -> Option<watch::Receiver<u64>> {
        Some(self.freed.subscribe())
    }

    async fn get(
        &self,
        _: &str,
        service: &Service,
    ) -> Result<Option<LoadBalancerStatus>, CloudError> {
        let services = self.services()?;
        let held = Self::ledger(&services, &mut lock(&self.pending), service).of(service);
        Ok(Some(held)
            .filter(|held| !held.is_empty())
            .map(|held| status(&held)))
    }

    async fn ensure(
        &self,
        _: &str,
        service: &Service,
        _: &[Arc<Node>],
    ) -> Result<LoadBalancerStatus, CloudError> {
        let pools = self.pools()?;
        let services = self.services()?;
        let mut pending = lock(&self.pending);
        let ledger = Self::ledger(&services, &mut pending, service);
        let given = allocate(&pools, &ledger, service)
            .map_err(|error| CloudError::Failed(error.to_string()))?;
        pending.given.insert(Self::uid(service), given.clone());
        drop(pending);
        if ledger.of(service).iter().any(|old| !given.contains(old)) {
            self.tell_freed();
        }
        Ok(status(&given))
    }

    /// Nodes see for themselves who announces what.
    async fn update(&self, _: &str, _: &Service, _: &[Arc<Node>]) -> Result<(), CloudError> {
        Ok(())
    }

    async fn ensure_deleted(&self, _: &str, service: &Service) -> Result<(), CloudError> {
        lock(&self.pending)
            .given
            .insert(Self::uid(service), Vec::new());
        self.tell_freed();
        Ok(())
    }
}
