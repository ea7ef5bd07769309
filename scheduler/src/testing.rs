//! A scheduler without an API server, for tests: default plugins, and one whose answers a pod's labels tell.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use component_base::clock::Clock;
use framework::*;
use k8s_openapi::api::core::v1::{
    PersistentVolume, PersistentVolumeClaim, Pod, PodCondition, PodExtendedResourceClaimStatus,
};
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::api::scheduling::v1beta1::PodGroup;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use tokio_util::sync::CancellationToken;

use crate::bench::NoObjects;
use crate::config::{KubeSchedulerConfiguration, set_defaults};
use crate::metrics::Metrics;
use crate::runtime::Shared;
use crate::schedule_one::SchedulingLoop;
use crate::scheduler::{POD_MAX_IN_UNSCHEDULABLE_PODS_DURATION, Scheduler};

/// Unreserve calls of the scripted plugin, over all tests of the process.
pub static UNRESERVED: AtomicUsize = AtomicUsize::new(0);

/// At each point does what the pod's label of the point's name says: `reject`, `error`, `wait`.
struct Scripted;

fn answer(pod: &PodInfo, point: &str) -> Status {
    match pod.labels().get(point).map(String::as_str) {
        Some("reject") => Status::unschedulable("no"),
        Some("error") => Status::error("boom"),
        Some("wait") => Status::wait(),
        _ => Status::success(),
    }
}

impl Plugin for Scripted {
    fn name(&self) -> &'static str {
        "Scripted"
    }
    fn as_reserve(&self) -> Option<&dyn ReservePlugin> {
        Some(self)
    }
    fn as_permit(&self) -> Option<&dyn PermitPlugin> {
        Some(self)
    }
    fn as_pre_bind(&self) -> Option<&dyn PreBindPlugin> {
        Some(self)
    }
}
impl ReservePlugin for Scripted {
    fn reserve(&self, _: &mut CycleState, pod: &Arc<PodInfo>, _: &str) -> Status {
        answer(pod, "reserve")
    }
    fn unreserve(&self, _: &mut CycleState, _: &Arc<PodInfo>, _: &str) {
        UNRESERVED.fetch_add(1, Ordering::AcqRel);
    }
}
impl PermitPlugin for Scripted {
    fn permit(&self, _: &mut CycleState, pod: &Arc<PodInfo>, _: &str) -> (Status, Duration) {
        (answer(pod, "permit"), Duration::from_secs(60))
    }
}
impl PreBindPlugin for Scripted {
    fn pre_bind_pre_flight(
        &self,
        _: &CycleState,
        pod: &Arc<PodInfo>,
        _: &str,
    ) -> (PreBindPreFlightResult, Status) {
        let status = if pod.labels().contains_key("prebind") {
            Status::success()
        } else {
            Status::skip()
        };
        (PreBindPreFlightResult::default(), status)
    }
    fn pre_bind<'a>(
        &'a self,
        _: &'a CycleState,
        pod: &'a Arc<PodInfo>,
        _: &'a str,
    ) -> BoxFuture<'a, Status> {
        Box::pin(async move { answer(pod, "prebind") })
    }
}

/// Remembers what was written; binding a pod labelled `bind: error` fails.
#[derive(Default)]
pub struct Writes {
    /// `pod -> node`.
    pub bound: Mutex<Vec<String>>,
    /// `pod reason message`.
    pub conditions: Mutex<Vec<String>>,
    /// `pod -> node` nominations.
    pub nominations: Mutex<Vec<String>>,
    /// `volume -> claim` and `claim -> node`.
    pub volumes: Mutex<Vec<String>>,
    /// What is done to claims to devices.
    pub claims: Mutex<Vec<String>>,
    /// `group reason message` of groups' conditions.
    pub groups: Mutex<Vec<String>>,
}

impl Writes {
    /// Takes a write of a claim, and answers it as of a newer version.
    fn claim(&self, what: &str, claim: &ResourceClaim) -> Result<ResourceClaim, ApiWriteError> {
        let name = claim.metadata.name.clone().unwrap_or_default();
        self.claims.lock().unwrap().push(format!("{what} {name}"));
        let mut claim = claim.clone();
        let version = claim.metadata.resource_version.as_deref();
        let version: u64 = version.and_then(|v| v.parse().ok()).unwrap_or(0);
        claim.metadata.resource_version = Some((version + 1).to_string());
        Ok(claim)
    }
}

type Done<'a, T> = BoxFuture<'a, Result<T, ApiWriteError>>;

impl ClaimWriter for Writes {
    fn create<'a>(&'a self, claim: &'a ResourceClaim) -> Done<'a, ResourceClaim> {
        Box::pin(async { self.claim("create", claim) })
    }
    fn get<'a>(&'a self, _: &'a str, name: &'a str) -> Done<'a, ResourceClaim> {
        Box::pin(async { Err(ApiWriteError::NotFound(name.to_owned())) })
    }
    fn write_finalizers<'a>(&'a self, claim: &'a ResourceClaim) -> Done<'a, ResourceClaim> {
        Box::pin(async { self.claim("finalizers", claim) })
    }
    fn write_status<'a>(&'a self, claim: &'a ResourceClaim) -> Done<'a, ResourceClaim> {
        Box::pin(async { self.claim("status", claim) })
    }
    fn unreserve<'a>(&'a self, claim: &'a ResourceClaim, _: &'a str) -> Done<'a, ResourceClaim> {
        Box::pin(async { self.claim("unreserve", claim) })
    }
    fn delete<'a>(&'a self, claim: &'a ResourceClaim) -> Done<'a, ()> {
        Box::pin(async { self.claim("delete", claim).map(|_| ()) })
    }
    fn write_extended_status<'a>(
        &'a self,
        _: &'a Pod,
        status: &'a PodExtendedResourceClaimStatus,
    ) -> Done<'a, ()> {
        let text = format!("pod has {}", status.resource_claim_name);
        self.claims.lock().unwrap().push(text);
        Box::pin(async { Ok(()) })
    }
}

impl ApiWriter for Writes {
    fn claims(&self) -> Option<&dyn ClaimWriter> {
        Some(self)
    }
    fn bind<'a>(
        &'a self,
        pod: &'a Pod,
        node_name: &'a str,
    ) -> BoxFuture<'a, Result<(), ApiWriteError>> {
        Box::pin(async move {
            if framework::pod_info::labels(pod)
                .get("bind")
                .is_some_and(|how| how == "error")
            {
                return Err(ApiWriteError::Failed("the server is away".to_owned()));
            }
            self.bound
                .lock()
                .unwrap()
                .push(format!("{} -> {node_name}", framework::pod_info::name(pod)));
            Ok(())
        })
    }
    fn patch_pod_group<'a>(
        &'a self,
        group: &'a PodGroup,
        condition: Condition,
    ) -> BoxFuture<'a, Result<(), ApiWriteError>> {
        let name = group.metadata.name.clone().unwrap_or_default();
        let text = format!("{name} {} {}", condition.reason, condition.message);
        self.groups.lock().unwrap().push(text);
        Box::pin(async { Ok(()) })
    }
    fn delete_pod<'a>(&'a self, _: &'a Pod) -> BoxFuture<'a, Result<(), ApiWriteError>> {
        Box::pin(async { Ok(()) })
    }
    fn bind_volume<'a>(
        &'a self,
        volume: &'a PersistentVolume,
    ) -> BoxFuture<'a, Result<String, ApiWriteError>> {
        let claim = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
        let claim = claim.and_then(|c| c.name.clone()).unwrap_or_default();
        let name = volume.metadata.name.clone().unwrap_or_default();
        self.volumes
            .lock()
            .unwrap()
            .push(format!("{name} -> {claim}"));
        Box::pin(async { Ok("100".to_owned()) })
    }
    fn annotate_claim<'a>(
        &'a self,
        claim: &'a PersistentVolumeClaim,
    ) -> BoxFuture<'a, Result<String, ApiWriteError>> {
        let annotations = claim.metadata.annotations.iter().flatten();
        let nodes: Vec<&str> = annotations.map(|(_, node)| &**node).collect();
        let name = claim.metadata.name.clone().unwrap_or_default();
        let text = format!("{name} -> {}", nodes.join(" "));
        self.volumes.lock().unwrap().push(text);
        Box::pin(async { Ok("100".to_owned()) })
    }
    fn patch_pod_status<'a>(
        &'a self,
        pod: &'a Pod,
        condition: Option<PodCondition>,
        nominating: NominatingInfo,
    ) -> BoxFuture<'a, Result<(), ApiWriteError>> {
        let name = framework::pod_info::name(pod);
        if let Some(c) = condition {
            let text = format!(
                "{name} {} {}",
                c.reason.unwrap_or_default(),
                c.message.unwrap_or_default()
            );
            self.conditions.lock().unwrap().push(text);
        }
        if let NominatingInfo::Override(node) = nominating
            && !node.is_empty()
        {
            self.nominations
                .lock()
                .unwrap()
                .push(format!("{name} -> {node}"));
        }
        Box::pin(async { Ok(()) })
    }
}

/// A scheduler, its loop and what it did.
pub struct Bed {
    /// The scheduler.
    pub scheduler: Arc<Scheduler>,
    /// The loop.
    pub scheduling: SchedulingLoop,
    /// What was written.
    pub writes: Arc<Writes>,
    /// `reason note` of events.
    pub events: Arc<Mutex<Vec<String>>>,
    /// What its informers would know.
    pub objects: Arc<NoObjects>,
}

impl Bed {
    /// The informer knows these pods; the queue does not, yet.
    pub fn new(pods: &[Arc<PodInfo>]) -> Self {
        Self::with_config(KubeSchedulerConfiguration::default(), pods)
    }

    /// The same by another configuration.
    pub fn with_config(config: KubeSchedulerConfiguration, pods: &[Arc<PodInfo>]) -> Self {
        let listers = NoObjects::with_pods(pods.iter().map(|pod| Arc::clone(&pod.pod)));
        Self::build(config, listers, plugins::registry::in_tree())
    }

    /// The same with the gate `GenericWorkload` on.
    pub fn with_pod_groups(pods: &[Arc<PodInfo>]) -> Self {
        let pods = pods.iter().map(|pod| Arc::clone(&pod.pod));
        let listers = NoObjects::with_pod_groups(pods, false);
        let registry = plugins::registry::in_tree_with_pod_groups();
        Self::build(KubeSchedulerConfiguration::default(), listers, registry)
    }

    /// The same with the gate `TopologyAwareWorkloadScheduling` on, too.
    pub fn with_topology_aware(pods: &[Arc<PodInfo>]) -> Self {
        let pods = pods.iter().map(|pod| Arc::clone(&pod.pod));
        let listers = NoObjects::with_pod_groups(pods, true);
        let mut registry = plugins::registry::in_tree_with_pod_groups();
        plugins::registry::enable_topology_aware(&mut registry);
        Self::build(KubeSchedulerConfiguration::default(), listers, registry)
    }

    fn build(
        mut config: KubeSchedulerConfiguration,
        listers: NoObjects,
        mut registry: Vec<Registration>,
    ) -> Self {
        set_defaults(&mut config);
        registry.push(Registration {
            name: "Scripted",
            default_weight: 0,
            default_enabled: true,
            factory: |_, _| Ok(Arc::new(Scripted)),
        });
        let (writes, events) = (
            Arc::new(Writes::default()),
            Arc::new(Mutex::new(Vec::new())),
        );
        let recorded = Arc::clone(&events);
        let record = Arc::new(move |event: EventRecord| {
            recorded
                .lock()
                .unwrap()
                .push(format!("{} {}", event.reason, event.note))
        });
        let listers = Arc::new(listers);
        let objects = Arc::clone(&listers);
        let shared = Shared::new(
            listers,
            writes.clone(),
            record,
            tokio::runtime::Handle::current(),
            CancellationToken::new(),
            Clock::real(),
            Metrics::unread(Clock::real()),
        );
        let scheduler = Scheduler::new(
            &config,
            &registry,
            shared,
            POD_MAX_IN_UNSCHEDULABLE_PODS_DURATION,
        )
        .expect("defaults are valid");
        let scheduling = SchedulingLoop::new(Arc::clone(&scheduler), 1);
        Bed {
            scheduler,
            scheduling,
            writes,
            events,
            objects,
        }
    }

    /// Waits for what tasks on other threads do.
    pub async fn until(&self, what: &str, happened: impl Fn(&Self) -> bool) {
        let wait = async {
            while !happened(self) {
                tokio::task::yield_now().await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(30), wait).await;
        waited.unwrap_or_else(|_| panic!("{what}: {:?}", self.events.lock().unwrap()));
    }

    /// Schedules all that can be popped, until nothing is in flight (or waits on Permit).
    pub async fn settle(&mut self) {
        loop {
            while let Some(queued) = self.scheduler.queue.try_pop() {
                self.scheduling.schedule_one(queued);
            }
            for _ in 0..50 {
                tokio::task::yield_now().await;
            }
            let counts = self.scheduler.queue.counts();
            if counts.active == 0 {
                return;
            }
        }
    }
}
