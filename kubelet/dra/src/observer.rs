//! What the shells are told by and ask of whoever has them.

use std::time::Duration;

use async_trait::async_trait;

/// What is done for a pod's claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Prepare,
    Unprepare,
}

impl Operation {
    /// As metrics name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prepare => "PrepareResources",
            Self::Unprepare => "UnprepareResources",
        }
    }
}

/// The call of a driver by which it is done.
impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Prepare => "NodePrepareResources",
            Self::Unprepare => "NodeUnprepareResources",
        })
    }
}

/// Told of what happens; it must not block.
pub trait Observer: Send + Sync + 'static {
    /// A pod's claims were prepared or unprepared, or were not.
    fn operated(&self, operation: Operation, failed: bool, took: Duration);
    /// A driver answered. `code`: as gRPC calls it in Go.
    fn called(&self, driver: &str, method: &str, code: &str, took: Duration);
    /// A driver needed not be asked.
    fn skipped(&self, operation: Operation, driver: &str);
    /// Devices of the pod are in another state than before.
    fn health_changed(&self, pod: &str);
    /// Whether statuses of pods tell how their devices are.
    fn tells_health(&self) -> bool;
}

/// The node's ResourceSlices in the API.
#[async_trait]
pub trait Slices: Send + Sync + 'static {
    /// Takes those of the driver away; `None`: all.
    ///
    /// # Errors
    /// In words for the log. It is tried again.
    async fn wipe(&self, driver: Option<&str>) -> Result<(), String>;
}
