//! A stand-in for the API server, for tests of controllers: it keeps objects, answers as the API does, and fails on demand.

mod feed;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use component_base::events::Recorder;
use component_base::leader_election::Leadership;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::executor::Executor;
use crate::transport::{Answer, ApiError, Request, Resource, Transport, Verb};

pub use feed::{Feed, settle};

type Matcher = Box<dyn Fn(&Request) -> bool + Send + Sync>;
type Stored = (Resource, String, String);

#[derive(Default)]
struct State {
    objects: BTreeMap<Stored, Value>,
    version: u64,
    failures: Vec<(Matcher, ApiError)>,
    requests: Vec<Request>,
}

/// An API in memory; clones share it. Strategic merge patches are merged as JSON merge patches.
#[derive(Clone, Default)]
pub struct FakeApi {
    state: Arc<Mutex<State>>,
}

impl FakeApi {
    /// An empty API.
    pub fn new() -> Self {
        Self::default()
    }

    /// An executor that writes here and always leads.
    pub fn executor(&self) -> Executor {
        Executor::new(
            Arc::new(self.clone()),
            Leadership::always(),
            Recorder::discard(),
        )
    }

    /// An executor whose events a test reads.
    pub fn executor_with(&self, recorder: Recorder) -> Executor {
        Executor::new(Arc::new(self.clone()), Leadership::always(), recorder)
    }

    /// From now on, requests that match fail with `error` and change nothing.
    pub fn fail(
        &self,
        matcher: impl Fn(&Request) -> bool + Send + Sync + 'static,
        error: ApiError,
    ) {
        self.lock().failures.push((Box::new(matcher), error));
    }

    /// No request fails on demand any more.
    pub fn heal(&self) {
        self.lock().failures.clear();
    }

    /// Puts an object in, as it is.
    pub fn insert<K: kube::Resource<DynamicType = ()> + Serialize>(&self, object: &K) {
        let meta = object.meta();
        let key = (
            Resource::of::<K>(),
            meta.namespace.clone().unwrap_or_default(),
            meta.name.clone().unwrap_or_default(),
        );
        let value = serde_json::to_value(object).expect("API types have string keys and serialize");
        self.lock().objects.insert(key, value);
    }

    /// An object, if it is there.
    pub fn get<K: kube::Resource<DynamicType = ()> + DeserializeOwned>(
        &self,
        namespace: &str,
        name: &str,
    ) -> Option<K> {
        let key = (Resource::of::<K>(), namespace.to_string(), name.to_string());
        let value = self.lock().objects.get(&key).cloned()?;
        Some(
            serde_json::from_value(value).expect("what was stored as this kind reads as this kind"),
        )
    }

    /// All objects of a kind.
    pub fn list<K: kube::Resource<DynamicType = ()> + DeserializeOwned>(&self) -> Vec<K> {
        let resource = Resource::of::<K>();
        let values: Vec<Value> = self
            .lock()
            .objects
            .iter()
            .filter(|((r, _, _), _)| *r == resource)
            .map(|(_, v)| v.clone())
            .collect();
        let read = |value| {
            serde_json::from_value(value).expect("what was stored as this kind reads as this kind")
        };
        values.into_iter().map(read).collect()
    }

    /// Every write so far, also those that failed.
    pub fn writes(&self) -> Vec<Request> {
        let is_write = |r: &&Request| !matches!(r.verb, Verb::Get | Verb::List);
        self.lock()
            .requests
            .iter()
            .filter(is_write)
            .cloned()
            .collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no panic while the lock is held")
    }
}

#[async_trait]
impl Transport for FakeApi {
    async fn send(&self, request: Request) -> Result<Answer, ApiError> {
        let mut state = self.lock();
        state.requests.push(request.clone());
        if let Some((_, error)) = state.failures.iter().find(|(matches, _)| matches(&request)) {
            return Err(error.clone());
        }
        state.answer(request).map(Answer::Json)
    }
}

impl State {
    fn answer(&mut self, request: Request) -> Result<Value, ApiError> {
        let what = format!("{} \"{}\"", request.resource.plural, request.name);
        let key = (
            request.resource.clone(),
            request.namespace.clone(),
            request.name.clone(),
        );
        let not_found = || ApiError::NotFound(format!("{what} not found"));
        match request.verb {
            Verb::Get => self.objects.get(&key).cloned().ok_or_else(not_found),
            Verb::List => {
                let items: Vec<Value> = self
                    .objects
                    .iter()
                    .filter(|((r, ns, _), _)| {
                        *r == request.resource
                            && (request.namespace.is_empty() || *ns == request.namespace)
                    })
                    .map(|(_, v)| v.clone())
                    .collect();
                Ok(json!({ "kind": "List", "items": items }))
            }
            Verb::Create if request.subresource.is_empty() => self.create(request),
            Verb::Create => Ok(request.body.into_value()),
            Verb::Update => {
                let old = self.objects.get(&key).ok_or_else(not_found)?;
                let sent = &request.body["metadata"]["resourceVersion"];
                if !sent.is_null() && *sent != old["metadata"]["resourceVersion"] {
                    return Err(ApiError::Conflict(format!(
                        "Operation cannot be fulfilled on {what}"
                    )));
                }
                let mut new = request.body.into_value();
                if request.subresource == "status" {
                    let mut merged = old.clone();
                    merged["status"] = new["status"].take();
                    new = merged;
                } else {
                    new["metadata"]["uid"] = old["metadata"]["uid"].clone();
                }
                self.store(key, new)
            }
            Verb::Patch(_) => {
                let mut new = self.objects.get(&key).cloned().ok_or_else(not_found)?;
                merge(&mut new, &request.body);
                self.store(key, new)
            }
            Verb::Delete => {
                let old = self.objects.get(&key).ok_or_else(not_found)?;
                let wanted = &request.body["preconditions"]["uid"];
                if !wanted.is_null() && *wanted != old["metadata"]["uid"] {
                    return Err(ApiError::Conflict(format!(
                        "Precondition failed: UID in precondition for {what}"
                    )));
                }
                let wanted = &request.body["preconditions"]["resourceVersion"];
                if !wanted.is_null() && *wanted != old["metadata"]["resourceVersion"] {
                    return Err(ApiError::Conflict(format!(
                        "Precondition failed: ResourceVersion in precondition for {what}"
                    )));
                }
                Ok(self.objects.remove(&key).unwrap_or_default())
            }
            Verb::DeleteCollection => {
                self.objects
                    .retain(|(r, ns, _), _| *r != request.resource || *ns != request.namespace);
                Ok(Value::Null)
            }
        }
    }

    fn create(&mut self, request: Request) -> Result<Value, ApiError> {
        let mut object = request.body.into_value();
        self.version += 1;
        let mut name = request.name;
        if name.is_empty() {
            name = format!(
                "{}{:05}",
                object["metadata"]["generateName"]
                    .as_str()
                    .unwrap_or_default(),
                self.version
            );
        }
        let key = (request.resource.clone(), request.namespace, name.clone());
        if self.objects.contains_key(&key) {
            return Err(ApiError::AlreadyExists(format!(
                "{} \"{name}\" already exists",
                request.resource.plural
            )));
        }
        object["metadata"]["name"] = json!(name);
        object["metadata"]["uid"] = json!(format!("uid-{}", self.version));
        object["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
        self.store(key, object)
    }

    fn store(&mut self, key: Stored, mut object: Value) -> Result<Value, ApiError> {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(key, object.clone());
        Ok(object)
    }
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    if let Value::Object(object) = target {
        for (name, value) in patch {
            if value.is_null() {
                object.remove(name);
            } else {
                merge(object.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
    }
}
