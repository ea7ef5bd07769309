//! nftables as values: tables, chains, rules, sets and maps; the difference between two states of a table;
//! one atomic transaction that carries the difference out.
//!
//! Owns the text that `nft` is given and the reading of what it lists. Knows nothing of pods or services.
//! Never flushes what is still right: [`diff`] compares a wanted [`Table`] with what the kernel has, and a
//! [`Syncer`] adopts the table that an earlier process left.
//!
//! ```text
//! wanted Table ──┐
//!                ├─ diff ─► Transaction ─► Nft (the program, or the fake) ─► kernel
//! kernel's Table ┘                                       └─ Tracer: what happens to a packet
//! ```
//!
//! A rule in the kernel is known again by a fingerprint in its comment, so nothing depends on how a version
//! of nft prints a rule.

#![forbid(unsafe_code)]

pub mod conntrack;
mod diff;
mod error;
mod fake;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod listing;
mod object;
mod outline;
mod program;
mod rule;
mod syncer;
mod tracer;
mod transaction;
mod value;

pub use diff::{Difference, diff};
pub use error::NftError;
pub use fake::FakeNft;
pub use object::{Chain, Hook, HookKind, HookPoint, Set, SetShape, Table, priority};
pub use outline::{Jump, Outline};
pub use program::{Nft, NftProgram};
pub use rule::{Field, Operator, Rule, Statement};
pub use syncer::{SyncReport, Syncer};
pub use tracer::{Decision, Origin, Outcome, Packet, Tracer};
pub use transaction::{Operation, Transaction};
pub use value::{Data, Family, Key, Protocol, Type, Value, Verdict};
