//! Pod sandboxes: namespaces, cgroup, shim, network.
//!
//! ```text
//! Creating --set up--> Ready --stop, or the shim dies--> Stopped --remove--> (gone)
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use component_helpers::quantity::{Amount, ParseQuantityError};
use network::{Bandwidth, SandboxNetwork};
use shim_protocol::{
    CONFIG_NAME, IdMap, NamespaceConfig, Request, ShimConfig, UserMappings, chain,
};

use super::record::{RECORD_VERSION, Sandbox, SandboxPhase, SandboxRecord};
use super::shim::{self, ShimCallError};
use super::{Inner, blocking, container, io, layout, machine, mount, watch};
use crate::api::*;

/// Docker's and containerd's size of /dev/shm.
const SHM_BYTES: u64 = 64 << 20;

const INGRESS_ANNOTATION: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS_ANNOTATION: &str = "kubernetes.io/egress-bandwidth";

pub async fn run(inner: &Arc<Inner>, config: &PodSandboxConfig) -> Result<String, RuntimeError> {
    if !config.runtime_handler.is_empty()
        && !inner.config.handlers.contains(&config.runtime_handler)
    {
        return Err(failed(
            config,
            format!("no runtime for {:?} is configured", config.runtime_handler),
        ));
    }
    let bandwidth = bandwidth(&config.annotations)?;
    let id = machine::new_id().map_err(io("read random bytes"))?;
    let mut config = config.clone();
    if config.hostname.is_empty() {
        config.hostname = nix::unistd::gethostname()
            .map_err(|error| io("ask for the node's name")(error.into()))?
            .to_string_lossy()
            .into_owned();
    }
    let record = SandboxRecord {
        version: RECORD_VERSION,
        id: id.clone(),
        config: config.clone(),
        created_at: jiff::Timestamp::now(),
        ips: Vec::new(),
        phase: SandboxPhase::Creating,
    };
    let sandbox = Sandbox::new(record.clone());
    inner.sandboxes().insert(id.clone(), sandbox.clone());
    match set_up(inner, &sandbox, record, bandwidth).await {
        Ok(()) => {
            inner.emit(RuntimeEvent::SandboxReady {
                sandbox_id: id.clone(),
                pod_uid: config.metadata.uid.clone(),
            });
            Ok(id)
        }
        Err(error) => {
            sandbox.begin_stop();
            take_down(inner, &sandbox).await;
            forget(inner, &id);
            Err(error)
        }
    }
}

fn failed(config: &PodSandboxConfig, reason: impl Into<String>) -> RuntimeError {
    RuntimeError::Sandbox {
        name: config.metadata.name.clone(),
        reason: reason.into(),
    }
}

async fn set_up(
    inner: &Arc<Inner>,
    sandbox: &Arc<Sandbox>,
    mut record: SandboxRecord,
    bandwidth: Bandwidth,
) -> Result<(), RuntimeError> {
    let config = record.config.clone();
    let id = record.id.clone();
    let preparation = {
        let (inner, record) = (inner.clone(), record.clone());
        blocking(move || prepare(&inner, &record))
    };
    preparation.await?;
    let state_dir = inner.layout.sandbox_state(&id);
    inner
        .shim
        .run(&["serve".as_ref(), state_dir.as_os_str()])
        .await
        .map_err(|error| failed(&config, chain(&error)))?;
    if config.namespaces.network != NamespaceMode::Node {
        let network = SandboxNetwork {
            sandbox_id: id.clone(),
            namespace: config.metadata.namespace.clone(),
            name: config.metadata.name.clone(),
            uid: config.metadata.uid.clone(),
            netns: inner.layout.namespaces(&id).join("net"),
            port_mappings: port_mappings(&config.port_mappings)?,
            bandwidth,
        };
        let ips = inner
            .network
            .setup(&network)
            .await
            .map_err(|error| RuntimeError::Network {
                id: id.clone(),
                source: Box::new(error),
            })?;
        record.ips = ips.iter().map(ToString::to_string).collect();
    }
    record.phase = SandboxPhase::Ready;
    inner
        .layout
        .write_sandbox(&id, &record)
        .map_err(io("write the sandbox's record"))?;
    *sandbox.record() = record;
    watch::begin(inner, sandbox)
        .await
        .map(drop)
        .map_err(|error| failed(&config, chain(&error)))
}

/// Directories, files, mounts and the shim's configuration.
fn prepare(inner: &Inner, record: &SandboxRecord) -> Result<(), RuntimeError> {
    let (id, config) = (&record.id, &record.config);
    let (directory, state_dir) = (inner.layout.sandbox(id), inner.layout.sandbox_state(id));
    layout::private_directory(&directory).map_err(io(format!("create {}", directory.display())))?;
    match &config.namespaces.user {
        None => layout::private_directory(&state_dir)
            .map_err(io(format!("create {}", state_dir.display())))?,
        // libcontainer opens the pins as the namespace's root.
        Some(mapping) => inner
            .layout
            .open_for_user_namespaces()
            .and_then(|()| layout::passage(&state_dir, container::root_gid(mapping)))
            .map_err(io(format!("create {}", state_dir.display())))?,
    }
    if !config.log_directory.as_os_str().is_empty() {
        std::fs::create_dir_all(&config.log_directory)
            .map_err(io(format!("create {}", config.log_directory.display())))?;
    }
    inner
        .layout
        .write_sandbox(id, record)
        .map_err(io("write the sandbox's record"))?;
    inner
        .cgroups
        .ensure(Path::new(&config.cgroup_parent))
        .map_err(io(format!("create cgroup {:?}", config.cgroup_parent)))?;
    if config.namespaces.ipc != NamespaceMode::Node {
        let shm = state_dir.join("shm");
        std::fs::create_dir_all(&shm).map_err(io("create shm"))?;
        let size = config
            .shm_size_bytes
            .filter(|size| *size > 0)
            .unwrap_or(SHM_BYTES);
        mount::tmpfs(&shm, &format!("mode=1777,size={size}")).map_err(io("mount shm"))?;
    }
    let resolv_conf = match &config.dns {
        Some(dns) if *dns != DnsConfig::default() => resolv_conf(dns),
        _ => std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
    };
    // On disk, not on the state's tmpfs: a container may write to them.
    write_file(&directory.join("resolv.conf"), &resolv_conf)?;
    write_file(
        &directory.join("hostname"),
        &format!("{}\n", config.hostname),
    )?;
    let shim_config = shim_config(inner, record);
    layout::write_record(&state_dir.join(CONFIG_NAME), &shim_config)
        .map_err(io("write the shim's configuration"))
}

/// A file that any user of the pod may read, whatever the umask.
fn write_file(path: &Path, text: &str) -> Result<(), RuntimeError> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text)
        .and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)))
        .map_err(io(format!("write {}", path.display())))
}

fn shim_config(inner: &Inner, record: &SandboxRecord) -> ShimConfig {
    let config = &record.config;
    let maps = |maps: &[IdMapping]| -> Vec<IdMap> {
        maps.iter()
            .map(|map| IdMap {
                container_id: map.container_id,
                host_id: map.host_id,
                length: map.length,
            })
            .collect()
    };
    let own_network = config.namespaces.network != NamespaceMode::Node;
    ShimConfig {
        version: shim_protocol::VERSION,
        sandbox_id: record.id.clone(),
        pod_uid: config.metadata.uid.clone(),
        state_dir: inner.layout.sandbox_state(&record.id),
        lock_path: inner.layout.pod_lock(&config.metadata.uid),
        namespaces: NamespaceConfig {
            net: own_network,
            ipc: config.namespaces.ipc != NamespaceMode::Node,
            uts: own_network,
            pid: config.namespaces.pid == NamespaceMode::Pod,
            user: config.namespaces.user.as_ref().map(|user| UserMappings {
                uids: maps(&user.uids),
                gids: maps(&user.gids),
            }),
        },
        hostname: if own_network {
            config.hostname.clone()
        } else {
            String::new()
        },
        sysctls: sysctls(config),
        shim_cgroup: inner.config.shim_cgroup.clone(),
        open_files: inner.config.open_files,
    }
}

/// The pod's sysctls over containerd's defaults (`enable_unprivileged_ports`, `enable_unprivileged_icmp`):
/// in a network of its own any user may listen on any port and ping.
fn sysctls(config: &PodSandboxConfig) -> BTreeMap<String, String> {
    let mut sysctls = BTreeMap::new();
    if config.namespaces.network != NamespaceMode::Node {
        sysctls.insert(
            "net.ipv4.ip_unprivileged_port_start".to_owned(),
            "0".to_owned(),
        );
        // Group ids of the namespace; a range that is not mapped is refused.
        if config.namespaces.user.is_none() {
            sysctls.insert(
                "net.ipv4.ping_group_range".to_owned(),
                "0 2147483647".to_owned(),
            );
        }
    }
    sysctls.extend(config.sysctls.clone());
    sysctls
}

fn resolv_conf(dns: &DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

fn port_mappings(mappings: &[PortMapping]) -> Result<Vec<network::PortMapping>, RuntimeError> {
    mappings
        .iter()
        .filter(|mapping| mapping.host_port > 0)
        .map(|mapping| {
            let host_ip = match mapping.host_ip.as_str() {
                "" => None,
                text => Some(text.parse().map_err(|_| RuntimeError::Invalid {
                    field: "hostIP",
                    value: text.to_owned(),
                    reason: "not an IP address".to_owned(),
                })?),
            };
            Ok(network::PortMapping {
                protocol: match mapping.protocol {
                    Protocol::Tcp => network::Protocol::Tcp,
                    Protocol::Udp => network::Protocol::Udp,
                    Protocol::Sctp => network::Protocol::Sctp,
                },
                container_port: mapping.container_port,
                host_port: mapping.host_port,
                host_ip,
            })
        })
        .collect()
}

fn bandwidth(annotations: &Annotations) -> Result<Bandwidth, RuntimeError> {
    let read = |name: &'static str| -> Result<Option<u64>, RuntimeError> {
        let Some(text) = annotations.get(name) else {
            return Ok(None);
        };
        parse_bits(text)
            .map(Some)
            .map_err(|reason| RuntimeError::Invalid {
                field: name,
                value: text.clone(),
                reason,
            })
    };
    Ok(Bandwidth {
        ingress_bits_per_second: read(INGRESS_ANNOTATION)?,
        egress_bits_per_second: read(EGRESS_ANNOTATION)?,
    })
}

/// A Kubernetes quantity of bits per second, within what containerd takes: 1k to 1P.
fn parse_bits(text: &str) -> Result<u64, String> {
    let amount: Amount = text
        .parse()
        .map_err(|error: ParseQuantityError| error.to_string())?;
    let bits = amount.value();
    match u64::try_from(bits) {
        Ok(bits) if bits > 1_000_000_000_000_000 => {
            Err("resource is unreasonably large (> 1Pbit)".to_owned())
        }
        Ok(bits) if bits >= 1_000 => Ok(bits),
        _ => Err("resource is unreasonably small (< 1kbit)".to_owned()),
    }
}

pub fn set_phase(inner: &Inner, sandbox: &Sandbox, phase: SandboxPhase) {
    let record = {
        let mut record = sandbox.record();
        record.phase = phase;
        record.clone()
    };
    if let Err(error) = inner.layout.write_sandbox(&record.id, &record) {
        tracing::warn!(sandbox = %record.id, %error, "cannot write a sandbox's record");
    }
}

pub async fn stop(inner: &Arc<Inner>, id: &str) -> Result<(), RuntimeError> {
    let sandbox = match inner.sandbox(id) {
        Ok(sandbox) => sandbox,
        Err(_) => return Ok(()),
    };
    let _alone = sandbox.teardown.lock().await;
    if inner.sandbox(id).is_err() {
        // Removed while this call waited.
        return Ok(());
    }
    stop_alone(inner, &sandbox, id).await
}

/// The caller holds `teardown`: two calls at once would write into a directory that the other one removes.
async fn stop_alone(
    inner: &Arc<Inner>,
    sandbox: &Arc<Sandbox>,
    id: &str,
) -> Result<(), RuntimeError> {
    sandbox.begin_stop();
    let was_ready = sandbox.record().phase == SandboxPhase::Ready;
    let problems = take_down(inner, sandbox).await;
    watch::settle(inner, id);
    set_phase(inner, sandbox, SandboxPhase::Stopped);
    if was_ready {
        inner.emit(RuntimeEvent::SandboxStopped {
            sandbox_id: id.to_owned(),
            pod_uid: inner.pod_uid(id),
        });
    }
    match problems.into_iter().next() {
        None => Ok(()),
        Some(problem) => Err(problem),
    }
}

pub async fn remove(inner: &Arc<Inner>, id: &str) -> Result<(), RuntimeError> {
    let Ok(sandbox) = inner.sandbox(id) else {
        return Ok(());
    };
    let _alone = sandbox.teardown.lock().await;
    if inner.sandbox(id).is_err() {
        return Ok(());
    }
    stop_alone(inner, &sandbox, id).await?;
    for container in inner.containers_of(id) {
        let container_id = container.record().id.clone();
        container::remove(inner, &container_id).await?;
    }
    let lock = inner.layout.pod_lock(&sandbox.record().config.metadata.uid);
    let shares_lock = {
        let uid = sandbox.record().config.metadata.uid.clone();
        inner.sandboxes().values().any(|other| {
            let other = other.record();
            other.id != id && other.config.metadata.uid == uid
        })
    };
    if !shares_lock {
        let _ = std::fs::remove_file(lock);
    }
    let pod_uid = inner.pod_uid(id);
    forget(inner, id);
    inner.emit(RuntimeEvent::SandboxRemoved {
        sandbox_id: id.to_owned(),
        pod_uid,
    });
    Ok(())
}

/// Drops the sandbox from memory and disk.
pub fn forget(inner: &Inner, id: &str) {
    for directory in [inner.layout.sandbox(id), inner.layout.sandbox_state(id)] {
        if let Err(error) = layout::remove_tree(&directory) {
            tracing::warn!(path = %directory.display(), %error, "cannot remove a sandbox's directory");
        }
    }
    inner.sandboxes().remove(id);
}

/// Ends everything of the sandbox that lives in the kernel. Goes on past errors and returns them all;
/// can be repeated.
pub async fn take_down(inner: &Arc<Inner>, sandbox: &Arc<Sandbox>) -> Vec<RuntimeError> {
    let (id, has_network) = {
        let record = sandbox.record();
        (
            record.id.clone(),
            record.config.namespaces.network != NamespaceMode::Node,
        )
    };
    let mut problems = Vec::new();
    let state_dir = inner.layout.sandbox_state(&id);
    // The exits must be known before the shim goes: the watch hears them first.
    match shim::call(&state_dir, &Request::Shutdown).await {
        Ok(_) | Err(ShimCallError::Connect { .. } | ShimCallError::HungUp) => {}
        Err(error) => problems.push(RuntimeError::Shim {
            id: id.clone(),
            reason: chain(&error),
        }),
    }
    if has_network && let Err(error) = inner.network.teardown(&id).await {
        problems.push(RuntimeError::Network {
            id: id.clone(),
            source: Box::new(error),
        });
    }
    let cgroups: Vec<PathBuf> = inner
        .containers_of(&id)
        .iter()
        .map(|container| container.record().cgroup_path.clone())
        .collect();
    let worker = inner.clone();
    let result = blocking(move || {
        for path in &cgroups {
            worker.cgroups.kill(path);
            if let Err(error) = worker.cgroups.remove(path) {
                tracing::debug!(path = %path.display(), %error, "cannot remove a cgroup yet");
            }
        }
        mount::unmount_below(&state_dir)
            .map_err(io(format!("unmount below {}", state_dir.display())))
    })
    .await;
    problems.extend(result.err());
    for problem in &problems {
        tracing::warn!(sandbox = %id, %problem, "taking a sandbox down");
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidths_are_quantities() {
        const SMALL: &str = "resource is unreasonably small (< 1kbit)";
        const LARGE: &str = "resource is unreasonably large (> 1Pbit)";
        for (text, expected) in [
            ("10M", Ok(10_000_000)),
            ("1.5M", Ok(1_500_000)),
            ("1e6", Ok(1_000_000)),
            ("1Ki", Ok(1024)),
            ("1k", Ok(1_000)),
            ("1000", Ok(1_000)),
            ("1P", Ok(1_000_000_000_000_000)),
            ("999", Err(SMALL)),
            ("7", Err(SMALL)),
            ("0", Err(SMALL)),
            ("-1M", Err(SMALL)),
            ("1.1P", Err(LARGE)),
            ("1Pi", Err(LARGE)),
            ("9E", Err(LARGE)),
        ] {
            let expected = expected.map_err(str::to_owned);
            assert_eq!(parse_bits(text), expected, "{text}");
        }
        for text in ["M", "", "1.5 M", "10Mbit"] {
            assert!(parse_bits(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_pods_own_sysctls_win_over_the_defaults() {
        let mut config = PodSandboxConfig::default();
        assert_eq!(sysctls(&config)["net.ipv4.ip_unprivileged_port_start"], "0");
        config.sysctls = [(
            "net.ipv4.ip_unprivileged_port_start".to_owned(),
            "1024".to_owned(),
        )]
        .into();
        assert_eq!(
            sysctls(&config)["net.ipv4.ip_unprivileged_port_start"],
            "1024"
        );
        config.namespaces.network = NamespaceMode::Node;
        config.sysctls.clear();
        assert!(sysctls(&config).is_empty());
    }

    #[test]
    fn resolv_conf_has_the_order_of_containerd() {
        let dns = DnsConfig {
            servers: vec!["10.0.0.10".into()],
            searches: vec!["a".into(), "b".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(
            resolv_conf(&dns),
            "search a b\nnameserver 10.0.0.10\noptions ndots:5\n"
        );
    }
}
