//! The decisions about a Pod: which claims it lacks, what they look like, which it is to be noted as a user of. Pure.

use std::collections::BTreeMap;

use component_helpers::pod;
use component_helpers::resource_claim::{
    NameError, POD_RESOURCE_CLAIM_ANNOTATION, claim_name, consumer, entries, extended_status,
    is_allocated, is_for_pod, is_reserved_for_pod, statuses,
};
use controller_runtime::executor::Target;
use controller_runtime::{Action, PatchKind};
use k8s_openapi::api::core::v1::{Pod, PodResourceClaim};
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimTemplate};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::json;

/// Who writes `status.resourceClaimStatuses`.
const FIELD_MANAGER: &str = "ResourceClaimController";
/// Bytes of a generated name before its hyphen and its five random characters.
const MAX_BASE: usize = 57;

/// Whether a Pod has anything to do with claims.
pub(super) fn has_claims(pod: &Pod) -> bool {
    !entries(pod).is_empty() || extended_status(pod).is_some()
}

/// Whether it is certain that no container of the Pod runs or will run. Upstream: `isPodDone`.
pub(super) fn is_done(pod: &Pod) -> bool {
    pod::is_terminal(pod) || pod::is_terminating(pod) && pod::node_name(pod).is_none()
}

/// The pod group a Pod belongs to.
pub(super) fn pod_group(pod: &Pod) -> Option<&str> {
    let group = pod.spec.as_ref()?.scheduling_group.as_ref()?;
    group.pod_group_name.as_deref()
}

/// Whether a worker must look at the Pod: a claim is to be made, or to be reserved. Upstream: `podNeedsWork`.
///
/// DIFFERS: a Pod that is done gets no claims any more. Upstream makes those anew that it has just deleted because the Pod is done.
pub(super) fn needs_work<C: AsRef<ResourceClaim>>(
    pod: &Pod,
    claim: impl Fn(&str) -> Option<C>,
) -> bool {
    if pod::is_terminating(pod) || is_done(pod) {
        return false;
    }
    entries(pod).iter().any(|entry| {
        let name = match claim_name(pod, entry) {
            Err(_) => return true,
            Ok(None) => return false,
            Ok(Some(name)) => name,
        };
        match claim(name.name) {
            None => entry.resource_claim_template_name.is_some(),
            Some(claim) if name.must_be_owned && is_for_pod(pod, claim.as_ref()).is_err() => false,
            Some(claim) => needs_reservation(pod, claim.as_ref()),
        }
    })
}

/// Whether the Pod runs on a node and uses a claim without being noted as a user.
fn needs_reservation(pod: &Pod, claim: &ResourceClaim) -> bool {
    pod::node_name(pod).is_some() && is_allocated(claim) && !is_reserved_for_pod(pod, claim)
}

/// What an entry of `spec.resourceClaims` wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted<'a> {
    /// Nothing is to be made: the user makes the claim, or none is needed.
    Nothing,
    /// The claim on record, made anew from the template when it is gone or another's.
    Recorded { name: &'a str, template: &'a str },
    /// A claim from the template.
    Claim { template: &'a str },
}

/// What an entry wants.
///
/// # Errors
/// When it is not understood.
pub(super) fn wanted<'a>(
    pod: &'a Pod,
    entry: &'a PodResourceClaim,
) -> Result<Wanted<'a>, NameError> {
    let name = match claim_name(pod, entry) {
        Err(NameError::NotCreated { .. }) => None,
        Err(error) => return Err(error),
        Ok(None) => return Ok(Wanted::Nothing),
        Ok(Some(name)) => Some(name.name).filter(|name| !name.is_empty()),
    };
    let Some(template) = entry.resource_claim_template_name.as_deref() else {
        return Ok(Wanted::Nothing);
    };
    Ok(match name {
        Some(name) => Wanted::Recorded { name, template },
        None => Wanted::Claim { template },
    })
}

/// Whether a claim was made for this entry of the Pod. Upstream: `findPodResourceClaim`.
pub(super) fn is_of_entry(pod: &Pod, entry: &PodResourceClaim, claim: &ResourceClaim) -> bool {
    let annotations = claim.metadata.annotations.as_ref();
    let of = annotations.and_then(|a| a.get(POD_RESOURCE_CLAIM_ANNOTATION));
    of == Some(&entry.name) && is_for_pod(pod, claim).is_ok()
}

/// The beginning of a generated claim's name. Pod's and entry's names are shortened in proportion, so that both can be read.
///
/// DIFFERS: upstream leaves out the hyphen before the random part when it shortens, and may cut so that the name is not valid
/// (`a.` + `-b`), which no retry cures.
fn generate_name(pod: &str, entry: &str) -> String {
    let length = pod.len() + entry.len() + 2;
    if length <= MAX_BASE {
        return format!("{pod}-{entry}-");
    }
    let cut = |name: &str| {
        let end = name.len() * MAX_BASE / length;
        name.get(..end)
            .unwrap_or(name)
            .trim_end_matches(['.', '-'])
            .to_owned()
    };
    format!("{}-{}-", cut(pod), cut(entry))
}

/// The claim to make for an entry of the Pod.
pub(super) fn claim_from_template(
    pod: &Pod,
    entry: &PodResourceClaim,
    template: &ResourceClaimTemplate,
) -> ResourceClaim {
    let spec = template.spec.clone().unwrap_or_default();
    let meta = spec.metadata.unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    annotations.insert(POD_RESOURCE_CLAIM_ANNOTATION.into(), entry.name.clone());
    ResourceClaim {
        metadata: ObjectMeta {
            generate_name: Some(generate_name(pod::name(pod), &entry.name)),
            namespace: pod.metadata.namespace.clone(),
            annotations: Some(annotations),
            labels: meta.labels,
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Pod".into(),
                name: pod::name(pod).to_owned(),
                uid: pod::uid(pod).to_owned(),
                controller: Some(true),
                block_owner_deletion: None,
            }]),
            ..ObjectMeta::default()
        },
        spec: spec.spec,
        status: None,
    }
}

/// Records claims by entry in the Pod's status, beside those that are recorded already.
pub(super) fn record(pod: &Pod, made: &BTreeMap<String, String>) -> Action {
    let mut all: BTreeMap<&str, &str> = statuses(pod)
        .iter()
        .filter_map(|s| Some((s.name.as_str(), s.resource_claim_name.as_deref()?)))
        .collect();
    all.extend(made.iter().map(|(entry, claim)| (&**entry, &**claim)));
    let all: Vec<_> = all
        .into_iter()
        .map(|(entry, claim)| json!({ "name": entry, "resourceClaimName": claim }))
        .collect();
    let (namespace, name) = (pod::namespace(pod), pod::name(pod));
    Action::Patch {
        target: Target::of::<Pod>(namespace, name).subresource("status"),
        kind: PatchKind::Apply(FIELD_MANAGER),
        // DIFFERS: with the uid, so that a namesake that came meanwhile gets no claims that are not its own.
        patch: json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "namespace": namespace, "uid": pod::uid(pod) },
            "status": { "resourceClaimStatuses": all },
        }),
    }
}

/// Why claims of a Pod cannot be reserved for it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ReserveError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Owner(#[from] component_helpers::resource_claim::NotForPod),
}

/// The claims to write with the Pod as a user more: allocated ones that a Pod on a node uses, because whoever bound it there did
/// not reserve them.
///
/// DIFFERS: claims that were recorded in this round (`made`) wait for the Pod's next event, and a claim that is missing does not
/// keep the others back; upstream fails and retries, and stops at the first one missing.
pub(super) fn reservations<C: AsRef<ResourceClaim>>(
    pod: &Pod,
    made: &BTreeMap<String, String>,
    claim: impl Fn(&str) -> Option<C>,
) -> Result<Vec<ResourceClaim>, ReserveError> {
    let mut reserved = Vec::new();
    if pod::node_name(pod).is_none() {
        return Ok(reserved);
    }
    for entry in entries(pod).iter().filter(|e| !made.contains_key(&e.name)) {
        let Some(name) = claim_name(pod, entry)? else {
            continue;
        };
        let Some(claim) = claim(name.name) else {
            continue;
        };
        let claim = claim.as_ref();
        if name.must_be_owned {
            is_for_pod(pod, claim)?;
        }
        if needs_reservation(pod, claim) {
            let mut claim = claim.clone();
            let status = claim.status.get_or_insert_default();
            status
                .reserved_for
                .get_or_insert_default()
                .push(consumer(pod));
            reserved.push(claim);
        }
    }
    Ok(reserved)
}
