//! Claims of devices and the kubelet: which claims a pod uses, what its containers get by them, and what its status tells.
//!
//! Owns: the way between the objects and the crate `dra`, which knows what drivers prepared. Upstream: pkg/kubelet/cm/dra/manager.go, v1.37.

use std::sync::Arc;

use ::devices::pod_resources::v1::DynamicResource;
use ::dra::{ClaimKey, DraError, Manager};
use component_helpers::resource_claim::NameError;
use k8s_openapi::api::core::v1::{
    Container, Pod, PodStatus, ResourceHealth, ResourceStatus as AllocatedResourceStatus,
};
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::Api;

use crate::pod;

mod node;
mod request;

pub use node::{ClaimSlices, DriverRegistry, Watcher, register_metric};
pub use request::{ClaimProblem, PodClaim, claims_of, request};

use request::{base_request, container_requests, dynamic_resource, key_of_entry};

/// Why a pod's claims are not prepared. The words are upstream's: they are in an event. Another try may help.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("fetch ResourceClaim {name}: {source}")]
    Fetch {
        name: String,
        #[source]
        source: Box<kube::Error>,
    },
    /// Pods of an API server alone have claims.
    #[error("fetch ResourceClaim {0}: this kubelet runs without an API server")]
    NoApi(String),
    #[error(transparent)]
    Claim(#[from] ClaimProblem),
    #[error(transparent)]
    Driver(#[from] DraError),
}

/// Why a pod does not let go of its claims. Another try may help.
#[derive(Debug, thiserror::Error)]
#[error("unprepare dynamic resources: {0}")]
pub struct UnprepareError(#[source] DraError);

/// The kubelet's view of claims.
pub struct DynamicResources {
    pub manager: Arc<Manager>,
    /// Those of all namespaces; `None`: there is no API server.
    pub claims: Option<Api<ResourceClaim>>,
    /// Claims may say that their driver needs not be called.
    pub optional_node_operations: bool,
    /// Statuses of pods tell how their devices are.
    pub tell_health: bool,
    /// What a driver says of a device goes into the status, too.
    pub tell_messages: bool,
}

impl DynamicResources {
    /// Every claim of the pod is prepared. Upstream: `PrepareResources`.
    ///
    /// # Errors
    /// The first claim that is not.
    pub async fn prepare(&self, pod: &Pod) -> Result<(), PrepareError> {
        let mut wanted = Vec::new();
        for claim in claims_of(pod)? {
            let object = self.fetch(pod::namespace(pod), claim.name).await?;
            wanted.push(request(
                pod,
                &claim,
                &object,
                self.optional_node_operations,
            )?);
        }
        Ok(self.manager.prepare(pod::uid(pod), &wanted).await?)
    }

    /// The pod lets go of its claims: none of its containers can run any more. Idempotent. Upstream: `UnprepareResources`.
    ///
    /// # Errors
    /// A driver did not let go of one. Another try may help.
    pub async fn unprepare(&self, uid: &str) -> Result<(), UnprepareError> {
        let done = self.manager.unprepare(uid).await;
        done.map_err(UnprepareError)
    }

    async fn fetch(&self, namespace: &str, name: &str) -> Result<ResourceClaim, PrepareError> {
        let Some(claims) = &self.claims else {
            return Err(PrepareError::NoApi(name.to_owned()));
        };
        let client = claims.clone().into_client();
        let claims = Api::<ResourceClaim>::namespaced(client, namespace);
        claims
            .get(name)
            .await
            .map_err(|source| PrepareError::Fetch {
                name: name.to_owned(),
                source: Box::new(source),
            })
    }

    /// Names of the CDI devices that the container gets by its claims. Upstream: `GetResources`.
    ///
    /// DIFFERS: a claim of which nothing is known here (its record is lost) is prepared once more; upstream's container never starts.
    ///
    /// # Errors
    /// A claim is not prepared. Another try may help.
    pub async fn cdi_devices(
        &self,
        pod: &Pod,
        container: &Container,
    ) -> Result<Vec<String>, PrepareError> {
        let wanted = container_requests(pod, container)?;
        let unknown = |(key, _): &(ClaimKey, _)| self.manager.claim(key).is_none();
        if wanted.iter().any(unknown) {
            self.prepare(pod).await?;
        }
        let mut names: Vec<String> = Vec::new();
        for (key, request) in &wanted {
            for name in self.manager.cdi_devices(key, request.as_deref())? {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        Ok(names)
    }

    /// Writes down how the devices of the pod's claims are. Upstream: `UpdateAllocatedResourcesStatus`.
    pub fn tell_health(&self, pod: &Pod, status: &mut PodStatus) {
        if !self.tell_health {
            return;
        }
        for told in status.container_statuses.iter_mut().flatten() {
            let Some(container) = pod::containers(pod).iter().find(|c| c.name == told.name) else {
                continue;
            };
            let mut all = told.allocated_resources_status.take().unwrap_or_default();
            for claim in container
                .resources
                .iter()
                .flat_map(|r| r.claims.iter().flatten())
            {
                let request = claim.request.as_deref().filter(|r| !r.is_empty());
                let resources = self.health_of(pod, &claim.name, request);
                if resources.is_empty() {
                    continue;
                }
                let name = match request {
                    Some(request) => format!("claim:{}/{request}", claim.name),
                    None => format!("claim:{}", claim.name),
                };
                all.retain(|one: &AllocatedResourceStatus| one.name != name);
                all.push(AllocatedResourceStatus {
                    name,
                    resources: Some(resources),
                });
            }
            told.allocated_resources_status = (!all.is_empty()).then_some(all);
        }
    }

    fn health_of(&self, pod: &Pod, entry: &str, request: Option<&str>) -> Vec<ResourceHealth> {
        let key = key_of_entry(pod, entry).ok().flatten();
        let info = key.and_then(|key| self.manager.claim(&key));
        let mut all: Vec<ResourceHealth> = Vec::new();
        for (driver, state) in info.iter().flat_map(|info| &info.drivers) {
            let base = request.map(base_request);
            for device in state.devices.iter().filter(|device| device.is_of(base)) {
                let (pool, name) = (&device.pool_name, &device.device_name);
                let first = device.cdi_device_ids.first().cloned();
                let id = first.unwrap_or_else(|| format!("{driver}/{pool}/{name}"));
                if all.iter().any(|one| one.resource_id == id) {
                    continue;
                }
                let (health, message) = self.manager.device_health(driver, pool, name);
                let message = Some(message).filter(|m| self.tell_messages && !m.is_empty());
                all.push(ResourceHealth {
                    resource_id: id,
                    health: Some(health.as_str().to_owned()),
                    message,
                });
            }
        }
        all
    }

    /// What the container has by its claims, for agents of the node. Upstream: `GetDynamicResources`.
    pub fn of_container(&self, pod: &Pod, container: &Container) -> Vec<DynamicResource> {
        let mut keys: Vec<ClaimKey> = Vec::new();
        for (key, _) in container_requests(pod, container).unwrap_or_default() {
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        let one = |key: ClaimKey| {
            let info = self.manager.claim(&key)?;
            Some(dynamic_resource(key, info))
        };
        keys.into_iter().filter_map(one).collect()
    }
}
