//! What kinds of objects the API server has right now, by aggregated discovery: two requests, however many groups.

use async_trait::async_trait;
use controller_runtime::{ApiError, Resource};
use kube::Client;
use kube::core::ApiResource;
use kube::core::discovery::v2::{APIGroupDiscovery, APIGroupDiscoveryList, APIResourceDiscovery};

/// One resource in one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovered {
    pub resource: Resource,
    pub namespaced: bool,
    /// `get`, `list`, `deletecollection`, …
    pub verbs: Vec<String>,
    /// The version the server prefers for this resource; others serve the same objects.
    pub preferred: bool,
    /// `status`, `scale`, …
    pub subresources: Vec<String>,
}

impl Discovered {
    pub fn supports(&self, verbs: &[&str]) -> bool {
        verbs
            .iter()
            .all(|verb| self.verbs.iter().any(|v| v == verb))
    }

    /// As kube's dynamic clients want it.
    pub fn api_resource(&self) -> ApiResource {
        ApiResource {
            group: self.resource.group.to_string(),
            version: self.resource.version.to_string(),
            api_version: self.resource.api_version(),
            kind: self.resource.kind.to_string(),
            plural: self.resource.plural.to_string(),
        }
    }
}

/// All that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiResources {
    pub resources: Vec<Discovered>,
    /// Group versions of aggregated API servers that do not answer; what is known of them is old.
    pub failed: Vec<String>,
}

impl ApiResources {
    /// The resource of a kind in a version, as an owner reference names it.
    pub fn of_kind(&self, api_version: &str, kind: &str) -> Option<&Discovered> {
        self.resources
            .iter()
            .find(|d| d.resource.kind == kind && d.resource.api_version() == api_version)
    }
}

/// Where discovery comes from; a fake in tests.
#[async_trait]
pub trait Discovery: Send + Sync + 'static {
    /// # Errors
    /// The server did not answer at all. What it could not tell of some groups is in [`ApiResources::failed`].
    async fn resources(&self) -> Result<ApiResources, ApiError>;
}

#[async_trait]
impl Discovery for Client {
    async fn resources(&self) -> Result<ApiResources, ApiError> {
        let core = self.list_core_api_versions_aggregated().await?;
        let groups = self.list_api_groups_aggregated().await?;
        Ok(collect([core, groups]))
    }
}

fn collect(lists: impl IntoIterator<Item = APIGroupDiscoveryList>) -> ApiResources {
    let mut found = ApiResources::default();
    for group in lists.into_iter().flat_map(|list| list.items) {
        add_group(&mut found, group);
    }
    found
}

/// Versions come in the order of preference; a resource that the first one lacks is preferred in the next.
fn add_group(found: &mut ApiResources, group: APIGroupDiscovery) {
    let name = group.metadata.and_then(|m| m.name).unwrap_or_default();
    let mut seen: Vec<String> = Vec::new();
    for version in group.versions {
        let version_name = version.version.unwrap_or_default();
        if version.freshness.as_deref() == Some("Stale") {
            found.failed.push(if name.is_empty() {
                version_name.clone()
            } else {
                format!("{name}/{version_name}")
            });
        }
        for resource in version.resources {
            let Some(mut discovered) = discovered(&name, &version_name, resource) else {
                continue;
            };
            let plural = discovered.resource.plural.to_string();
            discovered.preferred = !seen.contains(&plural);
            seen.push(plural);
            found.resources.push(discovered);
        }
    }
}

fn discovered(group: &str, version: &str, resource: APIResourceDiscovery) -> Option<Discovered> {
    // Mostly empty: the group and version of the response are those of the resource.
    let kind = resource.response_kind.and_then(|k| k.kind)?;
    Some(Discovered {
        resource: Resource {
            group: group.to_owned().into(),
            version: version.to_owned().into(),
            kind: kind.into(),
            plural: resource.resource?.into(),
        },
        namespaced: resource.scope.as_deref() == Some("Namespaced"),
        verbs: resource.verbs,
        preferred: false,
        subresources: resource
            .subresources
            .into_iter()
            .filter_map(|s| s.subresource)
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_version_that_has_a_resource_is_preferred() {
        let resource = |plural: &str, kind: &str| json!({"resource": plural, "responseKind": {"kind": kind}, "scope": "Namespaced", "verbs": ["get", "delete"]});
        let list: APIGroupDiscoveryList = serde_json::from_value(json!({"items": [{
            "metadata": {"name": "autoscaling"},
            "versions": [
                {"version": "v2", "resources": [resource("hpas", "HPA")], "freshness": "Current"},
                {"version": "v1", "resources": [resource("hpas", "HPA"), resource("olds", "Old")], "freshness": "Stale"},
            ],
        }]}))
        .unwrap();
        let found = collect([list]);
        let brief: Vec<_> = found
            .resources
            .iter()
            .map(|d| {
                (
                    d.resource.version.as_ref(),
                    d.resource.plural.as_ref(),
                    d.preferred,
                )
            })
            .collect();
        assert_eq!(
            brief,
            [
                ("v2", "hpas", true),
                ("v1", "hpas", false),
                ("v1", "olds", true)
            ]
        );
        assert_eq!(found.failed, ["autoscaling/v1"]);
        assert!(
            found
                .of_kind("autoscaling/v1", "HPA")
                .unwrap()
                .supports(&["delete"])
        );
        assert!(found.of_kind("autoscaling/v3", "HPA").is_none());
    }
}
