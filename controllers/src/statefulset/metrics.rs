//! How rolling updates stand to `maxUnavailable`. Upstream: pkg/controller/statefulset/metrics, v1.37.

use std::sync::{Arc, LazyLock};

use controller_runtime::ObjectKey;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use prometheus::{IntGaugeVec, opts, register_int_gauge_vec};

use super::sync::{max_unavailable, unavailable};

const LABELS: &[&str] = &[
    "statefulset_namespace",
    "statefulset_name",
    "pod_management_policy",
];

static MAX_UNAVAILABLE: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    register_int_gauge_vec!(
        opts!(
            "statefulset_controller_statefulset_max_unavailable",
            "Maximum number of unavailable pods allowed during StatefulSet rolling updates"
        ),
        LABELS
    )
    .expect("the name is registered only here")
});
static UNAVAILABLE: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    register_int_gauge_vec!(
        opts!(
            "statefulset_controller_statefulset_unavailable_replicas",
            "Current number of unavailable pods in StatefulSet"
        ),
        LABELS
    )
    .expect("the name is registered only here")
});

/// After each pass.
pub(super) fn observe(set: &StatefulSet, pods: &[Arc<Pod>], now: Timestamp) {
    let key = ObjectKey::of(set);
    let policy = set.spec.pod_management_policy.as_deref();
    let labels = [
        &*key.namespace,
        &*key.name,
        policy.unwrap_or("OrderedReady"),
    ];
    let set_to = |gauge: &IntGaugeVec, count: usize| {
        gauge
            .with_label_values(&labels)
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    };
    set_to(&MAX_UNAVAILABLE, max_unavailable(set));
    set_to(&UNAVAILABLE, unavailable(set, pods, now));
}

/// The set is gone. DIFFERS: upstream keeps its series for good.
pub(super) fn forget(key: &ObjectKey) {
    for policy in ["OrderedReady", "Parallel"] {
        let labels = [&*key.namespace, &*key.name, policy];
        for gauge in [&MAX_UNAVAILABLE, &UNAVAILABLE] {
            // There is nothing to remove where the set was never looked at.
            let _ = gauge.remove_label_values(&labels);
        }
    }
}
