//! The kubelet's own metrics, under upstream's names.
//!
//! Owns: their registration in the process's registry. Upstream: `pkg/kubelet/metrics`, `pkg/kubelet/prober`, v1.36.

use std::sync::LazyLock;
use std::time::Duration;

use component_base::metrics::exponential_buckets;
use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};
use prometheus::{
    Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, histogram_opts,
    opts, register_histogram, register_histogram_vec, register_int_counter,
    register_int_counter_vec, register_int_gauge, register_int_gauge_vec,
};

const ONCE: &str = "the name is registered only here";

macro_rules! metric {
    ($name:ident: $type:ty = $make:expr) => {
        pub static $name: LazyLock<$type> = LazyLock::new(|| $make.expect(ONCE));
    };
}

/// Upstream: `DRADurationBuckets`, from 0.1 to 40 seconds.
fn dra_buckets() -> Vec<f64> {
    const COUNT: usize = 15;
    let factor = (40.0_f64 / 0.1).powf(1.0 / (COUNT - 1) as f64);
    exponential_buckets(0.1, factor, COUNT)
}

metric!(RUNNING_PODS: IntGauge = register_int_gauge!("kubelet_running_pods", "Number of pods that have a running pod sandbox"));
metric!(RUNNING_CONTAINERS: IntGaugeVec = register_int_gauge_vec!(opts!("kubelet_running_containers", "Number of containers currently running"), &["container_state"]));
metric!(DESIRED_PODS: IntGaugeVec = register_int_gauge_vec!(opts!("kubelet_desired_pods", "The number of pods the kubelet is being instructed to run."), &["static"]));
metric!(ACTIVE_PODS: IntGaugeVec = register_int_gauge_vec!(opts!("kubelet_active_pods", "The number of pods the kubelet considers active and which are being considered when admitting new pods."), &["static"]));
metric!(POD_REQUESTS: IntCounterVec = register_int_counter_vec!(opts!("kubelet_pod_requests_total", "Cumulative number of requests to the PodsAPI endpoint. Broken down by server api version and status code."), &["server_api_version", "status_code"]));
metric!(POD_REQUESTS_LIST: IntCounterVec = register_int_counter_vec!(opts!("kubelet_pod_requests_list_total", "Number of requests to the PodsAPI List endpoint. Broken down by server api version and status code."), &["server_api_version", "status_code"]));
metric!(POD_REQUESTS_GET: IntCounterVec = register_int_counter_vec!(opts!("kubelet_pod_requests_get_total", "Number of requests to the PodsAPI Get endpoint. Broken down by server api version and status code."), &["server_api_version", "status_code"]));
metric!(POD_REQUESTS_WATCH: IntCounterVec = register_int_counter_vec!(opts!("kubelet_pod_requests_watch_total", "Number of requests to the PodsAPI Watch endpoint. Broken down by server api version and status code."), &["server_api_version", "status_code"]));
metric!(POD_WATCH_EVENTS_DROPPED: IntCounter = register_int_counter!("kubelet_pod_watch_events_dropped_total", "Cumulative number of pod watch events dropped."));
metric!(NODE_NAME: IntGaugeVec = register_int_gauge_vec!(opts!("kubelet_node_name", "The node's name. The count is always 1."), &["node"]));
metric!(STARTED_PODS: IntCounter = register_int_counter!("kubelet_started_pods_total", "Cumulative number of pods started"));
metric!(STARTED_PODS_ERRORS: IntCounter = register_int_counter!("kubelet_started_pods_errors_total", "Cumulative number of errors when starting pods"));
metric!(STARTED_USER_NAMESPACED_PODS: IntCounter = register_int_counter!("kubelet_started_user_namespaced_pods_total", "Cumulative number of pods with user namespaces started. This metric will only be collected on Linux."));
metric!(STARTED_USER_NAMESPACED_PODS_ERRORS: IntCounter = register_int_counter!("kubelet_started_user_namespaced_pods_errors_total", "Cumulative number of errors when starting pods with user namespaces. This metric will only be collected on Linux."));
metric!(CGROUP_VERSION: IntGauge = register_int_gauge!("kubelet_cgroup_version", "cgroup version on the hosts."));
metric!(STARTED_CONTAINERS: IntCounterVec = register_int_counter_vec!(opts!("kubelet_started_containers_total", "Cumulative number of containers started"), &["container_type"]));
metric!(TERMINATED_CONTAINERS: IntCounterVec = register_int_counter_vec!(opts!("kubelet_terminated_containers_total", "Cumulative number of container terminations."), &["container_type", "exit_code", "reason"]));
metric!(STARTED_CONTAINERS_ERRORS: IntCounterVec = register_int_counter_vec!(opts!("kubelet_started_containers_errors_total", "Cumulative number of errors when starting containers"), &["container_type", "code"]));
metric!(PREEMPTIONS: IntCounterVec = register_int_counter_vec!(opts!("kubelet_preemptions", "Cumulative number of pod preemptions by preemption resource"), &["preemption_signal"]));
metric!(DEVICE_PLUGIN_REGISTRATIONS: IntCounterVec = register_int_counter_vec!(opts!("kubelet_device_plugin_registration_total", "Cumulative number of device plugin registrations. Broken down by resource name."), &["resource_name"]));
metric!(DEVICE_PLUGIN_ALLOCATION_DURATION: HistogramVec = register_histogram_vec!(histogram_opts!("kubelet_device_plugin_alloc_duration_seconds", "Duration in seconds to serve a device plugin Allocation request. Broken down by resource name."), &["resource_name"]));
metric!(POD_RESOURCES_REQUESTS: IntCounterVec = register_int_counter_vec!(opts!("kubelet_pod_resources_endpoint_requests_total", "Cumulative number of requests to the PodResource endpoint. Broken down by server api version."), &["server_api_version"]));
metric!(POD_RESOURCES_REQUESTS_LIST: IntCounterVec = register_int_counter_vec!(opts!("kubelet_pod_resources_endpoint_requests_list", "Number of requests to the PodResource List endpoint. Broken down by server api version."), &["server_api_version"]));
metric!(POD_RESOURCES_ERRORS_LIST: IntCounterVec = register_int_counter_vec!(opts!("kubelet_pod_resources_endpoint_errors_list", "Number of requests to the PodResource List endpoint which returned error. Broken down by server api version."), &["server_api_version"]));
metric!(POD_RESOURCES_REQUESTS_GET: IntCounterVec = register_int_counter_vec!(opts!("kubelet_pod_resources_endpoint_requests_get", "Number of requests to the PodResource Get endpoint. Broken down by server api version."), &["server_api_version"]));
metric!(POD_RESOURCES_ERRORS_GET: IntCounterVec = register_int_counter_vec!(opts!("kubelet_pod_resources_endpoint_errors_get", "Number of requests to the PodResource Get endpoint which returned error. Broken down by server api version."), &["server_api_version"]));
metric!(POD_RESOURCES_REQUESTS_ALLOCATABLE: IntCounterVec = register_int_counter_vec!(opts!("kubelet_pod_resources_endpoint_requests_get_allocatable", "Number of requests to the PodResource GetAllocatableResources endpoint. Broken down by server api version."), &["server_api_version"]));
metric!(POD_RESOURCES_ERRORS_ALLOCATABLE: IntCounterVec = register_int_counter_vec!(opts!("kubelet_pod_resources_endpoint_errors_get_allocatable", "Number of requests to the PodResource GetAllocatableResources endpoint which returned error. Broken down by server api version."), &["server_api_version"]));
metric!(DRA_OPERATIONS_DURATION: HistogramVec = register_histogram_vec!(histogram_opts!("dra_operations_duration_seconds", "Latency histogram in seconds for the duration of handling all ResourceClaims referenced by a pod when the pod starts or stops. Identified by the name of the operation (PrepareResources or UnprepareResources) and separated by the success of the operation. The number of failed operations is provided through the histogram's overall count.", dra_buckets()), &["operation_name", "is_error"]));
metric!(DRA_GRPC_OPERATIONS_DURATION: HistogramVec = register_histogram_vec!(histogram_opts!("dra_grpc_operations_duration_seconds", "Duration in seconds of the DRA gRPC operations", dra_buckets()), &["driver_name", "method_name", "grpc_status_code"]));
metric!(DRA_NODE_PREPARE_SKIPS: IntCounterVec = register_int_counter_vec!(opts!("dra_node_prepare_skips_total", "Cumulative number of times NodePrepareResources gRPC calls were skipped due to SkipNodeOperations."), &["driver_name"]));
metric!(DRA_NODE_UNPREPARE_SKIPS: IntCounterVec = register_int_counter_vec!(opts!("dra_node_unprepare_skips_total", "Cumulative number of times NodeUnprepareResources gRPC calls were skipped due to SkipNodeOperations."), &["driver_name"]));
metric!(EVICTIONS: IntCounterVec = register_int_counter_vec!(opts!("kubelet_evictions", "Cumulative number of pod evictions by eviction signal"), &["eviction_signal"]));
metric!(ADMISSION_REJECTIONS: IntCounterVec = register_int_counter_vec!(opts!("kubelet_admission_rejections_total", "Cumulative number pod admission rejections by the Kubelet."), &["reason"]));
metric!(MIRROR_PODS_CREATED: IntCounter = register_int_counter!("kubelet_mirror_pods", "Number of mirror pods created"));
metric!(POD_PENDING_RESIZES: IntGaugeVec = register_int_gauge_vec!(opts!("kubelet_pod_pending_resizes", "Number of pending resizes for pods. Label 'priority_bucket' classifies the pod priority (system-critical: >=2000000000, high: 100000..1999999999, medium: 1..99999, normal: 0/default, low: -999..-1, very-low: <=-1000, unknown: nil pod). Label 'reason' describes the state (deferred, infeasible)."), &["reason", "priority_bucket"]));
metric!(POD_INFEASIBLE_RESIZES: IntCounterVec = register_int_counter_vec!(opts!("kubelet_pod_infeasible_resizes_total", "Number of infeasible resizes for pods."), &["reason_detail"]));
metric!(POD_IN_PROGRESS_RESIZES: IntGauge = register_int_gauge!("kubelet_pod_in_progress_resizes", "Number of in-progress resizes for pods."));
metric!(POD_RESIZE_DURATION: HistogramVec = register_histogram_vec!(
    histogram_opts!("kubelet_pod_resize_duration_milliseconds", "Duration in milliseconds to actuate a pod resize", vec![10.0, 50.0, 100.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0, 20000.0, 30000.0, 60000.0, 120000.0, 300000.0, 600000.0]),
    &["success"]
));
metric!(RUN_POD_SANDBOX_DURATION: HistogramVec = register_histogram_vec!(histogram_opts!("kubelet_run_podsandbox_duration_seconds", "Duration in seconds of the run_podsandbox operations. Broken down by RuntimeClass.Handler."), &["runtime_handler"]));
metric!(RUN_POD_SANDBOX_ERRORS: IntCounterVec = register_int_counter_vec!(opts!("kubelet_run_podsandbox_errors_total", "Cumulative number of the run_podsandbox operation errors by RuntimeClass.Handler."), &["runtime_handler"]));
metric!(PLEG_EVENTS: IntCounter = register_int_counter!("kubelet_pleg_discard_events", "The number of discard events in PLEG."));
metric!(PLEG_LAST_SEEN: IntGauge = register_int_gauge!("kubelet_pleg_last_seen_seconds", "Timestamp in seconds when PLEG was last seen active."));
metric!(PLEG_RELIST: Histogram = register_histogram!(histogram_opts!("kubelet_pleg_relist_duration_seconds", "Duration in seconds for relisting pods in PLEG.")));
metric!(POD_WORKER_DURATION: HistogramVec = register_histogram_vec!(histogram_opts!("kubelet_pod_worker_duration_seconds", "Duration in seconds to sync a single pod. Broken down by operation type: create, update, or sync"), &["operation_type"]));
metric!(POD_START_DURATION: Histogram = register_histogram!(histogram_opts!(
    "kubelet_pod_start_duration_seconds",
    "Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run",
    vec![0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0]
)));
metric!(POD_START_SLI_DURATION: Histogram = register_histogram!(histogram_opts!(
    "kubelet_pod_start_sli_duration_seconds",
    "Duration in seconds to start a pod, excluding time to pull images and run init containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch",
    vec![0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0]
)));
metric!(IMAGE_PULL_DURATION: HistogramVec = register_histogram_vec!(
    histogram_opts!("kubelet_image_pull_duration_seconds", "Duration in seconds to pull an image.", vec![1.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0]),
    &["image_size_in_bytes"]
));
metric!(ENSURE_IMAGE_REQUESTS: IntCounterVec = register_int_counter_vec!(opts!("kubelet_image_manager_ensure_image_requests_total", "Number of ensure-image requests processed by the kubelet."), &["pull_policy", "present_locally", "pull_required"]));
metric!(MUST_PULL_CHECKS: IntCounterVec = register_int_counter_vec!(opts!("kubelet_imagemanager_image_mustpull_checks_total", "Counter for how many times kubelet checked whether credentials need to be re-verified to access an image"), &["result"]));
metric!(CREDENTIAL_PLUGIN_ERRORS: IntCounterVec = register_int_counter_vec!(opts!("kubelet_credential_provider_plugin_errors_total", "Number of errors from credential provider plugin"), &["plugin_name"]));
metric!(CREDENTIAL_PLUGIN_DURATION: HistogramVec = register_histogram_vec!(histogram_opts!("kubelet_credential_provider_plugin_duration", "Duration of execution in seconds for credential provider plugin"), &["plugin_name"]));
metric!(CREDENTIAL_PROVIDER_CONFIG: IntGaugeVec = register_int_gauge_vec!(opts!("kubelet_credential_provider_config_info", "Information about the last applied credential provider configuration with hash as label"), &["hash"]));
metric!(PULL_INTENTS_ON_DISK: IntGauge = register_int_gauge!("kubelet_imagemanager_ondisk_pullintents", "Number of ImagePullIntents stored on disk."));
metric!(PULLED_RECORDS_ON_DISK: IntGauge = register_int_gauge!("kubelet_imagemanager_ondisk_pulledrecords", "Number of ImagePulledRecords stored on disk."));
metric!(PULL_INTENTS_IN_MEMORY: IntGauge = register_int_gauge!("kubelet_imagemanager_inmemory_pullintents_usage_percent", "The ImagePullIntents in-memory cache usage in percent."));
metric!(PULLED_RECORDS_IN_MEMORY: IntGauge = register_int_gauge!("kubelet_imagemanager_inmemory_pulledrecords_usage_percent", "The ImagePulledRecords in-memory cache usage in percent."));
metric!(IMAGES_GARBAGE_COLLECTED: IntCounterVec = register_int_counter_vec!(opts!("kubelet_image_garbage_collected_total", "Total number of images garbage collected by the kubelet, whether through disk usage or image age."), &["reason"]));
metric!(RUNTIME_OPERATIONS: IntCounterVec = register_int_counter_vec!(opts!("kubelet_runtime_operations_total", "Cumulative number of runtime operations by operation type."), &["operation_type"]));
metric!(RUNTIME_OPERATIONS_ERRORS: IntCounterVec = register_int_counter_vec!(opts!("kubelet_runtime_operations_errors_total", "Cumulative number of runtime operation errors by operation type."), &["operation_type"]));
metric!(RUNTIME_OPERATIONS_DURATION: HistogramVec = register_histogram_vec!(
    histogram_opts!("kubelet_runtime_operations_duration_seconds", "Duration in seconds of runtime operations. Broken down by operation type.", exponential_buckets(0.005, 2.5, 14)),
    &["operation_type"]
));
metric!(RESTARTED_PODS: IntCounterVec = register_int_counter_vec!(opts!("kubelet_restarted_pods_total", "Number of pods that have been restarted because they were deleted and recreated with the same UID while the kubelet was watching them"), &["static"]));
metric!(ORPHANED_RUNTIME_PODS: IntCounter = register_int_counter!("kubelet_orphaned_runtime_pods_total", "Number of pods that have been detected in the container runtime without being already known to the pod worker."));
metric!(WORKING_PODS: IntGaugeVec = register_int_gauge_vec!(opts!("kubelet_working_pods", "Number of pods the kubelet is actually running, broken down by lifecycle phase, whether the pod is desired, orphaned, or runtime only (also orphaned), and whether the pod is static."), &["lifecycle", "config", "static"]));
metric!(PROBE_RESULTS: IntCounterVec = register_int_counter_vec!(opts!("prober_probe_total", "Cumulative number of a liveness, readiness or startup probe for a container by result."), &["probe_type", "result", "container", "pod", "namespace", "pod_uid"]));
metric!(PROBE_DURATION: HistogramVec = register_histogram_vec!(histogram_opts!("prober_probe_duration_seconds", "Duration in seconds for a probe response."), &["probe_type", "container", "pod", "namespace"]));
metric!(PLEG_RELIST_INTERVAL: Histogram = register_histogram!(histogram_opts!("kubelet_pleg_relist_interval_seconds", "Interval in seconds between relisting in PLEG.")));
metric!(CLIENT_RENEW_ERRORS: IntCounter = register_int_counter!("kubelet_certificate_manager_client_expiration_renew_errors", "Counter of certificate renewal errors."));
metric!(SERVER_RENEW_ERRORS: IntCounter = register_int_counter!("kubelet_server_expiration_renew_errors", "Counter of certificate renewal errors."));
metric!(CGROUP_MANAGER_DURATION: HistogramVec = register_histogram_vec!(histogram_opts!("kubelet_cgroup_manager_duration_seconds", "Duration in seconds for cgroup manager operations. Broken down by method."), &["operation_type"]));
metric!(MEMORY_QOS_NODE_MEMORY_MIN: IntGauge = register_int_gauge!("kubelet_memory_qos_node_memory_min_bytes", "Total bytes of memory.min of the guaranteed pods of this node (cgroup v2)."));
metric!(MEMORY_QOS_NODE_MEMORY_LOW: IntGauge = register_int_gauge!("kubelet_memory_qos_node_memory_low_bytes", "Total bytes of memory.low of the burstable pods of this node (cgroup v2)."));
metric!(STORAGE_OPERATION_DURATION: HistogramVec = register_histogram_vec!(
    histogram_opts!("storage_operation_duration_seconds", "Storage operation duration", vec![0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 25.0, 50.0, 120.0, 300.0, 600.0]),
    &["migrated", "operation_name", "status", "volume_plugin"]
));
metric!(CSI_OPERATIONS: HistogramVec = register_histogram_vec!(
    histogram_opts!("csi_operations_seconds", "Container Storage Interface operation duration with gRPC error code status total", vec![0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 25.0, 50.0, 120.0, 300.0, 600.0]),
    &["driver_name", "method_name", "grpc_status_code", "migrated"]
));
metric!(CPU_PINNING_REQUESTS: IntCounter = register_int_counter!("kubelet_cpu_manager_pinning_requests_total", "The number of cpu core allocations which required pinning."));
metric!(CPU_PINNING_ERRORS: IntCounter = register_int_counter!("kubelet_cpu_manager_pinning_errors_total", "The number of cpu core allocations which required pinning failed."));
metric!(CPU_SHARED_POOL: IntGauge = register_int_gauge!("kubelet_cpu_manager_shared_pool_size_millicores", "The size of the shared CPU pool for non-guaranteed QoS pods, in millicores."));
metric!(CPU_EXCLUSIVE: IntGauge = register_int_gauge!("kubelet_cpu_manager_exclusive_cpu_allocation_count", "The total number of CPUs exclusively allocated to containers running on this node"));
metric!(CPU_ALLOCATION_PER_NUMA: IntGaugeVec = register_int_gauge_vec!(opts!("kubelet_cpu_manager_allocation_per_numa", "Number of CPUs allocated per NUMA node"), &["numa_node"]));
metric!(MEMORY_PINNING_REQUESTS: IntCounter = register_int_counter!("kubelet_memory_manager_pinning_requests_total", "The number of memory pages allocations which required pinning."));
metric!(MEMORY_PINNING_ERRORS: IntCounter = register_int_counter!("kubelet_memory_manager_pinning_errors_total", "The number of memory pages allocations which required pinning that failed."));
metric!(ALIGNED: IntCounterVec = register_int_counter_vec!(opts!("kubelet_container_aligned_compute_resources_count", "Cumulative number of aligned compute resources allocated to containers by alignment type."), &["scope", "boundary"]));
metric!(NOT_ALIGNED: IntCounterVec = register_int_counter_vec!(opts!("kubelet_container_aligned_compute_resources_failure_count", "Cumulative number of failures to allocate aligned compute resources to containers by alignment type."), &["scope", "boundary"]));
metric!(RESOURCE_MANAGER_ALLOCATIONS: IntCounterVec = register_int_counter_vec!(opts!("kubelet_resource_manager_allocations_total", "Number of exclusive resource allocations performed by a resource manager."), &["resource_name", "source"]));
metric!(RESOURCE_MANAGER_ALLOCATION_ERRORS: IntCounterVec = register_int_counter_vec!(opts!("kubelet_resource_manager_allocation_errors_total", "Number of errors encountered during exclusive resource allocation."), &["resource_name", "source"]));
metric!(RESOURCE_MANAGER_ASSIGNMENTS: IntCounterVec = register_int_counter_vec!(opts!("kubelet_resource_manager_container_assignments_total", "Number of containers with a specific type of resource assignment."), &["resource_name", "assignment_type"]));
metric!(TOPOLOGY_ADMISSION_REQUESTS: IntCounter = register_int_counter!("kubelet_topology_manager_admission_requests_total", "The number of admission requests where resources have to be aligned."));
metric!(TOPOLOGY_ADMISSION_ERRORS: IntCounter = register_int_counter!("kubelet_topology_manager_admission_errors_total", "The number of admission request failures where resources could not be aligned."));
metric!(TOPOLOGY_ADMISSION_DURATION: Histogram = register_histogram!(histogram_opts!("kubelet_topology_manager_admission_duration_ms", "Duration in milliseconds to serve a pod admission request.", exponential_buckets(0.05, 2.0, 15))));
metric!(GRACEFUL_SHUTDOWN_START_TIME: IntGauge = register_int_gauge!("kubelet_graceful_shutdown_start_time_seconds", "Last graceful shutdown start time since unix epoch in seconds"));
metric!(GRACEFUL_SHUTDOWN_END_TIME: IntGauge = register_int_gauge!("kubelet_graceful_shutdown_end_time_seconds", "Last graceful shutdown end time since unix epoch in seconds"));
metric!(CERTIFICATE_EXPIRATION: IntGauge = register_int_gauge!("kubelet_certificate_manager_client_ttl_seconds", "Gauge of the TTL (time-to-live) of the Kubelet's client certificate."));

/// Makes the metrics that are worth a zero appear at once.
pub fn init(node_name: &str) {
    component_base::metrics::init();
    NODE_NAME.with_label_values(&[node_name]).set(1);
    for metric in [
        &*STARTED_PODS,
        &*STARTED_PODS_ERRORS,
        &*STARTED_USER_NAMESPACED_PODS,
        &*STARTED_USER_NAMESPACED_PODS_ERRORS,
        &*ORPHANED_RUNTIME_PODS,
    ] {
        metric.inc_by(0);
    }
    LazyLock::force(&RUNNING_PODS);
    LazyLock::force(&RUNNING_CONTAINERS);
    LazyLock::force(&POD_START_DURATION);
    LazyLock::force(&POD_START_SLI_DURATION);
    LazyLock::force(&POD_IN_PROGRESS_RESIZES);
    LazyLock::force(&PLEG_RELIST);
    LazyLock::force(&PLEG_RELIST_INTERVAL);
    for metric in [&*CLIENT_RENEW_ERRORS, &*SERVER_RENEW_ERRORS] {
        metric.inc_by(0);
    }
    LazyLock::force(&IMAGE_PULL_DURATION);
    LazyLock::force(&EVICTIONS);
    LazyLock::force(&PREEMPTIONS);
    for metric in [
        &*CPU_PINNING_REQUESTS,
        &*CPU_PINNING_ERRORS,
        &*MEMORY_PINNING_REQUESTS,
        &*MEMORY_PINNING_ERRORS,
        &*TOPOLOGY_ADMISSION_REQUESTS,
        &*TOPOLOGY_ADMISSION_ERRORS,
    ] {
        metric.inc_by(0);
    }
    LazyLock::force(&CPU_SHARED_POOL);
    LazyLock::force(&CPU_EXCLUSIVE);
    LazyLock::force(&TOPOLOGY_ADMISSION_DURATION);
    LazyLock::force(&MEMORY_QOS_NODE_MEMORY_MIN);
    LazyLock::force(&MEMORY_QOS_NODE_MEMORY_LOW);
}

/// Counts the containers that the new status says ended and the old one did not.
pub(crate) fn observe_terminations(old: &PodStatus, new: &PodStatus) {
    for (kind, before, now) in [
        (
            "init_container",
            &old.init_container_statuses,
            &new.init_container_statuses,
        ),
        (
            "container",
            &old.container_statuses,
            &new.container_statuses,
        ),
        (
            "ephemeral_container",
            &old.ephemeral_container_statuses,
            &new.ephemeral_container_statuses,
        ),
    ] {
        let end = |c: &ContainerStatus| c.state.as_ref().and_then(|s| s.terminated.clone());
        for container in now.iter().flatten() {
            let Some(ended) = end(container) else {
                continue;
            };
            let known = before
                .iter()
                .flatten()
                .find(|c| c.name == container.name)
                .is_some_and(|c| end(c).is_some());
            if !known {
                let code = ended.exit_code.to_string();
                let reason = ended.reason.as_deref().unwrap_or_default();
                TERMINATED_CONTAINERS
                    .with_label_values(&[kind, code.as_str(), reason])
                    .inc();
            }
        }
    }
}

pub(crate) fn observe_volume_mount(plugin: &'static str, ok: bool, took: Duration) {
    let status = if ok { "success" } else { "fail-unknown" };
    STORAGE_OPERATION_DURATION
        .with_label_values(&["false", "volume_mount", status, plugin])
        .observe(took.as_secs_f64());
}

pub(crate) fn observe_csi_call(call: &csi::CallRecord<'_>) {
    CSI_OPERATIONS
        .with_label_values(&[call.driver, call.method, call.code, "false"])
        .observe(call.took.as_secs_f64());
}

pub(crate) fn observe_image_pull(size_bytes: u64, took: Duration) {
    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    let bucket = match size_bytes {
        0 => "N/A",
        n if n <= 10 * MIB => "0-10MB",
        n if n <= 100 * MIB => "10MB-100MB",
        n if n <= 500 * MIB => "100MB-500MB",
        n if n <= GIB => "500MB-1GB",
        n if n <= 5 * GIB => "1GB-5GB",
        n if n <= 10 * GIB => "5GB-10GB",
        n if n <= 20 * GIB => "10GB-20GB",
        n if n <= 50 * GIB => "20GB-50GB",
        n if n <= 100 * GIB => "50GB-100GB",
        _ => "GT100GB",
    };
    IMAGE_PULL_DURATION
        .with_label_values(&[bucket])
        .observe(took.as_secs_f64());
}
