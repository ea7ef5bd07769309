//! The life of the process: options, pages, informers, leader election, the scheduling thread, the end.
//!
//! Upstream: cmd/kube-scheduler/app/server.go, v1.36. A process that loses its lease exits with code 1.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use backend::queue::BACKOFF_ORDERING_WINDOW;
use component_base::events::{EventType, RecordedEvent, Recorder, object_reference};
use component_base::flags::Flags;
use component_base::health::{Health, Kind};
use component_base::informer::Factory;
use component_base::leader_election::{LeaderElector, Leadership};
use component_base::process;
use component_base::shutdown::Shutdown;
use framework::{EventRecord, Registration};
use tokio::sync::mpsc;

use crate::api_writer::KubeWriter;
use crate::config::{self, DEFAULT_SCHEDULER_NAME, KubeSchedulerConfiguration};
use crate::event_handlers::EventHandlers;
use crate::fetch::Fetcher;
use crate::listers::{InformerListers, Informers, Revisions};
use crate::metrics;
use crate::objects::{Change, ObjectInformers};
use crate::options::{COMPONENT, Options, flag_set};
use crate::reload::Reload;
use crate::runtime::{RecordFn, Shared};
use crate::schedule_one::SchedulingLoop;
use crate::scheduler::{FLUSH_UNSCHEDULABLE_PERIOD, Scheduler};
use crate::trace::recorder::TraceRecorder;

/// Runs the process; returns its exit code.
pub fn main() -> i32 {
    let mut args = std::env::args();
    let binary = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    if rest.first().is_some_and(|first| first == "replay") {
        return crate::replay::command::main([vec![binary], rest[1..].to_vec()].concat(), registry);
    }
    process::run(&flag_set(), run)
}

async fn run(flags: Flags, shutdown: Shutdown) -> anyhow::Result<()> {
    let options = Options::from_flags(&flags)?;
    if let Some(path) = &options.write_config_to {
        return write_config(&options, path);
    }
    tracing::info!(
        version = component_base::version::GIT_VERSION,
        "Starting Kubernetes Scheduler"
    );
    for field in config::not_acted_on(&options.config) {
        tracing::warn!(
            field,
            "The configuration sets a field that has no effect here"
        );
    }
    let health = Health::new();
    component_base::metrics::init();
    metrics::init();
    options.features.record_metrics();

    let client = options.client.build().await?;
    let factory = Factory::new(client.clone(), shutdown.child());
    let informers = Informers::start(&factory, options.device_features(), options.pod_groups());
    let elector = elector(&options, &shutdown).await?;
    let leadership = elector
        .as_ref()
        .map_or_else(Leadership::always, LeaderElector::leadership);
    let writer = KubeWriter::new(client, leadership);
    let parts = Parts::new(&options, &factory, &informers, writer, &shutdown).await?;
    let (synced, objects) = (informers.clone(), Arc::clone(&parts.objects.0));
    health.add("sched-handler-sync", Kind::Ready, move || {
        if synced.has_synced() && objects.has_synced() {
            Ok(())
        } else {
            Err("waiting for handlers to sync".into())
        }
    });

    if let Some(elector) = &elector {
        elector.add_health_check(&health);
    }
    let current = Arc::clone(&parts.current);
    let all = registry(options.pod_groups());
    let configz = move || config::completed(&current.load(), &all);
    let questions = crate::pages::router(Arc::clone(&parts.scheduler), Arc::clone(&parts.active));
    let pages = pages(&health, &flags, configz).merge(questions);
    options.serving.serve(pages, shutdown.clone()).await?;
    parts.reload(&flags, &shutdown)?;
    let Some(elector) = elector else {
        return parts.schedule(shutdown).await;
    };
    elector
        .run_work(&shutdown, |leading| parts.schedule(leading))
        .await
}

/// The candidate for the lease, if the options want an election.
async fn elector(options: &Options, shutdown: &Shutdown) -> anyhow::Result<Option<LeaderElector>> {
    let Some(election) = options.election.clone() else {
        return Ok(None);
    };
    let recorder = |client| Recorder::events_v1(client, DEFAULT_SCHEDULER_NAME, shutdown);
    let elector = LeaderElector::connect(&options.client, election, recorder).await?;
    Ok(Some(elector))
}

/// All plugins this program knows: those of the default profile, and those that a configuration may name. `pod_groups`: the gate `GenericWorkload` is on.
pub fn registry(pod_groups: bool) -> Vec<Registration> {
    let mut all = match pod_groups {
        true => plugins::registry::in_tree_with_pod_groups(),
        false => plugins::registry::in_tree(),
    };
    all.extend(extra_plugins::registry::out_of_tree());
    all
}

/// All that scheduling needs, before it may begin.
struct Parts {
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
}

impl Parts {
    async fn new(
        options: &Options,
        factory: &Factory,
        informers: &Informers,
        writer: KubeWriter,
        shutdown: &Shutdown,
    ) -> anyhow::Result<Self> {
        let revisions = Arc::new(Revisions::default());
        let listers = Arc::new(InformerListers::new(
            informers.clone(),
            Arc::clone(&revisions),
            options.device_features(),
        ));
        // Events have a rate limit of their own.
        let events = options.client.build().await?;
        let recorders = Arc::new(Recorders::new(events, shutdown));
        recorders.add(&options.config);
        let record = recorders.record_fn();
        let tasks = tokio::runtime::Handle::current();
        let shared = Shared::new(
            listers,
            Arc::new(writer),
            record,
            tasks,
            shutdown.token().clone(),
        );
        let client = factory.client().clone();
        let objects = ObjectInformers::new(client, informers.pods.clone(), shutdown.child());
        shared.observers().set_sources(Arc::clone(&objects.0) as _);
        shared.set_fetcher(Fetcher::new(factory.client().clone()));
        let scheduler = Scheduler::new(
            &options.config,
            &registry(options.pod_groups()),
            shared,
            options.pod_max_in_unschedulable_pods_duration,
        )?;
        let first = options.config.profiles[0]
            .scheduler_name
            .as_deref()
            .unwrap_or(DEFAULT_SCHEDULER_NAME);
        metrics::StateCollector::register(
            Arc::clone(&scheduler.queue),
            Arc::clone(&scheduler.cache),
            first,
        );
        let seed = options.placement_seed.unwrap_or_else(rand::random);
        let record = options.record_trace.as_ref();
        let recorder = record.map(|(path, max_bytes)| TraceRecorder::create(path, *max_bytes));
        Ok(Parts {
            recorder: recorder.transpose()?,
            scheduler,
            informers: informers.clone(),
            revisions,
            objects,
            seed,
            current: Arc::new(ArcSwap::from_pointee(options.config.clone())),
            recorders,
            active: Arc::default(),
        })
    }

    /// Begins to look after the configuration file.
    fn reload(&self, flags: &Flags, shutdown: &Shutdown) -> anyhow::Result<()> {
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

    /// Schedules until shutdown.
    async fn schedule(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let Parts {
            scheduler,
            informers,
            revisions,
            objects: (objects, changes),
            seed,
            active,
            recorder,
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
        let mut scheduling = SchedulingLoop::new(Arc::clone(&scheduler), seed);
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

/// One recorder for each profile: events are in its name.
struct Recorders {
    client: kube::Client,
    shutdown: Shutdown,
    by_profile: ArcSwap<HashMap<String, Recorder>>,
}

impl Recorders {
    fn new(client: kube::Client, shutdown: &Shutdown) -> Self {
        Recorders {
            client,
            shutdown: shutdown.clone(),
            by_profile: ArcSwap::default(),
        }
    }

    /// Adds those of profiles that are new; the others go on, since a pod may still be on its way.
    fn add(&self, config: &KubeSchedulerConfiguration) {
        let mut all = HashMap::clone(&self.by_profile.load());
        let names = config.profiles.iter();
        for name in names.filter_map(|profile| profile.scheduler_name.as_ref()) {
            all.entry(name.clone())
                .or_insert_with(|| Recorder::events_v1(self.client.clone(), name, &self.shutdown));
        }
        self.by_profile.store(Arc::new(all));
    }

    /// For events that are about no pod.
    fn own(&self) -> Recorder {
        Recorder::events_v1(self.client.clone(), DEFAULT_SCHEDULER_NAME, &self.shutdown)
    }

    /// Records in the name of the pod's profile.
    fn record_fn(self: &Arc<Self>) -> RecordFn {
        let recorders = Arc::clone(self);
        Arc::new(move |event: EventRecord| {
            let name = framework::pod_info::spec(&event.regarding)
                .scheduler_name
                .as_deref()
                .unwrap_or(DEFAULT_SCHEDULER_NAME);
            let all = recorders.by_profile.load();
            let Some(recorder) = all.get(name) else {
                return;
            };
            recorder.record(RecordedEvent {
                regarding: object_reference(&*event.regarding),
                related: event.related.as_deref().map(object_reference),
                event_type: if event.warning {
                    EventType::Warning
                } else {
                    EventType::Normal
                },
                reason: event.reason.to_owned(),
                action: event.action.to_owned(),
                message: event.note,
                annotations: Default::default(),
            });
        })
    }
}

/// `/healthz`, `/livez`, `/readyz`, `/metrics`, `/configz`, `/flagz`.
fn pages(
    health: &Health,
    flags: &Flags,
    config: impl Fn() -> serde_json::Value + Send + Sync + 'static,
) -> axum::Router {
    component_base::zpages::live_router(COMPONENT, flags, "kubescheduler.config.k8s.io", config)
        .merge(health.router())
        .merge(component_base::metrics::router())
}

fn write_config(options: &Options, path: &std::path::Path) -> anyhow::Result<()> {
    let config = config::completed(&options.config, &registry(options.pod_groups()));
    let text = serde_saphyr::to_string(&config).context("encoding the configuration")?;
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    tracing::info!(component = COMPONENT, path = %path.display(), "Wrote configuration");
    Ok(())
}
