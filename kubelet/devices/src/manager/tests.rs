//! With plugins behind real sockets.

use std::collections::BTreeMap;

use jiff::Timestamp;
use tonic::Status;

use super::*;
use crate::checkpoint::FILE;
use crate::state::{ContainerRequest, Kind};
use crate::testing::{FakePlugin, Served, register};

const GPU: &str = "example.com/gpu";

#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl Observer for Told {
    fn registered(&self, resource: &str) {
        self.0
            .lock()
            .unwrap()
            .push(format!("registered {resource}"));
    }
    fn allocated(&self, resource: &str, _: Duration) {
        self.0.lock().unwrap().push(format!("allocated {resource}"));
    }
    fn health_changed(&self, pod: &str) {
        self.0.lock().unwrap().push(format!("health {pod}"));
    }
    fn tells_health(&self) -> bool {
        true
    }
}

struct Node {
    dir: tempfile::TempDir,
    manager: Arc<Manager>,
    clock: component_base::clock::FakeClock,
    told: Arc<Told>,
    server: tokio::task::JoinHandle<()>,
}

impl Node {
    async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap()).await
    }

    async fn start_in(dir: tempfile::TempDir) -> Self {
        let clock = component_base::clock::FakeClock::new(Timestamp::UNIX_EPOCH);
        let told = Arc::new(Told::default());
        let path = dir.path().join("device-plugins");
        let manager = Arc::new(Manager::load(path, clock.clock(), told.clone()).unwrap());
        manager.settle();
        let serving = crate::serve(manager.clone(), std::future::pending());
        let serving = serving.await.unwrap();
        let server = tokio::spawn(async move { serving.await.unwrap() });
        Self {
            dir,
            manager,
            clock,
            told,
            server,
        }
    }

    /// As a kubelet that is killed and comes again.
    async fn restart(self) -> Self {
        self.server.abort();
        Self::start_in(self.dir).await
    }

    fn path(&self, name: &str) -> PathBuf {
        self.manager.dir().join(name)
    }

    /// A plugin that listens and registers.
    async fn plugin(&self, ids: &str, options: PluginOptions) -> (Arc<FakePlugin>, Served) {
        let plugin = FakePlugin::new(ids, options);
        let served = plugin.serve(&self.path("gpu.sock")).await;
        self.register("v1beta1", "gpu.sock", GPU).await.unwrap();
        self.until(ids.split_whitespace().count()).await;
        (plugin, served)
    }

    async fn register(&self, version: &str, endpoint: &str, name: &str) -> Result<(), String> {
        register(&self.path("kubelet.sock"), version, endpoint, name).await
    }

    async fn counts(&self) -> (Option<usize>, Option<usize>) {
        let capacity = self.manager.capacity().await;
        let of = |map: &BTreeMap<String, usize>| map.get(GPU).copied();
        (of(&capacity.capacity), of(&capacity.allocatable))
    }

    async fn until(&self, healthy: usize) {
        let waiting = async {
            while self.counts().await.1 != Some(healthy) {
                self.manager.changed().await;
            }
        };
        let done = tokio::time::timeout(Duration::from_secs(10), waiting).await;
        assert!(done.is_ok(), "{:?}", self.counts().await);
    }

    async fn allocate(&self, pod: &PodRequest) -> String {
        let outcome = self.manager.allocate_pod(pod).await;
        outcome.map_or_else(|e| e.to_string(), |()| "ok".to_owned())
    }

    async fn env(&self, pod: &PodRequest, container: &str) -> String {
        let options = self.manager.container_options(pod, container, true).await;
        let envs = options.unwrap().envs;
        envs.get("DEVICES").cloned().unwrap_or_default()
    }
}

fn pod(uid: &str, containers: &[(&str, Kind, i64)]) -> PodRequest {
    let container = |(name, kind, n): &(&str, Kind, i64)| ContainerRequest {
        name: (*name).to_owned(),
        kind: *kind,
        limits: [(GPU.to_owned(), *n), ("cpu".to_owned(), 1)].into(),
    };
    PodRequest {
        uid: uid.to_owned(),
        containers: containers.iter().map(container).collect(),
    }
}

fn plain(uid: &str, n: i64) -> PodRequest {
    pod(uid, &[("c", Kind::Regular, n)])
}

#[tokio::test]
async fn a_plugin_comes_gives_falls_sick_and_goes() {
    let node = Node::start().await;
    let (plugin, served) = node.plugin("a b c", PluginOptions::default()).await;
    assert_eq!(node.counts().await, (Some(3), Some(3)));
    assert_eq!(node.allocate(&plain("1", 2)).await, "ok");
    assert_eq!(node.env(&plain("1", 2), "c").await, "a,b");
    assert_eq!(
        node.allocate(&plain("2", 2)).await,
        "requested number of devices unavailable for example.com/gpu. Requested: 2, Available: 1"
    );
    assert_eq!(plugin.take_calls(), ["Allocate a b"]);

    plugin.set("!a b c");
    node.until(2).await;
    assert_eq!(node.counts().await, (Some(3), Some(2)));
    assert!(!node.manager.health("1", "c")[GPU]["a"]);
    let told = node.told.0.lock().unwrap().clone();
    assert_eq!(
        told,
        [
            "registered example.com/gpu",
            "allocated example.com/gpu",
            "health 1"
        ]
    );

    // The pod ends: what it had is free.
    node.manager.retain(|uid| uid != "1").await;
    plugin.set("a b c");
    node.until(3).await;
    assert_eq!(node.allocate(&plain("3", 3)).await, "ok");

    plugin.end();
    node.until(0).await;
    drop(served);
    assert_eq!(node.counts().await, (Some(3), Some(0)));
    assert_eq!(
        node.allocate(&plain("4", 1)).await,
        "no healthy devices present; cannot allocate unhealthy devices example.com/gpu"
    );
    // The containers that have them are not disturbed.
    assert_eq!(node.env(&plain("3", 3), "c").await, "a,b,c");
    node.clock.advance(Duration::from_secs(301));
    assert_eq!(node.counts().await, (None, None));
    assert!(node.manager.capacity().await.removed.contains(GPU));
}

#[tokio::test]
async fn a_kubelet_that_comes_again_knows_who_has_what() {
    let node = Node::start().await;
    let (plugin, served) = node.plugin("a b", PluginOptions::default()).await;
    assert_eq!(node.allocate(&plain("1", 1)).await, "ok");
    let node = node.restart().await;
    // Its socket is gone: that is how it knows.
    assert!(!served.socket.exists());
    assert_eq!(node.counts().await, (Some(0), Some(0)));
    assert_eq!(node.env(&plain("1", 1), "c").await, "a");
    assert_eq!(
        node.allocate(&plain("2", 1)).await,
        "no healthy devices present; cannot allocate unhealthy devices example.com/gpu"
    );
    drop((plugin, served));
    let (plugin, _served) = node.plugin("a b", PluginOptions::default()).await;
    assert_eq!(node.allocate(&plain("1", 1)).await, "ok");
    assert_eq!(node.allocate(&plain("2", 1)).await, "ok");
    assert_eq!(plugin.take_calls(), ["Allocate b"]);
}

#[tokio::test]
async fn a_record_that_is_torn_costs_no_running_container() {
    let node = Node::start().await;
    let (plugin, served) = node.plugin("a b", PluginOptions::default()).await;
    assert_eq!(node.allocate(&plain("1", 1)).await, "ok");
    std::fs::write(node.path(FILE), "{\"Data\":").unwrap();
    let node = node.restart().await;
    assert_eq!(node.counts().await, (None, None));
    let aside = node.path("kubelet_internal_checkpoint.corrupt");
    assert_eq!(std::fs::read_to_string(aside).unwrap(), "{\"Data\":");
    drop((plugin, served));
    let options = PluginOptions {
        pre_start_required: true,
        ..PluginOptions::default()
    };
    let (plugin, _served) = node.plugin("a b", options).await;
    // Its container starts again: it is given devices anew, as upstream does.
    assert_eq!(node.env(&plain("1", 1), "c").await, "a");
    assert_eq!(plugin.take_calls(), ["Allocate a", "PreStart a"]);
}

#[test]
fn a_record_that_cannot_be_read_is_not_taken_for_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    std::fs::create_dir(&path).unwrap();
    let clock = component_base::clock::FakeClock::new(Timestamp::UNIX_EPOCH);
    let told = Arc::new(Told::default());
    let loaded = Manager::load(dir.path().to_owned(), clock.clock(), told);
    let told = loaded.err().unwrap().to_string();
    let begins = format!(
        "read which devices were given out from {}: ",
        path.display()
    );
    assert!(told.starts_with(&begins), "{told}");
}

#[tokio::test]
async fn a_plugin_is_asked_what_it_offers_to_be_asked() {
    let node = Node::start().await;
    let options = PluginOptions {
        pre_start_required: true,
        get_preferred_allocation_available: true,
    };
    let (plugin, _served) = node.plugin("a b c", options).await;
    *plugin.preferred.lock().unwrap() = vec!["c".to_owned()];
    let wants = pod(
        "1",
        &[
            ("i", Kind::Init, 1),
            ("s", Kind::Sidecar, 1),
            ("c", Kind::Regular, 2),
        ],
    );
    assert_eq!(node.allocate(&wants).await, "ok");
    // Twice is once.
    assert_eq!(node.allocate(&wants).await, "ok");
    assert_eq!(
        plugin.take_calls(),
        [
            "Prefer 1 with [] of a b c",
            "Allocate c",
            // The sidecar has that of the init container, and keeps it.
            "Allocate c",
            "Prefer 2 with [] of a b",
            "Allocate a b",
        ]
    );
    assert_eq!(node.env(&wants, "s").await, "c");
    assert_eq!(node.env(&wants, "c").await, "a,b");
    assert_eq!(plugin.take_calls(), ["PreStart c", "PreStart a b"]);
}

/// One that no kubelet of ours takes.
fn bad_answer() -> ContainerAllocateResponse {
    ContainerAllocateResponse {
        envs: [("=".to_owned(), String::new())].into(),
        ..ContainerAllocateResponse::default()
    }
}

#[tokio::test]
async fn what_a_plugin_refuses_nobody_has() {
    let node = Node::start().await;
    let (plugin, _served) = node.plugin("a", PluginOptions::default()).await;
    plugin.answer_by(|_| Err(Status::internal("on fire")));
    assert_eq!(
        node.allocate(&plain("1", 1)).await,
        "rpc error: code = Internal desc = on fire"
    );
    plugin.answer_by(|_| Ok(bad_answer()));
    let told = node.allocate(&plain("1", 1)).await;
    assert!(
        told.starts_with("device plugin of example.com/gpu: the environment variable \"=\""),
        "{told}"
    );
    plugin.answer_by(|_| Ok(ContainerAllocateResponse::default()));
    assert_eq!(node.allocate(&plain("2", 1)).await, "ok");
}

#[tokio::test]
async fn a_pod_that_cannot_have_more_keeps_what_it_had() {
    let node = Node::start().await;
    let (_plugin, _served) = node.plugin("a b", PluginOptions::default()).await;
    let of = |name, n| (name, Kind::Regular, n);
    assert_eq!(node.allocate(&pod("1", &[of("c", 1)])).await, "ok");
    let more = pod("1", &[of("c", 1), of("d", 1), of("e", 1)]);
    let told = node.allocate(&more).await;
    assert!(
        told.starts_with("requested number of devices unavailable"),
        "{told}"
    );
    assert_eq!(node.manager.held("1", "c").len(), 1);
    assert_eq!(node.manager.held("1", "d").len(), 0);
    // That is nobody's.
    assert_eq!(node.allocate(&plain("2", 1)).await, "ok");
}

#[tokio::test]
async fn two_pods_that_want_the_same_two_are_not_both_left_without() {
    const NIC: &str = "example.com/nic";
    let node = Node::start().await;
    let (_gpus, _served) = node.plugin("a", PluginOptions::default()).await;
    let nics = FakePlugin::new("n", PluginOptions::default());
    let _nics = nics.serve(&node.path("nic.sock")).await;
    node.register("v1beta1", "nic.sock", NIC).await.unwrap();
    while !node.manager.capacity().await.allocatable.contains_key(NIC)
        || node.manager.capacity().await.allocatable[NIC] == 0
    {
        node.manager.changed().await;
    }
    let wants = |uid: &str, first: &str, second: &str| {
        let container = |name: &str, resource: &str| ContainerRequest {
            name: name.to_owned(),
            kind: Kind::Regular,
            limits: [(resource.to_owned(), 1)].into(),
        };
        PodRequest {
            uid: uid.to_owned(),
            containers: vec![container("1", first), container("2", second)],
        }
    };
    let (one, other) = (wants("1", GPU, NIC), wants("2", NIC, GPU));
    let (one, other) = tokio::join!(node.allocate(&one), node.allocate(&other));
    assert_eq!(one, "ok");
    assert_ne!(other, "ok");
    // What the one that lost had for a moment is free again.
    node.manager.retain(|uid| uid != "1").await;
    assert_eq!(node.allocate(&wants("3", NIC, GPU)).await, "ok");
}

#[tokio::test]
async fn whoever_may_not_register_is_told_why() {
    let node = Node::start().await;
    let plugin = FakePlugin::new("a", PluginOptions::default());
    let _served = plugin.serve(&node.path("gpu.sock")).await;
    let told = node
        .register("v1alpha1", "gpu.sock", GPU)
        .await
        .unwrap_err();
    assert_eq!(
        told,
        "requested API version \"v1alpha1\" is not supported by kubelet. Supported version is [\"v1beta1\"]"
    );
    let told = node
        .register("v1beta1", "gpu.sock", "cpu")
        .await
        .unwrap_err();
    assert_eq!(told, "the ResourceName \"cpu\" is invalid");
    let told = node
        .register("v1beta1", "../gpu.sock", GPU)
        .await
        .unwrap_err();
    assert!(told.contains("no socket below"), "{told}");
    assert_eq!(node.counts().await, (None, None));
    assert_eq!(node.register("v1beta1", "gpu.sock", GPU).await, Ok(()));
    let told = node.register("v1beta1", "gpu.sock", GPU).await.unwrap_err();
    assert!(
        told.starts_with("device plugin already connected: "),
        "{told}"
    );
}

/// A new version of a plugin comes before the old one goes.
#[tokio::test]
async fn of_two_plugins_of_a_resource_the_newer_is_asked() {
    let node = Node::start().await;
    let (old, served) = node.plugin("a b", PluginOptions::default()).await;
    let new = FakePlugin::new("a b c", PluginOptions::default());
    let _new = new.serve(&node.path("gpu-2.sock")).await;
    node.register("v1beta1", "gpu-2.sock", GPU).await.unwrap();
    node.until(3).await;
    assert_eq!(node.allocate(&plain("1", 1)).await, "ok");
    assert_eq!((old.take_calls().len(), new.take_calls().len()), (0, 1));
    node.manager.disconnect(GPU, &served.socket);
    assert_eq!(node.counts().await, (Some(3), Some(3)));
    assert_eq!(node.allocate(&plain("2", 1)).await, "ok");
    assert_eq!(new.take_calls().len(), 1);
}

#[tokio::test]
async fn nothing_is_freed_before_what_runs_was_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let clock = component_base::clock::FakeClock::new(Timestamp::UNIX_EPOCH);
    let path = dir.path().join("device-plugins");
    let told = Arc::new(Told::default());
    let manager = Arc::new(Manager::load(path, clock.clock(), told).unwrap());
    let plugin = FakePlugin::new("a", PluginOptions::default());
    manager
        .plugin_came(GPU, Path::new("fake"), plugin)
        .await
        .unwrap();
    while manager.capacity().await.allocatable[GPU] == 0 {
        manager.changed().await;
    }
    manager.allocate_pod(&plain("1", 1)).await.unwrap();
    manager.retain(|_| false).await;
    assert!(manager.allocate_pod(&plain("2", 1)).await.is_err());
    manager.settle();
    manager.retain(|_| false).await;
    assert!(manager.allocate_pod(&plain("2", 1)).await.is_ok());
}

/// Clients of grpc-go that were given the path of a socket call its server by that.
#[tokio::test]
async fn a_plugin_may_call_the_kubelet_by_the_path_of_its_socket() {
    use prost::Message as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let node = Node::start().await;
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let [_, a, b, c] = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[a, b, c, kind, flags, 0, 0, 0, stream], payload].concat()
    };
    let literal = |first: &[u8], value: &str| {
        let length = u8::try_from(value.len()).unwrap();
        [first, &[length], value.as_bytes()].concat()
    };
    for (authority, resource) in [
        (
            "/var/lib/kubelet/device-plugins/kubelet.sock",
            "example.com/old",
        ),
        (
            "%2Fvar%2Flib%2Fkubelet%2Fdevice-plugins%2Fkubelet.sock",
            "example.com/new",
        ),
        ("localhost", "example.com/plain"),
    ] {
        let headers = [
            vec![0x83, 0x86],
            literal(&[0x44], "/v1beta1.Registration/Register"),
            literal(&[0x41], authority),
            literal(&[0x5f], "application/grpc"),
            literal(b"\x40\x02te", "trailers"),
        ];
        let request = crate::v1beta1::RegisterRequest {
            version: "v1beta1".to_owned(),
            endpoint: "../nowhere".to_owned(),
            resource_name: resource.to_owned(),
            options: None,
        };
        let request = request.encode_to_vec();
        let length = u32::try_from(request.len()).unwrap().to_be_bytes();
        let message = [&[0][..], &length, &request].concat();
        let socket = node.path("kubelet.sock");
        let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
        let sent = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            frame(4, 0, 0, &[]),
            frame(1, 4, 1, &headers.concat()),
            frame(0, 1, 1, &message),
        ];
        stream.write_all(&sent.concat()).await.unwrap();
        let kind = loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await.unwrap();
            let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
            stream.read_exact(&mut payload).await.unwrap();
            // An answer (1), or that there will be none (3, 7).
            if [1, 3, 7].contains(&head[3]) {
                break head[3];
            }
        };
        assert_eq!(kind, 1, "{authority}");
        let told = node.told.0.lock().unwrap().pop();
        assert_eq!(told, Some(format!("registered {resource}")));
    }
}

/// Upstream's kubelet takes answers that this one refuses.
#[tokio::test]
async fn what_another_kubelet_took_and_this_one_cannot_do_is_refused() {
    let node = Node::start().await;
    let (_plugin, _served) = node.plugin("a", PluginOptions::default()).await;
    let of = ("1", "c", GPU);
    let chosen = ["a".to_owned()].into();
    let mut inner = node.manager.inner();
    inner.state.commit(of, &chosen, bad_answer());
    drop(inner);
    node.manager.write().await.unwrap();
    let node = node.restart().await;
    let pod = plain("1", 1);
    let options = node.manager.container_options(&pod, "c", true);
    let told = options.await.unwrap_err().to_string();
    assert!(
        told.starts_with("device plugin of example.com/gpu: the environment variable \"=\""),
        "{told}"
    );
}

/// Who asked may hang up; the next write waits for the first all the same.
#[test]
fn a_write_that_nobody_waits_for_keeps_its_turn() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()
        .unwrap();
    runtime.block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let clock = component_base::clock::FakeClock::new(Timestamp::UNIX_EPOCH);
        let told = Arc::new(Told::default());
        let manager = Manager::load(dir.path().to_owned(), clock.clock(), told).unwrap();
        let (release, held) = std::sync::mpsc::channel::<()>();
        let busy = tokio::task::spawn_blocking(move || held.recv().is_ok());
        let hung_up = futures::FutureExt::now_or_never(manager.write());
        assert!(hung_up.is_none());
        assert!(manager.written.try_lock().is_err());
        drop(release);
        busy.await.unwrap();
        let written = manager.written.lock().await.clone();
        let file = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert_eq!(written, Some(file));
    });
}
