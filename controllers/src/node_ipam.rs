//! Gives every Node its Pod CIDRs out of `--cluster-cidr`.
//!
//! A CIDR is taken in memory before it is written, and freed when its Node goes; after a restart the Nodes say what is taken. Upstream:
//! pkg/controller/nodeipam/ipam/range_allocator.go and cidrset, v1.36. Allocators of cloud providers are not built.

mod cidr_set;
mod controller;

pub use controller::start;
