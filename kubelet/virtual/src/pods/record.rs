//! What is kept of a pod, and what is to be done about it next. Pure: no client, no clock.
//!
//! ```text
//! object seen -> Create -> (reports -> Write)* -> deletion asked -> Delete -> ended -> Write -> Remove -> object gone -> Forget
//!                  \-> refused -> Write (Failed)
//! ```

use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::jiff::Timestamp;
use kubelet_provider::{Phase, PodId, PodMode, PodReport};

use super::status::Transition;

/// A container as far as statuses need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerShape {
    pub name: Box<str>,
    pub image: Box<str>,
    /// An init container that runs on.
    pub sidecar: bool,
}

/// What is needed of a spec once the provider has the pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    pub init: Box<[ContainerShape]>,
    pub containers: Box<[ContainerShape]>,
    pub ephemeral: Box<[ContainerShape]>,
    /// `Always`, `OnFailure` or `Never`.
    pub restart_policy: RestartPolicy,
    /// Readiness gates, and whether their condition is true.
    pub gates: Box<[(Box<str>, bool)]>,
    pub qos: &'static str,
    pub generation: Option<i64>,
}

/// `spec.restartPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RestartPolicy {
    #[default]
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    pub fn of(spec: &PodSpec) -> Self {
        match spec.restart_policy.as_deref() {
            Some("Never") => Self::Never,
            Some("OnFailure") => Self::OnFailure,
            _ => Self::Always,
        }
    }
}

impl Shape {
    pub fn of(pod: &Pod) -> Self {
        let Some(spec) = &pod.spec else {
            return Self::default();
        };
        let shape = |name: &str, image: Option<&str>, sidecar| ContainerShape {
            name: name.into(),
            image: image.unwrap_or_default().into(),
            sidecar,
        };
        let init = spec.init_containers.iter().flatten().map(|c| {
            let sidecar = c.restart_policy.as_deref() == Some("Always");
            shape(&c.name, c.image.as_deref(), sidecar)
        });
        let containers = spec.containers.iter();
        let containers = containers.map(|c| shape(&c.name, c.image.as_deref(), false));
        let ephemeral = spec.ephemeral_containers.iter().flatten();
        let ephemeral = ephemeral.map(|c| shape(&c.name, c.image.as_deref(), false));
        let is_true = |type_: &str| {
            component_helpers::pod::get_condition(pod, type_).is_some_and(|c| c.status == "True")
        };
        let gates = spec.readiness_gates.iter().flatten();
        Self {
            init: init.collect(),
            containers: containers.collect(),
            ephemeral: ephemeral.collect(),
            restart_policy: RestartPolicy::of(spec),
            gates: gates
                .map(|g| (g.condition_type.as_str().into(), is_true(&g.condition_type)))
                .collect(),
            qos: component_helpers::qos::get_pod_qos(pod).as_str(),
            generation: pod.metadata.generation,
        }
    }

    /// Whether there is a container of this name, of whatever kind.
    pub fn has_container(&self, name: &str) -> bool {
        let all = self.init.iter().chain(&self.containers);
        all.chain(&self.ephemeral).any(|c| &*c.name == name)
    }
}

/// Why a pod will never run here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: &'static str,
    pub message: String,
}

/// A pod of one of our nodes.
#[derive(Clone, Debug)]
pub struct Record {
    pub id: PodId,
    pub shape: Shape,
    /// `status.startTime`.
    pub started: Option<Timestamp>,
    /// When conditions changed last.
    pub transitions: Vec<Transition>,
    /// The newest object, until the provider has it.
    pub desired: Option<Arc<Pod>>,
    /// Of the parts of the object that a provider is told of.
    interest: u64,
    /// The provider has the pod, as far as we know.
    pub created: bool,
    /// It was asked for the pod and never refused it: a call that failed may have begun it all the same.
    pub tried: bool,
    /// It had it before this process began: what it says to an update is no news.
    pub adopted: bool,
    pub refused: Option<Refusal>,
    /// The API object is `Succeeded` or `Failed`.
    pub terminal: bool,
    /// Seconds from the request for deletion.
    pub terminating: Option<i64>,
    /// The grace the provider was told.
    pub delete_sent: Option<i64>,
    pub report: Option<Arc<PodReport>>,
    /// The provider says that nothing of it is left.
    pub lost: bool,
    /// The report or a readiness gate is newer than what was written.
    pub dirty: bool,
    /// The object as it was first seen, until the first status is made: what it says already is not written again.
    pub baseline: Option<Arc<Pod>>,
    /// Hash of the status that was written last.
    pub written: u64,
    /// The API server took our deletion; finalizers may hold the object still.
    pub removed: bool,
    /// There is no such object any more.
    pub vanished: bool,
    /// People were told of the error that is being retried.
    pub told: bool,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Nothing before something happens.
    Idle,
    /// Hand the pod to the provider.
    Create(Arc<Pod>),
    /// Hand it the changed object.
    Update(Arc<Pod>),
    /// Ask the provider to end it within so many seconds.
    Delete(i64),
    /// Write the status.
    Write,
    /// Delete the API object for good.
    Remove,
    /// Forget the record.
    Forget,
}

impl Record {
    /// Of an object that was not known before; `had` is what the provider says of it, if it has it already.
    pub fn new(pod: Arc<Pod>, had: Option<PodReport>) -> Self {
        let status = pod.status.as_ref();
        let transitions = status.and_then(|s| s.conditions.as_deref());
        let mut record = Self {
            id: PodId::of(&pod),
            shape: Shape::default(),
            started: status.and_then(|s| s.start_time.as_ref()).map(|t| t.0),
            transitions: Transition::of(transitions.unwrap_or_default()),
            desired: None,
            interest: 0,
            created: had.is_some(),
            tried: false,
            adopted: had.is_some(),
            refused: None,
            terminal: false,
            terminating: None,
            delete_sent: None,
            dirty: had.is_some(),
            report: had.map(Arc::new),
            lost: false,
            baseline: status
                .is_some_and(|s| s.start_time.is_some())
                .then(|| pod.clone()),
            written: 0,
            removed: false,
            vanished: false,
            told: false,
        };
        record.observe(pod, PodMode::Reported);
        record
    }

    /// Takes in the object's newest state. `true`: there may be something to do.
    pub fn observe(&mut self, pod: Arc<Pod>, mode: PodMode) -> bool {
        let shape = Shape::of(&pod);
        let gates = shape.gates != self.shape.gates;
        self.shape = shape;
        self.terminal = component_helpers::pod::is_terminal(&pod);
        let terminating = pod.metadata.deletion_timestamp.as_ref().map(|_| {
            let grace = pod.metadata.deletion_grace_period_seconds;
            grace.unwrap_or(30).max(0)
        });
        let asked = terminating != self.terminating;
        self.terminating = terminating;
        let interest = interest(&pod);
        let changed = interest != self.interest || mode == PodMode::Driven;
        self.interest = interest;
        if changed {
            self.desired = Some(pod);
        }
        self.dirty |= gates && self.report.is_some();
        changed || asked || gates
    }

    /// Takes in what the provider says. `true`: it is new.
    pub fn reported(&mut self, report: PodReport) -> bool {
        let same = self.report.as_deref() == Some(&report);
        if same && !self.lost {
            return false;
        }
        // A provider that found it again has it.
        self.lost = false;
        self.report = Some(Arc::new(report));
        self.dirty = true;
        true
    }

    /// Nothing of it is left. Of one that was `wanted` to go, only how it ended is still told; of another, that it was lost.
    pub fn gone(&mut self, wanted: bool) {
        self.lost = true;
        let ended = self.report.as_ref().is_some_and(|r| r.has_ended());
        self.dirty = !wanted || (self.dirty && ended);
    }

    /// Something of the pod may be at the provider's: its end must be told before the object goes.
    fn may_be_there(&self) -> bool {
        (self.created || self.tried) && !self.lost
    }

    /// Nothing of the pod can run any more.
    pub fn has_ended(&self) -> bool {
        !self.may_be_there() || self.report.as_ref().is_some_and(|r| r.has_ended())
    }

    /// What is to be done next.
    pub fn step(&self, mode: PodMode) -> Step {
        if self.vanished {
            return match (self.may_be_there(), self.delete_sent) {
                (false, _) => Step::Forget,
                // It was told, and it is over.
                (true, Some(_)) if self.has_ended() => Step::Forget,
                // Its end is still to be told.
                (true, Some(0)) => Step::Idle,
                (true, _) => Step::Delete(0),
            };
        }
        if mode == PodMode::Driven {
            return self.driven();
        }
        if let Some(grace) = self.terminating {
            return self.ending(grace);
        }
        if self.refused.is_some() || self.lost {
            return self.writing();
        }
        if !self.created {
            return match &self.desired {
                // It ended before, and nobody wants it again.
                _ if self.terminal => Step::Idle,
                Some(pod) => Step::Create(pod.clone()),
                None => Step::Idle,
            };
        }
        match &self.desired {
            Some(pod) => Step::Update(pod.clone()),
            None => self.writing(),
        }
    }

    fn writing(&self) -> Step {
        match self.dirty {
            true => Step::Write,
            false => Step::Idle,
        }
    }

    fn ending(&self, grace: i64) -> Step {
        let told = self.delete_sent.is_some_and(|sent| sent <= grace);
        if self.may_be_there() && !told {
            return Step::Delete(grace);
        }
        match (self.dirty, self.has_ended(), self.removed) {
            (true, _, false) if self.report.is_some() || self.lost => Step::Write,
            (_, true, false) => Step::Remove,
            _ => Step::Idle,
        }
    }

    fn driven(&self) -> Step {
        match (&self.desired, self.created) {
            (Some(pod), false) => Step::Create(pod.clone()),
            (Some(pod), true) => Step::Update(pod.clone()),
            (None, _) => Step::Idle,
        }
    }

    /// The phase that was decided for it without its containers being asked.
    pub fn forced_phase(&self) -> Option<Phase> {
        let refused = self.refused.is_some() || (self.lost && self.terminating.is_none());
        refused.then_some(Phase::Failed)
    }
}

/// Writes into a hash.
struct HashWriter(DefaultHasher);

impl std::io::Write for HashWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A hash of a value's JSON.
pub fn json_hash(value: &impl serde::Serialize) -> u64 {
    let mut writer = HashWriter(DefaultHasher::new());
    // API types have string keys, and a hash takes every byte.
    let _ = serde_json::to_writer(&mut writer, value);
    writer.0.finish()
}

fn interest(pod: &Pod) -> u64 {
    json_hash(&(&pod.spec, &pod.metadata.labels, &pod.metadata.annotations))
}
