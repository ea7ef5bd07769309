//! The seam between the manager and a kind of volume: [`VolumePlugin`]. Which kinds there are: [`crate::kinds`].

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, Pod, PodSecurityContext, Volume};

use component_helpers::labels::SelectorError;

use crate::atomic_writer::WriteError;
use crate::claim::{ClaimError, Persistent};
use crate::csi::{CsiError, CsiVolumes};
use crate::device::ToolError;
use crate::field_path::FieldPathError;
use crate::layout::{InvalidName, Layout};
use crate::location::VolumeLocation;
use crate::ownership::ChangePolicy;
use crate::resource_field::ResourceFieldError;
use crate::source::{ObjectSource, SourceError};
use crate::token::TokenCache;

/// Why a volume was not set up. The text follows upstream's, it ends up in `FailedMount` events.
#[derive(Debug, thiserror::Error)]
pub enum SetUpError {
    #[error("configmap {0:?} not found")]
    ConfigMapNotFound(String),
    #[error("secret {0:?} not found")]
    SecretNotFound(String),
    #[error("configmap references non-existent config key: {0}")]
    ConfigKeyNotFound(String),
    #[error("references non-existent secret key: {0}")]
    SecretKeyNotFound(String),
    #[error("the files of the volume have more than {max} bytes", max = crate::content::MAX_BYTES)]
    TooLarge,
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Claim(#[from] ClaimError),
    #[error(transparent)]
    Csi(#[from] CsiError),
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error("failed while expanding volume: {0}")]
    Expand(String),
    #[error("failed to fetch token: {0}")]
    Token(#[source] SourceError),
    #[error(
        "while getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io {0:?} not found"
    )]
    TrustBundleNotFound(String),
    #[error("combination of signerName and labelSelector matched zero ClusterTrustBundles")]
    NoTrustBundleMatches,
    #[error("ClusterTrustBundle projection requires either name or signerName to be set")]
    TrustBundleUnnamed,
    #[error("while parsing label selector: {0}")]
    TrustBundleSelector(#[source] SelectorError),
    #[error("while normalizing trust anchors: ClusterTrustBundle {name:?}: {source}")]
    TrustBundlePem {
        name: String,
        #[source]
        source: pem::PemError,
    },
    #[error(transparent)]
    FieldPath(#[from] FieldPathError),
    #[error(transparent)]
    ResourceField(#[from] ResourceFieldError),
    #[error("hostPath type check failed: {path} is not {expected}")]
    HostPathType {
        path: String,
        expected: &'static str,
    },
    #[error("hostPath type check failed: {path} is not {expected}, it's a {found}")]
    HostPathOtherType {
        path: String,
        expected: &'static str,
        /// The API's word for what it is.
        found: &'static str,
    },
    #[error(
        "hostPath type check failed, {path} is not {expected}, unable to determine its type: {why}"
    )]
    HostPathNoType {
        path: String,
        expected: &'static str,
        why: String,
    },
    #[error("{0} is an invalid volume type")]
    HostPathUnknownType(String),
    #[error("invalid HostPath `{0}`: must not contain '..'")]
    HostPathBacksteps(String),
    #[error("unknown storage medium {0:?}")]
    UnknownMedium(String),
    #[error(
        "medium {0}: hugePages storage requested, but there is no resource request for huge pages"
    )]
    NoHugePageRequest(String),
    #[error("medium: {0} can't be used if container requests multiple huge page sizes")]
    ManyHugePageSizes(String),
    #[error(transparent)]
    InvalidName(#[from] InvalidName),
    #[error("image volume has no reference")]
    NoImageReference,
    /// No retry helps.
    #[error("volumes of kind {kind} are not supported by this kubelet")]
    UnsupportedKind { kind: &'static str },
    #[error("{what} {}: {source}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("the task that set up the volume ended early: {0}")]
    Interrupted(String),
    #[error("{}", crate::aggregate::aggregate(.0))]
    Aggregate(Vec<SetUpError>),
}

impl SetUpError {
    /// One error as itself, more as a list.
    pub(crate) fn from_list(mut errors: Vec<SetUpError>) -> Result<(), SetUpError> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(SetUpError::Aggregate(errors)),
        }
    }

    /// The operation that an event names. `None`: the text says what was not done.
    pub(crate) fn operation(&self) -> Option<&'static str> {
        match self {
            Self::Csi(error) => error.operation(),
            _ => Some("MountVolume.SetUp"),
        }
    }

    /// Whether the same pod on the same node can ever get past this error.
    pub fn is_permanent(&self) -> bool {
        matches!(
            self,
            Self::UnsupportedKind { .. }
                | Self::InvalidName(_)
                | Self::Claim(ClaimError::InvalidName(_))
                | Self::Csi(CsiError::InvalidName(_) | CsiError::SeLinux(_))
        )
    }
}

/// File system work, off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SetUpError> + Send + 'static,
) -> Result<T, SetUpError> {
    match crate::threads::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(SetUpError::Interrupted(error.to_string())),
    }
}

pub(crate) trait IoAt<T> {
    fn io_at(self, what: &'static str, path: impl Into<PathBuf>) -> Result<T, SetUpError>;
}

impl<T> IoAt<T> for io::Result<T> {
    fn io_at(self, what: &'static str, path: impl Into<PathBuf>) -> Result<T, SetUpError> {
        self.map_err(|source| SetUpError::Io {
            what,
            path: path.into(),
            source,
        })
    }
}

/// What the containers of a pod say about the files of its volumes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ownership {
    pub fs_group: Option<u32>,
    /// The one user that every container runs as, if they agree on one.
    pub fs_user: Option<u32>,
    /// Of volumes that outlive the pod.
    pub policy: ChangePolicy,
}

impl Ownership {
    pub fn of(pod: &Pod) -> Self {
        let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
        Self {
            fs_group: context.and_then(|c| c.fs_group).and_then(id),
            fs_user: fs_user(pod, context),
            policy: match context.and_then(|c| c.fs_group_change_policy.as_deref()) {
                Some("OnRootMismatch") => ChangePolicy::OnRootMismatch,
                _ => ChangePolicy::Always,
            },
        }
    }
}

/// `runAsUser` if all containers have the same; a container's own wins over the pod's.
fn fs_user(pod: &Pod, context: Option<&PodSecurityContext>) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let of_pod = context.and_then(|c| c.run_as_user);
    let containers = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .map(|c| c.security_context.as_ref());
    let ephemeral = spec
        .ephemeral_containers
        .iter()
        .flatten()
        .map(|c| c.security_context.as_ref());
    let mut users = containers
        .chain(ephemeral)
        .map(|c| c.and_then(|c| c.run_as_user).or(of_pod));
    let first = users.next()??;
    users
        .all(|u| u == Some(first))
        .then_some(first)
        .and_then(id)
}

/// `None`: no id of a user or group; 4294967295 among them would leave a file whose it is. Its container is refused.
fn id(value: i64) -> Option<u32> {
    let value = i32::try_from(value).ok()?;
    u32::try_from(value).ok()
}

/// Everything a plugin may look at to set up one volume of one pod.
pub(crate) struct Mounter<'a> {
    pub layout: &'a Layout,
    pub source: &'a dyn ObjectSource,
    pub tokens: &'a TokenCache,
    pub csi: &'a Arc<CsiVolumes>,
    pub now: Timestamp,
    pub pod: &'a Pod,
    pub pod_uid: &'a str,
    /// With the source that is behind the claim, if that is of a kind a pod can name.
    pub volume: &'a Volume,
    /// What is behind the claim, if the pod's volume is one.
    pub persistent: Option<&'a Persistent>,
    /// The name of its directories: of the PersistentVolume, or else the volume's own.
    pub directory: &'a str,
    pub ownership: Ownership,
}

impl Mounter<'_> {
    pub fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or("default")
    }
}

/// One kind of volume.
#[async_trait]
pub(crate) trait VolumePlugin: Send + Sync {
    /// `kubernetes.io/empty-dir`; also the name of its directory.
    fn name(&self) -> &'static str;
    fn can_support(&self, volume: &Volume) -> bool;
    /// A kind that stands behind claims only.
    fn can_support_persistent(&self, _volume: &PersistentVolume) -> bool {
        false
    }
    /// Its content follows other objects: set up again on every refresh.
    fn requires_remount(&self) -> bool {
        false
    }
    /// Containers get it read-only whatever they ask.
    fn read_only(&self) -> bool {
        false
    }
    /// It has a directory of its own below the pod's.
    fn managed(&self) -> bool {
        true
    }
    /// Where containers find it, if it has one.
    fn directory(&self, layout: &Layout, uid: &str, name: &str) -> PathBuf {
        layout.volume(uid, self.name(), name)
    }
    /// Idempotent.
    async fn set_up(&self, mounter: &Mounter<'_>) -> Result<VolumeLocation, SetUpError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_id_owns_nothing() {
        for (given, expect) in [
            (0_i64, Some(0)),
            (2_147_483_647, Some(2_147_483_647)),
            (2_147_483_648, None),
            (4_294_967_295, None),
            (-1, None),
        ] {
            let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {
                "containers": [{"name": "c"}],
                "securityContext": {"fsGroup": given, "runAsUser": given},
            }}))
            .unwrap();
            let ownership = Ownership::of(&pod);
            assert_eq!((ownership.fs_group, ownership.fs_user), (expect, expect));
        }
    }

    #[test]
    fn fs_user_only_if_all_agree() {
        let check = |spec: serde_json::Value, expect: Option<u32>| {
            let pod: Pod = serde_json::from_value(serde_json::json!({ "spec": spec })).unwrap();
            assert_eq!(Ownership::of(&pod).fs_user, expect, "{spec}");
        };
        let c = |user: Option<i64>| serde_json::json!({"name": "c", "securityContext": {"runAsUser": user}});
        check(serde_json::json!({"containers": [c(None)]}), None);
        check(
            serde_json::json!({"containers": [c(Some(5)), c(Some(5))]}),
            Some(5),
        );
        check(
            serde_json::json!({"containers": [c(Some(5)), c(Some(6))]}),
            None,
        );
        check(
            serde_json::json!({"containers": [c(Some(5)), c(None)]}),
            None,
        );
        check(
            serde_json::json!({"containers": [c(None)], "securityContext": {"runAsUser": 7}}),
            Some(7),
        );
        check(
            serde_json::json!({"containers": [c(Some(7)), c(None)], "initContainers": [c(Some(8))], "securityContext": {"runAsUser": 7}}),
            None,
        );
        check(serde_json::json!({"containers": [c(Some(0))]}), Some(0));
    }
}
