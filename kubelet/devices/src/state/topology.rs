//! Where devices are: hints for the topology manager, and devices of the nodes that were agreed on.
//!
//! Upstream: topology_hints.go, `filterByAffinity`, `devicesToAllocate`, v1.37.

use std::collections::{BTreeMap, BTreeSet};

use resource_managers::numa_mask::iterate_masks;
use resource_managers::{Hints, NumaMask, TopologyHint};

use super::{Choice, Kind, PodRequest, Resource, State};

impl Resource {
    /// The nodes of the device; empty: it is of none.
    fn nodes(&self, device: &str) -> impl Iterator<Item = usize> + '_ {
        let device = self.devices.get(device);
        let nodes = device.map(|d| d.numa_nodes.as_slice()).unwrap_or_default();
        nodes.iter().filter_map(|node| usize::try_from(*node).ok())
    }

    fn is_in(&self, device: &str, mask: NumaMask) -> bool {
        mask.any_of(self.nodes(device))
    }

    /// Whether it matters where its devices are.
    fn has_topology(&self) -> bool {
        self.devices
            .values()
            .any(|device| !device.numa_nodes.is_empty())
    }

    /// All sets of nodes that have enough; those of the fewest nodes that could ever do are preferred. `machine`: its nodes.
    fn hints(
        &self,
        machine: &[usize],
        available: &BTreeSet<String>,
        reusable: &BTreeSet<String>,
        request: usize,
    ) -> Vec<TopologyHint> {
        // Nodes without devices add nothing but combinations.
        let known: BTreeSet<usize> = self
            .devices
            .keys()
            .flat_map(|id| self.nodes(id))
            .filter(|node| machine.contains(node))
            .collect();
        let nodes: Vec<usize> = match known.is_empty() {
            true => machine.to_vec(),
            false => known.into_iter().collect(),
        };
        let mut least = nodes.len();
        let mut masks = Vec::new();
        iterate_masks(&nodes, |mask| {
            let all = self.devices.keys().filter(|id| self.is_in(id, mask));
            if all.count() >= request {
                least = least.min(mask.count());
            }
            let mut placed = reusable.iter().filter(|id| self.nodes(id).next().is_some());
            if placed.clone().any(|id| !self.is_in(id, mask)) {
                return;
            }
            let free = available.iter().filter(|id| self.is_in(id, mask));
            if placed.by_ref().count() + free.count() >= request {
                masks.push(mask);
            }
        });
        let masks = masks.into_iter();
        masks
            .map(|mask| TopologyHint {
                affinity: Some(mask),
                preferred: mask.count() == least,
            })
            .collect()
    }
}

impl Choice {
    /// Only devices of the nodes, if they are enough; else all of them, and others besides, those of no node last.
    fn within(mut self, of: &Resource, mask: NumaMask) -> Self {
        let aligned = self.available.iter().filter(|id| of.is_in(id, mask));
        let aligned: BTreeSet<String> = aligned.cloned().collect();
        if self.missing < aligned.len() {
            self.available = aligned;
            return self;
        }
        self.missing -= aligned.len();
        self.available.retain(|id| !aligned.contains(id));
        self.taken.extend(aligned);
        let unplaced = self
            .available
            .iter()
            .filter(|id| of.nodes(id).next().is_none());
        self.last = unplaced.cloned().collect();
        self
    }
}

impl State {
    /// The choice, as the nodes that were agreed on would have it.
    pub fn align(&self, choice: Choice, resource: &str, mask: NumaMask) -> Choice {
        match self.resources.get(resource).filter(|r| r.has_topology()) {
            Some(of) => choice.within(of, mask),
            None => choice,
        }
    }

    /// Where the container's devices could come from, by resource. `machine`: the nodes there are.
    pub fn topology_hints(&self, pod: &PodRequest, container: &str, machine: &[usize]) -> Hints {
        let of_container = pod.containers.iter().find(|c| c.name == container);
        let limits = of_container.iter().flat_map(|c| &c.limits);
        let mut reusable = self.reusable(pod, container);
        let wanted = limits.filter(|(name, n)| **n > 0 && self.is_of_plugin(name));
        let wanted: Vec<(&String, usize)> = wanted
            .map(|(name, n)| (name, usize::try_from(*n).unwrap_or(usize::MAX)))
            .collect();
        let hints = wanted.into_iter().map(|(resource, requested)| {
            let held = self.pods.devices(&pod.uid, container, resource);
            let left = reusable.remove(resource).unwrap_or_default();
            let hints = self.hints_of(resource, requested, held, left, machine);
            (resource.clone(), hints)
        });
        hints.collect()
    }

    /// The same of all that the pod's containers have at a time.
    pub fn pod_topology_hints(&self, pod: &PodRequest, machine: &[usize]) -> Hints {
        let wanted = most_at_a_time(pod).into_iter();
        let wanted = wanted.filter(|(name, n)| *n > 0 && self.is_of_plugin(name));
        let hints = wanted.map(|(resource, requested)| {
            let containers = pod.containers.iter();
            let held: BTreeSet<String> = containers
                .filter_map(|c| self.pods.devices(&pod.uid, &c.name, &resource))
                .flatten()
                .collect();
            let held = (!held.is_empty()).then_some(held);
            let hints = self.hints_of(&resource, requested, held, BTreeSet::new(), machine);
            (resource, hints)
        });
        hints.collect()
    }

    fn hints_of(
        &self,
        resource: &str,
        requested: usize,
        held: Option<BTreeSet<String>>,
        reusable: BTreeSet<String>,
        machine: &[usize],
    ) -> Option<Vec<TopologyHint>> {
        let known = self.resources.get(resource).filter(|r| r.has_topology())?;
        if let Some(held) = held {
            return Some(match held.len() == requested {
                true => known.hints(machine, &held, &BTreeSet::new(), requested),
                false => Vec::new(),
            });
        }
        let in_use = self.pods.in_use(resource);
        let available: BTreeSet<String> = known.healthy().difference(&in_use).cloned().collect();
        Some(match available.union(&reusable).count() < requested {
            true => Vec::new(),
            false => known.hints(machine, &available, &reusable, requested),
        })
    }
}

/// Of each resource: sidecars together with the largest init container after them, or with the regular ones.
fn most_at_a_time(pod: &PodRequest) -> BTreeMap<String, usize> {
    let (mut running, mut most) = (BTreeMap::new(), BTreeMap::new());
    for container in &pod.containers {
        for (name, limit) in &container.limits {
            let limit = usize::try_from(*limit).unwrap_or(0);
            let runs: &mut usize = running.entry(name.clone()).or_default();
            let now = runs.saturating_add(limit);
            if container.kind != Kind::Init {
                *runs = now;
            }
            let most: &mut usize = most.entry(name.clone()).or_default();
            *most = now.max(*most);
        }
    }
    most
}

#[cfg(test)]
mod tests {
    use super::super::{ContainerRequest, Plan};
    use super::*;
    use crate::v1beta1::{self as pb, ContainerAllocateResponse};

    const GPU: &str = "example.com/gpu";

    /// `a@0 b@0+1 c`
    fn node(ids: &str) -> State {
        let one = |text: &str| {
            let (id, nodes) = text.split_once('@').unwrap_or((text, ""));
            let nodes = nodes.split('+').filter_map(|n| n.parse().ok());
            pb::Device {
                id: id.to_owned(),
                health: pb::HEALTHY.to_owned(),
                topology: Some(pb::TopologyInfo {
                    nodes: nodes.map(|id| pb::NumaNode { id }).collect(),
                }),
            }
        };
        let mut state = State::default();
        state.plugin_came(GPU);
        state.list(GPU, ids.split(' ').map(one).collect());
        state
    }

    fn pod(containers: &[(&str, Kind, i64)]) -> PodRequest {
        let containers = containers.iter();
        PodRequest {
            uid: "u".to_owned(),
            containers: containers
                .map(|(name, kind, n)| ContainerRequest {
                    name: (*name).to_owned(),
                    kind: *kind,
                    limits: [(GPU.to_owned(), *n)].into(),
                })
                .collect(),
        }
    }

    fn text(hints: &Hints) -> String {
        match hints.get(GPU) {
            None => "nothing".to_owned(),
            Some(None) => "any".to_owned(),
            Some(Some(hints)) => {
                let one = |hint: &TopologyHint| {
                    let star = if hint.preferred { "*" } else { "" };
                    format!("{}{star}", hint.affinity.unwrap())
                };
                hints.iter().map(one).collect::<Vec<_>>().join(" ")
            }
        }
    }

    fn give(state: &mut State, container: &str, n: usize, mask: &[usize]) -> String {
        let mask = NumaMask::of(mask.iter().copied());
        let all = pod(&[("i", Kind::Init, 0), ("c", Kind::Regular, 0)]);
        let reusable = state.reusable(&all, container).remove(GPU);
        let plan = state.plan("u", container, GPU, n, &reusable.unwrap_or_default());
        let Ok(Plan::Choose(choice)) = plan else {
            return format!("{plan:?}");
        };
        let chosen = state.align(choice, GPU, mask).complete(&[]);
        let response = ContainerAllocateResponse::default();
        state.commit(("u", container, GPU), &chosen, response);
        chosen.into_iter().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn hints_name_the_nodes_that_have_enough() {
        let check = |ids: &str, n: i64, expect: &str| {
            let request = pod(&[("c", Kind::Regular, n)]);
            let state = node(ids);
            let hints = state.topology_hints(&request, "c", &[0, 1]);
            assert_eq!(text(&hints), expect, "{ids} {n}");
            assert_eq!(state.pod_topology_hints(&request, &[0, 1]), hints);
        };
        check("a@0 b@1 c@1", 1, "01* 10* 11");
        check("a@0 b@1 c@1", 2, "10* 11");
        check("a@0 b@1 c@1", 3, "11*");
        check("a@0 b@1 c@1", 4, "");
        check("a@0+1", 1, "01* 10* 11");
        // Where others are does not matter.
        check("a b", 1, "any");
        check("a@1 b", 1, "10*");
        // Of a node that the machine has not.
        check("a@7 b@1", 1, "10*");
        check("a@0", 0, "nothing");
    }

    #[test]
    fn hints_keep_to_what_is_held_and_left() {
        let mut state = node("a@0 b@1 c@1");
        assert_eq!(give(&mut state, "i", 1, &[1]), "b");
        let request = |n: i64| pod(&[("i", Kind::Init, 1), ("c", Kind::Regular, n)]);
        let of = |state: &State, name: &str, n: i64| {
            text(&state.topology_hints(&request(n), name, &[0, 1]))
        };
        assert_eq!(of(&state, "i", 1), "10* 11");
        assert_eq!(of(&state, "c", 2), "10* 11");
        // The init container's device is the pod's, and it is one of two that are asked for.
        assert_eq!(text(&state.pod_topology_hints(&request(2), &[0, 1])), "");
        assert_eq!(
            text(&state.pod_topology_hints(&request(1), &[0, 1])),
            "10* 11"
        );
        assert_eq!(give(&mut state, "c", 2, &[1]), "b c");
        let most = most_at_a_time(&pod(&[
            ("s", Kind::Sidecar, 1),
            ("i", Kind::Init, 3),
            ("c", Kind::Regular, 2),
        ]));
        assert_eq!(most[GPU], 4);
    }

    #[test]
    fn devices_of_the_nodes_come_first() {
        let check = |ids: &str, n: usize, mask: &[usize], expect: &str| {
            assert_eq!(
                give(&mut node(ids), "c", n, mask),
                expect,
                "{ids} {n} {mask:?}"
            );
        };
        let ids = "a b@0 c@1 d@1 e@0+1";
        check(ids, 1, &[1], "c");
        check(ids, 3, &[1], "c d e");
        check(ids, 4, &[1], "b c d e");
        check(ids, 5, &[1], "a b c d e");
        check(ids, 1, &[0], "b");
        check("a b", 1, &[1], "a");
    }
}
