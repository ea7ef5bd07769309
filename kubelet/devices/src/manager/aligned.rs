//! Devices of the nodes that all managers agreed on, container by container.
//!
//! Upstream: manager.go, `Allocate`, v1.37.

use resource_managers::{Hints, NumaMask};

use super::{DevicesError, Manager};
use crate::state::PodRequest;

/// What containers did not have before, by container and resource.
pub type Given = Vec<(String, String)>;

impl Manager {
    /// Where the container's devices could come from. `machine`: the NUMA nodes there are.
    pub fn topology_hints(&self, pod: &PodRequest, container: &str, machine: &[usize]) -> Hints {
        let inner = self.inner();
        inner.state.topology_hints(pod, container, machine)
    }

    /// The same of all that the pod's containers have at a time.
    pub fn pod_topology_hints(&self, pod: &PodRequest, machine: &[usize]) -> Hints {
        self.inner().state.pod_topology_hints(pod, machine)
    }

    /// The container gets its devices, of the nodes of `affinity` first. Returns what it did not have before; should its pod not run after
    /// all, [`Manager::take_back`] is for that.
    ///
    /// # Errors
    /// It cannot have them; the pod is rejected for good, as upstream.
    pub async fn allocate_container_aligned(
        &self,
        pod: &PodRequest,
        container: &str,
        affinity: Option<NumaMask>,
    ) -> Result<Given, DevicesError> {
        let Some(container) = pod.containers.iter().find(|c| c.name == container) else {
            return Ok(Given::new());
        };
        let turns = self.turns(std::slice::from_ref(container)).await;
        let mut given = Vec::new();
        let outcome = self
            .allocate_container(pod, container, &turns, affinity, &mut given)
            .await;
        let given: Given = given
            .into_iter()
            .map(|(container, resource)| (container.to_owned(), resource.to_owned()))
            .collect();
        let outcome = match outcome {
            Ok(()) => self.write().await,
            failed => failed,
        };
        match outcome {
            Ok(()) => Ok(given),
            Err(error) => {
                self.take_back(&pod.uid, &given).await;
                Err(error)
            }
        }
    }

    /// Frees what a pod was given that does not run.
    pub async fn take_back(&self, pod: &str, given: &Given) {
        if given.is_empty() {
            return;
        }
        for (container, resource) in given {
            self.inner().state.pods.remove(pod, container, resource);
        }
        self.write_or_tell().await;
    }
}
