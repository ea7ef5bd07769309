//! What a client sees.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};

use super::*;
use crate::clock::FakeClock;
use crate::informer::{Informer, InformerOptions};
use crate::shutdown::Shutdown;

fn server() -> (ApiServer, FakeClock) {
    let clock = FakeClock::new(Timestamp::from_second(1_800_000_000).unwrap());
    (ApiServer::new(clock.clock()), clock)
}

fn map(name: &str, value: &str) -> ConfigMap {
    let object = json!({"metadata": {"name": name, "namespace": "n"}, "data": {"a": value}});
    serde_json::from_value(object).unwrap()
}

fn pod(name: &str) -> Pod {
    let object = json!({
        "metadata": {"name": name, "namespace": "n"},
        "spec": {"nodeName": "node", "containers": [{"name": "c"}], "terminationGracePeriodSeconds": 5},
    });
    serde_json::from_value(object).unwrap()
}

fn code<T: std::fmt::Debug>(outcome: Result<T, kube::Error>) -> (u16, String) {
    match outcome.unwrap_err() {
        kube::Error::Api(status) => (status.code, status.reason.clone()),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn objects_are_made_changed_and_deleted() {
    let (server, _) = server();
    let api: Api<ConfigMap> = Api::namespaced(server.client(), "n");
    let (post, patch) = (PostParams::default(), PatchParams::default());
    let made = api.create(&post, &map("a", "1")).await.unwrap();
    assert_eq!(made.metadata.resource_version.as_deref(), Some("1"));
    assert!(made.metadata.uid.is_some());
    assert_eq!(
        code(api.create(&post, &map("a", "1")).await),
        (409, "AlreadyExists".into())
    );
    let mut generated = map("", "1");
    generated.metadata.generate_name = Some("g-".into());
    let generated = api.create(&post, &generated).await.unwrap();
    assert!(generated.metadata.name.unwrap().starts_with("g-0"));

    let mut stale = made.clone();
    let patched = json!({"data": {"a": "2"}});
    let patched = api
        .patch("a", &patch, &Patch::Merge(patched))
        .await
        .unwrap();
    assert_eq!(patched.data.unwrap()["a"], "2");
    stale.data = None;
    assert_eq!(
        code(api.replace("a", &post, &stale).await),
        (409, "Conflict".into())
    );
    // A change that changes nothing has no version of its own.
    let same = api
        .patch("a", &patch, &Patch::Merge(json!({"data": {"a": "2"}})))
        .await
        .unwrap();
    assert_eq!(
        same.metadata.resource_version,
        patched.metadata.resource_version
    );

    let other = Preconditions {
        uid: Some("other".into()),
        resource_version: None,
    };
    let params = DeleteParams::default().preconditions(other);
    assert_eq!(
        code(api.delete("a", &params).await),
        (409, "Conflict".into())
    );
    api.delete("a", &DeleteParams::default()).await.unwrap();
    assert_eq!(code(api.get("a").await), (404, "NotFound".into()));
    assert_eq!(
        api.list(&ListParams::default()).await.unwrap().items.len(),
        1
    );
}

#[tokio::test]
async fn a_status_is_written_by_its_subresource_alone() {
    let (server, _) = server();
    let pod = server.create(&pod("p"));
    assert_eq!(
        pod.status.as_ref().unwrap().phase.as_deref(),
        Some("Pending")
    );
    let api: Api<Pod> = Api::namespaced(server.client(), "n");
    let running =
        Patch::Merge(json!({"metadata": {"labels": {"a": "b"}}, "status": {"phase": "Running"}}));
    let params = PatchParams::default();
    let labelled = api.patch("p", &params, &running).await.unwrap();
    assert_eq!(labelled.status.unwrap().phase.as_deref(), Some("Pending"));
    assert!(labelled.metadata.labels.is_some());
    let told = api.patch_status("p", &params, &running).await.unwrap();
    assert_eq!(told.status.unwrap().phase.as_deref(), Some("Running"));
    let other = Patch::Merge(json!({"metadata": {"uid": "other"}, "status": {"phase": "Failed"}}));
    assert_eq!(code(api.patch_status("p", &params, &other).await).0, 409);
}

#[tokio::test]
async fn a_pod_on_a_node_has_its_grace_and_finalizers_hold_any_object() {
    let (server, _) = server();
    server.create(&pod("p"));
    server.delete::<Pod>("n", "p");
    let ending: Pod = server.get("n", "p").unwrap();
    assert_eq!(ending.metadata.deletion_grace_period_seconds, Some(5));
    let at = ending.metadata.deletion_timestamp.unwrap().0;
    assert_eq!(at.as_second(), 1_800_000_005);
    let api: Api<Pod> = Api::namespaced(server.client(), "n");
    api.delete("p", &DeleteParams::default().grace_period(0))
        .await
        .unwrap();
    assert_eq!(server.get::<Pod>("n", "p"), None);

    let mut held = map("a", "1");
    held.metadata.finalizers = Some(vec!["x/y".into()]);
    server.create(&held);
    server.delete::<ConfigMap>("n", "a");
    let mut held: ConfigMap = server.get("n", "a").unwrap();
    assert!(held.metadata.deletion_timestamp.is_some());
    held.metadata.finalizers = None;
    server.update(&held);
    assert_eq!(server.get::<ConfigMap>("n", "a"), None);
}

#[tokio::test]
async fn a_binding_binds_once() {
    let (server, _) = server();
    let mut unbound = pod("p");
    unbound.spec.as_mut().unwrap().node_name = None;
    server.create(&unbound);
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "node"}});
    let api: Api<Pod> = Api::namespaced(server.client(), "n");
    let post = PostParams::default();
    let bind = || api.create_subresource::<Value, Value>("binding", "p", &post, &binding);
    bind().await.unwrap();
    assert_eq!(code(bind().await), (409, "Conflict".into()));
    let bound: Pod = server.get("n", "p").unwrap();
    assert_eq!(bound.spec.unwrap().node_name.as_deref(), Some("node"));
}

async fn until(informer: &Informer<ConfigMap>, expect: &[(&str, &str)]) {
    let found = || {
        let mut found: Vec<(String, String)> = informer
            .list()
            .iter()
            .map(|map| {
                (
                    map.metadata.name.clone().unwrap(),
                    map.data.as_ref().unwrap()["a"].clone(),
                )
            })
            .collect();
        found.sort();
        found
    };
    let expect: Vec<(String, String)> = expect
        .iter()
        .map(|(n, v)| ((*n).into(), (*v).into()))
        .collect();
    for _ in 0..1000 {
        if found() == expect {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{:?} is not {expect:?}", found());
}

#[tokio::test(start_paused = true)]
async fn an_informer_sees_what_happens_through_ends_and_gone_versions() {
    let (server, _) = server();
    server.create(&map("a", "1"));
    let api: Api<ConfigMap> = Api::all(server.client());
    let options = InformerOptions::default().fields("metadata.name!=hidden");
    let informer = Informer::start(api, &options, &Shutdown::new());
    until(&informer, &[("a", "1")]).await;
    server.create(&map("b", "1"));
    server.create(&map("hidden", "1"));
    server.update(&map("a", "2"));
    until(&informer, &[("a", "2"), ("b", "1")]).await;
    server.end_watches();
    server.delete::<ConfigMap>("n", "b");
    until(&informer, &[("a", "2")]).await;
    // What it missed is forgotten: it lists anew.
    server.end_watches();
    server.update(&map("a", "3"));
    server.compact();
    until(&informer, &[("a", "3")]).await;
    server.create(&map("c", "1"));
    until(&informer, &[("a", "3"), ("c", "1")]).await;
}

#[tokio::test]
async fn requests_are_refused_on_demand_and_noted() {
    let (server, _) = server();
    let busy = Refusal::new(429, "TooManyRequests", "later");
    server.fail(|call| call.verb == Verb::Create, busy);
    let api: Api<ConfigMap> = Api::namespaced(server.client(), "n");
    let post = PostParams::default();
    assert_eq!(code(api.create(&post, &map("a", "1")).await).0, 429);
    server.heal();
    api.create(&post, &map("a", "1")).await.unwrap();
    let writes = server.writes();
    assert_eq!(writes.len(), 2);
    assert_eq!(
        (writes[0].plural.as_str(), writes[0].name.as_str()),
        ("configmaps", "a")
    );
}

#[tokio::test]
async fn it_says_what_kinds_it_has() {
    let client = server().0.client();
    let core = client.list_core_api_versions_aggregated().await.unwrap();
    let resources = &core.items[0].versions[0].resources;
    let pods = resources
        .iter()
        .find(|r| r.resource.as_deref() == Some("pods"));
    assert_eq!(pods.unwrap().scope.as_deref(), Some("Namespaced"));
    let groups = client.list_api_groups_aggregated().await.unwrap();
    let names = groups
        .items
        .iter()
        .filter_map(|group| group.metadata.as_ref()?.name.as_deref());
    assert!(names.collect::<Vec<_>>().contains(&"apps"));
    let apps = client.list_api_group_resources("apps/v1").await.unwrap();
    let deployments = apps.resources.iter().find(|r| r.name == "deployments");
    assert_eq!(deployments.unwrap().kind, "Deployment");
    let unknown = client.list_api_group_resources("apps/v9").await;
    assert_eq!(code(unknown).0, 404);
}

#[tokio::test]
async fn writes_are_noted_with_their_times_and_what_came_of_them() {
    let (server, clock) = server();
    let api: Api<ConfigMap> = Api::namespaced(server.client(), "n");
    api.create(&PostParams::default(), &map("a", "1"))
        .await
        .unwrap();
    clock.advance(Duration::from_secs(1));
    api.create(&PostParams::default(), &map("a", "1"))
        .await
        .unwrap_err();
    api.get("a").await.unwrap();
    let log: Vec<_> = server
        .log()
        .into_iter()
        .map(|noted| (noted.at.as_second(), noted.refused.map(|r| r.reason)))
        .collect();
    let refused = Some("AlreadyExists".to_owned());
    assert_eq!(log, [(1_800_000_000, None), (1_800_000_001, refused)]);
}

#[tokio::test]
async fn an_answer_that_is_lost_does_not_undo_what_was_done() {
    let (server, _) = server();
    let api: Api<ConfigMap> = Api::namespaced(server.client(), "n");
    let lost = Refusal::new(500, "InternalError", "connection reset");
    server.lose_answers(|call| call.verb == Verb::Create, lost);
    let outcome = api.create(&PostParams::default(), &map("a", "1")).await;
    assert_eq!(code(outcome), (500, "InternalError".into()));
    assert_eq!(server.list::<ConfigMap>().len(), 1);
}
