//! A cloud that is a file: machines and load balancers that somebody looks after by hand. The example to begin a provider from.
//!
//! ```yaml
//! instances:
//!   - node: node-1                        # the Node's name
//!     providerID: inventory://rack-7/12   # inventory://NODE if left out
//!     instanceType: r640
//!     zone: rack-7
//!     region: cellar
//!     addresses: [{type: InternalIP, address: 10.0.0.1}]
//!     labels: {example.com/row: "3"}
//!     shutDown: true                      # it is known, and off
//! loadBalancers:                          # what the boxes were told by hand
//!   - service: shop/front
//!     ingress: [{ip: 192.0.2.7}]
//! ```
//!
//! The file is read again when it changes. While it is not right nothing is known of any machine, and nothing is deleted for it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{
    LoadBalancerIngress, LoadBalancerStatus, Node, NodeAddress, Service,
};
use serde::Deserialize;

use crate::config::{ConfigError, Version, load, version};
use crate::{Cloud, CloudError, InstanceMetadata, Instances, LoadBalancer};

/// As in `--cloud-provider`.
pub const NAME: &str = "inventory";

/// One machine.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Instance {
    node: String,
    #[serde(default, rename = "providerID")]
    provider_id: Option<String>,
    #[serde(default)]
    instance_type: String,
    #[serde(default)]
    zone: String,
    #[serde(default)]
    region: String,
    #[serde(default)]
    addresses: Vec<Address>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    shut_down: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Address {
    #[serde(rename = "type")]
    type_: String,
    address: String,
}

/// One Service's place on a box.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Balanced {
    service: String,
    ingress: Vec<LoadBalancerIngress>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct File {
    instances: Vec<Instance>,
    load_balancers: Vec<Balanced>,
}

impl Instance {
    fn provider_id(&self) -> String {
        let default = || format!("{NAME}://{}", self.node);
        self.provider_id.clone().unwrap_or_else(default)
    }
}

fn check(path: &Path, file: &File) -> Result<(), ConfigError> {
    let invalid = |message: String| Err(ConfigError::invalid(path, message));
    let mut ids = BTreeMap::new();
    for (i, instance) in file.instances.iter().enumerate() {
        if instance.node.is_empty() {
            return invalid(format!("instances[{i}].node: must not be empty"));
        }
        if let Some(other) = ids.insert(instance.provider_id(), i) {
            let id = instance.provider_id();
            return invalid(format!(
                "instances[{i}].providerID: {id:?} is that of instances[{other}]"
            ));
        }
        if file.instances[..i].iter().any(|o| o.node == instance.node) {
            let node = &instance.node;
            return invalid(format!("instances[{i}].node: {node:?} is there twice"));
        }
        for (j, address) in instance.addresses.iter().enumerate() {
            let is_ip = matches!(&*address.type_, "InternalIP" | "ExternalIP");
            let is_name = matches!(&*address.type_, "Hostname" | "InternalDNS" | "ExternalDNS");
            if !is_ip && !is_name {
                let type_ = &address.type_;
                return invalid(format!(
                    "instances[{i}].addresses[{j}].type: {type_:?} is no type of addresses"
                ));
            }
            if is_ip && address.address.parse::<std::net::IpAddr>().is_err() {
                let address = &address.address;
                return invalid(format!(
                    "instances[{i}].addresses[{j}].address: {address:?} is no IP address"
                ));
            }
        }
    }
    for (i, balanced) in file.load_balancers.iter().enumerate() {
        let service = &balanced.service;
        if service.split('/').filter(|part| !part.is_empty()).count() != 2 {
            return invalid(format!(
                "loadBalancers[{i}].service: {service:?} is not NAMESPACE/NAME"
            ));
        }
    }
    Ok(())
}

/// The cloud.
pub struct Inventory {
    path: PathBuf,
    read: Mutex<(Version, Arc<File>)>,
}

impl Inventory {
    /// Reads the file.
    ///
    /// # Errors
    /// When it cannot be read, or is not right.
    pub fn open(path: &Path) -> Result<Self, ConfigError> {
        let read = (version(path)?, Arc::new(parse(path)?));
        Ok(Self {
            path: path.to_owned(),
            read: Mutex::new(read),
        })
    }

    /// What the file says now.
    fn file(&self) -> Result<Arc<File>, CloudError> {
        let failed = |error: ConfigError| CloudError::Failed(error.to_string());
        let now = version(&self.path).map_err(failed)?;
        let mut read = self.read.lock().expect("no panic while the lock is held");
        if read.0 != now {
            *read = (now, Arc::new(parse(&self.path).map_err(failed)?));
        }
        Ok(read.1.clone())
    }

    /// The machine of a Node: by its provider id, else by its name.
    fn instance(&self, node: &Node) -> Result<Option<Instance>, CloudError> {
        let file = self.file()?;
        let id = node.spec.as_ref().and_then(|s| s.provider_id.as_deref());
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let found = file.instances.iter().find(|instance| match id {
            Some(id) if !id.is_empty() => instance.provider_id() == id,
            _ => instance.node == name,
        });
        Ok(found.cloned())
    }

    fn balanced(&self, service: &Service) -> Result<Option<LoadBalancerStatus>, CloudError> {
        let meta = &service.metadata;
        let key = format!(
            "{}/{}",
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default()
        );
        let file = self.file()?;
        let found = file.load_balancers.iter().find(|b| b.service == key);
        Ok(found.map(|balanced| LoadBalancerStatus {
            ingress: Some(balanced.ingress.clone()),
        }))
    }
}

fn parse(path: &Path) -> Result<File, ConfigError> {
    let file: File = load(path)?;
    check(path, &file)?;
    Ok(file)
}

impl Cloud for Inventory {
    fn name(&self) -> &str {
        NAME
    }
    fn instances(&self) -> Option<&dyn Instances> {
        Some(self)
    }
    fn load_balancer(&self) -> Option<&dyn LoadBalancer> {
        Some(self)
    }
}

#[async_trait]
impl Instances for Inventory {
    async fn exists(&self, node: &Node) -> Result<bool, CloudError> {
        Ok(self.instance(node)?.is_some())
    }

    async fn is_shut_down(&self, node: &Node) -> Result<bool, CloudError> {
        Ok(self.instance(node)?.is_some_and(|i| i.shut_down))
    }

    async fn metadata(&self, node: &Node) -> Result<Option<InstanceMetadata>, CloudError> {
        let Some(instance) = self.instance(node)? else {
            return Err(CloudError::InstanceNotFound);
        };
        let addresses = instance.addresses.iter().map(|address| NodeAddress {
            type_: address.type_.clone(),
            address: address.address.clone(),
        });
        Ok(Some(InstanceMetadata {
            provider_id: instance.provider_id(),
            node_addresses: addresses.collect(),
            instance_type: instance.instance_type,
            zone: instance.zone,
            region: instance.region,
            additional_labels: instance.labels,
        }))
    }
}

/// The boxes are told by hand; here it is only looked up what they were told.
#[async_trait]
impl LoadBalancer for Inventory {
    async fn get(
        &self,
        _: &str,
        service: &Service,
    ) -> Result<Option<LoadBalancerStatus>, CloudError> {
        self.balanced(service)
    }

    async fn ensure(
        &self,
        _: &str,
        service: &Service,
        _: &[Arc<Node>],
    ) -> Result<LoadBalancerStatus, CloudError> {
        let path = self.path.display();
        let missing = || CloudError::Failed(format!("the Service is not in the inventory {path}"));
        self.balanced(service)?.ok_or_else(missing)
    }

    async fn update(&self, _: &str, _: &Service, _: &[Arc<Node>]) -> Result<(), CloudError> {
        Ok(())
    }

    async fn ensure_deleted(&self, _: &str, _: &Service) -> Result<(), CloudError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    const FILE: &str = "instances:
  - {node: a, instanceType: big, zone: z, region: r, labels: {example.com/row: '3'}, addresses: [{type: InternalIP, address: 10.0.0.1}]}
  - {node: b, providerID: 'inventory://shelf/2', shutDown: true}
loadBalancers:
  - {service: shop/front, ingress: [{ip: 192.0.2.7}]}
";

    fn node(name: &str, id: Option<&str>) -> Node {
        from_value(json!({ "metadata": { "name": name }, "spec": { "providerID": id } })).unwrap()
    }

    fn inventory(text: &str) -> (tempfile::NamedTempFile, Result<Inventory, ConfigError>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let opened = Inventory::open(file.path());
        (file, opened)
    }

    #[tokio::test]
    async fn machines_of_the_file() {
        let (_file, cloud) = inventory(FILE);
        let cloud = cloud.unwrap();
        let metadata = cloud.metadata(&node("a", None)).await.unwrap().unwrap();
        let expect = json!({ "providerID": "inventory://a", "instanceType": "big", "zone": "z", "region": "r",
            "nodeAddresses": [{ "type": "InternalIP", "address": "10.0.0.1" }], "additionalLabels": { "example.com/row": "3" } });
        assert_eq!(serde_json::to_value(metadata).unwrap(), expect);
        // The provider id says more than the name.
        let moved = node("a", Some("inventory://shelf/2"));
        assert_eq!(cloud.is_shut_down(&moved).await, Ok(true));
        assert_eq!(
            cloud.is_shut_down(&node("a", Some("inventory://a"))).await,
            Ok(false)
        );
        assert_eq!(cloud.exists(&node("c", None)).await, Ok(false));
        assert_eq!(
            cloud.metadata(&node("c", None)).await,
            Err(CloudError::InstanceNotFound)
        );
        let service = |name: &str| {
            from_value(json!({ "metadata": { "namespace": "shop", "name": name } })).unwrap()
        };
        let status = cloud.ensure("", &service("front"), &[]).await.unwrap();
        assert_eq!(status.ingress.unwrap()[0].ip.as_deref(), Some("192.0.2.7"));
        assert!(cloud.ensure("", &service("back"), &[]).await.is_err());
        assert_eq!(cloud.get("", &service("back")).await, Ok(None));
    }

    #[tokio::test]
    async fn the_file_may_change() {
        let (file, cloud) = inventory(FILE);
        let cloud = cloud.unwrap();
        std::fs::write(file.path(), "instances: [{node: c}]").unwrap();
        assert_eq!(cloud.exists(&node("c", None)).await, Ok(true));
        assert_eq!(cloud.exists(&node("a", None)).await, Ok(false));
        // While it is not right, no machine is said to be gone.
        std::fs::write(file.path(), "instances: [{nodes: c}]").unwrap();
        let error = cloud
            .exists(&node("a", None))
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("nodes"), "{error}");
        std::fs::remove_file(file.path()).unwrap();
        assert!(cloud.exists(&node("a", None)).await.is_err());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expect) in [
            (
                "instances: [{node: ''}]",
                "instances[0].node: must not be empty",
            ),
            (
                "instances: [{node: a}, {node: a, providerID: x}]",
                "instances[1].node: \"a\" is there twice",
            ),
            (
                "instances: [{node: a, providerID: x}, {node: b, providerID: x}]",
                "instances[1].providerID: \"x\" is that of instances[0]",
            ),
            (
                "instances: [{node: a, addresses: [{type: IP, address: '::1'}]}]",
                "instances[0].addresses[0].type: \"IP\" is no type of addresses",
            ),
            (
                "instances: [{node: a, addresses: [{type: InternalIP, address: x}]}]",
                "instances[0].addresses[0].address: \"x\" is no IP address",
            ),
            (
                "loadBalancers: [{service: front, ingress: []}]",
                "loadBalancers[0].service: \"front\" is not NAMESPACE/NAME",
            ),
            ("instances: [{node: a, color: red}]", "color"),
            ("[", ""),
        ] {
            let (file, opened) = inventory(text);
            let error = opened.err().expect(text).to_string();
            let name = file.path().display().to_string();
            assert!(
                error.starts_with(&name) && error.contains(expect),
                "{error}"
            );
        }
    }
}
