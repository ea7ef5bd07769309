//! Holds the machine's shutdown up until the pods have ended.
//!
//! Owns: the lock, and the one task that follows logind. Upstream: `pkg/kubelet/nodeshutdown/nodeshutdown_manager_linux.go`, v1.37.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use component_base::clock::Clock;
use component_base::tasks::spawn_helper;
use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use systemd::logind::{Event, Logind, LogindError, Session};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::plan::{Group, Plan, forced_failure, names};
use super::state::{FILE, State, StateError};
use crate::events::{Type, reason};
use crate::kubelet::Kubelet;
use crate::off_thread::off_thread;
use crate::pod;
use crate::pod_workers::Update;

/// Before logind is asked again that was lost. Upstream: `dbusReconnectPeriod`.
const RECONNECT_PERIOD: Duration = Duration::from_secs(1);
/// The longest pause between two tries of which the first failed, too; upstream's has no longer one.
const MOST_RECONNECT_PERIOD: Duration = Duration::from_secs(60);

/// logind reads its configuration when it has time: how often it is asked whether it did, and the first pause, which doubles.
const DELAY_ATTEMPTS: u32 = 5;
const DELAY_PAUSE: Duration = Duration::from_millis(100);

/// Why a shutdown of the machine would not wait for its pods.
#[derive(Debug, thiserror::Error)]
enum NodeShutdownError {
    #[error(transparent)]
    Logind(#[from] LogindError),
    #[error("unable to override inhibit delay by shutdown manager: {0}")]
    Override(#[source] LogindError),
    #[error(
        "node shutdown manager was timed out after {DELAY_ATTEMPTS} attempts waiting for logind InhibitDelayMaxSec to update to \
         {requested:?} (ShutdownGracePeriod), current value is {current:?}"
    )]
    Delay {
        requested: Duration,
        current: Duration,
    },
    #[error("Ended to watching the node for shutdown events")]
    Disconnected,
}

/// Follows logind until `shutdown`; `changed` wakes the node's status. Where there is no logind it is looked for ever less often.
///
/// DIFFERS: upstream never looks again if there is none at the start, and every second later on.
pub async fn run(
    plan: Plan,
    logind: Arc<dyn Logind>,
    kubelet: Arc<Kubelet>,
    changed: Arc<Notify>,
    shutdown: CancellationToken,
) {
    tracing::info!(
        periods = ?plan.periods(),
        "Creating node shutdown manager"
    );
    let clock = kubelet.clock.clone();
    let mut manager = Manager {
        state_file: kubelet.paths.root().join(FILE),
        plan: Arc::new(plan),
        kubelet,
        changed,
        lock: None,
        ending: None,
        state: State::default(),
    };
    manager.recall().await;
    let mut pause = RECONNECT_PERIOD;
    loop {
        let mut attached = false;
        let error = tokio::select! {
            () = shutdown.cancelled() => return,
            error = manager.follow(logind.as_ref(), &mut attached) => error,
        };
        if attached {
            pause = RECONNECT_PERIOD;
        }
        tracing::error!(%error, retry_in = ?pause, "Unable to watch the node for shutdown events");
        tokio::select! {
            () = shutdown.cancelled() => return,
            // What was begun goes on meanwhile.
            () = manager.wait(&clock, pause) => {}
        }
        pause = (pause * 2).min(MOST_RECONNECT_PERIOD);
    }
}

struct Manager {
    plan: Arc<Plan>,
    kubelet: Arc<Kubelet>,
    changed: Arc<Notify>,
    state_file: PathBuf,
    /// While it is held, the machine does not go down.
    lock: Option<OwnedFd>,
    /// The end of the pods, while it goes on.
    ending: Option<Ending>,
    state: State,
}

/// A task, however long logind takes to answer. It is stopped with this value.
struct Ending(JoinHandle<()>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Manager {
    /// What the last kubelet knew of shutdowns.
    async fn recall(&mut self) {
        if !self.plan.tells_times {
            return;
        }
        let path = self.state_file.clone();
        match off_thread(move || State::load(&path)).await {
            Ok(Ok(state)) => {
                self.state = state;
                state.show();
            }
            Ok(Err(error)) => tracing::error!(%error, "Failed to load graceful shutdown state"),
            Err(error) => tracing::error!(%error, "Failed to load graceful shutdown state"),
        }
    }

    /// Until it is lost; why. `attached`: whether it was had.
    async fn follow(&mut self, logind: &dyn Logind, attached: &mut bool) -> NodeShutdownError {
        let mut session = match logind.connect().await {
            Ok(session) => session,
            Err(error) => return error.into(),
        };
        if let Err(error) = self.attach(session.as_ref()).await {
            return error;
        }
        *attached = true;
        loop {
            let event = tokio::select! {
                event = session.next() => event,
                () = ended(&mut self.ending) => {
                    self.ended().await;
                    continue;
                }
            };
            let outcome = match event {
                None => Err(NodeShutdownError::Disconnected),
                Some(Event::Gone) => {
                    tracing::warn!(
                        "logind is gone; its shutdowns are followed again when it is back"
                    );
                    Ok(())
                }
                Some(Event::Back) => self.attach(session.as_ref()).await,
                Some(Event::PrepareForShutdown(true)) => {
                    self.begin().await;
                    Ok(())
                }
                Some(Event::PrepareForShutdown(false)) => {
                    self.cancel().await;
                    self.take_lock(session.as_ref()).await
                }
            };
            if let Err(error) = outcome {
                return error;
            }
        }
    }

    /// Sleeps, and sees to the end of pods that was begun.
    async fn wait(&mut self, clock: &Clock, pause: Duration) {
        let sleep = clock.sleep(pause);
        tokio::pin!(sleep);
        loop {
            tokio::select! {
                () = &mut sleep => return,
                () = ended(&mut self.ending) => self.ended().await,
            }
        }
    }

    /// Finds out where a logind stands that was not heard before, and takes the lock.
    ///
    /// DIFFERS: upstream does not ask, and misses what happened while it had no connection.
    async fn attach(&mut self, session: &dyn Session) -> Result<(), NodeShutdownError> {
        let preparing = session.preparing_for_shutdown().await?;
        match (preparing, self.kubelet.node.is_shutting_down()) {
            (true, false) => self.begin().await,
            (false, true) => self.cancel().await,
            (true, true) | (false, false) => {}
        }
        if preparing {
            // There is no lock to be had any more; the one from before still counts.
            return Ok(());
        }
        let (requested, clock) = (self.plan.requested(), self.kubelet.clock.clone());
        raise_delay(session, requested, &clock).await?;
        self.take_lock(session).await
    }

    /// The new one is there before the old one goes.
    async fn take_lock(&mut self, session: &dyn Session) -> Result<(), NodeShutdownError> {
        self.lock = Some(session.inhibit_shutdown().await?);
        Ok(())
    }

    /// The machine goes down.
    async fn begin(&mut self) {
        if self.ending.is_some() {
            return;
        }
        tracing::info!("Shutdown manager detected new shutdown event");
        let recorder = &self.kubelet.recorder;
        let message = "Shutdown manager detected shutdown event";
        recorder.node(Type::Normal, reason::NODE_SHUTDOWN, message);
        self.kubelet.node.set_shutting_down(true);
        self.changed.notify_one();
        self.note(State {
            start: Some(self.kubelet.clock.now()),
            end: None,
        })
        .await;
        let ending = end_pods(self.kubelet.clone(), self.plan.clone());
        self.ending = Some(Ending(spawn_helper("end of the node's pods", ending)));
    }

    /// Every group had its turn.
    async fn ended(&mut self) {
        self.ending = None;
        self.note_end().await;
        self.lock = None;
        tracing::info!(
            "Shutdown manager completed processing shutdown event, node will shutdown shortly"
        );
    }

    /// The machine stays up. Pods that were ended already stay so.
    ///
    /// DIFFERS: upstream ends the groups that are left first, and tells the node's status up to ten seconds later.
    async fn cancel(&mut self) {
        tracing::info!("Shutdown manager detected a cancelled shutdown");
        let recorder = &self.kubelet.recorder;
        let message = "Shutdown manager detected shutdown cancellation";
        recorder.node(Type::Normal, reason::NODE_SHUTDOWN, message);
        if self.ending.take().is_some() {
            self.note_end().await;
        }
        self.kubelet.node.set_shutting_down(false);
        self.changed.notify_one();
    }

    async fn note_end(&mut self) {
        let end = Some(self.kubelet.clock.now());
        self.note(State { end, ..self.state }).await;
    }

    async fn note(&mut self, state: State) {
        self.state = state;
        if !self.plan.tells_times {
            return;
        }
        state.show();
        let path = self.state_file.clone();
        let stored: Result<Result<(), StateError>, _> =
            off_thread(move || state.store(&path)).await;
        match stored {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "Failed to store graceful shutdown state"),
            Err(error) => tracing::error!(%error, "Failed to store graceful shutdown state"),
        }
    }
}

/// Has logind wait as long as the pods have, if it would not.
async fn raise_delay(
    session: &dyn Session,
    requested: Duration,
    clock: &Clock,
) -> Result<(), NodeShutdownError> {
    let mut current = session.inhibit_delay_max().await?;
    if requested <= current {
        return Ok(());
    }
    let overridden = session.override_inhibit_delay(requested).await;
    overridden.map_err(NodeShutdownError::Override)?;
    session.reload_conf().await?;
    let mut pause = DELAY_PAUSE;
    for attempt in 1..=DELAY_ATTEMPTS {
        current = session.inhibit_delay_max().await?;
        if requested <= current {
            return Ok(());
        }
        if attempt < DELAY_ATTEMPTS {
            clock.sleep(pause).await;
            pause *= 2;
        }
    }
    Err(NodeShutdownError::Delay { requested, current })
}

/// Resolves when there is something that ended; cancel-safe.
async fn ended(ending: &mut Option<Ending>) {
    match ending {
        Some(Ending(task)) => {
            // Its panic was told.
            let _ = task.await;
        }
        None => std::future::pending().await,
    }
}

/// One group after the other: the next begins when nothing is left of the last one's pods, or its time is over.
async fn end_pods(kubelet: Arc<Kubelet>, plan: Arc<Plan>) {
    // One that is not admitted yet will not be.
    let mut pods = kubelet.active_pods();
    pods.retain(|pod| kubelet.workers.status(pod::uid(pod)).is_some());
    for group in plan.group_by_priority(pods) {
        if !group.pods.is_empty() {
            end_group(&kubelet, &group).await;
        }
    }
}

/// Volumes are waited for, too: the driver that unmounts them may be of the next group.
async fn end_group(kubelet: &Kubelet, group: &Group) {
    let period = group.period;
    for pod in &group.pods {
        let grace_period = period.grace_period_seconds(pod);
        tracing::info!(pod = %pod::format(pod), grace_period, "Shutdown manager killing pod with gracePeriod");
        let kill = Update::Kill {
            pod: pod.clone(),
            grace_period_seconds: Some(grace_period),
            forced: Some(forced_failure()),
        };
        kubelet.workers.update_pod(pod::uid(pod), kill);
    }
    let pods = group.pods.iter();
    let all = join_all(pods.map(|pod| kubelet.workers.until_finished(pod::uid(pod))));
    let (grace_period, priority) = (period.seconds, period.priority);
    tokio::select! {
        biased;
        _ = all => tracing::info!(grace_period, priority, "Done waiting for all pods in group to terminate"),
        () = kubelet.clock.sleep(period.duration()) => {
            let unfinished = |pod: &&Arc<Pod>| {
                let work = kubelet.workers.status(pod::uid(pod));
                work.is_some_and(|work| !work.finished)
            };
            let left: Vec<_> = group.pods.iter().filter(unfinished).cloned().collect();
            tracing::warn!(grace_period, priority, left = ?names(&left), "Shutdown manager pod killing time out");
        }
    }
}

#[cfg(test)]
mod tests;
