//! kube-controller-manager: the control loops of a cluster in one process, one of which leads at a time.
//!
//! `options` reads the command line, `registry` is the one list of controllers, `context` is what a controller is built from, and each
//! controller is a module of the same shape (`NAME.rs` + `NAME/{sync,controller,tests}.rs`). Upstream: cmd/kube-controller-manager, v1.36.
#![forbid(unsafe_code)]

pub mod app;
pub mod configz;
pub mod context;
pub mod explain;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod options;
pub mod registry;

// shared by controllers
pub mod bootstrap_token;
pub mod controller_ref;
pub mod controller_ref_manager;
pub mod discovery;
pub(crate) mod gathering;
pub mod history;
pub mod pod_control;
pub mod pods_by_claim;
pub mod readers;
pub(crate) mod selected;
#[cfg(test)]
use controller_runtime::testing;
pub mod uid_cache;

// the controllers, by name
pub mod bootstrap_signer;
pub mod certificatesigningrequest;
pub mod clusterrole_aggregation;
pub mod clustertrustbundle_publisher;
pub mod cronjob;
pub mod daemonset;
pub mod deployment;
pub mod device_taint_eviction;
pub mod disruption;
pub mod endpoints;
pub mod endpointslice;
pub mod endpointslice_mirroring;
pub mod ephemeral_volume;
pub mod garbage_collector;
pub mod horizontal_pod_autoscaler;
pub mod job;
pub mod legacy_token_cleaner;
pub mod namespace;
pub mod node_ipam;
pub mod node_lifecycle;
pub mod persistentvolume_attach_detach;
pub mod persistentvolume_binder;
pub mod persistentvolume_expander;
pub mod pod_garbage_collector;
pub mod podcertificaterequest_cleaner;
pub mod replicaset;
pub mod resourceclaim;
pub mod resourcequota;
pub mod root_ca_certificate_publisher;
pub mod selinux_warning;
pub mod service_cidr;
pub mod serviceaccount;
pub mod serviceaccount_token;
pub mod statefulset;
mod storage_operations;
pub mod storage_version_migrator;
pub mod taint_eviction;
pub mod token_cleaner;
pub mod ttl;
pub mod ttl_after_finished;
pub mod validatingadmissionpolicy_status;
pub mod volume_protection;
