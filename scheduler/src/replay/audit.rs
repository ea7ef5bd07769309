//! An API server's audit log becomes a trace.
//!
//! Every response that carries an object (`level: RequestResponse`) tells what it is from then on; a Binding tells where a pod went. What the log never creates was there
//! before: it is put at the beginning, as it is seen first, and so is what is given beside the log (`kubectl get nodes,pods -A -o json`). Upstream:
//! k8s.io/apiserver/pkg/apis/audit/v1.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufRead;

use framework::ObjectKind;
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use crate::trace::object::{FieldError, Kind, TraceObject};
use crate::trace::{Change, Trace, TraceError, TraceEvent};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    #[serde(default)]
    stage: String,
    #[serde(default)]
    verb: String,
    #[serde(default)]
    object_ref: Option<Reference>,
    #[serde(default)]
    response_status: Option<ResponseStatus>,
    #[serde(default)]
    request_object: Option<Value>,
    #[serde(default)]
    response_object: Option<Value>,
    stage_timestamp: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Reference {
    resource: String,
    namespace: String,
    name: String,
    api_group: String,
    subresource: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ResponseStatus {
    code: u16,
}

type Id = (Kind, String, String);

fn id(object: &TraceObject) -> Id {
    (
        object.kind(),
        object.namespace().to_owned(),
        object.name().to_owned(),
    )
}

/// What became of a log.
#[derive(Debug, Default)]
pub struct Converted {
    /// The trace.
    pub trace: Trace,
    /// Writes to kinds the scheduler reads whose objects the log does not have (`level: Metadata`, `Request`): what they did is not in the trace.
    pub without_object: usize,
}

#[derive(Default)]
struct Converter<'a> {
    custom: &'a [ObjectKind],
    /// What there is now.
    known: BTreeMap<Id, TraceObject>,
    /// What there was before the log.
    initial: Vec<TraceObject>,
    /// What is no more: seen again without being created, it is an answer that came late.
    gone: BTreeSet<(Kind, String)>,
    events: Vec<TraceEvent>,
    without_object: usize,
}

/// Reads objects as kubectl gives them: a List, or one object.
///
/// # Errors
/// When one cannot be read; of kinds that the scheduler does not read nothing is said.
pub fn objects(value: Value, custom: &[ObjectKind]) -> Result<Vec<TraceObject>, FieldError> {
    let is_list = value
        .get("kind")
        .and_then(Value::as_str)
        .is_some_and(|kind| kind.ends_with("List"));
    let (items, at): (Vec<Value>, &str) = match value {
        Value::Object(mut list) if is_list => match list.remove("items") {
            Some(Value::Array(items)) => (items, "items"),
            _ => return Err(FieldError::new("items", "Required value")),
        },
        one => (vec![one], ""),
    };
    let mut objects = Vec::new();
    for (i, item) in items.into_iter().enumerate() {
        let field = |name: &str| item.get(name).and_then(Value::as_str).unwrap_or_default();
        let Some(kind) = Kind::of(field("apiVersion"), field("kind"), custom) else {
            continue;
        };
        let at = match at {
            "" => "(object)".to_owned(),
            items => format!("{items}[{i}]"),
        };
        let object = kind.decode(&at, item)?;
        let ended = object
            .pod()
            .is_some_and(|pod| component_helpers::pod::is_terminal(pod));
        if !ended {
            objects.push(object);
        }
    }
    Ok(objects)
}

/// Makes a trace of a log; `before` is what there was when it began, as far as that is known.
///
/// # Errors
/// For the first line that cannot be read, with its number and field.
pub fn convert(
    input: impl BufRead,
    before: Vec<TraceObject>,
    custom: &[ObjectKind],
) -> Result<Converted, TraceError> {
    let mut converter = Converter {
        custom,
        ..Converter::default()
    };
    for object in before {
        converter.known.insert(id(&object), object.clone());
        converter.initial.push(object);
    }
    for (number, text) in (1..).zip(input.lines()) {
        let text = text.map_err(|source| TraceError::Io {
            line: number,
            source,
        })?;
        if text.trim().is_empty() {
            continue;
        }
        let taken = converter.line(&text);
        taken.map_err(|error| TraceError::Line {
            line: number,
            error,
        })?;
    }
    Ok(converter.finish())
}

impl Converter<'_> {
    fn line(&mut self, text: &str) -> Result<(), FieldError> {
        let value: Value = serde_json::from_str(text)
            .map_err(|error| FieldError::new("(line)", error.to_string()))?;
        let event: Event = serde_path_to_error::deserialize(value).map_err(|error| {
            FieldError::new(error.path().to_string(), error.inner().to_string())
        })?;
        let time: Timestamp = event.stage_timestamp.parse().map_err(|error| {
            let text = &event.stage_timestamp;
            FieldError::new(
                "stageTimestamp",
                format!("Invalid value: {text:?}: {error}"),
            )
        })?;
        let code = event.response_status.as_ref().map_or(200, |s| s.code);
        let Some(reference) = &event.object_ref else {
            return Ok(());
        };
        let writes = matches!(
            event.verb.as_str(),
            "create" | "update" | "patch" | "delete" | "deletecollection"
        );
        if event.stage != "ResponseComplete" || !(200..300).contains(&code) || !writes {
            return Ok(());
        }
        let kind = Kind::of_resource(&reference.api_group, &reference.resource, self.custom);
        let Some(kind) = kind else { return Ok(()) };
        match (kind, reference.subresource.as_str()) {
            (Kind::Pod, "binding") => self.bound(time, reference, event.request_object.as_ref()),
            (Kind::Pod, "" | "status" | "ephemeralcontainers" | "resize") | (_, "" | "status") => {
                self.written(time, kind, event)
            }
            // Evictions: the pod's end is told of by the kubelet's own request.
            _ => Ok(()),
        }
    }

    fn written(&mut self, time: Timestamp, kind: Kind, event: Event) -> Result<(), FieldError> {
        let Some(object) = event.response_object else {
            self.without_object += 1;
            return Ok(());
        };
        let deletes = event.verb.starts_with("delete");
        let said = object
            .get("kind")
            .and_then(Value::as_str)
            .unwrap_or_default();
        if event.verb == "deletecollection" {
            let items = object.get("items").and_then(Value::as_array);
            for (i, item) in items.into_iter().flatten().enumerate() {
                let at = format!("responseObject.items[{i}]");
                let object = kind.decode(&at, item.clone())?;
                self.take(time, object, deletes, false);
            }
            return Ok(());
        }
        if said == "Status" {
            // A deletion that took effect at once.
            let reference = event.object_ref.unwrap_or_default();
            let id = (kind, reference.namespace, reference.name);
            if let Some(known) = self.known.get(&id).cloned() {
                self.remove(time, known);
            }
            return Ok(());
        }
        let object = kind.decode("responseObject", object)?;
        self.take(time, object, deletes, event.verb == "create");
        Ok(())
    }

    /// An object as the API server has it now.
    fn take(&mut self, time: Timestamp, object: TraceObject, deletes: bool, creates: bool) {
        let meta = object.metadata();
        let held = meta.finalizers.as_ref().is_some_and(|f| !f.is_empty());
        let graceful = meta
            .deletion_grace_period_seconds
            .is_some_and(|seconds| seconds > 0);
        let ended = object
            .pod()
            .is_some_and(|pod| component_helpers::pod::is_terminal(pod));
        let going = deletes || meta.deletion_timestamp.is_some();
        let is_gone = ended || (going && !held && !graceful);
        if is_gone {
            self.remove(time, object);
            return;
        }
        if self
            .gone
            .contains(&(object.kind(), object.uid().to_owned()))
        {
            return;
        }
        let change = match self.known.insert(id(&object), object.clone()) {
            Some(known) if known.uid() == object.uid() => Change::Modified,
            Some(other) => {
                self.push(time, Change::Deleted, other);
                Change::Added
            }
            None if creates => Change::Added,
            None => {
                self.initial.push(object);
                return;
            }
        };
        self.push(time, change, object);
    }

    fn remove(&mut self, time: Timestamp, object: TraceObject) {
        self.gone.insert((object.kind(), object.uid().to_owned()));
        if self.known.remove(&id(&object)).is_some() {
            self.push(time, Change::Deleted, object);
        }
    }

    fn bound(
        &mut self,
        time: Timestamp,
        reference: &Reference,
        binding: Option<&Value>,
    ) -> Result<(), FieldError> {
        let Some(binding) = binding else {
            self.without_object += 1;
            return Ok(());
        };
        let Some(node) = binding.pointer("/target/name").and_then(Value::as_str) else {
            return Err(FieldError::new(
                "requestObject.target.name",
                "Required value",
            ));
        };
        let id = (
            Kind::Pod,
            reference.namespace.clone(),
            reference.name.clone(),
        );
        let Some(TraceObject::Pod(pod)) = self.known.get_mut(&id) else {
            return Ok(());
        };
        let pod = std::sync::Arc::make_mut(pod);
        pod.spec.get_or_insert_default().node_name = Some(node.to_owned());
        let object = TraceObject::Pod(std::sync::Arc::new(pod.clone()));
        self.push(time, Change::Modified, object);
        Ok(())
    }

    fn push(&mut self, time: Timestamp, change: Change, object: TraceObject) {
        self.events.push(TraceEvent {
            time,
            change,
            object,
        });
    }

    fn finish(mut self) -> Converted {
        // The log is in the order in which answers were written down.
        self.events.sort_by_key(|event| event.time);
        let start = self
            .events
            .first()
            .map_or_else(|| Timestamp::UNIX_EPOCH, |event| event.time);
        self.initial.sort_by_key(TraceObject::kind);
        let initial = self.initial.len();
        let before = self.initial.into_iter().map(|object| TraceEvent {
            time: start,
            change: Change::Added,
            object,
        });
        Converted {
            trace: Trace {
                events: before.chain(self.events).collect(),
                initial,
                truncated: None,
            },
            without_object: self.without_object,
        }
    }
}
