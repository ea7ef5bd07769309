//! Containers, and which CPUs they get.

use serde_json::{Value, json};

use super::*;
use crate::topology::Topology;

const ALIGNED: StaticOptions = StaticOptions {
    full_pcpus_only: true,
    distribute_across_numa: false,
    align_by_socket: false,
    distribute_across_cores: false,
    strict_reservation: false,
    prefer_uncore_cache: false,
};

/// Two sockets, a NUMA node each, of four cores with two threads: CPUs 0-3 and 8-11, 4-7 and 12-15.
fn dual_socket() -> CpuTopology {
    Topology::regular([2, 1, 4, 2], 0).cpus
}

fn policy(options: StaticOptions, reserved: &str) -> StaticPolicy {
    let reserved: CpuSet = reserved.parse().unwrap();
    let milli = i64::try_from(reserved.len() * 1000).unwrap();
    StaticPolicy::new(
        dual_socket(),
        options,
        milli,
        &reserved,
        TopologyPolicy::None,
    )
    .unwrap()
}

fn started(policy: &StaticPolicy) -> CpuState {
    let mut state = CpuState::default();
    policy.start(&mut state).unwrap();
    state
}

fn container(name: &str, cpu: &str) -> Value {
    let list = json!({"cpu": cpu, "memory": "1Mi"});
    json!({"name": name, "resources": {"requests": list, "limits": list}})
}

fn sidecar(name: &str, cpu: &str) -> Value {
    let mut container = container(name, cpu);
    container["restartPolicy"] = json!("Always");
    container
}

fn pod(uid: &str, init: &[Value], regular: &[Value]) -> Pod {
    let pod =
        json!({"metadata": {"uid": uid}, "spec": {"initContainers": init, "containers": regular}});
    serde_json::from_value(pod).unwrap()
}

fn allocate_all(
    policy: &StaticPolicy,
    state: &mut CpuState,
    pod: &Pod,
    affinity: &[usize],
) -> Result<(), AllocateCpusError> {
    let affinity = NumaMask::of(affinity.iter().copied());
    let affinity = (affinity.count() > 0).then_some(affinity);
    for container in pod::all_containers(pod) {
        policy.allocate(state, pod, container, affinity)?;
    }
    Ok(())
}

fn held(state: &CpuState, pod: &str) -> String {
    let of_pod = state.assignments.get(pod).into_iter().flatten();
    let all: Vec<String> = of_pod
        .map(|(name, cpus)| format!("{name}={cpus}"))
        .collect();
    all.join(" ")
}

#[test]
fn whole_cpus_of_guaranteed_pods_are_their_own() {
    let policy = policy(StaticOptions::default(), "0");
    let check = |regular: Value, expect: &str| {
        let mut state = started(&policy);
        allocate_all(&policy, &mut state, &pod("u", &[], &[regular]), &[]).unwrap();
        assert_eq!(held(&state, "u"), expect);
        assert!(state.exclusive().is_disjoint(&state.default_cpu_set));
    };
    check(container("c", "2"), "c=1,9");
    check(container("c", "2000m"), "c=1,9");
    check(container("c", "1"), "c=8");
    check(container("c", "1500m"), "");
    let mut burstable = container("c", "2");
    burstable["resources"]["limits"]["cpu"] = json!("3");
    check(burstable, "");
    check(json!({"name": "c"}), "");
}

#[test]
fn a_pod_with_resources_as_a_whole_shares() {
    let policy = policy(StaticOptions::default(), "0");
    let mut state = started(&policy);
    let mut pod = pod("u", &[], &[container("c", "2")]);
    let list = json!({"cpu": "2", "memory": "1Gi"});
    let spec = pod.spec.as_mut().unwrap();
    spec.resources = serde_json::from_value(json!({"requests": list, "limits": list})).unwrap();
    allocate_all(&policy, &mut state, &pod, &[]).unwrap();
    assert_eq!(held(&state, "u"), "");
    assert!(policy.pod_topology_hints(&state, &pod).is_empty());
}

#[test]
fn later_containers_get_what_init_containers_leave() {
    let policy = policy(StaticOptions::default(), "0,8");
    let mut state = started(&policy);
    let pod = pod(
        "u",
        &[container("i", "4"), sidecar("s", "2"), container("j", "3")],
        &[container("a", "2"), container("b", "2")],
    );
    allocate_all(&policy, &mut state, &pod, &[]).unwrap();
    // The sidecar keeps two of the first init container's four; what is left of those and of the second's is the others'.
    assert_eq!(held(&state, "u"), "a=2,10 b=3,11 i=1-2,9-10 j=2-3,10 s=1,9");
    assert_eq!(state.default_cpu_set.to_string(), "0,4-8,12-15");
    // It is all there again.
    for name in ["i", "a", "j", "b", "s"] {
        assert!(state.remove("u", name).is_some());
    }
    assert_eq!(state, started(&policy));
    assert_eq!(state.remove("u", "s"), None);
}

#[test]
fn what_a_container_has_it_keeps() {
    let mut state = started(&policy(StaticOptions::default(), "0"));
    let pod = pod("u", &[], &[container("c", "1")]);
    allocate_all(
        &policy(StaticOptions::default(), "0"),
        &mut state,
        &pod,
        &[],
    )
    .unwrap();
    let before = state.clone();
    // One CPU would not be given out by these options.
    allocate_all(&policy(ALIGNED, "0"), &mut state, &pod, &[]).unwrap();
    assert_eq!(state, before);
}

#[test]
fn only_whole_cores_where_the_options_say_so() {
    let policy = policy(ALIGNED, "0");
    let check = |cpu: &str, expect: &str| {
        let mut state = started(&policy);
        let pod = pod("u", &[], &[container("c", cpu)]);
        let got = match allocate_all(&policy, &mut state, &pod, &[]) {
            Ok(()) => held(&state, "u"),
            Err(error) => error.to_string(),
        };
        assert_eq!(got, expect);
    };
    check("2", "c=1,9");
    check(
        "3",
        "SMT Alignment Error: requested 3 cpus not multiple cpus per core = 2",
    );
    // The other thread of the reserved CPU's core does not count.
    check("14", "c=1-7,9-15");
    check(
        "16",
        "SMT Alignment Error: not enough free physical CPUs: available physical CPUs = 14, requested CPUs = 16, CPUs per core = 2",
    );
}

#[test]
fn whole_cores_that_init_containers_leave_are_there_for_the_others() {
    let policy = policy(ALIGNED, "0");
    let mut state = started(&policy);
    let inits = [container("i", "14"), sidecar("s", "4")];
    let pod = pod("u", &inits, &[container("a", "8"), container("b", "2")]);
    allocate_all(&policy, &mut state, &pod, &[]).unwrap();
    assert_eq!(state.cpu_set("u", "i").unwrap().len(), 14);
    let [s, a, b] = ["s", "a", "b"].map(|name| state.cpu_set("u", name).unwrap());
    assert_eq!([s.len(), a.len(), b.len()], [4, 8, 2]);
    assert_eq!(s.union(a).union(b).len(), 14);
    assert_eq!(state.default_cpu_set, [0, 8].into());
}

#[test]
fn cpus_of_the_merged_nodes_come_first() {
    let policy = policy(StaticOptions::default(), "0");
    let check = |cpu: &str, affinity: &[usize], expect: &str| {
        let mut state = started(&policy);
        let pod = pod("u", &[], &[container("c", cpu)]);
        allocate_all(&policy, &mut state, &pod, affinity).unwrap();
        assert_eq!(held(&state, "u"), expect);
    };
    check("2", &[0], "c=1,9");
    check("2", &[1], "c=4,12");
    check("9", &[1], "c=4-8,12-15");
    check("4", &[0, 1], "c=1-2,9-10");
}

#[test]
fn more_than_there_are_is_refused_and_costs_nobody() {
    let policy = policy(StaticOptions::default(), "0");
    let mut state = started(&policy);
    allocate_all(
        &policy,
        &mut state,
        &pod("u", &[], &[container("c", "14")]),
        &[],
    )
    .unwrap();
    let before = state.clone();
    let refused = allocate_all(
        &policy,
        &mut state,
        &pod("v", &[], &[container("c", "2")]),
        &[],
    );
    assert_eq!(
        refused.unwrap_err().to_string(),
        "not enough cpus available to satisfy request: requested=2, available=1"
    );
    assert_eq!(state, before);
}

#[test]
fn reservations_fit_the_machine() {
    let check =
        |milli: i64, named: &str, options: StaticOptions, policy: TopologyPolicy, expect: &str| {
            let named = named.parse().unwrap();
            let got = match StaticPolicy::new(dual_socket(), options, milli, &named, policy) {
                Ok(policy) => format!("{} {}", policy.reserved, policy.reserved_physical),
                Err(error) => error.to_string(),
            };
            assert_eq!(got, expect);
        };
    let default = StaticOptions::default();
    let none = TopologyPolicy::None;
    check(500, "", default, none, "0 0,8");
    check(2000, "", default, none, "0,8 0,8");
    check(2000, "1,4", default, none, "1,4 1,4,9,12");
    check(
        0,
        "",
        default,
        none,
        "[cpumanager] unable to determine reserved CPU resources for static policy",
    );
    check(
        3000,
        "1,4",
        default,
        none,
        "new static policy error: [cpumanager] unable to reserve the required amount of CPUs (size of 1,4 did not equal 3)",
    );
    check(
        17_000,
        "",
        default,
        none,
        "new static policy error: [cpumanager] unable to reserve the required amount of CPUs (size of  did not equal 17)",
    );
    check(
        1000,
        "16",
        default,
        none,
        "new static policy error: [cpumanager] unable to build the reserved physical CPUs from the reserved set: unknown CPU ID: 16",
    );
    let by_socket = StaticOptions {
        align_by_socket: true,
        ..default
    };
    check(1000, "", by_socket, TopologyPolicy::Restricted, "0 0,8");
    check(
        1000,
        "",
        by_socket,
        TopologyPolicy::SingleNumaNode,
        "new static policy error: Topolgy manager single-numa-node policy is incompatible with CPUManager align-by-socket policy option",
    );
}

#[test]
fn what_is_remembered_fits_the_machine_or_the_start_fails() {
    let strict = StaticOptions {
        strict_reservation: true,
        ..StaticOptions::default()
    };
    let check = |options: StaticOptions, default: &str, of_container: &str, expect: &str| {
        let mut state = CpuState {
            default_cpu_set: default.parse().unwrap(),
            ..CpuState::default()
        };
        if !of_container.is_empty() {
            state.set("u", "c", of_container.parse().unwrap());
        }
        let got = match policy(options, "0,8").start(&mut state) {
            Ok(()) => state.default_cpu_set.to_string(),
            Err(error) => error.to_string(),
        };
        assert_eq!(got, expect);
    };
    let default = StaticOptions::default();
    check(default, "", "", "0-15");
    check(strict, "", "", "1-7,9-15");
    check(default, "0-3,8-15", "4-7", "0-3,8-15");
    check(default, "", "4-7", "default cpuset cannot be empty");
    check(default, "", "0-15", "default cpuset cannot be empty");
    check(strict, "", "4-7", "default cpuset cannot be empty");
    // Somebody has all there is to have.
    check(strict, "", "1-7,9-15", "");
    check(
        default,
        "1-15",
        "",
        "not all reserved cpus: \"0,8\" are present in defaultCpuSet: \"1-15\"",
    );
    check(
        strict,
        "0-15",
        "",
        "some of strictly reserved cpus: \"0,8\" are present in defaultCpuSet: \"0-15\"",
    );
    check(
        default,
        "0-15",
        "4",
        "pod: u, container: c cpuset: \"4\" overlaps with default cpuset \"0-15\"",
    );
    check(
        default,
        "0-3,8-15",
        "4",
        "current set of available CPUs \"0-15\" doesn't match with CPUs in state \"0-4,8-15\"",
    );
    check(
        default,
        "0-16",
        "",
        "current set of available CPUs \"0-15\" doesn't match with CPUs in state \"0-16\"",
    );
}

fn texts(hints: &Hints) -> String {
    let mut all = Vec::new();
    for (resource, hints) in hints {
        for hint in hints.iter().flatten() {
            let mask = hint
                .affinity
                .map_or("any".to_owned(), |mask| mask.to_string());
            let star = if hint.preferred { "*" } else { "" };
            all.push(format!("{mask}{star}"));
        }
        all.insert(0, format!("{resource}:"));
    }
    all.join(" ")
}

#[test]
fn hints_name_the_nodes_that_have_enough() {
    let policy = policy(StaticOptions::default(), "0");
    let check = |taken: &str, init: &[Value], cpu: &str, expect: &str| {
        let mut state = started(&policy);
        let taken: CpuSet = taken.parse().unwrap();
        state.default_cpu_set = state.default_cpu_set.difference(&taken);
        state.set("other", "c", taken);
        let pod = pod("u", init, &[container("c", cpu)]);
        let of_container =
            policy.topology_hints(&state, &pod, &pod.spec.as_ref().unwrap().containers[0]);
        assert_eq!(
            texts(&of_container),
            expect,
            "{taken} {cpu}",
            taken = state.exclusive()
        );
        if init.is_empty() {
            assert_eq!(policy.pod_topology_hints(&state, &pod), of_container);
        }
    };
    check("", &[], "2", "cpu: 01* 10* 11");
    check("", &[], "8", "cpu: 10* 11");
    check("", &[], "9", "cpu: 11*");
    check("4", &[], "8", "cpu: 11");
    check("", &[], "16", "cpu:");
    check("1-3,9-11", &[], "2", "cpu: 10* 11");
    check("", &[], "500m", "");
}

#[test]
fn hints_keep_to_what_is_held() {
    let policy = policy(StaticOptions::default(), "0");
    let mut state = started(&policy);
    let of_u = pod("u", &[container("i", "2")], &[container("c", "2")]);
    let containers: Vec<&Container> = pod::all_containers(&of_u).collect();
    policy
        .allocate(&mut state, &of_u, containers[0], Some(NumaMask::of([1])))
        .unwrap();
    // The init container's come first: nothing without their node will do.
    let of_c = policy.topology_hints(&state, &of_u, containers[1]);
    assert_eq!(texts(&of_c), "cpu: 10* 11");
    let of_i = policy.topology_hints(&state, &of_u, containers[0]);
    assert_eq!(texts(&of_i), "cpu: 10* 11");
    // What is held is not what is asked for now: nothing will do.
    let more = pod("u", &[container("i", "3")], &[container("c", "2")]);
    let first = pod::all_containers(&more).next().unwrap();
    assert_eq!(texts(&policy.topology_hints(&state, &more, first)), "cpu:");
    assert_eq!(texts(&policy.pod_topology_hints(&state, &more)), "cpu:");
}

#[test]
fn a_socket_is_as_good_as_a_node_where_the_options_say_so() {
    let machine = Topology::regular([2, 2, 2, 1], 0).cpus;
    let options = StaticOptions {
        align_by_socket: true,
        ..StaticOptions::default()
    };
    let reserved = [0].into();
    let policy = StaticPolicy::new(
        machine,
        options,
        1000,
        &reserved,
        TopologyPolicy::Restricted,
    )
    .unwrap();
    let state = started(&policy);
    let of_u = pod("u", &[], &[container("c", "2")]);
    let hints = policy.pod_topology_hints(&state, &of_u);
    assert_eq!(
        texts(&hints),
        "cpu: 10* 0100* 1000* 11* 0101 1001 0110 1010 1100* 0111 1011 1101 1110 1111"
    );
    // Node 1's CPUs are 2 and 3, and the socket's other one is 1.
    let mut state = state;
    let of_v = pod("v", &[], &[container("c", "3")]);
    allocate_all(&policy, &mut state, &of_v, &[1]).unwrap();
    assert_eq!(held(&state, "v"), "c=1-3");
}
