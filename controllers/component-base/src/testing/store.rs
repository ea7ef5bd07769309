//! The objects, what happened to them, and who is told.

use std::collections::BTreeMap;
use std::sync::Arc;

use component_helpers::labels::Selector;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize as _;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;

use super::Refusal;
use super::patch::{merge, strategic};
use super::request::{Call, Verb};

pub(super) type Stored = Arc<Value>;
/// The event's type and its object.
pub(super) type Told = (&'static str, Stored);
/// Namespace and name.
type Key = (String, String);
/// Group and plural.
type Kind = (String, String);

/// On the bookmark that ends a streaming list. Upstream: `InitialEventsAnnotationKey`.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";
/// Of a pod that does not say. Upstream: `DefaultTerminationGracePeriodSeconds`.
const GRACE_SECONDS: i64 = 30;

/// What happened to one object.
struct Change {
    version: u64,
    kind: Kind,
    old: Option<Stored>,
    /// With the version of its end, if it is gone.
    new: Stored,
    gone: bool,
}

impl Change {
    /// What a watch of some of the kind's objects is told.
    fn told(&self, filter: &Filter) -> Option<Told> {
        let before = self.old.as_ref().is_some_and(|old| filter.matches(old));
        let after = !self.gone && filter.matches(&self.new);
        let kind = match (before, after) {
            (false, false) => return None,
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
        };
        Some((kind, self.new.clone()))
    }
}

/// Which objects of a kind.
struct Filter {
    namespace: String,
    labels: Selector,
    /// Path, whether it must be equal, value.
    fields: Vec<(Vec<String>, bool, String)>,
}

impl Filter {
    fn of(call: &Call) -> Result<Self, Refusal> {
        let bad = |message: String| Refusal::new(400, "BadRequest", message);
        let labels = Selector::parse(call.parameter("labelSelector"));
        let mut fields = Vec::new();
        let wanted = call.parameter("fieldSelector").split(',');
        for term in wanted.filter(|term| !term.is_empty()) {
            let (path, equal, value) = match (term.split_once("!="), term.split_once('=')) {
                (Some((path, value)), _) => (path, false, value),
                (None, Some((path, value))) => (path, true, value.trim_start_matches('=')),
                (None, None) => return Err(bad(format!("invalid field selector: {term:?}"))),
            };
            let path = path.split('.').map(str::to_owned).collect();
            fields.push((path, equal, value.to_owned()));
        }
        Ok(Self {
            namespace: call.namespace.clone(),
            labels: labels.map_err(|error| bad(error.to_string()))?,
            fields,
        })
    }

    fn matches(&self, object: &Value) -> bool {
        let metadata = &object["metadata"];
        let labelled = || {
            let labels = BTreeMap::<String, String>::deserialize(&metadata["labels"]);
            self.labels.matches(&labels.unwrap_or_default())
        };
        (self.namespace.is_empty() || metadata["namespace"] == self.namespace.as_str())
            && (self.labels.is_everything() || labelled())
            && self.fields.iter().all(|(path, equal, wanted)| {
                let found = path
                    .iter()
                    .fold(object, |value, part| &value[part.as_str()]);
                let found = match found {
                    Value::String(text) => text.clone(),
                    Value::Null => String::new(),
                    other => other.to_string(),
                };
                (found == *wanted) == *equal
            })
    }
}

struct Watcher {
    kind: Kind,
    filter: Filter,
    sender: UnboundedSender<Told>,
}

/// What a watch begins with, and what comes.
pub(super) struct Watch {
    pub(super) first: Vec<Told>,
    pub(super) next: UnboundedReceiver<Told>,
}

#[derive(Default)]
pub(super) struct Store {
    version: u64,
    /// Changes up to this one are forgotten.
    compacted: u64,
    /// Of names and UIDs that were made up.
    made: u64,
    objects: BTreeMap<Kind, BTreeMap<Key, Stored>>,
    history: Vec<Change>,
    watchers: Vec<Watcher>,
    /// Told the version after every change.
    changed: watch::Sender<u64>,
}

impl Store {
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn get(&self, call: &Call) -> Option<Stored> {
        self.objects.get(&kind(call))?.get(&key(call)).cloned()
    }

    /// Without a selector that can be read: none.
    pub(super) fn list(&self, call: &Call) -> Vec<Stored> {
        let Ok(filter) = Filter::of(call) else {
            return Vec::new();
        };
        let objects = self.objects.get(&kind(call)).into_iter().flatten();
        let objects = objects.map(|(_, object)| object);
        objects.filter(|o| filter.matches(o)).cloned().collect()
    }

    pub(super) fn watch(&mut self, call: &Call) -> Result<Watch, Refusal> {
        let (kind, filter) = (kind(call), Filter::of(call)?);
        let mut first = Vec::new();
        let since = call.parameter("resourceVersion");
        if call.parameter("sendInitialEvents") == "true" {
            let listed = self.list(call);
            first.extend(listed.into_iter().map(|object| ("ADDED", object)));
            let annotations = json!({INITIAL_EVENTS_END: "true"});
            first.push(self.bookmark(call, annotations));
        } else if since.is_empty() || since == "0" {
            let listed = self.list(call);
            first.extend(listed.into_iter().map(|object| ("ADDED", object)));
        } else {
            let since: u64 = since.parse().map_err(|_| {
                Refusal::new(
                    400,
                    "BadRequest",
                    format!("invalid resource version {since:?}"),
                )
            })?;
            if since < self.compacted {
                let message = format!("too old resource version: {since} ({})", self.compacted);
                return Err(Refusal::new(410, "Expired", message));
            }
            let newer = self
                .history
                .iter()
                .filter(|c| c.version > since && c.kind == kind);
            first.extend(newer.filter_map(|change| change.told(&filter)));
        }
        let (sender, next) = unbounded_channel();
        self.watchers.push(Watcher {
            kind,
            filter,
            sender,
        });
        Ok(Watch { first, next })
    }

    fn bookmark(&self, call: &Call, annotations: Value) -> Told {
        let mark = json!({
            "apiVersion": call.api_version(),
            "kind": "Bookmark",
            "metadata": {"resourceVersion": self.version.to_string(), "annotations": annotations},
        });
        ("BOOKMARK", Arc::new(mark))
    }

    pub(super) fn end_watches(&mut self) {
        let mark = json!({"metadata": {"resourceVersion": self.version.to_string()}});
        let mark = Arc::new(mark);
        for watcher in self.watchers.drain(..) {
            // Whoever watches no longer needs none.
            let _ = watcher.sender.send(("BOOKMARK", mark.clone()));
        }
    }

    pub(super) fn compact(&mut self) {
        self.compacted = self.version;
        self.history.clear();
    }

    /// Every verb of one object, and `DeleteCollection`.
    pub(super) fn answer(&mut self, call: &Call, now: Timestamp) -> Result<Stored, Refusal> {
        match (call.verb, call.subresource.as_str()) {
            (Verb::Get, "" | "status") => self.existing(call),
            (Verb::Create, "") => self.create(call, call.body.clone(), now),
            (Verb::Create, "binding") if call.plural == "pods" => self.bind(call, now),
            (Verb::Create, "eviction") if call.plural == "pods" => self.delete(call, now),
            (Verb::Create, "token") => self.token(call, now),
            (Verb::Apply, "") if self.get(call).is_none() => {
                self.create(call, call.body.clone(), now)
            }
            (Verb::Update, "" | "status") => {
                let old = self.existing(call)?;
                self.replace(call, &old, call.body.clone())
            }
            (Verb::MergePatch | Verb::StrategicPatch | Verb::Apply, "" | "status") => {
                let old = self.existing(call)?;
                let mut new = (*old).clone();
                match call.verb {
                    Verb::StrategicPatch => strategic(&mut new, &call.body),
                    _ => merge(&mut new, &call.body),
                }
                self.replace(call, &old, new)
            }
            (Verb::Delete, "") => self.delete(call, now),
            (Verb::DeleteCollection, "") => {
                for object in self.list(call) {
                    let text = |field: &str| text(&object["metadata"][field]);
                    let one = Call {
                        namespace: text("namespace"),
                        name: text("name"),
                        ..call.clone()
                    };
                    self.delete(&one, now)?;
                }
                Ok(Arc::new(success()))
            }
            (_, subresource) => {
                let message = format!(
                    "{:?} of {}/{subresource} is not built",
                    call.verb, call.plural
                );
                Err(Refusal::new(404, "NotFound", message))
            }
        }
    }

    fn existing(&self, call: &Call) -> Result<Stored, Refusal> {
        self.get(call).ok_or_else(|| {
            let message = format!("{} not found", what(call));
            Refusal::new(404, "NotFound", message)
        })
    }

    fn create(
        &mut self,
        call: &Call,
        mut object: Value,
        now: Timestamp,
    ) -> Result<Stored, Refusal> {
        self.made += 1;
        let mut call = call.clone();
        if call.name.is_empty() {
            let prefix = text(&object["metadata"]["generateName"]);
            call.name = format!("{prefix}{:05}", self.made);
        }
        if self.get(&call).is_some() {
            let message = format!("{} already exists", what(&call));
            return Err(Refusal::new(409, "AlreadyExists", message));
        }
        let has_spec = !object["spec"].is_null();
        let metadata = &mut object["metadata"];
        metadata["name"] = json!(call.name);
        if !call.namespace.is_empty() {
            metadata["namespace"] = json!(call.namespace);
        }
        metadata["uid"] = json!(format!("00000000-0000-4000-8000-{:012}", self.made));
        metadata["creationTimestamp"] = stamp(now);
        if has_spec {
            metadata["generation"] = json!(1);
        }
        if call.plural == "pods" {
            object["status"] = json!({"phase": "Pending"});
        }
        if call.plural == "namespaces" && call.group.is_empty() {
            object["status"] = json!({"phase": "Active"});
        }
        Ok(self.store(&call, None, object))
    }

    /// What a client may not change stays as it was. Nothing changed: nothing happened.
    fn replace(&mut self, call: &Call, old: &Stored, mut new: Value) -> Result<Stored, Refusal> {
        for (field, what_it_is) in [("uid", "UID"), ("resourceVersion", "ResourceVersion")] {
            let sent = &call.body["metadata"][field];
            if !sent.is_null() && *sent != "" && *sent != old["metadata"][field] {
                let message = format!(
                    "Operation cannot be fulfilled on {}: {what_it_is} is {sent} no longer",
                    what(call)
                );
                return Err(Refusal::new(409, "Conflict", message));
            }
        }
        if call.subresource == "status" {
            let mut merged = (**old).clone();
            merged["status"] = new["status"].take();
            new = merged;
        } else {
            for field in [
                "name",
                "namespace",
                "uid",
                "creationTimestamp",
                "deletionTimestamp",
                "deletionGracePeriodSeconds",
                "generation",
            ] {
                keep(&mut new["metadata"], &old["metadata"], field);
            }
            // What has a status has a subresource of it.
            keep(&mut new, old, "status");
            if new["spec"] != old["spec"] {
                raise_generation(&mut new);
            }
        }
        new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
        if new == **old {
            return Ok(old.clone());
        }
        let ends = !new["metadata"]["deletionTimestamp"].is_null()
            && !has_finalizers(&new)
            && new["metadata"]["deletionGracePeriodSeconds"]
                .as_i64()
                .unwrap_or(0)
                == 0;
        match ends {
            true => Ok(self.remove(call, old)),
            false => Ok(self.store(call, Some(old), new)),
        }
    }

    fn delete(&mut self, call: &Call, now: Timestamp) -> Result<Stored, Refusal> {
        let old = self.existing(call)?;
        let options = match call.subresource.as_str() {
            "eviction" => &call.body["deleteOptions"],
            _ => &call.body,
        };
        for (field, what_it_is) in [("uid", "UID"), ("resourceVersion", "ResourceVersion")] {
            let wanted = &options["preconditions"][field];
            if !wanted.is_null() && *wanted != old["metadata"][field] {
                let message = format!(
                    "Precondition failed: {what_it_is} in precondition: {wanted}, {what_it_is} in object meta: {}",
                    old["metadata"][field]
                );
                return Err(Refusal::new(409, "Conflict", message));
            }
        }
        let grace = grace_seconds(call, options, &old);
        let mut new = (*old).clone();
        let policy = options["propagationPolicy"].as_str().unwrap_or_default();
        let finalizer = match policy {
            "Foreground" => Some("foregroundDeletion"),
            "Orphan" => Some("orphan"),
            _ => None,
        };
        if let Some(finalizer) = finalizer {
            let patch = json!({"metadata": {"finalizers": [finalizer]}});
            strategic(&mut new, &patch);
        }
        if grace == 0 && !has_finalizers(&new) {
            return Ok(self.remove(call, &old));
        }
        let metadata = &old["metadata"];
        let before = metadata["deletionGracePeriodSeconds"].as_i64();
        if !metadata["deletionTimestamp"].is_null() && before.is_some_and(|before| before <= grace)
        {
            return Ok(old);
        }
        new["metadata"]["deletionTimestamp"] = stamp(now + SignedDuration::from_secs(grace));
        new["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        raise_generation(&mut new);
        Ok(self.store(call, Some(&old), new))
    }

    fn bind(&mut self, call: &Call, now: Timestamp) -> Result<Stored, Refusal> {
        let old = self.existing(call)?;
        let node = &call.body["target"]["name"];
        let bound = text(&old["spec"]["nodeName"]);
        if !bound.is_empty() {
            let message = format!("pod {} is already assigned to node {bound:?}", call.name);
            return Err(Refusal::new(409, "Conflict", message));
        }
        let mut new = (*old).clone();
        let scheduled =
            json!({"type": "PodScheduled", "status": "True", "lastTransitionTime": stamp(now)});
        let patch = json!({"spec": {"nodeName": node}, "status": {"conditions": [scheduled]}});
        strategic(&mut new, &patch);
        self.store(call, Some(&old), new);
        Ok(Arc::new(success()))
    }

    fn token(&mut self, call: &Call, now: Timestamp) -> Result<Stored, Refusal> {
        self.existing(call)?;
        self.made += 1;
        let mut answer = call.body.clone();
        let seconds = answer["spec"]["expirationSeconds"].as_i64().unwrap_or(3600);
        answer["status"] = json!({
            "token": format!("token-{}", self.made),
            "expirationTimestamp": stamp(now + SignedDuration::from_secs(seconds)),
        });
        Ok(Arc::new(answer))
    }

    fn remove(&mut self, call: &Call, old: &Stored) -> Stored {
        self.objects
            .entry(kind(call))
            .or_default()
            .remove(&key(call));
        let mut last = (**old).clone();
        self.version += 1;
        last["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.tell(call, Some(old), Arc::new(last), true)
    }

    fn store(&mut self, call: &Call, old: Option<&Stored>, mut object: Value) -> Stored {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        if object["status"].is_null()
            && let Some(object) = object.as_object_mut()
        {
            object.remove("status");
        }
        let object = Arc::new(object);
        let objects = self.objects.entry(kind(call)).or_default();
        objects.insert(key(call), object.clone());
        self.tell(call, old, object, false)
    }

    fn tell(&mut self, call: &Call, old: Option<&Stored>, new: Stored, gone: bool) -> Stored {
        let change = Change {
            version: self.version,
            kind: kind(call),
            old: old.cloned(),
            new: new.clone(),
            gone,
        };
        self.watchers.retain(|watcher| {
            if watcher.kind != change.kind {
                return true;
            }
            match change.told(&watcher.filter) {
                Some(told) => watcher.sender.send(told).is_ok(),
                None => !watcher.sender.is_closed(),
            }
        });
        self.history.push(change);
        self.changed.send_replace(self.version);
        new
    }
}

fn kind(call: &Call) -> Kind {
    (call.group.clone(), call.plural.clone())
}

fn key(call: &Call) -> Key {
    (call.namespace.clone(), call.name.clone())
}

fn what(call: &Call) -> String {
    match call.group.is_empty() {
        true => format!("{} {:?}", call.plural, call.name),
        false => format!("{}.{} {:?}", call.plural, call.group, call.name),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// In whole seconds, as the API has time.
fn stamp(at: Timestamp) -> Value {
    let whole = Timestamp::from_second(at.as_second()).unwrap_or(at);
    json!(whole.to_string())
}

fn success() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})
}

fn keep(new: &mut Value, old: &Value, field: &str) {
    match old[field].is_null() {
        false => new[field] = old[field].clone(),
        true => {
            if let Some(object) = new.as_object_mut() {
                object.remove(field);
            }
        }
    }
}

fn raise_generation(object: &mut Value) {
    let generation = object["metadata"]["generation"].as_i64().unwrap_or(0);
    object["metadata"]["generation"] = json!(generation + 1);
}

fn has_finalizers(object: &Value) -> bool {
    let finalizers = object["metadata"]["finalizers"].as_array();
    finalizers.is_some_and(|finalizers| !finalizers.is_empty())
}

/// Only a pod that a kubelet may have begun is given time. Upstream: `podStrategy.CheckGracefulDelete`.
fn grace_seconds(call: &Call, options: &Value, pod: &Value) -> i64 {
    let waits = call.plural == "pods"
        && !text(&pod["spec"]["nodeName"]).is_empty()
        && !matches!(
            pod["status"]["phase"].as_str(),
            Some("Succeeded" | "Failed")
        );
    if !waits {
        return 0;
    }
    let asked = options["gracePeriodSeconds"]
        .as_i64()
        .or_else(|| call.parameter("gracePeriodSeconds").parse().ok())
        .or_else(|| pod["spec"]["terminationGracePeriodSeconds"].as_i64());
    asked.unwrap_or(GRACE_SECONDS).max(0)
}
