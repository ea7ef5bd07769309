//! Which pods end together, and how long they have.
//!
//! Owns: [`Plan`], pure. Upstream: `groupByPriority`, `migrateConfig`, `killPods`, v1.37.

use std::sync::Arc;
use std::time::Duration;

use component_base::features::FeatureGates;
use k8s_openapi::api::core::v1::Pod;

use crate::configuration::KubeletConfiguration;
use crate::features::{GRACEFUL_NODE_SHUTDOWN, GRACEFUL_NODE_SHUTDOWN_BASED_ON_POD_PRIORITY};
use crate::pod;
use crate::status::generate::ForcedFailure;

/// `status.reason` of a pod that ended with the node. Upstream: `nodeShutdownReason`.
const REASON: &str = "Terminated";
/// `status.message`, and that of the condition `DisruptionTarget`. Upstream: `nodeShutdownMessage`.
const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";

/// Upstream: `DefaultPriorityWhenNoDefaultClassExists`.
const DEFAULT_PRIORITY: i32 = 0;
/// Upstream: `SystemCriticalPriority`.
const SYSTEM_CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// How long the pods of a priority, up to the next one's, have together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    pub priority: i32,
    /// Not negative.
    pub seconds: i64,
}

impl Period {
    pub fn duration(self) -> Duration {
        Duration::from_secs(u64::try_from(self.seconds).unwrap_or(0))
    }

    /// What this pod has of it: less, if its spec says so.
    pub fn grace_period_seconds(self, pod: &Pod) -> i64 {
        let own = pod
            .spec
            .as_ref()
            .and_then(|s| s.termination_grace_period_seconds);
        own.map_or(self.seconds, |own| own.min(self.seconds))
    }
}

/// Pods that end at the same time.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    pub period: Period,
    pub pods: Vec<Arc<Pod>>,
}

/// What the configuration says of a shutdown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The lowest priority first; never empty.
    periods: Vec<Period>,
    /// When a shutdown began and ended is kept and shown.
    pub tells_times: bool,
}

impl Plan {
    /// `None`: the machine's shutdown is nobody's business here.
    pub fn of(config: &KubeletConfiguration, gates: &FeatureGates) -> Option<Self> {
        if !gates.enabled(GRACEFUL_NODE_SHUTDOWN) {
            return None;
        }
        let by_priority = gates.enabled(GRACEFUL_NODE_SHUTDOWN_BASED_ON_POD_PRIORITY);
        let given = &config.shutdown_grace_period_by_pod_priority;
        let mut periods: Vec<Period> = match by_priority && !given.is_empty() {
            true => given
                .iter()
                .map(|p| Period {
                    priority: p.priority,
                    seconds: p.shutdown_grace_period_seconds.max(0),
                })
                .collect(),
            false => of_critical_pods(
                config.shutdown_grace_period.0,
                config.shutdown_grace_period_critical_pods.0,
            ),
        };
        periods.sort_by_key(|p| p.priority);
        (!periods.is_empty()).then_some(Self {
            periods,
            tells_times: by_priority,
        })
    }

    pub fn periods(&self) -> &[Period] {
        &self.periods
    }

    /// How long the shutdown is to be held up.
    pub fn requested(&self) -> Duration {
        let all = self.periods.iter().map(|p| p.duration());
        all.fold(Duration::ZERO, Duration::saturating_add)
    }

    /// Every group, the first to go first. A pod is of the highest priority that is not above its own, or of the lowest there is.
    pub fn group_by_priority(&self, pods: Vec<Arc<Pod>>) -> Vec<Group> {
        let empty = |period: &Period| Group {
            period: *period,
            pods: vec![],
        };
        let mut groups: Vec<Group> = self.periods.iter().map(empty).collect();
        for pod in pods {
            let priority = pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
            let below = |p: &Period| p.priority < priority;
            let at_or_above = self.periods.partition_point(below);
            let exact = self.periods.get(at_or_above);
            let index = match exact.is_some_and(|p| p.priority == priority) {
                true => at_or_above,
                false => at_or_above.saturating_sub(1),
            };
            groups[index].pods.push(pod);
        }
        groups
    }
}

/// The two groups of `shutdownGracePeriod` and `shutdownGracePeriodCriticalPods`. Upstream: `migrateConfig`.
fn of_critical_pods(all: Duration, critical: Duration) -> Vec<Period> {
    if all.is_zero() {
        return vec![];
    }
    let Some(others) = all.checked_sub(critical) else {
        return vec![];
    };
    let period = |priority, of: Duration| Period {
        priority,
        seconds: i64::try_from(of.as_secs()).unwrap_or(i64::MAX),
    };
    vec![
        period(DEFAULT_PRIORITY, others),
        period(SYSTEM_CRITICAL_PRIORITY, critical),
    ]
}

/// What is told of a pod that ends with the node. One whose containers all succeeded stays so.
pub fn forced_failure() -> ForcedFailure {
    ForcedFailure {
        reason: REASON.to_owned(),
        message: MESSAGE.to_owned(),
        disruption: Some(MESSAGE.to_owned()),
        spares_success: true,
    }
}

/// Namespaces and names, for the log.
pub fn names(pods: &[Arc<Pod>]) -> Vec<String> {
    pods.iter().map(|p| pod::format(p)).collect()
}

#[cfg(test)]
mod tests;
