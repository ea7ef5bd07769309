//! Constraints made ready, and where they come from: the pod, or the plugin's defaults with a selector deduced from what the pod belongs to.

use std::collections::BTreeMap;
use std::sync::Arc;

use component_helpers::labels::{Requirement, Selector, SelectorError, is_subset};
use component_helpers::node::labels::{HOSTNAME, ZONE};
use component_helpers::owner_ref::get_controller_of;
use framework::args::{PodTopologySpreadArgs, PodTopologySpreadConstraintsDefaulting};
use framework::{Handle, PodInfo};
use k8s_openapi::api::core::v1::TopologySpreadConstraint;

/// What to do when a constraint cannot be met.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    DoNotSchedule,
    ScheduleAnyway,
}

impl Action {
    fn as_str(self) -> &'static str {
        match self {
            Action::DoNotSchedule => "DoNotSchedule",
            Action::ScheduleAnyway => "ScheduleAnyway",
        }
    }
}

/// One constraint.
#[derive(Clone, Debug)]
pub(super) struct Constraint {
    pub max_skew: i64,
    pub topology_key: String,
    selector: Selector,
    pub min_domains: usize,
    /// Nodes the pod's affinity excludes are not counted.
    pub honor_affinity: bool,
    /// Nodes with taints the pod does not tolerate are not counted.
    pub honor_taints: bool,
    /// 1 when the pod to place matches itself.
    pub self_match: i64,
}

impl Constraint {
    fn new(constraint: &TopologySpreadConstraint, pod: &PodInfo) -> Result<Self, SelectorError> {
        let mut selector = Selector::from_optional(constraint.label_selector.as_ref())?;
        for key in constraint.match_label_keys.iter().flatten() {
            if let Some(value) = pod.labels().get(key) {
                selector = selector.and(Requirement::equals(key, value));
            }
        }
        let honors = |policy: &Option<String>, default| {
            policy
                .as_deref()
                .map_or(default, |policy| policy == "Honor")
        };
        Ok(Constraint {
            max_skew: constraint.max_skew.into(),
            topology_key: constraint.topology_key.clone(),
            min_domains: constraint.min_domains.unwrap_or(1).max(0) as usize,
            honor_affinity: honors(&constraint.node_affinity_policy, true),
            honor_taints: honors(&constraint.node_taints_policy, false),
            self_match: i64::from(selector.matches(pod.labels())),
            selector,
        })
    }

    fn with_selector(mut self, selector: Selector, pod: &PodInfo) -> Self {
        self.self_match = i64::from(selector.matches(pod.labels()));
        self.selector = selector;
        self
    }

    /// Is `other` one of the pods to spread? Those that are ending are not; an empty selector matches none here.
    pub(super) fn counts(&self, other: &PodInfo, namespace: &str) -> bool {
        !self.selector.is_everything()
            && !other.is_terminating()
            && other.namespace() == namespace
            && self.selector.matches(other.labels())
    }

    /// Does the selector match these labels?
    pub(super) fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.selector.matches(labels)
    }
}

/// Where constraints come from.
pub(super) struct Source {
    defaults: Vec<TopologySpreadConstraint>,
    system_defaulted: bool,
    handle: Arc<dyn Handle>,
}

impl Source {
    pub(super) fn new(args: PodTopologySpreadArgs, handle: Arc<dyn Handle>) -> Self {
        let system_defaulted =
            args.defaulting_type == PodTopologySpreadConstraintsDefaulting::System;
        let system = |topology_key: &str, max_skew| TopologySpreadConstraint {
            topology_key: topology_key.to_owned(),
            max_skew,
            when_unsatisfiable: Action::ScheduleAnyway.as_str().to_owned(),
            ..TopologySpreadConstraint::default()
        };
        let defaults = if system_defaulted {
            vec![system(HOSTNAME, 3), system(ZONE, 5)]
        } else {
            args.default_constraints
        };
        Source {
            defaults,
            system_defaulted,
            handle,
        }
    }

    /// Does the pod say itself how it is to be spread?
    pub(super) fn has_own(pod: &PodInfo) -> bool {
        pod.spec()
            .topology_spread_constraints
            .as_ref()
            .is_some_and(|all| !all.is_empty())
    }

    /// Under the system's defaults a node without a zone still takes part in spreading over nodes.
    pub(super) fn require_all_topologies(&self, pod: &PodInfo) -> bool {
        Self::has_own(pod) || !self.system_defaulted
    }

    /// Do the defaults filter?
    pub(super) fn has_hard_defaults(&self) -> bool {
        self.defaults
            .iter()
            .any(|constraint| constraint.when_unsatisfiable == Action::DoNotSchedule.as_str())
    }

    /// The pod's constraints with this action: its own, or else the defaults.
    pub(super) fn constraints(
        &self,
        pod: &PodInfo,
        action: Action,
    ) -> Result<Vec<Constraint>, SelectorError> {
        let own = pod
            .spec()
            .topology_spread_constraints
            .as_deref()
            .unwrap_or_default();
        let with_action =
            |all: &[TopologySpreadConstraint]| -> Result<Vec<Constraint>, SelectorError> {
                all.iter()
                    .filter(|constraint| constraint.when_unsatisfiable == action.as_str())
                    .map(|c| Constraint::new(c, pod))
                    .collect()
            };
        if !own.is_empty() {
            return with_action(own);
        }
        let defaults = with_action(&self.defaults)?;
        if defaults.is_empty() {
            return Ok(defaults);
        }
        let Some(selector) = self.default_selector(pod) else {
            return Ok(Vec::new());
        };
        Ok(defaults
            .into_iter()
            .map(|constraint| constraint.with_selector(selector.clone(), pod))
            .collect())
    }

    /// What the services, replication controller, replica set or stateful set of the pod select; `None` when it belongs to nothing, or there are no
    /// defaults.
    pub(super) fn default_selector(&self, pod: &PodInfo) -> Option<Selector> {
        if self.defaults.is_empty() {
            return None;
        }
        let listers = self.handle.listers();
        let namespace = pod.namespace();
        let mut labels = BTreeMap::new();
        for service in listers.services(namespace) {
            let selector = service
                .spec
                .as_ref()
                .and_then(|spec| spec.selector.as_ref());
            if let Some(selector) = selector.filter(|selector| is_subset(selector, pod.labels())) {
                labels.extend(selector.clone());
            }
        }
        let mut more = Vec::new();
        if let Some(owner) = get_controller_of(&pod.pod.metadata) {
            let of_set = match (owner.api_version.as_str(), owner.kind.as_str()) {
                ("v1", "ReplicationController") => {
                    let controller = listers.replication_controller(namespace, &owner.name);
                    labels.extend(
                        controller
                            .iter()
                            .flat_map(|rc| rc.spec.iter())
                            .flat_map(|spec| spec.selector.clone().unwrap_or_default()),
                    );
                    None
                }
                ("apps/v1", "ReplicaSet") => listers
                    .replica_set(namespace, &owner.name)
                    .map(|set| set.spec.selector.clone()),
                ("apps/v1", "StatefulSet") => listers
                    .stateful_set(namespace, &owner.name)
                    .map(|set| set.spec.selector.clone()),
                _ => None,
            };
            if let Some(selector) = of_set.and_then(|selector| Selector::new(&selector).ok()) {
                more.extend(selector.requirements().iter().cloned());
            }
        }
        let selector = more
            .into_iter()
            .fold(Selector::from_labels(&labels), Selector::and);
        (!selector.is_everything()).then_some(selector)
    }
}
