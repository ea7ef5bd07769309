//! The scheduler's state, hidden from plugins: the queue of pods to schedule, the cache of nodes and pods, and the ranking of nodes that is kept per pod signature.
//!
//! Never here: a client, an async runtime, a plugin. Upstream: pkg/scheduler/backend, v1.36.
#![forbid(unsafe_code)]

pub mod cache;
pub mod queue;
pub mod ranking;

pub use cache::{Cache, CacheError};
pub use queue::{QueueConfig, QueuedPodInfo, SchedulingQueue};
pub use ranking::Ranking;
