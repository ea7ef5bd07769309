//! The ttl-after-finished controller: deletes a Job `ttlSecondsAfterFinished` after it has ended, with its pods.
//!
//! Upstream: pkg/controller/ttlafterfinished, v1.36.

pub mod controller;
pub mod sync;

pub use controller::start;
