//! The kubelet's command line.
//!
//! Owns: every flag upstream's kubelet knows; which of them is a field of the configuration file in disguise; the
//! flags that are ours alone. Upstream: `cmd/kubelet/app/options`, v1.36.

mod node_labels;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use component_base::flags::{FlagSet, Flags, Value as FlagValue};
use component_helpers::taints::parse_taint;
use k8s_openapi::api::core::v1::Taint;
use serde_json::{Map, Value, json};

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
}
use Kind::{B, D, E, H, I, L, M, S};

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

/// What only the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    pub config: Option<PathBuf>,
    pub config_dir: Option<PathBuf>,
    pub kubeconfig: Option<PathBuf>,
    pub bootstrap_kubeconfig: Option<PathBuf>,
    /// `--hostname-override`, else the machine's host name, in lower case.
    pub node_name: String,
    pub hostname_override: Option<String>,
    /// Zero, one or two (dual-stack) addresses.
    pub node_ips: Vec<std::net::IpAddr>,
    pub cert_dir: PathBuf,
    pub cloud_provider_external: bool,
    pub root_dir: PathBuf,
    pub node_labels: BTreeMap<String, String>,
    pub register_with_taints: Option<Vec<Taint>>,
    pub minimum_container_ttl: Duration,
    pub max_dead_containers_per_container: i64,
    /// DIFFERS: where the built-in runtime keeps images, containers and sandboxes.
    pub runtime_root_dir: PathBuf,
    /// DIFFERS: where it keeps sockets and pinned namespaces.
    pub runtime_state_dir: PathBuf,
    /// DIFFERS: the names a RuntimeClass may give the built-in runtime, as there is no containerd whose configuration holds them.
    pub runtime_handlers: Vec<String>,
    /// DIFFERS: who connects pods; upstream leaves it to the runtime's configuration.
    pub pod_network: network::Mode,
    /// DIFFERS: containerd's `config_path` of registries, as there is no containerd to hold it.
    pub registry_config_dir: PathBuf,
    /// Configuration and programs of the plugins that are asked for registry credentials; both or none.
    pub image_credential_provider: Option<CredentialProviderOptions>,
    pub feature_gates: BTreeMap<String, String>,
    /// Fields of the configuration file given as flags.
    pub config_overrides: Map<String, Value>,
}

/// `--image-credential-provider-…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialProviderOptions {
    /// A file, or a folder of files.
    pub config: PathBuf,
    /// Where the programs are.
    pub bin_dir: PathBuf,
}

/// Why a command line makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    #[error("invalid argument {value:?} for \"--{flag}\" flag: {reason}")]
    Invalid {
        flag: &'static str,
        value: String,
        reason: String,
    },
    #[error("unable to determine hostname: {0}")]
    Hostname(#[source] nix::Error),
}

/// Every flag, upstream's and ours.
pub fn flag_set() -> FlagSet {
    let about = "The kubelet is the primary \"node agent\" that runs on each node. It can register the node with the \
                 apiserver and runs the containers described in PodSpecs.";
    let mut set = FlagSet::new("kubelet", about);
    for (name, kind, field) in CONFIG_FLAGS {
        let unused = super::configuration::UNUSED_FIELDS.contains(field);
        if unused {
            let value = match kind {
                B(v) => FlagValue::Bool(*v),
                S(v) => FlagValue::String((*v).to_owned()),
                I(v) => FlagValue::Int(*v),
                D(ms) => FlagValue::Duration(Duration::from_millis(*ms)),
                L(v) => FlagValue::List(v.iter().map(|s| (*s).to_owned()).collect()),
                M => FlagValue::Map(BTreeMap::new()),
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
            E | H => set.string(name, "", help),
        }
    }
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
    set.string(
        "registry-config-dir",
        "/etc/containerd/certs.d",
        "Directory of registry hosts (certs.d/<host>/hosts.toml).",
    );
    set.unused(&[
        ("maximum-dead-containers", FlagValue::Int(-1)),
        ("reserved-memory", FlagValue::String(String::new())),
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
    set
}

fn text(flags: &Flags, name: &str) -> Option<PathBuf> {
    flags.optional(name).map(PathBuf::from)
}

/// Upstream needs both, too: it finds no program or no configuration otherwise.
fn credential_provider(flags: &Flags) -> Result<Option<CredentialProviderOptions>, OptionsError> {
    let (config, bin_dir) = (
        "image-credential-provider-config",
        "image-credential-provider-bin-dir",
    );
    let lacking = |flag, value: PathBuf, other| OptionsError::Invalid {
        flag,
        value: value.display().to_string(),
        reason: format!("--{other} must be given, too"),
    };
    match (text(flags, config), text(flags, bin_dir)) {
        (None, None) => Ok(None),
        (Some(path), None) => Err(lacking(config, path, bin_dir)),
        (None, Some(path)) => Err(lacking(bin_dir, path, config)),
        (Some(config), Some(bin_dir)) => Ok(Some(CredentialProviderOptions { config, bin_dir })),
    }
}

impl Options {
    /// # Errors
    /// One that names the flag and the value.
    pub fn from_flags(flags: &Flags) -> Result<Self, OptionsError> {
        let mut node_ips = vec![];
        if let Some(value) = flags.optional("node-ip") {
            for part in value.split(',') {
                let ip = part.trim().parse().map_err(|_| OptionsError::Invalid {
                    flag: "node-ip",
                    value: value.to_owned(),
                    reason: format!("{part:?} is not a valid IP address"),
                })?;
                node_ips.push(ip);
            }
        }
        if let Some(value) = flags
            .optional("cloud-provider")
            .filter(|v| *v != "external")
        {
            return Err(OptionsError::Invalid {
                flag: "cloud-provider",
                value: value.to_owned(),
                reason:
                    "unsupported value for 'cloud-provider' flag, must be empty or \"external\""
                        .to_owned(),
            });
        }
        let node_labels = flags.map("node-labels").clone();
        let invalid = |(value, reason)| OptionsError::Invalid {
            flag: "node-labels",
            value,
            reason,
        };
        node_labels::validate(&node_labels).map_err(invalid)?;
        let register_with_taints = if flags.changed("register-with-taints") {
            let parse = |text: &String| {
                parse_taint(text).map_err(|reason| OptionsError::Invalid {
                    flag: "register-with-taints",
                    value: text.clone(),
                    reason,
                })
            };
            Some(
                flags
                    .list("register-with-taints")
                    .iter()
                    .map(parse)
                    .collect::<Result<_, _>>()?,
            )
        } else {
            None
        };
        let hostname_override = flags
            .optional("hostname-override")
            .map(|h| h.trim().to_lowercase());
        let node_name = match &hostname_override {
            Some(name) => name.clone(),
            None => nix::unistd::gethostname()
                .map_err(OptionsError::Hostname)?
                .to_string_lossy()
                .trim()
                .to_lowercase(),
        };
        let path = |name: &str| PathBuf::from(flags.string(name));
        let pod_network = flags.string("pod-network");
        let pod_network = pod_network
            .parse()
            .map_err(|reason| OptionsError::Invalid {
                flag: "pod-network",
                value: pod_network.to_owned(),
                reason,
            })?;
        Ok(Self {
            config: text(flags, "config"),
            config_dir: text(flags, "config-dir"),
            kubeconfig: text(flags, "kubeconfig"),
            bootstrap_kubeconfig: text(flags, "bootstrap-kubeconfig"),
            node_name,
            hostname_override,
            node_ips,
            cert_dir: path("cert-dir"),
            cloud_provider_external: flags.string("cloud-provider") == "external",
            root_dir: path("root-dir"),
            node_labels,
            register_with_taints,
            minimum_container_ttl: flags.duration("minimum-container-ttl-duration"),
            max_dead_containers_per_container: flags.int("maximum-dead-containers-per-container"),
            runtime_root_dir: path("runtime-root-dir"),
            runtime_state_dir: path("runtime-state-dir"),
            runtime_handlers: flags.list("runtime-handlers").to_vec(),
            pod_network,
            registry_config_dir: path("registry-config-dir"),
            image_credential_provider: credential_provider(flags)?,
            feature_gates: flags.map("feature-gates").clone(),
            config_overrides: config_overrides(flags)?,
        })
    }
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

/// The configuration fields that were given as flags.
fn config_overrides(flags: &Flags) -> Result<Map<String, Value>, OptionsError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options, String> {
        let flags = flag_set()
            .parse(args.iter().map(ToString::to_string))
            .map_err(|e| e.to_string())?;
        Options::from_flags(&flags).map_err(|e| e.to_string())
    }

    #[test]
    fn the_line_of_kind() {
        let got = parse(&[
            "--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf",
            "--kubeconfig=/etc/kubernetes/kubelet.conf",
            "--config=/var/lib/kubelet/config.yaml",
            "--node-ip=172.18.0.2",
            "--node-labels=a=b,c=",
            "--provider-id=kind://docker/kind/kind-worker",
            "--runtime-cgroups=/system.slice/containerd.service",
            "--hostname-override=Kind-Worker",
            "--register-with-taints=k=v:NoSchedule",
            "--anonymous-auth=false",
        ])
        .unwrap();
        assert_eq!(got.node_name, "kind-worker");
        assert_eq!(got.node_labels.len(), 2);
        assert_eq!(got.register_with_taints.unwrap()[0].effect, "NoSchedule");
        assert_eq!(
            got.config_overrides["providerID"],
            "kind://docker/kind/kind-worker"
        );
        assert_eq!(
            got.config_overrides["authentication"]["anonymous"]["enabled"],
            false
        );
    }

    #[test]
    fn headers_of_the_url() {
        let got = parse(&["--manifest-url-header=a:hello, b:x:y,a: again"]).unwrap();
        let expect = json!({"a": ["hello", "again"], "b": ["x:y"]});
        assert_eq!(got.config_overrides["staticPodURLHeader"], expect);
        assert!(
            parse(&["--manifest-url-header=a"])
                .unwrap_err()
                .contains("malformed pair, expect string:string")
        );
    }

    #[test]
    fn errors_name_flag_and_value() {
        assert_eq!(
            parse(&["--node-ip=x"]).unwrap_err(),
            "invalid argument \"x\" for \"--node-ip\" flag: \"x\" is not a valid IP address"
        );
        let role = parse(&["--node-labels=node-role.kubernetes.io/worker=,a=b"]).unwrap_err();
        assert!(
            role.starts_with("invalid argument \"node-role.kubernetes.io/worker=\" for \"--node-labels\" flag: unknown"),
            "{role}"
        );
        for (flag, other) in [("config", "bin-dir"), ("bin-dir", "config")] {
            let flag = format!("--image-credential-provider-{flag}");
            let error = parse(&[&format!("{flag}=/x")]).unwrap_err();
            let expect = format!(
                "invalid argument \"/x\" for \"{flag}\" flag: --image-credential-provider-{other} must be given, too"
            );
            assert_eq!(error, expect);
        }
        assert!(
            parse(&["--cloud-provider=aws"])
                .unwrap_err()
                .contains("cloud-provider")
        );
        assert!(
            parse(&["--nope"])
                .unwrap_err()
                .contains("unknown flag: --nope")
        );
    }
}
