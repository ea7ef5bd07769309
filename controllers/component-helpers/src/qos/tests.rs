use super::*;
use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

fn resources(requests: &str, limits: &str) -> ResourceRequirements {
    let list = |text: &str| {
        let list: ResourceList = text
            .split_whitespace()
            .filter_map(|kv| kv.split_once('='))
            .map(|(k, v)| (k.into(), Quantity(v.into())))
            .collect();
        (!list.is_empty()).then_some(list)
    };
    ResourceRequirements {
        requests: list(requests),
        limits: list(limits),
        claims: None,
    }
}

fn pod(containers: &[(&str, &str)], pod_level: Option<(&str, &str)>) -> Pod {
    let container = |(requests, limits): &(&str, &str)| Container {
        resources: Some(resources(requests, limits)),
        ..Default::default()
    };
    Pod {
        spec: Some(PodSpec {
            containers: containers.iter().map(container).collect(),
            resources: pod_level.map(|(requests, limits)| resources(requests, limits)),
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[test]
fn classes() {
    use QosClass::*;
    let full = "cpu=100m memory=100Mi";
    for (containers, pod_level, expect) in [
        (vec![(full, full)], None, Guaranteed),
        (vec![(full, full), (full, full)], None, Guaranteed),
        (vec![("", "")], None, BestEffort),
        (vec![("cpu=0", "")], None, BestEffort),
        (
            vec![("example.com/gpu=1", "example.com/gpu=1")],
            None,
            BestEffort,
        ),
        (vec![("cpu=100m", "")], None, Burstable),
        (vec![(full, "cpu=200m memory=100Mi")], None, Burstable),
        (vec![(full, full), ("", "")], None, Burstable),
        (vec![("cpu=100m", "cpu=100m")], None, Burstable),
        (vec![("", full)], None, Burstable),
        (vec![("", "")], Some((full, full)), Guaranteed),
        (vec![(full, full)], Some(("cpu=1", "")), Burstable),
        (vec![("", "")], Some(("cpu=1", "cpu=1")), Burstable),
        // Nothing at the pod's level that counts there.
        (vec![(full, full)], Some(("", "")), Guaranteed),
        (vec![("cpu=100m", "")], Some(("", "")), Burstable),
    ] {
        assert_eq!(
            compute_pod_qos(&pod(&containers, pod_level)),
            expect,
            "{containers:?} {pod_level:?}"
        );
    }
    let mut written = pod(&[("", "")], None);
    written.status = Some(k8s_openapi::api::core::v1::PodStatus {
        qos_class: Some("Burstable".into()),
        ..Default::default()
    });
    assert_eq!(get_pod_qos(&written), Burstable);
}
