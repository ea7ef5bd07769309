//! What drivers say their volumes hold. Upstream: pkg/volume/csi/csi_metrics.go.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use csi::VolumeUsage;

use super::data::{self, Published};
use super::{CsiVolumes, MOUNT, NAME};

/// How long an answer stands; upstream: `volumeStatsAggPeriod`.
const AGE_MAX: Duration = Duration::from_secs(60);
/// How long whoever asks waits for drivers; what they say later is there the next time.
const PATIENCE: Duration = Duration::from_secs(5);

/// By pod and directory; when it was said. Bounded by the volumes of the node.
pub(super) type Answers = HashMap<(String, String), (Instant, Option<VolumeUsage>)>;

impl CsiVolumes {
    /// Of each CSI volume of a pod, by the name of its directory; `None`: the driver does not say.
    pub async fn usage(self: &Arc<Self>, uid: &str) -> HashMap<String, Option<VolumeUsage>> {
        let (layout, pod) = (self.layout.clone(), uid.to_owned());
        let found = crate::threads::spawn_blocking(move || data::of_pod(&layout, &pod)).await;
        let found = found.unwrap_or_default();
        let names: Vec<String> = found.iter().map(|volume| volume.name.clone()).collect();
        let (this, pod) = (self.clone(), uid.to_owned());
        let asked = tokio::spawn(async move {
            let all = found.into_iter().map(|volume| this.ask(&pod, volume));
            futures::future::join_all(all).await;
        });
        // It goes on without us.
        let _ = tokio::time::timeout(PATIENCE, asked).await;
        let memory = self.memory();
        let said = |name: String| {
            let (_, usage) = memory.usage.get(&(uid.to_owned(), name.clone()))?;
            Some((name, *usage))
        };
        let known: HashMap<_, _> = names.iter().cloned().filter_map(said).collect();
        let unknown = names.into_iter().filter(|n| !known.contains_key(n));
        let unknown: Vec<_> = unknown.map(|name| (name, None)).collect();
        known.into_iter().chain(unknown).collect()
    }

    async fn ask(&self, uid: &str, volume: Published) {
        let at = (uid.to_owned(), volume.name.clone());
        {
            let mut memory = self.memory();
            let fresh = |(at, _): &(Instant, Option<VolumeUsage>)| at.elapsed() < AGE_MAX;
            if memory.usage.get(&at).is_some_and(fresh) {
                return;
            }
            // Nobody asks a second time meanwhile; and what is gone is forgotten.
            let old = memory.usage.get(&at).and_then(|(_, usage)| *usage);
            memory
                .usage
                .retain(|_, (at, _)| at.elapsed() < AGE_MAX * 10);
            memory.usage.insert(at.clone(), (Instant::now(), old));
        }
        let key = volume.data.key();
        let target = match volume.block {
            true => self.layout.csi_block(&volume.name).published.join(uid),
            false => self.layout.volume(uid, NAME, &volume.name).join(MOUNT),
        };
        let usage = match self.drivers.client(&key.driver) {
            Ok(client) => match client.capabilities().await {
                Ok(can) if can.volume_stats() => client.stats(&key.handle, &target).await,
                Ok(_) => return,
                Err(error) => Err(error),
            },
            // It will say it when it is back.
            Err(_) => return,
        };
        match usage {
            Ok(usage) => {
                self.memory()
                    .usage
                    .insert(at, (Instant::now(), Some(usage)));
            }
            Err(error) => {
                tracing::debug!(uid, volume = volume.name, %error, "Failed to calculate volume metrics");
            }
        }
    }
}
