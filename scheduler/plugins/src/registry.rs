//! The one list of the plugins in tree, in the order of the default profile.

use framework::Registration;

use crate::*;

/// All of them. The order is that of upstream's default `multiPoint` list, which is the order in which filters run.
pub fn in_tree() -> Vec<Registration> {
    let line = |name, default_weight, factory| Registration {
        name,
        default_weight,
        default_enabled: true,
        factory,
    };
    vec![
        line(names::SCHEDULING_GATES, 0, scheduling_gates::new),
        line(names::PRIORITY_SORT, 0, priority_sort::new),
        line(names::NODE_NAME, 0, node_name::new),
        line(names::NODE_UNSCHEDULABLE, 0, node_unschedulable::new),
        line(names::TAINT_TOLERATION, 3, taint_toleration::new),
        line(names::NODE_AFFINITY, 2, node_affinity::new),
        line(names::NODE_PORTS, 0, node_ports::new),
        line(names::NODE_RESOURCES_FIT, 1, node_resources_fit::new),
        line(names::VOLUME_RESTRICTIONS, 0, volume_restrictions::new),
        line(names::NODE_VOLUME_LIMITS, 0, node_volume_limits::new),
        line(names::VOLUME_BINDING, 0, volume_binding::new),
        line(names::VOLUME_ZONE, 0, volume_zone::new),
        line(names::POD_TOPOLOGY_SPREAD, 2, pod_topology_spread::new),
        line(names::INTER_POD_AFFINITY, 2, inter_pod_affinity::new),
        // Before preemption: it is better to give up an idle claim than to end a pod.
        line(names::DYNAMIC_RESOURCES, 2, dynamic_resources::new),
        line(names::DEFAULT_PREEMPTION, 0, default_preemption::new),
        line(
            names::NODE_RESOURCES_BALANCED_ALLOCATION,
            1,
            balanced_allocation::new,
        ),
        line(names::IMAGE_LOCALITY, 1, image_locality::new),
        line(names::DEFAULT_BINDER, 0, default_binder::new),
        line(
            names::NODE_DECLARED_FEATURES,
            0,
            node_declared_features::new,
        ),
        Registration {
            default_enabled: false,
            ..line(names::GANG_SCHEDULING, 0, gang_scheduling::new)
        },
        Registration {
            default_enabled: false,
            ..line(
                names::TOPOLOGY_PLACEMENT_GENERATOR,
                0,
                topology_placement::new,
            )
        },
        Registration {
            default_enabled: false,
            ..line(names::POD_GROUP_PODS_COUNT, 1, pod_group_pods_count::new)
        },
    ]
}

/// The same with the plugins that are in the default profile where the feature gate `GenericWorkload` is on.
pub fn in_tree_with_pod_groups() -> Vec<Registration> {
    let mut all = in_tree();
    let gangs = all
        .iter_mut()
        .filter(|line| line.name == names::GANG_SCHEDULING);
    gangs.for_each(|line| line.default_enabled = true);
    all
}

/// Puts those of the feature gate `TopologyAwareWorkloadScheduling` into the default profile, too.
pub fn enable_topology_aware(all: &mut [Registration]) {
    let of_gate = [
        names::TOPOLOGY_PLACEMENT_GENERATOR,
        names::POD_GROUP_PODS_COUNT,
    ];
    let lines = all.iter_mut().filter(|line| of_gate.contains(&line.name));
    lines.for_each(|line| line.default_enabled = true);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_plugin_is_made_under_its_name() {
        for line in in_tree() {
            let plugin =
                (line.factory)(None, crate::testing::handle()).expect("defaults are valid");
            assert_eq!(plugin.name(), line.name);
            assert_eq!(
                line.default_weight > 0,
                plugin.as_score().is_some() || plugin.as_placement_score().is_some(),
                "{}",
                line.name
            );
        }
    }
}
