//! `kubelet_volume_stats_*`: what the file systems behind the claims of this node's pods hold.
//!
//! Upstream: `pkg/kubelet/metrics/collectors/volume_stats.go`.

use std::collections::BTreeMap;

use super::super::stats::{FsFigures, claim_of};
use super::exposition::Page;
use crate::cm::machine::fs_stats;
use crate::pod;
use crate::server::{DriverUsages, ServerContext};

/// Renders every claim once, whichever pods have it. `drivers`: what drivers say of theirs. Blocks.
pub(super) fn render(context: &dyn ServerContext, drivers: &DriverUsages) -> String {
    let mut claims = BTreeMap::new();
    for pod in context.pods() {
        let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
        for volume in volumes {
            let Some(claim) = claim_of(&pod, volume) else {
                continue;
            };
            let uid = pod::uid(&pod);
            let figures = match drivers.get(&(uid.to_owned(), volume.name.clone())) {
                Some(said) => said.as_ref().map(FsFigures::of_driver),
                None => {
                    let directory = context.claim_directory(uid, &volume.name);
                    let stats = directory.and_then(|dir| fs_stats(&dir).ok());
                    stats.map(FsFigures::of_file_system)
                }
            };
            if let Some(figures) = figures {
                claims.insert(claim, figures);
            }
        }
    }
    page(&claims)
}

/// By (name, namespace).
fn page(claims: &BTreeMap<(String, String), FsFigures>) -> String {
    type Value = fn(&FsFigures) -> u64;
    let metrics: [(&'static str, &str, Value); 6] = [
        (
            "kubelet_volume_stats_available_bytes",
            "[ALPHA] Number of available bytes in the volume",
            |f| f.fs.available_bytes,
        ),
        (
            "kubelet_volume_stats_capacity_bytes",
            "[ALPHA] Capacity in bytes of the volume",
            |f| f.fs.capacity_bytes,
        ),
        (
            "kubelet_volume_stats_inodes",
            "[ALPHA] Maximum number of inodes in the volume",
            |f| f.fs.inodes,
        ),
        (
            "kubelet_volume_stats_inodes_free",
            "[ALPHA] Number of free inodes in the volume",
            |f| f.fs.inodes_free,
        ),
        (
            "kubelet_volume_stats_inodes_used",
            "[ALPHA] Number of used inodes in the volume",
            |f| f.inodes_used,
        ),
        (
            "kubelet_volume_stats_used_bytes",
            "[ALPHA] Number of used bytes in the volume",
            |f| f.used_bytes,
        ),
    ];
    let mut page = Page::default();
    if claims.is_empty() {
        return page.finish();
    }
    for (name, help, value) in metrics {
        let mut family = page.family(name, "gauge", help);
        for ((claim, namespace), stats) in claims {
            let labels = [
                ("namespace", namespace.as_str()),
                ("persistentvolumeclaim", claim.as_str()),
            ];
            family.sample(&labels, value(stats) as f64, None);
        }
    }
    page.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_has_six_numbers() {
        let stats = FsFigures::of_file_system(crate::cm::machine::FsStats {
            capacity_bytes: 100,
            available_bytes: 40,
            inodes: 10,
            inodes_free: 7,
        });
        let text = page(&BTreeMap::from([(("c".to_owned(), "n".to_owned()), stats)]));
        for line in [
            "kubelet_volume_stats_available_bytes{namespace=\"n\",persistentvolumeclaim=\"c\"} 40",
            "kubelet_volume_stats_used_bytes{namespace=\"n\",persistentvolumeclaim=\"c\"} 60",
            "kubelet_volume_stats_inodes_used{namespace=\"n\",persistentvolumeclaim=\"c\"} 3",
        ] {
            assert!(text.contains(line), "{text}");
        }
        assert_eq!(text.matches("# TYPE ").count(), 6);
        assert!(page(&BTreeMap::new()).is_empty());
    }
}
