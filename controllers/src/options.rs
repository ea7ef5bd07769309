//! The command line of kube-controller-manager: every flag upstream has, with its default.
//!
//! Upstream: cmd/kube-controller-manager/app/options, v1.36.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use component_base::client::ClientConfig;
use component_base::config::{FieldError, aggregate};
use component_base::flags::Flags;
use component_base::options::{OptionsError, client_config};

mod checks;
mod declare;
#[cfg(test)]
mod tests;

use checks::{ATTACH_DETACH_PERIOD, concurrent_syncs, node_ipam, periods, signing, up_to_1000};
pub use declare::flag_set;

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
    /// `--attach-detach-reconcile-sync-period`, …
    pub attach_detach: AttachDetachOptions,
    /// `--horizontal-pod-autoscaler-*`.
    pub autoscaler: AutoscalerOptions,
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

/// Settings of the persistentvolume-attach-detach controller.
#[derive(Clone, Debug)]
pub struct AttachDetachOptions {
    /// `--attach-detach-reconcile-sync-period`; `None` with `--disable-attach-detach-reconcile-sync`.
    pub sync_period: Option<Duration>,
    /// `--disable-force-detach-on-timeout`.
    pub disable_force_detach: bool,
}

/// Settings of the horizontal-pod-autoscaler controller.
#[derive(Clone, Debug)]
pub struct AutoscalerOptions {
    /// `--horizontal-pod-autoscaler-sync-period`.
    pub sync_period: Duration,
    /// `--horizontal-pod-autoscaler-downscale-stabilization`.
    pub downscale_stabilization: Duration,
    /// `--horizontal-pod-autoscaler-tolerance`.
    pub tolerance: f64,
    /// `--horizontal-pod-autoscaler-cpu-initialization-period`.
    pub cpu_initialization_period: Duration,
    /// `--horizontal-pod-autoscaler-initial-readiness-delay`.
    pub initial_readiness_delay: Duration,
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

impl NodeLifecycleOptions {
    fn of(flags: &Flags) -> Self {
        let large = flags.int("large-cluster-size-threshold");
        Self {
            monitor_period: flags.duration("node-monitor-period"),
            monitor_grace_period: flags.duration("node-monitor-grace-period"),
            startup_grace_period: flags.duration("node-startup-grace-period"),
            eviction_rate: flags.float("node-eviction-rate"),
            secondary_eviction_rate: flags.float("secondary-node-eviction-rate"),
            large_cluster_size_threshold: usize::try_from(large).unwrap_or(0),
            unhealthy_zone_threshold: flags.float("unhealthy-zone-threshold"),
        }
    }
}

impl VolumeOptions {
    fn of(flags: &Flags) -> Self {
        Self {
            claim_binder_sync_period: flags.duration("pvclaimbinder-sync-period"),
            enable_dynamic_provisioning: flags.bool("enable-dynamic-provisioning"),
            enable_hostpath_provisioner: flags.bool("enable-hostpath-provisioner"),
        }
    }
}

impl AttachDetachOptions {
    fn of(flags: &Flags) -> Self {
        let period = flags.duration(ATTACH_DETACH_PERIOD);
        let disabled = flags.bool("disable-attach-detach-reconcile-sync");
        Self {
            sync_period: Some(period).filter(|_| !disabled),
            disable_force_detach: flags.bool("disable-force-detach-on-timeout"),
        }
    }
}

impl AutoscalerOptions {
    fn of(flags: &Flags) -> Self {
        let duration = |name: &str| flags.duration(&format!("horizontal-pod-autoscaler-{name}"));
        Self {
            sync_period: duration("sync-period"),
            downscale_stabilization: duration("downscale-stabilization"),
            tolerance: flags.float("horizontal-pod-autoscaler-tolerance"),
            cpu_initialization_period: duration("cpu-initialization-period"),
            initial_readiness_delay: duration("initial-readiness-delay"),
        }
    }
}

impl Options {
    /// Reads and checks the flags; every wrong value is reported at once. Which controllers there are is known to who has them:
    /// `validate` says what is wrong with `--controllers`.
    ///
    /// # Errors
    /// See [`InvalidOptions`].
    pub fn from_flags(
        flags: &Flags,
        validate: impl FnOnce(&[String]) -> Vec<FieldError>,
    ) -> Result<Self, InvalidOptions> {
        let mut errors = Vec::new();
        let node_ipam = node_ipam(flags, &mut errors);
        let signing = signing(flags, &mut errors);
        let concurrent_syncs = concurrent_syncs(flags, &mut errors);
        let max_endpoints_per_slice = up_to_1000(flags, "max-endpoints-per-slice", &mut errors);
        let mirroring_max_endpoints_per_subset =
            up_to_1000(flags, "mirroring-max-endpoints-per-subset", &mut errors);
        periods(flags, &mut errors);
        errors.extend(validate(flags.list("controllers")));
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
            node_lifecycle: NodeLifecycleOptions::of(flags),
            terminated_pod_gc_threshold: usize::try_from(flags.int("terminated-pod-gc-threshold"))
                .unwrap_or(0),
            max_endpoints_per_slice,
            endpointslice_updates_batch_period: flags
                .duration("endpointslice-updates-batch-period"),
            mirroring_max_endpoints_per_subset,
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
            volumes: VolumeOptions::of(flags),
            attach_detach: AttachDetachOptions::of(flags),
            autoscaler: AutoscalerOptions::of(flags),
            concurrent_syncs,
        })
    }

    /// Workers of a controller by the middle word of its `--concurrent-*-syncs` flag.
    pub fn workers(&self, name: &str) -> usize {
        self.concurrent_syncs.get(name).copied().unwrap_or(1)
    }
}
