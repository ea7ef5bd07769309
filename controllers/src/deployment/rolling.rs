//! `RollingUpdate`: up within `maxSurge`, down within `maxUnavailable`, one step a pass.

use super::pass::{Pass, cleanup_deployment, new_rs_new_replicas};
use super::progress;
use super::replica_sets::*;

pub(super) fn rollout_rolling(pass: &mut Pass<'_>) {
    let new = pass.ensure_new_replica_set();
    if !reconcile_new_replica_set(pass, new)
        && !reconcile_old_replica_sets(pass, new)
        && progress::is_complete_now(pass)
    {
        cleanup_deployment(pass);
    }
    progress::sync_rollout_status(pass);
}

fn reconcile_new_replica_set(pass: &mut Pass<'_>, new: usize) -> bool {
    let (size, desired) = (
        replicas(&pass.sets[new].rs),
        desired_replicas(pass.observed),
    );
    if size == desired {
        return false;
    }
    let target = if size > desired {
        desired
    } else {
        new_rs_new_replicas(pass, new)
    };
    pass.scale_replica_set(new, target, false)
}

/// Scales old ReplicaSets down: first replicas that are not available anyway, then as far as availability allows.
/// Pods of the new one that are not available count as missing, so that a bad template cannot eat a good one up.
fn reconcile_old_replica_sets(pass: &mut Pass<'_>, new: usize) -> bool {
    let old = pass.active(pass.old());
    if old.is_empty() {
        return false;
    }
    let min_available = desired_replicas(pass.observed) - max_unavailable(pass.observed);
    let new_unavailable = replicas(&pass.sets[new].rs) - available(&pass.sets[new].rs);
    let max_scaled_down = pass.replica_count() - min_available - new_unavailable;
    if max_scaled_down <= 0 {
        return false;
    }
    let cleaned = cleanup_unhealthy_replicas(pass, &old, max_scaled_down);
    let scaled = scale_down_old_replica_sets(pass, &old, min_available);
    cleaned + scaled > 0
}

fn cleanup_unhealthy_replicas(pass: &mut Pass<'_>, old: &[usize], max: i32) -> i32 {
    let mut total = 0;
    for &index in old {
        let rs = &pass.sets[index].rs;
        let unhealthy = replicas(rs) - available(rs);
        if total >= max || replicas(rs) == 0 || unhealthy <= 0 {
            continue;
        }
        let count = unhealthy.min(max - total);
        let size = replicas(rs) - count;
        pass.scale_replica_set(index, size, false);
        total += count;
    }
    total
}

fn scale_down_old_replica_sets(pass: &mut Pass<'_>, old: &[usize], min_available: i32) -> i32 {
    let spare = pass.available_count() - min_available;
    let mut total = 0;
    for &index in old {
        let size = replicas(&pass.sets[index].rs);
        if total >= spare || size == 0 {
            continue;
        }
        let count = size.min(spare - total);
        pass.scale_replica_set(index, size - count, false);
        total += count;
    }
    total
}
