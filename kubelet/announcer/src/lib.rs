//! `gantry-announcer`: the addresses of load balancers, announced by the nodes themselves.
//!
//! Owns who announces which address (leases), and what is said and answered on the links for it (ARP, neighbour discovery). Gives out
//! no address (the cloud provider `gantry` does, in the cloud-controller-manager), and moves no packet: what comes to the node with
//! an announced address is kube-proxy's.
//!
//! ```text
//! Services, slices, Node, links, pools ─► wanted (pure) ─┐
//! leases ─────────────────────────────────► election (pure) ─► writes of leases
//!                                             │ held
//! frames heard ─────────────────────────────► speaker (pure) ─► frames said
//! ```

#![deny(unsafe_code)]

pub mod app;
mod controller;
pub mod election;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod lease;
pub mod link;
mod metrics;
pub mod options;
pub mod packet;
#[allow(unsafe_code)]
pub mod socket;
pub mod speaker;
pub mod wanted;
mod writes;
