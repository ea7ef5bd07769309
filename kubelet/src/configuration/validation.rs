//! What a configuration may say.
//!
//! Owns: [`validate_kubelet_configuration`], pure: every error at once, each with its field path. Upstream:
//! `pkg/kubelet/apis/config/validation`, v1.36.

mod managers;

use std::net::IpAddr;
use std::time::Duration;

use component_base::config::FieldError;
use component_helpers::quantity::Amount;
use component_helpers::taints::{NO_EXECUTE, NO_SCHEDULE, PREFER_NO_SCHEDULE};

use super::KubeletConfiguration;
use crate::image_manager::verification::allowlist_errors;

/// Every finding; empty means the configuration is good.
pub fn validate_kubelet_configuration(kc: &KubeletConfiguration) -> Vec<FieldError> {
    let mut errors = vec![];
    numbers(kc, &mut errors);
    images(kc, &mut errors);
    durations(kc, &mut errors);
    shutdown(kc, &mut errors);
    taints(kc, &mut errors);
    addresses(kc, &mut errors);
    words(kc, &mut errors);
    preloaded_images(kc, &mut errors);
    gated(kc, &mut errors);
    default_pod_sysctls(kc, &mut errors);
    managers::managers(kc, &mut errors);
    not_built(kc, &mut errors);
    quantities(kc, &mut errors);
    enforcement(kc, &mut errors);
    errors
}

/// `value` is what was given; the error names it.
fn check(errors: &mut Vec<FieldError>, ok: bool, path: &str, value: i64, detail: &str) {
    if !ok {
        errors.push(FieldError::invalid(path, value, detail));
    }
}

fn within(
    errors: &mut Vec<FieldError>,
    path: &str,
    value: i32,
    range: std::ops::RangeInclusive<i32>,
) {
    let (low, high) = (range.start(), range.end());
    let detail = format!("must be between {low} and {high}, inclusive");
    check(errors, range.contains(&value), path, value.into(), &detail);
}

fn numbers(kc: &KubeletConfiguration, errors: &mut Vec<FieldError>) {
    if kc.enable_server {
        within(errors, "port", kc.port, 1..=65535);
    }
    for (path, value, range) in [
        ("readOnlyPort", kc.read_only_port, 0..=65535),
        ("healthzPort", kc.healthz_port, 0..=65535),
        ("oomScoreAdj", kc.oom_score_adj, -1000..=1000),
    ] {
        within(errors, path, value, range);
    }
    for (path, value) in [
        ("maxOpenFiles", kc.max_open_files),
        ("maxPods", kc.max_pods.into()),
        ("podsPerCore", kc.pods_per_core.into()),
        ("eventBurst", kc.event_burst.into()),
        ("eventRecordQPS", kc.event_record_qps.into()),
        ("registryBurst", kc.registry_burst.into()),
        ("registryPullQPS", kc.registry_pull_qps.into()),
        ("kubeAPIBurst", kc.kube_api_burst.into()),
        ("kubeAPIQPS", kc.kube_api_qps.into()),
    ] {
        let detail = "must not be a negative number";
        check(errors, value >= 0, path, value, detail);
    }
    for (path, bit) in [
        ("iptablesDropBit", kc.iptables_drop_bit),
        ("iptablesMasqueradeBit", kc.iptables_masquerade_bit),
    ] {
        within(errors, path, bit, 0..=31);
    }
    for (path, value, least, detail) in [
        (
            "nodeLeaseDurationSeconds",
            kc.node_lease_duration_seconds,
            1,
            "must be greater than 0",
        ),
        (
            "nodeStatusMaxImages",
            kc.node_status_max_images,
            -1,
            "must be -1 or greater",
        ),
        (
            "containerLogMaxFiles",
            kc.container_log_max_files,
            2,
            "must be greater than 1",
        ),
        (
            "containerLogMaxWorkers",
            kc.container_log_max_workers,
            1,
            "must be greater than or equal to 1",
        ),
    ] {
        check(errors, value >= least, path, value.into(), detail);
    }
    if let Some(n) = kc.user_namespaces.ids_per_pod {
        check(
            errors,
            n > 0 && n % 65_536 == 0 && n <= i64::from(u32::MAX),
            "userNamespaces.idsPerPod",
            n,
            "must be a multiple of 65536",
        );
    }
}

fn images(kc: &KubeletConfiguration, errors: &mut Vec<FieldError>) {
    let (high, low) = (
        kc.image_gc_high_threshold_percent,
        kc.image_gc_low_threshold_percent,
    );
    let (high_path, low_path) = ("imageGCHighThresholdPercent", "imageGCLowThresholdPercent");
    within(errors, high_path, high, 0..=100);
    within(errors, low_path, low, 0..=100);
    check(
        errors,
        low < high || !(0..=100).contains(&high),
        low_path,
        low.into(),
        "must be less than imageGCHighThresholdPercent",
    );
    let seconds = |d: Duration| i64::try_from(d.as_secs()).unwrap_or(i64::MAX);
    let (min_age, max_age) = (kc.image_minimum_gc_age.0, kc.image_maximum_gc_age.0);
    check(
        errors,
        max_age.is_zero() || max_age > min_age,
        "imageMaximumGCAge",
        seconds(max_age),
        "must be greater than imageMinimumGCAge",
    );
    if let Some(n) = kc.max_parallel_image_pulls {
        let path = "maxParallelImagePulls";
        check(errors, n >= 1, path, n.into(), "must be a positive number");
        check(
            errors,
            !(n > 1 && kc.serialize_image_pulls == Some(true)),
            path,
            n.into(),
            "cannot be larger than 1 unless serializeImagePulls is false",
        );
    }
}

fn durations(kc: &KubeletConfiguration, errors: &mut Vec<FieldError>) {
    let text = component_base::duration::format;
    let quota = kc.cpu_cfs_quota_period.0;
    if !(1_000..=1_000_000).contains(&quota.as_micros()) {
        errors.push(FieldError::invalid(
            "cpuCFSQuotaPeriod",
            text(quota),
            "must be between 1ms and 1s, inclusive",
        ));
    }
    let restart = kc.max_container_restart_period();
    if !(1..=300).contains(&restart.as_secs()) {
        errors.push(FieldError::invalid(
            "crashLoopBackOff.maxContainerRestartPeriod",
            text(restart),
            "must be between 1s and 300s",
        ));
    }
    let monitor = kc.container_log_monitor_interval.0;
    if monitor < Duration::from_secs(3) {
        errors.push(FieldError::invalid(
            "containerLogMonitorInterval",
            text(monitor),
            "must be greater than or equal to 3s",
        ));
    }
    for (path, value) in [
        ("nodeStatusUpdateFrequency", kc.node_status_update_frequency),
        ("nodeStatusReportFrequency", kc.node_status_report_frequency),
        ("syncFrequency", kc.sync_frequency),
    ] {
        if value.0.is_zero() {
            errors.push(FieldError::invalid(path, "0s", "must be greater than 0"));
        }
    }
}

/// What the shutdown of a node may say.
fn shutdown(kc: &KubeletConfiguration, errors: &mut Vec<FieldError>) {
    let (all, critical) = (
        kc.shutdown_grace_period.0,
        kc.shutdown_grace_period_critical_pods.0,
    );
    let text = component_base::duration::format;
    for (path, period) in [
        ("shutdownGracePeriod", all),
        ("shutdownGracePeriodCriticalPods", critical),
    ] {
        if !period.is_zero() && period < Duration::from_secs(1) {
            let detail = "must be either zero or otherwise >= 1 sec";
            errors.push(FieldError::invalid(path, text(period), detail));
        }
    }
    if critical > all {
        errors.push(FieldError::invalid(
            "shutdownGracePeriodCriticalPods",
            text(critical),
            "must be <= shutdownGracePeriod",
        ));
    }
    if !kc.shutdown_grace_period_by_pod_priority.is_empty() && !(all + critical).is_zero() {
        errors.push(FieldError::forbidden(
            "shutdownGracePeriodByPodPriority",
            "cannot be specified together with shutdownGracePeriod",
        ));
    }
    let off = |gate: &str| kc.feature_gates.get(gate) == Some(&false);
    if off("GracefulNodeShutdown") && !(all + critical).is_zero() {
        errors.push(FieldError::forbidden(
            "shutdownGracePeriod",
            "must not be set if GracefulNodeShutdown feature gate is not enabled",
        ));
    }
    if off("GracefulNodeShutdownBasedOnPodPriority")
        && !kc.shutdown_grace_period_by_pod_priority.is_empty()
    {
        errors.push(FieldError::forbidden(
            "shutdownGracePeriodByPodPriority",
            "must not be set if GracefulNodeShutdownBasedOnPodPriority feature gate is not enabled",
        ));
    }
    for (i, period) in kc.shutdown_grace_period_by_pod_priority.iter().enumerate() {
        let seconds = period.shutdown_grace_period_seconds;
        if seconds < 0 {
            let path = format!("shutdownGracePeriodByPodPriority[{i}].shutdownGracePeriodSeconds");
            let detail = "must be greater than or equal to 0";
            errors.push(FieldError::invalid(path, seconds, detail));
        }
    }
}

/// Upstream: `CheckTaintValidation`.
fn taints(kc: &KubeletConfiguration, errors: &mut Vec<FieldError>) {
    const EFFECTS: [&str; 3] = [NO_SCHEDULE, PREFER_NO_SCHEDULE, NO_EXECUTE];
    for (i, taint) in kc.register_with_taints.iter().enumerate() {
        let path = |field: &str| format!("registerWithTaints[{i}].{field}");
        if taint.key.is_empty() {
            errors.push(FieldError::required(path("key"), "a taint has a key"));
        }
        if !taint.effect.is_empty() && !EFFECTS.contains(&taint.effect.as_str()) {
            errors.push(FieldError::not_supported(
                path("effect"),
                &taint.effect,
                &EFFECTS,
            ));
        }
        if taint.time_added.is_some() {
            errors.push(FieldError::forbidden(path("timeAdded"), "must not be set"));
        }
    }
}

fn addresses(kc: &KubeletConfiguration, errors: &mut Vec<FieldError>) {
    let mut ip = |path: String, value: &str| {
        if value.parse::<IpAddr>().is_err() {
            errors.push(FieldError::invalid(
                path,
                value,
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ));
        }
    };
    ip("address".into(), &kc.address);
    ip("healthzBindAddress".into(), &kc.healthz_bind_address);
    for (i, server) in kc.cluster_dns.iter().enumerate() {
        ip(format!("clusterDNS[{i}]"), server);
    }
    for (path, file, other) in [
        ("tlsCertFile", &kc.tls_cert_file, &kc.tls_private_key_file),
        (
            "tlsPrivateKeyFile",
            &kc.tls_private_key_file,
            &kc.tls_cert_file,
        ),
    ] {
        if file.is_empty() && !other.is_empty() {
            errors.push(FieldError::required(
                path,
                "tlsCertFile and tlsPrivateKeyFile go together",
            ));
        }
    }
    if !kc.pod_logs_dir.starts_with('/') {
        errors.push(FieldError::invalid(
            "podLogsDir",
            &kc.pod_logs_dir,
            "must be an absolute path",
        ));
    }
    if !kc.cgroup_root.is_empty() && !kc.cgroup_root.starts_with('/') {
        errors.push(FieldError::invalid(
            "cgroupRoot",
            &kc.cgroup_root,
            "must be an absolute path",
        ));
    }
}

fn words(kc: &KubeletConfiguration, errors: &mut Vec<FieldError>) {
    let mut one_of = |path: &str, value: &str, supported: &[&str]| {
        if !supported.contains(&value) {
            errors.push(FieldError::not_supported(path, value, supported));
        }
    };
    one_of(
        "authorization.mode",
        &kc.authorization.mode,
        &["Webhook", "AlwaysAllow"],
    );
    one_of("cgroupDriver", &kc.cgroup_driver, &["cgroupfs", "systemd"]);
    one_of(
        "configMapAndSecretChangeDetectionStrategy",
        &kc.config_map_and_secret_change_detection_strategy,
        &["Get", "Cache", "Watch"],
    );
    one_of(
        "memorySwap.swapBehavior",
        &kc.memory_swap.swap_behavior,
        &["", "NoSwap", "LimitedSwap"],
    );
    one_of(
        "hairpinMode",
        &kc.hairpin_mode,
        &["promiscuous-bridge", "hairpin-veth", "none"],
    );
    one_of(
        "cpuManagerPolicy",
        &kc.cpu_manager_policy,
        &["none", "static"],
    );
    one_of(
        "memoryManagerPolicy",
        &kc.memory_manager_policy,
        &["None", "Static", "BestEffort"],
    );
    one_of(
        "topologyManagerPolicy",
        &kc.topology_manager_policy,
        &["none", "best-effort", "restricted", "single-numa-node"],
    );
    one_of(
        "topologyManagerScope",
        &kc.topology_manager_scope,
        &["container", "pod"],
    );
    one_of(
        "tlsMinVersion",
        &kc.tls_min_version,
        &["", "VersionTLS12", "VersionTLS13"],
    );
    one_of(
        "memoryReservationPolicy",
        &kc.memory_reservation_policy,
        &["None", "TieredReservation"],
    );
    one_of("logging.format", &kc.logging.format, &["", "text", "json"]);
    one_of(
        "imagePullCredentialsVerificationPolicy",
        &kc.image_pull_credentials_verification_policy,
        &[
            "NeverVerify",
            "NeverVerifyPreloadedImages",
            "NeverVerifyAllowlistedImages",
            "AlwaysVerify",
        ],
    );
}

/// What `memoryThrottlingFactor` was by default up to v1.36: files that say so still load without the gate.
const PREVIOUS_THROTTLING_FACTOR: f64 = 0.9;

fn gated(kc: &KubeletConfiguration, errors: &mut Vec<FieldError>) {
    let off = |gate: &str| kc.feature_gates.get(gate) == Some(&false);
    if let Some(factor) = kc.memory_throttling_factor {
        if off("MemoryQoS") && factor != PREVIOUS_THROTTLING_FACTOR {
            errors.push(FieldError::forbidden(
                "memoryThrottlingFactor",
                "must not be set when MemoryQoS feature gate is disabled",
            ));
        }
        if !(factor > 0.0 && factor <= 1.0) {
            errors.push(FieldError::invalid(
                "memoryThrottlingFactor",
                factor,
                "must be greater than 0 and less than or equal to 1.0",
            ));
        }
    }
    if off("MemoryQoS") && kc.memory_reservation_policy == "TieredReservation" {
        errors.push(FieldError::forbidden(
            "memoryReservationPolicy",
            "\"TieredReservation\" requires MemoryQoS feature gate to be enabled",
        ));
    }
    if off("KubeletCrashLoopBackOffMax")
        && kc
            .crash_loop_back_off
            .max_container_restart_period
            .is_some()
    {
        errors.push(FieldError::forbidden(
            "crashLoopBackOff.maxContainerRestartPeriod",
            "must not be set if KubeletCrashLoopBackOffMax feature gate is not enabled",
        ));
    }
}

/// Sysctls of every pod. Their gate is alpha and off, and nothing here sets them: an entry is refused either way.
fn default_pod_sysctls(kc: &KubeletConfiguration, errors: &mut Vec<FieldError>) {
    if kc.default_pod_sysctls.is_empty() {
        return;
    }
    errors.push(FieldError::forbidden(
        "defaultPodSysctls",
        if kc.feature_gates.get("DefaultPodSysctls") == Some(&true) {
            "sysctls of every pod are not built yet"
        } else {
            "DefaultPodSysctls feature gate is required for Kubelet configuration option defaultPodSysctls"
        },
    ));
}

fn preloaded_images(kc: &KubeletConfiguration, errors: &mut Vec<FieldError>) {
    const PATH: &str = "preloadedImagesVerificationAllowlist";
    let list = &kc.preloaded_images_verification_allowlist;
    let policy = &kc.image_pull_credentials_verification_policy;
    if !list.is_empty() && policy != "NeverVerifyAllowlistedImages" {
        errors.push(FieldError::forbidden(
            PATH,
            "can't be set if imagePullCredentialsVerificationPolicy is not \"NeverVerifyAllowlistedImages\"",
        ));
    }
    for error in allowlist_errors(list) {
        errors.push(FieldError::invalid(
            PATH,
            list.join(","),
            format!("invalid image pattern: {error}"),
        ));
    }
    if !list.is_empty() && kc.feature_gates.get("KubeletEnsureSecretPulledImages") == Some(&false) {
        errors.push(FieldError::forbidden(
            PATH,
            "must not be set if KubeletEnsureSecretPulledImages feature gate is not enabled",
        ));
    }
}

/// What upstream can do and this build cannot: refused at the start rather than ignored.
fn not_built(kc: &KubeletConfiguration, errors: &mut Vec<FieldError>) {
    let mut refuse = |on: bool, path: &str, detail: &str| {
        if on {
            errors.push(FieldError::forbidden(
                path,
                format!("{detail} (not built yet)"),
            ));
        }
    };
    refuse(
        kc.memory_swap.swap_behavior == "LimitedSwap",
        "memorySwap.swapBehavior",
        "only NoSwap is supported",
    );
    refuse(
        !kc.cgroups_per_qos,
        "cgroupsPerQOS",
        "pods always get cgroups of their own",
    );
    refuse(kc.run_once, "runOnce", "run-once mode was removed");
    refuse(
        kc.enable_system_log_query,
        "enableSystemLogQuery",
        "logs of services cannot be asked for",
    );
}

fn quantities(kc: &KubeletConfiguration, errors: &mut Vec<FieldError>) {
    for (path, map) in [
        ("systemReserved", &kc.system_reserved),
        ("kubeReserved", &kc.kube_reserved),
    ] {
        for (name, value) in map {
            if !matches!(
                name.as_str(),
                "cpu" | "memory" | "ephemeral-storage" | "pid"
            ) {
                errors.push(FieldError::not_supported(
                    path,
                    name,
                    &["cpu", "memory", "ephemeral-storage", "pid"],
                ));
            } else if value.parse::<Amount>().map_or(true, |a| a.is_negative()) {
                errors.push(FieldError::invalid(
                    format!("{path}[{name}]"),
                    value,
                    "must be a quantity, zero or greater",
                ));
            }
        }
    }
    if kc
        .container_log_max_size
        .parse::<Amount>()
        .map_or(true, |a| a.is_zero())
    {
        errors.push(FieldError::invalid(
            "containerLogMaxSize",
            &kc.container_log_max_size,
            "must be a quantity greater than 0, or a negative one: then logs are not rotated",
        ));
    }
    let hard = kc.eviction_hard();
    for (path, map) in [
        ("evictionHard", &hard),
        ("evictionSoft", &kc.eviction_soft),
        ("evictionMinimumReclaim", &kc.eviction_minimum_reclaim),
    ] {
        for (signal, value) in map {
            if crate::eviction::threshold::parse_signal(signal).is_none() {
                errors.push(FieldError::not_supported(
                    path,
                    signal,
                    crate::eviction::threshold::SIGNALS,
                ));
            } else if let Err(detail) = crate::eviction::threshold::parse_value(value) {
                errors.push(FieldError::invalid(
                    format!("{path}[{signal}]"),
                    value,
                    detail,
                ));
            }
        }
    }
    for signal in kc.eviction_soft.keys() {
        if !kc.eviction_soft_grace_period.contains_key(signal) {
            errors.push(FieldError::required(
                format!("evictionSoftGracePeriod[{signal}]"),
                "a soft threshold needs a grace period",
            ));
        }
    }
    for (signal, value) in &kc.eviction_soft_grace_period {
        if component_base::duration::parse(value).is_err() {
            errors.push(FieldError::invalid(
                format!("evictionSoftGracePeriod[{signal}]"),
                value,
                "must be a duration",
            ));
        }
    }
}

fn enforcement(kc: &KubeletConfiguration, errors: &mut Vec<FieldError>) {
    let supported = ["pods", "none"];
    let all = kc.enforce_node_allocatable();
    for (i, value) in all.iter().enumerate() {
        let path = format!("enforceNodeAllocatable[{i}]");
        if all[..i].contains(value) {
            errors.push(FieldError::invalid(path, value, "Duplicate value"));
            continue;
        }
        if value == "none" && all.len() > 1 {
            let detail = "may not contain additional enforcements when none is specified";
            errors.push(FieldError::invalid(path, value, detail));
            continue;
        }
        match value.as_str() {
            "pods" | "none" | "" => {}
            "system-reserved"
            | "kube-reserved"
            | "system-reserved-compressible"
            | "kube-reserved-compressible" => {
                errors.push(FieldError::forbidden(
                    path,
                    format!("{value:?} is not built yet"),
                ));
            }
            other => errors.push(FieldError::not_supported(path, other, &supported)),
        }
    }
    for (i, pattern) in kc.allowed_unsafe_sysctls.iter().enumerate() {
        let bare = pattern.strip_suffix('*').unwrap_or(pattern);
        if bare.is_empty() || bare.contains(['*', ' ']) {
            errors.push(FieldError::invalid(
                format!("allowedUnsafeSysctls[{i}]"),
                pattern,
                "must be a sysctl name, or a prefix ending with *",
            ));
        }
    }
}

#[cfg(test)]
mod tests;
