//! The decision: which pods to create or delete next, and the status. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use component_helpers::intstr::scaled_value;
use component_helpers::owner_ref::new_controller_ref;
use component_helpers::pod::{
    is_pod_available, is_pod_ready, is_terminal, is_terminating, label, phase,
};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::claims::{claims_of, has_unexpected_controller, is_stale, reowned};
use crate::history::HASH_LABEL;
use crate::pod_control::pod_from_template;

/// What the caches hold about one StatefulSet.
#[derive(Clone, Debug)]
pub struct Observed {
    /// Controlled, selected and named as ours.
    pub pods: Vec<Arc<Pod>>,
    /// That of `status.currentRevision`.
    pub current: Arc<ControllerRevision>,
    /// That of the present template.
    pub update: Arc<ControllerRevision>,
    /// By name: those of the pods there are and of the pods there should be.
    pub claims: BTreeMap<String, Arc<PersistentVolumeClaim>>,
}

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    Create(Box<Pod>),
    CreateClaim(Box<PersistentVolumeClaim>),
    /// Another owner.
    UpdateClaim(Box<PersistentVolumeClaim>),
    /// Its identity is not what it should be.
    Update(Box<Pod>),
    Delete(Arc<Pod>),
    /// Somebody else controls the claim of this name, which the retention policy would have to.
    TellConflict(String),
}

/// The label of a pod with its own name.
const POD_NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
/// The label of a pod with its ordinal.
const POD_INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";

/// The ordinal in a name, if it is of this set.
pub fn ordinal(set: &str, pod: &str) -> Option<i32> {
    let digits = pod.strip_prefix(set)?.strip_prefix('-')?;
    digits
        .parse()
        .ok()
        .filter(|n: &i32| *n >= 0 && n.to_string() == digits)
}

/// Pods made in one pass: a set of two thousand millions is some bytes, and its pods would be all memory there is.
///
/// DIFFERS: upstream has no bound.
/// Source: as many as ReplicaSets' (upstream's `BurstReplicas`).
const MAX_CREATES: usize = 500;

fn name_of(set: &StatefulSet) -> &str {
    set.metadata.name.as_deref().unwrap_or_default()
}

fn name_of_pod(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

fn name_of_revision(revision: &ControllerRevision) -> &str {
    revision.metadata.name.as_deref().unwrap_or_default()
}

fn start(set: &StatefulSet) -> i32 {
    set.spec
        .ordinals
        .as_ref()
        .and_then(|s| s.start)
        .unwrap_or(0)
}

fn replicas(set: &StatefulSet) -> i32 {
    set.spec.replicas.unwrap_or(1)
}

/// One more than the last ordinal.
fn end(set: &StatefulSet) -> i32 {
    start(set).saturating_add(replicas(set))
}

/// The ordinals that a pass looks at: all there should be, up to so many that are missing. Then, whether that is all.
fn ordinals(set: &StatefulSet, pods: &[Arc<Pod>]) -> (Vec<i32>, bool) {
    let there = pods
        .iter()
        .map(|pod| ordinal(name_of(set), name_of_pod(pod)));
    let there: BTreeSet<i32> = there.flatten().collect();
    let (mut all, mut missing) = (Vec::new(), 0);
    for at in start(set)..end(set) {
        if !there.contains(&at) {
            if missing == MAX_CREATES {
                return (all, false);
            }
            missing += 1;
        }
        all.push(at);
    }
    (all, true)
}

/// The names of the pods there should be, as far as the next pass looks at them.
pub fn wanted_names(set: &StatefulSet, pods: &[Arc<Pod>]) -> impl Iterator<Item = String> {
    let name = name_of(set).to_owned();
    let (all, _) = ordinals(set, pods);
    all.into_iter().map(move |at| format!("{name}-{at}"))
}

/// `minReadySeconds`.
pub fn min_ready_seconds(set: &StatefulSet) -> i32 {
    set.spec.min_ready_seconds.unwrap_or(0)
}

fn is_rolling(set: &StatefulSet) -> bool {
    let strategy = set
        .spec
        .update_strategy
        .as_ref()
        .and_then(|s| s.type_.as_deref());
    strategy.unwrap_or("RollingUpdate") == "RollingUpdate"
}

fn partition(set: &StatefulSet) -> Option<i32> {
    let strategy = set.spec.update_strategy.as_ref()?;
    Some(strategy.rolling_update.as_ref()?.partition.unwrap_or(0))
}

fn is_parallel(set: &StatefulSet) -> bool {
    set.spec.pod_management_policy.as_deref() == Some("Parallel")
}

fn is_available(set: &StatefulSet, pod: &Pod, now: Timestamp) -> bool {
    phase(pod) == "Running"
        && is_pod_ready(pod)
        && !is_terminating(pod)
        && is_pod_available(pod, min_ready_seconds(set), now)
}

/// How many pods a rolling update may have unavailable at a time: one, or what `maxUnavailable` says, a share rounded
/// down, and one at least. Upstream: `getStatefulSetMaxUnavailable`.
pub fn max_unavailable(set: &StatefulSet) -> usize {
    let rolling = set
        .spec
        .update_strategy
        .as_ref()
        .and_then(|s| s.rolling_update.as_ref());
    let one = IntOrString::Int(1);
    let wanted = rolling.and_then(|r| r.max_unavailable.as_ref());
    // What cannot be read is for the API's validation, which has let nothing of the kind through.
    let count = scaled_value(wanted.unwrap_or(&one), replicas(set), false).unwrap_or(1);
    usize::try_from(count).unwrap_or(1).max(1)
}

/// Of the pods there should be: those that are not available, or going.
pub fn unavailable(set: &StatefulSet, pods: &[Arc<Pod>], now: Timestamp) -> usize {
    let wanted = start(set)..end(set);
    pods.iter()
        .filter(|p| ordinal(name_of(set), name_of_pod(p)).is_some_and(|at| wanted.contains(&at)))
        .filter(|p| is_unavailable(set, p, now))
        .count()
}

/// Upstream: `isUnavailable`; what is not running is not ready.
fn is_unavailable(set: &StatefulSet, pod: &Pod, now: Timestamp) -> bool {
    !is_pod_available(pod, min_ready_seconds(set), now) || is_terminating(pod)
}

/// `updateStrategy: Recreate`, which the API lets through only where its own gate is on.
pub fn is_recreate(set: &StatefulSet) -> bool {
    let strategy = set.spec.update_strategy.as_ref();
    strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate")
}

/// Decides one pass. `many`: a rolling update heeds `maxUnavailable` (gate MaxUnavailableStatefulSet).
pub fn sync(set: &StatefulSet, observed: &Observed, many: bool, now: Timestamp) -> Vec<Step> {
    let mut steps = Vec::new();
    if set.metadata.deletion_timestamp.is_some() {
        return steps;
    }
    let parallel = is_parallel(set);
    let (first, end) = (start(set), end(set));
    let mut pods: BTreeMap<i32, &Arc<Pod>> = observed
        .pods
        .iter()
        .filter_map(|p| Some((ordinal(name_of(set), p.metadata.name.as_deref()?)?, p)))
        .collect();
    let (ordinals, complete) = ordinals(set, &observed.pods);
    for at in ordinals {
        let Some(pod) = pods.get(&at) else {
            steps.extend(create(set, observed, at));
            if !parallel {
                return steps;
            }
            continue;
        };
        if is_terminal(pod) && !is_terminating(pod) {
            steps.push(Step::Delete((*pod).clone()));
        }
        if phase(pod) == "Pending" {
            steps.extend(missing_claims(set, observed, name_of_pod(pod)));
        }
        if !parallel && !is_available(set, pod, now) {
            return steps;
        }
        if !is_terminating(pod) && label(pod, POD_NAME_LABEL) != Some(name_of_pod(pod)) {
            let mut pod = (***pod).clone();
            set_identity(&mut pod, at);
            steps.push(Step::Update(Box::new(pod)));
        }
        steps.extend(claims_to_reown(set, observed, pod, false));
    }
    if !complete {
        // The pods that are made now bring the next pass.
        return steps;
    }
    let wanted: BTreeMap<_, _> = pods.extract_if(first..end, |_, _| true).collect();
    for pod in pods.values() {
        steps.extend(claims_to_reown(set, observed, pod, true));
    }
    // One that is not available halts the way down, unless it is the first such pod itself.
    let first_unavailable = pods
        .iter()
        .find(|(_, p)| !is_available(set, p, now))
        .map(|(at, _)| *at);
    for (at, pod) in pods.into_iter().rev() {
        let halted = !parallel && !is_available(set, pod, now) && first_unavailable != Some(at);
        if !is_terminating(pod) && !halted {
            steps.push(Step::Delete(pod.clone()));
        }
        if !parallel {
            return steps;
        }
    }
    // What is only told, in every pass, holds no update up.
    let is_told = |step: &Step| matches!(step, Step::TellConflict(_));
    if !steps.iter().all(is_told) || !is_rolling(set) {
        return steps;
    }
    if many {
        let pods: Vec<_> = wanted.into_values().collect();
        steps.extend(update_many(set, observed, &pods, now));
        return steps;
    }
    for (at, pod) in wanted.into_iter().rev() {
        if at - first < partition(set).unwrap_or(0) {
            break;
        }
        if label(pod, HASH_LABEL) != Some(name_of_revision(&observed.update))
            && !is_terminating(pod)
        {
            steps.push(Step::Delete(pod.clone()));
            break;
        }
        if !is_available(set, pod, now) {
            break;
        }
    }
    steps
}

/// Takes pods of an older revision, the last first, as long as no more than `maxUnavailable` are unavailable. `pods` are
/// all there should be, by ordinal. Upstream: `updateStatefulSetAfterInvariantEstablished`.
fn update_many(
    set: &StatefulSet,
    observed: &Observed,
    pods: &[&Arc<Pod>],
    now: Timestamp,
) -> Vec<Step> {
    let is_old = |pod: &Pod| label(pod, HASH_LABEL) != Some(name_of_revision(&observed.update));
    let unavailable = pods.iter().filter(|p| is_unavailable(set, p, now)).count();
    let mut budget = max_unavailable(set).saturating_sub(unavailable);
    let from = usize::try_from(partition(set).unwrap_or(0)).unwrap_or(0);
    let targets = || pods.iter().skip(from).rev().filter(|p| is_old(p));
    let mut steps = Vec::new();
    if is_parallel(set) {
        // What is unavailable already costs nothing: those first, else the good ones above would eat up the budget and
        // a set with a broken revision would never get past it.
        let broken = |p: &&&Arc<Pod>| is_unavailable(set, p, now) && !is_terminating(p);
        steps.extend(targets().filter(broken).map(|p| Step::Delete((*p).clone())));
        let good = targets().filter(|p| !is_unavailable(set, p, now));
        steps.extend(good.take(budget).map(|p| Step::Delete((*p).clone())));
        return steps;
    }
    for pod in targets().filter(|p| !is_terminating(p)) {
        if budget == 0 {
            break;
        }
        budget -= 1;
        steps.push(Step::Delete((*pod).clone()));
    }
    steps
}

/// The claims that a pod mounts and that are not there.
fn missing_claims(set: &StatefulSet, observed: &Observed, pod_name: &str) -> Vec<Step> {
    claims_of(set, pod_name)
        .into_iter()
        .filter(|(_, claim)| {
            let name = claim.metadata.name.as_deref().unwrap_or_default();
            !observed.claims.contains_key(name)
        })
        .map(|(_, claim)| Step::CreateClaim(Box::new(claim)))
        .collect()
}

/// The claims of a pod whose owners are not what the retention policy wants.
fn claims_to_reown<'a>(
    set: &'a StatefulSet,
    observed: &'a Observed,
    pod: &'a Pod,
    scaled_down: bool,
) -> impl Iterator<Item = Step> + 'a {
    claims_of(set, name_of_pod(pod))
        .into_iter()
        .filter_map(|(_, claim)| observed.claims.get(claim.metadata.name.as_ref()?))
        .flat_map(move |claim| {
            let conflict = has_unexpected_controller(claim, set, pod)
                .then(|| Step::TellConflict(claim.metadata.name.clone().unwrap_or_default()));
            let update = reowned(claim, set, pod, scaled_down).map(|owners| {
                let mut claim = (**claim).clone();
                claim.metadata.owner_references = Some(owners);
                Step::UpdateClaim(Box::new(claim))
            });
            conflict.into_iter().chain(update)
        })
}

fn set_identity(pod: &mut Pod, at: i32) {
    let name = pod.metadata.name.clone().unwrap_or_default();
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(POD_NAME_LABEL.to_owned(), name);
    labels.insert(POD_INDEX_LABEL.to_owned(), at.to_string());
}

/// The pod with its claims before it; nothing while a claim of its predecessor is still going.
fn create(set: &StatefulSet, observed: &Observed, at: i32) -> Vec<Step> {
    let name = format!("{}-{at}", name_of(set));
    let claims = claims_of(set, &name);
    let stale = claims
        .iter()
        .filter_map(|(_, claim)| observed.claims.get(claim.metadata.name.as_ref()?))
        .any(|claim| is_stale(claim, &name, None));
    if stale {
        return Vec::new();
    }
    let mut steps = missing_claims(set, observed, &name);
    let pod = new_pod(set, observed, at, &claims);
    steps.push(Step::Create(Box::new(pod)));
    steps
}

fn new_pod(
    set: &StatefulSet,
    observed: &Observed,
    at: i32,
    claims: &[(String, PersistentVolumeClaim)],
) -> Pod {
    let current = is_rolling(set)
        && match partition(set) {
            Some(partition) => at - start(set) < partition,
            None => {
                let status = set.status.as_ref();
                let current = status.and_then(|s| s.current_replicas).unwrap_or(0);
                at < start(set).saturating_add(current)
            }
        };
    let revision = if current {
        &observed.current
    } else {
        &observed.update
    };
    let template =
        component_base::json::from_value::<PodTemplateSpec>(&revision.data.0["spec"]["template"])
            .unwrap_or_else(|_| set.spec.template.clone());
    let spec = set.spec.clone();
    let name = format!("{}-{at}", name_of(set));
    let owner = new_controller_ref::<StatefulSet>(&set.metadata);
    let mut pod = pod_from_template(
        &template,
        set.metadata.namespace.clone(),
        format!("{}-", name_of(set)),
        owner,
    );
    pod.metadata.name = Some(name.clone());
    set_identity(&mut pod, at);
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(HASH_LABEL.to_owned(), name_of_revision(revision).to_owned());
    let pod_spec = pod.spec.get_or_insert_default();
    pod_spec.hostname = Some(name.clone());
    pod_spec.subdomain = spec.service_name.clone().filter(|s| !s.is_empty());
    for (volume, claim) in claims {
        let volumes = pod_spec.volumes.get_or_insert_default();
        volumes.retain(|v| v.name != *volume);
        volumes.push(Volume {
            name: volume.clone(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim.metadata.name.clone().unwrap_or_default(),
                read_only: None,
            }),
            ..Volume::default()
        });
    }
    pod
}

/// The status by what is observed now.
pub fn calculate_status(
    set: &StatefulSet,
    observed: &Observed,
    now: Timestamp,
) -> StatefulSetStatus {
    let old = set.status.clone().unwrap_or_default();
    let count = |test: &dyn Fn(&Pod) -> bool| {
        i32::try_from(observed.pods.iter().filter(|p| test(p)).count()).unwrap_or(i32::MAX)
    };
    let nonzero = |n: i32| Some(n).filter(|n| *n != 0);
    let of = |revision: &ControllerRevision| {
        let name = name_of_revision(revision).to_owned();
        count(&|p| label(p, HASH_LABEL) == Some(&name) && !is_terminating(p))
    };
    let ready = count(&|p| phase(p) == "Running" && is_pod_ready(p));
    let (mut current, updated) = (of(&observed.current), of(&observed.update));
    let mut current_revision = name_of_revision(&observed.current).to_owned();
    let total = count(&|_| true);
    // The update is through.
    if is_rolling(set) && updated == total && ready == total && updated == replicas(set) {
        current = updated;
        current_revision = name_of_revision(&observed.update).to_owned();
    }
    StatefulSetStatus {
        replicas: total,
        ready_replicas: nonzero(ready),
        // The API server wants it also as zero.
        available_replicas: Some(count(&|p| is_available(set, p, now))),
        current_replicas: nonzero(current),
        updated_replicas: nonzero(updated),
        current_revision: Some(current_revision),
        update_revision: Some(name_of_revision(&observed.update).to_owned()),
        observed_generation: set.metadata.generation,
        collision_count: old.collision_count.or(Some(0)),
        conditions: old.conditions,
    }
}
