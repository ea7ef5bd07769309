//! Writes pod statuses to the API server, newest last, and deletes pods that ended.
//!
//! Owns: the last status of every pod, its version, times of transition, and the one task that patches.
//! Never computes a status and never asks the runtime. A status is written again until the API server
//! took it; it never goes back to an older version. Upstream: `pkg/kubelet/status/status_manager.go`, v1.36.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use component_base::clock::Clock;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateTerminated, ContainerStatus, Pod, PodCondition, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Map, Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::conditions::{self, KUBELET_CONDITIONS};
use super::generate::start_time;
use crate::metrics;
use crate::pod;
use crate::pod_manager::PodManager;
use crate::termination;

/// How long to wait before a failed write is tried again; upstream's `syncPeriod`.
const RETRY_PERIOD: Duration = Duration::from_secs(10);
/// Writes at the same time.
const MAX_PARALLEL_WRITES: usize = 8;

/// May a pod still have running containers? The pod workers know.
pub trait PodDeletionSafety: Send + Sync {
    fn pod_could_have_running_containers(&self, uid: &str) -> bool;
}

struct Entry {
    status: PodStatus,
    /// Grows with every change.
    version: u64,
    /// The version the API server took.
    written: u64,
    name: String,
    namespace: String,
    /// The worker is through with the pod: its object may be deleted.
    finished: bool,
    deleted: bool,
}

type Entries<'a> = std::sync::MutexGuard<'a, HashMap<String, Entry>>;

/// Shared; `run` does the writing.
///
/// **Invariant:** whoever changes a part of a status holds the lock from reading it to setting it: a probe's word and a
/// worker's round come at the same time.
pub struct StatusManager {
    entries: Mutex<HashMap<String, Entry>>,
    changed: Notify,
    pods: Arc<PodManager>,
    client: Option<kube::Client>,
    clock: Clock,
    /// Told of every change.
    watchers: pods_api::Changes,
}

/// In whole seconds, as the API has time.
fn whole_seconds(now: Timestamp) -> Time {
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error("patch pod status: {0}")]
    Api(#[from] kube::Error),
    #[error("encode pod status: {0}")]
    Encode(#[from] serde_json::Error),
}

impl StatusManager {
    /// Without a client nothing is written (a kubelet that runs alone).
    pub fn new(pods: Arc<PodManager>, client: Option<kube::Client>, clock: Clock) -> Self {
        Self {
            entries: Mutex::default(),
            changed: Notify::new(),
            pods,
            client,
            clock,
            watchers: pods_api::Changes::default(),
        }
    }

    /// What agents of the node watch.
    pub fn watchers(&self) -> &pods_api::Changes {
        &self.watchers
    }

    fn lock(&self) -> Entries<'_> {
        self.entries.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// What was set last, if anything was.
    pub fn get_pod_status(&self, uid: &str) -> Option<PodStatus> {
        self.lock().get(uid).map(|e| e.status.clone())
    }

    /// Sets the whole status. Returns whether anything changed.
    pub fn set_pod_status(&self, pod: &Pod, status: PodStatus) -> bool {
        self.update(self.lock(), pod, status, pod::is_deleted(pod), false)
    }

    /// Called as soon as a readiness probe changes its mind, before the pod's worker comes round.
    pub fn set_container_readiness(&self, pod: &Pod, container_id: &str, ready: bool) {
        self.change_container(pod, container_id, |c| {
            let changed = c.ready != ready;
            c.ready = ready;
            changed
        });
    }

    pub fn set_container_startup(&self, pod: &Pod, container_id: &str, started: bool) {
        self.change_container(pod, container_id, |c| {
            let changed = c.started != Some(started);
            c.started = Some(started);
            changed
        });
    }

    fn change_container(&self, pod: &Pod, id: &str, change: impl Fn(&mut ContainerStatus) -> bool) {
        let entries = self.lock();
        let Some(mut status) = entries.get(pod::uid(pod)).map(|e| e.status.clone()) else {
            return;
        };
        let mut changed = false;
        let lists = [
            status.container_statuses.as_mut(),
            status.init_container_statuses.as_mut(),
        ];
        for c in lists.into_iter().flatten().flatten() {
            if c.container_id
                .as_deref()
                .is_some_and(|c| c.ends_with(&format!("://{id}")))
            {
                changed |= change(c);
            }
        }
        if !changed {
            return;
        }
        let all: Vec<ContainerStatus> = status
            .container_statuses
            .iter()
            .chain(status.init_container_statuses.iter())
            .flatten()
            .cloned()
            .collect();
        let phase = status.phase.clone().unwrap_or_default();
        let mut list = status.conditions.take().unwrap_or_default();
        let ready = conditions::ready(pod, &list, &all, &phase);
        let fresh = [
            ready,
            conditions::containers_ready(pod, &all, &phase),
            conditions::initialized(pod, &all, &phase, &status),
        ];
        for c in fresh {
            match list.iter_mut().find(|o| o.type_ == c.type_) {
                Some(slot) => {
                    *slot = PodCondition {
                        last_transition_time: slot.last_transition_time.clone(),
                        ..c
                    }
                }
                None => list.push(c),
            }
        }
        status.conditions = Some(list);
        self.update(entries, pod, status, false, false);
    }

    /// The pod is over: whatever has no known end is called failed, and the object may be deleted.
    pub fn terminate_pod(&self, pod: &Pod) {
        let entries = self.lock();
        let cached = entries.get(pod::uid(pod)).map(|e| e.status.clone());
        let mut status = cached.or_else(|| pod.status.clone()).unwrap_or_default();
        let lost = || ContainerState {
            terminated: Some(ContainerStateTerminated {
                reason: Some("ContainerStatusUnknown".to_owned()),
                message: Some(
                    "The container could not be located when the pod was terminated".to_owned(),
                ),
                exit_code: 137,
                ..ContainerStateTerminated::default()
            }),
            ..ContainerState::default()
        };
        let ended = |c: &ContainerStatus| c.state.as_ref().is_some_and(|s| s.terminated.is_some());
        if has_pod_initialized(pod, &status) {
            for c in status
                .container_statuses
                .iter_mut()
                .flatten()
                .filter(|c| !ended(c))
            {
                c.state = Some(lost());
            }
        }
        let init = status
            .init_container_statuses
            .as_deref_mut()
            .unwrap_or_default();
        let last_started = init.iter().rposition(|c| {
            c.last_state
                .as_ref()
                .is_some_and(|s| s.terminated.is_some())
                || c.state
                    .as_ref()
                    .is_some_and(|s| s.running.is_some() || s.terminated.is_some())
        });
        let started = last_started.map_or(0, |i| i + 1);
        for c in init.iter_mut().take(started).filter(|c| !ended(c)) {
            c.state = Some(lost());
        }
        if !pod::is_static(pod)
            && !pod::is_terminal_phase(status.phase.as_deref().unwrap_or_default())
        {
            status.phase = Some("Failed".to_owned());
        }
        self.update(entries, pod, status, true, true);
    }

    fn update(
        &self,
        mut entries: Entries<'_>,
        pod: &Pod,
        mut status: PodStatus,
        force: bool,
        finished: bool,
    ) -> bool {
        let uid = pod::uid(pod).to_owned();
        let cached = entries.get(&uid);
        let old = cached
            .map(|e| e.status.clone())
            .or_else(|| pod.status.clone())
            .unwrap_or_default();

        if pod::is_terminal_phase(old.phase.as_deref().unwrap_or_default())
            && !pod::is_terminal_phase(status.phase.as_deref().unwrap_or_default())
        {
            tracing::error!(pod = %pod::format(pod), "refused to move a pod out of a terminal phase");
            return false;
        }
        metrics::observe_terminations(&old, &status);
        let now = self.clock.now();
        set_transition_times(&mut status, &old, &whole_seconds(now));
        // A rejected pod's status is not generated.
        if status.start_time.is_none() {
            status.start_time = Some(start_time(&old, now));
        }
        normalize(pod, &mut status);
        let mut before = old;
        normalize(pod, &mut before);
        let is_new = cached.is_none();
        let was_finished = cached.is_some_and(|e| e.finished);
        // A static pod may begin anew under the same UID.
        let finished = finished || (was_finished && !pod::is_static(pod));
        if !is_new && before == status && !force {
            return false;
        }
        let entry = entries.entry(uid).or_insert_with(|| Entry {
            status: PodStatus::default(),
            version: 0,
            written: 0,
            name: pod::name(pod).to_owned(),
            namespace: pod::namespace(pod).to_owned(),
            finished: false,
            deleted: false,
        });
        let changed = is_new || entry.status != status;
        entry.status = status;
        entry.version += 1;
        entry.finished = finished;
        // Under the lock, so that they come in order.
        match (finished, was_finished) {
            (false, _) => {
                let added = is_new || was_finished;
                self.watchers.updated(pod, &entry.status, added);
            }
            (true, false) => {
                self.watchers
                    .removed(&entry.namespace, &entry.name, pod::uid(pod));
            }
            (true, true) => {}
        }
        drop(entries);
        self.changed.notify_one();
        changed
    }

    /// A source names a static pod, and nothing of a former self under its UID is left: how that ended binds nobody, and what is told of
    /// the pod is written again.
    pub fn begin_anew(&self, uid: &str) {
        let mut entries = self.lock();
        let Some(entry) = entries.get_mut(uid) else {
            return;
        };
        entry.deleted = false;
        let status = &mut entry.status;
        if pod::is_terminal_phase(status.phase.as_deref().unwrap_or_default()) {
            status.phase = Some("Pending".to_owned());
            (status.reason, status.message) = (None, None);
        }
    }

    /// Forgets pods that no source names any longer.
    pub fn remove_orphaned_statuses(&self, live: impl Fn(&str) -> bool) {
        let known: Vec<String> = self.lock().keys().cloned().collect();
        for uid in known.iter().filter(|uid| !live(uid)) {
            self.lock().remove(uid);
        }
    }

    /// The pod as the API server now has it came in: what differs is written again.
    pub fn reconcile(&self, pod: &Pod) {
        let mut entries = self.lock();
        let Some(entry) = entries.get_mut(pod::uid(pod)) else {
            return;
        };
        let mut theirs = pod.status.clone().unwrap_or_default();
        normalize(pod, &mut theirs);
        let now = whole_seconds(self.clock.now());
        let merged = merge_pod_status(pod, &theirs, entry.status.clone(), false, &now);
        if merged != theirs || entry.finished {
            entry.written = entry.written.min(entry.version - 1);
            drop(entries);
            self.changed.notify_one();
        }
    }

    /// As [`Self::reconcile`], for a static pod whose mirror came in.
    pub fn reconcile_as(&self, owner: &Pod, mirror: &Pod) {
        let mut seen = mirror.clone();
        seen.metadata.uid = owner.metadata.uid.clone();
        self.reconcile(&seen);
    }

    /// Nudges the writer: something that a write waited for has happened.
    pub fn wake(&self) {
        self.changed.notify_one();
    }

    /// Writes until `shutdown`. Every change is written at once; a failed write is tried again.
    pub async fn run(
        self: Arc<Self>,
        safety: Arc<dyn PodDeletionSafety>,
        shutdown: CancellationToken,
    ) {
        let Some(client) = self.client.clone() else {
            return shutdown.cancelled().await;
        };
        loop {
            let failed = self.sync_batch(&client, safety.as_ref()).await;
            let retry = async {
                if failed {
                    tokio::time::sleep(RETRY_PERIOD).await;
                } else {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.changed.notified() => {}
                () = retry => {}
            }
        }
    }

    /// One round over everything not written yet. Returns whether any write must be tried again.
    async fn sync_batch(&self, client: &kube::Client, safety: &dyn PodDeletionSafety) -> bool {
        let due: Vec<(String, u64)> = {
            let entries = self.lock();
            entries
                .iter()
                .filter(|(_, e)| !e.deleted && (e.written < e.version))
                .map(|(uid, e)| (uid.clone(), e.version))
                .collect()
        };
        use futures::StreamExt;
        let outcomes: Vec<bool> = futures::stream::iter(due)
            .map(|(uid, version)| async move {
                match self.sync_pod(client, safety, &uid, version).await {
                    Ok(()) => false,
                    Err(error) => {
                        tracing::warn!(%uid, %error, "failed to update status for pod");
                        true
                    }
                }
            })
            .buffer_unordered(MAX_PARALLEL_WRITES)
            .collect()
            .await;
        outcomes.into_iter().any(|failed| failed)
    }

    async fn sync_pod(
        &self,
        client: &kube::Client,
        safety: &dyn PodDeletionSafety,
        uid: &str,
        version: u64,
    ) -> Result<(), WriteError> {
        let Some((status, finished, name, namespace)) = self.lock().get(uid).map(|e| {
            (
                e.status.clone(),
                e.finished,
                e.name.clone(),
                e.namespace.clone(),
            )
        }) else {
            return Ok(());
        };
        let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
        // The copy the watch gave is the cheapest base; a conflict gets a fresh one.
        let desired = self.pods.get_pod_by_uid(uid);
        // A mirror comes back, and then `reconcile_as` writes again; any other object is gone for good.
        let for_good = desired.as_ref().is_none_or(|p| !pod::is_static(p));
        let mut base = match desired {
            Some(p) if pod::is_static(&p) => match self.pods.get_mirror_pod_by_pod(&p) {
                Some(mirror) => mirror,
                // Written when the mirror has come: `reconcile` sees to it.
                None => return Ok(()),
            },
            Some(p) => p,
            // No source names it any longer: nobody would read a status.
            None => {
                self.mark_written(uid, version, true);
                return Ok(());
            }
        };
        let could_run = safety.pod_could_have_running_containers(uid);
        let now = whole_seconds(self.clock.now());
        for attempt in 0..5 {
            let theirs = base.status.clone().unwrap_or_default();
            let merged = merge_pod_status(&base, &theirs, status.clone(), could_run, &now);
            let patch = diff(
                &serde_json::to_value(&theirs)?,
                &serde_json::to_value(&merged)?,
            );
            let Some(patch) = patch else { break };
            let body = json!({
                "metadata": {
                    "uid": base.metadata.uid,
                    "resourceVersion": base.metadata.resource_version,
                },
                "status": patch,
            });
            match api
                .patch_status(&name, &PatchParams::default(), &Patch::Merge(&body))
                .await
            {
                Ok(written) => {
                    base = Arc::new(written);
                    break;
                }
                Err(kube::Error::Api(e)) if e.code == 404 => {
                    self.mark_written(uid, version, for_good);
                    return Ok(());
                }
                Err(kube::Error::Api(e)) if e.code == 409 && attempt < 4 => {
                    let found = match api.get_opt(&name).await {
                        // The node authorizer forgets a pod a moment before its watch tells.
                        Err(kube::Error::Api(e)) if e.code == 403 => None,
                        other => other?,
                    };
                    match found.filter(|p| p.metadata.uid == base.metadata.uid) {
                        Some(p) => base = Arc::new(p),
                        None => {
                            self.mark_written(uid, version, for_good);
                            return Ok(());
                        }
                    }
                }
                Err(e) => return Err(e.into()),
            }
        }
        let deleted = finished && can_be_deleted(&base);
        if deleted {
            delete(&api, &base).await?;
        }
        self.mark_written(uid, version, deleted);
        Ok(())
    }

    fn mark_written(&self, uid: &str, version: u64, deleted: bool) {
        if let Some(entry) = self.lock().get_mut(uid) {
            entry.written = entry.written.max(version);
            entry.deleted |= deleted;
        }
    }
}

/// Takes the object of a pod away of which nothing is left, and no other of that name.
async fn delete(api: &Api<Pod>, pod: &Pod) -> Result<(), kube::Error> {
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions {
            uid: pod.metadata.uid.clone(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    match api.delete(pod::name(pod), &params).await {
        Ok(_) => {}
        Err(kube::Error::Api(e)) if e.code == 404 || e.code == 409 => {}
        Err(e) => return Err(e),
    }
    tracing::debug!(pod = %pod::format(pod), "pod fully terminated and removed from the API server");
    Ok(())
}

/// Only a pod whose end the API server already shows is deleted, so that watchers see how it ended.
fn can_be_deleted(pod: &Pod) -> bool {
    pod::is_deleted(pod) && !pod::is_mirror(pod) && pod::is_terminal_phase(pod::phase(pod))
}

fn has_pod_initialized(pod: &Pod, status: &PodStatus) -> bool {
    if pod::init_containers(pod).is_empty() {
        return true;
    }
    let any = status.container_statuses.iter().flatten().any(|s| {
        s.last_state
            .as_ref()
            .is_some_and(|l| l.terminated.is_some())
            || s.state.as_ref().is_none_or(|st| st.waiting.is_none())
    });
    if any {
        return true;
    }
    let last = status.init_container_statuses.iter().flatten().last();
    let spec = pod::init_containers(pod).last();
    match (last, spec) {
        (Some(last), Some(spec)) if pod::is_restartable_init(spec) => {
            last.started == Some(true) && last.state.as_ref().is_some_and(|s| s.running.is_some())
        }
        (Some(last), _) => [&last.state, &last.last_state]
            .into_iter()
            .flatten()
            .any(|s| s.terminated.as_ref().is_some_and(|t| t.exit_code == 0)),
        _ => false,
    }
}

/// A condition keeps its time as long as its status stays.
fn set_transition_times(status: &mut PodStatus, old: &PodStatus, now: &Time) {
    for c in status.conditions.iter_mut().flatten() {
        let before = old.conditions.iter().flatten().find(|o| o.type_ == c.type_);
        c.last_transition_time = match before {
            Some(o) if o.status == c.status => o.last_transition_time.clone(),
            _ => Some(now.clone()),
        };
        if c.last_transition_time.is_none() {
            c.last_transition_time = Some(now.clone());
        }
    }
}

/// Order and resolution as the API server keeps them, so that equal statuses compare equal; and each container's last words
/// within its share of the pod's, whoever of them speaks. Upstream: `normalizeStatus`.
fn normalize(pod: &Pod, status: &mut PodStatus) {
    let share = termination::message_share(pod);
    if let Some(list) = status.container_statuses.as_mut() {
        list.sort_by(|a, b| a.name.cmp(&b.name));
    }
    for list in [
        &mut status.container_statuses,
        &mut status.init_container_statuses,
        &mut status.ephemeral_container_statuses,
    ] {
        if list.as_ref().is_some_and(Vec::is_empty) {
            *list = None;
        }
        for container in list.iter_mut().flatten() {
            let states = [container.state.as_mut(), container.last_state.as_mut()];
            let ended = states.into_iter().flatten().flat_map(|s| &mut s.terminated);
            for message in ended.flat_map(|t| &mut t.message) {
                termination::cut(message, share);
            }
        }
    }
}

/// What is written: the kubelet's fields over what others wrote; a terminal phase only when nothing runs.
fn merge_pod_status(
    pod: &Pod,
    theirs: &PodStatus,
    mut ours: PodStatus,
    could_run: bool,
    now: &Time,
) -> PodStatus {
    let terminal = |s: &PodStatus| pod::is_terminal_phase(s.phase.as_deref().unwrap_or_default());
    let to_terminal = !terminal(theirs) && terminal(&ours);

    let mut list: Vec<PodCondition> = theirs
        .conditions
        .iter()
        .flatten()
        .filter(|c| !KUBELET_CONDITIONS.contains(&c.type_.as_str()))
        .cloned()
        .collect();
    for c in ours.conditions.take().into_iter().flatten() {
        if KUBELET_CONDITIONS.contains(&c.type_.as_str()) {
            list.push(c);
        } else if c.type_ == "DisruptionTarget" && to_terminal && !could_run {
            list.retain(|o| o.type_ != c.type_);
            list.push(c);
        }
    }
    ours.resource_claim_statuses = theirs.resource_claim_statuses.clone();
    ours.extended_resource_claim_status = theirs.extended_resource_claim_status.clone();
    ours.node_allocatable_resource_claim_statuses =
        theirs.node_allocatable_resource_claim_statuses.clone();
    ours.nominated_node_name = theirs.nominated_node_name.clone();
    if ours.start_time.is_none() {
        ours.start_time = theirs.start_time.clone();
    }
    if to_terminal && could_run {
        ours.phase = theirs.phase.clone();
        ours.reason = theirs.reason.clone();
        ours.message = theirs.message.clone();
    }
    if terminal(&ours) {
        let reason = if ours.phase.as_deref() == Some("Failed") {
            "PodFailed"
        } else {
            "PodCompleted"
        };
        for c in list
            .iter_mut()
            .filter(|c| matches!(c.type_.as_str(), "Ready" | "ContainersReady"))
        {
            if c.status == "True" {
                let time = Some(now.clone());
                *c = PodCondition {
                    last_transition_time: time,
                    ..conditions::condition(pod, &c.type_.clone(), false, Some(reason), None)
                };
            }
        }
    }
    ours.conditions = Some(list);
    ours
}

/// The JSON merge patch that leads from `old` to `new`; `None` if they are equal.
fn diff(old: &Value, new: &Value) -> Option<Value> {
    match (old, new) {
        (Value::Object(o), Value::Object(n)) => {
            let mut patch = Map::new();
            for (key, value) in n {
                match o.get(key) {
                    None => {
                        patch.insert(key.clone(), value.clone());
                    }
                    Some(before) => {
                        if let Some(change) = diff(before, value) {
                            patch.insert(key.clone(), change);
                        }
                    }
                }
            }
            for key in o.keys().filter(|k| !n.contains_key(*k)) {
                patch.insert(key.clone(), Value::Null);
            }
            (!patch.is_empty()).then_some(Value::Object(patch))
        }
        _ => (old != new).then(|| new.clone()),
    }
}

#[cfg(test)]
mod tests;
