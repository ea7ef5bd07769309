//! Cases of the decision, named for what happened to the pod.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::PodSpec;
use runtime::api::{
    ContainerMetadata, NamespaceOptions, PodSandboxMetadata, PodSandboxStatus, SandboxState,
};

use super::*;
use crate::pod::label;

#[derive(Default)]
struct Probes {
    liveness: HashMap<String, ProbeResult>,
    startup: HashMap<String, ProbeResult>,
}

impl ProbeResults for Probes {
    fn liveness(&self, id: &str) -> Option<ProbeResult> {
        self.liveness.get(id).copied()
    }
    fn startup(&self, id: &str) -> Option<ProbeResult> {
        self.startup.get(id).copied()
    }
}

fn container(name: &str) -> Container {
    Container {
        name: name.into(),
        image: Some("img".into()),
        ..Default::default()
    }
}

fn sidecar(name: &str) -> Container {
    Container {
        restart_policy: Some("Always".into()),
        ..container(name)
    }
}

fn test_pod(policy: &str, init: Vec<Container>, containers: Vec<Container>) -> Pod {
    Pod {
        spec: Some(PodSpec {
            restart_policy: Some(policy.into()),
            init_containers: Some(init),
            containers,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn sandbox(state: SandboxState) -> PodSandboxStatus {
    PodSandboxStatus {
        id: "s0".into(),
        metadata: PodSandboxMetadata::default(),
        state,
        created_at: jiff::Timestamp::UNIX_EPOCH,
        ips: vec!["10.0.0.1".into()],
        namespaces: NamespaceOptions::default(),
        labels: Default::default(),
        annotations: Default::default(),
        runtime_handler: String::new(),
        origin: Default::default(),
    }
}

fn status_of(name: &str, state: ContainerState, exit_code: i32) -> ContainerStatus {
    let spec = container(name);
    ContainerStatus {
        id: format!("id-{name}"),
        sandbox_id: "s0".into(),
        metadata: ContainerMetadata {
            name: name.into(),
            attempt: 0,
        },
        state,
        created_at: jiff::Timestamp::UNIX_EPOCH,
        started_at: None,
        finished_at: None,
        exit_code,
        signal: None,
        reason: String::new(),
        message: String::new(),
        image: String::new(),
        image_id: String::new(),
        image_ref: String::new(),
        labels: Default::default(),
        annotations: [(
            label::CONTAINER_HASH.to_owned(),
            format!("{:x}", pod::hash_container(&spec)),
        )]
        .into(),
        log_path: Default::default(),
        pid: None,
        resources: Default::default(),
        user: None,
        stop_signal: String::new(),
        mounts: vec![],
        origin: Default::default(),
    }
}

use ContainerState::{Exited, Running, Unknown};

fn observed(containers: &[(&str, ContainerState, i32)]) -> PodStatus {
    PodStatus {
        sandboxes: vec![sandbox(SandboxState::Ready)],
        containers: containers
            .iter()
            .map(|(n, s, e)| status_of(n, *s, *e))
            .collect(),
        ..Default::default()
    }
}

#[derive(Default, Debug, PartialEq)]
struct Expect<'a> {
    kill_pod: bool,
    create: bool,
    init: Vec<usize>,
    start: Vec<usize>,
    kill: Vec<&'a str>,
}

#[track_caller]
fn check(pod: &Pod, status: &PodStatus, probes: &Probes, expect: Expect<'_>) {
    let got = compute_pod_actions(pod, status, probes, &|_| None, false);
    let got = Expect {
        kill_pod: got.kill_pod,
        create: got.create_sandbox,
        init: got.init_containers_to_start.clone(),
        start: got.containers_to_start.clone(),
        kill: expect
            .kill
            .iter()
            .copied()
            .filter(|n| got.containers_to_kill.iter().any(|k| k.name == *n))
            .chain(
                got.containers_to_kill
                    .iter()
                    .filter(|k| !expect.kill.contains(&k.name.as_str()))
                    .map(|_| "unexpected"),
            )
            .collect(),
    };
    assert_eq!(got, expect);
}

#[test]
fn a_new_pod_gets_a_sandbox_and_all_containers() {
    let pod = test_pod("Always", vec![], vec![container("a"), container("b")]);
    check(
        &pod,
        &PodStatus::default(),
        &Probes::default(),
        Expect {
            kill_pod: true,
            create: true,
            start: vec![0, 1],
            ..Default::default()
        },
    );
}

#[test]
fn a_new_pod_with_init_containers_starts_the_first() {
    let pod = test_pod(
        "Always",
        vec![container("i"), container("j")],
        vec![container("a")],
    );
    check(
        &pod,
        &PodStatus::default(),
        &Probes::default(),
        Expect {
            kill_pod: true,
            create: true,
            init: vec![0],
            ..Default::default()
        },
    );
    check(
        &pod,
        &observed(&[]),
        &Probes::default(),
        Expect {
            init: vec![0],
            ..Default::default()
        },
    );
    check(
        &pod,
        &observed(&[("i", Running, 0)]),
        &Probes::default(),
        Expect::default(),
    );
    check(
        &pod,
        &observed(&[("i", Exited, 0)]),
        &Probes::default(),
        Expect {
            init: vec![1],
            ..Default::default()
        },
    );
    check(
        &pod,
        &observed(&[("j", Exited, 0), ("i", Exited, 0)]),
        &Probes::default(),
        Expect {
            start: vec![0],
            ..Default::default()
        },
    );
    check(
        &pod,
        &observed(&[("i", Exited, 1)]),
        &Probes::default(),
        Expect {
            init: vec![0],
            ..Default::default()
        },
    );
}

#[test]
fn a_failed_init_container_ends_a_pod_that_never_restarts() {
    let pod = test_pod("Never", vec![container("i")], vec![container("a")]);
    check(
        &pod,
        &observed(&[("i", Exited, 1)]),
        &Probes::default(),
        Expect {
            kill_pod: true,
            ..Default::default()
        },
    );
}

#[test]
fn nothing_to_do_when_all_runs() {
    let pod = test_pod("Always", vec![], vec![container("a")]);
    check(
        &pod,
        &observed(&[("a", Running, 0)]),
        &Probes::default(),
        Expect::default(),
    );
}

#[test]
fn restart_policies() {
    for (policy, code, start) in [
        ("Always", 0, true),
        ("Always", 1, true),
        ("OnFailure", 0, false),
        ("OnFailure", 1, true),
        ("Never", 0, false),
        ("Never", 1, false),
    ] {
        let pod = test_pod(policy, vec![], vec![container("a")]);
        let expect = Expect {
            kill_pod: !start,
            start: if start { vec![0] } else { vec![] },
            ..Default::default()
        };
        check(
            &pod,
            &observed(&[("a", Exited, code)]),
            &Probes::default(),
            expect,
        );
    }
}

#[test]
fn a_lost_sandbox_restarts_everything_unless_the_pod_is_done() {
    let lost = |containers: &[(&str, ContainerState, i32)]| PodStatus {
        sandboxes: vec![sandbox(SandboxState::NotReady)],
        ..observed(containers)
    };
    let pod = test_pod("Always", vec![], vec![container("a")]);
    check(
        &pod,
        &lost(&[("a", Exited, 0)]),
        &Probes::default(),
        Expect {
            kill_pod: true,
            create: true,
            start: vec![0],
            ..Default::default()
        },
    );
    let never = test_pod("Never", vec![], vec![container("a")]);
    check(
        &never,
        &lost(&[("a", Exited, 0)]),
        &Probes::default(),
        Expect {
            kill_pod: true,
            ..Default::default()
        },
    );
    let on_failure = test_pod("OnFailure", vec![], vec![container("a"), container("b")]);
    check(
        &on_failure,
        &lost(&[("a", Exited, 0), ("b", Exited, 1)]),
        &Probes::default(),
        Expect {
            kill_pod: true,
            create: true,
            start: vec![1],
            ..Default::default()
        },
    );
}

#[test]
fn what_an_earlier_sandbox_left_is_no_reason_to_skip_an_init_container() {
    let pod = test_pod(
        "Always",
        vec![container("i1"), container("i2")],
        vec![container("a")],
    );
    let old = |mut status: PodStatus| {
        for c in &mut status.containers {
            c.sandbox_id = "lost".into();
        }
        status.containers
    };
    let before = observed(&[("a", Exited, 137), ("i2", Exited, 0), ("i1", Exited, 0)]);
    let before = old(before);
    // The first one runs in the new sandbox: nothing to do before it ends.
    let mut status = observed(&[("i1", Running, 0)]);
    status.containers.extend(before.clone());
    check(&pod, &status, &Probes::default(), Expect::default());
    // It ended: the second one.
    let mut status = observed(&[("i1", Exited, 0)]);
    status.containers.extend(before.clone());
    let second = Expect {
        init: vec![1],
        ..Expect::default()
    };
    check(&pod, &status, &Probes::default(), second);
    // Nothing began yet.
    let mut status = observed(&[]);
    status.containers.extend(before);
    let first = Expect {
        init: vec![0],
        ..Expect::default()
    };
    check(&pod, &status, &Probes::default(), first);
}

#[test]
fn init_containers_that_left_no_trace_do_not_run_again_beside_a_regular_one() {
    let pod = test_pod(
        "Always",
        vec![container("i"), sidecar("s")],
        vec![container("a")],
    );
    let status = observed(&[("a", Exited, 1), ("s", Running, 0)]);
    let again = Expect {
        start: vec![0],
        ..Expect::default()
    };
    check(&pod, &status, &Probes::default(), again);
}

#[test]
fn a_failed_probe_kills_and_restarts() {
    let pod = test_pod("Always", vec![], vec![container("a"), container("b")]);
    let probes = Probes {
        liveness: [("id-a".to_owned(), ProbeResult::Failure)].into(),
        ..Default::default()
    };
    check(
        &pod,
        &observed(&[("a", Running, 0), ("b", Running, 0)]),
        &probes,
        Expect {
            start: vec![0],
            kill: vec!["a"],
            ..Default::default()
        },
    );
}

#[test]
fn a_changed_image_kills_and_restarts() {
    let mut changed = container("a");
    changed.image = Some("other".into());
    let pod = test_pod("Never", vec![], vec![changed]);
    check(
        &pod,
        &observed(&[("a", Running, 0)]),
        &Probes::default(),
        Expect {
            start: vec![0],
            kill: vec!["a"],
            ..Default::default()
        },
    );
}

#[test]
fn sidecars_start_in_order_and_run_on() {
    let pod = test_pod(
        "Never",
        vec![sidecar("s"), container("i")],
        vec![container("a")],
    );
    check(
        &pod,
        &observed(&[("s", Running, 0)]),
        &Probes::default(),
        Expect {
            init: vec![1],
            ..Default::default()
        },
    );
    check(
        &pod,
        &observed(&[("i", Exited, 0), ("s", Exited, 1)]),
        &Probes::default(),
        Expect {
            init: vec![0],
            start: vec![0],
            ..Default::default()
        },
    );
    // The main container is done: the sidecar must not keep the pod alive.
    check(
        &pod,
        &observed(&[("a", Exited, 0), ("i", Exited, 0), ("s", Running, 0)]),
        &Probes::default(),
        Expect {
            kill_pod: true,
            ..Default::default()
        },
    );
}

#[test]
fn a_sidecar_with_a_startup_probe_holds_back_the_next() {
    let mut s = sidecar("s");
    s.startup_probe = Some(Default::default());
    let pod = test_pod("Always", vec![s], vec![container("a")]);
    check(
        &pod,
        &observed(&[("s", Running, 0)]),
        &Probes::default(),
        Expect::default(),
    );
    let ok = Probes {
        startup: [("id-s".to_owned(), ProbeResult::Success)].into(),
        ..Default::default()
    };
    check(
        &pod,
        &observed(&[("s", Running, 0)]),
        &ok,
        Expect {
            start: vec![0],
            ..Default::default()
        },
    );
    let failed = Probes {
        startup: [("id-s".to_owned(), ProbeResult::Failure)].into(),
        ..Default::default()
    };
    check(
        &pod,
        &observed(&[("s", Running, 0)]),
        &failed,
        Expect {
            init: vec![0],
            kill: vec!["s"],
            ..Default::default()
        },
    );
}

#[test]
fn an_unknown_container_is_killed_before_it_is_started() {
    let pod = test_pod("Never", vec![], vec![container("a")]);
    check(
        &pod,
        &observed(&[("a", Unknown, 0)]),
        &Probes::default(),
        Expect {
            start: vec![0],
            kill: vec!["a"],
            ..Default::default()
        },
    );
}

#[test]
fn a_resize_is_done_in_place_unless_the_policy_says_otherwise() {
    use k8s_openapi::api::core::v1::ContainerResizePolicy;
    let wanted = |_: &Container| {
        Some(runtime::api::Resources {
            cpu_shares: Some(512),
            ..Default::default()
        })
    };
    let pod = test_pod("Always", vec![], vec![container("a")]);
    let got = compute_pod_actions(
        &pod,
        &observed(&[("a", Running, 0)]),
        &Probes::default(),
        &wanted,
        false,
    );
    assert_eq!(got.containers_to_update[0].resources.cpu_shares, Some(512));
    assert!(got.containers_to_kill.is_empty());
    let mut picky = container("a");
    picky.resize_policy = Some(vec![ContainerResizePolicy {
        resource_name: "cpu".into(),
        restart_policy: "RestartContainer".into(),
    }]);
    let pod = test_pod("Never", vec![], vec![picky]);
    let got = compute_pod_actions(
        &pod,
        &observed(&[("a", Running, 0)]),
        &Probes::default(),
        &wanted,
        false,
    );
    assert_eq!(got.containers_to_start, [0]);
    assert_eq!(
        got.containers_to_kill[0].message,
        "Container a resize requires restart, will be restarted"
    );
}

#[test]
fn a_request_of_memory_restarts_where_the_policy_says_so() {
    use k8s_openapi::api::core::v1::{ContainerResizePolicy, ResourceRequirements};
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    let asking = |memory: &str| {
        let mut container = container("a");
        container.resize_policy = Some(vec![ContainerResizePolicy {
            resource_name: "memory".into(),
            restart_policy: "RestartContainer".into(),
        }]);
        container.resources = Some(ResourceRequirements {
            requests: Some([("memory".into(), Quantity(memory.into()))].into()),
            ..Default::default()
        });
        container
    };
    let began = crate::resize::restarting_resources(&asking("64Mi")).unwrap();
    // The kernel knows no requests of memory: what it is told stays the same.
    let wanted = |_: &Container| Some(runtime::api::Resources::default());
    for (memory, kills) in [("64Mi", 0), ("65536Ki", 0), ("65Mi", 1)] {
        let pod = test_pod("Always", vec![], vec![asking(memory)]);
        let mut seen = observed(&[("a", Running, 0)]);
        seen.containers[0].annotations.insert(
            crate::pod::label::CONTAINER_RESTARTING_RESOURCES.into(),
            began.clone(),
        );
        let got = compute_pod_actions(&pod, &seen, &Probes::default(), &wanted, false);
        assert_eq!(got.containers_to_kill.len(), kills, "{memory}");
    }
}

#[test]
fn a_pod_that_starts_over_loses_its_containers_and_the_cause_last() {
    use k8s_openapi::api::core::v1::{ContainerRestartRule, ContainerRestartRuleOnExitCodes};
    let mut source = container("a");
    source.restart_policy_rules = Some(vec![ContainerRestartRule {
        action: "RestartAllContainers".into(),
        exit_codes: Some(ContainerRestartRuleOnExitCodes {
            operator: "In".into(),
            values: Some(vec![42]),
        }),
    }]);
    let pod = test_pod("Never", vec![container("i")], vec![source, container("b")]);
    let status = observed(&[("a", Exited, 42), ("b", Running, 0), ("i", Exited, 0)]);
    let got = compute_pod_actions(&pod, &status, &Probes::default(), &|_| None, true);
    let order: Vec<(&str, bool)> = got
        .containers_to_reset
        .iter()
        .map(|r| (r.name.as_str(), r.kill))
        .collect();
    assert_eq!(order, [("b", true), ("i", false), ("a", false)]);
    assert!(!got.kill_pod && got.containers_to_start.is_empty());
}
