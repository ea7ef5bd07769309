//! [`Scheduler`]: the parts that the event handlers, the scheduling loop and the binding tasks share.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use backend::queue::ProfileQueueing;
use backend::{Cache, QueueConfig, SchedulingQueue};
use framework::{ClusterEventWithHint, EventResource, PodInfo, Registration};

use crate::config::{DEFAULT_SCHEDULER_NAME, KubeSchedulerConfiguration};
use crate::metrics;
use crate::profile::{ProfileError, new_framework};
use crate::runtime::{Framework, Shared};

/// How long a pod waits for an event before it is tried anyway (upstream's `--pod-max-in-unschedulable-pods-duration`).
pub const POD_MAX_IN_UNSCHEDULABLE_PODS_DURATION: Duration = Duration::from_secs(300);

/// See the module.
pub struct Scheduler {
    /// Nodes and pods.
    pub cache: Arc<Cache>,
    /// Pods without a node.
    pub queue: Arc<SchedulingQueue>,
    /// By `schedulerName`.
    pub profiles: BTreeMap<String, Arc<Framework>>,
    /// Reads, writes, events, tasks.
    pub shared: Arc<Shared>,
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
        let mut profiles: BTreeMap<String, Arc<Framework>> = BTreeMap::new();
        let mut sort: Option<Arc<dyn framework::Plugin>> = None;
        for profile in &config.profiles {
            let framework = new_framework(profile, registry, Arc::clone(&shared))?;
            let found = &framework.points().queue_sort[0];
            match &sort {
                None => sort = Some(Arc::clone(found)),
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
            profiles.insert(framework.profile_name().to_owned(), framework);
        }
        let Some(sort) = sort else {
            return Err(ProfileError::QueueSort {
                profile: String::new(),
                count: 0,
            });
        };
        let mut queue = QueueConfig::new(sort);
        let seconds = |seconds: i64| Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        queue.pod_initial_backoff = seconds(config.pod_initial_backoff_seconds);
        queue.pod_max_backoff = seconds(config.pod_max_backoff_seconds);
        queue.pod_max_in_unschedulable_pods_duration = pod_max_in_unschedulable_pods_duration;
        queue.profiles = profiles
            .iter()
            .map(|(name, framework)| (name.clone(), queueing(framework)))
            .collect();
        queue.incoming = Arc::new(|queue, event| {
            metrics::QUEUE_INCOMING_PODS
                .with_label_values(&[queue, event])
                .inc()
        });
        let queue = Arc::new(SchedulingQueue::new(queue));
        shared.set_queue(Arc::clone(&queue));
        Ok(Arc::new(Scheduler {
            cache: Arc::new(Cache::new()),
            queue,
            profiles,
            shared,
        }))
    }

    /// The profile of a pod; `None` when another scheduler is meant.
    pub fn framework_for_pod(&self, pod: &PodInfo) -> Option<&Arc<Framework>> {
        self.profiles.get(scheduler_name(&pod.pod))
    }

    /// Is the pod this scheduler's to schedule?
    pub fn responsible_for_pod(&self, pod: &k8s_openapi::api::core::v1::Pod) -> bool {
        self.profiles.contains_key(scheduler_name(pod))
    }
}

fn scheduler_name(pod: &k8s_openapi::api::core::v1::Pod) -> &str {
    let name = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.scheduler_name.as_deref());
    name.filter(|name| !name.is_empty())
        .unwrap_or(DEFAULT_SCHEDULER_NAME)
}

/// PreEnqueue plugins, and the events each plugin wants to hear for pods it rejected. A plugin that rejects pods and names no events hears all.
fn queueing(framework: &Framework) -> ProfileQueueing {
    let points = framework.points();
    let rejecting = [
        &points.pre_enqueue,
        &points.pre_filter,
        &points.filter,
        &points.reserve,
        &points.permit,
        &points.pre_bind,
    ];
    let mut hints = Vec::new();
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
