use super::*;

fn pod(value: serde_json::Value) -> Pod {
    serde_json::from_value(value).unwrap()
}

use k8s_openapi::serde_json::{self, json};

#[test]
fn availability() {
    let ready = |status: &str, since: &str| {
        pod(
            json!({"status": {"conditions": [{"type": "Ready", "status": status, "lastTransitionTime": since}]}}),
        )
    };
    let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
    for (pod, seconds, expect) in [
        (ready("True", "2026-01-01T00:00:30Z"), 0, true),
        (ready("True", "2026-01-01T00:00:30Z"), 30, true),
        (ready("True", "2026-01-01T00:00:30Z"), 31, false),
        (ready("False", "2026-01-01T00:00:30Z"), 0, false),
        (pod(json!({})), 0, false),
        (
            pod(json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}})),
            1,
            false,
        ),
    ] {
        assert_eq!(is_pod_available(&pod, seconds, now), expect, "{pod:?}");
    }
}

#[test]
fn importance() {
    let of = |priority: i32, start: Option<&str>| {
        pod(
            json!({"spec": {"containers": [], "priority": priority}, "status": {"startTime": start}}),
        )
    };
    let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
    let early = of(1, Some("2026-01-01T00:00:00Z"));
    assert!(more_important_pod(&of(2, None), &early, now));
    assert!(more_important_pod(&early, &of(1, None), now));
    assert!(!more_important_pod(&of(1, None), &early, now));
}

#[test]
fn restarts() {
    let spec = |policy: &str| PodSpec {
        restart_policy: Some(policy.into()),
        ..Default::default()
    };
    let plain = Container::default();
    let sidecar = Container {
        restart_policy: Some("Always".into()),
        ..Default::default()
    };
    let ruled: Container = serde_json::from_value(json!({
        "name": "r", "restartPolicy": "Never",
        "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]
    }))
    .unwrap();
    for (policy, container, code, expect) in [
        ("Always", &plain, 0, true),
        ("OnFailure", &plain, 0, false),
        ("OnFailure", &plain, 1, true),
        ("Never", &plain, 1, false),
        ("Never", &sidecar, 0, true),
        ("Always", &ruled, 42, true),
        ("Always", &ruled, 1, false),
    ] {
        assert_eq!(
            container_should_restart(&spec(policy), container, code),
            expect,
            "{policy} {container:?} {code}"
        );
    }
}

#[test]
fn ports_and_references() {
    let pod = pod(json!({
        "metadata": {"name": "p"},
        "spec": {
            "imagePullSecrets": [{"name": "pull"}],
            "initContainers": [
                {"name": "i", "ports": [{"containerPort": 1, "hostPort": 1}], "env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "cm1", "key": "k"}}}]},
                {"name": "s", "restartPolicy": "Always", "ports": [{"containerPort": 2, "hostPort": 2}]}
            ],
            "containers": [{"name": "c", "ports": [{"containerPort": 3, "hostPort": 3}, {"containerPort": 4}],
                "envFrom": [{"secretRef": {"name": "env"}}, {"configMapRef": {"name": "cm2"}}]}],
            "ephemeralContainers": [{"name": "e", "envFrom": [{"secretRef": {"name": "eph"}}]}],
            "volumes": [
                {"name": "a", "secret": {"secretName": "vol"}},
                {"name": "b", "projected": {"sources": [{"secret": {"name": "proj"}}, {"configMap": {"name": "cm3"}}]}},
                {"name": "c", "persistentVolumeClaim": {"claimName": "claim"}},
                {"name": "d", "ephemeral": {}}
            ]
        }
    }));
    assert_eq!(
        host_ports(&pod)
            .iter()
            .map(|port| port.host_port.unwrap())
            .collect::<Vec<_>>(),
        [3, 2]
    );
    assert_eq!(
        references::secret_names(&pod)
            .into_iter()
            .collect::<Vec<_>>(),
        ["env", "eph", "proj", "pull", "vol"]
    );
    assert_eq!(
        references::config_map_names(&pod)
            .into_iter()
            .collect::<Vec<_>>(),
        ["cm1", "cm2", "cm3"]
    );
    assert_eq!(
        volume_claim_names(&pod).into_iter().collect::<Vec<_>>(),
        ["claim", "p-d"]
    );
}
