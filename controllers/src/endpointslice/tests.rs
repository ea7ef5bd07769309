use std::collections::BTreeMap;
use std::sync::Arc;

use controller_runtime::ObjectKey;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use super::plan::Plan;
use super::sync::*;
use super::tracker::Tracker;
use super::trigger_time::TriggerTimes;

fn service(more: Value) -> Service {
    let mut spec = json!({
        "clusterIP": "10.0.0.1", "ipFamilies": ["IPv4"], "selector": {"app": "a"},
        "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}],
    });
    spec.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    serde_json::from_value(json!({"metadata": {"name": "svc", "namespace": "ns", "uid": "svc", "labels": {"team": "x"}}, "spec": spec})).unwrap()
}

fn pod(n: usize, ready: bool, more: Value) -> Arc<Pod> {
    let mut value = json!({
        "metadata": {"name": format!("p{n:04}"), "namespace": "ns", "uid": format!("p{n}"), "labels": {"app": "a"}},
        "spec": {"nodeName": "node", "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 9000, "protocol": "TCP"}]}]},
        "status": {
            "phase": "Running", "podIP": format!("10.1.{}.{}", 100 + n / 100, 100 + n % 100), "podIPs": [{"ip": format!("10.1.{}.{}", 100 + n / 100, 100 + n % 100)}, {"ip": format!("fd00::{:x}", n + 1)}],
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        },
    });
    for (key, fields) in more.as_object().unwrap() {
        value[key]
            .as_object_mut()
            .unwrap()
            .extend(fields.as_object().unwrap().clone());
    }
    Arc::new(serde_json::from_value(value).unwrap())
}

fn zones() -> BTreeMap<String, Option<String>> {
    BTreeMap::from([
        ("node".to_owned(), Some("z1".to_owned())),
        ("bare".to_owned(), None),
    ])
}

fn observed(pods: Vec<Arc<Pod>>, slices: Vec<Arc<EndpointSlice>>) -> Observed {
    Observed {
        pods,
        slices,
        zones: zones(),
    }
}

/// Carries a plan out on `slices`, as the API server would.
fn apply(slices: &mut Vec<Arc<EndpointSlice>>, plan: Plan, generated: &mut usize) {
    slices.retain(|s| !plan.delete.contains(s));
    for slice in plan.update {
        let at = slices
            .iter()
            .position(|s| s.metadata.name == slice.metadata.name)
            .unwrap();
        slices[at] = Arc::new(slice);
    }
    for mut slice in plan.create {
        *generated += 1;
        slice.metadata.name = Some(format!("svc-{generated}"));
        slice.metadata.uid = slice.metadata.name.clone();
        slices.push(Arc::new(slice));
    }
}

fn sizes(slices: &[Arc<EndpointSlice>]) -> Vec<usize> {
    let mut sizes: Vec<_> = slices
        .iter()
        .map(|s| s.endpoints.as_ref().map_or(0, Vec::len))
        .collect();
    sizes.sort();
    sizes
}

fn counts(plan: &Plan) -> (usize, usize, usize) {
    (plan.create.len(), plan.update.len(), plan.delete.len())
}

#[test]
fn slices_are_packed_and_moved_as_little_as_possible() {
    let service = service(json!({}));
    let (mut slices, mut generated) = (Vec::new(), 0);
    // (pods wanted, writes, sizes after)
    let steps: &[(std::ops::Range<usize>, (usize, usize, usize), &[usize])] = &[
        (0..250, (3, 0, 0), &[50, 100, 100]),
        (0..250, (0, 0, 0), &[50, 100, 100]),
        // One more goes into the slice with room.
        (0..251, (0, 1, 0), &[51, 100, 100]),
        // Ten of one slice gone, none moved.
        (10..251, (0, 1, 0), &[51, 90, 100]),
        // 9 new: into the one they fill best.
        (10..260, (0, 1, 0), &[51, 99, 100]),
        // 60 new do not fit into one.
        (10..320, (1, 0, 0), &[51, 60, 99, 100]),
        (100..200, (0, 0, 3), &[100]),
        (0..0, (0, 1, 0), &[0]),
        (0..0, (0, 0, 0), &[0]),
        (0..1, (0, 1, 0), &[1]),
    ];
    for (pods, writes, after) in steps {
        let pods: Vec<_> = pods.clone().map(|n| pod(n, true, json!({}))).collect();
        let plan = sync(&service, &observed(pods, slices.clone()), 100);
        let counted = counts(&plan);
        apply(&mut slices, plan, &mut generated);
        assert_eq!(
            (counted.0, counted.1 + counted.2, &sizes(&slices)[..]),
            (writes.0, writes.1 + writes.2, *after),
            "{counted:?}"
        );
    }
}

#[test]
fn an_endpoint_shows_its_pod() {
    let one = |service: &Service, pod: Arc<Pod>| {
        let plan = sync(service, &observed(vec![pod], Vec::new()), 100);
        serde_json::to_value(&plan.create[0]).unwrap()
    };
    let slice = one(&service(json!({})), pod(0, true, json!({})));
    assert_eq!(slice["addressType"], "IPv4");
    assert_eq!(
        slice["ports"],
        json!([{"name": "http", "port": 8080, "protocol": "TCP"}])
    );
    assert_eq!(
        slice["endpoints"],
        json!([{
            "addresses": ["10.1.100.100"], "conditions": {"ready": true, "serving": true, "terminating": false}, "nodeName": "node", "zone": "z1",
            "targetRef": {"kind": "Pod", "namespace": "ns", "name": "p0000", "uid": "p0"},
        }])
    );
    assert_eq!(
        slice["metadata"]["labels"],
        json!({"team": "x", "kubernetes.io/service-name": "svc", "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"})
    );
    assert_eq!(
        (
            slice["metadata"]["generateName"].as_str(),
            slice["metadata"]["ownerReferences"][0]["kind"].as_str()
        ),
        (Some("svc-"), Some("Service"))
    );

    let conditions =
        |service: &Service, pod| one(service, pod)["endpoints"][0]["conditions"].clone();
    let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    let c = |ready, serving, terminating| json!({"ready": ready, "serving": serving, "terminating": terminating});
    let publish = service(json!({"publishNotReadyAddresses": true}));
    for (service, ready, more, expect) in [
        (
            &service(json!({})),
            false,
            json!({}),
            c(false, false, false),
        ),
        (
            &service(json!({})),
            true,
            going.clone(),
            c(false, true, true),
        ),
        (
            &service(json!({})),
            false,
            going.clone(),
            c(false, false, true),
        ),
        (&publish, false, json!({}), c(true, false, false)),
        (&publish, true, going, c(true, true, true)),
    ] {
        assert_eq!(
            conditions(service, pod(0, ready, more.clone())),
            expect,
            "{ready} {more}"
        );
    }
    let named = one(
        &service(
            json!({"clusterIP": "None", "ports": [{"port": 80, "protocol": "TCP", "targetPort": "web"}]}),
        ),
        pod(
            0,
            true,
            json!({"spec": {"hostname": "h", "subdomain": "svc"}}),
        ),
    );
    assert_eq!(
        (&named["ports"], &named["endpoints"][0]["hostname"]),
        (
            &json!([{"name": "", "port": 9000, "protocol": "TCP"}]),
            &json!("h")
        )
    );
    assert_eq!(
        named["metadata"]["labels"]["service.kubernetes.io/headless"],
        ""
    );
}

#[test]
fn who_is_left_out() {
    let plain = service(json!({}));
    let placeholder = |service: &Service, pod| {
        let plan = sync(service, &observed(vec![pod], Vec::new()), 100);
        (
            plan.create[0].endpoints.as_ref().unwrap().is_empty(),
            plan.skipped,
        )
    };
    assert_eq!(
        placeholder(
            &plain,
            pod(0, true, json!({"status": {"phase": "Succeeded"}}))
        ),
        (true, vec![])
    );
    assert_eq!(
        placeholder(
            &plain,
            pod(0, true, json!({"status": {"podIPs": [], "podIP": null}}))
        ),
        (true, vec![])
    );
    let lost = || pod(0, true, json!({"spec": {"nodeName": "gone"}}));
    assert_eq!(
        placeholder(&plain, lost()),
        (true, vec!["p0000".to_owned()])
    );
    assert_eq!(
        placeholder(&service(json!({"publishNotReadyAddresses": true})), lost()),
        (false, vec![])
    );
}

#[test]
fn dual_stack_has_slices_of_each_family() {
    let pods = || vec![pod(1, true, json!({})), pod(2, true, json!({}))];
    let dual = service(json!({"ipFamilies": ["IPv6", "IPv4"]}));
    let (mut slices, mut generated) = (Vec::new(), 0);
    let plan = sync(&dual, &observed(pods(), Vec::new()), 100);
    let types: Vec<_> = plan
        .create
        .iter()
        .map(|s| {
            (
                s.address_type.as_str(),
                s.endpoints.as_ref().unwrap()[0].addresses[0].as_str(),
            )
        })
        .collect();
    assert_eq!(types, [("IPv4", "10.1.100.101"), ("IPv6", "fd00::2")]);
    apply(&mut slices, plan, &mut generated);
    let single = service(json!({"ipFamilies": ["IPv6"]}));
    let plan = sync(&single, &observed(pods(), slices), 100);
    assert_eq!(
        (counts(&plan), plan.delete[0].address_type.as_str()),
        ((0, 0, 1), "IPv4")
    );
}

#[test]
fn changes_are_written_where_they_are() {
    let (mut slices, mut generated) = (Vec::new(), 0);
    let plain = service(json!({}));
    let pods = |ready| vec![pod(1, ready, json!({})), pod(2, true, json!({}))];
    apply(
        &mut slices,
        sync(&plain, &observed(pods(false), Vec::new()), 100),
        &mut generated,
    );
    let plan = sync(&plain, &observed(pods(true), slices.clone()), 100);
    assert_eq!(counts(&plan), (0, 1, 0));
    let mut labelled = plain.clone();
    labelled.metadata.labels = Some(BTreeMap::from([("team".to_owned(), "y".to_owned())]));
    let plan = sync(&labelled, &observed(pods(false), slices.clone()), 100);
    assert_eq!(
        (
            counts(&plan),
            plan.update[0].metadata.labels.as_ref().unwrap()["team"].as_str()
        ),
        ((0, 1, 0), "y")
    );
    // Other ports: another slice, which takes the old one's name.
    let ported = service(
        json!({"ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 9090}]}),
    );
    let plan = sync(&ported, &observed(pods(false), slices.clone()), 100);
    assert_eq!(
        (counts(&plan), plan.update[0].metadata.name.as_deref()),
        ((0, 1, 0), Some("svc-1"))
    );
    // Of an earlier Service with this name: hands off, the garbage collector has it.
    let mut reborn = plain.clone();
    reborn.metadata.uid = Some("other".to_owned());
    assert_eq!(
        counts(&sync(&reborn, &observed(pods(false), slices.clone()), 100)),
        (1, 0, 1)
    );
    let mut going = reborn;
    going.metadata.deletion_timestamp =
        Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
    assert_eq!(
        counts(&sync(&going, &observed(pods(false), slices), 100)),
        (0, 0, 1)
    );
}

#[test]
fn traffic_distribution_gives_hints_and_takes_them_back() {
    let (mut slices, mut generated) = (Vec::new(), 0);
    let pods = || {
        vec![
            pod(1, true, json!({})),
            pod(2, false, json!({})),
            pod(3, true, json!({"spec": {"nodeName": "bare"}})),
        ]
    };
    let zone = json!({"forZones": [{"name": "z1"}]});
    for (distribution, expect) in [
        (Value::Null, [Value::Null, Value::Null, Value::Null]),
        (
            json!("PreferClose"),
            [zone.clone(), Value::Null, Value::Null],
        ),
        (
            json!("PreferSameZone"),
            [zone.clone(), Value::Null, Value::Null],
        ),
        (
            json!("PreferSameNode"),
            [
                json!({"forZones": [{"name": "z1"}], "forNodes": [{"name": "node"}]}),
                Value::Null,
                json!({"forNodes": [{"name": "bare"}]}),
            ],
        ),
        (Value::Null, [Value::Null, Value::Null, Value::Null]),
    ] {
        let service = service(json!({ "trafficDistribution": distribution }));
        let plan = sync(&service, &observed(pods(), slices.clone()), 100);
        apply(&mut slices, plan, &mut generated);
        assert_eq!(slices.len(), 1);
        let hints: Vec<_> = slices[0]
            .endpoints
            .as_ref()
            .unwrap()
            .iter()
            .map(|e| serde_json::to_value(&e.hints).unwrap())
            .collect();
        assert_eq!(hints, expect, "{distribution}");
        assert_eq!(
            counts(&sync(&service, &observed(pods(), slices.clone()), 100)),
            (0, 0, 0)
        );
    }
}

#[test]
fn a_lagging_cache_is_noticed() {
    let slice = |name: &str, generation: i64| -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": {"name": name, "uid": name, "namespace": "ns", "generation": generation, "labels": {"kubernetes.io/service-name": "svc"}}, "addressType": "IPv4",
        }))
        .unwrap()
    };
    let tracker = Tracker::default();
    let key = ObjectKey::new("ns", "svc");
    let stale = |slices: &[EndpointSlice]| tracker.is_stale(&key, slices.iter());
    assert!(!stale(&[slice("a", 1)]) && tracker.should_sync(&slice("a", 1)));
    tracker.written(&slice("a", 2));
    assert!(stale(&[slice("a", 1)]) && stale(&[]) && !stale(&[slice("a", 2), slice("b", 1)]));
    assert!(!tracker.should_sync(&slice("a", 2)) && tracker.should_sync(&slice("a", 3)));
    tracker.expect_deletion(&slice("a", 2));
    assert!(stale(&[slice("a", 2)]) && !stale(&[]));
    assert!(!tracker.is_unexpected_deletion(&slice("a", 2)));
    tracker.written(&slice("b", 1));
    assert!(tracker.is_unexpected_deletion(&slice("b", 1)));
}

#[test]
fn trigger_times_are_those_of_changes() {
    let times = TriggerTimes::default();
    let key = ObjectKey::new("ns", "svc");
    let mut service = service(json!({}));
    service.metadata.creation_timestamp =
        Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
    let at = |second: u32| {
        pod(
            1,
            true,
            json!({"status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": format!("2026-01-02T00:00:{second:02}Z")}]}}),
        )
    };
    let compute = |pods: &[Arc<Pod>]| times.compute(&key, &service, pods).map(|t| t.to_string());
    assert_eq!(compute(&[at(1)]).as_deref(), Some("2026-01-01T00:00:00Z"));
    assert_eq!(compute(&[at(1)]), None);
    assert_eq!(compute(&[at(5)]).as_deref(), Some("2026-01-02T00:00:05Z"));
    assert_eq!(compute(&[]), None);
}
