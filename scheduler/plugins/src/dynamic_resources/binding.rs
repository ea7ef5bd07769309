//! PreBind: what Reserve chose is written, and devices that have to be made ready are waited for.

use std::sync::Arc;
use std::time::Duration;

use component_helpers::resource_claim::{FINALIZER, consumer, is_reserved_for_pod};
use framework::devices::claim_key;
use framework::{ApiWriteError, ClaimWriter, EventRecord, PodInfo};
use futures::future::{Either, select};
use k8s_openapi::api::core::v1::PodExtendedResourceClaimStatus;
use k8s_openapi::api::resource::v1::{AllocationResult, ResourceClaim};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::DynamicResources;
use super::claims::{allocation, name, results};
use super::conditions::{
    BindingFailed, conditional_drivers, has_conditions, is_ready, is_timed_out, missing, time_left,
};
use super::extended::is_in_memory;
use super::state::State;

/// How often a write that met another one is tried. Upstream: `retry.DefaultRetry`.
pub(super) const TRIES: u32 = 5;
/// The first wait between them; each is as long as the last. Upstream: `retry.DefaultRetry`.
const WAIT: Duration = Duration::from_millis(10);

/// Why claims could not be bound. The pod is tried again.
#[derive(Debug, thiserror::Error)]
pub(super) enum BindError {
    /// The API server did not take it.
    #[error("{what} {claim}: {source}")]
    Write {
        what: &'static str,
        claim: String,
        #[source]
        source: ApiWriteError,
    },
    /// Somebody else was there.
    #[error("claim {claim} got {what} in the meantime")]
    Meanwhile { claim: String, what: &'static str },
    /// Nobody writes claims here.
    #[error("there is no API to write claims to")]
    NoWriter,
    /// No container has anything of the claim for extended resources.
    #[error("nil or empty request mappings, no update of pod {0} ExtendedResourceClaimStatus")]
    NoMappings(String),
    /// No claim was made ready for the node.
    #[error("extended resource claim not found for node {0}")]
    NoSpecialClaim(String),
    /// A claim is gone.
    #[error("resource claim {0} not found")]
    Gone(String),
    #[error(transparent)]
    Failed(#[from] BindingFailed),
    /// Devices were not ready in time.
    #[error("device binding timeout: {0}")]
    Timeout(String),
}

impl BindError {
    /// Is it known that nothing was written?
    fn is_certain(&self) -> bool {
        let failed = |error: &ApiWriteError| matches!(error, ApiWriteError::Failed(_));
        !matches!(self, BindError::Write { source, .. } if failed(source))
    }

    /// Upstream's label of the outcome.
    fn label(&self) -> &'static str {
        match self {
            BindError::Failed(_) => "failure",
            BindError::Timeout(_) => "timeout",
            _ => "error",
        }
    }
}

impl DynamicResources {
    /// Binds all claims, and waits for their devices.
    ///
    /// # Errors
    /// See [`BindError`].
    pub(super) async fn bind_claims(
        &self,
        state: &State,
        pod: &Arc<PodInfo>,
        node_name: &str,
    ) -> Result<(), BindError> {
        let count = state.progress().claims.len();
        for index in 0..count {
            let claim = Arc::clone(&state.progress().claims[index]);
            if !is_reserved_for_pod(&pod.pod, &claim) {
                self.bind_claim(state, index, pod, node_name).await?;
            }
        }
        self.wait_for_devices(state, pod, node_name).await?;
        let pending = std::mem::take(&mut state.progress().pending);
        for id in &pending {
            self.devices().end_allocation(id);
        }
        Ok(())
    }

    async fn bind_claim(
        &self,
        state: &State,
        index: usize,
        pod: &Arc<PodInfo>,
        node_name: &str,
    ) -> Result<(), BindError> {
        let (mut claim, chosen) = {
            let progress = state.progress();
            (
                Arc::clone(&progress.claims[index]),
                progress.reserved[index].clone(),
            )
        };
        let special = state.is_special(index);
        if special && chosen.is_none() {
            // Device plugins have all of it.
            return Ok(());
        }
        let api = self.handle.api();
        let writer = api.claims().ok_or(BindError::NoWriter)?;
        if special && is_in_memory(&claim) {
            claim = Arc::new(self.create(writer, state, node_name).await?);
            state.progress().claims[index] = Arc::clone(&claim);
        }
        state.progress().uncertain = Some(index);
        let written = self.write(writer, &claim, chosen, pod).await;
        // Cancelled before this line, or failed in a way that says nothing: it may have been taken all the same.
        if written.as_ref().err().is_none_or(BindError::is_certain) {
            state.progress().uncertain = None;
        }
        let written = Arc::new(written?);
        state.progress().claims[index] = Arc::clone(&written);
        if let Err(error) = self.devices().assume(Arc::clone(&written), special) {
            tracing::debug!(%error, "Claim not stored in assume cache");
        }
        if special {
            self.tell_pod(writer, state, pod, &written, node_name)
                .await?;
        }
        Ok(())
    }

    async fn create(
        &self,
        writer: &dyn ClaimWriter,
        state: &State,
        node_name: &str,
    ) -> Result<ResourceClaim, BindError> {
        let special = state
            .progress()
            .nodes
            .get(node_name)
            .and_then(|n| n.special.clone());
        let Some(special) = special else {
            return Err(BindError::NoSpecialClaim(node_name.to_owned()));
        };
        let mut claim = (*special).clone();
        (claim.metadata.name, claim.metadata.uid, claim.status) = (None, None, None);
        let created = writer.create(&claim).await;
        self.handle.observe_claim_creation(created.is_ok());
        created.map_err(|source| BindError::Write {
            what: "create claim for extended resources",
            claim: claim.metadata.generate_name.unwrap_or_default(),
            source,
        })
    }

    /// Writes allocation and reservation; looks again when somebody else wrote meanwhile.
    async fn write(
        &self,
        writer: &dyn ClaimWriter,
        claim: &ResourceClaim,
        chosen: Option<AllocationResult>,
        pod: &Arc<PodInfo>,
    ) -> Result<ResourceClaim, BindError> {
        let (key, mut claim) = (claim_key(claim), claim.clone());
        let failed = |what: &'static str| {
            let claim = key.clone();
            move |source| BindError::Write {
                what,
                claim,
                source,
            }
        };
        let mut tries = 1;
        loop {
            match self.write_once(writer, &claim, &chosen, pod).await {
                Err(BindError::Write {
                    source: ApiWriteError::Conflict(_),
                    ..
                }) if tries < TRIES => {
                    tries += 1;
                    self.handle.sleep(WAIT).await;
                    let namespace = claim.metadata.namespace.clone().unwrap_or_default();
                    let fresh = writer.get(&namespace, name(&claim)).await;
                    claim = fresh.map_err(failed("get updated claim after conflict"))?;
                }
                done => return done,
            }
        }
    }

    async fn write_once(
        &self,
        writer: &dyn ClaimWriter,
        claim: &ResourceClaim,
        chosen: &Option<AllocationResult>,
        pod: &Arc<PodInfo>,
    ) -> Result<ResourceClaim, BindError> {
        let key = claim_key(claim);
        let meanwhile = |what: &'static str| BindError::Meanwhile {
            claim: key.clone(),
            what,
        };
        let failed = |what: &'static str| {
            let claim = key.clone();
            move |source| BindError::Write {
                what,
                claim,
                source,
            }
        };
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(meanwhile("deleted"));
        }
        let mut claim = claim.clone();
        if let Some(chosen) = chosen {
            if allocation(&claim).is_some() {
                return Err(meanwhile("allocated elsewhere"));
            }
            let finalizers = claim.metadata.finalizers.get_or_insert_default();
            if !finalizers.iter().any(|f| f == FINALIZER) {
                finalizers.push(FINALIZER.to_owned());
                let written = writer.write_finalizers(&claim).await;
                claim = written.map_err(failed("add finalizer to claim"))?;
            }
            claim.status.get_or_insert_default().allocation = Some(chosen.clone());
        }
        let status = claim.status.get_or_insert_default();
        let reserved = status.reserved_for.get_or_insert_default();
        reserved.push(consumer(&pod.pod));
        if self.features.device_binding_conditions {
            let Some(allocation) = &mut status.allocation else {
                return Err(meanwhile("deallocated elsewhere"));
            };
            allocation
                .allocation_timestamp
                .get_or_insert_with(|| Time(self.handle.wall_time()));
        }
        let what = match chosen {
            Some(_) => "add allocation and reservation to claim",
            None => "add reservation to claim",
        };
        writer.write_status(&claim).await.map_err(failed(what))
    }

    async fn tell_pod(
        &self,
        writer: &dyn ClaimWriter,
        state: &State,
        pod: &Arc<PodInfo>,
        claim: &ResourceClaim,
        node_name: &str,
    ) -> Result<(), BindError> {
        let mappings = state
            .progress()
            .nodes
            .get(node_name)
            .map(|n| n.mappings.clone());
        let request_mappings = mappings.unwrap_or_default();
        if request_mappings.is_empty() {
            return Err(BindError::NoMappings(format!(
                "{}/{}",
                pod.namespace(),
                pod.name()
            )));
        }
        let status = PodExtendedResourceClaimStatus {
            request_mappings,
            resource_claim_name: name(claim).to_owned(),
        };
        let written = writer.write_extended_status(&pod.pod, &status).await;
        written.map_err(|source| BindError::Write {
            what: "update ExtendedResourceClaimStatus of the pod with",
            claim: claim_key(claim),
            source,
        })
    }

    async fn wait_for_devices(
        &self,
        state: &State,
        pod: &Arc<PodInfo>,
        node_name: &str,
    ) -> Result<(), BindError> {
        let claims = state.claims();
        if !self.features.device_binding_conditions
            || !claims.iter().any(|claim| has_conditions(claim))
        {
            return Ok(());
        }
        self.handle.record(EventRecord {
            regarding: Arc::clone(&pod.pod),
            related: None,
            warning: false,
            reason: "BindingConditionsPending",
            action: "Scheduling",
            note: format!("waiting for binding conditions for device on node {node_name}"),
        });
        let started = self.handle.now();
        let done = self.until_ready(state).await;
        let claims = state.claims();
        let results = claims
            .iter()
            .filter_map(|claim| allocation(claim))
            .flat_map(results);
        let drivers: Vec<&str> = results.map(|result| result.driver.as_str()).collect();
        let conditional: Vec<&str> = claims
            .iter()
            .flat_map(|claim| conditional_drivers(claim))
            .collect();
        let label = done.as_ref().map_or_else(BindError::label, |()| "success");
        self.handle.observe_binding_conditions(
            label,
            self.handle.now().saturating_duration_since(started),
            &drivers,
            &conditional,
        );
        if let Err(error) = &done {
            let devices: Vec<String> = claims.iter().map(|claim| missing(claim)).collect();
            tracing::info!(pod = pod.name(), namespace = pod.namespace(), %error, devices = devices.join("; "), "Devices were not made ready");
        }
        done
    }

    async fn until_ready(&self, state: &State) -> Result<(), BindError> {
        let keys: Vec<String> = state
            .claims()
            .iter()
            .map(|claim| claim_key(claim))
            .collect();
        let mut watch = self.devices().watch(keys);
        let started = self.handle.now();
        loop {
            let Some(left) = self.look(state)? else {
                return Ok(());
            };
            let remaining = self
                .binding_timeout
                .saturating_sub(self.handle.now().saturating_duration_since(started));
            let changed = std::pin::pin!(watch.changed());
            match select(changed, self.handle.sleep(left.min(remaining))).await {
                // The claims are looked at again: one may have been allocated long ago.
                Either::Left(_) => {}
                Either::Right(_) if left < remaining => {}
                Either::Right(_) => {
                    return Err(BindError::Timeout("context deadline exceeded".to_owned()));
                }
            }
        }
    }

    /// Looks at the claims as they are now: `None` when all devices are ready, else how long they may take.
    fn look(&self, state: &State) -> Result<Option<Duration>, BindError> {
        let mut progress = state.progress();
        let devices = self.devices().read();
        let mut left = None;
        for claim in &mut progress.claims {
            if is_in_memory(claim) {
                continue;
            }
            let namespace = claim.metadata.namespace.clone().unwrap_or_default();
            let Some(current) = devices.claim(&namespace, name(claim)) else {
                return Err(BindError::Gone(claim_key(claim)));
            };
            *claim = Arc::clone(current);
            if is_ready(claim)? {
                continue;
            }
            if is_timed_out(claim, self.binding_timeout, self.handle.wall_time()) {
                return Err(BindError::Timeout(format!("claim={}", name(claim))));
            }
            let of_claim = time_left(claim, self.binding_timeout, self.handle.wall_time());
            let of_claim = of_claim.unwrap_or(self.binding_timeout);
            left = Some(left.map_or(of_claim, |left: Duration| left.min(of_claim)));
        }
        Ok(left)
    }
}
