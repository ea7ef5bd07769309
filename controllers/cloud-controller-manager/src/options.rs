//! The command line of cloud-controller-manager: every flag upstream has, with its default.
//!
//! Upstream: k8s.io/cloud-provider/options, v0.37. DIFFERS: `--node-sync-period` and the webhooks' flags, which upstream acts on nowhere or behind
//! a gate that is off, are accepted with a warning.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use component_base::client::ClientConfig;
use component_base::config::{FieldError, aggregate};
use component_base::flags::{FlagSet, Flags, Value};
use component_base::options::{
    LeaderElectionOptions, ServingOptions, add_client_flags, client_config,
};
use ipnet::IpNet;

/// The component's name: user agent, lease, certificate pair.
pub const COMPONENT: &str = "cloud-controller-manager";
/// `--secure-port`. Upstream: `CloudControllerManagerPort`.
const PORT: u16 = 10258;

/// The settings.
#[derive(Clone, Debug)]
pub struct Options {
    /// `--controllers`.
    pub controllers: Vec<String>,
    /// How to reach the API server.
    pub client: ClientConfig,
    /// `--use-service-account-credentials`.
    pub use_service_account_credentials: bool,
    /// `--controller-start-interval`.
    pub controller_start_interval: Duration,
    /// `--feature-gates`.
    pub feature_gates: BTreeMap<String, String>,
    /// `--cloud-provider`.
    pub cloud_provider: String,
    /// `--cloud-config`.
    pub cloud_config: PathBuf,
    /// `--cluster-name`.
    pub cluster_name: String,
    /// `--cluster-cidr`, in order.
    pub cluster_cidrs: Vec<IpNet>,
    /// `--configure-cloud-routes`.
    pub configure_cloud_routes: bool,
    /// `--route-reconciliation-period`.
    pub route_reconciliation_period: Duration,
    /// `--node-status-update-frequency`.
    pub node_status_update_frequency: Duration,
    /// `--node-monitor-period`.
    pub node_monitor_period: Duration,
    /// `--concurrent-node-syncs`.
    pub concurrent_node_syncs: usize,
    /// `--concurrent-node-status-updates`; as `--concurrent-node-syncs` if that is 0.
    pub concurrent_node_status_updates: usize,
    /// `--concurrent-node-lifecycle-syncs`.
    pub concurrent_node_lifecycle_syncs: usize,
    /// `--concurrent-service-syncs`.
    pub concurrent_service_syncs: usize,
}

/// Every flag.
pub fn flag_set() -> FlagSet {
    let mut flags = FlagSet::new(
        COMPONENT,
        "The Cloud controller manager is a daemon that embeds the cloud specific control loops shipped with Kubernetes.",
    );
    ServingOptions::add_flags(&mut flags, PORT);
    LeaderElectionOptions::add_flags(&mut flags, COMPONENT);
    add_client_flags(&mut flags, 20.0, 30);
    flags.list("controllers", &["*"], "A list of controllers to enable. '*' enables all on-by-default controllers, 'foo' enables the controller named 'foo', '-foo' disables the controller named 'foo'.");
    flags.bool(
        "use-service-account-credentials",
        false,
        "If true, use individual service account credentials for each controller.",
    );
    flags.duration(
        "controller-start-interval",
        Duration::ZERO,
        "Interval between starting controller managers.",
    );
    flags.string(
        "cloud-provider",
        "",
        "The provider for cloud services. Cannot be empty.",
    );
    flags.string(
        "cloud-config",
        "",
        "The path to the cloud provider configuration file. Cannot be empty.",
    );
    flags.string(
        "cluster-name",
        "kubernetes",
        "The instance prefix for the cluster.",
    );
    flags.string(
        "cluster-cidr",
        "",
        "CIDR Range for Pods in cluster. Only used when --configure-cloud-routes is true.",
    );
    flags.bool(
        "configure-cloud-routes",
        true,
        "Should CIDRs allocated by allocate-node-cidrs be configured on the cloud provider.",
    );
    flags.duration(
        "route-reconciliation-period",
        Duration::from_secs(10),
        "The period for reconciling routes created for Nodes by cloud provider.",
    );
    flags.duration(
        "node-status-update-frequency",
        Duration::from_secs(300),
        "Specifies how often the controller updates nodes' status.",
    );
    flags.duration(
        "node-monitor-period",
        Duration::from_secs(5),
        "The period for syncing NodeStatus in CloudNodeLifecycleController.",
    );
    flags.int(
        "concurrent-node-syncs",
        1,
        "Number of workers concurrently synchronizing nodes.",
    );
    flags.int("concurrent-node-status-updates", 0, "Number of workers concurrently updating node statuses. If unspecified or 0, --concurrent-node-syncs is used instead");
    flags.int(
        "concurrent-node-lifecycle-syncs",
        1,
        "Number of workers concurrently synchronizing node lifecycles.",
    );
    flags.int("concurrent-service-syncs", 1, "The number of services that are allowed to sync concurrently. Larger number = more responsive service management, but more CPU (and network) load");
    unused(&mut flags);
    flags
}

fn unused(flags: &mut FlagSet) {
    let text = |text: &str| Value::String(text.to_owned());
    flags.unused(&[
        ("allocate-node-cidrs", Value::Bool(false)),
        ("allow-untagged-cloud", Value::Bool(false)),
        ("cidr-allocator-type", text("RangeAllocator")),
        ("contention-profiling", Value::Bool(false)),
        ("enable-leader-migration", Value::Bool(false)),
        ("external-cloud-volume-plugin", text("")),
        ("leader-migration-config", text("")),
        (
            "min-resync-period",
            Value::Duration(Duration::from_secs(12 * 3600)),
        ),
        ("node-sync-period", Value::Duration(Duration::ZERO)),
        ("profiling", Value::Bool(true)),
        ("webhook-bind-address", text("0.0.0.0")),
        ("webhook-cert-dir", text("")),
        ("webhook-disable-http2-serving", Value::Bool(false)),
        ("webhook-secure-port", Value::Int(10260)),
        ("webhook-tls-cert-file", text("")),
        ("webhook-tls-cipher-suites", text("")),
        ("webhook-tls-curve-preferences", text("")),
        ("webhook-tls-min-version", text("")),
        ("webhook-tls-private-key-file", text("")),
        ("webhook-tls-sni-cert-key", text("")),
        ("webhooks", text("*")),
    ]);
}

/// Values that are wrong, all of them.
#[derive(Debug, thiserror::Error)]
#[error("{}", aggregate(.0))]
pub struct InvalidOptions(Vec<FieldError>);

fn ranges(flags: &Flags, errors: &mut Vec<FieldError>) -> Vec<IpNet> {
    let text = flags.string("cluster-cidr");
    let mut ranges: Vec<IpNet> = Vec::new();
    for part in text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        match part.parse() {
            Ok(range) => ranges.push(range),
            Err(_) => errors.push(FieldError::invalid("cluster-cidr", part, "is no CIDR")),
        }
    }
    let is_v4 = |range: &IpNet| matches!(range, IpNet::V4(_));
    match ranges[..] {
        [] | [_] => {}
        [a, b] if is_v4(&a) != is_v4(&b) => {}
        _ => {
            let reason = "must be one range, or one of each IP family";
            errors.push(FieldError::invalid("cluster-cidr", text, reason));
        }
    }
    ranges
}

fn workers(flags: &Flags, flag: &'static str, errors: &mut Vec<FieldError>) -> usize {
    match usize::try_from(flags.int(flag)) {
        Ok(count) if count > 0 => count,
        _ => {
            let reason = "must be greater than zero";
            errors.push(FieldError::invalid(flag, flags.int(flag), reason));
            1
        }
    }
}

impl Options {
    /// Reads and checks the flags; every wrong value is reported at once. Which controllers there are is known to who has them:
    /// `validate` says what is wrong with `--controllers`.
    ///
    /// # Errors
    /// See [`InvalidOptions`].
    pub fn from_flags(
        flags: &Flags,
        validate: impl FnOnce(&[String]) -> Vec<FieldError>,
    ) -> Result<Self, InvalidOptions> {
        let mut errors = validate(flags.list("controllers"));
        for flag in ["cloud-provider", "cloud-config"] {
            if flags.string(flag).is_empty() {
                errors.push(FieldError::invalid(flag, "", "cannot be empty"));
            }
        }
        for flag in [
            "route-reconciliation-period",
            "node-status-update-frequency",
            "node-monitor-period",
        ] {
            if flags.duration(flag).is_zero() {
                errors.push(FieldError::invalid(flag, "0s", "must be greater than zero"));
            }
        }
        let cluster_cidrs = ranges(flags, &mut errors);
        let concurrent_node_syncs = workers(flags, "concurrent-node-syncs", &mut errors);
        let concurrent_node_status_updates = match flags.int("concurrent-node-status-updates") {
            0 => concurrent_node_syncs,
            _ => workers(flags, "concurrent-node-status-updates", &mut errors),
        };
        let concurrent_node_lifecycle_syncs =
            workers(flags, "concurrent-node-lifecycle-syncs", &mut errors);
        let concurrent_service_syncs = workers(flags, "concurrent-service-syncs", &mut errors);
        if !errors.is_empty() {
            return Err(InvalidOptions(errors));
        }
        Ok(Self {
            controllers: flags.list("controllers").to_vec(),
            client: client_config(flags, COMPONENT),
            use_service_account_credentials: flags.bool("use-service-account-credentials"),
            controller_start_interval: flags.duration("controller-start-interval"),
            feature_gates: flags.map("feature-gates").clone(),
            cloud_provider: flags.string("cloud-provider").to_owned(),
            cloud_config: flags.string("cloud-config").into(),
            cluster_name: flags.string("cluster-name").to_owned(),
            cluster_cidrs,
            configure_cloud_routes: flags.bool("configure-cloud-routes"),
            route_reconciliation_period: flags.duration("route-reconciliation-period"),
            node_status_update_frequency: flags.duration("node-status-update-frequency"),
            node_monitor_period: flags.duration("node-monitor-period"),
            concurrent_node_syncs,
            concurrent_node_status_updates,
            concurrent_node_lifecycle_syncs,
            concurrent_service_syncs,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(args: &[&str]) -> Result<Options, String> {
        let flags = flag_set()
            .parse(args.iter().map(ToString::to_string))
            .unwrap();
        Options::from_flags(&flags, crate::registry::validate).map_err(|error| error.to_string())
    }

    #[test]
    fn flags() {
        let cloud = ["--cloud-provider=inventory", "--cloud-config=/x"];
        let with = |more: &[&str]| options(&[&cloud[..], more].concat());
        let parsed = with(&[
            "--concurrent-node-syncs=3",
            "--cluster-cidr=10.0.0.0/16,fd00::/48",
        ])
        .unwrap();
        assert_eq!(
            (
                parsed.concurrent_node_syncs,
                parsed.concurrent_node_status_updates
            ),
            (3, 3)
        );
        assert_eq!(
            (parsed.cluster_cidrs.len(), &*parsed.cluster_name),
            (2, "kubernetes")
        );
        assert_eq!(
            parsed.node_status_update_frequency,
            Duration::from_secs(300)
        );
        let error = options(&[
            "--concurrent-service-syncs=0",
            "--cluster-cidr=x",
            "--node-monitor-period=0s",
            "--controllers=nobody",
        ])
        .unwrap_err();
        for part in [
            "cloud-provider",
            "cloud-config",
            "concurrent-service-syncs",
            "\"x\"",
            "node-monitor-period",
            "nobody",
        ] {
            assert!(error.contains(part), "{error}");
        }
        assert!(
            with(&["--cluster-cidr=10.0.0.0/16,10.1.0.0/16"])
                .unwrap_err()
                .contains("cluster-cidr")
        );
    }
}
