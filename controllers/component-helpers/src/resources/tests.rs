use super::*;
use k8s_openapi::api::core::v1::PodSpec;

fn list(text: &str) -> ResourceList {
    text.split_whitespace()
        .filter_map(|kv| kv.split_once('='))
        .map(|(k, v)| (k.into(), Quantity(v.into())))
        .collect()
}

fn container(name: &str, requests: &str, restart: Option<&str>) -> Container {
    Container {
        name: name.into(),
        restart_policy: restart.map(Into::into),
        resources: Some(ResourceRequirements {
            requests: Some(list(requests)),
            limits: Some(list(requests)),
            claims: None,
        }),
        ..Default::default()
    }
}

fn pod(init: Vec<Container>, containers: Vec<Container>) -> Pod {
    Pod {
        spec: Some(PodSpec {
            containers,
            init_containers: Some(init),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn text(amounts: &Amounts) -> String {
    amounts
        .iter()
        .map(|(name, amount)| format!("{name}={amount}"))
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn sums_over_containers() {
    let always = Some("Always");
    for (init, containers, expect) in [
        (
            vec![],
            vec!["cpu=1 memory=1Gi", "cpu=500m"],
            "cpu=1500m memory=1Gi",
        ),
        (
            vec![("cpu=2", None)],
            vec!["cpu=1 memory=1Gi"],
            "cpu=2 memory=1Gi",
        ),
        (
            vec![("cpu=2", None), ("cpu=3", None)],
            vec!["cpu=1"],
            "cpu=3",
        ),
        (vec![("cpu=1", always)], vec!["cpu=1"], "cpu=2"),
        // An init container runs beside the sidecars before it only.
        (
            vec![("cpu=5", None), ("cpu=1", always)],
            vec!["cpu=1"],
            "cpu=5",
        ),
        (
            vec![("cpu=1", always), ("cpu=5", None)],
            vec!["cpu=1"],
            "cpu=6",
        ),
        (
            vec![("cpu=1", always), ("cpu=2", always), ("cpu=1", None)],
            vec!["cpu=2"],
            "cpu=5",
        ),
    ] {
        let init = init
            .iter()
            .enumerate()
            .map(|(i, (r, p))| container(&format!("i{i}"), r, *p))
            .collect();
        let containers = containers
            .iter()
            .enumerate()
            .map(|(i, r)| container(&format!("c{i}"), r, None))
            .collect();
        let pod = pod(init, containers);
        assert_eq!(text(&pod_requests(&pod, &Default::default())), expect);
        assert_eq!(text(&pod_limits(&pod, &Default::default())), expect);
    }
}

#[test]
fn overhead_and_pod_level() {
    let mut pod = pod(vec![], vec![container("a", "cpu=1 memory=1Gi", None)]);
    let spec = pod.spec.as_mut().unwrap();
    spec.overhead = Some(list("cpu=250m memory=16Mi"));
    assert_eq!(
        text(&pod_requests(&pod, &Default::default())),
        "cpu=1250m memory=1040Mi"
    );
    let without = PodResourcesOptions {
        exclude_overhead: true,
        ..Default::default()
    };
    assert_eq!(text(&pod_requests(&pod, &without)), "cpu=1 memory=1Gi");

    let spec = pod.spec.as_mut().unwrap();
    spec.resources = Some(ResourceRequirements {
        requests: Some(list("cpu=3")),
        ..Default::default()
    });
    assert!(is_pod_level_requests_set(&pod) && !is_pod_level_limits_set(&pod));
    assert_eq!(
        text(&pod_requests(&pod, &Default::default())),
        "cpu=3250m memory=1040Mi"
    );
    let skip = PodResourcesOptions {
        skip_pod_level_resources: true,
        exclude_overhead: true,
        ..Default::default()
    };
    assert_eq!(text(&pod_requests(&pod, &skip)), "cpu=1 memory=1Gi");

    // A limit is raised by the overhead, but none arises from it.
    pod.spec.as_mut().unwrap().containers[0]
        .resources
        .as_mut()
        .unwrap()
        .limits = Some(list("cpu=2"));
    assert_eq!(text(&pod_limits(&pod, &Default::default())), "cpu=2250m");
}

#[test]
fn resize_in_flight() {
    let mut pod = pod(vec![], vec![container("a", "cpu=1", None)]);
    pod.status = Some(k8s_openapi::api::core::v1::PodStatus {
        container_statuses: Some(vec![ContainerStatus {
            name: "a".into(),
            allocated_resources: Some(list("cpu=2")),
            resources: Some(ResourceRequirements {
                requests: Some(list("cpu=3")),
                limits: Some(list("cpu=3")),
                claims: None,
            }),
            ..Default::default()
        }]),
        ..Default::default()
    });
    let status = PodResourcesOptions {
        use_status_resources: true,
        ..Default::default()
    };
    assert_eq!(text(&pod_requests(&pod, &Default::default())), "cpu=1");
    assert_eq!(text(&pod_requests(&pod, &status)), "cpu=3");
    assert_eq!(text(&pod_limits(&pod, &status)), "cpu=3");

    pod.spec.as_mut().unwrap().containers[0] = container("a", "cpu=9", None);
    assert_eq!(text(&pod_requests(&pod, &status)), "cpu=9");
    pod.status.as_mut().unwrap().conditions =
        Some(vec![k8s_openapi::api::core::v1::PodCondition {
            type_: "PodResizePending".into(),
            reason: Some("Infeasible".into()),
            ..Default::default()
        }]);
    assert_eq!(text(&pod_requests(&pod, &status)), "cpu=3");
}

#[test]
fn defaults_for_scoring() {
    let none = container("a", "", None);
    let zero = container("b", "cpu=0 memory=0", None);
    let given = container("c", "cpu=1 memory=1Mi", None);
    let mib = 1024 * 1024;
    for (containers, expect) in [
        (vec![none.clone()], (100, 200 * mib)),
        (vec![none.clone(), none.clone()], (200, 400 * mib)),
        (vec![zero], (0, 0)),
        (vec![given, none], (1100, 201 * mib)),
    ] {
        assert_eq!(non_zero_requests(&pod(vec![], containers), false), expect);
    }
}

#[test]
fn defaults_for_scoring_with_pod_level_requests() {
    let mut pod = pod(
        vec![],
        vec![container("a", "memory=1Mi", None), container("b", "", None)],
    );
    pod.spec.as_mut().unwrap().resources = Some(ResourceRequirements {
        requests: Some(list("cpu=3")),
        ..Default::default()
    });
    assert_eq!(non_zero_requests(&pod, false), (3000, 1024 * 1024));
    pod.spec.as_mut().unwrap().containers.remove(0);
    assert_eq!(
        non_zero_requests(&pod, false),
        (3000, DEFAULT_MEMORY_REQUEST)
    );
}

#[test]
fn resource_names() {
    for (name, scalar, extended) in [
        ("cpu", false, false),
        ("memory", false, false),
        ("example.com/gpu", true, true),
        ("requests.example.com/gpu", false, false),
        ("hugepages-2Mi", true, false),
        ("kubernetes.io/x", true, false),
        ("attachable-volumes-aws-ebs", true, false),
        ("pods", false, false),
    ] {
        assert_eq!(
            (
                is_scalar_resource_name(name),
                is_extended_resource_name(name)
            ),
            (scalar, extended),
            "{name}"
        );
    }
}
