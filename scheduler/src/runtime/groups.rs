//! What the plugins of a profile say of a whole group of pods.

use framework::{
    Code, GroupProgress, MAX_NODE_SCORE, MIN_NODE_SCORE, Placement, PodGroupAssignments, Snapshot,
    Status,
};
use k8s_openapi::api::scheduling::v1beta1::PodGroup;

use super::Framework;

impl Framework {
    /// Asks every PlacementFeasible whether a group of pods may still come together: the first that says no, or fails, decides; one that waits stands against those content.
    pub fn run_placement_feasible_plugins(
        &self,
        group: &PodGroup,
        progress: GroupProgress,
    ) -> Status {
        let mut waits = Status::success();
        for plugin in &self.points.placement_feasible {
            let (name, Some(point)) = (plugin.name(), plugin.as_placement_feasible()) else {
                continue;
            };
            let status = point.placement_feasible(group, progress);
            match status.code() {
                Code::Success => {}
                Code::Wait if waits.is_success() => waits = status.by(name),
                Code::Wait => {}
                Code::Unschedulable => return status.by(name),
                _ => {
                    let why = format!("running PlacementFeasible plugin {name:?}: {status}");
                    return Status::error(why).by(name);
                }
            }
        }
        waits
    }

    /// Asks PlacementGenerate for the parts of `all` that a group may go to. Without such a plugin it is all.
    ///
    /// # Errors
    /// The plugin's status; one of its own where the plugin finds no part.
    pub fn run_placement_generate_plugins(
        &self,
        group: &PodGroup,
        snapshot: &Snapshot,
        all: Placement,
    ) -> Result<Vec<Placement>, Status> {
        let Some(plugin) = self.points.placement_generate.first() else {
            return Ok(vec![all]);
        };
        let (name, Some(point)) = (plugin.name(), plugin.as_placement_generate()) else {
            return Ok(vec![all]);
        };
        let start = self.shared.metrics().start();
        let result = match point.generate_placements(group, snapshot, all) {
            Ok(none) if none.is_empty() => {
                Err(Status::unschedulable("no feasible placements found").by(name))
            }
            Err(status) => Err(status.by(name)),
            placements => placements,
        };
        let code = result.as_ref().err().map_or(Code::Success, Status::code);
        self.observe_point("PlacementGenerate", code, start);
        result
    }

    /// The weighted sum of what PlacementScore plugins think of each placement.
    ///
    /// # Errors
    /// A plugin failed, or went beyond the range of scores.
    pub fn run_placement_score_plugins(
        &self,
        group: &PodGroup,
        snapshot: &Snapshot,
        assignments: &[PodGroupAssignments<'_>],
    ) -> Result<Vec<i64>, Status> {
        let start = self.shared.metrics().start();
        let totals = self.placement_scores(group, snapshot, assignments);
        let code = totals.as_ref().err().map_or(Code::Success, Status::code);
        self.observe_point("PlacementScore", code, start);
        totals
    }

    fn placement_scores(
        &self,
        group: &PodGroup,
        snapshot: &Snapshot,
        assignments: &[PodGroupAssignments<'_>],
    ) -> Result<Vec<i64>, Status> {
        let mut totals = vec![0i64; assignments.len()];
        for (plugin, weight) in &self.points.placement_score {
            let (name, Some(point)) = (plugin.name(), plugin.as_placement_score()) else {
                continue;
            };
            let failed = |what: &str, status: &dyn std::fmt::Display| {
                let why = format!("running {what}: plugin {name:?} failed with: {status}");
                Status::error(why).by(name)
            };
            let scores = assignments
                .iter()
                .map(|one| point.score_placement(group, snapshot, *one));
            let scores = scores.collect::<Result<Vec<i64>, Status>>();
            let mut scores = scores.map_err(|status| failed("PlacementScore plugins", &status))?;
            let status = point.normalize_placement_scores(group, &mut scores);
            if !status.is_success() {
                let what = "NormalizePlacementScore on PlacementScore plugins";
                return Err(failed(what, &status));
            }
            for (total, score) in totals.iter_mut().zip(scores) {
                if !(MIN_NODE_SCORE..=MAX_NODE_SCORE).contains(&score) {
                    let why = format!(
                        "plugin {name:?} returns an invalid score {score}, it should in the range of [{MIN_NODE_SCORE}, {MAX_NODE_SCORE}] after normalizing"
                    );
                    return Err(Status::error(why).by(name));
                }
                *total = total.saturating_add(score.saturating_mul(*weight));
            }
        }
        Ok(totals)
    }
}
