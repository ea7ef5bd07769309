//! Memory that the kernel takes last, and memory that it makes dear before it is gone: `memory.min`, `memory.low` and `memory.high`
//! (cgroup v2).
//!
//! Owns: which of them a container, a pod and a class has; pure. Upstream: gate `MemoryQoS`, `kuberuntime_container_linux.go`,
//! `pkg/kubelet/cm/helpers_linux.go`, `qos_container_manager_linux.go`, v1.37; KEP-2570.

use std::collections::BTreeMap;

use component_helpers::qos::{QosClass, get_pod_qos};
use component_helpers::resources::{PodResourcesOptions, pod_limits, pod_requests};
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};

use crate::configuration::KubeletConfiguration;
use crate::pod;

/// Never reclaimed.
pub const MIN: &str = "memory.min";
/// Reclaimed when nothing else is left.
pub const LOW: &str = "memory.low";
/// Above it, whoever allocates is slowed down.
pub const HIGH: &str = "memory.high";

/// File -> value, as the kernel is told.
pub type Unified = BTreeMap<String, String>;

/// What the configuration asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MemoryQos {
    /// The gate is on. Off: what an earlier kubelet set is taken back.
    enabled: bool,
    /// `memoryReservationPolicy: TieredReservation`
    tiered: bool,
    /// `memoryThrottlingFactor`: the part of what lies between request and limit that is given without delay.
    throttling_factor: Option<f64>,
    page_bytes: i64,
}

/// What the kubepods cgroup and the burstable class protect together, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassMemory {
    /// Requests of the guaranteed pods.
    pub guaranteed: i64,
    /// Requests of the burstable pods.
    pub burstable: i64,
}

fn amount_of(resources: Option<&ResourceRequirements>, limits: bool) -> i64 {
    let list = resources.and_then(|r| {
        if limits {
            r.limits.as_ref()
        } else {
            r.requests.as_ref()
        }
    });
    list.and_then(|l| l.get("memory"))
        .map_or(0, |q| component_helpers::quantity::amount(q).value())
}

fn pod_resources(pod: &Pod) -> Option<&ResourceRequirements> {
    pod.spec.as_ref().and_then(|s| s.resources.as_ref())
}

/// The field of the configuration that wants what cgroup v2 alone has.
fn asked_for(config: &KubeletConfiguration) -> Option<&'static str> {
    if config.memory_reservation_policy == "TieredReservation" {
        return Some("memoryReservationPolicy");
    }
    config
        .memory_throttling_factor
        .map(|_| "memoryThrottlingFactor")
}

impl MemoryQos {
    /// `None` on cgroup v1, where none of the files exists.
    pub fn of(config: &KubeletConfiguration, enabled: bool, cgroup_v2: bool) -> Option<Self> {
        if !cgroup_v2 && let Some(field) = asked_for(config) {
            tracing::warn!("{field} has no effect: this machine has cgroup v1");
        }
        cgroup_v2.then(|| Self {
            enabled,
            tiered: enabled && config.memory_reservation_policy == "TieredReservation",
            throttling_factor: config.memory_throttling_factor.filter(|_| enabled),
            page_bytes: crate::cm::machine::page_bytes(),
        })
    }

    /// Guaranteed pods' memory is never taken, burstable pods' last of all.
    fn protection(self, pod: &Pod, request: i64) -> Option<(&'static str, i64)> {
        let file = match get_pod_qos(pod) {
            QosClass::Guaranteed => MIN,
            _ => LOW,
        };
        (self.tiered && request > 0).then_some((file, request))
    }

    /// `request + factor * (limit - request)`, whole pages. `None`: not above the request.
    fn high(self, factor: f64, request: i64, limit: i64) -> Option<i64> {
        let bytes = request as f64 + (limit - request) as f64 * factor;
        let high = (bytes / self.page_bytes as f64).floor() as i64 * self.page_bytes;
        (high != 0 && high > request).then_some(high)
    }

    /// Of the pod's own cgroup.
    pub fn pod(self, pod: &Pod) -> Unified {
        let options = PodResourcesOptions::default();
        let request = pod_requests(pod, &options)
            .get("memory")
            .map_or(0, |a| a.value());
        let mut files = Unified::new();
        if let Some((file, bytes)) = self.protection(pod, request) {
            files.insert(file.to_owned(), bytes.to_string());
        }
        // The kernel looks at the cgroups above a container, too: only a limit of the pod itself is slowed down here.
        let declared = pod_resources(pod).is_some()
            && (amount_of(pod_resources(pod), true) != 0
                || pod::containers(pod)
                    .iter()
                    .chain(pod::init_containers(pod))
                    .all(|c| amount_of(c.resources.as_ref(), true) != 0));
        let limit = pod_limits(pod, &options)
            .get("memory")
            .map_or(0, |a| a.value());
        if let Some(factor) = self.throttling_factor
            && declared
            && limit != 0
            && request != limit
            && let Some(high) = self.high(factor, request, limit)
        {
            files.insert(HIGH.to_owned(), high.to_string());
        }
        files
    }

    /// Of a container's cgroup; `allocatable_bytes` is the node's, which a container without a limit may use.
    pub fn container(self, pod: &Pod, container: &Container, allocatable_bytes: i64) -> Unified {
        let mut files = Unified::new();
        let mut put = |file: &str, value: String| files.insert(file.to_owned(), value);
        if !self.enabled {
            put(HIGH, "max".to_owned());
            return files;
        }
        let request = amount_of(container.resources.as_ref(), false);
        let limit = amount_of(container.resources.as_ref(), true);
        match self.protection(pod, request) {
            Some((file, bytes)) => {
                put(file, bytes.to_string());
            }
            None => {
                put(MIN, "0".to_owned());
                put(LOW, "0".to_owned());
            }
        }
        let by_pod = limit == 0 && amount_of(pod_resources(pod), true) != 0;
        if let Some(factor) = self.throttling_factor
            && !by_pod
            && (request != limit || request == 0)
        {
            let bound = if limit == 0 { allocatable_bytes } else { limit };
            if bound > 0
                && let Some(high) = self.high(factor, request, bound)
            {
                put(HIGH, high.to_string());
            }
        }
        files
    }

    /// What the pods of each class ask for; `None` where it protects nobody.
    pub fn classes<'a>(self, active: impl IntoIterator<Item = &'a Pod>) -> Option<ClassMemory> {
        if !self.tiered {
            return None;
        }
        let options = PodResourcesOptions::default();
        let mut sum = ClassMemory::default();
        for pod in active {
            let request = pod_requests(pod, &options)
                .get("memory")
                .map_or(0, |a| a.value());
            match get_pod_qos(pod) {
                QosClass::Guaranteed => {
                    sum.guaranteed = sum.guaranteed.saturating_add(request);
                }
                QosClass::Burstable => sum.burstable = sum.burstable.saturating_add(request),
                QosClass::BestEffort => {}
            }
        }
        Some(sum)
    }
}

impl ClassMemory {
    /// Of the cgroup above all pods: protection counts only as far as every cgroup above has it, too.
    pub fn top(self) -> Unified {
        [
            (
                MIN.to_owned(),
                self.guaranteed.saturating_add(self.burstable).to_string(),
            ),
            (LOW.to_owned(), self.burstable.to_string()),
        ]
        .into()
    }

    /// Of the burstable class.
    pub fn burstable(self) -> Unified {
        [(LOW.to_owned(), self.burstable.to_string())].into()
    }
}

/// The wider of two sets of values; what only one has stays.
pub fn covering(one: &Unified, other: &Unified) -> Unified {
    let number = |text: &str| text.parse::<i64>().unwrap_or(i64::MAX);
    let mut all = one.clone();
    for (file, value) in other {
        let slot = all.entry(file.clone()).or_insert_with(|| value.clone());
        if number(value) > number(slot) {
            slot.clone_from(value);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const MIB: i64 = 1 << 20;

    fn qos(policy: &str, factor: Option<f64>) -> MemoryQos {
        MemoryQos {
            enabled: true,
            tiered: policy == "TieredReservation",
            throttling_factor: factor,
            page_bytes: 4096,
        }
    }

    fn pod(own: serde_json::Value, container: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"spec": {"resources": own, "containers": [{"name": "c", "resources": container}]}}))
            .unwrap()
    }

    fn container(pod: &Pod) -> Container {
        pod.spec.as_ref().unwrap().containers[0].clone()
    }

    fn files(pairs: &[(&str, &str)]) -> Unified {
        pairs
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
            .collect()
    }

    #[test]
    fn a_guaranteed_pod_is_protected_hard_and_a_burstable_one_softly() {
        let tiered = qos("TieredReservation", None);
        let same = json!({"requests": {"cpu": "1", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "64Mi"}});
        let guaranteed = pod(json!(null), same);
        assert_eq!(tiered.pod(&guaranteed), files(&[(MIN, "67108864")]));
        assert_eq!(
            tiered.container(&guaranteed, &container(&guaranteed), MIB),
            files(&[(MIN, "67108864")])
        );
        let burstable = pod(json!(null), json!({"requests": {"memory": "32Mi"}}));
        assert_eq!(tiered.pod(&burstable), files(&[(LOW, "33554432")]));
        assert_eq!(
            tiered.container(&burstable, &container(&burstable), MIB),
            files(&[(LOW, "33554432")])
        );
        let best_effort = pod(json!(null), json!(null));
        assert!(tiered.pod(&best_effort).is_empty());
        assert_eq!(
            tiered.classes([&guaranteed, &burstable, &best_effort]),
            Some(ClassMemory {
                guaranteed: 64 * MIB,
                burstable: 32 * MIB
            })
        );
        let sum = tiered.classes([&guaranteed, &burstable]).unwrap();
        assert_eq!(sum.top(), files(&[(MIN, "100663296"), (LOW, "33554432")]));
        assert_eq!(sum.burstable(), files(&[(LOW, "33554432")]));
    }

    /// Values by KEP-2570's formula.
    #[test]
    fn whoever_nears_its_limit_is_slowed_down() {
        let throttled = qos("None", Some(0.9));
        let burstable = pod(
            json!(null),
            json!({"requests": {"memory": "100Mi"}, "limits": {"memory": "200Mi"}}),
        );
        let expected = ((100 * MIB) as f64 + (100 * MIB) as f64 * 0.9) as i64 / 4096 * 4096;
        assert_eq!(
            throttled.container(&burstable, &container(&burstable), MIB),
            files(&[(MIN, "0"), (LOW, "0"), (HIGH, &expected.to_string())])
        );
        // Without a limit it is the node's memory that ends.
        let open = pod(json!(null), json!({"requests": {"memory": "100Mi"}}));
        let has = throttled.container(&open, &container(&open), 1100 * MIB);
        assert_eq!(has[HIGH], (1000 * MIB).to_string());
        // A guaranteed container has nothing between request and limit.
        let same = pod(
            json!(null),
            json!({"requests": {"memory": "1Gi"}, "limits": {"memory": "1Gi"}}),
        );
        assert!(
            !throttled
                .container(&same, &container(&same), MIB)
                .contains_key(HIGH)
        );
        // The pod's own limit is kept by the pod's cgroup.
        let of_pod = pod(
            json!({"requests": {"memory": "100Mi"}, "limits": {"memory": "200Mi"}}),
            json!(null),
        );
        assert!(
            !throttled
                .container(&of_pod, &container(&of_pod), 1100 * MIB)
                .contains_key(HIGH)
        );
        assert_eq!(throttled.pod(&of_pod)[HIGH], expected.to_string());
        assert!(throttled.pod(&burstable).is_empty());
    }

    #[test]
    fn by_default_nothing_is_protected_and_nobody_slowed_down() {
        let config = KubeletConfiguration::default();
        assert_eq!(MemoryQos::of(&config, true, false), None);
        assert_eq!(asked_for(&config), None);
        let tiered = KubeletConfiguration {
            memory_reservation_policy: "TieredReservation".into(),
            ..KubeletConfiguration::default()
        };
        assert_eq!(asked_for(&tiered), Some("memoryReservationPolicy"));
        let plain = MemoryQos::of(&config, true, true).unwrap();
        let burstable = pod(json!(null), json!({"requests": {"memory": "32Mi"}}));
        assert_eq!(
            plain.container(&burstable, &container(&burstable), MIB),
            files(&[(MIN, "0"), (LOW, "0")])
        );
        assert!(plain.pod(&burstable).is_empty());
        assert_eq!(plain.classes([&burstable]), None);
        // Without the gate, what was set is taken back.
        let off = MemoryQos::of(&config, false, true).unwrap();
        assert_eq!(
            off.container(&burstable, &container(&burstable), MIB),
            files(&[(HIGH, "max")])
        );
    }

    #[test]
    fn while_a_pod_is_resized_the_wider_values_hold() {
        let one = files(&[(HIGH, "10"), (LOW, "7")]);
        let other = files(&[(HIGH, "max"), (MIN, "3")]);
        assert_eq!(
            covering(&one, &other),
            files(&[(HIGH, "max"), (LOW, "7"), (MIN, "3")])
        );
    }
}
