//! The node's side of Dynamic Resource Allocation: drivers of devices, which claims they prepared for which pods, and how their devices are.
//!
//! Owns: the drivers that registered ([`Manager::register`]), their calls, and what was prepared, which outlives the kubelet. Knows nothing
//! of pods' or claims' objects nor of the runtime: it is told which claims a pod uses and answers with names of CDI devices. The
//! decisions ([`claims`], [`checkpoint`], [`health`]) are pure; `manager`, `drivers`, `plugins`, `plugin`, `connection` and `directory` are the shells.
//!
//! Upstream: pkg/kubelet/cm/dra, v1.37.

pub mod checkpoint;
pub mod claims;
pub mod health;
#[cfg(feature = "testing")]
pub mod testing;

mod connection;
mod directory;
mod drivers;
mod manager;
mod observer;
mod plugin;
mod plugins;
mod service;

pub use claims::{ClaimInfo, ClaimKey, ClaimRequest, Device, DriverRequest, DriverState};
pub use health::{DeviceHealth, HealthStatus};
pub use manager::{DraError, LoadError, Manager};
pub use observer::{Observer, Operation, Slices};
pub use plugin::{CallError, Claim, HealthReport, HealthReports, Plugin};
pub use plugins::RegisterError;
pub use service::{DRIVER_PLUGIN, HealthService, Service};

/// As published. Upstream: `k8s.io/kubelet/pkg/apis/dra`, 0.37.2.
#[allow(clippy::all, missing_docs, rustdoc::all)]
pub mod v1 {
    tonic::include_proto!("k8s.io.kubelet.pkg.apis.dra.v1");
}

/// As published.
#[allow(clippy::all, missing_docs, rustdoc::all)]
pub mod v1beta1 {
    tonic::include_proto!("k8s.io.kubelet.pkg.apis.dra.v1beta1");
}

/// As published. Upstream: `k8s.io/kubelet/pkg/apis/dra-health`, 0.37.2.
#[allow(clippy::all, missing_docs, rustdoc::all)]
pub mod health_v1 {
    tonic::include_proto!("v1");
}

/// As published.
#[allow(clippy::all, missing_docs, rustdoc::all)]
pub mod health_v1alpha1 {
    tonic::include_proto!("v1alpha1");
}
