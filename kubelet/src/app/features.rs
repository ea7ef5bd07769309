//! Upstream's feature gates that decide something in this build.

use component_base::features::{Feature, FeatureError, FeatureGates, Stage};

use crate::configuration::KubeletConfiguration;
use crate::options::Options;

/// Upstream's gates that decide something here; others are named in a warning.
const FEATURES: &[Feature] = &[
    Feature {
        name: ENSURE_SECRET_PULLED_IMAGES,
        default: true,
        stage: Stage::Beta,
    },
    Feature {
        name: CRASH_LOOP_BACK_OFF_MAX,
        default: true,
        stage: Stage::Beta,
    },
    Feature {
        name: REDUCE_CRASH_LOOP_BACK_OFF,
        default: false,
        stage: Stage::Alpha,
    },
];
pub(super) const ENSURE_SECRET_PULLED_IMAGES: &str = "KubeletEnsureSecretPulledImages";
pub(super) const CRASH_LOOP_BACK_OFF_MAX: &str = "KubeletCrashLoopBackOffMax";
pub(super) const REDUCE_CRASH_LOOP_BACK_OFF: &str = "ReduceDefaultCrashLoopBackOffDecay";

/// The gates as the configuration and the command line set them.
///
/// # Errors
/// A value that is no boolean, or a locked gate.
pub(super) fn feature_gates(
    options: &Options,
    config: &KubeletConfiguration,
) -> Result<FeatureGates, FeatureError> {
    let mut gates = FeatureGates::new(FEATURES);
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
