//! The plugins people install `sigs.k8s.io/scheduler-plugins` for: same names, arguments, defaults, objects and reasons, so that they move by changing an image.
//!
//! None is in the default profile; one that no profile names costs nothing. What a plugin knows of its own kinds it is told as an observer; what it decides is in
//! a pure core beside it. Never here: a client. Upstream: sigs.k8s.io/scheduler-plugins, its state of August 2026.
#![forbid(unsafe_code)]

pub mod allocatable;
pub mod args;
pub mod capacity_scheduling;
pub mod coscheduling;
pub mod kinds;
pub mod names;
pub mod node_resource_topology;
pub mod observed;
pub mod preemption_toleration;
pub mod registry;
pub mod trimaran;
