//! What the plugins of a profile say of a whole group of pods.

use framework::{Code, GroupProgress, Status};
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
}
