//! PowerCap: a pod may say how much power its node may draw, and nodes that draw less are better.
//!
//! Shows the forms that make a plugin cheap on thousands of nodes: [`FilterPlugin::filter_all`] and [`ScorePlugin::score_all`] read a column and judge each
//! *value* once, and [`Plugin::sign`] says what the answer depends on, so that for the next equal pod only nodes that changed are judged.

use std::sync::Arc;

use framework::k8s_openapi::api::core::v1::Pod;
use framework::{
    ActionType, ClusterEventWithHint, CycleState, EnqueueExtensions, EventResource, FilterPlugin,
    Fragments, LabelColumn, NodeIndex, NodeInfo, NodeSet, Normalize, Plugin, PodInfo,
    PreFilterPlugin, PreFilterResult, Registry, ScorePlugin, Sign, Snapshot, Status, Verdicts,
};

/// What a configuration calls it.
pub const NAME: &str = "PowerCap";
/// The label of a node: watts a core, a whole number.
pub const WATTS_LABEL: &str = "example.com/watts-per-core";
/// The annotation of a pod: the most it puts up with.
pub const MAX_WATTS_ANNOTATION: &str = "example.com/max-watts-per-core";
/// What a node counts that says nothing, or no number.
const UNKNOWN_WATTS: i64 = 1000;

const STATE: &str = "PreFilterPowerCap";
const TOO_MUCH: &str = "node(s) drew more power than the pod allows";

/// The plugin.
pub struct PowerCap;

/// For `kube_scheduler::run`.
pub fn registry() -> Registry {
    Registry::new().with_plugin(NAME, |_, _| Ok(Arc::new(PowerCap)))
}

fn watts(label: Option<&str>) -> i64 {
    let number = label.and_then(|label| label.parse().ok());
    number.filter(|watts| *watts >= 0).unwrap_or(UNKNOWN_WATTS)
}

fn watts_of(node: &NodeInfo) -> i64 {
    watts(node.labels().get(WATTS_LABEL).map(String::as_str))
}

fn annotation(pod: &Pod) -> Option<&str> {
    let annotations = pod.metadata.annotations.as_ref()?;
    annotations.get(MAX_WATTS_ANNOTATION).map(String::as_str)
}

/// What nodes draw: a number for each value of the label, whatever the number of nodes.
struct Column {
    label: Arc<LabelColumn>,
    watts: Vec<i64>,
}

impl Column {
    fn new(snapshot: &Snapshot) -> Self {
        let label = snapshot.label_column(WATTS_LABEL);
        // The first value stands for nodes without the label.
        let values = label.values.iter().enumerate();
        let watts = values.map(|(id, value)| watts(Some(value).filter(|_| id > 0).map(|v| &**v)));
        let watts = watts.collect();
        Column { label, watts }
    }

    fn of(&self, node: NodeIndex) -> i64 {
        // The column is empty where no node has the label.
        let id = self.label.ids.get(node as usize);
        id.map_or(UNKNOWN_WATTS, |id| self.watts[*id as usize])
    }
}

impl Plugin for PowerCap {
    fn name(&self) -> &'static str {
        NAME
    }
    // Of the pod it reads an annotation, which is none of the usual fragments, and of the cluster the node alone.
    fn sign(&self, pod: &PodInfo, _: &Snapshot) -> Option<Sign> {
        Some(Sign::node(match annotation(&pod.pod) {
            Some(_) => Fragments::MORE,
            None => Fragments::NONE,
        }))
    }
    fn sign_more(&self, pod: &PodInfo, _: &Snapshot, key: &mut Vec<u8>) {
        key.extend(annotation(&pod.pod).unwrap_or_default().as_bytes());
    }
    fn as_enqueue_extensions(&self) -> Option<&dyn EnqueueExtensions> {
        Some(self)
    }
    fn as_pre_filter(&self) -> Option<&dyn PreFilterPlugin> {
        Some(self)
    }
    fn as_filter(&self) -> Option<&dyn FilterPlugin> {
        Some(self)
    }
    fn as_score(&self) -> Option<&dyn ScorePlugin> {
        Some(self)
    }
}

impl EnqueueExtensions for PowerCap {
    fn events_to_register(&self) -> Vec<ClusterEventWithHint> {
        let node = ActionType::ADD | ActionType::UPDATE_NODE_LABEL;
        vec![ClusterEventWithHint::always(EventResource::Node, node)]
    }
}

impl PreFilterPlugin for PowerCap {
    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        _: &Snapshot,
    ) -> (PreFilterResult, Status) {
        let all = PreFilterResult::default();
        let Some(text) = annotation(&pod.pod) else {
            return (all, Status::skip());
        };
        match text.parse::<i64>().ok().filter(|most| *most >= 0) {
            Some(most) => {
                state.write(STATE, most);
                (all, Status::success())
            }
            None => {
                let why = format!(
                    "metadata.annotations[{MAX_WATTS_ANNOTATION}]: Invalid value: {text:?}: must be a whole number of watts"
                );
                (all, Status::unresolvable(why))
            }
        }
    }
}

impl FilterPlugin for PowerCap {
    fn filter(&self, state: &CycleState, _: &Arc<PodInfo>, node: &NodeInfo) -> Status {
        match state.read::<i64>(STATE) {
            Some(most) if watts_of(node) > *most => Status::unresolvable(TOO_MUCH),
            _ => Status::success(),
        }
    }

    fn filter_all(
        &self,
        state: &CycleState,
        _: &Arc<PodInfo>,
        snapshot: &Snapshot,
        verdicts: &mut Verdicts,
    ) -> bool {
        if let Some(most) = state.read::<i64>(STATE) {
            let column = Column::new(snapshot);
            verdicts.reject_where(
                || Status::unresolvable(TOO_MUCH),
                |node| column.of(node) > *most,
            );
        }
        true
    }
}

impl ScorePlugin for PowerCap {
    fn score(&self, _: &CycleState, _: &Arc<PodInfo>, node: &NodeInfo) -> Result<i64, Status> {
        Ok(watts_of(node))
    }

    fn score_all(
        &self,
        _: &CycleState,
        _: &Arc<PodInfo>,
        snapshot: &Snapshot,
        nodes: &NodeSet,
        scores: &mut [i64],
    ) -> bool {
        let column = Column::new(snapshot);
        for node in nodes.iter() {
            scores[node as usize] = column.of(node);
        }
        true
    }

    // The one that draws the most gets 0.
    fn normalize(&self) -> Normalize {
        Normalize::ByMax { reverse: true }
    }
}
