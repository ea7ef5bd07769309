//! The executor: the only one that writes. It carries out actions, checks leadership before each, and records events.
//!
//! Actions are a closed set of verbs over any kind. What an error means is the controller's business, but for what is the same
//! everywhere (see [`Executor::execute`]). Upstream: the scattered `client.CoreV1().Pods(ns).Create(...)` of `pkg/controller`.

use std::sync::Arc;
use std::time::Duration;

use component_base::events::{EventType, Recorder};
use component_base::informer::ObjectKey;
use component_base::leader_election::Leadership;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub use crate::transport::PatchKind;
use crate::transport::{Answer, ApiError, Body, Request, Resource, Transport, Verb};

/// Where an action is aimed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// The kind.
    pub resource: Resource,
    /// Empty namespace for cluster objects.
    pub key: ObjectKey,
    /// Empty for the object itself.
    pub subresource: &'static str,
}

impl Target {
    /// An object of a kind of k8s-openapi.
    pub fn of<K: kube::Resource<DynamicType = ()>>(namespace: &str, name: &str) -> Self {
        Self {
            resource: Resource::of::<K>(),
            key: ObjectKey::new(namespace, name),
            subresource: "",
        }
    }
    /// A subresource of it.
    pub fn subresource(mut self, subresource: &'static str) -> Self {
        self.subresource = subresource;
        self
    }
}

/// How something is deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// Delete only this incarnation.
    pub uid: Option<String>,
    /// Delete only this version.
    pub resource_version: Option<String>,
    /// Seconds to end; `None` means the object's own, 0 at once.
    pub grace_period_seconds: Option<i64>,
    /// `Background`, `Foreground` or `Orphan`; `None` means the kind's default.
    pub propagation: Option<&'static str>,
}

/// One thing a controller wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Creates an object.
    Create {
        /// What and where; the name may be empty with `generateName`.
        target: Target,
        /// The object.
        object: Body,
    },
    /// Replaces an object or a subresource; the object's resourceVersion guards it.
    Update {
        /// What and where.
        target: Target,
        /// The object.
        object: Body,
    },
    /// Changes parts of an object or a subresource.
    Patch {
        /// What and where.
        target: Target,
        /// How `patch` is merged.
        kind: PatchKind,
        /// The patch.
        patch: Value,
    },
    /// Deletes an object.
    Delete {
        /// What and where.
        target: Target,
        /// How.
        options: DeleteOptions,
    },
    /// Records an event.
    Event {
        /// About what.
        regarding: Box<ObjectReference>,
        /// Normal or Warning.
        event_type: EventType,
        /// A CamelCase word.
        reason: &'static str,
        /// For people.
        message: String,
    },
}

impl Action {
    /// Creates an object.
    pub fn create<K: kube::Resource<DynamicType = ()> + Serialize>(object: &K) -> Self {
        Self::Create {
            target: target_of(object, ""),
            object: to_body(object),
        }
    }
    /// Replaces an object.
    pub fn update<K: kube::Resource<DynamicType = ()> + Serialize>(object: &K) -> Self {
        Self::Update {
            target: target_of(object, ""),
            object: to_body(object),
        }
    }
    /// Replaces an object's status.
    pub fn update_status<K: kube::Resource<DynamicType = ()> + Serialize>(object: &K) -> Self {
        Self::Update {
            target: target_of(object, "status"),
            object: to_body(object),
        }
    }
    /// Merges a JSON merge patch into an object.
    pub fn merge_patch<K: kube::Resource<DynamicType = ()>>(
        namespace: &str,
        name: &str,
        patch: Value,
    ) -> Self {
        Self::Patch {
            target: Target::of::<K>(namespace, name),
            kind: PatchKind::Merge,
            patch,
        }
    }
    /// Merges a strategic merge patch into an object.
    pub fn strategic_patch<K: kube::Resource<DynamicType = ()>>(
        namespace: &str,
        name: &str,
        patch: Value,
    ) -> Self {
        Self::Patch {
            target: Target::of::<K>(namespace, name),
            kind: PatchKind::Strategic,
            patch,
        }
    }
    /// Merges a strategic merge patch into an object's status.
    pub fn status_patch<K: kube::Resource<DynamicType = ()>>(
        namespace: &str,
        name: &str,
        patch: Value,
    ) -> Self {
        Self::Patch {
            target: Target::of::<K>(namespace, name).subresource("status"),
            kind: PatchKind::Strategic,
            patch,
        }
    }
    /// Deletes an object.
    pub fn delete<K: kube::Resource<DynamicType = ()>>(
        namespace: &str,
        name: &str,
        options: DeleteOptions,
    ) -> Self {
        Self::Delete {
            target: Target::of::<K>(namespace, name),
            options,
        }
    }
    /// Records an event about an object.
    pub fn event<K: kube::Resource<DynamicType = ()>>(
        object: &K,
        event_type: EventType,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        let regarding = Box::new(component_base::events::object_reference(object));
        Self::Event {
            regarding,
            event_type,
            reason,
            message: message.into(),
        }
    }
}

/// What a pure sync wants: actions in order, and when to look again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Carried out in order.
    pub actions: Vec<Action>,
    /// Look again after this time even if nothing happens.
    pub requeue_after: Option<Duration>,
}

impl Plan {
    /// Nothing to do.
    pub fn none() -> Self {
        Self::default()
    }
    /// Adds an action.
    pub fn push(&mut self, action: Action) {
        self.actions.push(action);
    }
    /// Asks to look again after `delay`, or earlier if that was asked for before.
    pub fn requeue(&mut self, delay: Duration) {
        self.requeue_after = Some(self.requeue_after.map_or(delay, |old| old.min(delay)));
    }
}

fn to_body<K: Serialize>(object: &K) -> Body {
    let value = serde_json::to_value(object);
    value
        .expect("API types have string keys and serialize")
        .into()
}

fn target_of<K: kube::Resource<DynamicType = ()>>(object: &K, subresource: &'static str) -> Target {
    Target {
        resource: Resource::of::<K>(),
        key: ObjectKey::of(object),
        subresource,
    }
}

/// Carries out actions for one controller; cheap to clone.
#[derive(Clone)]
pub struct Executor {
    transport: Arc<dyn Transport>,
    leadership: Leadership,
    recorder: Recorder,
}

impl Executor {
    /// An executor that writes through `transport` while `leadership` holds.
    pub fn new(transport: Arc<dyn Transport>, leadership: Leadership, recorder: Recorder) -> Self {
        Self {
            transport,
            leadership,
            recorder,
        }
    }

    /// What every write waits for.
    pub fn leadership(&self) -> &Leadership {
        &self.leadership
    }

    /// The recorder of the controller.
    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// Carries out one action; returns which object the server answered with ([`Answer::identity`]; null for events and for what was
    /// gone already).
    ///
    /// # Errors
    /// What the server said, or [`ApiError::NotLeading`]. Deleting what is gone already is no error.
    pub async fn execute(&self, action: &Action) -> Result<Value, ApiError> {
        self.answer(action).await?.identity()
    }

    async fn answer(&self, action: &Action) -> Result<Answer, ApiError> {
        let (verb, target, body) = match action {
            Action::Event {
                regarding,
                event_type,
                reason,
                message,
            } => {
                self.recorder
                    .event(regarding, *event_type, reason, reason, message.clone());
                return Ok(Answer::Json(Value::Null));
            }
            Action::Create { target, object } => (Verb::Create, target, object.clone()),
            Action::Update { target, object } => (Verb::Update, target, object.clone()),
            Action::Patch {
                target,
                kind,
                patch,
            } => (Verb::Patch(*kind), target, patch.clone().into()),
            Action::Delete { target, options } => {
                (Verb::Delete, target, delete_body(options).into())
            }
        };
        match self.request(verb, target, Vec::new(), body).await {
            Err(ApiError::NotFound(_)) if verb == Verb::Delete => Ok(Answer::Json(Value::Null)),
            result => result,
        }
    }

    /// Carries out actions in order and stops at the first that fails.
    ///
    /// # Errors
    /// That of the action that failed.
    pub async fn execute_all(&self, actions: &[Action]) -> Result<(), ApiError> {
        for action in actions {
            self.execute(action).await?;
        }
        Ok(())
    }

    /// Carries out a plan and returns when to look again.
    ///
    /// # Errors
    /// That of the action that failed; later ones were not tried.
    pub async fn carry_out(&self, plan: &Plan) -> Result<Option<Duration>, ApiError> {
        self.execute_all(&plan.actions).await?;
        Ok(plan.requeue_after)
    }

    /// Carries out independent actions in batches of 1, 2, 4, … and stops after a batch with a failure, so that a quota does not
    /// get a thousand requests that all fail. Returns each tried action's result, in order; the rest was not tried.
    pub async fn slow_start_batch(&self, actions: &[Action]) -> Vec<Result<Value, ApiError>> {
        let mut results = Vec::with_capacity(actions.len());
        let mut batch = 1;
        while results.len() < actions.len() {
            let end = actions.len().min(results.len() + batch);
            let tried = futures::future::join_all(
                actions[results.len()..end].iter().map(|a| self.execute(a)),
            )
            .await;
            let failed = tried.iter().any(Result::is_err);
            results.extend(tried);
            if failed {
                break;
            }
            batch *= 2;
        }
        results
    }

    /// Creates an object and returns what the server made of it.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn create<K>(&self, object: &K) -> Result<K, ApiError>
    where
        K: kube::Resource<DynamicType = ()> + Serialize + DeserializeOwned,
    {
        self.answer(&Action::create(object)).await?.decode()
    }

    /// Replaces an object and returns what the server made of it.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn update<K>(&self, object: &K) -> Result<K, ApiError>
    where
        K: kube::Resource<DynamicType = ()> + Serialize + DeserializeOwned,
    {
        self.answer(&Action::update(object)).await?.decode()
    }

    /// Replaces an object's status and returns what the server made of it.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn update_status<K>(&self, object: &K) -> Result<K, ApiError>
    where
        K: kube::Resource<DynamicType = ()> + Serialize + DeserializeOwned,
    {
        self.answer(&Action::update_status(object)).await?.decode()
    }

    /// Reads an object from the server, past all caches; `None` when it is not there.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn get<K>(&self, namespace: &str, name: &str) -> Result<Option<K>, ApiError>
    where
        K: kube::Resource<DynamicType = ()> + DeserializeOwned,
    {
        match self
            .request(
                Verb::Get,
                &Target::of::<K>(namespace, name),
                Vec::new(),
                Body::null(),
            )
            .await
        {
            Ok(answer) => answer.decode().map(Some),
            Err(ApiError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads an object's metadata from the server, past all caches, without who set which field; `None` when it is not there.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn get_metadata(&self, target: &Target) -> Result<Option<ObjectMeta>, ApiError> {
        match self
            .request(Verb::Get, target, Vec::new(), Body::null())
            .await
        {
            Ok(answer) => answer.metadata().map(Some),
            Err(ApiError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads a collection from the server; empty selectors select everything, an empty namespace means all.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn list<K>(
        &self,
        namespace: &str,
        label_selector: &str,
        field_selector: &str,
    ) -> Result<Vec<K>, ApiError>
    where
        K: kube::Resource<DynamicType = ()> + DeserializeOwned,
    {
        let query = [
            ("labelSelector", label_selector),
            ("fieldSelector", field_selector),
        ]
        .into_iter()
        .filter(|(_, selector)| !selector.is_empty())
        .map(|(name, selector)| (name, selector.to_string()))
        .collect();
        let mut list = self
            .send(
                Verb::List,
                &Target::of::<K>(namespace, ""),
                query,
                Value::Null,
            )
            .await?;
        match list["items"].take() {
            Value::Array(items) => items.into_iter().map(decode).collect(),
            _ => Ok(Vec::new()),
        }
    }

    /// Sends any request. A write needs leadership; while the leader is paused, reads and writes wait.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn send(
        &self,
        verb: Verb,
        target: &Target,
        query: Vec<(&'static str, String)>,
        body: Value,
    ) -> Result<Value, ApiError> {
        let answer = self.request(verb, target, query, body.into()).await?;
        answer.value()
    }

    /// Sends any write; what the server answered with is not read.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn write(&self, verb: Verb, target: &Target, body: Value) -> Result<(), ApiError> {
        let written = self.request(verb, target, Vec::new(), body.into()).await;
        written.map(drop)
    }

    async fn request(
        &self,
        verb: Verb,
        target: &Target,
        query: Vec<(&'static str, String)>,
        body: Body,
    ) -> Result<Answer, ApiError> {
        if matches!(verb, Verb::Get | Verb::List) {
            self.leadership.wait_while_paused().await;
        } else if !self.leadership.wait().await {
            return Err(ApiError::NotLeading);
        }
        let request = Request {
            verb,
            resource: target.resource.clone(),
            namespace: target.key.namespace.clone(),
            name: target.key.name.clone(),
            subresource: target.subresource.into(),
            query,
            body,
        };
        self.transport.send(request).await
    }
}

fn decode<K: DeserializeOwned>(value: Value) -> Result<K, ApiError> {
    component_base::json::from_value(&value).map_err(|e| ApiError::Decode(e.to_string()))
}

fn delete_body(options: &DeleteOptions) -> Value {
    let mut body = json!({ "kind": "DeleteOptions", "apiVersion": "v1" });
    if options.uid.is_some() || options.resource_version.is_some() {
        let mut preconditions = json!({});
        if let Some(uid) = &options.uid {
            preconditions["uid"] = json!(uid);
        }
        if let Some(version) = &options.resource_version {
            preconditions["resourceVersion"] = json!(version);
        }
        body["preconditions"] = preconditions;
    }
    if let Some(seconds) = options.grace_period_seconds {
        body["gracePeriodSeconds"] = json!(seconds);
    }
    if let Some(propagation) = options.propagation {
        body["propagationPolicy"] = json!(propagation);
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeApi;
    use k8s_openapi::api::core::v1::Namespace;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    fn namespace(name: &str) -> Namespace {
        Namespace {
            metadata: ObjectMeta {
                name: Some(name.into()),
                ..Default::default()
            },
            ..Default::default()
        }
    }

    #[tokio::test]
    async fn writes_reads_and_failures() {
        let api = FakeApi::new();
        let executor = api.executor();
        let made = executor.create(&namespace("a")).await.unwrap();
        assert!(made.metadata.uid.is_some());
        assert!(
            executor
                .create(&namespace("a"))
                .await
                .unwrap_err()
                .is_already_exists()
        );
        let changed = executor.update(&made).await.unwrap();
        assert!(executor.update(&made).await.unwrap_err().is_conflict());
        assert_ne!(
            changed.metadata.resource_version,
            made.metadata.resource_version
        );
        let wrong = DeleteOptions {
            uid: Some("other".into()),
            ..Default::default()
        };
        assert!(
            executor
                .execute(&Action::delete::<Namespace>("", "a", wrong))
                .await
                .unwrap_err()
                .is_conflict()
        );
        executor
            .execute(&Action::delete::<Namespace>(
                "",
                "a",
                DeleteOptions::default(),
            ))
            .await
            .unwrap();
        executor
            .execute(&Action::delete::<Namespace>(
                "",
                "a",
                DeleteOptions::default(),
            ))
            .await
            .unwrap();
        assert_eq!(executor.get::<Namespace>("", "a").await.unwrap(), None);

        api.fail(|r| r.name == "n2", ApiError::Forbidden("quota".into()));
        let actions: Vec<Action> = (0..7)
            .map(|i| Action::create(&namespace(&format!("n{i}"))))
            .collect();
        let results = executor.slow_start_batch(&actions).await;
        assert_eq!(results.len(), 3);
        assert_eq!(results.iter().filter(|r| r.is_err()).count(), 1);
    }
}
