//! A cloud in memory that remembers what it was told, and fails on demand.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use cloud_provider::{
    Cloud, CloudError, InstanceMetadata, Instances, LoadBalancer, Route, Routes, Zone, Zones,
};
use component_base::events::RecordedEvent;
use k8s_openapi::api::core::v1::{LoadBalancerIngress, LoadBalancerStatus, Node, Service};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;

#[derive(Default)]
pub struct FakeCloud {
    /// By Node.
    pub instances: Mutex<BTreeMap<String, InstanceMetadata>>,
    pub shut_down: Mutex<BTreeSet<String>>,
    pub zone: Option<Zone>,
    /// By Service: the Nodes it leads to.
    pub balancers: Mutex<BTreeMap<String, Vec<String>>>,
    pub routes: Mutex<Vec<Route>>,
    /// What fails, by the method's name.
    pub failures: Mutex<BTreeMap<&'static str, CloudError>>,
    pub calls: Mutex<Vec<String>>,
    /// Something became free.
    pub freed: watch::Sender<u64>,
}

impl FakeCloud {
    fn call(&self, method: &'static str, about: &str) -> Result<(), CloudError> {
        self.calls.lock().unwrap().push(format!("{method} {about}"));
        match self.failures.lock().unwrap().get(method) {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    pub fn fail(&self, method: &'static str, error: CloudError) {
        self.failures.lock().unwrap().insert(method, error);
    }

    pub fn heal(&self) {
        self.failures.lock().unwrap().clear();
    }

    /// What was asked since last asked, in order.
    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
}

fn name(node: &Node) -> &str {
    node.metadata.name.as_deref().unwrap()
}

impl Cloud for FakeCloud {
    fn name(&self) -> &str {
        "fake"
    }
    fn instances(&self) -> Option<&dyn Instances> {
        Some(self)
    }
    fn zones(&self) -> Option<&dyn Zones> {
        self.zone.is_some().then_some(self)
    }
    fn load_balancer(&self) -> Option<&dyn LoadBalancer> {
        Some(self)
    }
    fn routes(&self) -> Option<&dyn Routes> {
        Some(self)
    }
}

#[async_trait]
impl Instances for FakeCloud {
    async fn exists(&self, node: &Node) -> Result<bool, CloudError> {
        self.call("exists", name(node))?;
        Ok(self.instances.lock().unwrap().contains_key(name(node)))
    }
    async fn is_shut_down(&self, node: &Node) -> Result<bool, CloudError> {
        self.call("is_shut_down", name(node))?;
        Ok(self.shut_down.lock().unwrap().contains(name(node)))
    }
    async fn metadata(&self, node: &Node) -> Result<Option<InstanceMetadata>, CloudError> {
        self.call("metadata", name(node))?;
        Ok(self.instances.lock().unwrap().get(name(node)).cloned())
    }
}

#[async_trait]
impl Zones for FakeCloud {
    async fn zone(&self, node: &Node) -> Result<Zone, CloudError> {
        self.call("zone", name(node))?;
        Ok(self.zone.clone().unwrap())
    }
}

fn key(service: &Service) -> String {
    let (namespace, name) = crate::service_lb::sync::key(service);
    format!("{namespace}/{name}")
}

fn status() -> LoadBalancerStatus {
    LoadBalancerStatus {
        ingress: Some(vec![LoadBalancerIngress {
            ip: Some("192.0.2.1".into()),
            ..LoadBalancerIngress::default()
        }]),
    }
}

#[async_trait]
impl LoadBalancer for FakeCloud {
    fn class(&self) -> Option<&'static str> {
        Some("example.com/fake")
    }
    fn freed(&self) -> Option<watch::Receiver<u64>> {
        Some(self.freed.subscribe())
    }
    async fn get(
        &self,
        _: &str,
        service: &Service,
    ) -> Result<Option<LoadBalancerStatus>, CloudError> {
        self.call("get", &key(service))?;
        let found = self.balancers.lock().unwrap().contains_key(&key(service));
        Ok(found.then(status))
    }
    async fn ensure(
        &self,
        cluster: &str,
        service: &Service,
        nodes: &[Arc<Node>],
    ) -> Result<LoadBalancerStatus, CloudError> {
        assert_eq!(cluster, "kubernetes");
        self.call("ensure", &key(service))?;
        let nodes = nodes.iter().map(|n| name(n).to_owned()).collect();
        self.balancers.lock().unwrap().insert(key(service), nodes);
        Ok(status())
    }
    async fn update(
        &self,
        _: &str,
        service: &Service,
        nodes: &[Arc<Node>],
    ) -> Result<(), CloudError> {
        self.call("update", &key(service))?;
        let nodes = nodes.iter().map(|n| name(n).to_owned()).collect();
        self.balancers.lock().unwrap().insert(key(service), nodes);
        Ok(())
    }
    async fn ensure_deleted(&self, _: &str, service: &Service) -> Result<(), CloudError> {
        self.call("ensure_deleted", &key(service))?;
        self.balancers.lock().unwrap().remove(&key(service));
        Ok(())
    }
}

#[async_trait]
impl Routes for FakeCloud {
    async fn list(&self, _: &str) -> Result<Vec<Route>, CloudError> {
        self.call("list", "")?;
        Ok(self.routes.lock().unwrap().clone())
    }
    async fn create(&self, _: &str, hint: &str, route: &Route) -> Result<(), CloudError> {
        self.call(
            "create",
            &format!("{hint} {} {}", route.target_node, route.destination_cidr),
        )?;
        self.routes.lock().unwrap().push(route.clone());
        Ok(())
    }
    async fn delete(&self, _: &str, route: &Route) -> Result<(), CloudError> {
        self.call(
            "delete",
            &format!("{} {}", route.target_node, route.destination_cidr),
        )?;
        self.routes.lock().unwrap().retain(|other| other != route);
        Ok(())
    }
}

/// `NAME TYPE REASON: MESSAGE` of each event since last asked.
pub fn told(events: &mut UnboundedReceiver<RecordedEvent>) -> Vec<String> {
    let mut told = Vec::new();
    while let Ok(event) = events.try_recv() {
        let name = event.regarding.name.unwrap();
        told.push(format!(
            "{name} {} {}: {}",
            event.event_type.as_str(),
            event.reason,
            event.message
        ));
    }
    told
}
