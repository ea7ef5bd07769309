//! The resolver configuration of a pod.
//!
//! Owns: [`Configurer::get_pod_dns`]: policies, merges and limits. Upstream: `pkg/kubelet/network/dns`, v1.36.

use std::collections::HashMap;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Pod, PodDNSConfigOption};
use runtime::api::DnsConfig;

use crate::pod;

/// Upstream: `validation.MaxDNSNameservers`, `MaxDNSSearchPaths`, `MaxDNSSearchListChars`.
const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCH_PATHS: usize = 32;
const MAX_SEARCH_LIST_CHARS: usize = 2048;
const MAX_SEARCH_LEN: usize = 253;

/// Why a pod has no resolver configuration.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    #[error("open {path}: {source}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
}

/// What the node knows.
#[derive(Clone, Debug, Default)]
pub struct Configurer {
    pub cluster_dns: Vec<String>,
    /// Empty: no cluster search domains.
    pub cluster_domain: String,
    /// `resolvConf`; `None` (the empty string): lookups are off.
    pub resolver_config: Option<PathBuf>,
    pub node_ips: Vec<String>,
}

/// A configuration, and warnings to publish as events: `(reason, message)`.
#[derive(Debug, PartialEq, Eq)]
pub struct PodDns {
    pub config: DnsConfig,
    pub warnings: Vec<(&'static str, String)>,
}

impl Configurer {
    /// # Errors
    /// When the node's resolv.conf cannot be read; a retry may help.
    pub fn get_pod_dns(&self, pod: &Pod) -> Result<PodDns, DnsError> {
        let host = match &self.resolver_config {
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|source| DnsError::Read {
                    path: path.clone(),
                    source,
                })?;
                parse_resolv_conf(&text)
            }
            None => DnsConfig::default(),
        };
        Ok(self.form(pod, host))
    }

    /// The pure part: `host` is what the node's own resolv.conf says.
    pub fn form(&self, pod: &Pod, host: DnsConfig) -> PodDns {
        let mut warnings = vec![];
        let spec = pod.spec.as_ref();
        let policy = spec
            .and_then(|s| s.dns_policy.as_deref())
            .unwrap_or("ClusterFirst");
        let cluster = match policy {
            "None" | "Default" => false,
            "ClusterFirstWithHostNet" => true,
            _ => !pod::is_host_network(pod),
        };
        let mut config = if policy == "None" {
            DnsConfig::default()
        } else if cluster && !self.cluster_dns.is_empty() {
            DnsConfig {
                servers: self.cluster_dns.clone(),
                searches: self.cluster_searches(pod, host.searches),
                options: vec!["ndots:5".to_owned()],
            }
        } else {
            if cluster {
                warnings.push((
                    "MissingClusterDNS",
                    format!(
                        "pod: {:?}. kubelet does not have ClusterDNS IP configured and cannot create Pod using \
                         \"ClusterFirst\" policy. Falling back to \"Default\" policy.",
                        pod::format(pod)
                    ),
                ));
            }
            self.default_config(host)
        };
        if let Some(extra) = spec.and_then(|s| s.dns_config.as_ref()) {
            config.servers = omit_duplicates(
                config
                    .servers
                    .into_iter()
                    .chain(extra.nameservers.iter().flatten().cloned()),
            );
            config.searches = omit_duplicates(
                config
                    .searches
                    .into_iter()
                    .chain(extra.searches.iter().flatten().cloned()),
            );
            config.options =
                merge_options(config.options, extra.options.as_deref().unwrap_or_default());
        }
        fit_limits(&mut config, &mut warnings);
        PodDns { config, warnings }
    }

    fn cluster_searches(&self, pod: &Pod, host: Vec<String>) -> Vec<String> {
        let domain = &self.cluster_domain;
        if domain.is_empty() {
            return host;
        }
        let own = [
            format!("{}.svc.{domain}", pod::namespace(pod)),
            format!("svc.{domain}"),
            domain.clone(),
        ];
        omit_duplicates(own.into_iter().chain(host))
    }

    fn default_config(&self, host: DnsConfig) -> DnsConfig {
        if self.resolver_config.is_some() {
            return host;
        }
        let mut servers: Vec<String> = self
            .node_ips
            .iter()
            .map(|ip| if ip.contains(':') { "::1" } else { "127.0.0.1" }.to_owned())
            .collect();
        if servers.is_empty() {
            servers.push("127.0.0.1".to_owned());
        }
        DnsConfig {
            servers,
            searches: vec![".".to_owned()],
            options: vec![],
        }
    }
}

/// Reads a resolv.conf: nameservers gather, the last `search` and `options` lines win.
pub fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in text.lines().map(str::trim).filter(|l| !l.starts_with('#')) {
        let mut fields = line.split_whitespace();
        match fields.next() {
            Some("nameserver") => config.servers.extend(fields.next().map(str::to_owned)),
            Some("search") => {
                config.searches = fields
                    .filter(|s| *s != ".")
                    .map(|s| s.strip_suffix('.').unwrap_or(s).to_owned())
                    .collect();
            }
            Some("options") => {
                for option in fields {
                    let name = option.split(':').next().unwrap_or(option);
                    config.options.retain(|o| o.split(':').next() != Some(name));
                    config.options.push(option.to_owned());
                }
            }
            _ => {}
        }
    }
    config
}

fn omit_duplicates(list: impl Iterator<Item = String>) -> Vec<String> {
    let mut out: Vec<String> = vec![];
    for item in list {
        if !out.contains(&item) {
            out.push(item);
        }
    }
    out
}

/// The pod's options override those of the same name.
fn merge_options(existing: Vec<String>, extra: &[PodDNSConfigOption]) -> Vec<String> {
    let mut out: Vec<(&str, Option<&str>)> = existing
        .iter()
        .map(|option| match option.split_once(':') {
            Some((name, value)) => (name, Some(value)),
            None => (option.as_str(), None),
        })
        .collect();
    // A pod may have ten thousands of them.
    let places = out.iter().enumerate().rev();
    let mut places: HashMap<&str, usize> =
        places.map(|(place, (name, _))| (*name, place)).collect();
    for option in extra {
        let Some(name) = option.name.as_deref() else {
            continue;
        };
        let place = *places.entry(name).or_insert(out.len());
        match out.get_mut(place) {
            Some(slot) => slot.1 = option.value.as_deref(),
            None => out.push((name, option.value.as_deref())),
        }
    }
    out.into_iter()
        .map(|(name, value)| match value.filter(|v| !v.is_empty()) {
            Some(value) => format!("{name}:{value}"),
            None => name.to_owned(),
        })
        .collect()
}

fn fit_limits(config: &mut DnsConfig, warnings: &mut Vec<(&'static str, String)>) {
    if config.servers.len() > MAX_NAMESERVERS {
        config.servers.truncate(MAX_NAMESERVERS);
        warnings.push((
            "DNSConfigForming",
            format!(
                "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
                config.servers.join(" ")
            ),
        ));
    }
    let before = config.searches.len();
    config.searches.truncate(MAX_SEARCH_PATHS);
    config.searches.retain(|s| s.len() <= MAX_SEARCH_LEN);
    while config.searches.join(" ").len() > MAX_SEARCH_LIST_CHARS {
        config.searches.pop();
    }
    if config.searches.len() != before {
        warnings.push((
            "DNSConfigForming",
            format!(
                "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
                config.searches.join(" ")
            ),
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{PodDNSConfig, PodSpec};

    fn configurer() -> Configurer {
        Configurer {
            cluster_dns: vec!["10.96.0.10".into()],
            cluster_domain: "cluster.local".into(),
            resolver_config: Some("/etc/resolv.conf".into()),
            node_ips: vec![],
        }
    }

    fn form(spec: PodSpec) -> DnsConfig {
        let mut pod = Pod {
            spec: Some(spec),
            ..Default::default()
        };
        pod.metadata.namespace = Some("ns".into());
        configurer()
            .form(
                &pod,
                parse_resolv_conf("nameserver 1.1.1.1\nsearch corp.example. .\noptions ndots:1\n"),
            )
            .config
    }

    #[test]
    fn policies() {
        let cluster = form(PodSpec::default());
        assert_eq!(cluster.servers, ["10.96.0.10"]);
        assert_eq!(
            cluster.searches,
            [
                "ns.svc.cluster.local",
                "svc.cluster.local",
                "cluster.local",
                "corp.example"
            ]
        );
        assert_eq!(cluster.options, ["ndots:5"]);
        let host = form(PodSpec {
            host_network: Some(true),
            ..Default::default()
        });
        assert_eq!(host.servers, ["1.1.1.1"]);
        let both = form(PodSpec {
            host_network: Some(true),
            dns_policy: Some("ClusterFirstWithHostNet".into()),
            ..Default::default()
        });
        assert_eq!(both.servers, ["10.96.0.10"]);
    }

    #[test]
    fn options_of_the_pod_take_the_place_of_those_of_their_name() {
        let option = |name: &str, value: Option<&str>| PodDNSConfigOption {
            name: Some(name.into()),
            value: value.map(str::to_owned),
        };
        let existing = ["ndots:5", "rotate"].map(str::to_owned).to_vec();
        let extra = [
            option("timeout", Some("1")),
            option("ndots", Some("2")),
            option("rotate", Some("")),
            option("timeout", Some("3")),
            option("debug", None),
        ];
        let expect = ["ndots:2", "rotate", "timeout:3", "debug"];
        assert_eq!(merge_options(existing, &extra), expect);
        let begun = std::time::Instant::now();
        let many: Vec<_> = (0..100_000)
            .map(|n| option(&format!("o{n}"), None))
            .collect();
        assert_eq!(merge_options(vec![], &many).len(), 100_000);
        assert!(begun.elapsed() < std::time::Duration::from_secs(20));
    }

    #[test]
    fn none_takes_only_the_pods_own() {
        let got = form(PodSpec {
            dns_policy: Some("None".into()),
            dns_config: Some(PodDNSConfig {
                nameservers: Some(vec!["9.9.9.9".into()]),
                searches: Some(vec!["x".into()]),
                options: Some(vec![PodDNSConfigOption {
                    name: Some("ndots".into()),
                    value: Some("2".into()),
                }]),
            }),
            ..Default::default()
        });
        assert_eq!(
            got,
            DnsConfig {
                servers: vec!["9.9.9.9".into()],
                searches: vec!["x".into()],
                options: vec!["ndots:2".into()]
            }
        );
    }
}
