//! What a host on the link makes of what is said: two network namespaces, the kernel's own neighbour tables. Needs root.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::time::{Duration, Instant};

use announcer::link;
use announcer::packet::Mac;
use announcer::socket::Sockets;
use announcer::speaker::Speaker;
use component_base::shutdown::Shutdown;
use nix::sched::{CloneFlags, setns};

const NODE: &str = "gantry-announcer-node";
const HOST: &str = "gantry-announcer-host";
const FOUR: &str = "192.0.2.7";
const SIX: &str = "fd00:7::7";
const OTHER: &str = "02:00:00:00:00:99";

fn run(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn enter(namespace: &str) {
    let file = File::open(format!("/run/netns/{namespace}")).unwrap();
    setns(file.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
}

/// Two machines with a cable between them.
struct Machines;

impl Machines {
    fn new() -> Self {
        Self::remove();
        run(&format!("ip netns add {NODE} && ip netns add {HOST}"));
        run(&format!(
            "ip -n {NODE} link add eth0 type veth peer name eth0 netns {HOST}"
        ));
        for (namespace, last) in [(NODE, 1), (HOST, 2)] {
            run(&format!(
                "ip -n {namespace} link set lo up && ip -n {namespace} link set eth0 up && ip -n {namespace} addr add 192.0.2.{last}/24 dev eth0 && \
                 ip -n {namespace} addr add fd00:7::{last}/64 dev eth0 nodad"
            ));
        }
        Self
    }

    fn remove() {
        for namespace in [NODE, HOST] {
            let _ = Command::new("ip")
                .args(["netns", "delete", namespace])
                .output();
        }
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        Self::remove();
    }
}

/// The address of a link that the host knows for an IP address.
fn neighbour(address: &str) -> String {
    let line = run(&format!("ip -n {HOST} neigh show {address} dev eth0"));
    let mut words = line.split_whitespace();
    words.find(|word| *word == "lladdr");
    words.next().unwrap_or_default().to_owned()
}

fn wait(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Announces both addresses on the node until the shutdown.
async fn announce(shutdown: Shutdown) {
    let (mut sockets, mut heard) = Sockets::new(&shutdown).unwrap();
    let links = link::read().unwrap();
    let own = links.iter().find(|link| link.name == "eth0").unwrap();
    assert!(own.running && own.reaches(FOUR.parse().unwrap()) && own.reaches(SIX.parse().unwrap()));
    let on = BTreeSet::from([own.index]);
    let begin = Instant::now();
    let mut speaker = Speaker::default();
    speaker.set_links(&links, Duration::ZERO);
    let addresses = [FOUR, SIX].map(|a| a.parse::<IpAddr>().unwrap());
    let hold: BTreeMap<_, _> = addresses.iter().map(|a| (*a, on.clone())).collect();
    speaker.set(hold, true, Duration::ZERO);
    let wanted = BTreeSet::from([(own.index, true), (own.index, false)]);
    sockets.set(&wanted, speaker.groups());
    loop {
        for (link, frame) in speaker.due(begin.elapsed()) {
            sockets.send(link, &frame);
        }
        let pause = speaker.wake().unwrap().saturating_sub(begin.elapsed());
        tokio::select! {
            () = shutdown.triggered() => return,
            Some((link, heard)) = heard.recv() => {
                if let Some((link, frame)) = speaker.hear(link, heard, begin.elapsed()) {
                    sockets.send(link, &frame);
                }
            }
            () = tokio::time::sleep(pause) => {}
        }
    }
}

#[test]
fn hosts_on_the_link_learn_where_an_address_is() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "network namespaces need root"
    );
    let _machines = Machines::new();
    let mac = run(&format!(
        "ip netns exec {NODE} cat /sys/class/net/eth0/address"
    ));
    let mac = mac.trim();
    assert_ne!(mac, OTHER);
    // The host thinks that both are elsewhere: at a node that is gone.
    for address in [FOUR, SIX] {
        run(&format!(
            "ip -n {HOST} neigh replace {address} lladdr {OTHER} dev eth0 nud stale"
        ));
        assert_eq!(neighbour(address), OTHER);
    }
    let shutdown = Shutdown::new();
    let end = shutdown.clone();
    let node = std::thread::spawn(move || {
        enter(NODE);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(announce(end));
    });
    for address in [FOUR, SIX] {
        wait("what is said unasked counts", || neighbour(address) == mac);
    }
    // Questions: of one who knows nothing.
    for address in [FOUR, SIX] {
        run(&format!("ip -n {HOST} neigh del {address} dev eth0"));
    }
    std::thread::spawn(|| {
        enter(HOST);
        for (from, to) in [("0.0.0.0:0", FOUR), ("[::]:0", SIX)] {
            let to: IpAddr = to.parse().unwrap();
            let socket = UdpSocket::bind(from).unwrap();
            socket.send_to(b"x", (to, 9)).unwrap();
        }
    })
    .join()
    .unwrap();
    for address in [FOUR, SIX] {
        wait("questions are answered", || neighbour(address) == mac);
    }
    // One that nobody has.
    assert_eq!(neighbour("192.0.2.8"), "");
    shutdown.trigger();
    node.join().unwrap();
    let text = Mac([2, 0, 0, 0, 0, 0x99]).to_string();
    assert_eq!(text, OTHER);
}
