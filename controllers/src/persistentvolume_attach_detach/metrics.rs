//! Metrics of attached volumes.
//!
//! Upstream: pkg/controller/volume/attachdetach/metrics, pkg/volume/util/metrics.go, v1.37.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, Once, PoisonError, Weak};
use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, IntCounterVec, Opts, opts, register_int_counter_vec};

use super::sync::{Forced, State};
use super::volume::split_unique_name;

/// The name is made of the subsystem and a name that says it once more, as upstream's.
static FORCED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        opts!(
            "attach_detach_controller_attachdetach_controller_forced_detaches",
            "Number of times the A/D Controller performed a forced detach"
        ),
        &["reason"]
    )
    .expect("the name is registered only here")
});

/// Counts a detach that did not wait for the node.
pub fn record_forced(forced: Forced) {
    let reason = match forced {
        Forced::Timeout => "timeout",
        Forced::OutOfService => "out-of-service",
    };
    FORCED.with_label_values(&[reason]).inc();
}

/// Upstream: `GetFullQualifiedPluginNameForVolume`.
fn plugin(driver: &str) -> String {
    format!("kubernetes.io/csi:{driver}")
}

/// Counts how long a driver took.
pub fn record_operation(driver: &str, operation: &str, success: bool, took: Duration) {
    crate::persistentvolume_binder::record_operation(&plugin(driver), operation, success, took);
}

/// Counts volumes when it is asked.
struct Volumes {
    state: Weak<Mutex<State>>,
    in_use: GaugeVec,
    total: GaugeVec,
}

/// Shows the volumes of a state at `/metrics`; the first one of a process only.
pub fn register(state: &Arc<Mutex<State>>) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            GaugeVec::new(Opts::new(name, help), labels).expect("the name is right")
        };
        let volumes = Volumes {
            state: Arc::downgrade(state),
            in_use: gauge(
                "storage_count_attachable_volumes_in_use",
                "Measure number of volumes in use",
                &["node", "volume_plugin"],
            ),
            total: gauge(
                "attachdetach_controller_total_volumes",
                "Number of volumes in A/D Controller",
                &["plugin_name", "state"],
            ),
        };
        prometheus::register(Box::new(volumes)).expect("the names are registered only here");
        LazyLock::force(&FORCED);
    });
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
