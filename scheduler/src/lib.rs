//! kube-scheduler: gives pods their nodes.
//!
//! [`event_handlers`] feed the cache and the queue; [`schedule_one`] pops a pod and asks [`decide`] for a node; [`binding_cycle`] binds in a task of its own; [`failure`]
//! takes a pod back. [`runtime`] runs the plugins, [`profile`] puts them together from [`config`]; [`app`] is the process.
//!
//! For an author of plugins this crate is [`run`], for `main`, and [`app::testing`], for tests; all else is the crate `framework`. What is public beside these
//! two may change with any version.
#![forbid(unsafe_code)]

pub mod api_writer;
pub mod app;
pub mod bench;
pub mod binding_cycle;
mod causes;
pub mod config;
pub mod decide;
pub mod decisions;
pub mod event_handlers;
pub mod explain;
pub mod extender;
pub mod failure;
pub mod fetch;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod kubectl;
pub mod listers;
pub mod metrics;
pub mod objects;
pub mod options;
pub mod pages;
pub mod profile;
pub mod reload;
pub mod replay;
mod retreat;
pub mod runtime;
pub mod schedule_one;
pub mod scheduler;
#[cfg(test)]
mod testing;
pub mod trace;
pub mod what_if;

pub use app::run;
