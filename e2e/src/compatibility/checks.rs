//! What each program is asked to do, seen from outside: what it said, in a few words for the table.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::probe::{Namespace, wait_until};

const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.37.0-2";
const PAUSE: &str = "registry.k8s.io/pause:3.10.2";

/// Lines of `kubectl top`, without their head.
fn top(cluster: &Cluster, args: &[&str]) -> usize {
    let mut words = vec!["top"];
    words.extend(args);
    words.push("--no-headers");
    cluster
        .kubectl(&words)
        .map_or(0, |text| text.lines().count())
}

pub fn metrics_server(cluster: &Cluster) -> Result<String> {
    let ns = Namespace::create(cluster, "compatible-metrics")?;
    // Busy until it is told to rest.
    ns.apply(&format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: busy}}\nspec:\n  replicas: 1\n  selector: {{matchLabels: {{app: busy}}}}\n  \
         template:\n    metadata: {{labels: {{app: busy}}}}\n    spec:\n      terminationGracePeriodSeconds: 1\n      containers:\n      \
         - name: main\n        image: {BUSYBOX}\n        command: [sh, -c, 'while [ ! -e /tmp/rest ]; do :; done; exec sleep 36000']\n        \
         resources: {{requests: {{cpu: 50m}}, limits: {{cpu: 100m}}}}\n---\napiVersion: autoscaling/v2\nkind: HorizontalPodAutoscaler\n\
         metadata: {{name: busy}}\nspec:\n  minReplicas: 1\n  maxReplicas: 3\n  scaleTargetRef: {{apiVersion: apps/v1, kind: Deployment, name: busy}}\n  \
         behavior: {{scaleDown: {{stabilizationWindowSeconds: 0}}}}\n  metrics:\n  \
         - {{type: Resource, resource: {{name: cpu, target: {{type: Utilization, averageUtilization: 60}}}}}}\n"
    ))?;
    ns.wait_rollout("deployment/busy", 60)?;
    let nodes = cluster.nodes().len();
    wait_until("kubectl top nodes", Duration::from_secs(120), || {
        Ok(top(cluster, &["nodes"]) == nodes)
    })?;
    wait_until("kubectl top pods", Duration::from_secs(120), || {
        Ok(top(cluster, &["pods", "-n", &ns.name, "--containers"]) > 0)
    })?;
    let replicas = || -> Result<u64> {
        let scale = ns.json(&["get", "deployment", "busy"])?;
        Ok(scale["spec"]["replicas"].as_u64().unwrap_or_default())
    };
    let began = Instant::now();
    wait_until(
        "the autoscaler to add pods",
        Duration::from_secs(180),
        || Ok(replicas()? > 1),
    )
    .with_context(|| ns.kubectl(&["describe", "hpa", "busy"]).unwrap_or_default())?;
    let up = began.elapsed().as_secs();
    let began = Instant::now();
    wait_until(
        "the autoscaler to take pods away",
        Duration::from_secs(240),
        || {
            let pods = ns.kubectl(&["get", "pods", "-l", "app=busy", "-o", "name"])?;
            for pod in pods.lines() {
                // New ones come as long as it has not seen the rest; one on its way out does not answer.
                let _ = ns.kubectl(&["exec", pod, "--", "touch", "/tmp/rest"]);
            }
            Ok(replicas()? == 1)
        },
    )
    .with_context(|| ns.kubectl(&["describe", "hpa", "busy"]).unwrap_or_default())?;
    let down = began.elapsed().as_secs();
    ns.delete()?;
    Ok(format!(
        "{nodes} nodes and their pods; more pods after {up} s, one again after {down} s"
    ))
}

/// Nodes of the pods with a label, sorted, those that are Ready.
fn nodes_of(ns: &Namespace<'_>, label: &str) -> Result<Vec<String>> {
    let list = ns.json(&["get", "pods", "-l", label])?;
    let ready = |pod: &Value| {
        pod["metadata"]["deletionTimestamp"].is_null()
            && pod["status"]["conditions"].as_array().is_some_and(|all| {
                all.iter()
                    .any(|one| one["type"] == "Ready" && one["status"] == "True")
            })
    };
    let pods = list["items"].as_array().into_iter().flatten();
    let mut nodes: Vec<String> = pods
        .filter(|pod| ready(pod))
        .filter_map(|pod| pod["spec"]["nodeName"].as_str().map(str::to_owned))
        .collect();
    nodes.sort();
    Ok(nodes)
}

pub fn descheduler(cluster: &Cluster) -> Result<String> {
    let ns = Namespace::create(cluster, "compatible-evictions")?;
    cluster.kubectl(&["cordon", "node-2"])?;
    let together = ns
        .kubectl(&[
            "create",
            "deployment",
            "twins",
            &format!("--image={PAUSE}"),
            "--replicas=2",
        ])
        .and_then(|_| ns.wait_rollout("deployment/twins", 60));
    cluster.kubectl(&["uncordon", "node-2"])?;
    together?;
    let first = nodes_of(&ns, "app=twins")?;
    ensure!(
        first == ["node-1", "node-1"],
        "both are on one node at first: {first:?}"
    );
    let began = Instant::now();
    wait_until("one replica on each node", Duration::from_secs(120), || {
        Ok(nodes_of(&ns, "app=twins")? == ["node-1", "node-2"])
    })?;
    let seconds = began.elapsed().as_secs();
    ns.delete()?;
    Ok(format!("one on each node after {seconds} s"))
}

pub fn kueue(cluster: &Cluster) -> Result<String> {
    let ns = Namespace::create(cluster, "compatible-queue")?;
    let queue = "apiVersion: kueue.x-k8s.io/v1beta1\nkind: ResourceFlavor\nmetadata: {name: compatible}\n---\n\
                 apiVersion: kueue.x-k8s.io/v1beta1\nkind: ClusterQueue\nmetadata: {name: compatible}\nspec:\n  namespaceSelector: {}\n  \
                 resourceGroups: [{coveredResources: [cpu], flavors: [{name: compatible, resources: [{name: cpu, nominalQuota: 1}]}]}]\n---\n\
                 apiVersion: kueue.x-k8s.io/v1beta1\nkind: LocalQueue\nmetadata: {name: queue}\nspec: {clusterQueue: compatible}\n";
    // Its webhook answers a little after it is Ready.
    wait_until("the queue to be taken", Duration::from_secs(60), || {
        ns.apply(queue).map(|()| true)
    })?;
    for name in ["first", "second"] {
        ns.apply(&format!(
            "apiVersion: batch/v1\nkind: Job\nmetadata: {{name: {name}, labels: {{kueue.x-k8s.io/queue-name: queue}}}}\nspec:\n  suspend: true\n  \
             template:\n    spec:\n      restartPolicy: Never\n      containers: [{{name: main, image: '{BUSYBOX}', command: [sleep, '8'], \
             resources: {{requests: {{cpu: 600m}}}}}}]\n"
        ))?;
        if name == "first" {
            wait_until("the first to run", Duration::from_secs(60), || {
                Ok(ns.json(&["get", "job", "first"])?["status"]["active"] == 1)
            })?;
        }
    }
    let second = ns.json(&["get", "job", "second"])?;
    ensure!(second["spec"]["suspend"] == true, "both run at once");
    for name in ["first", "second"] {
        let job = format!("job/{name}");
        ns.kubectl(&["wait", "--for=condition=Complete", &job, "--timeout=120s"])?;
    }
    let of = |job: &str, key: &str| -> Result<String> {
        let job = ns.json(&["get", "job", job])?;
        Ok(job["status"][key].as_str().unwrap_or_default().to_owned())
    };
    let (ended, began) = (of("first", "completionTime")?, of("second", "startTime")?);
    ensure!(
        began >= ended,
        "the second began at {began}, the first ended at {ended}"
    );
    ns.delete()?;
    for kind in ["clusterqueue", "resourceflavor"] {
        cluster.kubectl(&["delete", kind, "compatible", "--timeout=60s"])?;
    }
    Ok("the second began when the first had ended".to_owned())
}

pub fn prometheus_operator(cluster: &Cluster) -> Result<String> {
    let ns = Namespace::create(cluster, "compatible-prometheus")?;
    ns.apply(&format!(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: prometheus}}\n---\napiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\n\
         metadata: {{name: compatible-prometheus}}\nrules:\n\
         - {{apiGroups: [''], resources: [nodes, nodes/metrics, services, endpoints, pods], verbs: [get, list, watch]}}\n\
         - {{apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [get, list, watch]}}\n---\n\
         apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {{name: compatible-prometheus}}\n\
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: compatible-prometheus}}\n\
         subjects: [{{kind: ServiceAccount, name: prometheus, namespace: {ns}}}]\n---\n\
         apiVersion: monitoring.coreos.com/v1\nkind: Prometheus\nmetadata: {{name: p}}\nspec:\n  \
         image: registry.k8s.io/gantry-test/prometheus:v3.13.1\n  version: v3.13.1\n  replicas: 1\n  serviceAccountName: prometheus\n  \
         serviceMonitorSelector: {{}}\n  serviceMonitorNamespaceSelector: {{}}\n---\n\
         apiVersion: monitoring.coreos.com/v1\nkind: ServiceMonitor\nmetadata: {{name: kubelet}}\nspec:\n  namespaceSelector: {{matchNames: [kube-system]}}\n  \
         selector: {{matchLabels: {{app.kubernetes.io/name: kubelet}}}}\n  endpoints:\n{}{}",
        endpoint("/metrics"),
        endpoint("/metrics/cadvisor"),
        ns = ns.name
    ))?;
    wait_until(
        "the StatefulSet of Prometheus",
        Duration::from_secs(180),
        || {
            let set = ns.json(&["get", "statefulset", "prometheus-p"])?;
            Ok(set["status"]["readyReplicas"] == 1)
        },
    )
    .with_context(|| ns.kubectl(&["describe", "pods"]).unwrap_or_default())?;
    let nodes = cluster.nodes().len();
    let mut series = Vec::new();
    for (query, least) in [
        ("kubelet_running_pods", nodes),
        (
            "container_memory_working_set_bytes{container=\"prometheus\"}",
            1,
        ),
        (
            "container_cpu_usage_seconds_total{pod=\"prometheus-p-0\"}",
            1,
        ),
    ] {
        wait_until(query, Duration::from_secs(120), || {
            series.push((query, found(&ns, query)?));
            Ok(series.last().is_some_and(|(_, count)| *count >= least))
        })?;
    }
    ns.kubectl(&["delete", "prometheus", "p"])?;
    wait_until("its StatefulSet to go", Duration::from_secs(60), || {
        Ok(ns.kubectl(&["get", "statefulset", "prometheus-p"]).is_err())
    })?;
    ns.delete()?;
    for kind in ["clusterrole", "clusterrolebinding"] {
        cluster.kubectl(&["delete", kind, "compatible-prometheus"])?;
    }
    // Made by the operator for the kubelets.
    cluster.kubectl(&[
        "-n",
        "kube-system",
        "delete",
        "service",
        "kubelet",
        "--ignore-not-found",
    ])?;
    Ok(format!("{nodes} kubelets scraped"))
}

fn endpoint(path: &str) -> String {
    format!(
        "  - port: https-metrics\n    scheme: https\n    path: {path}\n    interval: 5s\n    tlsConfig: {{insecureSkipVerify: true}}\n    \
         bearerTokenFile: /var/run/secrets/kubernetes.io/serviceaccount/token\n"
    )
}

/// How many series a query has.
fn found(ns: &Namespace<'_>, query: &str) -> Result<usize> {
    let coded: String = query
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect();
    let path = format!(
        "/api/v1/namespaces/{}/pods/prometheus-p-0:9090/proxy/api/v1/query?query={coded}",
        ns.name
    );
    let answer: Value = serde_json::from_str(&ns.kubectl(&["get", "--raw", &path])?)?;
    Ok(answer["data"]["result"].as_array().map_or(0, Vec::len))
}

pub fn argo_rollouts(cluster: &Cluster) -> Result<String> {
    let ns = Namespace::create(cluster, "compatible-rollouts")?;
    let rollout = |word: &str| {
        format!(
            "apiVersion: argoproj.io/v1alpha1\nkind: Rollout\nmetadata: {{name: web}}\nspec:\n  replicas: 2\n  selector: {{matchLabels: {{app: web}}}}\n  \
             strategy: {{canary: {{steps: [{{setWeight: 50}}, {{pause: {{duration: 8}}}}]}}}}\n  template:\n    \
             metadata: {{labels: {{app: web}}}}\n    spec:\n      terminationGracePeriodSeconds: 1\n      containers: [{{name: main, image: '{PAUSE}', \
             env: [{{name: WORD, value: {word}}}]}}]\n"
        )
    };
    let phase = || -> Result<String> {
        let rollout = ns.json(&["get", "rollout", "web"])?;
        Ok(rollout["status"]["phase"]
            .as_str()
            .unwrap_or_default()
            .to_owned())
    };
    // Ready pods of each ReplicaSet that has any.
    let sets = || -> Result<Vec<u64>> {
        let list = ns.json(&["get", "replicasets"])?;
        let counts = list["items"].as_array().into_iter().flatten();
        let mut counts: Vec<u64> = counts
            .filter_map(|set| set["status"]["readyReplicas"].as_u64())
            .filter(|ready| *ready > 0)
            .collect();
        counts.sort_unstable();
        Ok(counts)
    };
    ns.apply(&rollout("one"))?;
    wait_until("the first to be healthy", Duration::from_secs(90), || {
        Ok(phase()? == "Healthy" && sets()? == [2])
    })?;
    ns.apply(&rollout("two"))?;
    wait_until("the canary to have half", Duration::from_secs(60), || {
        Ok(phase()? == "Paused" && sets()?.len() == 2)
    })?;
    wait_until("the canary to have all", Duration::from_secs(90), || {
        Ok(phase()? == "Healthy" && sets()? == [2])
    })?;
    ns.delete()?;
    Ok("paused at half, then all".to_owned())
}
