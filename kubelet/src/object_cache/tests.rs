//! What each strategy asks of the API server.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::http::{StatusCode, Uri};
use component_base::client::ClientConfig;

use super::*;
use crate::cm::machine::MachineInfo;

struct World {
    store: Arc<Store<ConfigMap>>,
    reads: Arc<AtomicUsize>,
    watches: Arc<AtomicUsize>,
    down: Arc<std::sync::atomic::AtomicBool>,
}

impl World {
    async fn new(strategy: Strategy) -> Self {
        let (reads, watches) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let down = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let counters = (reads.clone(), watches.clone(), down.clone());
        let router = axum::Router::new().fallback(async move |uri: Uri| {
            let (reads, watches, down) = counters;
            if uri.query().unwrap_or_default().contains("fieldSelector") {
                watches.fetch_add(1, Ordering::SeqCst);
                return (StatusCode::SERVICE_UNAVAILABLE, String::new());
            }
            let count = reads.fetch_add(1, Ordering::SeqCst);
            if down.load(Ordering::SeqCst) {
                // No answer of an API server: the body is none.
                return (StatusCode::OK, "gone".to_owned());
            }
            let body = format!(r#"{{"metadata":{{"name":"a"}},"data":{{"count":"{count}"}}}}"#);
            (StatusCode::OK, body)
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut config = ClientConfig::new("test");
        config.master = Some(format!("http://{}", listener.local_addr().unwrap()));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let node = NodeState::new(
            "n".to_owned(),
            MachineInfo::default(),
            Default::default(),
            Default::default(),
            Default::default(),
        );
        let store = Arc::new(Store {
            resource: "configmap",
            client: config.build().await.unwrap(),
            shutdown: Shutdown::new(),
            strategy,
            node: Arc::new(node),
            clock: Clock::real(),
            entries: Mutex::default(),
            changes: Arc::default(),
        });
        Self {
            store,
            reads,
            watches,
            down,
        }
    }

    fn register(&self, pod: &str) {
        self.store.register(pod, "n", &BTreeSet::from(["a"]));
    }

    async fn count(&self) -> String {
        let found = self.store.get("n", "a").await.unwrap().unwrap();
        found.data.as_ref().unwrap()["count"].clone()
    }
}

#[tokio::test]
async fn get_asks_every_time_and_watches_nothing() {
    let world = World::new(Strategy::Get).await;
    world.register("pod");
    assert_eq!(
        (world.count().await, world.count().await),
        ("0".to_owned(), "1".to_owned())
    );
    assert_eq!(world.watches.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn cache_asks_for_a_new_pod_and_after_its_time() {
    let world = World::new(Strategy::Cache).await;
    world.register("one");
    assert_eq!(
        (world.count().await, world.count().await),
        ("0".to_owned(), "0".to_owned())
    );
    // Nothing new about a pod that is known.
    world.register("one");
    assert_eq!(world.count().await, "0");
    world.register("two");
    assert_eq!(world.count().await, "1");
    // The Node says how long it lasts: here not at all.
    let mut node = k8s_openapi::api::core::v1::Node::default();
    node.metadata.annotations = Some([(TTL_ANNOTATION.to_owned(), "0".to_owned())].into());
    world.store.node.set_node(Arc::new(node));
    assert_eq!(world.count().await, "2");
    // The old one will do while nobody answers.
    world.down.store(true, Ordering::SeqCst);
    assert_eq!(world.count().await, "2");
    assert_eq!(world.reads.load(Ordering::SeqCst), 4);
    assert_eq!(world.watches.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn watch_watches() {
    let world = World::new(Strategy::Watch).await;
    world.register("pod");
    while world.watches.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.store.unregister("pod");
    assert!(world.store.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_counts_once_it_was_repeated() {
    let refused = |code: u16| {
        let status = kube::core::Status::failure("no relationship found", "Forbidden");
        kube::Error::Api(Box::new(status.with_code(code)))
    };
    for (code, refusals, asked_times, is_found) in [
        (403, 0, 1, true),
        (403, 3, 4, true),
        (403, 100, 6, false),
        // Anything else is no matter of patience.
        (500, 1, 1, false),
    ] {
        let times = AtomicUsize::new(0);
        let ask = || async {
            match times.fetch_add(1, Ordering::SeqCst) < refusals {
                true => Err(refused(code)),
                false => Ok(Some(())),
            }
        };
        let answer = asked("persistentvolumeclaim", "ns", "c", ask).await;
        assert_eq!(answer.is_ok(), is_found, "{code} {refusals}");
        assert_eq!(
            times.load(Ordering::SeqCst),
            asked_times,
            "{code} {refusals}"
        );
    }
}
