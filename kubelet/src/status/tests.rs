//! Phases and waiting reasons, by story.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus as ApiPodStatus};
use runtime::api::{ContainerState, ContainerStatus};

use super::containers::StartFailure;
use super::generate::{ForcedFailure, GenerateInput, ReadinessResults, generate_api_pod_status};
use crate::pod_actions::ProbeResult;
use crate::pod_status::PodStatus;

#[derive(Default)]
struct Probes(HashMap<String, ProbeResult>);

impl ReadinessResults for Probes {
    fn readiness(&self, id: &str) -> Option<ProbeResult> {
        self.0.get(id).copied()
    }
    fn startup(&self, _: &str) -> Option<ProbeResult> {
        None
    }
}

fn pod(policy: &str, init: &[&str], names: &[&str]) -> Pod {
    let make = |n: &&str| Container {
        name: (*n).into(),
        image: Some("img".into()),
        ..Default::default()
    };
    Pod {
        spec: Some(PodSpec {
            restart_policy: Some(policy.into()),
            containers: names.iter().map(make).collect(),
            init_containers: Some(init.iter().map(make).collect()),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn seen(name: &str, attempt: u32, state: ContainerState, exit_code: i32) -> ContainerStatus {
    ContainerStatus {
        id: format!("{name}{attempt}"),
        sandbox_id: String::new(),
        metadata: runtime::api::ContainerMetadata {
            name: name.into(),
            attempt,
        },
        state,
        created_at: jiff::Timestamp::UNIX_EPOCH,
        started_at: Some(jiff::Timestamp::UNIX_EPOCH),
        finished_at: None,
        exit_code,
        signal: None,
        reason: "Error".into(),
        message: String::new(),
        image: "img".into(),
        image_id: "sha256:1".into(),
        image_ref: String::new(),
        labels: Default::default(),
        annotations: Default::default(),
        log_path: Default::default(),
        pid: None,
        resources: Default::default(),
        user: None,
        stop_signal: String::new(),
        mounts: vec![],
        origin: Default::default(),
    }
}

fn generate(
    pod: &Pod,
    containers: Vec<ContainerStatus>,
    failures: &[(&str, &str)],
    terminal: bool,
) -> ApiPodStatus {
    generate_at(
        pod,
        containers,
        failures,
        terminal,
        &ApiPodStatus::default(),
        1_000,
    )
}

/// `old`: what was said before; `now`: in seconds.
fn generate_at(
    pod: &Pod,
    containers: Vec<ContainerStatus>,
    failures: &[(&str, &str)],
    terminal: bool,
    old: &ApiPodStatus,
    now: i64,
) -> ApiPodStatus {
    generate_forced(pod, containers, failures, terminal, old, now, None)
}

/// `forced`: what some part of the kubelet decided.
fn generate_forced(
    pod: &Pod,
    containers: Vec<ContainerStatus>,
    failures: &[(&str, &str)],
    terminal: bool,
    old: &ApiPodStatus,
    now: i64,
    forced: Option<&ForcedFailure>,
) -> ApiPodStatus {
    let failures = failures
        .iter()
        .map(|(n, r)| {
            (
                (*n).to_owned(),
                StartFailure {
                    reason: (*r).into(),
                    message: "why".into(),
                },
            )
        })
        .collect();
    generate_api_pod_status(&GenerateInput {
        pod,
        status: &PodStatus {
            containers,
            ..Default::default()
        },
        old,
        pod_is_terminal: terminal,
        start_failures: &failures,
        probes: &Probes::default(),
        host_ips: &["10.1.0.1".to_owned()],
        qos_class: "BestEffort",
        supports_rro: true,
        stop_signals: false,
        forced_failure: forced,
        actuated: &|_, _| true,
        resize_conditions: vec![],
        pod_config: &Default::default(),
        pod_actuated: true,
        now: jiff::Timestamp::from_second(now).unwrap(),
    })
}

use ContainerState::{Exited, Running};

#[test]
fn phases() {
    let check = |policy, containers: Vec<ContainerStatus>, terminal, expect: &str| {
        let status = generate(&pod(policy, &[], &["a"]), containers, &[], terminal);
        assert_eq!(status.phase.as_deref(), Some(expect), "{policy}");
    };
    check("Always", vec![], false, "Pending");
    check("Always", vec![seen("a", 0, Running, 0)], false, "Running");
    check("Always", vec![seen("a", 0, Exited, 1)], false, "Running");
    check("Never", vec![seen("a", 0, Exited, 1)], false, "Failed");
    check("Never", vec![seen("a", 0, Exited, 0)], false, "Succeeded");
    check("OnFailure", vec![seen("a", 0, Exited, 1)], false, "Running");
    check(
        "OnFailure",
        vec![seen("a", 0, Exited, 0)],
        false,
        "Succeeded",
    );
    check("Always", vec![seen("a", 0, Exited, 137)], true, "Failed");
}

#[test]
fn success_is_spared_where_it_counts() {
    let check = |spares_success, exit_code, expect: &str| {
        let forced = ForcedFailure {
            reason: "Terminated".into(),
            message: "why".into(),
            disruption: None,
            spares_success,
        };
        let (pod, containers) = (
            pod("Always", &[], &["a"]),
            vec![seen("a", 0, Exited, exit_code)],
        );
        // While its containers ran it was said to fail.
        let old = ApiPodStatus {
            phase: Some("Failed".into()),
            ..Default::default()
        };
        let status = generate_forced(&pod, containers, &[], true, &old, 1_000, Some(&forced));
        assert_eq!(status.phase.as_deref(), Some(expect));
        assert_eq!(status.reason.as_deref(), Some("Terminated"));
    };
    check(true, 0, "Succeeded");
    check(true, 143, "Failed");
    check(false, 0, "Failed");
}

#[test]
fn a_crashed_container_waits_with_its_reason_and_remembers_its_end() {
    let status = generate(
        &pod("Always", &[], &["a"]),
        vec![seen("a", 3, Exited, 2)],
        &[("a", "CrashLoopBackOff")],
        false,
    );
    let c = &status.container_statuses.unwrap()[0];
    assert_eq!(c.restart_count, 3);
    let waiting = c.state.as_ref().unwrap().waiting.as_ref().unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("CrashLoopBackOff"));
    assert_eq!(
        c.last_state
            .as_ref()
            .unwrap()
            .terminated
            .as_ref()
            .unwrap()
            .exit_code,
        2
    );
}

#[test]
fn the_last_but_one_instance_is_the_last_state() {
    let status = generate(
        &pod("Always", &[], &["a"]),
        vec![seen("a", 1, Running, 0), seen("a", 0, Exited, 7)],
        &[],
        false,
    );
    let c = &status.container_statuses.unwrap()[0];
    assert!(c.ready);
    assert_eq!(
        c.last_state
            .as_ref()
            .unwrap()
            .terminated
            .as_ref()
            .unwrap()
            .exit_code,
        7
    );
}

#[test]
fn default_waiting_reasons() {
    let reason = |status: ApiPodStatus| {
        status.container_statuses.unwrap()[0]
            .state
            .clone()
            .unwrap()
            .waiting
            .unwrap()
            .reason
            .unwrap()
    };
    assert_eq!(
        reason(generate(&pod("Always", &[], &["a"]), vec![], &[], false)),
        "ContainerCreating"
    );
    assert_eq!(
        reason(generate(&pod("Always", &["i"], &["a"]), vec![], &[], false)),
        "PodInitializing"
    );
}

#[test]
fn a_failed_init_container_fails_a_pod_that_never_restarts() {
    let status = generate(
        &pod("Never", &["i"], &["a"]),
        vec![seen("i", 0, Exited, 1)],
        &[],
        false,
    );
    assert_eq!(status.phase.as_deref(), Some("Failed"));
    let conditions = status.conditions.unwrap();
    let initialized = conditions
        .iter()
        .find(|c| c.type_ == "Initialized")
        .unwrap();
    assert_eq!(initialized.status, "False");
    assert_eq!(
        initialized.message.as_deref(),
        Some("containers with incomplete status: [i]")
    );
}

#[test]
fn a_readiness_probe_without_answer_is_not_ready() {
    let mut p = pod("Always", &[], &["a"]);
    p.spec.as_mut().unwrap().containers[0].readiness_probe = Some(Default::default());
    let status = generate(&p, vec![seen("a", 0, Running, 0)], &[], false);
    assert!(!status.container_statuses.unwrap()[0].ready);
    let ready = status
        .conditions
        .unwrap()
        .into_iter()
        .find(|c| c.type_ == "Ready")
        .unwrap();
    assert_eq!(ready.reason.as_deref(), Some("ContainersNotReady"));
    assert_eq!(
        ready.message.as_deref(),
        Some("containers with unready status: [a]")
    );
}

/// Who decides by a status must see all of it: the start time of a pod that was just begun, too.
#[test]
fn a_deadline_ends_a_pod_whatever_it_is_doing() {
    let deadline = |mut p: Pod, seconds: i64| {
        p.spec.as_mut().unwrap().active_deadline_seconds = Some(seconds);
        p
    };
    let told = |at: i64, phase: &str| ApiPodStatus {
        phase: Some(phase.into()),
        start_time: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
            jiff::Timestamp::from_second(at).unwrap(),
        )),
        ..Default::default()
    };
    let plain = pod("Always", &[], &["a"]);
    let init = pod("Always", &["i"], &["a"]);
    let (running, started) = (seen("a", 0, Running, 0), seen("i", 0, Running, 0));
    // (the pod, what runs, failures, what was said, now, the phase, overdue)
    type Case<'a> = (
        Pod,
        Vec<ContainerStatus>,
        &'a [(&'a str, &'a str)],
        ApiPodStatus,
        i64,
        &'a str,
        bool,
    );
    let waits: &[(&str, &str)] = &[("a", "ImagePullBackOff")];
    let cases: Vec<Case<'_>> = vec![
        (
            plain.clone(),
            vec![],
            &[],
            told(100, "Pending"),
            9_999,
            "Pending",
            false,
        ),
        // The first look at the pod starts its time.
        (
            deadline(plain.clone(), 10),
            vec![],
            &[],
            Default::default(),
            500,
            "Pending",
            false,
        ),
        (
            deadline(plain.clone(), 10),
            vec![],
            waits,
            told(100, "Pending"),
            109,
            "Pending",
            false,
        ),
        (
            deadline(plain.clone(), 10),
            vec![],
            waits,
            told(100, "Pending"),
            110,
            "Failed",
            true,
        ),
        (
            deadline(init, 10),
            vec![started],
            &[],
            told(100, "Pending"),
            110,
            "Failed",
            true,
        ),
        (
            deadline(plain.clone(), 10),
            vec![running.clone()],
            &[],
            told(100, "Running"),
            110,
            "Failed",
            true,
        ),
        // Moved by a patch while it ran.
        (
            deadline(plain.clone(), 30),
            vec![running.clone()],
            &[],
            told(100, "Running"),
            120,
            "Running",
            false,
        ),
        (
            deadline(plain.clone(), 30),
            vec![running],
            &[],
            told(100, "Running"),
            130,
            "Failed",
            true,
        ),
        // Ended by itself in time, and looked at late.
        (
            deadline(pod("Never", &[], &["a"]), 10),
            vec![seen("a", 0, Exited, 0)],
            &[],
            told(100, "Succeeded"),
            500,
            "Succeeded",
            false,
        ),
    ];
    for (i, (p, containers, failures, old, now, phase, overdue)) in cases.into_iter().enumerate() {
        let got = generate_at(&p, containers.clone(), failures, false, &old, now);
        assert_eq!(got.phase.as_deref(), Some(phase), "case {i}");
        let start = old.start_time.map_or(now, |t| t.0.as_second());
        assert_eq!(
            got.start_time.as_ref().unwrap().0.as_second(),
            start,
            "case {i}"
        );
        let reason = overdue.then_some("DeadlineExceeded");
        assert_eq!(got.reason.as_deref(), reason, "case {i}");
        // The end is told the same way, whatever the containers leave with.
        let stopped = containers
            .into_iter()
            .map(|c| ContainerStatus { state: Exited, ..c });
        let last = generate_at(&p, stopped.collect(), &[], true, &got, now + 2);
        if overdue {
            assert_eq!(last.phase.as_deref(), Some("Failed"), "case {i}");
            assert_eq!(last.reason.as_deref(), Some("DeadlineExceeded"), "case {i}");
            assert_eq!(
                last.message.as_deref(),
                Some("Pod was active on the node longer than the specified deadline"),
                "case {i}"
            );
        }
    }
}

/// No field of a status is left for another place to fill in, so that nobody decides by a part of it.
#[test]
fn what_stops_a_container_is_told_where_the_gate_is_on() {
    let mut container = seen("a", 0, Running, 0);
    container.stop_signal = "SIGQUIT".into();
    let status = generate(&pod("Never", &[], &["a"]), vec![container], &[], false);
    assert_eq!(status.container_statuses.unwrap()[0].stop_signal, None);
}

#[test]
fn a_status_is_whole() {
    let mut p = pod("Always", &["i"], &["a"]);
    p.metadata.generation = Some(7);
    let status = generate(
        &p,
        vec![seen("a", 0, Running, 0), seen("i", 0, Exited, 0)],
        &[],
        false,
    );
    assert_eq!(status.observed_generation, Some(7));
    assert_eq!(status.qos_class.as_deref(), Some("BestEffort"));
    assert!(status.start_time.is_some() && status.host_ip.is_some());
    for condition in status.conditions.iter().flatten() {
        assert_eq!(
            condition.observed_generation,
            Some(7),
            "{}",
            condition.type_
        );
    }
    let mut types: Vec<_> = status
        .conditions
        .into_iter()
        .flatten()
        .map(|c| c.type_)
        .collect();
    types.sort();
    assert_eq!(
        types,
        [
            "ContainersReady",
            "Initialized",
            "PodReadyToStartContainers",
            "PodScheduled",
            "Ready"
        ]
    );
}

/// A pod whose container `a` starts everything over when it leaves with 42.
#[test]
fn a_pod_starts_over_in_place() {
    use k8s_openapi::api::core::v1::{ContainerRestartRule, ContainerRestartRuleOnExitCodes};
    let mut p = pod("Never", &["i"], &["a", "b"]);
    let a = &mut p.spec.as_mut().unwrap().containers[0];
    a.restart_policy = Some("Never".into());
    a.restart_policy_rules = Some(vec![ContainerRestartRule {
        action: "RestartAllContainers".into(),
        exit_codes: Some(ContainerRestartRuleOnExitCodes {
            operator: "In".into(),
            values: Some(vec![42]),
        }),
    }]);
    let condition = |s: &ApiPodStatus, type_: &str| {
        let all = s.conditions.iter().flatten();
        let found = all.into_iter().find(|c| c.type_ == type_);
        found.map(|c| c.status.clone()).unwrap_or_default()
    };
    let init = || seen("i", 0, Exited, 0);
    let step = |old: &ApiPodStatus, containers| generate_at(&p, containers, &[], false, old, 1_000);

    let runs = step(
        &ApiPodStatus::default(),
        vec![init(), seen("a", 0, Running, 0), seen("b", 0, Running, 0)],
    );
    assert_eq!(condition(&runs, "AllContainersRestarting"), "False");
    assert_eq!(condition(&runs, "Initialized"), "True");

    let left = step(
        &runs,
        vec![init(), seen("a", 0, Exited, 42), seen("b", 0, Running, 0)],
    );
    assert_eq!(left.phase.as_deref(), Some("Running"));
    assert_eq!(condition(&left, "AllContainersRestarting"), "True");

    let away = step(&left, vec![]);
    assert_eq!(away.phase.as_deref(), Some("Running"));
    assert_eq!(condition(&away, "AllContainersRestarting"), "False");
    assert_eq!(condition(&away, "Initialized"), "True");
    for c in away.container_statuses.iter().flatten() {
        let waiting = c.state.as_ref().unwrap().waiting.as_ref().unwrap();
        assert_eq!(waiting.reason.as_deref(), Some("RestartingAllContainers"));
        let last = c.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
        assert_eq!(last.reason.as_deref(), Some("RestartingAllContainers"));
        assert_eq!((c.restart_count, last.exit_code), (1, 137), "{}", c.name);
    }

    let again = step(
        &away,
        vec![
            seen("i", 1, Exited, 0),
            seen("a", 1, Running, 0),
            seen("b", 1, Running, 0),
        ],
    );
    assert_eq!(again.phase.as_deref(), Some("Running"));
    assert_eq!(condition(&again, "AllContainersRestarting"), "False");
    for c in again.container_statuses.iter().flatten() {
        let last = c.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
        assert_eq!(last.reason.as_deref(), Some("RestartingAllContainers"));
        assert_eq!(c.restart_count, 1);
    }
    // By another code it ends as its policy says.
    let failed = step(
        &runs,
        vec![init(), seen("a", 0, Exited, 1), seen("b", 0, Exited, 0)],
    );
    assert_eq!(failed.phase.as_deref(), Some("Failed"));
    assert_eq!(condition(&failed, "AllContainersRestarting"), "False");
}

#[test]
fn ends_are_counted_once() {
    let of = |state| generate(&pod("Never", &[], &["counted"]), vec![state], &[], false);
    let runs = of(seen("counted", 0, Running, 0));
    let ended = of(seen("counted", 0, Exited, 77));
    let count = || {
        crate::metrics::TERMINATED_CONTAINERS
            .with_label_values(&["container", "77", "Error"])
            .get()
    };
    let before = count();
    crate::metrics::observe_terminations(&runs, &ended);
    crate::metrics::observe_terminations(&ended, &ended);
    crate::metrics::observe_terminations(&runs, &runs);
    assert_eq!(count(), before + 1);
}

/// Each container is found by its name, in lists as long as the pod has containers: never one list for each of the other's.
#[test]
fn a_pod_of_many_containers_costs_what_they_cost() {
    let names: Vec<String> = (0..20_000).map(|n| format!("c{n:05}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let running = names.iter().rev().map(|n| seen(n, 0, Running, 0)).collect();
    let pod = pod("Always", &[], &names);
    let begin = std::time::Instant::now();
    let first = generate(&pod, running, &[], false);
    let again = names.iter().rev().map(|n| seen(n, 1, Running, 0)).collect();
    let second = generate_forced(&pod, again, &[], false, &first, 1_000, None);
    // Pairs of them take minutes.
    assert!(
        begin.elapsed() < std::time::Duration::from_secs(15),
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(second.phase.as_deref(), Some("Running"));
    let statuses = second.container_statuses.unwrap();
    assert!(statuses.iter().all(|s| s.restart_count == 1 && s.ready));
}
