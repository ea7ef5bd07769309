//! The cronjob controller: makes a Job whenever the schedule of a CronJob says so, follows it, and keeps so many of the past.
//!
//! ```text
//! take_in: what became of the Jobs -> excess: too much history -> decide: rest, wait or start -> write status -> look again
//! ```
//!
//! The time that a Job is made for is in its name, so that a time whose status was not written is not started twice.
//!
//! Upstream: pkg/controller/cronjob (v2), v1.36.

pub mod controller;
pub mod schedule;
pub mod sync;

#[cfg(test)]
mod tests;

pub use controller::start;
