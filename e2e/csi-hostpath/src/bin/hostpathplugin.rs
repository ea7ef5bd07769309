//! The driver's program, under upstream's name and with its flags.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{ArgAction, Parser};
use csi_hostpath::driver::{Driver, serve};
use csi_hostpath::endpoint::Endpoint;
use csi_hostpath::flags::{Logging, as_long_options};
use csi_hostpath::plan::{self, Config};
use csi_hostpath::proxy;
use tokio::signal::unix::{SignalKind, signal};

/// Upstream: csi-driver-host-path, `cmd/hostpathplugin/main.go`.
#[derive(Debug, Parser)]
#[command(name = "hostpathplugin", version, args_override_self = true)]
struct Options {
    #[command(flatten)]
    logging: Logging,
    /// CSI endpoint.
    #[arg(long, default_value = "unix:///tmp/csi.sock")]
    endpoint: String,
    /// The name of the driver.
    #[arg(long, default_value = "hostpath.csi.k8s.io")]
    drivername: String,
    /// Where state, volumes and snapshots are kept.
    #[arg(long, default_value = "/csi-data-dir")]
    statedir: PathBuf,
    /// The node's ID.
    #[arg(long, default_value = "")]
    nodeid: String,
    /// Every volume is an inline one, even if the kubelet did not say so.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, action = ArgAction::Set)]
    ephemeral: bool,
    /// How many volumes a node takes; 0 for no limit.
    #[arg(long, default_value_t = 0)]
    maxvolumespernode: i64,
    /// KIND=QUANTITY: how much there is of a kind of storage; can be given several times.
    #[arg(long, value_parser = capacity)]
    capacity: Vec<(String, i64)>,
    /// Volumes are attached and detached.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, action = ArgAction::Set)]
    enable_attach: bool,
    /// A volume that is in use is not deleted or detached, where it is else, with a warning.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, action = ArgAction::Set)]
    check_volume_lifecycle: bool,
    /// The largest volume, in bytes.
    #[arg(long, default_value_t = 1 << 40)]
    max_volume_size: i64,
    /// Volumes belong to this node.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = true, action = ArgAction::Set)]
    enable_topology: bool,
    /// Deprecated: as --enable-volume-expansion.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    node_expand_required: Option<bool>,
    /// Volumes can be enlarged.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    enable_volume_expansion: Option<bool>,
    /// Volumes can be changed by a VolumeAttributesClass.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, action = ArgAction::Set)]
    enable_controller_modify_volume: bool,
    /// What such a class can change; everything if none is named.
    #[arg(long, value_delimiter = ',')]
    accepted_mutable_parameter_names: Vec<String>,
    /// Not built: it is refused.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, action = ArgAction::Set)]
    enable_snapshot_metadata: bool,
    /// Belongs to --enable-snapshot-metadata.
    #[arg(long, default_value = "FIXED_LENGTH", value_parser = ["FIXED_LENGTH", "VARIABLE_LENGTH"])]
    snapshot_metadata_block_type: String,
    /// The controller does not enlarge volumes.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, action = ArgAction::Set)]
    disable_controller_expansion: bool,
    /// The node does not enlarge volumes.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, action = ArgAction::Set)]
    disable_node_expansion: bool,
    /// Snapshots can be listed.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = true, action = ArgAction::Set)]
    enable_list_snapshots: bool,
    /// The largest volume after it was enlarged on the node, in bytes; 0 for --max-volume-size.
    #[arg(long, default_value_t = 0)]
    max_volume_size_node: i64,
    /// How many volumes can be attached to a node: 0 for no limit, -1 for a made-up one.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    attach_limit: i64,
    /// Instead of a driver: connections to the endpoint are joined with those to this one.
    #[arg(long, default_value = "")]
    proxy_endpoint: String,
}

fn capacity(text: &str) -> Result<(String, i64), String> {
    let (kind, bytes) = text
        .split_once('=')
        .ok_or("must be of the form KIND=QUANTITY")?;
    Ok((kind.to_owned(), plan::quantity(bytes)?))
}

impl Options {
    fn config(&self) -> Config {
        Config {
            driver_name: self.drivername.clone(),
            node_id: self.nodeid.clone(),
            ephemeral: self.ephemeral,
            max_volumes_per_node: self.maxvolumespernode,
            capacity: self.capacity.iter().cloned().collect::<BTreeMap<_, _>>(),
            enable_attach: self.enable_attach,
            check_volume_lifecycle: self.check_volume_lifecycle,
            max_volume_size: self.max_volume_size,
            enable_topology: self.enable_topology,
            enable_volume_expansion: self
                .enable_volume_expansion
                .or(self.node_expand_required)
                .unwrap_or(true),
            disable_controller_expansion: self.disable_controller_expansion,
            disable_node_expansion: self.disable_node_expansion,
            enable_controller_modify_volume: self.enable_controller_modify_volume,
            accepted_mutable_parameters: self.accepted_mutable_parameter_names.clone(),
            enable_list_snapshots: self.enable_list_snapshots,
            max_volume_size_node: if self.max_volume_size_node == 0 {
                self.max_volume_size
            } else {
                self.max_volume_size_node
            },
            attach_limit: self.attach_limit,
        }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse_from(as_long_options(std::env::args_os()));
    options.logging.start();
    anyhow::ensure!(
        !options.enable_snapshot_metadata,
        "--enable-snapshot-metadata: the SnapshotMetadata service is not built"
    );
    let endpoint = Endpoint::parse(&options.endpoint)?;
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    if !options.proxy_endpoint.is_empty() {
        let back = Endpoint::parse(&options.proxy_endpoint)?;
        tracing::info!(%endpoint, %back, "joining connections");
        tokio::select! {
            ended = async { proxy::run(endpoint.listen().await?, back.listen().await?).await.map_err(anyhow::Error::from) } => ended?,
            () = stop => {}
        }
        endpoint.forget().await;
        return Ok(());
    }
    let (config, folder) = (options.config(), options.statedir.clone());
    let driver = tokio::task::spawn_blocking(move || Driver::open(config, &folder))
        .await?
        .with_context(|| format!("open {}", options.statedir.display()))?;
    let listener = endpoint.listen().await?;
    tracing::info!(
        driver = options.drivername,
        version = env!("CARGO_PKG_VERSION"),
        %endpoint,
        "listening"
    );
    serve(driver, options.logging.v >= 5, listener, stop).await?;
    endpoint.forget().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_flag_given_twice_the_last_holds() {
        let words = [
            "x",
            "--drivername=a",
            "-drivername=b",
            "--enable-attach",
            "--enable-attach=false",
        ];
        let args = as_long_options(words.iter().map(Into::into));
        let options = Options::try_parse_from(args).unwrap();
        assert_eq!(
            (options.drivername.as_str(), options.enable_attach),
            ("b", false)
        );
    }
}
