//! The decision about a Pod: when it is to go, and because of which taints. Pure.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use component_helpers::pod;
use component_helpers::resource_claim::{
    allocated_devices, is_for_pod, is_reserved_for_pod, pod_claims, tolerates_taint,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{
    DeviceRequestAllocationResult, DeviceTaint, DeviceTaintRule, ResourceClaim, ResourceSlice,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// The only effect that evicts.
pub(super) const NO_EXECUTE: &str = "NoExecute";
/// The effect of a rule that only wants to know what `NoExecute` would do.
pub(super) const NONE: &str = "None";

/// Where a taint comes from. Rules are before slices, both in the order of their names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Origin {
    Rule {
        name: String,
        uid: String,
    },
    Slice {
        driver: String,
        pool: String,
        device: String,
        index: usize,
        slice: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule { name, .. } => write!(f, "DeviceTaintRule {name}"),
            Self::Slice {
                driver,
                pool,
                device,
                index,
                slice,
            } => write!(
                f,
                "ResourceSlice {slice} {driver}/{pool}/{device} taint #{index}"
            ),
        }
    }
}

/// When a Pod is to go, and all taints it goes for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Eviction {
    pub(super) when: Timestamp,
    pub(super) reasons: BTreeSet<Origin>,
}

impl Eviction {
    fn join(self, other: Self) -> Self {
        Self {
            when: self.when.min(other.when),
            reasons: self.reasons.into_iter().chain(other.reasons).collect(),
        }
    }

    /// The uids of the rules among the reasons, with their names.
    pub(super) fn rules(&self) -> impl Iterator<Item = (&str, &str)> {
        self.reasons.iter().filter_map(|reason| match reason {
            Origin::Rule { name, uid } => Some((&**name, &**uid)),
            Origin::Slice { .. } => None,
        })
    }
}

/// What is known of devices.
pub(super) struct Devices<'a> {
    /// All slices of a pool, by driver and pool.
    pub(super) slices: &'a (dyn Fn(&str, &str) -> Vec<Arc<ResourceSlice>> + Sync),
    /// The rules whose taints count; those of other effects are passed over.
    pub(super) rules: &'a [Arc<DeviceTaintRule>],
}

/// Whether a rule is about a device. A rule without a selector is about none, an empty selector is about all.
pub(super) fn rule_matches(rule: &DeviceTaintRule, driver: &str, pool: &str, device: &str) -> bool {
    let Some(selector) = &rule.spec.device_selector else {
        return false;
    };
    let fits = |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|w| w == found);
    fits(&selector.driver, driver) && fits(&selector.pool, pool) && fits(&selector.device, device)
}

/// The slices of a pool that count: those of its newest generation.
pub(super) fn newest(slices: &[Arc<ResourceSlice>]) -> impl Iterator<Item = &Arc<ResourceSlice>> {
    let generation = slices.iter().map(|s| s.spec.pool.generation).max();
    slices
        .iter()
        .filter(move |s| Some(s.spec.pool.generation) == generation)
}

/// Whether a device of the slice has a taint that evicts.
pub(super) fn has_evicting_taint(slice: &ResourceSlice) -> bool {
    let mut devices = slice.spec.devices.iter().flatten();
    devices.any(|device| {
        let mut taints = device.taints.iter().flatten();
        taints.any(|taint| taint.effect == NO_EXECUTE)
    })
}

struct Active<'a> {
    origin: Origin,
    taint: &'a DeviceTaint,
    since: Timestamp,
}

/// When a taint began. DIFFERS: one without a time, which the API server does not let in, counts from when its object was made;
/// upstream passes over it.
fn since(taint: &DeviceTaint, meta: &ObjectMeta) -> Timestamp {
    let time = taint.time_added.as_ref();
    let time = time.or(meta.creation_timestamp.as_ref());
    time.map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}

fn name_and_uid(meta: &ObjectMeta) -> (String, String) {
    (
        meta.name.clone().unwrap_or_default(),
        meta.uid.clone().unwrap_or_default(),
    )
}

/// The taints of a pool's slices on a device.
fn slice_taints<'a>(
    slices: &'a [Arc<ResourceSlice>],
    allocated: &'a DeviceRequestAllocationResult,
) -> impl Iterator<Item = Active<'a>> {
    let find = |slice: &'a Arc<ResourceSlice>| {
        let mut devices = slice.spec.devices.iter().flatten();
        let device = devices.find(|d| d.name == allocated.device)?;
        Some((slice, device))
    };
    let found = newest(slices).find_map(find);
    found.into_iter().flat_map(|(slice, device)| {
        let taints = device.taints.iter().flatten().enumerate();
        let taints = taints.filter(|(_, taint)| taint.effect == NO_EXECUTE);
        taints.map(|(index, taint)| Active {
            origin: Origin::Slice {
                driver: allocated.driver.clone(),
                pool: allocated.pool.clone(),
                device: device.name.clone(),
                index,
                slice: slice.metadata.name.clone().unwrap_or_default(),
            },
            taint,
            since: since(taint, &slice.metadata),
        })
    })
}

fn rule_taints<'a>(
    rules: &'a [Arc<DeviceTaintRule>],
    allocated: &DeviceRequestAllocationResult,
) -> impl Iterator<Item = Active<'a>> {
    let matching = rules.iter().filter(|rule| {
        rule.spec.taint.effect == NO_EXECUTE
            && rule_matches(rule, &allocated.driver, &allocated.pool, &allocated.device)
    });
    matching.map(|rule| {
        let (name, uid) = name_and_uid(&rule.metadata);
        Active {
            origin: Origin::Rule { name, uid },
            taint: &rule.spec.taint,
            since: since(&rule.spec.taint, &rule.metadata),
        }
    })
}

/// When a device's users are to go because of one taint; `None` when it is tolerated for good.
///
/// DIFFERS: a toleration without an effect covers `NoExecute`, as the API says and the scheduler takes it; upstream evicts for it, again
/// and again.
fn due(allocated: &DeviceRequestAllocationResult, active: &Active<'_>) -> Option<Timestamp> {
    let mut shortest: Option<i64> = None;
    for toleration in allocated.tolerations.iter().flatten() {
        if !tolerates_taint(toleration, active.taint) {
            continue;
        }
        let seconds = toleration.toleration_seconds?.max(0);
        shortest = Some(shortest.map_or(seconds, |s| s.min(seconds)));
    }
    let tolerated = SignedDuration::from_secs(shortest.unwrap_or(0));
    let when = active.since.checked_add(tolerated);
    Some(when.unwrap_or(Timestamp::MAX))
}

/// When the users of a claim are to go.
fn claim_eviction(claim: &ResourceClaim, devices: &Devices<'_>) -> Option<Eviction> {
    let mut eviction: Option<Eviction> = None;
    for allocated in allocated_devices(claim) {
        let slices = (devices.slices)(&allocated.driver, &allocated.pool);
        let taints = slice_taints(&slices, allocated).chain(rule_taints(devices.rules, allocated));
        for active in taints {
            let Some(when) = due(allocated, &active) else {
                continue;
            };
            let one = Eviction {
                when,
                reasons: BTreeSet::from([active.origin]),
            };
            eviction = Some(match eviction {
                Some(other) => other.join(one),
                None => one,
            });
        }
    }
    eviction
}

/// When a Pod is to go; `None` when it may stay, is not on a node, or has ended. `claim` gives claims of the Pod's namespace.
pub(super) fn pod_eviction<C: AsRef<ResourceClaim>>(
    pod: &Pod,
    claim: impl Fn(&str) -> Option<C>,
    devices: &Devices<'_>,
) -> Option<Eviction> {
    if pod::node_name(pod).is_none() || pod::is_terminal(pod) {
        return None;
    }
    let evictions = pod_claims(pod).filter_map(|name| {
        let claim = claim(name.name)?;
        let claim = claim.as_ref();
        let is_own = !name.must_be_owned || is_for_pod(pod, claim).is_ok();
        // A claim that is reserved for another may be that of a Pod that was here under the same name.
        if !is_own || !is_reserved_for_pod(pod, claim) {
            return None;
        }
        claim_eviction(claim, devices)
    });
    evictions.reduce(Eviction::join)
}
