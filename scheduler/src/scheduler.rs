//! [`Scheduler`]: the parts that the event handlers, the scheduling loop and the binding tasks share.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use backend::queue::{LiveQueueConfig, ProfileQueueing};
use backend::{Cache, QueueConfig, SchedulingQueue};
use framework::{ClusterEventWithHint, EXTENDER_NAME, EventResource, PodInfo, Registration};

use crate::config::{
    DEFAULT_SCHEDULER_NAME, KubeSchedulerConfiguration, KubeSchedulerProfile, PluginConfig,
};
use crate::extender;
use crate::profile::{ProfileError, new_framework};
use crate::runtime::{Beside, Framework, Shared};

/// How long a pod waits for an event before it is tried anyway (upstream's `--pod-max-in-unschedulable-pods-duration`).
pub const POD_MAX_IN_UNSCHEDULABLE_PODS_DURATION: Duration = Duration::from_secs(300);

/// How often pods that have waited too long are looked for (upstream's 30 s).
pub const FLUSH_UNSCHEDULABLE_PERIOD: Duration = Duration::from_secs(30);

/// By `schedulerName`.
pub type Profiles = BTreeMap<String, Arc<Framework>>;

/// See the module.
pub struct Scheduler {
    /// Nodes and pods.
    pub cache: Arc<Cache>,
    /// Pods without a node.
    pub queue: Arc<SchedulingQueue>,
    /// Reads, writes, events, tasks.
    pub shared: Arc<Shared>,
    registry: Vec<Registration>,
    profiles: ArcSwap<Profiles>,
}

impl Scheduler {
    /// Makes the profiles of `config` from the plugins of `registry`.
    ///
    /// # Errors
    /// When a profile cannot work.
    pub fn new(
        config: &KubeSchedulerConfiguration,
        registry: &[Registration],
        shared: Arc<Shared>,
        pod_max_in_unschedulable_pods_duration: Duration,
    ) -> Result<Arc<Self>, ProfileError> {
        let clock = shared.clock().clone();
        let now = move || clock.instant();
        Self::with_queue_clock(
            config,
            registry,
            shared,
            pod_max_in_unschedulable_pods_duration,
            Arc::new(now),
        )
    }

    /// The same; the queue goes by a clock of its own.
    ///
    /// # Errors
    /// When a profile cannot work.
    pub fn with_queue_clock(
        config: &KubeSchedulerConfiguration,
        registry: &[Registration],
        shared: Arc<Shared>,
        pod_max_in_unschedulable_pods_duration: Duration,
        now: Arc<dyn Fn() -> Instant + Send + Sync>,
    ) -> Result<Arc<Self>, ProfileError> {
        let profiles = new_profiles(config, registry, &shared)?;
        let live = live_queue_config(config, &profiles)?;
        let mut queue = QueueConfig::new(Arc::clone(&live.queue_sort), now);
        queue.live = live;
        queue.pod_max_in_unschedulable_pods_duration = pod_max_in_unschedulable_pods_duration;
        let metrics = Arc::clone(shared.metrics());
        queue.incoming = Arc::new(move |queue, event| metrics.count_incoming(queue, event));
        let queue = Arc::new(SchedulingQueue::new(queue));
        shared.set_queue(Arc::clone(&queue));
        shared.observers().set(
            profiles
                .values()
                .flat_map(|profile| profile.points().plugins()),
        );
        Ok(Arc::new(Scheduler {
            cache: Arc::new(Cache::new()),
            queue,
            profiles: ArcSwap::from_pointee(profiles),
            registry: registry.to_vec(),
            shared,
        }))
    }

    /// Works by another configuration from now on. Pods that have a node already are bound as they were decided; pods that wait are tried again; those of
    /// profiles that are gone are forgotten. Pods of new profiles are the caller's to add.
    ///
    /// # Errors
    /// When a profile cannot work; nothing has changed then.
    pub fn reconfigure(&self, config: &KubeSchedulerConfiguration) -> Result<(), ProfileError> {
        let profiles = new_profiles(config, &self.registry, &self.shared)?;
        let live = live_queue_config(config, &profiles)?;
        // Before the first pod meets them.
        self.shared.observers().set(
            profiles
                .values()
                .flat_map(|profile| profile.points().plugins()),
        );
        self.profiles.store(Arc::new(profiles));
        self.queue.reconfigure(live);
        Ok(())
    }

    /// All plugins there are.
    pub fn registry(&self) -> &[Registration] {
        &self.registry
    }

    /// The profiles as they are now.
    pub fn profiles(&self) -> Arc<Profiles> {
        self.profiles.load_full()
    }

    /// The profile of a pod; `None` when another scheduler is meant.
    pub fn framework_for_pod(&self, pod: &PodInfo) -> Option<Arc<Framework>> {
        let profiles = self.profiles.load();
        profiles.get(scheduler_name(&pod.pod)).cloned()
    }

    /// Is the pod this scheduler's to schedule?
    pub fn responsible_for_pod(&self, pod: &k8s_openapi::api::core::v1::Pod) -> bool {
        self.profiles.load().contains_key(scheduler_name(pod))
    }
}

/// Makes the profiles of a configuration; nobody works by them yet.
///
/// # Errors
/// When a profile cannot work.
pub fn new_profiles(
    config: &KubeSchedulerConfiguration,
    registry: &[Registration],
    shared: &Arc<Shared>,
) -> Result<Profiles, ProfileError> {
    let extenders = extender::new_extenders(&config.extenders, shared.tasks(), shared.metrics())?;
    let ignored = extender::ignored_resources(&config.extenders);
    let mut profiles = Profiles::new();
    for profile in &config.profiles {
        let mut profile = profile.clone();
        if !ignored.is_empty() {
            ignore_resources(&mut profile, &ignored);
        }
        let beside = Beside {
            extenders: extenders.clone(),
            percentage_of_nodes_to_score: profile
                .percentage_of_nodes_to_score
                .unwrap_or(config.percentage_of_nodes_to_score),
        };
        let framework = new_framework(&profile, registry, Arc::clone(shared), beside)?;
        profiles.insert(framework.profile_name().to_owned(), framework);
    }
    Ok(profiles)
}

/// What extenders see to stands before what NodeResourcesFit was told.
fn ignore_resources(profile: &mut KubeSchedulerProfile, ignored: &[String]) {
    let name = plugins::names::NODE_RESOURCES_FIT;
    let configs = &mut profile.plugin_config;
    let at = configs.iter().position(|config| config.name == name);
    let at = at.unwrap_or_else(|| {
        configs.push(PluginConfig {
            name: name.to_owned(),
            args: serde_json::json!({}),
        });
        configs.len() - 1
    });
    let args = &mut configs[at].args;
    if args.is_null() {
        *args = serde_json::json!({});
    }
    if let Some(args) = args.as_object_mut() {
        args.insert("ignoredResources".to_owned(), serde_json::json!(ignored));
    }
}

/// What of a configuration the queue works by.
fn live_queue_config(
    config: &KubeSchedulerConfiguration,
    profiles: &Profiles,
) -> Result<LiveQueueConfig, ProfileError> {
    let mut sort: Option<&Arc<dyn framework::Plugin>> = None;
    for framework in profiles.values() {
        let found = &framework.points().queue_sort[0];
        match sort {
            None => sort = Some(found),
            Some(first) if first.name() != found.name() => {
                let profile = framework.profile_name().to_owned();
                return Err(ProfileError::DifferentQueueSort {
                    profile,
                    found: found.name(),
                    first: first.name(),
                });
            }
            Some(_) => {}
        }
    }
    let Some(sort) = sort else {
        return Err(ProfileError::QueueSort {
            profile: String::new(),
            count: 0,
        });
    };
    let seconds = |seconds: i64| Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let mut live = LiveQueueConfig::new(Arc::clone(sort));
    live.pod_initial_backoff = seconds(config.pod_initial_backoff_seconds);
    live.pod_max_backoff = seconds(config.pod_max_backoff_seconds);
    live.profiles = profiles
        .iter()
        .map(|(name, framework)| (name.clone(), Arc::new(queueing(framework))))
        .collect();
    Ok(live)
}

/// Which scheduler a pod is for.
pub fn scheduler_name(pod: &k8s_openapi::api::core::v1::Pod) -> &str {
    let name = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.scheduler_name.as_deref());
    name.filter(|name| !name.is_empty())
        .unwrap_or(DEFAULT_SCHEDULER_NAME)
}

/// PreEnqueue plugins, and the events each plugin wants to hear for pods it rejected. A plugin that rejects pods and names no events hears all.
pub(crate) fn queueing(framework: &Framework) -> ProfileQueueing {
    let points = framework.points();
    let rejecting = [
        &points.pre_enqueue,
        &points.pre_filter,
        &points.filter,
        &points.reserve,
        &points.permit,
        &points.pre_bind,
        &points.placement_generate,
    ];
    let mut hints = Vec::new();
    if !framework.extenders().is_empty() {
        let any = ClusterEventWithHint::always(EventResource::WildCard, framework::ActionType::ALL);
        hints.push((EXTENDER_NAME, any));
    }
    let mut seen = std::collections::BTreeSet::new();
    for plugin in rejecting.into_iter().flatten() {
        if !seen.insert(plugin.name()) {
            continue;
        }
        match plugin.as_enqueue_extensions() {
            Some(extensions) => hints.extend(
                extensions
                    .events_to_register()
                    .into_iter()
                    .map(|hint| (plugin.name(), hint)),
            ),
            None => {
                let all = |resource| {
                    (
                        plugin.name(),
                        ClusterEventWithHint::always(resource, framework::ActionType::ALL),
                    )
                };
                hints.extend([EventResource::Pod, EventResource::Node].map(all));
            }
        }
    }
    ProfileQueueing {
        pre_enqueue: points.pre_enqueue.clone(),
        hints,
    }
}
