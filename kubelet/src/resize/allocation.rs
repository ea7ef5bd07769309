//! What every pod was granted, and the resizes that wait for room.
//!
//! Owns: the resources granted to each pod and its containers (which may lag behind the spec while a resize does not
//! fit), the order in which waiting resizes are looked at, and how far each has come. Upstream:
//! `pkg/kubelet/allocation/allocation_manager.go`, v1.36.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use component_helpers::qos::{QosClass, get_pod_qos};
use component_helpers::quantity::{Amount, amount};
use component_helpers::resources::{PodResourcesOptions, ResourceList, pod_requests};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodCondition, ResourceRequirements};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::checkpoint;
use crate::off_thread::spawn_blocking;
use crate::pod;

/// Many pods that come at once are written at once.
const SETTLE: Duration = Duration::from_millis(200);

/// Reasons of `PodResizePending`. Upstream: `v1.PodReasonInfeasible`, `v1.PodReasonDeferred`.
pub const INFEASIBLE: &str = "Infeasible";
pub const DEFERRED: &str = "Deferred";

/// The resources of one pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Granted {
    /// By container name.
    pub containers: BTreeMap<String, Option<ResourceRequirements>>,
    /// Of the pod as a whole.
    pub pod: Option<ResourceRequirements>,
}

/// A resize that cannot be granted now (`Deferred`) or ever (`Infeasible`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    pub reason: String,
    pub message: String,
    /// Why never, as `kubelet_pod_infeasible_resizes_total` has it; `None`: for want of capacity, or read from a status.
    pub reason_detail: Option<&'static str>,
    /// The version of the pod that asked.
    pub generation: Option<i64>,
    pub since: Timestamp,
}

/// A resize that was granted and is not in force yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub generation: Option<i64>,
    /// Why the last try failed.
    pub error: Option<String>,
}

#[derive(Clone, Default)]
struct Entry {
    granted: Granted,
    pending: Option<Pending>,
    progress: Option<Progress>,
    /// Read from disk; what was told of it is still to be read from the pod's status.
    loaded: bool,
}

/// What a look at the waiting resizes came to, for one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Granted,
    /// Newly waiting, or for another reason or version than before.
    Pending(Pending),
    /// What was asked for was taken back.
    Reverted,
}

/// How many resizes are not in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// By reason in small letters and the bucket of the pod's priority.
    pub pending: BTreeMap<(String, &'static str), i64>,
    /// Granted, and not in force yet.
    pub in_progress: i64,
}

/// Upstream: `GetPriorityBucketLabel`.
pub fn priority_bucket(pod: &Pod) -> &'static str {
    match pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0) {
        2_000_000_000.. => "system-critical",
        100_000.. => "high",
        1.. => "medium",
        0 => "normal",
        -999.. => "low",
        _ => "very-low",
    }
}

/// Shared by the workers.
#[derive(Default)]
pub struct AllocationManager {
    entries: Mutex<HashMap<String, Entry>>,
    changed: Notify,
}

fn all_containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod::containers(pod).iter().chain(pod::init_containers(pod))
}

fn of_spec(pod: &Pod) -> Granted {
    Granted {
        containers: all_containers(pod)
            .map(|c| (c.name.clone(), c.resources.clone()))
            .collect(),
        pod: pod.spec.as_ref().and_then(|s| s.resources.clone()),
    }
}

/// What the API's status says was granted, for a pod that ran before and of which no file tells.
fn of_status(pod: &Pod) -> Granted {
    let mut granted = of_spec(pod);
    let statuses = pod.status.iter().flat_map(|s| {
        s.container_statuses
            .iter()
            .chain(s.init_container_statuses.iter())
            .flatten()
    });
    for status in statuses {
        if let (Some(resources), Some(slot)) = (
            &status.resources,
            granted.containers.get_mut(status.name.as_str()),
        ) {
            let mut resources = resources.clone();
            if status.allocated_resources.is_some() {
                resources.requests = status.allocated_resources.clone();
            }
            *slot = Some(resources);
        }
    }
    granted
}

fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status
        .as_ref()?
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_ == type_ && c.status == "True")
}

/// What an earlier kubelet told of the pod's resizes: told again only when it changes.
fn told(pod: &Pod) -> (Option<Pending>, Option<Progress>) {
    let pending = condition(pod, "PodResizePending").map(|c| Pending {
        reason: c.reason.clone().unwrap_or_default(),
        message: c.message.clone().unwrap_or_default(),
        reason_detail: None,
        generation: c.observed_generation,
        since: c
            .last_transition_time
            .as_ref()
            .map_or_else(Timestamp::now, |t| t.0),
    });
    let progress = condition(pod, "PodResizeInProgress").map(|c| Progress {
        generation: c.observed_generation,
        error: c.reason.as_ref().and(c.message.clone()),
    });
    (pending, progress)
}

/// The pod as it would be with these resources.
fn apply(pod: &Arc<Pod>, granted: &Granted) -> Arc<Pod> {
    if !differs(pod, granted) {
        return pod.clone();
    }
    let mut out = (**pod).clone();
    if let Some(spec) = out.spec.as_mut() {
        let containers = spec
            .containers
            .iter_mut()
            .chain(spec.init_containers.iter_mut().flatten());
        for container in containers {
            if let Some(resources) = granted.containers.get(&container.name) {
                container.resources = resources.clone();
            }
        }
        spec.resources = granted.pod.clone();
    }
    Arc::new(out)
}

/// Does the pod ask for anything else than it was granted?
fn differs(pod: &Pod, granted: &Granted) -> bool {
    let of_pod = pod.spec.as_ref().and_then(|s| s.resources.as_ref());
    let same = |c: &Container| {
        granted
            .containers
            .get(&c.name)
            .is_none_or(|g| equal(g.as_ref(), c.resources.as_ref()))
    };
    !equal(granted.pod.as_ref(), of_pod) || !all_containers(pod).all(same)
}

fn equal(a: Option<&ResourceRequirements>, b: Option<&ResourceRequirements>) -> bool {
    let same = |a: Option<&ResourceList>, b: Option<&ResourceList>| {
        let value = |l: Option<&ResourceList>, n: &str| l.and_then(|l| l.get(n)).map(amount);
        a.into_iter()
            .chain(b)
            .flat_map(|l| l.keys())
            .all(|n| value(a, n) == value(b, n))
    };
    same(
        a.and_then(|r| r.requests.as_ref()),
        b.and_then(|r| r.requests.as_ref()),
    ) && same(
        a.and_then(|r| r.limits.as_ref()),
        b.and_then(|r| r.limits.as_ref()),
    )
}

/// CPU in thousandths, memory in bytes.
fn requests(pod: &Pod) -> [(&'static str, i64); 2] {
    let all = pod_requests(pod, &PodResourcesOptions::default());
    ["cpu", "memory"].map(|name| (name, all.get(name).map_or(0, |a| number(name, *a))))
}

fn number(name: &str, a: Amount) -> i64 {
    if name == "cpu" {
        a.milli_value()
    } else {
        a.value()
    }
}

/// What a container may not change once it runs, for it has some of its own: resources under the policy static.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pinned {
    pub cpu: bool,
    pub memory: bool,
}

/// Why a resize is not granted.
struct Refusal {
    reason: &'static str,
    message: String,
    reason_detail: Option<&'static str>,
}

/// Why a Guaranteed pod can never be resized so. Upstream: `podResizesAdmitHandler`.
fn pinned(pod: &Pod, granted: &Granted, pinned: Pinned) -> Result<(), Refusal> {
    if get_pod_qos(pod) != QosClass::Guaranteed {
        return Ok(());
    }
    let request = |resources: Option<&ResourceRequirements>, name: &str| {
        let requests = resources.and_then(|r| r.requests.as_ref());
        requests.and_then(|list| list.get(name)).map(amount)
    };
    let changes = |name: &str| {
        all_containers(pod).any(|container| {
            let before = granted.containers.get(&container.name);
            let before = request(before.and_then(Option::as_ref), name);
            request(container.resources.as_ref(), name) != before
        })
    };
    for (on, name, policy, detail) in [
        (
            pinned.cpu,
            "cpu",
            "CPU Manager policy \"static\"",
            "guaranteed_pod_cpu_manager_static_policy",
        ),
        (
            pinned.memory,
            "memory",
            "Memory Manager policy \"Static\"",
            "guaranteed_pod_memory_manager_static_policy",
        ),
    ] {
        if on && changes(name) {
            return Err(Refusal {
                reason: INFEASIBLE,
                message: format!("Resize is infeasible for Guaranteed Pods alongside {policy}"),
                reason_detail: Some(detail),
            });
        }
    }
    Ok(())
}

/// Does the pod, as it asks now, fit beside the others? Else the reason and the message.
fn fits(pod: &Pod, others: &[Arc<Pod>], allocatable: &ResourceList) -> Result<(), Refusal> {
    let refusal = |reason, message| Refusal {
        reason,
        message,
        reason_detail: None,
    };
    let capacity = |name: &str| allocatable.get(name).map_or(0, |q| number(name, amount(q)));
    for (name, wanted) in requests(pod) {
        if wanted > capacity(name) {
            return Err(refusal(
                INFEASIBLE,
                format!(
                    "Node didn't have enough capacity: {name}, requested: {wanted}, capacity: {}",
                    capacity(name)
                ),
            ));
        }
    }
    let used: Vec<_> = others.iter().map(|p| requests(p)).collect();
    for (index, (name, wanted)) in requests(pod).into_iter().enumerate() {
        let used = used.iter().map(|r| r[index].1);
        let used = used.fold(0, i64::saturating_add);
        if wanted > capacity(name).saturating_sub(used) {
            return Err(refusal(
                DEFERRED,
                format!(
                    "Node didn't have enough resource: {name}, requested: {wanted}, used: {used}, capacity: {}",
                    capacity(name)
                ),
            ));
        }
    }
    Ok(())
}

/// The order in which waiting resizes are looked at: those that ask for no more first, then by priority, then guaranteed
/// pods, then whoever waits longest. Upstream: `sortPendingResizes`.
fn rank(pod: &Arc<Pod>, entry: &Entry) -> (bool, Reverse<i32>, bool, Timestamp) {
    let before = requests(&apply(pod, &entry.granted));
    let grows = requests(pod)
        .iter()
        .zip(before)
        .any(|(new, old)| new.1 > old.1);
    let priority = pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
    let since = entry.pending.as_ref().map_or(Timestamp::MAX, |p| p.since);
    let guaranteed = get_pod_qos(pod) == QosClass::Guaranteed;
    (grows, Reverse(priority), !guaranteed, since)
}

impl AllocationManager {
    /// With what an earlier kubelet granted; `root`: the kubelet's root directory.
    pub fn load(root: &std::path::Path) -> Self {
        let entries = checkpoint::load(&root.join(checkpoint::FILE))
            .into_iter()
            .map(|(uid, granted)| {
                let entry = Entry {
                    granted,
                    loaded: true,
                    ..Entry::default()
                };
                (uid, entry)
            })
            .collect();
        Self {
            entries: Mutex::new(entries),
            changed: Notify::new(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Writes what is granted to disk until `shutdown`. What is lost in a crash is found in the pods' statuses.
    pub async fn run(self: Arc<Self>, root: PathBuf, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = self.changed.notified() => tokio::time::sleep(SETTLE).await,
            }
            let pods: HashMap<String, Granted> = self
                .lock()
                .iter()
                .map(|(uid, e)| (uid.clone(), e.granted.clone()))
                .collect();
            let path = root.join(checkpoint::FILE);
            let written = spawn_blocking(move || checkpoint::store(&path, pods)).await;
            match written {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::error!(%error, "cannot write down what pods were granted")
                }
                Err(error) => tracing::error!(%error, "writing down what pods were granted failed"),
            }
            if shutdown.is_cancelled() {
                return;
            }
        }
    }

    /// The pod with what it was granted so far; the pod itself when nothing is known of it.
    pub fn granted(&self, pod: &Arc<Pod>) -> Arc<Pod> {
        match self.lock().get(pod::uid(pod)) {
            Some(entry) => apply(pod, &entry.granted),
            None => pod.clone(),
        }
    }

    /// A pod that was let in: it has what it asks for, or what it had before this kubelet came.
    pub fn add(&self, pod: &Arc<Pod>) {
        let mut entries = self.lock();
        let (pending, progress) = told(pod);
        match entries.get_mut(pod::uid(pod)) {
            Some(entry) => {
                if std::mem::take(&mut entry.loaded) {
                    entry.pending = pending.filter(|_| differs(pod, &entry.granted));
                    entry.progress = progress;
                }
                return;
            }
            None => {}
        }
        let running = pod
            .status
            .as_ref()
            .is_some_and(|s| s.container_statuses.is_some());
        let granted = if running {
            of_status(pod)
        } else {
            of_spec(pod)
        };
        let entry = Entry {
            granted,
            pending,
            progress,
            loaded: false,
        };
        entries.insert(pod::uid(pod).to_owned(), entry);
        drop(entries);
        self.changed.notify_one();
    }

    /// Does a resize of the pod wait to be granted, or is one told of that does not?
    pub fn is_pending(&self, pod: &Pod) -> bool {
        self.lock()
            .get(pod::uid(pod))
            .is_some_and(|e| e.pending.is_some() || differs(pod, &e.granted))
    }

    /// Does any?
    pub fn has_pending(&self) -> bool {
        self.lock().values().any(|e| e.pending.is_some())
    }

    /// What the gauges show. `pods`: every pod that is known. Upstream: `observePendingResizeCount`, `recordInProgressResizeCount`.
    pub fn counts(&self, pods: &[Arc<Pod>]) -> Counts {
        let entries = self.lock();
        let mut counts = Counts::default();
        for pod in pods {
            let Some(entry) = entries.get(pod::uid(pod)) else {
                continue;
            };
            if let Some(pending) = &entry.pending {
                let key = (pending.reason.to_lowercase(), priority_bucket(pod));
                *counts.pending.entry(key).or_default() += 1;
            }
            counts.in_progress += i64::from(entry.progress.is_some());
        }
        counts
    }

    /// Looks at every resize that waits, the most urgent first, and grants what fits. `active`: every pod that counts, as
    /// its source now has it. Gives what changed, in that order.
    pub fn resolve(
        &self,
        active: &[Arc<Pod>],
        allocatable: &ResourceList,
        of_managers: Pinned,
        now: Timestamp,
    ) -> Vec<(Arc<Pod>, Change)> {
        let mut entries = self.lock();
        let mut out = vec![];
        let mut waiting = vec![];
        for pod in active {
            let Some(entry) = entries.get_mut(pod::uid(pod)) else {
                continue;
            };
            if differs(pod, &entry.granted) {
                waiting.push((rank(pod, entry), pod));
            } else if entry.pending.take().is_some() {
                out.push((pod.clone(), Change::Reverted));
            }
        }
        waiting.sort_by(|a, b| a.0.cmp(&b.0));
        for (_, pod) in waiting {
            let uid = pod::uid(pod);
            let others: Vec<Arc<Pod>> = active
                .iter()
                .filter(|p| pod::uid(p) != uid)
                .map(|p| match entries.get(pod::uid(p)) {
                    Some(entry) => apply(p, &entry.granted),
                    None => p.clone(),
                })
                .collect();
            let Some(entry) = entries.get_mut(uid) else {
                continue;
            };
            let verdict = pinned(pod, &entry.granted, of_managers)
                .and_then(|()| fits(pod, &others, allocatable));
            let generation = pod.metadata.generation;
            match verdict {
                Ok(()) => {
                    entry.granted = of_spec(pod);
                    entry.pending = None;
                    entry.progress = Some(Progress {
                        generation,
                        error: None,
                    });
                    out.push((pod.clone(), Change::Granted));
                }
                Err(Refusal {
                    reason,
                    message,
                    reason_detail,
                }) => {
                    let before = entry.pending.as_ref();
                    let known =
                        before.is_some_and(|p| p.reason == reason && p.generation == generation);
                    let since = before.map_or(now, |p| p.since);
                    let pending = Pending {
                        reason: reason.to_owned(),
                        message,
                        reason_detail,
                        generation,
                        since,
                    };
                    entry.pending = Some(pending.clone());
                    if !known {
                        out.push((pod.clone(), Change::Pending(pending)));
                    }
                }
            }
        }
        drop(entries);
        if out.iter().any(|(_, c)| *c == Change::Granted) {
            self.changed.notify_one();
        }
        out
    }

    /// Called with whether the kernel still has something else than what was granted. Gives the version whose resize is
    /// now complete, if one was under way.
    pub fn progress(&self, pod: &Pod, differs: bool) -> Option<Option<i64>> {
        let mut entries = self.lock();
        let entry = entries.get_mut(pod::uid(pod))?;
        if differs {
            entry.progress.get_or_insert_with(|| Progress {
                generation: pod.metadata.generation,
                error: None,
            });
            return None;
        }
        entry.progress.take().map(|p| p.generation)
    }

    /// A try to put a resize in force failed. Returns the version it is of, if that is news.
    pub fn failed(&self, pod: &Pod, error: &str) -> Option<Option<i64>> {
        let mut entries = self.lock();
        let entry = entries.get_mut(pod::uid(pod))?;
        let progress = entry.progress.get_or_insert_with(|| Progress {
            generation: pod.metadata.generation,
            error: None,
        });
        if progress.error.as_deref() == Some(error) {
            return None;
        }
        progress.error = Some(error.to_owned());
        Some(progress.generation)
    }

    /// `PodResizePending` and `PodResizeInProgress`, as far as they hold.
    pub fn conditions(&self, uid: &str) -> Vec<PodCondition> {
        match self.lock().get(uid) {
            Some(e) => super::conditions(e.pending.as_ref(), e.progress.as_ref()),
            None => vec![],
        }
    }

    pub fn forget(&self, uid: &str) {
        if self.lock().remove(uid).is_some() {
            self.changed.notify_one();
        }
    }

    /// Forgets pods that nobody knows any longer.
    pub fn remove_orphans(&self, live: impl Fn(&str) -> bool) {
        let known: Vec<String> = self.lock().keys().cloned().collect();
        for uid in known.iter().filter(|uid| !live(uid)) {
            self.forget(uid);
        }
    }
}
