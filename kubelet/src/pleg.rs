//! Pod lifecycle events: what changed in the runtime since it was last looked at.
//!
//! Owns: [`diff`], pure, and the task that follows the runtime's own events. A full look at everything is only the
//! fallback: every five minutes, or after events were lost. Upstream: `pkg/kubelet/pleg`, v1.36.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use runtime::api::{ContainerState, RuntimeEvent, SandboxState};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::kuberuntime::RuntimeManager;
use crate::metrics;
use crate::pending::Pending;
use crate::pod_status::PodStatus;

/// How often everything is looked at without a cause.
const RELIST_PERIOD: Duration = Duration::from_secs(300);

/// What is compared of a pod.
type Snapshot = BTreeMap<String, ContainerOrSandbox>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ContainerOrSandbox {
    Container(ContainerState),
    Sandbox(SandboxState),
}

fn snapshot(pods: &BTreeMap<String, PodStatus>) -> BTreeMap<String, Snapshot> {
    pods.iter()
        .map(|(uid, pod)| {
            let containers = pod
                .containers
                .iter()
                .map(|c| (c.id.clone(), ContainerOrSandbox::Container(c.state)));
            let sandboxes = pod
                .sandboxes
                .iter()
                .map(|s| (s.id.clone(), ContainerOrSandbox::Sandbox(s.state)));
            (uid.clone(), containers.chain(sandboxes).collect())
        })
        .collect()
}

/// The pods that differ.
fn diff(old: &BTreeMap<String, Snapshot>, new: &BTreeMap<String, Snapshot>) -> BTreeSet<String> {
    old.keys()
        .chain(new.keys())
        .filter(|uid| old.get(*uid) != new.get(*uid))
        .cloned()
        .collect()
}

/// Follows the runtime until `shutdown`.
pub async fn run(
    runtime: Arc<RuntimeManager>,
    mut events: broadcast::Receiver<RuntimeEvent>,
    out: Arc<Pending<String>>,
    shutdown: CancellationToken,
) {
    let mut last = BTreeMap::new();
    let mut last_relist: Option<Instant> = None;
    let mut ticker = tokio::time::interval(RELIST_PERIOD);
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let relist = tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticker.tick() => true,
            event = events.recv() => match event {
                Ok(event) => {
                    let pod_uid = match event {
                        RuntimeEvent::ContainerStarted { pod_uid, .. }
                        | RuntimeEvent::ContainerExited { pod_uid, .. }
                        | RuntimeEvent::SandboxReady { pod_uid, .. }
                        | RuntimeEvent::SandboxNotReady { pod_uid, .. } => pod_uid,
                        // Who asked for it knows, or a client of the CRI did: then what follows from it is told as above.
                        RuntimeEvent::ContainerCreated { .. }
                        | RuntimeEvent::ContainerRemoved { .. }
                        | RuntimeEvent::SandboxStopped { .. }
                        | RuntimeEvent::SandboxRemoved { .. } => continue,
                    };
                    out.add(pod_uid);
                    false
                }
                Err(broadcast::error::RecvError::Lagged(lost)) => {
                    tracing::warn!(lost, "runtime events were lost, looking at everything again");
                    metrics::PLEG_EVENTS.inc_by(lost);
                    true
                }
                Err(broadcast::error::RecvError::Closed) => return,
            },
        };
        if !relist {
            continue;
        }
        let begin = Instant::now();
        if let Some(earlier) = last_relist.replace(begin) {
            metrics::PLEG_RELIST_INTERVAL.observe((begin - earlier).as_secs_f64());
        }
        match runtime.pods().await {
            Ok(pods) => {
                let now = snapshot(&pods);
                for pod_uid in diff(&last, &now) {
                    out.add(pod_uid);
                }
                last = now;
                metrics::PLEG_RELIST.observe(begin.elapsed().as_secs_f64());
                metrics::PLEG_LAST_SEEN.set(jiff::Timestamp::now().as_second());
            }
            Err(error) => tracing::error!(%error, "GenericPLEG: unable to retrieve pods"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed() {
        let one = |state| {
            BTreeMap::from([(
                "u".to_owned(),
                BTreeMap::from([("c".to_owned(), ContainerOrSandbox::Container(state))]),
            )])
        };
        let (running, exited) = (one(ContainerState::Running), one(ContainerState::Exited));
        assert!(diff(&running, &running).is_empty());
        assert_eq!(diff(&running, &exited), BTreeSet::from(["u".to_owned()]));
        assert_eq!(
            diff(&running, &BTreeMap::new()),
            BTreeSet::from(["u".to_owned()])
        );
    }
}
