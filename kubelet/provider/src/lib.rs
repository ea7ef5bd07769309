//! What a provider of virtual nodes is written against, and all it depends on.
//!
//! A provider makes pods that were bound to a virtual node real, wherever that is: in a cloud, on a board without a kernel of its
//! own, in a simulation. The loops of `virtual-kubelet` do the rest: they register the node, renew its Lease, watch the pods, write
//! their statuses, delete their objects last, and serve `kubectl logs`, `exec`, `attach` and `port-forward`.
//!
//! A provider **must** start a pod ([`Provider::create_pod`]), end it ([`Provider::delete_pod`]), say what it has
//! ([`Provider::pods`]) and tell how its pods are ([`PodEvents::report`]). It **may refuse** everything else: each of the other
//! methods has a body that answers [`ProviderError::Unsupported`], which a client sees as `501 Not Implemented` and a sentence.
//! Fields of pods that it does not understand are named by [`Provider::features`]: a pod that has another one is refused with an
//! event, and fails by the reason `UnsupportedPodField`.
//!
//! ```text
//! start(events) -> pods() -> create_pod | update_pod | delete_pod     the loops call
//!                            report | gone | node_conditions          the provider tells, at any time
//! ```
//!
//! # Example
//!
//! Pods that run as soon as they are there, and end as soon as they are asked to:
//!
//! ```
//! use std::collections::HashMap;
//! use std::sync::{Arc, Mutex, OnceLock};
//! use std::time::Duration;
//!
//! use kubelet_provider::k8s_openapi::api::core::v1::Pod;
//! use kubelet_provider::k8s_openapi::jiff::Timestamp;
//! use kubelet_provider::{
//!     ContainerReport, ContainerState, PodEvents, PodId, PodReport, Provider, ProviderError, async_trait,
//! };
//!
//! #[derive(Default)]
//! struct Instant {
//!     events: OnceLock<PodEvents>,
//!     pods: Mutex<HashMap<PodId, PodReport>>,
//! }
//!
//! #[async_trait]
//! impl Provider for Instant {
//!     fn name(&self) -> &str {
//!         "instant"
//!     }
//!
//!     async fn start(&self, events: PodEvents) -> Result<(), ProviderError> {
//!         self.events.set(events).map_err(|_| ProviderError::Failed("started twice".to_owned()))
//!     }
//!
//!     async fn pods(&self) -> Result<Vec<(PodId, PodReport)>, ProviderError> {
//!         Ok(self.pods.lock().unwrap().clone().into_iter().collect())
//!     }
//!
//!     async fn create_pod(&self, pod: Arc<Pod>) -> Result<(), ProviderError> {
//!         let now = Timestamp::now();
//!         let spec = pod.spec.as_ref().expect("the loops hand over whole pods");
//!         let containers = spec.containers.iter().map(|container| ContainerReport {
//!             ready: true,
//!             ..ContainerReport::new(&container.name, ContainerState::Running { started_at: now })
//!         });
//!         let report = PodReport { containers: containers.collect(), ..PodReport::default() };
//!         let id = PodId::of(&pod);
//!         self.pods.lock().unwrap().insert(id.clone(), report.clone());
//!         self.events.get().expect("start comes first").report(&id, report);
//!         Ok(())
//!     }
//!
//!     async fn delete_pod(&self, pod: &PodId, _grace: Duration) -> Result<(), ProviderError> {
//!         self.pods.lock().unwrap().remove(pod).ok_or(ProviderError::NotFound)?;
//!         self.events.get().expect("start comes first").gone(pod);
//!         Ok(())
//!     }
//! }
//! ```
//!
//! # Versions
//!
//! [`API_VERSION`] names this trait. Within a version methods are added only with a body, fields only to structs that have a
//! `Default`, and variants only to enums that are `non_exhaustive`.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod error;
mod events;
mod feature;
mod node;
mod report;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

pub use async_trait::async_trait;
pub use error::ProviderError;
pub use events::{EventLevel, PodEvents, ProviderEvent, ProviderEvents};
pub use feature::{Features, PodFeature, UnknownFeature, UnsupportedField, unsupported_fields};
pub use k8s_openapi;
pub use node::{Condition, NodeDescription};
pub use report::{ContainerReport, ContainerState, Phase, PodId, PodReport, Terminated};
pub use stream::{
    AttachOptions, Connection, Duplex, Input, LogOptions, LogStream, Output, Process, TerminalSize,
};

/// The version of this trait. The wire protocol of remote providers has the same number (`gantry.provider.v1`).
pub const API_VERSION: &str = "v1";

/// Who writes the pods' objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodMode {
    /// The loops do, by what the provider reports.
    #[default]
    Reported,
    /// The provider does, status, finalizers and deletion included; it is handed every state of an object that the API server
    /// told of, and [`Provider::delete_pod`] only means that the object is gone. For simulations of other controllers.
    Driven,
}

/// What a node and its pods use now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    /// Cores times time, in nanoseconds, since the beginning.
    pub cpu_nanoseconds: u64,
    /// Memory that cannot be reclaimed, in bytes.
    pub memory_working_set_bytes: u64,
}

/// The usage of a pod's containers, by name.
#[derive(Clone, Debug, PartialEq)]
pub struct PodUsage {
    /// Which pod.
    pub pod: PodId,
    /// Each container.
    pub containers: Vec<(String, Usage)>,
}

/// Where pods run. One object serves all nodes of the process; [`PodId::node`] and `spec.nodeName` tell which one is meant.
///
/// Calls about one pod never overlap; calls about different pods do. A call that fails with [`ProviderError::Unavailable`] or
/// [`ProviderError::Failed`] is made again later, with growing pauses, so each must bear to be repeated.
#[async_trait]
pub trait Provider: Send + Sync + 'static {
    /// A short name in lower case: the value of the node's taint `virtual-kubelet.io/provider`, and of its runtime's version.
    fn name(&self) -> &str;

    /// The version of what runs the pods, for the node's status.
    fn version(&self) -> String {
        env!("CARGO_PKG_VERSION").to_owned()
    }

    /// Which optional fields of pods are understood. The default is none of them: such a pod is refused by name.
    fn features(&self) -> Features {
        Features::none()
    }

    /// Who writes the pods' objects.
    fn mode(&self) -> PodMode {
        PodMode::Reported
    }

    /// Called once, before anything else. `events` is where the provider tells of its pods; it may be cloned and kept.
    ///
    /// # Errors
    /// The process does not start.
    async fn start(&self, events: PodEvents) -> Result<(), ProviderError>;

    /// May change what a node says of itself, before it is registered. `node` is what the configuration says.
    ///
    /// # Errors
    /// The process does not start.
    async fn configure_node(&self, _node: &mut NodeDescription) -> Result<(), ProviderError> {
        Ok(())
    }

    /// Every pod that the provider has, also those that have ended. Called after [`Provider::start`]: what is there is adopted
    /// and not created again; what the API server has no more is deleted.
    ///
    /// # Errors
    /// Asked again until it is answered; no pod is touched before.
    async fn pods(&self) -> Result<Vec<(PodId, PodReport)>, ProviderError>;

    /// Starts a pod. Returning early is fine: how it goes on is told by [`PodEvents::report`].
    ///
    /// After a restart of the process this is called for pods that [`Provider::pods`] does not name although the API server has
    /// them; `pod.status` says then how far they were.
    ///
    /// # Errors
    /// [`ProviderError::Invalid`] fails the pod for good, with an event that names the field; other errors are tried again.
    async fn create_pod(&self, pod: Arc<Pod>) -> Result<(), ProviderError>;

    /// The pod's object changed: labels, annotations, images, or whatever else of it may. The default refuses, with an event:
    /// the pod runs on as it was.
    ///
    /// # Errors
    /// See [`ProviderError`].
    async fn update_pod(&self, _pod: Arc<Pod>) -> Result<(), ProviderError> {
        Err(ProviderError::Unsupported("changes of a running pod"))
    }

    /// Begins to end a pod: its containers get `grace` to end by themselves. Called again with less if somebody is in a hurry, and
    /// for pods that have ended, whose remains may go now. When nothing of it runs any more, the provider tells by
    /// [`PodEvents::gone`], or by a report whose containers have all terminated; only then the API object is deleted.
    ///
    /// # Errors
    /// [`ProviderError::NotFound`] means that there is no such pod (any more), which is as good.
    async fn delete_pod(&self, pod: &PodId, grace: Duration) -> Result<(), ProviderError>;

    /// A container's log, as far as `options` ask for it: the provider tails, filters and follows.
    ///
    /// # Errors
    /// See [`ProviderError`].
    async fn logs(
        &self,
        _pod: &PodId,
        _container: &str,
        _options: &LogOptions,
    ) -> Result<LogStream, ProviderError> {
        Err(ProviderError::Unsupported("logs"))
    }

    /// Runs a command in a container.
    ///
    /// # Errors
    /// See [`ProviderError`].
    async fn exec(
        &self,
        _pod: &PodId,
        _container: &str,
        _command: &[String],
        _options: &AttachOptions,
    ) -> Result<Process, ProviderError> {
        Err(ProviderError::Unsupported("exec"))
    }

    /// Attaches to a container's own process.
    ///
    /// # Errors
    /// See [`ProviderError`].
    async fn attach(
        &self,
        _pod: &PodId,
        _container: &str,
        _options: &AttachOptions,
    ) -> Result<Process, ProviderError> {
        Err(ProviderError::Unsupported("attach"))
    }

    /// A connection to a port of the pod.
    ///
    /// # Errors
    /// See [`ProviderError`].
    async fn port_forward(&self, _pod: &PodId, _port: u16) -> Result<Connection, ProviderError> {
        Err(ProviderError::Unsupported("port-forward"))
    }

    /// What the pods of a node use.
    ///
    /// # Errors
    /// See [`ProviderError`].
    async fn stats(&self, _node: &str) -> Result<Vec<PodUsage>, ProviderError> {
        Err(ProviderError::Unsupported("stats"))
    }
}
