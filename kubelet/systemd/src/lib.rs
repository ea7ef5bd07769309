//! What the node asks of systemd's daemons, over D-Bus.
//!
//! Owns: the connections ([`bus`]) and the clients on them, each behind a trait: [`logind`]. Knows nothing of pods and decides nothing.
//!
//! **Invariant:** only the owner of a name is heard, every call has a deadline, and there is no thread of its own.

#![forbid(unsafe_code)]

pub mod bus;
pub mod logind;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
