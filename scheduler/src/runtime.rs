//! [`Framework`]: the plugins of one profile, and how they run.
//!
//! Owns the order and the meaning of plugin answers at each extension point. Which node is chosen is [`crate::decide`]'s; what is done about it is
//! [`crate::schedule_one`]'s and [`crate::binding_cycle`]'s. Upstream: pkg/scheduler/framework/runtime/framework.go, v1.36.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use framework::*;

use crate::extender::{self, HttpExtender};
use crate::metrics::Metrics;

mod groups;
mod handle;
mod points;
mod waiting_pods;

pub use handle::{FrameworkHandle, RecordFn, Shared};
pub use points::Points;
pub use waiting_pods::WaitingPods;

/// A plugin that has a say in choosing a node, and at which points it is enabled.
pub struct Judge {
    /// The plugin.
    pub plugin: Arc<dyn Plugin>,
    /// PreFilter is enabled.
    pub pre_filter: bool,
    /// Filter is enabled.
    pub filter: bool,
    /// PreScore is enabled.
    pub pre_score: bool,
    /// Score is enabled, with this weight.
    pub score: Option<i64>,
}

/// A profile's plugins at work.
pub struct Framework {
    profile_name: String,
    points: Points,
    judges: Vec<Judge>,
    shared: Arc<Shared>,
    beside: Beside,
}

/// What beside its plugins makes a profile.
#[derive(Default, Clone)]
pub struct Beside {
    /// Asked in this order.
    pub extenders: Vec<Arc<HttpExtender>>,
    /// Once this share of the nodes was found feasible, no more are looked for; 0: all nodes are.
    pub percentage_of_nodes_to_score: i32,
}

impl Framework {
    /// Puts the plugins to work; `handle` is the one they were made with.
    pub fn new(
        profile_name: &str,
        points: Points,
        shared: Arc<Shared>,
        handle: &FrameworkHandle,
        beside: Beside,
    ) -> Arc<Self> {
        let framework = Arc::new(Framework {
            profile_name: profile_name.to_owned(),
            judges: judges(&points),
            points,
            shared,
            beside,
        });
        handle.set_framework(Arc::downgrade(&framework));
        framework
    }

    /// The `schedulerName`.
    pub fn profile_name(&self) -> &str {
        &self.profile_name
    }

    /// The plugins by point.
    pub fn points(&self) -> &Points {
        &self.points
    }

    /// Every plugin with a say in choosing a node; filters first, in their order.
    pub fn judges(&self) -> &[Judge] {
        &self.judges
    }

    /// All extenders.
    pub fn extenders(&self) -> &[Arc<HttpExtender>] {
        &self.beside.extenders
    }

    /// The extenders that have a say about where the pod goes; costs nothing where there are none.
    pub fn extenders_of(&self, pod: &PodInfo) -> Vec<Arc<HttpExtender>> {
        let say = |extender: &&Arc<HttpExtender>| {
            (extender.is_filter() || extender.is_prioritizer()) && extender.is_interested(&pod.pod)
        };
        self.beside.extenders.iter().filter(say).cloned().collect()
    }

    /// How many of so many nodes are enough, once feasible; `None`: all are looked at. Upstream: `numFeasibleNodesToFind`.
    // DIFFERS: zero stands for all nodes, not for a share that shrinks with the cluster: looking at all costs less here than upstream's sample.
    pub fn num_feasible_nodes_to_find(&self, nodes: usize) -> Option<usize> {
        let percentage = usize::try_from(self.beside.percentage_of_nodes_to_score).unwrap_or(0);
        if percentage == 0 || percentage >= 100 || nodes < MIN_FEASIBLE_NODES_TO_FIND {
            return None;
        }
        Some((nodes * percentage / 100).max(MIN_FEASIBLE_NODES_TO_FIND))
    }

    /// What all profiles share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn timed<T>(&self, point: &str, run: impl FnOnce() -> T, status: impl FnOnce(&T) -> Code) -> T {
        let start = self.shared.metrics().start();
        let result = run();
        self.observe_point(point, status(&result), start);
        result
    }

    /// An extension point took so long.
    pub(crate) fn observe_point(&self, point: &str, status: Code, start: Instant) {
        let metrics = self.shared.metrics();
        metrics.observe_extension_point(point, status.as_str(), &self.profile_name, start);
    }

    /// Runs every PreFilter. The set names the plugins that rejected the pod or narrowed the nodes.
    pub fn run_pre_filter_plugins(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
    ) -> (PreFilterResult, Status, BTreeSet<&'static str>) {
        self.timed(
            "PreFilter",
            || self.pre_filter(state, pod, snapshot),
            |(_, status, _)| status.code(),
        )
    }

    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
    ) -> (PreFilterResult, Status, BTreeSet<&'static str>) {
        let (mut result, mut narrowing, mut skip) =
            (PreFilterResult::default(), BTreeSet::new(), BTreeSet::new());
        for plugin in &self.points.pre_filter {
            let (name, Some(pre_filter)) = (plugin.name(), plugin.as_pre_filter()) else {
                continue;
            };
            let (narrowed, status) = observed(
                self.shared.metrics(),
                &**plugin,
                "PreFilter",
                || pre_filter.pre_filter(state, pod, snapshot),
                |(_, status)| status.code(),
            );
            if status.is_skip() {
                skip.insert(name);
                continue;
            }
            if status.is_rejected() {
                return (result, status.by(name), [name].into());
            }
            if !status.is_success() {
                return (
                    result,
                    Status::error(format!("running PreFilter plugin {name:?}: {status}")).by(name),
                    BTreeSet::new(),
                );
            }
            if !narrowed.all_nodes() {
                narrowing.insert(name);
            }
            result = result.merge(narrowed);
            if result.node_names.as_ref().is_some_and(BTreeSet::is_empty) {
                let names: Vec<&str> = narrowing.iter().copied().collect();
                let reason = if narrowing.len() == 1 {
                    format!("node(s) didn't satisfy plugin {}", names[0])
                } else {
                    format!(
                        "node(s) didn't satisfy plugin(s) [{}] simultaneously",
                        names.join(" ")
                    )
                };
                return (result, Status::unresolvable(reason), narrowing);
            }
        }
        state.set_skip_filter_plugins(skip);
        (result, Status::success(), narrowing)
    }

    /// Runs every Filter on one node; the first rejection counts.
    pub fn run_filter_plugins(
        &self,
        state: &CycleState,
        pod: &Arc<PodInfo>,
        node: &NodeInfo,
    ) -> Status {
        for plugin in &self.points.filter {
            if state.skip_filter_plugins().contains(plugin.name()) {
                continue;
            }
            let Some(filter) = plugin.as_filter() else {
                continue;
            };
            let status = filter.filter(state, pod, node);
            if !status.is_success() {
                return checked_filter_status(plugin.name(), status);
            }
        }
        Status::success()
    }

    /// Runs every Filter on one node as if the pods nominated to it, of equal or higher priority, were there; and, if there are such, again without them:
    /// the pod must fit both ways, since the nominated pods may never come.
    pub fn run_filter_plugins_with_nominated_pods(
        &self,
        state: &CycleState,
        pod: &Arc<PodInfo>,
        node: &NodeInfo,
    ) -> Status {
        let nominated = self.shared.nominated_pods_for_node(node.name());
        let nominated: Vec<_> = nominated
            .into_iter()
            .filter(|p| p.priority >= pod.priority && p.uid != pod.uid)
            .collect();
        if !nominated.is_empty() {
            let (mut state, mut node) = (state.clone(), node.clone());
            for other in &nominated {
                node.add_pod(Arc::clone(other));
                let status = self.run_pre_filter_extension_add_pod(&mut state, pod, other, &node);
                if !status.is_success() {
                    return status;
                }
            }
            let status = self.run_filter_plugins(&state, pod, &node);
            if !status.is_success() {
                return status;
            }
        }
        self.run_filter_plugins(state, pod, node)
    }

    /// Runs the PreFilter extensions for a pod that is tried out on a node.
    pub fn run_pre_filter_extension_add_pod(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        to_add: &Arc<PodInfo>,
        node: &NodeInfo,
    ) -> Status {
        self.extensions(state, "AddPod", |extensions, state| {
            extensions.add_pod(state, pod, to_add, node)
        })
    }

    /// Runs the PreFilter extensions for a pod that is thought away from a node.
    pub fn run_pre_filter_extension_remove_pod(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        to_remove: &Arc<PodInfo>,
        node: &NodeInfo,
    ) -> Status {
        self.extensions(state, "RemovePod", |extensions, state| {
            extensions.remove_pod(state, pod, to_remove, node)
        })
    }

    fn extensions(
        &self,
        state: &mut CycleState,
        what: &str,
        mut run: impl FnMut(&dyn PreFilterExtensions, &mut CycleState) -> Status,
    ) -> Status {
        for plugin in &self.points.pre_filter {
            if state.skip_filter_plugins().contains(plugin.name()) {
                continue;
            }
            let Some(extensions) = plugin.as_pre_filter().and_then(|p| p.extensions()) else {
                continue;
            };
            let status = run(extensions, state);
            if !status.is_success() {
                return Status::error(format!(
                    "running {what} on PreFilter plugin {:?}: {status}",
                    plugin.name()
                ))
                .by(plugin.name());
            }
        }
        Status::success()
    }

    /// Runs PostFilter plugins until one makes the pod schedulable.
    pub fn run_post_filter_plugins(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        statuses: &NodeToStatus,
    ) -> (Option<NominatingInfo>, Status) {
        self.timed(
            "PostFilter",
            || self.post_filter(state, pod, snapshot, statuses),
            |(_, status)| status.code(),
        )
    }

    fn post_filter(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        statuses: &NodeToStatus,
    ) -> (Option<NominatingInfo>, Status) {
        let (mut nominating, mut reasons, mut rejector) = (None, Vec::new(), "");
        for plugin in &self.points.post_filter {
            let Some(post_filter) = plugin.as_post_filter() else {
                continue;
            };
            let (result, status) = observed(
                self.shared.metrics(),
                &**plugin,
                "PostFilter",
                || post_filter.post_filter(state, pod, snapshot, statuses),
                |(_, status)| status.code(),
            );
            if status.is_success() {
                return (result, status);
            }
            if status.code() == Code::UnschedulableAndUnresolvable {
                return (result, status.by(plugin.name()));
            }
            if !status.is_rejected() {
                return (None, Status::error(&status).by(plugin.name()));
            }
            if !matches!(result, None | Some(NominatingInfo::Noop)) && nominating.is_none() {
                nominating = result;
            }
            reasons.extend_from_slice(status.reasons());
            if rejector.is_empty() {
                rejector = plugin.name();
            }
        }
        (
            nominating,
            Status::with_reasons(Code::Unschedulable, reasons).by(rejector),
        )
    }

    /// Runs every Reserve; the caller undoes all when one fails.
    pub fn run_reserve_plugins_reserve(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        node_name: &str,
    ) -> Status {
        let concerned = |plugin: &&Arc<dyn Plugin>| {
            let reserve = plugin.as_reserve();
            reserve.is_some_and(|reserve| reserve.concerns(pod))
        };
        let run = || {
            for plugin in self.points.reserve.iter().filter(concerned) {
                let Some(reserve) = plugin.as_reserve() else {
                    continue;
                };
                let run = || reserve.reserve(state, pod, node_name);
                let status = observed(
                    self.shared.metrics(),
                    &**plugin,
                    "Reserve",
                    run,
                    Status::code,
                );
                if !status.is_success() {
                    return if status.is_rejected() {
                        status.by(plugin.name())
                    } else {
                        Status::error(format!(
                            "running Reserve plugin {:?}: {status}",
                            plugin.name()
                        ))
                        .by(plugin.name())
                    };
                }
            }
            Status::success()
        };
        if !self.points.reserve.iter().any(|plugin| concerned(&plugin)) {
            Status::success()
        } else {
            self.timed("Reserve", run, Status::code)
        }
    }

    /// Runs every Unreserve, last first.
    pub fn run_reserve_plugins_unreserve(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        node_name: &str,
    ) {
        for plugin in self.points.reserve.iter().rev() {
            if let Some(reserve) = plugin.as_reserve()
                && reserve.concerns(pod)
            {
                reserve.unreserve(state, pod, node_name);
            }
        }
    }

    /// Runs every Permit. `Wait` means the pod was put among the waiting pods.
    pub fn run_permit_plugins(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        node_name: &str,
    ) -> Status {
        let mut waits: Vec<(&'static str, Duration)> = Vec::new();
        for plugin in &self.points.permit {
            let (name, Some(permit)) = (plugin.name(), plugin.as_permit()) else {
                continue;
            };
            let (status, timeout) = observed(
                self.shared.metrics(),
                &**plugin,
                "Permit",
                || permit.permit(state, pod, node_name),
                |(status, _)| status.code(),
            );
            if status.is_wait() {
                waits.push((name, timeout.min(MAX_PERMIT_TIMEOUT)));
            } else if status.is_rejected() {
                return status.by(name);
            } else if !status.is_success() {
                return Status::error(format!("running Permit plugin {name:?}: {status}")).by(name);
            }
        }
        if waits.is_empty() {
            return Status::success();
        }
        self.shared.waiting_pods().add(Arc::clone(pod), waits);
        Status::new(
            Code::Wait,
            format!(
                "one or more plugins asked to wait and no plugin rejected pod {:?}",
                pod.name()
            ),
        )
    }

    /// Waits until every Permit plugin has allowed the pod or one has rejected it.
    pub async fn wait_on_permit(&self, pod: &PodInfo) -> Status {
        let start = self.shared.metrics().start();
        let Some(status) = self.shared.waiting_pods().wait(&pod.uid).await else {
            return Status::success();
        };
        let code = status.code();
        self.shared
            .metrics()
            .observe_permit_wait(code.as_str(), start);
        if status.is_success() || status.is_rejected() {
            return status;
        }
        Status::error(format!("waiting on permit for pod: {status}")).by(status.plugin())
    }

    /// Asks PreBind plugins what they will do. `Skip`: nothing.
    pub fn run_pre_bind_pre_flights(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        node_name: &str,
    ) -> Status {
        let mut runs = Vec::new();
        for plugin in &self.points.pre_bind {
            let Some(pre_bind) = plugin.as_pre_bind() else {
                continue;
            };
            let (_, status) = pre_bind.pre_bind_pre_flight(state, pod, node_name);
            if status.is_success() {
                runs.push(plugin.name());
            } else if !status.is_skip() {
                return Status::error(format!(
                    "running PreBindPreFlight {:?}: {status}",
                    plugin.name()
                ))
                .by(plugin.name());
            }
        }
        if runs.is_empty() {
            return Status::skip();
        }
        let names = self.points.pre_bind.iter().map(|plugin| plugin.name());
        state.set_skip_pre_bind_plugins(names.filter(|name| !runs.contains(name)).collect());
        Status::success()
    }

    /// Runs every PreBind in order.
    pub async fn run_pre_bind_plugins(
        &self,
        state: &CycleState,
        pod: &Arc<PodInfo>,
        node_name: &str,
    ) -> Status {
        let start = self.shared.metrics().start();
        let mut status = Status::success();
        for plugin in &self.points.pre_bind {
            let (name, Some(pre_bind)) = (plugin.name(), plugin.as_pre_bind()) else {
                continue;
            };
            if state.skip_pre_bind_plugins().contains(name) {
                continue;
            }
            let began = self.shared.metrics().start();
            let answer = pre_bind.pre_bind(state, pod, node_name).await;
            observe_plugin(
                self.shared.metrics(),
                &**plugin,
                "PreBind",
                answer.code(),
                began,
            );
            if !answer.is_success() {
                status = if answer.is_rejected() {
                    answer.by(name)
                } else {
                    Status::error(format!("running PreBind plugin {name:?}: {answer}")).by(name)
                };
                break;
            }
        }
        self.observe_point("PreBind", status.code(), start);
        status
    }

    /// Lets the extender bind whose business the pod is, or else the Bind plugins.
    pub async fn bind(&self, state: &CycleState, pod: &Arc<PodInfo>, node_name: &str) -> Status {
        if !self.beside.extenders.is_empty()
            && let Some(status) = extender::bind(&self.beside.extenders, pod, node_name).await
        {
            return status;
        }
        self.run_bind_plugins(state, pod, node_name).await
    }

    /// Runs Bind plugins until one takes the pod.
    async fn run_bind_plugins(
        &self,
        state: &CycleState,
        pod: &Arc<PodInfo>,
        node_name: &str,
    ) -> Status {
        let start = self.shared.metrics().start();
        let mut status = Status::error("no Bind plugin took the pod");
        for plugin in &self.points.bind {
            let (name, Some(bind)) = (plugin.name(), plugin.as_bind()) else {
                continue;
            };
            let began = self.shared.metrics().start();
            let answer = bind.bind(state, pod, node_name).await;
            observe_plugin(
                self.shared.metrics(),
                &**plugin,
                "Bind",
                answer.code(),
                began,
            );
            if answer.is_skip() {
                continue;
            }
            status = if answer.is_success() {
                answer
            } else if answer.is_rejected() {
                answer.by(name)
            } else {
                Status::error(format!("running Bind plugin {name:?}: {answer}")).by(name)
            };
            break;
        }
        self.observe_point("Bind", status.code(), start);
        status
    }

    /// Runs every PostBind.
    pub fn run_post_bind_plugins(&self, state: &CycleState, pod: &Arc<PodInfo>, node_name: &str) {
        for plugin in &self.points.post_bind {
            if let Some(post_bind) = plugin.as_post_bind() {
                post_bind.post_bind(state, pod, node_name);
            }
        }
    }
}

/// So many feasible nodes are always looked for.
const MIN_FEASIBLE_NODES_TO_FIND: usize = 100;

/// Runs a plugin at a point and observes how long it took.
fn observed<T>(
    metrics: &Metrics,
    plugin: &dyn Plugin,
    point: &str,
    run: impl FnOnce() -> T,
    code: impl FnOnce(&T) -> Code,
) -> T {
    let start = metrics.start();
    let result = run();
    observe_plugin(metrics, plugin, point, code(&result), start);
    result
}

fn observe_plugin(metrics: &Metrics, plugin: &dyn Plugin, point: &str, code: Code, start: Instant) {
    metrics.observe_plugin(plugin.name(), point, code.as_str(), start);
}

/// The longest a Permit plugin may make a pod wait (upstream's `maxTimeout`).
pub const MAX_PERMIT_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// A Filter may only reject or fail; anything else is a fault of the plugin.
pub(crate) fn checked_filter_status(plugin: &'static str, status: Status) -> Status {
    if status.is_rejected() {
        status.by(plugin)
    } else {
        Status::error(format!("running {plugin:?} filter plugin: {status}")).by(plugin)
    }
}

fn judges(points: &Points) -> Vec<Judge> {
    let all = points
        .filter
        .iter()
        .chain(&points.pre_filter)
        .chain(points.score.iter().map(|(plugin, _)| plugin))
        .chain(&points.pre_score);
    let mut judges: Vec<Judge> = Vec::new();
    let has = |list: &[Arc<dyn Plugin>], plugin: &Arc<dyn Plugin>| {
        list.iter().any(|p| p.name() == plugin.name())
    };
    for plugin in all {
        if judges.iter().any(|j| j.plugin.name() == plugin.name()) {
            continue;
        }
        judges.push(Judge {
            pre_filter: has(&points.pre_filter, plugin),
            filter: has(&points.filter, plugin),
            pre_score: has(&points.pre_score, plugin),
            score: points
                .score
                .iter()
                .find(|(p, _)| p.name() == plugin.name())
                .map(|(_, weight)| *weight),
            plugin: Arc::clone(plugin),
        });
    }
    judges
}

/// A framework that may be gone: what a handle holds, so that plugins do not keep their framework alive.
pub(crate) type WeakFramework = Weak<Framework>;
