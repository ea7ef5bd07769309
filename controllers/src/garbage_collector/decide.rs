//! What becomes of an object, by what its owners are: pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::graph::DeletionState;

/// An object's owner references, by what the API server says of the owners.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct References {
    /// It is there.
    pub solid: Vec<OwnerReference>,
    /// There is none.
    pub dangling: Vec<OwnerReference>,
    /// It is there and waits for its dependents to be deleted.
    pub waiting: Vec<OwnerReference>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Keep,
    /// Take the references with these UIDs away; the owners that wait would wait forever.
    RemoveReferences(Vec<String>),
    /// Delete with a propagation policy. `unblock_owners`: make its references non-blocking first, it may be in a circle.
    Delete {
        policy: &'static str,
        unblock_owners: bool,
    },
}

/// `has_dependents` and `has_waiting_dependent` are the graph's; `latest` is the API server's.
pub fn decide(
    references: &References,
    has_dependents: bool,
    has_waiting_dependent: bool,
    latest: &ObjectMeta,
) -> Verdict {
    let uids = |list: &[OwnerReference]| list.iter().map(|r| r.uid.clone()).collect::<Vec<_>>();
    if !references.solid.is_empty() {
        let mut gone = uids(&references.dangling);
        gone.extend(uids(&references.waiting));
        return if gone.is_empty() {
            Verdict::Keep
        } else {
            Verdict::RemoveReferences(gone)
        };
    }
    if !references.waiting.is_empty() && has_dependents {
        return Verdict::Delete {
            policy: "Foreground",
            unblock_owners: has_waiting_dependent,
        };
    }
    let state = DeletionState::of(latest);
    // A finalizer that is there already is honoured.
    let policy = if state.orphan_dependents {
        "Orphan"
    } else if state.delete_dependents {
        "Foreground"
    } else {
        "Background"
    };
    Verdict::Delete {
        policy,
        unblock_owners: false,
    }
}
