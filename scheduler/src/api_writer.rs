//! [`KubeWriter`]: the scheduler's writes to the API server.
//!
//! Status writes of one pod go out one after the other, and of several that wait only the newest is sent: an old verdict never overwrites a newer one. A binding is the last word:
//! what waits is dropped, and what is on its way is let arrive first. Upstream: pkg/scheduler/backend/api_dispatcher, v1.37.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use component_base::client::{api_status, is_conflict, is_not_found};
use component_base::clock::Clock;
use component_base::leader_election::Leadership;
use framework::{ApiWriteError, ApiWriter, BoxFuture, ClaimWriter, NominatingInfo};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, PodCondition};
use k8s_openapi::api::scheduling::v1beta1::PodGroup;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Requests under way at once; others wait. The client's rate limit comes on top.
const MAX_REQUESTS: usize = 256;

#[derive(Clone)]
struct StatusPatch {
    namespace: String,
    name: String,
    uid: String,
    condition: Option<PodCondition>,
    nominated_node_name: Option<String>,
}

/// By the UID of the pod.
#[derive(Default)]
struct Waiting {
    newest: HashMap<String, StatusPatch>,
    /// Writers, each with what says that it has ended.
    under_way: HashMap<String, CancellationToken>,
}

impl Waiting {
    /// Puts what is to be said of a pod in line, if it is news; what says that its writer has ended, if it becomes the caller's to write.
    fn begin(
        &mut self,
        pod: &Pod,
        condition: Option<PodCondition>,
        nominating: NominatingInfo,
        now: Timestamp,
    ) -> Option<CancellationToken> {
        // What is on its way changes the pod from what it is known as: then what it is known as is news, too.
        let in_line = self
            .under_way
            .contains_key(component_helpers::pod::uid(pod));
        let patch = status_patch(pod, condition, nominating, now, in_line)?;
        self.put(patch)
    }

    /// Puts a patch in line; what says that its writer has ended, if it becomes the caller's to write.
    fn put(&mut self, patch: StatusPatch) -> Option<CancellationToken> {
        let uid = patch.uid.clone();
        let merged = match self.newest.remove(&uid) {
            Some(older) => StatusPatch {
                condition: patch.condition.or(older.condition),
                nominated_node_name: patch.nominated_node_name.or(older.nominated_node_name),
                ..older
            },
            None => patch,
        };
        self.newest.insert(uid.clone(), merged);
        if self.under_way.contains_key(&uid) {
            // Whoever is writing this pod's status sends ours next.
            return None;
        }
        let ended = CancellationToken::new();
        self.under_way.insert(uid, ended.clone());
        Some(ended)
    }

    /// The next patch of the pod; its writer ends with the last.
    fn next(&mut self, uid: &str) -> Option<StatusPatch> {
        let next = self.newest.remove(uid);
        if next.is_none()
            && let Some(ended) = self.under_way.remove(uid)
        {
            ended.cancel();
        }
        next
    }

    /// The pod is to be bound: what was to be said of it no longer is. What is on its way still ends with the token.
    fn supersede(&mut self, uid: &str) -> Option<CancellationToken> {
        self.newest.remove(uid);
        self.under_way.get(uid).cloned()
    }
}

/// See the module.
pub struct KubeWriter {
    client: Client,
    leadership: Leadership,
    clock: Clock,
    requests: Arc<Semaphore>,
    waiting: Mutex<Waiting>,
}

impl KubeWriter {
    /// Writes by `client` while this process leads; waits while it is paused.
    pub fn new(client: Client, leadership: Leadership, clock: Clock) -> Self {
        KubeWriter {
            client,
            leadership,
            clock,
            requests: Arc::new(Semaphore::new(MAX_REQUESTS)),
            waiting: Mutex::default(),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn api(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// A turn to write, for as long as the permit is kept.
    async fn slot(&self) -> Result<tokio::sync::OwnedSemaphorePermit, ApiWriteError> {
        let permit = Arc::clone(&self.requests).acquire_owned().await;
        if !self.leadership.wait().await {
            return Err(ApiWriteError::Failed(
                "this process does not lead".to_owned(),
            ));
        }
        permit.map_err(|_| ApiWriteError::Failed("the scheduler is ending".to_owned()))
    }

    /// Patches a volume or claim; its new version.
    // DIFFERS: upstream writes the whole object; a patch at the same version writes no less and cannot drop fields unknown here.
    async fn patch<K>(
        &self,
        api: &Api<K>,
        meta: &ObjectMeta,
        body: serde_json::Value,
    ) -> Result<String, ApiWriteError>
    where
        K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        let _slot = self.slot().await?;
        let name = meta.name.as_deref().unwrap_or_default();
        let (params, patch) = (PatchParams::default(), Patch::Merge(body));
        let patched = api.patch_metadata(name, &params, &patch).await;
        let patched = patched.map_err(write_error)?;
        Ok(patched.metadata.resource_version.unwrap_or_default())
    }

    async fn send(&self, patch: &StatusPatch) -> Result<(), ApiWriteError> {
        let _slot = self.slot().await?;
        let mut status = serde_json::Map::new();
        if let Some(condition) = &patch.condition {
            status.insert("conditions".into(), json!([condition]));
            status.insert(
                "$setElementOrder/conditions".into(),
                json!([{"type": condition.type_}]),
            );
        }
        if let Some(node) = &patch.nominated_node_name {
            status.insert(
                "nominatedNodeName".into(),
                if node.is_empty() {
                    json!(null)
                } else {
                    json!(node)
                },
            );
        }
        // The UID keeps a pod of the same name that came later from being written to.
        let body = json!({"metadata": {"uid": patch.uid}, "status": status});
        let api = self.api(&patch.namespace);
        api.patch_status(
            &patch.name,
            &PatchParams::default(),
            &Patch::Strategic(body),
        )
        .await
        .map(|_| ())
        .map_err(write_error)
    }
}

mod claims;

impl ApiWriter for KubeWriter {
    fn claims(&self) -> Option<&dyn ClaimWriter> {
        Some(self)
    }

    fn bind<'a>(
        &'a self,
        pod: &'a Pod,
        node_name: &'a str,
    ) -> BoxFuture<'a, Result<(), ApiWriteError>> {
        Box::pin(async move {
            let uid = pod.metadata.uid.as_deref().unwrap_or_default();
            let under_way = self.waiting().supersede(uid);
            if let Some(ended) = under_way {
                ended.cancelled().await;
            }
            let _slot = self.slot().await?;
            let (namespace, name) = (
                pod.metadata.namespace.as_deref().unwrap_or_default(),
                pod.metadata.name.as_deref().unwrap_or_default(),
            );
            let binding = json!({
                "apiVersion": "v1", "kind": "Binding",
                "metadata": {"namespace": namespace, "name": name, "uid": pod.metadata.uid},
                "target": {"apiVersion": "v1", "kind": "Node", "name": node_name},
            });
            let request = http::Request::post(format!(
                "/api/v1/namespaces/{namespace}/pods/{name}/binding"
            ))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(binding.to_string().into_bytes())
            .map_err(|error| ApiWriteError::Failed(error.to_string()))?;
            self.client
                .request_text(request)
                .await
                .map(|_| ())
                .map_err(write_error)
        })
    }

    fn patch_pod_group<'a>(
        &'a self,
        group: &'a PodGroup,
        condition: Condition,
    ) -> BoxFuture<'a, Result<(), ApiWriteError>> {
        Box::pin(async move {
            let _slot = self.slot().await?;
            let meta = &group.metadata;
            // The UID keeps a group of the same name that came later from being written to; conditions are merged by their types.
            let body =
                json!({"metadata": {"uid": meta.uid}, "status": {"conditions": [condition]}});
            let namespace = meta.namespace.as_deref().unwrap_or_default();
            let api = Api::<PodGroup>::namespaced(self.client.clone(), namespace);
            let (name, params) = (
                meta.name.as_deref().unwrap_or_default(),
                PatchParams::default(),
            );
            let patched = api
                .patch_status(name, &params, &Patch::Strategic(body))
                .await;
            patched.map(|_| ()).map_err(write_error)
        })
    }

    fn delete_pod<'a>(&'a self, pod: &'a Pod) -> BoxFuture<'a, Result<(), ApiWriteError>> {
        Box::pin(async move {
            let _slot = self.slot().await?;
            let api = self.api(pod.metadata.namespace.as_deref().unwrap_or_default());
            let preconditions = Some(Preconditions {
                uid: pod.metadata.uid.clone(),
                resource_version: None,
            });
            let params = DeleteParams {
                preconditions,
                ..DeleteParams::default()
            };
            api.delete(pod.metadata.name.as_deref().unwrap_or_default(), &params)
                .await
                .map(|_| ())
                .map_err(write_error)
        })
    }

    fn bind_volume<'a>(
        &'a self,
        volume: &'a PersistentVolume,
    ) -> BoxFuture<'a, Result<String, ApiWriteError>> {
        Box::pin(async move {
            let mut body = json!({"metadata": written(&volume.metadata)});
            body["spec"] =
                json!({"claimRef": volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref())});
            let api = Api::<PersistentVolume>::all(self.client.clone());
            self.patch(&api, &volume.metadata, body).await
        })
    }

    fn annotate_claim<'a>(
        &'a self,
        claim: &'a PersistentVolumeClaim,
    ) -> BoxFuture<'a, Result<String, ApiWriteError>> {
        Box::pin(async move {
            let body = json!({"metadata": written(&claim.metadata)});
            let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
            let api = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), namespace);
            self.patch(&api, &claim.metadata, body).await
        })
    }

    fn patch_pod_status<'a>(
        &'a self,
        pod: &'a Pod,
        condition: Option<PodCondition>,
        nominating: NominatingInfo,
    ) -> BoxFuture<'a, Result<(), ApiWriteError>> {
        Box::pin(async move {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            let now = self.clock.now();
            let begun = self.waiting().begin(pod, condition, nominating, now);
            let Some(ended) = begun else {
                return Ok(());
            };
            // Dropped on the way (the process ends), it must not be waited for.
            let _ended = ended.drop_guard();
            let mut result = Ok(());
            loop {
                let next = self.waiting().next(&uid);
                let Some(patch) = next else { return result };
                result = self.send(&patch).await;
            }
        })
    }
}

/// The annotations, and what keeps the write from any other version of the object, or another object of its name.
fn written(meta: &ObjectMeta) -> serde_json::Value {
    json!({"uid": meta.uid, "resourceVersion": meta.resource_version, "annotations": meta.annotations})
}

/// What has to change; `None` for nothing. `all`: what is as it should be is said again.
fn status_patch(
    pod: &Pod,
    condition: Option<PodCondition>,
    nominating: NominatingInfo,
    now: Timestamp,
    all: bool,
) -> Option<StatusPatch> {
    let status = pod.status.as_ref();
    let known = |type_: &str| {
        status
            .and_then(|s| s.conditions.as_ref())?
            .iter()
            .find(|c| c.type_ == type_)
    };
    let condition = condition.and_then(|mut condition| {
        let old = known(&condition.type_);
        if let Some(old) = old.filter(|old| old.status == condition.status) {
            condition
                .last_transition_time
                .clone_from(&old.last_transition_time);
            if !all
                && old.reason == condition.reason
                && old.message == condition.message
                && old.observed_generation == condition.observed_generation
            {
                return None;
            }
        }
        condition.last_transition_time.get_or_insert(Time(now));
        Some(condition)
    });
    let nominated = status
        .and_then(|s| s.nominated_node_name.as_deref())
        .unwrap_or_default();
    // A pod with a node can no longer be promised one; the API server refuses it.
    let is_bound = component_helpers::pod::node_name(pod).is_some();
    let nominated_node_name = match nominating {
        NominatingInfo::Override(node)
            if (all || node != nominated) && (node.is_empty() || !is_bound) =>
        {
            Some(node)
        }
        _ => None,
    };
    if condition.is_none() && nominated_node_name.is_none() {
        return None;
    }
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let (namespace, name, uid) = (
        text(&pod.metadata.namespace),
        text(&pod.metadata.name),
        text(&pod.metadata.uid),
    );
    Some(StatusPatch {
        namespace,
        name,
        uid,
        condition,
        nominated_node_name,
    })
}

fn write_error(error: kube::Error) -> ApiWriteError {
    let text =
        api_status(&error).map_or_else(|| error.to_string(), |status| status.message.clone());
    if is_not_found(&error) {
        ApiWriteError::NotFound(text)
    } else if is_conflict(&error) {
        ApiWriteError::Conflict(text)
    } else {
        ApiWriteError::Failed(text)
    }
}

#[cfg(test)]
mod tests {
    use framework::testing::make_pod;

    use super::*;

    fn status_patch(
        pod: &Pod,
        condition: Option<PodCondition>,
        nominating: NominatingInfo,
    ) -> Option<StatusPatch> {
        super::status_patch(pod, condition, nominating, Timestamp::UNIX_EPOCH, false)
    }

    fn unschedulable(message: &str) -> Option<PodCondition> {
        Some(PodCondition {
            type_: "PodScheduled".into(),
            status: "False".into(),
            reason: Some("Unschedulable".into()),
            message: Some(message.into()),
            ..PodCondition::default()
        })
    }

    #[test]
    fn only_what_differs_is_written() {
        let pod = make_pod("p").nominated_node_name("n").build();
        let over = |node: &str| NominatingInfo::Override(node.into());
        assert!(status_patch(&pod, None, NominatingInfo::Noop).is_none());
        assert!(status_patch(&pod, None, over("n")).is_none());
        assert_eq!(
            status_patch(&pod, None, over("")).and_then(|p| p.nominated_node_name),
            Some(String::new())
        );
        let bound = make_pod("p").node("n").build();
        assert!(status_patch(&bound, None, over("other")).is_none());
        let first = status_patch(&pod, unschedulable("no room"), NominatingInfo::Noop)
            .expect("new")
            .condition
            .expect("new");
        assert!(first.last_transition_time.is_some());
        let pod = make_pod("p")
            .with(|pod| pod.status.get_or_insert_default().conditions = Some(vec![first.clone()]))
            .build();
        assert!(status_patch(&pod, unschedulable("no room"), NominatingInfo::Noop).is_none());
        let second = status_patch(&pod, unschedulable("still none"), NominatingInfo::Noop)
            .expect("text differs")
            .condition
            .expect("kept");
        assert_eq!(second.last_transition_time, first.last_transition_time);
    }

    #[test]
    fn what_takes_back_a_patch_on_its_way_is_said_though_the_pod_is_known_so() {
        let (pod, node) = (make_pod("p").uid("uid").build(), |node: &str| {
            NominatingInfo::Override(node.into())
        });
        let mut waiting = Waiting::default();
        let now = Timestamp::UNIX_EPOCH;
        let begin = |waiting: &mut Waiting, name: &str| {
            waiting.begin(&pod, None, node(name), now).is_some()
        };
        assert!(!begin(&mut waiting, ""), "no news");
        assert!(begin(&mut waiting, "n"));
        let said = |waiting: &mut Waiting| waiting.next("uid")?.nominated_node_name;
        assert_eq!(said(&mut waiting).as_deref(), Some("n"));
        // It is on its way, and the cache knows nothing of it.
        assert!(!begin(&mut waiting, ""));
        assert_eq!(said(&mut waiting).as_deref(), Some(""));
        assert!(waiting.next("uid").is_none());
    }

    #[test]
    fn a_binding_is_the_last_word() {
        let patch = |node: &str| StatusPatch {
            namespace: "default".into(),
            name: "p".into(),
            uid: "uid".into(),
            condition: None,
            nominated_node_name: Some(node.into()),
        };
        let mut waiting = Waiting::default();
        assert!(waiting.supersede("uid").is_none());
        let ended = waiting.put(patch("a")).expect("the first is the caller's");
        let first = waiting.next("uid").and_then(|p| p.nominated_node_name);
        assert_eq!(first.as_deref(), Some("a"));
        // The first is on its way, and the pod gets its node before the second is.
        assert!(waiting.put(patch("b")).is_none());
        let on_its_way = waiting.supersede("uid").expect("the first");
        assert!(!on_its_way.is_cancelled());
        assert!(waiting.next("uid").is_none(), "the second is never sent");
        assert!(on_its_way.is_cancelled() && ended.is_cancelled());
    }
}
