//! Binding conditions: devices that have to be made ready before a pod that has them is bound.

use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::resource::v1::{
    AllocatedDeviceStatus, DeviceRequestAllocationResult, ResourceClaim,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::claims::{allocation, name, results};

/// A device cannot be made ready.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("device binding failed: claim={claim}, reason={reason}, message={message:?}")]
pub(super) struct BindingFailed {
    claim: String,
    reason: String,
    message: String,
}

fn conditional(claim: &ResourceClaim) -> impl Iterator<Item = &DeviceRequestAllocationResult> {
    let all = allocation(claim).map(results).unwrap_or_default().iter();
    all.filter(|result| {
        result
            .binding_conditions
            .as_ref()
            .is_some_and(|c| !c.is_empty())
    })
}

/// Has the claim devices that have to be made ready?
pub(super) fn has_conditions(claim: &ResourceClaim) -> bool {
    conditional(claim).next().is_some()
}

/// The drivers of the devices that have to be, each as often as it has some.
pub(super) fn conditional_drivers(claim: &ResourceClaim) -> impl Iterator<Item = &str> {
    conditional(claim).map(|result| result.driver.as_str())
}

fn status_of<'a>(
    claim: &'a ResourceClaim,
    result: &DeviceRequestAllocationResult,
) -> Option<&'a AllocatedDeviceStatus> {
    let mut devices = claim.status.as_ref()?.devices.iter().flatten();
    devices
        .find(|d| d.device == result.device && d.driver == result.driver && d.pool == result.pool)
}

fn when_true<'a>(status: &'a AllocatedDeviceStatus, kind: &str) -> Option<&'a Condition> {
    let mut conditions = status.conditions.iter().flatten();
    conditions.find(|c| c.type_ == kind && c.status == "True")
}

/// Are all devices ready? False without an allocation.
///
/// # Errors
/// When one has failed.
pub(super) fn is_ready(claim: &ResourceClaim) -> Result<bool, BindingFailed> {
    if allocation(claim).is_none() {
        return Ok(false);
    }
    for result in conditional(claim) {
        let Some(status) = status_of(claim, result) else {
            return Ok(false);
        };
        let mut failures = result.binding_failure_conditions.iter().flatten();
        if let Some(failed) = failures.find_map(|kind| when_true(status, kind)) {
            return Err(BindingFailed {
                claim: name(claim).to_owned(),
                reason: failed.reason.clone(),
                message: failed.message.clone(),
            });
        }
        let mut conditions = result.binding_conditions.iter().flatten();
        if conditions.any(|kind| when_true(status, kind).is_none()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// How long devices of the claim may still be made ready; `None` when there is nothing to wait for.
pub(super) fn time_left(
    claim: &ResourceClaim,
    timeout: Duration,
    now: Timestamp,
) -> Option<Duration> {
    let allocated = allocation(claim)?.allocation_timestamp.as_ref()?;
    conditional(claim).next()?;
    let passed = Duration::try_from(now.duration_since(allocated.0)).unwrap_or_default();
    Some(timeout.saturating_sub(passed))
}

/// Has it taken too long?
pub(super) fn is_timed_out(claim: &ResourceClaim, timeout: Duration, now: Timestamp) -> bool {
    time_left(claim, timeout, now).is_some_and(|left| left.is_zero())
}

/// What is still missing, device by device, for a log line.
pub(super) fn missing(claim: &ResourceClaim) -> String {
    let mut text = String::new();
    for result in conditional(claim) {
        let status = status_of(claim, result);
        let is_true = |kind: &&String| status.is_some_and(|s| when_true(s, kind).is_some());
        let failed = result
            .binding_failure_conditions
            .iter()
            .flatten()
            .filter(is_true);
        let pending = result
            .binding_conditions
            .iter()
            .flatten()
            .filter(|kind| !is_true(kind));
        let list =
            |kinds: &mut dyn Iterator<Item = &String>| kinds.cloned().collect::<Vec<_>>().join(",");
        let (failed, pending) = (
            list(&mut failed.into_iter()),
            list(&mut pending.into_iter()),
        );
        if failed.is_empty() && pending.is_empty() {
            continue;
        }
        let separator = if text.is_empty() { "" } else { "; " };
        // Writing into a text cannot fail.
        let _ = write!(
            text,
            "{separator}<driver={}, pool={}> {} failed=[{failed}] pending=[{pending}]",
            result.driver, result.pool, result.device
        );
    }
    text
}
