//! The provider of plain child processes: a container is its command, run from this machine's own files by this program's own user.
//!
//! Nothing is isolated and no image is pulled, which the node says by a condition and a taint. Processes outlive this program: a new
//! one adopts them by pid and start time, from records below its root. Owns: those records, and who is started again.
//!
//! ```text
//! root/<uid>/pod.json        what was asked for, and the processes there are (mode 0600)
//! root/<uid>/<container>.<restart>.log
//! ```

mod child;
mod logs;
mod plan;
mod record;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use component_base::shutdown::Shutdown;
use component_base::tasks::spawn_helper;
use k8s_openapi::api::core::v1::{Pod, Taint};
use k8s_openapi::jiff::Timestamp;
use kubelet_provider::{
    AttachOptions, Condition, Connection, ContainerReport, ContainerState, Features, LogOptions,
    LogStream, NodeDescription, PodEvents, PodFeature, PodId, PodReport, Process, Provider,
    ProviderError, Terminated,
};
use tokio::sync::watch;
use tokio::time::Instant;

use child::{Exit, Running};
use plan::Plan;
use record::{Record, Run};

/// The key of the taint and the type of the condition.
pub const TAINT: &str = "virtual-kubelet.io/no-isolation";
pub const CONDITION: &str = "PodIsolation";
/// Upstream's back-off of containers that crash: first, longest, and how long one must run to begin anew.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));
const BACKOFF_RESET: Duration = Duration::from_secs(600);

/// Pods as child processes.
#[derive(Clone)]
pub struct Processes {
    shared: Arc<Shared>,
}

struct Shared {
    root: PathBuf,
    address: Option<IpAddr>,
    events: OnceLock<PodEvents>,
    pods: Mutex<HashMap<Arc<str>, Arc<PodProcesses>>>,
    shutdown: Shutdown,
}

struct PodProcesses {
    id: PodId,
    directory: PathBuf,
    plan: Plan,
    runs: Mutex<Vec<Run>>,
    /// Its record is written by one alone: the last that is written is the newest.
    writing: tokio::sync::Mutex<()>,
    /// When what still runs is killed; `None`: nobody wants it to end.
    stop: watch::Sender<Option<Instant>>,
    /// Something about its processes: for whoever follows a log.
    changes: watch::Sender<()>,
}

impl Processes {
    /// Pods' records and logs are below `root`; `address` is what their processes listen on.
    pub fn new(root: PathBuf, address: Option<IpAddr>, shutdown: Shutdown) -> Self {
        Self {
            shared: Arc::new(Shared {
                root,
                address,
                events: OnceLock::new(),
                pods: Mutex::default(),
                shutdown,
            }),
        }
    }
}

impl PodProcesses {
    fn runs(&self) -> MutexGuard<'_, Vec<Run>> {
        self.runs.lock().expect("no panic while the lock is held")
    }

    fn report(&self, address: Option<IpAddr>) -> PodReport {
        let runs = self.runs();
        let names = self.plan.containers.iter();
        let containers = names
            .zip(runs.iter())
            .map(|(container, run)| ContainerReport {
                ready: matches!(run.state, ContainerState::Running { .. }),
                last: run.last.clone(),
                restart_count: run.restarts,
                container_id: run
                    .pid
                    .map_or(String::new(), |(pid, _)| format!("process://{pid}")),
                ..ContainerReport::new(&container.name, run.state.clone())
            });
        PodReport {
            pod_ips: address.into_iter().collect(),
            containers: containers.collect(),
            ..PodReport::default()
        }
    }

    fn is_stopping(&self) -> bool {
        self.stop.borrow().is_some()
    }
}

impl Shared {
    fn pods(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<PodProcesses>>> {
        self.pods.lock().expect("no panic while the lock is held")
    }

    fn find(&self, id: &PodId) -> Result<Arc<PodProcesses>, ProviderError> {
        self.pods()
            .get(&id.uid)
            .cloned()
            .ok_or(ProviderError::NotFound)
    }

    /// Notes the processes and tells of them.
    async fn changed(&self, pod: &PodProcesses) {
        pod.changes.send_replace(());
        {
            let _turn = pod.writing.lock().await;
            let record = Record::of(&pod.id, &pod.plan, &pod.runs());
            if let Err(error) = record.write(&pod.directory).await {
                tracing::error!(pod = %pod.id, %error, "A pod's record cannot be written: a new process would not find its processes");
            }
        }
        if let Some(events) = self.events.get() {
            events.report(&pod.id, pod.report(self.address));
        }
    }

    /// Follows a pod to its end. `running` has what is adopted, in the order of the containers.
    async fn follow(self: Arc<Self>, pod: Arc<PodProcesses>, running: Vec<Option<Running>>) {
        let containers = running.into_iter().enumerate();
        let containers = containers.map(|(at, running)| self.supervise(&pod, at, running));
        futures::future::join_all(containers).await;
        // What has ended stays until somebody deletes it.
        let mut stop = pod.stop.subscribe();
        if stop.wait_for(Option::is_some).await.is_err() {
            return;
        }
        if let Err(error) = tokio::fs::remove_dir_all(&pod.directory).await {
            tracing::error!(pod = %pod.id, %error, "What is left of a pod cannot be removed");
        }
        self.pods().remove(&pod.id.uid);
        if let Some(events) = self.events.get() {
            events.gone(&pod.id);
        }
    }

    /// Starts a container again and again, as its policy wants.
    async fn supervise(&self, pod: &PodProcesses, at: usize, mut running: Option<Running>) {
        loop {
            // One that had ended when it was adopted is judged as if it had ended just now.
            let judged =
                running.is_none() && matches!(pod.runs()[at].state, ContainerState::Terminated(_));
            if !judged {
                let started = match running.take() {
                    Some(running) => Ok(running),
                    None if pod.is_stopping() => return,
                    None => self.start(pod, at).await,
                };
                let exit = match started {
                    Ok(process) => child::until_end(process, pod.stop.subscribe()).await,
                    Err(error) => Exit::not_started(&error),
                };
                self.ended(pod, at, exit).await;
            }
            let (code, ran) = {
                let runs = pod.runs();
                let ContainerState::Terminated(ended) = &runs[at].state else {
                    return;
                };
                let ran = ended.finished_at.duration_since(ended.started_at);
                (ended.exit_code, Duration::try_from(ran).unwrap_or_default())
            };
            if pod.is_stopping() || !pod.plan.restarts(code) {
                return;
            }
            if !self.back_off(pod, at, ran).await {
                return;
            }
        }
    }

    async fn start(&self, pod: &PodProcesses, at: usize) -> std::io::Result<Running> {
        let container = &pod.plan.containers[at];
        let restarts = pod.runs()[at].restarts;
        let log = logs::path(&pod.directory, &container.name, restarts);
        logs::forget(&pod.directory, &container.name, restarts).await;
        let running = child::start(container, &pod.id, &log).await?;
        {
            let mut runs = pod.runs();
            runs[at].pid = Some((running.pid, running.start_time));
            runs[at].state = ContainerState::Running {
                started_at: Timestamp::now(),
            };
        }
        self.changed(pod).await;
        Ok(running)
    }

    async fn ended(&self, pod: &PodProcesses, at: usize, exit: Exit) {
        {
            let mut runs = pod.runs();
            let now = Timestamp::now();
            let started_at = match &runs[at].state {
                ContainerState::Running { started_at } => *started_at,
                _ => now,
            };
            runs[at].pid = None;
            runs[at].state = ContainerState::Terminated(Terminated {
                exit_code: exit.code,
                reason: exit.reason,
                message: exit.message,
                started_at,
                finished_at: now,
            });
        }
        self.changed(pod).await;
    }

    /// Waits before the next start. `false`: the pod is to end.
    async fn back_off(&self, pod: &PodProcesses, at: usize, ran: Duration) -> bool {
        let wait = {
            let mut runs = pod.runs();
            let run = &mut runs[at];
            let crashes = if ran >= BACKOFF_RESET { 0 } else { run.crashes };
            run.crashes = crashes.saturating_add(1);
            let wait = (BACKOFF.0 * 2_u32.pow(crashes.min(10))).min(BACKOFF.1);
            let waiting = ContainerState::Waiting {
                reason: "CrashLoopBackOff".to_owned(),
                message: format!("back-off {wait:?} restarting failed container"),
            };
            if let ContainerState::Terminated(ended) = std::mem::replace(&mut run.state, waiting) {
                run.last = Some(ended);
            }
            wait
        };
        self.changed(pod).await;
        let mut stop = pod.stop.subscribe();
        let stopped = tokio::select! {
            () = tokio::time::sleep(wait) => false,
            _ = stop.wait_for(Option::is_some) => true,
        };
        {
            let mut runs = pod.runs();
            let run = &mut runs[at];
            match (stopped, run.last.take()) {
                (true, Some(last)) => run.state = ContainerState::Terminated(last),
                (_, last) => {
                    run.last = last;
                    run.restarts = run.restarts.saturating_add(1);
                    run.state = ContainerState::Waiting {
                        reason: "ContainerCreating".to_owned(),
                        message: String::new(),
                    };
                }
            }
        }
        !stopped
    }

    fn spawn(self: &Arc<Self>, pod: Arc<PodProcesses>, running: Vec<Option<Running>>) {
        let (shared, ends) = (self.clone(), self.shutdown.clone());
        spawn_helper("pod of processes", async move {
            // At the end of this program the processes go on.
            ends.run_until(shared.follow(pod, running)).await;
        });
    }

    /// What an earlier process of this program left.
    async fn adopt(self: &Arc<Self>) -> std::io::Result<()> {
        for (directory, mut record) in record::read_all(&self.root).await? {
            let mut running = Vec::new();
            for run in &mut record.runs {
                let adopted = run.pid.and_then(|(pid, start)| child::adopt(pid, start));
                if adopted.is_none() && run.pid.take().is_some() {
                    run.lost();
                }
                running.push(adopted);
            }
            let pod = Arc::new(PodProcesses {
                id: record.id,
                directory,
                plan: record.plan,
                runs: Mutex::new(record.runs),
                writing: tokio::sync::Mutex::default(),
                stop: watch::Sender::new(None),
                changes: watch::Sender::new(()),
            });
            self.pods().insert(pod.id.uid.clone(), pod.clone());
            self.spawn(pod, running);
        }
        Ok(())
    }
}

#[async_trait]
impl Provider for Processes {
    fn name(&self) -> &str {
        "process"
    }

    fn features(&self) -> Features {
        Features::none().with(PodFeature::WorkingDirectory)
    }

    async fn configure_node(&self, node: &mut NodeDescription) -> Result<(), ProviderError> {
        node.taints.push(Taint {
            key: TAINT.to_owned(),
            value: None,
            effect: "NoSchedule".to_owned(),
            time_added: None,
        });
        node.conditions.push(Condition {
            type_: CONDITION.to_owned(),
            status: "False".to_owned(),
            reason: "ProcessesOfThisMachine".to_owned(),
            message: "pods are plain processes of one user of this machine: nothing is isolated, no image is pulled, no resource is limited".to_owned(),
        });
        Ok(())
    }

    async fn start(&self, events: PodEvents) -> Result<(), ProviderError> {
        let twice = |_| ProviderError::Failed("started twice".to_owned());
        self.shared.events.set(events).map_err(twice)?;
        let failed = |error: std::io::Error| {
            ProviderError::Failed(format!(
                "process.root: {}: {error}",
                self.shared.root.display()
            ))
        };
        record::make_private(&self.shared.root)
            .await
            .map_err(failed)?;
        self.shared.adopt().await.map_err(failed)
    }

    async fn pods(&self) -> Result<Vec<(PodId, PodReport)>, ProviderError> {
        let pods = self.shared.pods();
        let report = |pod: &Arc<PodProcesses>| (pod.id.clone(), pod.report(self.shared.address));
        Ok(pods.values().map(report).collect())
    }

    async fn create_pod(&self, pod: Arc<Pod>) -> Result<(), ProviderError> {
        let id = PodId::of(&pod);
        if self.shared.find(&id).is_ok() {
            return Ok(());
        }
        let plan = Plan::of(&pod)?;
        let directory = self.shared.root.join(&*id.uid);
        let made = record::make_private(&directory).await;
        made.map_err(|error| ProviderError::Failed(format!("{}: {error}", directory.display())))?;
        let runs = plan
            .containers
            .iter()
            .map(|_| Run::default())
            .collect::<Vec<_>>();
        let running = runs.iter().map(|_| None).collect();
        let pod = Arc::new(PodProcesses {
            id: id.clone(),
            directory,
            plan,
            runs: Mutex::new(runs),
            writing: tokio::sync::Mutex::default(),
            stop: watch::Sender::new(None),
            changes: watch::Sender::new(()),
        });
        self.shared.pods().insert(id.uid, pod.clone());
        self.shared.spawn(pod, running);
        Ok(())
    }

    async fn delete_pod(&self, pod: &PodId, grace: Duration) -> Result<(), ProviderError> {
        let pod = self.shared.find(pod)?;
        let deadline = Instant::now() + grace;
        pod.stop.send_modify(|stop| {
            *stop = Some(stop.map_or(deadline, |before| before.min(deadline)));
        });
        Ok(())
    }

    async fn logs(
        &self,
        pod: &PodId,
        container: &str,
        options: &LogOptions,
    ) -> Result<LogStream, ProviderError> {
        let pod = self.shared.find(pod)?;
        let at = pod.plan.index(container).ok_or(ProviderError::NotFound)?;
        logs::open(pod, at, options).await
    }

    async fn exec(
        &self,
        pod: &PodId,
        container: &str,
        command: &[String],
        options: &AttachOptions,
    ) -> Result<Process, ProviderError> {
        if options.tty {
            return Err(ProviderError::Unsupported("terminals"));
        }
        let pod = self.shared.find(pod)?;
        let at = pod.plan.index(container).ok_or(ProviderError::NotFound)?;
        let running = pod.runs()[at].pid.is_some();
        match running {
            true => child::exec(&pod.plan.containers[at], &pod.id, command, options),
            false => Err(ProviderError::Failed(
                "the container does not run".to_owned(),
            )),
        }
    }

    async fn port_forward(&self, pod: &PodId, port: u16) -> Result<Connection, ProviderError> {
        self.shared.find(pod)?;
        let connected = tokio::net::TcpStream::connect(("localhost", port)).await;
        let stream = connected.map_err(|error| ProviderError::Failed(error.to_string()))?;
        Ok(Box::new(stream))
    }
}
