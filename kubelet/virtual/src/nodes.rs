//! The nodes of the process: registration, Leases, statuses.
//!
//! Owns: one small task a node, and how many of them may ask the API server at once. [`object`] words what is written. Upstream:
//! `pkg/kubelet/kubelet_node_status.go`, `k8s.io/component-helpers/apimachinery/lease`, v1.36.
//!
//! DIFFERS: a Node that somebody deleted is registered again, as the field's virtual kubelets do; upstream's kubelet waits for its next
//! start.

pub mod object;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use component_base::client::{is_already_exists, is_conflict, is_not_found};
use component_base::clock::Clock;
use component_base::shutdown::Shutdown;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use kubelet_provider::{Condition, NodeDescription};
use serde::de::IgnoredAny;
use serde_json::json;
use tokio::sync::{Notify, Semaphore};

use crate::metrics;
use object::Process;

/// A lease is renewed when a quarter of it is over; upstream: `nodeLeaseRenewIntervalFraction`.
const RENEW_FRACTION: f64 = 0.25;
/// Upstream's jitter of that.
const JITTER: f64 = 0.04;
/// Requests of heartbeats under way at the same time, of all nodes. More would not be faster: at 2 ms each these are 16,000 a second,
/// and an API server that is slow gets slower by a crowd whose patience ends.
const BEATS: usize = 32;
/// Registrations under way at the same time.
const REGISTERING: usize = 16;
const FIRST_RETRY: Duration = Duration::from_millis(200);
/// Upstream: the lease controller's `maxBackoff`.
const MAX_RETRY: Duration = Duration::from_secs(7);

/// Times of the heartbeats.
#[derive(Clone, Copy, Debug)]
pub struct Heartbeat {
    /// `nodeLeaseDurationSeconds`.
    pub lease_seconds: i32,
    /// `nodeStatusReportFrequency`.
    pub status_period: Duration,
}

/// A node of ours.
struct Entry {
    name: Arc<str>,
    description: NodeDescription,
    state: Mutex<EntryState>,
    /// Conditions changed.
    changed: Notify,
}

struct EntryState {
    /// Empty: not registered.
    uid: String,
    /// What the provider wants.
    wanted: Vec<Condition>,
    /// What was written.
    written: Vec<NodeCondition>,
    /// Its lease ran out: the node lifecycle controller may have written that nobody knows how it is.
    doubted: bool,
}

/// All nodes of the process.
pub struct Nodes {
    entries: Vec<Arc<Entry>>,
    by_name: HashMap<Arc<str>, usize>,
    process: Process,
    times: Heartbeat,
    /// Registers.
    main: kube::Client,
    /// Lease and status: without a limit.
    heartbeat: kube::Client,
    beats: Semaphore,
    registering: Semaphore,
    clock: Clock,
}

impl Nodes {
    pub fn new(
        descriptions: Vec<NodeDescription>,
        process: Process,
        times: Heartbeat,
        main: kube::Client,
        heartbeat: kube::Client,
        clock: Clock,
    ) -> Self {
        let entry = |description: NodeDescription| {
            Arc::new(Entry {
                name: description.name.as_str().into(),
                state: Mutex::new(EntryState {
                    uid: String::new(),
                    wanted: description.conditions.clone(),
                    written: Vec::new(),
                    doubted: false,
                }),
                description,
                changed: Notify::new(),
            })
        };
        let entries: Vec<Arc<Entry>> = descriptions.into_iter().map(entry).collect();
        let names = entries.iter().enumerate();
        let by_name = names.map(|(i, e)| (e.name.clone(), i)).collect();
        Self {
            entries,
            by_name,
            process,
            times,
            main,
            heartbeat,
            beats: Semaphore::new(BEATS),
            registering: Semaphore::new(REGISTERING),
            clock,
        }
    }

    /// The name as it is kept here; `None`: no node of ours.
    pub fn name(&self, node: &str) -> Option<Arc<str>> {
        let index = self.by_name.get(node)?;
        Some(self.entries[*index].name.clone())
    }

    /// The only node's name, where there is one alone.
    pub fn only(&self) -> Option<Arc<str>> {
        match self.entries.as_slice() {
            [one] => Some(one.name.clone()),
            _ => None,
        }
    }

    /// How many there are, and how many of them are registered.
    pub fn count(&self) -> (usize, usize) {
        let registered = self.entries.iter().filter(|e| !e.lock().uid.is_empty());
        (self.entries.len(), registered.count())
    }

    /// Conditions of a node changed; those of other types stay.
    pub fn set_conditions(&self, node: &str, conditions: Vec<Condition>) {
        let Some(index) = self.by_name.get(node) else {
            tracing::warn!(node, "The provider tells of a node that is none of ours");
            return;
        };
        let entry = &self.entries[*index];
        let mut state = entry.lock();
        for condition in conditions {
            match state.wanted.iter_mut().find(|c| c.type_ == condition.type_) {
                Some(found) => *found = condition,
                None => state.wanted.push(condition),
            }
        }
        drop(state);
        entry.changed.notify_one();
    }

    /// Starts a task for each node.
    pub fn start(self: &Arc<Self>, shutdown: &Shutdown) {
        for entry in &self.entries {
            let (nodes, entry) = (self.clone(), entry.clone());
            let ends = shutdown.clone();
            shutdown.spawn_essential("heartbeat of a node", async move {
                ends.run_until(nodes.beat(entry)).await;
            });
        }
    }

    async fn beat(self: Arc<Self>, entry: Arc<Entry>) {
        let seconds = u64::try_from(self.times.lease_seconds).unwrap_or(40);
        let interval = Duration::from_secs(seconds).mul_f64(RENEW_FRACTION);
        let expiry = Duration::from_secs(seconds);
        let jitter = |wait: Duration| wait.mul_f64(1.0 + JITTER * rand::random::<f64>());
        let mut lease: Option<Lease> = None;
        let mut renewed: Option<Duration> = None;
        let mut retry = FIRST_RETRY;
        let mut due = self.clock.monotonic();
        let mut status_due = due;
        loop {
            let now = self.clock.monotonic();
            if entry.lock().uid.is_empty() {
                Box::pin(self.register(&entry)).await;
                // A crowd that was registered together is not due together; a lease is due at once.
                due = self.clock.monotonic();
                status_due = due + self.times.status_period.mul_f64(rand::random());
                lease = None;
                continue;
            }
            if now >= status_due {
                match Box::pin(self.write_status(&entry)).await {
                    Ok(()) => status_due = now + jitter(self.times.status_period),
                    Err(error) => {
                        tracing::warn!(node = %entry.name, %error, "Unable to update node status");
                        status_due = now + jitter(MAX_RETRY);
                    }
                }
                continue;
            }
            if now >= due {
                // Its turn may be long in coming; the time is for the request alone.
                let place = self.beats.acquire().await;
                let round = Box::pin(self.renew(&entry, lease.take()));
                // A request that hangs must not cost the lease.
                let outcome = tokio::select! {
                    outcome = round => outcome.map_err(|e| e.to_string()),
                    () = self.clock.sleep(interval) => Err("no answer in time".to_owned()),
                };
                drop(place);
                let after = self.clock.monotonic();
                match outcome {
                    Ok(Some(new)) => {
                        let expired = renewed.is_some_and(|at| after - at > expiry);
                        metrics::lease_renewed(after.saturating_sub(due), expired);
                        if expired {
                            entry.lock().doubted = true;
                            status_due = after;
                        }
                        (lease, renewed, retry) = (Some(new), Some(after), FIRST_RETRY);
                        due = after.min(due + interval) + jitter(interval);
                    }
                    // The node is gone: registered anew.
                    Ok(None) => {}
                    Err(error) => {
                        metrics::lease_failed();
                        tracing::warn!(node = %entry.name, error, "Failed to update lease");
                        retry = (retry * 2).min(MAX_RETRY).min(interval);
                        due = after + jitter(retry);
                    }
                }
                continue;
            }
            tokio::select! {
                () = self.clock.sleep(due.min(status_due) - now) => {}
                () = entry.changed.notified() => status_due = now,
            }
        }
    }

    /// Until the node is there, with growing pauses.
    async fn register(&self, entry: &Entry) {
        let mut pause = FIRST_RETRY;
        loop {
            let outcome = {
                let _place = self.registering.acquire().await;
                self.try_register(entry).await
            };
            match outcome {
                Ok(node) => {
                    let mut state = entry.lock();
                    state.uid = node.metadata.uid.unwrap_or_default();
                    let written = node.status.and_then(|s| s.conditions);
                    state.written = written.unwrap_or_default();
                    tracing::debug!(node = %entry.name, "Successfully registered node");
                    return;
                }
                Err(error) => {
                    tracing::error!(node = %entry.name, %error, "Unable to register node with API server")
                }
            }
            self.clock.sleep(pause).await;
            pause = (pause * 2).min(MAX_RETRY);
        }
    }

    async fn try_register(&self, entry: &Entry) -> kube::Result<Node> {
        let api: Api<Node> = Api::all(self.main.clone());
        let wanted = entry.lock().wanted.clone();
        let now = self.clock.now();
        let status = |old: &[NodeCondition]| {
            let conditions = object::conditions(&wanted, old, now);
            object::status(&entry.description, &self.process, conditions)
        };
        let node = object::node(&entry.description, status(&[]));
        match api.create(&PostParams::default(), &node).await {
            Err(error) if is_already_exists(&error) => {}
            other => return other,
        }
        let existing = api.get(&entry.name).await?;
        let have = existing.metadata.labels.clone().unwrap_or_default();
        let labels = entry.description.labels.iter();
        let missing: HashMap<&str, &String> = labels
            .filter(|(key, _)| object::OWN_LABELS.contains(&key.as_str()))
            .filter(|(key, value)| have.get(*key) != Some(*value))
            .map(|(key, value)| (key.as_str(), value))
            .collect();
        if !missing.is_empty() {
            let patch = json!({ "metadata": { "labels": missing } });
            api.patch(&entry.name, &PatchParams::default(), &Patch::Merge(&patch))
                .await?;
        }
        let old = existing.status.and_then(|s| s.conditions);
        let status = status(old.as_deref().unwrap_or_default());
        let mut patch = serde_json::to_value(&status).unwrap_or_default();
        if let Some(addresses) = patch.get_mut("addresses").and_then(|a| a.as_array_mut()) {
            addresses.push(json!({ "$patch": "replace" }));
        }
        let patch = json!({ "status": patch });
        let params = PatchParams::default();
        api.patch_status(&entry.name, &params, &Patch::Strategic(&patch))
            .await
    }

    /// The conditions alone: nothing else changes.
    async fn write_status(&self, entry: &Entry) -> kube::Result<()> {
        let _place = self.beats.acquire().await;
        let doubted = entry.lock().doubted;
        if doubted {
            let nodes: Api<Node> = Api::all(self.heartbeat.clone());
            let Some(node) = nodes.get_opt(&entry.name).await? else {
                entry.lock().uid.clear();
                return Ok(());
            };
            let there = node.status.and_then(|s| s.conditions);
            entry.lock().written = there.unwrap_or_default();
        }
        let conditions = {
            let state = entry.lock();
            object::conditions(&state.wanted, &state.written, self.clock.now())
        };
        let patch = json!({ "status": { "conditions": conditions } });
        let request = kube::core::Request::new("/api/v1/nodes")
            .patch_subresource(
                "status",
                &entry.name,
                &PatchParams::default(),
                &Patch::Strategic(patch),
            )
            .map_err(kube::Error::BuildRequest)?;
        match self.heartbeat.request::<IgnoredAny>(request).await {
            Ok(_) => {}
            Err(error) if is_not_found(&error) => {
                entry.lock().uid.clear();
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        metrics::status_written();
        let mut state = entry.lock();
        state.written = conditions;
        state.doubted = false;
        Ok(())
    }

    /// `None`: there is no such node any more.
    async fn renew(&self, entry: &Entry, known: Option<Lease>) -> kube::Result<Option<Lease>> {
        let api: Api<Lease> = Api::namespaced(self.heartbeat.clone(), object::LEASE_NAMESPACE);
        let uid = entry.lock().uid.clone();
        let seconds = self.times.lease_seconds;
        let renewed = |base: Option<&Lease>| {
            object::lease(base, &entry.name, &uid, seconds, self.clock.now())
        };
        let post = PostParams::default();
        if let Some(base) = known {
            match api.replace(&entry.name, &post, &renewed(Some(&base))).await {
                Err(error) if is_conflict(&error) => {}
                // The garbage collector takes a lease when its node went.
                Err(error) if is_not_found(&error) => {
                    let nodes: Api<Node> = Api::all(self.heartbeat.clone());
                    if nodes.get_metadata_opt(&entry.name).await?.is_none() {
                        entry.lock().uid.clear();
                        return Ok(None);
                    }
                }
                Err(error) => return Err(error),
                Ok(lease) => return Ok(Some(trimmed(lease))),
            }
        }
        let lease = match api.get_opt(&entry.name).await? {
            Some(base) => {
                api.replace(&entry.name, &post, &renewed(Some(&base)))
                    .await?
            }
            None => api.create(&post, &renewed(None)).await?,
        };
        Ok(Some(trimmed(lease)))
    }
}

fn trimmed(mut lease: Lease) -> Lease {
    lease.metadata.managed_fields = None;
    lease
}

impl Entry {
    fn lock(&self) -> MutexGuard<'_, EntryState> {
        self.state.lock().expect("no panic while the lock is held")
    }
}
