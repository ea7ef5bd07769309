use super::*;
use k8s_openapi::api::core::v1::{Container, NodeSpec, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

fn pod(cpu: &str, host_port: i32) -> Pod {
    Pod {
        spec: Some(PodSpec {
            containers: vec![Container {
                ports: Some(vec![ContainerPort {
                    container_port: 1,
                    host_port: Some(host_port),
                    ..Default::default()
                }]),
                resources: Some(ResourceRequirements {
                    requests: Some([("cpu".to_owned(), Quantity(cpu.into()))].into()),
                    ..Default::default()
                }),
                ..Default::default()
            }],
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn check(pod: &Pod, active: Vec<Pod>, node: Node) -> Result<(), String> {
    let allocatable = [("cpu", "1"), ("pods", "2")]
        .map(|(k, v)| (k.to_owned(), Quantity(v.into())))
        .into();
    let active: Vec<Arc<Pod>> = active.into_iter().map(Arc::new).collect();
    let input = AdmissionInput {
        node: &node,
        allocatable: &allocatable,
        active: &active,
        allowed_unsafe_sysctls: &[],
        apparmor: false,
        memory_pressure: false,
        disk_pressure: false,
        declared_features: &[],
        pid_pressure: false,
        is_of_plugin: &|name| name == "example.com/gpu",
    };
    match decide(pod, &input, true) {
        Verdict::Admit => Ok(()),
        Verdict::Reject(r) => Err(format!("{}|{}", r.reason, r.message)),
        other => Err(format!("{other:?}")),
    }
}

#[test]
fn want_of_room_is_no_reason_against_a_critical_pod() {
    let mut critical = pod("600m", 80);
    critical.spec.as_mut().unwrap().priority = Some(2_000_000_000);
    let refused = check(
        &critical,
        vec![pod("500m", 0), pod("0", 0)],
        Node::default(),
    );
    assert_eq!(
        refused.unwrap_err(),
        "Preempt([Shortage { resource: \"pods\", requested: 1, used: 2, capacity: 2 }, \
         Shortage { resource: \"cpu\", requested: 600, used: 500, capacity: 1000 }])"
    );
    // What no pod that goes would mend is.
    let refused = check(&critical, vec![pod("500m", 80)], Node::default()).unwrap_err();
    assert!(refused.starts_with("NodePorts|"), "{refused}");
}

#[test]
fn the_node_is_never_committed_past_its_allocatable() {
    assert_eq!(check(&pod("1", 0), vec![], Node::default()), Ok(()));
    assert_eq!(
        check(&pod("600m", 0), vec![pod("500m", 0)], Node::default()).unwrap_err(),
        "OutOfcpu|Node didn't have enough resource: cpu, requested: 600, used: 500, capacity: 1000"
    );
    assert!(
        check(
            &pod("0", 0),
            vec![pod("0", 0), pod("0", 0)],
            Node::default()
        )
        .unwrap_err()
        .starts_with("OutOfpods|")
    );
}

#[test]
fn ports_of_the_node_are_one_pods() {
    let with = |ports: &[(i32, &str, &str)]| {
        let port = |(number, protocol, address): &(i32, &str, &str)| ContainerPort {
            container_port: 1,
            host_port: Some(*number),
            protocol: (!protocol.is_empty()).then(|| (*protocol).to_owned()),
            host_ip: (!address.is_empty()).then(|| (*address).to_owned()),
            ..Default::default()
        };
        let mut pod = pod("0", 0);
        let spec = pod.spec.as_mut().unwrap();
        spec.containers[0].ports = Some(ports.iter().map(port).collect());
        pod
    };
    let one = (80, "", "10.0.0.1");
    for (taken, wanted, free) in [
        (one, (80, "TCP", "10.0.0.1"), false),
        (one, (80, "TCP", "10.0.0.2"), true),
        (one, (80, "TCP", ""), false),
        (one, (80, "TCP", "0.0.0.0"), false),
        (one, (80, "UDP", "10.0.0.1"), true),
        (one, (81, "TCP", "10.0.0.1"), true),
        ((80, "TCP", "::"), (80, "TCP", "10.0.0.2"), false),
        ((80, "TCP", ""), (80, "TCP", ""), false),
    ] {
        let got = check(&with(&[wanted]), vec![with(&[taken])], Node::default());
        assert_eq!(got.is_ok(), free, "{taken:?} {wanted:?} {got:?}");
    }
    // As many as a pod's object holds, one number at many addresses: nobody else waits for minutes.
    let addresses: Vec<String> = (0..30_000)
        .map(|n| format!("10.1.{}.{}", n / 250, n % 250))
        .collect();
    let many = |at: usize| -> Vec<(i32, &str, &str)> {
        let mine = addresses.iter().skip(at).step_by(2);
        mine.map(|address| (80, "TCP", address.as_str())).collect()
    };
    let begun = std::time::Instant::now();
    assert_eq!(
        check(&with(&many(0)), vec![with(&many(1))], Node::default()),
        Ok(())
    );
    assert!(begun.elapsed() < std::time::Duration::from_secs(10));
}

/// Whoever names the node himself may ask for all that a number holds: the loop that decides lives on, and says no.
#[test]
fn the_largest_request_is_refused_like_any() {
    let all = "9223372036854775807";
    let refused = check(&pod(all, 0), vec![pod("500m", 0)], Node::default()).unwrap_err();
    assert!(refused.starts_with("OutOfcpu|"), "{refused}");
    // Nor do such pods together leave room for others.
    let refused = check(&pod("1m", 0), vec![pod(all, 0)], Node::default()).unwrap_err();
    assert!(refused.starts_with("OutOfcpu|"), "{refused}");
    let mut critical = pod(all, 0);
    critical.spec.as_mut().unwrap().priority = Some(2_000_000_000);
    let refused = check(&critical, vec![pod(all, 0)], Node::default()).unwrap_err();
    assert!(refused.starts_with("Preempt("), "{refused}");
    let short = Shortage {
        resource: "cpu".into(),
        requested: i64::MAX,
        used: i64::MAX,
        capacity: 0,
    };
    assert_eq!(short.missing(), i64::MAX);
}

#[test]
fn profiles_need_a_node_that_enforces_them() {
    let mut confined = pod("0", 0);
    confined.spec.as_mut().unwrap().security_context =
        Some(k8s_openapi::api::core::v1::PodSecurityContext {
            app_armor_profile: Some(k8s_openapi::api::core::v1::AppArmorProfile {
                type_: "RuntimeDefault".into(),
                ..Default::default()
            }),
            ..Default::default()
        });
    assert_eq!(
        check(&confined, vec![], Node::default()).unwrap_err(),
        "AppArmor|Cannot enforce AppArmor: AppArmor is not enabled on the host"
    );
    confined.status = Some(k8s_openapi::api::core::v1::PodStatus {
        phase: Some("Running".into()),
        ..Default::default()
    });
    assert_eq!(check(&confined, vec![], Node::default()), Ok(()));
}

#[test]
fn extended_resources_are_what_the_node_says() {
    let node: Node = serde_json::from_value(serde_json::json!({
        "status": {"allocatable": {"example.com/dongle": "2", "example.com/gpu": "1", "cpu": "100"}},
    }))
    .unwrap();
    let wants = |name: &str, count: &str| -> Pod {
        serde_json::from_value(serde_json::json!({"spec": {"containers": [
            {"name": "c", "resources": {"requests": {name: count}}},
        ]}}))
        .unwrap()
    };
    let check = |pod: &Pod, active: Vec<Pod>| check(pod, active, node.clone());
    let dongle = "example.com/dongle";
    assert_eq!(check(&wants(dongle, "2"), vec![]), Ok(()));
    let refused = check(&wants(dongle, "1"), vec![wants(dongle, "2")]).unwrap_err();
    assert!(refused.starts_with("OutOfexample.com/dongle|"), "{refused}");
    // One of the cluster, not of the node.
    assert_eq!(check(&wants("example.com/other", "1"), vec![]), Ok(()));
    // A plugin's: its devices are given out one by one, after this.
    assert_eq!(check(&wants("example.com/gpu", "9"), vec![]), Ok(()));
    let refused = check(&wants("cpu", "2"), vec![]).unwrap_err();
    assert!(refused.starts_with("OutOfcpu|"), "{refused}");
}

#[test]
fn short_of_memory_the_node_takes_who_tolerates_just_that() {
    let allocatable = [("cpu", "1"), ("pods", "2")]
        .map(|(k, v)| (k.to_owned(), Quantity(v.into())))
        .into();
    let check = |toleration: serde_json::Value, admitted: bool| {
        let node = Node::default();
        let input = AdmissionInput {
            node: &node,
            allocatable: &allocatable,
            active: &[],
            allowed_unsafe_sysctls: &[],
            apparmor: false,
            memory_pressure: true,
            disk_pressure: false,
            declared_features: &[],
            pid_pressure: false,
            is_of_plugin: &|_| false,
        };
        let spec = serde_json::json!({"containers": [{"name": "c"}], "tolerations": [toleration]});
        let pod: Pod = serde_json::from_value(serde_json::json!({ "spec": spec })).unwrap();
        let got = decide(&pod, &input, true) == Verdict::Admit;
        assert_eq!(got, admitted, "{toleration}");
    };
    let key = "node.kubernetes.io/memory-pressure";
    check(serde_json::json!({"key": key, "operator": "Exists"}), true);
    check(
        serde_json::json!({"key": key, "operator": "Exists", "effect": "NoSchedule"}),
        true,
    );
    check(serde_json::json!({"operator": "Exists"}), true);
    check(serde_json::json!({"key": "", "operator": "Exists"}), true);
    check(
        serde_json::json!({"key": key, "operator": "Exists", "effect": "NoExecute"}),
        false,
    );
    check(
        serde_json::json!({"key": key, "operator": "Equal", "value": "x"}),
        false,
    );
    check(
        serde_json::json!({"key": "node.kubernetes.io/disk-pressure", "operator": "Exists"}),
        false,
    );
}

#[test]
fn sysctls_of_the_pods_own_are_safe_others_must_be_allowed() {
    let check = |name: &str, allowed: &[String]| {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "spec": {"containers": [], "securityContext": {"sysctls": [{"name": name, "value": "1"}]}},
        }))
        .unwrap();
        sysctls(&pod, allowed).map_err(|r| r.message)
    };
    for safe in [
        "kernel.shm_rmid_forced",
        "net.ipv4.tcp_slow_start_after_idle",
        "net.ipv4.tcp_notsent_lowat",
        "net/ipv4/tcp_rmem",
    ] {
        assert_eq!(check(safe, &[]), Ok(()), "{safe}");
    }
    assert_eq!(
        check("net.core.somaxconn", &[]).unwrap_err(),
        "forbidden sysctl: \"net.core.somaxconn\" not allowlisted"
    );
    assert_eq!(check("net.core.somaxconn", &["net.core.*".into()]), Ok(()));
}

#[test]
fn ports_and_selectors() {
    assert_eq!(
        check(&pod("0", 80), vec![pod("0", 80)], Node::default()).unwrap_err(),
        "NodePorts|Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"
    );
    let mut picky = pod("0", 0);
    picky.spec.as_mut().unwrap().node_selector = Some([("a".to_owned(), "b".to_owned())].into());
    assert!(
        check(&picky, vec![], Node::default())
            .unwrap_err()
            .starts_with("NodeAffinity|")
    );
}

#[test]
fn nothing_is_held_against_a_pod_that_an_unread_node_does_not_have() {
    let allocatable = [("cpu", "1"), ("pods", "2")]
        .map(|(k, v)| (k.to_owned(), Quantity(v.into())))
        .into();
    let decide = |pod: &Pod, node: &Node, read: bool| {
        let input = AdmissionInput {
            node,
            allocatable: &allocatable,
            active: &[],
            allowed_unsafe_sysctls: &[],
            apparmor: false,
            memory_pressure: false,
            disk_pressure: false,
            declared_features: &[],
            pid_pressure: false,
            is_of_plugin: &|_| false,
        };
        super::decide(pod, &input, read)
    };
    let mut picky = pod("0", 0);
    picky.spec.as_mut().unwrap().node_selector = Some([("zone".to_owned(), "b".to_owned())].into());
    let mut fixed = picky.clone();
    fixed.metadata.annotations =
        Some([(pod::CONFIG_SOURCE_ANNOTATION.to_owned(), "file".to_owned())].into());
    let bare = Node::default();
    let mut labelled = Node::default();
    labelled.metadata.labels = picky.spec.as_ref().unwrap().node_selector.clone();
    // A pod of the API server waits, fit or not; so 65 of them at a restart.
    for node in [&bare, &labelled] {
        assert_eq!(decide(&picky, node, false), Verdict::Wait);
        assert_eq!(decide(&pod("0", 0), node, false), Verdict::Wait);
    }
    assert_eq!(decide(&picky, &labelled, true), Verdict::Admit);
    assert!(
        matches!(decide(&picky, &bare, true), Verdict::Reject(r) if r.reason == "NodeAffinity")
    );
    // A static pod runs without an API server, if the node as it registers will do.
    assert_eq!(decide(&fixed, &labelled, false), Verdict::Admit);
    assert_eq!(decide(&fixed, &bare, false), Verdict::Wait);
    assert!(matches!(decide(&fixed, &bare, true), Verdict::Reject(_)));
}

#[test]
fn no_execute_taints_reject() {
    let taint = Taint {
        key: "k".into(),
        effect: "NoExecute".into(),
        ..Default::default()
    };
    let node = Node {
        spec: Some(NodeSpec {
            taints: Some(vec![taint]),
            ..Default::default()
        }),
        ..Default::default()
    };
    assert!(
        check(&pod("0", 0), vec![], node)
            .unwrap_err()
            .starts_with("TaintToleration|")
    );
}
