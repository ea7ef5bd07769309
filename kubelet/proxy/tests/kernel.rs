//! The rendered rules in a real kernel, with sockets behind them. Needs root and nft.
//!
//! A node and three pods, all network namespaces; the pods are routed by /32 links as the pod network does it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use kube_proxy::render::{RenderOptions, ServiceEntry, Slots, TABLE, render};
use kube_proxy::service::{NamespacedName, PortName, ServicePort};
use kube_proxy::{Endpoint, LocalDetector};
use nftables::{Family, NftProgram, Protocol, Syncer};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

struct Namespace {
    path: PathBuf,
}

impl Namespace {
    fn new(what: &str) -> Self {
        let dir = PathBuf::from("/run/gantry-nettest");
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join(format!(
            "gantry-nettest-proxy-{}-{what}",
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
        let namespace = Self { path };
        namespace.ip("link set lo up");
        namespace
    }

    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = File::open(&self.path).unwrap();
        std::thread::spawn(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
        .join()
        .unwrap()
    }

    fn ip(&self, arguments: &str) {
        let net = format!("--net={}", self.path.display());
        let output = Command::new("nsenter")
            .arg(net)
            .arg("ip")
            .args(arguments.split(' '))
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "ip {arguments}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn ruleset(&self) -> String {
        let net = format!("--net={}", self.path.display());
        let output = Command::new("nsenter")
            .args([&net, "nft", "-a", "list", "ruleset"])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A pod that answers with its own name and whom it sees.
fn pod(node: &Namespace, number: u8) -> Namespace {
    let pod = Namespace::new(&format!("pod{number}"));
    node.ip(&format!(
        "link add veth{number} type veth peer name eth0 netns {}",
        pod.path.display()
    ));
    for (gateway, address, length) in [
        ("10.244.1.1".to_string(), format!("10.244.1.{number}"), 32),
        (
            "fd00:244:1::1".to_string(),
            format!("fd00:244:1::{number}"),
            128,
        ),
    ] {
        let nodad = if length == 128 { " nodad" } else { "" };
        node.ip(&format!(
            "addr add {gateway}/{length} dev veth{number}{nodad}"
        ));
        pod.ip(&format!("addr add {address}/{length} dev eth0{nodad}"));
        node.ip(&format!("link set veth{number} up"));
        pod.ip("link set eth0 up");
        let six = if length == 128 { "-6 " } else { "" };
        node.ip(&format!(
            "{six}route add {address}/{length} dev veth{number}"
        ));
        pod.ip(&format!("{six}route add {gateway} dev eth0"));
        pod.ip(&format!("{six}route add default via {gateway}"));
    }
    pod.run(move || {
        let tcp = TcpListener::bind(("::", 8080)).unwrap();
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                let mut stream = stream.unwrap();
                let from = stream.peer_addr().unwrap().ip().to_canonical();
                let _ = write!(stream, "pod{number} {from}");
            }
        });
        let udp = UdpSocket::bind(("::", 8080)).unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, from)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(format!("pod{number}").as_bytes(), from);
            }
        });
    });
    pod
}

fn ask(from: &Namespace, to: &str) -> Result<String, std::io::ErrorKind> {
    let to: SocketAddr = to.parse().unwrap();
    from.run(move || {
        let run = || {
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        run().map_err(|error: std::io::Error| error.kind())
    })
}

/// Who answers, over several tries.
fn answers(from: &Namespace, to: &str) -> BTreeSet<String> {
    (0..24)
        .map(|_| ask(from, to).unwrap().split(' ').next().unwrap().to_owned())
        .collect()
}

fn options(family: Family) -> RenderOptions {
    let (range, services) = if family == Family::Ip {
        ("10.244.0.0/16", "10.96.0.0/16")
    } else {
        ("fd00:244::/32", "fd00:96::/108")
    };
    RenderOptions {
        family,
        masquerade_all: false,
        masquerade_mark: 0x4000,
        local_detector: LocalDetector::Source(range.parse().unwrap()),
        node_port_addresses: None,
        service_cidrs: vec![services.parse::<IpNet>().unwrap()],
        place: Default::default(),
        node_ip: None,
    }
}

type Services = BTreeMap<NamespacedName, ServiceEntry>;

fn service(services: &mut Services, name: &str, port: ServicePort, pods: &[u8]) {
    let port_name = PortName {
        port: "main".into(),
        protocol: port.protocol,
    };
    let six = port.cluster_ip.is_ipv6();
    let endpoints = pods
        .iter()
        .map(|number| Endpoint {
            address: if six {
                format!("fd00:244:1::{number}")
            } else {
                format!("10.244.1.{number}")
            }
            .parse()
            .unwrap(),
            port: 8080,
            is_local: true,
            ready: true,
            serving: true,
            terminating: false,
            zone_hints: Default::default(),
            node_hints: Default::default(),
        })
        .collect();
    let entry = ServiceEntry {
        ports: [(port_name.clone(), port)].into(),
        endpoints: [(port_name, endpoints)].into(),
    };
    services.insert(
        NamespacedName {
            namespace: "default".into(),
            name: name.into(),
        },
        entry,
    );
}

fn port(cluster_ip: &str) -> ServicePort {
    ServicePort {
        cluster_ip: cluster_ip.parse().unwrap(),
        port: 80,
        protocol: Protocol::Tcp,
        node_port: 0,
        external_ips: Vec::new(),
        load_balancer_vips: Vec::new(),
        load_balancer_source_ranges: Vec::new(),
        affinity: None,
        external_policy_local: false,
        internal_policy_local: false,
        health_check_node_port: None,
    }
}

/// Syncs with a new process's eyes (`fresh`) or goes on; returns the number of operations.
fn sync(
    node: &Namespace,
    family: Family,
    services: &Services,
    syncer: &mut Option<Syncer>,
    slots: &mut Slots,
) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let nft = Arc::new(NftProgram::in_namespace(&node.path));
    let syncer = syncer.get_or_insert_with(|| Syncer::new(nft, family, TABLE));
    let table = render(&options(family), services, slots).table;
    runtime.block_on(syncer.sync(table)).unwrap().operations
}

/// As iptables-save writes what a kube-proxy of iptables has, what a kubelet has beside it, and somebody else.
const LEFT: &str = "*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-SVC-NPX46M4PTMTKRN6Y - [0:0]
:KUBE-SEP-AAAAAAAAAAAAAAAA - [0:0]
:CNI-X - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A PREROUTING -j CNI-X
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-NPX46M4PTMTKRN6Y
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-SVC-NPX46M4PTMTKRN6Y -m statistic --mode random --probability 0.5 -j KUBE-SEP-AAAAAAAAAAAAAAAA
-A KUBE-SEP-AAAAAAAAAAAAAAAA -s 172.18.0.2/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-AAAAAAAAAAAAAAAA -p tcp -m tcp -j DNAT --to-destination 172.18.0.2:6443
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
COMMIT
*filter
:KUBE-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-A INPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -j DROP
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
COMMIT
*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-PROXY-CANARY - [0:0]
COMMIT
";

#[test]
fn what_a_kube_proxy_of_iptables_left_goes() {
    let restore = || Command::new("iptables-nft-restore");
    if !nix::unistd::geteuid().is_root() || restore().arg("--version").output().is_err() {
        eprintln!("skipped: needs root and iptables-nft");
        return;
    }
    let node = Namespace::new("left");
    let path = node.path.with_extension("rules");
    std::fs::write(&path, LEFT).unwrap();
    let file = path.clone();
    node.run(move || {
        let status = restore().arg("--noflush").arg(file).status();
        assert!(status.unwrap().success());
    });
    std::fs::remove_file(path).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let nft = NftProgram::in_namespace(&node.path);
    for _ in 0..2 {
        let removed = kube_proxy::leftovers::remove(&nft, Family::Ip);
        runtime.block_on(removed).unwrap();
        let removed = kube_proxy::leftovers::remove(&nft, Family::Ip6);
        runtime.block_on(removed).unwrap();
    }
    let rules = node.ruleset();
    let mut left: Vec<&str> = rules
        .split_whitespace()
        .filter(|word| word.starts_with("KUBE-") || word.starts_with("CNI-"))
        .collect();
    left.sort_unstable();
    left.dedup();
    assert_eq!(
        left,
        [
            "CNI-X",
            "KUBE-FIREWALL",
            "KUBE-IPTABLES-HINT",
            "KUBE-KUBELET-CANARY"
        ],
        "{rules}"
    );
    assert!(rules.contains("jump CNI-X") && rules.contains("jump KUBE-FIREWALL"));
}

#[test]
fn services_in_the_kernel() {
    let root = nix::unistd::geteuid().is_root();
    assert!(root, "needs root, to make network namespaces");
    let node = Namespace::new("node");
    node.run(|| {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
    });
    let client = Namespace::new("client");
    node.ip(&format!(
        "link add eth0 type veth peer name eth0 netns {}",
        client.path.display()
    ));
    for (namespace, address) in [(&node, "192.0.2.1/24"), (&client, "192.0.2.9/24")] {
        namespace.ip(&format!("addr add {address} dev eth0"));
        namespace.ip("link set eth0 up");
    }
    client.ip("route add default via 192.0.2.1");
    node.ip("route add default via 192.0.2.9");
    let pods = [pod(&node, 2), pod(&node, 3), pod(&node, 4)];

    let mut services = Services::new();
    let mut plain = port("10.96.0.1");
    plain.node_port = 30_080;
    plain.external_ips = vec!["198.51.100.7".parse().unwrap()];
    service(&mut services, "plain", plain, &[2, 3]);
    let mut sticky = port("10.96.0.2");
    sticky.affinity = Some(Duration::from_secs(60));
    sticky.node_port = 30_081;
    service(&mut services, "sticky", sticky, &[2, 3, 4]);
    service(&mut services, "empty", port("10.96.0.3"), &[]);
    let mut udp = port("10.96.0.4");
    udp.protocol = Protocol::Udp;
    service(&mut services, "udp", udp, &[4]);
    let mut local = port("10.96.0.5");
    local.external_policy_local = true;
    local.load_balancer_vips = vec!["198.51.100.8".parse().unwrap()];
    local.load_balancer_source_ranges = vec!["192.0.2.0/29".parse().unwrap()];
    local.node_port = 30_082;
    service(&mut services, "local", local, &[3]);

    let (mut syncer, mut slots) = (None, Slots::default());
    assert!(sync(&node, Family::Ip, &services, &mut syncer, &mut slots) > 0);
    assert_eq!(
        sync(&node, Family::Ip, &services, &mut syncer, &mut slots),
        0
    );

    // Cluster address, node port, external address.
    let both: BTreeSet<String> = ["pod2".to_string(), "pod3".to_string()].into();
    assert_eq!(answers(&pods[2], "10.96.0.1:80"), both);
    assert_eq!(answers(&client, "192.0.2.1:30080"), both);
    assert_eq!(answers(&client, "198.51.100.7:80"), both);
    assert_eq!(answers(&node, "10.96.0.1:80"), both);
    // A pod's source stays; a client's becomes the node's; a pod that reaches itself is masqueraded.
    assert!(
        ask(&pods[2], "10.96.0.1:80")
            .unwrap()
            .ends_with(" 10.244.1.4")
    );
    assert!(
        ask(&client, "192.0.2.1:30080")
            .unwrap()
            .ends_with(" 10.244.1.1")
    );
    assert_eq!(answers(&pods[0], "10.96.0.1:80"), both);
    // Policy Local keeps the client's address; the balancer lets only its ranges in.
    assert!(
        ask(&client, "192.0.2.1:30082")
            .unwrap()
            .ends_with(" 192.0.2.9")
    );
    assert_eq!(
        ask(&client, "198.51.100.8:80"),
        Err(std::io::ErrorKind::TimedOut)
    );
    assert!(ask(&pods[0], "10.96.0.5:80").unwrap().starts_with("pod3"));
    // No endpoints, no such port: said at once.
    assert_eq!(
        ask(&pods[0], "10.96.0.3:80"),
        Err(std::io::ErrorKind::ConnectionRefused)
    );
    assert_eq!(
        ask(&pods[0], "10.96.0.1:81"),
        Err(std::io::ErrorKind::ConnectionRefused)
    );
    // Affinity: always the same, by each address.
    let chosen = answers(&pods[0], "10.96.0.2:80");
    assert_eq!(chosen.len(), 1);
    // UDP.
    let answer = pods[0].run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(2)))
            .unwrap();
        socket.send_to(b"hello", "10.96.0.4:80").unwrap();
        let mut buffer = [0; 64];
        let (length, from) = socket.recv_from(&mut buffer).unwrap();
        (
            String::from_utf8_lossy(&buffer[..length]).into_owned(),
            from.to_string(),
        )
    });
    assert_eq!(answer, ("pod4".into(), "10.96.0.4:80".into()));

    // A UDP flow that stands stays with its endpoint until that is gone; then it moves, without a new socket.
    let flow = pods[0].run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    flow.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let talk = |flow: &UdpSocket| {
        flow.send_to(b"hello", "10.96.0.4:80").unwrap();
        let mut buffer = [0; 64];
        let (length, _) = flow.recv_from(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    assert_eq!(talk(&flow), "pod4");
    let mut udp = port("10.96.0.4");
    udp.protocol = Protocol::Udp;
    service(&mut services, "udp", udp, &[3]);
    sync(&node, Family::Ip, &services, &mut syncer, &mut slots);
    assert_eq!(talk(&flow), "pod4", "the kernel decides once for each flow");
    let seen = services.clone();
    node.run(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(kube_proxy::conntrack::clean_stale_entries(
            Family::Ip,
            &seen,
        ));
    });
    assert_eq!(talk(&flow), "pod3");

    // A new process adopts everything: not one operation, the same handles, the same affinity.
    let before = node.ruleset();
    let (mut syncer, mut slots) = (None, Slots::default());
    assert_eq!(
        sync(&node, Family::Ip, &services, &mut syncer, &mut slots),
        0
    );
    let handles = |text: &str| {
        text.lines()
            .filter(|line| !line.contains("expires"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(handles(&node.ruleset()), handles(&before));
    assert_eq!(answers(&pods[0], "10.96.0.2:80"), chosen);

    // A connection that stands is not touched by changes; new ones follow them.
    let open = pods[2].run(|| {
        TcpStream::connect_timeout(&"10.96.0.1:80".parse().unwrap(), Duration::from_secs(2))
            .unwrap()
    });
    services
        .get_mut(&NamespacedName {
            namespace: "default".into(),
            name: "plain".into(),
        })
        .unwrap()
        .endpoints
        .values_mut()
        .next()
        .unwrap()
        .remove(0);
    let mut filled = port("10.96.0.3");
    filled.node_port = 30_083;
    service(&mut services, "empty", filled, &[4]);
    assert!(sync(&node, Family::Ip, &services, &mut syncer, &mut slots) > 0);
    assert_eq!(
        answers(&pods[2], "10.96.0.1:80"),
        ["pod3".to_string()].into()
    );
    assert_eq!(
        answers(&pods[2], "10.96.0.3:80"),
        ["pod4".to_string()].into()
    );
    assert_eq!(
        answers(&client, "192.0.2.1:30083"),
        ["pod4".to_string()].into()
    );
    let mut answer = String::new();
    (&open).read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("pod"), "{answer}");
    // What is not used any more is deleted a little later, and all of it at the end.
    std::thread::sleep(Duration::from_millis(1100));
    services.clear();
    sync(&node, Family::Ip, &services, &mut syncer, &mut slots);
    std::thread::sleep(Duration::from_millis(1100));
    sync(&node, Family::Ip, &services, &mut syncer, &mut slots);
    let text = node.ruleset();
    assert!(
        !text.contains("sticky") && !text.contains("chain endpoints-"),
        "{text}"
    );

    // IPv6.
    let mut services = Services::new();
    service(&mut services, "six", port("fd00:96::1"), &[2, 3]);
    let mut sticky = port("fd00:96::2");
    sticky.affinity = Some(Duration::from_secs(60));
    service(&mut services, "sticky", sticky, &[2, 3, 4]);
    let (mut syncer, mut slots) = (None, Slots::default());
    sync(&node, Family::Ip6, &services, &mut syncer, &mut slots);
    assert_eq!(answers(&pods[2], "[fd00:96::1]:80"), both);
    assert_eq!(answers(&pods[2], "[fd00:96::2]:80").len(), 1);
    let (mut syncer, mut slots) = (None, Slots::default());
    assert_eq!(
        sync(&node, Family::Ip6, &services, &mut syncer, &mut slots),
        0
    );
}

/// Prints what 10,000 Services cost. `cargo test -p kube-proxy --test kernel -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn ten_thousand_services() {
    let node = Namespace::new("many");
    let mut services = Services::new();
    for i in 0..10_000u16 {
        let [high, low] = i.to_be_bytes();
        let mut wanted = port(&format!("10.96.{high}.{low}"));
        wanted.node_port = 20_000 + i;
        service(&mut services, &format!("s{i}"), wanted, &[2, 3]);
    }
    let (mut syncer, mut slots) = (None, Slots::default());
    let mut timed = |what: &str, syncer: &mut Option<Syncer>, services: &Services| {
        let cpu = || {
            use nix::sys::resource::{UsageWho, getrusage};
            let seconds = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
            let of = |who| {
                getrusage(who)
                    .map(|u| seconds(u.user_time()) + seconds(u.system_time()))
                    .unwrap()
            };
            (of(UsageWho::RUSAGE_SELF), of(UsageWho::RUSAGE_CHILDREN))
        };
        let (start, before) = (std::time::Instant::now(), cpu());
        let operations = sync(&node, Family::Ip, services, syncer, &mut slots);
        let (elapsed, after) = (start.elapsed(), cpu());
        let (own, nft) = (after.0 - before.0, after.1 - before.1);
        println!(
            "{what}: {elapsed:?}, CPU {own:.3} s here, {nft:.3} s in nft, {operations} operations"
        );
    };
    timed("cold", &mut syncer, &services);
    timed("nothing", &mut syncer, &services);
    service(&mut services, "one-more", port("10.96.200.1"), &[2, 3, 4]);
    timed("one more", &mut syncer, &services);
    let mut fresh = None;
    timed("adopt", &mut fresh, &services);
}
