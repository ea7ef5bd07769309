//! For tests: a client whose API server is `FakeApi`, and a provider that notes what it is asked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use component_base::clock::Clock;
use component_base::events::{RecordedEvent, Recorder};
use component_base::shutdown::Shutdown;
use controller_runtime::testing::FakeApi;
use controller_runtime::transport::{ApiError, PatchKind, Request, Resource, Transport as _, Verb};
use futures::channel::mpsc::{UnboundedSender, unbounded};
use http_body_util::{BodyExt as _, Full};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::runtime::watcher;
use kubelet_provider::{Features, PodEvents, PodId, PodReport, Provider, ProviderError};
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::configuration::NodeConfiguration;
use crate::nodes::object::Process;
use crate::nodes::{Heartbeat, Nodes};
use crate::pods::{self, Pods};

/// Waits until something holds; a test that waits for ever fails.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(10), waiting).await;
    assert!(waited.is_ok(), "{what}");
}

fn translate(method: &http::Method, path: &str, kind: Option<&str>, body: Value) -> Request {
    let mut parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    parts.drain(..if parts[0] == "api" { 2 } else { 3 });
    let mut namespace = String::new();
    if parts[0] == "namespaces" {
        namespace = parts[1].to_owned();
        parts.drain(..2);
    }
    let resource = match parts[0] {
        "nodes" => Resource::of::<Node>(),
        "pods" => Resource::of::<Pod>(),
        "leases" => Resource::of::<Lease>(),
        other => panic!("{other} is not known"),
    };
    let mut name = parts.get(1).map_or(String::new(), |n| (*n).to_owned());
    let verb = match (method.as_str(), name.is_empty()) {
        ("GET", true) => Verb::List,
        ("GET", false) => Verb::Get,
        ("POST", _) => Verb::Create,
        ("PUT", _) => Verb::Update,
        ("PATCH", _) if kind == Some("application/merge-patch+json") => {
            Verb::Patch(PatchKind::Merge)
        }
        ("PATCH", _) => Verb::Patch(PatchKind::Strategic),
        ("DELETE", _) => Verb::Delete,
        other => panic!("{other:?} is not known"),
    };
    if verb == Verb::Create {
        name = body["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
    }
    Request {
        verb,
        resource,
        namespace,
        name,
        subresource: parts
            .get(2)
            .map_or(String::new(), |s| (*s).to_owned())
            .into(),
        query: Vec::new(),
        body: body.into(),
    }
}

/// A client of `api`.
pub fn client(api: &FakeApi) -> kube::Client {
    let api = api.clone();
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let api = api.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
            let kind = head.headers.get(http::header::CONTENT_TYPE);
            let kind = kind.and_then(|k| k.to_str().ok());
            let answer = api
                .send(translate(&head.method, head.uri.path(), kind, body))
                .await;
            let (code, body) = match answer.and_then(|answer| answer.value()) {
                Ok(value) => (200, value),
                Err(error) => {
                    let (code, reason) = match error {
                        ApiError::NotFound(_) => (404, "NotFound"),
                        ApiError::Conflict(_) => (409, "Conflict"),
                        ApiError::AlreadyExists(_) => (409, "AlreadyExists"),
                        _ => (500, "InternalError"),
                    };
                    let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": error.to_string() });
                    (code, status)
                }
            };
            let bytes = Bytes::from(body.to_string());
            let response = http::Response::builder()
                .status(code)
                .body(Full::new(bytes));
            Ok::<_, tower::BoxError>(response.expect("a status and a body"))
        }
    });
    kube::Client::new(service, "default")
}

/// What a provider was asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Asked {
    Create(String),
    Update(String),
    Delete(String, u64),
}

/// A provider that notes what it is asked, and tells what a test wants.
#[derive(Default)]
pub struct Noting {
    pub events: OnceLock<PodEvents>,
    pub had: Vec<(PodId, PodReport)>,
    pub features: Features,
    pub asked: Mutex<Vec<Asked>>,
    /// Answers to `create_pod`, from the first on; then everything is fine.
    pub refusals: Mutex<Vec<ProviderError>>,
}

impl Noting {
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    fn note(&self, asked: Asked) {
        self.asked.lock().unwrap().push(asked);
    }

    pub fn events(&self) -> &PodEvents {
        self.events.get().unwrap()
    }
}

#[async_trait]
impl Provider for Noting {
    fn name(&self) -> &str {
        "noting"
    }
    fn features(&self) -> Features {
        self.features.clone()
    }
    async fn start(&self, events: PodEvents) -> Result<(), ProviderError> {
        assert!(self.events.set(events).is_ok());
        Ok(())
    }
    async fn pods(&self) -> Result<Vec<(PodId, PodReport)>, ProviderError> {
        Ok(self.had.clone())
    }
    async fn create_pod(&self, pod: Arc<Pod>) -> Result<(), ProviderError> {
        self.note(Asked::Create(pod.metadata.name.clone().unwrap()));
        let mut refusals = self.refusals.lock().unwrap();
        match refusals.is_empty() {
            true => Ok(()),
            false => Err(refusals.remove(0)),
        }
    }
    async fn update_pod(&self, pod: Arc<Pod>) -> Result<(), ProviderError> {
        self.note(Asked::Update(pod.metadata.name.clone().unwrap()));
        Ok(())
    }
    async fn delete_pod(&self, pod: &PodId, grace: Duration) -> Result<(), ProviderError> {
        self.note(Asked::Delete(pod.name.to_string(), grace.as_secs()));
        Ok(())
    }
}

/// Nodes `v-0` and `v-1` of a fake API server.
pub fn nodes(api: &FakeApi, lease_seconds: i32) -> Arc<Nodes> {
    let times = Heartbeat {
        lease_seconds,
        status_period: Duration::from_millis(200),
    };
    nodes_with(api, times)
}

/// The same, with heartbeats of a test's own.
pub fn nodes_with(api: &FakeApi, times: Heartbeat) -> Arc<Nodes> {
    let describe =
        |name| NodeConfiguration::default().describe(name, "noting", Some([10, 9, 0, 1].into()));
    let process = Process {
        provider: "noting".to_owned(),
        version: "1".to_owned(),
        port: 10250,
    };
    let descriptions = ["v-0", "v-1"].map(describe).into();
    Arc::new(Nodes::new(
        descriptions,
        process,
        times,
        client(api),
        client(api),
        Clock::real(),
    ))
}

/// Pods of those nodes, fed by hand.
pub struct Rig {
    pub api: FakeApi,
    pub pods: Pods,
    pub events: UnboundedReceiver<RecordedEvent>,
    pub shutdown: Shutdown,
    feed: UnboundedSender<watcher::Result<watcher::Event<Pod>>>,
}

impl Rig {
    /// Begins with `first` as the list of the API server.
    pub async fn start(
        api: FakeApi,
        provider: Arc<dyn Provider>,
        shutdown: Shutdown,
        first: Vec<Pod>,
    ) -> Self {
        let (sender, provider_events) = PodEvents::channel();
        provider.start(sender).await.unwrap();
        let (recorder, events) = Recorder::fake();
        let pods = Pods::new(pods::Parts {
            provider,
            client: client(&api),
            recorder,
            host_ip: Some([10, 9, 0, 1].into()),
            nodes: nodes(&api, 40),
            clock: Clock::real(),
            queues: controller_runtime::Queues::unread(Clock::real()),
        });
        let (feed, watch) = unbounded();
        tokio::spawn(pods.clone().run(watch, provider_events, shutdown.clone()));
        let rig = Self {
            api,
            pods,
            events,
            shutdown,
            feed,
        };
        rig.send(watcher::Event::Init);
        for pod in first {
            rig.api.insert(&pod);
            rig.send(watcher::Event::InitApply(pod));
        }
        rig.send(watcher::Event::InitDone);
        rig
    }

    pub fn send(&self, event: watcher::Event<Pod>) {
        self.feed.unbounded_send(Ok(event)).unwrap();
    }

    pub fn pod(&self, name: &str) -> Option<Pod> {
        self.api.get("ns", name)
    }

    pub fn phase(&self, name: &str) -> String {
        let pod = self.pod(name).unwrap_or_default();
        component_helpers::pod::phase(&pod).to_owned()
    }

    /// Tells of a pod as the API server has it now.
    pub fn echo(&self, name: &str) {
        self.send(watcher::Event::Apply(self.pod(name).unwrap()));
    }

    /// Asks for a pod's deletion, as `kubectl delete` does.
    pub fn delete(&self, name: &str, grace: i64) {
        let mut pod = self.pod(name).unwrap();
        let now = k8s_openapi::jiff::Timestamp::now();
        pod.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now));
        pod.metadata.deletion_grace_period_seconds = Some(grace);
        self.api.insert(&pod);
        self.echo(name);
    }
}

/// A pod in `ns` on `v-0`, with `spec` laid over.
pub fn pod(name: &str, annotations: Value, spec: Value) -> Pod {
    let mut value = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "ns", "uid": format!("uid-of-{name}"), "annotations": annotations },
        "spec": { "nodeName": "v-0", "restartPolicy": "Never", "containers": [{ "name": "c", "image": "i" }] },
    });
    let fields: HashMap<String, Value> = serde_json::from_value(spec).unwrap();
    for (field, of) in fields {
        value["spec"][field] = of;
    }
    serde_json::from_value(value).unwrap()
}
