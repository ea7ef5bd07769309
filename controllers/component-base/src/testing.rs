//! An API server in memory, for tests of the shells of any program of the house.
//!
//! A [`kube::Client`] of it behaves as one of the real: versions, watches (streamed lists, bookmarks, 410), conflicts and preconditions,
//! finalizers, graceful deletion of pods, status subresources, generated names. Names, UIDs and versions are counted, so that the same test
//! has the same log twice. Never validates, never defaults but what is named here, and knows no access control.
//! Upstream: `k8s.io/apiserver/pkg/registry/generic/registry/store.go`, `k8s.io/client-go/testing` (which has less).

mod discovery;
mod patch;
mod request;
mod respond;
mod store;
mod world;

use std::sync::{Arc, Mutex, MutexGuard};

use jiff::Timestamp;
use kube::Resource;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub use request::{Call, Verb};
pub use world::World;

use crate::clock::Clock;
use store::{Store, Stored};

type Matcher = Box<dyn Fn(&Call) -> bool + Send + Sync>;

/// Why a request fails: the HTTP status, the reason and the message of a `Status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// As 409.
    pub code: u16,
    /// As `Conflict`.
    pub reason: String,
    /// For people.
    pub message: String,
}

impl Refusal {
    /// One of upstream's reasons with its code.
    pub fn new(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.to_owned(),
            message: message.into(),
        }
    }
}

/// A request, and what came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Noted {
    /// When it came.
    pub at: Timestamp,
    /// The request.
    pub call: Call,
    /// `None`: it was carried out.
    pub refused: Option<Refusal>,
}

struct Failure {
    matches: Matcher,
    with: Refusal,
    /// It happens all the same.
    carried_out: bool,
}

struct State {
    store: Store,
    failures: Vec<Failure>,
    calls: Vec<Noted>,
}

/// The server; clones are the same one.
#[derive(Clone)]
pub struct ApiServer {
    state: Arc<Mutex<State>>,
    clock: Clock,
}

impl ApiServer {
    /// An empty server whose objects are stamped by `clock`.
    pub fn new(clock: Clock) -> Self {
        let state = State {
            store: Store::default(),
            failures: Vec::new(),
            calls: Vec::new(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            clock,
        }
    }

    /// A client of it, without a network between.
    pub fn client(&self) -> kube::Client {
        let server = self.clone();
        let service = tower::service_fn(move |request| respond::respond(server.clone(), request));
        kube::Client::new(service, "default")
    }

    /// From now on, requests that match are refused and change nothing.
    pub fn fail(&self, matcher: impl Fn(&Call) -> bool + Send + Sync + 'static, with: Refusal) {
        self.lock().failures.push(Failure {
            matches: Box::new(matcher),
            with,
            carried_out: false,
        });
    }

    /// From now on, requests that match are carried out, and answered as if they were not: the connection broke in between.
    pub fn lose_answers(
        &self,
        matcher: impl Fn(&Call) -> bool + Send + Sync + 'static,
        with: Refusal,
    ) {
        self.lock().failures.push(Failure {
            matches: Box::new(matcher),
            with,
            carried_out: true,
        });
    }

    /// Nothing is refused on demand any more.
    pub fn heal(&self) {
        self.lock().failures.clear();
    }

    /// Creates an object, as another client would.
    ///
    /// # Panics
    /// It is there already.
    pub fn create<K: Object>(&self, object: &K) -> K {
        let body = serde_json::to_value(object).expect("API types have string keys and serialize");
        self.as_other::<K>(Verb::Create, object, "", body)
    }

    /// Replaces an object and, unlike a client of the real server, its status in one; whatever version the caller has.
    ///
    /// # Panics
    /// It is not there.
    pub fn update<K: Object>(&self, object: &K) -> K {
        let mut body =
            serde_json::to_value(object).expect("API types have string keys and serialize");
        body["metadata"]["resourceVersion"] = Value::Null;
        let updated = self.as_other::<K>(Verb::Update, object, "", body.clone());
        match body["status"].is_null() {
            true => updated,
            false => self.as_other::<K>(Verb::Update, object, "status", body),
        }
    }

    /// Deletes an object, as another client would; a pod on a node first has its grace.
    ///
    /// # Panics
    /// It is not there.
    pub fn delete<K: Object>(&self, namespace: &str, name: &str) {
        let call = Call::new::<K>(Verb::Delete, namespace, name);
        let (mut state, now) = (self.lock(), self.clock.now());
        if let Err(refusal) = state.store.answer(&call, now) {
            panic!("{}", refusal.message);
        }
    }

    fn as_other<K: Object>(&self, verb: Verb, object: &K, subresource: &str, body: Value) -> K {
        let meta = object.meta();
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let name = meta.name.as_deref().unwrap_or_default();
        let call = Call {
            subresource: subresource.to_owned(),
            body,
            ..Call::new::<K>(verb, namespace, name)
        };
        let now = self.clock.now();
        match self.lock().store.answer(&call, now) {
            Ok(stored) => read(stored),
            Err(refusal) => panic!("{}", refusal.message),
        }
    }

    /// An object as it is now.
    pub fn get<K: Object>(&self, namespace: &str, name: &str) -> Option<K> {
        let call = Call::new::<K>(Verb::Get, namespace, name);
        self.lock().store.get(&call).map(read)
    }

    /// All objects of a kind, by namespace and name.
    pub fn list<K: Object>(&self) -> Vec<K> {
        let call = Call::new::<K>(Verb::List, "", "");
        self.lock()
            .store
            .list(&call)
            .into_iter()
            .map(read)
            .collect()
    }

    /// Every request of clients so far, also those refused, oldest first. Those of discovery are none.
    pub fn calls(&self) -> Vec<Call> {
        let state = self.lock();
        state.calls.iter().map(|noted| noted.call.clone()).collect()
    }

    /// The same, without those that only read.
    pub fn writes(&self) -> Vec<Call> {
        let noted = self.log().into_iter();
        noted.map(|noted| noted.call).collect()
    }

    /// The writes with their times, and what came of them.
    pub fn log(&self) -> Vec<Noted> {
        let state = self.lock();
        let writes = state.calls.iter().filter(|noted| noted.call.verb.writes());
        writes.cloned().collect()
    }

    /// Waits until `condition` holds, looking again after every change.
    pub async fn until(&self, condition: impl Fn(&Self) -> bool) {
        let mut changes = self.lock().store.changes();
        while !condition(self) {
            // The store lives in self.
            let _ = changes.changed().await;
        }
    }

    /// Ends every watch, as the real server does every few minutes.
    pub fn end_watches(&self) {
        self.lock().store.end_watches();
    }

    /// Forgets what happened so far: a watch that asks for it is told 410.
    pub fn compact(&self) {
        self.lock().store.compact();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while the lock is held")
    }
}

/// What objects of a test are.
pub trait Object: Resource<DynamicType = ()> + Serialize + DeserializeOwned {}

impl<K: Resource<DynamicType = ()> + Serialize + DeserializeOwned> Object for K {}

fn read<K: DeserializeOwned>(stored: Stored) -> K {
    K::deserialize(&*stored).expect("what was stored as this kind reads as this kind")
}

/// The body of a `Status` of failure.
fn status(refusal: &Refusal) -> Value {
    json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "reason": refusal.reason,
        "message": refusal.message,
        "code": refusal.code,
    })
}

#[cfg(test)]
mod tests;
