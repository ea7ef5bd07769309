//! What the loop does with pods, over an assembled kubelet in virtual time.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use runtime::api::{
    ContainerState, ExecSyncResponse, PodSandboxConfig, PodSandboxMetadata, Runtime as _,
};
use serde_json::{Value, json};

use super::*;
use crate::app::world::{World, condition, node_condition};
use crate::pod::label;

fn asks(cpu: &str) -> Value {
    json!({"spec": {"containers": [{"name": "c", "image": "image", "resources": {"requests": {"cpu": cpu}}}]}})
}

fn reason(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.reason.as_deref()
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten());
    condition(conditions.map(|c| (&c.type_, &c.status)), "Ready") == Some("True")
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_does_not_fit_is_rejected_for_good() {
    let world = World::start(|_| {}).await;
    world.create_pod("small", asks("3"));
    world.until_phase("small", "Running").await;
    world.create_pod("large", asks("2"));
    let rejected = world.until_phase("large", "Failed").await;
    assert_eq!(reason(&rejected), Some("OutOfcpu"));
    world.until_event("large", "OutOfcpu").await;
    // What ended counts no longer.
    world.api.delete::<Pod>("default", "small");
    world.until_gone("small").await;
    world.create_pod("later", asks("3"));
    world.until_phase("later", "Running").await;
    let rejected = world.pod("large").unwrap();
    assert_eq!(pod::phase(&rejected), "Failed");
    // It never was here: of containers, addresses and resources there is nothing to tell.
    let told = rejected.status.unwrap();
    assert_eq!(told.container_statuses, None);
    assert_eq!(told.resources, None);
    assert_eq!(told.host_ip, None);
    assert!(told.message.unwrap().starts_with("Pod was rejected: "));
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_critical_pod_gets_the_room_of_another() {
    let world = World::start(|_| {}).await;
    world.create_pod("small", asks("3"));
    world.until_phase("small", "Running").await;
    let mut critical = asks("3");
    critical["spec"]["priority"] = json!(2_000_001_000);
    critical["spec"]["priorityClassName"] = json!("system-node-critical");
    world.create_pod("critical", critical);
    let victim = world.until_phase("small", "Failed").await;
    assert_eq!(reason(&victim), Some(preemption::REASON));
    world.until_phase("critical", "Running").await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn probes_make_a_pod_ready_and_restart_it() {
    let world = World::start(|_| {}).await;
    // What the probes' commands exit with.
    let exits = Arc::new(Mutex::new(BTreeMap::from([("ready", 1), ("live", 0)])));
    let answers = exits.clone();
    world.runtime.set_exec(move |_, command| {
        let exit_code = answers.lock().unwrap().get(command[0].as_str()).copied();
        Ok(ExecSyncResponse {
            exit_code: exit_code.unwrap_or(0),
            ..ExecSyncResponse::default()
        })
    });
    let probe = |word: &str| json!({"exec": {"command": [word]}, "periodSeconds": 2, "failureThreshold": 2});
    let containers = json!([{
        "name": "c",
        "image": "image",
        "readinessProbe": probe("ready"),
        "livenessProbe": probe("live"),
    }]);
    world.create_pod("web", json!({"spec": {"containers": containers}}));
    world.until_phase("web", "Running").await;
    world.clock.sleep(Duration::from_secs(10)).await;
    assert!(!is_ready(&world.pod("web").unwrap()));
    world.until_event("web", "Unhealthy").await;
    exits.lock().unwrap().insert("ready", 0);
    world.until_pod("web", is_ready).await;
    exits.lock().unwrap().insert("live", 1);
    let restarts = |pod: &Pod| {
        let statuses = pod
            .status
            .as_ref()
            .and_then(|s| s.container_statuses.as_ref());
        statuses.is_some_and(|s| s[0].restart_count > 0)
    };
    world.until_pod("web", restarts).await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_container_that_starts_is_asked_at_once_whether_it_is_ready() {
    let world = World::start(|_| {}).await;
    let probe = json!({"exec": {"command": ["ready"]}, "periodSeconds": 600});
    let container = |name: &str| json!({"name": name, "image": "image", "readinessProbe": probe});
    let mut sidecar = container("sidecar");
    sidecar["restartPolicy"] = json!("Always");
    let spec = json!({"containers": [container("c")], "initContainers": [sidecar]});
    let begin = world.clock.monotonic();
    world.create_pod("web", json!({"spec": spec}));
    world.until_pod("web", is_ready).await;
    let took = world.clock.monotonic() - begin;
    assert!(took < Duration::from_secs(10), "{took:?}");
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_no_source_knows_is_ended() {
    let world = World::start(|_| {}).await;
    world.create_pod("web", json!({}));
    world.until_phase("web", "Running").await;
    let labels = [
        (label::POD_NAME, "orphan"),
        (label::POD_NAMESPACE, "default"),
        (label::POD_UID, "orphan-uid"),
    ];
    let orphan = PodSandboxConfig {
        metadata: PodSandboxMetadata {
            name: "orphan".into(),
            namespace: "default".into(),
            uid: "orphan-uid".into(),
            ..PodSandboxMetadata::default()
        },
        labels: labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        ..PodSandboxConfig::default()
    };
    let id = world.runtime.run_pod_sandbox(&orphan).await.unwrap();
    world.clock.sleep(2 * HOUSEKEEPING_PERIOD).await;
    assert!(world.runtime.pod_sandbox_status(&id).await.is_err());
    assert_eq!(pod::phase(&world.pod("web").unwrap()), "Running");
    world.end().await;
}

fn static_pod(container: Value) -> Arc<Pod> {
    let made = json!({
        "metadata": {
            "name": "web-node", "namespace": "default", "uid": "static-uid",
            "annotations": {pod::CONFIG_SOURCE_ANNOTATION: "file", pod::CONFIG_HASH_ANNOTATION: "static-uid"},
        },
        "spec": {"nodeName": "node", "containers": [container], "terminationGracePeriodSeconds": 1},
    });
    Arc::new(serde_json::from_value(made).unwrap())
}

/// Whoever moves a manifest away and back again may do so while the pod's last traces are removed.
#[tokio::test(start_paused = true)]
async fn a_static_pod_that_comes_back_while_its_former_self_is_cleaned_up_runs_again() {
    let world = World::start(|_| {}).await;
    world
        .until_node(|n| node_condition(n, "Ready") == Some("True"))
        .await;
    let made = static_pod(json!({"name": "c", "image": "image"}));
    let mut source = SyncLoop::new(world.kubelet.clone(), BTreeSet::new(), BTreeSet::new());
    let (uid, runtime) = (pod::uid(&made), &world.runtime);
    let runs = || runtime.find_container(uid, "c").is_some();
    for _ in 0..3 {
        source
            .handle(Event::Config(PodUpdate::Set(made.clone())))
            .await;
        assert!(world.until(runs).await);
        let removed = Event::Config(PodUpdate::Removed(made.clone()));
        source.handle(removed).await;
        // Until its containers are gone and, if that can be seen, its directory is not: this looks on, and moves the clock.
        for turn in 1_u64.. {
            let work = world.kubelet.workers.status(uid);
            if !runs() && work.is_none_or(|work| work.finished) {
                break;
            }
            assert!(turn < 10_000_000, "it does not end");
            match turn % 100 {
                0 => tokio::time::advance(Duration::from_millis(1)).await,
                _ => tokio::task::yield_now().await,
            }
        }
    }
    world.end().await;
}

/// Id and CPUs of the pod's container, once one runs that is not `before`.
async fn next_container(world: &World, uid: &str, before: Option<&str>) -> (String, String) {
    for _ in 0..3000 {
        let all = world.runtime.list_containers().await.unwrap();
        let next = all.into_iter().find(|container| {
            container.state == ContainerState::Running
                && container.labels.get(label::POD_UID).map(String::as_str) == Some(uid)
                && before != Some(&container.id)
        });
        if let Some(next) = next {
            return (next.id, next.resources.cpuset_cpus);
        }
        world.clock.sleep(Duration::from_millis(20)).await;
    }
    let work = world.kubelet.workers.status(uid);
    panic!("nothing runs after {before:?}: {work:#?}");
}

/// Nor need whoever does so wait for the pod's end. What it begins anew with is its own again.
#[tokio::test(start_paused = true)]
async fn a_static_pod_that_comes_back_while_its_former_self_ends_has_its_cpus_again() {
    let world = World::start(|config| {
        config.cpu_manager_policy = "static".to_owned();
        config.reserved_system_cpus = "0".to_owned();
    })
    .await;
    world
        .until_node(|n| node_condition(n, "Ready") == Some("True"))
        .await;
    let list = json!({"cpu": "1", "memory": "64Mi"});
    let resources = json!({"limits": list, "requests": list});
    let made = static_pod(json!({"name": "c", "image": "image", "resources": resources}));
    let mut source = SyncLoop::new(world.kubelet.clone(), BTreeSet::new(), BTreeSet::new());
    let uid = pod::uid(&made);
    let work = || world.kubelet.workers.status(uid);
    let mut before: Option<String> = None;
    for slowly in [false, false, true, false] {
        let set = Event::Config(PodUpdate::Set(made.clone()));
        source.handle(set).await;
        while let Some((uid, outcome)) = source.allocations.next().await {
            source.handle(Event::Allocated(uid, outcome)).await;
        }
        let (id, cpus) = next_container(&world, uid, before.as_deref()).await;
        assert_eq!(cpus, "1", "slowly: {slowly}");
        // Its mirror tells of the new one.
        let tells = |pod: &Pod| {
            let statuses = pod.status.as_ref();
            let statuses = statuses.and_then(|s| s.container_statuses.as_deref());
            let ids = statuses.into_iter().flatten().map(|c| &c.container_id);
            pod::phase(pod) == "Running" && ids.flatten().any(|told| told.ends_with(&id))
        };
        world.until_pod("web-node", tells).await;
        before = Some(id);
        let removed = Event::Config(PodUpdate::Removed(made.clone()));
        source.handle(removed).await;
        if slowly {
            let ended = || work().is_none_or(|work| work.finished);
            assert!(world.until(ended).await);
        }
    }
    world.end().await;
}

/// The changed pod wants what the former one has still: it waits for it, and is not told that there is nothing left.
#[tokio::test(start_paused = true)]
async fn a_changed_static_pod_waits_for_the_cpus_of_its_former_self() {
    let world = World::start(|config| {
        config.cpu_manager_policy = "static".to_owned();
        config.reserved_system_cpus = "0".to_owned();
    })
    .await;
    world
        .until_node(|n| node_condition(n, "Ready") == Some("True"))
        .await;
    let list = json!({"cpu": "3", "memory": "64Mi"});
    let resources = json!({"limits": list, "requests": list});
    let made = |uid: &str, image: &str| {
        let pod = static_pod(json!({"name": "c", "image": image, "resources": resources}));
        let mut pod = Arc::unwrap_or_clone(pod);
        pod.metadata.uid = Some(uid.to_owned());
        Arc::new(pod)
    };
    let mut source = SyncLoop::new(world.kubelet.clone(), BTreeSet::new(), BTreeSet::new());
    let images = [
        ("first", "image"),
        ("second", "image:2"),
        ("third", "image"),
    ];
    let mut before: Option<Arc<Pod>> = None;
    for (uid, image) in images {
        let pod = made(uid, image);
        if let Some(former) = before.replace(pod.clone()) {
            // As the file source tells of a change.
            let removed = Event::Config(PodUpdate::Removed(former.clone()));
            source.handle(removed).await;
            source.handle(Event::Config(PodUpdate::Set(pod))).await;
            assert!(source.is_undecided(uid), "{uid}");
            let former = pod::uid(&former);
            world.kubelet.workers.until_finished(former).await;
            let ended = Event::PodFinished(former.to_owned());
            source.handle(ended).await;
        } else {
            source.handle(Event::Config(PodUpdate::Set(pod))).await;
        }
        while let Some((uid, outcome)) = source.allocations.next().await {
            assert_eq!(outcome, Ok(()), "{uid}");
            source.handle(Event::Allocated(uid, outcome)).await;
        }
        let (_, cpus) = next_container(&world, uid, None).await;
        assert_eq!(cpus, "1-3", "{uid}");
    }
    world.end().await;
}
