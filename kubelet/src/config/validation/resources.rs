//! Requests and limits.

use component_helpers::quantity::{Amount, amount};
use component_helpers::resources::ResourceList;
use k8s_openapi::api::core::v1::ResourceRequirements;

use super::field::{Errors, NEGATIVE, Path};

/// Names without a slash that are resources of something, though not of a container. Upstream: `standardResources`.
const STANDARD_ELSEWHERE: [&str; 15] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
    "storage",
];

fn is_huge_pages(name: &str) -> bool {
    name.starts_with("hugepages-")
}

fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

fn may_be_overcommitted(name: &str) -> bool {
    is_native(name) && !is_huge_pages(name)
}

/// How large a page is, by its resource's name.
fn page_size(name: &str) -> Option<Amount> {
    name.strip_prefix("hugepages-")?.parse().ok()
}

/// Of a container.
pub fn of_container(resources: &ResourceRequirements, path: &Path, errors: &mut Errors) {
    requirements(resources, container_resource, path, errors);
}

/// Of a pod as a whole. Upstream: `validatePodResourceName`.
pub fn of_pod(resources: &ResourceRequirements, path: &Path, errors: &mut Errors) {
    let name = |name: &str, path: &Path, errors: &mut Errors| {
        if !matches!(name, "cpu" | "memory") && !is_huge_pages(name) {
            errors.not_supported(path, name, &["cpu", "hugepages-", "memory"]);
        }
    };
    requirements(resources, name, path, errors);
}

fn container_resource(name: &str, path: &Path, errors: &mut Errors) {
    if let Err(text) = component_helpers::labels::validate_label_key(name) {
        return errors.invalid(path, name, &text);
    }
    if !name.contains('/') {
        let of_containers =
            matches!(name, "cpu" | "memory" | "ephemeral-storage") || is_huge_pages(name);
        if !of_containers && !STANDARD_ELSEWHERE.contains(&name) {
            let text = "must be a standard resource type or fully qualified";
            errors.invalid(path, name, text);
        }
        if !of_containers {
            errors.invalid(path, name, "must be a standard resource for containers");
        }
    } else if !is_native(name) && name.starts_with("requests.") {
        let text = "doesn't follow extended resource name standard";
        errors.invalid(path, name, text);
    }
}

fn requirements(
    resources: &ResourceRequirements,
    check_name: impl Fn(&str, &Path, &mut Errors),
    path: &Path,
    errors: &mut Errors,
) {
    let (limit_path, request_path) = (path.child("limits"), path.child("requests"));
    let empty = ResourceList::new();
    let limits = resources.limits.as_ref().unwrap_or(&empty);
    let requests = resources.requests.as_ref().unwrap_or(&empty);
    let check = |name: &str, value: Amount, path: &Path, errors: &mut Errors| {
        check_name(name, path, errors);
        if value.is_negative() {
            errors.invalid(path, value.canonical().as_str(), NEGATIVE);
        }
        if !is_native(name) && value.nano_value() % 1_000_000_000 != 0 {
            errors.invalid(path, value.canonical().as_str(), "must be an integer");
        }
        if let Some(page) = page_size(name)
            && (page.nano_value() == 0 || value.nano_value() % page.nano_value() != 0)
        {
            let shown = value.canonical();
            let text = format!("{shown} is not positive integer multiple of {name}");
            errors.invalid(path, shown.as_str(), &text);
        }
    };
    for (name, limit) in limits {
        check(name, amount(limit), &limit_path.key(name), errors);
    }
    for (name, request) in requests {
        let request = amount(request);
        check(name, request, &request_path.key(name), errors);
        let Some(limit) = limits.get(name).map(amount) else {
            if !may_be_overcommitted(name) {
                let text = "Limit must be set for non overcommitable resources";
                errors.required(&limit_path, text);
            }
            continue;
        };
        let must = if request != limit && !may_be_overcommitted(name) {
            "must be equal to"
        } else if request > limit {
            "must be less than or equal to"
        } else {
            continue;
        };
        let text = format!("{must} {name} limit of {}", limit.canonical());
        errors.invalid(&request_path, request.canonical().as_str(), &text);
    }
    let names = || limits.keys().chain(requests.keys());
    if names().any(|n| is_huge_pages(n)) && !names().any(|n| n == "cpu" || n == "memory") {
        errors.forbidden(path, "HugePages require cpu or memory");
    }
}
