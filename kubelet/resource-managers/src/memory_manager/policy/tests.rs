//! Containers, and which nodes their memory is of.

use serde_json::{Value, json};

use super::*;
use crate::topology::{HugePages, Topology};

const GI: u64 = 1 << 30;

/// Two nodes of 10 GiB, one of each reserved, and two GiB of huge pages on the first.
fn policy() -> StaticPolicy {
    let mut nodes = Topology::regular([2, 1, 2, 1], 10 * GI).nodes;
    nodes[0].huge_pages = vec![HugePages {
        page_size_kib: 1 << 20,
        count: 2,
    }];
    let reserved = || BTreeMap::from([(MEMORY.to_owned(), GI)]);
    StaticPolicy::new(nodes, [(0, reserved()), (1, reserved())].into()).unwrap()
}

fn started() -> MemoryState {
    let mut state = MemoryState::default();
    policy().start(&mut state).unwrap();
    state
}

fn container(name: &str, memory: &str) -> Value {
    let list = json!({"cpu": "1", "memory": memory});
    json!({"name": name, "resources": {"requests": list, "limits": list}})
}

fn pod(uid: &str, init: &[Value], regular: &[Value]) -> Pod {
    let pod =
        json!({"metadata": {"uid": uid}, "spec": {"initContainers": init, "containers": regular}});
    serde_json::from_value(pod).unwrap()
}

fn hint(nodes: &[usize], preferred: bool) -> TopologyHint {
    TopologyHint {
        affinity: (!nodes.is_empty()).then(|| NumaMask::of(nodes.iter().copied())),
        preferred,
    }
}

fn allocate_all(
    state: &mut MemoryState,
    pod: &Pod,
    hint: TopologyHint,
) -> Result<(), AllocateMemoryError> {
    for container in pod::all_containers(pod) {
        policy().allocate(state, pod, container, hint)?;
    }
    Ok(())
}

/// `c=memory:2@0` in GiB; then what is free of each node.
fn told(state: &MemoryState, pod: &str) -> String {
    let mut all = Vec::new();
    for (name, blocks) in state.assignments.get(pod).into_iter().flatten() {
        for block in blocks {
            let (resource, size) = (&block.resource, block.size / GI);
            all.push(format!(
                "{name}={resource}:{size}@{:?}",
                block.numa_affinity
            ));
        }
    }
    let free = state.machine.values();
    let free: Vec<String> = free
        .map(|n| (n.memory_map[MEMORY].free / GI).to_string())
        .collect();
    format!("{} free {}", all.join(" "), free.join(","))
}

#[test]
fn memory_is_of_one_node_if_it_can_be() {
    let check = |memory: &str, hint: TopologyHint, expect: &str| {
        let mut state = started();
        let got = match allocate_all(&mut state, &pod("u", &[], &[container("c", memory)]), hint) {
            Ok(()) => told(&state, "u"),
            Err(error) => error.to_string(),
        };
        assert_eq!(got, expect);
    };
    let anywhere = hint(&[], false);
    check("2Gi", anywhere, "c=memory:2@[0] free 5,9");
    check("8Gi", anywhere, "c=memory:8@[1] free 7,1");
    check("2Gi", hint(&[1], true), "c=memory:2@[1] free 7,7");
    check("10Gi", anywhere, "c=memory:10@[0, 1] free 0,6");
    // The hint's node has not enough: more nodes, if that is as good.
    check("8Gi", hint(&[0], false), "c=memory:8@[0, 1] free 0,8");
    check(
        "8Gi",
        hint(&[0], true),
        "[memorymanager] failed to find the extended preferred hint",
    );
    check(
        "17Gi",
        anywhere,
        "[memorymanager] failed to get the default NUMA affinity, no NUMA nodes with enough memory is available",
    );
    check(
        "17Gi",
        hint(&[0], false),
        "[memorymanager] failed to find NUMA nodes to extend the current topology hint",
    );
    check(
        "1500m",
        anywhere,
        "[memorymanager] failed to represent quantity as int64",
    );
}

#[test]
fn only_guaranteed_pods_have_memory_of_their_own() {
    let mut burstable = container("c", "2Gi");
    burstable["resources"]["limits"]["memory"] = json!("3Gi");
    let pod = pod("u", &[], &[burstable]);
    let mut state = started();
    allocate_all(&mut state, &pod, hint(&[], false)).unwrap();
    assert_eq!(state, started());
    assert!(policy().pod_topology_hints(&state, &pod).is_empty());
}

#[test]
fn a_node_gives_alone_or_with_others_and_never_both() {
    let mut state = started();
    let alone = pod("u", &[], &[container("c", "1Gi")]);
    allocate_all(&mut state, &alone, hint(&[0], true)).unwrap();
    let both = pod("v", &[], &[container("c", "10Gi")]);
    let refused = allocate_all(&mut state, &both, hint(&[0, 1], false)).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "[memorymanager] preferred hint violates NUMA node allocation"
    );
    state.remove("u", "c");
    allocate_all(&mut state, &both, hint(&[0, 1], false)).unwrap();
    assert_eq!(state.machine[&1].cells, [0, 1]);
    assert!(
        policy()
            .topology_hints(&state, &alone, &alone.spec.as_ref().unwrap().containers[0])
            .values()
            .flatten()
            .flatten()
            .all(|hint| hint.affinity == Some(NumaMask::of([0, 1])))
    );
    state.remove("v", "c");
    assert_eq!(state, started());
}

#[test]
fn later_containers_get_what_init_containers_leave() {
    let mut state = started();
    let mut sidecar = container("s", "1Gi");
    sidecar["restartPolicy"] = json!("Always");
    let pod = pod(
        "u",
        &[container("i", "4Gi"), sidecar, container("j", "3Gi")],
        &[container("a", "2Gi"), container("b", "3Gi")],
    );
    allocate_all(&mut state, &pod, hint(&[1], true)).unwrap();
    // All that the first leaves is given on, to the sidecar, too.
    assert_eq!(
        told(&state, "u"),
        "a=memory:2@[1] b=memory:3@[1] i=memory:0@[1] j=memory:0@[1] s=memory:1@[1] free 7,3"
    );
    for name in ["i", "j", "a", "b", "s"] {
        assert!(state.remove("u", name));
    }
    assert_eq!(state, started());
}

#[test]
fn an_init_container_that_runs_again_uses_what_its_pod_has() {
    let near = hint(&[1], true);
    let check = |init: &str, expect: &str| {
        let pod = |init: &str| {
            let inits = [container("i", init), container("j", "1Gi")];
            pod("u", &inits, &[container("a", "3Gi"), container("b", "5Gi")])
        };
        let mut state = started();
        allocate_all(&mut state, &pod("8Gi"), near).unwrap();
        // As soon as the last one runs.
        for ended in ["i", "j"] {
            state.remove("u", ended);
        }
        assert_eq!(told(&state, "u"), "a=memory:3@[1] b=memory:5@[1] free 7,1");
        // The machine started anew, and nothing runs.
        allocate_all(&mut state, &pod(init), near).unwrap();
        assert_eq!(told(&state, "u"), expect);
        policy().start(&mut state.clone()).unwrap();
        for name in ["i", "j", "a", "b"] {
            assert!(state.remove("u", name));
        }
        assert_eq!(state, started());
    };
    check(
        "8Gi",
        "a=memory:3@[1] b=memory:5@[1] i=memory:0@[1] j=memory:0@[1] free 7,1",
    );
    // More than all the others together.
    check(
        "9Gi",
        "a=memory:3@[1] b=memory:5@[1] i=memory:0@[1] j=memory:1@[1] free 7,0",
    );
}

#[test]
fn huge_pages_are_of_the_node_that_has_them() {
    let mut state = started();
    let mut of_c = container("c", "1Gi");
    for list in ["requests", "limits"] {
        of_c["resources"][list]["hugepages-1Gi"] = json!("2Gi");
    }
    let pod = pod("u", &[], &[of_c]);
    let hints = policy().pod_topology_hints(&state, &pod);
    let nodes = |resource: &str| {
        let list = hints[resource].clone().unwrap();
        list.iter()
            .map(|hint| (hint.affinity.unwrap().to_string(), hint.preferred))
            .collect::<Vec<_>>()
    };
    let expect = [("01".to_owned(), true), ("11".to_owned(), false)];
    assert_eq!(nodes("memory"), expect);
    assert_eq!(nodes("hugepages-1Gi"), expect);
    allocate_all(&mut state, &pod, hint(&[0], true)).unwrap();
    assert_eq!(state.machine[&0].memory_map["hugepages-1Gi"].free, 0);
    assert_eq!(state.machine[&0].number_of_assignments, 2);
    // As they are held, they are hinted at.
    let held = policy().pod_topology_hints(&state, &pod);
    assert_eq!(held["memory"], Some(vec![hint(&[0], true)]));
    let blocks = policy().allocatable(&state);
    let sizes: Vec<(usize, &str, u64)> = blocks
        .iter()
        .map(|b| (b.numa_affinity[0], b.resource.as_str(), b.size / GI))
        .collect();
    assert_eq!(
        sizes,
        [(0, "hugepages-1Gi", 2), (0, "memory", 7), (1, "memory", 9)]
    );
}

#[test]
fn hints_of_pods_count_what_is_used_at_a_time() {
    let state = started();
    let check = |init: &[Value], regular: &[Value], expect: &[&str]| {
        let hints = policy().pod_topology_hints(&state, &pod("u", init, regular));
        let masks = hints.values().flatten().flatten();
        let masks: Vec<String> = masks
            .map(|hint| hint.affinity.unwrap().to_string())
            .collect();
        assert_eq!(masks, expect);
    };
    let of = |name: &str, memory: &str| container(name, memory);
    check(&[], &[of("a", "4Gi"), of("b", "3Gi")], &["01", "10", "11"]);
    check(&[], &[of("a", "4Gi"), of("b", "4Gi")], &["10", "11"]);
    check(&[of("i", "8Gi")], &[of("a", "1Gi")], &["10", "11"]);
    check(&[], &[of("a", "10Gi"), of("b", "7Gi")], &[]);
}

#[test]
fn what_is_remembered_fits_the_machine_or_the_start_fails() {
    let check = |change: fn(&mut MemoryState), expect: &str| {
        let mut state = started();
        allocate_all(
            &mut state,
            &pod("u", &[], &[container("c", "2Gi")]),
            hint(&[1], true),
        )
        .unwrap();
        change(&mut state);
        let got = match policy().start(&mut state) {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        };
        assert_eq!(got, expect);
    };
    let other = "[memorymanager] the expected machine state is different from the real one";
    check(|_| {}, "");
    check(|state| drop(state.machine.remove(&0)), other);
    check(
        |state| {
            state
                .machine
                .get_mut(&0)
                .unwrap()
                .memory_map
                .get_mut(MEMORY)
                .unwrap()
                .total += 1
        },
        other,
    );
    check(|state| state.assignments.clear(), other);
    check(
        |state| state.machine.clear(),
        "[memorymanager] machine state can not be empty when it has memory assignments",
    );
    check(
        |state| {
            state
                .assignments
                .get_mut("u")
                .unwrap()
                .get_mut("c")
                .unwrap()[0]
                .numa_affinity = vec![7]
        },
        "[memorymanager] (pod: u, container: c) the memory assignment uses the NUMA that does not exist",
    );
    check(
        |state| {
            state
                .assignments
                .get_mut("u")
                .unwrap()
                .get_mut("c")
                .unwrap()[0]
                .resource = "hugepages-2Mi".to_owned()
        },
        "[memorymanager] (pod: u, container: c) the memory assignment uses memory resource that does not exist",
    );
}

#[test]
fn something_is_reserved() {
    let nothing = StaticPolicy::new(Vec::new(), SystemReserved::new()).unwrap_err();
    assert_eq!(
        nothing.to_string(),
        "[memorymanager] you should specify the system reserved memory"
    );
    assert_eq!(huge_page_resource(2048), "hugepages-2Mi");
    assert_eq!(huge_page_resource(64), "hugepages-64Ki");
}
