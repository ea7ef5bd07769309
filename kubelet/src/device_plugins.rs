//! Device plugins and the kubelet: what a pod asks for, what its containers get, and what its status tells.
//!
//! Owns: the way between pods' objects and the crate `devices`, which knows who has what. Upstream: `GetResources`,
//! `GetAllocateResourcesPodAdmitHandler`, `UpdateAllocatedResourcesStatus` in pkg/kubelet/cm, v1.37.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ::devices::{ContainerRequest, DevicesError, Injection, Kind, Manager, Observer, PodRequest};
use async_trait::async_trait;
use component_helpers::quantity::value;
use component_helpers::resources::is_extended_resource_name;
use csi::registration::{HandlerError, PluginHandler};
use k8s_openapi::api::core::v1::{
    Container, Pod, PodStatus, ResourceHealth, ResourceStatus as AllocatedResourceStatus,
};
use runtime::api as cri;

use crate::admission::Rejection;
use crate::pod_workers::PodWorkers;
use crate::{metrics, pod, preemption};

/// The extended resources that the containers of the pod ask for, but those that the scheduler made a claim of.
pub fn request(pod: &Pod) -> PodRequest {
    let inits = pod::init_containers(pod).iter();
    let inits = inits.map(|c| match pod::is_restartable_init(c) {
        true => (c, Kind::Sidecar),
        false => (c, Kind::Init),
    });
    let regular = pod::containers(pod).iter().map(|c| (c, Kind::Regular));
    PodRequest {
        uid: pod::uid(pod).to_owned(),
        containers: inits
            .chain(regular)
            .map(|(container, kind)| of_container(pod, container, kind))
            .collect(),
    }
}

fn of_container(pod: &Pod, container: &Container, kind: Kind) -> ContainerRequest {
    let claimed = pod.status.as_ref();
    let claimed = claimed.and_then(|s| s.extended_resource_claim_status.as_ref());
    let is_claimed = |resource: &str| {
        let mut mappings = claimed.iter().flat_map(|c| &c.request_mappings);
        mappings.any(|m| m.container_name == container.name && m.resource_name == resource)
    };
    let limits = container.resources.iter();
    let limits = limits.flat_map(|r| r.limits.iter().flatten());
    ContainerRequest {
        name: container.name.clone(),
        kind,
        limits: limits
            .filter(|(name, _)| is_extended_resource_name(name) && !is_claimed(name))
            .map(|(name, quantity)| (name.clone(), value(quantity)))
            .collect(),
    }
}

/// Upstream: `unexpectedAdmissionError` of pkg/kubelet/cm/admission.
pub fn rejection(error: &DevicesError) -> Rejection {
    Rejection {
        reason: preemption::UNEXPECTED.to_owned(),
        message: format!("Allocate failed due to {error}, which is unexpected"),
    }
}

/// Nobody knows what became of the question.
pub fn lost() -> Rejection {
    Rejection {
        reason: preemption::UNEXPECTED.to_owned(),
        message: "Allocate failed due to an error of the kubelet's own, which is unexpected"
            .to_owned(),
    }
}

/// The container's own variables count before those of its devices.
pub fn add_envs(envs: &mut Vec<(String, String)>, injection: &Injection) {
    for (name, value) in &injection.envs {
        if !envs.iter().any(|(own, _)| own == name) {
            envs.push((name.clone(), value.clone()));
        }
    }
}

/// Before what the pod mounts itself.
pub fn mounts(injection: &Injection) -> Vec<cri::Mount> {
    let mounts = injection.mounts.iter();
    mounts
        .map(|mount| cri::Mount {
            container_path: mount.container_path.clone(),
            host_path: mount.host_path.clone().into(),
            readonly: mount.read_only,
            ..cri::Mount::default()
        })
        .collect()
}

pub fn nodes(injection: &Injection) -> Vec<cri::Device> {
    let devices = injection.devices.iter();
    devices
        .map(|device| cri::Device {
            container_path: device.container_path.clone(),
            host_path: device.host_path.clone().into(),
            permissions: device.permissions.clone(),
        })
        .collect()
}

/// Writes down how the devices of the pod's containers are.
pub fn tell_health(manager: &Manager, uid: &str, status: &mut PodStatus) {
    for container in status.container_statuses.iter_mut().flatten() {
        let health = manager.health(uid, &container.name);
        if health.is_empty() {
            continue;
        }
        let of_device = |(id, healthy): (String, bool)| ResourceHealth {
            resource_id: id,
            health: Some(if healthy { "Healthy" } else { "Unhealthy" }.to_owned()),
            message: None,
        };
        let resources = health.into_iter();
        let resources = resources.map(|(name, devices)| AllocatedResourceStatus {
            name,
            resources: Some(devices.into_iter().map(of_device).collect()),
        });
        container.allocated_resources_status = Some(resources.collect());
    }
}

/// Counts, and wakes pods whose devices fall sick.
pub struct Watcher {
    pub workers: Arc<PodWorkers>,
    /// Statuses tell of devices.
    pub tell_health: bool,
}

impl Observer for Watcher {
    fn registered(&self, resource: &str) {
        metrics::DEVICE_PLUGIN_REGISTRATIONS
            .with_label_values(&[resource])
            .inc();
    }

    fn allocated(&self, resource: &str, took: Duration) {
        metrics::DEVICE_PLUGIN_ALLOCATION_DURATION
            .with_label_values(&[resource])
            .observe(took.as_secs_f64());
    }

    fn health_changed(&self, pod: &str) {
        if self.tell_health {
            self.workers.wake(pod);
        }
    }

    fn tells_health(&self) -> bool {
        self.tell_health
    }
}

/// Device plugins that make themselves known in `plugins_registry`.
pub struct Registry(pub Arc<Manager>);

#[async_trait]
impl PluginHandler for Registry {
    fn validate(&self, name: &str, _: &Path, versions: &[String]) -> Result<(), String> {
        self.0.validate(name, versions)
    }

    async fn register(
        &self,
        name: &str,
        endpoint: &Path,
        _: &[String],
    ) -> Result<(), HandlerError> {
        Ok(self.0.connect(name, endpoint).await?)
    }

    async fn deregister(&self, name: &str, endpoint: &Path) {
        self.0.disconnect(name, endpoint);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_asks_for_the_limits_of_its_containers() {
        let container = |name: &str, limits: serde_json::Value, policy: Option<&str>| json!({"name": name, "resources": {"limits": limits}, "restartPolicy": policy});
        let gpu = json!({"example.com/gpu": "2", "cpu": "1", "hugepages-2Mi": "2Mi"});
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"uid": "u"},
            "spec": {
                "initContainers": [container("i", gpu.clone(), None), container("s", json!({}), Some("Always"))],
                "containers": [container("c", gpu.clone(), None), container("d", gpu, None)],
            },
            "status": {"extendedResourceClaimStatus": {"resourceClaimName": "r", "requestMappings": [
                {"containerName": "d", "resourceName": "example.com/gpu", "requestName": "x"},
            ]}},
        }))
        .unwrap();
        let request = request(&pod);
        assert_eq!(request.uid, "u");
        let all: Vec<String> = request
            .containers
            .iter()
            .map(|c| format!("{} {:?} {:?}", c.name, c.kind, c.limits))
            .collect();
        assert_eq!(
            all,
            [
                "i Init {\"example.com/gpu\": 2}",
                "s Sidecar {}",
                "c Regular {\"example.com/gpu\": 2}",
                "d Regular {}",
            ]
        );
    }

    #[test]
    fn the_containers_own_variables_count_first() {
        let mut envs = vec![("A".to_owned(), "own".to_owned())];
        let injection = Injection {
            envs: [("A", "device"), ("B", "device")]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into(),
            ..Injection::default()
        };
        add_envs(&mut envs, &injection);
        let all: Vec<_> = envs.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(all, ["A=own", "B=device"]);
    }
}
