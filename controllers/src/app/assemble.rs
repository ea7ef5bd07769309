//! Makes the controllers of what they stand on, and runs them.
//!
//! All they stand on comes as [`Seams`], so that the same controllers run on an API server in memory and by virtual time (`tests`).

use anyhow::Context as _;
use component_base::features::{Feature, FeatureError, FeatureGates};
use component_base::health::Kind;
use component_base::metrics::RegisterError;
use tokio::task::JoinSet;

use crate::clustertrustbundle_publisher::CLUSTER_TRUST_BUNDLE;
use crate::context::{ControllerContext, Running, Seams};
use crate::device_taint_eviction::{DEVICE_TAINT_RULES, DEVICE_TAINTS};
use crate::horizontal_pod_autoscaler::{CONSISTENCY, GENERATION, SCALE_TO_ZERO};
use crate::node_lifecycle::LEASE_CIRCUIT_BREAKER;
use crate::options::Options;
use crate::podcertificaterequest_cleaner::POD_CERTIFICATE_REQUEST;
use crate::registry::{CONTROLLERS, is_enabled};
use crate::statefulset::controller::MAX_UNAVAILABLE;
use crate::storage_version_migrator::STORAGE_VERSION_MIGRATOR;
use crate::volume_protection::UNUSED_SINCE_TIME;

/// Gates that controllers here look at.
const FEATURES: &[Feature] = &[
    Feature::ga(CLUSTER_TRUST_BUNDLE),
    Feature::locked("HPAConfigurableTolerance"),
    Feature::beta(GENERATION),
    Feature::beta(SCALE_TO_ZERO),
    Feature::beta(LEASE_CIRCUIT_BREAKER),
    Feature::locked("DRAAdminAccess"),
    Feature::ga(DEVICE_TAINT_RULES),
    Feature::ga(DEVICE_TAINTS),
    Feature::locked("DRAPrioritizedList"),
    Feature::locked("DynamicResourceAllocation"),
    Feature::beta(MAX_UNAVAILABLE),
    Feature::beta(UNUSED_SINCE_TIME),
    Feature::ga(POD_CERTIFICATE_REQUEST),
    Feature::locked("SELinuxChangePolicy"),
    Feature::locked("SeparateTaintEvictionController"),
    Feature::ga(STORAGE_VERSION_MIGRATOR),
    Feature::beta(CONSISTENCY),
];

/// The gates as the options have them.
///
/// # Errors
/// A gate that is not known, or cannot be set.
pub fn features(options: &Options) -> Result<FeatureGates, FeatureError> {
    let mut features = FeatureGates::new(FEATURES);
    features.set(&options.feature_gates)?;
    Ok(features)
}

/// Controllers that do not run yet.
pub struct Component {
    context: ControllerContext,
}

/// Must be called inside a tokio runtime: informers start as controllers ask for them.
///
/// # Errors
/// The registry has the metrics of another controller manager.
pub fn assemble(seams: Seams) -> Result<Component, RegisterError> {
    let context = ControllerContext::new(seams)?;
    Ok(Component { context })
}

impl Component {
    /// Builds the controllers that are wanted, then runs them until shutdown.
    ///
    /// # Errors
    /// A controller cannot start, or does not end in time.
    pub async fn run(self) -> anyhow::Result<()> {
        run_controllers(self.context).await
    }
}

async fn run_controllers(context: ControllerContext) -> anyhow::Result<()> {
    let missing: Vec<&str> = CONTROLLERS
        .iter()
        .filter(|d| d.constructor.is_none() && is_enabled(d, &context.options.controllers))
        .map(|d| d.name)
        .collect();
    if !missing.is_empty() {
        tracing::warn!(
            controllers = missing.join(","),
            "These controllers are not built yet and do not run"
        );
    }
    let mut running: Vec<(&'static str, Running)> = Vec::new();
    for descriptor in CONTROLLERS {
        if !is_enabled(descriptor, &context.options.controllers) {
            tracing::debug!(controller = descriptor.name, "Controller is disabled");
            continue;
        }
        let Some(constructor) = descriptor.constructor else {
            continue;
        };
        let built = tokio::select! {
            built = constructor(context.clone()) => built,
            () = context.shutdown.triggered() => return Ok(()),
        };
        running.push((
            descriptor.name,
            built.with_context(|| format!("starting controller {}", descriptor.name))?,
        ));
    }
    let mut tasks = JoinSet::new();
    for (name, controller) in running {
        tracing::debug!(controller = name, "Controller starting");
        let task = tasks.spawn(context.shutdown.essential(name, controller));
        context.health.add(name, Kind::Always, move || {
            if task.is_finished() {
                Err("the controller has ended".into())
            } else {
                Ok(())
            }
        });
        if !context.options.controller_start_interval.is_zero() {
            let pause = tokio::time::sleep(context.options.controller_start_interval);
            if context.shutdown.run_until(pause).await.is_none() {
                break;
            }
        }
    }
    context.shutdown.triggered().await;
    let all = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(context.options.controller_shutdown_timeout, all)
        .await
        .is_err()
    {
        anyhow::bail!("controller shutdown timeout reached");
    }
    Ok(())
}
