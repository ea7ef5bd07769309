//! The probe's program, under upstream's name and with its flags.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Parser;
use csi_hostpath::endpoint::socket_path;
use csi_hostpath::flags::{Logging, as_long_options, duration};
use csi_hostpath::livenessprobe;
use tokio::signal::unix::{SignalKind, signal};

/// Upstream's default of --health-port.
const PORT: u16 = 9808;

/// Upstream: livenessprobe, `cmd/livenessprobe/main.go`.
#[derive(Debug, Parser)]
#[command(name = "livenessprobe", version, args_override_self = true)]
struct Options {
    #[command(flatten)]
    logging: Logging,
    /// How long the driver may take for an answer.
    #[arg(long, default_value = "3s", value_parser = duration)]
    probe_timeout: Duration,
    /// The driver's socket.
    #[arg(long, default_value = "/run/csi/socket")]
    csi_address: String,
    /// Deprecated: the port where health is told, on every address.
    #[arg(long, default_value_t = PORT)]
    health_port: u16,
    /// Not built: it is refused.
    #[arg(long, default_value = "")]
    metrics_address: String,
    /// HOST:PORT where health is told, or :PORT.
    #[arg(long, default_value = "")]
    http_endpoint: String,
    /// Belongs to the metrics, which are not built.
    #[arg(long, default_value = "/metrics")]
    metrics_path: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Options::parse_from(as_long_options(std::env::args_os()));
    options.logging.start();
    if !options.metrics_address.is_empty() {
        bail!("--metrics-address: metrics are not built");
    }
    if options.health_port != PORT && !options.http_endpoint.is_empty() {
        bail!("only one of --health-port and --http-endpoint can be set");
    }
    if options.metrics_path != "/metrics" {
        tracing::warn!("--metrics-path has no effect: metrics are not built");
    }
    let address = match options.http_endpoint.as_str() {
        "" => format!(":{}", options.health_port),
        address => address.to_owned(),
    };
    let probe = livenessprobe::Options {
        driver: socket_path(&options.csi_address),
        timeout: options.probe_timeout,
        address,
    };
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        ended = livenessprobe::run(probe) => Ok(ended?),
        _ = terminate.recv() => Ok(()),
    }
}
