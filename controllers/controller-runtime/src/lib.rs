//! What every controller is made of: a work queue, expectations, a loop that reconciles keys, and the executor, the only writer.
//!
//! A controller is `informers -> keys -> observe -> pure sync -> actions -> executor`. This crate owns the shell; it never knows what
//! a Deployment is. Upstream: `k8s.io/client-go/util/workqueue`, `pkg/controller/controller_utils.go`, v1.36.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod accounts;
pub mod controller;
pub mod executor;
pub mod expectations;
pub mod testing;
pub mod transport;
pub mod work_queue;

pub use component_base::informer::ObjectKey;
pub use controller::{Controller, Watches, run_controller};
pub use executor::{Action, DeleteOptions, Executor, PatchKind, Plan};
pub use transport::{ApiError, Resource, Transport};
pub use work_queue::{Queues, WorkQueue};
