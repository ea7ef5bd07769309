//! The kernel settings that kube-proxy makes.
//!
//! Upstream: cmd/kube-proxy/app/conntrack.go, pkg/proxy/nftables (route_localnet is not needed there).

use std::path::PathBuf;

use crate::config::ConntrackConfiguration;

/// One wanted setting.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Setting {
    name: &'static str,
    value: u64,
    /// Only ever raised.
    at_least: bool,
}

/// The conntrack settings that the configuration asks for. Pure.
fn settings(config: &ConntrackConfiguration, cpus: u64) -> Vec<Setting> {
    let mut settings = Vec::new();
    let positive =
        |value: Option<i32>| value.and_then(|v| u64::try_from(v).ok()).filter(|v| *v > 0);
    if let Some(per_core) = positive(config.max_per_core) {
        let value = (per_core * cpus).max(positive(config.min).unwrap_or(0));
        settings.push(Setting {
            name: "net/netfilter/nf_conntrack_max",
            value,
            at_least: true,
        });
    }
    let mut seconds = |name, duration: std::time::Duration| {
        if !duration.is_zero() {
            settings.push(Setting {
                name,
                value: duration.as_secs(),
                at_least: false,
            });
        }
    };
    let or_zero =
        |duration: Option<component_base::duration::GoDuration>| duration.unwrap_or_default().0;
    seconds(
        "net/netfilter/nf_conntrack_tcp_timeout_established",
        or_zero(config.tcp_established_timeout),
    );
    seconds(
        "net/netfilter/nf_conntrack_tcp_timeout_close_wait",
        or_zero(config.tcp_close_wait_timeout),
    );
    seconds(
        "net/netfilter/nf_conntrack_udp_timeout",
        config.udp_timeout.0,
    );
    seconds(
        "net/netfilter/nf_conntrack_udp_timeout_stream",
        config.udp_stream_timeout.0,
    );
    if config.tcp_be_liberal {
        settings.push(Setting {
            name: "net/netfilter/nf_conntrack_tcp_be_liberal",
            value: 1,
            at_least: false,
        });
    }
    settings
}

/// Makes the settings. What the machine refuses (a read-only /proc in a container) is told and left.
pub fn apply(config: &ConntrackConfiguration) {
    // Of the node: kube-proxy's own container may have a part of one.
    let cpus = component_base::processors::online();
    for setting in settings(config, cpus) {
        let path = PathBuf::from("/proc/sys").join(setting.name);
        let current = std::fs::read_to_string(&path)
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok());
        let enough =
            current.is_some_and(|c| c == setting.value || setting.at_least && c >= setting.value);
        if enough {
            continue;
        }
        match std::fs::write(&path, setting.value.to_string()) {
            Ok(()) => tracing::info!(sysctl = setting.name, value = setting.value, "Set sysctl"),
            Err(error) => {
                tracing::warn!(sysctl = setting.name, value = setting.value, %error, "Cannot set sysctl")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_leaves_as_it_is() {
        let mut config = crate::config::KubeProxyConfiguration::default().conntrack;
        config.max_per_core = Some(0);
        let names: Vec<_> = settings(&config, 4)
            .into_iter()
            .map(|s| (s.name.rsplit('/').next().unwrap(), s.value))
            .collect();
        assert_eq!(
            names,
            [
                ("nf_conntrack_tcp_timeout_established", 86_400),
                ("nf_conntrack_tcp_timeout_close_wait", 3_600)
            ]
        );
        config.max_per_core = Some(32_768);
        assert_eq!(settings(&config, 2)[0].value, 131_072, "the minimum");
        assert_eq!(settings(&config, 16)[0].value, 524_288);
    }
}
