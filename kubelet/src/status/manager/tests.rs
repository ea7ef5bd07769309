use super::*;

fn merge_pod_status(pod: &Pod, theirs: &PodStatus, ours: PodStatus, could_run: bool) -> PodStatus {
    let now = Time(Timestamp::UNIX_EPOCH);
    super::merge_pod_status(pod, theirs, ours, could_run, &now)
}

#[test]
fn diff_names_only_what_changed() {
    let old = json!({"a": 1, "b": {"c": 2, "d": 3}, "e": [1]});
    let new = json!({"a": 1, "b": {"c": 5}, "e": [1, 2]});
    assert_eq!(
        diff(&old, &new),
        Some(json!({"b": {"c": 5, "d": null}, "e": [1, 2]}))
    );
    assert_eq!(diff(&old, &old), None);
}

/// A readiness probe changes its mind while the pod's worker tells of a restart: neither takes the other's word back.
#[test]
fn a_probes_word_takes_nothing_back() {
    let manager = StatusManager::new(Arc::default(), None, Clock::real());
    let mut pod = Pod::default();
    pod.metadata.uid = Some("u".to_owned());
    let told = |restart_count| PodStatus {
        container_statuses: Some(vec![ContainerStatus {
            name: "c".into(),
            container_id: Some("x://id".into()),
            restart_count,
            ..Default::default()
        }]),
        ..Default::default()
    };
    manager.set_pod_status(&pod, told(0));
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut ready = false;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                ready = !ready;
                manager.set_container_readiness(&pod, "id", ready);
            }
        });
        let lost = (1..20_000).find(|restarts| {
            manager.set_pod_status(&pod, told(*restarts));
            let now = manager.get_pod_status("u").unwrap();
            now.container_statuses.unwrap()[0].restart_count != *restarts
        });
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(lost, None);
    });
}

#[test]
fn a_terminal_phase_waits_for_the_containers() {
    let pod = Pod::default();
    let theirs = PodStatus {
        phase: Some("Running".into()),
        ..Default::default()
    };
    let ours = PodStatus {
        phase: Some("Succeeded".into()),
        ..Default::default()
    };
    let merged = merge_pod_status(&pod, &theirs, ours.clone(), true);
    assert_eq!(merged.phase.as_deref(), Some("Running"));
    assert_eq!(
        merge_pod_status(&pod, &theirs, ours, false)
            .phase
            .as_deref(),
        Some("Succeeded")
    );
}

#[test]
fn the_conditions_of_others_are_kept() {
    let condition = |t: &str| PodCondition {
        type_: t.into(),
        status: "True".into(),
        ..Default::default()
    };
    let theirs = PodStatus {
        conditions: Some(vec![condition("my/gate"), condition("Ready")]),
        ..Default::default()
    };
    let ours = PodStatus {
        conditions: Some(vec![condition("Ready")]),
        ..Default::default()
    };
    let merged = merge_pod_status(&Pod::default(), &theirs, ours, false);
    let types: Vec<_> = merged
        .conditions
        .unwrap()
        .into_iter()
        .map(|c| c.type_)
        .collect();
    assert_eq!(types, ["my/gate", "Ready"]);
}

/// Upstream: `normalizeStatus`; every container has its share, whether the others say anything or not.
#[test]
fn last_words_have_a_share_each() {
    let check = |containers: usize, init: usize, said: &str, expect: usize| {
        let named = |n: usize| json!({"name": n.to_string(), "image": "i"});
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"uid": "u"},
            "spec": {
                "containers": (0..containers).map(named).collect::<Vec<_>>(),
                "initContainers": (0..init).map(named).collect::<Vec<_>>(),
            },
        }))
        .unwrap();
        let ended = || {
            Some(ContainerState {
                terminated: Some(ContainerStateTerminated {
                    message: Some(said.to_owned()),
                    ..Default::default()
                }),
                ..Default::default()
            })
        };
        let status = PodStatus {
            container_statuses: Some(vec![ContainerStatus {
                name: "0".into(),
                state: ended(),
                last_state: ended(),
                ..Default::default()
            }]),
            ..Default::default()
        };
        let manager = StatusManager::new(Arc::default(), None, Clock::real());
        manager.set_pod_status(&pod, status);
        let told = manager.get_pod_status("u").unwrap();
        let told = told.container_statuses.unwrap().remove(0);
        for state in [told.state, told.last_state] {
            let message = state.unwrap().terminated.unwrap().message.unwrap();
            assert_eq!(message.len(), expect, "{containers} + {init}");
            assert!(said.starts_with(&message));
        }
    };
    check(1, 0, &"x".repeat(4096), 4096);
    check(3, 0, &"x".repeat(4096), 4096);
    // What each may say is less than what it may write.
    check(4, 0, &"x".repeat(4096), 3072);
    check(4, 4, &"x".repeat(4096), 1536);
    check(4, 4, &"x".repeat(100), 100);
    // Never within a letter.
    check(4, 1, &"\u{e9}".repeat(2048), 2456);
    check(5, 5, &"\u{20ac}".repeat(1365), 1227);
}
