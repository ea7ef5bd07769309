//! The cluster: what it is made of, how it is waited for, and what happened in it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use component_base::clock::Clock;
use component_base::health::Health;
use component_base::leader_election::Leadership;
use component_base::metrics::Registry;
use component_base::shutdown::Shutdown;
use component_base::testing::{ApiServer, Object};
use controller_runtime::accounts::Accounts;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube_controller_manager::app as controller_manager;
use kube_controller_manager::options as controller_options;
use kube_scheduler::app as scheduler;
use kube_scheduler::options as scheduler_options;
use kubelet::app::testing::{Given, kubelet};
use runtime::fake::FakeRuntime;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::chance;

/// How long, by the cluster's clock, something may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(1200);
/// What the clock says at the start.
const BEGIN: i64 = 1_800_000_000;

pub struct Cluster {
    pub api: ApiServer,
    pub clock: Clock,
    shutdown: Shutdown,
    programs: Vec<(String, JoinHandle<Result<(), String>>)>,
    _files: TempDir,
}

/// Runs a history in a thread of its own, by a seed. One that is to be had again is the first of its process: tokio's own seeds are counted
/// from its start.
pub fn run<T, F>(seed: u64, history: impl FnOnce() -> F + Send + 'static) -> T
where
    T: Send + 'static,
    F: Future<Output = T>,
{
    let world = move || {
        chance::seed(seed);
        host::alone::work_alone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build();
        runtime.expect("a runtime").block_on(history())
    };
    let thread = std::thread::Builder::new().stack_size(16 << 20);
    let thread = thread.spawn(world).expect("a thread");
    match thread.join() {
        Ok(outcome) => outcome,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

impl Cluster {
    /// Of so many nodes.
    pub async fn start(nodes: u8) -> Self {
        let clock = Clock::of_runtime(Timestamp::from_second(BEGIN).expect("in range"));
        let mut cluster = Self {
            api: ApiServer::new(clock.clone()),
            clock,
            shutdown: Shutdown::new(),
            programs: Vec::new(),
            _files: tempfile::tempdir().expect("a folder"),
        };
        for name in ["default", "kube-system", "kube-node-lease"] {
            cluster.create::<Namespace>(json!({"metadata": {"name": name}}));
        }
        cluster.start_controllers();
        cluster.start_scheduler();
        for number in 1..=nodes {
            cluster.start_node(number).await;
        }
        cluster
    }

    fn run_program<E: std::fmt::Display>(
        &mut self,
        name: impl Into<String>,
        program: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let program = async move { program.await.map_err(|error| error.to_string()) };
        self.programs.push((name.into(), tokio::spawn(program)));
    }

    fn start_controllers(&mut self) {
        let flags = controller_options::flag_set().parse(Vec::<String>::new());
        let flags = flags.expect("no flags");
        let options = controller_options::Options::from_flags(&flags, |_| Vec::new());
        let options = Arc::new(options.expect("options"));
        let (client, clock, shutdown) = self.given();
        let component = controller_manager::assemble(controller_manager::Seams {
            features: Arc::new(controller_manager::features(&options).expect("gates")),
            options,
            accounts: Accounts::of_client(client.clone(), clock.clone(), shutdown.clone()),
            client,
            leadership: Leadership::always(),
            clock,
            metrics: Registry::new(),
            health: Health::new(),
            shutdown,
            root_ca: Some(b"a certificate".to_vec()),
        })
        .expect("a registry of its own");
        self.run_program("kube-controller-manager", component.run());
    }

    fn start_scheduler(&mut self) {
        let flags = scheduler_options::flag_set().parse(Vec::<String>::new());
        let options = scheduler_options::Options::from_flags(&flags.expect("no flags"));
        let options = options.expect("options");
        let (client, clock, shutdown) = self.given();
        let component = scheduler::assemble(scheduler::Seams {
            options: &options,
            plugins: &Default::default(),
            events: client.clone(),
            client,
            leadership: Leadership::always(),
            clock,
            shutdown: shutdown.clone(),
            metrics: Registry::new(),
            decisions: scheduler::Decisions::InATask,
        });
        let component = component.expect("a scheduler");
        self.run_program("kube-scheduler", component.run(shutdown));
    }

    async fn start_node(&mut self, number: u8) {
        let node = format!("node-{number}");
        let files = self._files.path().join(&node);
        std::fs::create_dir(&files).expect("a folder");
        let (client, clock, shutdown) = self.given();
        let given = Given {
            node: &node,
            address: IpAddr::from([192, 0, 2, number]),
            client,
            runtime: FakeRuntime::new(),
            clock,
            shutdown,
            files: &files,
        };
        let program = kubelet(given, |_| {}).await.expect("a kubelet");
        self.run_program(node, program);
    }

    fn given(&self) -> (kube::Client, Clock, Shutdown) {
        let (clock, shutdown) = (self.clock.clone(), self.shutdown.clone());
        (self.api.client(), clock, shutdown)
    }

    pub fn create<K: Object>(&self, object: Value) -> K {
        let object: K = serde_json::from_value(object).expect("objects in tests are valid");
        self.api.create(&object)
    }

    /// Waits until `condition` holds.
    pub async fn until(&self, what: &str, condition: impl Fn(&ApiServer) -> bool) {
        let held = tokio::time::timeout(PATIENCE, self.api.until(&condition)).await;
        assert!(held.is_ok(), "not {what}:\n{}", self.history().join("\n"));
    }

    pub async fn until_nodes_are_ready(&self, nodes: usize) {
        let ready = move |api: &ApiServer| {
            let all = api.list::<Node>();
            all.iter().filter(|node| is_ready(node)).count() == nodes
        };
        self.until("ready nodes", ready).await;
    }

    /// Waits until the cluster is so old.
    pub async fn until_age(&self, age: Duration) {
        let left = age.saturating_sub(self.clock.monotonic());
        self.clock.sleep(left).await;
    }

    /// Every write so far, a line each.
    pub fn history(&self) -> Vec<String> {
        let log = self.api.log().into_iter();
        log.map(|noted| {
            let call = noted.call;
            let refused = noted.refused.map(|r| format!(" !{}", r.reason));
            format!(
                "{} {:?} {}/{}{}{} {}/{}{} {}",
                noted.at,
                call.verb,
                call.group,
                call.plural,
                if call.subresource.is_empty() { "" } else { "/" },
                call.subresource,
                call.namespace,
                call.name,
                refused.unwrap_or_default(),
                call.body
            )
        })
        .collect()
    }

    /// Ends all programs, each in good order.
    pub async fn end(self) {
        assert_eq!(self.shutdown.failed(), None);
        self.shutdown.trigger();
        for (name, program) in self.programs {
            let ended = program.await.expect("no panic");
            assert_eq!(ended, Ok(()), "{name}");
        }
        assert_eq!(self.shutdown.failed(), None);
    }
}

fn is_ready(node: &Node) -> bool {
    let status = node.status.as_ref();
    let tainted = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    let mut conditions = status
        .and_then(|s| s.conditions.as_ref())
        .into_iter()
        .flatten();
    conditions.any(|c| c.type_ == "Ready" && c.status == "True")
        && tainted.is_none_or(Vec::is_empty)
}

/// Whether the pod is ready, and not about to end.
pub fn is_running(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let mut conditions = status
        .and_then(|s| s.conditions.as_ref())
        .into_iter()
        .flatten();
    pod.metadata.deletion_timestamp.is_none()
        && status.and_then(|s| s.phase.as_deref()) == Some("Running")
        && conditions.any(|c| c.type_ == "Ready" && c.status == "True")
}
