//! [`Observed`]: what an observer is told, told apart: one place for the plugins that keep objects of their own and pods.

use std::sync::Arc;

use framework::{EventObject, Object};
use k8s_openapi::api::core::v1::Pod;

/// A change that a plugin hears of.
#[derive(Debug)]
pub enum Observed<'a> {
    /// An object of the plugin's own kinds is this now.
    Object(&'a Arc<Object>),
    /// An object of the plugin's own kinds is gone.
    ObjectGone(&'a Arc<Object>),
    /// A pod is this now.
    Pod {
        /// What it was; `None` for one that is new, or told of again.
        old: Option<&'a Arc<Pod>>,
        /// What it is.
        new: &'a Arc<Pod>,
    },
    /// A pod is gone, or has ended.
    PodGone(&'a Arc<Pod>),
}

impl<'a> Observed<'a> {
    /// Of [`framework::Observer::observe`]'s arguments; `None` for what these plugins never ask for.
    pub fn new(old: Option<&'a EventObject>, new: Option<&'a EventObject>) -> Option<Self> {
        match (old, new) {
            (_, Some(EventObject::Custom(object))) => Some(Observed::Object(object)),
            (Some(EventObject::Custom(object)), None) => Some(Observed::ObjectGone(object)),
            (old, Some(EventObject::Pod(new))) => Some(Observed::Pod {
                old: old.and_then(EventObject::pod),
                new,
            }),
            (Some(EventObject::Pod(old)), None) => Some(Observed::PodGone(old)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use framework::testing::{make_node, make_pod};

    use super::*;

    #[test]
    fn changes_are_told_apart() {
        let pod = |name: &str| EventObject::Pod(make_pod(name).build());
        let object = || {
            EventObject::Custom(Arc::new(Object {
                kind: crate::kinds::POD_GROUP,
                metadata: Default::default(),
                data: serde_json::Value::Null,
            }))
        };
        let (a, b, custom) = (pod("a"), pod("b"), object());
        let is = |old, new, expect: fn(&Observed<'_>) -> bool| {
            let observed = Observed::new(old, new).expect("known");
            assert!(expect(&observed), "{observed:?}");
        };
        is(None, Some(&custom), |o| matches!(o, Observed::Object(_)));
        is(Some(&custom), Some(&custom), |o| {
            matches!(o, Observed::Object(_))
        });
        is(Some(&custom), None, |o| {
            matches!(o, Observed::ObjectGone(_))
        });
        is(None, Some(&b), |o| {
            matches!(o, Observed::Pod { old: None, .. })
        });
        is(Some(&a), Some(&b), |o| {
            matches!(o, Observed::Pod { old: Some(_), .. })
        });
        is(Some(&a), None, |o| matches!(o, Observed::PodGone(_)));
        assert!(Observed::new(None, None).is_none());
        let node = EventObject::Node(make_node("n").build());
        assert!(Observed::new(None, Some(&node)).is_none());
    }
}
