//! What the crate `dra` is told and asks of the node: metrics, pods that must hear of their devices, the node's ResourceSlices, and drivers that
//! make themselves known.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ::dra::{Manager, Observer, Operation, Slices};
use async_trait::async_trait;
use csi::registration::{HandlerError, PluginHandler};
use k8s_openapi::api::resource::v1::ResourceSlice;
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGaugeVec, opts};

use crate::metrics;
use crate::pod_workers::PodWorkers;

/// The label of the count over all drivers. Upstream: `DRAResourceClaimsInUseAnyDriver`.
const ANY_DRIVER: &str = "<any>";

/// Counts, and wakes pods whose devices fall sick.
pub struct Watcher {
    pub workers: Arc<PodWorkers>,
    /// Statuses tell of devices.
    pub tell_health: bool,
}

impl Observer for Watcher {
    fn operated(&self, operation: Operation, failed: bool, took: Duration) {
        let failed = if failed { "true" } else { "false" };
        metrics::DRA_OPERATIONS_DURATION
            .with_label_values(&[operation.as_str(), failed])
            .observe(took.as_secs_f64());
    }

    fn called(&self, driver: &str, method: &str, code: &str, took: Duration) {
        metrics::DRA_GRPC_OPERATIONS_DURATION
            .with_label_values(&[driver, method, code])
            .observe(took.as_secs_f64());
    }

    fn skipped(&self, operation: Operation, driver: &str) {
        let counter = match operation {
            Operation::Prepare => &metrics::DRA_NODE_PREPARE_SKIPS,
            Operation::Unprepare => &metrics::DRA_NODE_UNPREPARE_SKIPS,
        };
        counter.with_label_values(&[driver]).inc();
    }

    fn health_changed(&self, pod: &str) {
        self.workers.wake(pod);
    }

    fn tells_health(&self) -> bool {
        self.tell_health
    }
}

/// The node's slices, by name of the node.
pub struct ClaimSlices {
    pub slices: Api<ResourceSlice>,
    pub node: String,
}

#[async_trait]
impl Slices for ClaimSlices {
    async fn wipe(&self, driver: Option<&str>) -> Result<(), String> {
        let mut fields = format!("spec.nodeName={}", self.node);
        if let Some(driver) = driver {
            fields.push_str(&format!(",spec.driver={driver}"));
        }
        let wanted = ListParams::default().fields(&fields);
        match self
            .slices
            .delete_collection(&DeleteParams::default(), &wanted)
            .await
        {
            Ok(_) => Ok(()),
            // An API server that does not serve them has none.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Drivers that make themselves known in `plugins_registry`.
pub struct DriverRegistry(pub Arc<Manager>);

#[async_trait]
impl PluginHandler for DriverRegistry {
    fn validate(&self, name: &str, endpoint: &Path, versions: &[String]) -> Result<(), String> {
        let valid = self.0.validate(name, endpoint, versions);
        valid.map_err(|error| error.to_string())
    }

    async fn register(
        &self,
        name: &str,
        endpoint: &Path,
        versions: &[String],
    ) -> Result<(), HandlerError> {
        Ok(self.0.register(name, endpoint, versions)?)
    }

    async fn deregister(&self, name: &str, endpoint: &Path) {
        self.0.deregister(name, endpoint).await;
    }
}

/// `dra_resource_claims_in_use`, counted when somebody asks.
struct ClaimsInUse {
    manager: Arc<Manager>,
    gauge: IntGaugeVec,
}

impl Collector for ClaimsInUse {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // A driver that is gone and has no claims is not counted any more.
        self.gauge.reset();
        let (by_driver, all) = self.manager.in_use();
        let by_driver = by_driver.iter().map(|(driver, n)| (driver.as_str(), *n));
        for (driver, count) in by_driver.chain([(ANY_DRIVER, all)]) {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.gauge.with_label_values(&[driver]).set(count);
        }
        self.gauge.collect()
    }
}

/// Adds the metric to those of the process.
pub fn register_metric(manager: &Arc<Manager>) {
    let gauge = IntGaugeVec::new(
        opts!(
            "dra_resource_claims_in_use",
            "The number of ResourceClaims that are currently in use on the node, by driver name (driver_name label value) and across all drivers (special value <any> for driver_name). Note that the sum of all by-driver counts is not the total number of in-use ResourceClaims because the same ResourceClaim might use devices from different drivers. Instead, use the count for the <any> driver_name."
        ),
        &["driver_name"],
    );
    let registered = gauge.and_then(|gauge| {
        let manager = manager.clone();
        prometheus::register(Box::new(ClaimsInUse { manager, gauge }))
    });
    if let Err(error) = registered {
        tracing::error!(%error, "cannot register the metric of claims");
    }
}
