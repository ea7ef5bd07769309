//! What every binary of Gantry shares: command line, configuration, clients, informers, leader election, serving, logs, metrics.
//!
//! Owns process-wide plumbing only. It never knows what a controller, a scheduler or a kubelet decides.
//! Upstream: `k8s.io/component-base`, `k8s.io/client-go` and the generic half of `k8s.io/apiserver`, v1.36.
// But for `memory`, whose system calls have no safe wrapper.
#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod client;
pub mod clock;
pub mod config;
pub mod der;
pub mod duration;
pub mod events;
pub mod features;
pub mod flags;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod health;
pub mod informer;
pub mod json;
pub mod leader_election;
pub mod logs;
#[allow(unsafe_code)]
pub mod memory;
pub mod metrics;
pub mod options;
pub mod process;
pub mod processors;
pub mod serving;
pub mod shutdown;
mod signals;
pub mod subject;
pub mod tasks;
pub mod testing;
pub mod tls;
pub mod version;
pub mod zpages;
