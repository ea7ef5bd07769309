//! What a search has found, as the API says it: devices, their configuration, and on which nodes they may be used.
//!
//! Upstream: structured/internal/incubating/allocator_incubating.go (Allocate, createNodeSelector), v1.37.

use std::collections::{BTreeSet, HashMap};

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::api::resource::v1::{
    AllocationResult, DeviceAllocationConfiguration, DeviceAllocationResult,
    DeviceRequestAllocationResult, ResourceClaim,
};

use crate::allocate_error::AllocateError;
use crate::device::NodeView;
use crate::request::Choice;
use crate::search::{Found, Task};

/// One result a claim.
///
/// # Errors
/// When node selectors of slices cannot be put together.
pub(crate) fn results(
    task: &Task<'_>,
    node: &NodeView<'_>,
) -> Result<Vec<AllocationResult>, AllocateError> {
    let all = task.claims.iter().enumerate();
    all.map(|(index, claim)| {
        let found = &task.found[index];
        let devices = found
            .iter()
            .map(|f| device_result(task, index, f))
            .collect();
        let config = configuration(claim, &task.choices[index]);
        Ok(AllocationResult {
            allocation_timestamp: None,
            devices: Some(DeviceAllocationResult {
                results: Some(devices),
                config: Some(config).filter(|config| !config.is_empty()),
            }),
            node_selector: node_selector(task, claim, found, node.name)?,
        })
    })
    .collect()
}

fn device_result(task: &Task<'_>, claim: usize, found: &Found) -> DeviceRequestAllocationResult {
    let device = task.device(found.candidate);
    let request = &task.choices[claim][found.request].wanted[found.alternative].request;
    let consumed = found.consumed.iter();
    let consumed = consumed.map(|(name, amount)| (name.clone(), (*amount).into()));
    let tolerations = Some(request.tolerations.to_vec()).filter(|t| !t.is_empty());
    let conditions = |of: &Option<Vec<String>>| {
        let on = task.cluster.features.device_binding_conditions;
        of.clone().filter(|conditions| on && !conditions.is_empty())
    };
    DeviceRequestAllocationResult {
        request: request.full_name(),
        driver: device.id.pool.driver.to_string(),
        pool: device.id.pool.pool.to_string(),
        device: device.id.device.to_string(),
        admin_access: request.admin_access.then_some(true),
        tolerations,
        share_id: found.share_id.clone(),
        consumed_capacity: Some(consumed.collect())
            .filter(|c: &std::collections::BTreeMap<_, _>| !c.is_empty()),
        binding_conditions: conditions(&device.api.binding_conditions),
        binding_failure_conditions: conditions(&device.api.binding_failure_conditions),
        skip_node_operations: None,
    }
}

/// The configuration of the classes, each once, then that of the claim, as far as it is about what was chosen.
fn configuration(
    claim: &ResourceClaim,
    choices: &[Choice<'_>],
) -> Vec<DeviceAllocationConfiguration> {
    let mut all: Vec<DeviceAllocationConfiguration> = Vec::new();
    let mut of_class: HashMap<&str, std::ops::Range<usize>> = HashMap::new();
    for choice in choices {
        let taken = choice.taken();
        let request = taken.request.full_name();
        let name = taken.class.metadata.name.as_deref().unwrap_or_default();
        if let Some(known) = of_class.get(name) {
            for config in &mut all[known.clone()] {
                config
                    .requests
                    .get_or_insert_default()
                    .push(request.clone());
            }
            continue;
        }
        let start = all.len();
        let configs = taken.class.spec.as_ref().and_then(|s| s.config.as_deref());
        for config in configs.unwrap_or_default() {
            all.push(DeviceAllocationConfiguration {
                source: "FromClass".into(),
                requests: Some(vec![request.clone()]),
                opaque: config.opaque.clone(),
            });
        }
        of_class.insert(name, start..all.len());
    }
    let devices = claim.spec.as_ref().and_then(|s| s.devices.as_ref());
    let configs = devices.and_then(|d| d.config.as_deref());
    for config in configs.unwrap_or_default() {
        let named = config.requests.as_deref().unwrap_or_default();
        if named.is_empty() || choices.iter().any(|choice| is_named(choice, named)) {
            all.push(DeviceAllocationConfiguration {
                source: "FromClaim".into(),
                requests: config.requests.clone(),
                opaque: config.opaque.clone(),
            });
        }
    }
    for config in &mut all {
        // None named means all of them.
        let named = config.requests.as_deref().unwrap_or_default();
        if choices.iter().all(|choice| is_named(choice, named)) {
            config.requests = None;
        }
    }
    all
}

/// Is the request, or the alternative that was taken, among the names?
fn is_named(choice: &Choice<'_>, names: &[String]) -> bool {
    let request = &choice.taken().request;
    let full = request.full_name();
    names
        .iter()
        .any(|name| *name == full || request.parent.is_some_and(|parent| parent == name))
}

fn node_selector(
    task: &Task<'_>,
    claim: &ResourceClaim,
    found: &[Found],
    node: &str,
) -> Result<Option<NodeSelector>, AllocateError> {
    let (mut fields, mut expressions) = (Vec::new(), Vec::new());
    for found in found {
        let (slice, device) = (task.slice(found.candidate), task.device(found.candidate));
        let spec = &slice.object().spec;
        let (name, selector) = if slice.per_device {
            (&device.api.node_name, &device.api.node_selector)
        } else {
            (&spec.node_name, &spec.node_selector)
        };
        if name.is_some() || device.api.binds_to_node == Some(true) {
            return Ok(Some(only(node)));
        }
        match selector.as_ref().map(|s| s.node_selector_terms.as_slice()) {
            None | Some([]) => {}
            Some([term]) => {
                add_new(&term.match_fields, &mut fields);
                add_new(&term.match_expressions, &mut expressions);
            }
            Some(terms) => {
                return Err(AllocateError::NodeSelector {
                    claim: claim.metadata.name.clone().unwrap_or_default(),
                    terms: terms.len(),
                });
            }
        }
    }
    if fields.is_empty() && expressions.is_empty() {
        return Ok(None);
    }
    let some = |list: Vec<NodeSelectorRequirement>| Some(list).filter(|list| !list.is_empty());
    Ok(Some(NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm {
            match_fields: some(fields),
            match_expressions: some(expressions),
        }],
    }))
}

fn only(node: &str) -> NodeSelector {
    NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm {
            match_fields: Some(vec![NodeSelectorRequirement {
                key: "metadata.name".into(),
                operator: "In".into(),
                values: Some(vec![node.to_owned()]),
            }]),
            match_expressions: None,
        }],
    }
}

fn add_new(from: &Option<Vec<NodeSelectorRequirement>>, to: &mut Vec<NodeSelectorRequirement>) {
    let values = |r: &NodeSelectorRequirement| -> BTreeSet<String> {
        r.values.iter().flatten().cloned().collect()
    };
    for requirement in from.iter().flatten() {
        let same = |known: &NodeSelectorRequirement| {
            known.key == requirement.key
                && known.operator == requirement.operator
                && values(known) == values(requirement)
        };
        if !to.iter().any(same) {
            to.push(requirement.clone());
        }
    }
}
