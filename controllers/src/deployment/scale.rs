//! A change of `spec.replicas` during a rollout or a pause: shared out among the ReplicaSets in proportion to their size.

use super::pass::Pass;
use super::replica_sets::*;
use super::revision::{desired_replicas_annotation, max_replicas_annotation};

pub(super) fn scale(pass: &mut Pass<'_>) {
    let desired = desired_replicas(pass.observed);
    if let Some(only) = find_active_or_latest(pass) {
        pass.scale_replica_set(only, desired, false);
        return;
    }
    // The rollout is over, an old ReplicaSet was adopted meanwhile.
    if is_saturated(pass) {
        for index in pass.active(pass.old()) {
            pass.scale_replica_set(index, 0, false);
        }
        return;
    }
    if is_rolling_update(pass.observed) {
        scale_proportionally(pass);
    }
}

/// The only one with replicas; the newest if none has any; `None` if several have.
fn find_active_or_latest(pass: &Pass<'_>) -> Option<usize> {
    let active = pass.active((0..pass.sets.len()).collect());
    match active[..] {
        [] => pass.new.or_else(|| pass.old().last().copied()),
        [only] => Some(only),
        _ => None,
    }
}

/// The new ReplicaSet has all the replicas, and knows it.
fn is_saturated(pass: &Pass<'_>) -> bool {
    let desired = desired_replicas(pass.observed);
    pass.new_rs().is_some_and(|rs| {
        replicas(rs) == desired
            && desired_replicas_annotation(rs) == Some(desired)
            && available(rs) == desired
    })
}

fn scale_proportionally(pass: &mut Pass<'_>) {
    let desired = desired_replicas(pass.observed);
    let allowed = if desired > 0 {
        desired.saturating_add(max_surge(pass.observed))
    } else {
        0
    };
    let mut active = pass.active((0..pass.sets.len()).collect());
    let to_add = allowed
        - active
            .iter()
            .map(|i| replicas(&pass.sets[*i].rs))
            .fold(0, i32::saturating_add);
    // The largest first; of the same size the newer grows first and the older shrinks first.
    let order = if to_add > 0 {
        by_size_newer
    } else {
        by_size_older
    };
    active.sort_by(|a, b| order(&pass.sets[*a].rs, &pass.sets[*b].rs));

    let mut added = 0;
    let mut sizes = Vec::with_capacity(active.len());
    for index in &active {
        let rs = &pass.sets[*index].rs;
        let proportion = if to_add == 0 || to_add == added {
            0
        } else if to_add > 0 {
            replica_set_fraction(pass, *index).min(to_add - added)
        } else {
            replica_set_fraction(pass, *index).max(to_add - added)
        };
        sizes.push(replicas(rs) + proportion);
        added += proportion;
    }
    if let Some(largest) = sizes.first_mut() {
        *largest = (*largest + to_add - added).max(0);
    }
    for (index, size) in active.into_iter().zip(sizes) {
        pass.scale_replica_set(index, size, true);
    }
}

/// By how much this one would grow if all kept their share of the Deployment.
fn replica_set_fraction(pass: &Pass<'_>, index: usize) -> i32 {
    let rs = &pass.sets[index].rs;
    let desired = desired_replicas(pass.observed);
    if desired == 0 {
        return -replicas(rs);
    }
    let before = max_replicas_annotation(rs)
        .filter(|n| *n != 0)
        // Someone took the annotation away: the current size is the best guess.
        .unwrap_or_else(|| {
            pass.observed
                .status
                .as_ref()
                .and_then(|s| s.replicas)
                .unwrap_or(0)
        });
    if before == 0 {
        return 0;
    }
    let max = desired.saturating_add(max_surge(pass.observed));
    let size = f64::from(replicas(rs)) * f64::from(max) / f64::from(before);
    size.round() as i32 - replicas(rs)
}
