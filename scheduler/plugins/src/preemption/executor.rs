//! Carries a preemption out: marks and deletes the victims, beside the scheduling cycle.
//!
//! While it runs, its pod stays out of the queue. The last victim is deleted after the others and remembered by name: its deletion may reach the queue before
//! our own call returns, and the pod must not then be held back for ever. Upstream: framework/preemption/executor.go, v1.36.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use component_helpers::pod::{condition::DISRUPTION_TARGET, is_terminating};
use framework::{ApiWriteError, EventRecord, Handle, NominatingInfo, PodInfo};
use k8s_openapi::api::core::v1::PodCondition;

use super::candidate::Candidate;

/// The reason in the victims' condition.
pub(super) const PREEMPTION_BY_SCHEDULER: &str = "PreemptionByScheduler";

/// What became of a victim.
enum Ended {
    /// It is deleted, or was gone already: its deletion reaches the queue.
    Deleted,
    /// It was on its way to the node, and is back in the queue: no deletion will come.
    TakenBack,
}

pub(super) struct Executor {
    plugin: &'static str,
    handle: Arc<dyn Handle>,
    /// By the UID of the preemptor: the last victim, once it is its turn.
    preempting: Mutex<HashMap<Arc<str>, Option<Arc<PodInfo>>>>,
}

impl Executor {
    pub(super) fn new(plugin: &'static str, handle: Arc<dyn Handle>) -> Self {
        Executor {
            plugin,
            handle,
            preempting: Mutex::default(),
        }
    }

    /// Is a preemption for this pod still under way?
    pub(super) fn is_pod_running_preemption(&self, uid: &str) -> bool {
        let last = match self
            .preempting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(uid)
        {
            None => return false,
            Some(None) => return true,
            Some(Some(last)) => Arc::clone(last),
        };
        let seen = self.handle.listers().pod(last.namespace(), last.name());
        seen.is_some_and(|pod| !is_terminating(&pod))
    }

    fn set(&self, preemptor: &PodInfo, last: Option<Arc<PodInfo>>) {
        self.preempting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(Arc::clone(&preemptor.uid), last);
    }

    /// Starts ending the victims. Those that are ending already need nothing.
    pub(super) fn prepare_candidate_async(
        this: &Arc<Self>,
        candidate: Candidate,
        preemptor: Arc<PodInfo>,
    ) {
        let victims: Vec<Arc<PodInfo>> = candidate
            .victims
            .into_iter()
            .filter(|victim| !victim.is_terminating())
            .collect();
        if victims.is_empty() {
            return;
        }
        this.set(&preemptor, None);
        let executor = Arc::clone(this);
        this.handle.spawn(Box::pin(async move {
            let result = executor.prepare_candidate(&candidate.node, &victims, &preemptor).await;
            executor.preempting.lock().unwrap_or_else(PoisonError::into_inner).remove(&preemptor.uid);
            if let Err(error) = &result {
                tracing::error!(pod = preemptor.name(), namespace = preemptor.namespace(), %error, "preemption failed");
            }
            // No deletion may come to wake the pod: it has to try again of itself.
            if !matches!(result, Ok(Ended::Deleted)) {
                executor.handle.activate(vec![Arc::clone(&preemptor.pod)]);
            }
        }));
    }

    /// How the last victim ended.
    async fn prepare_candidate(
        &self,
        node: &str,
        victims: &[Arc<PodInfo>],
        preemptor: &Arc<PodInfo>,
    ) -> Result<Ended, ApiWriteError> {
        let cleared = self.clear_lower_nominations(node, preemptor).await;
        let Some((last, others)) = victims.split_last() else {
            return cleared.map(|()| Ended::Deleted);
        };
        let ended = futures::future::join_all(
            others
                .iter()
                .map(|victim| self.preempt_pod(node, victim, preemptor)),
        )
        .await;
        if let Some(error) = ended.into_iter().find_map(Result::err) {
            return Err(error);
        }
        self.set(preemptor, Some(Arc::clone(last)));
        let ended = self.preempt_pod(node, last, preemptor).await?;
        cleared.map(|()| ended)
    }

    /// Pods of lower priority that were promised this node may no longer fit: they look for another one.
    async fn clear_lower_nominations(
        &self,
        node: &str,
        preemptor: &PodInfo,
    ) -> Result<(), ApiWriteError> {
        let mut result = Ok(());
        for pod in self
            .handle
            .nominated_pods_for_node(node)
            .iter()
            .filter(|pod| pod.priority < preemptor.priority)
        {
            if pod.nominated_node_name().is_empty() {
                continue;
            }
            match self
                .handle
                .api()
                .patch_pod_status(&pod.pod, None, NominatingInfo::Override(String::new()))
                .await
            {
                Ok(()) | Err(ApiWriteError::NotFound(_)) => {}
                Err(error) => result = Err(error),
            }
        }
        result
    }

    /// Ends one victim: one that waits in Permit or PreBind goes back to the queue, any other is marked and deleted.
    async fn preempt_pod(
        &self,
        node: &str,
        victim: &Arc<PodInfo>,
        preemptor: &Arc<PodInfo>,
    ) -> Result<Ended, ApiWriteError> {
        let mut note = format!("Preempted by pod {} on node {node}", preemptor.uid);
        let waiting = self.handle.waiting_pod(&victim.uid);
        let stopped = match waiting {
            Some(waiting) => waiting.preempt(self.plugin, "preempted"),
            None => self
                .handle
                .cancel_pod_in_pre_bind(&victim.uid, &format!("preempted by {}", self.plugin)),
        };
        if stopped {
            note.push_str(" (in kube-scheduler memory).");
        } else if !self.delete(victim, preemptor).await? {
            return Ok(Ended::Deleted);
        }
        self.handle.record(EventRecord {
            regarding: Arc::clone(&victim.pod),
            related: Some(Arc::clone(&preemptor.pod)),
            warning: false,
            reason: "Preempted",
            action: "Preempting",
            note,
        });
        Ok(if stopped {
            Ended::TakenBack
        } else {
            Ended::Deleted
        })
    }

    /// False when it was gone already.
    async fn delete(&self, victim: &PodInfo, preemptor: &PodInfo) -> Result<bool, ApiWriteError> {
        let scheduler = preemptor
            .spec()
            .scheduler_name
            .as_deref()
            .unwrap_or_default();
        let condition = PodCondition {
            type_: DISRUPTION_TARGET.into(),
            status: "True".into(),
            reason: Some(PREEMPTION_BY_SCHEDULER.into()),
            message: Some(format!(
                "{scheduler}: preempting to accommodate a higher priority pod"
            )),
            observed_generation: victim.pod.metadata.generation,
            ..PodCondition::default()
        };
        let api = self.handle.api();
        let marked = api
            .patch_pod_status(&victim.pod, Some(condition), NominatingInfo::Noop)
            .await;
        let ended = match marked {
            Ok(()) => api.delete_pod(&victim.pod).await,
            Err(error) => Err(error),
        };
        match ended {
            Ok(()) => Ok(true),
            Err(ApiWriteError::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
