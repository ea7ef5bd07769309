//! What happens to simulated pods, and when. Pure: no clock, no client, no dice (what is left to chance hangs on the pod's uid).
//!
//! ```text
//! Starting -> Running -> Ended | Backoff -> Running
//!    \-> Failing            \-> Stopping -> gone
//! ```

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use component_base::duration;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kubelet_provider::{
    ContainerReport, ContainerState, Phase, PodId, PodReport, ProviderError, Terminated,
};

use super::Addresses;
use super::configuration::SimulatedConfiguration;
use crate::pods::record::RestartPolicy;

/// Before the names of annotations that change a pod's script: `start-delay`, `run-time`, `stop-time`, `exit-code`, `failure`.
pub const ANNOTATION_PREFIX: &str = "simulated.virtual-kubelet.io/";
/// Upstream's backoff of containers that crash: first, and longest.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));

/// What the annotation `failure` may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// The image is never there.
    ImagePull,
    /// The container cannot be made.
    Create,
}

impl Failure {
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::ImagePull => ("ImagePullBackOff", "Back-off pulling image (simulated)"),
            Self::Create => (
                "CreateContainerError",
                "the container cannot be created (simulated)",
            ),
        }
    }
}

/// How one pod goes.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Script {
    start_delay: Duration,
    /// `None`: for ever.
    run_time: Option<Duration>,
    stop_time: Duration,
    exit_code: i32,
    failure: Option<Failure>,
}

/// A number from 0 to 1 that is the pod's own; `salt` tells several apart.
fn chance(uid: &str, salt: &str) -> f64 {
    let mut hasher = DefaultHasher::new();
    (uid, salt).hash(&mut hasher);
    // 53 bits are what a double holds.
    (hasher.finish() >> 11) as f64 / (1_u64 << 53) as f64
}

impl Script {
    fn of(pod: &Pod, config: &SimulatedConfiguration) -> Result<Self, ProviderError> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let annotation = |name: &str| {
            let key = format!("{ANNOTATION_PREFIX}{name}");
            component_helpers::pod::annotation(pod, &key).map(|value| (key, value))
        };
        let invalid = |key: &str, value: &str, why: &str| ProviderError::Invalid {
            field: format!("metadata.annotations[{key}]"),
            message: format!("Invalid value: {value:?}: {why}"),
        };
        let time = |name: &str, usual: Duration, jitter: Duration| match annotation(name) {
            Some((key, value)) => {
                duration::parse(value).map_err(|error| invalid(&key, value, &error.to_string()))
            }
            None => Ok(usual + jitter.mul_f64(chance(uid, name))),
        };
        let run_time = time("run-time", config.run_time.0, config.run_jitter.0)?;
        let exit_code = match annotation("exit-code") {
            Some((key, value)) => value
                .parse::<u8>()
                .map(i32::from)
                .map_err(|_| invalid(&key, value, "must be a number from 0 to 255"))?,
            None if chance(uid, "failure") < config.failure_rate => config.failure_exit_code,
            None => config.exit_code,
        };
        let failure = match annotation("failure") {
            None => None,
            Some((_, "ImagePull")) => Some(Failure::ImagePull),
            Some((_, "Create")) => Some(Failure::Create),
            Some((key, value)) => {
                return Err(invalid(&key, value, "must be \"ImagePull\" or \"Create\""));
            }
        };
        Ok(Self {
            start_delay: time("start-delay", config.start_delay.0, config.start_jitter.0)?,
            run_time: (!run_time.is_zero()).then_some(run_time),
            stop_time: time("stop-time", config.stop_time.0, Duration::ZERO)?,
            exit_code,
            failure,
        })
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Stage {
    Starting,
    Running { since: Timestamp },
    Backoff,
    Ended,
    Failing,
    Stopping { since: Timestamp, killed: bool },
}

struct SimulatedPod {
    id: PodId,
    script: Script,
    policy: RestartPolicy,
    init: Box<[(Box<str>, bool)]>,
    containers: Box<[Box<str>]>,
    stage: Stage,
    restarts: i32,
    last: Option<(Timestamp, Timestamp, i32)>,
    /// When the init containers were done.
    initialized: Timestamp,
    /// `None`: the pod has the node's network.
    address: Option<Ipv4Addr>,
    /// Timers with another number are of a stage that is over.
    token: u64,
}

/// What is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    Report(PodId, PodReport),
    Gone(PodId),
}

/// All pods of the process.
pub struct Simulation {
    config: SimulatedConfiguration,
    pods: HashMap<Arc<str>, SimulatedPod>,
    timers: BinaryHeap<Reverse<(Timestamp, u64, Arc<str>)>>,
    addresses: Addresses,
    tokens: u64,
}

fn after(at: Timestamp, wait: Duration) -> Timestamp {
    let wait = SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX);
    at.checked_add(wait).unwrap_or(Timestamp::MAX)
}

impl Simulation {
    pub fn new(config: SimulatedConfiguration) -> Self {
        Self {
            addresses: Addresses::new(config.pod_cidr),
            config,
            pods: HashMap::new(),
            timers: BinaryHeap::new(),
            tokens: 0,
        }
    }

    /// Every pod there is.
    pub fn pods(&self) -> Vec<(PodId, PodReport)> {
        let pods = self.pods.values();
        pods.map(|pod| (pod.id.clone(), pod.report())).collect()
    }

    /// The log of a container, and since when it has been running.
    pub fn log(&self, uid: &str) -> Option<(&[String], Option<Timestamp>)> {
        let pod = self.pods.get(uid)?;
        let since = match &pod.stage {
            Stage::Running { since } | Stage::Stopping { since, .. } => Some(*since),
            _ => None,
        };
        Some((&self.config.logs, since))
    }

    /// When something happens next.
    pub fn next(&self) -> Option<Timestamp> {
        self.timers.peek().map(|Reverse((at, _, _))| *at)
    }

    /// A pod comes. One whose status says that it ran already runs on.
    ///
    /// # Errors
    /// An annotation cannot be understood.
    pub fn create(&mut self, pod: &Pod, now: Timestamp) -> Result<Vec<Told>, ProviderError> {
        let id = PodId::of(pod);
        if let Some(known) = self.pods.get(&id.uid) {
            return Ok(vec![Told::Report(id, known.report())]);
        }
        let script = Script::of(pod, &self.config)?;
        let spec = pod.spec.clone().unwrap_or_default();
        let init = spec.init_containers.iter().flatten().map(|c| {
            let sidecar = c.restart_policy.as_deref() == Some("Always");
            (c.name.as_str().into(), sidecar)
        });
        let containers = spec.containers.iter().map(|c| c.name.as_str().into());
        let mut simulated = SimulatedPod {
            script,
            policy: RestartPolicy::of(&spec),
            init: init.collect(),
            containers: containers.collect(),
            stage: Stage::Starting,
            restarts: 0,
            last: None,
            initialized: now,
            address: None,
            token: 0,
            id: id.clone(),
        };
        let uid = id.uid.clone();
        if let Some(ran) = pod.status.as_ref().and_then(Ran::of) {
            simulated.stage = Stage::Running { since: ran.since };
            simulated.initialized = ran.since;
            simulated.restarts = ran.restarts;
            if let Some(address) = ran.address {
                self.addresses.keep(address);
            }
            simulated.address = ran.address;
            let due = script.run_time.map(|time| after(ran.since, time));
            let report = simulated.report();
            self.pods.insert(uid.clone(), simulated);
            self.timer(&uid, due);
            return Ok(vec![Told::Report(id, report)]);
        }
        if spec.host_network != Some(true) {
            simulated.address = Some(self.addresses.take());
        }
        self.pods.insert(uid.clone(), simulated);
        if script.failure.is_none() && script.start_delay.is_zero() {
            return Ok(self.start(&uid, now).into_iter().collect());
        }
        self.timer(&uid, Some(after(now, script.start_delay)));
        let report = self
            .pods
            .get(&uid)
            .map(|pod| Told::Report(id, pod.report()));
        Ok(report.into_iter().collect())
    }

    /// A pod is to end.
    ///
    /// # Errors
    /// There is no such pod.
    pub fn delete(
        &mut self,
        id: &PodId,
        grace: Duration,
        now: Timestamp,
    ) -> Result<Vec<Told>, ProviderError> {
        let pod = self.pods.get_mut(&id.uid).ok_or(ProviderError::NotFound)?;
        let since = match pod.stage {
            Stage::Running { since } | Stage::Stopping { since, .. } => since,
            _ => return Ok(self.forget(&id.uid).into_iter().collect()),
        };
        let killed = pod.script.stop_time > grace;
        let wait = pod.script.stop_time.min(grace);
        pod.stage = Stage::Stopping { since, killed };
        if wait.is_zero() {
            return Ok(self.stopped(&id.uid, now));
        }
        let uid = id.uid.clone();
        self.timer(&uid, Some(after(now, wait)));
        Ok(Vec::new())
    }

    /// Everything that happened until now.
    pub fn advance(&mut self, now: Timestamp) -> Vec<Told> {
        let mut told = Vec::new();
        while let Some(Reverse((at, token, uid))) = self.timers.peek().cloned() {
            if at > now {
                break;
            }
            self.timers.pop();
            let Some(pod) = self.pods.get(&uid).filter(|pod| pod.token == token) else {
                continue;
            };
            match pod.stage {
                Stage::Starting | Stage::Backoff => told.extend(self.start(&uid, at)),
                Stage::Running { since } => told.extend(self.ended(&uid, since, at)),
                Stage::Stopping { .. } => told.extend(self.stopped(&uid, at)),
                Stage::Ended | Stage::Failing => {}
            }
        }
        told
    }

    fn timer(&mut self, uid: &Arc<str>, due: Option<Timestamp>) {
        self.tokens += 1;
        if let Some(pod) = self.pods.get_mut(uid) {
            pod.token = self.tokens;
        }
        if let Some(at) = due {
            self.timers.push(Reverse((at, self.tokens, uid.clone())));
        }
    }

    fn start(&mut self, uid: &Arc<str>, now: Timestamp) -> Option<Told> {
        let pod = self.pods.get_mut(uid)?;
        let mut due = None;
        if pod.script.failure.is_some() {
            pod.stage = Stage::Failing;
        } else {
            if pod.stage == Stage::Starting {
                pod.initialized = now;
            } else {
                pod.restarts = pod.restarts.saturating_add(1);
            }
            pod.stage = Stage::Running { since: now };
            due = pod.script.run_time.map(|time| after(now, time));
        }
        let told = Told::Report(pod.id.clone(), pod.report());
        self.timer(uid, due);
        Some(told)
    }

    fn ended(&mut self, uid: &Arc<str>, since: Timestamp, now: Timestamp) -> Option<Told> {
        let pod = self.pods.get_mut(uid)?;
        let code = pod.script.exit_code;
        pod.last = Some((since, now, code));
        let again = match pod.policy {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => code != 0,
            RestartPolicy::Never => false,
        };
        let mut due = None;
        if again {
            let doublings = u32::try_from(pod.restarts).unwrap_or(0).min(10);
            let wait = (BACKOFF.0 * 2_u32.pow(doublings)).min(BACKOFF.1);
            pod.stage = Stage::Backoff;
            due = Some(after(now, wait));
        } else {
            pod.stage = Stage::Ended;
        }
        let told = Told::Report(pod.id.clone(), pod.report());
        self.timer(uid, due);
        Some(told)
    }

    /// The last report says how the containers ended; then nothing is left.
    fn stopped(&mut self, uid: &Arc<str>, now: Timestamp) -> Vec<Told> {
        let Some(pod) = self.pods.get_mut(uid) else {
            return Vec::new();
        };
        if let Stage::Stopping { since, killed } = pod.stage {
            let code = if killed { 137 } else { 0 };
            pod.last = Some((since, now, code));
            pod.stage = Stage::Ended;
        }
        let report = Told::Report(pod.id.clone(), pod.report());
        self.forget(uid);
        vec![report]
    }

    fn forget(&mut self, uid: &str) -> Option<Told> {
        let pod = self.pods.remove(uid)?;
        if let Some(address) = pod.address {
            self.addresses.give_back(address);
        }
        Some(Told::Gone(pod.id))
    }
}

impl SimulatedPod {
    fn report(&self) -> PodReport {
        let ended =
            |(started_at, finished_at, exit_code): (Timestamp, Timestamp, i32)| Terminated {
                exit_code,
                reason: String::new(),
                message: String::new(),
                started_at,
                finished_at,
            };
        let waiting = |reason: &str, message: &str| ContainerState::Waiting {
            reason: reason.to_owned(),
            message: message.to_owned(),
        };
        let last = self.last.map(ended);
        let (state, last) = match (&self.stage, last) {
            (Stage::Starting, last) => (waiting("ContainerCreating", ""), last),
            (Stage::Failing, last) => {
                let (reason, message) = self.script.failure.map_or(("", ""), Failure::words);
                (waiting(reason, message), last)
            }
            (Stage::Running { since } | Stage::Stopping { since, .. }, last) => {
                (ContainerState::Running { started_at: *since }, last)
            }
            (Stage::Backoff, last) => {
                let text = "back-off restarting failed container (simulated)";
                (waiting("CrashLoopBackOff", text), last)
            }
            (Stage::Ended, Some(last)) => (ContainerState::Terminated(last), None),
            (Stage::Ended, None) => (waiting("ContainerCreating", ""), None),
        };
        let running = matches!(state, ContainerState::Running { .. });
        let begun = !matches!(self.stage, Stage::Starting | Stage::Failing);
        let container = |name: &str| ContainerReport {
            last: last.clone(),
            ready: running,
            restart_count: self.restarts,
            container_id: begun
                .then(|| format!("simulated://{}/{name}/{}", self.id.uid, self.restarts))
                .unwrap_or_default(),
            ..ContainerReport::new(name, state.clone())
        };
        let done = ended((self.initialized, self.initialized, 0));
        let init = self.init.iter().filter(|_| begun).map(|(name, sidecar)| {
            let (state, ready) = match (sidecar, &state) {
                (true, ContainerState::Terminated(t)) => {
                    (ContainerState::Terminated(t.clone()), false)
                }
                (true, _) => (
                    ContainerState::Running {
                        started_at: self.initialized,
                    },
                    true,
                ),
                (false, _) => (ContainerState::Terminated(done.clone()), true),
            };
            ContainerReport {
                ready,
                ..ContainerReport::new(name, state)
            }
        });
        let containers = self.containers.iter().map(|name| container(name));
        PodReport {
            phase: matches!(self.stage, Stage::Starting | Stage::Failing).then_some(Phase::Pending),
            pod_ips: self
                .address
                .filter(|_| begun)
                .map(IpAddr::from)
                .into_iter()
                .collect(),
            containers: init.chain(containers).collect(),
            ..PodReport::default()
        }
    }
}

/// How far a pod was, by its status.
struct Ran {
    since: Timestamp,
    restarts: i32,
    address: Option<Ipv4Addr>,
}

impl Ran {
    fn of(status: &PodStatus) -> Option<Self> {
        let container = status.container_statuses.as_ref()?.first()?;
        let running = container.state.as_ref()?.running.as_ref()?;
        Some(Self {
            since: running.started_at.as_ref()?.0,
            restarts: container.restart_count,
            address: status.pod_ip.as_deref().and_then(|ip| ip.parse().ok()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use component_base::duration::GoDuration;
    use serde_json::json;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(millis).unwrap()
    }

    fn pod(policy: &str, annotations: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"uid": "u", "namespace": "ns", "name": "p", "annotations": annotations},
            "spec": {"nodeName": "n", "restartPolicy": policy, "containers": [{"name": "c"}], "initContainers": [{"name": "i"}]},
        }))
        .unwrap()
    }

    fn simulation() -> Simulation {
        Simulation::new(SimulatedConfiguration {
            start_delay: GoDuration(Duration::from_millis(100)),
            ..SimulatedConfiguration::default()
        })
    }

    fn state(told: &[Told]) -> ContainerState {
        let [Told::Report(_, report)] = told else {
            panic!("one report was expected: {told:?}");
        };
        let container = report.containers.iter().find(|c| c.name == "c");
        container.unwrap().state.clone()
    }

    #[test]
    fn a_pod_starts_runs_and_ends_by_its_script() {
        let mut simulation = simulation();
        let annotations = json!({"simulated.virtual-kubelet.io/run-time": "1s", "simulated.virtual-kubelet.io/exit-code": "3"});
        let told = simulation
            .create(&pod("Never", annotations), at(0))
            .unwrap();
        assert!(matches!(state(&told), ContainerState::Waiting { .. }));
        assert_eq!(simulation.next(), Some(at(100)));
        assert_eq!(simulation.advance(at(99)), []);
        let told = simulation.advance(at(100));
        assert_eq!(
            state(&told),
            ContainerState::Running {
                started_at: at(100)
            }
        );
        let told = simulation.advance(at(2000));
        let ContainerState::Terminated(ended) = state(&told) else {
            panic!("{told:?}");
        };
        assert_eq!((ended.exit_code, ended.finished_at), (3, at(1100)));
        assert_eq!(simulation.next(), None);
        let id = simulation.pods()[0].0.clone();
        let told = simulation
            .delete(&id, Duration::from_secs(30), at(3000))
            .unwrap();
        assert_eq!(told, [Told::Gone(id.clone())]);
        assert_eq!(
            simulation.delete(&id, Duration::ZERO, at(3000)),
            Err(ProviderError::NotFound)
        );
    }

    #[test]
    fn a_container_that_crashes_comes_again_later_and_later() {
        let mut simulation = simulation();
        let annotations = json!({"simulated.virtual-kubelet.io/run-time": "1s", "simulated.virtual-kubelet.io/start-delay": "0"});
        simulation
            .create(&pod("Always", annotations), at(0))
            .unwrap();
        let told = simulation.advance(at(1000));
        assert!(
            matches!(state(&told), ContainerState::Waiting { reason, .. } if reason == "CrashLoopBackOff")
        );
        assert_eq!(simulation.next(), Some(at(11_000)));
        let told = simulation.advance(at(11_000));
        assert_eq!(
            state(&told),
            ContainerState::Running {
                started_at: at(11_000)
            }
        );
        simulation.advance(at(12_000));
        assert_eq!(simulation.next(), Some(at(32_000)));
        assert_eq!(simulation.pods()[0].1.containers[1].restart_count, 1);
    }

    #[test]
    fn a_stop_takes_its_time_and_no_more_than_the_grace() {
        let mut simulation = simulation();
        let annotations = json!({"simulated.virtual-kubelet.io/start-delay": "0", "simulated.virtual-kubelet.io/stop-time": "5s"});
        simulation
            .create(&pod("Always", annotations), at(0))
            .unwrap();
        let id = simulation.pods()[0].0.clone();
        assert_eq!(
            simulation.delete(&id, Duration::from_secs(30), at(1000)),
            Ok(vec![])
        );
        // Somebody is in a hurry now.
        assert_eq!(
            simulation.delete(&id, Duration::from_secs(2), at(2000)),
            Ok(vec![])
        );
        assert_eq!(simulation.next(), Some(at(4000)));
        let told = simulation.advance(at(4000));
        assert!(matches!(state(&told), ContainerState::Terminated(t) if t.exit_code == 137));
        assert!(simulation.pods().is_empty());
        assert_eq!(simulation.advance(at(100_000)), []);
    }

    #[test]
    fn failures_wait_by_their_name() {
        let mut simulation = simulation();
        let annotations = json!({"simulated.virtual-kubelet.io/failure": "ImagePull"});
        simulation
            .create(&pod("Always", annotations), at(0))
            .unwrap();
        let told = simulation.advance(at(100));
        assert!(
            matches!(state(&told), ContainerState::Waiting { reason, .. } if reason == "ImagePullBackOff")
        );
        let annotations = json!({"simulated.virtual-kubelet.io/failure": "Fire"});
        let mut other = pod("Always", annotations);
        other.metadata.uid = Some("v".to_owned());
        let error = simulation.create(&other, at(0)).unwrap_err().to_string();
        assert!(
            error.contains("failure]: Invalid value: \"Fire\""),
            "{error}"
        );
    }

    #[test]
    fn a_pod_that_ran_before_runs_on() {
        let mut first = simulation();
        let annotations = json!({"simulated.virtual-kubelet.io/run-time": "60s"});
        let mut pod = pod("Always", annotations);
        pod.status = Some(
            serde_json::from_value(
                json!({"phase": "Running", "podIP": "10.0.0.7", "containerStatuses": [{
                    "name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 2,
                    "state": {"running": {"startedAt": "1970-01-01T00:00:10Z"}},
                }]}),
            )
            .unwrap(),
        );
        let told = first.create(&pod, at(20_000)).unwrap();
        assert_eq!(
            state(&told),
            ContainerState::Running {
                started_at: at(10_000)
            }
        );
        assert_eq!(first.next(), Some(at(70_000)));
        let Told::Report(_, report) = &told[0] else {
            panic!("{told:?}");
        };
        assert_eq!(report.pod_ips, [IpAddr::from([10, 0, 0, 7])]);
        assert_eq!(report.containers[1].restart_count, 2);
    }
}
