//! gRPC: every method a line, each call on a thread of its own, logged with its contents from `--v=5` on.

use std::sync::Arc;
use std::time::Duration;

use csi_spec::csi::v1 as csi;
use csi_spec::csi::v1::controller_server::{Controller, ControllerServer};
use csi_spec::csi::v1::group_controller_server::{GroupController, GroupControllerServer};
use csi_spec::csi::v1::identity_server::{Identity, IdentityServer};
use csi_spec::csi::v1::node_server::{Node, NodeServer};
use serde::Serialize;
use serde_json::json;
use tonic::{Code, Request, Response, Status, async_trait};

use super::{Answer, Driver, Failed};
use crate::endpoint::Listener;
use crate::plan;

/// How long calls may go on once the program is to end.
const GRACE: Duration = Duration::from_secs(10);

/// Answers calls until `stop` ends.
///
/// # Errors
/// The server cannot run.
pub async fn serve(
    driver: Driver,
    log_calls: bool,
    listener: Listener,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let service = Service {
        driver: Arc::new(driver),
        log_calls,
    };
    let (stopping, stopped) = tokio::sync::oneshot::channel();
    let server = tonic::transport::Server::builder()
        .add_service(IdentityServer::new(service.clone()))
        .add_service(ControllerServer::new(service.clone()))
        .add_service(GroupControllerServer::new(service.clone()))
        .add_service(NodeServer::new(service))
        .serve_with_incoming_shutdown(listener.into_stream(), async {
            stop.await;
            let _ = stopping.send(());
        });
    // A client that keeps its connection must not keep the program.
    tokio::select! {
        ended = server => ended,
        () = async {
            if stopped.await.is_ok() {
                tokio::time::sleep(GRACE).await;
            } else {
                std::future::pending().await
            }
        } => Ok(()),
    }
}

#[derive(Clone)]
struct Service {
    driver: Arc<Driver>,
    log_calls: bool,
}

/// A method's answer.
type Told<T> = Result<Response<T>, Status>;

impl Service {
    async fn call<Q, R>(
        &self,
        method: &'static str,
        request: Request<Q>,
        work: impl FnOnce(&Driver, &Q) -> Answer<R> + Send + 'static,
    ) -> Told<R>
    where
        Q: Serialize + Send + 'static,
        R: Serialize + Send + 'static,
    {
        let driver = Arc::clone(&self.driver);
        let log_calls = self.log_calls;
        let request = request.into_inner();
        let work = move || {
            let answer = work(&driver, &request).map_err(|Failed(status)| status);
            log(method, &request, &answer, log_calls);
            answer
        };
        let answer = tokio::task::spawn_blocking(work).await;
        answer
            .unwrap_or_else(|err| Err(Status::internal(format!("{method}: {err}"))))
            .map(Response::new)
    }
}

/// Upstream's suite reads the lines that begin with `gRPCCall:` to learn what the kubelet called; secrets are in there.
fn log<Q: Serialize, R: Serialize>(
    method: &str,
    request: &Q,
    answer: &Result<R, Status>,
    log_calls: bool,
) {
    if let Err(status) = answer {
        tracing::error!(method, code = ?status.code(), "{}", status.message());
    }
    if !log_calls {
        return;
    }
    let (code, message) = match answer {
        Ok(_) => (Code::Ok, String::new()),
        Err(status) => (status.code(), status.message().to_owned()),
    };
    let line = json!({
        "Method": method,
        "Request": request,
        "Response": answer.as_ref().ok(),
        "Error": match code {
            Code::Ok => String::new(),
            code => format!("rpc error: code = {code:?} desc = {message}"),
        },
        "FullError": {"code": i32::from(code), "message": message},
    });
    tracing::debug!("gRPCCall: {line}");
}

/// The methods of a service: each calls the driver's of its name.
macro_rules! methods {
    ($service:ident as $full:literal { $($name:ident $path:literal ($request:ident) -> $answer:ident = $work:expr;)* }) => {
        #[async_trait]
        impl $service for Service {
            $(async fn $name(&self, request: Request<csi::$request>) -> Told<csi::$answer> {
                self.call(concat!("/csi.v1.", $full, "/", $path), request, $work).await
            })*
        }
    };
}

methods! {
    Identity as "Identity" {
        get_plugin_info "GetPluginInfo" (GetPluginInfoRequest) -> GetPluginInfoResponse = |driver, _| Ok(plugin_info(driver));
        get_plugin_capabilities "GetPluginCapabilities" (GetPluginCapabilitiesRequest) -> GetPluginCapabilitiesResponse
            = |driver, _| Ok(plugin_capabilities(driver));
        probe "Probe" (ProbeRequest) -> ProbeResponse = |_, _| Ok(csi::ProbeResponse { ready: Some(true) });
    }
}

methods! {
    Controller as "Controller" {
        create_volume "CreateVolume" (CreateVolumeRequest) -> CreateVolumeResponse = Driver::create_volume;
        delete_volume "DeleteVolume" (DeleteVolumeRequest) -> DeleteVolumeResponse = Driver::delete_volume;
        controller_publish_volume "ControllerPublishVolume" (ControllerPublishVolumeRequest) -> ControllerPublishVolumeResponse
            = Driver::controller_publish_volume;
        controller_unpublish_volume "ControllerUnpublishVolume" (ControllerUnpublishVolumeRequest)
            -> ControllerUnpublishVolumeResponse = Driver::controller_unpublish_volume;
        validate_volume_capabilities "ValidateVolumeCapabilities" (ValidateVolumeCapabilitiesRequest)
            -> ValidateVolumeCapabilitiesResponse = Driver::validate_volume_capabilities;
        list_volumes "ListVolumes" (ListVolumesRequest) -> ListVolumesResponse = Driver::list_volumes;
        controller_list_volume_health "ControllerListVolumeHealth" (ControllerListVolumeHealthRequest)
            -> ControllerListVolumeHealthResponse = Driver::controller_list_volume_health;
        controller_get_volume_health "ControllerGetVolumeHealth" (ControllerGetVolumeHealthRequest)
            -> ControllerGetVolumeHealthResponse = Driver::controller_get_volume_health;
        get_capacity "GetCapacity" (GetCapacityRequest) -> GetCapacityResponse
            = |driver, request| Ok(driver.state.read(|state| plan::capacity(&driver.config, state, request)));
        controller_get_capabilities "ControllerGetCapabilities" (ControllerGetCapabilitiesRequest)
            -> ControllerGetCapabilitiesResponse = |driver, _| Ok(driver.controller_capabilities());
        create_snapshot "CreateSnapshot" (CreateSnapshotRequest) -> CreateSnapshotResponse = Driver::create_snapshot;
        delete_snapshot "DeleteSnapshot" (DeleteSnapshotRequest) -> DeleteSnapshotResponse = Driver::delete_snapshot;
        list_snapshots "ListSnapshots" (ListSnapshotsRequest) -> ListSnapshotsResponse = Driver::list_snapshots;
        get_snapshot "GetSnapshot" (GetSnapshotRequest) -> GetSnapshotResponse = Driver::get_snapshot;
        controller_expand_volume "ControllerExpandVolume" (ControllerExpandVolumeRequest) -> ControllerExpandVolumeResponse
            = Driver::controller_expand_volume;
        controller_get_volume "ControllerGetVolume" (ControllerGetVolumeRequest) -> ControllerGetVolumeResponse
            = Driver::controller_get_volume;
        controller_modify_volume "ControllerModifyVolume" (ControllerModifyVolumeRequest) -> ControllerModifyVolumeResponse
            = Driver::controller_modify_volume;
    }
}

methods! {
    GroupController as "GroupController" {
        group_controller_get_capabilities "GroupControllerGetCapabilities" (GroupControllerGetCapabilitiesRequest)
            -> GroupControllerGetCapabilitiesResponse = |_, _| Ok(Driver::group_capabilities());
        create_volume_group_snapshot "CreateVolumeGroupSnapshot" (CreateVolumeGroupSnapshotRequest)
            -> CreateVolumeGroupSnapshotResponse = Driver::create_volume_group_snapshot;
        delete_volume_group_snapshot "DeleteVolumeGroupSnapshot" (DeleteVolumeGroupSnapshotRequest)
            -> DeleteVolumeGroupSnapshotResponse = Driver::delete_volume_group_snapshot;
        get_volume_group_snapshot "GetVolumeGroupSnapshot" (GetVolumeGroupSnapshotRequest)
            -> GetVolumeGroupSnapshotResponse = Driver::get_volume_group_snapshot;
    }
}

methods! {
    Node as "Node" {
        node_stage_volume "NodeStageVolume" (NodeStageVolumeRequest) -> NodeStageVolumeResponse = Driver::node_stage_volume;
        node_unstage_volume "NodeUnstageVolume" (NodeUnstageVolumeRequest) -> NodeUnstageVolumeResponse
            = Driver::node_unstage_volume;
        node_publish_volume "NodePublishVolume" (NodePublishVolumeRequest) -> NodePublishVolumeResponse
            = Driver::node_publish_volume;
        node_unpublish_volume "NodeUnpublishVolume" (NodeUnpublishVolumeRequest) -> NodeUnpublishVolumeResponse
            = Driver::node_unpublish_volume;
        node_get_volume_stats "NodeGetVolumeStats" (NodeGetVolumeStatsRequest) -> NodeGetVolumeStatsResponse
            = Driver::node_get_volume_stats;
        node_get_volume_health "NodeGetVolumeHealth" (NodeGetVolumeHealthRequest) -> NodeGetVolumeHealthResponse
            = Driver::node_get_volume_health;
        node_get_storage_health "NodeGetStorageHealth" (NodeGetStorageHealthRequest) -> NodeGetStorageHealthResponse
            = |driver, _| Ok(driver.node_get_storage_health());
        node_expand_volume "NodeExpandVolume" (NodeExpandVolumeRequest) -> NodeExpandVolumeResponse
            = Driver::node_expand_volume;
        node_get_capabilities "NodeGetCapabilities" (NodeGetCapabilitiesRequest) -> NodeGetCapabilitiesResponse
            = |driver, _| Ok(driver.node_capabilities());
        node_get_info "NodeGetInfo" (NodeGetInfoRequest) -> NodeGetInfoResponse = |driver, _| Ok(driver.node_get_info());
    }
}

fn plugin_info(driver: &Driver) -> csi::GetPluginInfoResponse {
    csi::GetPluginInfoResponse {
        name: driver.config.driver_name.clone(),
        vendor_version: concat!("v", env!("CARGO_PKG_VERSION")).to_owned(),
        ..Default::default()
    }
}

fn plugin_capabilities(driver: &Driver) -> csi::GetPluginCapabilitiesResponse {
    use csi::plugin_capability::service::Type as Kind;
    use csi::plugin_capability::{Service, Type, VolumeExpansion, volume_expansion};
    let services = [
        (Kind::ControllerService, true),
        (Kind::GroupControllerService, true),
        (
            Kind::VolumeAccessibilityConstraints,
            driver.config.enable_topology,
        ),
    ];
    let mut types: Vec<Type> = services
        .into_iter()
        .filter(|(_, is_on)| *is_on)
        .map(|(kind, _)| {
            Type::Service(Service {
                r#type: kind.into(),
            })
        })
        .collect();
    if driver.config.enable_volume_expansion {
        types.push(Type::VolumeExpansion(VolumeExpansion {
            r#type: volume_expansion::Type::Online.into(),
        }));
    }
    csi::GetPluginCapabilitiesResponse {
        capabilities: types
            .into_iter()
            .map(|kind| csi::PluginCapability { r#type: Some(kind) })
            .collect(),
    }
}
