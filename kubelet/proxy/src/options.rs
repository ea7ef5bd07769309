//! The command line: every flag of upstream's kube-proxy, and what becomes of them.
//!
//! Upstream: cmd/kube-proxy/app/options.go. Where `--config` is given, flags of the configuration are ignored.

use std::path::PathBuf;
use std::time::Duration;

use component_base::config::{ConfigError, aggregate};
use component_base::features::{Feature, FeatureError, FeatureGates};
use component_base::flags::{FlagSet, Flags, Value};

use crate::config::{KUBE_PROXY_IPVS, KubeProxyConfiguration};

/// Why the options were refused.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("invalid configuration: {0}")]
    Invalid(String),
    #[error(transparent)]
    Feature(#[from] FeatureError),
    #[error("empty hostname-override is invalid")]
    Hostname,
}

/// What the process shall do.
#[derive(Clone, Debug)]
pub struct Options {
    pub config: KubeProxyConfiguration,
    /// Watched: the process ends when it changes.
    pub config_file: Option<PathBuf>,
    pub master: Option<String>,
    /// The Node's name.
    pub node_name: String,
    /// Services' `externalIPs` are served.
    pub external_ips: bool,
    pub action: Action,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Run,
    /// Remove all rules and exit.
    Cleanup,
    /// Do what needs full root, and exit.
    InitOnly,
    WriteConfig(PathBuf),
}

/// Whether a Service's `externalIPs` are served.
const EXTERNAL_IPS: &str = "AllowServiceExternalIPs";

/// Gates that upstream's kube-proxy asks.
const FEATURES: &[Feature] = &[
    Feature::locked("PreferSameTrafficDistribution"),
    Feature::ga(EXTERNAL_IPS),
    Feature::going(KUBE_PROXY_IPVS),
];

/// The flags with upstream's defaults.
pub fn flags() -> FlagSet {
    let mut flags = FlagSet::new(
        "kube-proxy",
        "The Kubernetes network proxy runs on each node. It makes Services reachable: it watches Services and \
         EndpointSlices and keeps this node's nftables rules in line with them.",
    );
    process(&mut flags);
    serving(&mut flags);
    machine(&mut flags);
    unused(&mut flags);
    flags
}

/// What the program does, and for which node of which cluster.
fn process(flags: &mut FlagSet) {
    let config = KubeProxyConfiguration::default();
    flags.string("config", "", "The path to the configuration file.");
    flags.string(
        "write-config-to",
        "",
        "If set, write the default configuration values to this file and exit.",
    );
    flags.bool("cleanup", false, "If true cleanup nftables rules and exit.");
    flags.bool("init-only", false, "If true, perform any initialization steps that must be done with full root privileges, and then exit.");
    flags.string("kubeconfig", "", "Path to kubeconfig file with authorization information (the master location can be overridden by the master flag).");
    flags.string(
        "master",
        "",
        "The address of the Kubernetes API server (overrides any value in kubeconfig)",
    );
    flags.int(
        "kube-api-burst",
        i64::from(config.client_connection.burst),
        "Burst to use while talking with kubernetes apiserver",
    );
    flags.float(
        "kube-api-qps",
        f64::from(config.client_connection.qps),
        "QPS to use while talking with kubernetes apiserver",
    );
    flags.string("hostname-override", "", "If non-empty, will be used as the name of the Node that kube-proxy is running on. If unset, the node name is assumed to be the same as the node's hostname.");
}

/// Addresses, rules, and which traffic is whose.
fn serving(flags: &mut FlagSet) {
    flags.string(
        "bind-address",
        "0.0.0.0",
        "Overrides kube-proxy's idea of what its node's primary IP is.",
    );
    flags.string(
        "healthz-bind-address",
        "0.0.0.0:10256",
        "The IP address and port for the health check server to serve on.",
    );
    flags.string(
        "metrics-bind-address",
        "127.0.0.1:10249",
        "The IP address and port for the metrics server to serve on. Set empty to disable.",
    );
    flags.bool(
        "bind-address-hard-fail",
        false,
        "If true kube-proxy will treat failure to bind to a port as fatal and exit",
    );
    flags.string("proxy-mode", "", "Which proxy mode to use: 'nftables'; 'iptables' and 'ipvs' are accepted and mean nftables.");
    flags.int("iptables-masquerade-bit", 14, "The bit of the fwmark space to mark packets requiring SNAT with. Must be within the range [0, 31].");
    flags.bool(
        "masquerade-all",
        false,
        "SNAT all traffic sent via Service cluster IPs.",
    );
    flags.duration("iptables-sync-period", Duration::from_secs(30), "An interval indicating how frequently various re-synchronizing and cleanup operations are performed.");
    flags.duration(
        "iptables-min-sync-period",
        Duration::from_secs(1),
        "The minimum period between rule resyncs.",
    );
    flags.duration(
        "ipvs-sync-period",
        Duration::from_secs(30),
        "As iptables-sync-period, for mode ipvs.",
    );
    flags.duration(
        "ipvs-min-sync-period",
        Duration::from_secs(1),
        "As iptables-min-sync-period, for mode ipvs.",
    );
    flags.string(
        "detect-local-mode",
        "",
        "Mode to use to detect local traffic.",
    );
    flags.string("pod-bridge-interface", "", "With --detect-local-mode BridgeInterface: traffic is local if it originates from this bridge.");
    flags.string("pod-interface-name-prefix", "", "With --detect-local-mode InterfaceNamePrefix: traffic is local if it originates from an interface whose name begins with this prefix.");
    flags.string("cluster-cidr", "", "The CIDR range of the pods in the cluster. (For dual-stack clusters, a comma-separated pair.)");
    flags.list("nodeport-addresses", &[], "A list of CIDR ranges and/or the keywords 'primary' (the Node's own addresses), 'localhost' and 'all'. NodePort services are only accessible on node IPs covered by the list. If unset, this defaults to 'primary' in nftables mode and to 'all' otherwise.");
}

/// Settings of the kernel.
fn machine(flags: &mut FlagSet) {
    flags.int("oom-score-adj", -999, "The oom-score-adj value for kube-proxy process. Values must be within the range [-1000, 1000].");
    flags.int("conntrack-max-per-core", 32 * 1024, "Maximum number of NAT connections to track per CPU core (0 to leave the limit as-is and ignore conntrack-min).");
    flags.int(
        "conntrack-min",
        128 * 1024,
        "Minimum number of conntrack entries to allocate, regardless of conntrack-max-per-core.",
    );
    flags.duration(
        "conntrack-tcp-timeout-established",
        Duration::from_secs(24 * 3600),
        "Idle timeout for established TCP connections (0 to leave as-is)",
    );
    flags.duration(
        "conntrack-tcp-timeout-close-wait",
        Duration::from_secs(3600),
        "NAT timeout for TCP connections in the CLOSE_WAIT state",
    );
    flags.bool(
        "conntrack-tcp-be-liberal",
        false,
        "Enable liberal mode for tracking TCP packets by setting nf_conntrack_tcp_be_liberal to 1",
    );
    flags.duration(
        "conntrack-udp-timeout",
        Duration::ZERO,
        "Idle timeout for UNREPLIED UDP connections (0 to leave as-is)",
    );
    flags.duration(
        "conntrack-udp-timeout-stream",
        Duration::ZERO,
        "Idle timeout for ASSURED UDP connections (0 to leave as-is)",
    );
}

/// Known, and without effect here.
fn unused(flags: &mut FlagSet) {
    let text = || Value::String(String::new());
    flags.unused(&[
        ("kube-api-content-type", text()),
        ("profiling", Value::Bool(false)),
        ("show-hidden-metrics-for-version", text()),
        ("iptables-localhost-nodeports", Value::Bool(true)),
        ("ipvs-scheduler", text()),
        ("ipvs-exclude-cidrs", Value::List(Vec::new())),
        ("ipvs-strict-arp", Value::Bool(false)),
        ("ipvs-tcp-timeout", Value::Duration(Duration::ZERO)),
        ("ipvs-tcpfin-timeout", Value::Duration(Duration::ZERO)),
        ("ipvs-udp-timeout", Value::Duration(Duration::ZERO)),
        (
            "config-sync-period",
            Value::Duration(Duration::from_secs(900)),
        ),
        ("healthz-port", Value::Int(10_256)),
        ("metrics-port", Value::Int(10_249)),
    ]);
}

impl Options {
    /// Reads the file, if one is named, and validates everything.
    pub fn complete(flags: &Flags) -> Result<Self, OptionsError> {
        let config_file = flags.optional("config").map(PathBuf::from);
        let mut config = match &config_file {
            Some(path) => KubeProxyConfiguration::load(path)?,
            None => from_flags(flags),
        };
        if flags.changed("hostname-override") {
            let name = flags.string("hostname-override").trim().to_lowercase();
            if name.is_empty() && !flags.string("hostname-override").is_empty() {
                return Err(OptionsError::Hostname);
            }
            config.hostname_override = name;
        }
        let mut gates: std::collections::BTreeMap<_, _> = config
            .feature_gates
            .iter()
            .map(|(name, on)| (name.clone(), on.to_string()))
            .collect();
        if config_file.is_none() {
            gates.extend(flags.map("feature-gates").clone());
        }
        let mut features = FeatureGates::new(FEATURES);
        features.set(&gates)?;
        // Validation looks at the file's gates; those of the command line count there too.
        if !features.enabled(KUBE_PROXY_IPVS) {
            config.feature_gates.insert(KUBE_PROXY_IPVS.into(), false);
        }
        let errors = config.validate();
        if !errors.is_empty() {
            return Err(OptionsError::Invalid(aggregate(&errors)));
        }
        let node_name = match config.hostname_override.as_str() {
            "" => component_base::events::hostname().trim().to_lowercase(),
            name => name.to_owned(),
        };
        let action = if let Some(path) = flags.optional("write-config-to") {
            Action::WriteConfig(path.into())
        } else if flags.bool("cleanup") {
            Action::Cleanup
        } else if flags.bool("init-only") {
            Action::InitOnly
        } else {
            Action::Run
        };
        let master = flags.optional("master").map(str::to_owned);
        Ok(Self {
            config,
            config_file,
            master,
            node_name,
            external_ips: features.enabled(EXTERNAL_IPS),
            action,
        })
    }
}

fn from_flags(flags: &Flags) -> KubeProxyConfiguration {
    let mut config = KubeProxyConfiguration::default();
    let int = |name| i32::try_from(flags.int(name)).unwrap_or(i32::MAX);
    let text = |name| flags.string(name).to_owned();
    let duration = |name| component_base::duration::GoDuration(flags.duration(name));
    config.client_connection.kubeconfig = text("kubeconfig");
    config.client_connection.burst = int("kube-api-burst");
    config.client_connection.qps = flags.float("kube-api-qps") as f32;
    config.bind_address = text("bind-address");
    if flags.changed("healthz-bind-address") {
        config.healthz_bind_address = text("healthz-bind-address");
    }
    if flags.changed("metrics-bind-address") {
        config.metrics_bind_address = text("metrics-bind-address");
    }
    config.append_ports();
    config.bind_address_hard_fail = flags.bool("bind-address-hard-fail");
    config.mode = text("proxy-mode");
    config.iptables.masquerade_bit = Some(int("iptables-masquerade-bit"));
    config.nftables.masquerade_bit = config.iptables.masquerade_bit;
    config.iptables.masquerade_all = flags.bool("masquerade-all");
    config.nftables.masquerade_all = config.iptables.masquerade_all;
    config.iptables.sync_period = duration("iptables-sync-period");
    config.iptables.min_sync_period = duration("iptables-min-sync-period");
    config.nftables.sync_period = config.iptables.sync_period;
    config.nftables.min_sync_period = config.iptables.min_sync_period;
    config.ipvs.sync_period = duration("ipvs-sync-period");
    config.ipvs.min_sync_period = duration("ipvs-min-sync-period");
    config.detect_local_mode = text("detect-local-mode");
    config.detect_local.bridge_interface = text("pod-bridge-interface");
    config.detect_local.interface_name_prefix = text("pod-interface-name-prefix");
    config.cluster_cidr = text("cluster-cidr");
    config.node_port_addresses = flags.list("nodeport-addresses").to_vec();
    config.oom_score_adj = Some(int("oom-score-adj"));
    config.conntrack.max_per_core = Some(int("conntrack-max-per-core"));
    config.conntrack.min = Some(int("conntrack-min"));
    config.conntrack.tcp_established_timeout = Some(duration("conntrack-tcp-timeout-established"));
    config.conntrack.tcp_close_wait_timeout = Some(duration("conntrack-tcp-timeout-close-wait"));
    config.conntrack.tcp_be_liberal = flags.bool("conntrack-tcp-be-liberal");
    config.conntrack.udp_timeout = duration("conntrack-udp-timeout");
    config.conntrack.udp_stream_timeout = duration("conntrack-udp-timeout-stream");
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_pages() {
        let check = |args: &[&str], expect: Result<(&str, &str), &str>| {
            let parsed = flags().parse(args.iter().map(ToString::to_string)).unwrap();
            let options = Options::complete(&parsed).map_err(|error| error.to_string());
            match (options, expect) {
                (Ok(Options { config, .. }), Ok((healthz, metrics))) => {
                    assert_eq!(config.healthz_bind_address, healthz, "{args:?}");
                    assert_eq!(config.metrics_bind_address, metrics, "{args:?}");
                }
                (Err(error), Err(part)) => assert!(error.contains(part), "{args:?}: {error}"),
                (got, _) => panic!("{args:?}: {:?}", got.map(|options| options.config)),
            }
        };
        check(&[], Ok(("0.0.0.0:10256", "127.0.0.1:10249")));
        check(
            &[
                "--metrics-bind-address=0.0.0.0",
                "--healthz-bind-address=::",
            ],
            Ok(("[::]:10256", "0.0.0.0:10249")),
        );
        check(
            &["--metrics-bind-address=", "--healthz-bind-address="],
            Ok(("", "")),
        );
        check(&["--metrics-bind-address=x"], Err("metricsBindAddress"));
    }
}
