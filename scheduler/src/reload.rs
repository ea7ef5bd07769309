//! [`Reload`]: the configuration file is read again when it changes, and the scheduler works by it without a restart.
//!
//! A file that cannot be used leaves the scheduler as it is; a log line, an event and a metric say so. What only a start reads ([`needs_restart`]) is named, and
//! keeps its old value until then. Pods that are being bound keep the profile that decided them. Upstream has no such thing.

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use component_base::events::{EventType, RecordedEvent, Recorder};
use component_base::flags::Flags;
use component_base::shutdown::Shutdown;
use component_base::tls::{TlsError, watch_files};
use framework::PodInfo;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use tokio::sync::mpsc::Receiver;

use crate::causes::with_causes;
use crate::config::KubeSchedulerConfiguration;
use crate::failure::truncate_message;
use crate::options::{InvalidOptions, config_from_flags};
use crate::profile::ProfileError;
use crate::scheduler::Scheduler;

#[cfg(test)]
mod tests;

/// Why the old configuration stays.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The file.
    #[error(transparent)]
    Invalid(#[from] InvalidOptions),
    /// A profile.
    #[error(transparent)]
    Profile(#[from] ProfileError),
}

/// What became of a look at the file.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It says what it said before.
    Unchanged,
    /// The scheduler works by it.
    Reloaded {
        /// Fields that changed and are read at a start only.
        not_before_restart: Vec<&'static str>,
    },
}

/// Fields whose change only a start can carry out.
pub fn needs_restart(
    old: &KubeSchedulerConfiguration,
    new: &KubeSchedulerConfiguration,
) -> Vec<&'static str> {
    let mut fields = Vec::new();
    let mut note = |same: bool, field| {
        if !same {
            fields.push(field);
        }
    };
    note(old.leader_election == new.leader_election, "leaderElection");
    note(
        old.client_connection == new.client_connection,
        "clientConnection",
    );
    note(
        old.delay_cache_until_active == new.delay_cache_until_active,
        "delayCacheUntilActive",
    );
    fields
}

/// Lists pods.
pub type PodsFn = Box<dyn Fn() -> Vec<Arc<Pod>> + Send + Sync>;

/// Is called with a configuration.
pub type ConfigFn = Box<dyn Fn(&KubeSchedulerConfiguration) + Send + Sync>;

/// See the module.
pub struct Reload {
    flags: Flags,
    scheduler: Arc<Scheduler>,
    /// All pods; those without a node go to profiles that are new.
    pods: PodsFn,
    /// What the scheduler works by, for `/configz` too.
    current: Arc<ArcSwap<KubeSchedulerConfiguration>>,
    /// What is called with each new configuration before any pod meets it.
    before: ConfigFn,
    recorder: Recorder,
}

impl Reload {
    /// `flags` name the file and are laid over it, as at the start.
    pub fn new(
        flags: Flags,
        scheduler: Arc<Scheduler>,
        pods: PodsFn,
        current: Arc<ArcSwap<KubeSchedulerConfiguration>>,
        before: ConfigFn,
        recorder: Recorder,
    ) -> Self {
        Reload {
            flags,
            scheduler,
            pods,
            current,
            before,
            recorder,
        }
    }

    /// Begins to watch; `None` without a file. Nothing that happens to it from now on is missed.
    ///
    /// # Errors
    /// When the kernel gives no watch.
    pub fn watch(flags: &Flags) -> Result<Option<Receiver<()>>, TlsError> {
        match flags.optional("config") {
            None => Ok(None),
            Some(path) => watch_files(&[PathBuf::from(path)]),
        }
    }

    /// Looks at the file whenever `changed` says so, until shutdown.
    pub async fn run(self, mut changed: Receiver<()>, shutdown: Shutdown) {
        let mut last_error = String::new();
        loop {
            match self.look() {
                Ok(Outcome::Unchanged) => last_error.clear(),
                Ok(Outcome::Reloaded { not_before_restart }) => {
                    last_error.clear();
                    self.tell_reloaded(&not_before_restart);
                }
                Err(error) => {
                    let error = with_causes(&error);
                    // Other files of the directory change, too.
                    if error != last_error {
                        last_error = error;
                        self.tell_rejected(&last_error);
                    }
                }
            }
            if shutdown.run_until(changed.recv()).await.flatten().is_none() {
                return;
            }
        }
    }

    /// Reads the file, and reconfigures the scheduler when it says something new.
    ///
    /// # Errors
    /// When the file cannot be used; nothing has changed then.
    pub fn look(&self) -> Result<Outcome, ReloadError> {
        let new = config_from_flags(&self.flags)?;
        let old = self.current.load_full();
        if *old == new {
            return Ok(Outcome::Unchanged);
        }
        (self.before)(&new);
        self.scheduler.reconfigure(&new)?;
        let not_before_restart = needs_restart(&old, &new);
        // Pods of profiles that are new were nobody's until now.
        let had = |name: &Option<String>| old.profiles.iter().any(|p| p.scheduler_name == *name);
        if new.profiles.iter().any(|p| !had(&p.scheduler_name)) {
            (self.pods)().iter().for_each(|pod| self.take_in(pod));
        }
        self.current.store(Arc::new(new));
        Ok(Outcome::Reloaded { not_before_restart })
    }

    fn take_in(&self, pod: &Arc<Pod>) {
        let spec = framework::pod_info::spec(pod);
        let assigned = spec.node_name.as_deref().is_some_and(|n| !n.is_empty());
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let ours = !assigned && self.scheduler.responsible_for_pod(pod);
        if !ours || self.scheduler.cache.is_assumed_pod(uid) {
            return;
        }
        match PodInfo::new(Arc::clone(pod)) {
            Ok(info) => self.scheduler.queue.add(Arc::new(info)),
            Err(error) => tracing::error!(%error, "the pod cannot be scheduled"),
        }
    }

    fn tell_reloaded(&self, not_before_restart: &[&str]) {
        self.scheduler.shared.metrics().observe_reload(true);
        let mut note = "The configuration file was loaded again".to_owned();
        if !not_before_restart.is_empty() {
            let fields = not_before_restart.join(", ");
            note += &format!("; what changed in {fields} takes effect at the next start");
            tracing::warn!(fields, "The configuration changes what only a start reads");
        }
        tracing::info!("The configuration file was loaded again");
        self.record(EventType::Normal, "ConfigurationReloaded", note);
    }

    fn tell_rejected(&self, error: &str) {
        self.scheduler.shared.metrics().observe_reload(false);
        tracing::error!(
            err = error,
            "The configuration file cannot be used; the configuration before it stays"
        );
        let note = format!("The configuration before it stays: {error}");
        let note = truncate_message(&note);
        self.record(EventType::Warning, "ConfigurationRejected", note);
    }

    /// About the lease, which stands for this scheduler.
    fn record(&self, event_type: EventType, reason: &str, message: String) {
        let config = self.current.load();
        let election = &config.leader_election;
        self.recorder.record(RecordedEvent {
            regarding: ObjectReference {
                api_version: Some("coordination.k8s.io/v1".to_owned()),
                kind: Some("Lease".to_owned()),
                namespace: Some(election.resource_namespace.clone()),
                name: Some(election.resource_name.clone()),
                ..ObjectReference::default()
            },
            related: None,
            event_type,
            reason: reason.to_owned(),
            action: "Reloading".to_owned(),
            message,
            annotations: Default::default(),
        });
    }
}
