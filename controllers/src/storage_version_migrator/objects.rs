//! The objects of a resource, by name and version alone.

use async_trait::async_trait;
use controller_runtime::{ApiError, ObjectKey};
use kube::api::ListParams;
use kube::core::{ApiResource, DynamicObject};
use kube::{Api, Client};

/// Objects of one page.
const PAGE: u32 = 500;
/// No namespace has this name, as it is not valid. Upstream: `fakeSVMNamespaceName`.
const NO_NAMESPACE: &str = "@fake:svm_ns!";

/// What of an object matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) key: ObjectKey,
    pub(super) resource_version: String,
}

/// Where objects are found; a fake in tests.
#[async_trait]
pub(super) trait Objects: Send + Sync + 'static {
    /// The resource's version now, at the cost of one object at most.
    async fn latest(&self, resource: &ApiResource, namespaced: bool) -> Result<String, ApiError>;
    /// All objects of a resource in all namespaces.
    async fn all(&self, resource: &ApiResource) -> Result<Vec<Stored>, ApiError>;
}

#[async_trait]
impl Objects for Client {
    async fn latest(&self, resource: &ApiResource, namespaced: bool) -> Result<String, ApiError> {
        let api: Api<DynamicObject> = match namespaced {
            true => Api::namespaced_with(self.clone(), NO_NAMESPACE, resource),
            false => Api::all_with(self.clone(), resource),
        };
        let list = api.list_metadata(&ListParams::default().limit(1)).await?;
        Ok(list.metadata.resource_version.unwrap_or_default())
    }

    async fn all(&self, resource: &ApiResource) -> Result<Vec<Stored>, ApiError> {
        let api: Api<DynamicObject> = Api::all_with(self.clone(), resource);
        let mut params = ListParams::default().limit(PAGE);
        let mut found = Vec::new();
        loop {
            let page = match api.list_metadata(&params).await {
                Err(kube::Error::Api(status)) if status.code == 410 && !found.is_empty() => {
                    // The list took longer than the server keeps old states.
                    found.clear();
                    params = ListParams::default().limit(PAGE);
                    continue;
                }
                page => page?,
            };
            found.extend(page.items.into_iter().map(|object| Stored {
                key: ObjectKey::new(
                    object.metadata.namespace.unwrap_or_default(),
                    object.metadata.name.unwrap_or_default(),
                ),
                resource_version: object.metadata.resource_version.unwrap_or_default(),
            }));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(found),
            }
        }
    }
}
