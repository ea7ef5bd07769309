//! The probe: an HTTP page that is well while the driver answers `Probe`. The kubelet asks the page, the page asks the driver.
//!
//! Upstream: kubernetes-csi/livenessprobe (behaviour, names, flags).

use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use csi_spec::csi::v1::identity_client::IdentityClient;
use csi_spec::csi::v1::{GetPluginInfoRequest, ProbeRequest};

use crate::endpoint;
use crate::registrar::serve_http;

/// How long to wait before a driver that is not there yet is asked again.
const RETRY: Duration = Duration::from_secs(1);

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    pub driver: PathBuf,
    pub timeout: Duration,
    /// `host:port`.
    pub address: String,
}

/// Waits for the driver, then serves the page without an end. Before that nobody listens, which fails a probe, too.
///
/// # Errors
/// The address is taken.
pub async fn run(options: Options) -> std::io::Result<()> {
    let name = loop {
        match name(&options.driver).await {
            Ok(name) => break name,
            Err(why) => tracing::info!("waiting for the driver: {why}"),
        }
        tokio::time::sleep(RETRY).await;
    };
    tracing::info!(driver = name, address = options.address, "listening");
    let address = options.address.clone();
    let router = Router::new()
        .route("/healthz", get(healthz))
        .with_state(options);
    serve_http(&address, router).await
}

async fn name(socket: &Path) -> Result<String, String> {
    let channel = endpoint::connect(socket)
        .await
        .map_err(|err| err.to_string())?;
    let answer = IdentityClient::new(channel)
        .get_plugin_info(GetPluginInfoRequest {})
        .await;
    answer
        .map(|answer| answer.into_inner().name)
        .map_err(|status| status.message().to_owned())
}

async fn healthz(State(options): State<Options>) -> (StatusCode, String) {
    let asked = tokio::time::timeout(options.timeout, async {
        let channel = endpoint::connect(&options.driver)
            .await
            .map_err(|err| err.to_string())?;
        let answer = IdentityClient::new(channel).probe(ProbeRequest {}).await;
        answer
            .map(|answer| answer.into_inner().ready)
            .map_err(|status| status.message().to_owned())
    });
    let why = match asked.await {
        // A driver that says nothing is ready.
        Ok(Ok(None | Some(true))) => return (StatusCode::OK, "ok".to_owned()),
        Ok(Ok(Some(false))) => "driver responded but is not ready".to_owned(),
        Ok(Err(why)) => why,
        Err(_) => format!("no answer within {:?}", options.timeout),
    };
    tracing::error!("the driver is not well: {why}");
    (StatusCode::INTERNAL_SERVER_ERROR, why)
}
