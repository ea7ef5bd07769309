//! Taints and tolerations: what a pod puts up with, and for how long.
//!
//! Upstream: k8s.io/api/core/v1 toleration.go, k8s.io/component-helpers/scheduling/corev1 and pkg/util/taints, v1.36.

use k8s_openapi::api::core::v1::{Taint, Toleration};

#[cfg(test)]
mod tests;

/// New pods are not placed here; those that are, stay.
pub const NO_SCHEDULE: &str = "NoSchedule";
/// New pods are placed here only if nothing better is found.
pub const PREFER_NO_SCHEDULE: &str = "PreferNoSchedule";
/// New pods are not placed here, and those that are, go.
pub const NO_EXECUTE: &str = "NoExecute";

/// Well-known taint keys.
pub mod keys {
    /// The node's Ready condition is False.
    pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
    /// The node's Ready condition is Unknown.
    pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
    /// The node is cordoned.
    pub const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
    /// The node is short of memory.
    pub const MEMORY_PRESSURE: &str = "node.kubernetes.io/memory-pressure";
    /// The node is short of disk.
    pub const DISK_PRESSURE: &str = "node.kubernetes.io/disk-pressure";
    /// The node is short of process ids.
    pub const PID_PRESSURE: &str = "node.kubernetes.io/pid-pressure";
    /// The node has no network.
    pub const NETWORK_UNAVAILABLE: &str = "node.kubernetes.io/network-unavailable";
    /// The node is to be taken out of service: its pods are removed without waiting for it.
    pub const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
    /// The cloud provider has not initialised the node yet.
    pub const CLOUD_UNINITIALIZED: &str = "node.cloudprovider.kubernetes.io/uninitialized";
    /// The cloud provider says that the node is shut down.
    pub const CLOUD_SHUTDOWN: &str = "node.cloudprovider.kubernetes.io/shutdown";
}

/// Whether `toleration` tolerates `taint`. `Lt` and `Gt` count only where `comparison_operators` is on (feature gate
/// `TaintTolerationComparisonOperators`).
pub fn tolerates(toleration: &Toleration, taint: &Taint, comparison_operators: bool) -> bool {
    let differs = |wanted: &Option<String>, have: &str| {
        wanted
            .as_deref()
            .is_some_and(|wanted| !wanted.is_empty() && wanted != have)
    };
    if differs(&toleration.effect, &taint.effect) || differs(&toleration.key, &taint.key) {
        return false;
    }
    let wanted = toleration.value.as_deref().unwrap_or_default();
    let value = taint.value.as_deref().unwrap_or_default();
    match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => wanted == value,
        "Exists" => true,
        operator @ ("Lt" | "Gt") if comparison_operators => {
            match (decimal_integer(wanted), decimal_integer(value)) {
                (Some(wanted), Some(value)) if operator == "Lt" => value < wanted,
                (Some(wanted), Some(value)) => value > wanted,
                _ => false,
            }
        }
        _ => false,
    }
}

/// An integer in its canonical form: no plus, no leading zeros.
fn decimal_integer(text: &str) -> Option<i64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let canonical =
        digits.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !digits.starts_with('0'));
    canonical.then(|| text.parse().ok()).flatten()
}

/// Whether any of `tolerations` tolerates `taint`.
pub fn tolerations_tolerate_taint(
    tolerations: &[Toleration],
    taint: &Taint,
    comparison_operators: bool,
) -> bool {
    tolerations
        .iter()
        .any(|toleration| tolerates(toleration, taint, comparison_operators))
}

/// The first of the taints that `include` lets through and no toleration tolerates.
pub fn find_matching_untolerated_taint<'a>(
    taints: &'a [Taint],
    tolerations: &[Toleration],
    include: impl Fn(&Taint) -> bool,
    comparison_operators: bool,
) -> Option<&'a Taint> {
    taints
        .iter()
        .filter(|taint| include(taint))
        .find(|taint| !tolerations_tolerate_taint(tolerations, taint, comparison_operators))
}

/// Whether a taint keeps new pods away: `NoSchedule` or `NoExecute`.
pub fn do_not_schedule(taint: &Taint) -> bool {
    taint.effect == NO_SCHEDULE || taint.effect == NO_EXECUTE
}

/// Whether `NoExecute` taints evict a pod, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eviction {
    /// Every `NoExecute` taint is tolerated for ever.
    Never,
    /// Some `NoExecute` taint is not tolerated at all.
    Now,
    /// All are tolerated, one of them for this many seconds only, counted from when the taints were seen.
    AfterSeconds(i64),
}

/// How long a pod with `tolerations` may stay under `taints`: the shortest `tolerationSeconds` of the tolerations used.
pub fn eviction(
    taints: &[Taint],
    tolerations: &[Toleration],
    comparison_operators: bool,
) -> Eviction {
    let mut used: Vec<&Toleration> = Vec::new();
    for taint in taints.iter().filter(|taint| taint.effect == NO_EXECUTE) {
        match tolerations
            .iter()
            .find(|toleration| tolerates(toleration, taint, comparison_operators))
        {
            Some(toleration) => used.push(toleration),
            None => return Eviction::Now,
        }
    }
    match used
        .iter()
        .filter_map(|toleration| toleration.toleration_seconds)
        .min()
    {
        None => Eviction::Never,
        Some(seconds) if seconds <= 0 => Eviction::Now,
        Some(seconds) => Eviction::AfterSeconds(seconds),
    }
}

/// Whether `taints` hold one with this key and effect (the value does not tell taints apart).
pub fn taint_exists(taints: &[Taint], key: &str, effect: &str) -> bool {
    taints
        .iter()
        .any(|taint| taint.key == key && taint.effect == effect)
}

/// Adds `taint`, or replaces the one with its key and effect; whether anything changed.
pub fn add_or_update_taint(taints: &mut Vec<Taint>, taint: Taint) -> bool {
    match taints
        .iter_mut()
        .find(|old| old.key == taint.key && old.effect == taint.effect)
    {
        Some(old) if old.value == taint.value => false,
        Some(old) => {
            *old = taint;
            true
        }
        None => {
            taints.push(taint);
            true
        }
    }
}

/// Removes the taint with this key and effect; whether there was one.
pub fn delete_taint(taints: &mut Vec<Taint>, key: &str, effect: &str) -> bool {
    let before = taints.len();
    taints.retain(|taint| taint.key != key || taint.effect != effect);
    taints.len() != before
}

/// A taint as people write it: `key=value:effect`.
pub fn to_text(taint: &Taint) -> String {
    match taint.value.as_deref().unwrap_or_default() {
        "" => format!("{}:{}", taint.key, taint.effect),
        value => format!("{}={value}:{}", taint.key, taint.effect),
    }
}

/// Reads `key=value:effect` or `key:effect` (as in `--register-with-taints`).
///
/// # Errors
/// A text that says what is wrong.
pub fn parse_taint(text: &str) -> Result<Taint, String> {
    let (left, effect) = text
        .rsplit_once(':')
        .ok_or_else(|| format!("invalid taint spec: {text}: an effect is missing"))?;
    if ![NO_SCHEDULE, PREFER_NO_SCHEDULE, NO_EXECUTE].contains(&effect) {
        return Err(format!(
            "invalid taint effect: {effect}, unsupported taint effect"
        ));
    }
    let (key, value) = match left.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (left, None),
    };
    crate::labels::validate_label_key(key)
        .map_err(|reason| format!("invalid taint spec: {text}, {reason}"))?;
    if let Some(value) = value {
        crate::labels::validate_label_value(value)
            .map_err(|reason| format!("invalid taint spec: {text}, {reason}"))?;
    }
    let value = value.filter(|value| !value.is_empty()).map(str::to_owned);
    Ok(Taint {
        key: key.into(),
        value,
        effect: effect.into(),
        time_added: None,
    })
}
