//! PreferLabel: nodes that have a label are better. The smallest plugin there is.

use std::sync::Arc;

use framework::serde_json::Value;
use framework::{
    CycleState, Fragments, Handle, MAX_NODE_SCORE, MIN_NODE_SCORE, NodeInfo, Plugin, PluginError,
    PodInfo, Registry, ScorePlugin, Sign, Snapshot, Status, args,
};

/// What a configuration calls it.
pub const NAME: &str = "PreferLabel";

/// Its `pluginConfig`.
#[derive(Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Args {
    /// The key of the label.
    label: String,
}

struct PreferLabel(Args);

/// For `kube_scheduler::run`.
pub fn registry() -> Registry {
    Registry::new().with_plugin(NAME, new)
}

fn new(args: Option<&Value>, _: Arc<dyn Handle>) -> Result<Arc<dyn Plugin>, PluginError> {
    let args: Args = args::decode(NAME, args)?;
    if args.label.is_empty() {
        return Err(PluginError::invalid(NAME, "label: Required value"));
    }
    Ok(Arc::new(PreferLabel(args)))
}

impl Plugin for PreferLabel {
    fn name(&self) -> &'static str {
        NAME
    }
    // It reads nothing of the pod, and of the cluster the node alone: what is kept about a node serves until the node changes.
    fn sign(&self, _: &PodInfo, _: &Snapshot) -> Option<Sign> {
        Some(Sign::node(Fragments::NONE))
    }
    fn as_score(&self) -> Option<&dyn ScorePlugin> {
        Some(self)
    }
}

impl ScorePlugin for PreferLabel {
    fn score(&self, _: &CycleState, _: &Arc<PodInfo>, node: &NodeInfo) -> Result<i64, Status> {
        match node.labels().contains_key(&self.0.label) {
            true => Ok(MAX_NODE_SCORE),
            false => Ok(MIN_NODE_SCORE),
        }
    }
}
