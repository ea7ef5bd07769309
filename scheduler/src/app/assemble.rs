//! Makes a scheduler of what it stands on, and runs it.
//!
//! Takes nothing from the machine or the process itself: all of it comes as [`Seams`], so that the same scheduler runs on an API server in memory, in
//! one thread and by virtual time (`tests`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use backend::queue::BACKOFF_ORDERING_WINDOW;
use component_base::clock::Clock;
use component_base::flags::Flags;
use component_base::informer::Factory;
use component_base::leader_election::Leadership;
use component_base::metrics::Registry;
use component_base::shutdown::Shutdown;
use framework::{Registration, Registry as Plugins};
use kube::Client;
use tokio::sync::mpsc;

use super::recorders::Recorders;
use super::registry_of;
use crate::api_writer::KubeWriter;
use crate::config::{self, DEFAULT_SCHEDULER_NAME, KubeSchedulerConfiguration};
use crate::event_handlers::EventHandlers;
use crate::fetch::Fetcher;
use crate::listers::{InformerListers, Informers, Revisions};
use crate::metrics::{Metrics, StateCollector};
use crate::objects::{Change, ObjectInformers};
use crate::options::Options;
use crate::reload::Reload;
use crate::runtime::Shared;
use crate::schedule_one::SchedulingLoop;
use crate::scheduler::{FLUSH_UNSCHEDULABLE_PERIOD, Scheduler};
use crate::trace::recorder::TraceRecorder;

/// Everything a scheduler stands on.
pub struct Seams<'a> {
    /// What was asked for; of its clients, lease and ports nothing is looked at.
    pub options: &'a Options,
    /// Plugins beside this program's own.
    pub plugins: &'a Plugins,
    /// Reads, watches and writes.
    pub client: Client,
    /// Writes events.
    pub events: Client,
    /// Every write waits for it.
    pub leadership: Leadership,
    /// Times of the queue, of conditions and of events.
    pub clock: Clock,
    /// Ends all of it.
    pub shutdown: Shutdown,
    /// Where its metrics are read: of no other scheduler.
    pub metrics: Registry,
    /// Where pods are decided.
    pub decisions: Decisions,
}

/// Where pods are decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decisions {
    /// On a thread of their own: one that takes long holds nothing else up.
    OnAThread,
    /// In a task among the others, for a runtime that is one thread with one clock.
    InATask,
}

/// A scheduler that does not schedule yet.
pub struct Component {
    scheduler: Arc<Scheduler>,
    informers: Informers,
    revisions: Arc<Revisions>,
    /// The kinds that only plugins know.
    objects: (Arc<ObjectInformers>, mpsc::Receiver<Change>),
    seed: u64,
    /// What the scheduler works by.
    current: Arc<ArcSwap<KubeSchedulerConfiguration>>,
    recorders: Arc<Recorders>,
    /// It has begun to schedule.
    active: Arc<AtomicBool>,
    /// Writes down what it is told.
    recorder: Option<TraceRecorder>,
    decisions: Decisions,
}

/// Must be called inside a tokio runtime: informers start at once.
///
/// # Errors
/// When two plugins have one name, a profile cannot work, the file of `--record-trace` cannot be written, or the registry has a scheduler's metrics already.
pub fn assemble(seams: Seams<'_>) -> anyhow::Result<Component> {
    let Seams {
        options,
        plugins,
        client,
        events,
        leadership,
        clock,
        shutdown,
        metrics,
        decisions,
    } = seams;
    let factory = Factory::new(client.clone(), shutdown.child());
    let informers = Informers::start(&factory, options.device_features(), options.pod_groups());
    let writer = KubeWriter::new(client.clone(), leadership, clock.clone());
    let revisions = Arc::new(Revisions::default());
    let listers = InformerListers::new(
        informers.clone(),
        Arc::clone(&revisions),
        options.device_features(),
    );
    let listers = Arc::new(listers.with_topology_aware(options.topology_aware()));
    let recorders = Arc::new(Recorders::new(events, clock.clone(), &shutdown));
    recorders.add(&options.config);
    let shared = Shared::new(
        listers,
        Arc::new(writer),
        recorders.record_fn(),
        tokio::runtime::Handle::current(),
        shutdown.token().clone(),
        clock.clone(),
        Metrics::register(
            &metrics,
            clock,
            options.pod_groups(),
            options.topology_aware(),
        )?,
    );
    let objects = ObjectInformers::new(client.clone(), informers.pods.clone(), shutdown.child());
    shared.observers().set_sources(Arc::clone(&objects.0) as _);
    shared.set_fetcher(Fetcher::new(client));
    let scheduler = Scheduler::new(
        &options.config,
        &registry_of(options, plugins)?,
        shared,
        options.pod_max_in_unschedulable_pods_duration,
    )?;
    let first = options.config.profiles[0]
        .scheduler_name
        .as_deref()
        .unwrap_or(DEFAULT_SCHEDULER_NAME);
    StateCollector::register(
        &metrics,
        Arc::clone(&scheduler.queue),
        Arc::clone(&scheduler.cache),
        first,
    )?;
    let record = options.record_trace.as_ref();
    let recorder = record.map(|(path, max_bytes)| TraceRecorder::create(path, *max_bytes));
    Ok(Component {
        recorder: recorder.transpose()?,
        scheduler,
        informers,
        revisions,
        objects,
        seed: options.placement_seed.unwrap_or_else(rand::random),
        current: Arc::new(ArcSwap::from_pointee(options.config.clone())),
        recorders,
        active: Arc::default(),
        decisions,
    })
}

impl Component {
    /// Whether all that is there has been read.
    pub(super) fn synced(&self) -> impl Fn() -> Result<(), String> + Send + Sync + use<> {
        let (synced, objects) = (self.informers.clone(), Arc::clone(&self.objects.0));
        move || match synced.has_synced() && objects.has_synced() {
            true => Ok(()),
            false => Err("waiting for handlers to sync".into()),
        }
    }

    /// The configuration it works by, at any time.
    pub(super) fn configz(
        &self,
        all: Vec<Registration>,
    ) -> impl Fn() -> serde_json::Value + Send + Sync + use<> {
        let current = Arc::clone(&self.current);
        move || config::completed(&current.load(), &all)
    }

    /// Pages that answer questions of placement.
    pub(super) fn questions(&self) -> axum::Router {
        crate::pages::router(Arc::clone(&self.scheduler), Arc::clone(&self.active))
    }

    /// Begins to look after the configuration file.
    pub(super) fn reload(&self, flags: &Flags, shutdown: &Shutdown) -> anyhow::Result<()> {
        let Some(changed) = Reload::watch(flags).context("watching the configuration file")? else {
            return Ok(());
        };
        let (recorders, pods) = (Arc::clone(&self.recorders), self.informers.pods.clone());
        let reload = Reload::new(
            flags.clone(),
            Arc::clone(&self.scheduler),
            Box::new(move || pods.list()),
            Arc::clone(&self.current),
            Box::new(move |config| {
                for field in config::not_acted_on(config) {
                    tracing::warn!(
                        field,
                        "The configuration sets a field that has no effect here"
                    );
                }
                recorders.add(config);
            }),
            self.recorders.own(),
        );
        shutdown.spawn_essential(
            "configuration reload",
            reload.run(changed, shutdown.clone()),
        );
        Ok(())
    }

    /// Schedules until shutdown, which ends the informers, too, or is a child of that which does.
    ///
    /// # Errors
    /// The thread that decides panicked, or cannot be started.
    pub async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let Component {
            scheduler,
            informers,
            revisions,
            objects: (objects, changes),
            seed,
            active,
            recorder,
            decisions,
            ..
        } = self;
        let synced = async { informers.wait_for_sync().await && objects.wait_for_sync().await };
        if shutdown.run_until(synced).await != Some(true) {
            return Ok(());
        }
        let mut handlers = EventHandlers::new(
            Arc::clone(&scheduler),
            &informers,
            revisions,
            changes,
            recorder,
        );
        handlers.handle_initial();
        active.store(true, Ordering::Release);
        shutdown.spawn_essential("event handlers", handlers.run(shutdown.clone()));
        let flushing = flush(Arc::clone(&scheduler), shutdown.clone());
        shutdown.spawn_essential("scheduling queue flush", flushing);
        let scheduling = SchedulingLoop::new(Arc::clone(&scheduler), seed);
        match decisions {
            Decisions::OnAThread => on_a_thread(&scheduler, scheduling, &shutdown).await,
            Decisions::InATask => {
                let deciding = shutdown.spawn_guarded("scheduling", scheduling.run_in_task());
                shutdown.triggered().await;
                scheduler.queue.close();
                deciding.await.context("joining the scheduling task")
            }
        }
    }
}

async fn on_a_thread(
    scheduler: &Scheduler,
    mut scheduling: SchedulingLoop,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    let thread = std::thread::Builder::new()
        .name("scheduling".to_owned())
        .spawn(move || scheduling.run())
        .context("starting the scheduling thread")?;
    let (sender, mut ended) = tokio::sync::oneshot::channel();
    let waiter = tokio::task::spawn_blocking(move || {
        // Whoever waits may be gone already.
        let _ = sender.send(thread.join().is_ok());
    });
    let healthy = tokio::select! {
        () = shutdown.triggered() => {
            scheduler.queue.close();
            (&mut ended).await
        }
        healthy = &mut ended => healthy,
    };
    waiter.await.context("joining the scheduling thread")?;
    if healthy == Ok(true) {
        Ok(())
    } else {
        anyhow::bail!("the scheduling thread ended with a panic")
    }
}

/// Moves pods on whose time has come.
async fn flush(scheduler: Arc<Scheduler>, shutdown: Shutdown) {
    let mut backoff = tokio::time::interval(BACKOFF_ORDERING_WINDOW);
    let mut unschedulable = tokio::time::interval(FLUSH_UNSCHEDULABLE_PERIOD);
    loop {
        tokio::select! {
            () = shutdown.triggered() => return,
            _ = backoff.tick() => scheduler.queue.flush_backoff_queue_completed(),
            _ = unschedulable.tick() => scheduler.queue.flush_unschedulable_pods_leftover(),
        }
    }
}
