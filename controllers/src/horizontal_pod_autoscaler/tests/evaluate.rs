//! What metrics' answers say, and what is told of one metric and of all.

use controller_runtime::ApiError;
use k8s_openapi::api::autoscaling::v2::MetricSpec;
use serde_json::{Value, from_value, json};

use super::super::calculator::sum;
use super::super::evaluate::{Failure, Proposal, ReadError, Readings, evaluate};
use super::super::metrics_api::*;
use super::super::sync::combine;
use super::{metrics, pods, target};

fn spec(of: Value) -> MetricSpec {
    from_value(of).unwrap()
}

fn check(of: Value, readings: Result<Readings, ReadError>) -> Result<Proposal, Failure> {
    let pods = pods("rrr");
    evaluate(&spec(of), readings, &target(&pods, 3), "ns")
}

fn nothing(api: Api) -> Result<Readings, ReadError> {
    Err(MetricsError::None { api }.into())
}

#[test]
fn answers_of_the_metrics_apis() {
    let pod = |name: &str, usage: &[Option<&str>]| {
        let containers = usage.iter().enumerate().map(|(i, usage)| {
            let usage = usage.map_or(json!({}), |cpu| json!({ "cpu": cpu }));
            json!({ "name": format!("c{i}"), "usage": usage })
        });
        json!({
            "metadata": { "name": name }, "timestamp": "2026-01-10T12:00:00Z", "window": "30s",
            "containers": containers.collect::<Value>(),
        })
    };
    let answer = json!({ "items": [
        pod("a", &[Some("100m"), Some("250000000n")]), pod("b", &[Some("1"), None]), pod("c", &[]),
    ]});
    let whole = pod_resources(&answer, "cpu", "").unwrap();
    assert_eq!(whole.len(), 1);
    assert_eq!((whole["a"].value, whole["a"].window.as_secs()), (350, 30));
    let one = pod_resources(&answer, "cpu", "c0").unwrap();
    assert_eq!((one["a"].value, one["b"].value, one.len()), (100, 1000, 2));
    let error = pod_resources(&json!({ "items": [] }), "cpu", "").unwrap_err();
    assert_eq!(
        error.to_string(),
        "no metrics returned from resource metrics API"
    );

    let value = |name: &str| {
        json!({
            "describedObject": { "name": name }, "timestamp": "2026-01-10T12:00:00Z", "value": "1500m",
        })
    };
    let custom = pod_values(&json!({ "items": [value("a")] })).unwrap();
    assert_eq!(
        (custom["a"].value, custom["a"].window.as_secs()),
        (1500, 60)
    );
    assert_eq!(
        object_value(&json!({ "items": [value("a")] })).unwrap(),
        1500
    );
    let error = object_value(&json!({ "items": [] }))
        .unwrap_err()
        .to_string();
    assert!(
        error.ends_with("returned 0 results when we asked for exactly one"),
        "{error}"
    );
    let outside =
        external_values(&json!({ "items": [{ "value": "1" }, { "value": "2" }] })).unwrap();
    assert_eq!(sum(&outside), 3000);
}

#[test]
fn paths_of_the_metrics_apis() {
    assert_eq!(
        resource_path("ns", "app=x"),
        "/apis/metrics.k8s.io/v1beta1/namespaces/ns/pods?labelSelector=app%3Dx"
    );
    assert_eq!(
        custom_path("v1beta2", "ns", ("pods", "*"), "qps", Some("app=x"), ""),
        "/apis/custom.metrics.k8s.io/v1beta2/namespaces/ns/pods/*/qps?labelSelector=app%3Dx&metricLabelSelector="
    );
    assert_eq!(
        custom_path("v1beta1", "ns", ("services", "s"), "qps", None, "a=b"),
        "/apis/custom.metrics.k8s.io/v1beta1/namespaces/ns/services/s/qps?metricLabelSelector=a%3Db"
    );
    assert_eq!(
        custom_path("v1beta2", "ns", ("", "other"), "qps", None, ""),
        "/apis/custom.metrics.k8s.io/v1beta2/namespaces/ns/metrics/qps?metricLabelSelector="
    );
    assert_eq!(
        external_path("ns", "queue", "a in (b,c)"),
        "/apis/external.metrics.k8s.io/v1beta1/namespaces/ns/queue?labelSelector=a%20in%20%28b%2Cc%29"
    );
}

#[test]
fn every_kind_of_metric() {
    let levels = || Ok(Readings::Pods(metrics(&[600, 1000, 1400])));
    for (of, readings, replicas, name, status) in [
        (
            json!({ "type": "Resource", "resource": { "name": "cpu", "target": { "type": "Utilization", "averageUtilization": 30 } } }),
            levels(),
            5,
            "cpu resource utilization (percentage of request)",
            json!({ "type": "Resource", "resource": { "name": "cpu", "current": { "averageUtilization": 50, "averageValue": "1" } } }),
        ),
        (
            json!({ "type": "Resource", "resource": { "name": "memory", "target": { "type": "AverageValue", "averageValue": "1" } } }),
            Ok(Readings::Pods(metrics(&[2048000; 3]))),
            6144,
            "memory resource",
            json!({ "type": "Resource", "resource": { "name": "memory", "current": { "averageValue": "2Ki" } } }),
        ),
        (
            json!({ "type": "ContainerResource", "containerResource": { "name": "cpu", "container": "c1", "target": { "type": "Utilization", "averageUtilization": 60 } } }),
            levels(),
            5,
            "cpu container resource utilization (percentage of request)",
            json!({ "type": "ContainerResource", "containerResource": { "name": "cpu", "container": "c1", "current": { "averageUtilization": 100, "averageValue": "1" } } }),
        ),
        (
            json!({ "type": "Pods", "pods": { "metric": { "name": "qps" }, "target": { "type": "AverageValue", "averageValue": "500m" } } }),
            levels(),
            6,
            "pods metric qps",
            json!({ "type": "Pods", "pods": { "metric": { "name": "qps" }, "current": { "averageValue": "1" } } }),
        ),
        (
            json!({ "type": "Object", "object": { "metric": { "name": "qps" }, "describedObject": { "kind": "Service", "name": "s" }, "target": { "type": "Value", "value": "15" } } }),
            Ok(Readings::Object(20000)),
            4,
            "Service metric qps",
            json!({ "type": "Object", "object": { "metric": { "name": "qps" }, "describedObject": { "kind": "Service", "name": "s" }, "current": { "value": "20" } } }),
        ),
        (
            json!({ "type": "Object", "object": { "metric": { "name": "qps" }, "describedObject": { "kind": "Service", "name": "s" }, "target": { "type": "AverageValue", "averageValue": "5" } } }),
            Ok(Readings::Object(20000)),
            4,
            "external metric qps(nil)",
            json!({ "type": "Object", "object": { "metric": { "name": "qps" }, "describedObject": { "kind": "Service", "name": "s" }, "current": { "averageValue": "6667m" } } }),
        ),
        (
            json!({ "type": "External", "external": { "metric": { "name": "queue", "selector": { "matchLabels": { "a": "b" } } }, "target": { "type": "Value", "value": "15" } } }),
            Ok(Readings::External(vec![15000, 5000])),
            4,
            "external metric queue(&LabelSelector{MatchLabels:map[string]string{a: b,},MatchExpressions:[]LabelSelectorRequirement{},})",
            json!({ "type": "External", "external": { "metric": { "name": "queue", "selector": { "matchLabels": { "a": "b" } } }, "current": { "value": "20" } } }),
        ),
        (
            json!({ "type": "External", "external": { "metric": { "name": "queue" }, "target": { "type": "AverageValue", "averageValue": "5" } } }),
            Ok(Readings::External(vec![20000])),
            4,
            "external metric queue(nil)",
            json!({ "type": "External", "external": { "metric": { "name": "queue" }, "current": { "averageValue": "6667m" } } }),
        ),
    ] {
        let found = check(of.clone(), readings).unwrap();
        assert_eq!(
            (found.replicas, found.name.as_str()),
            (replicas, name),
            "{of}"
        );
        assert_eq!(serde_json::to_value(&found.status).unwrap(), status);
    }
}

#[test]
fn failures_are_told_in_upstreams_words() {
    let fetch = || {
        let source = ApiError::NotFound("the server could not find the requested resource".into());
        let api = Api::Resource;
        Err(MetricsError::Fetch { api, source }.into())
    };
    let utilization = || json!({ "type": "Resource", "resource": { "name": "cpu", "target": { "type": "Utilization", "averageUtilization": 30 } } });
    for (of, readings, reason, message, error) in [
        (
            utilization(),
            fetch(),
            "FailedGetResourceMetric",
            "failed to get cpu utilization: unable to get metrics for resource cpu: unable to fetch metrics from resource metrics API: the server could not find the requested resource",
            "failed to get cpu resource metric value: failed to get cpu utilization: unable to get metrics for resource cpu: unable to fetch metrics from resource metrics API: the server could not find the requested resource",
        ),
        (
            json!({ "type": "Pods", "pods": { "metric": { "name": "qps" }, "target": { "type": "AverageValue", "averageValue": "5" } } }),
            nothing(Api::Custom),
            "FailedGetPodsMetric",
            "unable to get metric qps: no metrics returned from custom metrics API",
            "failed to get pods metric value: unable to get metric qps: no metrics returned from custom metrics API",
        ),
        (
            json!({ "type": "Object", "object": { "metric": { "name": "qps" }, "describedObject": { "kind": "Service", "name": "s" }, "target": { "type": "Value", "value": "15" } } }),
            nothing(Api::Custom),
            "FailedGetObjectMetric",
            "unable to get metric qps on Service ns/s: no metrics returned from custom metrics API",
            "failed to get object metric value: unable to get metric qps on Service ns/s: no metrics returned from custom metrics API",
        ),
        (
            json!({ "type": "External", "external": { "metric": { "name": "queue" }, "target": { "type": "AverageValue", "averageValue": "5" } } }),
            nothing(Api::External),
            "FailedGetExternalMetric",
            "unable to get external metric ns/queue/nil: no metrics returned from external metrics API",
            "failed to get queue external metric value: failed to get queue external metric: unable to get external metric ns/queue/nil: no metrics returned from external metrics API",
        ),
        (
            json!({ "type": "External", "external": { "metric": { "name": "queue" }, "target": { "type": "Value" } } }),
            nothing(Api::External),
            "FailedGetExternalMetric",
            "invalid external metric source: neither a value target nor an average value target was set",
            "failed to get queue external metric value: invalid external metric source: neither a value target nor an average value target was set",
        ),
        (
            json!({ "type": "Other" }),
            nothing(Api::External),
            "InvalidMetricSourceType",
            "unknown metric source type \"Other\"",
            "unknown metric source type \"Other\"",
        ),
    ] {
        let failure = check(of, readings).unwrap_err();
        assert_eq!(
            (
                failure.reason,
                failure.message.as_str(),
                failure.error.as_str()
            ),
            (reason, message, error)
        );
        assert_eq!(failure.is_spec, reason == "InvalidMetricSourceType");
    }
}

#[test]
fn the_metric_that_asks_for_most() {
    let asks = |replicas: i32| {
        Ok(Proposal {
            replicas,
            name: format!("m{replicas}"),
            status: Default::default(),
        })
    };
    let fails = || {
        Err(Failure {
            reason: "FailedGetPodsMetric",
            message: "no".into(),
            error: "failed: no".into(),
            is_spec: false,
        })
    };
    let check = |proposals: Vec<Result<Proposal, Failure>>,
                 expect: Option<(i32, &str)>,
                 error: Option<&str>| {
        let count = proposals.len();
        let found = combine(proposals, 3);
        assert_eq!(found.replicas.map(|r| (r, found.name.as_str())), expect);
        assert_eq!(found.error.as_ref().map(|(e, _)| e.as_str()), error);
        assert_eq!(found.statuses.len(), count);
        let (reason, message) = match expect {
            Some((_, name)) => (
                "ValidMetricFound",
                format!("the HPA was able to successfully calculate a replica count from {name}"),
            ),
            None => (
                "FailedGetPodsMetric",
                "the HPA was unable to compute the replica count: no".to_owned(),
            ),
        };
        assert_eq!((found.reason, found.message), (reason, message));
    };
    check(vec![asks(4), asks(7), asks(2)], Some((7, "m7")), None);
    check(vec![asks(0)], Some((0, "m0")), None);
    // One that says nothing does not hold up, and does not let down.
    let first = "invalid metrics (1 invalid out of 2), first error is: failed: no";
    check(vec![fails(), asks(4)], Some((4, "m4")), Some(first));
    check(vec![asks(2), fails()], None, Some(first));
    check(
        vec![fails()],
        None,
        Some("invalid metrics (1 invalid out of 1), first error is: failed: no"),
    );
}
