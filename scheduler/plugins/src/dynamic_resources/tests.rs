//! A pod's way with its claims: waiting, judged, reserved, bound, given up. Cases: upstream's dynamicresources_test.go, v1.37, in words of our own.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use framework::testing::{PodBuilder, make_node, make_pod, snapshot, storage_object};
use framework::{ApiWriteError, ClaimWriter, Code, EventObject, QueueingHint};
use k8s_openapi::api::core::v1::PodExtendedResourceClaimStatus;
use k8s_openapi::api::resource::v1::ResourceClaim;
use serde_json::{Value, json};

use super::*;
use crate::testing::{FakeApi, FakeHandle};

mod binding;
mod extended_resources;

const DRIVER: &str = "dra.example.com";

/// The claims of an API server; notes what is written.
#[derive(Default)]
struct Claims {
    stored: Mutex<BTreeMap<String, ResourceClaim>>,
    log: Mutex<Vec<String>>,
    version: AtomicU64,
    /// The next write of a status fails, though (true) it is taken.
    fails: Mutex<Option<bool>>,
    /// Writes of a status are never answered.
    hangs: Mutex<bool>,
}

/// A handle to them.
#[derive(Clone, Default)]
struct Server(Arc<Claims>);

impl Server {
    fn put(&self, mut claim: ResourceClaim) -> ResourceClaim {
        let version = 100 + self.0.version.fetch_add(1, Ordering::Relaxed);
        claim.metadata.resource_version = Some(version.to_string());
        let key = framework::devices::claim_key(&claim);
        self.0.stored.lock().unwrap().insert(key, claim.clone());
        claim
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.log.lock().unwrap())
    }

    fn note(&self, text: String) {
        self.0.log.lock().unwrap().push(text);
    }

    fn stored(&self, key: &str) -> Option<ResourceClaim> {
        self.0.stored.lock().unwrap().get(key).cloned()
    }

    fn write(&self, what: &str, claim: &ResourceClaim) -> Result<ResourceClaim, ApiWriteError> {
        let key = framework::devices::claim_key(claim);
        let Some(known) = self.stored(&key) else {
            return Err(ApiWriteError::NotFound(key));
        };
        if known.metadata.resource_version != claim.metadata.resource_version {
            self.note(format!("conflict {key}"));
            return Err(ApiWriteError::Conflict(key));
        }
        self.note(format!("{what} {key}"));
        Ok(self.put(claim.clone()))
    }
}

type Done<'a, T> = BoxFuture<'a, Result<T, ApiWriteError>>;

impl ClaimWriter for Server {
    fn create<'a>(&'a self, claim: &'a ResourceClaim) -> Done<'a, ResourceClaim> {
        let mut claim = claim.clone();
        let prefix = claim.metadata.generate_name.clone().unwrap_or_default();
        claim.metadata.name = Some(format!("{prefix}x"));
        claim.metadata.uid = Some("made".into());
        self.note(format!("create {}", framework::devices::claim_key(&claim)));
        let claim = self.put(claim);
        Box::pin(async { Ok(claim) })
    }
    fn get<'a>(&'a self, namespace: &'a str, name: &'a str) -> Done<'a, ResourceClaim> {
        let found = self.stored(&format!("{namespace}/{name}"));
        let missing = ApiWriteError::NotFound(name.to_owned());
        Box::pin(async { found.ok_or(missing) })
    }
    fn write_finalizers<'a>(&'a self, claim: &'a ResourceClaim) -> Done<'a, ResourceClaim> {
        let what = format!(
            "finalizers {:?}",
            claim.metadata.finalizers.clone().unwrap_or_default().len()
        );
        let written = self.write(&what, claim);
        Box::pin(async { written })
    }
    fn write_status<'a>(&'a self, claim: &'a ResourceClaim) -> Done<'a, ResourceClaim> {
        let status = claim.status.clone().unwrap_or_default();
        let devices: Vec<String> = status
            .allocation
            .iter()
            .flat_map(claims::results)
            .map(|r| r.device.clone())
            .collect();
        let users: Vec<String> = status
            .reserved_for
            .iter()
            .flatten()
            .map(|r| r.name.clone())
            .collect();
        if *self.0.hangs.lock().unwrap() {
            return Box::pin(std::future::pending());
        }
        let fails = self.0.fails.lock().unwrap().take();
        if fails == Some(false) {
            return Box::pin(async { Err(ApiWriteError::Failed("no answer".into())) });
        }
        let written = self.write(&format!("status {devices:?} for {users:?}"), claim);
        if fails == Some(true) {
            return Box::pin(async { Err(ApiWriteError::Failed("no answer".into())) });
        }
        Box::pin(async { written })
    }
    fn unreserve<'a>(&'a self, claim: &'a ResourceClaim, uid: &'a str) -> Done<'a, ResourceClaim> {
        self.note(format!("unreserve {} of {uid}", claims::name(claim)));
        let claim = claim.clone();
        Box::pin(async { Ok(claim) })
    }
    fn delete<'a>(&'a self, claim: &'a ResourceClaim) -> Done<'a, ()> {
        self.note(format!("delete {}", claims::name(claim)));
        Box::pin(async { Ok(()) })
    }
    fn write_extended_status<'a>(
        &'a self,
        pod: &'a Pod,
        status: &'a PodExtendedResourceClaimStatus,
    ) -> Done<'a, ()> {
        let mappings: Vec<String> = status
            .request_mappings
            .iter()
            .map(|m| {
                format!(
                    "{}:{}={}",
                    m.container_name, m.resource_name, m.request_name
                )
            })
            .collect();
        self.note(format!(
            "pod {} has {} {mappings:?}",
            framework::pod_info::name(pod),
            status.resource_claim_name
        ));
        Box::pin(async { Ok(()) })
    }
}

/// A scheduler and its API server.
struct Bed {
    handle: Arc<FakeHandle>,
    server: Server,
    plugin: DynamicResources,
}

fn slice(node: &str, devices: Value) -> Value {
    json!({"kind": "ResourceSlice", "metadata": {"name": format!("slice-{node}"), "resourceVersion": "1"}, "spec": {"driver": DRIVER, "nodeName": node,
        "pool": {"name": node, "generation": 1, "resourceSliceCount": 1}, "devices": devices}})
}

fn class(name: &str) -> Value {
    json!({"kind": "DeviceClass", "metadata": {"name": name}, "spec": {"selectors": [{"cel": {"expression": "device.driver == 'dra.example.com'"}}]}})
}

/// A claim for one device of the class `c`.
fn claim(name: &str) -> Value {
    json!({"kind": "ResourceClaim", "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "resourceVersion": "1"},
        "spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "c", "allocationMode": "ExactCount", "count": 1}}]}}})
}

/// The claim with the device `d` of a node.
fn allocated(name: &str, node: &str) -> Value {
    let mut claim = claim(name);
    claim["status"] = json!({"allocation": {
        "devices": {"results": [{"request": "r", "driver": DRIVER, "pool": node, "device": "d"}]},
        "nodeSelector": {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}]}}});
    claim
}

fn one_device() -> Value {
    json!([{"name": "d"}])
}

fn pod(name: &str, claims: &[&str]) -> PodBuilder {
    let entries: Vec<Value> = claims
        .iter()
        .map(|claim| json!({"name": claim, "resourceClaimName": claim}))
        .collect();
    make_pod(name).uid(&format!("uid-{name}")).with(|pod| {
        let entries = serde_json::from_value(entries.into()).expect("entries");
        pod.spec.get_or_insert_default().resource_claims = Some(entries);
    })
}

impl Bed {
    fn new(objects: &[Value]) -> Self {
        Self::with(objects, |_| {})
    }

    fn with(objects: &[Value], change: impl FnOnce(&mut FakeHandle)) -> Self {
        let server = Server::default();
        let mut handle = FakeHandle {
            api: Arc::new(FakeApi {
                claims: Some(Box::new(server.clone())),
                ..FakeApi::default()
            }),
            wall_time: Some("2026-06-01T12:00:00Z".parse().expect("a time")),
            ..FakeHandle::default()
        };
        change(&mut handle);
        let handle = Arc::new(handle);
        let plugin = DynamicResources {
            handle: Arc::clone(&handle) as Arc<dyn Handle>,
            features: handle.devices.features(),
            filter_timeout: FILTER_TIMEOUT,
            binding_timeout: BINDING_TIMEOUT,
        };
        let bed = Bed {
            handle,
            server,
            plugin,
        };
        for object in objects {
            bed.told(None, object);
        }
        bed
    }

    /// The API server has the object, and the scheduler hears of it.
    fn told(&self, old: Option<&Value>, new: &Value) {
        let object = storage_object(new);
        if let Some(claim) = object.resource_claim() {
            let key = framework::devices::claim_key(claim);
            self.server
                .0
                .stored
                .lock()
                .unwrap()
                .insert(key, (**claim).clone());
        }
        self.handle
            .devices
            .apply(old.map(storage_object).as_ref(), Some(&object));
    }

    /// PreFilter, then Filter on the nodes `a` and `b`.
    fn judge(&self, pod: &Arc<PodInfo>) -> (CycleState, Status, [Status; 2]) {
        let mut state = CycleState::new();
        let (_, status) = self.plugin.pre_filter(&mut state, pod, &nodes());
        let of = |name: &str| match status.is_success() {
            true => self.plugin.filter(&state, pod, &make_node(name).info([])),
            false => Status::skip(),
        };
        let statuses = [of("a"), of("b")];
        (state, status, statuses)
    }

    fn check(&self, what: &str, pod: &Arc<PodInfo>, a: Status, b: Status) {
        let (_, status, nodes) = self.judge(pod);
        assert_eq!((status, nodes), (Status::success(), [a, b]), "{what}");
    }

    fn check_pre_filter(&self, what: &str, pod: &Arc<PodInfo>, expect: Status) {
        assert_eq!(self.judge(pod).1, expect, "{what}");
    }

    /// On the node, up to Reserve.
    fn reserved(&self, pod: &Arc<PodInfo>, node: &str) -> CycleState {
        let (mut state, status, _) = self.judge(pod);
        assert!(status.is_success(), "{status:?}");
        let status = self.plugin.reserve(&mut state, pod, node);
        assert!(status.is_success(), "{status:?}");
        state
    }

    fn bind(&self, state: &CycleState, pod: &Arc<PodInfo>, node: &str) -> Option<Status> {
        let mut bound = self.plugin.pre_bind(state, pod, node);
        match bound.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(status) => Some(status),
            Poll::Pending => None,
        }
    }
}

fn nodes() -> Snapshot {
    snapshot(["a", "b"].map(|name| make_node(name).build()), [])
}

fn none() -> Status {
    Status::success()
}

fn cannot() -> Status {
    Status::unresolvable("cannot allocate all claims")
}

#[test]
fn a_pod_without_claims_costs_nothing() {
    let bed = Bed::new(&[]);
    let plain = make_pod("p").info();
    bed.check_pre_filter("no claims", &plain, Status::skip());
    assert_eq!(
        bed.plugin.sign(&plain, &nodes()),
        Some(Sign::node(Fragments::NONE))
    );
    assert!(!bed.plugin.concerns(&plain) && bed.plugin.pre_enqueue(&plain.pod).is_success());
    let state = &mut CycleState::new();
    assert!(
        bed.plugin
            .pre_score(state, &plain, &nodes(), &NodeSet::default())
            .is_skip()
    );
    assert!(
        bed.plugin
            .pre_bind_pre_flight(state, &plain, "a")
            .1
            .is_skip()
    );
    assert_eq!(
        bed.plugin.sign(&pod("p", &["c"]).info(), &nodes()),
        None,
        "claims are not signable"
    );
    let gpus = make_pod("p").req(&[("example.com/gpu", "1")]).info();
    let before = bed
        .plugin
        .sign(&gpus, &nodes())
        .expect("a resource of device plugins");
    let mut class = class("c");
    class["spec"]["extendedResourceName"] = "example.com/other".into();
    bed.told(None, &class);
    assert_ne!(
        bed.plugin.sign(&gpus, &nodes()),
        Some(before),
        "a class may have come for it"
    );
}

#[test]
fn claims_that_keep_a_pod_waiting() {
    let check = |what: &str, objects: &[Value], pod: PodBuilder, expect: &str| {
        let (bed, pod) = (Bed::new(objects), pod.info());
        let status = Status::unresolvable(expect);
        assert_eq!(bed.plugin.pre_enqueue(&pod.pod), status, "{what}");
        bed.check_pre_filter(what, &pod, status);
    };
    check(
        "none",
        &[],
        pod("p", &["c"]),
        "could not find ResourceClaim \"default/c\"",
    );
    let mut deleted = claim("c");
    deleted["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    check(
        "deleted",
        &[deleted],
        pod("p", &["c"]),
        "resourceclaim \"c\" is being deleted",
    );
    let from_template = |statuses: Value| {
        make_pod("p").uid("uid-p").with(move |pod| {
            let entries = json!([{"name": "c", "resourceClaimTemplateName": "t"}]);
            pod.spec.get_or_insert_default().resource_claims =
                Some(serde_json::from_value(entries).expect("entries"));
            pod.status.get_or_insert_default().resource_claim_statuses =
                serde_json::from_value(statuses).expect("statuses");
        })
    };
    check(
        "not made",
        &[claim("made")],
        from_template(json!(null)),
        "pod \"default/p\": ResourceClaim not created yet",
    );
    let told = || json!([{"name": "c", "resourceClaimName": "made"}]);
    check(
        "not its own",
        &[claim("made")],
        from_template(told()),
        "ResourceClaim default/made was not created for Pod default/p (Pod is not owner)",
    );
    let mut own = claim("made");
    own["metadata"]["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "uid-p", "controller": true}]);
    let bed = Bed::new(&[own, class("c"), slice("a", one_device())]);
    bed.check("its own", &from_template(told()).info(), none(), cannot());
    bed.check_pre_filter(
        "not needed",
        &from_template(json!([{"name": "c"}])).info(),
        Status::skip(),
    );
}

#[test]
fn which_nodes_will_do() {
    let here = || vec![class("c"), slice("a", one_device())];
    let ask = |claims: &[Value]| Bed::new(&[here(), claims.to_vec()].concat());
    let p = || pod("p", &["c"]).info();
    ask(&[claim("c")]).check("where a device is", &p(), none(), cannot());
    ask(&[claim("c"), allocated("other", "a")]).check(
        "another claim has it",
        &p(),
        cannot(),
        cannot(),
    );
    let unavailable = || Status::unresolvable(filter::NOT_AVAILABLE);
    ask(&[allocated("c", "b")]).check("where it is allocated", &p(), unavailable(), none());
    let mut everywhere = allocated("c", "b");
    everywhere["status"]["allocation"]["nodeSelector"] = Value::Null;
    ask(&[everywhere]).check("everywhere", &p(), none(), none());
    let two = pod("p", &["c", "e"]).info();
    ask(&[allocated("c", "b"), claim("e")]).check("both", &two, unavailable(), cannot());
    let no_class = Bed::new(&[claim("c")]);
    no_class.check_pre_filter(
        "no class",
        &p(),
        Status::unresolvable("request r: device class c does not exist"),
    );
    let mut newer = claim("c");
    newer["spec"]["devices"]["requests"][0] = json!({"name": "r"});
    ask(&[newer]).check_pre_filter(
        "newer",
        &p(),
        Status::unresolvable("resource claim default/c, request r: unknown request type"),
    );
    let mut nameless = claim("c");
    nameless["spec"]["devices"]["requests"][0]["exactly"]["deviceClassName"] = "".into();
    ask(&[nameless]).check_pre_filter(
        "nameless",
        &p(),
        Status::error("request r: unsupported request type"),
    );
    let mut broken = claim("c");
    broken["spec"]["devices"]["requests"][0]["exactly"]["selectors"] =
        json!([{"cel": {"expression": "device.attributes['x'].y"}}]);
    let (_, _, [a, b]) = ask(&[broken]).judge(&p());
    assert!(
        a.is_error()
            && a.message().contains("no such key: y")
            && a.message().contains("device.attributes['x'].y"),
        "{a:?}"
    );
    assert_eq!(b, cannot(), "there is no device to look at");
}

#[test]
fn what_is_reserved_is_taken() {
    let bed = Bed::new(&[class("c"), slice("a", one_device()), claim("c"), claim("e")]);
    let (first, second) = (pod("p", &["c"]).info(), pod("q", &["e"]).info());
    let mut state = bed.reserved(&first, "a");
    bed.check("taken", &second, cannot(), cannot());
    let status =
        Status::unresolvable("resource claim default/c is in the process of being allocated");
    bed.check_pre_filter("the same claim", &pod("r", &["c"]).info(), status);
    bed.plugin.unreserve(&mut state, &first, "a");
    bed.check("free again", &second, none(), cannot());
    bed.plugin.unreserve(&mut state, &first, "a");
    assert_eq!(bed.server.log(), [""; 0], "nothing was written");
    let mut other = bed.judge(&first).0;
    let _kept = bed.reserved(&first, "a");
    assert!(
        bed.plugin.reserve(&mut other, &first, "a").is_error(),
        "another was faster"
    );
    bed.plugin.unreserve(&mut other, &first, "a");
    bed.check("and stays", &second, cannot(), cannot());
}

#[test]
fn allocations_nobody_can_use_are_given_up() {
    let check = |what: &str, claim: Value, rejected: &str, expect: &[&str]| {
        let bed = Bed::new(&[class("c"), slice("a", one_device()), claim]);
        let p = pod("p", &["c"]).info();
        let (mut state, status, of_nodes) = bed.judge(&p);
        assert!(status.is_success(), "{what}");
        let mut statuses = NodeToStatus::default();
        for (name, status) in ["a", "b"].into_iter().zip(of_nodes) {
            if name == rejected {
                statuses.set(name, status.by(names::DYNAMIC_RESOURCES));
            }
        }
        let (nominated, status) = bed.plugin.post_filter(&mut state, &p, &nodes(), &statuses);
        assert_eq!(
            (nominated.is_none(), status.code()),
            (true, Code::Unschedulable),
            "{what}"
        );
        assert_eq!(bed.server.log(), expect, "{what}");
    };
    check(
        "of a node that is unfit otherwise",
        allocated("c", "b"),
        "a",
        &["status [] for [] default/c"],
    );
    check("rejected by somebody else", allocated("c", "b"), "", &[]);
    let reserved = |uids: &[&str]| {
        let mut claim = allocated("c", "b");
        let users: Vec<Value> = uids
            .iter()
            .map(|uid| json!({"resource": "pods", "name": uid, "uid": uid}))
            .collect();
        claim["status"]["reservedFor"] = users.into();
        claim
    };
    check(
        "the pod's own",
        reserved(&["uid-p"]),
        "a",
        &["status [] for [] default/c"],
    );
    check("another's", reserved(&["uid-q"]), "a", &[]);
    check("another's too", reserved(&["uid-p", "uid-q"]), "a", &[]);
    check("nothing is allocated", claim("c"), "b", &[]);
}

#[test]
fn earlier_alternatives_are_better() {
    let mut prioritized = claim("c");
    let sub = |name: &str, model: &str| {
        json!({"name": name, "deviceClassName": "c", "allocationMode": "ExactCount", "count": 1,
        "selectors": [{"cel": {"expression": format!("device.attributes['dra.example.com'].model == '{model}'")}}]})
    };
    prioritized["spec"]["devices"]["requests"] =
        json!([{"name": "r", "firstAvailable": [sub("x", "big"), sub("y", "small")]}]);
    let device = |model: &str| json!([{"name": "d", "attributes": {"model": {"string": model}}}]);
    let bed = Bed::new(&[
        class("c"),
        slice("a", device("small")),
        slice("b", device("big")),
        prioritized,
    ]);
    let p = pod("p", &["c"]).info();
    let (mut state, _, _) = bed.judge(&p);
    assert!(
        bed.plugin
            .pre_score(&mut state, &p, &nodes(), &NodeSet::default())
            .is_success()
    );
    let score = |name: &str| bed.plugin.score(&state, &p, &make_node(name).info([]));
    assert_eq!((score("a"), score("b"), score("c")), (Ok(7), Ok(8), Ok(0)));
}

#[test]
fn a_search_that_takes_too_long_is_an_error() {
    let many: Vec<Value> = (0..26)
        .map(|i| json!({"name": format!("d{i:02}")}))
        .collect();
    let mut hard = claim("c");
    hard["spec"]["devices"]["requests"] = json!([
        {"name": "r", "exactly": {"deviceClassName": "c", "allocationMode": "ExactCount", "count": 13}},
        {"name": "z", "exactly": {"deviceClassName": "c", "allocationMode": "ExactCount", "count": 1, "selectors": [{"cel": {"expression": "false"}}]}}]);
    let mut bed = Bed::new(&[class("c"), slice("a", many.into()), hard]);
    bed.plugin.filter_timeout = Duration::from_millis(20);
    let (_, _, [a, _]) = bed.judge(&pod("p", &["c"]).info());
    assert_eq!(
        a,
        Status::error("node a: timed out trying to allocate devices")
    );
}

#[test]
fn hard_searches_on_many_nodes_end() {
    let bed = Bed::new(&[class("c"), slice("a", one_device()), claim("c")]);
    let p = pod("p", &["c"]).info();
    let (state, _, [a, _]) = bed.judge(&p);
    assert_eq!(a, none());
    let left = bed.plugin.state(&state).expect("left by PreFilter");
    left.progress().searched = FILTER_TIMEOUT * 3 + Duration::from_millis(1);
    let status = bed.plugin.filter(&state, &p, &make_node("a").info([]));
    assert!(
        status.is_error() && status.message().contains("timed out"),
        "{status:?}"
    );
}

#[test]
fn changes_that_help() {
    let bed = Bed::new(&[claim("c")]);
    let events = bed.plugin.events_to_register();
    let labels: Vec<String> = events
        .iter()
        .map(|e| e.event.resource.as_str().to_owned())
        .collect();
    let expect = [
        "Node",
        "resource.k8s.io/ResourceClaim",
        "Pod",
        "Pod",
        "resource.k8s.io/DeviceClass",
        "resource.k8s.io/ResourceSlice",
    ];
    assert_eq!(labels, expect);
    let waiting = pod("p", &["c"]).build();
    let check = |what: &str, old: Option<Value>, new: Option<Value>, helps: bool| {
        let (old, new) = (
            old.as_ref().map(storage_object),
            new.as_ref().map(storage_object),
        );
        let hint = hints::after_claim_change(&*bed.handle, &waiting, old.as_ref(), new.as_ref());
        assert_eq!(hint == QueueingHint::Queue, helps, "{what}");
    };
    check("its claim is there", None, Some(claim("c")), true);
    check("another's is there", None, Some(claim("other")), false);
    check(
        "another's is allocated",
        Some(claim("other")),
        Some(allocated("other", "a")),
        false,
    );
    check(
        "another's is deallocated",
        Some(allocated("other", "a")),
        Some(claim("other")),
        true,
    );
    check(
        "its own is allocated",
        Some(claim("c")),
        Some(allocated("c", "a")),
        true,
    );
    let mut labelled = claim("c");
    labelled["metadata"]["labels"] = json!({"x": "y"});
    check(
        "its own has a label",
        Some(claim("c")),
        Some(labelled),
        false,
    );
    check("another's is gone", Some(claim("other")), None, false);
    check(
        "another's is gone with devices",
        Some(allocated("other", "a")),
        None,
        true,
    );
    let two = pod("p", &["c", "missing"]).build();
    let deallocated = [allocated("other", "a"), claim("other")].map(|v| storage_object(&v));
    let hint = hints::after_claim_change(
        &*bed.handle,
        &two,
        Some(&deallocated[0]),
        Some(&deallocated[1]),
    );
    assert_eq!(hint, QueueingHint::QueueSkip, "it waits for more");
    let changed = |pod: &Arc<Pod>| {
        hints::after_pod_change(
            &*bed.handle,
            &waiting,
            Some(&EventObject::Pod(Arc::clone(pod))),
        )
    };
    assert_eq!(changed(&waiting), QueueingHint::Queue);
    assert_eq!(
        changed(&pod("q", &["c"]).build()),
        QueueingHint::QueueSkip,
        "another pod"
    );
    assert_eq!(changed(&two), QueueingHint::QueueSkip);
    let retreat = |pod: PodBuilder, helps: bool| {
        let hint = hints::after_retreat(Some(&EventObject::Pod(pod.build())));
        assert_eq!(hint == QueueingHint::Queue, helps);
    };
    retreat(pod("q", &["c"]), true);
    retreat(make_pod("q").req(&[("example.com/gpu", "1")]), true);
    retreat(make_pod("q").req(&[("cpu", "1")]), false);
    // It was bound: its claim tells when it is free.
    retreat(pod("q", &["c"]).node("a"), false);
}

#[test]
fn arguments() {
    let made = |args: Value, features: Features| {
        let handle = FakeHandle {
            devices: DeviceCache::new(features),
            ..FakeHandle::default()
        };
        new(Some(&args), Arc::new(handle))
            .map(|_| ())
            .map_err(|error| error.to_string())
    };
    let on = Features::default;
    assert_eq!(
        made(json!({"filterTimeout": "0s", "bindingTimeout": "1s"}), on()),
        Ok(())
    );
    let error = made(
        json!({"filterTimeout": "-1s", "bindingTimeout": "999ms"}),
        on(),
    )
    .expect_err("both");
    assert!(
        error.contains("filterTimeout: Invalid value: \"-1s\": must be zero or positive"),
        "{error}"
    );
    assert!(
        error.contains("bindingTimeout: Invalid value: \"0.999s\": must be at least 1 second"),
        "{error}"
    );
    assert!(
        made(json!({"filterTimeout": "soon"}), on())
            .is_err_and(|e| e.contains("invalid duration \"soon\""))
    );
    let off = Features {
        scheduler_filter_timeout: false,
        device_binding_conditions: false,
        ..on()
    };
    let error =
        made(json!({"filterTimeout": "1s", "bindingTimeout": "1s"}), off).expect_err("both");
    assert!(
        error.contains("filterTimeout: Forbidden: DRASchedulingFilterTimeout")
            && error.contains("bindingTimeout: Forbidden"),
        "{error}"
    );
    assert_eq!(made(json!({}), off), Ok(()));
}
