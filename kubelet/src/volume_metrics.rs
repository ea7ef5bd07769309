//! `volume_manager_total_volumes`, counted when somebody asks. Upstream: pkg/kubelet/volumemanager/metrics, v1.37.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGaugeVec, opts};
use volumes::VolumeManager;

struct TotalVolumes {
    volumes: VolumeManager,
    gauge: IntGaugeVec,
}

impl Collector for TotalVolumes {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.gauge.reset();
        for (kind, (wanted, there)) in self.volumes.counts() {
            for (state, count) in [
                ("desired_state_of_world", wanted),
                ("actual_state_of_world", there),
            ] {
                self.gauge
                    .with_label_values(&[kind.as_str(), state])
                    .set(i64::try_from(count).unwrap_or(i64::MAX));
            }
        }
        self.gauge.collect()
    }
}

/// Adds the metric to those of the process.
pub fn register(volumes: &VolumeManager) {
    let gauge = IntGaugeVec::new(
        opts!(
            "volume_manager_total_volumes",
            "Number of volumes in Volume Manager"
        ),
        &["plugin_name", "state"],
    );
    let registered = gauge.and_then(|gauge| {
        let volumes = volumes.clone();
        prometheus::register(Box::new(TotalVolumes { volumes, gauge }))
    });
    if let Err(error) = registered {
        tracing::error!(%error, "cannot register the metric of volumes");
    }
}
