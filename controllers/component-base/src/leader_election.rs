//! Leader election over a `coordination.k8s.io` Lease.
//!
//! A candidate takes a lease that is free or that it saw unchanged for a lease's duration by its own clock, and renews it. It stops
//! leading when it could not renew for the renew deadline, before another may take over. Writes carry the resourceVersion, so of two
//! writers one loses. Upstream: `k8s.io/client-go/tools/leaderelection`.
//!
//! ```text
//! candidate --acquired--> leader --renewed--> leader
//!                           |--not renewed for renew_deadline--> paused --renewed--> leader
//!                           |                                      `--another holds the lease--> lost
//!                           |--another holds the lease--> lost (the process ends)
//!                           `--shutdown, work ended--> released
//! ```
//!
//! DIFFERS: upstream's leader ends itself at the renew deadline. When it was the API server that was away, nobody else can have led
//! meanwhile, yet a standby then waits a whole lease out. Ours pauses: it writes nothing ([`Leadership::wait`] holds its writes back),
//! keeps its caches, and leads on at once when the lease is still its own.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;

use crate::client::{ClientConfig, ClientError};
use crate::clock::Clock;
use crate::events::{EventType, Recorder, object_reference};
use crate::health::{Health, Kind};
use crate::shutdown::Shutdown;

/// Upstream's `JitterFactor`: a candidate waits up to this much longer between tries.
const JITTER: f64 = 1.2;
/// Time past the lease's duration before the health check fails (upstream's watchdog).
const WATCHDOG: Duration = Duration::from_secs(20);

/// Which lease, as whom, and how patient.
#[derive(Clone, Debug)]
pub struct LeaderElectionConfig {
    /// The lease's namespace, `kube-system` by default.
    pub namespace: String,
    /// The lease's name, the component's by default.
    pub name: String,
    /// Who we are; unique to a process. See [`default_identity`].
    pub identity: String,
    /// How long others wait after the last renewal they saw.
    pub lease_duration: Duration,
    /// How long the leader tries to renew before it gives up.
    pub renew_deadline: Duration,
    /// Pause between tries.
    pub retry_period: Duration,
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LeaderElectionError {
    /// Others could take over before this leader gives up.
    #[error("leaseDuration must be greater than renewDeadline")]
    LeaseDuration,
    /// There would be no second try.
    #[error("renewDeadline must be greater than retryPeriod*JitterFactor")]
    RenewDeadline,
    /// A time is zero, or a name is empty.
    #[error("{0} must be greater than zero and names must not be empty")]
    Empty(&'static str),
}

impl LeaderElectionConfig {
    /// Upstream's defaults: 15 s, 10 s, 2 s, in `kube-system`.
    pub fn new(name: &str) -> Self {
        Self {
            namespace: "kube-system".into(),
            name: name.into(),
            identity: default_identity(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }

    /// Checks the times against each other.
    ///
    /// # Errors
    /// See [`LeaderElectionError`].
    pub fn validate(&self) -> Result<(), LeaderElectionError> {
        if self.name.is_empty() || self.namespace.is_empty() || self.identity.is_empty() {
            return Err(LeaderElectionError::Empty("name"));
        }
        if self.retry_period.is_zero() {
            return Err(LeaderElectionError::Empty("retryPeriod"));
        }
        if self.lease_duration <= self.renew_deadline {
            return Err(LeaderElectionError::LeaseDuration);
        }
        if self.renew_deadline <= self.retry_period.mul_f64(JITTER) {
            return Err(LeaderElectionError::RenewDeadline);
        }
        Ok(())
    }
}

/// `hostname_uuid`, as upstream's components name themselves.
pub fn default_identity() -> String {
    let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid")
        .map(|u| u.trim().to_string())
        .unwrap_or_else(|_| format!("{:016x}", rand::random::<u64>()));
    format!("{}_{uuid}", crate::events::hostname())
}

/// How an election ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The process was told to end.
    Shutdown,
    /// The lease was lost; the process must end at once, since another may lead already.
    Lost,
    /// The work ended by itself while leading.
    Finished,
}

/// The lease was lost while the work went on: the process must end at once, since another may lead already.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("leaderelection lost")]
pub struct LeaseLost;

/// Why there is no candidate.
#[derive(Debug, thiserror::Error)]
pub enum CandidateError {
    /// No client.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A configuration that cannot work.
    #[error(transparent)]
    Config(#[from] LeaderElectionError),
}

/// How a try to renew ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Renewal {
    Renewed,
    /// The renew deadline passed and nobody else was seen to hold the lease.
    OutOfReach,
    Taken,
}

/// What was last seen in the lease, and when by this process's clock.
#[derive(Default)]
struct Observed {
    spec: LeaseSpec,
    resource_version: Option<String>,
    at: Duration,
}

/// Shared with the health check and the executor.
#[derive(Clone, Debug)]
pub struct Leadership {
    state: Arc<watch::Sender<State>>,
    clock: Clock,
    renew_deadline: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Never led, or leads no more.
    Follower,
    /// Renewed at this time of the clock.
    Leader(Duration),
    /// Could not renew in time; nobody else is known to lead.
    Paused,
}

impl Leadership {
    /// A process that needs no election leads always.
    pub fn always() -> Self {
        Self {
            state: Arc::new(watch::Sender::new(State::Leader(Duration::MAX))),
            clock: Clock::real(),
            renew_deadline: Duration::ZERO,
        }
    }
    /// Whether this process leads by what it knows now: it renewed within the renew deadline.
    pub fn is_leading(&self) -> bool {
        match *self.state.borrow() {
            State::Leader(at) => self.clock.monotonic() < at.saturating_add(self.renew_deadline),
            State::Follower | State::Paused => false,
        }
    }
    /// Returns once this process leads: `true`, or `false` when it never led or leads no more. Waits while the leader is paused.
    pub async fn wait(&self) -> bool {
        let mut state = self.state.subscribe();
        loop {
            if self.is_leading() {
                return true;
            }
            // Marked as seen before it is judged, so that no change is missed in between.
            if *state.borrow_and_update() == State::Follower {
                return false;
            }
            if self.is_leading() {
                return true;
            }
            if state.changed().await.is_err() {
                return false;
            }
        }
    }
    /// Waits out a pause; for reads, which a candidate may make.
    pub async fn wait_while_paused(&self) {
        let mut state = self.state.subscribe();
        // The sender lives in self, so waiting cannot fail.
        let _ = state.wait_for(|state| *state != State::Paused).await;
    }
    fn set(&self, state: State) {
        self.state.send_replace(state);
    }
    fn check(&self, lease_duration: Duration) -> Result<(), String> {
        match *self.state.borrow() {
            State::Leader(at)
                if self.clock.monotonic() > at.saturating_add(lease_duration + WATCHDOG) =>
            {
                Err("failed election to renew leadership on lease".into())
            }
            _ => Ok(()),
        }
    }
}

/// One candidate.
pub struct LeaderElector {
    api: Api<Lease>,
    config: LeaderElectionConfig,
    recorder: Recorder,
    clock: Clock,
    observed: Observed,
    leadership: Leadership,
    reported: Option<String>,
}

impl LeaderElector {
    /// A candidate with a client of its own (its writes must not wait behind others in a rate limit).
    ///
    /// # Errors
    /// A configuration that cannot work.
    pub fn new(
        client: Client,
        config: LeaderElectionConfig,
        recorder: Recorder,
    ) -> Result<Self, LeaderElectionError> {
        config.validate()?;
        let clock = Clock::real();
        let leadership = Leadership {
            state: Arc::new(watch::Sender::new(State::Follower)),
            clock: clock.clone(),
            renew_deadline: config.renew_deadline,
        };
        crate::metrics::leader_status(&config.name, false);
        Ok(Self {
            api: Api::namespaced(client, &config.namespace),
            config,
            recorder,
            clock,
            observed: Observed::default(),
            leadership,
            reported: None,
        })
    }

    /// A candidate whose client is `client` without its rate limit, and its own.
    ///
    /// # Errors
    /// See [`CandidateError`].
    pub async fn connect(
        client: &ClientConfig,
        config: LeaderElectionConfig,
        recorder: impl FnOnce(Client) -> Recorder,
    ) -> Result<Self, CandidateError> {
        let own = ClientConfig {
            qps: 0.0,
            ..client.with_component("leader-election")
        };
        let client = own.build().await?;
        let recorder = recorder(client.clone());
        Ok(Self::new(client, config, recorder)?)
    }

    /// The handle that tells whether this process leads.
    pub fn leadership(&self) -> Leadership {
        self.leadership.clone()
    }

    /// Adds the `leaderElection` watchdog to the health checks.
    pub fn add_health_check(&self, health: &Health) {
        let (leadership, duration) = (self.leadership.clone(), self.config.lease_duration);
        health.add("leaderElection", Kind::Live, move || {
            leadership.check(duration)
        });
    }

    /// As [`LeaderElector::run`], of work that may fail.
    ///
    /// # Errors
    /// The work's own, or [`LeaseLost`].
    pub async fn run_work<F, Fut, E>(self, shutdown: &Shutdown, lead: F) -> Result<(), E>
    where
        F: FnOnce(Shutdown) -> Fut,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: From<LeaseLost> + Send + 'static,
    {
        let (sender, ended) = tokio::sync::oneshot::channel();
        let work = |leading| {
            let work = lead(leading);
            async move {
                // The receiver is awaited below.
                let _ = sender.send(work.await);
            }
        };
        match self.run(shutdown, work).await {
            Outcome::Lost => Err(LeaseLost.into()),
            // Nothing was sent where the work never began.
            Outcome::Shutdown | Outcome::Finished => ended.await.unwrap_or(Ok(())),
        }
    }

    /// Waits for the lease, then runs `lead` with a token that ends with shutdown or with the lease, and renews meanwhile.
    ///
    /// After a shutdown the lease is kept until `lead` returns (or cannot be renewed), then released for the next candidate.
    pub async fn run<F, Fut>(mut self, shutdown: &Shutdown, lead: F) -> Outcome
    where
        F: FnOnce(Shutdown) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        if !self.acquire(shutdown).await {
            return Outcome::Shutdown;
        }
        let leading = shutdown.child();
        let mut work = shutdown.spawn_guarded("leader's work", lead(leading.clone()));
        let mut paused = false;
        let clock = self.clock.clone();
        let outcome = loop {
            tokio::select! {
                // A panic in it has ended the process's tasks.
                _ = &mut work => {
                    break if shutdown.is_triggered() { Outcome::Shutdown } else { Outcome::Finished };
                }
                () = clock.sleep(self.config.retry_period) => {}
            }
            let renewal = if paused {
                let Some(renewal) = shutdown.run_until(self.renew()).await else {
                    break Outcome::Shutdown;
                };
                renewal
            } else {
                self.renew().await
            };
            match renewal {
                Renewal::Taken => break Outcome::Lost,
                Renewal::Renewed if paused => {
                    tracing::info!(
                        lock = self.describe(),
                        "Leading on: the lease is still ours"
                    );
                    crate::metrics::leader_status(&self.config.name, true);
                    paused = false;
                }
                Renewal::OutOfReach if !paused => {
                    tracing::warn!(
                        lock = self.describe(),
                        "Paused: the lease could not be renewed in time"
                    );
                    crate::metrics::leader_status(&self.config.name, false);
                    self.leadership.set(State::Paused);
                    paused = true;
                }
                Renewal::Renewed | Renewal::OutOfReach => {}
            }
        };
        crate::metrics::leader_status(&self.config.name, false);
        self.record_event("stopped leading");
        leading.trigger();
        if outcome == Outcome::Lost {
            tracing::error!(lease = self.describe(), "leaderelection lost");
            work.abort();
        } else if paused {
            // What waits for the pause to end must end first, else the work never does.
            self.leadership.set(State::Follower);
            if !work.is_finished() && work.await.is_err() {
                tracing::error!("The leader's work ended with a panic");
            }
        } else {
            self.release().await;
        }
        self.leadership.set(State::Follower);
        outcome
    }

    fn describe(&self) -> String {
        format!("{}/{}", self.config.namespace, self.config.name)
    }

    async fn acquire(&mut self, shutdown: &Shutdown) -> bool {
        tracing::info!(
            lock = self.describe(),
            "Attempting to acquire leader lease..."
        );
        loop {
            let deadline = self.config.renew_deadline;
            match shutdown
                .run_until(tokio::time::timeout(deadline, self.try_acquire_or_renew()))
                .await
            {
                None => return false,
                Some(Ok(true)) => break,
                Some(_) => {}
            }
            let pause = self
                .config
                .retry_period
                .mul_f64(1.0 + rand::random_range(0.0..JITTER));
            if shutdown.run_until(self.clock.sleep(pause)).await.is_none() {
                return false;
            }
        }
        crate::metrics::leader_status(&self.config.name, true);
        self.record_event("became leader");
        tracing::info!(lock = self.describe(), "Successfully acquired lease");
        true
    }

    /// Tries until the renew deadline has passed since the last renewal.
    async fn renew(&mut self) -> Renewal {
        let deadline = self.clock.monotonic() + self.config.renew_deadline;
        loop {
            let left = deadline.saturating_sub(self.clock.monotonic());
            if left.is_zero() {
                tracing::info!(
                    lock = self.describe(),
                    "Failed to renew lease: timed out waiting for the condition"
                );
                return Renewal::OutOfReach;
            }
            if let Ok(true) = tokio::time::timeout(left, self.try_acquire_or_renew()).await {
                return Renewal::Renewed;
            }
            // DIFFERS: upstream tries until the deadline. Once another holds the lease there is nothing left to win.
            let holder = self
                .observed
                .spec
                .holder_identity
                .as_deref()
                .unwrap_or_default();
            if !holder.is_empty() && !self.is_leader() {
                tracing::info!(
                    lock = self.describe(),
                    holder,
                    "Failed to renew lease: it has another holder"
                );
                return Renewal::Taken;
            }
            let left = deadline.saturating_sub(self.clock.monotonic());
            self.clock.sleep(self.config.retry_period.min(left)).await;
        }
    }

    fn is_leader(&self) -> bool {
        self.observed.spec.holder_identity.as_deref() == Some(&self.config.identity)
    }

    fn observe(&mut self, lease: &Lease, now: Duration) {
        let spec = lease.spec.clone().unwrap_or_default();
        self.observed.resource_version = lease.metadata.resource_version.clone();
        // The time of a record is when it was first seen: another's clock is not to be trusted.
        if self.observed.spec != spec {
            self.observed.spec = spec;
            self.observed.at = now;
        }
        let holder = self.observed.spec.holder_identity.clone();
        if self.reported != holder {
            tracing::info!(
                lease = self.describe(),
                leader = holder.as_deref().unwrap_or(""),
                "New leader elected"
            );
            self.reported = holder;
        }
    }

    fn is_lease_valid(&self, now: Duration) -> bool {
        let seconds =
            u64::try_from(self.observed.spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0);
        self.observed.at + Duration::from_secs(seconds) > now
    }

    async fn try_acquire_or_renew(&mut self) -> bool {
        let started = self.clock.monotonic();
        let done = match self.write_record(started).await {
            Ok(done) => done,
            Err(error) => {
                tracing::warn!(lock = self.describe(), %error, "Error retrieving or updating the lease lock");
                false
            }
        };
        if done {
            // Counted from before the write, so that this process never believes longer than the others wait.
            self.leadership.set(State::Leader(started));
        }
        done
    }

    async fn write_record(&mut self, now: Duration) -> Result<bool, kube::Error> {
        if self.is_leader() && self.is_lease_valid(now) {
            let spec = self.record(
                self.observed.spec.acquire_time.clone(),
                self.observed.spec.lease_transitions,
            );
            match self
                .update(spec, self.observed.resource_version.clone())
                .await
            {
                Ok(lease) => {
                    self.observe(&lease, now);
                    return Ok(true);
                }
                Err(error) => {
                    tracing::debug!(%error, "Failed to update lease optimistically, falling back to slow path")
                }
            }
        }
        let Some(lease) = self.api.get_opt(&self.config.name).await? else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(self.config.name.clone()),
                    namespace: Some(self.config.namespace.clone()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.record(None, Some(0))),
            };
            let lease = self.api.create(&PostParams::default(), &lease).await?;
            self.observe(&lease, now);
            return Ok(true);
        };
        self.observe(&lease, now);
        let held = self
            .observed
            .spec
            .holder_identity
            .as_ref()
            .is_some_and(|h| !h.is_empty());
        if held && self.is_lease_valid(now) && !self.is_leader() {
            tracing::debug!(
                holder = self.observed.spec.holder_identity,
                "Lease is held by and has not yet expired"
            );
            return Ok(false);
        }
        let spec = if self.is_leader() {
            self.record(
                self.observed.spec.acquire_time.clone(),
                self.observed.spec.lease_transitions,
            )
        } else {
            self.record(
                None,
                Some(self.observed.spec.lease_transitions.unwrap_or(0) + 1),
            )
        };
        let lease = self.update(spec, lease.metadata.resource_version).await?;
        self.observe(&lease, now);
        Ok(true)
    }

    fn record(&self, acquired: Option<MicroTime>, transitions: Option<i32>) -> LeaseSpec {
        let now = MicroTime(self.clock.now());
        LeaseSpec {
            holder_identity: Some(self.config.identity.clone()),
            lease_duration_seconds: Some(
                i32::try_from(self.config.lease_duration.as_secs()).unwrap_or(i32::MAX),
            ),
            acquire_time: Some(acquired.unwrap_or_else(|| now.clone())),
            renew_time: Some(now),
            lease_transitions: transitions,
            ..LeaseSpec::default()
        }
    }

    async fn update(
        &self,
        spec: LeaseSpec,
        resource_version: Option<String>,
    ) -> Result<Lease, kube::Error> {
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(self.config.name.clone()),
                namespace: Some(self.config.namespace.clone()),
                resource_version,
                ..ObjectMeta::default()
            },
            spec: Some(spec),
        };
        self.api
            .replace(&self.config.name, &PostParams::default(), &lease)
            .await
    }

    /// Empties the lease, so that the next candidate need not wait.
    async fn release(&mut self) {
        if !self.is_leader() {
            return;
        }
        let spec = LeaseSpec {
            holder_identity: Some(String::new()),
            lease_duration_seconds: Some(1),
            ..self.record(None, self.observed.spec.lease_transitions)
        };
        let update = self.update(spec, self.observed.resource_version.clone());
        match tokio::time::timeout(self.config.renew_deadline, update).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(lock = self.describe(), %error, "Failed to release lease")
            }
            Err(_) => tracing::warn!(lock = self.describe(), "Failed to release lease in time"),
        }
    }

    fn record_event(&self, what: &str) {
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(self.config.name.clone()),
                namespace: Some(self.config.namespace.clone()),
                ..ObjectMeta::default()
            },
            spec: None,
        };
        let message = format!("{} {what}", self.config.identity);
        self.recorder.event(
            &object_reference(&lease),
            EventType::Normal,
            "LeaderElection",
            "LeaderElection",
            message,
        );
    }
}

#[cfg(test)]
mod tests;
