//! The decision: a Deployment and what is observed -> what to write. Pure: no client, no clock, no async.
//!
//! One pass works on drafts of the ReplicaSets and of the Deployment, and at the end turns every difference to what
//! was observed into one write each. Writes carry the observed resourceVersion, so a stale cache costs a retry, never a
//! wrong step.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

pub use super::pass::{Action, Notice, Observed, Plan};
use super::pass::{Pass, cleanup_deployment};
use super::reason;
use super::replica_sets::*;
use super::{progress, recreate, revision, rolling, scale};

/// Decides one pass. `now` is cut to seconds, as the API stores it.
pub fn sync(deployment: &Deployment, observed: &Observed, now: Timestamp) -> Plan {
    let mut pass = Pass::new(deployment, observed, now);
    let spec = deployment.spec.clone();
    if spec.selector == LabelSelector::default() {
        pass.selecting_all();
        return pass.finish();
    }
    if deployment.metadata.deletion_timestamp.is_some() {
        pass.sync_revision();
        progress::sync_deployment_status(&mut pass);
        return pass.finish();
    }
    progress::check_paused_conditions(&mut pass);
    let paused = spec.paused.unwrap_or(false);
    if !paused && let Some(revision) = revision::rollback_to(deployment) {
        rollback(&mut pass, revision);
        return pass.finish();
    }
    if paused || is_scaling_event(&pass) {
        pass.sync_revision();
        scale::scale(&mut pass);
        if paused && revision::rollback_to(deployment).is_none() {
            cleanup_deployment(&mut pass);
        }
        progress::sync_deployment_status(&mut pass);
        return pass.finish();
    }
    match strategy_type(deployment) {
        "Recreate" => recreate::rollout_recreate(&mut pass, &observed.pods),
        _ => rolling::rollout_rolling(&mut pass),
    }
    pass.finish()
}

/// What to do when the name of the new ReplicaSet is taken by `existing`: nothing if it is the one we meant (a slow
/// cache), else write a higher collision count, which gives another name.
pub fn resolve_name_conflict(deployment: &Deployment, existing: &ReplicaSet) -> Option<Action> {
    let is_ours = component_helpers::owner_ref::is_controlled_by(
        &existing.metadata,
        deployment.metadata.uid.as_deref().unwrap_or_default(),
    );
    if is_ours
        && template(existing).is_some_and(|t| equal_ignore_hash(t, &deployment.spec.template))
    {
        return None;
    }
    let mut deployment = deployment.clone();
    let status = deployment.status.get_or_insert_default();
    status.collision_count = Some(status.collision_count.unwrap_or(0).saturating_add(1));
    Some(Action::UpdateStatus {
        deployment: Box::new(deployment),
    })
}

/// What users get to see when the new ReplicaSet could not be created.
pub fn record_create_failure(
    deployment: &Deployment,
    replica_set: &str,
    error: &str,
    now: Timestamp,
) -> Vec<Action> {
    let message = format!("Failed to create new replica set {replica_set:?}: {error}");
    let mut actions = Vec::new();
    if progress_deadline_seconds(deployment).is_some() {
        let mut pass = Pass::new(deployment, &Observed::default(), now);
        pass.set_condition(
            reason::PROGRESSING,
            "False",
            reason::FAILED_RS_CREATE,
            message.clone(),
        );
        if pass.deployment != *deployment {
            actions.push(Action::UpdateStatus {
                deployment: Box::new(pass.deployment),
            });
        }
    }
    actions.push(Action::Event(Notice {
        warning: true,
        reason: reason::FAILED_RS_CREATE,
        message,
    }));
    actions
}

/// Whether the Deployment's size changed since its ReplicaSets were last scaled.
fn is_scaling_event(pass: &Pass<'_>) -> bool {
    let desired = desired_replicas(pass.observed);
    pass.all()
        .filter(|rs| replicas(rs) > 0)
        .filter_map(revision::desired_replicas_annotation)
        .any(|annotated| annotated != desired)
}

/// Copies the template of the asked revision into the Deployment; the next pass rolls it out.
fn rollback(pass: &mut Pass<'_>, revision: i64) {
    let warn = |pass: &mut Pass<'_>, reason, message: String| {
        pass.events.push(Notice {
            warning: true,
            reason,
            message,
        })
    };
    pass.sync_revision();
    pass.write_spec = true;
    revision::clear_rollback_to(&mut pass.deployment);
    let name = pass.observed.metadata.name.clone().unwrap_or_default();
    let wanted = if revision == 0 {
        revision::last_revision(pass.all())
    } else {
        revision
    };
    if wanted == 0 {
        return warn(
            pass,
            reason::ROLLBACK_REVISION_NOT_FOUND,
            "Unable to find last revision.".to_owned(),
        );
    }
    let Some(index) =
        (0..pass.sets.len()).find(|i| revision::revision(&pass.sets[*i].rs) == Some(wanted))
    else {
        return warn(
            pass,
            reason::ROLLBACK_REVISION_NOT_FOUND,
            "Unable to find the revision to rollback to.".to_owned(),
        );
    };
    let rs = pass.sets[index].rs.clone();
    let Some(target) = template(&rs) else {
        return;
    };
    let spec = &mut pass.deployment.spec;
    if equal_ignore_hash(target, &spec.template) {
        let message = format!(
            "The rollback revision contains the same template as current deployment {name:?}"
        );
        return warn(pass, reason::ROLLBACK_TEMPLATE_UNCHANGED, message);
    }
    spec.template = target.clone();
    if let Some(labels) = spec
        .template
        .metadata
        .as_mut()
        .and_then(|m| m.labels.as_mut())
    {
        labels.remove(POD_TEMPLATE_HASH);
    }
    revision::set_deployment_annotations_to(&mut pass.deployment, &rs);
    revision::clear_rollback_to(&mut pass.deployment);
    let message = format!("Rolled back deployment {name:?} to revision {wanted}");
    pass.events.push(Notice {
        warning: false,
        reason: reason::ROLLBACK_DONE,
        message,
    });
}
