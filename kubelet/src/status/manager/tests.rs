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
