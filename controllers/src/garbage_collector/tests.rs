use component_base::clock::Clock;
use controller_runtime::testing::FakeApi;
use controller_runtime::transport::Verb;
use controller_runtime::{ApiError, Queues, Resource};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Node as ClusterNode, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::{Value, json};

use super::collector::Collector;
use super::decide::{References, Verdict, decide};
use super::graph::{DeletionState, Effects, Graph, Identity};
use crate::discovery::{ApiResources, Discovered};

const PLAIN: DeletionState = DeletionState {
    being_deleted: false,
    delete_dependents: false,
    orphan_dependents: false,
};
const FOREGROUND: DeletionState = DeletionState {
    being_deleted: true,
    delete_dependents: true,
    orphan_dependents: false,
};
const ORPHAN: DeletionState = DeletionState {
    being_deleted: true,
    delete_dependents: false,
    orphan_dependents: true,
};

fn id(kind: &str, namespace: &str, name: &str) -> Identity {
    let api_version = if kind == "Pod" || kind == "Node" {
        "v1"
    } else {
        "apps/v1"
    };
    Identity {
        kind: kind.into(),
        api_version: api_version.into(),
        namespace: namespace.into(),
        name: name.into(),
        uid: name.into(),
    }
}

fn owner(identity: &Identity, blocks: bool) -> OwnerReference {
    OwnerReference {
        api_version: identity.api_version.to_string(),
        kind: identity.kind.to_string(),
        name: identity.name.to_string(),
        uid: identity.uid.to_string(),
        block_owner_deletion: Some(blocks),
        controller: None,
    }
}

fn delete(uids: &[&str]) -> Effects {
    Effects {
        delete: uids.iter().map(|u| (*u).to_owned()).collect(),
        ..Effects::default()
    }
}

#[test]
fn an_owner_that_goes_takes_its_dependents_to_court() {
    let mut graph = Graph::default();
    let (rs, pod) = (id("ReplicaSet", "ns", "rs"), id("Pod", "ns", "pod"));
    assert_eq!(
        graph.observe(rs.clone(), &[], None, PLAIN),
        Effects::default()
    );
    assert_eq!(
        graph.observe(pod.clone(), &[owner(&rs, true)], None, PLAIN),
        Effects::default()
    );
    assert_eq!(
        graph.delete(&rs),
        Effects {
            absent: vec![rs.clone()],
            ..delete(&["pod"])
        }
    );
    assert_eq!(graph.delete(&pod), Effects::default());
    assert!(graph.is_empty());
    assert_eq!(graph.delete(&pod), Effects::default());
}

#[test]
fn an_owner_nobody_saw_is_looked_for() {
    let mut graph = Graph::default();
    let (rs, pod) = (id("ReplicaSet", "ns", "rs"), id("Pod", "ns", "pod"));
    assert_eq!(
        graph.observe(pod.clone(), &[owner(&rs, true)], None, PLAIN),
        delete(&["rs"])
    );
    assert!(graph.get("rs").unwrap().is_virtual);
    let waits: Vec<_> = (0..3)
        .map(|_| graph.next_look("rs").unwrap().as_millis())
        .collect();
    assert_eq!(waits, [5, 10, 20]);
    let mut other = Graph::default();
    other.observe(pod, &[owner(&rs, true)], None, PLAIN);
    // It comes after all,
    assert_eq!(
        graph.observe(rs.clone(), &[], None, PLAIN),
        Effects::default()
    );
    assert_eq!(
        (graph.get("rs").unwrap().is_virtual, graph.next_look("rs")),
        (false, None)
    );
    // or never was.
    assert_eq!(
        other.delete_virtually(&rs),
        Effects {
            absent: vec![rs],
            ..delete(&["pod"])
        }
    );
    assert!(other.get("rs").is_none());
}

#[test]
fn wrong_coordinates_are_judged_one_by_one() {
    let real = id("ReplicaSet", "right", "rs");
    let here = id("Pod", "right", "here");
    let there = id("Pod", "wrong", "there");
    let mut graph = Graph::default();
    graph.observe(real.clone(), &[], None, PLAIN);
    assert_eq!(
        graph.observe(here.clone(), &[owner(&real, false)], None, PLAIN),
        Effects::default()
    );
    let claimed = Identity {
        namespace: "wrong".into(),
        ..real.clone()
    };
    let effects = graph.observe(there.clone(), &[owner(&real, false)], None, PLAIN);
    assert_eq!(
        effects,
        Effects {
            invalid_namespace: vec![(there.clone(), claimed.clone())],
            ..delete(&["there"])
        }
    );
    // The server knows none there: only those who claim that lose their owner.
    assert_eq!(
        graph.delete_virtually(&claimed),
        Effects {
            absent: vec![claimed.clone()],
            ..delete(&["there"])
        }
    );
    assert!(graph.get("rs").is_some());

    // Nobody saw the owner: each claim is looked at in turn.
    let mut graph = Graph::default();
    graph.observe(there, &[owner(&real, false)], None, PLAIN);
    assert_eq!(
        graph.observe(here, &[owner(&real, false)], None, PLAIN),
        delete(&["here"])
    );
    let effects = graph.delete_virtually(&claimed);
    assert_eq!(
        (effects.delete, effects.delete_later, effects.absent),
        (
            vec!["there".to_owned()],
            vec!["rs".to_owned()],
            vec![claimed]
        )
    );
    assert_eq!(graph.get("rs").unwrap().identity, real);
    // The right one is seen: the wrong claim is told to its user.
    let effects = graph.observe(real, &[], None, PLAIN);
    assert_eq!(effects, Effects::default(), "same coordinates, nothing new");
}

#[test]
fn foreground_and_orphan_start_once() {
    let mut graph = Graph::default();
    let (rs, pod, late) = (
        id("ReplicaSet", "ns", "rs"),
        id("Pod", "ns", "pod"),
        id("Pod", "ns", "late"),
    );
    graph.observe(rs.clone(), &[], None, PLAIN);
    graph.observe(pod.clone(), &[owner(&rs, true)], None, PLAIN);
    graph.observe(late.clone(), &[owner(&rs, false)], None, PLAIN);
    assert_eq!(
        graph.observe(rs.clone(), &[], Some(PLAIN), FOREGROUND),
        delete(&["late", "pod", "rs"])
    );
    assert_eq!(
        graph.observe(rs.clone(), &[], Some(FOREGROUND), FOREGROUND),
        Effects::default()
    );
    assert_eq!(graph.blocking_dependents("rs"), [("pod".to_owned(), true)]);
    // A dependent that blocks no more, or is gone, may have been the last.
    assert_eq!(
        graph.observe(pod.clone(), &[owner(&rs, false)], Some(PLAIN), PLAIN),
        delete(&["rs"])
    );
    assert!(graph.blocking_dependents("rs").is_empty());
    assert_eq!(graph.delete(&pod), delete(&["rs"]));

    let mut graph = Graph::default();
    graph.observe(rs.clone(), &[], None, PLAIN);
    let effects = graph.observe(rs.clone(), &[], Some(PLAIN), ORPHAN);
    assert_eq!(
        effects,
        Effects {
            orphan: vec!["rs".into()],
            ..Effects::default()
        }
    );
    assert_eq!(
        graph.observe(rs.clone(), &[], Some(ORPHAN), ORPHAN),
        Effects::default()
    );
    // Seen for the first time after a restart.
    assert_eq!(
        Graph::default().observe(rs, &[], None, ORPHAN).orphan,
        ["rs"]
    );
}

#[test]
fn owners_come_and_go() {
    let mut graph = Graph::default();
    let (a, b, pod) = (
        id("ReplicaSet", "ns", "a"),
        id("ReplicaSet", "ns", "b"),
        id("Pod", "ns", "pod"),
    );
    graph.observe(a.clone(), &[], None, PLAIN);
    graph.observe(b.clone(), &[], None, PLAIN);
    graph.observe(pod.clone(), &[owner(&a, true)], None, PLAIN);
    assert_eq!(
        graph.observe(pod.clone(), &[owner(&b, true)], Some(PLAIN), PLAIN),
        delete(&["a"])
    );
    assert_eq!(
        (graph.dependents("a"), graph.dependents("b")),
        (vec![], vec![pod.clone()])
    );
    assert_eq!(graph.delete(&a), Effects::default());
    // A cluster owner of a namespaced object, not seen yet: its claim of a namespace may be wrong.
    let node = id("Node", "", "node");
    assert_eq!(
        graph.observe(
            pod,
            &[owner(&b, true), owner(&node, false)],
            Some(PLAIN),
            PLAIN
        ),
        delete(&["node"])
    );
    assert_eq!(
        graph.observe(node, &[], None, PLAIN).delete,
        [] as [&str; 0]
    );
}

#[test]
fn verdicts() {
    let reference = |uid: &str| owner(&id("ReplicaSet", "ns", uid), true);
    let list = |uids: &[&str]| uids.iter().map(|u| reference(u)).collect::<Vec<_>>();
    let with = |finalizer: &str| ObjectMeta {
        finalizers: Some(vec![finalizer.to_owned()]),
        ..ObjectMeta::default()
    };
    let plain = ObjectMeta::default();
    let foreground = |unblock_owners| Verdict::Delete {
        policy: "Foreground",
        unblock_owners,
    };
    let delete = |policy| Verdict::Delete {
        policy,
        unblock_owners: false,
    };
    type Case<'a> = (
        &'a [&'a str],
        &'a [&'a str],
        &'a [&'a str],
        bool,
        bool,
        &'a ObjectMeta,
        Verdict,
    );
    let (orphan, dependents) = (with("orphan"), with("foregroundDeletion"));
    let cases: &[Case] = &[
        (&["s"], &[], &[], true, false, &plain, Verdict::Keep),
        (
            &["s"],
            &["d"],
            &["w"],
            true,
            false,
            &plain,
            Verdict::RemoveReferences(vec!["d".into(), "w".into()]),
        ),
        (&[], &["d"], &[], true, false, &plain, delete("Background")),
        (&[], &["d"], &[], true, false, &orphan, delete("Orphan")),
        (
            &[],
            &["d"],
            &[],
            true,
            false,
            &dependents,
            delete("Foreground"),
        ),
        (&[], &["d"], &["w"], true, false, &plain, foreground(false)),
        (&[], &[], &["w"], true, true, &plain, foreground(true)),
        (&[], &[], &["w"], false, false, &plain, delete("Background")),
    ];
    for (solid, dangling, waiting, has, circle, latest, expect) in cases {
        let references = References {
            solid: list(solid),
            dangling: list(dangling),
            waiting: list(waiting),
        };
        assert_eq!(
            decide(&references, *has, *circle, latest),
            *expect,
            "{solid:?} {dangling:?} {waiting:?}"
        );
    }
}

fn meta(identity: &Identity, owners: &[OwnerReference], more: Value) -> ObjectMeta {
    let mut value = json!({"name": &*identity.name, "namespace": &*identity.namespace, "uid": &*identity.uid, "ownerReferences": owners, "resourceVersion": "1"});
    value
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    serde_json::from_value(value).unwrap()
}

fn collector(api: &FakeApi) -> Collector {
    let collector = Collector::new(api.executor(), &Queues::unread(Clock::real()));
    let kind = |resource: Resource, namespaced| Discovered {
        resource,
        namespaced,
        verbs: vec![],
        preferred: true,
        subresources: vec![],
    };
    let resources = vec![
        kind(Resource::of::<Deployment>(), true),
        kind(Resource::of::<ReplicaSet>(), true),
        kind(Resource::of::<Pod>(), true),
        kind(Resource::of::<ClusterNode>(), false),
    ];
    collector.set_kinds(ApiResources {
        resources,
        failed: vec![],
    });
    collector
}

fn pod(metadata: ObjectMeta) -> Pod {
    Pod {
        metadata,
        ..Pod::default()
    }
}

fn replica_set(metadata: ObjectMeta) -> ReplicaSet {
    ReplicaSet {
        metadata,
        ..ReplicaSet::default()
    }
}

#[tokio::test]
async fn collects_what_has_lost_its_owner_and_nothing_else() {
    let api = FakeApi::new();
    let collector = collector(&api);
    let (rs, lost, kept) = (
        id("ReplicaSet", "ns", "rs"),
        id("Pod", "ns", "lost"),
        id("Pod", "ns", "kept"),
    );
    let gone = id("ReplicaSet", "ns", "gone");
    api.insert(&replica_set(meta(&rs, &[], json!({}))));
    for (identity, owners) in [
        (&lost, vec![owner(&gone, true)]),
        (&kept, vec![owner(&gone, true), owner(&rs, true)]),
    ] {
        api.insert(&pod(meta(identity, &owners, json!({}))));
        collector.observe(identity.clone(), None, &meta(identity, &owners, json!({})));
    }
    assert_eq!(
        collector.delete_attempt("gone").await.unwrap(),
        None,
        "asked once, then known to be absent"
    );
    for uid in ["lost", "kept"] {
        assert_eq!(collector.delete_attempt(uid).await.unwrap(), None);
    }
    let deletes: Vec<_> = api
        .writes()
        .into_iter()
        .filter(|r| r.verb == Verb::Delete)
        .collect();
    assert_eq!(deletes.len(), 1);
    assert_eq!(
        (
            deletes[0].name.as_str(),
            &deletes[0].body["propagationPolicy"]
        ),
        ("lost", &json!("Background"))
    );
    assert_eq!(
        deletes[0].body["preconditions"],
        json!({"uid": "lost", "resourceVersion": "1"})
    );
    let patches: Vec<_> = api
        .writes()
        .into_iter()
        .filter(|r| matches!(r.verb, Verb::Patch(_)))
        .collect();
    assert_eq!((patches.len(), patches[0].name.as_str()), (1, "kept"));
    assert_eq!(
        patches[0].body["metadata"]["ownerReferences"],
        json!([{"$patch": "delete", "uid": "gone"}])
    );
}

#[tokio::test]
async fn foreground_waits_for_blocking_dependents() {
    let api = FakeApi::new();
    let collector = collector(&api);
    let (rs, dependent) = (id("ReplicaSet", "ns", "rs"), id("Pod", "ns", "pod"));
    let waiting = meta(
        &rs,
        &[],
        json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["foregroundDeletion", "other"]}),
    );
    api.insert(&replica_set(waiting.clone()));
    let owned = meta(&dependent, &[owner(&rs, true)], json!({}));
    api.insert(&pod(owned.clone()));
    collector.observe(rs.clone(), None, &waiting);
    collector.observe(dependent.clone(), None, &owned);
    collector.delete_attempt("rs").await.unwrap();
    assert!(api.writes().is_empty());
    collector.delete_attempt("pod").await.unwrap();
    assert!(api.get::<Pod>("ns", "pod").is_none());
    collector.deleted(&dependent);
    collector.delete_attempt("rs").await.unwrap();
    assert_eq!(
        api.get::<ReplicaSet>("ns", "rs")
            .unwrap()
            .metadata
            .finalizers
            .unwrap(),
        ["other"]
    );
}

#[tokio::test]
async fn orphaning_releases_then_lets_go() {
    let api = FakeApi::new();
    let collector = collector(&api);
    let (rs, dependent) = (id("ReplicaSet", "ns", "rs"), id("Pod", "ns", "pod"));
    let waiting = meta(
        &rs,
        &[],
        json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["orphan"]}),
    );
    api.insert(&replica_set(waiting.clone()));
    let owned = meta(&dependent, &[owner(&rs, true)], json!({}));
    api.insert(&pod(owned.clone()));
    collector.observe(dependent, None, &owned);
    collector.observe(rs, None, &waiting);
    // A kind without strategic merge: the whole list, at its version. It fails once, and the owner stays.
    let strategic = |r: &controller_runtime::transport::Request| {
        r.resource.plural == "pods"
            && matches!(
                r.verb,
                Verb::Patch(controller_runtime::PatchKind::Strategic)
            )
    };
    api.fail(
        |r| r.resource.plural == "pods" && matches!(r.verb, Verb::Patch(_)),
        ApiError::Unreachable("down".into()),
    );
    assert!(collector.orphan_attempt("rs").await.is_err());
    assert_eq!(
        api.get::<ReplicaSet>("ns", "rs")
            .unwrap()
            .metadata
            .finalizers
            .unwrap(),
        ["orphan"]
    );
    api.heal();
    api.fail(
        strategic,
        ApiError::Server {
            code: 415,
            reason: String::new(),
            message: String::new(),
        },
    );
    collector.orphan_attempt("rs").await.unwrap();
    assert_eq!(
        api.get::<Pod>("ns", "pod")
            .unwrap()
            .metadata
            .owner_references
            .unwrap_or_default(),
        []
    );
    assert_eq!(
        api.get::<ReplicaSet>("ns", "rs")
            .unwrap()
            .metadata
            .finalizers
            .unwrap_or_default(),
        [] as [String; 0]
    );
}

#[tokio::test]
async fn a_namesake_is_not_the_owner_and_unknown_kinds_wait() {
    let api = FakeApi::new();
    let collector = collector(&api);
    let (rs, dependent) = (id("ReplicaSet", "ns", "rs"), id("Pod", "ns", "pod"));
    api.insert(&replica_set(meta(
        &Identity {
            uid: "another".into(),
            ..rs.clone()
        },
        &[],
        json!({}),
    )));
    let owned = meta(&dependent, &[owner(&rs, true)], json!({}));
    api.insert(&pod(owned.clone()));
    collector.observe(dependent, None, &owned);
    collector.delete_attempt("pod").await.unwrap();
    assert!(api.get::<Pod>("ns", "pod").is_none());

    let strange = Identity {
        kind: "Widget".into(),
        api_version: "example.com/v1".into(),
        ..id("Pod", "ns", "w")
    };
    let other = id("Pod", "ns", "other");
    let owned = meta(&other, &[owner(&strange, true)], json!({}));
    api.insert(&pod(owned.clone()));
    collector.observe(other, None, &owned);
    let error = collector.delete_attempt("other").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "unable to get REST mapping for example.com/v1/Widget."
    );
    assert!(api.get::<Pod>("ns", "other").is_some());
}
