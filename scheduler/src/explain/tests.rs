//! What is said of pods that fit nowhere.

use framework::testing::{PodBuilder, make_node, make_pod};

use super::*;
use crate::testing::Bed;

/// Explains the first pod in a cluster of nodes with pods; `settled`: the scheduler has tried it.
async fn explained(
    pod: PodBuilder,
    nodes: Vec<framework::testing::NodeBuilder>,
    placed: Vec<PodBuilder>,
    settled: bool,
) -> (Explanation, Bed) {
    let info = pod.info();
    let mut bed = Bed::new(std::slice::from_ref(&info));
    let scheduler = Arc::clone(&bed.scheduler);
    for node in nodes {
        scheduler.cache.add_node(node.build());
    }
    for pod in placed {
        scheduler.cache.add_pod(pod.info());
    }
    scheduler.queue.add(Arc::clone(&info));
    if settled {
        bed.settle().await;
    }
    let mut snapshot = Snapshot::new();
    for node in scheduler.cache.dump().0 {
        snapshot.set_node(node);
    }
    let framework = scheduler
        .framework_for_pod(&info)
        .expect("the default profile");
    let (nominator, waiting) = (scheduler.queue.nominator(), scheduler.queue.find(&info.uid));
    let explanation = explain(&framework, &snapshot, &info, nominator, waiting);
    (explanation, bed)
}

fn node(name: &str, cpu: &str) -> framework::testing::NodeBuilder {
    make_node(name).capacity(&[("cpu", cpu), ("memory", "4Gi"), ("pods", "10")])
}

#[tokio::test]
async fn nodes_are_grouped_by_reason_and_the_nearest_tells_what_is_missing() {
    let pod = make_pod("a")
        .uid("a")
        .req(&[("cpu", "3"), ("memory", "1Gi")]);
    let nodes = vec![
        node("small", "1"),
        node("nearly", "2"),
        node("tainted", "8").taint("k", "v", "NoSchedule"),
    ];
    let (said, bed) = explained(pod, nodes, vec![], true).await;
    assert_eq!((said.nodes, said.feasible_nodes), (3, 0));
    let groups: Vec<(&str, usize, bool)> = said
        .groups
        .iter()
        .map(|group| {
            (
                group.plugin.as_str(),
                group.nodes,
                group.preemption_may_help,
            )
        })
        .collect();
    // More than the nodes have, whoever is ended.
    assert_eq!(
        groups,
        [
            ("NodeResourcesFit", 2, false),
            ("TaintToleration", 1, false)
        ]
    );
    let missing = Missing {
        resource: "cpu".into(),
        requested: 3000,
        free: 2000,
        allocatable: 2000,
        node: "nearly".into(),
    };
    assert_eq!(said.groups[0].missing, [missing]);
    assert!(said.groups[1].missing.is_empty());
    let event = bed.events.lock().unwrap()[0].clone();
    assert_eq!(event, format!("FailedScheduling {}", said.message));
    let waiting = said.waiting.expect("it waits");
    assert_eq!(
        (waiting.queue.as_str(), waiting.attempts),
        ("unschedulable", 1)
    );
    assert_eq!(waiting.rejected_by, ["NodeResourcesFit", "TaintToleration"]);
    let wakes = |plugin: &str, resource: &str, action: &str| {
        said.woken_by.iter().any(|wake| {
            wake.plugin == plugin
                && wake.resource == resource
                && wake.actions.iter().any(|a| a == action)
        })
    };
    assert!(
        wakes("NodeResourcesFit", "Node", "Add"),
        "{:?}",
        said.woken_by
    );
    assert!(wakes("TaintToleration", "Node", "UpdateNodeTaint"));
    assert!(
        said.woken_by
            .iter()
            .all(|wake| wake.plugin != "NodeAffinity")
    );
}

#[tokio::test]
async fn preemption_is_told_and_not_done() {
    let high = make_pod("high")
        .uid("high")
        .priority(10)
        .req(&[("cpu", "2")]);
    let low = make_pod("low").uid("low").req(&[("cpu", "2")]).node("n");
    let (said, bed) = explained(high, vec![node("n", "2")], vec![low.clone()], false).await;
    let preemption = said.preemption.expect("considered");
    assert_eq!(preemption.node.as_deref(), Some("n"));
    assert_eq!(preemption.victims, ["default/low"]);
    assert!(preemption.refused.is_empty());
    let told = "preemption: found a potential placement for pod on node n, preempting 1 victims";
    assert!(said.message.ends_with(told), "{}", said.message);
    assert!(said.groups[0].preemption_may_help);
    tokio::task::yield_now().await;
    assert!(bed.writes.nominations.lock().unwrap().is_empty());
    assert!(bed.events.lock().unwrap().is_empty());
    assert!(bed.scheduler.queue.nominator().is_empty());

    let never = make_pod("never")
        .uid("never")
        .priority(10)
        .req(&[("cpu", "2")])
        .with(|pod| pod.spec.get_or_insert_default().preemption_policy = Some("Never".into()));
    let (said, _) = explained(never, vec![node("n", "2")], vec![low], false).await;
    let preemption = said.preemption.expect("considered");
    let why = "preemption: not eligible due to preemptionPolicy=Never.";
    assert_eq!((preemption.node, preemption.refused.as_str()), (None, why));
}

#[tokio::test]
async fn a_pod_that_fits_says_where_and_a_gated_one_who_holds_it() {
    let pod = make_pod("a").uid("a").req(&[("cpu", "1")]);
    let (said, bed) = explained(pod, vec![node("n", "2"), node("full", "0")], vec![], false).await;
    assert_eq!(said.would_go_to.as_deref(), Some("n"));
    assert_eq!((said.nodes, said.feasible_nodes), (2, 1));
    assert!(said.groups.is_empty() && said.woken_by.is_empty());
    assert_eq!(bed.scheduler.cache.counts().pods, 0, "nothing is assumed");

    let gated = make_pod("g").uid("g").scheduling_gate("later");
    let (said, _) = explained(gated, vec![node("n", "2")], vec![], true).await;
    let waiting = said.waiting.expect("it waits");
    assert_eq!(
        (waiting.queue.as_str(), waiting.gated_by.as_deref()),
        ("gated", Some("SchedulingGates"))
    );
    assert_eq!(said.woken_by.len(), 1);
    assert_eq!(
        said.woken_by[0].actions,
        ["UpdatePodSchedulingGatesEliminated"]
    );
}

#[tokio::test]
async fn without_nodes_or_claims_the_message_says_it() {
    let (said, _) = explained(make_pod("a").uid("a"), vec![], vec![], false).await;
    assert_eq!(said.message, "no nodes available to schedule pods");
    let claims = make_pod("a").uid("a").claim("c");
    let (said, _) = explained(claims, vec![node("n", "2")], vec![], false).await;
    assert_eq!(said.groups.len(), 1);
    assert_eq!(
        said.groups[0].reasons,
        ["persistentvolumeclaim \"c\" not found"]
    );
    assert_eq!(said.groups[0].plugin, "VolumeRestrictions");
}
