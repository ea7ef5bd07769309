//! The flags themselves: name, kind, default, and which field of the configuration file a flag is in disguise.
//!
//! Upstream: `cmd/kubelet/app/options`, v1.36.

use std::collections::BTreeMap;
use std::time::Duration;

use component_base::flags::{FlagSet, Flags, Value as FlagValue};
use serde_json::{Map, Value, json};

use super::OptionsError;

/// A flag's kind and default in the table below.
enum Kind {
    B(bool),
    S(&'static str),
    I(i64),
    D(u64),
    L(&'static [&'static str]),
    M,
    /// `signal<value` pairs, comma-separated.
    E,
    /// `name:value` pairs, comma-separated; a name may come more than once.
    H,
    /// `node:resource=quantity,…`, separated by `;`.
    R,
}
use Kind::{B, D, E, H, I, L, M, R, S};

/// Flags that are fields of the configuration file: name, kind, path of the field.
const CONFIG_FLAGS: &[(&str, Kind, &str)] = &[
    ("enable-server", B(true), "enableServer"),
    ("fail-swap-on", B(true), "failSwapOn"),
    ("pod-manifest-path", S(""), "staticPodPath"),
    ("sync-frequency", D(60_000), "syncFrequency"),
    ("file-check-frequency", D(20_000), "fileCheckFrequency"),
    ("http-check-frequency", D(20_000), "httpCheckFrequency"),
    ("manifest-url", S(""), "staticPodURL"),
    ("manifest-url-header", H, "staticPodURLHeader"),
    ("address", S("0.0.0.0"), "address"),
    ("port", I(10250), "port"),
    ("read-only-port", I(10255), "readOnlyPort"),
    ("fail-cgroupv1", B(true), "failCgroupV1"),
    (
        "container-runtime-endpoint",
        S("unix:///run/containerd/containerd.sock"),
        "containerRuntimeEndpoint",
    ),
    ("image-service-endpoint", S(""), "imageServiceEndpoint"),
    (
        "anonymous-auth",
        B(true),
        "authentication.anonymous.enabled",
    ),
    (
        "authentication-token-webhook",
        B(false),
        "authentication.webhook.enabled",
    ),
    (
        "authentication-token-webhook-cache-ttl",
        D(120_000),
        "authentication.webhook.cacheTTL",
    ),
    ("client-ca-file", S(""), "authentication.x509.clientCAFile"),
    ("authorization-mode", S("AlwaysAllow"), "authorization.mode"),
    (
        "authorization-webhook-cache-authorized-ttl",
        D(300_000),
        "authorization.webhook.cacheAuthorizedTTL",
    ),
    (
        "authorization-webhook-cache-unauthorized-ttl",
        D(30_000),
        "authorization.webhook.cacheUnauthorizedTTL",
    ),
    ("tls-cert-file", S(""), "tlsCertFile"),
    ("tls-private-key-file", S(""), "tlsPrivateKeyFile"),
    ("rotate-server-certificates", B(false), "serverTLSBootstrap"),
    ("tls-cipher-suites", L(&[]), "tlsCipherSuites"),
    ("tls-min-version", S(""), "tlsMinVersion"),
    ("rotate-certificates", B(false), "rotateCertificates"),
    ("registry-qps", I(5), "registryPullQPS"),
    ("registry-burst", I(10), "registryBurst"),
    ("event-qps", I(50), "eventRecordQPS"),
    ("event-burst", I(100), "eventBurst"),
    (
        "enable-debugging-handlers",
        B(true),
        "enableDebuggingHandlers",
    ),
    (
        "contention-profiling",
        B(false),
        "enableContentionProfiling",
    ),
    ("healthz-port", I(10248), "healthzPort"),
    ("healthz-bind-address", S("127.0.0.1"), "healthzBindAddress"),
    ("oom-score-adj", I(-999), "oomScoreAdj"),
    ("cluster-domain", S(""), "clusterDomain"),
    (
        "volume-plugin-dir",
        S("/usr/libexec/kubernetes/kubelet-plugins/volume/exec/"),
        "volumePluginDir",
    ),
    ("cluster-dns", L(&[]), "clusterDNS"),
    (
        "streaming-connection-idle-timeout",
        D(14_400_000),
        "streamingConnectionIdleTimeout",
    ),
    (
        "node-status-update-frequency",
        D(10_000),
        "nodeStatusUpdateFrequency",
    ),
    (
        "minimum-image-ttl-duration",
        D(120_000),
        "imageMinimumGCAge",
    ),
    (
        "image-gc-high-threshold",
        I(85),
        "imageGCHighThresholdPercent",
    ),
    (
        "image-gc-low-threshold",
        I(80),
        "imageGCLowThresholdPercent",
    ),
    ("volume-stats-agg-period", D(60_000), "volumeStatsAggPeriod"),
    ("kubelet-cgroups", S(""), "kubeletCgroups"),
    ("system-cgroups", S(""), "systemCgroups"),
    ("provider-id", S(""), "providerID"),
    ("cgroups-per-qos", B(true), "cgroupsPerQOS"),
    ("cgroup-driver", S("cgroupfs"), "cgroupDriver"),
    ("cgroup-root", S(""), "cgroupRoot"),
    ("cpu-manager-policy", S("none"), "cpuManagerPolicy"),
    ("cpu-manager-policy-options", M, "cpuManagerPolicyOptions"),
    (
        "cpu-manager-reconcile-period",
        D(10_000),
        "cpuManagerReconcilePeriod",
    ),
    ("qos-reserved", M, "qosReserved"),
    (
        "topology-manager-policy",
        S("none"),
        "topologyManagerPolicy",
    ),
    (
        "topology-manager-scope",
        S("container"),
        "topologyManagerScope",
    ),
    (
        "topology-manager-policy-options",
        M,
        "topologyManagerPolicyOptions",
    ),
    ("memory-manager-policy", S("None"), "memoryManagerPolicy"),
    ("reserved-memory", R, "reservedMemory"),
    (
        "runtime-request-timeout",
        D(120_000),
        "runtimeRequestTimeout",
    ),
    ("hairpin-mode", S("promiscuous-bridge"), "hairpinMode"),
    ("max-pods", I(110), "maxPods"),
    ("pod-cidr", S(""), "podCIDR"),
    ("pod-max-pids", I(-1), "podPidsLimit"),
    ("resolv-conf", S("/etc/resolv.conf"), "resolvConf"),
    ("runonce", B(false), "runOnce"),
    ("cpu-cfs-quota", B(true), "cpuCFSQuota"),
    ("cpu-cfs-quota-period", D(100), "cpuCFSQuotaPeriod"),
    (
        "enable-controller-attach-detach",
        B(true),
        "enableControllerAttachDetach",
    ),
    (
        "make-iptables-util-chains",
        B(true),
        "makeIPTablesUtilChains",
    ),
    ("container-log-max-size", S("10Mi"), "containerLogMaxSize"),
    ("container-log-max-files", I(5), "containerLogMaxFiles"),
    ("allowed-unsafe-sysctls", L(&[]), "allowedUnsafeSysctls"),
    ("node-status-max-images", I(50), "nodeStatusMaxImages"),
    (
        "kernel-memcg-notification",
        B(false),
        "kernelMemcgNotification",
    ),
    (
        "local-storage-capacity-isolation",
        B(true),
        "localStorageCapacityIsolation",
    ),
    ("max-open-files", I(1_000_000), "maxOpenFiles"),
    (
        "kube-api-content-type",
        S("application/vnd.kubernetes.protobuf"),
        "contentType",
    ),
    ("kube-api-qps", I(50), "kubeAPIQPS"),
    ("kube-api-burst", I(100), "kubeAPIBurst"),
    ("serialize-image-pulls", B(true), "serializeImagePulls"),
    ("eviction-hard", E, "evictionHard"),
    ("eviction-soft", E, "evictionSoft"),
    ("eviction-soft-grace-period", E, "evictionSoftGracePeriod"),
    ("eviction-minimum-reclaim", E, "evictionMinimumReclaim"),
    (
        "eviction-pressure-transition-period",
        D(300_000),
        "evictionPressureTransitionPeriod",
    ),
    (
        "eviction-max-pod-grace-period",
        I(0),
        "evictionMaxPodGracePeriod",
    ),
    ("pods-per-core", I(0), "podsPerCore"),
    ("protect-kernel-defaults", B(false), "protectKernelDefaults"),
    ("reserved-cpus", S(""), "reservedSystemCPUs"),
    ("system-reserved", M, "systemReserved"),
    ("kube-reserved", M, "kubeReserved"),
    (
        "enforce-node-allocatable",
        L(&["pods"]),
        "enforceNodeAllocatable",
    ),
    ("system-reserved-cgroup", S(""), "systemReservedCgroup"),
    ("kube-reserved-cgroup", S(""), "kubeReservedCgroup"),
    ("register-node", B(true), "registerNode"),
    ("seccomp-default", B(false), "seccompDefault"),
];

/// Every flag, upstream's and ours.
pub fn flag_set() -> FlagSet {
    let about = "The kubelet is the primary \"node agent\" that runs on each node. It can register the node with the \
                 apiserver and runs the containers described in PodSpecs.";
    let mut set = FlagSet::new("kubelet", about);
    config_fields(&mut set);
    files(&mut set);
    node(&mut set);
    runtime(&mut set);
    unused(&mut set);
    set
}

fn config_fields(set: &mut FlagSet) {
    for (name, kind, field) in CONFIG_FLAGS {
        let unused = crate::configuration::UNUSED_FIELDS.contains(field);
        if unused {
            let value = match kind {
                B(v) => FlagValue::Bool(*v),
                S(v) => FlagValue::String((*v).to_owned()),
                I(v) => FlagValue::Int(*v),
                D(ms) => FlagValue::Duration(Duration::from_millis(*ms)),
                L(v) => FlagValue::List(v.iter().map(|s| (*s).to_owned()).collect()),
                M => FlagValue::Map(BTreeMap::new()),
                R => FlagValue::List(vec![]),
                E | H => FlagValue::String(String::new()),
            };
            set.unused(&[(name, value)]);
            continue;
        }
        let help =
            "As the field of the same meaning in the configuration file, which it overrides.";
        match kind {
            B(v) => set.bool(name, *v, help),
            S(v) => set.string(name, v, help),
            I(v) => set.int(name, *v, help),
            D(ms) => set.duration(name, Duration::from_millis(*ms), help),
            L(v) => set.list(name, v, help),
            M => set.map(name, help),
            R => set.list(name, &[], help),
            E | H => set.string(name, "", help),
        }
    }
}

fn files(set: &mut FlagSet) {
    set.string(
        "config",
        "",
        "The kubelet loads its initial configuration from this file.",
    );
    set.string(
        "config-dir",
        "",
        "Directory of drop-in configuration files (*.conf), merged in the order of their names.",
    );
    set.string("kubeconfig", "", "Path to a kubeconfig file, specifying how to connect to the API server. Without it the kubelet runs standalone.");
    set.string("bootstrap-kubeconfig", "", "Path to a kubeconfig file that is used to get a client certificate if the file of --kubeconfig does not exist.");
}

fn node(set: &mut FlagSet) {
    set.string(
        "hostname-override",
        "",
        "If non-empty, will use this string as identification instead of the actual hostname.",
    );
    set.string(
        "node-ip",
        "",
        "IP address (or comma-separated dual-stack IP addresses) of the node.",
    );
    set.string(
        "cert-dir",
        "/var/lib/kubelet/pki",
        "The directory where the TLS certs are located.",
    );
    set.string(
        "cloud-provider",
        "",
        "Set to \"external\" for running with an external cloud provider.",
    );
    set.string(
        "root-dir",
        "/var/lib/kubelet",
        "Directory path for managing kubelet files (volume mounts, etc).",
    );
    set.map(
        "node-labels",
        "Labels to add when registering the node in the cluster.",
    );
    set.list(
        "register-with-taints",
        &[],
        "Register the node with the given list of taints (\"<key>=<value>:<effect>\").",
    );
    set.duration(
        "minimum-container-ttl-duration",
        Duration::ZERO,
        "Minimum age for a finished container before it is garbage collected.",
    );
    set.int(
        "maximum-dead-containers-per-container",
        1,
        "Maximum number of old instances to retain per container.",
    );
    set.string(
        "image-credential-provider-config",
        "",
        "Path to a credential provider plugin config file (or directory).",
    );
    set.string(
        "image-credential-provider-bin-dir",
        "",
        "The path to the directory where credential provider plugin binaries are located.",
    );
}

fn runtime(set: &mut FlagSet) {
    set.string(
        "runtime-root-dir",
        "/var/lib/gantry",
        "Directory of the built-in container runtime: images, containers, sandboxes.",
    );
    set.string(
        "runtime-state-dir",
        "/run/gantry",
        "Directory of the built-in container runtime's volatile state: sockets, pinned namespaces.",
    );
    set.list(
        "runtime-handlers",
        &["runc", "youki"],
        "Handlers a RuntimeClass may name, all of them the built-in runtime.",
    );
    set.string(
        "pod-network",
        "auto",
        "Who connects pods: \"builtin\", \"cni\" (none before a configuration is in /etc/cni/net.d), or \"auto\" (CNI where a configuration is, else built-in).",
    );
    set.list(
        "pod-network-cidr",
        &[],
        "Ranges of all pods of the cluster, as kubeadm init and the controller manager (--cluster-cidr) have them. The built-in network sets no routes to nodes with other podCIDRs. Empty: any that overlap nothing and are private where this node's are.",
    );
    set.string(
        "registry-config-dir",
        "/etc/containerd/certs.d",
        "Directory of registry hosts (certs.d/<host>/hosts.toml).",
    );
}

/// Known, and without effect here.
fn unused(set: &mut FlagSet) {
    set.unused(&[
        ("maximum-dead-containers", FlagValue::Int(-1)),
        ("lock-file", FlagValue::String(String::new())),
        ("exit-on-lock-contention", FlagValue::Bool(false)),
        (
            "experimental-mounter-path",
            FlagValue::String(String::new()),
        ),
        (
            "experimental-allocatable-ignore-eviction",
            FlagValue::Bool(false),
        ),
        ("runtime-cgroups", FlagValue::String(String::new())),
        ("windows-service", FlagValue::Bool(false)),
        (
            "windows-priorityclass",
            FlagValue::String("NORMAL_PRIORITY_CLASS".into()),
        ),
        (
            "pod-infra-container-image",
            FlagValue::String(String::new()),
        ),
    ]);
}

fn eviction_pairs(flag: &'static str, text: &str) -> Result<Value, OptionsError> {
    let mut map = Map::new();
    for pair in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let Some((signal, value)) = pair.split_once(['<', '=']) else {
            let reason = format!("{pair:?} is no signal<value or signal=value");
            return Err(OptionsError::Invalid {
                flag,
                value: text.to_owned(),
                reason,
            });
        };
        map.insert(signal.trim().to_owned(), json!(value.trim()));
    }
    Ok(Value::Object(map))
}

/// Upstream: `ColonSeparatedMultimapStringString`. The pair is not told in full: a header may be secret.
fn header_pairs(flag: &'static str, text: &str) -> Result<Value, OptionsError> {
    let mut map: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for pair in text.split(',').filter(|p| !p.is_empty()) {
        let Some((name, value)) = pair.split_once(':') else {
            return Err(OptionsError::Invalid {
                flag,
                value: pair.to_owned(),
                reason: "malformed pair, expect string:string".to_owned(),
            });
        };
        map.entry(name.trim()).or_default().push(value.trim());
    }
    Ok(json!(map))
}

/// Upstream: `ReservedMemoryVar`. The items are what is between commas, of all the times the flag is given: one that names a node begins
/// a reservation.
fn memory_reservations(flag: &'static str, items: &[String]) -> Result<Value, OptionsError> {
    let mut all: Vec<(i32, Map<String, Value>)> = Vec::new();
    let items = items.iter().flat_map(|item| item.split(';'));
    for item in items.map(str::trim).filter(|item| !item.is_empty()) {
        let bad = |reason: String| OptionsError::Invalid {
            flag,
            value: item.to_owned(),
            reason,
        };
        let limit = match item.split_once(':') {
            None => item,
            Some((node, limit)) => {
                let number = node.trim().parse().map_err(|_| {
                    bad(format!(
                        "failed to convert the NUMA node ID, expected integer, got {node}"
                    ))
                })?;
                all.push((number, Map::new()));
                limit
            }
        };
        let (Some((_, limits)), Some((name, quantity))) = (all.last_mut(), limit.split_once('='))
        else {
            return Err(bad(
                "the reserved memory has incorrect format, expected numaNodeID:type=quantity[,type=quantity...]"
                    .to_owned(),
            ));
        };
        limits.insert(name.trim().to_owned(), json!(quantity.trim()));
    }
    let all = all.into_iter();
    Ok(all
        .map(|(node, limits)| json!({"numaNode": node, "limits": limits}))
        .collect())
}

/// The configuration fields that were given as flags.
pub(super) fn config_overrides(flags: &Flags) -> Result<Map<String, Value>, OptionsError> {
    let mut out = Map::new();
    for (name, kind, field) in CONFIG_FLAGS.iter().filter(|(name, ..)| flags.changed(name)) {
        let value = match kind {
            B(_) => json!(flags.bool(name)),
            S(_) => json!(flags.string(name)),
            I(_) => json!(flags.int(name)),
            D(_) => json!(component_base::duration::format(flags.duration(name))),
            L(_) => json!(flags.list(name)),
            M => json!(flags.map(name)),
            E => eviction_pairs(name, flags.string(name))?,
            H => header_pairs(name, flags.string(name))?,
            R => memory_reservations(name, flags.list(name))?,
        };
        let mut slot = &mut out;
        let mut parts = field.split('.').peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                slot.insert(part.to_owned(), value.clone());
                break;
            }
            let next = slot
                .entry(part.to_owned())
                .or_insert_with(|| Value::Object(Map::new()));
            match next.as_object_mut() {
                Some(object) => slot = object,
                None => break,
            }
        }
    }
    Ok(out)
}
