//! `resourceFieldRef`: a container's request or limit as a number of divisors. Upstream: pkg/api/v1/resource.

use std::collections::BTreeMap;

use component_helpers::quantity::{Amount, ParseQuantityError, amount};
use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Why a resource could not be read. No retry helps.
#[derive(Debug, thiserror::Error)]
pub enum ResourceFieldError {
    #[error("container {0} not found")]
    ContainerNotFound(String),
    #[error("unsupported container resource : {0}")]
    Unsupported(String),
    #[error("divisor {divisor:?}: {source}")]
    Divisor {
        divisor: String,
        #[source]
        source: ParseQuantityError,
    },
}

/// The value rounded up to whole divisors. A limit that is not set is the pod's own (`spec.resources`), else the node's
/// allocatable amount.
/// `container_name` is used where the selector names none (environment variables).
pub fn extract_resource_value(
    selector: &ResourceFieldSelector,
    pod: &Pod,
    container_name: &str,
    node_allocatable: &BTreeMap<String, Quantity>,
) -> Result<String, ResourceFieldError> {
    let name = selector
        .container_name
        .as_deref()
        .filter(|n| !n.is_empty())
        .unwrap_or(container_name);
    let container = find_container(pod, name)
        .ok_or_else(|| ResourceFieldError::ContainerNotFound(name.to_owned()))?;
    let divisor = divisor(selector)?;
    let unsupported = || ResourceFieldError::Unsupported(selector.resource.clone());
    let (side, resource) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    if !matches!(resource, "cpu" | "memory" | "ephemeral-storage")
        && !resource.starts_with("hugepages-")
    {
        return Err(unsupported());
    }
    let resources = container.resources.as_ref();
    let amount = match side {
        "requests" => resources
            .and_then(|r| r.requests.as_ref())
            .and_then(|r| r.get(resource))
            .map(amount),
        "limits" => {
            let set = resources
                .and_then(|r| r.limits.as_ref())
                .and_then(|r| r.get(resource))
                .map(amount);
            // Upstream: `defaultPodLimitsForDownwardAPI`; huge pages are never overcommitted, a pod's limit of local
            // storage is no limit of the pod's level.
            let of_pod = || {
                let spec = pod.spec.as_ref()?;
                let limits = spec.resources.as_ref()?.limits.as_ref()?;
                let limit = limits.get(resource).map(amount)?;
                (matches!(resource, "cpu" | "memory") && !limit.is_zero()).then_some(limit)
            };
            let default = || {
                let node = node_allocatable
                    .get(resource)
                    .filter(|_| !resource.starts_with("hugepages-"))
                    .map(amount)?;
                Some(of_pod().unwrap_or(node))
            };
            set.filter(|a| !a.is_zero()).or_else(default)
        }
        _ => return Err(unsupported()),
    }
    .unwrap_or(Amount::ZERO);
    let (value, per) = match resource {
        "cpu" => (amount.milli_value(), divisor.milli_value()),
        _ => (amount.value(), divisor.value()),
    };
    Ok(div_ceil(value, per).to_string())
}

fn divisor(selector: &ResourceFieldSelector) -> Result<Amount, ResourceFieldError> {
    let Some(quantity) = &selector.divisor else {
        return Ok(Amount::from_milli(1000));
    };
    let parsed = Amount::try_from(quantity).map_err(|source| ResourceFieldError::Divisor {
        divisor: quantity.0.clone(),
        source,
    })?;
    Ok(if parsed.is_zero() {
        Amount::from_milli(1000)
    } else {
        parsed
    })
}

fn div_ceil(value: i64, per: i64) -> i64 {
    let per = per.max(1);
    value / per + i64::from(value % per > 0)
}

fn find_container<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    let spec = pod.spec.as_ref()?;
    spec.containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .find(|c| c.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_default_to_the_pods_before_the_nodes() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {
            "resources": {"limits": {"cpu": "2", "memory": "0", "hugepages-2Mi": "4Mi"}},
            "containers": [
                {"name": "c"},
                {"name": "own", "resources": {"limits": {"cpu": "1"}}},
            ],
        }}))
        .unwrap();
        let allocatable = ["cpu", "memory", "ephemeral-storage"]
            .map(|name| (name.to_owned(), Quantity("8".to_owned())))
            .into();
        for (container, resource, expect) in [
            ("c", "limits.cpu", "2"),
            ("own", "limits.cpu", "1"),
            ("c", "limits.memory", "8"),
            ("c", "limits.ephemeral-storage", "8"),
            ("c", "limits.hugepages-2Mi", "0"),
            ("c", "requests.cpu", "0"),
        ] {
            let selector = ResourceFieldSelector {
                container_name: Some(container.to_owned()),
                resource: resource.to_owned(),
                divisor: None,
            };
            let value = extract_resource_value(&selector, &pod, "", &allocatable).unwrap();
            assert_eq!(value, expect, "{container} {resource}");
        }
    }

    #[test]
    fn rounds_up_to_divisors_and_defaults_limits_to_the_node() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {"containers": [{
            "name": "c",
            "resources": {
                "requests": {"cpu": "250m", "memory": "32Mi", "hugepages-2Mi": "4Mi"},
                "limits": {"cpu": "1250m", "memory": "64Mi"},
            },
        }]}}))
        .unwrap();
        let allocatable =
            BTreeMap::from([("ephemeral-storage".to_owned(), Quantity("10Gi".to_owned()))]);
        for (resource, divisor, expect) in [
            ("requests.cpu", None, Some("1")),
            ("requests.cpu", Some("1m"), Some("250")),
            ("limits.cpu", None, Some("2")),
            ("limits.cpu", Some("0"), Some("2")),
            ("requests.memory", None, Some("33554432")),
            ("limits.memory", Some("1Mi"), Some("64")),
            ("limits.memory", Some("1Gi"), Some("1")),
            ("limits.ephemeral-storage", Some("1Gi"), Some("10")),
            ("requests.ephemeral-storage", None, Some("0")),
            ("requests.hugepages-2Mi", Some("1Mi"), Some("4")),
            ("limits.hugepages-2Mi", None, Some("0")),
            ("limits.gpu", None, None),
            ("cpu", None, None),
            ("limits.cpu", Some("x"), None),
        ] {
            let selector = ResourceFieldSelector {
                container_name: Some("c".to_owned()),
                resource: resource.to_owned(),
                divisor: divisor.map(|d| Quantity(d.to_owned())),
            };
            let value = extract_resource_value(&selector, &pod, "", &allocatable).ok();
            assert_eq!(value.as_deref(), expect, "{resource} / {divisor:?}");
        }
    }
}
