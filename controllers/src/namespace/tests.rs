use std::sync::Arc;

use async_trait::async_trait;
use component_base::clock::FakeClock;
use controller_runtime::testing::FakeApi;
use controller_runtime::transport::Verb;
use controller_runtime::{ApiError, Resource};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use serde_json::{Value, json};

use super::deleter::*;
use super::sync::*;
use crate::discovery::{ApiResources, Discovered, Discovery};

#[derive(Default)]
struct Kinds(Vec<String>);

#[async_trait]
impl Discovery for Kinds {
    async fn resources(&self) -> Result<ApiResources, ApiError> {
        let kind = |resource: Resource, verbs: &[&str]| Discovered {
            resource,
            namespaced: true,
            verbs: verbs.iter().map(|v| (*v).to_owned()).collect(),
            preferred: true,
            subresources: vec![],
        };
        let resources = vec![
            kind(
                Resource::of::<ConfigMap>(),
                &["delete", "deletecollection", "list"],
            ),
            kind(
                Resource::of::<Pod>(),
                &["delete", "deletecollection", "list"],
            ),
        ];
        Ok(ApiResources {
            resources,
            failed: self.0.clone(),
        })
    }
}

fn now() -> Timestamp {
    "2026-01-01T00:01:00Z".parse().unwrap()
}

fn namespace(more: Value) -> Namespace {
    let mut value = json!({
        "metadata": {"name": "ns", "uid": "u", "deletionTimestamp": "2026-01-01T00:00:50Z"},
        "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
    });
    value
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    serde_json::from_value(value).unwrap()
}

fn object<K: serde::de::DeserializeOwned>(name: &str, more: Value) -> K {
    let mut value = json!({"metadata": {"name": name, "namespace": "ns", "uid": name}});
    for (key, fields) in more.as_object().unwrap() {
        value[key] = fields.clone();
    }
    serde_json::from_value(value).unwrap()
}

fn deleter(api: &FakeApi, kinds: Kinds) -> Deleter {
    Deleter {
        executor: api.executor(),
        discovery: Arc::new(kinds),
        clock: FakeClock::new(now()).clock(),
    }
}

fn reason(api: &FakeApi, type_: &str) -> String {
    let namespace = api.get::<Namespace>("", "ns").unwrap();
    let conditions = namespace.status.unwrap().conditions.unwrap();
    conditions
        .into_iter()
        .find(|c| c.type_ == type_)
        .unwrap()
        .reason
        .unwrap()
}

#[tokio::test]
async fn empties_the_namespace_pods_first_and_lets_it_go() {
    let api = FakeApi::new();
    api.insert(&namespace(json!({})));
    api.insert(&object::<Pod>("p", json!({"spec": {"containers": []}})));
    api.insert(&object::<ConfigMap>("c", json!({})));
    assert_eq!(
        deleter(&api, Kinds::default()).delete("ns").await.unwrap(),
        Progress::Done
    );
    assert!(api.list::<Pod>().is_empty() && api.list::<ConfigMap>().is_empty());
    let writes = api.writes();
    let brief: Vec<_> = writes
        .iter()
        .map(|r| (r.verb, r.resource.plural.as_ref(), r.subresource.as_ref()))
        .collect();
    assert_eq!(
        brief,
        [
            (Verb::Update, "namespaces", "status"),
            (Verb::DeleteCollection, "pods", ""),
            (Verb::DeleteCollection, "configmaps", ""),
            (Verb::Update, "namespaces", "status"),
            (Verb::Update, "namespaces", "finalize"),
        ]
    );
    assert!(
        writes
            .iter()
            .filter(|r| r.verb == Verb::DeleteCollection)
            .all(|r| r.body["propagationPolicy"] == "Background")
    );
    assert!(finalized(&api.get::<Namespace>("", "ns").unwrap()));
    assert_eq!(reason(&api, "NamespaceContentRemaining"), "ContentRemoved");
}

#[tokio::test]
async fn waits_for_pods_and_tells_of_failures() {
    let api = FakeApi::new();
    api.insert(&namespace(json!({})));
    api.insert(&object::<Pod>(
        "p",
        json!({"spec": {"containers": [], "terminationGracePeriodSeconds": 30}}),
    ));
    api.insert(&object::<ConfigMap>("c", json!({})));
    // Asked to go, they do not go at once.
    let unmoved = |r: &controller_runtime::transport::Request| {
        r.verb == Verb::DeleteCollection && r.resource.plural == "pods"
    };
    api.fail(unmoved, ApiError::Forbidden("no".into()));
    let error = deleter(&api, Kinds::default())
        .delete("ns")
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "no");
    assert_eq!(
        reason(&api, "NamespaceDeletionContentFailure"),
        "ContentDeletionFailed"
    );
    api.heal();
    let error = deleter(&api, Kinds(vec!["metrics.k8s.io/v1beta1".into()]))
        .delete("ns")
        .await
        .unwrap_err();
    assert!(error.to_string().contains("metrics.k8s.io/v1beta1"));
    assert_eq!(
        reason(&api, "NamespaceDeletionDiscoveryFailure"),
        "DiscoveryFailed"
    );
    assert!(
        !finalized(&api.get::<Namespace>("", "ns").unwrap()),
        "held until all is known to be gone"
    );
    assert_eq!(
        deleter(&api, Kinds::default()).delete("ns").await.unwrap(),
        Progress::Done
    );
}

#[tokio::test]
async fn leaves_alone_what_is_not_being_deleted_or_not_its_own() {
    let api = FakeApi::new();
    api.insert(&namespace(json!({"metadata": {"name": "ns", "uid": "u"}})));
    assert_eq!(
        deleter(&api, Kinds::default()).delete("ns").await.unwrap(),
        Progress::Done
    );
    assert_eq!(
        deleter(&api, Kinds::default())
            .delete("gone")
            .await
            .unwrap(),
        Progress::Done
    );
    assert!(api.writes().is_empty());
    api.insert(&namespace(json!({"spec": {}})));
    deleter(&api, Kinds::default()).delete("ns").await.unwrap();
    assert!(api.writes().iter().all(|r| r.subresource == "status"));
}

#[test]
fn how_long_to_wait() {
    let pod = |grace: i64, phase: &str| json!({"spec": {"terminationGracePeriodSeconds": grace}, "status": {"phase": phase}});
    let deleted: Timestamp = "2026-01-01T00:00:50Z".parse().unwrap();
    for (pods, expect) in [
        (vec![], 0),
        (
            vec![pod(30, "Running"), pod(60, "Pending"), pod(900, "Failed")],
            60,
        ),
        (vec![pod(10, "Running")], 0),
        (vec![pod(11, "Running")], 11),
    ] {
        assert_eq!(
            estimate_graceful_termination(&pods, deleted, now()),
            expect,
            "{pods:?}"
        );
    }
    let held = json!({"metadata": {"finalizers": ["a", "b"]}});
    let plain = json!({"metadata": {}});
    let check = |items: &[Value], estimate, expect: (i64, bool)| {
        let (remaining, stuck) = Remaining::of(items, estimate);
        assert_eq!((remaining.estimate_seconds, stuck), expect);
    };
    check(&[], 30, (0, false));
    check(&[plain.clone()], 30, (30, false));
    check(&[plain.clone(), held.clone()], 0, (15, false));
    check(&[plain], 0, (0, true));
}

#[test]
fn conditions_come_and_go() {
    let mut findings = Findings {
        errors: vec!["b".into(), "a".into()],
        ..Findings::default()
    };
    findings.add(
        "pods.",
        &Remaining {
            count: 2,
            finalizers: [("f".to_owned(), 1)].into(),
            estimate_seconds: 3,
        },
    );
    findings.add(
        "widgets.example.com",
        &Remaining {
            count: 1,
            finalizers: [("f".to_owned(), 1)].into(),
            estimate_seconds: 1,
        },
    );
    let bad = update_conditions(&namespace(json!({})), &findings, true, now()).unwrap();
    let messages: Vec<_> = bad
        .status
        .clone()
        .unwrap()
        .conditions
        .unwrap()
        .into_iter()
        .filter(|c| c.status == "True")
        .map(|c| c.message.unwrap())
        .collect();
    assert_eq!(
        messages,
        [
            "Failed to delete all resource types, 2 remaining: a, b",
            "Some resources are remaining: pods. has 2 resource instances, widgets.example.com has 1 resource instances",
            "Some content in the namespace has finalizers remaining: f in 2 resource instances",
        ]
    );
    assert!(
        update_conditions(&bad, &findings, true, now()).is_none(),
        "no write without a change"
    );
    let good = update_conditions(&bad, &Findings::default(), true, now()).unwrap();
    assert!(
        good.status
            .unwrap()
            .conditions
            .unwrap()
            .iter()
            .all(|c| c.status == "False")
    );
}
