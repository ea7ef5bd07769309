//! Calls of a driver's `Node` service. Upstream: pkg/volume/csi/csi_client.go.
//!
//! **Invariant:** no secret is in an error or a record of a call; requests are never printed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use csi_spec::csi::v1::node_client::NodeClient;
use csi_spec::csi::v1::node_service_capability::rpc::Type;
use csi_spec::csi::v1::node_service_capability::{self};
use csi_spec::csi::v1::volume_usage::Unit;
use csi_spec::csi::v1::{
    NodeExpandVolumeRequest, NodeGetCapabilitiesRequest, NodeGetInfoRequest,
    NodeGetVolumeStatsRequest, NodePublishVolumeRequest, NodeStageVolumeRequest,
    NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest,
};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

/// Of one call; upstream: `csiTimeout`.
const TIMEOUT: Duration = Duration::from_secs(120);

/// What a driver answered instead of doing what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// The text is grpc-go's, as events have it upstream.
    #[error("rpc error: code = {} desc = {message}", code_name(*.code))]
    Rpc { code: Code, message: String },
    #[error("failed to get usage from response. usage is nil")]
    NoUsage,
}

impl CallError {
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Rpc { code, .. } => Some(*code),
            Self::NoUsage => None,
        }
    }

    /// Whether nothing of the operation is under way any more. Upstream: `isFinalError`.
    pub fn is_final(&self) -> bool {
        !matches!(
            self.code(),
            Some(
                Code::Cancelled
                    | Code::DeadlineExceeded
                    | Code::Unavailable
                    | Code::ResourceExhausted
                    | Code::Aborted
            )
        )
    }
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        Self::Rpc {
            code: status.code(),
            message: status.message().to_owned(),
        }
    }
}

/// As grpc-go writes it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

/// One call that is over, for metrics.
pub struct CallRecord<'a> {
    pub driver: &'a str,
    /// `/csi.v1.Node/NodeStageVolume`
    pub method: &'static str,
    /// grpc-go's name of the code.
    pub code: &'static str,
    pub took: Duration,
}

/// Told of every call.
pub type Observer = Arc<dyn Fn(&CallRecord<'_>) + Send + Sync>;

/// What a driver's `Node` service can do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(BTreeSet<i32>);

impl Capabilities {
    pub fn stage_unstage(&self) -> bool {
        self.has(Type::StageUnstageVolume)
    }
    pub fn volume_stats(&self) -> bool {
        self.has(Type::GetVolumeStats)
    }
    pub fn expand(&self) -> bool {
        self.has(Type::ExpandVolume)
    }
    pub fn single_node_multi_writer(&self) -> bool {
        self.has(Type::SingleNodeMultiWriter)
    }
    pub fn volume_mount_group(&self) -> bool {
        self.has(Type::VolumeMountGroup)
    }
    fn has(&self, kind: Type) -> bool {
        self.0.contains(&(kind as i32))
    }
}

impl FromIterator<Type> for Capabilities {
    fn from_iter<I: IntoIterator<Item = Type>>(kinds: I) -> Self {
        Self(kinds.into_iter().map(|kind| kind as i32).collect())
    }
}

/// What a driver says of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeInfo {
    pub node_id: String,
    /// Zero: the driver sets no limit.
    pub max_volumes: i64,
    pub topology: BTreeMap<String, String>,
}

/// Of one volume; `None`: the driver did not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeUsage {
    /// Used, available and total.
    pub bytes: Option<(i64, i64, i64)>,
    pub inodes: Option<(i64, i64, i64)>,
}

/// The `Node` service of one driver, over a connection of its own.
pub struct Client {
    driver: String,
    node: NodeClient<Channel>,
    observer: Observer,
}

impl Client {
    pub(crate) fn new(driver: &str, endpoint: &Path, observer: Observer) -> Self {
        Self {
            driver: driver.to_owned(),
            node: NodeClient::new(crate::channel::lazy(endpoint)),
            observer,
        }
    }

    /// # Errors
    /// As the driver says; each of the calls below likewise.
    pub async fn capabilities(&self) -> Result<Capabilities, CallError> {
        let mut node = self.node.clone();
        let call = node.node_get_capabilities(request(NodeGetCapabilitiesRequest {}));
        let answer = self.timed("/csi.v1.Node/NodeGetCapabilities", call).await?;
        let kinds = answer.capabilities.iter().filter_map(|c| match &c.r#type {
            Some(node_service_capability::Type::Rpc(rpc)) => Some(rpc.r#type),
            None => None,
        });
        Ok(Capabilities(kinds.collect()))
    }

    pub async fn node_info(&self) -> Result<NodeInfo, CallError> {
        let mut node = self.node.clone();
        let call = node.node_get_info(request(NodeGetInfoRequest {}));
        let answer = self.timed("/csi.v1.Node/NodeGetInfo", call).await?;
        let topology = answer.accessible_topology.map(|t| t.segments);
        Ok(NodeInfo {
            node_id: answer.node_id,
            max_volumes: answer.max_volumes_per_node,
            topology: topology.unwrap_or_default().into_iter().collect(),
        })
    }

    pub async fn stage(&self, volume: NodeStageVolumeRequest) -> Result<(), CallError> {
        let mut node = self.node.clone();
        let call = node.node_stage_volume(request(volume));
        self.timed("/csi.v1.Node/NodeStageVolume", call).await?;
        Ok(())
    }

    pub async fn unstage(&self, volume_id: &str, staging_path: &Path) -> Result<(), CallError> {
        let mut node = self.node.clone();
        let call = node.node_unstage_volume(request(NodeUnstageVolumeRequest {
            volume_id: volume_id.to_owned(),
            staging_target_path: text(staging_path),
        }));
        self.timed("/csi.v1.Node/NodeUnstageVolume", call).await?;
        Ok(())
    }

    pub async fn publish(&self, volume: NodePublishVolumeRequest) -> Result<(), CallError> {
        let mut node = self.node.clone();
        let call = node.node_publish_volume(request(volume));
        self.timed("/csi.v1.Node/NodePublishVolume", call).await?;
        Ok(())
    }

    pub async fn unpublish(&self, volume_id: &str, target: &Path) -> Result<(), CallError> {
        let mut node = self.node.clone();
        let call = node.node_unpublish_volume(request(NodeUnpublishVolumeRequest {
            volume_id: volume_id.to_owned(),
            target_path: text(target),
        }));
        self.timed("/csi.v1.Node/NodeUnpublishVolume", call).await?;
        Ok(())
    }

    /// The capacity after it, in bytes; zero: the driver did not say.
    pub async fn expand(&self, volume: NodeExpandVolumeRequest) -> Result<i64, CallError> {
        let mut node = self.node.clone();
        let call = node.node_expand_volume(request(volume));
        let answer = self.timed("/csi.v1.Node/NodeExpandVolume", call).await?;
        Ok(answer.capacity_bytes)
    }

    pub async fn stats(&self, volume_id: &str, path: &Path) -> Result<VolumeUsage, CallError> {
        let mut node = self.node.clone();
        let call = node.node_get_volume_stats(request(NodeGetVolumeStatsRequest {
            volume_id: volume_id.to_owned(),
            volume_path: text(path),
            ..NodeGetVolumeStatsRequest::default()
        }));
        let answer = self.timed("/csi.v1.Node/NodeGetVolumeStats", call).await?;
        if answer.usage.is_empty() {
            return Err(CallError::NoUsage);
        }
        let mut usage = VolumeUsage::default();
        for part in answer.usage {
            let figures = Some((part.used, part.available, part.total));
            match part.unit() {
                Unit::Bytes => usage.bytes = figures,
                Unit::Inodes => usage.inodes = figures,
                Unit::Unknown => {
                    tracing::error!(driver = self.driver, "unknown unit in VolumeUsage");
                }
            }
        }
        Ok(usage)
    }

    async fn timed<T>(
        &self,
        method: &'static str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, CallError> {
        let begin = Instant::now();
        let answer = match tokio::time::timeout(TIMEOUT, call).await {
            Ok(answer) => answer,
            Err(_) => Err(Status::deadline_exceeded("context deadline exceeded")),
        };
        let code = answer.as_ref().map_or_else(Status::code, |_| Code::Ok);
        (self.observer)(&CallRecord {
            driver: &self.driver,
            method,
            code: code_name(code),
            took: begin.elapsed(),
        });
        Ok(answer?.into_inner())
    }
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(TIMEOUT);
    request
}

/// Paths of ours are text: their parts were checked, or are ours.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_as_those_of_go_and_say_whether_anything_goes_on() {
        for (status, expected, is_final) in [
            (
                Status::internal("mount failed"),
                "rpc error: code = Internal desc = mount failed",
                true,
            ),
            (
                Status::aborted("pending"),
                "rpc error: code = Aborted desc = pending",
                false,
            ),
            (
                Status::deadline_exceeded("context deadline exceeded"),
                "rpc error: code = DeadlineExceeded desc = context deadline exceeded",
                false,
            ),
            (
                Status::cancelled("x"),
                "rpc error: code = Canceled desc = x",
                false,
            ),
        ] {
            let error = CallError::from(status);
            assert_eq!(
                (error.to_string().as_str(), error.is_final()),
                (expected, is_final)
            );
        }
    }
}
