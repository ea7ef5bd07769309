//! What the loop does with pods, over an assembled kubelet in virtual time.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use runtime::api::{ExecSyncResponse, PodSandboxConfig, PodSandboxMetadata, Runtime as _};
use serde_json::{Value, json};

use super::*;
use crate::app::world::{World, condition};
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
