//! [`Request`]: a request of a claim, or a subrequest, made ready.

use std::collections::BTreeMap;
use std::sync::Arc;

use component_helpers::quantity::amount;
use component_helpers::resource_claim::tolerates_taint;
use k8s_openapi::api::resource::v1::{
    CapacityRequirements, DeviceClass, DeviceRequest, DeviceSelector, DeviceSubRequest,
    DeviceToleration,
};

use crate::capacity::Requested;
use crate::device::Device;
use crate::pools::Candidate;

/// Devices of a claim. Upstream: `AllocationResultsMaxSize`.
pub const MAX_DEVICES_PER_CLAIM: usize = 32;

/// How many devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mode<'a> {
    Exactly(i64),
    All,
    Unknown(&'a str),
}

impl<'a> Mode<'a> {
    // The API server sets both where nothing is said.
    fn new(mode: Option<&'a String>, count: Option<i64>) -> Self {
        match mode.map_or("ExactCount", String::as_str) {
            "ExactCount" => Mode::Exactly(count.unwrap_or(1)),
            "All" => Mode::All,
            other => Mode::Unknown(other),
        }
    }
}

/// A request or subrequest.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) name: &'a str,
    /// The request it is one of the alternatives of.
    pub(crate) parent: Option<&'a str>,
    pub(crate) class_name: &'a str,
    pub(crate) mode: Mode<'a>,
    pub(crate) admin_access: bool,
    pub(crate) selectors: &'a [DeviceSelector],
    pub(crate) tolerations: &'a [DeviceToleration],
    pub(crate) capacity: Requested,
    pub(crate) asks_capacity: bool,
    pub(crate) derives_attributes: bool,
}

fn requested(capacity: Option<&CapacityRequirements>) -> Requested {
    let requests = capacity
        .and_then(|c| c.requests.as_ref())
        .into_iter()
        .flatten();
    let amounts = requests.map(|(name, quantity)| (name.clone(), amount(quantity)));
    amounts.collect::<BTreeMap<_, _>>()
}

impl<'a> Request<'a> {
    /// `None` when it is of a kind that is not known here.
    pub(crate) fn exactly(request: &'a DeviceRequest) -> Option<Self> {
        let exactly = request.exactly.as_ref()?;
        Some(Request {
            name: &request.name,
            parent: None,
            class_name: &exactly.device_class_name,
            mode: Mode::new(exactly.allocation_mode.as_ref(), exactly.count),
            admin_access: exactly.admin_access == Some(true),
            selectors: exactly.selectors.as_deref().unwrap_or_default(),
            tolerations: exactly.tolerations.as_deref().unwrap_or_default(),
            capacity: requested(exactly.capacity.as_ref()),
            asks_capacity: exactly.capacity.is_some(),
            derives_attributes: exactly
                .derived_attributes
                .as_ref()
                .is_some_and(|d| !d.is_empty()),
        })
    }

    pub(crate) fn alternative(parent: &'a str, request: &'a DeviceSubRequest) -> Self {
        Request {
            name: &request.name,
            parent: Some(parent),
            class_name: &request.device_class_name,
            mode: Mode::new(request.allocation_mode.as_ref(), request.count),
            admin_access: false,
            selectors: request.selectors.as_deref().unwrap_or_default(),
            tolerations: request.tolerations.as_deref().unwrap_or_default(),
            capacity: requested(request.capacity.as_ref()),
            asks_capacity: request.capacity.is_some(),
            derives_attributes: request
                .derived_attributes
                .as_ref()
                .is_some_and(|d| !d.is_empty()),
        }
    }

    /// `request`, or `request/subrequest`.
    pub(crate) fn full_name(&self) -> String {
        match self.parent {
            Some(parent) => format!("{parent}/{}", self.name),
            None => self.name.to_owned(),
        }
    }

    /// The names a constraint goes by.
    pub(crate) fn names(&self) -> (&'a str, Option<&'a str>) {
        match self.parent {
            Some(parent) => (parent, Some(self.name)),
            None => (self.name, None),
        }
    }

    /// Has the device a taint that keeps this request away?
    pub(crate) fn is_kept_away(&self, device: &Device) -> bool {
        // Other effects, those not known here among them, keep nobody away.
        let mut taints = device
            .taints()
            .filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"));
        taints.any(|taint| !self.tolerations.iter().any(|t| tolerates_taint(t, taint)))
    }
}

/// A request and what was found out about it.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) request: Request<'a>,
    pub(crate) class: Arc<DeviceClass>,
    pub(crate) num_devices: usize,
    /// All that match, for a request that wants all.
    pub(crate) all_devices: Vec<Candidate>,
    /// A number of its own among all requests of the search.
    pub(crate) key: usize,
}

/// A request of a claim: one way to satisfy it, or several in the order of preference.
#[derive(Debug)]
pub(crate) struct Choice<'a> {
    pub(crate) wanted: Vec<Wanted<'a>>,
    pub(crate) prioritized: bool,
    /// Which of them was taken.
    pub(crate) selected: usize,
}

impl<'a> Choice<'a> {
    pub(crate) fn taken(&self) -> &Wanted<'a> {
        &self.wanted[self.selected]
    }
}
