//! The condition `EvictionInProgress` of a DeviceTaintRule, in upstream's words. Pure.

use std::time::Duration;

use component_helpers::conditions;
use controller_runtime::executor::Target;
use controller_runtime::{Action, PatchKind};
use jiff::Timestamp;
use k8s_openapi::api::resource::v1::DeviceTaintRule;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde_json::json;

use super::controller::NAME;
use super::sync::{NO_EXECUTE, NONE};

const EVICTION_IN_PROGRESS: &str = "EvictionInProgress";
/// The shortest time between two changes of a rule's condition, but for changes of the rule. Upstream: `ruleStatusPeriod`.
pub(super) const PERIOD: Duration = Duration::from_secs(10);

/// What a rule does, or would do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Pods that are to go because of the rule.
    pub(super) pods: usize,
    /// Their namespaces.
    pub(super) namespaces: usize,
    /// Devices in slices the rule is about; only for effect `None`.
    pub(super) published: usize,
    /// Devices of claims the rule is about; only for effect `None`.
    pub(super) allocated: usize,
    /// Pods that were evicted because of the rule since this process started.
    pub(super) evicted: u64,
}

fn observed(rule: &DeviceTaintRule) -> Option<&Condition> {
    let conditions = rule.status.as_ref()?.conditions.as_ref()?;
    conditions::find(conditions, EVICTION_IN_PROGRESS)
}

/// How long the condition must not be changed yet; `None` when it may. The condition's time is that of its last change of any kind.
pub(super) fn wait(rule: &DeviceTaintRule, now: Timestamp) -> Option<Duration> {
    let condition = observed(rule)?;
    if condition.observed_generation != rule.metadata.generation {
        return None;
    }
    let since = now.duration_since(condition.last_transition_time.0);
    let since = Duration::try_from(since).unwrap_or_default();
    PERIOD.checked_sub(since).filter(|left| !left.is_zero())
}

fn count(number: usize, one: &str, many: &str) -> String {
    match number {
        1 => format!("1 {one}"),
        _ => format!("{number} {many}"),
    }
}

/// The condition's status, reason and message.
fn words(rule: &DeviceTaintRule, counts: &Counts) -> (&'static str, &'static str, String) {
    let namespaces = count(counts.namespaces, "namespace", "different namespaces");
    let (status, reason, mut message) = match rule.spec.taint.effect.as_str() {
        NO_EXECUTE if counts.pods > 0 => {
            let pods = count(counts.pods, "pod needs", "pods need");
            let message = format!("{pods} to be evicted in {namespaces}.");
            ("True", "PodsPendingEviction", message)
        }
        NO_EXECUTE if counts.evicted > 0 => ("False", "Completed", String::new()),
        NO_EXECUTE => ("False", "NotStarted", String::new()),
        NONE => {
            let published = count(counts.published, "published device", "published devices");
            let allocated = count(counts.allocated, "allocated device", "allocated devices");
            let pods = count(counts.pods, "pod", "pods");
            let message = format!(
                "{published} selected. {allocated} selected. {pods} would be evicted in {namespaces} if the effect was NoExecute. This information will not be updated again. Recreate the DeviceTaintRule to trigger an update."
            );
            ("False", "NoEffect", message)
        }
        _ => {
            let message = "Eviction only happens for the NoExecute effect.";
            ("False", "OtherEffect", message.to_owned())
        }
    };
    if counts.evicted > 0 {
        if !message.is_empty() {
            message.push(' ');
        }
        let evicted = usize::try_from(counts.evicted).unwrap_or(usize::MAX);
        message += &count(evicted, "pod", "pods");
        message += " evicted since starting the controller.";
    }
    (status, reason, message)
}

/// The write that makes a rule's condition right; `None` when it is.
pub(super) fn sync(rule: &DeviceTaintRule, counts: &Counts, now: Timestamp) -> Option<Action> {
    let (status, reason, message) = words(rule, counts);
    let generation = rule.metadata.generation;
    if observed(rule).is_some_and(|old| {
        old.status == status
            && old.reason == reason
            && old.message == message
            && old.observed_generation == generation
    }) {
        return None;
    }
    let condition = Condition {
        type_: EVICTION_IN_PROGRESS.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: generation,
        last_transition_time: Time(now),
    };
    let (name, uid) = (&rule.metadata.name, &rule.metadata.uid);
    Some(Action::Patch {
        target: Target::of::<DeviceTaintRule>("", name.as_deref().unwrap_or_default())
            .subresource("status"),
        kind: PatchKind::Apply(NAME),
        patch: json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "DeviceTaintRule",
            "metadata": { "name": name, "uid": uid },
            "status": { "conditions": [condition] },
        }),
    })
}
