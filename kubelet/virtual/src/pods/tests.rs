use std::sync::Arc;
use std::time::Duration;

use component_base::clock::Clock;
use component_base::shutdown::Shutdown;
use controller_runtime::testing::FakeApi;
use controller_runtime::transport::{ApiError, Request, Verb};
use k8s_openapi::jiff::Timestamp;
use kube::runtime::watcher;
use kubelet_provider::{
    ContainerReport, ContainerState, PodFeature, PodId, PodReport, Provider, ProviderError,
};
use serde_json::{Value, json};

use crate::simulated::configuration::SimulatedConfiguration;
use crate::simulated::scripted::Scripted;
use crate::testing::{Asked, Noting, Rig, eventually, pod};

async fn simulated(
    config: SimulatedConfiguration,
    first: Vec<k8s_openapi::api::core::v1::Pod>,
) -> Rig {
    let shutdown = Shutdown::new();
    let provider = Arc::new(Scripted::new(config, Clock::real(), shutdown.clone()));
    Rig::start(FakeApi::new(), provider, shutdown, first).await
}

async fn noting(
    provider: Noting,
    first: Vec<k8s_openapi::api::core::v1::Pod>,
) -> (Rig, Arc<Noting>) {
    let provider = Arc::new(provider);
    let rig = Rig::start(FakeApi::new(), provider.clone(), Shutdown::new(), first).await;
    (rig, provider)
}

fn running() -> PodReport {
    let state = ContainerState::Running {
        started_at: Timestamp::from_second(100).unwrap(),
    };
    PodReport {
        pod_ips: vec![[10, 0, 0, 5].into()],
        containers: vec![ContainerReport {
            ready: true,
            ..ContainerReport::new("c", state)
        }],
        ..PodReport::default()
    }
}

fn condition(rig: &Rig, name: &str, type_: &str) -> String {
    let pod = rig.pod(name).unwrap_or_default();
    let found = component_helpers::pod::get_condition(&pod, type_);
    found.map_or(String::new(), |c| c.status.clone())
}

fn status_writes(rig: &Rig) -> Vec<Request> {
    let writes = rig.api.writes().into_iter();
    writes
        .filter(|w| w.subresource == "status" && w.resource.plural == "pods")
        .collect()
}

#[tokio::test]
async fn a_pod_runs_and_goes_with_two_statuses_and_a_deletion() {
    let rig = simulated(
        SimulatedConfiguration::default(),
        vec![pod("a", json!({}), json!({}))],
    )
    .await;
    eventually("the pod runs", || rig.phase("a") == "Running").await;
    let status = rig.pod("a").unwrap().status.unwrap();
    assert_eq!(condition(&rig, "a", "Ready"), "True");
    assert_eq!(condition(&rig, "a", "PodReadyToStartContainers"), "True");
    assert_eq!(status.host_ip.as_deref(), Some("10.9.0.1"));
    assert_eq!(status.pod_ip.as_deref(), Some("10.0.0.1"));
    assert!(status.start_time.is_some());
    assert!(status.container_statuses.unwrap()[0].ready);
    assert_eq!(status_writes(&rig).len(), 1);
    rig.echo("a");
    rig.delete("a", 30);
    eventually("the object goes", || rig.pod("a").is_none()).await;
    let writes = rig.api.writes();
    assert_eq!(status_writes(&rig).len(), 2, "{writes:?}");
    let [.., last, removal] = writes.as_slice() else {
        panic!("{writes:?}");
    };
    assert_eq!(last.body["status"]["phase"], "Succeeded");
    assert_eq!(
        last.body["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"],
        0
    );
    assert_eq!(removal.verb, Verb::Delete);
    assert_eq!(removal.body["gracePeriodSeconds"], 0);
    assert_eq!(removal.body["preconditions"]["uid"], "uid-of-a");
    rig.send(watcher::Event::Delete(pod("a", json!({}), json!({}))));
    eventually("the record goes", || rig.pods.count().0 == 0).await;
}

#[tokio::test]
async fn a_scripted_failure_fails_the_pod() {
    let annotations = json!({
        "simulated.virtual-kubelet.io/run-time": "20ms",
        "simulated.virtual-kubelet.io/exit-code": "7",
    });
    let rig = simulated(
        SimulatedConfiguration::default(),
        vec![pod("a", annotations, json!({}))],
    )
    .await;
    eventually("the pod fails", || rig.phase("a") == "Failed").await;
    let status = rig.pod("a").unwrap().status.unwrap();
    let state = status.container_statuses.unwrap()[0].state.clone().unwrap();
    let terminated = state.terminated.unwrap();
    assert_eq!(
        (terminated.exit_code, terminated.reason.as_deref()),
        (7, Some("Error"))
    );
    assert_eq!(condition(&rig, "a", "Ready"), "False");
}

#[tokio::test]
async fn a_bad_annotation_is_an_event_and_a_reason() {
    let annotations = json!({ "simulated.virtual-kubelet.io/run-time": "soon" });
    let mut rig = simulated(
        SimulatedConfiguration::default(),
        vec![pod("a", annotations, json!({}))],
    )
    .await;
    eventually("the pod fails", || rig.phase("a") == "Failed").await;
    let status = rig.pod("a").unwrap().status.unwrap();
    assert_eq!(status.reason.as_deref(), Some("ProviderRefused"));
    assert!(
        status
            .message
            .unwrap()
            .contains("run-time]: Invalid value: \"soon\"")
    );
    assert_eq!(rig.events.recv().await.unwrap().reason, "ProviderRefused");
}

#[tokio::test]
async fn a_field_that_is_not_supported_is_refused_by_name() {
    let spec = json!({ "hostPID": true, "volumes": [{ "name": "v", "emptyDir": {} }] });
    let (mut rig, provider) =
        noting(Noting::default(), vec![pod("a", json!({}), spec.clone())]).await;
    eventually("the pod fails", || rig.phase("a") == "Failed").await;
    let status = rig.pod("a").unwrap().status.unwrap();
    assert_eq!(status.reason.as_deref(), Some("UnsupportedPodField"));
    let event = rig.events.recv().await.unwrap();
    assert_eq!(event.reason, "UnsupportedPodField");
    for field in ["spec.hostPID", "spec.volumes[0]"] {
        assert!(event.message.contains(field), "{}", event.message);
    }
    assert_eq!(provider.asked(), []);
    rig.delete("a", 30);
    eventually("the object goes", || rig.pod("a").is_none()).await;
    assert_eq!(provider.asked(), []);
    // The one that understands them gets it.
    let features = kubelet_provider::Features::none()
        .with(PodFeature::Volumes)
        .with(PodFeature::HostNamespaces);
    let able = Noting {
        features,
        ..Noting::default()
    };
    let (_rig, provider) = noting(able, vec![pod("a", json!({}), spec)]).await;
    eventually("the provider gets it", || {
        provider.asked() == [Asked::Create("a".into())]
    })
    .await;
}

#[tokio::test]
async fn a_restart_adopts_what_is_wanted_and_ends_the_rest() {
    let wanted = pod("a", json!({}), json!({}));
    let orphan = pod("b", json!({}), json!({}));
    let had = vec![
        (PodId::of(&wanted), running()),
        (PodId::of(&orphan), running()),
    ];
    let first = Noting {
        had: had.clone(),
        ..Noting::default()
    };
    let (rig, provider) = noting(first, vec![wanted]).await;
    eventually("the pod runs", || rig.phase("a") == "Running").await;
    eventually("the orphan is ended", || {
        provider.asked().contains(&Asked::Delete("b".into(), 0))
    })
    .await;
    assert!(!provider.asked().contains(&Asked::Create("a".into())));
    provider.events().gone(&had[1].0);
    eventually("the orphan is forgotten", || rig.pods.count().0 == 1).await;
    // Another restart finds its own status and writes nothing.
    let mut told = rig.pod("a").unwrap();
    // As the API server says it.
    let containers = told
        .status
        .as_mut()
        .and_then(|s| s.container_statuses.as_mut());
    containers.unwrap()[0].last_state = Some(Default::default());
    rig.shutdown.trigger();
    let second = Noting {
        had: had[..1].to_vec(),
        ..Noting::default()
    };
    let (rig, provider) = noting(second, vec![told]).await;
    eventually("the object is handed over", || {
        provider.asked() == [Asked::Update("a".into())]
    })
    .await;
    let mut report = running();
    report.containers[0].restart_count = 1;
    provider.events().report(&had[0].0, report);
    eventually("what is new is written", || !status_writes(&rig).is_empty()).await;
    let writes = status_writes(&rig);
    assert_eq!(writes.len(), 1);
    assert_eq!(
        writes[0].body["status"]["containerStatuses"][0]["restartCount"],
        1
    );
}

#[tokio::test]
async fn an_error_is_told_once_and_tried_again() {
    let away = || ProviderError::Unavailable("the backend is away".to_owned());
    let provider = Noting::default();
    *provider.refusals.lock().unwrap() = vec![away(), away()];
    let (mut rig, provider) = noting(provider, vec![pod("a", json!({}), json!({}))]).await;
    eventually("it is created in the end", || provider.asked().len() == 3).await;
    assert_eq!(
        rig.events.recv().await.unwrap().message,
        "the backend is away"
    );
    assert!(rig.events.try_recv().is_err());
}

/// The answer may have been lost, not the call.
#[tokio::test]
async fn a_pod_whose_creation_failed_is_ended_before_its_object_goes() {
    let provider = Noting::default();
    let lost = || ProviderError::Unavailable("no answer in time".to_owned());
    *provider.refusals.lock().unwrap() = (0..1000).map(|_| lost()).collect();
    let (rig, provider) = noting(provider, vec![pod("a", json!({}), json!({}))]).await;
    eventually("it is tried", || !provider.asked().is_empty()).await;
    rig.delete("a", 7);
    eventually("its end is told", || {
        provider.asked().contains(&Asked::Delete("a".into(), 7))
    })
    .await;
    assert!(rig.pod("a").is_some());
    provider
        .events()
        .gone(&PodId::of(&pod("a", json!({}), json!({}))));
    eventually("the object goes", || rig.pod("a").is_none()).await;

    // One that was taken away meanwhile is ended, too.
    rig.send(watcher::Event::Apply(pod("b", json!({}), json!({}))));
    eventually("it is tried", || {
        provider.asked().contains(&Asked::Create("b".into()))
    })
    .await;
    rig.send(watcher::Event::Delete(pod("b", json!({}), json!({}))));
    eventually("its end is told", || {
        provider.asked().contains(&Asked::Delete("b".into(), 0))
    })
    .await;
}

#[tokio::test]
async fn a_status_that_could_not_be_written_is_written_later() {
    let (rig, provider) = noting(Noting::default(), vec![pod("a", json!({}), json!({}))]).await;
    eventually("it is created", || provider.asked().len() == 1).await;
    let busy = ApiError::Server {
        code: 500,
        reason: String::new(),
        message: "busy".to_owned(),
    };
    rig.api
        .fail(|request| request.subresource == "status", busy);
    provider
        .events()
        .report(&PodId::of(&pod("a", json!({}), json!({}))), running());
    eventually("it is tried", || status_writes(&rig).len() == 1).await;
    assert_eq!(rig.phase("a"), "");
    rig.api.heal();
    eventually("it is written", || rig.phase("a") == "Running").await;
}

#[tokio::test]
async fn other_nodes_pods_are_left_alone() {
    let other = pod("other", json!({}), json!({ "nodeName": "machine" }));
    let (rig, provider) = noting(
        Noting::default(),
        vec![other, pod("a", json!({}), json!({}))],
    )
    .await;
    eventually("ours is created", || {
        provider.asked() == [Asked::Create("a".into())]
    })
    .await;
    assert_eq!(rig.pods.count().0, 1);
}

#[tokio::test]
async fn a_change_is_handed_over_and_a_status_alone_is_none() {
    let (rig, provider) = noting(Noting::default(), vec![pod("a", json!({}), json!({}))]).await;
    provider_created(&provider).await;
    let id = PodId::of(&pod("a", json!({}), json!({})));
    provider.events().report(&id, running());
    eventually("it runs", || rig.phase("a") == "Running").await;
    rig.echo("a");
    let mut changed = rig.pod("a").unwrap();
    changed.metadata.labels = Some([("x".to_owned(), "y".to_owned())].into());
    rig.send(watcher::Event::Apply(changed));
    eventually("the change comes", || {
        provider.asked().contains(&Asked::Update("a".into()))
    })
    .await;
    assert_eq!(provider.asked().len(), 2);
}

async fn provider_created(provider: &Noting) {
    eventually("it is created", || {
        provider.asked() == [Asked::Create("a".into())]
    })
    .await;
}

#[tokio::test]
async fn who_is_in_a_hurry_shortens_the_grace_and_the_object_goes_last() {
    let (rig, provider) = noting(Noting::default(), vec![pod("a", json!({}), json!({}))]).await;
    provider_created(&provider).await;
    let id = PodId::of(&pod("a", json!({}), json!({})));
    provider.events().report(&id, running());
    eventually("it runs", || rig.phase("a") == "Running").await;
    rig.delete("a", 30);
    eventually("its end is asked for", || {
        provider.asked().contains(&Asked::Delete("a".into(), 30))
    })
    .await;
    rig.delete("a", 1);
    eventually("sooner", || {
        provider.asked().contains(&Asked::Delete("a".into(), 1))
    })
    .await;
    // It has not ended: the object stays.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(rig.pod("a").is_some());
    provider.events().gone(&id);
    eventually("the object goes", || rig.pod("a").is_none()).await;
    assert_eq!(provider.asked().len(), 3);
}

/// A Job counts by it.
#[tokio::test]
async fn how_a_pod_ended_is_told_before_it_goes() {
    let (rig, provider) = noting(Noting::default(), vec![pod("a", json!({}), json!({}))]).await;
    provider_created(&provider).await;
    let id = PodId::of(&pod("a", json!({}), json!({})));
    provider.events().report(&id, running());
    eventually("it runs", || rig.phase("a") == "Running").await;
    rig.delete("a", 30);
    eventually("its end is asked for", || {
        provider.asked().contains(&Asked::Delete("a".into(), 30))
    })
    .await;
    let now = Timestamp::from_second(200).unwrap();
    let mut ended = running();
    ended.containers[0].ready = false;
    ended.containers[0].state = ContainerState::Terminated(kubelet_provider::Terminated {
        exit_code: 3,
        reason: String::new(),
        message: String::new(),
        started_at: now,
        finished_at: now,
    });
    provider.events().report(&id, ended);
    provider.events().gone(&id);
    eventually("the object goes", || rig.pod("a").is_none()).await;
    let [.., last, removal] = &*rig.api.writes() else {
        panic!("a status and a deletion");
    };
    let state = &last.body["status"]["containerStatuses"][0]["state"];
    assert_eq!(state["terminated"]["exitCode"], 3, "{:?}", last.body);
    assert_eq!(removal.verb, Verb::Delete);
}

#[tokio::test]
async fn a_pod_that_is_lost_fails_and_one_that_is_taken_away_is_ended() {
    let (rig, provider) = noting(Noting::default(), vec![pod("a", json!({}), json!({}))]).await;
    provider_created(&provider).await;
    let id = PodId::of(&pod("a", json!({}), json!({})));
    provider.events().report(&id, running());
    eventually("it runs", || rig.phase("a") == "Running").await;
    provider.events().gone(&id);
    eventually("it fails", || rig.phase("a") == "Failed").await;
    let status = rig.pod("a").unwrap().status.unwrap();
    assert_eq!(status.reason.as_deref(), Some("NotFound"));
    let state = status.container_statuses.unwrap()[0].state.clone().unwrap();
    assert_eq!(
        state.terminated.unwrap().reason.as_deref(),
        Some("ContainerStatusUnknown")
    );

    let other = pod("b", json!({}), json!({}));
    rig.send(watcher::Event::Apply(other.clone()));
    eventually("b is created", || {
        provider.asked().contains(&Asked::Create("b".into()))
    })
    .await;
    rig.send(watcher::Event::Delete(other));
    eventually("b is ended", || {
        provider.asked().contains(&Asked::Delete("b".into(), 0))
    })
    .await;
}

#[test]
fn phases_are_upstreams() {
    use super::record::Record;
    let check = |policy: &str, terminating: bool, states: &[Value], expect: &str| {
        let names: Vec<Value> = (0..states.len())
            .map(|i| json!({ "name": i.to_string() }))
            .collect();
        let mut pod = pod(
            "a",
            json!({}),
            json!({ "restartPolicy": policy, "containers": names }),
        );
        if terminating {
            pod.metadata.deletion_timestamp = Some(
                k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH),
            );
        }
        let now = Timestamp::UNIX_EPOCH;
        let containers = states.iter().enumerate().map(|(at, state)| {
            let ended = |exit_code| kubelet_provider::Terminated {
                exit_code,
                reason: String::new(),
                message: String::new(),
                started_at: now,
                finished_at: now,
            };
            let waiting = ContainerState::Waiting {
                reason: "W".into(),
                message: String::new(),
            };
            let (state, last) = match state.as_str() {
                Some("running") => (ContainerState::Running { started_at: now }, None),
                Some("waiting") => (waiting, None),
                Some(_) => (waiting, Some(ended(1))),
                None => (
                    ContainerState::Terminated(ended(state.as_i64().unwrap() as i32)),
                    None,
                ),
            };
            ContainerReport {
                last,
                ..ContainerReport::new(&at.to_string(), state)
            }
        });
        let report = PodReport {
            containers: containers.collect(),
            ..PodReport::default()
        };
        let record = Record::new(Arc::new(pod), Some(report));
        let (status, _) = super::status::generate(&record, None, now);
        assert_eq!(
            status.phase.as_deref(),
            Some(expect),
            "{policy} {terminating} {states:?}"
        );
    };
    check(
        "Always",
        false,
        &[json!("waiting"), json!("running")],
        "Pending",
    );
    check("Always", false, &[json!("running"), json!(0)], "Running");
    check("Always", false, &[json!("again")], "Running");
    check("Always", false, &[json!(0)], "Running");
    check("Always", true, &[json!(0)], "Succeeded");
    check("Always", true, &[json!(137)], "Failed");
    check("OnFailure", false, &[json!(1), json!(0)], "Running");
    check("OnFailure", false, &[json!(0), json!(0)], "Succeeded");
    check("Never", false, &[json!(0), json!(1)], "Failed");
    check("Never", false, &[json!(0), json!(0)], "Succeeded");
}

#[test]
fn a_condition_that_holds_loses_the_reason_why_it_did_not() {
    let report = PodReport::default();
    let record = super::record::Record::new(Arc::new(pod("a", json!({}), json!({}))), Some(report));
    let (status, _) = super::status::generate(&record, None, Timestamp::UNIX_EPOCH);
    let patch = super::patch(&status);
    let conditions = patch["conditions"].as_array().unwrap();
    let find = |type_: &str| {
        conditions
            .iter()
            .find(|c| c["type"] == type_)
            .unwrap()
            .as_object()
            .unwrap()
    };
    assert_eq!(find("Ready")["reason"], "ContainersNotReady");
    assert_eq!(find("Initialized")["reason"], Value::Null);
    assert!(find("Initialized").contains_key("message"));
}

#[tokio::test]
async fn the_simulation_is_no_provider_of_two_processes() {
    let shutdown = Shutdown::new();
    let provider = Scripted::new(SimulatedConfiguration::default(), Clock::real(), shutdown);
    let (events, _receiver) = kubelet_provider::PodEvents::channel();
    assert!(provider.start(events.clone()).await.is_ok());
    assert!(provider.start(events).await.is_err());
}
