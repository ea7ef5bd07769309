//! What CSI drivers say of this node, in the API: the CSINode object, and the Node's labels of topology and annotation of node IDs.
//!
//! Owns: those, and only this kubelet's drivers in them. The functions at the top are pure; [`NodeInfoManager`] writes.
//! Upstream: pkg/volume/csi/nodeinfomanager, csi_node_updater.go, v1.37.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use component_base::informer::{Informer, InformerEvent};
use component_helpers::csi_migration::{InTreePlugin, MIGRATED_PLUGINS_ANNOTATION};
use csi::registration::{Handler, HandlerError};
use csi::{Drivers, NodeInfo};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{
    CSIDriver, CSINode, CSINodeDriver, CSINodeSpec, VolumeNodeResources,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// On a Node: a JSON object from drivers to what they call the node.
const NODE_ID_ANNOTATION: &str = "csi.volume.kubernetes.io/nodeid";
/// Upstream: `updateBackoff`.
const WRITE_TRIES: u32 = 4;
const WRITE_PAUSE: Duration = Duration::from_millis(10);
const WRITE_FACTOR: u32 = 5;
/// Until the API server is there; upstream: `waitForAPIServerForever`.
const START_RETRY: Duration = Duration::from_secs(1);

/// Why the API does not say what a driver said.
#[derive(Debug, thiserror::Error)]
pub enum CsiNodeError {
    #[error("error adding CSI driver node info: driverNodeID must not be empty")]
    NoNodeId,
    #[error(
        "detected topology value collision: driver reported {key:?}:{wanted:?} but existing label is {key:?}:{found:?}"
    )]
    Collision {
        key: String,
        wanted: String,
        found: String,
    },
    #[error(
        "failed to parse node's {NODE_ID_ANNOTATION:?} annotation value ({value:?}) err={source}"
    )]
    Annotation {
        value: String,
        #[source]
        source: serde_json::Error,
    },
    #[error(
        "CSINode {name:?} was owned by different node (oldNodeID={found:?}, newNodeID={wanted:?}), deleted it"
    )]
    OtherNode {
        name: String,
        found: String,
        wanted: String,
    },
    #[error("error updating {what}: {source}")]
    Api {
        what: &'static str,
        #[source]
        source: kube::Error,
    },
}

fn api(what: &'static str) -> impl Fn(kube::Error) -> CsiNodeError {
    move |source| CsiNodeError::Api { what, source }
}

/// Says that this kubelet has no plugins of its own for what has moved to drivers. Returns whether that is new.
fn set_migration_annotation(node: &mut CSINode) -> bool {
    let names: BTreeSet<&str> = InTreePlugin::ALL.iter().map(|p| p.name()).collect();
    let annotations = node.metadata.annotations.get_or_insert_default();
    let found = annotations.get(MIGRATED_PLUGINS_ANNOTATION);
    let found: BTreeSet<&str> = found
        .into_iter()
        .flat_map(|list| list.split(','))
        .filter(|name| !name.is_empty())
        .collect();
    if found == names {
        return false;
    }
    let list: Vec<&str> = names.into_iter().collect();
    annotations.insert(MIGRATED_PLUGINS_ANNOTATION.to_owned(), list.join(","));
    true
}

/// A node's first.
fn new_csi_node(name: &str, uid: &str) -> CSINode {
    let mut node = CSINode {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Node".to_owned(),
                name: name.to_owned(),
                uid: uid.to_owned(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: CSINodeSpec { drivers: vec![] },
        ..CSINode::default()
    };
    set_migration_annotation(&mut node);
    node
}

/// The UID of another Node of the name, which had this CSINode. `None`: it is this node's.
fn other_owner(node: &CSINode, name: &str, uid: &str) -> Option<String> {
    let owners = node.metadata.owner_references.iter().flatten();
    let nodes: Vec<_> = owners.filter(|owner| owner.kind == "Node").collect();
    if nodes.iter().any(|o| o.name == name && o.uid == uid) {
        return None;
    }
    Some(nodes.last().map(|o| o.uid.clone()).unwrap_or_default())
}

/// Puts the driver in. Returns whether anything is new.
fn install(node: &mut CSINode, driver: &str, info: &NodeInfo) -> bool {
    let count = match info.max_volumes {
        ..=-1 => {
            tracing::error!(
                driver,
                limit = info.max_volumes,
                "Invalid attach limit value cannot be added to CSINode object"
            );
            None
        }
        0 => None,
        limit => Some(i32::try_from(limit).unwrap_or(i32::MAX)),
    };
    let keys: Vec<String> = info.topology.keys().cloned().collect();
    let wanted = CSINodeDriver {
        name: driver.to_owned(),
        node_id: info.node_id.clone(),
        topology_keys: Some(keys).filter(|k| !k.is_empty()),
        allocatable: count.map(|count| VolumeNodeResources { count: Some(count) }),
    };
    let sorted = |d: &CSINodeDriver| {
        let keys = d.topology_keys.iter().flatten().cloned();
        let count = d.allocatable.as_ref().and_then(|a| a.count);
        (d.node_id.clone(), keys.collect::<BTreeSet<_>>(), count)
    };
    let drivers = &mut node.spec.drivers;
    let same = drivers
        .iter()
        .any(|d| d.name == driver && sorted(d) == sorted(&wanted));
    if !same {
        drivers.retain(|d| d.name != driver);
        drivers.push(wanted);
    }
    let annotated = set_migration_annotation(node);
    !same || annotated
}

/// Takes the driver out. Returns whether it was in.
fn uninstall(node: &mut CSINode, driver: &str) -> bool {
    let before = node.spec.drivers.len();
    node.spec.drivers.retain(|d| d.name != driver);
    node.spec.drivers.len() != before
}

/// What to write to the Node so that it has the driver's name for it and its topology; `None` for `info`: the driver went.
/// `None`: nothing.
fn node_patch(
    node: &Node,
    driver: &str,
    info: Option<&NodeInfo>,
) -> Result<Option<Value>, CsiNodeError> {
    let annotations = node.metadata.annotations.as_ref();
    let text = annotations.and_then(|a| a.get(NODE_ID_ANNOTATION));
    let text = text.filter(|t| !t.is_empty());
    let mut ids: BTreeMap<String, String> = match text {
        Some(text) => serde_json::from_str::<Option<_>>(text)
            .map_err(|source| CsiNodeError::Annotation {
                value: text.clone(),
                source,
            })?
            .unwrap_or_default(),
        None => BTreeMap::new(),
    };
    let changed = match info {
        Some(info) => {
            let old = ids.insert(driver.to_owned(), info.node_id.clone());
            old.as_ref() != Some(&info.node_id)
        }
        None => ids.remove(driver).is_some(),
    };
    let mut metadata = serde_json::Map::new();
    if changed {
        let value = match ids.is_empty() {
            true => Value::Null,
            false => Value::String(json!(ids).to_string()),
        };
        metadata.insert(
            "annotations".to_owned(),
            json!({ NODE_ID_ANNOTATION: value }),
        );
    }
    let none = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&none);
    let mut new = BTreeMap::new();
    for (key, wanted) in info.iter().flat_map(|info| &info.topology) {
        match labels.get(key) {
            Some(found) if found == wanted => {}
            Some(found) => {
                return Err(CsiNodeError::Collision {
                    key: key.clone(),
                    wanted: wanted.clone(),
                    found: found.clone(),
                });
            }
            None => {
                new.insert(key, wanted);
            }
        }
    }
    if !new.is_empty() {
        metadata.insert("labels".to_owned(), json!(new));
    }
    Ok((!metadata.is_empty()).then(|| json!({ "metadata": metadata })))
}

/// Why the node is not ready before its CSINode is there; shared with what writes the status.
pub type StorageError = Arc<ArcSwap<Option<String>>>;

/// Drivers that took a pod's volume no more, to be asked at once how many the node takes. Bounded by the drivers.
#[derive(Clone, Default)]
pub struct Exhausted(Arc<(Mutex<BTreeSet<String>>, Notify)>);

impl Exhausted {
    pub fn tell(&self, driver: &str) {
        self.names().insert(driver.to_owned());
        self.0.1.notify_one();
    }

    fn names(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For one listener. Cancel-safe.
    async fn next(&self) -> String {
        loop {
            let name = self.names().pop_first();
            match name {
                Some(name) => return name,
                None => self.0.1.notified().await,
            }
        }
    }
}

/// Writes what drivers say.
pub struct NodeInfoManager {
    client: kube::Client,
    name: String,
    /// One write after the other.
    turn: tokio::sync::Mutex<()>,
    /// Told of every driver that came, once it can be used.
    came: Box<dyn Fn() + Send + Sync>,
}

impl NodeInfoManager {
    pub fn new(
        client: kube::Client,
        name: String,
        came: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        Self {
            client,
            name,
            turn: tokio::sync::Mutex::default(),
            came: Box::new(came),
        }
    }

    /// Makes the CSINode, however often it takes; the node is not ready before.
    pub async fn initialize(&self, error: StorageError, changed: &Notify) {
        loop {
            match self.write(|_| false).await {
                Ok(()) => break,
                Err(why) => {
                    tracing::error!(error = %why, "Failed to initialize CSINode");
                    error.store(Arc::new(Some(format!(
                        "failed to initialize CSINode: {why}"
                    ))));
                }
            }
            tokio::time::sleep(START_RETRY).await;
        }
        error.store(Arc::new(None));
        changed.notify_one();
    }

    /// Brings the CSINode up to date: it is made if need be, and always has the annotation.
    async fn write(&self, change: impl Fn(&mut CSINode) -> bool) -> Result<(), CsiNodeError> {
        retried(|| self.try_write(&change)).await
    }

    async fn try_write(&self, change: &impl Fn(&mut CSINode) -> bool) -> Result<(), CsiNodeError> {
        let _turn = self.turn.lock().await;
        let nodes: Api<Node> = Api::all(self.client.clone());
        let owner = nodes.get(&self.name).await.map_err(api("CSINode"))?;
        let uid = owner.metadata.uid.unwrap_or_default();
        let csi_nodes: Api<CSINode> = Api::all(self.client.clone());
        let found = csi_nodes
            .get_opt(&self.name)
            .await
            .map_err(api("CSINode"))?;
        let Some(mut node) = found else {
            let mut node = new_csi_node(&self.name, &uid);
            change(&mut node);
            let made = csi_nodes.create(&PostParams::default(), &node).await;
            return made.map(drop).map_err(api("CSINode"));
        };
        if let Some(found) = other_owner(&node, &self.name, &uid) {
            let deleted = csi_nodes.delete(&self.name, &DeleteParams::default()).await;
            deleted.map_err(api("CSINode"))?;
            return Err(CsiNodeError::OtherNode {
                name: self.name.clone(),
                found,
                wanted: uid,
            });
        }
        let annotated = set_migration_annotation(&mut node);
        if !change(&mut node) && !annotated {
            return Ok(());
        }
        let written = csi_nodes
            .replace(&self.name, &PostParams::default(), &node)
            .await;
        written.map(drop).map_err(api("CSINode"))
    }

    async fn write_node(&self, driver: &str, info: Option<&NodeInfo>) -> Result<(), CsiNodeError> {
        retried(|| async {
            let _turn = self.turn.lock().await;
            let nodes: Api<Node> = Api::all(self.client.clone());
            let node = nodes.get(&self.name).await.map_err(api("Node"))?;
            let Some(patch) = node_patch(&node, driver, info)? else {
                return Ok(());
            };
            let patch = Patch::Strategic(&patch);
            let written = nodes
                .patch_status(&self.name, &PatchParams::default(), &patch)
                .await;
            written.map(drop).map_err(api("Node"))
        })
        .await
    }

    /// Asks drivers anew how many volumes the node takes, as often as their `CSIDriver` says and when one took no more, until
    /// `shutdown`.
    pub async fn follow_limits(
        self: Arc<Self>,
        drivers: Arc<Drivers>,
        objects: Informer<CSIDriver>,
        exhausted: Exhausted,
        shutdown: CancellationToken,
    ) {
        let mut events = objects.subscribe();
        let mut due: BTreeMap<String, (Duration, tokio::time::Instant)> = BTreeMap::new();
        loop {
            let next = due.values().map(|(_, at)| *at).min();
            let sleep = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                driver = exhausted.next() => self.update_limit(&drivers, &driver).await,
                event = events.recv() => {
                    let Some(event) = event else { return };
                    let gone = matches!(event, InformerEvent::Deleted(_));
                    plan(&mut due, event.object(), gone);
                }
                () = sleep => {
                    let now = tokio::time::Instant::now();
                    let asked: Vec<String> = due
                        .iter_mut()
                        .filter(|(_, (_, at))| *at <= now)
                        .map(|(name, (period, at))| {
                            *at = now + *period;
                            name.clone()
                        })
                        .collect();
                    for driver in asked {
                        self.update_limit(&drivers, &driver).await;
                    }
                }
            }
        }
    }

    async fn update_limit(&self, drivers: &Drivers, driver: &str) {
        // One that is not here has nothing to say.
        let Ok(client) = drivers.client(driver) else {
            return;
        };
        let asked = match client.node_info().await {
            Ok(info) => self
                .write(|node| install(node, driver, &info))
                .await
                .map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = asked {
            tracing::error!(driver, error, "Failed to update CSIDriver");
        }
    }
}

/// When each driver is asked next.
fn plan(
    due: &mut BTreeMap<String, (Duration, tokio::time::Instant)>,
    driver: &CSIDriver,
    gone: bool,
) {
    let name = driver.metadata.name.clone().unwrap_or_default();
    let seconds = driver.spec.node_allocatable_update_period_seconds;
    let seconds = seconds
        .and_then(|s| u64::try_from(s).ok())
        .filter(|s| *s > 0);
    match seconds.filter(|_| !gone).map(Duration::from_secs) {
        None => {
            due.remove(&name);
        }
        Some(period) if due.get(&name).is_some_and(|(known, _)| *known == period) => {}
        Some(period) => {
            due.insert(name, (period, tokio::time::Instant::now() + period));
        }
    }
}

/// Conflicts and a server that is away for a moment.
async fn retried<F: Future<Output = Result<(), CsiNodeError>>>(
    work: impl Fn() -> F,
) -> Result<(), CsiNodeError> {
    let mut pause = WRITE_PAUSE;
    for _ in 1..WRITE_TRIES {
        match work().await {
            Ok(()) => return Ok(()),
            Err(error) => tracing::debug!(%error, "writing what a CSI driver said, again"),
        }
        tokio::time::sleep(pause).await;
        pause *= WRITE_FACTOR;
    }
    work().await
}

#[async_trait]
impl Handler for NodeInfoManager {
    async fn install(&self, driver: &str, info: &NodeInfo) -> Result<(), HandlerError> {
        if info.node_id.is_empty() {
            return Err(CsiNodeError::NoNodeId.into());
        }
        self.write_node(driver, Some(info)).await?;
        self.write(|node| install(node, driver, info)).await?;
        (self.came)();
        Ok(())
    }

    async fn uninstall(&self, driver: &str) -> Result<(), HandlerError> {
        self.write(|node| uninstall(node, driver)).await?;
        self.write_node(driver, None).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(id: &str, limit: i64, topology: &[(&str, &str)]) -> NodeInfo {
        let topology = topology.iter();
        NodeInfo {
            node_id: id.to_owned(),
            max_volumes: limit,
            topology: topology
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
        }
    }

    #[test]
    fn drivers_come_change_and_go() {
        let mut node = new_csi_node("n", "1");
        let list = "kubernetes.io/aws-ebs,kubernetes.io/azure-disk,kubernetes.io/azure-file,kubernetes.io/cinder,\
                    kubernetes.io/gce-pd,kubernetes.io/portworx-volume,kubernetes.io/vsphere-volume";
        let annotations = node.metadata.annotations.clone().unwrap();
        assert_eq!(annotations[MIGRATED_PLUGINS_ANNOTATION], list);
        assert!(!set_migration_annotation(&mut node));

        assert!(install(&mut node, "a", &info("id", 5, &[("zone", "x")])));
        assert!(!install(&mut node, "a", &info("id", 5, &[("zone", "y")])));
        assert!(install(&mut node, "b", &info("id", 0, &[])));
        // Another limit, another topology, another name for the node; and limits that are none.
        for other in [
            info("id", 6, &[("zone", "x")]),
            info("id", 6, &[("rack", "x")]),
            info("other", 6, &[("rack", "x")]),
            info("other", -1, &[("rack", "x")]),
        ] {
            assert!(install(&mut node, "a", &other), "{other:?}");
            assert_eq!(node.spec.drivers.len(), 2);
        }
        assert!(!install(
            &mut node,
            "a",
            &info("other", 0, &[("rack", "x")])
        ));
        assert!(install(&mut node, "a", &info("other", i64::MAX, &[])));
        let count = node.spec.drivers[1].allocatable.as_ref().unwrap().count;
        assert_eq!(count, Some(i32::MAX));

        assert!(uninstall(&mut node, "a") && !uninstall(&mut node, "a"));
        assert_eq!(node.spec.drivers.len(), 1);
    }

    #[test]
    fn a_csi_node_of_a_node_that_was_made_anew_is_not_ours() {
        let node = new_csi_node("n", "1");
        assert_eq!(other_owner(&node, "n", "1"), None);
        assert_eq!(other_owner(&node, "n", "2").as_deref(), Some("1"));
        assert_eq!(
            other_owner(&CSINode::default(), "n", "2").as_deref(),
            Some("")
        );
    }

    #[test]
    fn the_node_has_the_drivers_names_for_it_and_its_topology() {
        let node = |metadata: Value| -> Node {
            serde_json::from_value(json!({ "metadata": metadata })).unwrap()
        };
        let ids = |text: &str| json!({"annotations": {NODE_ID_ANNOTATION: text}});
        let patch = |node: &Node, info: Option<&NodeInfo>| node_patch(node, "d", info).unwrap();
        let here = info("id", 0, &[("zone", "x")]);
        assert_eq!(
            patch(&node(json!({})), Some(&here)),
            Some(
                json!({"metadata": {"annotations": {NODE_ID_ANNOTATION: "{\"d\":\"id\"}"}, "labels": {"zone": "x"}}})
            )
        );
        let mut done = ids("{\"d\":\"id\"}");
        done["labels"] = json!({"zone": "x"});
        assert_eq!(patch(&node(done.clone()), Some(&here)), None);
        assert_eq!(
            patch(&node(done.clone()), None),
            Some(json!({"metadata": {"annotations": {NODE_ID_ANNOTATION: null}}}))
        );
        assert_eq!(
            patch(&node(ids("{\"d\":\"id\",\"e\":\"f\"}")), None),
            Some(json!({"metadata": {"annotations": {NODE_ID_ANNOTATION: "{\"e\":\"f\"}"}}}))
        );
        assert_eq!(patch(&node(json!({})), None), None);
        done["labels"] = json!({"zone": "y"});
        let told = node_patch(&node(done), "d", Some(&here)).unwrap_err();
        assert_eq!(
            told.to_string(),
            "detected topology value collision: driver reported \"zone\":\"x\" but existing label is \"zone\":\"y\""
        );
        assert!(node_patch(&node(ids("junk")), "d", None).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_driver_is_asked_again_as_often_as_its_object_says() {
        let driver = |seconds: Value| -> CSIDriver {
            serde_json::from_value(json!({
                "metadata": {"name": "d"},
                "spec": {"nodeAllocatableUpdatePeriodSeconds": seconds},
            }))
            .unwrap()
        };
        let mut due = BTreeMap::new();
        plan(&mut due, &driver(json!(null)), false);
        assert!(due.is_empty());
        plan(&mut due, &driver(json!(10)), false);
        let first = due["d"];
        tokio::time::advance(Duration::from_secs(1)).await;
        plan(&mut due, &driver(json!(10)), false);
        assert_eq!(due["d"], first);
        plan(&mut due, &driver(json!(20)), false);
        assert_eq!(due["d"].1 - first.1, Duration::from_secs(11));
        plan(&mut due, &driver(json!(20)), true);
        assert!(due.is_empty());
    }
}
