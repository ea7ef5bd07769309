//! The node's Lease: the heartbeat that costs next to nothing.
//!
//! Owns: `kube-node-lease/<node>`. Upstream: `k8s.io/component-helpers/apimachinery/lease`, v1.36.

use std::sync::Arc;
use std::time::Duration;

use component_base::clock::Clock;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, OwnerReference};
use kube::api::{Api, PostParams};
use tokio_util::sync::CancellationToken;

use crate::node::NodeState;

const NAMESPACE: &str = "kube-node-lease";
/// A lease is renewed when a quarter of it is over; upstream: `nodeLeaseRenewIntervalFraction`.
const RENEW_FRACTION: f64 = 0.25;
const MAX_UPDATE_RETRIES: usize = 5;
const FIRST_RETRY: Duration = Duration::from_millis(200);
const MAX_RETRY: Duration = Duration::from_secs(7);

struct Controller {
    api: Api<Lease>,
    node: Arc<NodeState>,
    duration_seconds: i32,
    clock: Clock,
    latest: Option<Lease>,
}

impl Controller {
    fn renewed(&self, base: Option<&Lease>) -> Lease {
        let mut lease = base.cloned().unwrap_or_default();
        lease.metadata.name = Some(self.node.name.clone());
        lease.metadata.namespace = Some(NAMESPACE.to_owned());
        let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
        spec.holder_identity = Some(self.node.name.clone());
        spec.lease_duration_seconds = Some(self.duration_seconds);
        spec.renew_time = Some(MicroTime(self.clock.now()));
        // With an owner, the lease goes when the node goes.
        if lease
            .metadata
            .owner_references
            .as_ref()
            .is_none_or(Vec::is_empty)
            && let Some(node) = self.node.node.load().as_ref()
            && let Some(uid) = node.metadata.uid.clone()
        {
            lease.metadata.owner_references = Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Node".to_owned(),
                name: self.node.name.clone(),
                uid,
                ..OwnerReference::default()
            }]);
        }
        lease
    }

    async fn ensure(&mut self) -> kube::Result<()> {
        if let Some(lease) = self.api.get_opt(&self.node.name).await? {
            self.latest = Some(lease);
            return Ok(());
        }
        let lease = self.renewed(None);
        if lease.metadata.owner_references.is_none() {
            // Without its node the lease would stay for ever: the next round makes it.
            return Ok(());
        }
        self.latest = Some(self.api.create(&PostParams::default(), &lease).await?);
        Ok(())
    }

    async fn sync(&mut self) -> kube::Result<()> {
        if self.latest.is_none() {
            self.ensure().await?;
        }
        let mut last = Ok(());
        for _ in 0..MAX_UPDATE_RETRIES {
            let Some(base) = &self.latest else {
                return Ok(());
            };
            match self
                .api
                .replace(
                    &self.node.name,
                    &PostParams::default(),
                    &self.renewed(Some(base)),
                )
                .await
            {
                Ok(lease) => {
                    self.latest = Some(lease);
                    return Ok(());
                }
                Err(kube::Error::Api(e)) if e.code == 409 || e.code == 404 => {
                    self.latest = None;
                    self.ensure().await?;
                    last = Err(kube::Error::Api(e));
                }
                Err(error) => return Err(error),
            }
        }
        last
    }
}

/// Renews until `shutdown`.
pub async fn run(
    client: kube::Client,
    node: Arc<NodeState>,
    duration_seconds: i32,
    clock: Clock,
    shutdown: CancellationToken,
) {
    let api = Api::namespaced(client, NAMESPACE);
    let interval = Duration::from_secs_f64(f64::from(duration_seconds) * RENEW_FRACTION);
    let mut controller = Controller {
        api,
        node,
        duration_seconds,
        clock,
        latest: None,
    };
    let mut retry = FIRST_RETRY;
    loop {
        // A request that hangs must not cost the lease.
        let outcome = tokio::select! {
            () = shutdown.cancelled() => return,
            outcome = tokio::time::timeout(interval, controller.sync()) => outcome,
        };
        let wait = match outcome {
            Ok(Ok(())) => {
                retry = FIRST_RETRY;
                if controller.latest.is_some() {
                    interval.mul_f64(1.0 + 0.04 * rand::random::<f64>())
                } else {
                    Duration::from_secs(1)
                }
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "failed to update lease");
                retry = (retry * 2).min(MAX_RETRY).min(interval);
                retry
            }
            Err(_) => {
                tracing::warn!("failed to update lease: no answer in time");
                FIRST_RETRY
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}
