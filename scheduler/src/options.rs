//! The command line of kube-scheduler, laid over its configuration file.
//!
//! Leader election flags override the file; the deprecated client flags count only without a file.
//! Upstream: cmd/kube-scheduler/app/options, v1.36.

use std::path::PathBuf;
use std::time::Duration;

use component_base::client::ClientConfig;
use component_base::config::{ConfigError, FieldError, aggregate};
use component_base::duration;
use component_base::features::{Feature, FeatureError, FeatureGates};
use component_base::flags::{FlagSet, Flags, Value};
use component_base::leader_election::{LeaderElectionConfig, LeaderElectionError};
use component_base::options::{
    LeaderElectionOptions, OptionsError, ServingOptions, add_client_flags,
};

use crate::config::{self, KubeSchedulerConfiguration};
use crate::scheduler::POD_MAX_IN_UNSCHEDULABLE_PODS_DURATION;
use crate::trace::recorder::DEFAULT_MAX_BYTES;

/// The component's name: user agent, lease, certificate pair.
pub const COMPONENT: &str = "kube-scheduler";
/// `--secure-port`.
const PORT: u16 = 10259;

/// Gates of what is built here.
const FEATURES: &[Feature] = &[
    Feature::beta("SchedulerPopFromBackoffQ"),
    Feature::beta("SchedulerAsyncPreemption"),
    Feature::beta("OpportunisticBatching"),
    Feature::beta("NominatedNodeNameForExpectation"),
    Feature {
        default: false,
        ..Feature::beta("GenericWorkload")
    },
    Feature::alpha("TopologyAwareWorkloadScheduling"),
    Feature::locked("NodeDeclaredFeatures"),
    Feature::locked("DynamicResourceAllocation"),
    Feature::locked("DRAAdminAccess"),
    Feature::locked("DRAExtendedResource"),
    Feature::locked("DRAPrioritizedList"),
    Feature::locked("DRAResourceClaimDeviceStatus"),
    Feature::beta("DRAConsumableCapacity"),
    Feature::beta("DRADeviceBindingConditions"),
    Feature::beta("DRAFractionalCapacityRange"),
    Feature::beta("DRAPartitionableDevices"),
    Feature::beta("DRASchedulerFilterTimeout"),
    Feature::ga("DRADeviceTaints"),
    Feature::ga("DRADeviceTaintRules"),
];

/// Gates of upstream, off by default, whose features are not built here: turning one on is an error.
const NOT_BUILT: &[&str] = &[
    "DRADerivedAttributes",
    "DRADeviceCompatibilityGroups",
    "DRAListTypeAttributes",
    "DRANodeAllocatableResources",
    "DRAOptionalNodeOperations",
    "DRAWorkloadResourceClaims",
    // What stands on groups of pods (`scheduling.k8s.io/v1beta1`).
    "CompositePodGroup",
    "PodGroupPreemptionPolicy",
];

/// Everything that was asked for.
pub struct Options {
    /// The configuration, flags laid over it, valid.
    pub config: KubeSchedulerConfiguration,
    /// `--bind-address`, `--secure-port`, …
    pub serving: ServingOptions,
    /// The lease; `None` without an election.
    pub election: Option<LeaderElectionConfig>,
    /// How to reach the API server.
    pub client: ClientConfig,
    /// `--pod-max-in-unschedulable-pods-duration`.
    pub pod_max_in_unschedulable_pods_duration: Duration,
    /// `--feature-gates`.
    pub features: FeatureGates,
    /// `--placement-seed`.
    pub placement_seed: Option<u64>,
    /// `--write-config-to`.
    pub write_config_to: Option<PathBuf>,
    /// `--record-trace` and `--record-trace-max-bytes`.
    pub record_trace: Option<(PathBuf, u64)>,
}

/// Why a command line or configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum InvalidOptions {
    /// The file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Values that are wrong, all of them.
    #[error("{}", aggregate(.0))]
    Fields(Vec<FieldError>),
    /// Serving.
    #[error(transparent)]
    Shared(#[from] OptionsError),
    /// Times that do not fit.
    #[error("leaderElection: {0}")]
    LeaderElection(#[from] LeaderElectionError),
    /// Feature gates.
    #[error(transparent)]
    Feature(#[from] FeatureError),
    /// A trace of no size.
    #[error("record-trace-max-bytes: Invalid value: {0}: must be greater than 0")]
    TraceSize(i64),
    /// A gate is on whose feature there is not.
    #[error("feature-gates: Invalid value: \"{0}=true\": the feature is not built")]
    NotBuilt(&'static str),
    /// A gate is on without one it builds on.
    #[error("feature-gates: {0} is enabled, but depends on features that are disabled: [{1}]")]
    Depends(&'static str, &'static str),
}

/// Every flag.
pub fn flag_set() -> FlagSet {
    let mut flags = FlagSet::new(
        COMPONENT,
        "The Kubernetes scheduler is a control plane process which assigns Pods to Nodes. It determines which Nodes are valid placements for each Pod \
         according to constraints and available resources, ranks each valid Node and binds the Pod to a suitable Node.",
    );
    flags.string("config", "", "The path to the configuration file.");
    flags.string(
        "write-config-to",
        "",
        "If set, write the configuration values to this file and exit.",
    );
    flags.duration(
        "pod-max-in-unschedulable-pods-duration",
        POD_MAX_IN_UNSCHEDULABLE_PODS_DURATION,
        "DEPRECATED: the maximum time a pod can stay in unschedulablePods.",
    );
    // DIFFERS: upstream breaks ties at random and has no such flag.
    flags.int("placement-seed", 0, "Seed that settles which of equally good nodes is taken; the same seed and history give the same placement. 0: a new one each start.");
    flags.string(
        "record-trace",
        "",
        "Write what the scheduler is told of to this file while it schedules, for kube-scheduler replay. A file that is there is kept as FILE.old. \
         Environments, commands and arguments of containers are left out.",
    );
    flags.int(
        "record-trace-max-bytes",
        i64::try_from(DEFAULT_MAX_BYTES).unwrap_or(i64::MAX),
        "The trace ends when it is as large.",
    );
    flags.unused(&[
        ("profiling", Value::Bool(true)),
        ("contention-profiling", Value::Bool(true)),
    ]);
    ServingOptions::add_flags(&mut flags, PORT);
    LeaderElectionOptions::add_flags(&mut flags, COMPONENT);
    add_client_flags(&mut flags, 50.0, 100);
    flags
}

impl Options {
    /// Reads the flags, and the file they name.
    ///
    /// # Errors
    /// See [`InvalidOptions`].
    pub fn from_flags(flags: &Flags) -> Result<Self, InvalidOptions> {
        let config = config_from_flags(flags)?;
        let election = leader_election(&config);
        if let Some(election) = &election {
            election.validate()?;
        }
        let mut features = FeatureGates::new(FEATURES);
        let given = flags.map("feature-gates");
        let on = |gate: &str| {
            given
                .get(gate)
                .is_some_and(|value| value.eq_ignore_ascii_case("true"))
        };
        if let Some(gate) = NOT_BUILT.iter().find(|gate| on(gate)) {
            return Err(InvalidOptions::NotBuilt(gate));
        }
        features.set(given)?;
        let (gate, base) = ("TopologyAwareWorkloadScheduling", "GenericWorkload");
        if features.enabled(gate) && !features.enabled(base) {
            return Err(InvalidOptions::Depends(gate, base));
        }
        let connection = &config.client_connection;
        Ok(Options {
            serving: ServingOptions::from_flags(flags, COMPONENT)?,
            election,
            client: ClientConfig {
                kubeconfig: Some(&connection.kubeconfig)
                    .filter(|path| !path.is_empty())
                    .map(PathBuf::from),
                master: flags.optional("master").map(ToString::to_string),
                qps: connection.qps,
                burst: u32::try_from(connection.burst).unwrap_or(1),
                ..ClientConfig::new(COMPONENT)
            },
            pod_max_in_unschedulable_pods_duration: flags
                .duration("pod-max-in-unschedulable-pods-duration"),
            features,
            placement_seed: u64::try_from(flags.int("placement-seed"))
                .ok()
                .filter(|seed| *seed != 0),
            write_config_to: flags.optional("write-config-to").map(PathBuf::from),
            record_trace: record_trace(flags)?,
            config,
        })
    }
}

impl Options {
    /// Are pods of a group (`spec.schedulingGroup`) scheduled together? The gate `GenericWorkload`, beta and off, as upstream.
    pub fn pod_groups(&self) -> bool {
        self.features.enabled("GenericWorkload")
    }

    /// Do groups go to nodes of one domain of the topology that they name? The gate `TopologyAwareWorkloadScheduling`, alpha; it needs `GenericWorkload`.
    pub fn topology_aware(&self) -> bool {
        self.features.enabled("TopologyAwareWorkloadScheduling")
    }

    /// The gates that Dynamic Resource Allocation goes by; one is off, too, where another is that it builds on.
    pub fn device_features(&self) -> dynamic_resources::Features {
        let on = |name: &str| self.features.enabled(name);
        dynamic_resources::Features {
            consumable_capacity: on("DRAConsumableCapacity"),
            device_binding_conditions: on("DRADeviceBindingConditions"),
            device_taints: on("DRADeviceTaints"),
            device_taint_rules: on("DRADeviceTaintRules") && on("DRADeviceTaints"),
            fractional_capacity_range: on("DRAFractionalCapacityRange")
                && on("DRAConsumableCapacity"),
            partitionable_devices: on("DRAPartitionableDevices"),
            scheduler_filter_timeout: on("DRASchedulerFilterTimeout"),
        }
    }
}

fn record_trace(flags: &Flags) -> Result<Option<(PathBuf, u64)>, InvalidOptions> {
    let Some(path) = flags.optional("record-trace") else {
        return Ok(None);
    };
    let given = flags.int("record-trace-max-bytes");
    let max_bytes = u64::try_from(given).ok().filter(|bytes| *bytes > 0);
    let max_bytes = max_bytes.ok_or(InvalidOptions::TraceSize(given))?;
    Ok(Some((PathBuf::from(path), max_bytes)))
}

/// The configuration file with the flags laid over it, with its defaults, valid.
///
/// # Errors
/// See [`InvalidOptions`].
pub fn config_from_flags(flags: &Flags) -> Result<KubeSchedulerConfiguration, InvalidOptions> {
    let mut config = match flags.optional("config") {
        Some(path) => config::load(path.as_ref())?,
        None => from_deprecated_flags(flags),
    };
    config::set_defaults(&mut config);
    apply_leader_election(flags, &mut config);
    let errors = config::validate(&config);
    if !errors.is_empty() {
        return Err(InvalidOptions::Fields(errors));
    }
    Ok(config)
}

fn from_deprecated_flags(flags: &Flags) -> KubeSchedulerConfiguration {
    let mut config = KubeSchedulerConfiguration::default();
    config.client_connection.kubeconfig = flags.string("kubeconfig").to_owned();
    config.client_connection.qps = flags.float("kube-api-qps") as f32;
    config.client_connection.burst = i32::try_from(flags.int("kube-api-burst")).unwrap_or(i32::MAX);
    config
}

fn apply_leader_election(flags: &Flags, config: &mut KubeSchedulerConfiguration) {
    let election = &mut config.leader_election;
    if flags.changed("leader-elect") {
        election.leader_elect = flags.bool("leader-elect");
    }
    for (flag, field) in [
        ("leader-elect-lease-duration", &mut election.lease_duration),
        ("leader-elect-renew-deadline", &mut election.renew_deadline),
        ("leader-elect-retry-period", &mut election.retry_period),
    ] {
        if flags.changed(flag) {
            *field = duration::format(flags.duration(flag));
        }
    }
    for (flag, field) in [
        ("leader-elect-resource-lock", &mut election.resource_lock),
        ("leader-elect-resource-name", &mut election.resource_name),
        (
            "leader-elect-resource-namespace",
            &mut election.resource_namespace,
        ),
    ] {
        if flags.changed(flag) {
            *field = flags.string(flag).to_owned();
        }
    }
}

/// The election that a valid configuration wants.
fn leader_election(config: &KubeSchedulerConfiguration) -> Option<LeaderElectionConfig> {
    let election = &config.leader_election;
    if !election.leader_elect {
        return None;
    }
    let time = |text: &str| duration::parse(text).unwrap_or_default();
    Some(LeaderElectionConfig {
        namespace: election.resource_namespace.clone(),
        lease_duration: time(&election.lease_duration),
        renew_deadline: time(&election.renew_deadline),
        retry_period: time(&election.retry_period),
        ..LeaderElectionConfig::new(&election.resource_name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options, InvalidOptions> {
        let flags = flag_set()
            .parse(args.iter().map(ToString::to_string))
            .expect("known flags");
        Options::from_flags(&flags)
    }

    #[test]
    fn kubeadms_launch_line() {
        let options = parse(&[
            "--authentication-kubeconfig=/etc/kubernetes/scheduler.conf",
            "--authorization-kubeconfig=/etc/kubernetes/scheduler.conf",
            "--bind-address=127.0.0.1",
            "--kubeconfig=/etc/kubernetes/scheduler.conf",
            "--leader-elect=true",
        ])
        .unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(
            options.client.kubeconfig.as_deref(),
            Some("/etc/kubernetes/scheduler.conf".as_ref())
        );
        assert_eq!(
            options.election.map(|e| e.name).as_deref(),
            Some("kube-scheduler")
        );
        assert_eq!(options.config.profiles.len(), 1);
    }

    #[test]
    fn gates_of_dynamic_resource_allocation() {
        let features = |gates: &str| {
            let options = parse(&[&format!("--feature-gates={gates}")]);
            options
                .map(|options| options.device_features())
                .map_err(|error| error.to_string())
        };
        let defaults = dynamic_resources::Features::default();
        assert_eq!(features("DRAAdminAccess=true"), Ok(defaults));
        let off =
            features("DRAConsumableCapacity=false,DRADeviceTaints=false").expect("not locked");
        assert!(
            !off.fractional_capacity_range && !off.device_taint_rules && off.partitionable_devices
        );
        assert!(features("DRAExtendedResource=false").is_err());
        let error = features("DRADerivedAttributes=true").expect_err("not built");
        assert!(error.contains("DRADerivedAttributes=true"), "{error}");
        assert_eq!(features("DRADerivedAttributes=false"), Ok(defaults));
    }

    #[test]
    fn gates_of_what_stands_on_groups_of_pods_are_refused() {
        let groups = |gates: &str| {
            let options = parse(&[&format!("--feature-gates={gates}")]);
            options
                .map(|options| options.pod_groups())
                .unwrap_or_else(|e| panic!("{e}"))
        };
        assert!(groups("GenericWorkload=true") && !groups("GenericWorkload=false"));
        assert!(!groups("DRAConsumableCapacity=true"), "off by default");
        let topology = "TopologyAwareWorkloadScheduling";
        let with = |gates: String| parse(&[&format!("--feature-gates={gates}")]);
        let error = with(format!("{topology}=true")).err().expect("depends");
        let expect = "depends on features that are disabled: [GenericWorkload]";
        assert!(error.to_string().contains(expect), "{error}");
        let both = with(format!("{topology}=true,GenericWorkload=true"));
        let both = both.unwrap_or_else(|e| panic!("{e}"));
        assert!(both.topology_aware() && both.pod_groups());
        for gate in ["CompositePodGroup", "PodGroupPreemptionPolicy"] {
            let with = |on: bool| parse(&[&format!("--feature-gates={gate}={on}")]);
            let error = with(true).err().expect("not built").to_string();
            assert!(error.contains(&format!("{gate}=true")), "{error}");
            assert!(with(false).is_ok(), "{gate} is off anyway");
        }
    }

    #[test]
    fn flags_override_the_files_election() {
        let directory =
            std::env::temp_dir().join(format!("scheduler-options-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("temporary directory");
        let path = directory.join("config.yaml");
        let text = "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\nleaderElection: {leaderElect: true, resourceName: mine}\n";
        std::fs::write(&path, text).expect("written");
        let config = format!("--config={}", path.display());
        let options = parse(&[&config]).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(options.election.map(|e| e.name).as_deref(), Some("mine"));
        let options = parse(&[&config, "--leader-elect=false"]).unwrap_or_else(|e| panic!("{e}"));
        assert!(options.election.is_none());
        std::fs::remove_dir_all(&directory).expect("removed");
    }
}
