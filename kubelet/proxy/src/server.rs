//! The process: options, informers, pages, and the loop that brings changes into the kernel.
//!
//! Upstream: cmd/kube-proxy/app/server.go; the loop is pkg/proxy/runner (at once after a quiet time, at most once in
//! minSyncPeriod, again in syncPeriod after a failure).

mod pages;
mod sync_loop;

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use component_base::client::{ClientConfig, ClientError};
use component_base::clock::Clock;
use component_base::events::{EventType, Recorder};
use component_base::informer::{Factory, Informer, InformerEvent, InformerOptions};
use component_base::shutdown::Shutdown;
use futures::{Stream, StreamExt as _};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use nftables::{Family, Nft, NftError, NftProgram, Transaction};

use crate::config::KubeProxyConfiguration;
use crate::healthcheck::{ProxyHealth, ServiceHealthServer};
use crate::metrics::METRICS;
use crate::options::{self, Action, Options, OptionsError};
use crate::proxier::{NodePortAddresses, Proxier};
use crate::render::{RenderOptions, TABLE};
use crate::topology::Place;
use crate::{LocalDetector, leftovers, node, sysctl};
use sync_loop::{Inputs, sync_loop};

/// Services that another proxy serves, and those without a cluster address, are none of ours.
const SELECTOR: &str = "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless";
/// How long the Node is waited for. Upstream: NewNodeManager in pkg/proxy/node.go.
const NODE_TIMEOUT: Duration = Duration::from_secs(30);

/// Why the process ended.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error(transparent)]
    Options(#[from] OptionsError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Nft(#[from] NftError),
    #[error(transparent)]
    Serving(#[from] component_base::serving::ServingError),
    #[error("{context}: {source}")]
    Io {
        context: String,
        #[source]
        source: std::io::Error,
    },
    #[error("content of the proxy server's configuration file was updated")]
    ConfigChanged,
    #[error(transparent)]
    Task(#[from] component_base::tasks::TaskError),
    #[error("the cache of {0} ended before it was filled")]
    Informer(&'static str),
}

impl ServerError {
    fn io(context: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let context = context.into();
        move |source| Self::Io { context, source }
    }
}

/// The program. Exits with 1 after an error, as upstream's.
pub fn main() -> ExitCode {
    let flags = options::flags().parse_or_exit();
    let run = || {
        let options = Options::complete(&flags)?;
        let logging = &options.config.logging;
        flags
            .init_logs_with(&logging.format, logging.verbosity)
            .map_err(|error| OptionsError::Invalid(error.to_string()))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(ServerError::io("start the runtime"))?;
        runtime.block_on(act(options))
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "kube-proxy ended");
            eprintln!("Error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn act(options: Options) -> Result<(), ServerError> {
    match &options.action {
        Action::WriteConfig(path) => {
            let mut value = serde_json::to_value(&options.config).unwrap_or_default();
            value["apiVersion"] = crate::config::API_VERSION.into();
            value["kind"] = crate::config::KIND.into();
            // JSON is YAML.
            let text = serde_json::to_string_pretty(&value).unwrap_or_default();
            std::fs::write(path, text + "\n")
                .map_err(ServerError::io(format!("write {}", path.display())))
        }
        Action::Cleanup => cleanup().await,
        Action::InitOnly => {
            sysctl::apply(&options.config.conntrack);
            Ok(())
        }
        Action::Run => {
            let shutdown = Shutdown::on_signals().map_err(ServerError::io("handle signals"))?;
            shutdown.supervise(run(options, shutdown.clone())).await
        }
    }
}

/// Removes everything that kube-proxy made, in whatever mode.
async fn cleanup() -> Result<(), ServerError> {
    let nft = NftProgram::new();
    for family in [Family::Ip, Family::Ip6] {
        let removed = async {
            nft.apply(&Transaction::delete_table(family, TABLE)).await?;
            leftovers::remove(&nft, family).await
        };
        if let Err(error) = removed.await {
            let label = crate::metrics::family_label(family);
            METRICS
                .nftables_cleanup_failures_total
                .with_label_values(&[label])
                .inc();
            return Err(error.into());
        }
    }
    Ok(())
}

async fn run(options: Options, shutdown: Shutdown) -> Result<(), ServerError> {
    let Options {
        config,
        config_file,
        master,
        node_name,
        external_ips,
        ..
    } = options;
    tracing::info!(version = component_base::version::GIT_VERSION, node = %node_name, "Starting kube-proxy");
    warn_of_mode(&config);
    for field in config.not_acted_on() {
        tracing::warn!(
            field,
            "The configuration sets a field that has no effect here"
        );
    }
    adjust_oom_score(config.oom_score_adj);
    let changed = pages::watch_config(config_file.as_deref())?;

    let client = client(&config, master).await?;
    let recorder = Recorder::events_v1(client.clone(), "kube-proxy", &shutdown);
    let factory = Factory::new(client, shutdown.clone());
    let nodes = factory
        .informer::<Node>(InformerOptions::default().fields(format!("metadata.name={node_name}")));
    let services = factory.informer::<Service>(InformerOptions::default().labels(SELECTOR));
    let slices = factory.informer::<EndpointSlice>(InformerOptions::default().labels(SELECTOR));
    let cidrs = factory.informer::<ServiceCIDR>(InformerOptions::default());

    let clock = Clock::real();
    let health = ProxyHealth::new(2 * config.sync_period(), clock.clone());
    pages::serve(&config, &health, nodes.clone(), &node_name, &shutdown).await?;
    let Some(this) = wait_for_node(&nodes, &node_name, &shutdown).await else {
        return Ok(());
    };
    sysctl::apply(&config.conntrack);

    let nft: Arc<dyn Nft> = Arc::new(NftProgram::new());
    let mut proxiers = Vec::new();
    for family in families() {
        let options = render_options(&config, family, &node_name, &this);
        let node_ports = node_port_addresses(&config, family);
        let addresses = node_ports.resolve(options.node_ip);
        let service_health = ServiceHealthServer::new(
            &node_name,
            recorder.clone(),
            health.clone(),
            addresses,
            family,
            &shutdown,
        );
        let period = config.sync_period();
        proxiers.push(Proxier::new(
            nft.clone(),
            options,
            node_ports,
            external_ips,
            health.clone(),
            service_health,
            period,
        ));
    }
    birth_cry(&recorder, &node_name);

    let inputs = Inputs {
        nodes: nodes.subscribe(),
        services: services.subscribe(),
        slices: slices.subscribe(),
        cidrs: cidrs.subscribe(),
    };
    if !services.wait_for_sync().await {
        return ended("services", &shutdown);
    }
    if !slices.wait_for_sync().await {
        return ended("endpoint slices", &shutdown);
    }
    let update = |proxier: &mut Proxier, node: &Node| {
        let fresh = render_options(&config, proxier.family(), &node_name, node);
        proxier.set_node(fresh)
    };
    let minimum = config.min_sync_period();
    tokio::select! {
        () = sync_loop(inputs, &cidrs, &mut proxiers, update, minimum, (&clock, &shutdown)) => Ok(()),
        () = changed => Err(ServerError::ConfigChanged),
    }
}

fn ended(what: &'static str, shutdown: &Shutdown) -> Result<(), ServerError> {
    if shutdown.is_triggered() {
        Ok(())
    } else {
        Err(ServerError::Informer(what))
    }
}

fn warn_of_mode(config: &KubeProxyConfiguration) {
    if !config.is_nftables() && !config.mode.is_empty() {
        // DIFFERS: there is one proxier; a configuration written for another still gets a working node.
        tracing::warn!(mode = %config.mode, "Proxy mode is not supported by this build; using nftables");
        tracing::warn!("NodePorts on localhost are not available with nftables");
    }
}

fn adjust_oom_score(score: Option<i32>) {
    let Some(score) = score else { return };
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", score.to_string()) {
        tracing::info!(score, %error, "Cannot set the OOM score");
    }
}

async fn client(
    config: &KubeProxyConfiguration,
    master: Option<String>,
) -> Result<kube::Client, ServerError> {
    let mut client = ClientConfig::new("kube-proxy");
    let kubeconfig = &config.client_connection.kubeconfig;
    client.kubeconfig = (!kubeconfig.is_empty()).then(|| kubeconfig.into());
    client.master = master;
    client.qps = config.client_connection.qps;
    client.burst = u32::try_from(config.client_connection.burst).unwrap_or(0);
    Ok(client.build().await?)
}

/// Both families, unless the kernel has no IPv6.
fn families() -> Vec<Family> {
    let disabled = std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6");
    let ipv6 = std::path::Path::new("/proc/net/if_inet6").exists()
        && disabled.map_or(true, |text| text.trim() != "1");
    if ipv6 {
        vec![Family::Ip, Family::Ip6]
    } else {
        vec![Family::Ip]
    }
}

/// Waits until the Node is there and has an address, but not for ever. `None`: shutdown.
async fn wait_for_node(
    nodes: &Informer<Node>,
    name: &str,
    shutdown: &Shutdown,
) -> Option<Arc<Node>> {
    let events = nodes.subscribe().into_stream();
    tracing::info!(node = name, "Waiting for the Node to have an address");
    if !shutdown.run_until(nodes.wait_for_sync()).await? {
        return None;
    }
    shutdown
        .run_until(node_with_address(events, name, NODE_TIMEOUT))
        .await?
}

/// The Node as soon as it has an address; after `timeout` as it is by then, one that says nothing where there is none. What
/// gives a Node its address, or its object, may itself be waiting for Services (a cloud controller manager in a pod): the
/// rules that do not depend on it must not wait, and the others follow when it comes. `None`: the events ended.
async fn node_with_address(
    events: impl Stream<Item = InformerEvent<Node>>,
    name: &str,
    timeout: Duration,
) -> Option<Arc<Node>> {
    let mut last = Arc::new(Node::default());
    let waiting = async {
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.next().await {
            last = match event {
                InformerEvent::Deleted(_) => Arc::default(),
                event => event.object().clone(),
            };
            if [Family::Ip, Family::Ip6]
                .into_iter()
                .any(|family| node::node_ip(&last, family).is_some())
            {
                return true;
            }
        }
        false
    };
    let ended = tokio::time::timeout(timeout, waiting).await;
    match ended {
        Ok(false) => return None,
        Ok(true) => {}
        Err(_) if last.metadata.name.is_none() => {
            tracing::error!(node = name, "Timed out waiting for node to exist");
        }
        Err(_) => {
            tracing::error!(node = name, "Timed out waiting for node to be assigned IPs");
        }
    }
    Some(last)
}

/// What the configuration and the Node mean for the rules of one family.
fn render_options(
    config: &KubeProxyConfiguration,
    family: Family,
    node_name: &str,
    node: &Node,
) -> RenderOptions {
    let bound = config
        .bind_address
        .parse::<IpAddr>()
        .ok()
        .filter(|ip| !ip.is_unspecified());
    let node_ip = bound
        .filter(|ip| Family::of(ip) == family)
        .or_else(|| node::node_ip(node, family));
    RenderOptions {
        family,
        masquerade_all: config.masquerade_all(),
        masquerade_mark: config.masquerade_mark(),
        local_detector: local_detector(config, family, node),
        node_port_addresses: None,
        service_cidrs: Vec::new(),
        place: Place {
            node: node_name.to_owned(),
            zone: node::zone(node),
        },
        node_ip,
    }
}

fn local_detector(config: &KubeProxyConfiguration, family: Family, node: &Node) -> LocalDetector {
    match config.detect_local_mode.as_str() {
        "NodeCIDR" => LocalDetector::from_ranges(&node::pod_cidrs(node), family),
        "BridgeInterface" => LocalDetector::Interface(config.detect_local.bridge_interface.clone()),
        "InterfaceNamePrefix" => {
            LocalDetector::Interface(format!("{}*", config.detect_local.interface_name_prefix))
        }
        _ => LocalDetector::from_ranges(&config.cluster_cidrs(), family),
    }
}

/// Upstream: expandNodePortAddressKeywords in cmd/kube-proxy/app/server.go; platformApplyDefaults for the default by mode;
/// NewNodePortAddresses in pkg/proxy/util: a family of which no range is said is not restricted, whatever the other's are.
fn node_port_addresses(config: &KubeProxyConfiguration, family: Family) -> NodePortAddresses {
    let words = &config.node_port_addresses;
    let primary = match words.is_empty() {
        true => config.is_nftables(),
        false => words.iter().any(|word| word == "primary"),
    };
    let ranges: Vec<IpNet> = words
        .iter()
        .flat_map(|word| match word.as_str() {
            "localhost" => vec!["127.0.0.0/8", "::1/128"],
            "all" => vec!["0.0.0.0/0", "::/0"],
            other => vec![other],
        })
        .filter_map(|text| text.parse().ok())
        .filter(|range: &IpNet| Family::of(&range.addr()) == family)
        .collect();
    // A range of everything is no restriction. Upstream: NodePortAddresses.MatchAll.
    // DIFFERS: with "primary" and no address of the family upstream restricts nothing; here nothing is reached by it.
    if ranges.iter().any(|range| range.prefix_len() == 0) || (ranges.is_empty() && !primary) {
        return NodePortAddresses::All;
    }
    NodePortAddresses::Some { primary, ranges }
}

fn birth_cry(recorder: &Recorder, node_name: &str) {
    let reference = ObjectReference {
        kind: Some("Node".into()),
        name: Some(node_name.to_owned()),
        uid: Some(node_name.to_owned()),
        ..ObjectReference::default()
    };
    recorder.event(
        &reference,
        EventType::Normal,
        "Starting",
        "StartKubeProxy",
        "",
    );
}

fn socket_address(text: &str) -> Option<SocketAddr> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_port_addresses_by_words() {
        let of = |mode: &str, words: &[&str], family| {
            let config = KubeProxyConfiguration {
                mode: mode.into(),
                node_port_addresses: words.iter().map(ToString::to_string).collect(),
                ..KubeProxyConfiguration::default()
            };
            node_port_addresses(&config, family)
        };
        let check = |mode: &str, words: &[&str], ip: NodePortAddresses, ip6: NodePortAddresses| {
            assert_eq!(of(mode, words, Family::Ip), ip, "{mode:?} {words:?}");
            assert_eq!(of(mode, words, Family::Ip6), ip6, "{mode:?} {words:?}");
        };
        let some = |primary, ranges: &[&str]| NodePortAddresses::Some {
            primary,
            ranges: ranges.iter().map(|r| r.parse().unwrap()).collect(),
        };
        let all = || NodePortAddresses::All;
        check("", &[], all(), all());
        check("iptables", &[], all(), all());
        check("nftables", &[], some(true, &[]), some(true, &[]));
        check("nftables", &["primary"], some(true, &[]), some(true, &[]));
        check(
            "nftables",
            &["primary", "10.0.0.0/8", "localhost"],
            some(true, &["10.0.0.0/8", "127.0.0.0/8"]),
            some(true, &["::1/128"]),
        );
        check("nftables", &["primary", "all"], all(), all());
        // Of one family, none and all of the other.
        check("", &["10.0.0.0/8"], some(false, &["10.0.0.0/8"]), all());
        check("", &["0.0.0.0/0"], all(), all());
        check(
            "",
            &["0.0.0.0/0", "fd00::/64"],
            all(),
            some(false, &["fd00::/64"]),
        );
        check(
            "",
            &["10.0.0.0/8", "fd00::/64"],
            some(false, &["10.0.0.0/8"]),
            some(false, &["fd00::/64"]),
        );
    }

    #[tokio::test]
    async fn a_node_is_not_waited_for_without_end() {
        let node = |address: Option<&str>| -> Arc<Node> {
            let addresses: Vec<_> = address
                .map(|ip| serde_json::json!({ "type": "InternalIP", "address": ip }))
                .into_iter()
                .collect();
            let node = serde_json::json!({ "metadata": { "name": "n" }, "status": { "addresses": addresses } });
            Arc::new(serde_json::from_value(node).unwrap())
        };
        let (bare, whole) = (node(None), node(Some("192.0.2.7")));
        async fn check(events: Vec<InformerEvent<Node>>, more: bool, expect: Option<&Node>) {
            let events = futures::stream::iter(events);
            let (long, short) = (Duration::from_secs(60), Duration::from_millis(10));
            let got = match more {
                // The watch goes on and says nothing.
                true => {
                    let events = events.chain(futures::stream::pending());
                    node_with_address(events, "n", short).await
                }
                false => node_with_address(events, "n", long).await,
            };
            assert_eq!(got.as_deref(), expect);
        }
        let added = |node: &Arc<Node>| InformerEvent::Added(node.clone());
        let updated = InformerEvent::Updated {
            old: bare.clone(),
            new: whole.clone(),
        };
        check(vec![added(&bare), updated], false, Some(&whole)).await;
        check(vec![added(&bare)], true, Some(&bare)).await;
        check(vec![], true, Some(&Node::default())).await;
        let deleted = InformerEvent::Deleted(bare.clone());
        check(vec![added(&bare), deleted], true, Some(&Node::default())).await;
        check(vec![added(&bare)], false, None).await;
    }

    #[test]
    fn addresses_of_words() {
        let node: IpAddr = "192.0.2.7".parse().unwrap();
        let of = |primary, ranges: &[&str]| {
            NodePortAddresses::Some {
                primary,
                ranges: ranges.iter().map(|r| r.parse().unwrap()).collect(),
            }
            .resolve(Some(node))
        };
        assert_eq!(of(true, &[]), Some(vec![node]));
        // Loopback is left out, with an error in the log.
        assert_eq!(of(true, &["127.0.0.0/8", "::1/128"]), Some(vec![node]));
        assert_eq!(of(false, &["127.0.0.0/8"]), Some(vec![]));
        assert_eq!(NodePortAddresses::All.resolve(Some(node)), None);
    }
}
