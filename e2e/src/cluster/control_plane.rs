//! The control plane's programs and their command lines.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::layout::{self, CLUSTER_CIDR, CONTROL_PLANE_IP, REGISTRY_PORT, SERVICE_CIDR};
use super::process::{Place, Program};
use super::{Cluster, Component, pki};
use crate::images;
use crate::step::{Step, tail};

/// etcd's name as a member of its cluster, which a restored folder must carry, too.
pub const ETCD_NAME: &str = "gantry";
/// Where etcd answers clients, and its peers; inside the control plane's network.
pub const ETCD_CLIENTS: &str = "http://127.0.0.1:2379";
pub const ETCD_PEERS: &str = "http://127.0.0.1:2380";

/// etcd's folder.
pub fn etcd_data(cluster: &Cluster) -> PathBuf {
    cluster.layout.dir().join("etcd")
}

/// Starts the registry and fills it with the images that are built.
///
/// # Errors
/// It does not come up, or an image cannot be pushed.
pub fn start_registry(cluster: &mut Cluster, step: &Step) -> Result<()> {
    let blobs = cluster.outputs.e2e().join("registry");
    fs::create_dir_all(&blobs)?;
    let crane = cluster.outputs.upstream("crane");
    let address = format!("{CONTROL_PLANE_IP}:{REGISTRY_PORT}");
    cluster.start(Program {
        name: "registry".to_owned(),
        argv: strings(&[
            &crane.to_string_lossy(),
            "registry",
            "serve",
            "--address",
            &address,
            "--disk",
            &blobs.to_string_lossy(),
        ]),
        env: Vec::new(),
        place: cluster.control_plane(),
    })?;
    images::push_all(cluster, &address, step)
}

/// Starts etcd and kube-apiserver and waits until the latter is ready.
///
/// # Errors
/// One does not come up: the error holds the end of its log.
pub fn start_api_server(cluster: &mut Cluster) -> Result<()> {
    let data = etcd_data(cluster);
    fs::create_dir_all(&data)?;
    nix::sys::stat::fchmodat(
        None,
        &data,
        nix::sys::stat::Mode::S_IRWXU,
        nix::sys::stat::FchmodatFlags::FollowSymlink,
    )?;
    let etcd = cluster.outputs.upstream("etcd");
    cluster.start(Program {
        name: "etcd".to_owned(),
        argv: strings(&[
            &etcd.to_string_lossy(),
            &format!("--name={ETCD_NAME}"),
            &format!("--data-dir={}", data.display()),
            &format!("--listen-client-urls={ETCD_CLIENTS}"),
            &format!("--advertise-client-urls={ETCD_CLIENTS}"),
            &format!("--listen-peer-urls={ETCD_PEERS}"),
            &format!("--initial-advertise-peer-urls={ETCD_PEERS}"),
            &format!("--initial-cluster={ETCD_NAME}={ETCD_PEERS}"),
            "--quota-backend-bytes=8589934592",
            // The cluster is thrown away with its disk; slow disks must not cost leases.
            "--unsafe-no-fsync",
        ]),
        env: Vec::new(),
        place: cluster.control_plane(),
    })?;
    let argv = api_server(cluster);
    cluster.start(Program {
        name: "kube-apiserver".to_owned(),
        argv,
        env: Vec::new(),
        place: cluster.control_plane(),
    })?;
    start_forwarder(cluster)?;
    wait_ready(cluster, Duration::from_secs(120))
}

/// # Errors
/// kube-apiserver is not ready after `timeout`.
pub fn wait_ready(cluster: &Cluster, timeout: Duration) -> Result<()> {
    let deadline = Instant::now() + timeout;
    loop {
        match cluster.kubectl(&["get", "--raw", "/readyz"]) {
            Ok(_) => return Ok(()),
            Err(err) if Instant::now() > deadline => {
                let log = cluster.layout.log("kube-apiserver");
                bail!(
                    "kube-apiserver is not ready: {err:#}\n{}\nthe whole log: {}",
                    tail(&log, 20),
                    log.display()
                );
            }
            Err(_) => std::thread::sleep(Duration::from_millis(250)),
        }
    }
}

fn api_server(cluster: &Cluster) -> Vec<String> {
    let pki = |file: &str| cluster.layout.pki(file).display().to_string();
    let mut argv = vec![
        cluster
            .outputs
            .upstream(cluster.state.options.kubernetes.api_server())
            .display()
            .to_string(),
    ];
    argv.extend([
        format!("--advertise-address={CONTROL_PLANE_IP}"),
        format!("--secure-port={}", layout::API_SERVER_PORT),
        format!("--etcd-servers={ETCD_CLIENTS}"),
        // The suite's chunking spec waits for a compaction; five minutes by default.
        "--etcd-compaction-interval=30s".to_owned(),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--enable-bootstrap-token-auth=true".to_owned(),
        "--allow-privileged=true".to_owned(),
        format!("--service-cluster-ip-range={SERVICE_CIDR}"),
        format!("--client-ca-file={}", pki("ca.crt")),
        format!("--tls-cert-file={}", pki("apiserver.crt")),
        format!("--tls-private-key-file={}", pki("apiserver.key")),
        format!(
            "--kubelet-client-certificate={}",
            pki("apiserver-kubelet-client.crt")
        ),
        format!(
            "--kubelet-client-key={}",
            pki("apiserver-kubelet-client.key")
        ),
        "--kubelet-preferred-address-types=InternalIP,ExternalIP,Hostname".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
        format!("--service-account-key-file={}", pki("sa.pub")),
        format!("--service-account-signing-key-file={}", pki("sa.key")),
        format!(
            "--requestheader-client-ca-file={}",
            pki("front-proxy-ca.crt")
        ),
        "--requestheader-allowed-names=front-proxy-client".to_owned(),
        "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
        "--requestheader-group-headers=X-Remote-Group".to_owned(),
        "--requestheader-username-headers=X-Remote-User".to_owned(),
        format!("--proxy-client-cert-file={}", pki("front-proxy-client.crt")),
        format!("--proxy-client-key-file={}", pki("front-proxy-client.key")),
        // No kube-proxy runs beside the API server here.
        "--enable-aggregator-routing=true".to_owned(),
    ]);
    argv
}

/// A listener in the machine's own network, so that kubectl works without entering a namespace.
fn start_forwarder(cluster: &mut Cluster) -> Result<()> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", layout::API_SERVER_PORT))
        .or_else(|_| std::net::TcpListener::bind(("127.0.0.1", 0)))?;
    let port = listener.local_addr()?.port();
    drop(listener);
    cluster.state.admin_port = port;
    pki::write_admin_kubeconfig(&cluster.layout, port)?;
    // A copy: cargo may replace the program while it runs, and a test that brings a cluster up is another one.
    let built = cluster.outputs.target.join("release/e2e");
    let source = if built.is_file() {
        built
    } else {
        "/proc/self/exe".into()
    };
    let own = cluster.layout.dir().join("e2e-forward");
    fs::copy(&source, &own).with_context(|| format!("copy {}", source.display()))?;
    cluster.start(Program {
        name: "forwarder".to_owned(),
        argv: strings(&[
            &own.to_string_lossy(),
            "forward",
            &format!("127.0.0.1:{port}"),
            &cluster.layout.lan_netns(),
            &format!("{CONTROL_PLANE_IP}:{}", layout::API_SERVER_PORT),
        ]),
        env: Vec::new(),
        place: Place::default(),
    })
}

/// # Errors
/// It cannot be started.
pub fn start_controller_manager(cluster: &mut Cluster, replica: u8) -> Result<()> {
    let program = controller_manager(cluster, replica);
    cluster.start(program)
}

/// How it is started.
pub fn controller_manager(cluster: &Cluster, replica: u8) -> Program {
    let pki = |file: &str| cluster.layout.pki(file).display().to_string();
    let kubeconfig = cluster
        .layout
        .kubeconfig("controller-manager")
        .display()
        .to_string();
    let mut argv = vec![program(cluster, Component::KubeControllerManager)];
    argv.extend([
        format!("--kubeconfig={kubeconfig}"),
        format!("--authentication-kubeconfig={kubeconfig}"),
        format!("--authorization-kubeconfig={kubeconfig}"),
        "--bind-address=127.0.0.1".to_owned(),
        format!("--secure-port={}", 10257 + u16::from(replica) * 100),
        format!("--client-ca-file={}", pki("ca.crt")),
        format!(
            "--requestheader-client-ca-file={}",
            pki("front-proxy-ca.crt")
        ),
        format!("--root-ca-file={}", pki("ca.crt")),
        format!("--service-account-private-key-file={}", pki("sa.key")),
        format!("--cluster-signing-cert-file={}", pki("ca.crt")),
        format!("--cluster-signing-key-file={}", pki("ca.key")),
        "--use-service-account-credentials=true".to_owned(),
        "--controllers=*,bootstrapsigner,tokencleaner".to_owned(),
        "--allocate-node-cidrs=true".to_owned(),
        format!("--cluster-cidr={CLUSTER_CIDR}"),
        format!("--service-cluster-ip-range={SERVICE_CIDR}"),
        format!("--cluster-name={}", cluster.layout.name),
        "--leader-elect=true".to_owned(),
    ]);
    Program {
        name: replica_name("kube-controller-manager", replica),
        argv,
        env: Vec::new(),
        place: cluster.control_plane(),
    }
}

/// # Errors
/// It cannot be started.
pub fn start_scheduler(cluster: &mut Cluster, replica: u8) -> Result<()> {
    let kubeconfig = cluster.layout.kubeconfig("scheduler").display().to_string();
    let mut argv = vec![program(cluster, Component::KubeScheduler)];
    argv.extend([
        format!("--kubeconfig={kubeconfig}"),
        format!("--authentication-kubeconfig={kubeconfig}"),
        format!("--authorization-kubeconfig={kubeconfig}"),
        "--bind-address=127.0.0.1".to_owned(),
        format!("--secure-port={}", 10259 + u16::from(replica) * 100),
        "--leader-elect=true".to_owned(),
    ]);
    cluster.start(Program {
        name: replica_name("kube-scheduler", replica),
        argv,
        env: Vec::new(),
        place: cluster.control_plane(),
    })
}

/// The first replica has the plain name.
pub fn replica_name(component: &str, replica: u8) -> String {
    if replica == 0 {
        component.to_owned()
    } else {
        format!("{component}-{replica}")
    }
}

/// The path of ours, or of upstream's where it takes the place.
pub fn program(cluster: &Cluster, component: Component) -> String {
    let upstream = cluster.state.options.with_upstream.contains(&component);
    program_of(cluster, component, upstream)
}

/// The path of ours, or of upstream's.
pub fn program_of(cluster: &Cluster, component: Component, upstream: bool) -> String {
    let path = if upstream {
        cluster.outputs.upstream(component.name())
    } else {
        cluster.outputs.ours(component.name())
    };
    path.display().to_string()
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
