//! Extended resources that a class stands for.

use super::*;

fn gpu_class() -> Value {
    let mut class = class("c");
    class["spec"]["extendedResourceName"] = "example.com/gpu".into();
    class
}

fn asking(count: &str) -> PodBuilder {
    make_pod("p")
        .uid("uid-p")
        .req(&[("example.com/gpu", count)])
}

#[test]
fn a_claim_is_made_for_what_device_plugins_do_not_have() {
    let bed = Bed::new(&[gpu_class(), slice("a", one_device())]);
    let p = asking("1").info();
    bed.check("where a device is", &p, none(), cannot());
    bed.check(
        "of two there is one",
        &asking("2").info(),
        cannot(),
        cannot(),
    );
    let (mut state, _, _) = bed.judge(&p);
    let plugin_node = make_node("b")
        .capacity(&[("example.com/gpu", "4")])
        .info([]);
    assert_eq!(
        bed.plugin.filter(&state, &p, &plugin_node),
        Status::success(),
        "device plugins have it"
    );
    assert!(bed.plugin.reserve(&mut state, &p, "b").is_success());
    assert_eq!(bed.bind(&state, &p, "b"), Some(Status::success()));
    assert_eq!(bed.server.log(), [""; 0], "nothing to write");
    let mut state = bed.reserved(&p, "a");
    let other = make_pod("q")
        .uid("uid-q")
        .req(&[("example.com/gpu", "1")])
        .info();
    bed.check("taken", &other, cannot(), cannot());
    assert_eq!(bed.bind(&state, &p, "a"), Some(Status::success()));
    assert_eq!(
        bed.server.log(),
        [
            "create default/p-extended-resources-x",
            "finalizers 1 default/p-extended-resources-x",
            "status [\"d\"] for [\"p\"] default/p-extended-resources-x",
            "pod p has p-extended-resources-x [\"con0:example.com/gpu=container-0-request-0\"]",
        ]
    );
    bed.check("and stays taken", &other, cannot(), cannot());
    let made = bed
        .server
        .stored("default/p-extended-resources-x")
        .expect("made");
    assert_eq!(
        made.metadata.annotations.expect("one")["resource.kubernetes.io/extended-resource-claim"],
        "true"
    );
    bed.plugin.unreserve(&mut state, &p, "a");
    assert_eq!(
        bed.server.log(),
        [
            "finalizers 0 default/p-extended-resources-x",
            "delete p-extended-resources-x"
        ]
    );
    bed.check("free", &other, none(), cannot());
}

#[test]
fn a_claim_of_an_attempt_before_is_deleted() {
    let mut made = claim("p-extended-resources-x");
    made["metadata"]["annotations"] =
        json!({"resource.kubernetes.io/extended-resource-claim": "true"});
    made["metadata"]["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "uid-p", "controller": true}]);
    let bed = Bed::new(&[gpu_class(), slice("a", one_device()), made]);
    let p = asking("1").info();
    let stale = Status::unresolvable("cannot schedule extended resource claim");
    bed.check("stale", &p, stale.clone(), stale);
    let (mut state, _, _) = bed.judge(&p);
    let (_, status) = bed
        .plugin
        .post_filter(&mut state, &p, &nodes(), &NodeToStatus::default());
    assert_eq!(
        status,
        Status::unschedulable("deletion of ResourceClaim started")
    );
    assert_eq!(
        bed.server.log(),
        [
            "finalizers 0 default/p-extended-resources-x",
            "delete p-extended-resources-x"
        ]
    );
}

#[test]
fn resources_no_class_stands_for_are_of_no_concern() {
    let bed = Bed::new(&[gpu_class()]);
    let other = make_pod("p").req(&[("example.com/fpga", "1")]).info();
    bed.check_pre_filter("another resource", &other, Status::skip());
    let both = make_pod("p")
        .req(&[("example.com/fpga", "1"), ("example.com/gpu", "1")])
        .info();
    let unfit = Status::unresolvable("cannot fit resource");
    bed.check("one of two", &both, unfit.clone(), unfit);
    let implicit = make_pod("p")
        .req(&[("deviceclass.resource.kubernetes.io/c", "1")])
        .info();
    bed.check("by the name of the class", &implicit, cannot(), cannot());
}

/// The requests (`name*count`) and who has which.
fn requested(pod: PodBuilder) -> (Vec<String>, Vec<String>) {
    let many: Vec<Value> = (0..30)
        .map(|i| json!({"name": format!("d{i:02}")}))
        .collect();
    let bed = Bed::new(&[gpu_class(), slice("a", many.into())]);
    let pod = pod.info();
    let (state, _, _) = bed.judge(&pod);
    let state = bed.plugin.state(&state).expect("left by PreFilter");
    let chosen = state.progress().nodes["a"].clone();
    let claim = chosen.special.expect("one is needed");
    let count = |r: &k8s_openapi::api::resource::v1::DeviceRequest| {
        r.exactly.as_ref().and_then(|e| e.count).unwrap_or(0)
    };
    let requests = claims::requests(&claim)
        .iter()
        .map(|r| format!("{}*{}", r.name, count(r)));
    let mappings = chosen
        .mappings
        .iter()
        .map(|m| format!("{}={}", m.container_name, m.request_name));
    (requests.collect(), mappings.collect())
}

#[test]
fn containers_share_what_they_do_not_use_at_once() {
    let check = |what: &str, pod: PodBuilder, requests: &[&str], mappings: &[&str]| {
        let (found, mapped) = requested(pod);
        assert_eq!(found, requests, "{what}");
        assert_eq!(mapped, mappings, "{what}");
    };
    let gpu = |n| [("example.com/gpu", n)];
    let p = || make_pod("p").uid("uid-p");
    check(
        "two containers",
        p().req(&gpu("1")).req(&gpu("2")),
        &["container-0-request-0*1", "container-1-request-0*2"],
        &["con0=container-0-request-0", "con1=container-1-request-0"],
    );
    check(
        "the number of a request",
        p().req(&[("cpu", "1"), ("example.com/gpu", "1")]),
        &["container-0-request-1*1"],
        &["con0=container-0-request-1"],
    );
    let init = |n| p().init_req(&gpu(n), false).req(&gpu("2"));
    let names = requested(init("1")).1;
    assert_eq!(names.len(), 2, "{names:?}");
    assert_eq!(
        requested(init("1")).0,
        ["container-1-request-0*2"],
        "the init container uses the other's"
    );
    assert_eq!(
        requested(init("3")).0,
        ["container-0-request-0*1", "container-1-request-0*2"],
        "and one more"
    );
    let two = p()
        .init_req(&gpu("3"), false)
        .init_req(&gpu("5"), false)
        .req(&gpu("1"));
    assert_eq!(
        requested(two).0,
        ["container-1-request-0*4", "container-2-request-0*1"],
        "the largest serves all that end"
    );
    let sidecar = p()
        .init_req(&gpu("1"), true)
        .init_req(&gpu("1"), false)
        .req(&gpu("1"));
    assert_eq!(
        requested(sidecar).0,
        ["container-0-request-0*1", "container-2-request-0*1"],
        "a sidecar stays"
    );
}
