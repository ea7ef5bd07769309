//! Probes in the metrics: `prober_probe_total` and `prober_probe_duration_seconds`.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use super::ProbeType;
use crate::pod_actions::ProbeResult;
use crate::{metrics, pod};

pub(super) fn observe_probe(
    probe_type: ProbeType,
    pod: &Pod,
    container: &str,
    result: ProbeResult,
    took: Duration,
) {
    let result = match result {
        ProbeResult::Success => "successful",
        ProbeResult::Failure => "failed",
        ProbeResult::Unknown => "unknown",
    };
    let (name, namespace, uid) = (pod::name(pod), pod::namespace(pod), pod::uid(pod));
    metrics::PROBE_RESULTS
        .with_label_values(&[probe_type.as_str(), result, container, name, namespace, uid])
        .inc();
    metrics::PROBE_DURATION
        .with_label_values(&[probe_type.as_str(), container, name, namespace])
        .observe(took.as_secs_f64());
}

/// Series of a pod that is gone would stay for ever.
pub(super) fn forget_probes(pod: &Pod, container: &str, probe_type: ProbeType) {
    let (name, namespace, uid) = (pod::name(pod), pod::namespace(pod), pod::uid(pod));
    for result in ["successful", "failed", "unknown"] {
        // Not every series was ever made.
        let _ = metrics::PROBE_RESULTS.remove_label_values(&[
            probe_type.as_str(),
            result,
            container,
            name,
            namespace,
            uid,
        ]);
    }
    let _ = metrics::PROBE_DURATION.remove_label_values(&[
        probe_type.as_str(),
        container,
        name,
        namespace,
    ]);
}
