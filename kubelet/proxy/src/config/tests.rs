//! What is read, defaulted, acted on and refused.

use super::*;

fn load(text: &str) -> Result<KubeProxyConfiguration, ConfigError> {
    let text = format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{text}");
    let mut config: KubeProxyConfiguration =
        component_base::config::decode_strict(Path::new("test"), &text, API_VERSION, KIND)?;
    config.set_defaults();
    Ok(config)
}

/// Acted on; no field is missing here or in [`NOT_ACTED_ON`].
const ACTED_ON: &[&str] = &[
    "bindAddress",
    "bindAddressHardFail",
    "clientConnection.burst",
    "clientConnection.kubeconfig",
    "clientConnection.qps",
    "clusterCIDR",
    "conntrack.maxPerCore",
    "conntrack.min",
    "conntrack.tcpBeLiberal",
    "conntrack.tcpCloseWaitTimeout",
    "conntrack.tcpEstablishedTimeout",
    "conntrack.udpStreamTimeout",
    "conntrack.udpTimeout",
    "detectLocal.bridgeInterface",
    "detectLocal.interfaceNamePrefix",
    "detectLocalMode",
    "featureGates",
    "healthzBindAddress",
    "hostnameOverride",
    "iptables.masqueradeAll",
    "iptables.masqueradeBit",
    "iptables.minSyncPeriod",
    "iptables.syncPeriod",
    "logging.format",
    "logging.verbosity",
    "metricsBindAddress",
    "mode",
    "nftables.masqueradeAll",
    "nftables.masqueradeBit",
    "nftables.minSyncPeriod",
    "nftables.syncPeriod",
    "nodePortAddresses",
    "oomScoreAdj",
];

#[test]
fn every_field_is_acted_on_or_warned_of() {
    let mut config = KubeProxyConfiguration::default();
    config.logging.flush_frequency = Some("1s".into());
    config.logging.vmodule = Some("x".into());
    config.logging.options = Some("x".into());
    let mut fields = std::collections::BTreeSet::new();
    for (name, value) in serde_json::to_value(&config).unwrap().as_object().unwrap() {
        match value.as_object().filter(|o| !o.is_empty()) {
            Some(inner) => fields.extend(inner.keys().map(|key| format!("{name}.{key}"))),
            None => drop(fields.insert(name.clone())),
        }
    }
    let known = ACTED_ON
        .iter()
        .chain(NOT_ACTED_ON)
        .map(ToString::to_string)
        .collect();
    assert_eq!(fields, known);

    let config = load("portRange: 1-2\nipvs: {strictARP: true}\nconfigSyncPeriod: 15m").unwrap();
    assert_eq!(config.not_acted_on(), ["ipvs.strictARP", "portRange"]);
    let zeroes =
        "portRange: \"\"\nlogging: {flushFrequency: 0, options: {json: {infoBufferSize: \"0\"}}}";
    assert!(load(zeroes).unwrap().not_acted_on().is_empty());
}

#[test]
fn an_empty_file_means_the_defaults() {
    let config = load("").unwrap();
    assert_eq!(config, KubeProxyConfiguration::default());
    assert!(config.validate().is_empty(), "{:?}", config.validate());
    assert_eq!(config.metrics_bind_address, "127.0.0.1:10249");
    assert_eq!(config.masquerade_mark(), 0x4000);
}

/// What kubeadm writes: every field, most of them empty.
#[test]
fn kubeadms_file() {
    let config = load(
        "bindAddress: 0.0.0.0\nbindAddressHardFail: false\nclientConnection:\n  acceptContentTypes: \"\"\n  burst: 0\n  \
         contentType: \"\"\n  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf\n  qps: 0\nclusterCIDR: 10.244.0.0/16\n\
         configSyncPeriod: 0s\nconntrack:\n  maxPerCore: null\n  min: null\n  tcpBeLiberal: false\n  \
         tcpCloseWaitTimeout: null\n  tcpEstablishedTimeout: null\n  udpStreamTimeout: 0s\n  udpTimeout: 0s\n\
         detectLocal:\n  bridgeInterface: \"\"\n  interfaceNamePrefix: \"\"\ndetectLocalMode: \"\"\n\
         enableProfiling: false\nhealthzBindAddress: \"\"\nhostnameOverride: \"\"\niptables:\n  \
         localhostNodePorts: null\n  masqueradeAll: false\n  masqueradeBit: null\n  minSyncPeriod: 0s\n  \
         syncPeriod: 0s\nipvs:\n  excludeCIDRs: null\n  minSyncPeriod: 0s\n  scheduler: \"\"\n  strictARP: false\n  \
         syncPeriod: 0s\n  tcpFinTimeout: 0s\n  tcpTimeout: 0s\n  udpTimeout: 0s\nlogging:\n  flushFrequency: 0\n  \
         options:\n    json:\n      infoBufferSize: \"0\"\n    text:\n      infoBufferSize: \"0\"\n  verbosity: 0\n\
         metricsBindAddress: \"\"\nmode: \"\"\nnftables:\n  masqueradeAll: false\n  masqueradeBit: null\n  \
         minSyncPeriod: 0s\n  syncPeriod: 0s\nnodePortAddresses: null\noomScoreAdj: null\nportRange: \"\"\n\
         showHiddenMetricsForVersion: \"\"\nwinkernel:\n  enableDSR: false\n  forwardHealthCheckVip: false\n",
    );
    let config = config.unwrap();
    assert!(config.validate().is_empty(), "{:?}", config.validate());
    assert_eq!(config.conntrack, ConntrackConfiguration::default());
    assert_eq!(config.sync_period(), Duration::from_secs(30));
    let config = load("clusterCIDR: 10.244.0.0/16\nconntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s}\nmode: iptables\n").unwrap();
    assert!(config.validate().is_empty());
    assert_eq!(config.conntrack.max_per_core, Some(0));
    assert_eq!(config.cluster_cidrs().len(), 1);
}

#[test]
fn all_errors_at_once() {
    let config = load("mode: userspace\nnodePortAddresses: [primary, 10.0.0.0/8, localhost, all, primary, x]\ndetectLocalMode: X\noomScoreAdj: 5000").unwrap();
    let errors: Vec<_> = config.validate().iter().map(ToString::to_string).collect();
    assert_eq!(errors.len(), 5, "{errors:?}");
    let no_ipvs = load("mode: ipvs\nfeatureGates: {KubeProxyIPVS: false}").unwrap();
    assert_eq!(no_ipvs.validate().len(), 1);
    assert!(load("mode: ipvs").unwrap().validate().is_empty());
    assert!(
        load("nodePortAddress: []\nmod: x")
            .unwrap_err()
            .to_string()
            .contains("mod")
    );
}
