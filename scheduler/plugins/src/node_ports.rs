//! NodePorts: the host ports a pod asks for must be free.
//!
//! Upstream: plugins/nodeports, v1.36.

use std::sync::Arc;

use framework::{
    ActionType, ClusterEventWithHint, CycleState, EnqueueExtensions, EventObject, EventResource,
    FilterPlugin, Fragments, Handle, HostPort, HostPortInfo, NodeInfo, NodeSet, Plugin,
    PluginError, PodInfo, PreFilterPlugin, PreFilterResult, QueueingHint, Sign, Snapshot, Status,
    Verdicts, pod_info::host_ports,
};
use k8s_openapi::api::core::v1::Pod;

use crate::names;

/// Why a node is rejected.
pub const ERR_REASON: &str = "node(s) didn't have free ports for the requested pod ports";

struct NodePorts;

/// Makes the plugin.
///
/// # Errors
/// Never.
pub fn new(
    _args: Option<&serde_json::Value>,
    _handle: Arc<dyn Handle>,
) -> Result<Arc<dyn Plugin>, PluginError> {
    Ok(Arc::new(NodePorts))
}

fn fits(wanted: &[HostPort], used: &HostPortInfo) -> bool {
    used.is_empty() || !wanted.iter().any(|port| used.conflicts(port))
}

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        names::NODE_PORTS
    }
    fn sign(&self, _pod: &PodInfo, _snapshot: &Snapshot) -> Option<Sign> {
        Some(Sign::node(Fragments::HOST_PORTS))
    }
    fn as_pre_filter(&self) -> Option<&dyn PreFilterPlugin> {
        Some(self)
    }
    fn as_filter(&self) -> Option<&dyn FilterPlugin> {
        Some(self)
    }
    fn as_enqueue_extensions(&self) -> Option<&dyn EnqueueExtensions> {
        Some(self)
    }
}

impl PreFilterPlugin for NodePorts {
    fn pre_filter(
        &self,
        _state: &mut CycleState,
        pod: &Arc<PodInfo>,
        _snapshot: &Snapshot,
    ) -> (PreFilterResult, Status) {
        let status = if pod.host_ports.is_empty() {
            Status::skip()
        } else {
            Status::success()
        };
        (PreFilterResult::default(), status)
    }
}

impl FilterPlugin for NodePorts {
    fn filter(&self, _state: &CycleState, pod: &Arc<PodInfo>, node: &NodeInfo) -> Status {
        if fits(&pod.host_ports, node.used_ports()) {
            Status::success()
        } else {
            Status::unschedulable(ERR_REASON)
        }
    }

    fn filter_all(
        &self,
        _state: &CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        verdicts: &mut Verdicts,
    ) -> bool {
        if pod.host_ports.is_empty() {
            return true;
        }
        let taken = |node: &u32| {
            snapshot
                .node(*node)
                .is_some_and(|info| !fits(&pod.host_ports, info.used_ports()))
        };
        let unfit: NodeSet = snapshot
            .columns()
            .with_host_ports
            .iter()
            .filter(taken)
            .collect();
        if !unfit.is_empty() {
            verdicts.reject_all(&unfit, Status::unschedulable(ERR_REASON));
        }
        true
    }
}

impl EnqueueExtensions for NodePorts {
    fn events_to_register(&self) -> Vec<ClusterEventWithHint> {
        vec![
            ClusterEventWithHint::with_hint(
                EventResource::Pod,
                ActionType::DELETE,
                after_pod_deleted,
            ),
            ClusterEventWithHint::always(EventResource::Node, ActionType::ADD),
        ]
    }
}

fn after_pod_deleted(
    pod: &Arc<Pod>,
    old: Option<&EventObject>,
    _new: Option<&EventObject>,
) -> QueueingHint {
    use component_helpers::pod::{node_name, nominated_node_name};
    let Some(deleted) = old.and_then(EventObject::pod) else {
        return QueueingHint::Queue;
    };
    if node_name(deleted).is_none() && nominated_node_name(deleted).is_none() {
        return QueueingHint::QueueSkip;
    }
    let mut freed = HostPortInfo::default();
    host_ports(deleted).iter().for_each(|port| freed.add(port));
    if fits(&host_ports(pod), &freed) {
        QueueingHint::QueueSkip
    } else {
        QueueingHint::Queue
    }
}

#[cfg(test)]
mod tests {
    use framework::testing::{PodBuilder, assert_forms_agree, make_node, make_pod, snapshot};
    use k8s_openapi::api::core::v1::{Container, ContainerPort};

    use super::*;

    fn pod(ports: &[(&str, &str, i32)]) -> PodBuilder {
        let port = |(protocol, ip, port): &(&str, &str, i32)| ContainerPort {
            host_port: Some(*port),
            host_ip: Some((*ip).into()),
            protocol: Some((*protocol).into()),
            container_port: *port,
            ..Default::default()
        };
        let container = Container {
            ports: Some(ports.iter().map(port).collect()),
            ..Default::default()
        };
        make_pod("p").with(|pod| pod.spec.get_or_insert_default().containers = vec![container])
    }

    #[test]
    fn conflicts() {
        let any = "0.0.0.0";
        for (wanted, used, fits) in [
            (vec![], vec![("TCP", any, 80)], true),
            (vec![("TCP", any, 80)], vec![], true),
            (vec![("TCP", any, 80)], vec![("TCP", any, 80)], false),
            (vec![("TCP", any, 80)], vec![("UDP", any, 80)], true),
            (
                vec![("TCP", "127.0.0.1", 80)],
                vec![("TCP", "127.0.0.2", 80)],
                true,
            ),
            (
                vec![("TCP", "127.0.0.1", 80)],
                vec![("TCP", any, 80)],
                false,
            ),
            (vec![("TCP", "", 80)], vec![("TCP", "127.0.0.1", 80)], false),
            (
                vec![("TCP", any, 81), ("TCP", any, 80)],
                vec![("TCP", any, 80)],
                false,
            ),
        ] {
            let (wanted, used) = (pod(&wanted).info(), pod(&used).info());
            let node = make_node("a").info([used.clone()]);
            assert_eq!(
                NodePorts
                    .filter(&CycleState::new(), &wanted, &node)
                    .is_success(),
                fits,
                "{wanted:?} {used:?}"
            );
            let mut snapshot = snapshot([make_node("b").build()], []);
            snapshot.set_node(Arc::new(node));
            assert_forms_agree(&NodePorts, &wanted, &snapshot);
        }
    }

    #[test]
    fn hints() {
        let waiting = pod(&[("TCP", "", 80)]).build();
        let gone = |port, node: Option<&str>| {
            let node = node.map(str::to_owned);
            EventObject::Pod(
                pod(&[("TCP", "", port)])
                    .with(|pod| pod.spec.get_or_insert_default().node_name = node)
                    .build(),
            )
        };
        for (gone, expect) in [
            (gone(80, Some("a")), QueueingHint::Queue),
            (gone(81, Some("a")), QueueingHint::QueueSkip),
            (gone(80, None), QueueingHint::QueueSkip),
        ] {
            assert_eq!(after_pod_deleted(&waiting, Some(&gone), None), expect);
        }
    }
}
