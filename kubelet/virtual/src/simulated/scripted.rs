//! The shell around [`Simulation`]: a clock, the loops' calls, logs.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use component_base::clock::Clock;
use component_base::shutdown::Shutdown;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kubelet_provider::{
    Features, LogOptions, LogStream, PodEvents, PodId, PodReport, Provider, ProviderError,
};
use tokio::sync::{Notify, mpsc, watch};

use super::configuration::SimulatedConfiguration;
use super::script::{Simulation, Told};

/// Pods that live by a script.
#[derive(Clone)]
pub struct Scripted {
    shared: Arc<Shared>,
}

struct Shared {
    simulation: Mutex<Simulation>,
    events: OnceLock<PodEvents>,
    /// A timer may be due sooner.
    sooner: Notify,
    /// Something happened: for whoever follows a log.
    changes: watch::Sender<u64>,
    clock: Clock,
    shutdown: Shutdown,
}

impl Scripted {
    pub fn new(config: SimulatedConfiguration, clock: Clock, shutdown: Shutdown) -> Self {
        Self {
            shared: Arc::new(Shared {
                simulation: Mutex::new(Simulation::new(config)),
                events: OnceLock::new(),
                sooner: Notify::new(),
                changes: watch::Sender::new(0),
                clock,
                shutdown,
            }),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Simulation> {
        let simulation = self.simulation.lock();
        simulation.expect("no panic while the lock is held")
    }

    fn tell(&self, told: Vec<Told>) {
        if told.is_empty() {
            return;
        }
        if let Some(events) = self.events.get() {
            for told in told {
                match told {
                    Told::Report(id, report) => events.report(&id, report),
                    Told::Gone(id) => events.gone(&id),
                }
            }
        }
        self.changes.send_modify(|count| *count += 1);
    }

    async fn run(self: Arc<Self>) {
        loop {
            let now = self.clock.now();
            let (told, next) = {
                let mut simulation = self.lock();
                (simulation.advance(now), simulation.next())
            };
            self.tell(told);
            let wait = next.map(|at| {
                let wait = at.duration_since(self.clock.now());
                Duration::try_from(wait).unwrap_or(Duration::ZERO)
            });
            let sleep = async {
                match wait {
                    Some(wait) => self.clock.sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.shutdown.triggered() => return,
                () = sleep => {}
                () = self.sooner.notified() => {}
            }
        }
    }
}

#[async_trait]
impl Provider for Scripted {
    fn name(&self) -> &str {
        "simulated"
    }

    fn features(&self) -> Features {
        Features::all()
    }

    async fn start(&self, events: PodEvents) -> Result<(), ProviderError> {
        let twice = |_| ProviderError::Failed("started twice".to_owned());
        self.shared.events.set(events).map_err(twice)?;
        let shutdown = self.shared.shutdown.clone();
        shutdown.spawn_essential("simulation", self.shared.clone().run());
        Ok(())
    }

    async fn pods(&self) -> Result<Vec<(PodId, PodReport)>, ProviderError> {
        Ok(self.shared.lock().pods())
    }

    async fn create_pod(&self, pod: Arc<Pod>) -> Result<(), ProviderError> {
        let now = self.shared.clock.now();
        let told = self.shared.lock().create(&pod, now)?;
        self.shared.tell(told);
        self.shared.sooner.notify_one();
        Ok(())
    }

    async fn update_pod(&self, _pod: Arc<Pod>) -> Result<(), ProviderError> {
        // A script is made once; labels and images mean nothing to it.
        Ok(())
    }

    async fn delete_pod(&self, pod: &PodId, grace: Duration) -> Result<(), ProviderError> {
        let now = self.shared.clock.now();
        let told = self.shared.lock().delete(pod, grace, now)?;
        self.shared.tell(told);
        self.shared.sooner.notify_one();
        Ok(())
    }

    async fn logs(
        &self,
        pod: &PodId,
        _container: &str,
        options: &LogOptions,
    ) -> Result<LogStream, ProviderError> {
        if options.previous {
            return Err(ProviderError::Unsupported("logs of runs before this one"));
        }
        let text = {
            let simulation = self.shared.lock();
            let (lines, since) = simulation.log(&pod.uid).ok_or(ProviderError::NotFound)?;
            chosen(lines, since, options)
        };
        let (sender, mut receiver) = mpsc::channel::<std::io::Result<bytes::Bytes>>(1);
        let (shared, uid, follow) = (self.shared.clone(), pod.uid.clone(), options.follow);
        component_base::tasks::spawn_helper("simulated log", async move {
            let mut changes = shared.changes.subscribe();
            if sender.send(Ok(text.into())).await.is_err() || !follow {
                return;
            }
            let runs = || {
                shared
                    .lock()
                    .log(&uid)
                    .is_some_and(|(_, since)| since.is_some())
            };
            while runs() {
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    () = sender.closed() => return,
                    () = shared.shutdown.triggered() => return,
                }
            }
        });
        let pieces = futures::stream::poll_fn(move |cx| receiver.poll_recv(cx));
        let reader = tokio_util::io::StreamReader::new(pieces);
        Ok(Box::new(reader))
    }
}

/// What of the lines is wanted; all of them were said when the container started.
fn chosen(lines: &[String], since: Option<Timestamp>, options: &LogOptions) -> Vec<u8> {
    let Some(since) = since else {
        return Vec::new();
    };
    if options.since.is_some_and(|at| since < at) {
        return Vec::new();
    }
    let tail = options.tail_lines.and_then(|n| usize::try_from(n).ok());
    let skipped = tail.map_or(0, |tail| lines.len().saturating_sub(tail));
    let mut text = Vec::new();
    for line in &lines[skipped..] {
        if options.timestamps {
            text.extend_from_slice(format!("{since:.9} ").as_bytes());
        }
        text.extend_from_slice(line.as_bytes());
        text.push(b'\n');
    }
    let limit = options.limit_bytes.and_then(|n| usize::try_from(n).ok());
    text.truncate(limit.unwrap_or(usize::MAX));
    text
}
