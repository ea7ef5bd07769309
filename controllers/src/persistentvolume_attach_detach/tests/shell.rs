//! The shell against an API in memory.

use std::sync::Arc;

use component_base::clock::Clock;
use component_base::events::Recorder;
use component_base::metrics::Registry;
use component_base::shutdown::Shutdown;
use controller_runtime::ApiError;
use controller_runtime::testing::FakeApi;

use super::super::controller::AttachDetach;
use super::super::metrics::Metrics;
use super::*;
use crate::options::AttachDetachOptions;
use crate::pods_by_claim;
use crate::testing::{Feed, settle};

struct Cluster {
    api: FakeApi,
    pods: Feed<Pod>,
    nodes: Feed<Node>,
    attachments: Feed<VolumeAttachment>,
    controller: Arc<AttachDetach>,
    shutdown: Shutdown,
    _events: Box<dyn std::any::Any>,
}

async fn cluster() -> Cluster {
    let api = FakeApi::new();
    let (recorder, events) = Recorder::fake();
    let (pods, pod_informer) = Feed::new();
    let (nodes, node_informer) = Feed::new();
    let (claims, claim_informer) = Feed::new();
    let (volumes, volume_informer) = Feed::new();
    let (drivers, driver_informer) = Feed::<CSIDriver>::new();
    let (attachments, attachment_informer) = Feed::new();
    let controller = Arc::new(AttachDetach {
        pods: pod_informer,
        nodes: node_informer,
        claims: claim_informer,
        volumes: volume_informer,
        drivers: driver_informer,
        attachments: attachment_informer,
        executor: api.executor_with(recorder),
        options: AttachDetachOptions {
            sync_period: None,
            disable_force_detach: false,
        },
        clock: Clock::real(),
        state: Arc::default(),
        changed: Default::default(),
        metrics: Metrics::register(
            &Registry::new(),
            Arc::new(crate::storage_operations::StorageOperations::unread()),
        )
        .unwrap(),
    });
    pods_by_claim::add_index(&controller.pods);
    let shutdown = Shutdown::new();
    let mut watches = controller.watch(&shutdown);
    for node in [node("a", true, &[]), node("b", true, &[])] {
        api.insert(&node);
        nodes.apply(node);
    }
    claims.apply(claim("c", "v"));
    volumes.apply(volume("v", "c", "ReadWriteOnce"));
    assert!(watches.wait_for_sync().await);
    settle().await;
    controller.populate();
    Cluster {
        api,
        pods,
        nodes,
        attachments,
        controller,
        shutdown,
        _events: Box::new((events, claims, volumes, drivers, watches)),
    }
}

impl Cluster {
    async fn round(&self) {
        settle().await;
        self.controller.round(&self.shutdown).await;
        settle().await;
        self.controller.round(&self.shutdown).await;
        settle().await;
    }

    fn attached_at(&self, name: &str) -> Vec<String> {
        let node: Node = self.api.get("", name).unwrap();
        let attached = node.status.unwrap().volumes_attached;
        attached.into_iter().flatten().map(|a| a.name).collect()
    }

    /// The driver has attached all there is.
    fn attach_all(&self) {
        for mut attachment in self.api.list::<VolumeAttachment>() {
            attachment.status = Some(from_value(json!({ "attached": true })).unwrap());
            self.attachments.apply(attachment);
        }
    }
}

#[tokio::test]
async fn from_the_pod_to_the_nodes_status_and_back() {
    let cluster = cluster().await;
    let user = pod("ns", "p", "a", "c");
    cluster.pods.apply(user.clone());
    cluster.round().await;
    let made = cluster.api.list::<VolumeAttachment>();
    assert_eq!(made.len(), 1);
    assert_eq!(
        made[0].spec.source.persistent_volume_name.as_deref(),
        Some("v")
    );
    assert!(cluster.attached_at("a").is_empty());
    cluster.attach_all();
    cluster.round().await;
    assert_eq!(cluster.attached_at("a"), [unique("v")]);

    // The node uses it; the cache does not know that yet.
    let mut using: Node = cluster.api.get("", "a").unwrap();
    using.status.as_mut().unwrap().volumes_in_use = Some(vec![]);
    cluster.nodes.apply(using.clone());
    using.status.as_mut().unwrap().volumes_in_use = Some(vec![unique("v")]);
    cluster.api.insert(&using);
    cluster.pods.delete(user.clone());
    cluster.round().await;
    assert_eq!(cluster.api.list::<VolumeAttachment>().len(), 1);
    assert!(cluster.attached_at("a").is_empty());

    using.status.as_mut().unwrap().volumes_in_use = None;
    cluster.api.insert(&using);
    tokio::time::sleep(Duration::from_millis(600)).await;
    cluster.round().await;
    assert!(cluster.api.list::<VolumeAttachment>().is_empty());
    // Until the cache says so, it is not taken for detached.
    let is = |state| cluster.controller.lock().actual.state(&place("v", "a")) == state;
    assert!(is(AttachState::Uncertain));
    for attachment in made {
        cluster.attachments.delete(attachment);
    }
    cluster.round().await;
    assert!(is(AttachState::Detached));
}

#[tokio::test]
async fn a_status_that_cannot_be_written_holds_the_detach_up() {
    let cluster = cluster().await;
    let user = pod("ns", "p", "a", "c");
    cluster.pods.apply(user.clone());
    cluster.round().await;
    cluster.attach_all();
    cluster.round().await;
    let mut idle: Node = cluster.api.get("", "a").unwrap();
    idle.status.as_mut().unwrap().volumes_in_use = Some(vec![]);
    cluster.nodes.apply(idle);
    cluster.pods.delete(user);
    cluster.api.fail(
        |r| r.subresource == "status",
        ApiError::Unreachable("gone".into()),
    );
    cluster.round().await;
    assert_eq!(cluster.api.list::<VolumeAttachment>().len(), 1);
    cluster.api.heal();
    cluster.round().await;
    assert!(cluster.api.list::<VolumeAttachment>().is_empty());
    assert!(cluster.attached_at("a").is_empty());
}

#[tokio::test]
async fn a_volume_attachment_that_somebody_deleted_is_noticed() {
    let cluster = cluster().await;
    cluster.pods.apply(pod("ns", "p", "a", "c"));
    cluster.round().await;
    cluster.attach_all();
    cluster.round().await;
    cluster.controller.verify().await;
    let state = || cluster.controller.lock().actual.state(&place("v", "a"));
    assert_eq!(state(), AttachState::Attached);
    for attachment in cluster.api.list::<VolumeAttachment>() {
        let name = attachment.metadata.name.clone().unwrap();
        let delete = Action::delete::<VolumeAttachment>("", &name, Default::default());
        cluster.controller.executor.execute(&delete).await.unwrap();
        cluster.attachments.delete(attachment);
    }
    settle().await;
    cluster.controller.verify().await;
    assert_eq!(state(), AttachState::Detached);
    cluster.round().await;
    assert_eq!(cluster.api.list::<VolumeAttachment>().len(), 1);
}

#[tokio::test]
async fn nodes_that_come_and_go_leave_nothing_behind() {
    let cluster = cluster().await;
    let user = pod("ns", "p", "a", "c");
    cluster.pods.apply(user.clone());
    cluster.round().await;
    cluster.attach_all();
    cluster.round().await;
    let using = |node: &str| {
        cluster
            .controller
            .lock()
            .actual
            .is_in_use(&place("v", node))
    };
    let gone = |name: &str| {
        let mut node: Node = cluster.api.get("", name).unwrap();
        node.status.as_mut().unwrap().volumes_in_use = Some(vec![unique("v")]);
        cluster.nodes.delete(node);
    };
    gone("a");
    settle().await;
    assert!(using("a"), "it is attached there");
    cluster.pods.delete(user);
    for attachment in cluster.api.list::<VolumeAttachment>() {
        cluster.attachments.delete(attachment);
    }
    settle().await;
    cluster.controller.verify().await;
    for attachment in cluster.api.list::<VolumeAttachment>() {
        let name = attachment.metadata.name.clone().unwrap();
        let delete = Action::delete::<VolumeAttachment>("", &name, Default::default());
        cluster.controller.executor.execute(&delete).await.unwrap();
    }
    cluster.controller.verify().await;
    gone("b");
    settle().await;
    assert!(!using("a") && !using("b"));
}
