//! Groups of pods get nodes together, or go back together.

use framework::testing::{PodBuilder, make_node, make_pod};
use k8s_openapi::api::core::v1::PodSchedulingGroup;
use k8s_openapi::api::scheduling::v1beta1::{
    GangSchedulingPolicy, PodGroupSchedulingPolicy, PodGroupSpec, PodGroupStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use component_base::informer::InformerEvent;

use super::*;
use crate::event_handlers::{handle_node, handle_pod, handle_pod_group};
use crate::testing::Bed;

pub(in crate::schedule_one) fn gang(min_count: i32) -> PodGroup {
    PodGroup {
        metadata: ObjectMeta {
            namespace: Some("default".into()),
            name: Some("g".into()),
            resource_version: Some(min_count.to_string()),
            ..ObjectMeta::default()
        },
        spec: PodGroupSpec {
            scheduling_policy: PodGroupSchedulingPolicy {
                gang: Some(GangSchedulingPolicy { min_count }),
                ..PodGroupSchedulingPolicy::default()
            },
            ..PodGroupSpec::default()
        },
        ..PodGroup::default()
    }
}

pub(in crate::schedule_one) fn member(name: &str) -> PodBuilder {
    make_pod(name).uid(name).req(&[("cpu", "1")]).with(|pod| {
        pod.spec.get_or_insert_default().scheduling_group = Some(PodSchedulingGroup {
            pod_group_name: Some("g".into()),
        });
    })
}

/// A scheduler that knows these pods; none has come yet.
fn bed(pods: &[PodBuilder]) -> Bed {
    let infos: Vec<_> = pods.iter().map(|pod| pod.clone().info()).collect();
    Bed::with_pod_groups(&infos)
}

pub(in crate::schedule_one) async fn comes(bed: &mut Bed, pod: &PodBuilder) {
    handle_pod(&bed.scheduler, InformerEvent::Added(pod.clone().build()));
    bed.settle().await;
}

pub(in crate::schedule_one) async fn group_comes(bed: &mut Bed, group: PodGroup) {
    handle_pod_group(&bed.scheduler, InformerEvent::Added(Arc::new(group)));
    bed.settle().await;
}

async fn node_comes(bed: &mut Bed, name: &str, cpu: &str) {
    let node = make_node(name).capacity(&[("cpu", cpu)]).build();
    bed.objects.add_node(Arc::clone(&node));
    handle_node(&bed.scheduler, InformerEvent::Added(node));
    bed.settle().await;
}

pub(in crate::schedule_one) fn bound(bed: &Bed) -> Vec<String> {
    let mut bound = bed.writes.bound.lock().unwrap().clone();
    bound.sort();
    bound
}

#[tokio::test]
async fn a_gang_waits_until_it_is_complete() {
    let pods = ["a", "b", "c"].map(member);
    let mut bed = bed(&pods);
    node_comes(&mut bed, "n", "4").await;
    comes(&mut bed, &pods[0]).await;
    comes(&mut bed, &pods[1]).await;
    assert_eq!(
        bed.scheduler.queue.counts().gated,
        2,
        "nobody has made the group"
    );
    group_comes(&mut bed, gang(3)).await;
    assert_eq!(bed.scheduler.queue.counts().gated, 2, "one is missing");
    assert!(bed.events.lock().unwrap().is_empty(), "nothing was tried");
    comes(&mut bed, &pods[2]).await;
    assert_eq!(bound(&bed), ["a -> n", "b -> n", "c -> n"]);
    assert_eq!(*bed.writes.groups.lock().unwrap(), ["g Scheduled "]);
    assert_eq!(bed.scheduler.queue.counts().in_flight_pods, 0);
    let failed = bed.events.lock().unwrap();
    assert!(
        failed.iter().all(|event| event.starts_with("Scheduled")),
        "{failed:?}"
    );
}

#[tokio::test]
async fn a_gang_without_room_goes_back_and_comes_again_with_it() {
    let pods = ["a", "b", "c"].map(member);
    let mut bed = bed(&pods);
    node_comes(&mut bed, "n", "2").await;
    group_comes(&mut bed, gang(3)).await;
    for pod in &pods {
        comes(&mut bed, pod).await;
    }
    assert!(bound(&bed).is_empty());
    assert_eq!(bed.scheduler.cache.counts().pods, 0, "nothing is kept");
    let groups = bed.writes.groups.lock().unwrap().clone();
    let why = "minCount (3) cannot be satisfied: 2 scheduled, 0 remaining";
    assert_eq!(groups, [format!("g Unschedulable {why}")]);
    let conditions = bed.writes.conditions.lock().unwrap().clone();
    for expect in [
        format!("a Unschedulable {why}"),
        format!("b Unschedulable {why}"),
        "c Unschedulable 0/1 nodes are available: 1 Insufficient cpu.".to_owned(),
    ] {
        assert!(conditions.contains(&expect), "{expect:?} in {conditions:?}");
    }
    let mut rejected = bed.scheduler.queue.rejected_by();
    rejected.retain(|(_, pods)| *pods > 0);
    assert_eq!(
        rejected,
        [("NodeResourcesFit", 3)],
        "room is what all wait for"
    );
    node_comes(&mut bed, "m", "1").await;
    assert_eq!(bound(&bed).len(), 3, "{:?}", bound(&bed));
    assert!(
        bed.writes
            .groups
            .lock()
            .unwrap()
            .last()
            .unwrap()
            .starts_with("g Scheduled")
    );
}

#[tokio::test]
async fn a_group_can_do_without_some_of_its_pods() {
    for (group, expect) in [
        (gang(2), 2),
        (
            PodGroup {
                spec: PodGroupSpec::default(),
                ..gang(1)
            },
            2,
        ),
    ] {
        let pods = ["a", "b", "c"].map(member);
        let mut bed = bed(&pods);
        node_comes(&mut bed, "n", "2").await;
        for pod in &pods {
            comes(&mut bed, pod).await;
        }
        group_comes(&mut bed, group).await;
        assert_eq!(bound(&bed).len(), expect);
        assert_eq!(bed.scheduler.queue.counts().unschedulable, 1);
        // The third comes when there is room: so many have a node already.
        node_comes(&mut bed, "m", "1").await;
        assert_eq!(bound(&bed).len(), 3);
    }
}

#[tokio::test]
async fn fewer_may_do_later() {
    let pods = ["a", "b"].map(member);
    let mut bed = bed(&pods);
    node_comes(&mut bed, "n", "4").await;
    group_comes(&mut bed, gang(3)).await;
    for pod in &pods {
        comes(&mut bed, pod).await;
    }
    assert_eq!(bed.scheduler.queue.counts().gated, 2);
    let (old, new) = (Arc::new(gang(3)), Arc::new(gang(2)));
    handle_pod_group(&bed.scheduler, InformerEvent::Updated { old, new });
    bed.settle().await;
    assert_eq!(bound(&bed), ["a -> n", "b -> n"]);
}

#[tokio::test]
async fn what_pods_of_a_group_have_to_share_is_checked() {
    for (pod, expect) in [
        (
            member("b").priority(7),
            "priority as the pod group's priority, got 7 and 0",
        ),
        (
            member("b").with(|pod| {
                pod.spec.get_or_insert_default().preemption_policy = Some("Never".into());
            }),
            "same preemption policy, got Never and PreemptLowerPriority",
        ),
    ] {
        let pods = [member("a"), pod];
        let mut bed = bed(&pods);
        node_comes(&mut bed, "n", "4").await;
        group_comes(&mut bed, gang(2)).await;
        for pod in &pods {
            comes(&mut bed, pod).await;
        }
        assert!(bound(&bed).is_empty());
        let groups = bed.writes.groups.lock().unwrap().clone();
        assert!(
            groups[0].starts_with("g SchedulerError all pods in a single pod group"),
            "{groups:?}"
        );
        let conditions = bed.writes.conditions.lock().unwrap().clone();
        assert!(
            conditions.iter().any(|c| c.contains(expect)),
            "{expect:?} in {conditions:?}"
        );
    }
}

#[tokio::test]
async fn pods_of_a_group_that_are_rejected_by_reserve_take_all_back() {
    let pods = [member("a"), member("b").label("reserve", "error")];
    let mut bed = bed(&pods);
    node_comes(&mut bed, "n", "4").await;
    group_comes(&mut bed, gang(2)).await;
    for pod in &pods {
        comes(&mut bed, pod).await;
    }
    assert!(bound(&bed).is_empty());
    assert_eq!(bed.scheduler.cache.counts().pods, 0);
    let conditions = bed.writes.conditions.lock().unwrap().clone();
    let own = "b SchedulerError running Reserve plugin \"Scripted\": boom";
    let other = format!(
        "a SchedulerError failed to schedule other pod from a pod group: {}",
        &own[17..]
    );
    assert!(
        conditions.contains(&own.to_owned()) && conditions.contains(&other),
        "{conditions:?}"
    );
}

#[tokio::test]
async fn without_the_gate_a_group_is_not_looked_at() {
    let pod = member("a");
    let mut bed = Bed::new(&[pod.clone().info()]);
    node_comes(&mut bed, "n", "4").await;
    comes(&mut bed, &pod).await;
    assert_eq!(bound(&bed), ["a -> n"]);
}

#[test]
fn a_condition_is_written_once_and_never_taken_back() {
    let now = Timestamp::UNIX_EPOCH;
    let ok = Status::success();
    let no = Status::unschedulable("no room");
    let first = condition(&gang(1), &no, now).expect("new");
    assert_eq!((&*first.status, &*first.reason), ("False", "Unschedulable"));
    let with = |condition: &Condition| PodGroup {
        status: Some(PodGroupStatus {
            conditions: Some(vec![condition.clone()]),
            ..PodGroupStatus::default()
        }),
        ..gang(1)
    };
    let later = Timestamp::from_second(60).expect("in range");
    assert_eq!(condition(&with(&first), &no, later), None);
    let other =
        condition(&with(&first), &Status::unschedulable("still"), later).expect("other words");
    assert_eq!(other.last_transition_time, first.last_transition_time);
    let scheduled = condition(&with(&first), &ok, later).expect("another fate");
    assert_eq!(
        (&*scheduled.status, &*scheduled.reason),
        ("True", "Scheduled")
    );
    assert_eq!(scheduled.last_transition_time, Time(later));
    assert_eq!(condition(&with(&scheduled), &no, later), None);
}
