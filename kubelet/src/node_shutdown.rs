//! Graceful shutdown of the node: its pods end in order before the machine does.
//!
//! Owns: the lock that holds the shutdown up, following logind, and ending the pods group by group. Who is in which group is [`plan`]'s, pure;
//! what the outside sees of the last shutdown is [`state`]'s. Upstream: `pkg/kubelet/nodeshutdown`, v1.37.
//!
//! ```text
//! lock held --PrepareForShutdown(true)--> not ready, pods end --all ended, or their time is over--> lock given back
//!     ^                                        |                                                        |
//!     '---------------PrepareForShutdown(false): ready again, lock taken anew --------------------------'
//! ```
//!
//! **Invariant:** the lock is given back only when every group had its turn: a bus or a logind that goes away meanwhile ends nothing early.

pub mod manager;
pub mod plan;
pub mod state;

use crate::admission::{Rejection, Verdict};

/// `status.reason` of a pod that comes too late. Upstream: `NodeShutdownNotAdmittedReason`.
const NOT_ADMITTED_REASON: &str = "NodeShutdown";
/// Upstream: `nodeShutdownNotAdmittedMessage`.
const NOT_ADMITTED_MESSAGE: &str = "Pod was rejected as the node is shutting down.";

/// What becomes of a pod on a node that shuts down: none is taken, and none goes for the sake of another. Upstream: `Admit`, the last to be asked.
pub fn admit(verdict: Verdict) -> Verdict {
    match verdict {
        Verdict::Admit | Verdict::Preempt(_) => Verdict::Reject(Rejection {
            reason: NOT_ADMITTED_REASON.to_owned(),
            message: NOT_ADMITTED_MESSAGE.to_owned(),
        }),
        other @ (Verdict::Reject(_) | Verdict::Wait) => other,
    }
}
