use std::time::Duration;

use component_base::shutdown::Shutdown;
use controller_runtime::testing::FakeApi;
use controller_runtime::transport::{ApiError, Verb};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kubelet_provider::Condition;
use serde_json::json;

use super::Heartbeat;
use crate::testing::{eventually, nodes, nodes_with};

fn node(api: &FakeApi, name: &str) -> Option<Node> {
    api.get("", name)
}

fn lease(api: &FakeApi, name: &str) -> Option<Lease> {
    api.get("kube-node-lease", name)
}

fn renewed(api: &FakeApi, name: &str) -> Option<k8s_openapi::jiff::Timestamp> {
    Some(lease(api, name)?.spec?.renew_time?.0)
}

#[tokio::test]
async fn nodes_are_registered_and_their_leases_renewed() {
    let api = FakeApi::new();
    let shutdown = Shutdown::new();
    let nodes = nodes(&api, 1);
    nodes.start(&shutdown);
    eventually("leases are there", || {
        lease(&api, "v-0").is_some() && lease(&api, "v-1").is_some()
    })
    .await;
    assert_eq!(nodes.count(), (2, 2));
    let found = node(&api, "v-1").unwrap();
    let labels = found.metadata.labels.unwrap();
    assert_eq!(labels["type"], "virtual-kubelet");
    assert_eq!(labels["kubernetes.io/hostname"], "v-1");
    let taints = found.spec.unwrap().taints.unwrap();
    assert_eq!(taints[0].key, "virtual-kubelet.io/provider");
    let status = found.status.unwrap();
    assert_eq!(
        status
            .daemon_endpoints
            .unwrap()
            .kubelet_endpoint
            .unwrap()
            .port,
        10250
    );
    assert!(
        status
            .conditions
            .unwrap()
            .iter()
            .any(|c| c.type_ == "Ready" && c.status == "True")
    );
    let owner = lease(&api, "v-1")
        .unwrap()
        .metadata
        .owner_references
        .unwrap();
    assert_eq!(
        Some(owner[0].uid.clone()),
        node(&api, "v-1").unwrap().metadata.uid
    );
    let first = renewed(&api, "v-0");
    eventually("it is renewed", || renewed(&api, "v-0") > first).await;
    shutdown.trigger();
}

#[tokio::test]
async fn a_node_that_was_there_keeps_what_others_gave_it() {
    let api = FakeApi::new();
    let shutdown = Shutdown::new();
    let old: Node = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": "v-0", "uid": "old", "labels": { "mine": "yes", "type": "other" } },
        "spec": { "unschedulable": true },
        "status": { "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z" }] },
    }))
    .unwrap();
    api.insert(&old);
    nodes(&api, 40).start(&shutdown);
    eventually("the lease is there", || lease(&api, "v-0").is_some()).await;
    let found = node(&api, "v-0").unwrap();
    let labels = found.metadata.labels.unwrap();
    assert_eq!(
        (labels["mine"].as_str(), labels["type"].as_str()),
        ("yes", "virtual-kubelet")
    );
    assert_eq!(found.spec.unwrap().unschedulable, Some(true));
    let conditions = found.status.unwrap().conditions.unwrap();
    let ready = conditions.iter().find(|c| c.type_ == "Ready").unwrap();
    let since = ready.last_transition_time.as_ref().unwrap().0;
    assert_eq!(since.to_string(), "2020-01-01T00:00:00Z");
    shutdown.trigger();
}

#[tokio::test]
async fn a_node_that_was_deleted_is_registered_again() {
    let api = FakeApi::new();
    let shutdown = Shutdown::new();
    nodes(&api, 40).start(&shutdown);
    eventually("the lease is there", || lease(&api, "v-0").is_some()).await;
    let first = node(&api, "v-0").unwrap().metadata.uid;
    let resource = controller_runtime::transport::Resource::of::<Node>();
    let delete = controller_runtime::transport::Request {
        verb: Verb::Delete,
        resource,
        namespace: String::new(),
        name: "v-0".to_owned(),
        subresource: "".into(),
        query: Vec::new(),
        body: controller_runtime::transport::Body::null(),
    };
    controller_runtime::transport::Transport::send(&api, delete)
        .await
        .unwrap();
    eventually("it is there again", || {
        node(&api, "v-0").is_some_and(|n| n.metadata.uid != first)
    })
    .await;
    eventually("the lease is the new node's", || {
        let owners = lease(&api, "v-0").and_then(|l| l.metadata.owner_references);
        owners.is_some_and(|o| Some(&o[0].uid) == node(&api, "v-0").unwrap().metadata.uid.as_ref())
    })
    .await;
    shutdown.trigger();
}

#[tokio::test]
async fn registration_and_leases_outlive_an_outage() {
    let api = FakeApi::new();
    let shutdown = Shutdown::new();
    let away = || ApiError::Server {
        code: 503,
        reason: String::new(),
        message: "away".to_owned(),
    };
    api.fail(|_| true, away());
    nodes(&api, 1).start(&shutdown);
    eventually("it is tried", || api.writes().len() > 2).await;
    assert!(node(&api, "v-0").is_none());
    api.heal();
    eventually("the lease is there", || lease(&api, "v-0").is_some()).await;
    api.fail(|request| request.resource.plural == "leases", away());
    let before = renewed(&api, "v-0");
    api.heal();
    eventually("it is renewed", || renewed(&api, "v-0") > before).await;
    shutdown.trigger();
}

#[tokio::test]
async fn a_condition_of_the_provider_is_written_at_once() {
    let api = FakeApi::new();
    let shutdown = Shutdown::new();
    let nodes = nodes(&api, 40);
    nodes.start(&shutdown);
    eventually("it is registered", || nodes.count() == (2, 2)).await;
    let unwell = Condition {
        type_: "Ready".to_owned(),
        status: "False".to_owned(),
        reason: "BackendAway".to_owned(),
        message: "m".to_owned(),
    };
    nodes.set_conditions("v-1", vec![unwell]);
    eventually("it is written", || {
        let status = node(&api, "v-1").and_then(|n| n.status).unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        conditions
            .iter()
            .any(|c| c.type_ == "Ready" && c.status == "False")
            && conditions.len() == 5
    })
    .await;
    shutdown.trigger();
}

#[tokio::test]
async fn a_node_whose_lease_ran_out_is_ready_again_with_the_first_renewal() {
    let api = FakeApi::new();
    let shutdown = Shutdown::new();
    let times = Heartbeat {
        lease_seconds: 1,
        status_period: Duration::from_secs(3600),
    };
    let ready = |node: &Node| {
        let status = node.status.clone().unwrap_or_default();
        let mut conditions = status.conditions.unwrap_or_default().into_iter();
        let ready = conditions.find(|c| c.type_ == "Ready").unwrap();
        (ready.status, ready.last_transition_time.unwrap().0)
    };
    nodes_with(&api, times).start(&shutdown);
    eventually("the lease is there", || lease(&api, "v-0").is_some()).await;
    let mut found = node(&api, "v-0").unwrap();
    let (_, first) = ready(&found);
    let away = ApiError::Server {
        code: 503,
        reason: String::new(),
        message: "away".to_owned(),
    };
    api.fail(|request| request.resource.plural == "leases", away);
    tokio::time::sleep(Duration::from_millis(2100)).await;
    // What the node lifecycle controller makes of it.
    for condition in found.status.iter_mut().flat_map(|s| &mut s.conditions) {
        for condition in condition {
            condition.status = "Unknown".to_owned();
        }
    }
    api.insert(&found);
    api.heal();
    eventually("it is ready again", || {
        ready(&node(&api, "v-0").unwrap()).0 == "True"
    })
    .await;
    let (_, since) = ready(&node(&api, "v-0").unwrap());
    assert!(since > first, "{since} is no later than {first}");
    shutdown.trigger();
}
