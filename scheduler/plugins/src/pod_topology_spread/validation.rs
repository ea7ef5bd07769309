//! Whether PodTopologySpreadArgs make sense. Upstream: apis/config/validation/validation_pluginargs.go.

use component_helpers::labels::validate_label_key;
use framework::args::{PodTopologySpreadArgs, PodTopologySpreadConstraintsDefaulting};

/// Every problem, with its field path.
pub(super) fn validate(args: &PodTopologySpreadArgs) -> Vec<String> {
    let mut problems = Vec::new();
    let constraints = &args.default_constraints;
    if args.defaulting_type == PodTopologySpreadConstraintsDefaulting::System
        && !constraints.is_empty()
    {
        problems.push(
            "defaultingType: Invalid value: \"System\": when .defaultConstraints are not empty"
                .into(),
        );
    }
    for (i, constraint) in constraints.iter().enumerate() {
        let path = format!("defaultConstraints[{i}]");
        if constraint.max_skew <= 0 {
            problems.push(format!(
                "{path}.maxSkew: Invalid value: {}: not in valid range (0, inf)",
                constraint.max_skew
            ));
        }
        if constraint.topology_key.is_empty() {
            problems.push(format!(
                "{path}.topologyKey: Required value: can not be empty"
            ));
        } else if let Err(reason) = validate_label_key(&constraint.topology_key) {
            problems.push(format!(
                "{path}.topologyKey: Invalid value: {:?}: {reason}",
                constraint.topology_key
            ));
        }
        match constraint.when_unsatisfiable.as_str() {
            "DoNotSchedule" | "ScheduleAnyway" => {}
            "" => problems.push(format!("{path}.whenUnsatisfiable: Required value: can not be empty")),
            other => problems.push(format!(
                "{path}.whenUnsatisfiable: Unsupported value: {other:?}: supported values: \"DoNotSchedule\", \"ScheduleAnyway\""
            )),
        }
        if constraint.label_selector.is_some() {
            problems.push(format!("{path}.labelSelector: Forbidden: constraint must not define a selector, as they deduced for each pod"));
        }
        let same = |other: &&k8s_openapi::api::core::v1::TopologySpreadConstraint| {
            other.topology_key == constraint.topology_key
                && other.when_unsatisfiable == constraint.when_unsatisfiable
        };
        if constraints[..i].iter().any(|other| same(&other)) {
            problems.push(format!(
                "{path}: Duplicate value: {{{}, {}}}",
                constraint.topology_key, constraint.when_unsatisfiable
            ));
        }
    }
    problems
}
