//! Evicts Pods from Nodes with `NoExecute` taints they do not tolerate, at once or when their `tolerationSeconds` are over.
//!
//! Upstream: pkg/controller/tainteviction, v1.36.
//!
//! ```text
//! idle --tolerated for a time--> scheduled --time is over--> deleted
//!   `--not tolerated--> deleted    `--taint or pod gone--> idle (cancelled)
//! ```

mod controller;
mod sync;

pub use controller::start;
