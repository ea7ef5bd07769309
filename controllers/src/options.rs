//! The command line of kube-controller-manager: every flag upstream has, with its default.
//!
//! Upstream: cmd/kube-controller-manager/app/options, v1.36.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use component_base::client::ClientConfig;
use component_base::config::{FieldError, aggregate};
use component_base::flags::{FlagSet, Flags, Value};
use component_base::options::{
    LeaderElectionOptions, OptionsError, ServingOptions, add_client_flags, client_config,
};

/// The component's name: user agent, lease, certificate pair.
pub const COMPONENT: &str = "kube-controller-manager";
/// `--secure-port`.
const PORT: u16 = 10257;

/// The settings controllers read.
#[derive(Clone, Debug)]
pub struct Options {
    /// `--controllers`.
    pub controllers: Vec<String>,
    /// How to reach the API server.
    pub client: ClientConfig,
    /// `--use-service-account-credentials`.
    pub use_service_account_credentials: bool,
    /// `--controller-start-interval`.
    pub controller_start_interval: Duration,
    /// `--controller-shutdown-timeout`.
    pub controller_shutdown_timeout: Duration,
    /// `--feature-gates`.
    pub feature_gates: BTreeMap<String, String>,
    /// `--root-ca-file`.
    pub root_ca_file: Option<PathBuf>,
    /// `--cluster-signing-*`.
    pub signing: SigningOptions,
    /// `--allocate-node-cidrs`, `--cluster-cidr`, …
    pub node_ipam: NodeIpamOptions,
    /// `--node-monitor-*`, `--*-eviction-rate`, …
    pub node_lifecycle: NodeLifecycleOptions,
    /// `--terminated-pod-gc-threshold`.
    pub terminated_pod_gc_threshold: usize,
    /// `--max-endpoints-per-slice`.
    pub max_endpoints_per_slice: usize,
    /// `--endpointslice-updates-batch-period`.
    pub endpointslice_updates_batch_period: Duration,
    /// `--mirroring-max-endpoints-per-subset`.
    pub mirroring_max_endpoints_per_subset: usize,
    /// `--mirroring-endpointslice-updates-batch-period`.
    pub mirroring_endpointslice_updates_batch_period: Duration,
    /// `--legacy-service-account-token-clean-up-period`.
    pub legacy_token_clean_up_period: Duration,
    /// `--service-account-private-key-file`.
    pub service_account_private_key_file: Option<PathBuf>,
    /// `--namespace-sync-period`.
    pub namespace_sync_period: Duration,
    /// `--resource-quota-sync-period`.
    pub resource_quota_sync_period: Duration,
    /// `--enable-garbage-collector`.
    pub enable_garbage_collector: bool,
    /// `--pvclaimbinder-sync-period`, `--enable-dynamic-provisioning`, …
    pub volumes: VolumeOptions,
    /// Workers of each controller that has a `--concurrent-*-syncs` flag, by the flag's middle word (`deployment`, `gc`).
    pub concurrent_syncs: BTreeMap<&'static str, usize>,
}

/// Settings of the persistentvolume-binder controller.
#[derive(Clone, Debug)]
pub struct VolumeOptions {
    /// `--pvclaimbinder-sync-period`.
    pub claim_binder_sync_period: Duration,
    /// `--enable-dynamic-provisioning`.
    pub enable_dynamic_provisioning: bool,
    /// `--enable-hostpath-provisioner`.
    pub enable_hostpath_provisioner: bool,
}

/// One certificate authority on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaFiles {
    /// The certificate.
    pub cert_file: PathBuf,
    /// Its key.
    pub key_file: PathBuf,
}

/// Which CA signs for which signer; `None` means that nobody does.
#[derive(Clone, Debug)]
pub struct SigningOptions {
    /// `--cluster-signing-duration`.
    pub duration: Duration,
    /// `kubernetes.io/kubelet-serving`.
    pub kubelet_serving: Option<CaFiles>,
    /// `kubernetes.io/kube-apiserver-client-kubelet`.
    pub kubelet_client: Option<CaFiles>,
    /// `kubernetes.io/kube-apiserver-client`.
    pub kube_apiserver_client: Option<CaFiles>,
    /// `kubernetes.io/legacy-unknown`.
    pub legacy_unknown: Option<CaFiles>,
}

/// Settings of the node-ipam controller.
#[derive(Clone, Debug)]
pub struct NodeIpamOptions {
    /// `--allocate-node-cidrs`.
    pub allocate_node_cidrs: bool,
    /// `--cidr-allocator-type`.
    pub cidr_allocator_type: String,
    /// `--cluster-cidr`, in order.
    pub cluster_cidrs: Vec<ipnet::IpNet>,
    /// `--service-cluster-ip-range`, in order.
    pub service_cidrs: Vec<ipnet::IpNet>,
    /// `--node-cidr-mask-size-ipv4`, or `--node-cidr-mask-size` in a single-stack IPv4 cluster.
    pub mask_size_ipv4: u8,
    /// `--node-cidr-mask-size-ipv6`, or `--node-cidr-mask-size` in a single-stack IPv6 cluster.
    pub mask_size_ipv6: u8,
}

/// Settings of the node-lifecycle controller.
#[derive(Clone, Debug)]
pub struct NodeLifecycleOptions {
    /// `--node-monitor-period`.
    pub monitor_period: Duration,
    /// `--node-monitor-grace-period`.
    pub monitor_grace_period: Duration,
    /// `--node-startup-grace-period`.
    pub startup_grace_period: Duration,
    /// `--node-eviction-rate`, nodes a second.
    pub eviction_rate: f64,
    /// `--secondary-node-eviction-rate`, nodes a second.
    pub secondary_eviction_rate: f64,
    /// `--large-cluster-size-threshold`.
    pub large_cluster_size_threshold: usize,
    /// `--unhealthy-zone-threshold`.
    pub unhealthy_zone_threshold: f64,
}

/// `--concurrent-*-syncs` with the defaults.
const CONCURRENT: &[(&str, &str, i64)] = &[
    ("deployment", "concurrent-deployment-syncs", 5),
    ("disruption", "concurrent-disruption-syncs", 1),
    (
        "device-taint-eviction",
        "concurrent-device-taint-eviction-syncs",
        50,
    ),
    ("resourceclaim", "concurrent-resourceclaim-syncs", 50),
    ("statefulset", "concurrent-statefulset-syncs", 5),
    ("daemonset", "concurrent-daemonset-syncs", 2),
    ("endpoint", "concurrent-endpoint-syncs", 5),
    ("service-endpoint", "concurrent-service-endpoint-syncs", 5),
    (
        "mirroring-service-endpoint",
        "mirroring-concurrent-service-endpoint-syncs",
        5,
    ),
    ("ephemeralvolume", "concurrent-ephemeralvolume-syncs", 5),
    ("gc", "concurrent-gc-syncs", 20),
    (
        "horizontal-pod-autoscaler",
        "concurrent-horizontal-pod-autoscaler-syncs",
        5,
    ),
    ("job", "concurrent-job-syncs", 5),
    ("cron-job", "concurrent-cron-job-syncs", 5),
    ("namespace", "concurrent-namespace-syncs", 10),
    ("replicaset", "concurrent-replicaset-syncs", 5),
    ("rc", "concurrent-rc-syncs", 5),
    ("resource-quota", "concurrent-resource-quota-syncs", 5),
    (
        "serviceaccount-token",
        "concurrent-serviceaccount-token-syncs",
        5,
    ),
    (
        "ttl-after-finished",
        "concurrent-ttl-after-finished-syncs",
        5,
    ),
    (
        "validating-admission-policy-status",
        "concurrent-validating-admission-policy-status-syncs",
        5,
    ),
];

/// Why a command line was refused.
#[derive(Debug, thiserror::Error)]
pub enum InvalidOptions {
    /// Values that are wrong, all of them.
    #[error("{}", aggregate(.0))]
    Fields(Vec<FieldError>),
    /// Serving or leader election.
    #[error(transparent)]
    Shared(#[from] OptionsError),
}

/// Every flag.
pub fn flag_set() -> FlagSet {
    let mut flags = FlagSet::new(
        COMPONENT,
        "The Kubernetes controller manager is a daemon that embeds the core control loops shipped with Kubernetes.",
    );
    ServingOptions::add_flags(&mut flags, PORT);
    LeaderElectionOptions::add_flags(&mut flags, COMPONENT);
    add_client_flags(&mut flags, 20.0, 30);
    flags.list("controllers", &["*"], "A list of controllers to enable. '*' enables all on-by-default controllers, 'foo' enables the controller named 'foo', '-foo' disables the controller named 'foo'.");
    flags.bool(
        "use-service-account-credentials",
        false,
        "If true, use individual service account credentials for each controller.",
    );
    flags.duration(
        "controller-start-interval",
        Duration::ZERO,
        "Interval between starting controller managers.",
    );
    flags.duration(
        "controller-shutdown-timeout",
        seconds(10),
        "Time to wait for the controllers to shut down before terminating the executable",
    );
    // Upstream's kube-controller-manager shows it and acts on it nowhere.
    flags.unused(&[("cluster-name", Value::String("kubernetes".into()))]);
    flags.string("root-ca-file", "", "If set, this root certificate authority will be included in service account's token secret. This must be a valid PEM-encoded CA bundle.");
    for (name, default) in [
        ("cluster-signing-cert-file", ""),
        ("cluster-signing-key-file", ""),
    ] {
        flags.string(name, default, "PEM-encoded X509 CA used to issue cluster-scoped certificates. If specified, no more specific --cluster-signing-* flag may be specified.");
    }
    flags.string(
        "cluster-signing-kubelet-serving-cert-file",
        "",
        "CA certificate for the kubernetes.io/kubelet-serving signer.",
    );
    flags.string(
        "cluster-signing-kubelet-serving-key-file",
        "",
        "CA key for the kubernetes.io/kubelet-serving signer.",
    );
    flags.string(
        "cluster-signing-kubelet-client-cert-file",
        "",
        "CA certificate for the kubernetes.io/kube-apiserver-client-kubelet signer.",
    );
    flags.string(
        "cluster-signing-kubelet-client-key-file",
        "",
        "CA key for the kubernetes.io/kube-apiserver-client-kubelet signer.",
    );
    flags.string(
        "cluster-signing-kube-apiserver-client-cert-file",
        "",
        "CA certificate for the kubernetes.io/kube-apiserver-client signer.",
    );
    flags.string(
        "cluster-signing-kube-apiserver-client-key-file",
        "",
        "CA key for the kubernetes.io/kube-apiserver-client signer.",
    );
    flags.string(
        "cluster-signing-legacy-unknown-cert-file",
        "",
        "CA certificate for the kubernetes.io/legacy-unknown signer.",
    );
    flags.string(
        "cluster-signing-legacy-unknown-key-file",
        "",
        "CA key for the kubernetes.io/legacy-unknown signer.",
    );
    flags.duration("cluster-signing-duration", seconds(365 * 24 * 3600), "The max length of duration signed certificates will be given. Individual CSRs may request shorter certs by setting spec.expirationSeconds.");
    flags.bool("allocate-node-cidrs", false, "Should CIDRs for Pods be allocated and set on the cloud provider. Requires --cluster-cidr.");
    flags.string(
        "cidr-allocator-type",
        "RangeAllocator",
        "Type of CIDR allocator to use.",
    );
    flags.string(
        "cluster-cidr",
        "",
        "CIDR Range for Pods in cluster. Only used when --allocate-node-cidrs=true.",
    );
    flags.string(
        "service-cluster-ip-range",
        "",
        "CIDR Range for Services in cluster. Only used when --allocate-node-cidrs=true.",
    );
    flags.int(
        "node-cidr-mask-size",
        0,
        "Mask size for node cidr in cluster. Default is 24 for IPv4 and 64 for IPv6.",
    );
    flags.int(
        "node-cidr-mask-size-ipv4",
        0,
        "Mask size for IPv4 node cidr in dual-stack cluster. Default is 24.",
    );
    flags.int(
        "node-cidr-mask-size-ipv6",
        0,
        "Mask size for IPv6 node cidr in dual-stack cluster. Default is 64.",
    );
    flags.duration(
        "node-monitor-period",
        seconds(5),
        "The period for syncing NodeStatus in NodeLifecycleController.",
    );
    flags.duration("node-monitor-grace-period", seconds(50), "Amount of time which we allow running Node to be unresponsive before marking it unhealthy.");
    flags.duration("node-startup-grace-period", seconds(60), "Amount of time which we allow starting Node to be unresponsive before marking it unhealthy.");
    flags.float("node-eviction-rate", 0.1, "Number of nodes per second on which pods are deleted in case of node failure when a zone is healthy.");
    flags.float("secondary-node-eviction-rate", 0.01, "Number of nodes per second on which pods are deleted in case of node failure when a zone is unhealthy.");
    flags.int("large-cluster-size-threshold", 50, "Number of nodes from which node-lifecycle-controller treats the cluster as large for the eviction logic purposes.");
    flags.float("unhealthy-zone-threshold", 0.55, "Fraction of Nodes in a zone which needs to be not Ready (minimum 3) for zone to be treated as unhealthy.");
    flags.int("terminated-pod-gc-threshold", 12500, "Number of terminated pods that can exist before the terminated pod garbage collector starts deleting terminated pods. If <= 0, the terminated pod garbage collector is disabled.");
    flags.int(
        "max-endpoints-per-slice",
        100,
        "The maximum number of endpoints that will be added to an EndpointSlice.",
    );
    flags.duration(
        "endpointslice-updates-batch-period",
        Duration::ZERO,
        "The length of endpoint slice updates batching period.",
    );
    flags.int("mirroring-max-endpoints-per-subset", 1000, "The maximum number of endpoints that will be added to an EndpointSlice by the EndpointSliceMirroring controller.");
    flags.duration("mirroring-endpointslice-updates-batch-period", Duration::ZERO, "The length of EndpointSlice updates batching period for EndpointSliceMirroring controller.");
    flags.duration("legacy-service-account-token-clean-up-period", seconds(365 * 24 * 3600), "The period of time since the last usage of an legacy service account token before it can be deleted.");
    flags.string("service-account-private-key-file", "", "Enables legacy secret-based tokens when set. Filename containing a PEM-encoded private RSA or ECDSA key used to sign service account tokens.");
    flags.duration(
        "namespace-sync-period",
        seconds(300),
        "The period for syncing namespace life-cycle updates",
    );
    flags.duration(
        "resource-quota-sync-period",
        seconds(300),
        "The period for syncing quota usage status in the system",
    );
    flags.bool("enable-garbage-collector", true, "Enables the generic garbage collector. MUST be synced with the corresponding flag of the kube-apiserver.");
    flags.duration(
        "pvclaimbinder-sync-period",
        seconds(15),
        "The period for syncing persistent volumes and persistent volume claims",
    );
    flags.bool(
        "enable-dynamic-provisioning",
        true,
        "Enable dynamic provisioning for environments that support it.",
    );
    flags.bool("enable-hostpath-provisioner", false, "Enable HostPath PV provisioning when running without a cloud provider. This allows testing and development of provisioning features. HostPath provisioning is not supported in any way, won't work in a multi-node cluster, and should not be used for anything other than testing or development.");
    for (_, name, default) in CONCURRENT {
        flags.int(
            name,
            *default,
            "The number of objects that are allowed to sync concurrently.",
        );
    }
    unused(&mut flags);
    flags
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Flags of controllers that are not built yet, and of what has no meaning here.
fn unused(flags: &mut FlagSet) {
    let text = |text: &str| Value::String(text.to_string());
    let time = |count| Value::Duration(seconds(count));
    flags.unused(&[
        ("profiling", Value::Bool(true)),
        ("contention-profiling", Value::Bool(false)),
        ("enable-leader-migration", Value::Bool(false)),
        ("leader-migration-config", text("")),
        ("cloud-config", text("")),
        ("cloud-provider", text("")),
        ("configure-cloud-routes", Value::Bool(true)),
        ("external-cloud-volume-plugin", text("")),
        ("min-resync-period", time(12 * 3600)),
        ("route-reconciliation-period", time(10)),
        ("attach-detach-reconcile-sync-period", time(60)),
        ("disable-attach-detach-reconcile-sync", Value::Bool(false)),
        ("disable-force-detach-on-timeout", Value::Bool(false)),
        ("endpoint-updates-batch-period", time(0)),
        (
            "horizontal-pod-autoscaler-cpu-initialization-period",
            time(300),
        ),
        (
            "horizontal-pod-autoscaler-downscale-stabilization",
            time(300),
        ),
        (
            "horizontal-pod-autoscaler-initial-readiness-delay",
            time(30),
        ),
        ("horizontal-pod-autoscaler-sync-period", time(15)),
        ("horizontal-pod-autoscaler-tolerance", Value::Float(0.1)),
        (
            "flex-volume-plugin-dir",
            text("/usr/libexec/kubernetes/kubelet-plugins/volume/exec/"),
        ),
        ("pv-recycler-increment-timeout-nfs", Value::Int(30)),
        ("pv-recycler-minimum-timeout-hostpath", Value::Int(60)),
        ("pv-recycler-minimum-timeout-nfs", Value::Int(300)),
        ("pv-recycler-pod-template-filepath-hostpath", text("")),
        ("pv-recycler-pod-template-filepath-nfs", text("")),
        ("pv-recycler-timeout-increment-hostpath", Value::Int(30)),
    ]);
}

impl Options {
    /// Reads and checks the flags; every wrong value is reported at once.
    ///
    /// # Errors
    /// See [`InvalidOptions`].
    pub fn from_flags(flags: &Flags) -> Result<Self, InvalidOptions> {
        let mut errors = Vec::new();
        let node_ipam = node_ipam(flags, &mut errors);
        let signing = signing(flags, &mut errors);
        let node_lifecycle = NodeLifecycleOptions {
            monitor_period: flags.duration("node-monitor-period"),
            monitor_grace_period: flags.duration("node-monitor-grace-period"),
            startup_grace_period: flags.duration("node-startup-grace-period"),
            eviction_rate: flags.float("node-eviction-rate"),
            secondary_eviction_rate: flags.float("secondary-node-eviction-rate"),
            large_cluster_size_threshold: usize::try_from(
                flags.int("large-cluster-size-threshold"),
            )
            .unwrap_or(0),
            unhealthy_zone_threshold: flags.float("unhealthy-zone-threshold"),
        };
        let mut concurrent_syncs = BTreeMap::new();
        for (key, flag, _) in CONCURRENT {
            match usize::try_from(flags.int(flag)) {
                Ok(count) if count > 0 => drop(concurrent_syncs.insert(*key, count)),
                _ => errors.push(FieldError::invalid(
                    *flag,
                    flags.int(flag),
                    "must be greater than zero",
                )),
            }
        }
        let slice = flags.int("max-endpoints-per-slice");
        if !(1..=1000).contains(&slice) {
            errors.push(FieldError::invalid(
                "max-endpoints-per-slice",
                slice,
                "must be between 1 and 1000, inclusive",
            ));
        }
        let mirrored = flags.int("mirroring-max-endpoints-per-subset");
        if !(1..=1000).contains(&mirrored) {
            errors.push(FieldError::invalid(
                "mirroring-max-endpoints-per-subset",
                mirrored,
                "must be between 1 and 1000, inclusive",
            ));
        }
        if flags.duration("node-monitor-period").is_zero() {
            errors.push(FieldError::invalid(
                "node-monitor-period",
                "0s",
                "must be greater than zero",
            ));
        }
        for flag in [
            "namespace-sync-period",
            "resource-quota-sync-period",
            "legacy-service-account-token-clean-up-period",
            "pvclaimbinder-sync-period",
        ] {
            if flags.duration(flag).is_zero() {
                errors.push(FieldError::invalid(flag, "0s", "must be greater than zero"));
            }
        }
        errors.extend(crate::registry::validate(flags.list("controllers")));
        if !errors.is_empty() {
            return Err(InvalidOptions::Fields(errors));
        }
        Ok(Self {
            controllers: flags.list("controllers").to_vec(),
            client: client_config(flags, COMPONENT),
            use_service_account_credentials: flags.bool("use-service-account-credentials"),
            controller_start_interval: flags.duration("controller-start-interval"),
            controller_shutdown_timeout: flags.duration("controller-shutdown-timeout"),
            feature_gates: flags.map("feature-gates").clone(),
            root_ca_file: flags.optional("root-ca-file").map(PathBuf::from),
            signing,
            node_ipam,
            node_lifecycle,
            terminated_pod_gc_threshold: usize::try_from(flags.int("terminated-pod-gc-threshold"))
                .unwrap_or(0),
            max_endpoints_per_slice: usize::try_from(slice).unwrap_or(100),
            endpointslice_updates_batch_period: flags
                .duration("endpointslice-updates-batch-period"),
            mirroring_max_endpoints_per_subset: usize::try_from(mirrored).unwrap_or(1000),
            mirroring_endpointslice_updates_batch_period: flags
                .duration("mirroring-endpointslice-updates-batch-period"),
            legacy_token_clean_up_period: flags
                .duration("legacy-service-account-token-clean-up-period"),
            service_account_private_key_file: flags
                .optional("service-account-private-key-file")
                .map(PathBuf::from),
            namespace_sync_period: flags.duration("namespace-sync-period"),
            resource_quota_sync_period: flags.duration("resource-quota-sync-period"),
            enable_garbage_collector: flags.bool("enable-garbage-collector"),
            volumes: VolumeOptions {
                claim_binder_sync_period: flags.duration("pvclaimbinder-sync-period"),
                enable_dynamic_provisioning: flags.bool("enable-dynamic-provisioning"),
                enable_hostpath_provisioner: flags.bool("enable-hostpath-provisioner"),
            },
            concurrent_syncs,
        })
    }

    /// Workers of a controller by the middle word of its `--concurrent-*-syncs` flag.
    pub fn workers(&self, name: &str) -> usize {
        self.concurrent_syncs.get(name).copied().unwrap_or(1)
    }
}

fn cidrs(flags: &Flags, flag: &'static str, errors: &mut Vec<FieldError>) -> Vec<ipnet::IpNet> {
    let text = flags.string(flag);
    let mut found: Vec<ipnet::IpNet> = Vec::new();
    for part in text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        match part.parse::<ipnet::IpNet>() {
            Ok(net) => found.push(net.trunc()),
            Err(_) => errors.push(FieldError::invalid(
                flag,
                part,
                format!("invalid CIDR address: {part}"),
            )),
        }
    }
    let families = (
        found.iter().filter(|n| n.addr().is_ipv4()).count(),
        found.iter().filter(|n| n.addr().is_ipv6()).count(),
    );
    if found.len() > 2 || families.0 > 1 || families.1 > 1 {
        errors.push(FieldError::invalid(
            flag,
            text,
            "expected at most one IPv4 and one IPv6 CIDR",
        ));
    }
    found
}

fn node_ipam(flags: &Flags, errors: &mut Vec<FieldError>) -> NodeIpamOptions {
    let cluster_cidrs = cidrs(flags, "cluster-cidr", errors);
    let service_cidrs = cidrs(flags, "service-cluster-ip-range", errors);
    let allocate = flags.bool("allocate-node-cidrs");
    let kind = flags.string("cidr-allocator-type");
    if kind != "RangeAllocator" {
        errors.push(FieldError::not_supported(
            "cidr-allocator-type",
            kind,
            &["RangeAllocator"],
        ));
    }
    if allocate && cluster_cidrs.is_empty() && flags.string("cluster-cidr").is_empty() {
        errors.push(FieldError::required(
            "cluster-cidr",
            "required with --allocate-node-cidrs",
        ));
    }
    let dual = cluster_cidrs.len() > 1;
    let mut mask = |name: &'static str, ipv6: bool, default: u8| {
        let common = flags.int("node-cidr-mask-size");
        let single_of_family = !dual && cluster_cidrs.iter().any(|n| n.addr().is_ipv6() == ipv6);
        let own = flags.int(name);
        let chosen = if own != 0 {
            own
        } else if common != 0 && single_of_family {
            common
        } else {
            i64::from(default)
        };
        let Some(net) = cluster_cidrs.iter().find(|n| n.addr().is_ipv6() == ipv6) else {
            return default;
        };
        match u8::try_from(chosen) {
            Ok(size) if size >= net.prefix_len() && size <= net.max_prefix_len() => size,
            _ => {
                let detail = format!(
                    "mask size must be between {} and {}",
                    net.prefix_len(),
                    net.max_prefix_len()
                );
                errors.push(FieldError::invalid(name, chosen, detail));
                default
            }
        }
    };
    let (mask_size_ipv4, mask_size_ipv6) = (
        mask("node-cidr-mask-size-ipv4", false, 24),
        mask("node-cidr-mask-size-ipv6", true, 64),
    );
    if dual && flags.int("node-cidr-mask-size") != 0 {
        errors.push(FieldError::forbidden(
            "node-cidr-mask-size",
            "usage of --node-cidr-mask-size is not allowed with dual-stack clusters",
        ));
    }
    for (net, size) in cluster_cidrs.iter().map(|n| {
        (
            n,
            if n.addr().is_ipv6() {
                mask_size_ipv6
            } else {
                mask_size_ipv4
            },
        )
    }) {
        // Upstream's limit on the bitmap.
        if size.saturating_sub(net.prefix_len()) > 16 {
            let detail = "New CIDR set failed; the node CIDR size is too big";
            errors.push(FieldError::invalid("cluster-cidr", net.to_string(), detail));
        }
    }
    NodeIpamOptions {
        allocate_node_cidrs: allocate,
        cidr_allocator_type: kind.to_string(),
        cluster_cidrs,
        service_cidrs,
        mask_size_ipv4,
        mask_size_ipv6,
    }
}

fn signing(flags: &Flags, errors: &mut Vec<FieldError>) -> SigningOptions {
    let mut pair =
        |cert: &'static str, key: &'static str| match (flags.optional(cert), flags.optional(key)) {
            (Some(cert), Some(key)) => Some(CaFiles {
                cert_file: cert.into(),
                key_file: key.into(),
            }),
            (None, None) => None,
            (Some(_), None) => {
                errors.push(FieldError::required(key, format!("required with --{cert}")));
                None
            }
            (None, Some(_)) => {
                errors.push(FieldError::required(cert, format!("required with --{key}")));
                None
            }
        };
    let common = pair("cluster-signing-cert-file", "cluster-signing-key-file");
    let kubelet_serving = pair(
        "cluster-signing-kubelet-serving-cert-file",
        "cluster-signing-kubelet-serving-key-file",
    );
    let kubelet_client = pair(
        "cluster-signing-kubelet-client-cert-file",
        "cluster-signing-kubelet-client-key-file",
    );
    let api_client = pair(
        "cluster-signing-kube-apiserver-client-cert-file",
        "cluster-signing-kube-apiserver-client-key-file",
    );
    let legacy = pair(
        "cluster-signing-legacy-unknown-cert-file",
        "cluster-signing-legacy-unknown-key-file",
    );
    let specific = [&kubelet_serving, &kubelet_client, &api_client, &legacy]
        .into_iter()
        .any(Option::is_some);
    if common.is_some() && specific {
        let detail =
            "cannot be specified together with a more specific --cluster-signing-*-cert-file";
        errors.push(FieldError::forbidden("cluster-signing-cert-file", detail));
    }
    SigningOptions {
        duration: flags.duration("cluster-signing-duration"),
        kubelet_serving: kubelet_serving.or(common.clone()),
        kubelet_client: kubelet_client.or(common.clone()),
        kube_apiserver_client: api_client.or(common.clone()),
        legacy_unknown: legacy.or(common),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(args: &[&str]) -> Result<Options, String> {
        let flags = flag_set()
            .parse(args.iter().map(ToString::to_string))
            .map_err(|e| e.to_string())?;
        Options::from_flags(&flags).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_and_dual_stack() {
        let options = check(&[]).unwrap();
        assert_eq!(options.node_lifecycle.monitor_grace_period, seconds(50));
        assert_eq!(options.workers("gc"), 20);
        assert_eq!(options.workers("disruption"), 1);
        let args = [
            "--allocate-node-cidrs",
            "--cluster-cidr=10.0.0.0/16,fd00::/56",
            "--node-cidr-mask-size-ipv4=26",
        ];
        let options = check(&args).unwrap();
        assert_eq!(
            (
                options.node_ipam.mask_size_ipv4,
                options.node_ipam.mask_size_ipv6
            ),
            (26, 64)
        );
        let options = check(&["--cluster-cidr=10.0.0.0/16", "--node-cidr-mask-size=20"]).unwrap();
        assert_eq!(options.node_ipam.mask_size_ipv4, 20);
    }

    #[test]
    fn no_option_does_nothing_in_silence() {
        use component_base::config::audit;
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let sources = audit::sources(&root, &["options.rs"]);
        // Looked at by this file alone: how many workers, and which allocator there is.
        let here = ["concurrent_syncs", "cidr_allocator_type"];
        for name in [
            "Options",
            "CaFiles",
            "SigningOptions",
            "NodeIpamOptions",
            "NodeLifecycleOptions",
            "VolumeOptions",
        ] {
            let fields = audit::fields(include_str!("options.rs"), name);
            assert!(!fields.is_empty(), "{name}");
            for field in fields.iter().filter(|field| !here.contains(field)) {
                assert!(audit::is_read(&sources, field), "{name}.{field}");
            }
        }
    }

    #[test]
    fn what_upstream_took_away_is_unknown() {
        assert_eq!(
            check(&["--concurrent-service-syncs=2"]).unwrap_err(),
            "unknown flag: --concurrent-service-syncs"
        );
        for name in ["service-lb-controller", "service", "-node-route-controller"] {
            let error = check(&[&format!("--controllers=*,{name}")]).unwrap_err();
            assert!(
                error.contains("not in the list of known controllers"),
                "{error}"
            );
        }
    }

    #[test]
    fn errors_come_all_at_once() {
        let error = check(&[
            "--cluster-cidr=nonsense",
            "--max-endpoints-per-slice=0",
            "--controllers=*,nobody",
            "--cluster-signing-cert-file=a",
        ])
        .unwrap_err();
        for part in [
            "nonsense",
            "max-endpoints-per-slice",
            "nobody",
            "cluster-signing-key-file",
        ] {
            assert!(error.contains(part), "{part} in {error}");
        }
    }
}
