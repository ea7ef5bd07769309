//! The conflicts at `/metrics`. Upstream: pkg/controller/volume/selinuxwarning/metrics.go, v1.37.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use component_base::metrics::{RegisterError, Registry, make};
use prometheus::GaugeVec;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;

use super::cache::Volumes;

/// Shows conflicts when it is asked.
struct Conflicts {
    volumes: Weak<Mutex<Volumes>>,
    conflicts: GaugeVec,
}

impl Conflicts {
    fn new(volumes: &Arc<Mutex<Volumes>>) -> Result<Self, RegisterError> {
        let labels = [
            "property",
            "pod1_namespace",
            "pod1_name",
            "pod1_value",
            "pod2_namespace",
            "pod2_name",
            "pod2_value",
        ];
        Ok(Self {
            volumes: Arc::downgrade(volumes),
            conflicts: make::gauges(
                "selinux_warning_controller_selinux_volume_conflict",
                "Conflict between two Pods using the same volume",
                &labels,
            )?,
        })
    }
}

/// Shows the conflicts.
///
/// # Errors
/// The registry shows others already.
pub(super) fn register(
    registry: &Registry,
    volumes: &Arc<Mutex<Volumes>>,
) -> Result<(), RegisterError> {
    registry.register(Box::new(Conflicts::new(volumes)?))
}

impl Collector for Conflicts {
    fn desc(&self) -> Vec<&Desc> {
        self.conflicts.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Some(volumes) = self.volumes.upgrade() else {
            return Vec::new();
        };
        let found = volumes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .conflicts();
        self.conflicts.reset();
        for conflict in &found {
            self.conflicts
                .with_label_values(&[
                    conflict.property.name(),
                    &*conflict.pod.namespace,
                    &*conflict.pod.name,
                    &*conflict.value,
                    &*conflict.other.namespace,
                    &*conflict.other.name,
                    &*conflict.other_value,
                ])
                .set(1.0);
        }
        self.conflicts.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::cache::Use;
    use super::*;
    use controller_runtime::ObjectKey;

    #[test]
    fn a_conflict_is_shown_while_it_lasts() {
        let volumes = Arc::new(Mutex::new(Volumes::default()));
        let collector = Conflicts::new(&volumes).unwrap();
        let used = |label: &str| Use {
            label: label.into(),
            change_policy: "MountOption".into(),
        };
        let (a, b) = (ObjectKey::new("ns", "a"), ObjectKey::new("other", "b"));
        {
            let mut volumes = volumes.lock().unwrap();
            volumes.add("v", None, &a, used(":::s1"));
            volumes.add("v", None, &b, used(":::s2"));
        }
        let shown = || -> Vec<String> {
            let families = collector.collect();
            let metrics = families.iter().flat_map(|family| family.get_metric());
            let line = |metric: &prometheus::proto::Metric| {
                let labels = metric.get_label().iter().map(|label| label.value());
                labels.collect::<Vec<_>>().join(",")
            };
            let mut lines: Vec<_> = metrics.map(line).collect();
            lines.sort();
            lines
        };
        // Names, namespaces, values; the property last, as labels are sorted by name.
        let expect = [
            "a,ns,:::s1,b,other,:::s2,SELinuxLabel",
            "b,other,:::s2,a,ns,:::s1,SELinuxLabel",
        ];
        assert_eq!(shown(), expect);
        volumes.lock().unwrap().remove(&a);
        assert!(shown().is_empty());
    }
}
