use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use component_base::clock::FakeClock;
use jiff::Timestamp;

use super::v1::pod_resources_lister_client::PodResourcesListerClient;
use super::*;
use crate::manager::Observer;
use crate::plugin::PluginOptions;
use crate::state::{ContainerRequest, Kind, PodRequest};
use crate::testing::FakePlugin;

const GPU: &str = "example.com/gpu";

struct Pods(Mutex<Vec<String>>);

#[async_trait]
impl PodList for Pods {
    async fn pods(&self) -> Vec<PodEntry> {
        let pod = |name: &str, active| PodEntry {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            uid: name.to_owned(),
            active,
            sidecars: vec!["s".to_owned()],
            containers: vec!["c".to_owned()],
            dynamic_resources: [("c".to_owned(), vec![claimed(name)])].into(),
        };
        vec![pod("runs", true), pod("ended", false)]
    }
    fn pinned(&self, pod_uid: &str, container: &str) -> Pinned {
        match (pod_uid, container) {
            ("runs", "c") => Pinned {
                cpus: vec![1, 3],
                memory: vec![Memory {
                    kind: "memory".to_owned(),
                    bytes: 7,
                    numa_nodes: vec![0, 1],
                }],
            },
            _ => Pinned::default(),
        }
    }
    fn allocatable(&self) -> Pinned {
        Pinned {
            cpus: vec![1, 2, 3],
            memory: Vec::new(),
        }
    }
    fn observe(&self, version: &'static str, question: Question, failed: bool) {
        let told = format!("{version} {question:?} {failed}");
        self.0.lock().unwrap().push(told);
    }
}

fn claimed(name: &str) -> v1::DynamicResource {
    v1::DynamicResource {
        claim_name: format!("claim-of-{name}"),
        ..v1::DynamicResource::default()
    }
}

struct Nobody;

impl Observer for Nobody {
    fn registered(&self, _: &str) {}
    fn allocated(&self, _: &str, _: Duration) {}
    fn health_changed(&self, _: &str) {}
    fn tells_health(&self) -> bool {
        false
    }
}

fn text(devices: &[v1::ContainerDevices]) -> String {
    let one = |d: &v1::ContainerDevices| {
        let nodes = d.topology.iter().flat_map(|t| &t.nodes);
        let nodes: Vec<String> = nodes.map(|n| format!("@{}", n.id)).collect();
        format!("{}{}", d.device_ids.join("+"), nodes.join(""))
    };
    devices.iter().map(one).collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn agents_are_told_which_devices_pods_have() {
    let dir = tempfile::tempdir().unwrap();
    let clock = FakeClock::new(Timestamp::UNIX_EPOCH);
    let path = dir.path().join("device-plugins");
    let manager = Arc::new(Manager::load(path, clock.clock(), Arc::new(Nobody)).unwrap());
    let plugin = FakePlugin::new("a b@0 !c", PluginOptions::default());
    let fake = Path::new("fake");
    manager.plugin_came(GPU, fake, plugin).await.unwrap();
    while manager.capacity().await.allocatable[GPU] < 2 {
        manager.changed().await;
    }
    let container = |name: &str| ContainerRequest {
        name: name.to_owned(),
        kind: Kind::Regular,
        limits: [(GPU.to_owned(), 2)].into(),
    };
    let request = PodRequest {
        uid: "runs".to_owned(),
        containers: vec![container("c")],
    };
    manager.allocate_pod(&request).await.unwrap();

    let socket = dir.path().join("kubelet.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let pods = Arc::new(Pods(Mutex::default()));
    let serving = serve_pod_resources(listener, manager, pods.clone(), std::future::pending());
    let task = tokio::spawn(async move { serving.await.unwrap() });
    let channel = crate::plugin::dial(&socket).await.unwrap();
    let mut client = PodResourcesListerClient::new(channel.clone());

    let list = client.list(v1::ListPodResourcesRequest {}).await.unwrap();
    let list = list.into_inner().pod_resources;
    assert_eq!(list.len(), 1);
    let names: Vec<_> = list[0].containers.iter().map(|c| &c.name).collect();
    assert_eq!(names, ["s", "c"]);
    assert_eq!(text(&list[0].containers[1].devices), "a b@0");
    let claimed = |at: usize| list[0].containers[at].dynamic_resources.iter();
    assert_eq!(claimed(0).count(), 0);
    assert_eq!(claimed(1).next().unwrap().claim_name, "claim-of-runs");
    assert_eq!(list[0].containers[1].cpu_ids, [1, 3]);
    let memory = &list[0].containers[1].memory[0];
    let nodes = memory.topology.as_ref().unwrap().nodes.iter();
    let nodes: Vec<i64> = nodes.map(|node| node.id).collect();
    assert_eq!((memory.memory_type.as_str(), memory.size), ("memory", 7));
    assert_eq!(nodes, [0, 1]);
    assert!(list[0].containers[0].cpu_ids.is_empty());
    let all = client.get_allocatable_resources(v1::AllocatableResourcesRequest {});
    let all = all.await.unwrap().into_inner();
    assert_eq!(text(&all.devices), "a b@0");
    assert_eq!(all.cpu_ids, [1, 2, 3]);
    let ask = |name: &str| v1::GetPodResourcesRequest {
        pod_name: name.to_owned(),
        pod_namespace: "default".to_owned(),
    };
    let found = client.get(ask("ended")).await.unwrap().into_inner();
    assert_eq!(found.pod_resources.unwrap().name, "ended");
    let told = client.get(ask("nobody")).await.unwrap_err();
    assert_eq!(told.message(), "pod nobody in namespace default not found");
    let mut old = v1alpha1::pod_resources_lister_client::PodResourcesListerClient::new(channel);
    let list = old
        .list(v1alpha1::ListPodResourcesRequest {})
        .await
        .unwrap();
    let list = list.into_inner().pod_resources;
    assert_eq!((list.len(), list[0].containers[0].devices.len()), (2, 2));
    assert_eq!(
        *pods.0.lock().unwrap(),
        [
            "v1 List false",
            "v1 Allocatable false",
            "v1 Get false",
            "v1 Get true",
            "v1alpha1 List false"
        ]
    );
    // So many questions at once are too many.
    let questions = (0..200).map(|_| {
        let mut client = client.clone();
        let asked = ask("runs");
        async move { client.get(asked).await }
    });
    let answers = futures::future::join_all(questions).await;
    let mut refused = answers.into_iter().filter_map(Result::err);
    assert_eq!(refused.next().unwrap().message(), "rejected by rate limit");
    task.abort();
}
