//! What a scheduler is told is written down, and is as good as what was told.

use std::sync::Arc;

use component_base::informer::{Informer, Object};
use component_base::shutdown::Shutdown;
use k8s_openapi::api::core::v1::{EnvVar, Namespace, Node, Pod};
use kube::runtime::watcher;
use tokio::sync::mpsc;

use super::*;
use crate::event_handlers::EventHandlers;
use crate::listers::{DeviceInformers, Informers, Revisions, StorageInformers};
use crate::testing::Bed;
use crate::trace::recorder::TraceRecorder;

/// Feeds an informer.
type Feed<K> = mpsc::UnboundedSender<watcher::Result<watcher::Event<K>>>;

/// An informer that somebody feeds.
fn fed<K: Object>(kind: &str, shutdown: &Shutdown) -> (Informer<K>, Feed<K>) {
    let (feed, events) = mpsc::unbounded_channel();
    let events = futures_stream(events);
    let informer = Informer::from_stream(events, kind.to_owned(), shutdown);
    (informer, feed)
}

fn futures_stream<T: Send + 'static>(
    mut events: mpsc::UnboundedReceiver<T>,
) -> impl futures::Stream<Item = T> + Send {
    futures::stream::poll_fn(move |context| events.poll_recv(context))
}

/// One that has nothing.
fn empty<K: Object>(kind: &str, shutdown: &Shutdown) -> Informer<K> {
    let (informer, feed) = fed(kind, shutdown);
    for event in [watcher::Event::Init, watcher::Event::InitDone] {
        feed.send(Ok(event)).expect("the informer reads");
    }
    informer
}

/// What a scheduler watches: two nodes, a namespace, and the pods that are fed.
struct Watched {
    informers: Informers,
    pods: Feed<Pod>,
    _others: (Feed<Node>, Feed<Namespace>),
}

async fn watched(shutdown: &Shutdown) -> Watched {
    use watcher::Event::{Init, InitApply, InitDone};
    let s = shutdown;
    let (pods, pod_feed) = fed::<Pod>("pods", s);
    let (nodes, node_feed) = fed::<Node>("nodes", s);
    let (namespaces, namespace_feed) = fed::<Namespace>("namespaces", s);
    let there = |name: &str| {
        let version = |node: &mut Node| node.metadata.resource_version = Some("1".into());
        InitApply(Node::clone(&node(name, "4").with(version).build()))
    };
    for event in [Init, there("a"), there("b"), InitDone] {
        node_feed.send(Ok(event)).expect("the informer reads");
    }
    for event in [Init, InitDone] {
        pod_feed.send(Ok(event)).expect("the informer reads");
    }
    let mut default = Namespace::default();
    default.metadata.name = Some("default".into());
    for event in [Init, InitApply(default), InitDone] {
        namespace_feed.send(Ok(event)).expect("the informer reads");
    }
    let informers = Informers {
        pods,
        nodes,
        namespaces,
        services: empty("services", s),
        replication_controllers: empty("replicationcontrollers", s),
        replica_sets: empty("replicasets", s),
        stateful_sets: empty("statefulsets", s),
        pod_disruption_budgets: empty("poddisruptionbudgets", s),
        storage: StorageInformers {
            volumes: empty("persistentvolumes", s),
            claims: empty("persistentvolumeclaims", s),
            classes: empty("storageclasses", s),
            csi_nodes: empty("csinodes", s),
            csi_drivers: empty("csidrivers", s),
            capacities: empty("csistoragecapacities", s),
            attachments: empty("volumeattachments", s),
        },
        devices: DeviceInformers {
            claims: empty("resourceclaims", s),
            slices: empty("resourceslices", s),
            classes: empty("deviceclasses", s),
            taint_rules: None,
        },
        pod_groups: None,
    };
    assert!(informers.wait_for_sync().await);
    Watched {
        informers,
        pods: pod_feed,
        _others: (node_feed, namespace_feed),
    }
}

/// A pod that has what is nobody else's business.
fn with_secrets(name: &str) -> PodBuilder {
    pod(name, "1").with(|pod| {
        let password = EnvVar {
            name: "PASSWORD".into(),
            value: Some("hunter2".into()),
            value_from: None,
        };
        let annotations = pod.metadata.annotations.get_or_insert_default();
        let applied = "kubectl.kubernetes.io/last-applied-configuration";
        annotations.insert(applied.to_owned(), "hunter2".to_owned());
        let containers = &mut pod.spec.as_mut().expect("a spec").containers;
        containers[0].env = Some(vec![password]);
        containers[0].args = Some(vec!["--password=hunter2".into()]);
    })
}

#[tokio::test]
async fn what_a_scheduler_is_told_is_recorded_and_played() {
    use watcher::Event::{Apply, Delete};
    let shutdown = Shutdown::new();
    let watched = watched(&shutdown).await;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("trace.jsonl");
    let recorder = TraceRecorder::create(&path, u64::MAX).expect("writable");
    let bed = Bed::new(&[]);
    let (_changes, changes) = mpsc::channel(1);
    let revisions = Arc::new(Revisions::default());
    let scheduler = Arc::clone(&bed.scheduler);
    let mut handlers = EventHandlers::new(
        scheduler,
        &watched.informers,
        revisions,
        changes,
        Some(recorder),
    );
    handlers.handle_initial();
    let running = tokio::spawn(handlers.run(shutdown.clone()));
    let version = |pod: PodBuilder, version: &str| {
        Pod::clone(
            &pod.with(|pod| pod.metadata.resource_version = Some(version.into()))
                .build(),
        )
    };
    for name in ["p1", "p2"] {
        let pod = version(with_secrets(name), "1");
        watched
            .pods
            .send(Ok(Apply(pod)))
            .expect("the informer reads");
    }
    bed.until("both are heard of", |bed| {
        bed.scheduler.queue.counts().active == 2
    })
    .await;
    watched
        .pods
        .send(Ok(Apply(version(with_secrets("p1").node("a"), "2"))))
        .unwrap();
    bed.until("one is bound", |bed| bed.scheduler.cache.counts().pods == 1)
        .await;
    watched
        .pods
        .send(Ok(Delete(version(pod("p1", "1").node("a"), "3"))))
        .unwrap();
    bed.until("one is gone", |bed| bed.scheduler.cache.counts().pods == 0)
        .await;
    shutdown.trigger();
    running.await.expect("no panic");

    let text = std::fs::read_to_string(&path).expect("written");
    assert!(
        !text.contains("hunter2") && text.contains("\"cpu\":\"1\""),
        "{text}"
    );
    let trace = Trace::read(Cursor::new(&text), &[]).expect("its own words");
    let told: Vec<String> = trace
        .events
        .iter()
        .map(|event| {
            format!(
                "{:?} {} {}",
                event.change,
                event.object.kind().name(),
                event.object.name()
            )
        })
        .collect();
    assert_eq!(
        told[3..],
        [
            "Added Pod p1",
            "Added Pod p2",
            "Modified Pod p1",
            "Deleted Pod p1"
        ],
        "{told:?}"
    );
    assert_eq!((trace.initial, trace.truncated.as_deref()), (3, None));
    // Written again it is the same.
    let mut again = Vec::new();
    trace.write(&mut again).expect("into memory");
    let reread = Trace::read(Cursor::new(again), &[]).expect("its own words");
    assert_eq!(reread.events.len(), trace.events.len());
    assert_eq!(reread.initial, trace.initial);
    let both = std::thread::spawn(move || {
        let config = config(json!({}));
        (played(&trace, &config), played(&reread, &config))
    });
    let (once, twice) = both.join().expect("plays");
    assert_eq!(once, twice);
    assert!(
        once.pods
            .values()
            .all(|pod| pod.node.is_some() || pod.ended.is_some()),
        "{once:?}"
    );
}

#[test]
fn a_recorder_keeps_its_bounds() {
    let directory = tempfile::tempdir().expect("a directory");
    let nowhere = directory.path().join("missing/trace.jsonl");
    let refused = TraceRecorder::create(&nowhere, 1)
        .err()
        .expect("no such directory");
    let said = refused.to_string();
    assert!(
        said.starts_with("record-trace: Invalid value: ") && said.contains("missing/trace.jsonl"),
        "{said}"
    );
    assert!(
        TraceRecorder::create(directory.path(), 1).is_err(),
        "a directory"
    );

    let path = directory.path().join("trace.jsonl");
    std::fs::write(&path, "before").expect("written");
    let recorder = TraceRecorder::create(&path, 600).expect("writable");
    for i in 0..100 {
        recorder.initial(node(&format!("n{i}"), "1").build().into());
    }
    drop(recorder);
    let old = std::fs::read_to_string(directory.path().join("trace.jsonl.old"));
    assert_eq!(old.expect("kept"), "before");
    let file = std::fs::File::open(&path).expect("written");
    let trace = Trace::read(std::io::BufReader::new(file), &[]).expect("its own words");
    assert!(
        trace.events.len() < 100 && trace.truncated.is_some(),
        "{}",
        trace.events.len()
    );
}
