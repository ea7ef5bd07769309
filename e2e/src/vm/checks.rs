//! What is looked at in the machine.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::disk::{NODE, TESTS};
use super::machine::Machine;
use crate::kind::version;
use crate::step::Step;

/// Of one command; everything takes ten times as long as on a real processor.
const PATIENCE: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_secs(120);
const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.37.0-2";

/// What systemd, the kubelet and the kernel said.
pub fn journal(machine: &mut Machine) -> String {
    machine
        .run(
            "journalctl --no-pager -o short-precise | tail -n 3000",
            SHORT,
        )
        .unwrap_or_else(|error| format!("{error:#}"))
}

/// The runtime's tests; what they print.
pub fn runtime(machine: &mut Machine, filter: &str) -> Result<String> {
    ensure_v2(machine)?;
    let script = format!(
        "cd /root && TMPDIR=/var/tmp GANTRY_RT_SHIM=/usr/bin/gantry-shim GANTRY_RT_NO_BUILD=1 timeout 3000 {TESTS} --test-threads=2 {filter}"
    );
    machine.run(&script, Duration::from_secs(3_100))
}

fn ensure_v2(machine: &mut Machine) -> Result<()> {
    let kind = machine.run("stat -f -c %T /sys/fs/cgroup", SHORT)?;
    ensure!(
        kind.trim() == "cgroup2fs",
        "the machine's cgroups are {kind:?}"
    );
    Ok(())
}

fn eventually(mut ask: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask() {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error),
            // The rhythm of the looks: each costs an emulated machine a second.
            Err(_) => std::thread::sleep(Duration::from_secs(2)),
        }
    }
}

fn kubectl(machine: &mut Machine, words: &str) -> Result<String> {
    machine.run(
        &format!("kubectl --kubeconfig=/etc/kubernetes/admin.conf {words}"),
        PATIENCE,
    )
}

fn apply(machine: &mut Machine, manifest: &str) -> Result<()> {
    kubectl(machine, &format!("apply -f - <<'END'\n{manifest}\nEND")).map(drop)
}

/// `kubeadm init`, pods of every class, `kubeadm reset`.
pub fn kubeadm(machine: &mut Machine, step: &Step) -> Result<()> {
    ensure_v2(machine)?;
    let config = format!(
        "apiVersion: kubeadm.k8s.io/v1beta4\nkind: InitConfiguration\ntimeouts: {{controlPlaneComponentHealthCheck: 10m0s, kubeletHealthCheck: 10m0s, kubernetesAPICall: 5m0s}}\n---\n\
         apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nkubernetesVersion: {}\nnetworking: {{podSubnet: 10.244.0.0/16}}\n---\n\
         apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nmemoryReservationPolicy: TieredReservation\nmemoryThrottlingFactor: 0.9\n",
        version()
    );
    // kubeadm gives a socket that starts its service two seconds, which an emulated processor does not keep.
    step.message("the container runtime");
    eventually(|| machine.run("crictl version 2>&1", SHORT).map(drop))?;
    step.message("kubeadm init");
    machine.run(
        &format!("cat > /etc/kubeadm.yaml <<'END'\n{config}END"),
        SHORT,
    )?;
    let said = machine.run(
        "kubeadm init --config=/etc/kubeadm.yaml 2>&1",
        Duration::from_secs(1_500),
    )?;
    step.note(&said);
    kubectl(machine, "apply -f /kind/manifests/default-cni.yaml")?;
    kubectl(
        machine,
        "taint nodes --all node-role.kubernetes.io/control-plane-",
    )?;
    step.message("the node gets Ready");
    kubectl(
        machine,
        "wait --for=condition=Ready nodes --all --timeout=500s",
    )?;
    step.message("CoreDNS");
    kubectl(
        machine,
        "-n kube-system wait --for=condition=Ready pods --all --timeout=500s",
    )?;
    for (name, check) in CHECKS {
        step.message(name);
        check(machine).with_context(|| (*name).to_owned())?;
        step.note(&format!("ok: {name}"));
    }
    step.message("kubeadm reset");
    kubectl(machine, "delete pods --all --grace-period=1")?;
    machine.run("kubeadm reset --force 2>&1", PATIENCE)?;
    let left = machine.run(
        "pgrep -l gantry-shim; crictl ps -a -q; crictl pods -q; grep -E ' /var/lib/kubelet/pods| /run/gantry/(containers|sandboxes)/' /proc/self/mounts; \
         find /sys/fs/cgroup -type d -name 'pod*'; true",
        SHORT,
    )?;
    ensure!(left.trim().is_empty(), "left after the reset:\n{left}");
    Ok(())
}

/// A check's name, and the check.
type Check = (&'static str, fn(&mut Machine) -> Result<()>);

const CHECKS: &[Check] = &[
    ("cgroups of a guaranteed pod, and its resize", guaranteed),
    ("cgroups of a burstable pod", burstable),
    ("a pod over its memory is ended and says so", out_of_memory),
    ("a device that was not given is refused", devices),
    ("a pod with user ids of its own", user_namespace),
    ("a Service by its name", service),
    ("figures of the node", figures),
    ("a kubelet that restarts restarts nothing", restarts),
];

fn pod(name: &str, spec: &str, container: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  nodeName: {NODE}\n{spec}  \
         containers:\n  - name: c\n    image: {BUSYBOX}\n{container}"
    )
}

fn start(machine: &mut Machine, name: &str, spec: &str, container: &str) -> Result<()> {
    apply(machine, &pod(name, spec, container))?;
    kubectl(
        machine,
        &format!("wait --for=condition=Ready pod/{name} --timeout=400s"),
    )
    .map(drop)
}

/// The values of files of the pod's cgroup (`level` empty) or its container's, as the container's own process has it.
fn cgroup(machine: &mut Machine, pod: &str, level: &str, files: &[&str]) -> Result<Vec<String>> {
    let uid = kubectl(
        machine,
        &format!("get pod {pod} -o jsonpath='{{.metadata.uid}}'"),
    )?;
    let names = files.join(" ");
    let script = format!(
        "dir=$(find /sys/fs/cgroup -type d -path '*{uid}*{level}' | awk '{{print length, $0}}' | sort -n | sed -n '1s/^[0-9]* //p'); \
         [ -n \"$dir\" ] || {{ find /sys/fs/cgroup -type d | grep -i pod; exit 1; }}; for f in {names}; do cat \"$dir/$f\"; done",
        uid = uid.trim()
    );
    let text = machine.run(&script, SHORT)?;
    Ok(text
        .lines()
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect())
}

fn container_id(machine: &mut Machine, pod: &str) -> Result<String> {
    let id = kubectl(
        machine,
        &format!("get pod {pod} -o jsonpath='{{.status.containerStatuses[0].containerID}}'"),
    )?;
    let id = id.trim().rsplit('/').next().unwrap_or_default().to_owned();
    ensure!(!id.is_empty(), "{pod} has no container");
    Ok(format!("{id}*"))
}

/// 500m of a CPU are 512 shares: 59 by the curve of runtimes, 20 by the pod's line. Source: `pkg/kubelet/cm/cgroup_manager_linux.go`
/// (`CpuSharesToCpuWeight`), `github.com/opencontainers/cgroups` (`ConvertCPUSharesToCgroupV2Value`).
fn guaranteed(machine: &mut Machine) -> Result<()> {
    let resources = "    command: [sleep, '36000']\n    resizePolicy: [{resourceName: cpu, restartPolicy: NotRequired}]\n    \
                     resources: {requests: {cpu: 500m, memory: 64Mi}, limits: {cpu: 500m, memory: 64Mi}}\n";
    start(machine, "guaranteed", "", resources)?;
    let id = container_id(machine, "guaranteed")?;
    let files = [
        "cpu.weight",
        "cpu.max",
        "memory.max",
        "memory.min",
        "memory.oom.group",
    ];
    let has = cgroup(machine, "guaranteed", &id, &files)?;
    ensure!(
        has == ["59", "50000 100000", "67108864", "67108864", "1"],
        "{files:?} of the container: {has:?}"
    );
    let files = ["cpu.weight", "cpu.max", "memory.max"];
    let has = cgroup(machine, "guaranteed", "", &files)?;
    ensure!(
        has == ["20", "50000 100000", "67108864"],
        "{files:?} of the pod: {has:?}"
    );
    kubectl(
        machine,
        "patch pod guaranteed --subresource resize --patch '{\"spec\": {\"containers\": [{\"name\": \"c\", \"resources\": {\"requests\": {\"cpu\": \"1\"}, \"limits\": {\"cpu\": \"1\"}}}]}}'",
    )?;
    eventually(|| {
        let has = cgroup(machine, "guaranteed", &id, &["cpu.weight", "cpu.max"])?;
        ensure!(has == ["100", "100000 100000"], "after the resize: {has:?}");
        let said = kubectl(
            machine,
            "get pod guaranteed -o jsonpath='{.status.containerStatuses[0].resources.limits.cpu}'",
        )?;
        ensure!(said.trim() == "1", "the status says {said:?} of the CPU");
        Ok(())
    })
}

/// Request and limit of 32 and 64 MiB: nine tenths of what is between are given without delay, in whole pages (KEP-2570).
fn burstable(machine: &mut Machine) -> Result<()> {
    let resources = "    command: [sleep, '36000']\n    resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {memory: 64Mi}}\n";
    start(machine, "burstable", "", resources)?;
    let id = container_id(machine, "burstable")?;
    let files = [
        "cpu.max",
        "memory.max",
        "memory.high",
        "memory.low",
        "memory.min",
    ];
    let has = cgroup(machine, "burstable", &id, &files)?;
    let wanted = ["max 100000", "67108864", "63750144", "33554432", "0"];
    ensure!(has == wanted, "{files:?} of the container: {has:?}");
    let files = ["cpu.max", "memory.max", "memory.high", "memory.low"];
    let has = cgroup(machine, "burstable", "", &files)?;
    let wanted = ["max 100000", "67108864", "max", "33554432"];
    ensure!(has == wanted, "{files:?} of the pod: {has:?}");
    let said = kubectl(machine, "exec burstable -- cat /sys/fs/cgroup/memory.max")?;
    ensure!(said.trim() == "67108864", "the container sees {said:?}");
    Ok(())
}

fn out_of_memory(machine: &mut Machine) -> Result<()> {
    let container =
        "    command: [sh, -c, 'tail /dev/zero']\n    resources: {limits: {memory: 24Mi}}\n";
    apply(
        machine,
        &pod("greedy", "  restartPolicy: Never\n", container),
    )?;
    let reason = "{.status.containerStatuses[0].state.terminated.reason}";
    eventually(|| {
        let said = kubectl(machine, &format!("get pod greedy -o jsonpath='{reason}'"))?;
        ensure!(said.trim() == "OOMKilled", "its reason is {said:?}");
        Ok(())
    })
}

fn devices(machine: &mut Machine) -> Result<()> {
    let said = kubectl(
        machine,
        "exec burstable -- sh -c 'mknod /tmp/kmsg c 1 11 && head -c 1 /tmp/kmsg 2>&1; mknod /tmp/null c 1 3 && echo here > /tmp/null && echo written'",
    )?;
    ensure!(
        said.contains("Operation not permitted") && said.contains("written"),
        "kmsg and null by new names: {said:?}"
    );
    Ok(())
}

/// The kernel maps ids of a tmpfs since 6.3; before that the pod is told so.
fn user_namespace(machine: &mut Machine) -> Result<()> {
    let version = machine.run("uname -r", SHORT)?;
    let mut numbers = version
        .split('.')
        .map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let (spec, container) = ("  hostUsers: false\n", "    command: [sleep, '36000']\n");
    if version < (6, 3) {
        apply(machine, &pod("mapped", spec, container))?;
        let message = "{.status.containerStatuses[0].state.waiting.message}";
        return eventually(|| {
            let said = kubectl(machine, &format!("get pod mapped -o jsonpath='{message}'"))?;
            ensure!(
                said.contains("MOUNT_ATTR_IDMAP"),
                "on {version:?} it is told {said:?}"
            );
            Ok(())
        });
    }
    start(machine, "mapped", spec, container)?;
    let map = kubectl(machine, "exec mapped -- cat /proc/self/uid_map")?;
    let fields: Vec<&str> = map.split_whitespace().collect();
    ensure!(
        fields.first() == Some(&"0") && fields.get(1) != Some(&"0"),
        "its map is {map:?}"
    );
    Ok(())
}

fn service(machine: &mut Machine) -> Result<()> {
    let container = "    command: [sh, -c, 'mkdir /tmp/www && echo served > /tmp/www/index.html && httpd -f -p 8080 -h /tmp/www']\n    \
                     readinessProbe: {httpGet: {port: 8080}, timeoutSeconds: 20}\n";
    start(machine, "web", "", container)?;
    kubectl(machine, "expose pod web --port 80 --target-port 8080")?;
    eventually(|| {
        let said = kubectl(
            machine,
            "exec burstable -- wget -q -T 30 -O - http://web.default.svc.cluster.local/",
        )?;
        ensure!(said.trim() == "served", "the Service said {said:?}");
        Ok(())
    })
}

fn figures(machine: &mut Machine) -> Result<()> {
    eventually(|| {
        let page = kubectl(
            machine,
            &format!("get --raw /api/v1/nodes/{NODE}/proxy/metrics/cadvisor"),
        )?;
        for name in [
            "container_cpu_usage_seconds_total",
            "container_memory_working_set_bytes",
            "container_oom_events_total",
            "container_pressure_cpu_waiting_seconds_total",
        ] {
            let of_pod = |line: &&str| {
                line.starts_with(name)
                    && line.contains("pod=\"burstable\"")
                    && line.contains("container=\"c\"")
            };
            ensure!(
                page.lines().any(|line| of_pod(&line)),
                "{name} says nothing of the pod"
            );
        }
        let summary = kubectl(
            machine,
            &format!("get --raw /api/v1/nodes/{NODE}/proxy/stats/summary"),
        )?;
        let summary: serde_json::Value = serde_json::from_str(summary.trim())?;
        let pods = summary["pods"].as_array().context("the summary has pods")?;
        let one = pods
            .iter()
            .find(|pod| pod["podRef"]["name"] == "burstable")
            .context("the summary has the pod")?;
        ensure!(
            one["memory"]["workingSetBytes"]
                .as_u64()
                .is_some_and(|bytes| bytes > 0),
            "{one}"
        );
        ensure!(
            summary["node"]["memory"]["availableBytes"]
                .as_u64()
                .is_some_and(|bytes| bytes > 0),
            "{}",
            summary["node"]
        );
        Ok(())
    })
}

fn restarts(machine: &mut Machine) -> Result<()> {
    let counts = "get pods -A -o jsonpath='{range .items[*]}{.metadata.name}={.status.containerStatuses[*].restartCount} {end}'";
    let before = kubectl(machine, counts)?;
    for _ in 0..3 {
        machine.run("systemctl restart kubelet && for i in $(seq 200); do curl -sf http://127.0.0.1:10248/healthz && break; sleep 0.5; done", PATIENCE)?;
    }
    kubectl(
        machine,
        "wait --for=condition=Ready nodes --all --timeout=300s",
    )?;
    let after = kubectl(machine, counts)?;
    ensure!(
        before == after,
        "restarts before: {before}\nand after: {after}"
    );
    Ok(())
}
