//! All managers together, with their files.

use component_helpers::resources::Amounts;
use serde_json::{Value, json};

use super::*;
use crate::memory_manager::reserved::Reservation;

#[derive(Default)]
struct Seen(Mutex<Vec<Observation>>);

impl Observer for Seen {
    fn observe(&self, observation: Observation) {
        self.0.lock().unwrap().push(observation);
    }
}

impl Seen {
    fn take(&self) -> Vec<Observation> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

const GI: u64 = 1 << 30;

fn settings(topology_policy: &str, topology_scope: &str) -> Settings {
    let amounts = |list: &[(&str, &str)]| -> Amounts {
        list.iter()
            .map(|(name, value)| ((*name).to_owned(), value.parse().unwrap()))
            .collect()
    };
    Settings {
        cpu_policy: "static".to_owned(),
        reserved_cpus: [0].into(),
        memory_policy: "Static".to_owned(),
        reserved_memory: vec![Reservation {
            numa_node: 0,
            limits: amounts(&[("memory", "1Gi")]),
        }],
        topology_policy: topology_policy.to_owned(),
        topology_scope: topology_scope.to_owned(),
        node_reservation: amounts(&[("cpu", "1"), ("memory", "1Gi")]),
        ..Settings::default()
    }
}

/// Two nodes of four CPUs and 8 GiB.
fn machine() -> Topology {
    Topology::regular([2, 1, 4, 1], 8 * GI)
}

struct Started {
    dir: tempfile::TempDir,
    seen: Arc<Seen>,
    managers: ResourceManagers,
}

fn start(settings: &Settings) -> Started {
    let (dir, seen) = (tempfile::tempdir().unwrap(), Arc::new(Seen::default()));
    let managers = ResourceManagers::start(settings, &machine(), dir.path(), seen.clone()).unwrap();
    Started {
        dir,
        seen,
        managers,
    }
}

fn container(name: &str, cpu: &str, memory: &str) -> Value {
    let list = json!({"cpu": cpu, "memory": memory});
    json!({"name": name, "resources": {"requests": list, "limits": list}})
}

fn pod(uid: &str, containers: &[Value]) -> Pod {
    let pod = json!({"metadata": {"uid": uid}, "spec": {"containers": containers}});
    serde_json::from_value(pod).unwrap()
}

fn has(managers: &ResourceManagers, pod: &str, container: &str) -> String {
    format!(
        "cpus {} memory {}",
        managers.cpu_affinity(pod, container),
        managers.memory_nodes(pod, container)
    )
}

#[test]
fn a_restart_forgets_nothing() {
    let settings = settings("none", "container");
    let Started {
        dir,
        seen,
        managers,
    } = start(&settings);
    let of_u = pod("u", &[container("c", "3", "2Gi")]);
    assert!(managers.concerns(&of_u));
    managers.allocate_pod(&of_u).unwrap();
    // The memory's node is another than the CPUs': nobody brings them together.
    assert_eq!(has(&managers, "u", "c"), "cpus 1-3 memory 0");
    assert_eq!(has(&managers, "v", "c"), "cpus 0,4-7 memory ");
    let pool = Observation::Pool {
        shared_cpus: 4,
        exclusive_cpus: 3,
        exclusive_by_numa_node: [(0, 3)].into(),
    };
    assert!(seen.take().contains(&pool));
    let again = ResourceManagers::start(&settings, &machine(), dir.path(), seen.clone()).unwrap();
    assert_eq!(has(&again, "u", "c"), "cpus 1-3 memory 0");
    assert!(again.remove_pod("u"));
    assert!(!again.remove_pod("u"));
    let third = ResourceManagers::start(&settings, &machine(), dir.path(), seen).unwrap();
    assert_eq!(has(&third, "u", "c"), "cpus 0-7 memory ");
    assert_eq!(third.allocatable_cpus().to_string(), "1-7");
    assert_eq!(third.allocatable_memory().len(), 2);
}

#[test]
fn another_policy_than_the_one_remembered_ends_the_start() {
    let Started { dir, seen, .. } = start(&settings("none", "container"));
    let none = Settings {
        cpu_policy: "none".to_owned(),
        memory_policy: "None".to_owned(),
        ..settings("none", "container")
    };
    let refused = |settings: &Settings| {
        let started = ResourceManagers::start(settings, &machine(), dir.path(), seen.clone());
        started.err().unwrap().to_string()
    };
    let path = dir.path().join("cpu_manager_state");
    assert_eq!(
        refused(&none),
        format!(
            "start cpu manager error: could not restore state from checkpoint: configured policy \"none\" differs from state checkpoint policy \"static\", please drain this node and delete the CPU manager checkpoint file {path:?} before restarting Kubelet"
        )
    );
    std::fs::remove_file(path).unwrap();
    let path = dir.path().join("memory_manager_state");
    assert_eq!(
        refused(&none),
        format!(
            "start memory manager error: could not restore state from checkpoint: [memorymanager] configured policy \"None\" differs from state checkpoint policy \"Static\", please drain this node and delete the memory manager checkpoint file {path:?} before restarting Kubelet"
        )
    );
    std::fs::remove_file(path).unwrap();
    assert!(ResourceManagers::start(&none, &machine(), dir.path(), seen.clone()).is_ok());
    // And back.
    assert!(
        refused(&settings("none", "container")).contains("configured policy \"static\" differs")
    );
    let fewer = Topology::regular([1, 1, 4, 1], 8 * GI);
    let other = tempfile::tempdir().unwrap();
    let of = |machine: &Topology| {
        let settings = settings("none", "container");
        ResourceManagers::start(&settings, machine, other.path(), seen.clone())
    };
    of(&machine()).unwrap();
    assert!(
        of(&fewer).err().unwrap().to_string().starts_with(
            "start cpu manager error: current set of available CPUs \"0-3\" doesn't match with CPUs in state \"0-7\""
        )
    );
}

#[test]
fn without_policies_nobody_has_a_say() {
    let Started {
        dir,
        seen,
        managers,
    } = start(&Settings {
        cpu_policy: "none".to_owned(),
        memory_policy: "None".to_owned(),
        topology_policy: "none".to_owned(),
        ..Settings::default()
    });
    let of_u = pod("u", &[container("c", "3", "2Gi")]);
    assert!(!managers.concerns(&of_u));
    managers.allocate_pod(&of_u).unwrap();
    assert_eq!(has(&managers, "u", "c"), "cpus  memory ");
    assert!(managers.allocatable_cpus().is_empty() && managers.allocatable_memory().is_empty());
    assert!(seen.take().is_empty());
    let text = std::fs::read_to_string(dir.path().join("cpu_manager_state")).unwrap();
    assert!(
        text.starts_with(
            "{\"policyName\":\"none\",\"defaultCpuSet\":\"\",\"checksum\":1353318690,"
        )
    );
}

fn only(nodes: &[usize]) -> Hints {
    let hint = TopologyHint {
        affinity: Some(crate::NumaMask::of(nodes.iter().copied())),
        preferred: true,
    };
    [("example.com/gpu".to_owned(), Some(vec![hint]))].into()
}

fn admit_all(managers: &ResourceManagers, pod: &Pod, others: &Hints) -> Result<(), AdmissionError> {
    for container in pod::all_containers(pod) {
        managers.admit_container(pod, container, others.clone())?;
    }
    Ok(())
}

#[test]
fn everything_of_a_container_is_of_one_node() {
    let Started {
        dir: _dir,
        seen,
        managers,
    } = start(&settings("single-numa-node", "container"));
    seen.take();
    let of_u = pod(
        "u",
        &[container("c", "2", "2Gi"), container("d", "2", "2Gi")],
    );
    admit_all(&managers, &of_u, &only(&[1])).unwrap();
    assert_eq!(has(&managers, "u", "c"), "cpus 4-5 memory 1");
    assert_eq!(has(&managers, "u", "d"), "cpus 6-7 memory 1");
    let aligned = seen.take();
    let aligned = aligned
        .iter()
        .filter(|o| **o == Observation::Aligned(NUMA_NODE));
    assert_eq!(aligned.count(), 2);
    // None is left there.
    let of_v = pod("v", &[container("c", "1", "1Gi")]);
    let refused = admit_all(&managers, &of_v, &only(&[1])).unwrap_err();
    assert_eq!(refused.reason(), Some("TopologyAffinityError"));
    assert_eq!(
        refused.to_string(),
        "Resources cannot be allocated with Topology locality"
    );
    assert!(seen.take().contains(&Observation::NotAligned(NUMA_NODE)));
    admit_all(&managers, &of_v, &Hints::new()).unwrap();
    assert_eq!(has(&managers, "v", "c"), "cpus 1 memory 0");
}

#[test]
fn everything_of_a_pod_is_of_one_node() {
    let Started {
        dir: _dir,
        seen,
        managers,
    } = start(&settings("single-numa-node", "pod"));
    // Each alone would fit the first node, which has three CPUs besides the reserved one; together they do not.
    let of_u = pod(
        "u",
        &[container("c", "2", "1Gi"), container("d", "2", "1Gi")],
    );
    managers.admit_pod(&of_u, Hints::new()).unwrap();
    assert_eq!(has(&managers, "u", "c"), "cpus 4-5 memory 1");
    assert_eq!(has(&managers, "u", "d"), "cpus 6-7 memory 1");
    assert!(
        seen.take()
            .contains(&Observation::Aligned(NUMA_NODE_OF_POD))
    );
    let of_v = pod(
        "v",
        &[container("c", "2", "1Gi"), container("d", "2", "1Gi")],
    );
    assert!(managers.admit_pod(&of_v, Hints::new()).is_err());
    assert!(
        seen.take()
            .contains(&Observation::NotAligned(NUMA_NODE_OF_POD))
    );
    assert_eq!(managers.exclusive_cpus("v", "c"), CpuSet::default());
}

#[test]
fn a_container_that_cannot_have_its_own_is_told_why() {
    let mut settings = settings("none", "container");
    settings.cpu_options = [("full-pcpus-only".to_owned(), "true".to_owned())].into();
    let machine = Topology::regular([1, 1, 2, 2], 8 * GI);
    let (dir, seen) = (tempfile::tempdir().unwrap(), Arc::new(Seen::default()));
    let managers = ResourceManagers::start(&settings, &machine, dir.path(), seen.clone()).unwrap();
    seen.take();
    let refused = managers
        .allocate_pod(&pod("u", &[container("c", "1", "1Gi")]))
        .unwrap_err();
    assert_eq!(refused.reason(), Some("SMTAlignmentError"));
    assert_eq!(
        seen.take(),
        [
            Observation::PinningRequested(Resource::Cpu),
            Observation::PinningFailed(Resource::Cpu),
            Observation::NotAligned(PHYSICAL_CPU),
        ]
    );
    let refused = managers
        .allocate_pod(&pod("v", &[container("c", "2", "9Gi")]))
        .unwrap_err();
    assert_eq!(refused.reason(), None);
    // The CPUs were given out before the memory was found wanting; whoever rejects the pod frees them.
    assert_eq!(managers.exclusive_cpus("v", "c").to_string(), "1,3");
    assert!(managers.remove_pod("v"));
    assert!(managers.exclusive_cpus("v", "c").is_empty());
}

#[test]
fn the_memory_of_init_containers_is_free_when_the_next_runs() {
    let Started {
        dir: _dir,
        managers,
        ..
    } = start(&settings("none", "container"));
    let mut of_u = pod("u", &[container("c", "1", "1Gi")]);
    let init = serde_json::from_value(container("i", "1", "4Gi")).unwrap();
    of_u.spec.as_mut().unwrap().init_containers = Some(vec![init]);
    managers.allocate_pod(&of_u).unwrap();
    managers.add_container(&of_u, "i");
    assert_eq!(managers.memory("u", "i")[0].size, 3 * GI);
    managers.add_container(&of_u, "c");
    assert!(managers.memory("u", "i").is_empty());
    assert_eq!(managers.memory("u", "c")[0].size, GI);
}

#[test]
fn what_cannot_be_written_down_is_not_given_out() {
    let Started { dir, managers, .. } = start(&settings("none", "container"));
    // In place of a folder that cannot be written to: root may write to all.
    std::fs::remove_dir_all(dir.path()).unwrap();
    let refused = managers
        .allocate_pod(&pod("u", &[container("c", "1", "1Gi")]))
        .unwrap_err();
    assert!(matches!(refused, AdmissionError::Write { .. }), "{refused}");
    assert_eq!(refused.reason(), None);
}
