//! The end-to-end house: brings a cluster up on one machine, tests it and measures it.
//!
//! Owns: building programs and images, network namespaces that act as machines, starting and
//! stopping etcd, kube-apiserver and the components. It is a client like any other and depends on
//! no crate of Gantry: the judge must not know the defendant.

pub mod bench;
pub mod cli;
pub mod cluster;
mod compare;
mod compatibility;
pub mod conformance;
pub mod critest;
pub mod csi;
pub mod deb;
pub mod debian;
pub mod forward;
pub mod fuzz;
pub mod images;
pub mod kind;
pub mod layers;
pub mod metrics;
pub mod node;
pub mod probe;
pub mod programs;
mod protobuf;
pub mod python;
pub mod registry;
pub mod snapshot;
pub mod starts;
pub mod step;
pub mod test_run;
pub mod tidy;
mod up;
pub mod vm;
