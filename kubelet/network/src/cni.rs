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
use exec::{Call, Command, program, run};

/// Why a pod was not connected.
#[derive(Debug)]
pub struct AddError {
    pub error: NetworkError,
    /// DEL was called and all of it succeeded, or nothing had been begun.
    pub is_undone: bool,
}

/// Calls ADD of every plugin in order, each given the result of the one before.
///
/// # Errors
/// DEL was called for what was done; whether that must be tried again is said.
pub async fn add(
    config: &CniConfig,
    bin_dirs: &[PathBuf],
    sandbox: &SandboxNetwork,
    pod_cidrs: &[IpNet],
) -> Result<(CniRecord, Vec<IpAddr>), AddError> {
    let record = |result| CniRecord {
        config: config.json.clone(),
        result,
        pod_cidrs: pod_cidrs.to_vec(),
    };
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
            // The first one is not there: nothing was begun, and its DEL would fail as well.
            Err(error) if result.is_null() && program(plugin, bin_dirs).is_none() => {
                let is_undone = true;
                return Err(AddError { error, is_undone });
            }
            Err(error) => return Err(undo(&record(result), bin_dirs, sandbox, error).await),
        }
    }
    let addresses = addresses(&result);
    let record = record(result);
    if addresses.is_empty() {
        let path = config.path.clone();
        let reason = "the plugins' result holds no address".into();
        let error = NetworkError::CniConfig { path, reason };
        return Err(undo(&record, bin_dirs, sandbox, error).await);
    }
    Ok((record, addresses))
}

/// Calls DEL for what a failed ADD did.
async fn undo(
    record: &CniRecord,
    bin_dirs: &[PathBuf],
    sandbox: &SandboxNetwork,
    error: NetworkError,
) -> AddError {
    let undone = delete(record, bin_dirs, sandbox).await;
    if let Err(cleanup) = &undone {
        tracing::warn!(sandbox = %sandbox.sandbox_id, error = %cleanup, "cleaning up after a failed CNI ADD failed too");
    }
    AddError {
        error,
        is_undone: undone.is_ok(),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What ADD came to with plugins `a` and `b` of these scripts, and which of their calls there were.
    async fn add_of(case: &str, a: Option<&str>, b: &str) -> (Result<(), bool>, String) {
        use std::os::unix::fs::PermissionsExt as _;
        let name = format!("gantry-nettest-cni-{case}-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let log = dir.join("log");
        for (name, script) in [("a", a), ("b", Some(b))] {
            let Some(script) = script else { continue };
            let text = format!(
                "#!/bin/sh\ncat > /dev/null\necho {name} $CNI_COMMAND >> {}\n{script}\n",
                log.display()
            );
            std::fs::write(dir.join(name), text).unwrap();
            let mode = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(dir.join(name), mode).unwrap();
        }
        let config = CniConfig {
            path: dir.join("10-test.conflist"),
            json: json!({ "name": "n", "cniVersion": "1.0.0", "plugins": [{ "type": "a" }, { "type": "b" }] }),
        };
        let sandbox = SandboxNetwork {
            sandbox_id: "s".into(),
            ..SandboxNetwork::default()
        };
        let added = add(&config, std::slice::from_ref(&dir), &sandbox, &[]).await;
        let calls = std::fs::read_to_string(&log).unwrap_or_default();
        std::fs::remove_dir_all(&dir).unwrap();
        let ended = added.map(drop).map_err(|error| error.is_undone);
        (ended, calls.replace('\n', ","))
    }

    #[tokio::test]
    async fn what_a_failed_add_did_is_undone_or_said_to_be_left() {
        const ADDRESS: &str = r#"echo '{"ips":[{"address":"10.1.2.3/24"}]}'"#;
        const NONE: &str = r#"echo '{"ips":[]}'"#;
        let fails_at = |command: &str| format!("[ $CNI_COMMAND != {command} ] || exit 1; {NONE}");
        let both = "a ADD,b ADD,b DEL,a DEL,";
        for (case, a, b, expect) in [
            (
                "good",
                Some(ADDRESS),
                ADDRESS.to_owned(),
                (Ok(()), "a ADD,b ADD,"),
            ),
            // A pod without an address is none.
            ("none", Some(NONE), NONE.to_owned(), (Err(true), both)),
            ("add", Some(ADDRESS), fails_at("ADD"), (Err(true), both)),
            ("del", Some(ADDRESS), fails_at("DEL"), (Err(false), both)),
            ("no program", None, NONE.to_owned(), (Err(true), "")),
        ] {
            let case = case.replace(' ', "-");
            let (ended, calls) = add_of(&case, a, &b).await;
            assert_eq!((ended, calls.as_str()), expect, "{case}");
        }
    }
}
