//! How rolling updates stand to `maxUnavailable`. Upstream: pkg/controller/statefulset/metrics, v1.37.

use std::sync::Arc;

use component_base::metrics::make;
use controller_runtime::ObjectKey;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use prometheus::IntGaugeVec;

use super::sync::{max_unavailable, unavailable};

const LABELS: &[&str] = &[
    "statefulset_namespace",
    "statefulset_name",
    "pod_management_policy",
];

component_base::metrics! {
    /// Where a set stands.
    pub struct Metrics {
        max_unavailable: IntGaugeVec = make::int_gauges(
            "statefulset_controller_statefulset_max_unavailable",
            "Maximum number of unavailable pods allowed during StatefulSet rolling updates",
            LABELS,
        ),
        unavailable: IntGaugeVec = make::int_gauges(
            "statefulset_controller_statefulset_unavailable_replicas",
            "Current number of unavailable pods in StatefulSet",
            LABELS,
        ),
    }
}

impl Metrics {
    /// After each pass.
    pub(super) fn observe(&self, set: &StatefulSet, pods: &[Arc<Pod>], now: Timestamp) {
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
        set_to(&self.max_unavailable, max_unavailable(set));
        set_to(&self.unavailable, unavailable(set, pods, now));
    }

    /// The set is gone. DIFFERS: upstream keeps its series for good.
    pub(super) fn forget(&self, key: &ObjectKey) {
        for policy in ["OrderedReady", "Parallel"] {
            let labels = [&*key.namespace, &*key.name, policy];
            for gauge in [&self.max_unavailable, &self.unavailable] {
                // There is nothing to remove where the set was never looked at.
                let _ = gauge.remove_label_values(&labels);
            }
        }
    }
}
