//! Promise: a node whose network is cut is NotReady in upstream's time, its pods run elsewhere after
//! their toleration, and on its return nothing runs twice.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::cluster::lan;
use e2e::probe::{Holdings, Namespace, assert_nothing_left, cluster, wait_until};

/// kube-controller-manager's `--node-monitor-grace-period` of 50 s, its period of 5 s and a little.
const NOT_READY_WITHIN: Duration = Duration::from_secs(65);
const TOLERATION_SECONDS: u64 = 5;

#[test]
fn a_cut_node_is_replaced_and_tidied_on_its_return() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "node-cut")?;
    let before = Holdings::of(&cluster, "node-2")?;
    let toleration = |key: &str| {
        format!(
            "{{key: node.kubernetes.io/{key}, operator: Exists, effect: NoExecute, tolerationSeconds: {TOLERATION_SECONDS}}}"
        )
    };
    ns.apply(&format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations: [{}, {}]
      topologySpreadConstraints:
      - {{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {{matchLabels: {{app: web}}}}}}
      containers: [{{name: main, image: registry.k8s.io/pause:3.10.2}}]
",
        toleration("not-ready"),
        toleration("unreachable")
    ))?;
    ns.wait_rollout("deployment/web", 90)?;
    let on_node_2 = || {
        ns.kubectl(&[
            "get",
            "pods",
            "-l",
            "app=web",
            "--field-selector=spec.nodeName=node-2",
            "-o",
            "name",
        ])
    };
    let old = on_node_2()?;
    ensure!(
        old.lines().count() == 1,
        "one pod on each node, not {old:?} on node-2"
    );

    lan::set_cable(&cluster.layout, 2, false)?;
    let cut = Instant::now();
    let seen = (|| -> Result<()> {
        wait_until("node-2 to be NotReady", NOT_READY_WITHIN, || {
            let status = cluster.kubectl(&[
                "get",
                "node",
                "node-2",
                "-o",
                "jsonpath={.status.conditions[?(@.type=='Ready')].status}",
            ])?;
            Ok(status == "Unknown")
        })?;
        ensure!(
            cut.elapsed() > Duration::from_secs(35),
            "NotReady after only {:?}",
            cut.elapsed()
        );
        wait_until(
            "two pods on node-1",
            Duration::from_secs(TOLERATION_SECONDS + 30),
            || {
                let pods = ns.kubectl(&[
                    "get",
                    "pods",
                    "-l",
                    "app=web",
                    "--field-selector=spec.nodeName=node-1,status.phase=Running",
                    "-o",
                    "name",
                ])?;
                Ok(pods.lines().count() == 2)
            },
        )
    })();
    lan::set_cable(&cluster.layout, 2, true)?;
    seen?;
    cluster.kubectl(&[
        "wait",
        "--for=condition=Ready",
        "node/node-2",
        "--timeout=60s",
    ])?;
    wait_until("the old pod to be gone", Duration::from_secs(60), || {
        Ok(on_node_2()?.trim().is_empty())
    })?;
    ns.wait_rollout("deployment/web", 60)?;
    ns.delete()?;
    assert_nothing_left(&cluster, "node-2", &before, Duration::from_secs(60))
}
