//! Whether NodeResourcesFitArgs make sense. Upstream: apis/config/validation/validation_pluginargs.go.

use component_helpers::labels::validate_label_key;
use framework::args::{
    NodeResourcesFitArgs, ResourceSpec, ScoringStrategyType, UtilizationShapePoint,
};

/// Every problem, with its field path.
pub(super) fn validate(args: &NodeResourcesFitArgs) -> Vec<String> {
    let mut problems = Vec::new();
    for (i, name) in args.ignored_resources.iter().enumerate() {
        if let Err(reason) = validate_label_key(name) {
            problems.push(format!(
                "ignoredResources[{i}]: Invalid value: {name:?}: {reason}"
            ));
        }
    }
    for (i, group) in args.ignored_resource_groups.iter().enumerate() {
        if group.contains('/') {
            problems.push(format!("ignoredResourceGroups[{i}]: Invalid value: {group:?}: resource group name can't contain '/'"));
        } else if let Err(reason) = validate_label_key(group) {
            problems.push(format!(
                "ignoredResourceGroups[{i}]: Invalid value: {group:?}: {reason}"
            ));
        }
    }
    let strategy = &args.scoring_strategy;
    problems.extend(resources(&strategy.resources));
    let path = "scoringStrategy.requestedToCapacityRatio";
    match (&strategy.requested_to_capacity_ratio, strategy.type_) {
        (None, ScoringStrategyType::RequestedToCapacityRatio) => {
            problems.push(format!(
                "{path}: Required value: must be specified when type is RequestedToCapacityRatio"
            ));
        }
        (Some(param), ScoringStrategyType::RequestedToCapacityRatio) => {
            problems.extend(shape(&param.shape, path))
        }
        (Some(_), _) => problems.push(format!(
            "{path}: Forbidden: must be nil when type is not RequestedToCapacityRatio"
        )),
        (None, _) => {}
    }
    problems
}

fn resources(list: &[ResourceSpec]) -> impl Iterator<Item = String> {
    list.iter().enumerate().filter(|(_, resource)| !(1..=100).contains(&resource.weight)).map(|(i, resource)| {
        let (name, weight) = (&resource.name, resource.weight);
        format!("scoringStrategy.resources[{i}].weight: Invalid value: {weight}: resource weight of {name} not in valid range (0, 100]")
    })
}

fn shape(points: &[UtilizationShapePoint], path: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if points.is_empty() {
        problems.push(format!(
            "{path}.shape: Required value: at least one point must be specified"
        ));
    }
    if let Some(i) = points
        .windows(2)
        .position(|pair| pair[0].utilization >= pair[1].utilization)
    {
        let value = points[i + 1].utilization;
        problems.push(format!("{path}.shape[{}].utilization: Invalid value: {value}: values must be sorted in increasing order", i + 1));
    }
    for (i, point) in points.iter().enumerate() {
        for (field, value, max) in [
            ("utilization", point.utilization, 100),
            ("score", point.score, 10),
        ] {
            if !(0..=max).contains(&value) {
                problems.push(format!("{path}.shape[{i}].{field}: Invalid value: {value}: not in valid range [0, {max}]"));
            }
        }
    }
    problems
}
