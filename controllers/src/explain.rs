//! `kube-controller-manager explain KIND/NAME`: which controllers act on an object, what they decided last, and what the one whose
//! kind it is would do next. The answer to "why does my rollout not move".
//!
//! The next decision is the controller's own: one pass of it over what the API server has now, by way of a transport that carries
//! reads and takes writes down ([`rehearsal`]). Nothing is written. What only the running process knows is not part of it: writes
//! whose events it waits for, and back-offs.

mod acting;
mod arguments;
mod changes;
mod kind;
mod live;
mod pods;
mod rehearsal;
mod report;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use component_base::client::ClientError;
use component_base::clock::Clock;
use component_base::events::Recorder;
use component_base::informer::Factory;
use component_base::leader_election::Leadership;
use component_base::shutdown::Shutdown;
use controller_runtime::transport::ApiTransport;
use controller_runtime::{
    ApiError, Controller, Executor, ObjectKey, Queues, Transport, Watches, WorkQueue,
};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::ReplicationController;

use crate::daemonset::controller::DaemonSetController;
use crate::deployment::controller::DeploymentController;
use crate::job::controller::{JobController, JobKey};
use crate::replicaset::controller::ReplicaSetController;
use crate::statefulset::controller::StatefulSetController;
use crate::statefulset::metrics::Metrics;

use arguments::{Arguments, Output};
use kind::Kind;
use live::Live;
use rehearsal::Rehearsal;
use report::{Next, Report};

/// The word that the command line begins with.
pub const COMMAND: &str = "explain";

/// Why an object cannot be explained.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// The command line.
    #[error(transparent)]
    Arguments(#[from] arguments::ArgumentError),
    /// No client can be made of what the command line names.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The API server said no.
    #[error("reading {what}: {source}")]
    Read {
        /// What was read.
        what: String,
        /// The cause.
        #[source]
        source: ApiError,
    },
    /// What was found cannot be printed.
    #[error("writing the report: {0}")]
    Print(#[from] serde_json::Error),
    /// No runtime.
    #[error("starting the runtime: {0}")]
    Runtime(#[from] std::io::Error),
}

/// Runs the command; `words` are those after [`COMMAND`]. Returns the exit code.
pub fn main(words: Vec<String>) -> i32 {
    let text = Arguments::parse(words)
        .map_err(ExplainError::from)
        .and_then(|arguments| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let text = runtime.block_on(run(&arguments));
            runtime.shutdown_timeout(Duration::ZERO);
            text
        });
    match text {
        Ok(text) => {
            print!("{text}");
            0
        }
        Err(ExplainError::Arguments(arguments::ArgumentError::Help(usage))) => {
            print!("{usage}");
            0
        }
        Err(error) => {
            eprintln!("Error: {error}");
            1
        }
    }
}

async fn run(arguments: &Arguments) -> Result<String, ExplainError> {
    let config = arguments.client.load().await?;
    let namespace = arguments.namespace.clone();
    let namespace = namespace.unwrap_or_else(|| config.default_namespace.clone());
    let client = arguments.client.build_from(config)?;
    let key = ObjectKey::new(namespace, arguments.name.as_str());
    let transport = Arc::new(ApiTransport::new(client.clone()));
    let factory = Factory::new(client, Shutdown::new());
    let report = explain(arguments.kind, &key, transport, factory, Clock::real()).await?;
    Ok(match arguments.output {
        Output::Json => serde_json::to_string_pretty(&report)? + "\n",
        Output::Text => report.to_string(),
    })
}

/// What there is to say of an object. `factory` is one that nobody has asked for an informer yet.
async fn explain(
    kind: Kind,
    key: &ObjectKey,
    transport: Arc<dyn Transport>,
    factory: Factory,
    clock: Clock,
) -> Result<Report, ExplainError> {
    let rehearsal = Arc::new(Rehearsal::new(transport));
    let (recorder, mut events) = Recorder::fake();
    let executor = Executor::new(rehearsal.clone(), Leadership::always(), recorder);
    let live = Live::read(kind, key, &executor, &factory).await?;
    let pass = pass(kind, key, &factory, executor, clock).await;
    let mut recorded = Vec::new();
    while let Ok(event) = events.try_recv() {
        recorded.push(event);
    }
    let next = Next::new(&rehearsal.writes(), &recorded, pass, |plural, name| {
        live.object(plural, name)
    });
    Ok(Report::new(kind, key, &live, next))
}

/// One pass of the kind's controller: when it would look again.
async fn pass(
    kind: Kind,
    key: &ObjectKey,
    factory: &Factory,
    executor: Executor,
    clock: Clock,
) -> Result<Option<Duration>, String> {
    let (end, key) = (Shutdown::new(), key.clone());
    let queues = Queues::unread(clock.clone());
    match kind {
        Kind::Deployment => {
            let parts = DeploymentController::new(&queues, factory, executor, clock, &end);
            reconcile(parts, key).await
        }
        Kind::ReplicaSet => {
            let parts =
                ReplicaSetController::<ReplicaSet>::new(&queues, factory, executor, clock, &end);
            reconcile(parts, key).await
        }
        Kind::ReplicationController => {
            type Replication = ReplicaSetController<ReplicationController>;
            let parts = Replication::new(&queues, factory, executor, clock, &end);
            reconcile(parts, key).await
        }
        Kind::StatefulSet => {
            // The gate MaxUnavailableStatefulSet, as it is by default.
            let parts = StatefulSetController::new(
                &queues,
                factory,
                executor,
                Metrics::unread(),
                clock,
                true,
                &end,
            );
            reconcile(parts, key).await
        }
        Kind::DaemonSet => {
            let parts = DaemonSetController::new(&queues, factory, executor, clock, &end);
            reconcile(parts, key).await
        }
        Kind::Job => {
            let parts = JobController::new(&queues, factory, executor, clock, &end);
            reconcile(parts, JobKey::Job(key)).await
        }
    }
}

async fn reconcile<C: Controller>(
    (controller, _queue, mut watches): (Arc<C>, WorkQueue<C::Key>, Watches),
    key: C::Key,
) -> Result<Option<Duration>, String> {
    watches.wait_for_sync().await;
    let again = controller.reconcile(&key).await;
    again.map_err(|error| error.to_string())
}
