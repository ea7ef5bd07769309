//! The gates as they are set. Which there are: `crate::features`.

use component_base::features::{FeatureError, FeatureGates};

use crate::configuration::KubeletConfiguration;
use crate::options::Options;

pub(super) use crate::features::{
    ACCOUNT_TOKENS_FOR_CREDENTIAL_PROVIDERS, CLUSTER_TRUST_BUNDLE_PROJECTION,
    CONTAINER_STOP_SIGNALS, CRASH_LOOP_BACK_OFF_MAX, DRA_OPTIONAL_NODE_OPERATIONS,
    ENSURE_SECRET_PULLED_IMAGES, GRACEFUL_NODE_SHUTDOWN,
    GRACEFUL_NODE_SHUTDOWN_BASED_ON_POD_PRIORITY, MEMORY_QOS, POD_CERTIFICATE_REQUEST, PODS_API,
    REDUCE_CRASH_LOOP_BACK_OFF, RESOURCE_HEALTH_STATUS, RESOURCE_HEALTH_STATUS_MESSAGE,
};

/// The gates as the configuration and the command line set them.
///
/// # Errors
/// A value that is no boolean, or a locked gate.
pub(super) fn feature_gates(
    options: &Options,
    config: &KubeletConfiguration,
) -> Result<FeatureGates, FeatureError> {
    let mut gates = FeatureGates::new(crate::features::FEATURES);
    let mut settings: std::collections::BTreeMap<String, String> = config
        .feature_gates
        .iter()
        .map(|(name, on)| (name.clone(), on.to_string()))
        .collect();
    settings.extend(options.feature_gates.clone());
    gates.set(&settings)?;
    gates.record_metrics();
    Ok(gates)
}
