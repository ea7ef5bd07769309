//! A whole kubelet in a test: an API server and a runtime in memory, a folder for its files, and a clock that goes as fast as
//! nobody has anything to do.

use std::sync::Arc;
use std::time::Duration;

use ::runtime::fake::FakeRuntime;
use component_base::clock::Clock;
use component_base::shutdown::Shutdown;
use component_base::testing::ApiServer;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use serde_json::{Value, json};
use systemd::testing::FakeLogind;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::AppError;
use super::assemble::{Parts, assemble};
use super::testing::{Given, seams};
use crate::configuration::KubeletConfiguration;
use crate::kubelet::Kubelet;

pub(crate) const NODE: &str = "node";
/// How long, by the world's clock, something may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(1200);
const LOOK: Duration = Duration::from_millis(20);

pub(crate) struct World {
    pub(crate) api: ApiServer,
    pub(crate) runtime: FakeRuntime,
    pub(crate) kubelet: Arc<Kubelet>,
    pub(crate) clock: Clock,
    pub(crate) shutdown: Shutdown,
    pub(crate) logind: FakeLogind,
    running: JoinHandle<Result<(), AppError>>,
    _files: TempDir,
}

impl World {
    /// A node of four processors and 8 GiB that runs. `configure`: what its configuration says besides.
    pub(crate) async fn start(configure: impl FnOnce(&mut KubeletConfiguration)) -> Self {
        Self::start_on(FakeLogind::default(), configure).await
    }

    /// The same on a machine with this logind.
    pub(crate) async fn start_on(
        logind: FakeLogind,
        configure: impl FnOnce(&mut KubeletConfiguration),
    ) -> Self {
        let clock = Clock::of_runtime(Timestamp::from_second(1_800_000_000).expect("in range"));
        let api = ApiServer::new(clock.clone());
        let runtime = FakeRuntime::new();
        let (shutdown, files) = (Shutdown::new(), tempfile::tempdir().expect("a folder"));
        let given = Given {
            node: NODE,
            address: [192, 0, 2, 1].into(),
            client: api.client(),
            runtime: runtime.clone(),
            clock: clock.clone(),
            shutdown: shutdown.clone(),
            files: files.path(),
        };
        let mut seams = seams(given, configure);
        seams.logind = Arc::new(logind.clone());
        let parts: Parts = assemble(seams).await.expect("assembled");
        let kubelet = parts.kubelet.clone();
        Self {
            api,
            runtime,
            kubelet,
            clock,
            shutdown,
            logind,
            running: tokio::spawn(parts.run()),
            _files: files,
        }
    }

    /// Ends it in good order.
    pub(crate) async fn end(self) {
        self.shutdown.trigger();
        let ended = self.running.await.expect("no panic");
        ended.expect("it ends in good order");
    }

    /// A pod of one container (`c`), bound to the node. `change`: RFC 7386, onto the whole object.
    pub(crate) fn create_pod(&self, name: &str, change: Value) -> Pod {
        let mut pod = json!({
            "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "nodeName": NODE,
                "terminationGracePeriodSeconds": 5,
                "containers": [{"name": "c", "image": "image"}],
            },
        });
        merge(&mut pod, &change);
        let pod: Pod = serde_json::from_value(pod).expect("pods in tests are valid");
        self.api.create(&pod)
    }

    pub(crate) fn pod(&self, name: &str) -> Option<Pod> {
        self.api.get("default", name)
    }

    /// Waits until the pod is as `condition` says.
    pub(crate) async fn until_pod(&self, name: &str, condition: impl Fn(&Pod) -> bool) -> Pod {
        let seen = || self.pod(name).filter(|pod| condition(pod));
        let found = self.until(|| seen().is_some()).await;
        assert!(found, "{:#?}\n{:#?}", self.pod(name), self.events(name));
        seen().expect("just seen")
    }

    pub(crate) async fn until_phase(&self, name: &str, phase: &str) -> Pod {
        self.until_pod(name, |pod| crate::pod::phase(pod) == phase)
            .await
    }

    /// Waits until there is no object any longer.
    pub(crate) async fn until_gone(&self, name: &str) {
        let gone = self.until(|| self.pod(name).is_none()).await;
        assert!(gone, "{:#?}", self.pod(name));
    }

    pub(crate) async fn until_node(&self, condition: impl Fn(&Node) -> bool) -> Node {
        let node = || self.api.get::<Node>("", NODE);
        let found = self
            .until(|| node().is_some_and(|node| condition(&node)))
            .await;
        assert!(found, "{:#?}", node());
        node().expect("just seen")
    }

    /// Whether `condition` came true in time.
    pub(crate) async fn until(&self, condition: impl Fn() -> bool) -> bool {
        let waiting = async {
            while !condition() {
                self.clock.sleep(LOOK).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.is_ok()
    }

    /// Reason and message of what was told of an object, as the API server has it, sorted.
    pub(crate) fn events(&self, name: &str) -> Vec<(String, String)> {
        let events = self.api.list::<Event>().into_iter();
        let mut told: Vec<_> = events
            .filter(|event| event.involved_object.name.as_deref() == Some(name))
            .map(|e| (e.reason.unwrap_or_default(), e.message.unwrap_or_default()))
            .collect();
        told.sort();
        told
    }

    /// Waits until an event of this reason was written.
    pub(crate) async fn until_event(&self, name: &str, reason: &str) -> String {
        let find = || self.events(name).into_iter().find(|(r, _)| r == reason);
        let found = self.until(|| find().is_some()).await;
        assert!(found, "{reason}: {:#?}", self.events(name));
        find().expect("just seen").1
    }
}

pub(crate) fn condition<'a>(
    conditions: impl IntoIterator<Item = (&'a String, &'a String)>,
    kind: &str,
) -> Option<&'a str> {
    let mut conditions = conditions.into_iter();
    conditions
        .find(|(type_, _)| *type_ == kind)
        .map(|(_, status)| status.as_str())
}

pub(crate) fn node_condition<'a>(node: &'a Node, kind: &str) -> Option<&'a str> {
    let status = node.status.as_ref()?;
    let conditions = status.conditions.iter().flatten();
    condition(conditions.map(|c| (&c.type_, &c.status)), kind)
}

/// RFC 7386, as far as tests need it.
fn merge(target: &mut Value, change: &Value) {
    match (target, change) {
        (Value::Object(target), Value::Object(change)) => {
            for (name, value) in change {
                merge(target.entry(name).or_insert(Value::Null), value);
            }
        }
        (target, change) => *target = change.clone(),
    }
}
