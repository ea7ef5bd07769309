//! The flags as the configuration that upstream shows at `/configz`.
//!
//! Upstream: KubeControllerManagerConfiguration of k8s.io/kube-controller-manager/config/v1alpha1, v1.37.

use component_base::flags::Flags;
use serde_json::{Map, Value, json};

/// The API group, and the name at `/configz`.
pub const GROUP: &str = "kubecontrollermanager.config.k8s.io";

/// Field and flag. Upstream's types have no names of their own for most JSON fields: they are Go's.
const FIELDS: &[(&str, &str)] = &[
    ("Generic.Port", "secure-port"),
    ("Generic.Address", "bind-address"),
    ("Generic.MinResyncPeriod", "min-resync-period"),
    ("Generic.ClientConnection.kubeconfig", "kubeconfig"),
    (
        "Generic.ClientConnection.contentType",
        "kube-api-content-type",
    ),
    ("Generic.ClientConnection.qps", "kube-api-qps"),
    ("Generic.ClientConnection.burst", "kube-api-burst"),
    (
        "Generic.ControllerStartInterval",
        "controller-start-interval",
    ),
    ("Generic.LeaderElection.leaderElect", "leader-elect"),
    (
        "Generic.LeaderElection.leaseDuration",
        "leader-elect-lease-duration",
    ),
    (
        "Generic.LeaderElection.renewDeadline",
        "leader-elect-renew-deadline",
    ),
    (
        "Generic.LeaderElection.retryPeriod",
        "leader-elect-retry-period",
    ),
    (
        "Generic.LeaderElection.resourceLock",
        "leader-elect-resource-lock",
    ),
    (
        "Generic.LeaderElection.resourceName",
        "leader-elect-resource-name",
    ),
    (
        "Generic.LeaderElection.resourceNamespace",
        "leader-elect-resource-namespace",
    ),
    ("Generic.Controllers", "controllers"),
    ("Generic.Debugging.EnableProfiling", "profiling"),
    (
        "Generic.Debugging.EnableContentionProfiling",
        "contention-profiling",
    ),
    ("Generic.LeaderMigrationEnabled", "enable-leader-migration"),
    ("KubeCloudShared.CloudProvider.Name", "cloud-provider"),
    (
        "KubeCloudShared.CloudProvider.CloudConfigFile",
        "cloud-config",
    ),
    (
        "KubeCloudShared.ExternalCloudVolumePlugin",
        "external-cloud-volume-plugin",
    ),
    (
        "KubeCloudShared.UseServiceAccountCredentials",
        "use-service-account-credentials",
    ),
    (
        "KubeCloudShared.RouteReconciliationPeriod",
        "route-reconciliation-period",
    ),
    ("KubeCloudShared.ClusterName", "cluster-name"),
    ("KubeCloudShared.ClusterCIDR", "cluster-cidr"),
    ("KubeCloudShared.AllocateNodeCIDRs", "allocate-node-cidrs"),
    ("KubeCloudShared.CIDRAllocatorType", "cidr-allocator-type"),
    (
        "KubeCloudShared.ConfigureCloudRoutes",
        "configure-cloud-routes",
    ),
    (
        "AttachDetachController.DisableAttachDetachReconcilerSync",
        "disable-attach-detach-reconcile-sync",
    ),
    (
        "AttachDetachController.ReconcilerSyncLoopPeriod",
        "attach-detach-reconcile-sync-period",
    ),
    (
        "AttachDetachController.disableForceDetachOnTimeout",
        "disable-force-detach-on-timeout",
    ),
    (
        "CSRSigningController.ClusterSigningCertFile",
        "cluster-signing-cert-file",
    ),
    (
        "CSRSigningController.ClusterSigningKeyFile",
        "cluster-signing-key-file",
    ),
    (
        "CSRSigningController.KubeletServingSignerConfiguration.CertFile",
        "cluster-signing-kubelet-serving-cert-file",
    ),
    (
        "CSRSigningController.KubeletServingSignerConfiguration.KeyFile",
        "cluster-signing-kubelet-serving-key-file",
    ),
    (
        "CSRSigningController.KubeletClientSignerConfiguration.CertFile",
        "cluster-signing-kubelet-client-cert-file",
    ),
    (
        "CSRSigningController.KubeletClientSignerConfiguration.KeyFile",
        "cluster-signing-kubelet-client-key-file",
    ),
    (
        "CSRSigningController.KubeAPIServerClientSignerConfiguration.CertFile",
        "cluster-signing-kube-apiserver-client-cert-file",
    ),
    (
        "CSRSigningController.KubeAPIServerClientSignerConfiguration.KeyFile",
        "cluster-signing-kube-apiserver-client-key-file",
    ),
    (
        "CSRSigningController.LegacyUnknownSignerConfiguration.CertFile",
        "cluster-signing-legacy-unknown-cert-file",
    ),
    (
        "CSRSigningController.LegacyUnknownSignerConfiguration.KeyFile",
        "cluster-signing-legacy-unknown-key-file",
    ),
    (
        "CSRSigningController.ClusterSigningDuration",
        "cluster-signing-duration",
    ),
    (
        "DaemonSetController.ConcurrentDaemonSetSyncs",
        "concurrent-daemonset-syncs",
    ),
    (
        "DeploymentController.ConcurrentDeploymentSyncs",
        "concurrent-deployment-syncs",
    ),
    (
        "DisruptionController.ConcurrentDisruptionSyncs",
        "concurrent-disruption-syncs",
    ),
    (
        "StatefulSetController.ConcurrentStatefulSetSyncs",
        "concurrent-statefulset-syncs",
    ),
    (
        "EndpointController.ConcurrentEndpointSyncs",
        "concurrent-endpoint-syncs",
    ),
    (
        "EndpointController.EndpointUpdatesBatchPeriod",
        "endpoint-updates-batch-period",
    ),
    (
        "EndpointSliceController.ConcurrentServiceEndpointSyncs",
        "concurrent-service-endpoint-syncs",
    ),
    (
        "EndpointSliceController.MaxEndpointsPerSlice",
        "max-endpoints-per-slice",
    ),
    (
        "EndpointSliceController.EndpointUpdatesBatchPeriod",
        "endpointslice-updates-batch-period",
    ),
    (
        "EndpointSliceMirroringController.MirroringConcurrentServiceEndpointSyncs",
        "mirroring-concurrent-service-endpoint-syncs",
    ),
    (
        "EndpointSliceMirroringController.MirroringMaxEndpointsPerSubset",
        "mirroring-max-endpoints-per-subset",
    ),
    (
        "EndpointSliceMirroringController.MirroringEndpointUpdatesBatchPeriod",
        "mirroring-endpointslice-updates-batch-period",
    ),
    (
        "EphemeralVolumeController.ConcurrentEphemeralVolumeSyncs",
        "concurrent-ephemeralvolume-syncs",
    ),
    (
        "GarbageCollectorController.EnableGarbageCollector",
        "enable-garbage-collector",
    ),
    (
        "GarbageCollectorController.ConcurrentGCSyncs",
        "concurrent-gc-syncs",
    ),
    (
        "HPAController.ConcurrentHorizontalPodAutoscalerSyncs",
        "concurrent-horizontal-pod-autoscaler-syncs",
    ),
    (
        "HPAController.HorizontalPodAutoscalerSyncPeriod",
        "horizontal-pod-autoscaler-sync-period",
    ),
    (
        "HPAController.HorizontalPodAutoscalerDownscaleStabilizationWindow",
        "horizontal-pod-autoscaler-downscale-stabilization",
    ),
    (
        "HPAController.HorizontalPodAutoscalerTolerance",
        "horizontal-pod-autoscaler-tolerance",
    ),
    (
        "HPAController.HorizontalPodAutoscalerCPUInitializationPeriod",
        "horizontal-pod-autoscaler-cpu-initialization-period",
    ),
    (
        "HPAController.HorizontalPodAutoscalerInitialReadinessDelay",
        "horizontal-pod-autoscaler-initial-readiness-delay",
    ),
    ("JobController.ConcurrentJobSyncs", "concurrent-job-syncs"),
    (
        "CronJobController.ConcurrentCronJobSyncs",
        "concurrent-cron-job-syncs",
    ),
    (
        "LegacySATokenCleaner.CleanUpPeriod",
        "legacy-service-account-token-clean-up-period",
    ),
    (
        "NamespaceController.NamespaceSyncPeriod",
        "namespace-sync-period",
    ),
    (
        "NamespaceController.ConcurrentNamespaceSyncs",
        "concurrent-namespace-syncs",
    ),
    ("NodeIPAMController.ServiceCIDR", "service-cluster-ip-range"),
    ("NodeIPAMController.NodeCIDRMaskSize", "node-cidr-mask-size"),
    (
        "NodeIPAMController.NodeCIDRMaskSizeIPv4",
        "node-cidr-mask-size-ipv4",
    ),
    (
        "NodeIPAMController.NodeCIDRMaskSizeIPv6",
        "node-cidr-mask-size-ipv6",
    ),
    (
        "NodeLifecycleController.NodeEvictionRate",
        "node-eviction-rate",
    ),
    (
        "NodeLifecycleController.SecondaryNodeEvictionRate",
        "secondary-node-eviction-rate",
    ),
    (
        "NodeLifecycleController.NodeStartupGracePeriod",
        "node-startup-grace-period",
    ),
    (
        "NodeLifecycleController.NodeMonitorGracePeriod",
        "node-monitor-grace-period",
    ),
    (
        "NodeLifecycleController.LargeClusterSizeThreshold",
        "large-cluster-size-threshold",
    ),
    (
        "NodeLifecycleController.UnhealthyZoneThreshold",
        "unhealthy-zone-threshold",
    ),
    (
        "NodeLifecycleController.NodeMonitorPeriod",
        "node-monitor-period",
    ),
    (
        "PersistentVolumeBinderController.PVClaimBinderSyncPeriod",
        "pvclaimbinder-sync-period",
    ),
    (
        "PersistentVolumeBinderController.VolumeConfiguration.EnableHostPathProvisioning",
        "enable-hostpath-provisioner",
    ),
    (
        "PersistentVolumeBinderController.VolumeConfiguration.EnableDynamicProvisioning",
        "enable-dynamic-provisioning",
    ),
    (
        "PersistentVolumeBinderController.VolumeConfiguration.FlexVolumePluginDir",
        "flex-volume-plugin-dir",
    ),
    (
        "PodGCController.TerminatedPodGCThreshold",
        "terminated-pod-gc-threshold",
    ),
    (
        "ReplicaSetController.ConcurrentRSSyncs",
        "concurrent-replicaset-syncs",
    ),
    (
        "ReplicationController.ConcurrentRCSyncs",
        "concurrent-rc-syncs",
    ),
    (
        "ResourceQuotaController.ResourceQuotaSyncPeriod",
        "resource-quota-sync-period",
    ),
    (
        "ResourceQuotaController.ConcurrentResourceQuotaSyncs",
        "concurrent-resource-quota-syncs",
    ),
    (
        "SAController.ServiceAccountKeyFile",
        "service-account-private-key-file",
    ),
    (
        "SAController.ConcurrentSATokenSyncs",
        "concurrent-serviceaccount-token-syncs",
    ),
    ("SAController.RootCAFile", "root-ca-file"),
    (
        "TTLAfterFinishedController.ConcurrentTTLSyncs",
        "concurrent-ttl-after-finished-syncs",
    ),
    (
        "ValidatingAdmissionPolicyStatusController.ConcurrentPolicySyncs",
        "concurrent-validating-admission-policy-status-syncs",
    ),
    (
        "DeviceTaintEvictionController.ConcurrentSyncs",
        "concurrent-device-taint-eviction-syncs",
    ),
    (
        "ResourceClaimController.ConcurrentSyncs",
        "concurrent-resourceclaim-syncs",
    ),
];

/// The configuration with the values of the flags.
pub fn configuration(flags: &Flags) -> Value {
    let mut configuration = Map::new();
    configuration.insert("apiVersion".to_owned(), json!(format!("{GROUP}/v1alpha1")));
    configuration.insert(
        "kind".to_owned(),
        json!("KubeControllerManagerConfiguration"),
    );
    for (path, flag) in FIELDS {
        let mut sections: Vec<&str> = path.split('.').collect();
        let Some(field) = sections.pop() else {
            continue;
        };
        let mut section = &mut configuration;
        for name in sections {
            section = section
                .entry(name)
                .or_insert_with(|| Value::Object(Map::new()))
                .as_object_mut()
                .expect("a section is no field");
        }
        section.insert(field.to_owned(), flags.value(flag).to_json());
    }
    Value::Object(configuration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_has_its_flag() {
        let args = ["--concurrent-job-syncs=9", "--node-monitor-grace-period=1m"];
        let flags = crate::options::flag_set()
            .parse(args.map(str::to_owned))
            .unwrap();
        let value = configuration(&flags);
        for (pointer, expect) in [
            ("/kind", json!("KubeControllerManagerConfiguration")),
            ("/JobController/ConcurrentJobSyncs", json!(9)),
            (
                "/NodeLifecycleController/NodeMonitorGracePeriod",
                json!("1m0s"),
            ),
            ("/Generic/LeaderElection/leaseDuration", json!("15s")),
            ("/Generic/Controllers", json!(["*"])),
        ] {
            assert_eq!(value.pointer(pointer), Some(&expect), "{pointer}");
        }
    }
}
