//! A pod's volumes on this node: what is set up under the kubelet's root directory, kept fresh
//! while the pod lives, and taken away without a trace when it is gone.
//!
//! Owns `<root>/pods/<uid>/{volumes,volume-subpaths,plugins}` and `<root>/plugins/kubernetes.io/csi`. It never talks to the
//! API server (see [`ObjectSource`]), never starts anything, and knows nothing of containers but the mounts they ask for.
//!
//! Upstream: pkg/volume, pkg/kubelet/volumemanager, v1.36.

pub mod atomic_writer;
pub mod field_path;
pub mod manager;
pub mod mountinfo;
pub mod ownership;
pub mod plugin;
pub mod reconcile;
pub mod resource_field;
pub mod source;
pub mod sub_path;
pub mod usage;

mod aggregate;
mod claim;
mod config_map;
mod content;
mod csi;
mod csi_plugin;
mod device;
mod downward_api;
mod empty_dir;
mod expand;
mod host_path;
mod image;
mod kinds;
mod layout;
mod local;
mod location;
mod nested;
mod nfs;
mod projected;
mod secret;
mod tear_down;
mod threads;
mod token;
mod trust_bundle;

pub use ::csi::VolumeUsage;
pub use claim::ClaimError;
pub use csi::CsiError;
pub use device::ToolError;
pub use layout::InvalidName;
pub use location::VolumeLocation;
pub use manager::{CsiHost, Expanded, PodVolume, PodVolumes, VolumeError, VolumeManager};
pub use plugin::SetUpError;
pub use source::{
    CertificateStateError, ObjectSource, PodCertificate, PodCertificateKey, ServiceAccountToken,
    SourceError, TokenRequest,
};
pub use sub_path::SubPathError;
pub use tear_down::{TearDownError, TearDownFailure};
