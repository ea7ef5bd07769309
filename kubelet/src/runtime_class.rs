//! RuntimeClasses: which handler of the runtime a pod asks for.
//!
//! Owns: the look-up. Upstream: `pkg/kubelet/runtimeclass`, v1.36.

use async_trait::async_trait;
use component_base::informer::Informer;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::Api;

use crate::kuberuntime::RuntimeClasses;

/// Over the API server's classes; without one, only pods without a class run.
pub struct Manager {
    watched: Option<(Informer<RuntimeClass>, kube::Client)>,
}

impl Manager {
    pub fn new(watched: Option<(Informer<RuntimeClass>, kube::Client)>) -> Self {
        Self { watched }
    }
}

#[async_trait]
impl RuntimeClasses for Manager {
    async fn handler(&self, class: Option<&str>) -> Result<String, String> {
        let Some(name) = class.filter(|c| !c.is_empty()) else {
            return Ok(String::new());
        };
        let Some((informer, client)) = &self.watched else {
            return Err(format!(
                "RuntimeClass {name:?} cannot be looked up without an API server"
            ));
        };
        if let Some(found) = informer.get("", name) {
            return Ok(found.handler.clone());
        }
        // It may be newer than the watch.
        match Api::<RuntimeClass>::all(client.clone()).get_opt(name).await {
            Ok(Some(found)) => Ok(found.handler),
            Ok(None) => Err(format!("RuntimeClass {name:?} not found")),
            Err(error) => Err(format!("failed to get RuntimeClass {name:?}: {error}")),
        }
    }
}
