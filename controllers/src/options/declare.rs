//! Declares every flag with its default.

use std::time::Duration;

use component_base::flags::{FlagSet, Value};
use component_base::options::{LeaderElectionOptions, ServingOptions, add_client_flags};

use super::{COMPONENT, CONCURRENT, PORT};

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
    signing(&mut flags);
    nodes(&mut flags);
    flags.int("terminated-pod-gc-threshold", 12500, "Number of terminated pods that can exist before the terminated pod garbage collector starts deleting terminated pods. If <= 0, the terminated pod garbage collector is disabled.");
    endpoints(&mut flags);
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
    volumes(&mut flags);
    autoscaler(&mut flags);
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

fn signing(flags: &mut FlagSet) {
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
}

fn nodes(flags: &mut FlagSet) {
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
}

fn volumes(flags: &mut FlagSet) {
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
    flags.duration("attach-detach-reconcile-sync-period", seconds(60), "The reconciler sync wait time between volume attach detach. This duration must be larger than one second, and increasing this value from the default may allow for volumes to be mismatched with pods.");
    flags.bool("disable-attach-detach-reconcile-sync", false, "Disable volume attach detach reconciler sync. Disabling this may cause volumes to be mismatched with pods. Use wisely.");
    flags.bool("disable-force-detach-on-timeout", false, "Prevent force detaching volumes based on maximum unmount time and node status. If this flag is set to true, the non-graceful node shutdown feature must be used to recover from node failure. See https://k8s.io/docs/storage-disable-force-detach-on-timeout/.");
}

fn autoscaler(flags: &mut FlagSet) {
    flags.duration(
        "horizontal-pod-autoscaler-sync-period",
        seconds(15),
        "The period for syncing the number of pods in horizontal pod autoscaler.",
    );
    flags.duration("horizontal-pod-autoscaler-downscale-stabilization", seconds(300), "The period for which autoscaler will look backwards and not scale down below any recommendation it made during that period.");
    flags.float("horizontal-pod-autoscaler-tolerance", 0.1, "The minimum change (from 1.0) in the desired-to-actual metrics ratio for the horizontal pod autoscaler to consider scaling.");
    flags.duration(
        "horizontal-pod-autoscaler-cpu-initialization-period",
        seconds(300),
        "The period after pod start when CPU samples might be skipped.",
    );
    flags.duration("horizontal-pod-autoscaler-initial-readiness-delay", seconds(30), "The period after pod start during which readiness changes will be treated as initial readiness.");
}

fn endpoints(flags: &mut FlagSet) {
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
}

pub(super) fn seconds(count: u64) -> Duration {
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
        ("endpoint-updates-batch-period", time(0)),
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
