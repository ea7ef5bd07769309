//! The pod network on real links: every "node" is a network namespace, every "pod" another. Needs root.

#[path = "namespaces/nodes.rs"]
mod nodes;

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use network::{
    Bandwidth, Mode, NetworkError, Peer, PodNetwork, PortMapping, Protocol, SandboxNetwork,
};
use nodes::{
    Namespace, Node, RANGES, ask, connect, needs_root, node_on_a_link, peer, ranges, sandbox, serve,
};

#[test]
fn two_pods_of_one_node() {
    needs_root();
    let node = Node::new("node");
    let (a, b) = (Namespace::new("a"), Namespace::new("b"));
    let of_a = node.setup(sandbox("a", &a), &RANGES).unwrap();
    assert_eq!(
        of_a,
        [
            "10.244.1.2".parse::<IpAddr>().unwrap(),
            "fd00:244:1::2".parse().unwrap()
        ]
    );
    let of_b = node.setup(sandbox("b", &b), &RANGES).unwrap();
    assert_eq!(of_b[0].to_string(), "10.244.1.3");
    serve(&a, 8080);
    serve(&b, 8080);
    assert_eq!(ask(&b, "10.244.1.2:8080").as_deref(), Some("10.244.1.3"));
    assert_eq!(
        ask(&b, "[fd00:244:1::2]:8080").as_deref(),
        Some("fd00:244:1::3")
    );
    assert_eq!(
        ask(&node.namespace, "10.244.1.3:8080").as_deref(),
        Some("10.244.1.1")
    );
    assert_eq!(ask(&a, "127.0.0.1:8080").as_deref(), Some("127.0.0.1"));

    // A restart changes nothing, down to handles and indexes; a second setup gives the same answer.
    let before = node.namespace.kernel_state();
    let again = node.with({
        let sandbox = sandbox("a", &a);
        |network| async move {
            // The range is known from before; no API server is needed for that.
            network.ready().await.unwrap();
            network.set_pod_cidrs(ranges()).await.unwrap();
            network.ready().await.unwrap();
            network.reconcile(&["a".into(), "b".into()]).await.unwrap();
            network.setup(&sandbox).await.unwrap()
        }
    });
    assert_eq!(again, of_a);
    assert_eq!(node.namespace.kernel_state(), before);

    // What nobody claims goes; the rest works on. Twice is once.
    node.with(|network| async move {
        network.set_pod_cidrs(ranges()).await.unwrap();
        network.reconcile(&["b".into()]).await.unwrap();
        assert_eq!(network.addresses("a").await, None);
        assert!(network.addresses("b").await.is_some());
        network.teardown("a").await.unwrap();
    });
    assert!(!a.ip("-o link").contains("eth0"));
    assert_eq!(
        ask(&node.namespace, "10.244.1.3:8080").as_deref(),
        Some("10.244.1.1")
    );
    // An address rests before it is used again.
    let c = Namespace::new("c");
    assert_eq!(
        node.setup(sandbox("c", &c), &RANGES).unwrap()[0].to_string(),
        "10.244.1.4"
    );
    // A namespace that is gone is no obstacle.
    drop(c);
    node.with(|network| async move {
        network.teardown("b").await.unwrap();
        network.teardown("c").await.unwrap();
    });
    assert!(!node.namespace.ip("-o link").contains("veth"));
    assert_eq!(
        std::fs::read_dir(node.state.join("sandboxes"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn host_ports() {
    needs_root();
    let (node, outside) = node_on_a_link();
    node.namespace
        .run(|| std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1").unwrap());
    let (a, b) = (Namespace::new("a"), Namespace::new("b"));
    let mapping = PortMapping {
        protocol: Protocol::Tcp,
        container_port: 80,
        host_port: 8080,
        host_ip: None,
    };
    let mut of_a = sandbox("a", &a);
    of_a.port_mappings = vec![mapping.clone()];
    of_a.bandwidth = Bandwidth {
        ingress_bits_per_second: Some(100_000_000),
        egress_bits_per_second: Some(100_000_000),
    };
    node.setup(of_a.clone(), &RANGES).unwrap();
    node.setup(sandbox("b", &b), &RANGES).unwrap();
    serve(&a, 80);
    assert_eq!(
        ask(&outside, "192.0.2.1:8080").as_deref(),
        Some("192.0.2.9")
    );
    assert_eq!(ask(&b, "192.0.2.1:8080").as_deref(), Some("10.244.1.3"));
    assert_eq!(
        ask(&node.namespace, "192.0.2.1:8080").as_deref(),
        Some("192.0.2.1")
    );
    assert!(ask(&node.namespace, "127.0.0.1:8080").is_some());
    assert!(
        ask(&a, "192.0.2.1:8080").is_some(),
        "a pod reaches itself by its host port"
    );
    for namespace in [&node.namespace, &a] {
        let net = format!("--net={}", namespace.path.display());
        let output = Command::new("nsenter")
            .args([&net, "tc", "qdisc", "show"])
            .output()
            .unwrap();
        let buckets = String::from_utf8(output.stdout).unwrap();
        assert!(
            buckets.contains("tbf 1: ") && buckets.contains("rate 100Mbit"),
            "{buckets}"
        );
    }
    // Out of the cluster, as the node.
    serve(&outside, 81);
    assert_eq!(ask(&a, "192.0.2.9:81").as_deref(), Some("192.0.2.1"));

    let mut taken = sandbox("c", &b);
    taken.port_mappings = vec![mapping];
    let error = node.setup(taken, &RANGES).unwrap_err();
    assert!(
        matches!(
            error,
            NetworkError::HostPortConflict {
                host_port: 8080,
                ..
            }
        ),
        "{error}"
    );

    let before = node.namespace.nft();
    node.with(|network| async move {
        network.set_pod_cidrs(ranges()).await.unwrap();
        network.reconcile(&["a".into(), "b".into()]).await.unwrap();
    });
    assert_eq!(node.namespace.nft(), before);
    node.with(|network| async move {
        network.set_pod_cidrs(ranges()).await.unwrap();
        network.teardown("a").await.unwrap();
    });
    assert_eq!(ask(&outside, "192.0.2.1:8080"), None);
}

/// What one teardown leaves out another that runs meanwhile must not write again.
#[test]
fn host_ports_that_go_at_once_leave_no_rule() {
    needs_root();
    let node = Node::new("node");
    let pods: Vec<_> = (0..8u16)
        .map(|n| (n, Namespace::new(&format!("h{n}"))))
        .collect();
    for (n, pod) in &pods {
        let mut wanted = sandbox(&format!("s{n}"), pod);
        wanted.port_mappings = vec![PortMapping {
            protocol: Protocol::Tcp,
            container_port: 80,
            host_port: 9000 + n,
            host_ip: None,
        }];
        node.setup(wanted, &RANGES).unwrap();
    }
    assert!(node.namespace.nft().contains("9007"));
    node.with(|network| async move {
        network.set_pod_cidrs(ranges()).await.unwrap();
        let all = (0..8).map(|n| {
            let network = network.clone();
            async move { network.teardown(&format!("s{n}")).await }
        });
        for result in futures::future::join_all(all).await {
            result.unwrap();
        }
    });
    let left = node.namespace.nft();
    assert!(!left.contains(" . 90"), "{left}");
    assert!(!left.contains("10.244.1.2"), "{left}");
}

/// Pods of two nodes reach each other; returns the nodes' routes.
fn two_nodes(one: &Node, one_address: &str, two: &Node, two_address: &str) -> (String, String) {
    let (a, b) = (Namespace::new("a"), Namespace::new("b"));
    for (node, other, own, range, pod, id) in [
        (one, two_address, "10.244.1.0/24", "10.244.2.0/24", &a, "a"),
        (two, one_address, "10.244.2.0/24", "10.244.1.0/24", &b, "b"),
    ] {
        let peers = vec![peer(other, range)];
        let sandbox = sandbox(id, pod);
        node.with(move |network| async move {
            network
                .set_pod_cidrs(vec![own.parse().unwrap()])
                .await
                .unwrap();
            network.set_peers(peers.clone()).await.unwrap();
            network.setup(&sandbox).await.unwrap();
        });
        let before = node.namespace.kernel_state();
        let peers = vec![peer(other, range)];
        node.with(move |network| async move {
            network
                .set_pod_cidrs(vec![own.parse().unwrap()])
                .await
                .unwrap();
            network.set_peers(peers).await.unwrap();
        });
        assert_eq!(node.namespace.kernel_state(), before);
    }
    serve(&a, 80);
    serve(&b, 80);
    assert_eq!(ask(&a, "10.244.2.2:80").as_deref(), Some("10.244.1.2"));
    assert_eq!(ask(&b, "10.244.1.2:80").as_deref(), Some("10.244.2.2"));
    let routes = (one.namespace.ip("route"), two.namespace.ip("route"));
    one.with(|network| async move {
        network
            .set_pod_cidrs(vec!["10.244.1.0/24".parse().unwrap()])
            .await
            .unwrap();
        network.set_peers(Vec::new()).await.unwrap();
        network.teardown("a").await.unwrap();
    });
    assert!(!one.namespace.ip("route").contains("10.244.2.0"));
    assert!(!one.namespace.ip("-o link").contains("vxlan"));
    routes
}

#[test]
fn two_nodes_on_one_link() {
    needs_root();
    let (one, two) = (Node::new("one"), Node::new("two"));
    connect(
        &one.namespace,
        "eth0",
        "192.0.2.1/24",
        &two.namespace,
        "eth0",
        "192.0.2.2/24",
    );
    let (routes, _) = two_nodes(&one, "192.0.2.1", &two, "192.0.2.2");
    assert!(routes.contains("10.244.2.0/24 via 192.0.2.2"), "{routes}");
}

#[test]
fn two_nodes_behind_a_router() {
    needs_root();
    let (one, two, router) = (Node::new("one"), Node::new("two"), Namespace::new("router"));
    connect(
        &one.namespace,
        "eth0",
        "192.0.2.1/24",
        &router,
        "eth0",
        "192.0.2.254/24",
    );
    connect(
        &two.namespace,
        "eth0",
        "198.51.100.1/24",
        &router,
        "eth1",
        "198.51.100.254/24",
    );
    router.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
    one.namespace.ip("route add default via 192.0.2.254");
    two.namespace.ip("route add default via 198.51.100.254");
    let (routes, _) = two_nodes(&one, "192.0.2.1", &two, "198.51.100.1");
    assert!(
        routes.contains("10.244.2.0/24 via 10.244.2.0 dev gantry-vxlan"),
        "{routes}"
    );
}

#[test]
fn cni_plugins_where_a_configuration_is() {
    needs_root();
    let node = Node::new("node");
    let pod = Namespace::new("pod");
    let (conf, bin) = (node.state.join("cni"), node.state.join("bin"));
    std::fs::create_dir_all(&conf).unwrap();
    std::fs::create_dir_all(&bin).unwrap();
    // Two plugins that note what they are told; the first gives an address, the second passes the result on.
    let log = node.state.join("log");
    let note = format!(
        "#!/bin/sh\ninput=$(cat)\necho \"$0 $CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $CNI_ARGS $input\" >> {}\n",
        log.display()
    );
    let first = format!(
        "{note}[ $CNI_COMMAND = DEL ] || echo '{{\"cniVersion\":\"1.0.0\",\"ips\":[{{\"address\":\"10.1.2.3/24\"}}]}}'\n"
    );
    let second = format!(
        "{note}[ $CNI_COMMAND = DEL ] || echo \"$input\" | sed 's/.*\"prevResult\":\\({{.*}}\\),\"run.*/\\1/'\n"
    );
    write_program(&bin.join("first"), &first);
    write_program(&bin.join("second"), &second);
    std::fs::write(conf.join("05-broken.conf"), "{").unwrap();
    std::fs::write(
        conf.join("10-test.conflist"),
        r#"{"cniVersion":"1.0.0","name":"test","plugins":[{"type":"first"},{"type":"second","capabilities":{"portMappings":true}}]}"#,
    )
    .unwrap();
    let mut wanted = sandbox("s", &pod);
    wanted.port_mappings = vec![PortMapping {
        protocol: Protocol::Udp,
        container_port: 53,
        host_port: 5353,
        host_ip: None,
    }];
    let mut config = node.config();
    config.cni_bin_dirs = vec![bin.clone()];
    let run =
        |work: fn(PodNetwork, SandboxNetwork) -> futures::future::LocalBoxFuture<'static, ()>| {
            let (config, wanted) = (config.clone(), wanted.clone());
            node.namespace.run(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    work(PodNetwork::open(config).await.unwrap(), wanted).await
                });
            });
        };
    run(|network, wanted| {
        Box::pin(async move {
            network.ready().await.unwrap();
            let addresses = network.setup(&wanted).await.unwrap();
            assert_eq!(addresses, ["10.1.2.3".parse::<IpAddr>().unwrap()]);
        })
    });
    // The configuration is gone; DEL goes by what was kept.
    std::fs::remove_dir_all(&conf).unwrap();
    run(|network, _| {
        Box::pin(async move {
            assert!(network.addresses("s").await.is_some());
            network.reconcile(&[]).await.unwrap();
            network.teardown("s").await.unwrap();
        })
    });
    let log = std::fs::read_to_string(log).unwrap();
    let calls: Vec<_> = log.lines().collect();
    let order: Vec<_> = calls
        .iter()
        .map(|call| {
            call.split(' ')
                .take(2)
                .map(|w| w.rsplit('/').next().unwrap())
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect();
    assert_eq!(
        order,
        ["first ADD", "second ADD", "second DEL", "first DEL"]
    );
    assert!(
        calls[1].contains(r#""hostPort":5353"#) && !calls[0].contains("hostPort"),
        "{log}"
    );
    assert!(calls.iter().all(|call| call.contains("K8S_POD_NAME=s;")));
    assert!(
        calls[1..]
            .iter()
            .all(|call| call.contains(r#""prevResult""#)),
        "{log}"
    );
}

/// Whoever waits for a CNI daemon's file gets no pod on the built-in network meanwhile; the file counts as soon as it is there.
#[test]
fn modes_say_who_connects_pods() {
    needs_root();
    let node = Node::new("node");
    let pod = Namespace::new("pod");
    let conf = node.state.join("cni");
    std::fs::create_dir_all(&conf).unwrap();
    let file = conf.join("10-test.conflist");
    let text = r#"{"cniVersion":"1.0.0","name":"test","plugins":[{"type":"none"}]}"#;
    let wanted = sandbox("s", &pod);
    let run = |mode, table: &str, written: bool| {
        let mut config = node.config();
        (config.mode, config.table) = (mode, table.to_owned());
        let (wanted, file) = (wanted.clone(), file.clone());
        node.namespace.run(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let network = PodNetwork::open(config).await.unwrap();
                let synced = network
                    .set_pod_cidrs(vec!["10.244.1.0/24".parse().unwrap()])
                    .await;
                if written {
                    // After it was opened: nobody is told.
                    std::fs::write(&file, text).unwrap();
                }
                let ready = network.ready().await.map_err(|error| error.to_string());
                let set_up = network.setup(&wanted).await;
                network.teardown("s").await.unwrap();
                (synced.map_err(|error| error.to_string()), ready, set_up)
            })
        })
    };
    let (_, ready, set_up) = run(Mode::Cni, "gantry-pods", false);
    assert_eq!(
        ready.unwrap_err(),
        "Network plugin returns error: cni config uninitialized"
    );
    assert!(
        matches!(set_up, Err(NetworkError::NotReady(_))),
        "{set_up:?}"
    );
    // No route and no table of ours either.
    assert!(
        !node.namespace.ip("addr").contains("10.244.1"),
        "the node's part was made"
    );
    let (_, ready, set_up) = run(Mode::Cni, "gantry-pods", true);
    assert_eq!(ready, Ok(()));
    assert!(
        matches!(&set_up, Err(NetworkError::Cni { plugin, .. }) if plugin == "none"),
        "{set_up:?}"
    );
    let (_, ready, set_up) = run(Mode::BuiltIn, "gantry-pods", false);
    assert_eq!(ready, Ok(()));
    assert_eq!(
        set_up.unwrap(),
        ["10.244.1.2".parse::<IpAddr>().unwrap()],
        "the file is there and does not count"
    );
    // What the node itself lacks (here: a table that nft refuses) is said until it is mended.
    let (synced, ready, _) = run(Mode::BuiltIn, "no{table", false);
    let (synced, ready) = (synced.unwrap_err(), ready.unwrap_err());
    assert!(ready.ends_with(&synced), "{ready} {synced}");
    assert_eq!(run(Mode::BuiltIn, "gantry-pods", false).1, Ok(()));
}

fn write_program(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Ranges that join and part again in one set: each step is one transaction that nft takes.
#[test]
fn peers_come_and_go() {
    needs_root();
    let (node, _outside) = node_on_a_link();
    let steps: [&[u8]; 8] = [
        &[2],
        &[2, 3],
        &[3],
        &[0, 2, 3],
        &[0, 2, 3, 4, 5, 6, 7],
        &[7, 5],
        &[],
        &[4, 5],
    ];
    node.with(move |network| async move {
        network.set_pod_cidrs(ranges()).await.unwrap();
        for step in steps {
            let of = |n: &u8| peer(&format!("192.0.2.{}", 10 + n), &format!("10.244.{n}.0/24"));
            network
                .set_peers(step.iter().map(of).collect())
                .await
                .unwrap();
        }
    });
    let routes = node.namespace.ip("route show proto 71");
    assert_eq!(routes.matches(" via ").count(), 2, "{routes}");
    let rules = node.namespace.nft();
    assert!(
        rules.contains("{ 10.244.1.0/24, 10.244.4.0/23 }"),
        "{rules}"
    );
}

#[test]
fn a_range_that_is_somebody_elses_has_no_route() {
    needs_root();
    let (node, _outside) = node_on_a_link();
    node.with(|network| async move {
        let own = ranges();
        network.set_pod_cidrs(own).await.unwrap();
        let claims = [
            ("192.0.2.11", "10.244.2.0/24"),
            ("192.0.2.12", "192.0.2.0/28"),
            ("192.0.2.13", "10.244.1.0/25"),
            ("192.0.2.14", "0.0.0.0/0"),
        ];
        let peers = claims
            .iter()
            .enumerate()
            .map(|(at, (address, range))| Peer {
                node: at.to_string(),
                ..peer(address, range)
            });
        network.set_peers(peers.collect()).await.unwrap();
    });
    let routes = node.namespace.ip("route show proto 71");
    let by_others: Vec<_> = routes.lines().filter(|r| r.contains(" via ")).collect();
    assert_eq!(by_others.len(), 1, "{routes}");
    assert!(by_others[0].starts_with("10.244.2.0/24 "), "{routes}");
    let rules = node.namespace.nft();
    assert!(!rules.contains("192.0.2.0/28"), "{rules}");
}

#[test]
fn what_others_take_away_is_mended() {
    needs_root();
    let (node, _outside) = node_on_a_link();
    node.with(|network| async move {
        network
            .set_pod_cidrs(vec!["10.244.1.0/24".parse().unwrap()])
            .await
            .unwrap();
        network
            .set_peers(vec![peer("192.0.2.12", "10.244.2.0/24")])
            .await
            .unwrap();
        // A firewall's start, and a network manager's.
        for command in ["nft flush ruleset", "ip route flush proto 71"] {
            let mut words = command.split(' ');
            let mut program = Command::new(words.next().unwrap());
            assert!(program.args(words).status().unwrap().success(), "{command}");
        }
        network.resync().await.unwrap();
    });
    let routes = node.namespace.ip("route show proto 71");
    assert!(routes.contains("10.244.2.0/24 via 192.0.2.12"), "{routes}");
    let rules = node.namespace.nft();
    assert!(rules.contains("table ip gantry-pods"), "{rules}");
}

/// Prints what connecting and disconnecting a pod takes.
#[test]
#[ignore = "a measurement"]
fn how_long_a_pod_takes() {
    let node = Node::new("node");
    let pods: Vec<_> = (0..50).map(|n| Namespace::new(&format!("p{n}"))).collect();
    let sandboxes: Vec<_> = pods
        .iter()
        .enumerate()
        .map(|(n, pod)| sandbox(&format!("s{n}"), pod))
        .collect();
    node.with(|network| async move {
        network
            .set_pod_cidrs(vec!["10.244.1.0/24".parse().unwrap()])
            .await
            .unwrap();
        let start = std::time::Instant::now();
        for sandbox in &sandboxes {
            network.setup(sandbox).await.unwrap();
        }
        println!("setup {:?} each", start.elapsed() / 50);
        let start = std::time::Instant::now();
        for sandbox in &sandboxes {
            network.teardown(&sandbox.sandbox_id).await.unwrap();
        }
        println!("teardown {:?} each", start.elapsed() / 50);
    });
}
