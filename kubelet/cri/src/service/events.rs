//! What happens to containers and sandboxes, as a stream without an end.
//!
//! As other runtimes have it, a sandbox is told of like a container with the sandbox's id: created and started, stopped, deleted.

use cri_spec::v1;
use cri_spec::v1::ContainerEventType as Kind;
use futures::StreamExt as _;
use runtime::RuntimeEvent;
use tokio::sync::broadcast::error::RecvError;
use tonic::Status;

use super::{Answers, CriService};
use crate::to_cri;

/// What a client is told of one event: whose, and what.
struct Told {
    sandbox_id: String,
    /// A container's, or the sandbox's own.
    id: String,
    kinds: &'static [Kind],
}

fn told(event: RuntimeEvent) -> Told {
    let of = |sandbox_id: String, id: Option<String>, kinds| Told {
        id: id.unwrap_or_else(|| sandbox_id.clone()),
        sandbox_id,
        kinds,
    };
    match event {
        RuntimeEvent::ContainerCreated {
            sandbox_id,
            container_id,
            ..
        } => of(
            sandbox_id,
            Some(container_id),
            &[Kind::ContainerCreatedEvent],
        ),
        RuntimeEvent::ContainerStarted {
            sandbox_id,
            container_id,
            ..
        } => of(
            sandbox_id,
            Some(container_id),
            &[Kind::ContainerStartedEvent],
        ),
        RuntimeEvent::ContainerExited {
            sandbox_id,
            container_id,
            ..
        } => of(
            sandbox_id,
            Some(container_id),
            &[Kind::ContainerStoppedEvent],
        ),
        RuntimeEvent::ContainerRemoved {
            sandbox_id,
            container_id,
            ..
        } => of(
            sandbox_id,
            Some(container_id),
            &[Kind::ContainerDeletedEvent],
        ),
        RuntimeEvent::SandboxReady { sandbox_id, .. } => of(
            sandbox_id,
            None,
            &[Kind::ContainerCreatedEvent, Kind::ContainerStartedEvent],
        ),
        RuntimeEvent::SandboxStopped { sandbox_id, .. }
        | RuntimeEvent::SandboxNotReady { sandbox_id, .. } => {
            of(sandbox_id, None, &[Kind::ContainerStoppedEvent])
        }
        RuntimeEvent::SandboxRemoved { sandbox_id, .. } => {
            of(sandbox_id, None, &[Kind::ContainerDeletedEvent])
        }
    }
}

impl CriService {
    /// Begins with what happens from now on. Ends with `DataLoss` for a client that reads too slowly to hear of everything: it must
    /// list again; and with `Unavailable` when the runtime changes hands.
    pub(super) fn container_events(&self) -> Answers<v1::ContainerEventResponse> {
        let events = self.inner.runtime.events();
        let service = self.clone();
        let ending = self.inner.ending.clone();
        let stream = futures::stream::unfold(Some(events), move |events| {
            let (service, ending) = (service.clone(), ending.clone());
            async move {
                let mut events = events?;
                let event = tokio::select! {
                    event = events.recv() => event,
                    () = ending.cancelled() => Err(RecvError::Closed),
                };
                match event {
                    Ok(event) => {
                        let answers = service.describe(told(event)).await;
                        Some((answers.into_iter().map(Ok).collect(), Some(events)))
                    }
                    Err(RecvError::Lagged(lost)) => {
                        let text = format!("{lost} events were not read in time: list again");
                        Some((vec![Err(Status::data_loss(text))], None))
                    }
                    Err(RecvError::Closed) => {
                        let text = "the runtime changes hands: connect again";
                        Some((vec![Err(Status::unavailable(text))], None))
                    }
                }
            }
        });
        Box::pin(stream.flat_map(|answers: Vec<_>| futures::stream::iter(answers)))
    }

    /// With the sandbox and its containers as they are now: an event says that something changed, not how things were.
    async fn describe(&self, told: Told) -> Vec<v1::ContainerEventResponse> {
        let sandbox = self.runtime().pod_sandbox_status(&told.sandbox_id).await;
        let containers = self.runtime().list_containers().await.unwrap_or_default();
        let containers: Vec<_> = containers
            .iter()
            .filter(|container| container.sandbox_id == told.sandbox_id)
            .map(to_cri::container_status)
            .collect();
        let created_at = to_cri::nanoseconds(jiff::Timestamp::now());
        told.kinds
            .iter()
            .map(|kind| v1::ContainerEventResponse {
                container_id: told.id.clone(),
                container_event_type: (*kind).into(),
                created_at,
                pod_sandbox_status: sandbox.as_ref().ok().map(to_cri::sandbox_status),
                containers_statuses: containers.clone(),
            })
            .collect()
    }
}
