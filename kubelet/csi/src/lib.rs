//! CSI drivers on this node: how they make themselves known, and how they are called.
//!
//! Owns: the list of registered drivers ([`Drivers`]), following `plugins_registry` ([`registration`]), and the calls of the
//! `Node` service ([`Client`]). Never touches volumes, mounts or the API server; what a registration means for the cluster
//! is its [`registration::Handler`]'s.
//!
//! Upstream: pkg/kubelet/pluginmanager and pkg/volume/csi/csi_client.go, v1.37.

pub mod registration;
#[cfg(feature = "testing")]
pub mod testing;

mod channel;
mod client;
mod drivers;
mod sockets;
mod version;

pub use client::{CallError, CallRecord, Capabilities, Client, NodeInfo, Observer, VolumeUsage};
pub use csi_spec::csi::v1 as proto;
pub use drivers::{Drivers, NotRegistered};
pub use tonic::Code;
