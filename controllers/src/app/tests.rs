//! All controllers on an API server in memory, in one thread, by virtual time.

use std::sync::Arc;
use std::time::Duration;

use component_base::health::Health;
use component_base::leader_election::Leadership;
use component_base::metrics::Registry;
use component_base::testing::World;
use controller_runtime::accounts::Accounts;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;
use tokio::task::JoinHandle;

use super::{Seams, assemble, features};
use crate::options::{Options, flag_set};

/// All controllers, running.
struct Controllers {
    world: World,
    metrics: Registry,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Controllers {
    fn start() -> Self {
        let world = World::begin();
        let flags = flag_set()
            .parse(std::iter::empty::<String>())
            .expect("flags");
        let options =
            Arc::new(Options::from_flags(&flags, crate::registry::validate).expect("options"));
        let (client, metrics) = (world.api.client(), Registry::new());
        let (clock, shutdown) = (world.clock.clone(), world.shutdown.clone());
        let component = assemble(Seams {
            features: Arc::new(features(&options).expect("gates")),
            options,
            accounts: Accounts::of_client(client.clone(), clock.clone(), shutdown.clone()),
            client,
            leadership: Leadership::always(),
            clock,
            metrics: metrics.clone(),
            health: Health::new(),
            shutdown,
            root_ca: Some(b"a certificate".to_vec()),
        })
        .expect("a registry of its own");
        Self {
            world,
            metrics,
            running: tokio::spawn(component.run()),
        }
    }

    fn create<K: component_base::testing::Object>(&self, object: serde_json::Value) -> K {
        let object: K = serde_json::from_value(object).expect("objects in tests are valid");
        self.world.api.create(&object)
    }

    fn deploy(&self, replicas: i32) {
        self.create::<Namespace>(json!({"metadata": {"name": "default"}}));
        self.create::<Node>(json!({"metadata": {"name": "node"}}));
        self.create::<Service>(json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"selector": {"app": "web"}, "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv4"],
                "ports": [{"port": 80, "protocol": "TCP", "targetPort": 8080}]},
        }));
        self.create::<Deployment>(json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "image"}]},
            }},
        }));
    }

    /// What a node would say of its pods.
    fn run_pods(&self) {
        for (number, mut pod) in self.world.api.list::<Pod>().into_iter().enumerate() {
            pod.spec.get_or_insert_default().node_name = Some("node".into());
            let now = self.world.clock.now().to_string();
            let status = json!({
                "phase": "Running", "podIP": format!("10.1.0.{number}"), "podIPs": [{"ip": format!("10.1.0.{number}")}],
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now}],
            });
            pod.status = Some(serde_json::from_value(status).expect("a status"));
            self.world.api.update(&pod);
        }
    }

    async fn settle(&self, seconds: u64) {
        self.world.settle(Duration::from_secs(seconds)).await;
    }

    async fn end(self) {
        self.world.end(self.running).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_deployment_has_its_pods_its_endpoints_and_its_end() {
    let controllers = Controllers::start();
    controllers.deploy(3);
    controllers.settle(5).await;
    let accounts = controllers.world.api.list::<ServiceAccount>();
    assert_eq!(accounts.len(), 1, "that of the namespace: {accounts:#?}");
    assert_eq!(controllers.world.api.list::<ReplicaSet>().len(), 1);
    assert_eq!(controllers.world.api.list::<Pod>().len(), 3);
    controllers.run_pods();
    controllers.settle(5).await;
    let deployment: Deployment = controllers.world.api.get("default", "web").expect("there");
    let status = deployment.status.clone().expect("a status");
    assert_eq!(status.available_replicas, Some(3), "{status:#?}");
    let slices = controllers.world.api.list::<EndpointSlice>();
    assert_eq!(slices.len(), 1, "{slices:#?}");
    assert_eq!(slices[0].endpoints.as_ref().map(Vec::len), Some(3));

    let mut scaled = deployment;
    scaled.spec.replicas = Some(1);
    controllers.world.api.update(&scaled);
    controllers.settle(5).await;
    let (pods, going) = controllers.pods();
    assert_eq!((pods, going), (3, 2), "the node has not ended them");

    controllers.world.api.delete::<Deployment>("default", "web");
    controllers.settle(60).await;
    assert_eq!(controllers.world.api.list::<ReplicaSet>(), []);
    assert_eq!(controllers.pods(), (3, 3));
    let slices = controllers.world.api.list::<EndpointSlice>();
    let ready = slices[0].endpoints.iter().flatten();
    let ready = ready.filter(|e| e.conditions.as_ref().is_some_and(|c| c.ready == Some(true)));
    assert_eq!(ready.count(), 0, "{slices:#?}");
    controllers.end().await;
}

impl Controllers {
    /// How many there are, and how many of them are to end.
    fn pods(&self) -> (usize, usize) {
        let pods = self.world.api.list::<Pod>();
        let going = pods
            .iter()
            .filter(|p| p.metadata.deletion_timestamp.is_some());
        (pods.len(), going.count())
    }
}

/// Those that are shown before anything happens, and those of queues. Others come with their first label.
const SHOWN: &[&str] = &[
    "cronjob_controller_job_creation_skew_duration_seconds",
    "ephemeral_volume_controller_create_failures_total",
    "ephemeral_volume_controller_create_total",
    "horizontal_pod_autoscaler_controller_num_horizontal_pod_autoscalers",
    "retroactive_storageclass_errors_total",
    "retroactive_storageclass_total",
    "taint_eviction_controller_pod_deletions_total",
    "ttl_after_finished_controller_job_deletion_duration_seconds",
    "workqueue_adds_total",
    "workqueue_depth",
    "workqueue_longest_running_processor_seconds",
    "workqueue_queue_duration_seconds",
    "workqueue_retries_total",
    "workqueue_unfinished_work_seconds",
    "workqueue_work_duration_seconds",
];

#[tokio::test(start_paused = true)]
async fn what_two_controller_managers_count_is_told_by_name_and_apart() {
    let (busy, idle) = (Controllers::start(), Controllers::start());
    busy.deploy(1);
    busy.settle(5).await;
    let adds = |world: &Controllers| {
        let families = world.metrics.gather();
        let names: Vec<&str> = families.iter().map(|family| family.name()).collect();
        for name in SHOWN {
            assert!(names.contains(name), "{name} in {names:?}");
        }
        let of = |name: &str| families.iter().find(|family| family.name() == name);
        let queues = of("workqueue_adds_total").map(|family| family.get_metric());
        let mut queues = queues.unwrap_or_default().iter();
        let found = queues.find(|queue| queue.get_label()[0].value() == "deployment");
        found.map_or(0.0, |queue| queue.get_counter().get_value())
    };
    assert!(adds(&busy) > 0.0);
    assert_eq!(adds(&idle), 0.0);
    busy.end().await;
    idle.end().await;
}
