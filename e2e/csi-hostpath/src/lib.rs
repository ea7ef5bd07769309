//! A CSI driver that keeps volumes in a folder of the node, and the two small programs that stand beside a driver: the registrar
//! that makes it known to the kubelet, and the probe that asks it whether it lives.
//!
//! They take the places, the image names and the flags of upstream's csi-driver-host-path, node-driver-registrar and livenessprobe,
//! which exist in git only and can be built offline by nobody.
//!
//! **Never:** anything of Gantry's own crates but the protocols (`csi-spec`): the judge knows nothing of what it judges.

pub mod disk;
pub mod driver;
pub mod endpoint;
pub mod flags;
pub mod livenessprobe;
pub mod loop_device;
pub mod mount;
pub mod operations;
pub mod plan;
pub mod proxy;
pub mod registrar;
pub mod state;
