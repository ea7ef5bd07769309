//! Device plugins: who they are, which devices they have, and which container has which of them.
//!
//! Owns: the registration of plugins ([`serve`], [`Manager`]), their calls, and what was given out, which outlives the kubelet. Knows
//! nothing of pods' objects, of the Node or of the runtime: it is asked for resources by name and answers what a container
//! is to get. The decisions ([`state`], [`pod_devices`], [`injection`], [`checkpoint`]) are pure; `manager`, `plugin` and
//! `registration` are the shells.
//!
//! Upstream: pkg/kubelet/cm/devicemanager, v1.37.

pub mod checkpoint;
pub mod injection;
pub mod pod_devices;
pub mod pod_resources;
pub mod state;
#[cfg(feature = "testing")]
pub mod testing;

mod directory;
mod manager;
mod name;
mod plugin;
mod registration;

pub use injection::Injection;
pub use manager::{DevicesError, Given, LoadError, Manager, Observer};
pub use plugin::{CallError, Plugin, PluginOptions, Reports, connect};
pub use registration::{ServeError, serve};
pub use state::{AllocationError, Capacity, ContainerRequest, Kind, PodRequest};

/// The device plugin API, as published. Upstream: `k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1`, 0.37.2.
#[allow(clippy::all, missing_docs, rustdoc::all)]
pub mod v1beta1 {
    tonic::include_proto!("v1beta1");

    /// The only version there is. Upstream: `constants.go`, as the others.
    pub const VERSION: &str = "v1beta1";
    pub const HEALTHY: &str = "Healthy";
}
