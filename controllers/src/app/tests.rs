//! All controllers on an API server in memory, in one thread, by virtual time.

use std::sync::Arc;
use std::time::Duration;

use component_base::clock::Clock;
use component_base::health::Health;
use component_base::leader_election::Leadership;
use component_base::shutdown::Shutdown;
use component_base::testing::ApiServer;
use controller_runtime::accounts::Accounts;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;
use tokio::task::JoinHandle;

use super::{Seams, assemble, features};
use crate::options::{Options, flag_set};

struct World {
    api: ApiServer,
    clock: Clock,
    shutdown: Shutdown,
    running: JoinHandle<anyhow::Result<()>>,
}

impl World {
    fn start() -> Self {
        let clock = Clock::of_runtime(Timestamp::from_second(1_800_000_000).expect("in range"));
        let (api, shutdown) = (ApiServer::new(clock.clone()), Shutdown::new());
        let flags = flag_set()
            .parse(std::iter::empty::<String>())
            .expect("flags");
        let options = Arc::new(Options::from_flags(&flags).expect("options"));
        let client = api.client();
        let component = assemble(Seams {
            features: Arc::new(features(&options).expect("gates")),
            options,
            accounts: Accounts::of_client(client.clone(), clock.clone(), shutdown.clone()),
            client,
            leadership: Leadership::always(),
            clock: clock.clone(),
            health: Health::new(),
            shutdown: shutdown.clone(),
            root_ca: Some(b"a certificate".to_vec()),
        });
        Self {
            api,
            clock,
            shutdown,
            running: tokio::spawn(component.run()),
        }
    }

    fn create<K: component_base::testing::Object>(&self, object: serde_json::Value) -> K {
        let object: K = serde_json::from_value(object).expect("objects in tests are valid");
        self.api.create(&object)
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
        for (number, mut pod) in self.api.list::<Pod>().into_iter().enumerate() {
            pod.spec.get_or_insert_default().node_name = Some("node".into());
            let now = self.clock.now().to_string();
            let status = json!({
                "phase": "Running", "podIP": format!("10.1.0.{number}"), "podIPs": [{"ip": format!("10.1.0.{number}")}],
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now}],
            });
            pod.status = Some(serde_json::from_value(status).expect("a status"));
            self.api.update(&pod);
        }
    }

    async fn settle(&self, seconds: u64) {
        self.clock.sleep(Duration::from_secs(seconds)).await;
    }

    async fn end(self) {
        self.shutdown.trigger();
        self.running.await.expect("no panic").expect("a good end");
    }
}

#[tokio::test(start_paused = true)]
async fn a_deployment_has_its_pods_its_endpoints_and_its_end() {
    let world = World::start();
    world.deploy(3);
    world.settle(5).await;
    let accounts = world.api.list::<ServiceAccount>();
    assert_eq!(accounts.len(), 1, "that of the namespace: {accounts:#?}");
    assert_eq!(world.api.list::<ReplicaSet>().len(), 1);
    assert_eq!(world.api.list::<Pod>().len(), 3);
    world.run_pods();
    world.settle(5).await;
    let deployment: Deployment = world.api.get("default", "web").expect("there");
    let status = deployment.status.clone().expect("a status");
    assert_eq!(status.available_replicas, Some(3), "{status:#?}");
    let slices = world.api.list::<EndpointSlice>();
    assert_eq!(slices.len(), 1, "{slices:#?}");
    assert_eq!(slices[0].endpoints.as_ref().map(Vec::len), Some(3));

    let mut scaled = deployment;
    scaled.spec.replicas = Some(1);
    world.api.update(&scaled);
    world.settle(5).await;
    let (pods, going) = world.pods();
    assert_eq!((pods, going), (3, 2), "the node has not ended them");

    world.api.delete::<Deployment>("default", "web");
    world.settle(60).await;
    assert_eq!(world.api.list::<ReplicaSet>(), []);
    assert_eq!(world.pods(), (3, 3));
    let slices = world.api.list::<EndpointSlice>();
    let ready = slices[0].endpoints.iter().flatten();
    let ready = ready.filter(|e| e.conditions.as_ref().is_some_and(|c| c.ready == Some(true)));
    assert_eq!(ready.count(), 0, "{slices:#?}");
    world.end().await;
}

impl World {
    /// How many there are, and how many of them are to end.
    fn pods(&self) -> (usize, usize) {
        let pods = self.api.list::<Pod>();
        let going = pods
            .iter()
            .filter(|p| p.metadata.deletion_timestamp.is_some());
        (pods.len(), going.count())
    }
}
