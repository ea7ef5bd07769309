//! Why a pod's volumes are not what they should be.

use crate::csi::CsiError;
use crate::layout::InvalidName;
use crate::plugin::SetUpError;
use crate::tear_down::TearDownError;

/// One volume that was not set up. Its text is that of upstream's `FailedMount` event.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.text())]
pub struct SetUpFailure {
    /// As the pod names it.
    pub volume: String,
    /// The PersistentVolume behind it, or the same.
    pub name: String,
    /// Containers get it as a device.
    pub block: bool,
    #[source]
    pub source: SetUpError,
}

impl SetUpFailure {
    fn text(&self) -> String {
        let operation = match self.source.operation() {
            Some("MountVolume.MountDevice") if self.block => Some("MapVolume.SetUpDevice"),
            Some("MountVolume.SetUp") if self.block => Some("MapVolume.MapPodDevice"),
            operation => operation,
        };
        match operation {
            Some(operation) => {
                let name = &self.name;
                format!("{operation} failed for volume {name:?} : {}", self.source)
            }
            None => self.source.to_string(),
        }
    }
}

/// Why a pod's volumes are not what they should be. A retry may help unless a failure
/// [is permanent](SetUpError::is_permanent).
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The pod has no usable UID.
    #[error(transparent)]
    Pod(InvalidName),
    /// At least one; an event `FailedMount` for each.
    #[error("unmounted volumes=[{}]: {}", names(.failures), crate::aggregate::aggregate(.failures))]
    SetUp { failures: Vec<SetUpFailure> },
    #[error(transparent)]
    TearDown(#[from] TearDownError),
    #[error("the task ended early: {0}")]
    Interrupted(String),
}

impl VolumeError {
    /// The volumes that failed, for events.
    pub fn failures(&self) -> &[SetUpFailure] {
        match self {
            Self::SetUp { failures } => failures,
            _ => &[],
        }
    }

    /// The CSI driver that takes no more volumes on this node: the pod can never have its volumes here.
    pub fn exhausted_driver(&self) -> Option<&str> {
        self.failures().iter().find_map(|f| match &f.source {
            SetUpError::Csi(CsiError::AttachLimit { driver, .. }) => Some(driver.as_str()),
            _ => None,
        })
    }
}

fn names(failures: &[SetUpFailure]) -> String {
    failures
        .iter()
        .map(|f| f.volume.as_str())
        .collect::<Vec<_>>()
        .join(" ")
}
