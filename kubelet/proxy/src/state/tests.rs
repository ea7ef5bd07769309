use serde_json::json;

use super::*;
use crate::service::PortName;

fn service(spec: serde_json::Value) -> Service {
    serde_json::from_value(json!({ "metadata": { "namespace": "a", "name": "s" }, "spec": spec }))
        .unwrap()
}

fn cluster_ip(port: u16) -> Service {
    service(
        json!({ "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"], "ports": [{ "name": "p", "port": port }] }),
    )
}

fn slice(name: &str, address_type: &str, endpoints: serde_json::Value) -> Arc<EndpointSlice> {
    let slice = json!({
        "metadata": {
            "namespace": "a", "name": name, "labels": { "kubernetes.io/service-name": "s" },
            "annotations": { "endpoints.kubernetes.io/last-change-trigger-time": "2026-01-02T03:04:05.5Z" },
        },
        "addressType": address_type, "endpoints": endpoints, "ports": [{ "name": "p", "port": 80, "protocol": "TCP" }],
    });
    Arc::new(serde_json::from_value(slice).unwrap())
}

/// Endpoints as `address flags`: `!` not ready, `T` serving and terminating, `L` on this node.
fn endpoints(state: &State) -> Vec<String> {
    let name = PortName {
        port: "p".into(),
        protocol: Protocol::Tcp,
    };
    let all = state
        .services()
        .values()
        .flat_map(|entry| entry.endpoints.get(&name).into_iter().flatten());
    all.map(|e| {
        let flag = |on: bool, text: &'static str| if on { text } else { "" };
        format!(
            "{}{}{}{}",
            e.address,
            flag(!e.ready, "!"),
            flag(e.terminating, "T"),
            flag(e.is_local, "L")
        )
    })
    .collect()
}

#[test]
fn only_what_matters_makes_a_change() {
    let mut state = State::new(Family::Ip, "me", true);
    assert!(state.apply_service(&cluster_ip(80)));
    assert!(!state.apply_service(&cluster_ip(80)), "nothing changed");
    assert!(state.apply_service(&cluster_ip(81)));
    assert!(
        !state.apply_slice(&slice("x", "IPv6", json!([{ "addresses": ["fd00::2"] }]))),
        "another family"
    );
    let one = slice(
        "x",
        "IPv4",
        json!([{ "addresses": ["10.0.0.2"], "nodeName": "me" }]),
    );
    assert!(state.apply_slice(&one));
    assert!(!state.apply_slice(&one));
    let changes = state.take_changes();
    assert!(changes.any && !changes.udp);
    assert_eq!(
        (
            changes.services,
            changes.endpoints,
            changes.trigger_times.len()
        ),
        (2, 1, 1)
    );
    assert_eq!(endpoints(&state), ["10.0.0.2L"]);
    assert!(!state.is_changed());
    assert!(state.remove_slice(&one));
    assert!(!state.remove_slice(&one));
    state.take_changes();
    assert!(endpoints(&state).is_empty());
    assert!(state.remove_service(&cluster_ip(81)));
    assert!(!state.remove_service(&cluster_ip(81)));
}

#[test]
fn services_without_a_cluster_address_are_none_of_ours() {
    let mut state = State::new(Family::Ip, "me", true);
    assert!(!state.apply_service(&service(
        json!({ "clusterIP": "None", "ports": [{ "port": 80 }] })
    )));
    let external = json!({ "type": "ExternalName", "externalName": "x", "clusterIP": "10.96.0.1", "ports": [{ "port": 80 }] });
    assert!(!state.apply_service(&service(external)));
    assert!(!state.apply_service(&service(
        json!({ "clusterIP": "fd00::1", "ports": [{ "port": 80 }] })
    )));
    let mut six = State::new(Family::Ip6, "me", true);
    assert!(six.apply_service(&cluster_ip(80)));
    // It becomes headless: gone.
    assert!(state.apply_service(&cluster_ip(80)));
    assert!(state.apply_service(&service(json!({ "clusterIP": "None" }))));
    assert!(state.services().is_empty());
}

#[test]
fn slices_in_any_order_and_overlapping() {
    let mut state = State::new(Family::Ip, "me", true);
    let old = json!([{ "addresses": ["10.0.0.2"], "conditions": { "ready": false, "serving": true, "terminating": true } }]);
    let new = json!([{ "addresses": ["10.0.0.2"] }, { "addresses": ["10.0.0.3"], "conditions": { "ready": false } }]);
    // Endpoints may come before their Service.
    state.apply_slice(&slice("b", "IPv4", new));
    state.apply_slice(&slice("c", "IPv4", old));
    state.take_changes();
    state.apply_service(&cluster_ip(80));
    state.take_changes();
    // Of two pods with one address, the one that is not going.
    assert_eq!(endpoints(&state), ["10.0.0.2", "10.0.0.3!"]);
}

#[test]
fn what_a_service_says() {
    let full = json!({
        "type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"],
        "ports": [{ "name": "p", "port": 80, "nodePort": 30080 }, { "name": "q", "port": 80, "protocol": "UDP" }],
        "externalIPs": ["198.51.100.7", "2001:db8::7"], "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local",
        "sessionAffinity": "ClientIP", "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 10 } },
        "healthCheckNodePort": 32000, "loadBalancerSourceRanges": [" 192.0.2.0/24 ", "fd00::/8"],
    });
    let mut object = service(full);
    let status = json!({ "loadBalancer": { "ingress": [{ "ip": "203.0.113.1" }, { "ip": "203.0.113.2", "ipMode": "Proxy" }, { "hostname": "x" }] } });
    object.status = serde_json::from_value(status).unwrap();
    let mut state = State::new(Family::Ip, "me", true);
    state.apply_service(&object);
    assert!(state.changes().udp);
    let port = state
        .services()
        .values()
        .next()
        .unwrap()
        .ports
        .values()
        .next()
        .unwrap()
        .clone();
    let text = |list: &[std::net::IpAddr]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(text(&port.external_ips), ["198.51.100.7"]);
    let mut without = State::new(Family::Ip, "me", false);
    without.apply_service(&object);
    let mut ports = without.services().values().flat_map(|s| s.ports.values());
    assert!(ports.all(|port| port.external_ips.is_empty()));
    assert_eq!(text(&port.load_balancer_vips), ["203.0.113.1"]);
    assert_eq!(
        port.load_balancer_source_ranges,
        ["192.0.2.0/24".parse().unwrap()]
    );
    assert_eq!(
        (port.node_port, port.health_check_node_port),
        (30080, Some(32000))
    );
    assert_eq!(port.affinity, Some(std::time::Duration::from_secs(10)));
    assert!(port.external_policy_local && port.internal_policy_local);
    // "Everybody" is no restriction.
    object.spec.as_mut().unwrap().load_balancer_source_ranges =
        Some(vec!["192.0.2.0/24".into(), "0.0.0.0/0".into()]);
    assert!(state.apply_service(&object));
    let ports = &state.services().values().next().unwrap().ports;
    assert!(
        ports
            .values()
            .all(|port| port.load_balancer_source_ranges.is_empty())
    );
}
