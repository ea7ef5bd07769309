//! The one list of these plugins, none of them in the default profile.

use framework::{PluginError, Registration};
use serde_json::Value;

use crate::*;

/// All of them.
pub fn out_of_tree() -> Vec<Registration> {
    let line = |name, factory| Registration {
        name,
        default_weight: 0,
        default_enabled: false,
        factory,
    };
    vec![
        line(names::CAPACITY_SCHEDULING, capacity_scheduling::new),
        line(names::COSCHEDULING, coscheduling::new),
        line(
            names::LOAD_VARIATION_RISK_BALANCING,
            trimaran::load_variation::new,
        ),
        line(names::LOW_RISK_OVER_COMMITMENT, trimaran::low_risk::new),
        line(
            names::NODE_RESOURCE_TOPOLOGY_MATCH,
            node_resource_topology::new,
        ),
        line(names::NODE_RESOURCES_ALLOCATABLE, allocatable::new),
        line(names::PREEMPTION_TOLERATION, preemption_toleration::new),
        line(names::TARGET_LOAD_PACKING, trimaran::target_load::new),
    ]
}

/// The arguments of one of these plugins with all defaults written out; `None` for another plugin, or one without arguments.
pub fn args_of(name: &str, args: Option<&Value>) -> Option<Result<Value, PluginError>> {
    use args::*;
    Some(match name {
        names::COSCHEDULING => completed::<CoschedulingArgs>(names::COSCHEDULING, args),
        names::LOAD_VARIATION_RISK_BALANCING => {
            completed::<LoadVariationRiskBalancingArgs>(names::LOAD_VARIATION_RISK_BALANCING, args)
        }
        names::LOW_RISK_OVER_COMMITMENT => {
            completed::<LowRiskOverCommitmentArgs>(names::LOW_RISK_OVER_COMMITMENT, args)
        }
        names::NODE_RESOURCE_TOPOLOGY_MATCH => {
            completed::<NodeResourceTopologyMatchArgs>(names::NODE_RESOURCE_TOPOLOGY_MATCH, args)
        }
        names::NODE_RESOURCES_ALLOCATABLE => {
            completed::<NodeResourcesAllocatableArgs>(names::NODE_RESOURCES_ALLOCATABLE, args)
        }
        names::PREEMPTION_TOLERATION => {
            completed::<framework::args::DefaultPreemptionArgs>(names::PREEMPTION_TOLERATION, args)
        }
        names::TARGET_LOAD_PACKING => {
            completed::<TargetLoadPackingArgs>(names::TARGET_LOAD_PACKING, args)
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_plugin_is_made_under_its_name_with_its_defaults() {
        for line in out_of_tree() {
            let handle = plugins::testing::handle();
            let plugin = (line.factory)(None, handle).expect("defaults are valid");
            assert_eq!(plugin.name(), line.name);
            let Some(args) = args_of(line.name, None) else {
                assert_eq!(line.name, names::CAPACITY_SCHEDULING, "has no arguments");
                continue;
            };
            let args = args.expect("defaults are valid");
            assert_eq!(args["kind"], format!("{}Args", line.name));
            // What is written out means the same when read again.
            let again = args_of(line.name, Some(&args)).expect("known");
            assert_eq!(again.expect("valid"), args);
        }
        assert!(args_of("NodeName", None).is_none());
    }

    #[test]
    fn a_field_that_nobody_knows_is_named() {
        for line in out_of_tree() {
            let args = serde_json::json!({"nope": 1});
            let made = (line.factory)(Some(&args), plugins::testing::handle());
            let error = made
                .err()
                .unwrap_or_else(|| panic!("{} takes it", line.name));
            assert!(error.to_string().contains("nope"), "{error}");
        }
    }
}
