//! What the programs do together.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use component_base::testing::{ApiServer, Call, Refusal};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;

use crate::cluster::{Cluster, is_running, run};

/// How long a history is, by its own clock.
const AGE: Duration = Duration::from_secs(600);
/// What ten minutes may take in truth, in a test that is not optimised, on a machine that has other things to do.
const BOUND: Duration = Duration::from_secs(20);
/// Where a run of its own process writes its history, and its seed.
const HISTORY: &str = "WORLD_HISTORY";
const SEED: &str = "WORLD_SEED";

fn deploy(cluster: &Cluster, replicas: i32) {
    cluster.create::<Service>(json!({
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "selector": {"app": "web"}, "type": "ClusterIP", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"],
            "ipFamilies": ["IPv4"], "ports": [{"port": 80, "protocol": "TCP", "targetPort": 8080}],
        },
    }));
    cluster.create::<Deployment>(json!({
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
            "revisionHistoryLimit": 10,
            "progressDeadlineSeconds": 600,
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {
                    "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "Default",
                    "schedulerName": "default-scheduler",
                    "containers": [{
                        "name": "c", "image": "image", "imagePullPolicy": "IfNotPresent",
                        "resources": {"requests": {"cpu": "100m"}},
                    }],
                },
            },
        },
    }));
}

/// So many pods run, and there are no others.
fn runs(api: &ApiServer, pods: usize) -> bool {
    let all = api.list::<Pod>();
    all.len() == pods && all.iter().all(is_running)
}

fn available(api: &ApiServer, replicas: i32) -> bool {
    let deployment = api.get::<Deployment>("default", "web");
    let status = deployment.and_then(|d| d.status).unwrap_or_default();
    let is = |count: Option<i32>| count.unwrap_or(0) == replicas;
    is(status.replicas) && is(status.available_replicas) && is(status.updated_replicas)
}

fn ready_endpoints(api: &ApiServer) -> usize {
    let slices = api.list::<EndpointSlice>();
    let endpoints = slices.iter().flat_map(|s| s.endpoints.iter().flatten());
    let ready = |c: &k8s_openapi::api::discovery::v1::EndpointConditions| c.ready == Some(true);
    endpoints
        .filter(|e| e.conditions.as_ref().is_some_and(ready))
        .count()
}

fn scale(cluster: &Cluster, replicas: i32) {
    let mut deployment: Deployment = cluster.api.get("default", "web").expect("there");
    deployment.spec.replicas = Some(replicas);
    cluster.api.update(&deployment);
}

/// A Deployment of three runs, is scaled up and down, and deleted.
async fn history(cluster: &Cluster) {
    cluster.until_nodes_are_ready(2).await;
    deploy(cluster, 3);
    let runs = |pods: u8| {
        move |api: &ApiServer| {
            runs(api, usize::from(pods))
                && available(api, pods.into())
                && ready_endpoints(api) == usize::from(pods)
        }
    };
    cluster.until("three run", runs(3)).await;
    scale(cluster, 5);
    cluster.until("five run", runs(5)).await;
    scale(cluster, 1);
    cluster.until("one runs", runs(1)).await;
    cluster.api.delete::<Deployment>("default", "web");
    let gone = |api: &ApiServer| {
        api.list::<ReplicaSet>().is_empty()
            && api.list::<Pod>().is_empty()
            && ready_endpoints(api) == 0
    };
    cluster.until("gone", gone).await;
}

async fn ten_minutes() -> Vec<String> {
    let cluster = Cluster::start(2).await;
    history(&cluster).await;
    cluster.until_age(AGE).await;
    let history = cluster.history();
    cluster.end().await;
    history
}

#[test]
fn a_deployment_runs_is_scaled_and_deleted_within_ten_minutes_of_no_time() {
    let begin = Instant::now();
    let history = run(1, ten_minutes);
    let took = begin.elapsed();
    println!("{} writes in {AGE:?} took {took:?}", history.len());
    assert!(took < BOUND, "{took:?}");
}

/// One history of a process that has no other.
#[test]
#[ignore = "the_same_seed_has_the_same_history runs it"]
fn one_history() {
    let variable = |name| std::env::var(name).expect("the test that runs this one says it");
    let seed = variable(SEED).parse().expect("a number");
    let begin = Instant::now();
    let history = run(seed, ten_minutes);
    println!(
        "seed {seed}: {} writes, {:?}",
        history.len(),
        begin.elapsed()
    );
    std::fs::write(variable(HISTORY), history.join("\n")).expect("a file");
}

fn history_of(seed: u64, path: &Path) -> Vec<String> {
    let program = std::env::current_exe().expect("this program");
    let ran = Command::new(program)
        .args(["--exact", "tests::one_history", "--ignored", "--nocapture"])
        .env(SEED, seed.to_string())
        .env(HISTORY, path)
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(
        ran.status.success(),
        "{said}\n{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    print!("{said}");
    let text = std::fs::read_to_string(path).expect("it wrote");
    text.lines().map(str::to_owned).collect()
}

#[test]
fn the_same_seed_has_the_same_history() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name| folder.path().join(name);
    let (one, two) = (history_of(7, &path("1")), history_of(7, &path("2")));
    for (number, (one, two)) in one.iter().zip(&two).enumerate() {
        assert_eq!(one, two, "line {number}");
    }
    assert_eq!(one.len(), two.len());
    assert_ne!(one, history_of(8, &path("3")), "chance has no say");
}

/// What happens at a write in the middle of it all.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// It is refused.
    Refused,
    /// It is carried out, and its answer is lost.
    Lost,
    /// All watches end, and what was before is forgotten: who asks for it is told 410.
    Cut,
}

/// The history comes to its good end all the same. `None`: there were fewer writes.
fn survives(number: usize, fault: Fault) -> Option<()> {
    let seed = u64::try_from(number).unwrap_or(0);
    run(seed, move || async move {
        let cluster = Cluster::start(2).await;
        let count = Arc::new(AtomicUsize::new(0));
        let writes = count.clone();
        let chosen = move |call: &Call| {
            call.verb.writes() && writes.fetch_add(1, Ordering::Relaxed) == number
        };
        let error = Refusal::new(500, "InternalError", "etcdserver: request timed out");
        match fault {
            Fault::Refused => cluster.api.fail(chosen, error),
            Fault::Lost => cluster.api.lose_answers(chosen, error),
            Fault::Cut => {
                let count_only = move |call: &Call| {
                    chosen(call);
                    false
                };
                cluster.api.fail(count_only, error);
                let (api, seen) = (cluster.api.clone(), count.clone());
                tokio::spawn(async move {
                    api.until(|_| seen.load(Ordering::Relaxed) > number).await;
                    api.end_watches();
                    api.compact();
                });
            }
        }
        history(&cluster).await;
        cluster.end().await;
        (count.load(Ordering::Relaxed) > number).then_some(())
    })
}

/// Every so many writes something goes wrong, in a history of its own; `WORLD_FAULTS=1`: at each of them.
#[test]
fn whatever_goes_wrong_at_a_write_all_comes_to_its_end() {
    let step = std::env::var("WORLD_FAULTS")
        .ok()
        .and_then(|step| step.parse().ok());
    let step = step.unwrap_or(23);
    for fault in [Fault::Refused, Fault::Lost, Fault::Cut] {
        let histories = (0..)
            .step_by(step)
            .map_while(|number| survives(number, fault));
        let histories = histories.count();
        println!("{fault:?}: {histories} histories");
        assert!(histories > 2, "{fault:?}: {histories}");
    }
}
