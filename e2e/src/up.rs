//! `up` and `down`: a cluster from nothing, and nothing of it afterwards.
//!
//! **Invariant:** whatever is killed, whenever: `down` leaves no process, mount, namespace, cgroup,
//! link or nft table behind. All daemons and containers live in one cgroup; all links and tables
//! live in the cluster's network namespaces; all mounts live in the nodes' mount namespaces.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cluster::layout::{self, Layout};
use crate::cluster::{Cluster, Component, Options, State, addons, cgroup, control_plane, lan, pki};
use crate::csi;
use crate::debian;
use crate::images;
use crate::node;
use crate::programs::{self, Outputs};
use crate::step::Steps;

impl Cluster {
    /// Brings a cluster up from nothing.
    ///
    /// # Errors
    /// One runs already, or a step fails; the error names the log.
    pub fn up(options: Options) -> Result<Self> {
        debian::require_root("make network namespaces and mounts")?;
        if options.nodes == 0 || options.nodes > layout::MAX_NODES {
            bail!(
                "--nodes {}: must be 1 to {}",
                options.nodes,
                layout::MAX_NODES
            );
        }
        if options.control_planes == 0 || options.control_planes > layout::MAX_CONTROL_PLANES {
            bail!(
                "--control-planes {}: must be 1 to {}",
                options.control_planes,
                layout::MAX_CONTROL_PLANES
            );
        }
        if options.upstream_nodes > options.nodes {
            bail!(
                "--upstream-nodes {}: there are {} nodes",
                options.upstream_nodes,
                options.nodes
            );
        }
        let layout = Layout::new(&options.name);
        let _lock = lock(&layout)?;
        if let Ok(running) = Self::open(&options.name)
            && running.is_running()
        {
            bail!(
                "cluster {:?} is already running ({} nodes); `cargo e2e down` ends it",
                options.name,
                running.state.options.nodes
            );
        }
        let outputs = Outputs::find().with_profile(options.profile);
        let steps = Steps::new(outputs.logs())?;
        debian::install_missing(&steps)?;
        Self::build(&steps, &outputs, &options)?;
        let token = bootstrap_token()?;
        let mut cluster = Self::lay_out(&steps, layout, outputs, options, &token)?;
        cluster.start_everything(&steps, &token)?;
        Ok(cluster)
    }

    /// A cluster of etcd and kube-apiserver alone: no nodes, no control loops, no registry. Their programs are built already.
    ///
    /// # Errors
    /// One runs already, or a step fails; the error names the log.
    pub fn up_bare(steps: &Steps, outputs: Outputs, name: &str) -> Result<Self> {
        debian::require_root("make network namespaces")?;
        let layout = Layout::new(name);
        let _lock = lock(&layout)?;
        if Self::open(name).is_ok_and(|running| running.is_running()) {
            bail!("cluster {name:?} is already running");
        }
        let options = Options {
            name: name.to_owned(),
            nodes: 0,
            profile: outputs.profile,
            ..Options::default()
        };
        let token = bootstrap_token()?;
        let mut cluster = Self::lay_out(steps, layout, outputs, options, &token)?;
        let step = steps.start("etcd, kube-apiserver", None)?;
        control_plane::start_api_server(&mut cluster)?;
        step.done();
        Ok(cluster)
    }

    /// Its files and its network; nothing runs yet.
    fn lay_out(
        steps: &Steps,
        layout: Layout,
        outputs: Outputs,
        options: Options,
        token: &str,
    ) -> Result<Self> {
        tear_down(&layout).context("clear what an earlier cluster left")?;
        let step = steps.start("certificates", None)?;
        fs::create_dir_all(layout.dir())?;
        pki::create(&layout, token)?;
        step.done();

        let step = steps.start("network", None)?;
        cgroup::create(&format!("{}/daemons", layout.cgroup()))?;
        cgroup::weigh(&layout.cgroup())?;
        raise_inotify_limits()?;
        lan::create(&layout)?;
        step.done();
        Ok(Self {
            layout,
            outputs,
            state: State {
                options,
                admin_port: 0,
                processes: BTreeMap::new(),
            },
        })
    }

    fn build(steps: &Steps, outputs: &Outputs, options: &Options) -> Result<()> {
        let mut upstream: Vec<&str> = programs::CLUSTER_PROGRAMS.to_vec();
        upstream.push(options.kubernetes.api_server());
        let mut ours = Vec::new();
        for component in Component::ALL {
            match (component, options.with_upstream.contains(&component)) {
                (Component::Kubelet, true) => upstream.extend(programs::NODE_PEERS),
                (component, true) => upstream.push(component.name()),
                (Component::Kubelet, false) => ours.extend(["kubelet", "shim"]),
                (component, false) => ours.push(component.name()),
            }
        }
        if options.upstream_nodes > 0 && !options.with_upstream.contains(&Component::Kubelet) {
            upstream.extend(programs::NODE_PEERS);
        }
        programs::build_upstream(steps, outputs, &upstream)?;
        programs::build_ours(steps, outputs, &ours)?;
        images::build(steps, outputs)?;
        for set in options.image_sets() {
            images::build_set(steps, outputs, set)?;
        }
        Ok(())
    }

    fn start_everything(&mut self, steps: &Steps, token: &str) -> Result<()> {
        let step = steps.start("etcd, kube-apiserver, registry", None)?;
        let registry = control_plane::start_registry(self)?;
        images::push_all(self, &registry, &step)?;
        control_plane::start_api_server(self)?;
        step.done();

        let step = steps.start("controllers, scheduler, add-ons", None)?;
        addons::apply_bootstrap(self, token)?;
        for replica in 0..self.state.options.replicas {
            control_plane::start_controller_manager(self, replica)?;
            control_plane::start_scheduler(self, replica)?;
        }
        addons::apply_dns(self)?;
        step.done();

        let nodes = self.state.options.nodes;
        let step = steps.start("nodes", Some(u64::from(nodes)))?;
        for index in 1..=nodes {
            node::create(self, index)?;
            step.advance();
        }
        step.message("wait until they are Ready");
        self.wait_for_nodes(Duration::from_secs(180))?;
        step.done();

        let step = steps.start("cluster DNS", None)?;
        self.kubectl(&[
            "-n",
            "kube-system",
            "rollout",
            "status",
            "deployment/coredns",
            "--timeout=180s",
        ])?;
        step.done();
        csi::apply(self, steps)
    }

    /// Ends the cluster and removes all it made. Works on what is left of one, too.
    ///
    /// # Errors
    /// Something could not be removed; everything else was.
    pub fn down(name: &str) -> Result<()> {
        debian::require_root("remove network namespaces and mounts")?;
        let layout = Layout::new(name);
        let _lock = lock(&layout)?;
        tear_down(&layout)
    }

    fn wait_for_nodes(&self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let nodes = self.nodes();
        for node in &nodes {
            // The object appears when the kubelet registers; only then can it be waited for.
            let path = format!("/api/v1/nodes/{node}");
            while self.kubectl(&["get", "--raw", &path]).is_err() {
                if Instant::now() > deadline {
                    bail!(
                        "node {node} did not register within {timeout:?}; its kubelet's log: {}\n{}",
                        self.layout.log(&format!("kubelet-{node}")).display(),
                        crate::step::tail(&self.layout.log(&format!("kubelet-{node}")), 20)
                    );
                }
                std::thread::sleep(Duration::from_millis(250));
            }
        }
        for (index, node) in (1u8..).zip(&nodes) {
            let cidr = self.pod_cidr(node, deadline)?;
            node::route_pods(self, index, &cidr)?;
        }
        let mut args = vec![
            "wait".to_owned(),
            "--for=condition=Ready".to_owned(),
            format!("--timeout={}s", timeout.as_secs()),
        ];
        args.extend(nodes.iter().map(|node| format!("node/{node}")));
        self.kubectl(&args.iter().map(String::as_str).collect::<Vec<_>>())
            .map(drop)
    }

    fn pod_cidr(&self, node: &str, deadline: Instant) -> Result<String> {
        let timeout = deadline
            .saturating_duration_since(Instant::now())
            .as_secs()
            .max(1);
        self.kubectl(&[
            "wait",
            "--for=jsonpath={.spec.podCIDR}",
            &format!("--timeout={timeout}s"),
            &format!("node/{node}"),
        ])
        .with_context(|| format!("node {node} was given no podCIDR"))?;
        Ok(self
            .kubectl(&["get", "node", node, "-o", "jsonpath={.spec.podCIDR}"])?
            .trim()
            .to_owned())
    }
}

/// Held for the length of `up` and `down`.
fn lock(layout: &Layout) -> Result<nix::fcntl::Flock<fs::File>> {
    let path = layout.lock();
    fs::create_dir_all(path.parent().expect("the lock lies in a folder"))?;
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)?;
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).map_err(|_| {
        anyhow::anyhow!(
            "another `cargo e2e` works on cluster {:?} right now",
            layout.name
        )
    })
}

fn tear_down(layout: &Layout) -> Result<()> {
    let mut problems = Vec::new();
    let mut attempt = |what: &str, result: Result<()>| {
        if let Err(err) = result {
            problems.push(format!("{what}: {err:#}"));
        }
    };
    attempt("end the processes", cgroup::destroy(&layout.cgroup()));
    // The shared parent goes with the last cluster.
    for hierarchy in cgroup::hierarchies().unwrap_or_default() {
        let _ = fs::remove_dir(hierarchy.join("gantry-e2e"));
    }
    attempt("give back loop devices", csi::release_loop_devices(layout));
    attempt("unpin the nodes", node::unpin_all(layout));
    attempt("remove the namespaces", lan::destroy(layout));
    for dir in [layout.dir(), layout.run_dir()] {
        if dir.exists() {
            attempt(
                "remove files",
                fs::remove_dir_all(&dir).with_context(|| dir.display().to_string()),
            );
        }
    }
    if problems.is_empty() {
        Ok(())
    } else {
        bail!("{}", problems.join("\n"))
    }
}

/// `[a-z0-9]{6}.[a-z0-9]{16}`, as kubeadm's.
fn bootstrap_token() -> Result<String> {
    use std::io::Read;
    let mut bytes = [0u8; 22];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let letters: String = bytes
        .iter()
        .map(|byte| char::from(b"abcdefghijklmnopqrstuvwxyz012345"[usize::from(byte & 31)]))
        .collect();
    Ok(format!("{}.{}", &letters[..6], &letters[6..]))
}

/// Each node's programs watch many files; the kernel's default of 128 instances a user is too few.
fn raise_inotify_limits() -> Result<()> {
    for (name, wanted) in [
        ("max_user_instances", 8192u64),
        ("max_user_watches", 524_288),
    ] {
        let path = format!("/proc/sys/fs/inotify/{name}");
        let now: u64 = fs::read_to_string(&path)?.trim().parse()?;
        if now < wanted {
            fs::write(&path, wanted.to_string()).with_context(|| format!("raise {path}"))?;
        }
    }
    Ok(())
}
