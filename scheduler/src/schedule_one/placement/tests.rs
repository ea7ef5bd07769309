//! Groups of pods go to one domain of their topology, or nowhere.

use std::collections::{BTreeMap, BTreeSet};

use component_base::informer::InformerEvent;
use framework::testing::{PodBuilder, make_node};
use k8s_openapi::api::core::v1::PodSchedulingGroup;
use k8s_openapi::api::scheduling::v1beta1::{PodGroupSchedulingConstraints, TopologyConstraint};

use super::*;
use crate::event_handlers::handle_node;
use crate::schedule_one::group::tests::{bound, comes, gang, group_comes, member};
use crate::testing::Bed;

const RACK: &str = "rack";

fn gang_of(name: &str, min_count: i32) -> PodGroup {
    let mut group = gang(min_count);
    group.metadata.name = Some(name.to_owned());
    group.spec.scheduling_constraints = Some(PodGroupSchedulingConstraints {
        topology: Some(vec![TopologyConstraint { key: RACK.into() }]),
    });
    group
}

fn member_of(group: &str, name: &str) -> PodBuilder {
    let group = group.to_owned();
    member(name).with(move |pod| {
        pod.spec.get_or_insert_default().scheduling_group = Some(PodSchedulingGroup {
            pod_group_name: Some(group),
        });
    })
}

fn bed(pods: &[PodBuilder]) -> Bed {
    let infos: Vec<_> = pods.iter().map(|pod| pod.clone().info()).collect();
    Bed::with_topology_aware(&infos)
}

async fn node_comes(bed: &mut Bed, name: &str, rack: &str, cpu: u64) {
    let node = make_node(name).capacity(&[("cpu", &cpu.to_string())]);
    let node = match rack {
        "" => node.build(),
        rack => node.label(RACK, rack).build(),
    };
    bed.objects.add_node(Arc::clone(&node));
    handle_node(&bed.scheduler, InformerEvent::Added(node));
    bed.settle().await;
}

fn told(bed: &Bed) -> Vec<String> {
    bed.writes.groups.lock().unwrap().clone()
}

/// Nodes as (name, rack, CPU), a gang of so many pods of which so many have to run; the racks its pods went to, or what was said of the group.
async fn check(
    nodes: &[(&str, &str, u64)],
    pods: usize,
    min_count: i32,
    expect: Result<(&str, usize), &str>,
) {
    let pods: Vec<_> = (0..pods)
        .map(|i| member_of("g", &format!("p{i}")))
        .collect();
    let mut bed = bed(&pods);
    for (name, rack, cpu) in nodes {
        node_comes(&mut bed, name, rack, *cpu).await;
    }
    for pod in &pods {
        comes(&mut bed, pod).await;
    }
    group_comes(&mut bed, gang_of("g", min_count)).await;
    let bound = bound(&bed);
    let racks = bound.iter().map(|line| {
        let node = line.split(" -> ").nth(1).expect("a node");
        nodes
            .iter()
            .find(|(name, ..)| *name == node)
            .expect("known")
            .1
    });
    let racks: BTreeSet<_> = racks.collect();
    match expect {
        Ok((rack, pods)) => {
            assert_eq!(racks, BTreeSet::from([rack]), "{nodes:?}");
            assert_eq!(bound.len(), pods, "{nodes:?}");
            assert!(told(&bed)[0].starts_with("g Scheduled"), "{:?}", told(&bed));
        }
        Err(why) => {
            assert!(bound.is_empty(), "{bound:?}");
            assert_eq!(told(&bed), [format!("g Unschedulable {why}")]);
            assert_eq!(bed.scheduler.cache.counts().pods, 0, "nothing is kept");
        }
    }
}

#[tokio::test]
async fn a_gang_goes_to_one_rack() {
    // The only one with room for all.
    let nodes = [("a", "1", 2), ("b", "2", 2), ("c", "1", 1), ("d", "2", 2)];
    check(&nodes, 4, 4, Ok(("2", 4))).await;
    // Nodes without the label are in no rack.
    check(&[("a", "", 9), ("b", "1", 2)], 2, 2, Ok(("1", 2))).await;
    // More of its pods are better than a fuller rack: 100 + 30 against 75 + 100.
    check(&[("a", "1", 3), ("b", "2", 4)], 4, 3, Ok(("2", 4))).await;
    // Of those that hold all, the fuller one.
    check(
        &[("a", "1", 8), ("b", "2", 4), ("c", "3", 8)],
        3,
        3,
        Ok(("2", 3)),
    )
    .await;
}

#[tokio::test]
async fn a_gang_that_no_rack_holds_goes_nowhere() {
    check(
        &[("a", "1", 2), ("b", "2", 2), ("c", "", 9)],
        3,
        3,
        Err("0/2 placements are available, first placement status: minCount (3) cannot be satisfied: 2 scheduled, 0 remaining"),
    )
    .await;
    check(
        &[("a", "1", 2)],
        3,
        3,
        Err("0/1 placements are available, first placement status: minCount (3) cannot be satisfied: 2 scheduled, 0 remaining"),
    )
    .await;
    check(&[("c", "", 9)], 2, 2, Err("no feasible placements found")).await;
}

#[tokio::test]
async fn room_in_a_rack_wakes_the_gang() {
    let pods = ["a", "b", "c"].map(|name| member_of("g", name));
    let mut bed = bed(&pods);
    node_comes(&mut bed, "n", "1", 2).await;
    node_comes(&mut bed, "m", "2", 2).await;
    group_comes(&mut bed, gang_of("g", 3)).await;
    for pod in &pods {
        comes(&mut bed, pod).await;
    }
    assert!(bound(&bed).is_empty(), "{:?}", bound(&bed));
    node_comes(&mut bed, "o", "2", 1).await;
    let nodes = bound(&bed);
    assert_eq!(nodes.len(), 3, "{:?}", told(&bed));
    assert!(
        nodes.iter().all(|line| !line.ends_with("-> n")),
        "{nodes:?}"
    );
}

#[tokio::test]
async fn the_first_rack_wakes_the_gang() {
    let pods = ["a", "b"].map(|name| member_of("g", name));
    let mut bed = bed(&pods);
    group_comes(&mut bed, gang_of("g", 2)).await;
    for pod in &pods {
        comes(&mut bed, pod).await;
    }
    assert_eq!(told(&bed), ["g Unschedulable no feasible placements found"]);
    node_comes(&mut bed, "n", "1", 2).await;
    assert_eq!(bound(&bed), ["a -> n", "b -> n"]);
}

#[tokio::test]
async fn those_who_come_later_go_where_the_others_are() {
    let pods = ["a", "b", "late"].map(|name| member_of("g", name));
    let mut bed = bed(&pods);
    node_comes(&mut bed, "n", "1", 3).await;
    group_comes(&mut bed, gang_of("g", 2)).await;
    comes(&mut bed, &pods[0]).await;
    comes(&mut bed, &pods[1]).await;
    assert_eq!(bound(&bed), ["a -> n", "b -> n"]);
    // A rack of its own would be fuller with it.
    node_comes(&mut bed, "m", "2", 1).await;
    comes(&mut bed, &pods[2]).await;
    assert_eq!(bound(&bed), ["a -> n", "b -> n", "late -> n"]);
}

#[tokio::test]
async fn a_group_without_a_topology_goes_anywhere() {
    let pods = ["a", "b"].map(|name| member_of("g", name));
    let mut bed = bed(&pods);
    node_comes(&mut bed, "n", "1", 1).await;
    node_comes(&mut bed, "m", "2", 1).await;
    group_comes(&mut bed, gang(2)).await;
    for pod in &pods {
        comes(&mut bed, pod).await;
    }
    assert_eq!(bound(&bed).len(), 2);
}

#[tokio::test]
async fn with_the_other_gate_off_the_topology_is_not_looked_at() {
    let pods = ["a", "b"].map(|name| member_of("g", name));
    let infos: Vec<_> = pods.iter().map(|pod| pod.clone().info()).collect();
    let mut bed = Bed::with_pod_groups(&infos);
    node_comes(&mut bed, "n", "1", 1).await;
    node_comes(&mut bed, "m", "2", 1).await;
    group_comes(&mut bed, gang_of("g", 2)).await;
    for pod in &pods {
        comes(&mut bed, pod).await;
    }
    assert_eq!(bound(&bed).len(), 2);
}

/// A number that looks random.
fn next(state: &mut u64, below: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state % below
}

#[tokio::test]
async fn gangs_never_straddle_racks_and_come_whole_or_not_at_all() {
    let (mut whole, mut none) = (0, 0);
    for seed in 1..=25u64 {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let racks = 1 + next(&mut random, 4);
        let gangs: Vec<(String, usize, i32)> = (0..6)
            .map(|i| {
                let pods = 1 + next(&mut random, 5);
                let min = 1 + next(&mut random, pods);
                (format!("g{i}"), pods as usize, min as i32)
            })
            .collect();
        let pods = |(name, pods, _): &(String, usize, i32)| {
            let pods = (0..*pods).map(|i| member_of(name, &format!("{name}-{i}")));
            pods.collect::<Vec<_>>()
        };
        let all: Vec<_> = gangs.iter().flat_map(pods).collect();
        let mut bed = bed(&all);
        // Where a node is, and how much is free in each rack.
        let mut rack_of: BTreeMap<String, String> = BTreeMap::new();
        let mut free: BTreeMap<String, u64> = BTreeMap::new();
        for i in 0..6 {
            let rack = match next(&mut random, racks + 1) {
                0 => String::new(),
                rack => rack.to_string(),
            };
            let (name, cpu) = (format!("n{i}"), 1 + next(&mut random, 4));
            node_comes(&mut bed, &name, &rack, cpu).await;
            if !rack.is_empty() {
                *free.entry(rack.clone()).or_default() += cpu;
            }
            rack_of.insert(name, rack);
        }
        for gang in &gangs {
            let (name, pods_of_it, min_count) = (&gang.0, pods(gang), gang.2);
            let before = bound(&bed).len();
            group_comes(&mut bed, gang_of(name, min_count)).await;
            for pod in &pods_of_it {
                comes(&mut bed, pod).await;
            }
            let prefix = format!("{name}-");
            let bound = bound(&bed);
            let own: Vec<_> = bound
                .iter()
                .filter(|line| line.starts_with(&prefix))
                .collect();
            let racks = own.iter().map(|line| {
                let node = line.split(" -> ").nth(1).expect("a node");
                rack_of[node].clone()
            });
            let racks: BTreeSet<String> = racks.collect();
            let most = free.values().copied().max().unwrap_or(0);
            let min_count = min_count as u64;
            if own.is_empty() {
                none += 1;
                assert!(
                    most < min_count,
                    "{seed} {name}: {free:?} has room for {min_count}"
                );
            } else {
                whole += 1;
                assert_eq!(racks.len(), 1, "{seed} {name}: {own:?} in {rack_of:?}");
                assert!(own.len() as u64 >= min_count, "{seed} {name}: {own:?}");
                let rack = racks.first().expect("one");
                let left = free.get_mut(rack).expect("no node without a rack");
                *left = left
                    .checked_sub(own.len() as u64)
                    .expect("no more than fit");
            }
            assert_eq!(bound.len(), before + own.len(), "the others stay");
            assert_eq!(bed.scheduler.cache.counts().pods, bound.len());
        }
    }
    assert!(
        whole > 30 && none > 10,
        "{whole} came whole, {none} not at all"
    );
}
