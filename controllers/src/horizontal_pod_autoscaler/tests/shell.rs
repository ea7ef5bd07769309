//! The shell against an API in memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use component_base::clock::FakeClock;
use component_base::events::Recorder;
use controller_runtime::executor::Target;
use controller_runtime::testing::FakeApi;
use controller_runtime::transport::{Request, Verb};
use controller_runtime::{ApiError, Controller, ObjectKey, Resource};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, from_value, json};

use super::super::controller::Autoscalers;
use super::super::metrics_api::MetricsApi;
use super::super::sync::Settings;
use super::{now, pods};
use crate::discovery::{ApiResources, Discovered, Discovery};
use crate::testing::{Feed, settle};

struct Deployments;

#[async_trait]
impl Discovery for Deployments {
    async fn resources(&self) -> Result<ApiResources, ApiError> {
        let deployments = Discovered {
            resource: Resource::of::<Deployment>(),
            namespaced: true,
            verbs: Vec::new(),
            preferred: true,
            subresources: vec!["scale".into()],
        };
        let resources = vec![deployments];
        let failed = Vec::new();
        Ok(ApiResources { resources, failed })
    }
}

/// What the metrics APIs say, by the beginning of the path.
#[derive(Default)]
struct Answers(Mutex<HashMap<String, Value>>);

impl Answers {
    fn set(&self, path: &str, answer: Value) {
        self.0.lock().unwrap().insert(path.to_owned(), answer);
    }

    /// Millicores of each pod.
    fn cpu(&self, levels: &[i64]) {
        let items = levels.iter().enumerate().map(|(i, level)| {
            json!({
                "metadata": { "name": format!("p{i}") }, "timestamp": now().to_string(), "window": "1m",
                "containers": [{ "name": "c1", "usage": { "cpu": format!("{level}m") } }],
            })
        });
        let items: Value = items.collect();
        self.set(
            "/apis/metrics.k8s.io/v1beta1/namespaces/ns/pods?",
            json!({ "items": items }),
        );
    }
}

#[async_trait]
impl MetricsApi for Answers {
    async fn get(&self, path: &str) -> Result<Value, ApiError> {
        let answers = self.0.lock().unwrap();
        let found = answers.iter().find(|(prefix, _)| path.starts_with(*prefix));
        let missing = || ApiError::NotFound(ApiError::NO_SUCH_RESOURCE.into());
        found.map(|(_, answer)| answer.clone()).ok_or_else(missing)
    }
}

struct Cluster {
    api: FakeApi,
    autoscalers: Feed<HorizontalPodAutoscaler>,
    controller: Autoscalers,
    answers: Arc<Answers>,
    events: Box<dyn FnMut() -> Vec<String>>,
    clock: FakeClock,
    _pods: Feed<Pod>,
}

async fn cluster(replicas: i32, kinds: &str) -> Cluster {
    let api = FakeApi::new();
    let (recorder, mut receiver) = Recorder::fake();
    let (autoscalers, autoscaler_informer) = Feed::new();
    let (pod_feed, pod_informer) = Feed::new();
    let answers = Arc::new(Answers::default());
    let clock = FakeClock::new(now());
    let controller = Autoscalers::new(
        autoscaler_informer,
        pod_informer,
        api.executor_with(recorder),
        Arc::new(Deployments),
        answers.clone(),
        Settings {
            sync_period: Duration::from_secs(15),
            downscale_stabilization: Duration::from_secs(300),
            tolerance: 0.1,
            cpu_initialization_period: Duration::from_secs(120),
            initial_readiness_delay: Duration::from_secs(10),
            scale_to_zero: true,
            generation: true,
            consistency: true,
        },
        clock.clock(),
        super::super::monitor::Monitor::unread(),
    );
    for pod in pods(kinds) {
        pod_feed.apply((*pod).clone());
    }
    // Its scale is itself here; a Deployment's has another selector.
    let deployment: Deployment = from_value(json!({
        "metadata": { "namespace": "ns", "name": "d" },
        "spec": { "replicas": replicas, "selector": {}, "template": {} },
        "status": { "replicas": replicas },
    }))
    .unwrap();
    api.insert(&deployment);
    let mut scale = serde_json::to_value(&deployment).unwrap();
    scale["status"]["selector"] = json!("app=x");
    let target = Target::of::<Deployment>("ns", "d");
    let stored = controller
        .executor
        .send(Verb::Update, &target, Vec::new(), scale);
    stored.await.unwrap();
    settle().await;
    let events = Box::new(move || {
        let mut events = Vec::new();
        while let Ok(event) = receiver.try_recv() {
            events.push(format!("{}: {}", event.reason, event.message));
        }
        events
    });
    Cluster {
        api,
        autoscalers,
        controller,
        answers,
        events,
        clock,
        _pods: pod_feed,
    }
}

fn autoscaler(spec: Value) -> HorizontalPodAutoscaler {
    let mut all = json!({
        "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": "d" },
        "minReplicas": 1, "maxReplicas": 10,
        "metrics": [{ "type": "Resource", "resource": { "name": "cpu", "target": { "type": "Utilization", "averageUtilization": 50 } } }],
    });
    for (field, value) in spec.as_object().unwrap() {
        all[field] = value.clone();
    }
    from_value(json!({ "metadata": { "namespace": "ns", "name": "h", "uid": "h", "generation": 3 }, "spec": all })).unwrap()
}

impl Cluster {
    async fn sync(&mut self) -> Vec<String> {
        let stored: HorizontalPodAutoscaler = self.api.get("ns", "h").unwrap();
        self.autoscalers.apply(stored);
        settle().await;
        let again = self
            .controller
            .reconcile(&ObjectKey::new("ns", "h"))
            .await
            .unwrap();
        assert_eq!(again, Some(Duration::from_secs(15)));
        (self.events)()
    }

    fn replicas(&self) -> i32 {
        let deployment: Deployment = self.api.get("ns", "d").unwrap();
        deployment.spec.replicas.unwrap()
    }

    /// The conditions as `Type=Status:Reason`, and the desired number.
    fn status(&self) -> (Vec<String>, i32) {
        let stored: HorizontalPodAutoscaler = self.api.get("ns", "h").unwrap();
        let status = stored.status.unwrap();
        let conditions = status.conditions.into_iter().flatten();
        let conditions =
            conditions.map(|c| format!("{}={}:{}", c.type_, c.status, c.reason.unwrap()));
        (conditions.collect(), status.desired_replicas)
    }
}

#[tokio::test]
async fn up_at_once_and_down_after_the_window() {
    let mut cluster = cluster(2, "rr").await;
    cluster.api.insert(&autoscaler(json!({})));
    cluster.answers.cpu(&[2000, 2000]);
    let events = cluster.sync().await;
    assert_eq!(
        events,
        [
            "SuccessfulRescale: New size: 4; reason: cpu resource utilization (percentage of request) above target"
        ]
    );
    assert_eq!(cluster.replicas(), 4);
    let (conditions, desired) = cluster.status();
    let expect = [
        "AbleToScale=True:SucceededRescale",
        "ScalingActive=True:ValidMetricFound",
        "ScalingLimited=False:DesiredWithinRange",
        "ScaledToZero=False:NotScaledToZero",
    ];
    assert_eq!(
        (conditions.as_slice(), desired),
        (expect.map(str::to_owned).as_slice(), 4)
    );
    let stored: HorizontalPodAutoscaler = cluster.api.get("ns", "h").unwrap();
    assert_eq!(stored.status.unwrap().observed_generation, Some(3));
    cluster.answers.cpu(&[100, 100]);
    assert!(cluster.sync().await.is_empty());
    assert_eq!(cluster.replicas(), 4);
    assert!(cluster.status().0[0].ends_with("ScaleDownStabilized"));
    cluster.clock.advance(Duration::from_secs(301));
    let events = cluster.sync().await;
    assert_eq!(
        events,
        ["SuccessfulRescale: New size: 1; reason: All metrics below target"]
    );
}

#[tokio::test]
async fn out_of_bounds_needs_no_metric() {
    for (spec, expect) in [
        (
            json!({ "maxReplicas": 3 }),
            "SuccessfulRescale: New size: 3; reason: Current number of replicas above Spec.MaxReplicas",
        ),
        (
            json!({ "minReplicas": 7 }),
            "SuccessfulRescale: New size: 7; reason: Current number of replicas below Spec.MinReplicas",
        ),
    ] {
        let mut cluster = cluster(5, "rr").await;
        cluster.api.insert(&autoscaler(spec));
        assert_eq!(cluster.sync().await, [expect]);
    }
}

/// What a cluster without the metrics APIs says; upstream's words, as `cargo e2e compare --loops` sees them.
#[tokio::test]
async fn an_api_that_is_not_there_is_named() {
    for (metric, cause) in [
        (
            json!({ "type": "Pods", "pods": { "metric": { "name": "hits" }, "target": { "type": "AverageValue", "averageValue": "1" } } }),
            "unable to get metric hits: unable to fetch metrics from custom metrics API: no custom metrics API (custom.metrics.k8s.io) registered",
        ),
        (
            json!({ "type": "External", "external": { "metric": { "name": "queue" }, "target": { "type": "AverageValue", "averageValue": "1" } } }),
            "unable to fetch metrics from external metrics API: the server could not find the requested resource (get queue.external.metrics.k8s.io)",
        ),
    ] {
        let mut cluster = cluster(2, "rr").await;
        let spec = json!({ "metrics": [metric] });
        cluster.api.insert(&autoscaler(spec));
        let events = cluster.sync().await;
        assert!(events[0].ends_with(cause), "{events:?}");
    }
}

#[tokio::test]
async fn what_is_wrong_stands_in_events_and_conditions() {
    let mut cluster = cluster(2, "rr").await;
    cluster.api.insert(&autoscaler(json!({})));
    let events = cluster.sync().await;
    let cause = "failed to get cpu utilization: unable to get metrics for resource cpu: unable to fetch metrics from resource metrics API: the server could not find the requested resource (get pods.metrics.k8s.io)";
    assert_eq!(
        events,
        [
            format!("FailedGetResourceMetric: {cause}"),
            format!(
                "FailedComputeMetricsReplicas: invalid metrics (1 invalid out of 1), first error is: failed to get cpu resource metric value: {cause}"
            ),
        ]
    );
    assert_eq!(
        cluster.status().0,
        [
            "AbleToScale=True:SucceededGetScale",
            "ScalingActive=False:FailedGetResourceMetric"
        ]
    );
    assert_eq!(cluster.replicas(), 2);

    let mut other = autoscaler(json!({}));
    other.spec.scale_target_ref.kind = "Thing".into();
    cluster.api.insert(&other);
    let events = cluster.sync().await;
    assert_eq!(
        events,
        ["FailedGetScale: no matches for kind \"Thing\" in group \"apps\""]
    );
    assert!(
        cluster
            .status()
            .0
            .contains(&"AbleToScale=False:FailedGetScale".to_owned())
    );
}

#[tokio::test]
async fn a_scale_that_cannot_be_written_is_told() {
    let mut cluster = cluster(2, "rr").await;
    cluster.api.insert(&autoscaler(json!({})));
    cluster.answers.cpu(&[2000, 2000]);
    let is_scale = |r: &Request| r.subresource == "scale" && r.verb == Verb::Update;
    cluster
        .api
        .fail(is_scale, ApiError::Forbidden("quota".into()));
    let events = cluster.sync().await;
    assert_eq!(
        events,
        [
            "FailedRescale: New size: 4; reason: cpu resource utilization (percentage of request) above target; error: quota"
        ]
    );
    assert_eq!(cluster.status().0[0], "AbleToScale=False:FailedUpdateScale");
}

#[tokio::test]
async fn to_zero_and_back() {
    let queue = json!([{ "type": "External", "external": { "metric": { "name": "queue" }, "target": { "type": "Value", "value": "10" } } }]);
    let mut cluster = cluster(1, "r").await;
    let behavior = json!({ "scaleDown": { "stabilizationWindowSeconds": 0, "policies": [{ "type": "Percent", "value": 100, "periodSeconds": 15 }] },
        "scaleUp": { "policies": [{ "type": "Pods", "value": 4, "periodSeconds": 15 }] } });
    cluster.api.insert(&autoscaler(
        json!({ "minReplicas": 0, "metrics": queue, "behavior": behavior }),
    ));
    let path = "/apis/external.metrics.k8s.io/v1beta1/namespaces/ns/queue?";
    cluster
        .answers
        .set(path, json!({ "items": [{ "value": "0" }] }));
    cluster.clock.advance(Duration::from_secs(1));
    let events = cluster.sync().await;
    assert_eq!(
        events,
        ["SuccessfulRescale: New size: 0; reason: All metrics below target"]
    );
    assert!(
        cluster
            .status()
            .0
            .contains(&"ScaledToZero=True:ScaledToZero".to_owned())
    );
    cluster.clock.advance(Duration::from_secs(20));
    assert!(cluster.sync().await.is_empty());
    cluster
        .answers
        .set(path, json!({ "items": [{ "value": "25" }] }));
    cluster.clock.advance(Duration::from_secs(20));
    let events = cluster.sync().await;
    assert_eq!(
        events,
        ["SuccessfulRescale: New size: 3; reason: external metric queue(nil) above target"]
    );
    assert_eq!(cluster.replicas(), 3);
}

#[tokio::test]
async fn what_somebody_set_to_zero_stays_there() {
    let mut cluster = cluster(0, "").await;
    cluster.api.insert(&autoscaler(json!({})));
    assert!(cluster.sync().await.is_empty());
    assert_eq!(
        cluster.status().0,
        [
            "AbleToScale=True:SucceededGetScale",
            "ScalingActive=False:ScalingDisabled"
        ]
    );
}

#[tokio::test]
async fn one_set_of_pods_has_one_autoscaler() {
    let mut cluster = cluster(2, "rr").await;
    cluster.answers.cpu(&[1000, 1000]);
    let mut other = autoscaler(json!({}));
    other.metadata.name = Some("g".into());
    cluster.api.insert(&other);
    cluster
        .autoscalers
        .apply(cluster.api.get("ns", "g").unwrap());
    settle().await;
    cluster
        .controller
        .reconcile(&ObjectKey::new("ns", "g"))
        .await
        .unwrap();
    cluster.api.insert(&autoscaler(json!({})));
    (cluster.events)();
    let events = cluster.sync().await;
    assert_eq!(
        events[0],
        "AmbiguousSelector: pods by selector app=x are controlled by more than one HPA (e.g. [ns/g ns/h])"
    );
    assert_eq!(
        cluster.status().0[1],
        "ScalingActive=False:AmbiguousSelector"
    );
}

#[tokio::test]
async fn a_stale_cache_is_waited_for() {
    let mut cluster = cluster(2, "rr").await;
    cluster.api.insert(&autoscaler(json!({})));
    cluster.answers.cpu(&[2000, 2000]);
    let mut before: HorizontalPodAutoscaler = cluster.api.get("ns", "h").unwrap();
    before.metadata.resource_version = Some("1".into());
    cluster.sync().await;
    cluster.autoscalers.apply(before);
    settle().await;
    let again = cluster
        .controller
        .reconcile(&ObjectKey::new("ns", "h"))
        .await
        .unwrap();
    assert_eq!(again, Some(Duration::from_secs(1)));
    assert_eq!(cluster.replicas(), 4);
}
