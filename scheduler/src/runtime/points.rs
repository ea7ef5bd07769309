//! [`Points`]: which plugins a profile has, by extension point.

use std::collections::BTreeSet;
use std::sync::Arc;

use framework::Plugin;

/// The plugins enabled at each point, in order. A plugin is the same object wherever it appears.
#[derive(Default, Clone)]
pub struct Points {
    /// PreEnqueue.
    pub pre_enqueue: Vec<Arc<dyn Plugin>>,
    /// QueueSort; exactly one.
    pub queue_sort: Vec<Arc<dyn Plugin>>,
    /// PreFilter.
    pub pre_filter: Vec<Arc<dyn Plugin>>,
    /// Filter.
    pub filter: Vec<Arc<dyn Plugin>>,
    /// PostFilter.
    pub post_filter: Vec<Arc<dyn Plugin>>,
    /// PreScore.
    pub pre_score: Vec<Arc<dyn Plugin>>,
    /// Score, with weights.
    pub score: Vec<(Arc<dyn Plugin>, i64)>,
    /// Reserve.
    pub reserve: Vec<Arc<dyn Plugin>>,
    /// Permit.
    pub permit: Vec<Arc<dyn Plugin>>,
    /// PreBind.
    pub pre_bind: Vec<Arc<dyn Plugin>>,
    /// Bind; at least one.
    pub bind: Vec<Arc<dyn Plugin>>,
    /// PostBind.
    pub post_bind: Vec<Arc<dyn Plugin>>,
    /// PlacementFeasible.
    pub placement_feasible: Vec<Arc<dyn Plugin>>,
    /// PlacementGenerate; one at most.
    pub placement_generate: Vec<Arc<dyn Plugin>>,
    /// PlacementScore, with weights.
    pub placement_score: Vec<(Arc<dyn Plugin>, i64)>,
}

impl Points {
    /// Every plugin that is enabled anywhere, once.
    pub fn plugins(&self) -> Vec<Arc<dyn Plugin>> {
        let lists = [
            &self.pre_enqueue,
            &self.queue_sort,
            &self.pre_filter,
            &self.filter,
            &self.post_filter,
            &self.pre_score,
            &self.reserve,
            &self.permit,
            &self.pre_bind,
            &self.bind,
            &self.post_bind,
            &self.placement_feasible,
            &self.placement_generate,
        ];
        let all = lists.into_iter().flatten();
        let scores = self.score.iter().chain(&self.placement_score);
        let all = all.chain(scores.map(|(plugin, _)| plugin));
        let mut seen = BTreeSet::new();
        all.filter(|plugin| seen.insert(plugin.name()))
            .cloned()
            .collect()
    }
}
