//! From requests and limits to what the kernel is told.
//!
//! Owns: CPU shares and quotas, pod cgroup values, OOM scores; pure. Upstream: `pkg/kubelet/cm/helpers_linux.go`,
//! `pkg/kubelet/qos/policy.go`, `kuberuntime_container_linux.go`, v1.36.

use std::collections::BTreeMap;
use std::time::Duration;

use component_helpers::qos::{QosClass, get_pod_qos};
use component_helpers::quantity::amount;
use component_helpers::resources::{PodResourcesOptions, ResourceList, pod_limits, pod_requests};
use k8s_openapi::api::core::v1::{Container, Pod};
use runtime::api as cri;

use super::memory_qos::{self, MemoryQos, Unified};
use crate::pod;

pub const MIN_SHARES: u64 = 2;
pub const MAX_SHARES: u64 = 262_144;
const SHARES_PER_CPU: u64 = 1024;
/// The kernel's least quota, in microseconds.
const MIN_QUOTA_PERIOD: i64 = 1000;
/// The kernel's largest quota, in microseconds (`MAX_BW` of `kernel/sched`): as good as none.
const MAX_QUOTA: i64 = (1 << 44) - 1;

/// Upstream: `qos.KubeletOOMScoreAdj` is -999; these are the pods'.
const GUARANTEED_OOM_SCORE_ADJ: i64 = -997;
const BEST_EFFORT_OOM_SCORE_ADJ: i64 = 1000;

pub fn milli_cpu_to_shares(milli: i64) -> u64 {
    let Ok(milli) = u64::try_from(milli) else {
        return MIN_SHARES;
    };
    // Limits may be any number; those that shares cannot tell apart are alike.
    (milli.saturating_mul(SHARES_PER_CPU) / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

/// `period` in microseconds; zero: no limit.
pub fn milli_cpu_to_quota(milli: i64, period: i64) -> i64 {
    if milli == 0 {
        return 0;
    }
    (milli.saturating_mul(period) / 1000).clamp(MIN_QUOTA_PERIOD, MAX_QUOTA)
}

/// The cgroup v2 weight of a pod's or a QoS class's shares, in proportion: 2 to 262144 become 1 to 10000. Containers have
/// another one, which is the runtime's (`runtime::linux::cgroup`). Upstream: `getCPUWeight`.
pub fn cpu_shares_to_weight(shares: u64) -> u64 {
    let shares = shares.clamp(MIN_SHARES, MAX_SHARES);
    1 + (shares - MIN_SHARES) * 9999 / (MAX_SHARES - MIN_SHARES)
}

/// What a pod's or a QoS class's cgroup is set to. `None`: left alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourceConfig {
    pub cpu_shares: Option<u64>,
    pub cpu_quota: Option<i64>,
    pub cpu_period: Option<u64>,
    pub memory_bytes: Option<i64>,
    pub pids_limit: Option<i64>,
    /// Page size as the kernel names it (`2MB`) -> bytes.
    pub hugepage_limits: BTreeMap<String, i64>,
    /// Files of cgroup v2 that v1 has nothing like.
    pub unified: Unified,
}

impl ResourceConfig {
    /// The wider of both, value by value: nothing that fits into either is too large for it.
    pub fn covering(&self, other: &Self) -> Self {
        // What is not set, and less than nothing, is no limit.
        let wider = |a: Option<i64>, b: Option<i64>| match (a, b) {
            (Some(a), Some(b)) if a <= 0 || b <= 0 => Some(a.min(b)),
            (Some(a), Some(b)) => Some(a.max(b)),
            (a, b) => a.or(b),
        };
        let mut hugepage_limits = self.hugepage_limits.clone();
        for (size, bytes) in &other.hugepage_limits {
            let slot = hugepage_limits.entry(size.clone()).or_insert(*bytes);
            *slot = (*slot).max(*bytes);
        }
        Self {
            cpu_shares: self.cpu_shares.max(other.cpu_shares),
            cpu_quota: wider(self.cpu_quota, other.cpu_quota),
            cpu_period: other.cpu_period.or(self.cpu_period),
            memory_bytes: wider(self.memory_bytes, other.memory_bytes),
            pids_limit: wider(self.pids_limit, other.pids_limit),
            hugepage_limits,
            unified: memory_qos::covering(&self.unified, &other.unified),
        }
    }
}

fn value(list: Option<&ResourceList>, name: &str) -> i64 {
    list.and_then(|l| l.get(name))
        .map_or(0, |q| amount(q).value())
}

fn milli(list: Option<&ResourceList>, name: &str) -> i64 {
    list.and_then(|l| l.get(name))
        .map_or(0, |q| amount(q).milli_value())
}

/// The pod's own cgroup. Upstream: `ResourceConfigForPod`.
pub fn resource_config_for_pod(
    pod: &Pod,
    enforce_cpu_limits: bool,
    period: Duration,
) -> ResourceConfig {
    let options = PodResourcesOptions::default();
    let requests = pod_requests(pod, &options);
    let limits = pod_limits(pod, &options);
    let request_milli = requests.get("cpu").map_or(0, |a| a.milli_value());
    let limit_milli = limits.get("cpu").map_or(0, |a| a.milli_value());
    let memory_limit = limits.get("memory").map_or(0, |a| a.value());

    // A pod has a limit only when every container has one (or the pod itself).
    let of_pod = pod
        .spec
        .as_ref()
        .and_then(|s| s.resources.as_ref())
        .and_then(|r| r.limits.as_ref());
    let all = |name: &str| {
        of_pod.is_some_and(|l| l.contains_key(name))
            || pod::containers(pod)
                .iter()
                .chain(pod::init_containers(pod))
                .all(|c| {
                    c.resources
                        .as_ref()
                        .and_then(|r| r.limits.as_ref())
                        .is_some_and(|l| !amount_is_zero(l, name))
                })
    };
    let period_us = i64::try_from(period.as_micros()).unwrap_or(100_000);
    let quota = if enforce_cpu_limits {
        milli_cpu_to_quota(limit_milli, period_us)
    } else {
        -1
    };
    let mut hugepage_limits = BTreeMap::new();
    for (name, amount) in &limits {
        if let Some(size) = name.strip_prefix("hugepages-") {
            hugepage_limits.insert(kernel_page_size(size), amount.value());
        }
    }
    let mut config = ResourceConfig {
        cpu_shares: Some(milli_cpu_to_shares(request_milli)),
        hugepage_limits,
        ..ResourceConfig::default()
    };
    match get_pod_qos(pod) {
        QosClass::BestEffort => config.cpu_shares = Some(MIN_SHARES),
        QosClass::Burstable | QosClass::Guaranteed => {
            let guaranteed = get_pod_qos(pod) == QosClass::Guaranteed;
            if guaranteed || all("cpu") {
                config.cpu_quota = Some(quota);
                config.cpu_period = u64::try_from(period_us).ok();
            }
            if guaranteed || all("memory") {
                config.memory_bytes = Some(memory_limit);
            }
        }
    }
    config
}

fn amount_is_zero(list: &ResourceList, name: &str) -> bool {
    list.get(name).is_none_or(|q| amount(q).is_zero())
}

/// `2Mi` -> `2MB`, as /sys/kernel/mm/hugepages and the cgroup files name sizes.
pub fn kernel_page_size(size: &str) -> String {
    let bytes = size
        .parse::<component_helpers::quantity::Amount>()
        .map_or(0, |a| a.value());
    for (unit, shift) in [("GB", 30), ("MB", 20), ("KB", 10)] {
        if bytes >= (1 << shift) {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    size.to_owned()
}

/// What stays the same for every container.
#[derive(Clone, Debug)]
pub struct ContainerResourceDefaults {
    pub cpu_cfs_quota: bool,
    pub cpu_cfs_quota_period: Duration,
    pub pids_limit: Option<i64>,
    pub memory_capacity_bytes: u64,
    pub cgroup_v2: bool,
    /// `singleProcessOOMKill`; on v2 the default kills the whole container.
    pub single_process_oom_kill: Option<bool>,
    pub page_sizes: Vec<String>,
    /// On cgroup v2.
    pub memory_qos: Option<MemoryQos>,
    /// What pods may use of the node's memory.
    pub memory_allocatable_bytes: i64,
}

/// A container's own cgroup. Upstream: `generateLinuxContainerResources`.
pub fn container_resources(
    pod: &Pod,
    container: &Container,
    defaults: &ContainerResourceDefaults,
) -> cri::Resources {
    let requests = container
        .resources
        .as_ref()
        .and_then(|r| r.requests.as_ref());
    let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
    let of_pod = pod
        .spec
        .as_ref()
        .and_then(|s| s.resources.as_ref())
        .and_then(|r| r.limits.as_ref());
    let or_pod = |own: i64, theirs: i64| if own == 0 { theirs } else { own };

    let cpu_limit = or_pod(milli(limits, "cpu"), milli(of_pod, "cpu"));
    let memory_limit = or_pod(value(limits, "memory"), value(of_pod, "memory"));
    let has_request = requests.is_some_and(|r| r.contains_key("cpu"));
    let shares = milli_cpu_to_shares(if has_request {
        milli(requests, "cpu")
    } else {
        cpu_limit
    });

    let mut resources = cri::Resources {
        cpu_shares: Some(shares),
        memory_limit_bytes: (memory_limit != 0).then_some(memory_limit),
        // No swap beyond memory.
        memory_swap_limit_bytes: (memory_limit != 0).then_some(memory_limit),
        oom_score_adj: i32::try_from(container_oom_score_adjust(
            pod,
            container,
            defaults.memory_capacity_bytes,
        ))
        .unwrap_or(1000),
        pids_limit: None,
        ..cri::Resources::default()
    };
    if defaults.cpu_cfs_quota {
        let period = i64::try_from(defaults.cpu_cfs_quota_period.as_micros()).unwrap_or(100_000);
        resources.cpu_period_us = u64::try_from(period).ok();
        let quota = milli_cpu_to_quota(cpu_limit, period);
        resources.cpu_quota_us = (quota != 0).then_some(quota);
    }
    for size in &defaults.page_sizes {
        resources.hugepage_limits.insert(kernel_page_size(size), 0);
    }
    for (name, quantity) in limits.into_iter().flatten() {
        if let Some(size) = name.strip_prefix("hugepages-") {
            let bytes = u64::try_from(amount(quantity).value()).unwrap_or(0);
            resources
                .hugepage_limits
                .insert(kernel_page_size(size), bytes);
        }
    }
    if defaults.cgroup_v2 && !defaults.single_process_oom_kill.unwrap_or(false) {
        resources
            .unified
            .insert("memory.oom.group".to_owned(), "1".to_owned());
    }
    if let Some(qos) = defaults.memory_qos {
        let files = qos.container(pod, container, defaults.memory_allocatable_bytes);
        resources.unified.extend(files);
    }
    resources
}

/// Upstream: `GetContainerOOMScoreAdjust`.
pub fn container_oom_score_adjust(pod: &Pod, container: &Container, memory_capacity: u64) -> i64 {
    // Not every critical pod: a node's own, of the class that says so.
    let class = pod
        .spec
        .as_ref()
        .and_then(|s| s.priority_class_name.as_deref());
    if class == Some("system-node-critical") && pod::is_critical(pod) {
        return GUARANTEED_OOM_SCORE_ADJ;
    }
    match get_pod_qos(pod) {
        QosClass::Guaranteed => return GUARANTEED_OOM_SCORE_ADJ,
        QosClass::BestEffort => return BEST_EFFORT_OOM_SCORE_ADJ,
        QosClass::Burstable => {}
    }
    let capacity = i64::try_from(memory_capacity).unwrap_or(i64::MAX).max(1);
    let request = |c: &Container| {
        value(
            c.resources.as_ref().and_then(|r| r.requests.as_ref()),
            "memory",
        )
    };
    let own = request(container);
    // What the pod asks for beyond its containers is shared among them.
    let of_pod = pod
        .spec
        .as_ref()
        .and_then(|s| s.resources.as_ref())
        .and_then(|r| r.requests.as_ref());
    let remaining = match of_pod {
        Some(list) if list.contains_key("memory") => {
            let sidecars = pod::init_containers(pod)
                .iter()
                .filter(|c| pod::is_restartable_init(c));
            let all: Vec<i64> = pod::containers(pod)
                .iter()
                .chain(sidecars)
                .map(request)
                .collect();
            let count = i64::try_from(all.len()).unwrap_or(1).max(1);
            let together = all.iter().fold(0, |sum: i64, one| sum.saturating_add(*one));
            (value(Some(list), "memory").saturating_sub(together) / count).max(0)
        }
        _ => 0,
    };
    let adjust = |memory: i64| 1000 - (i128::from(memory) * 1000 / i128::from(capacity)) as i64;
    let mut score = adjust(own.saturating_add(remaining));
    let sidecar = pod::init_containers(pod)
        .iter()
        .any(|c| c.name == container.name && pod::is_restartable_init(c));
    if sidecar {
        let least = pod::containers(pod).iter().map(request).min().unwrap_or(0);
        score = score.min(adjust(least.saturating_add(remaining)));
    }
    if score < 1000 + GUARANTEED_OOM_SCORE_ADJ {
        return 1000 + GUARANTEED_OOM_SCORE_ADJ;
    }
    if score == BEST_EFFORT_OOM_SCORE_ADJ {
        return score - 1;
    }
    score
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{PodSpec, ResourceRequirements};
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    fn list(pairs: &[(&str, &str)]) -> Option<ResourceList> {
        Some(
            pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), Quantity((*v).to_owned())))
                .collect(),
        )
    }

    fn container(requests: &[(&str, &str)], limits: &[(&str, &str)]) -> Container {
        Container {
            name: "c".into(),
            resources: Some(ResourceRequirements {
                requests: list(requests),
                limits: list(limits),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn pod(containers: Vec<Container>) -> Pod {
        Pod {
            spec: Some(PodSpec {
                containers,
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn shares_and_quotas() {
        assert_eq!(milli_cpu_to_shares(0), 2);
        assert_eq!(milli_cpu_to_shares(1000), 1024);
        assert_eq!(milli_cpu_to_quota(100, 100_000), 10_000);
        assert_eq!(milli_cpu_to_quota(1, 100_000), 1000);
        assert_eq!(milli_cpu_to_quota(0, 100_000), 0);
    }

    /// A limit is any number the API holds. It is no narrower than a smaller one, and the kernel takes it.
    #[test]
    fn the_largest_numbers_are_large() {
        assert_eq!(milli_cpu_to_shares(i64::MAX), MAX_SHARES);
        assert_eq!(milli_cpu_to_quota(i64::MAX, 100_000), (1 << 44) - 1);
        let all = "9223372036854775807";
        let limits = &[("cpu", all), ("memory", all)];
        let requests = &[("cpu", "1"), ("memory", "1Mi")];
        let pod = pod(vec![
            container(requests, limits),
            container(requests, limits),
        ]);
        let period = Duration::from_millis(100);
        let config = resource_config_for_pod(&pod, true, period);
        assert_eq!(config.cpu_quota, Some((1 << 44) - 1));
        assert_eq!(config.memory_bytes, Some(i64::MAX));
    }

    #[test]
    fn weights_of_pods_and_classes() {
        for (shares, weight) in [
            (0, 1),
            (2, 1),
            (102, 4),
            (512, 20),
            (1024, 39),
            (2048, 79),
            (262_143, 9999),
            (262_144, 10_000),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(cpu_shares_to_weight(shares), weight, "{shares}");
        }
    }

    #[test]
    fn pod_cgroups_by_class() {
        let period = Duration::from_millis(100);
        let best_effort = resource_config_for_pod(&pod(vec![container(&[], &[])]), true, period);
        assert_eq!(
            best_effort,
            ResourceConfig {
                cpu_shares: Some(2),
                ..Default::default()
            }
        );
        let full = &[("cpu", "100m"), ("memory", "100Mi")];
        let guaranteed = resource_config_for_pod(&pod(vec![container(full, full)]), true, period);
        assert_eq!(guaranteed.cpu_quota, Some(10_000));
        assert_eq!(guaranteed.memory_bytes, Some(100 << 20));
        let open = resource_config_for_pod(
            &pod(vec![container(full, full), container(full, &[])]),
            true,
            period,
        );
        assert_eq!(open.memory_bytes, None);
    }

    #[test]
    fn a_resize_first_makes_room_for_both() {
        let config = |shares, quota, memory| ResourceConfig {
            cpu_shares: Some(shares),
            cpu_quota: quota,
            memory_bytes: memory,
            ..Default::default()
        };
        let check = |a: ResourceConfig, b: ResourceConfig, expect: ResourceConfig| {
            assert_eq!(a.covering(&b), expect);
            assert_eq!(b.covering(&a), expect);
        };
        check(
            config(2, Some(10), Some(5)),
            config(3, Some(9), Some(6)),
            config(3, Some(10), Some(6)),
        );
        check(
            config(2, Some(-1), None),
            config(2, Some(9), Some(6)),
            config(2, Some(-1), Some(6)),
        );
    }

    #[test]
    fn oom_scores() {
        let gi = 1 << 30;
        let full = &[("cpu", "1"), ("memory", "1Gi")];
        let check = |c: Container, expect| {
            assert_eq!(
                container_oom_score_adjust(&pod(vec![c.clone()]), &c, 4 * gi),
                expect
            );
        };
        check(container(&[], &[]), 1000);
        check(container(full, full), -997);
        check(container(&[("memory", "1Gi")], &[]), 750);
        check(container(&[("memory", "4Gi")], &[]), 3);
        check(container(&[("cpu", "1")], &[]), 999);
    }

    /// Only a critical pod of the class `system-node-critical` is kept like a guaranteed one: a priority or a static pod
    /// alone is not.
    #[test]
    fn oom_scores_of_critical_pods() {
        let of = |class: Option<&str>, priority: Option<i32>, is_static: bool| {
            let mut pod = pod(vec![container(&[], &[])]);
            let spec = pod.spec.get_or_insert_default();
            spec.priority_class_name = class.map(str::to_owned);
            spec.priority = priority;
            if is_static {
                pod.metadata.annotations = Some(
                    [(
                        crate::pod::CONFIG_SOURCE_ANNOTATION.to_owned(),
                        "file".to_owned(),
                    )]
                    .into(),
                );
            }
            container_oom_score_adjust(&pod, &container(&[], &[]), 1 << 32)
        };
        let node = Some("system-node-critical");
        let cluster = Some("system-cluster-critical");
        for (class, priority, is_static, expect) in [
            (node, Some(2_000_001_000), false, -997),
            (node, None, true, -997),
            (node, Some(0), false, 1000),
            (cluster, Some(2_000_000_000), false, 1000),
            (None, Some(2_000_001_000), false, 1000),
            (None, None, true, 1000),
            (cluster, Some(2_000_000_000), true, 1000),
        ] {
            assert_eq!(
                of(class, priority, is_static),
                expect,
                "{class:?} {priority:?} {is_static}"
            );
        }
    }
}
