//! Where volumes get API objects from. The kubelet implements [`ObjectSource`] over its watches; tests
//! over maps.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ConfigMap, Node, PersistentVolume, PersistentVolumeClaim, Secret,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Why an object could not be had. An object that does not exist is `Ok(None)`, not an error.
/// A retry helps for all of them.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The API server answered, with a refusal; the text is its own.
    #[error("{message}")]
    Refused { code: u16, message: String },
    /// No answer.
    #[error("failed to get {resource} {namespace:?}/{name:?}: {source}")]
    Transport {
        resource: &'static str,
        namespace: String,
        name: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The watch of this object has not delivered yet.
    #[error("failed to sync {resource} cache: timed out waiting for the condition")]
    NotSynced { resource: &'static str },
    /// The node's own allocatable resources are not known yet.
    #[error("node allocatable is not known yet")]
    NodeUnknown,
}

/// What a token is asked for; bound to the pod named here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenRequest {
    pub namespace: String,
    pub service_account: String,
    /// Empty: the API server's own audience.
    pub audiences: Vec<String>,
    pub expiration_seconds: Option<i64>,
    pub pod_name: String,
    pub pod_uid: String,
}

/// A token as the TokenRequest API returned it.
#[derive(Clone, PartialEq, Eq)]
pub struct ServiceAccountToken {
    pub token: String,
    /// `status.expirationTimestamp`.
    pub expires_at: Timestamp,
    /// `spec.expirationSeconds` of the answer: the lifetime the server gave. `None`: never refreshed early.
    pub expiration_seconds: Option<i64>,
}

impl std::fmt::Debug for ServiceAccountToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceAccountToken")
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// The API objects that volumes are made of.
#[async_trait]
pub trait ObjectSource: Send + Sync + 'static {
    /// `Ok(None)`: it does not exist.
    async fn config_map(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<ConfigMap>>, SourceError>;
    /// `Ok(None)`: it does not exist.
    async fn secret(&self, namespace: &str, name: &str)
    -> Result<Option<Arc<Secret>>, SourceError>;
    /// `Ok(None)`: it does not exist.
    async fn claim(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<PersistentVolumeClaim>>, SourceError>;
    /// `Ok(None)`: it does not exist.
    async fn persistent_volume(
        &self,
        name: &str,
    ) -> Result<Option<Arc<PersistentVolume>>, SourceError>;
    /// The node's own object, once it was read.
    fn node(&self) -> Option<Arc<Node>>;
    /// A new token from the TokenRequest API; [`crate::VolumeManager`] caches and renews.
    async fn service_account_token(
        &self,
        request: &TokenRequest,
    ) -> Result<ServiceAccountToken, SourceError>;
    /// The node's allocatable resources: the bound of memory-backed volumes and the default of
    /// `resourceFieldRef` limits.
    fn node_allocatable(&self) -> Result<BTreeMap<String, Quantity>, SourceError>;
}
