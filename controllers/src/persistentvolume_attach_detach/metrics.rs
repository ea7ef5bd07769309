//! Metrics of attached volumes.
//!
//! Upstream: pkg/controller/volume/attachdetach/metrics, pkg/volume/util/metrics.go, v1.37.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use component_base::metrics::{RegisterError, Registry, make};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, IntCounterVec};

use super::sync::{Forced, Measured, State};
use super::volume::split_unique_name;
use crate::storage_operations::StorageOperations;

component_base::metrics! {
    struct Families {
        /// The name is made of the subsystem and a name that says it once more, as upstream's.
        forced: IntCounterVec = make::counters(
            "attach_detach_controller_attachdetach_controller_forced_detaches",
            "Number of times the A/D Controller performed a forced detach",
            &["reason"],
        ),
    }
}

/// What is counted as it happens.
pub struct Metrics {
    families: Families,
    operations: Arc<StorageOperations>,
}

impl Metrics {
    /// # Errors
    /// The registry has those of another controller.
    pub fn register(
        registry: &Registry,
        operations: Arc<StorageOperations>,
    ) -> Result<Self, RegisterError> {
        Ok(Self {
            families: Families::register(registry)?,
            operations,
        })
    }

    /// Counts a detach that did not wait for the node.
    pub fn record_forced(&self, forced: Forced) {
        let reason = match forced {
            Forced::Timeout => "timeout",
            Forced::OutOfService => "out-of-service",
        };
        self.families.forced.with_label_values(&[reason]).inc();
    }

    /// Counts how long a driver took.
    pub fn record_operation(&self, measured: &Measured) {
        let plugin = plugin(&measured.driver);
        self.operations
            .record(&plugin, measured.operation, measured.success, measured.took);
    }
}

/// Upstream: `GetFullQualifiedPluginNameForVolume`.
fn plugin(driver: &str) -> String {
    format!("kubernetes.io/csi:{driver}")
}

/// Counts volumes when it is asked.
struct Volumes {
    state: Weak<Mutex<State>>,
    in_use: GaugeVec,
    total: GaugeVec,
}

/// Shows the volumes of a state at `/metrics`.
///
/// # Errors
/// The registry shows another's already.
pub fn register(registry: &Registry, state: &Arc<Mutex<State>>) -> Result<(), RegisterError> {
    registry.register(Box::new(Volumes {
        state: Arc::downgrade(state),
        in_use: make::gauges(
            "storage_count_attachable_volumes_in_use",
            "Measure number of volumes in use",
            &["node", "volume_plugin"],
        )?,
        total: make::gauges(
            "attachdetach_controller_total_volumes",
            "Number of volumes in A/D Controller",
            &["plugin_name", "state"],
        )?,
    }))
}

impl Collector for Volumes {
    fn desc(&self) -> Vec<&Desc> {
        let mut descriptions = self.in_use.desc();
        descriptions.extend(self.total.desc());
        descriptions
    }

    // DIFFERS: in use are the volumes that are attached for pods; upstream counts those of drivers that attach nothing, too.
    fn collect(&self) -> Vec<MetricFamily> {
        let Some(state) = self.state.upgrade() else {
            return Vec::new();
        };
        let mut in_use: HashMap<(String, String), f64> = HashMap::new();
        let mut total: HashMap<(String, &str), f64> = HashMap::new();
        {
            let state = state.lock().unwrap_or_else(PoisonError::into_inner);
            for (place, wanted) in state.desired.all() {
                let plugin = plugin(&wanted.volume.driver);
                *in_use
                    .entry((place.node.clone(), plugin.clone()))
                    .or_default() += 1.0;
                *total.entry((plugin, "desired_state_of_world")).or_default() += 1.0;
            }
            for (place, _) in state.actual.all() {
                let name = split_unique_name(&place.volume);
                let plugin = name.map_or("N/A".to_owned(), |(driver, _)| plugin(driver));
                *total.entry((plugin, "actual_state_of_world")).or_default() += 1.0;
            }
        }
        self.in_use.reset();
        self.total.reset();
        for ((node, plugin), count) in &in_use {
            self.in_use
                .with_label_values(&[node.as_str(), plugin.as_str()])
                .set(*count);
        }
        for ((plugin, state), count) in &total {
            self.total
                .with_label_values(&[plugin.as_str(), state])
                .set(*count);
        }
        let mut families = self.in_use.collect();
        families.extend(self.total.collect());
        families
    }
}
