//! Why a CSI volume is not what it should be. Events have these texts; they are upstream's.

use std::io;
use std::path::PathBuf;

use csi::{CallError, NotRegistered};

use crate::layout::InvalidName;
use crate::source::SourceError;

/// A retry may help for all of them.
#[derive(Debug, thiserror::Error)]
pub enum CsiError {
    #[error("kubernetes.io/csi: attacher.MountDevice failed to create newCsiDriverClient: {0}")]
    NoDriverToStage(#[source] NotRegistered),
    #[error("kubernetes.io/csi: mounter.SetUpAt failed to get CSI client: {0}")]
    NoDriver(#[source] NotRegistered),
    #[error("kubernetes.io/csi: Unmounter.TearDownAt failed to get CSI client: {0}")]
    NoDriverToUnpublish(#[source] NotRegistered),
    #[error("kubernetes.io/csi: attacher.UnmountDevice failed to create newCsiDriverClient: {0}")]
    NoDriverToUnstage(#[source] NotRegistered),
    #[error("{0}")]
    Stage(#[source] CallError),
    #[error("{0}")]
    Publish(#[source] CallError),
    #[error("kubernetes.io/csi: Unmounter.TearDownAt failed: {0}")]
    Unpublish(#[source] CallError),
    #[error("kubernetes.io/csi: attacher.UnmountDevice failed: {0}")]
    Unstage(#[source] CallError),
    #[error("{0}")]
    NoDriverToExpand(#[source] NotRegistered),
    #[error("Expander.NodeExpand failed to expand the volume : {0}")]
    Expand(#[source] CallError),
    #[error("mountVolume.NodeExpandVolume update pvc status failed: {0}")]
    ClaimStatus(#[source] SourceError),
    #[error("Volume not attached according to node status for volume {0:?}")]
    NotAttached(String),
    /// No retry helps on this node; upstream: `VolumeAttachLimitExceededError`.
    #[error("driver {driver} takes no more volumes on this node: {why}")]
    AttachLimit { driver: String, why: String },
    #[error("volume {handle} has GET error for volume attachment {attachment}: {why}")]
    NoAttachment {
        handle: String,
        attachment: String,
        why: String,
    },
    #[error("volume {handle} is not attached for volume attachment {attachment}")]
    NotYetAttached { handle: String, attachment: String },
    #[error("volume attachment is being deleted")]
    AttachmentDeleted,
    #[error("volume uses the ReadWriteOncePod access mode and is already in use by another pod")]
    InUse,
    /// In the words of the driver's attacher.
    #[error("{0}")]
    AttachFailed(String),
    #[error("fetching {which} {namespace}/{name} failed: {why}")]
    Secret {
        which: &'static str,
        namespace: String,
        name: String,
        why: String,
    },
    #[error("kubernetes.io/csi: failed to look up CSIDriver {driver}: {source}")]
    Driver {
        driver: String,
        #[source]
        source: SourceError,
    },
    #[error("kubernetes.io/csi: mounter.SetupAt failed to check volume lifecycle mode: {0}")]
    Mode(String),
    #[error(
        "kubernetes.io/csi: mounter.SetupAt failed to check fsGroup policy: kubernetes.io/csi: expected valid fsGroupPolicy, received nil value or empty string"
    )]
    NoGroupPolicy,
    #[error(
        "kubernetes.io/csi: mounter.SetUpAt failed to get service accoount token attributes: {0}"
    )]
    Token(#[source] SourceError),
    #[error("applyFSGroup failed for vol {handle}: {source}")]
    Group {
        handle: String,
        #[source]
        source: io::Error,
    },
    #[error("{0}")]
    Missing(&'static str),
    /// No retry helps on this node.
    #[error("driver {0}: mounting with an SELinux context is not supported by this kubelet")]
    SeLinux(String),
    #[error("kubernetes.io/csi: {what} [{}]: {source}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The driver's name can be no directory's. No retry helps.
    #[error(transparent)]
    InvalidName(#[from] InvalidName),
    #[error("the work on a CSI volume ended early: {0}")]
    Interrupted(String),
}

impl CsiError {
    /// The operation that an event names; upstream: `GenerateErrorDetailed`. `None`: the text says it.
    pub fn operation(&self) -> Option<&'static str> {
        match self {
            Self::NotAttached(_) => None,
            Self::AttachLimit { .. } => Some("AttachVolume.Attach"),
            Self::NoDriverToStage(_) | Self::Stage(_) => Some("MountVolume.MountDevice"),
            Self::Secret {
                which: "NodeStageSecretRef",
                ..
            } => Some("MountVolume.MountDevice"),
            Self::NoAttachment { .. }
            | Self::NotYetAttached { .. }
            | Self::AttachmentDeleted
            | Self::AttachFailed(_) => Some("MountVolume.WaitForAttach"),
            _ => Some("MountVolume.SetUp"),
        }
    }
}

pub(super) trait IoAt<T> {
    fn io_at(self, what: &'static str, path: impl Into<PathBuf>) -> Result<T, CsiError>;
}

impl<T> IoAt<T> for io::Result<T> {
    fn io_at(self, what: &'static str, path: impl Into<PathBuf>) -> Result<T, CsiError> {
        self.map_err(|source| CsiError::Io {
            what,
            path: path.into(),
            source,
        })
    }
}

/// What is not there is gone already.
pub(super) fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
