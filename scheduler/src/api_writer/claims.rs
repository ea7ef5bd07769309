//! Writes of ResourceClaims.
//!
//! DIFFERS: upstream writes whole objects; a patch at the same version writes no less and cannot drop fields unknown here.

use component_base::client::is_not_found;
use framework::{ApiWriteError, BoxFuture, ClaimWriter};
use k8s_openapi::api::core::v1::{Pod, PodExtendedResourceClaimStatus};
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::{Value, json};

use super::{KubeWriter, write_error};

fn name(claim: &ResourceClaim) -> &str {
    claim.metadata.name.as_deref().unwrap_or_default()
}

/// What keeps a write from any other version of the claim, or another claim of its name.
fn at_version(claim: &ResourceClaim) -> Value {
    json!({"uid": claim.metadata.uid, "resourceVersion": claim.metadata.resource_version})
}

impl KubeWriter {
    fn claims_in(&self, namespace: &str) -> Api<ResourceClaim> {
        Api::namespaced(self.client.clone(), namespace)
    }

    fn claims_of(&self, claim: &ResourceClaim) -> Api<ResourceClaim> {
        self.claims_in(claim.metadata.namespace.as_deref().unwrap_or_default())
    }
}

impl ClaimWriter for KubeWriter {
    fn create<'a>(
        &'a self,
        claim: &'a ResourceClaim,
    ) -> BoxFuture<'a, Result<ResourceClaim, ApiWriteError>> {
        Box::pin(async move {
            let _slot = self.slot().await?;
            let (claims, params) = (self.claims_of(claim), PostParams::default());
            claims.create(&params, claim).await.map_err(write_error)
        })
    }

    fn get<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<ResourceClaim, ApiWriteError>> {
        Box::pin(async move {
            let _slot = self.slot().await?;
            let claims = self.claims_in(namespace);
            claims.get(name).await.map_err(write_error)
        })
    }

    fn write_finalizers<'a>(
        &'a self,
        claim: &'a ResourceClaim,
    ) -> BoxFuture<'a, Result<ResourceClaim, ApiWriteError>> {
        Box::pin(async move {
            let _slot = self.slot().await?;
            let mut metadata = at_version(claim);
            metadata["finalizers"] = json!(claim.metadata.finalizers);
            let patch = Patch::Merge(json!({"metadata": metadata}));
            let (claims, params) = (self.claims_of(claim), PatchParams::default());
            let patched = claims.patch(name(claim), &params, &patch).await;
            patched.map_err(write_error)
        })
    }

    fn write_status<'a>(
        &'a self,
        claim: &'a ResourceClaim,
    ) -> BoxFuture<'a, Result<ResourceClaim, ApiWriteError>> {
        Box::pin(async move {
            let _slot = self.slot().await?;
            let patch =
                Patch::Merge(json!({"metadata": at_version(claim), "status": status(claim)}));
            let (claims, params) = (self.claims_of(claim), PatchParams::default());
            let patched = claims.patch_status(name(claim), &params, &patch).await;
            patched.map_err(write_error)
        })
    }

    fn unreserve<'a>(
        &'a self,
        claim: &'a ResourceClaim,
        uid: &'a str,
    ) -> BoxFuture<'a, Result<ResourceClaim, ApiWriteError>> {
        Box::pin(async move {
            let _slot = self.slot().await?;
            // Takes one entry out, whatever else is there by now.
            let patch = Patch::Strategic(json!({
                "metadata": {"uid": claim.metadata.uid},
                "status": {"reservedFor": [{"$patch": "delete", "uid": uid}]},
            }));
            let (claims, params) = (self.claims_of(claim), PatchParams::default());
            let patched = claims.patch_status(name(claim), &params, &patch).await;
            patched.map_err(write_error)
        })
    }

    fn delete<'a>(&'a self, claim: &'a ResourceClaim) -> BoxFuture<'a, Result<(), ApiWriteError>> {
        Box::pin(async move {
            let _slot = self.slot().await?;
            let params = DeleteParams {
                preconditions: Some(Preconditions {
                    uid: claim.metadata.uid.clone(),
                    resource_version: None,
                }),
                ..DeleteParams::default()
            };
            let claims = self.claims_of(claim);
            match claims.delete(name(claim), &params).await {
                Err(error) if is_not_found(&error) => Ok(()),
                deleted => deleted.map(|_| ()).map_err(write_error),
            }
        })
    }

    fn write_extended_status<'a>(
        &'a self,
        pod: &'a Pod,
        status: &'a PodExtendedResourceClaimStatus,
    ) -> BoxFuture<'a, Result<(), ApiWriteError>> {
        Box::pin(async move {
            let _slot = self.slot().await?;
            let patch = Patch::Merge(json!({
                "metadata": {"uid": pod.metadata.uid},
                "status": {"extendedResourceClaimStatus": status},
            }));
            let pods = self.api(pod.metadata.namespace.as_deref().unwrap_or_default());
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let params = PatchParams::default();
            let patched = pods.patch_status(name, &params, &patch).await;
            patched.map(|_| ()).map_err(write_error)
        })
    }
}

/// The fields the scheduler owns; one that is gone is taken away.
fn status(claim: &ResourceClaim) -> Value {
    let status = claim.status.clone().unwrap_or_default();
    let mut fields = json!({"allocation": status.allocation, "reservedFor": status.reserved_for});
    // Devices are the drivers' to report: touched only when the allocation goes.
    if status.allocation.is_none() {
        fields["devices"] = Value::Null;
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_keeps_what_drivers_say() {
        let read = |value: Value| serde_json::from_value::<ResourceClaim>(value).expect("a claim");
        let allocated = read(
            json!({"metadata": {}, "spec": {}, "status": {"allocation": {}, "reservedFor": [],
            "devices": [{"driver": "d", "pool": "p", "device": "x"}]}}),
        );
        assert_eq!(
            status(&allocated),
            json!({"allocation": {}, "reservedFor": []})
        );
        let free = read(json!({"metadata": {}, "spec": {}}));
        assert_eq!(
            status(&free),
            json!({"allocation": null, "reservedFor": null, "devices": null})
        );
    }
}
