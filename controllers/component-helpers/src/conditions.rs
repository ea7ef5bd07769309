//! Conditions of objects, for every kind that has them.
//!
//! A condition is found by its type; its transition time moves only when its status does.
//! Upstream: k8s.io/apimachinery/pkg/api/meta conditions.go and pkg/api/v1/pod, v1.36.

use k8s_openapi::api::apps::v1::{
    DaemonSetCondition, DeploymentCondition, ReplicaSetCondition, StatefulSetCondition,
};
use k8s_openapi::api::batch::v1::JobCondition;
use k8s_openapi::api::core::v1::{
    NamespaceCondition, NodeCondition, PersistentVolumeClaimCondition, PodCondition,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// What all condition types have in common.
pub trait ConditionLike {
    /// The condition's type, e.g. `Ready`.
    fn type_(&self) -> &str;
    /// `True`, `False` or `Unknown`.
    fn status(&self) -> &str;
    /// A CamelCase word; empty where none is given.
    fn reason(&self) -> &str;
    /// A sentence; empty where none is given.
    fn message(&self) -> &str;
    /// When the status last changed.
    fn last_transition_time(&self) -> Option<&Time>;
    /// Sets when the status last changed.
    fn set_last_transition_time(&mut self, time: Option<Time>);
}

/// A word that some kinds always have and others may lack.
trait Word {
    fn word(&self) -> &str;
}

impl Word for String {
    fn word(&self) -> &str {
        self
    }
}

impl Word for Option<String> {
    fn word(&self) -> &str {
        self.as_deref().unwrap_or_default()
    }
}

macro_rules! condition_like {
    ($($kind:ty),*) => {$(
        impl ConditionLike for $kind {
            fn type_(&self) -> &str { self.type_.word() }
            fn status(&self) -> &str { self.status.word() }
            fn reason(&self) -> &str { self.reason.as_deref().unwrap_or_default() }
            fn message(&self) -> &str { self.message.as_deref().unwrap_or_default() }
            fn last_transition_time(&self) -> Option<&Time> { self.last_transition_time.as_ref() }
            fn set_last_transition_time(&mut self, time: Option<Time>) { self.last_transition_time = time; }
        }
    )*};
}

condition_like!(
    PodCondition,
    NodeCondition,
    DeploymentCondition,
    ReplicaSetCondition,
    StatefulSetCondition,
    DaemonSetCondition,
    JobCondition,
    NamespaceCondition,
    PersistentVolumeClaimCondition
);

impl ConditionLike for Condition {
    fn type_(&self) -> &str {
        &self.type_
    }
    fn status(&self) -> &str {
        &self.status
    }
    fn reason(&self) -> &str {
        &self.reason
    }
    fn message(&self) -> &str {
        &self.message
    }
    fn last_transition_time(&self) -> Option<&Time> {
        Some(&self.last_transition_time)
    }
    fn set_last_transition_time(&mut self, time: Option<Time>) {
        if let Some(time) = time {
            self.last_transition_time = time;
        }
    }
}

/// The condition of this type.
pub fn find<'a, C: ConditionLike + 'a>(
    conditions: impl IntoIterator<Item = &'a C>,
    type_: &str,
) -> Option<&'a C> {
    conditions
        .into_iter()
        .find(|condition| condition.type_() == type_)
}

/// Whether the condition of this type is there and `True`.
pub fn is_true<C: ConditionLike>(conditions: &[C], type_: &str) -> bool {
    find(conditions, type_).is_some_and(|condition| condition.status() == "True")
}

/// Puts `new` in the place of the condition of its type. Where the status is what it was, the old transition time stays;
/// where it changed and `new` brings no time, it is `now`. Returns whether anything changed.
pub fn set<C: ConditionLike + PartialEq>(conditions: &mut Vec<C>, mut new: C, now: &Time) -> bool {
    match conditions
        .iter_mut()
        .find(|condition| condition.type_() == new.type_())
    {
        Some(old) => {
            if old.status() == new.status() {
                new.set_last_transition_time(old.last_transition_time().cloned());
            } else if new.last_transition_time().is_none() {
                new.set_last_transition_time(Some(now.clone()));
            }
            let changed = *old != new;
            *old = new;
            changed
        }
        None => {
            if new.last_transition_time().is_none() {
                new.set_last_transition_time(Some(now.clone()));
            }
            conditions.push(new);
            true
        }
    }
}

/// Removes the condition of this type; whether there was one.
pub fn remove<C: ConditionLike>(conditions: &mut Vec<C>, type_: &str) -> bool {
    let before = conditions.len();
    conditions.retain(|condition| condition.type_() != type_);
    conditions.len() != before
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::jiff::Timestamp;

    fn condition(status: &str, reason: &str) -> PodCondition {
        PodCondition {
            type_: "Ready".into(),
            status: status.into(),
            reason: Some(reason.into()),
            ..Default::default()
        }
    }

    #[test]
    fn transition_time_follows_status() {
        let at = |second| Time(Timestamp::from_second(second).unwrap());
        let mut all = Vec::new();
        assert!(set(&mut all, condition("False", "A"), &at(1)));
        assert!(!set(&mut all, condition("False", "A"), &at(2)));
        assert!(set(&mut all, condition("False", "B"), &at(3)));
        assert_eq!(all[0].last_transition_time, Some(at(1)));
        assert!(set(&mut all, condition("True", "B"), &at(4)));
        assert_eq!(all[0].last_transition_time, Some(at(4)));
        assert!(is_true(&all, "Ready") && !is_true(&all, "Other"));
        assert!(remove(&mut all, "Ready") && !remove(&mut all, "Ready"));
    }
}
