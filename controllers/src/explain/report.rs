//! What is said of an object, as JSON and as text. Pure.

use std::fmt;
use std::time::Duration;

use component_base::events::RecordedEvent;
use controller_runtime::ObjectKey;
use controller_runtime::transport::{Request, Verb};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Event;
use serde::Serialize;
use serde_json::Value;

use super::acting::{Acting, controllers};
use super::changes::{changes, settings};
use super::kind::Kind;
use super::live::Live;
use super::pods::{PodState, states};
use super::rehearsal::GENERATED;

/// Of the events about the object, the last ones.
const EVENTS: usize = 10;
/// Of a text for people; JSON has it all.
const LONGEST_LINE: usize = 240;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub kind: &'static str,
    pub namespace: String,
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    pub being_deleted: bool,
    pub controllers: Vec<Acting>,
    pub last: Last,
    pub now: Now,
    pub next: Next,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What was decided last, by what the API server keeps of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Last {
    /// `status.conditions`, as they are.
    pub conditions: Vec<Value>,
    /// Oldest first.
    pub events: Vec<Told>,
}

/// An event.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    pub event_type: String,
    pub reason: String,
    pub message: String,
    /// `None`: it would be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<String>,
}

/// What is there.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Now {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub replica_sets: Vec<Size>,
    pub pods: Vec<PodState>,
}

/// A ReplicaSet of a Deployment.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Size {
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    pub wanted: i32,
    pub pods: i32,
    pub ready: i32,
    pub available: i32,
    /// Why pods could not be made or deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// What would be done.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Next {
    pub writes: Vec<Write>,
    pub events: Vec<Told>,
    /// At the latest, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub look_again_after_seconds: Option<f64>,
    /// Why the pass would fail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A write, or several of the same.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Write {
    pub verb: &'static str,
    /// With the subresource, as `deployments/status`.
    pub resource: String,
    pub name: String,
    pub count: usize,
    /// Of a patch or an update.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<String>,
    /// What is sent.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub body: Value,
}

impl Report {
    pub fn new(kind: Kind, key: &ObjectKey, live: &Live, next: Next) -> Self {
        let object = &live.subject;
        let conditions = object["status"]["conditions"].as_array();
        let told: Vec<Told> = live.events.iter().map(Told::of).collect();
        let first = told.len().saturating_sub(EVENTS);
        Self {
            kind: kind.name(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            generation: object["metadata"]["generation"].as_i64(),
            observed_generation: object["status"]["observedGeneration"].as_i64(),
            being_deleted: !object["metadata"]["deletionTimestamp"].is_null(),
            controllers: controllers(kind, object, &live.autoscalers, &live.budgets),
            last: Last {
                conditions: conditions.cloned().unwrap_or_default(),
                events: told[first..].to_vec(),
            },
            now: Now {
                replica_sets: live.replica_sets.iter().map(|rs| Size::of(rs)).collect(),
                pods: states(&live.pods),
            },
            next,
            notes: live.notes.clone(),
        }
    }
}

impl Told {
    fn of(event: &Event) -> Self {
        let time = event.last_timestamp.as_ref().map(|t| t.0.to_string());
        Self {
            event_type: event.type_.clone().unwrap_or_default(),
            reason: event.reason.clone().unwrap_or_default(),
            message: event.message.clone().unwrap_or_default(),
            count: event.count,
            last: time,
        }
    }

    fn recorded(event: &RecordedEvent) -> Self {
        Self {
            event_type: event.event_type.as_str().to_owned(),
            reason: event.reason.clone(),
            message: event.message.clone(),
            count: None,
            last: None,
        }
    }
}

impl Size {
    fn of(rs: &ReplicaSet) -> Self {
        let status = rs.status.clone().unwrap_or_default();
        let mut conditions = status.conditions.into_iter().flatten();
        let failure = conditions.find(|c| {
            c.type_.as_deref() == Some("ReplicaFailure") && c.status.as_deref() == Some("True")
        });
        let annotations = rs.metadata.annotations.as_ref();
        let revision = annotations.and_then(|all| all.get("deployment.kubernetes.io/revision"));
        Self {
            name: rs.metadata.name.clone().unwrap_or_default(),
            revision: revision.cloned(),
            wanted: rs.spec.replicas.unwrap_or(1),
            pods: status.replicas,
            ready: status.ready_replicas.unwrap_or(0),
            available: status.available_replicas.unwrap_or(0),
            failure: failure.and_then(|condition| condition.message),
        }
    }
}

impl Next {
    /// `pass`: when the controller would look again, or why it failed; `before`: an object as it is, by resource and name.
    pub fn new<'a>(
        writes: &[Request],
        events: &[RecordedEvent],
        pass: Result<Option<Duration>, String>,
        before: impl Fn(&str, &str) -> Option<&'a Value>,
    ) -> Self {
        let mut all: Vec<Write> = Vec::new();
        for request in writes {
            let write = Write::of(request, &before);
            match all.last_mut() {
                Some(last) if last.is_like(&write) => last.count += 1,
                _ => all.push(write),
            }
        }
        let again = pass.as_ref().ok().copied().flatten();
        Self {
            writes: all,
            events: events.iter().map(Told::recorded).collect(),
            look_again_after_seconds: again.map(|again| again.as_secs_f64()),
            error: pass.err(),
        }
    }
}

impl Write {
    fn of<'a>(request: &Request, before: impl Fn(&str, &str) -> Option<&'a Value>) -> Self {
        let plural = &*request.resource.plural;
        let body = (*request.body).clone();
        let meta = &body["metadata"];
        let name = [&request.name, meta["name"].as_str().unwrap_or_default()]
            .into_iter()
            .find(|name| !name.is_empty())
            .map(|name| name.to_owned());
        let generated = || {
            let prefix = meta["generateName"].as_str().unwrap_or_default();
            format!("{prefix}{GENERATED}")
        };
        let name = name.unwrap_or_else(generated);
        let verb = match request.verb {
            Verb::Create => "create",
            Verb::Update => "update",
            Verb::Patch(_) => "patch",
            Verb::Delete => "delete",
            Verb::DeleteCollection => "delete all",
            Verb::Get => "get",
            Verb::List => "list",
        };
        let changes = match request.verb {
            Verb::Update => changes(before(plural, &name).unwrap_or(&Value::Null), &body),
            Verb::Patch(_) => settings(&body),
            _ => Vec::new(),
        };
        let resource = match &*request.subresource {
            "" => plural.to_owned(),
            subresource => format!("{plural}/{subresource}"),
        };
        Self {
            verb,
            resource,
            name,
            count: 1,
            changes,
            body,
        }
    }

    /// Whether nothing but the number would differ.
    fn is_like(&self, other: &Self) -> bool {
        self.verb == "create"
            && (self.verb, &self.resource, &self.name) == (other.verb, &other.resource, &other.name)
            && self.body == other.body
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)?;
        if let (Some(generation), Some(observed)) = (self.generation, self.observed_generation)
            && observed < generation
        {
            write!(f, ", whose generation {generation} was not seen yet")?;
        }
        if self.being_deleted {
            f.write_str(", being deleted")?;
        }
        writeln!(f, "\n\nControllers:")?;
        for controller in &self.controllers {
            line(f, &format!("{}: {}", controller.name, controller.why))?;
        }
        writeln!(f, "\nLast:")?;
        self.last.fmt(f)?;
        writeln!(f, "\nNow:")?;
        self.now.fmt(f)?;
        writeln!(f, "\nNext:")?;
        self.next.fmt(f)?;
        if !self.notes.is_empty() {
            writeln!(f, "\nNotes:")?;
            self.notes.iter().try_for_each(|note| line(f, note))?;
        }
        Ok(())
    }
}

impl fmt::Display for Last {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for condition in &self.conditions {
            let text = |key: &str| condition[key].as_str().unwrap_or_default();
            let (of, is, since) = (text("type"), text("status"), text("lastTransitionTime"));
            let (reason, message) = (text("reason"), text("message"));
            line(
                f,
                &format!("{of} is {is} since {since}: {reason} {message}"),
            )?;
        }
        for event in &self.events {
            let (count, last) = (event.count.unwrap_or(1), event.last.as_deref());
            let (last, reason) = (last.unwrap_or_default(), &event.reason);
            line(f, &format!("{last} {count}x {reason}: {}", event.message))?;
        }
        match self.conditions.is_empty() && self.events.is_empty() {
            true => line(f, "nothing is told of it"),
            false => Ok(()),
        }
    }
}

impl fmt::Display for Now {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for rs in &self.replica_sets {
            let revision = rs.revision.as_deref().unwrap_or("none");
            line(
                f,
                &format!(
                    "ReplicaSet/{} (revision {revision}) wants {} pods, has {}, {} ready, {} available",
                    rs.name, rs.wanted, rs.pods, rs.ready, rs.available
                ),
            )?;
            if let Some(failure) = &rs.failure {
                line(f, &format!("  it failed: {failure}"))?;
            }
        }
        for pods in &self.pods {
            let (count, state, example) = (pods.count, &pods.state, &pods.example);
            line(f, &format!("{count} pods, as {example}: {state}"))?;
        }
        match self.pods.is_empty() {
            true => line(f, "it has no pods"),
            false => Ok(()),
        }
    }
}

impl fmt::Display for Next {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for write in &self.writes {
            let (verb, resource, name) = (write.verb, &write.resource, &write.name);
            let times = match write.count {
                1 => String::new(),
                count => format!(", {count} times"),
            };
            line(f, &format!("{verb} {resource} {name}{times}"))?;
            for change in &write.changes {
                line(f, &format!("  {change}"))?;
            }
        }
        for event in &self.events {
            line(f, &format!("tell: {}: {}", event.reason, event.message))?;
        }
        if let Some(error) = &self.error {
            line(f, &format!("it fails: {error}"))?;
        } else if self.writes.is_empty() && self.events.is_empty() {
            line(f, "nothing: it waits for what is above to change")?;
        }
        match self.look_again_after_seconds {
            Some(seconds) => line(
                f,
                &format!("looks again after {seconds:.0} s at the latest"),
            ),
            None => Ok(()),
        }
    }
}

fn line(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    let text = text.trim_end();
    match text.char_indices().nth(LONGEST_LINE) {
        Some((end, _)) => writeln!(f, "  {} …", &text[..end]),
        None => writeln!(f, "  {text}"),
    }
}
