//! One round: what the drivers have done, what has to be detached, what has to be attached. Pure.

use std::sync::Arc;
use std::time::Duration;

use component_base::events::EventType;
use component_helpers::node::is_node_ready;
use controller_runtime::Action;
use k8s_openapi::api::core::v1::{Node, ObjectReference};
use k8s_openapi::api::storage::v1::VolumeAttachment;

use super::actual::{Actual, AttachState};
use super::desired::{Desired, Place, Wanted};
use super::operations::{Key, Operation, Operations, Verb};
use super::volume::{Volume, attachment_name, split_unique_name};

/// On nodes that are shut down for good. Upstream: `TaintNodeOutOfService`.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// So long an unready node is waited for. Upstream: `ReconcilerMaxWaitForUnmountDuration`.
pub const MAX_WAIT_FOR_UNMOUNT: Duration = Duration::from_secs(6 * 60);
/// So long a driver is waited for. Upstream: `csiTimeout`.
const DRIVER_TIMEOUT: Duration = Duration::from_secs(2 * 60);
/// The reason of what pods are told when attaching does not go on.
pub const FAILED_ATTACH: &str = "FailedAttachVolume";
const SUCCESSFUL_ATTACH: &str = "SuccessfulAttachVolume";

/// What is looked up.
pub trait View {
    fn node(&self, name: &str) -> Option<Arc<Node>>;
    fn attachment(&self, name: &str) -> Option<Arc<VolumeAttachment>>;
}

/// All that is remembered.
#[derive(Debug, Default)]
pub struct State {
    pub desired: Desired,
    pub actual: Actual,
    pub operations: Operations,
}

/// Why a node that may use a volume is not waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forced {
    /// It was not ready for too long.
    Timeout,
    /// It has the taint.
    OutOfService,
}

/// A write to begin.
#[derive(Clone, Debug)]
pub enum Call {
    /// Create the VolumeAttachment.
    Attach(Box<VolumeAttachment>),
    /// Delete the VolumeAttachment of this name; before that the node is asked, unless it is forced.
    Detach {
        attachment: String,
        forced: Option<Forced>,
    },
}

/// What a round wants done, in this order.
#[derive(Debug, Default)]
pub struct Round {
    /// Tell pods.
    pub events: Vec<Action>,
    /// Begin writes; a detach only after the node's status was written.
    pub calls: Vec<(Key, Place, Call)>,
    /// Operations that ended.
    pub measured: Vec<Measured>,
    /// When to look again at the latest, in the clock's monotonic time.
    pub next: Option<Duration>,
}

/// How an operation ended, for metrics.
#[derive(Debug, PartialEq, Eq)]
pub struct Measured {
    /// Empty where the volume's name says none.
    pub driver: String,
    /// As metrics name it.
    pub operation: &'static str,
    /// Whether it did what was asked.
    pub success: bool,
    /// Since it was begun.
    pub took: Duration,
}

impl Round {
    fn look_again(&mut self, at: Duration) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }
}

/// A round at `now`, the clock's monotonic time. Detaches come before attaches.
pub fn sync(
    state: &mut State,
    view: &dyn View,
    disable_force_detach: bool,
    now: Duration,
) -> Round {
    let mut round = Round::default();
    progress(state, view, now, &mut round);
    detach_unwanted(state, view, disable_force_detach, now, &mut round);
    attach_wanted(state, now, &mut round);
    state.operations.tidy(now);
    round
}

/// How the waits for drivers stand.
fn progress(state: &mut State, view: &dyn View, now: Duration, round: &mut Round) {
    for (key, operation) in state.operations.waiting() {
        let attachment = names(&operation).and_then(|name| view.attachment(&name));
        let attachment = attachment.as_deref();
        let outcome = match operation.verb {
            Verb::Attach => attached(attachment),
            Verb::Detach => detached(attachment),
        };
        let timeout = operation.since + DRIVER_TIMEOUT;
        match outcome {
            Ok(true) => succeed(state, &key, &operation, now, round),
            Ok(false) if now < timeout => round.look_again(timeout),
            Ok(false) => {
                let error = timed_out(&operation);
                fail(state, &key, &error, now, round);
            }
            Err(error) => fail(state, &key, &error, now, round),
        }
    }
}

fn names(operation: &Operation) -> Option<String> {
    let (driver, handle) = split_unique_name(&operation.place.volume)?;
    Some(attachment_name(driver, handle, &operation.place.node))
}

/// Upstream: `verifyAttachmentStatus`; one that is not there yet is waited for.
fn attached(attachment: Option<&VolumeAttachment>) -> Result<bool, String> {
    let Some(attachment) = attachment else {
        return Ok(false);
    };
    if attachment.metadata.deletion_timestamp.is_some() {
        return Err("volume attachment is being deleted".to_owned());
    }
    let status = attachment.status.as_ref();
    if status.is_some_and(|s| s.attached) {
        return Ok(true);
    }
    match status.and_then(|s| s.attach_error.as_ref()) {
        Some(error) => Err(error.message.clone().unwrap_or_default()),
        None => Ok(false),
    }
}

/// Upstream: `verifyDetachmentStatus`.
fn detached(attachment: Option<&VolumeAttachment>) -> Result<bool, String> {
    let Some(attachment) = attachment else {
        return Ok(true);
    };
    let status = attachment.status.as_ref();
    match status.and_then(|s| s.detach_error.as_ref()) {
        Some(error) => Err(error.message.clone().unwrap_or_default()),
        None => Ok(false),
    }
}

fn timed_out(operation: &Operation) -> String {
    let (driver, handle) = split_unique_name(&operation.place.volume).unwrap_or_default();
    let (driver, verb) = match operation.verb {
        Verb::Attach => (driver, "attach"),
        // Upstream has no specification of the volume there.
        Verb::Detach => ("unknown", "detach"),
    };
    format!(
        "timed out waiting for external-attacher of {driver} CSI driver to {verb} volume {handle}"
    )
}

fn measure(operation: &Operation, success: bool, now: Duration) -> Measured {
    let driver = split_unique_name(&operation.place.volume).map_or("", |(driver, _)| driver);
    let name = match operation.verb {
        Verb::Attach => "volume_attach",
        Verb::Detach => "volume_detach",
    };
    Measured {
        driver: driver.to_owned(),
        operation: name,
        success,
        took: now.saturating_sub(operation.since),
    }
}

fn succeed(state: &mut State, key: &Key, operation: &Operation, now: Duration, round: &mut Round) {
    round.measured.push(measure(operation, true, now));
    state.operations.finish(key);
    let place = &operation.place;
    match operation.verb {
        Verb::Attach => {
            state
                .actual
                .mark_attached(place, operation.volume.clone(), "");
            let message = message(
                "AttachVolume.Attach succeeded",
                operation.volume.as_ref(),
                "",
            );
            for pod in state.desired.pods_at(place) {
                let event = event(pod, EventType::Normal, SUCCESSFUL_ATTACH, &message);
                round.events.push(event);
            }
            tracing::info!(
                volume = place.volume,
                node = place.node,
                "AttachVolume.Attach succeeded"
            );
        }
        Verb::Detach => {
            state.actual.mark_detached(place);
            tracing::info!(
                volume = place.volume,
                node = place.node,
                "DetachVolume.Detach succeeded"
            );
        }
    }
}

/// An operation failed: nobody knows whether the volume is attached, and it is tried again after a pause.
pub fn fail(state: &mut State, key: &Key, error: &str, now: Duration, round: &mut Round) {
    let Some(operation) = state.operations.get(key).cloned() else {
        return;
    };
    round.measured.push(measure(&operation, false, now));
    let place = &operation.place;
    state.operations.fail(key, now);
    state.actual.mark_uncertain(place, operation.volume.clone());
    if let Some(until) = state.operations.paused_until(key, operation.verb, now) {
        round.look_again(until);
    }
    match operation.verb {
        Verb::Attach => {
            let suffix = format!(": {error}");
            let message = message(
                "AttachVolume.Attach failed",
                operation.volume.as_ref(),
                &suffix,
            );
            for pod in state.desired.pods_at(place) {
                let event = event(pod, EventType::Warning, FAILED_ATTACH, &message);
                round.events.push(event);
            }
            tracing::warn!(
                volume = place.volume,
                node = place.node,
                error,
                "AttachVolume.Attach failed"
            );
        }
        Verb::Detach => {
            tracing::warn!(
                volume = place.volume,
                node = place.node,
                error,
                "DetachVolume.Detach failed"
            );
        }
    }
}

/// A call ended. `gone` says that there was no VolumeAttachment to delete.
pub fn called(state: &mut State, key: &Key, result: Result<bool, String>, now: Duration) -> Round {
    let mut round = Round::default();
    match result {
        Ok(false) => state.operations.called(key),
        Ok(true) => {
            if let Some(operation) = state.operations.get(key).cloned() {
                succeed(state, key, &operation, now, &mut round);
            }
        }
        Err(error) => fail(state, key, &error, now, &mut round),
    }
    round
}

/// The node's status could not be written, so the volume is not detached yet.
pub fn abandon_detach(state: &mut State, key: &Key, place: &Place) {
    state.operations.finish(key);
    if state.actual.state(place) == AttachState::Attached {
        state.actual.report(place);
    }
}

fn detach_unwanted(
    state: &mut State,
    view: &dyn View,
    disable_force_detach: bool,
    now: Duration,
    round: &mut Round,
) {
    let unwanted: Vec<(Place, Option<Volume>)> = state
        .actual
        .all()
        .filter(|(place, _)| !state.desired.wants(place))
        .map(|(place, attachment)| (place.clone(), attachment.volume.clone()))
        .collect();
    for (place, volume) in unwanted {
        // What is not of CSI is another's.
        let Some((driver, handle)) = split_unique_name(&place.volume) else {
            continue;
        };
        let key = Key::of(&place, volume.as_ref());
        if state.operations.is_pending(&key) {
            continue;
        }
        if let Some(until) = state.operations.paused_until(&key, Verb::Detach, now) {
            round.look_again(until);
            continue;
        }
        let waited = state.actual.request_detach(&place, now);
        let node = view.node(&place.node);
        let taints = node
            .iter()
            .filter_map(|node| node.spec.as_ref()?.taints.as_ref());
        let out_of_service = taints.flatten().any(|taint| taint.key == OUT_OF_SERVICE);
        let healthy = node.as_deref().is_some_and(is_node_ready);
        let expired = waited > MAX_WAIT_FOR_UNMOUNT && !disable_force_detach;
        let force = expired && !healthy;
        if state.actual.is_in_use(&place) && !force && !out_of_service {
            if !disable_force_detach && waited <= MAX_WAIT_FOR_UNMOUNT {
                round.look_again(now + (MAX_WAIT_FOR_UNMOUNT - waited) + Duration::from_millis(1));
            }
            continue;
        }
        // As upstream: after the time the node is not asked, even if it is ready and says that it does not use the volume.
        let forced = match (expired, out_of_service) {
            (true, _) => Some(Forced::Timeout),
            (false, true) => Some(Forced::OutOfService),
            (false, false) => None,
        };
        let attachment = attachment_name(driver, handle, &place.node);
        state.actual.withdraw(&place);
        let operations = &mut state.operations;
        operations.start(key.clone(), Verb::Detach, place.clone(), volume, now);
        let call = Call::Detach { attachment, forced };
        round.calls.push((key, place, call));
    }
}

fn attach_wanted(state: &mut State, now: Duration, round: &mut Round) {
    let all: Vec<(Place, Wanted)> = state
        .desired
        .all()
        .filter(|(place, _)| !state.actual.is_settled(place))
        .map(|(place, wanted)| (place.clone(), wanted.clone()))
        .collect();
    for (place, wanted) in all {
        let key = Key::of(&place, Some(&wanted.volume));
        if state.operations.is_pending(&key) {
            continue;
        }
        if state.actual.state(&place) == AttachState::Attached {
            state.actual.touch(&place);
            continue;
        }
        if !wanted.volume.multi_attach {
            let nodes: Vec<String> = state
                .actual
                .nodes_with(&place.volume)
                .map(str::to_owned)
                .collect();
            if !nodes.is_empty() {
                if !wanted.multi_attach_reported {
                    report_multi_attach(state, &place, &wanted.volume, &nodes, round);
                    state.desired.set_multi_attach_reported(&place);
                }
                continue;
            }
        }
        if let Some(until) = state.operations.paused_until(&key, Verb::Attach, now) {
            round.look_again(until);
            continue;
        }
        state.actual.touch(&place);
        let call = Call::Attach(Box::new(wanted.volume.attachment(&place.node)));
        let volume = Some(wanted.volume);
        let operations = &mut state.operations;
        operations.start(key.clone(), Verb::Attach, place.clone(), volume, now);
        round.calls.push((key, place, call));
    }
}

/// Tells the pods that wait who has the volume; names only of their own namespace. Upstream: `reportMultiAttachError`.
fn report_multi_attach(
    state: &State,
    place: &Place,
    volume: &Volume,
    nodes: &[String],
    round: &mut Round,
) {
    let elsewhere = nodes.iter().filter(|node| **node != place.node);
    let users: Vec<&ObjectReference> = elsewhere
        .flat_map(|node| {
            let at = Place {
                volume: place.volume.clone(),
                node: node.clone(),
            };
            state.desired.pods_at(&at)
        })
        .collect();
    for pod in state.desired.pods_at(place) {
        let is_local = |user: &&&ObjectReference| user.namespace == pod.namespace;
        let local: Vec<&str> = users
            .iter()
            .filter(is_local)
            .filter_map(|user| user.name.as_deref())
            .collect();
        let others = users.len() - local.len();
        let suffix = match (local.is_empty(), others) {
            (true, 0) => "Volume is already exclusively attached to one node, waiting on detach before it can be attached to another node".to_owned(),
            (true, _) => format!("Volume is already used by {others} pod(s) in different namespaces"),
            (false, 0) => format!("Volume is already used by pod(s) {}", local.join(", ")),
            (false, _) => format!(
                "Volume is already used by pod(s) {} and {others} pod(s) in different namespaces",
                local.join(", ")
            ),
        };
        let message = message("Waiting for detach", Some(volume), &suffix);
        let event = event(pod, EventType::Warning, FAILED_ATTACH, &message);
        round.events.push(event);
    }
    tracing::info!(
        volume = place.volume,
        node = place.node,
        ?nodes,
        "Waiting for detach: volume is attached to other nodes"
    );
}

/// Upstream: `generateVolumeMsg`.
fn message(prefix: &str, volume: Option<&Volume>, suffix: &str) -> String {
    let name = volume.map_or("nil", |volume| volume.persistent_volume.as_str());
    format!("{prefix} for volume {name:?} {suffix}")
}

fn event(
    pod: &ObjectReference,
    event_type: EventType,
    reason: &'static str,
    message: &str,
) -> Action {
    Action::Event {
        regarding: Box::new(pod.clone()),
        event_type,
        reason,
        message: message.to_owned(),
    }
}

/// What surely is attached and not being worked on, to be compared with the VolumeAttachments: place, and the name to look at.
pub fn to_verify(state: &State) -> Vec<(Place, String)> {
    let confirmed = state.actual.all().filter(|(_, a)| a.confirmed);
    confirmed
        .filter(|(place, a)| {
            !state
                .operations
                .is_pending(&Key::of(place, a.volume.as_ref()))
        })
        .filter_map(|(place, _)| {
            let (driver, handle) = split_unique_name(&place.volume)?;
            Some((place.clone(), attachment_name(driver, handle, &place.node)))
        })
        .collect()
}

/// A look at the VolumeAttachment said that the volume is not attached any more.
pub fn lost(state: &mut State, place: &Place) {
    let volume = state
        .actual
        .all()
        .find(|(p, _)| *p == place)
        .and_then(|(_, a)| a.volume.clone());
    if !state
        .operations
        .is_pending(&Key::of(place, volume.as_ref()))
    {
        state.actual.mark_detached(place);
    }
}
