//! Promise: without a cloud, Services of type LoadBalancer get addresses from a pool, are reached by them from the link, and are reached
//! again within 3 s when the node that announces the address is cut off.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::cluster::Cluster;
use e2e::cluster::lan;
use e2e::cluster::layout::{self, CONTROL_PLANE_IP, netns_path, node_ip};
use e2e::cluster::process::Program;
use e2e::probe::{Namespace, cluster, wait_until};
use e2e::step::{Steps, output};
use serde_json::Value;

/// What is promised.
const AGAIN_WITHIN: Duration = Duration::from_secs(3);
/// How often the announcing node is cut: a few times always, often in the long form.
const CUTS: usize = 3;
const MANY_CUTS: usize = 20;
const POOLS: &str = "pools:
- {name: lan, addresses: [172.30.0.200-172.30.0.202]}
- {name: asked, addresses: [172.30.0.210-172.30.0.211], autoAssign: false}
";
const IMAGE: &str = "registry.k8s.io/e2e-test-images/agnhost:2.66.1";
const PAGES: u16 = 10261;

/// Runs on the machine that is a client on the link: it is no node, and has no rules of kube-proxy's.
fn on_the_lan<T: Send>(cluster: &Cluster, act: impl FnOnce() -> T + Send) -> Result<T> {
    let netns = fs::File::open(netns_path(&cluster.layout.lan_netns()))?;
    // A thread's namespace is its own.
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| -> Result<T> {
            nix::sched::setns(netns.as_fd(), nix::sched::CloneFlags::CLONE_NEWNET)?;
            Ok(act())
        });
        thread.join().expect("the client does not panic")
    })
}

/// What an HTTP server answers, within `timeout` a step.
fn get(to: SocketAddr, path: &str, timeout: Duration) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: x\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Nobody here is in it (TEST-NET-2, RFC 5737).
const STRANGERS: &str = "198.51.100.0/24";

const STEP: Duration = Duration::from_millis(250);

/// Whether the Service behind an address answers a new connection.
fn reaches(cluster: &Cluster, address: IpAddr) -> Result<bool> {
    let to = SocketAddr::new(address, 80);
    let answer = on_the_lan(cluster, || get(to, "/hostname", STEP))?;
    Ok(answer.is_ok_and(|answer| answer.contains(" 200 ")))
}

/// How long it takes from now on until a new connection is answered, and the one after it.
fn reached_again(cluster: &Cluster, address: IpAddr) -> Result<Duration> {
    let to = SocketAddr::new(address, 80);
    let began = Instant::now();
    on_the_lan(cluster, || {
        let works = || get(to, "/hostname", STEP).is_ok_and(|a| a.contains(" 200 "));
        while began.elapsed() < Duration::from_secs(30) {
            if works() {
                let after = began.elapsed();
                if works() {
                    return Ok(after);
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("{address} is not reached again within 30 s")
    })?
}

/// Starts the cloud-controller-manager beside the control plane and an announcer on each node.
fn start(cluster: &mut Cluster) -> Result<()> {
    stop(cluster)?;
    let steps = Steps::new(cluster.outputs.logs())?;
    let programs = ["cloud-controller-manager", "gantry-announcer"];
    e2e::programs::build_ours(&steps, &cluster.outputs, &programs)?;
    let pools = cluster.layout.dir().join("pools.yaml");
    fs::write(&pools, POOLS)?;
    cluster.start(Program {
        name: "cloud-controller-manager".into(),
        argv: vec![
            cluster
                .outputs
                .ours("cloud-controller-manager")
                .display()
                .to_string(),
            "--cloud-provider=gantry".into(),
            format!("--cloud-config={}", pools.display()),
            format!(
                "--kubeconfig={}",
                cluster.layout.kubeconfig("admin-inside").display()
            ),
            "--configure-cloud-routes=false".into(),
            "--leader-elect=false".into(),
            "--secure-port=0".into(),
        ],
        env: Vec::new(),
        place: cluster.control_plane(),
    })?;

    let rights = cluster
        .outputs
        .workspace
        .join("kubelet/announcer/deploy/rbac.yaml");
    cluster.apply(&fs::read_to_string(rights)?)?;
    let token = cluster.kubectl(&[
        "-n",
        "kube-system",
        "create",
        "token",
        "gantry-announcer",
        "--duration=24h",
    ])?;
    let server = format!("https://{CONTROL_PLANE_IP}:{}", layout::API_SERVER_PORT);
    let ca = e2e::cluster::pki::base64(&fs::read(cluster.layout.pki("ca.crt"))?);
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{server: '{server}', certificate-authority-data: {ca}}}}}]\n\
         users: [{{name: u, user: {{token: {}}}}}]\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n",
        token.trim()
    );
    for node in cluster.nodes() {
        let own = cluster.layout.node_dir(&node).join("lib/gantry-announcer");
        fs::create_dir_all(&own)?;
        fs::write(own.join("kubeconfig"), &kubeconfig)?;
        fs::write(own.join("pools.yaml"), POOLS)?;
        let place = cluster.node_place(&node);
        cluster.start(Program {
            name: format!("gantry-announcer-{node}"),
            argv: vec![
                cluster
                    .outputs
                    .ours("gantry-announcer")
                    .display()
                    .to_string(),
                "--cloud-config=/var/lib/gantry-announcer/pools.yaml".into(),
                "--kubeconfig=/var/lib/gantry-announcer/kubeconfig".into(),
                format!("--node-name={node}"),
                format!("--pages-bind-address=127.0.0.1:{PAGES}"),
            ],
            env: Vec::new(),
            place,
        })?;
    }
    Ok(())
}

/// Ends what [`start`] started, in this test or one that failed.
fn stop(cluster: &mut Cluster) -> Result<()> {
    let is_ours = |name: &&String| {
        name.starts_with("gantry-announcer-") || *name == "cloud-controller-manager"
    };
    let names: Vec<String> = cluster
        .state
        .processes
        .keys()
        .filter(is_ours)
        .cloned()
        .collect();
    for name in names {
        cluster.process(&name)?.stop(Duration::from_secs(10))?;
        cluster.state.processes.remove(&name);
    }
    cluster.save()
}

/// A pod of `app` on each of the nodes, and a Service of it.
fn web(nodes: &[&str]) -> String {
    let pod = |node: &&str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web-{node}, labels: {{app: web}}}}\nspec:\n  nodeName: {node}\n  terminationGracePeriodSeconds: 1\n  \
             tolerations: [{{operator: Exists}}]\n  containers:\n  - name: main\n    image: {IMAGE}\n    args: [netexec]\n    \
             readinessProbe: {{httpGet: {{path: /hostname, port: 8080}}, periodSeconds: 1}}\n---\n"
        )
    };
    nodes.iter().map(pod).collect()
}

fn service(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{type: LoadBalancer, selector: {{app: web}}, \
         ports: [{{port: 80, targetPort: 8080}}]{spec}}}\n"
    )
}

fn address(ns: &Namespace<'_>, service: &str) -> Result<Option<IpAddr>> {
    let service = ns.json(&["get", "service", service])?;
    let ingress = &service["status"]["loadBalancer"]["ingress"][0];
    if !ingress.is_null() {
        ensure!(ingress["ipMode"] == "VIP", "{ingress}");
    }
    Ok(ingress["ip"].as_str().map(str::parse).transpose()?)
}

fn wait_address(ns: &Namespace<'_>, service: &str) -> Result<IpAddr> {
    let mut found = None;
    wait_until(
        &format!("an address of {service}"),
        Duration::from_secs(20),
        || {
            found = address(ns, service)?;
            Ok(found.is_some())
        },
    )?;
    found.context("it was found")
}

/// Who announces an address: the node in its Lease.
fn holder(cluster: &Cluster, address: IpAddr) -> Result<Option<String>> {
    let name = format!("gantry-address-{address}");
    let lease = cluster.kubectl(&[
        "-n",
        "kube-system",
        "get",
        "lease",
        &name,
        "--ignore-not-found",
        "-o",
        "json",
    ])?;
    if lease.trim().is_empty() {
        return Ok(None);
    }
    let lease: Value = serde_json::from_str(&lease)?;
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
    Ok(Some(holder.to_owned()).filter(|holder| !holder.is_empty()))
}

fn wait_holder(cluster: &Cluster, address: IpAddr, expect: &str) -> Result<()> {
    wait_until(
        &format!("{address} is announced by {expect}"),
        Duration::from_secs(20),
        || Ok(holder(cluster, address)?.as_deref() == Some(expect)),
    )
}

fn events(ns: &Namespace<'_>, service: &str) -> Result<String> {
    let of = format!("involvedObject.name={service}");
    ns.kubectl(&[
        "get",
        "events",
        "--field-selector",
        &of,
        "-o",
        "jsonpath={range .items[*]}{.reason}: {.message}{'\\n'}{end}",
    ])
}

fn wait_event(ns: &Namespace<'_>, service: &str, expect: &str) -> Result<()> {
    wait_until(
        &format!("the event {expect:?}"),
        Duration::from_secs(20),
        || Ok(events(ns, service)?.contains(expect)),
    )
    .with_context(|| events(ns, service).unwrap_or_default())
}

/// How a node is cut off.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// Its cable: it sees that itself.
    Cable,
    /// The switch's port passes nothing: it sees nothing.
    Port,
}

impl Cut {
    fn set(self, cluster: &Cluster, node: u8, plugged: bool) -> Result<()> {
        match self {
            Self::Cable => lan::set_cable(&cluster.layout, node, plugged),
            Self::Port => {
                let port = format!("port{node}");
                let netns = cluster.layout.lan_netns();
                let change: &[&str] = if plugged {
                    &["link", "set", &port, "master", lan::BRIDGE]
                } else {
                    &["link", "set", &port, "nomaster"]
                };
                lan::ip(Some(&netns), change)
            }
        }
    }
}

fn number(node: &str) -> Result<u8> {
    Ok(node.trim_start_matches("node-").parse()?)
}

/// When a node's announcer last had news of leases, in seconds since 1970.
fn last_news(cluster: &Cluster, node: &str) -> Result<f64> {
    let url = format!("http://127.0.0.1:{PAGES}/metrics");
    let page =
        output(
            cluster
                .node_place(node)
                .command("curl")
                .args(["-sS", "--max-time", "2", &url]),
        )?;
    let name = "gantry_announcer_last_lease_news_timestamp_seconds ";
    let line = page.lines().find_map(|line| line.strip_prefix(name));
    Ok(line.context("no such metric")?.trim().parse()?)
}

/// Waits until a node that was cut off hears of the others' leases again.
fn wait_back(cluster: &Cluster, node: &str) -> Result<()> {
    let mended = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)?
        .as_secs_f64();
    wait_until(&format!("{node} has news"), Duration::from_secs(60), || {
        Ok(last_news(cluster, node)? > mended + 0.5)
    })
}

/// Cuts off the node that announces an address, again and again; the times until it is reached again.
fn cut_and_count(cluster: &Cluster, address: IpAddr, times: usize) -> Result<Vec<Duration>> {
    let mut all = Vec::new();
    for round in 0..times {
        let before = holder(cluster, address)?.context("somebody announces it")?;
        ensure!(
            reaches(cluster, address)?,
            "{address} is not reached before cut {round}"
        );
        let cut = [Cut::Port, Cut::Cable][round % 2];
        cut.set(cluster, number(&before)?, false)?;
        let again = reached_again(cluster, address);
        let after = holder(cluster, address);
        cut.set(cluster, number(&before)?, true)?;
        let (again, after) = (again?, after?);
        eprintln!("cut {round} ({cut:?}) of {before}: reached again after {again:?} by {after:?}");
        ensure!(
            after.is_some() && after.as_ref() != Some(&before),
            "the Lease is still {before}'s"
        );
        all.push(again);
        // The one that is back takes nothing away: no connection fails while it comes back.
        let until = Instant::now() + Duration::from_secs(2);
        let to = SocketAddr::new(address, 80);
        let failed = on_the_lan(cluster, || {
            let mut failed = 0;
            while Instant::now() < until {
                failed += usize::from(get(to, "/hostname", Duration::from_secs(1)).is_err());
                std::thread::sleep(Duration::from_millis(50));
            }
            failed
        })?;
        ensure!(
            failed == 0,
            "{failed} connections failed when {before} came back"
        );
        wait_back(cluster, &before)?;
        ensure!(
            holder(cluster, address)? == after,
            "the address did not stay"
        );
    }
    Ok(all)
}

fn fail_over(times: usize) -> Result<()> {
    let mut cluster = cluster()?;
    start(&mut cluster)?;
    let ns = Namespace::create(&cluster, "load-balancer-cut")?;
    ns.apply(&web(&["node-1", "node-2"]))?;
    ns.apply(&service("web", ", externalTrafficPolicy: Local"))?;
    for pod in ["pod/web-node-1", "pod/web-node-2"] {
        ns.wait_ready(pod, 90)?;
    }
    let address = wait_address(&ns, "web")?;
    wait_until("the address is reached", Duration::from_secs(20), || {
        reaches(&cluster, address)
    })?;
    let mut times = cut_and_count(&cluster, address, times)?;
    times.sort();
    eprintln!("reached again after {times:?}");
    let worst = times.last().context("it was cut")?;
    ensure!(*worst <= AGAIN_WITHIN, "reached again only after {worst:?}");
    ns.delete()?;
    wait_until("the address's lease goes", Duration::from_secs(20), || {
        Ok(holder(&cluster, address)?.is_none())
    })?;
    stop(&mut cluster)
}

#[test]
#[ignore = "measures seconds, alone on the machine; `cargo e2e test load_balancers` runs it"]
fn an_address_moves_within_three_seconds_when_its_node_is_cut() -> Result<()> {
    fail_over(CUTS)
}

#[test]
#[ignore = "minutes; `cargo e2e test load_balancers`"]
fn an_address_moves_twenty_times() -> Result<()> {
    fail_over(MANY_CUTS)
}

#[test]
#[ignore = "minutes; `cargo e2e test load_balancers`"]
fn what_services_may_want_of_a_load_balancer() -> Result<()> {
    let mut cluster = cluster()?;
    start(&mut cluster)?;
    let ns = Namespace::create(&cluster, "load-balancer")?;
    ns.apply(&web(&["node-1"]))?;
    ns.wait_ready("pod/web-node-1", 90)?;
    ns.apply(&service("plain", ", allocateLoadBalancerNodePorts: false"))?;
    let plain = wait_address(&ns, "plain")?;
    ensure!(
        plain == IpAddr::V4(Ipv4Addr::new(172, 30, 0, 200)),
        "{plain}"
    );
    wait_until("it is reached", Duration::from_secs(20), || {
        reaches(&cluster, plain)
    })?;
    let stored = ns.json(&["get", "service", "plain"])?;
    ensure!(stored["spec"]["ports"][0]["nodePort"].is_null(), "{stored}");
    ensure!(
        stored["metadata"]["finalizers"][0] == "service.kubernetes.io/load-balancer-cleanup",
        "{stored}"
    );
    wait_event(
        &ns,
        "plain",
        "AddressAnnounced: 172.30.0.200 is announced by node node-",
    )?;

    local_endpoints(&cluster, &ns)?;
    source_ranges(&cluster, &ns)?;
    wishes(&cluster, &ns)?;
    ns.delete()?;
    wait_until(
        "the leases of addresses go",
        Duration::from_secs(20),
        || {
            let leases = cluster.kubectl(&[
                "-n",
                "kube-system",
                "get",
                "leases",
                "-l",
                "loadbalancer.gantry/lease=address",
                "-o",
                "name",
            ])?;
            Ok(leases.trim().is_empty())
        },
    )?;
    stop(&mut cluster)
}

/// With a local policy the node with the endpoint announces, and its health-check port says so.
fn local_endpoints(cluster: &Cluster, ns: &Namespace<'_>) -> Result<()> {
    ns.apply(&service("local", ", externalTrafficPolicy: Local"))?;
    let local = wait_address(ns, "local")?;
    wait_holder(cluster, local, "node-1")?;
    wait_until("it is reached", Duration::from_secs(20), || {
        reaches(cluster, local)
    })?;
    let stored = ns.json(&["get", "service", "local"])?;
    let port = stored["spec"]["healthCheckNodePort"]
        .as_u64()
        .context("a port")?;
    let port = u16::try_from(port)?;
    for (node, expect) in [(1, " 200 "), (2, " 503 ")] {
        let to = SocketAddr::new(node_ip(node).into(), port);
        let what = format!("the health-check port of node {node} says {expect}");
        wait_until(&what, Duration::from_secs(10), || {
            let answer = on_the_lan(cluster, || get(to, "/healthz", Duration::from_secs(2)))?;
            Ok(answer?.contains(expect))
        })?;
    }
    // The endpoint moves, and the address with it.
    ns.apply(&web(&["node-2"]))?;
    ns.wait_ready("pod/web-node-2", 90)?;
    ns.kubectl(&["delete", "pod", "web-node-1", "--timeout=30s"])?;
    wait_holder(cluster, local, "node-2")?;
    wait_until("it is reached", Duration::from_secs(5), || {
        reaches(cluster, local)
    })?;
    ns.kubectl(&["delete", "service", "local", "--timeout=30s"])
        .map(drop)
}

/// Who is in no range is not let in: not while the rules are made, not when they are there, not after the ranges changed.
fn source_ranges(cluster: &Cluster, ns: &Namespace<'_>) -> Result<()> {
    // An address that no Service had: kube-proxy may still lead that of a Service that just went to its pods.
    ns.apply(&annotated(
        "ranges",
        "172.30.0.211",
        &format!(", loadBalancerSourceRanges: [{STRANGERS}]"),
    ))?;
    let ranges = wait_address(ns, "ranges")?;
    wait_until("somebody announces it", Duration::from_secs(20), || {
        Ok(holder(cluster, ranges)?.is_some())
    })?;
    let stays_out = || {
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(3) {
            ensure!(!reaches(cluster, ranges)?, "who is in no range is let in");
        }
        Ok(())
    };
    let allow = |range: &str| {
        let patch = format!("{{\"spec\": {{\"loadBalancerSourceRanges\": [\"{range}\"]}}}}");
        ns.kubectl(&["patch", "service", "ranges", "--type=merge", "-p", &patch])
    };
    stays_out()?;
    allow(&format!("{CONTROL_PLANE_IP}/32"))?;
    wait_until(
        "who is in a range is let in",
        Duration::from_secs(20),
        || reaches(cluster, ranges),
    )?;
    allow(STRANGERS)?;
    wait_until("the ranges changed", Duration::from_secs(5), || {
        Ok(!reaches(cluster, ranges)?)
    })?;
    stays_out()?;
    ns.kubectl(&["delete", "service", "ranges", "--timeout=30s"])
        .map(drop)
}

/// A Service that wants an address.
fn annotated(name: &str, wanted: &str, spec: &str) -> String {
    let from = format!("metadata: {{name: {name}}}");
    let to = format!(
        "metadata: {{name: {name}, annotations: {{loadbalancer.gantry/addresses: {wanted}}}}}"
    );
    service(name, spec).replace(&from, &to)
}

/// Wanted addresses, classes, sharing, and a pool that has none left.
fn wishes(cluster: &Cluster, ns: &Namespace<'_>) -> Result<()> {
    ns.apply(&annotated(
        "asks",
        "172.30.0.210",
        ", loadBalancerClass: loadbalancer.gantry/announced",
    ))?;
    let asks = wait_address(ns, "asks")?;
    ensure!(asks.to_string() == "172.30.0.210", "{asks}");
    wait_until("it is reached", Duration::from_secs(20), || {
        reaches(cluster, asks)
    })?;
    ns.apply(&annotated("shares", "172.30.0.210", ""))?;
    let refused = "SyncLoadBalancerFailed: Error syncing load balancer: failed to ensure load balancer: the wanted address 172.30.0.210 is that of Service load-balancer/asks; sharing an address is not supported";
    wait_event(ns, "shares", refused)?;
    ns.apply(&service("others", ", loadBalancerClass: example.com/other"))?;

    let mut given: BTreeMap<&str, IpAddr> = BTreeMap::new();
    for name in ["first", "second"] {
        ns.apply(&service(name, ""))?;
        given.insert(name, wait_address(ns, name)?);
    }
    ns.apply(&service("third", ""))?;
    wait_event(ns, "third", "no IPv4 address is left in pool lan")?;
    ns.kubectl(&["delete", "service", "first", "--timeout=30s"])?;
    let third = wait_address(ns, "third")?;
    ensure!(
        third == given["first"],
        "{third} and not {}",
        given["first"]
    );
    wait_until("it is reached", Duration::from_secs(20), || {
        reaches(cluster, third)
    })?;
    ensure!(address(ns, "others")?.is_none(), "another's class");
    Ok(())
}
