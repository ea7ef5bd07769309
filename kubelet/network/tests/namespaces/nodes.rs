//! Namespaces that are nodes, pods and machines beside them.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use network::{NetworkConfig, NetworkError, Peer, PodNetwork, SandboxNetwork};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A pinned network namespace; unpinned when dropped.
pub struct Namespace {
    pub path: PathBuf,
}

impl Namespace {
    pub fn new(what: &str) -> Self {
        let dir = PathBuf::from("/run/gantry-nettest");
        std::fs::create_dir_all(&dir).unwrap();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!(
            "gantry-nettest-{}-{number}-{what}",
            std::process::id()
        ));
        File::create(&path).unwrap();
        let pin = path.clone();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let source = format!("/proc/self/task/{}/ns/net", nix::unistd::gettid());
            mount(
                Some(source.as_str()),
                &pin,
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )
            .unwrap();
        })
        .join()
        .unwrap();
        Self { path }
    }

    /// Runs the closure on a thread inside.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = File::open(&self.path).unwrap();
        std::thread::spawn(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
        .join()
        .unwrap()
    }

    pub fn ip(&self, arguments: &str) -> String {
        let output = Command::new("nsenter")
            .arg(format!("--net={}", self.path.display()))
            .arg("ip")
            .args(arguments.split(' '))
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "ip {arguments}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn nft(&self) -> String {
        let net = format!("--net={}", self.path.display());
        let output = Command::new("nsenter")
            .args([&net, "nft", "-a", "list", "ruleset"])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// Everything that the network may have made, with handles and indexes, so that a remade thing shows.
    pub fn kernel_state(&self) -> String {
        let all = [
            "route show",
            "route show table local",
            "-6 route show proto 71",
            "-o -4 addr",
        ];
        let mut listed: Vec<_> = all.iter().map(|arguments| self.ip(arguments)).collect();
        // Index and name, without flags that change by themselves; then the MAC address and the alias.
        for link in self.ip("-o link").lines() {
            let name = link.split('<').next().unwrap_or_default();
            listed.push(format!(
                "{name} {}",
                link.split("link/").nth(1).unwrap_or_default()
            ));
        }
        listed.push(self.nft());
        listed.join("\n")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A node: its namespace, and its part of the pod network.
pub struct Node {
    pub namespace: Namespace,
    pub state: PathBuf,
}

impl Node {
    pub fn new(name: &str) -> Self {
        let namespace = Namespace::new(name);
        namespace.ip("link set lo up");
        let state = namespace.path.with_extension("state");
        Self { namespace, state }
    }

    pub fn config(&self) -> NetworkConfig {
        NetworkConfig {
            state_dir: self.state.clone(),
            cni_conf_dir: self.state.join("cni"),
            node_name: "test".into(),
            ..NetworkConfig::default()
        }
    }

    /// Opens the network anew, as a kubelet that starts does, and does something with it.
    pub fn with<T, F, Fut>(&self, work: F) -> T
    where
        T: Send + 'static,
        F: FnOnce(PodNetwork) -> Fut + Send + 'static,
        Fut: Future<Output = T>,
    {
        let config = self.config();
        self.namespace.run(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async { work(PodNetwork::open(config).await.unwrap()).await })
        })
    }

    pub fn setup(
        &self,
        sandbox: SandboxNetwork,
        ranges: &[&str],
    ) -> Result<Vec<IpAddr>, NetworkError> {
        let ranges: Vec<_> = ranges.iter().map(|range| range.parse().unwrap()).collect();
        self.with(|network| async move {
            network.set_pod_cidrs(ranges).await?;
            network.setup(&sandbox).await
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.state);
    }
}

pub fn sandbox(id: &str, pod: &Namespace) -> SandboxNetwork {
    SandboxNetwork {
        sandbox_id: id.into(),
        namespace: "default".into(),
        name: id.into(),
        uid: format!("uid-{id}"),
        netns: pod.path.clone(),
        ..SandboxNetwork::default()
    }
}

/// Serves one connection after another; each is told whom it looks like. Ends with the process.
pub fn serve(pod: &Namespace, port: u16) {
    pod.run(move || {
        let listener = TcpListener::bind(("::", port)).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let from = stream.peer_addr().unwrap().ip().to_canonical();
                let _ = write!(stream, "{from}");
            }
        });
    });
}

/// Connects and returns how the server saw the source.
pub fn ask(from: &Namespace, to: &str) -> Option<String> {
    let to: SocketAddr = to.parse().unwrap();
    from.run(move || {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(3)).ok()?;
        stream
            .set_read_timeout(Some(Duration::from_secs(3)))
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    })
}

/// A test that did nothing has shown nothing.
pub fn needs_root() {
    let root = nix::unistd::geteuid().is_root();
    assert!(root, "needs root, to make network namespaces");
}

pub const RANGES: [&str; 2] = ["10.244.1.0/24", "fd00:244:1::/64"];

pub fn ranges() -> Vec<ipnet::IpNet> {
    RANGES.iter().map(|range| range.parse().unwrap()).collect()
}

/// A veth pair between two namespaces.
pub fn connect(
    one: &Namespace,
    one_link: &str,
    one_address: &str,
    two: &Namespace,
    two_link: &str,
    two_address: &str,
) {
    one.ip(&format!(
        "link add {one_link} type veth peer name {two_link} netns {}",
        two.path.display()
    ));
    for (namespace, link, address) in [(one, one_link, one_address), (two, two_link, two_address)] {
        namespace.ip(&format!("addr add {address} dev {link}"));
        namespace.ip(&format!("link set {link} up"));
    }
}

/// A node at 192.0.2.1, and a machine at 192.0.2.9 that is none.
pub fn node_on_a_link() -> (Node, Namespace) {
    let (node, outside) = (Node::new("node"), Namespace::new("outside"));
    connect(
        &node.namespace,
        "eth0",
        "192.0.2.1/24",
        &outside,
        "eth0",
        "192.0.2.9/24",
    );
    (node, outside)
}

pub fn peer(address: &str, range: &str) -> Peer {
    Peer {
        node: "peer".into(),
        created_unix_s: 0,
        internal_ip: address.parse().unwrap(),
        pod_cidrs: vec![range.parse().unwrap()],
    }
}
