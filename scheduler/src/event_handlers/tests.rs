//! What each change of a pod or node does to the cache and the queue.

use framework::testing::{PodBuilder, make_node, make_pod};

use super::*;
use crate::testing::Bed;

fn pod(name: &str) -> PodBuilder {
    make_pod(name).uid(name).req(&[("cpu", "1")])
}

fn updated(old: PodBuilder, new: PodBuilder) -> InformerEvent<Pod> {
    let version = |pod: PodBuilder, v: &str| {
        pod.with(|pod| pod.metadata.resource_version = Some(v.to_owned()))
            .build()
    };
    InformerEvent::Updated {
        old: version(old, "1"),
        new: version(new, "2"),
    }
}

/// (pods waiting, pods with a node) after the events.
fn after(bed: &Bed, events: Vec<InformerEvent<Pod>>) -> (usize, usize) {
    for event in events {
        handle_pod(&bed.scheduler, event);
    }
    (
        bed.scheduler.queue.pending_pods().len(),
        bed.scheduler.cache.counts().pods,
    )
}

#[tokio::test]
async fn pods_go_where_they_belong() {
    let added = |pod: PodBuilder| InformerEvent::Added(pod.build());
    let deleted = |pod: PodBuilder| InformerEvent::Deleted(pod.build());
    for (what, events, expect) in [
        ("pending", vec![added(pod("p"))], (1, 0)),
        (
            "another scheduler's",
            vec![added(pod("p").scheduler_name("other"))],
            (0, 0),
        ),
        ("assigned", vec![added(pod("p").node("n"))], (0, 1)),
        (
            "another scheduler's, assigned",
            vec![added(pod("p").scheduler_name("other").node("n"))],
            (0, 1),
        ),
        (
            "bound by somebody",
            vec![added(pod("p")), updated(pod("p"), pod("p").node("n"))],
            (0, 1),
        ),
        (
            "changed while pending",
            vec![added(pod("p")), updated(pod("p"), pod("p").label("a", "b"))],
            (1, 0),
        ),
        (
            "deleted while pending",
            vec![added(pod("p")), deleted(pod("p"))],
            (0, 0),
        ),
        (
            "deleted from its node",
            vec![added(pod("p").node("n")), deleted(pod("p").node("n"))],
            (0, 0),
        ),
        (
            "bound and deleted unseen",
            vec![added(pod("p")), deleted(pod("p").node("n"))],
            (0, 0),
        ),
        (
            "replaced by another of its name",
            vec![
                added(pod("p").node("n")),
                updated(pod("p").node("n"), pod("p").uid("q")),
            ],
            (1, 0),
        ),
    ] {
        assert_eq!(after(&Bed::new(&[]), events), expect, "{what}");
    }
}

#[tokio::test]
async fn an_assumed_pod_that_is_deleted_gives_its_room_back() {
    let info = pod("p").info();
    let mut bed = Bed::new(std::slice::from_ref(&info));
    handle_node(
        &bed.scheduler,
        InformerEvent::Added(make_node("n").capacity(&[("cpu", "1")]).build()),
    );
    handle_pod(&bed.scheduler, InformerEvent::Added(Arc::clone(&info.pod)));
    bed.settle().await;
    assert!(bed.scheduler.cache.is_assumed_pod("p"));
    let (pending, placed) = after(&bed, vec![InformerEvent::Deleted(Arc::clone(&info.pod))]);
    assert_eq!((pending, placed), (0, 0));
}

#[tokio::test]
async fn those_who_wait_hear_of_an_assumed_pod_that_is_deleted() {
    let (first, second) = (pod("p").info(), pod("q").info());
    let mut bed = Bed::new(&[Arc::clone(&first), Arc::clone(&second)]);
    let node = make_node("n").capacity(&[("cpu", "1")]).build();
    handle_node(&bed.scheduler, InformerEvent::Added(node));
    for info in [&first, &second] {
        handle_pod(&bed.scheduler, InformerEvent::Added(Arc::clone(&info.pod)));
        bed.settle().await;
    }
    assert_eq!(bed.scheduler.queue.counts().unschedulable, 1);
    after(&bed, vec![InformerEvent::Deleted(Arc::clone(&first.pod))]);
    assert_eq!(bed.scheduler.queue.counts().unschedulable, 0);
}

#[tokio::test]
async fn nodes_come_change_and_go() {
    let mut bed = Bed::new(&[pod("p").info()]);
    let node = || make_node("n").capacity(&[("cpu", "4")]);
    handle_pod(&bed.scheduler, InformerEvent::Added(pod("p").build()));
    handle_node(
        &bed.scheduler,
        InformerEvent::Added(node().taint("k", "v", "NoSchedule").build()),
    );
    bed.settle().await;
    assert_eq!(bed.scheduler.queue.counts().unschedulable, 1);
    let heartbeat = node()
        .taint("k", "v", "NoSchedule")
        .with(|n| n.metadata.resource_version = Some("2".into()))
        .build();
    let event = InformerEvent::Updated {
        old: node().taint("k", "v", "NoSchedule").build(),
        new: Arc::clone(&heartbeat),
    };
    handle_node(&bed.scheduler, event);
    assert_eq!(
        bed.scheduler.queue.counts().unschedulable,
        1,
        "a heartbeat helps nobody"
    );
    handle_node(
        &bed.scheduler,
        InformerEvent::Updated {
            old: heartbeat,
            new: node().build(),
        },
    );
    bed.settle().await;
    assert_eq!(*bed.writes.bound.lock().unwrap(), ["p -> n"]);
    handle_node(&bed.scheduler, InformerEvent::Deleted(node().build()));
    assert_eq!(bed.scheduler.cache.counts().nodes, 0);
}
