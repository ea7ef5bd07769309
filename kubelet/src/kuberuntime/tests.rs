//! Rounds over pods on the runtime in memory, over an assembled kubelet in virtual time.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use runtime::api::ImageError;
use runtime::fake::Behaviour;
use serde_json::json;

use crate::app::world::World;

fn waiting(pod: &Pod) -> Option<&str> {
    let status = pod.status.as_ref()?.container_statuses.as_ref()?.first()?;
    status.state.as_ref()?.waiting.as_ref()?.reason.as_deref()
}

#[tokio::test(start_paused = true)]
async fn an_image_that_is_not_to_be_had_is_asked_for_again() {
    let world = World::start(|_| {}).await;
    let error = ImageError::RegistryUnavailable {
        image: "image:latest".into(),
        reason: "connection refused".into(),
    };
    world.runtime.set_unpullable("image:latest", error);
    world.create_pod("web", json!({}));
    world
        .until_pod("web", |p| waiting(p) == Some("ImagePullBackOff"))
        .await;
    world.until_event("web", "Failed").await;
    world.until_event("web", "BackOff").await;
    world.runtime.set_pullable("image:latest");
    world.until_phase("web", "Running").await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_cannot_be_made_is_told_of_and_tried_again() {
    let world = World::start(|_| {}).await;
    world.runtime.break_verb("run_pod_sandbox");
    world.create_pod("web", json!({}));
    let told = world.until_event("web", "FailedCreatePodSandBox").await;
    assert!(told.contains("run_pod_sandbox is broken"), "{told}");
    world.runtime.mend("run_pod_sandbox");
    world.until_phase("web", "Running").await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_sandbox_is_made_anew() {
    let world = World::start(|_| {}).await;
    world.create_pod("web", json!({}));
    let running = world.until_phase("web", "Running").await;
    let first = running.status.unwrap().pod_ip;
    let sandbox = world.kubelet.runtime.pods().await.unwrap();
    let sandbox = sandbox.values().next().unwrap().sandboxes[0].id.clone();
    world.runtime.lose_sandbox(&sandbox);
    world.until_event("web", "SandboxChanged").await;
    let again = |pod: &Pod| {
        let status = pod.status.as_ref().unwrap();
        status.pod_ip.is_some() && status.pod_ip != first
    };
    world.until_pod("web", again).await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn init_containers_run_one_after_the_other_before_the_others() {
    let world = World::start(|_| {}).await;
    world.runtime.set_behaviour(
        |_, container| match container.metadata.name.starts_with("init") {
            true => Behaviour::Exit(0),
            false => Behaviour::Run,
        },
    );
    let init = |name: &str| json!({"name": name, "image": "image"});
    let made = world.create_pod(
        "web",
        json!({"spec": {"initContainers": [init("init-1"), init("init-2")]}}),
    );
    world.until_phase("web", "Running").await;
    let status = world.pod("web").unwrap().status.unwrap();
    let ended: Vec<i32> = status
        .init_container_statuses
        .unwrap()
        .iter()
        .map(|s| {
            s.state
                .as_ref()
                .unwrap()
                .terminated
                .as_ref()
                .unwrap()
                .exit_code
        })
        .collect();
    assert_eq!(ended, [0, 0]);
    let uid = crate::pod::uid(&made);
    let ids = ["init-1", "init-2", "c"].map(|name| world.runtime.find_container(uid, name));
    let started: Vec<String> = world
        .runtime
        .take_calls()
        .into_iter()
        .filter_map(|call| call.strip_prefix("start_container ").map(str::to_owned))
        .collect();
    assert_eq!(started, ids.map(|id| id.expect("it was made")));
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_container_that_does_not_heed_has_its_grace_and_no_more() {
    let world = World::start(|_| {}).await;
    world.runtime.set_behaviour(|_, _| Behaviour::IgnoreStop);
    world.create_pod("web", json!({}));
    world.until_phase("web", "Running").await;
    let begin = world.clock.monotonic();
    world.api.delete::<Pod>("default", "web");
    world.until_gone("web").await;
    let took = world.clock.monotonic() - begin;
    let grace = Duration::from_secs(5);
    assert!(took >= grace && took < 2 * grace, "{took:?}");
    world.end().await;
}
