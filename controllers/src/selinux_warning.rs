//! Warns where two Pods might use one volume under different SELinux labels, or label it in different ways: on one node, only one of
//! them would get it.
//!
//! It does not care where the Pods run, if at all, and it writes nothing but events. Off by default: a cluster without SELinux has no
//! use for it. Upstream: pkg/controller/volume/selinuxwarning, v1.37.
//!
//! Volumes that no kubelet mounts with a label (NFS, hostPath, local ones, those of other kinds in Pods) cannot conflict and are not
//! tracked; inline volumes of plugins that a CSI driver stands in for are not looked at.

mod cache;
mod controller;
mod label;
mod metrics;
#[cfg(test)]
mod tests;

pub use controller::start;
