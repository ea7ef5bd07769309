//! `Recreate`: all old pods go before the first new one comes.

use std::sync::Arc;

use component_helpers::owner_ref::controller_uid;
use component_helpers::pod::is_terminal;
use k8s_openapi::api::core::v1::Pod;

use super::pass::{Pass, cleanup_deployment};
use super::progress;
use super::replica_sets::*;

pub(super) fn rollout_recreate(pass: &mut Pass<'_>, pods: &[Arc<Pod>]) {
    pass.sync_revision();
    let mut scaled_down = false;
    for index in pass.active(pass.old()) {
        scaled_down |= pass.scale_replica_set(index, 0, false);
    }
    if scaled_down || old_pods_running(pass, pods) {
        return progress::sync_rollout_status(pass);
    }
    let new = pass.ensure_new_replica_set();
    pass.scale_replica_set(new, desired_replicas(pass.observed), false);
    if progress::is_complete_now(pass) {
        cleanup_deployment(pass);
    }
    progress::sync_rollout_status(pass);
}

/// A pod in any phase but a final one may still run, also one whose node does not answer.
fn old_pods_running(pass: &Pass<'_>, pods: &[Arc<Pod>]) -> bool {
    let new_uid = pass.new_rs().and_then(|rs| rs.metadata.uid.as_deref());
    pass.old().into_iter().any(|i| actual(&pass.sets[i].rs) > 0)
        || pods.iter().any(|pod| {
            (new_uid.is_none() || controller_uid(&pod.metadata) != new_uid) && !is_terminal(pod)
        })
}
