//! Where volumes get API objects from. The kubelet implements [`ObjectSource`] over its watches; tests
//! over maps.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::{
    ConfigMap, Node, PersistentVolume, PersistentVolumeClaim, Secret,
};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
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
    /// Nobody has signed for the pod yet, or a signer refused.
    #[error("{0}")]
    Certificate(#[from] CertificateStateError),
    /// The node's own allocatable resources are not known yet.
    #[error("node allocatable is not known yet")]
    NodeUnknown,
}

/// What a token is asked for; bound to the pod named here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenRequest {
    pub namespace: String,
    pub service_account: String,
    /// The account must still be this one; `None`: whichever has the name.
    pub service_account_uid: Option<String>,
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

/// One `podCertificate` source of one pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodCertificateKey {
    pub namespace: String,
    pub pod_name: String,
    pub pod_uid: String,
    pub volume: String,
    /// The place in the volume's list of sources.
    pub source_index: usize,
}

/// A key and the certificates for it, both PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct PodCertificate {
    /// PKCS#8.
    pub key: Arc<[u8]>,
    /// The pod's own first.
    pub chain: Arc<[u8]>,
}

impl std::fmt::Debug for PodCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PodCertificate").finish_non_exhaustive()
    }
}

/// Why a pod has no certificate. The words are upstream's: pkg/kubelet/podcertificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateStateError {
    /// A retry helps.
    #[error("credential bundle is not issued yet")]
    NotIssued,
    #[error("PodCertificateRequest was permanently denied: reason={reason:?} message={message:?}")]
    Denied { reason: String, message: String },
    #[error("PodCertificateRequest was permanently failed: reason={reason:?} message={message:?}")]
    Failed { reason: String, message: String },
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
    /// A merge patch of a claim's status.
    async fn patch_claim_status(
        &self,
        namespace: &str,
        name: &str,
        patch: &serde_json::Value,
    ) -> Result<(), SourceError>;
    /// The node's own object, once it was read.
    fn node(&self) -> Option<Arc<Node>>;
    /// Until the node's own object is as `condition` says. Cancel-safe.
    async fn until_node(&self, condition: &(dyn for<'a> Fn(&'a Node) -> bool + Send + Sync));
    /// `Ok(None)`: it does not exist.
    async fn csi_driver(&self, name: &str) -> Result<Option<Arc<CSIDriver>>, SourceError>;
    /// `Ok(None)`: it does not exist.
    async fn volume_attachment(
        &self,
        name: &str,
    ) -> Result<Option<Arc<VolumeAttachment>>, SourceError>;
    /// A new token from the TokenRequest API; [`crate::VolumeManager`] caches and renews.
    async fn service_account_token(
        &self,
        request: &TokenRequest,
    ) -> Result<ServiceAccountToken, SourceError>;
    /// `Ok(None)`: it does not exist.
    async fn cluster_trust_bundle(
        &self,
        name: &str,
    ) -> Result<Option<Arc<ClusterTrustBundle>>, SourceError>;
    /// Those of a signer, in any order.
    async fn cluster_trust_bundles(
        &self,
        signer: &str,
    ) -> Result<Vec<Arc<ClusterTrustBundle>>, SourceError>;
    /// The newest certificate of a pod's source.
    async fn pod_certificate(&self, of: &PodCertificateKey) -> Result<PodCertificate, SourceError>;
    /// The node's allocatable resources: the bound of memory-backed volumes and the default of
    /// `resourceFieldRef` limits.
    fn node_allocatable(&self) -> Result<BTreeMap<String, Quantity>, SourceError>;
}
