//! Taints that DeviceTaintRules put on devices.
//!
//! Upstream: k8s.io/dynamic-resource-allocation/resourceslice/tracker (applyPatches), v1.37.

use std::sync::Arc;

use k8s_openapi::api::resource::v1::{DeviceTaintRule, ResourceSlice};

/// Can the rule be about a device of the slice? One without a selector is about none.
pub fn rule_concerns(rule: &DeviceTaintRule, slice: &ResourceSlice) -> bool {
    let Some(selector) = &rule.spec.device_selector else {
        return false;
    };
    let is = |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|w| w == found);
    is(&selector.driver, &slice.spec.driver) && is(&selector.pool, &slice.spec.pool.name)
}

/// The slice with the taints of the rules added; the same one when no rule is about it.
pub fn apply_rules<'a>(
    slice: &Arc<ResourceSlice>,
    rules: impl IntoIterator<Item = &'a Arc<DeviceTaintRule>>,
) -> Arc<ResourceSlice> {
    let mut patched = Arc::clone(slice);
    for rule in rules {
        if !rule_concerns(rule, slice) {
            continue;
        }
        let only = rule
            .spec
            .device_selector
            .as_ref()
            .and_then(|s| s.device.as_deref());
        let devices = slice.spec.devices.iter().flatten().enumerate();
        for (index, _) in devices.filter(|(_, d)| only.is_none_or(|only| only == d.name)) {
            let devices = &mut Arc::make_mut(&mut patched).spec.devices;
            if let Some(device) = devices.as_mut().and_then(|devices| devices.get_mut(index)) {
                let taints = device.taints.get_or_insert_default();
                taints.push(rule.spec.taint.clone());
            }
        }
    }
    patched
}
