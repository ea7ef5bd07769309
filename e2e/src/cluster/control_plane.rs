//! The control plane's programs and their command lines.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::layout::{self, CLUSTER_CIDR, CONTROL_PLANE_IP, REGISTRY_PORT, SERVICE_CIDR};
use super::process::{Place, Program};
use super::{Cluster, Component, pki};
use crate::step::tail;

/// etcd's name as a member of its cluster, which a restored folder must carry, too.
pub const ETCD_NAME: &str = "gantry";
/// Where the first etcd answers clients, and its peers; inside the control plane's network.
pub const ETCD_CLIENTS: &str = "http://127.0.0.1:2379";
pub const ETCD_PEERS: &str = "http://127.0.0.1:2380";

/// The first etcd's folder.
pub fn etcd_data(cluster: &Cluster) -> PathBuf {
    member_data(cluster, 0)
}

fn member_data(cluster: &Cluster, member: u8) -> PathBuf {
    cluster.layout.dir().join(replica_name("etcd", member))
}

/// Ports of one member of etcd, ten apart.
fn etcd_url(first: &str, member: u8) -> String {
    let (host, port) = first.rsplit_once(':').expect("a constant with a port");
    let port: u16 = port.parse().expect("a constant with a port");
    format!("{host}:{}", port + 10 * u16::from(member))
}

/// Starts the registry, which may take a moment to answer, and gives its address.
///
/// # Errors
/// It cannot be started.
pub fn start_registry(cluster: &mut Cluster) -> Result<String> {
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
    Ok(address)
}

/// Starts etcd and kube-apiserver, all members of both, and waits until the latter is ready.
///
/// # Errors
/// One does not come up: the error holds the end of its log.
pub fn start_api_server(cluster: &mut Cluster) -> Result<()> {
    let members = cluster.state.options.control_planes;
    for member in 0..members {
        start_etcd(cluster, member)?;
    }
    for member in 0..members {
        let argv = api_server(cluster, member);
        cluster.start(Program {
            name: replica_name("kube-apiserver", member),
            argv,
            env: Vec::new(),
            place: cluster.control_plane(),
        })?;
    }
    start_forwarder(cluster)?;
    wait_ready(cluster, Duration::from_secs(120))
}

fn start_etcd(cluster: &mut Cluster, member: u8) -> Result<()> {
    let data = member_data(cluster, member);
    fs::create_dir_all(&data)?;
    nix::sys::stat::fchmodat(
        None,
        &data,
        nix::sys::stat::Mode::S_IRWXU,
        nix::sys::stat::FchmodatFlags::FollowSymlink,
    )?;
    let etcd = cluster.outputs.upstream("etcd");
    let clients = etcd_url(ETCD_CLIENTS, member);
    let peers = etcd_url(ETCD_PEERS, member);
    let all = (0..cluster.state.options.control_planes)
        .map(|member| {
            format!(
                "{}={}",
                replica_name(ETCD_NAME, member),
                etcd_url(ETCD_PEERS, member)
            )
        })
        .collect::<Vec<_>>()
        .join(",");
    cluster.start(Program {
        name: replica_name("etcd", member),
        argv: strings(&[
            &etcd.to_string_lossy(),
            &format!("--name={}", replica_name(ETCD_NAME, member)),
            &format!("--data-dir={}", data.display()),
            &format!("--listen-client-urls={clients}"),
            &format!("--advertise-client-urls={clients}"),
            &format!("--listen-peer-urls={peers}"),
            &format!("--initial-advertise-peer-urls={peers}"),
            &format!("--initial-cluster={all}"),
            "--quota-backend-bytes=8589934592",
            // The cluster is thrown away with its disk; slow disks must not cost leases.
            "--unsafe-no-fsync",
        ]),
        env: Vec::new(),
        place: cluster.control_plane(),
    })
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

/// Of several, each asks the etcd beside it, as kubeadm's do.
fn api_server(cluster: &Cluster, member: u8) -> Vec<String> {
    let address = if cluster.state.options.control_planes == 1 {
        CONTROL_PLANE_IP
    } else {
        layout::member_ip(member)
    };
    let pki = |file: &str| cluster.layout.pki(file).display().to_string();
    let mut argv = vec![
        cluster
            .outputs
            .upstream(cluster.state.options.kubernetes.api_server())
            .display()
            .to_string(),
    ];
    argv.extend([
        format!("--advertise-address={address}"),
        format!("--secure-port={}", layout::API_SERVER_PORT),
        format!("--etcd-servers={}", etcd_url(ETCD_CLIENTS, member)),
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
    if cluster.state.options.control_planes > 1 {
        // The forwarder has this port at another address.
        argv.push(format!("--bind-address={address}"));
    }
    argv
}

/// A listener in the machine's own network, so that kubectl works without entering a namespace; and one at the address that clients
/// know, where several API servers stand behind it.
fn start_forwarder(cluster: &mut Cluster) -> Result<()> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", layout::API_SERVER_PORT))
        .or_else(|_| std::net::TcpListener::bind(("127.0.0.1", 0)))?;
    let port = listener.local_addr()?.port();
    drop(listener);
    cluster.state.admin_port = port;
    pki::write_admin_kubeconfig(&cluster.layout, port)?;
    // A copy: cargo may replace the program while it runs, and a test that brings a cluster up is another one.
    let source = ["release/e2e", "debug/e2e"]
        .map(|built| cluster.outputs.target.join(built))
        .into_iter()
        .find(|built| built.is_file())
        .unwrap_or_else(|| "/proc/self/exe".into());
    let own = cluster.layout.dir().join("e2e-forward");
    fs::copy(&source, &own).with_context(|| format!("copy {}", source.display()))?;
    let members = cluster.state.options.control_planes;
    if members > 1 {
        let mut argv = strings(&[
            &own.to_string_lossy(),
            "forward",
            &format!("{CONTROL_PLANE_IP}:{}", layout::API_SERVER_PORT),
            &cluster.layout.lan_netns(),
        ]);
        argv.extend(
            (0..members)
                .map(|member| format!("{}:{}", layout::member_ip(member), layout::API_SERVER_PORT)),
        );
        let place = cluster.control_plane();
        cluster.start(Program {
            name: "api-server-forwarder".to_owned(),
            argv,
            env: Vec::new(),
            place,
        })?;
    }
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
