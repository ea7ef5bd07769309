//! Promise: a cluster whose etcd is restored from a snapshot settles: what was made later is gone, what should run runs once, and what
//! ran all the time was not touched. Whether kubelets and control loops were stopped for it or went on.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::cluster::Cluster;
use e2e::probe::{Holdings, Namespace, busybox_pod, cluster, pids_of, wait_until};
use e2e::snapshot;
use e2e::step::Steps;

/// From the moment the API server answers again.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);
const STEADY: [&str; 2] = ["calm-1", "calm-2"];
/// Replicas of the Deployment when the snapshot is taken, and when it is restored.
const REPLICAS: (usize, usize) = (4, 6);

/// A shell that says in its command line who it is, and ends soon when told to.
fn script(name: &str) -> String {
    format!(": restored {name};trap 'exit 0' TERM; sleep 36000 & wait")
}

fn pids(name: &str) -> Vec<u32> {
    pids_of(&format!(": restored {name};"))
}

fn workloads(ns: &Namespace<'_>) -> Result<()> {
    for (name, node) in STEADY.iter().zip(["node-1", "node-2"]) {
        ns.apply(&busybox_pod(name, node, &script(name)))?;
    }
    ns.apply(&busybox_pod(
        "ended-later",
        "node-1",
        &script("ended-later"),
    ))?;
    // A pod that is never restarted would be taken for one whose container was lost.
    let deleted = busybox_pod("deleted-later", "node-2", &script("deleted-later"));
    ns.apply(&deleted.replace("restartPolicy: Never", "restartPolicy: Always"))?;
    let pod = |name: &str| {
        format!(
            "{{metadata: {{labels: {{app: {name}}}}}, spec: {{terminationGracePeriodSeconds: 1, containers: [{{name: main, \
             image: 'registry.k8s.io/e2e-test-images/busybox:1.37.0-2', command: [sh, -c, \"{}\"]}}]}}}}",
            script(name)
        )
    };
    ns.apply(&format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  replicas: {}\n  selector: {{matchLabels: {{app: web}}}}\n  \
         template: {}\n---\napiVersion: apps/v1\nkind: StatefulSet\nmetadata: {{name: numbered}}\nspec:\n  serviceName: numbered\n  \
         replicas: 2\n  selector: {{matchLabels: {{app: numbered}}}}\n  template: {}\n---\napiVersion: v1\nkind: Service\n\
         metadata: {{name: web}}\nspec: {{selector: {{app: web}}, ports: [{{port: 80}}]}}\n",
        REPLICAS.0,
        pod("web"),
        pod("numbered")
    ))?;
    for name in STEADY.iter().chain(&["ended-later", "deleted-later"]) {
        ns.wait_ready(&format!("pod/{name}"), 60)?;
    }
    ns.wait_rollout("deployment/web", 90)?;
    ns.wait_rollout("statefulset/numbered", 90)
}

/// What happens after the snapshot, and is lost.
fn later(ns: &Namespace<'_>, calm: &BTreeMap<&str, Vec<u32>>) -> Result<()> {
    for (name, node) in [("new-1", "node-1"), ("new-2", "node-2")] {
        ns.apply(&busybox_pod(name, node, &script(name)))?;
        ns.wait_ready(&format!("pod/{name}"), 60)?;
    }
    ns.kubectl(&["create", "configmap", "new"])?;
    ns.kubectl(&["create", "service", "clusterip", "new", "--tcp=80"])?;
    ns.kubectl(&[
        "scale",
        "deployment/web",
        &format!("--replicas={}", REPLICAS.1),
    ])?;
    ns.wait_rollout("deployment/web", 90)?;
    // Its successor has the same name and another UID.
    ns.kubectl(&["delete", "pod", "numbered-0"])?;
    ns.wait_rollout("statefulset/numbered", 90)?;
    ns.kubectl(&["delete", "pod", "deleted-later"])?;
    let ending = pids("ended-later");
    ensure!(!ending.is_empty(), "ended-later does not run");
    // The command goes down with the container whose first process it ends.
    let _ = ns.kubectl(&["exec", "ended-later", "--", "kill", "1"]);
    ns.kubectl(&[
        "wait",
        "--for=jsonpath={.status.phase}=Succeeded",
        "pod/ended-later",
        "--timeout=60s",
    ])?;
    for (name, before) in calm {
        ensure!(pids(name) == *before, "{name} moved before the restore");
    }
    Ok(())
}

/// How many processes each workload has on the nodes.
fn counts() -> BTreeMap<&'static str, usize> {
    [
        "web",
        "numbered",
        "deleted-later",
        "ended-later",
        "new-1",
        "new-2",
    ]
    .into_iter()
    .map(|name| (name, pids(name).len()))
    .collect()
}

fn is_settled(cluster: &Cluster, ns: &Namespace<'_>) -> Result<bool> {
    let wanted = BTreeMap::from([
        ("web", REPLICAS.0),
        ("numbered", 2),
        // The snapshot says it runs, and nothing on the node says otherwise.
        ("deleted-later", 1),
        // Its container has ended and is not started again.
        ("ended-later", 0),
        ("new-1", 0),
        ("new-2", 0),
    ]);
    let found = counts();
    ensure!(found == wanted, "processes: {found:?}, not {wanted:?}");
    ns.kubectl(&[
        "wait",
        "--for=jsonpath={.status.phase}=Succeeded",
        "pod/ended-later",
        "--timeout=1s",
    ])?;
    ns.wait_ready("pod/deleted-later", 1)?;
    ns.wait_rollout("deployment/web", 1)?;
    ns.wait_rollout("statefulset/numbered", 1)?;
    for node in cluster.nodes() {
        cluster.kubectl(&[
            "wait",
            "--for=condition=Ready",
            &format!("node/{node}"),
            "--timeout=1s",
        ])?;
    }
    Ok(true)
}

/// Of `objects` ConfigMaps beside the workloads.
fn restored_settles(objects: usize, clients_go_on: bool) -> Result<()> {
    let mut cluster = cluster()?;
    let layout = Cluster::open(&cluster.state.options.name)?;
    let steps = Steps::new(cluster.outputs.logs())?;
    let before: Vec<Holdings> = ["node-1", "node-2"]
        .map(|node| Holdings::of(&cluster, node))
        .into_iter()
        .collect::<Result<_>>()?;
    let ns = Namespace::create(&layout, "restored")?;
    let maps: String = (0..objects)
        .map(|n| format!("---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: map-{n}}}\ndata: {{n: '{n}'}}\n"))
        .collect();
    if objects > 0 {
        ns.apply(&maps)?;
    }
    workloads(&ns)?;
    let calm: BTreeMap<&str, Vec<u32>> = STEADY.iter().map(|name| (*name, pids(name))).collect();
    ensure!(
        calm.values().all(|pids| pids.len() == 1),
        "one process each: {calm:?}"
    );

    let dir = tempfile::tempdir()?;
    let file = dir.path().join("etcd.db");
    snapshot::take(&cluster, &steps, &file)?;
    later(&ns, &calm)?;
    refused_without_harm(&mut cluster, &steps, dir.path())?;
    snapshot::bring_back(&mut cluster, &steps, &file, clients_go_on)?;
    let answers = Instant::now();

    wait_until("the cluster to settle", SETTLED_WITHIN, || {
        is_settled(&cluster, &ns)
    })?;
    eprintln!(
        "settled {:.1} s after the API server answered",
        answers.elapsed().as_secs_f64()
    );
    for (name, before) in &calm {
        ensure!(pids(name) == *before, "{name} has another process now");
        let pod = ns.json(&["get", "pod", name])?;
        ensure!(
            pod["status"]["containerStatuses"][0]["restartCount"] == 0,
            "{name} was restarted"
        );
    }
    let left = ns.kubectl(&["get", "configmaps,services,pods", "-o", "name"])?;
    ensure!(!left.contains("/new"), "later objects are there: {left}");
    let found = left.matches("configmap/map-").count();
    ensure!(
        found == objects,
        "{found} of {objects} ConfigMaps are there"
    );
    // It is a cluster like any other afterwards: it makes pods, and all of it can go.
    ns.kubectl(&["scale", "deployment/web", "--replicas=2"])?;
    wait_until("two pods", Duration::from_secs(30), || {
        Ok(pids("web").len() == 2)
    })?;
    ns.delete()?;
    for (node, before) in ["node-1", "node-2"].iter().zip(&before) {
        e2e::probe::assert_nothing_left(&cluster, node, before, Duration::from_secs(60))?;
    }
    Ok(())
}

/// A file that is no snapshot is told before anything is stopped.
fn refused_without_harm(cluster: &mut Cluster, steps: &Steps, dir: &Path) -> Result<()> {
    let junk = dir.join("junk.db");
    std::fs::write(&junk, "no snapshot")?;
    let etcd = cluster.process("etcd")?.pid;
    let refused = snapshot::bring_back(cluster, steps, &junk, false);
    ensure!(refused.is_err(), "a file of junk was restored");
    ensure!(
        cluster.process("etcd")?.pid == etcd && cluster.is_running(),
        "etcd was stopped"
    );
    Ok(())
}

#[test]
#[ignore = "minutes: `cargo e2e test restore` runs it"]
fn a_restored_cluster_settles() -> Result<()> {
    restored_settles(200, false).context("kubelets and control loops stopped")
}

#[test]
#[ignore = "minutes: `cargo e2e test restore` runs it"]
fn clients_that_went_on_settle_on_a_server_that_knows_less() -> Result<()> {
    restored_settles(200, true).context("kubelets and control loops went on")
}

#[test]
#[ignore = "minutes: `cargo e2e test restore` runs it"]
fn a_restored_cluster_of_five_thousand_objects_settles() -> Result<()> {
    restored_settles(5_000, false)?;
    restored_settles(5_000, true)
}
