//! `KubeProxyConfiguration` of `kubeproxy.config.k8s.io/v1alpha1`: fields, defaults, validation.
//!
//! Upstream: staging/src/k8s.io/kube-proxy/config/v1alpha1, pkg/proxy/apis/config.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use component_base::config::{ConfigError, FieldError, load_strict};
use component_base::duration::GoDuration;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
pub const KIND: &str = "KubeProxyConfiguration";
/// The gate of mode ipvs, which we stand in for.
pub const KUBE_PROXY_IPVS: &str = "KubeProxyIPVS";

/// Upstream: ports.ProxyHealthzPort and ports.ProxyStatusPort.
const HEALTHZ_PORT: u16 = 10_256;
const METRICS_PORT: u16 = 10_249;

fn seconds(seconds: u64) -> GoDuration {
    GoDuration(Duration::from_secs(seconds))
}

/// The whole configuration. `Default` is what an empty file means.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KubeProxyConfiguration {
    pub feature_gates: BTreeMap<String, bool>,
    pub client_connection: ClientConnection,
    /// Taken as it is: verbosity and format are what we act on.
    pub logging: Logging,
    pub hostname_override: String,
    pub bind_address: String,
    pub healthz_bind_address: String,
    pub metrics_bind_address: String,
    pub bind_address_hard_fail: bool,
    pub enable_profiling: bool,
    pub show_hidden_metrics_for_version: String,
    pub mode: String,
    pub iptables: IpTables,
    pub ipvs: Ipvs,
    pub nftables: NfTables,
    pub winkernel: WinKernel,
    pub detect_local_mode: String,
    pub detect_local: DetectLocal,
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: String,
    pub node_port_addresses: Vec<String>,
    pub oom_score_adj: Option<i32>,
    pub conntrack: ConntrackConfiguration,
    pub config_sync_period: GoDuration,
    pub port_range: String,
    pub windows_run_as_service: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientConnection {
    pub kubeconfig: String,
    pub accept_content_types: String,
    pub content_type: String,
    pub qps: f32,
    pub burst: i32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Logging {
    pub format: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flush_frequency: Option<serde_json::Value>,
    pub verbosity: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vmodule: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<serde_json::Value>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IpTables {
    pub masquerade_bit: Option<i32>,
    pub masquerade_all: bool,
    pub localhost_node_ports: Option<bool>,
    pub sync_period: GoDuration,
    pub min_sync_period: GoDuration,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ipvs {
    pub sync_period: GoDuration,
    pub min_sync_period: GoDuration,
    pub scheduler: String,
    #[serde(rename = "excludeCIDRs")]
    pub exclude_cidrs: Vec<String>,
    #[serde(rename = "strictARP")]
    pub strict_arp: bool,
    pub tcp_timeout: GoDuration,
    pub tcp_fin_timeout: GoDuration,
    pub udp_timeout: GoDuration,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NfTables {
    pub masquerade_bit: Option<i32>,
    pub masquerade_all: bool,
    pub sync_period: GoDuration,
    pub min_sync_period: GoDuration,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WinKernel {
    pub network_name: String,
    pub source_vip: String,
    #[serde(rename = "enableDSR")]
    pub enable_dsr: bool,
    pub root_hns_endpoint_name: String,
    pub forward_health_check_vip: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DetectLocal {
    pub bridge_interface: String,
    pub interface_name_prefix: String,
}

/// Zero leaves the kernel's setting as it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConntrackConfiguration {
    pub max_per_core: Option<i32>,
    pub min: Option<i32>,
    pub tcp_established_timeout: Option<GoDuration>,
    pub tcp_close_wait_timeout: Option<GoDuration>,
    pub tcp_be_liberal: bool,
    pub udp_timeout: GoDuration,
    pub udp_stream_timeout: GoDuration,
}

impl Default for KubeProxyConfiguration {
    fn default() -> Self {
        let mut config = Self {
            feature_gates: BTreeMap::new(),
            client_connection: ClientConnection::default(),
            logging: Logging::default(),
            hostname_override: String::new(),
            bind_address: String::new(),
            healthz_bind_address: String::new(),
            metrics_bind_address: String::new(),
            bind_address_hard_fail: false,
            enable_profiling: false,
            show_hidden_metrics_for_version: String::new(),
            mode: String::new(),
            iptables: IpTables::default(),
            ipvs: Ipvs {
                sync_period: seconds(30),
                ..Ipvs::default()
            },
            nftables: NfTables::default(),
            winkernel: WinKernel::default(),
            detect_local_mode: String::new(),
            detect_local: DetectLocal::default(),
            cluster_cidr: String::new(),
            node_port_addresses: Vec::new(),
            oom_score_adj: None,
            conntrack: ConntrackConfiguration::default(),
            config_sync_period: seconds(15 * 60),
            port_range: String::new(),
            windows_run_as_service: false,
        };
        config.set_defaults();
        config
    }
}

impl Default for ClientConnection {
    fn default() -> Self {
        Self {
            kubeconfig: String::new(),
            accept_content_types: String::new(),
            content_type: "application/vnd.kubernetes.protobuf".into(),
            qps: 5.0,
            burst: 10,
        }
    }
}

impl Default for Logging {
    fn default() -> Self {
        Self {
            format: "text".into(),
            flush_frequency: None,
            verbosity: 0,
            vmodule: None,
            options: None,
        }
    }
}

impl Default for IpTables {
    fn default() -> Self {
        Self {
            masquerade_bit: Some(14),
            masquerade_all: false,
            localhost_node_ports: Some(true),
            sync_period: seconds(30),
            min_sync_period: seconds(1),
        }
    }
}

impl Default for NfTables {
    fn default() -> Self {
        Self {
            masquerade_bit: Some(14),
            masquerade_all: false,
            sync_period: seconds(30),
            min_sync_period: seconds(1),
        }
    }
}

impl Default for ConntrackConfiguration {
    fn default() -> Self {
        Self {
            max_per_core: Some(32 * 1024),
            min: Some(128 * 1024),
            tcp_established_timeout: Some(seconds(24 * 3600)),
            tcp_close_wait_timeout: Some(seconds(3600)),
            tcp_be_liberal: false,
            udp_timeout: GoDuration::default(),
            udp_stream_timeout: GoDuration::default(),
        }
    }
}

/// Fields that upstream acts on, here or on Windows or in another mode, and this build does not.
const NOT_ACTED_ON: &[&str] = &[
    "clientConnection.acceptContentTypes",
    "clientConnection.contentType",
    "configSyncPeriod",
    "enableProfiling",
    "iptables.localhostNodePorts",
    "ipvs.excludeCIDRs",
    "ipvs.minSyncPeriod",
    "ipvs.scheduler",
    "ipvs.strictARP",
    "ipvs.syncPeriod",
    "ipvs.tcpFinTimeout",
    "ipvs.tcpTimeout",
    "ipvs.udpTimeout",
    "logging.flushFrequency",
    "logging.options",
    "logging.vmodule",
    "portRange",
    "showHiddenMetricsForVersion",
    "windowsRunAsService",
    "winkernel.enableDSR",
    "winkernel.forwardHealthCheckVip",
    "winkernel.networkName",
    "winkernel.rootHnsEndpointName",
    "winkernel.sourceVip",
];

impl KubeProxyConfiguration {
    /// The fields that are set and have no effect here.
    pub fn not_acted_on(&self) -> Vec<&'static str> {
        let mut default = Self::default();
        default.set_defaults();
        component_base::config::set_fields(self, &default, NOT_ACTED_ON)
    }

    /// Reads a file, strictly, and fills in what it leaves out.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let mut config: Self = load_strict(path, API_VERSION, KIND)?;
        config.set_defaults();
        Ok(config)
    }

    /// Empty means default, as in upstream's SetDefaults_KubeProxyConfiguration.
    pub(crate) fn set_defaults(&mut self) {
        if self.bind_address.is_empty() {
            self.bind_address = "0.0.0.0".into();
        }
        let v6 = self
            .bind_address
            .parse::<IpAddr>()
            .is_ok_and(|ip| ip.is_ipv6());
        let (any, loopback) = if v6 {
            ("[::]", "[::1]")
        } else {
            ("0.0.0.0", "127.0.0.1")
        };
        for (address, host, port) in [
            (&mut self.healthz_bind_address, any, HEALTHZ_PORT),
            (&mut self.metrics_bind_address, loopback, METRICS_PORT),
        ] {
            if address.is_empty() {
                *address = format!("{host}:{port}");
            }
        }
        self.append_ports();
        self.oom_score_adj.get_or_insert(-999);
        for (period, default) in [
            (&mut self.iptables.sync_period, 30),
            (&mut self.iptables.min_sync_period, 1),
            (&mut self.ipvs.sync_period, 30),
            (&mut self.nftables.sync_period, 30),
            (&mut self.nftables.min_sync_period, 1),
            (&mut self.config_sync_period, 15 * 60),
        ] {
            if period.0.is_zero() {
                *period = seconds(default);
            }
        }
        self.nftables.masquerade_bit.get_or_insert(14);
        self.iptables.masquerade_bit.get_or_insert(14);
        self.iptables.localhost_node_ports.get_or_insert(true);
        let conntrack = ConntrackConfiguration::default();
        self.conntrack.max_per_core = self.conntrack.max_per_core.or(conntrack.max_per_core);
        self.conntrack.min = self.conntrack.min.or(conntrack.min);
        let established = self
            .conntrack
            .tcp_established_timeout
            .or(conntrack.tcp_established_timeout);
        self.conntrack.tcp_established_timeout = established;
        let close_wait = self
            .conntrack
            .tcp_close_wait_timeout
            .or(conntrack.tcp_close_wait_timeout);
        self.conntrack.tcp_close_wait_timeout = close_wait;
        let client = ClientConnection::default();
        if self.client_connection.qps == 0.0 {
            self.client_connection.qps = client.qps;
        }
        if self.client_connection.burst == 0 {
            self.client_connection.burst = client.burst;
        }
        if self.client_connection.content_type.is_empty() {
            self.client_connection.content_type = client.content_type;
        }
    }

    /// An address of pages without a port has the usual one. Upstream: proxyutil.AppendPortIfNeeded.
    pub(crate) fn append_ports(&mut self) {
        for (address, port) in [
            (&mut self.healthz_bind_address, HEALTHZ_PORT),
            (&mut self.metrics_bind_address, METRICS_PORT),
        ] {
            if let Ok(ip) = address.trim_matches(['[', ']']).parse::<IpAddr>() {
                *address = SocketAddr::new(ip, port).to_string();
            }
        }
    }

    /// Settings of the mode that was asked for: another mode's bits and periods mean the same here.
    pub fn masquerade_mark(&self) -> u32 {
        let bit = if self.is_nftables() {
            self.nftables.masquerade_bit
        } else {
            self.iptables.masquerade_bit
        };
        bit.and_then(|bit| u32::try_from(bit).ok())
            .and_then(|bit| 1u32.checked_shl(bit))
            .unwrap_or(1 << 14)
    }

    pub fn masquerade_all(&self) -> bool {
        if self.is_nftables() {
            self.nftables.masquerade_all
        } else {
            self.iptables.masquerade_all
        }
    }

    pub fn sync_period(&self) -> Duration {
        match self.mode.as_str() {
            "ipvs" => self.ipvs.sync_period.0,
            "nftables" => self.nftables.sync_period.0,
            _ => self.iptables.sync_period.0,
        }
    }

    pub fn min_sync_period(&self) -> Duration {
        match self.mode.as_str() {
            "ipvs" => self.ipvs.min_sync_period.0,
            "nftables" => self.nftables.min_sync_period.0,
            _ => self.iptables.min_sync_period.0,
        }
    }

    /// The mode is ours, not one that we stand in for.
    pub fn is_nftables(&self) -> bool {
        self.mode == "nftables"
    }

    /// The ranges of `clusterCIDR`, which holds one or, for dual stack, two.
    pub fn cluster_cidrs(&self) -> Vec<IpNet> {
        self.cluster_cidr
            .split(',')
            .filter_map(|text| text.trim().parse().ok())
            .collect()
    }

    /// Every error at once.
    pub fn validate(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut check = |ok: bool, field: &str, value: serde_json::Value, detail: &str| {
            if !ok {
                errors.push(FieldError::invalid(path(field), value, detail));
            }
        };
        self.validate_numbers(&mut check);
        self.validate_mode(&mut check);
        self.validate_addresses(&mut check);
        self.validate_local_mode(&mut errors);
        errors
    }

    fn validate_numbers(&self, check: &mut impl FnMut(bool, &str, serde_json::Value, &str)) {
        let bit = |bit: Option<i32>| bit.is_none_or(|bit| (0..=31).contains(&bit));
        const BIT: &str = "must be within the range [0, 31]";
        check(
            bit(self.iptables.masquerade_bit),
            "iptables.masqueradeBit",
            self.iptables.masquerade_bit.into(),
            BIT,
        );
        check(
            bit(self.nftables.masquerade_bit),
            "nftables.masqueradeBit",
            self.nftables.masquerade_bit.into(),
            BIT,
        );
        let score = self.oom_score_adj.unwrap_or(0);
        let range = "must be within the range [-1000, 1000]";
        check(
            (-1000..=1000).contains(&score),
            "oomScoreAdj",
            score.into(),
            range,
        );
        const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
        for (field, value) in [
            ("conntrack.maxPerCore", self.conntrack.max_per_core),
            ("conntrack.min", self.conntrack.min),
            ("clientConnection.burst", Some(self.client_connection.burst)),
        ] {
            check(
                value.is_none_or(|value| value >= 0),
                field,
                value.into(),
                NOT_NEGATIVE,
            );
        }
    }

    fn validate_mode(&self, check: &mut impl FnMut(bool, &str, serde_json::Value, &str)) {
        let ipvs = self.feature_gates.get(KUBE_PROXY_IPVS) != Some(&false);
        let (modes, detail): (&[&str], _) = if ipvs {
            (
                &["", "iptables", "nftables", "ipvs"],
                "must be iptables, ipvs, nftables or blank",
            )
        } else {
            (
                &["", "iptables", "nftables"],
                "must be iptables, nftables or blank",
            )
        };
        check(
            modes.contains(&self.mode.as_str()),
            "mode",
            self.mode.as_str().into(),
            detail,
        );
        let (min, period) = (self.min_sync_period(), self.sync_period());
        let value = serde_json::to_value(GoDuration(period)).unwrap_or_default();
        check(
            min <= period,
            "syncPeriod",
            value,
            "must be greater than or equal to minSyncPeriod",
        );
    }

    fn validate_addresses(&self, check: &mut impl FnMut(bool, &str, serde_json::Value, &str)) {
        let ip = self.bind_address.parse::<IpAddr>().is_ok();
        let detail = "not a valid textual representation of an IP address";
        check(ip, "bindAddress", self.bind_address.as_str().into(), detail);
        for (field, address) in [
            ("healthzBindAddress", &self.healthz_bind_address),
            ("metricsBindAddress", &self.metrics_bind_address),
        ] {
            // Both can be left out by the command line.
            let fits = address.is_empty()
                || address
                    .parse::<SocketAddr>()
                    .is_ok_and(|address| address.port() != 0);
            check(fits, field, address.as_str().into(), "must be IP:port");
        }
        for (i, text) in self.node_port_addresses.iter().enumerate() {
            let field = format!("nodePortAddresses[{i}]");
            let (fits, detail) = match text.as_str() {
                "primary" | "localhost" | "all" => (
                    !self.node_port_addresses[..i].contains(text),
                    "Duplicate value",
                ),
                cidr => (
                    cidr.parse::<IpNet>().is_ok(),
                    "must be a valid CIDR or one of the keywords 'primary', 'localhost', 'all'",
                ),
            };
            check(fits, &field, text.as_str().into(), detail);
        }
        let cidrs: Vec<_> = self
            .cluster_cidr
            .split(',')
            .filter(|text| !text.is_empty())
            .collect();
        let fits = cidrs
            .iter()
            .all(|text| text.trim().parse::<IpNet>().is_ok())
            && cidrs.len() <= 2;
        let detail = "must be a CIDR, or two of different families";
        check(
            fits,
            "clusterCIDR",
            self.cluster_cidr.as_str().into(),
            detail,
        );
    }

    fn validate_local_mode(&self, errors: &mut Vec<FieldError>) {
        let local = [
            "",
            "ClusterCIDR",
            "NodeCIDR",
            "BridgeInterface",
            "InterfaceNamePrefix",
        ];
        if !local.contains(&self.detect_local_mode.as_str()) {
            errors.push(FieldError::not_supported(
                path("detectLocalMode"),
                &self.detect_local_mode,
                &local[1..],
            ));
        }
        let needs = |field: &str, name: &str, given: &str| -> Option<FieldError> {
            let missing = self.detect_local_mode == name && (given.is_empty() || given.len() > 15);
            missing.then(|| {
                let detail =
                    format!("detectLocalMode {name} needs the name of a link, of at most 15 bytes");
                FieldError::invalid(path(field), given, detail)
            })
        };
        errors.extend(needs(
            "detectLocal.bridgeInterface",
            "BridgeInterface",
            &self.detect_local.bridge_interface,
        ));
        let prefix = &self.detect_local.interface_name_prefix;
        errors.extend(needs(
            "detectLocal.interfaceNamePrefix",
            "InterfaceNamePrefix",
            prefix,
        ));
    }
}

fn path(field: &str) -> String {
    format!("{KIND}.{field}")
}

#[cfg(test)]
mod tests;
