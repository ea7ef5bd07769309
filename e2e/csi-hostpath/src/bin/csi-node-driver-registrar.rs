//! The registrar's program, under upstream's name and with its flags.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{ArgAction, Parser};
use csi_hostpath::endpoint::socket_path;
use csi_hostpath::flags::{Logging, as_long_options, duration};
use csi_hostpath::registrar;
use tokio::signal::unix::{SignalKind, signal};

/// Upstream: node-driver-registrar, `cmd/csi-node-driver-registrar/main.go`.
#[derive(Debug, Parser)]
#[command(name = "csi-node-driver-registrar", version, args_override_self = true)]
struct Options {
    #[command(flatten)]
    logging: Logging,
    /// Deprecated, without an effect.
    #[arg(long, value_parser = duration)]
    connection_timeout: Option<Duration>,
    /// How long the driver may take for an answer.
    #[arg(long, default_value = "1s", value_parser = duration)]
    timeout: Duration,
    /// The driver's socket.
    #[arg(long, default_value = "/run/csi/socket")]
    csi_address: String,
    /// The kubelet's folder of registrations.
    #[arg(long, default_value = "/registration")]
    plugin_registration_path: PathBuf,
    /// The driver's socket as the kubelet sees it.
    #[arg(long, default_value = "")]
    kubelet_registration_path: String,
    /// Deprecated: the port of --http-endpoint; 0 for none.
    #[arg(long, default_value_t = 0)]
    health_port: u16,
    /// HOST:PORT where health is told, or :PORT.
    #[arg(long, default_value = "")]
    http_endpoint: String,
    /// Deprecated: kubelet-registration-probe does nothing and succeeds.
    #[arg(long, default_value = "")]
    mode: String,
    /// Without an effect: a profile of Go's.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, action = ArgAction::Set)]
    enable_pprof: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Options::parse_from(as_long_options(std::env::args_os()));
    options.logging.start();
    if options.kubelet_registration_path.is_empty() {
        bail!("--kubelet-registration-path is required");
    }
    if options.mode == "kubelet-registration-probe" {
        return Ok(());
    }
    if options.health_port != 0 && !options.http_endpoint.is_empty() {
        bail!("only one of --health-port and --http-endpoint can be set");
    }
    if options.connection_timeout.is_some() {
        tracing::warn!("--connection-timeout is deprecated and has no effect");
    }
    if options.enable_pprof {
        tracing::warn!("--enable-pprof has no effect here");
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = async move {
        terminate.recv().await;
    };
    let registrar = registrar::Options {
        driver: socket_path(&options.csi_address),
        driver_for_kubelet: options.kubelet_registration_path,
        registrations: options.plugin_registration_path,
        timeout: options.timeout,
        http: match options.health_port {
            0 => options.http_endpoint,
            port => format!(":{port}"),
        },
    };
    Ok(registrar::run(&registrar, stop).await?)
}
