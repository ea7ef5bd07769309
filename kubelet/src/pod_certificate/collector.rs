//! `kubelet_podcertificate_states`, counted when somebody asks.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGaugeVec, opts};

use super::PodCertificateManager;

struct States {
    manager: PodCertificateManager,
    gauge: IntGaugeVec,
}

impl Collector for States {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.gauge.reset();
        for ((signer, state), count) in self.manager.report() {
            self.gauge
                .with_label_values(&[signer.as_str(), state])
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        self.gauge.collect()
    }
}

/// Adds the metric to those of the process.
pub fn register(manager: &PodCertificateManager) {
    let help = "Gauge vector reporting the number of pod certificate projected volume sources, faceted by signer_name and state.";
    let gauge = IntGaugeVec::new(
        opts!("kubelet_podcertificate_states", help),
        &["signer_name", "state"],
    );
    let registered = gauge.and_then(|gauge| {
        prometheus::register(Box::new(States {
            manager: manager.clone(),
            gauge,
        }))
    });
    if let Err(error) = registered {
        tracing::error!(%error, "cannot register the metric of pods' certificates");
    }
}
