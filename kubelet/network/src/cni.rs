//! CNI: where an administrator put a network configuration, its plugins connect the pods.
//!
//! Owns finding the configuration and the calls of the plugins. Follows the CNI specification 1.0 and libcni
//! as containerd uses it (first file by name, chained results, capabilities, cached result for DEL).

mod config;
mod exec;

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde_json::{Value, json};

pub use config::{CniConfig, load};

use crate::store::CniRecord;
use crate::{NetworkError, SandboxNetwork};
use exec::{Call, Command, run};

/// Calls ADD of every plugin in order, each given the result of the one before.
///
/// On failure DEL was called for what was done.
pub async fn add(
    config: &CniConfig,
    bin_dirs: &[PathBuf],
    sandbox: &SandboxNetwork,
    pod_cidrs: &[IpNet],
) -> Result<(CniRecord, Vec<IpAddr>), NetworkError> {
    let mut result = Value::Null;
    for plugin in config.plugins() {
        let input = config.input(plugin, &result, &runtime_config(sandbox, pod_cidrs));
        let call = Call {
            command: Command::Add,
            plugin,
            input,
            sandbox,
            bin_dirs,
        };
        match run(&call).await {
            Ok(output) => result = output,
            Err(error) => {
                let record = CniRecord {
                    config: config.json.clone(),
                    result,
                    pod_cidrs: pod_cidrs.to_vec(),
                };
                if let Err(cleanup) = delete(&record, bin_dirs, sandbox).await {
                    tracing::warn!(sandbox = %sandbox.sandbox_id, error = %cleanup, "cleaning up after a failed CNI ADD failed too");
                }
                return Err(error);
            }
        }
    }
    let addresses = addresses(&result);
    let record = CniRecord {
        config: config.json.clone(),
        result,
        pod_cidrs: pod_cidrs.to_vec(),
    };
    if addresses.is_empty() {
        let path = config.path.clone();
        return Err(NetworkError::CniConfig {
            path,
            reason: "the plugins' result holds no address".into(),
        });
    }
    Ok((record, addresses))
}

/// Calls DEL of every plugin, last first. All are called; the first error is returned.
pub async fn delete(
    record: &CniRecord,
    bin_dirs: &[PathBuf],
    sandbox: &SandboxNetwork,
) -> Result<(), NetworkError> {
    let config = CniConfig {
        path: PathBuf::new(),
        json: record.config.clone(),
    };
    let mut errors = Vec::new();
    for plugin in config.plugins().rev() {
        let input = config.input(
            plugin,
            &record.result,
            &runtime_config(sandbox, &record.pod_cidrs),
        );
        let call = Call {
            command: Command::Delete,
            plugin,
            input,
            sandbox,
            bin_dirs,
        };
        errors.extend(run(&call).await.err());
    }
    if errors.len() > 1 {
        return Err(NetworkError::Cleanup(errors));
    }
    errors.pop().map_or(Ok(()), Err)
}

/// What `capabilities` of a plugin may ask for. Upstream: containerd's CNI options of the same names.
fn runtime_config(sandbox: &SandboxNetwork, pod_cidrs: &[IpNet]) -> Value {
    let mut config = json!({});
    let mappings: Vec<_> = sandbox
        .port_mappings
        .iter()
        .filter(|mapping| mapping.host_port != 0)
        .map(|mapping| {
            json!({
                "hostPort": mapping.host_port,
                "containerPort": mapping.container_port,
                "protocol": mapping.protocol.as_str(),
                "hostIP": mapping.host_ip.map_or_else(String::new, |ip| ip.to_string()),
            })
        })
        .collect();
    if !mappings.is_empty() {
        config["portMappings"] = mappings.into();
    }
    let bandwidth = sandbox.bandwidth;
    if bandwidth.ingress_bits_per_second.is_some() || bandwidth.egress_bits_per_second.is_some() {
        let unlimited = i64::from(i32::MAX);
        config["bandwidth"] = json!({
            "ingressRate": bandwidth.ingress_bits_per_second.unwrap_or(0),
            "ingressBurst": if bandwidth.ingress_bits_per_second.is_some() { unlimited } else { 0 },
            "egressRate": bandwidth.egress_bits_per_second.unwrap_or(0),
            "egressBurst": if bandwidth.egress_bits_per_second.is_some() { unlimited } else { 0 },
        });
    }
    if !pod_cidrs.is_empty() {
        let ranges: Vec<_> = pod_cidrs
            .iter()
            .map(|range| json!([{ "subnet": range.to_string() }]))
            .collect();
        config["ipRanges"] = ranges.into();
    }
    config
}

/// The addresses in a result of any version.
fn addresses(result: &Value) -> Vec<IpAddr> {
    let of = |address: Option<&Value>| -> Option<IpAddr> {
        let text = address?.as_str()?;
        text.parse::<IpNet>()
            .map(|net| net.addr())
            .ok()
            .or_else(|| text.parse().ok())
    };
    let listed = result
        .get("ips")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let mut addresses: Vec<_> = listed.filter_map(|ip| of(ip.get("address"))).collect();
    // 0.2.0 and before.
    addresses.extend(
        ["/ip4/ip", "/ip6/ip"]
            .iter()
            .filter_map(|path| of(result.pointer(path))),
    );
    addresses
}
