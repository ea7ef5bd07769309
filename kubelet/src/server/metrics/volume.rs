//! `kubelet_volume_stats_*`: what the file systems behind the claims of this node's pods hold.
//!
//! Upstream: `pkg/kubelet/metrics/collectors/volume_stats.go`.

use std::collections::BTreeMap;

use super::super::stats::claim_of;
use super::exposition::Page;
use crate::cm::machine::{FsStats, fs_stats};
use crate::pod;
use crate::server::ServerContext;

/// Renders every claim once, whichever pods have it. Blocks.
pub(super) fn render(context: &dyn ServerContext) -> String {
    let mut claims = BTreeMap::new();
    for pod in context.pods() {
        let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
        for volume in volumes {
            let Some(claim) = claim_of(&pod, volume) else {
                continue;
            };
            let directory = context.claim_directory(pod::uid(&pod), &volume.name);
            if let Some(stats) = directory.and_then(|dir| fs_stats(&dir).ok()) {
                claims.insert(claim, stats);
            }
        }
    }
    page(&claims)
}

/// By (name, namespace).
fn page(claims: &BTreeMap<(String, String), FsStats>) -> String {
    type Value = fn(&FsStats) -> u64;
    let metrics: [(&'static str, &str, Value); 6] = [
        (
            "kubelet_volume_stats_available_bytes",
            "[ALPHA] Number of available bytes in the volume",
            |fs| fs.available_bytes,
        ),
        (
            "kubelet_volume_stats_capacity_bytes",
            "[ALPHA] Capacity in bytes of the volume",
            |fs| fs.capacity_bytes,
        ),
        (
            "kubelet_volume_stats_inodes",
            "[ALPHA] Maximum number of inodes in the volume",
            |fs| fs.inodes,
        ),
        (
            "kubelet_volume_stats_inodes_free",
            "[ALPHA] Number of free inodes in the volume",
            |fs| fs.inodes_free,
        ),
        (
            "kubelet_volume_stats_inodes_used",
            "[ALPHA] Number of used inodes in the volume",
            |fs| fs.inodes.saturating_sub(fs.inodes_free),
        ),
        (
            "kubelet_volume_stats_used_bytes",
            "[ALPHA] Number of used bytes in the volume",
            |fs| fs.capacity_bytes.saturating_sub(fs.available_bytes),
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
        let stats = FsStats {
            capacity_bytes: 100,
            available_bytes: 40,
            inodes: 10,
            inodes_free: 7,
        };
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
