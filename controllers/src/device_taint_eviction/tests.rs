use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use component_base::clock::FakeClock;
use component_base::events::{RecordedEvent, Recorder};
use component_base::shutdown::Shutdown;
use component_helpers::resource_claim::consumer;
use controller_runtime::testing::FakeApi;
use controller_runtime::{ApiError, Controller as _, Queues, Watches};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{DeviceTaintRule, ResourceClaim, ResourceSlice};
use serde_json::{Value, from_value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use super::controller::{DeviceTaintEviction, Metrics};
use crate::testing::{Feed, settle};
use crate::uid_cache::UidCache;

const START: &str = "2026-01-01T00:00:00Z";

fn start() -> Timestamp {
    START.parse().unwrap()
}

fn at(seconds: i64) -> String {
    (start() + jiff::SignedDuration::from_secs(seconds)).to_string()
}

/// A Pod on a node that uses these claims by name.
fn pod(namespace: &str, name: &str, claims: &[&str]) -> Pod {
    let claims: Vec<_> = claims
        .iter()
        .map(|claim| json!({ "name": claim, "resourceClaimName": claim }))
        .collect();
    from_value(
        json!({ "metadata": { "name": name, "namespace": namespace, "uid": format!("uid-{name}") },
        "spec": { "containers": [], "nodeName": "n", "resourceClaims": claims } }),
    )
    .unwrap()
}

/// A claim with a device of driver `drv` and pool `pool`, reserved for Pods of its namespace.
fn claim(name: &str, device: &str, tolerations: Value, users: &[&Pod]) -> ResourceClaim {
    let namespace = users
        .first()
        .map_or("ns", |p| p.metadata.namespace.as_deref().unwrap());
    let users: Vec<_> = users.iter().map(|pod| consumer(pod)).collect();
    from_value(json!({ "metadata": { "name": name, "namespace": namespace, "uid": format!("uid-{name}") }, "spec": {},
        "status": { "reservedFor": users, "allocation": { "devices": { "results": [{ "request": "r", "driver": "drv",
            "pool": "pool", "device": device, "tolerations": tolerations }] } } } }))
    .unwrap()
}

fn taint(effect: &str, key: &str, seconds: i64) -> Value {
    json!({ "key": key, "value": "v", "effect": effect, "timeAdded": at(seconds) })
}

fn slice(name: &str, generation: i64, devices: Value) -> ResourceSlice {
    let Value::Object(devices) = devices else {
        panic!("devices by name")
    };
    let devices: Vec<_> = devices
        .into_iter()
        .map(|(name, taints)| json!({ "name": name, "taints": taints }))
        .collect();
    from_value(json!({ "metadata": { "name": name, "creationTimestamp": at(-100) }, "spec": { "driver": "drv",
        "pool": { "name": "pool", "generation": generation, "resourceSliceCount": 1 }, "allNodes": true, "devices": devices } }))
    .unwrap()
}

fn rule(name: &str, effect: &str, selector: Value, seconds: i64) -> DeviceTaintRule {
    from_value(
        json!({ "metadata": { "name": name, "uid": format!("uid-{name}"), "generation": 1 },
        "spec": { "deviceSelector": selector, "taint": taint(effect, "k", seconds) } }),
    )
    .unwrap()
}

fn tolerated(effect: &str, seconds: Option<i64>) -> Value {
    json!([{ "key": "k", "operator": "Exists", "effect": effect, "tolerationSeconds": seconds }])
}

struct Cluster {
    api: FakeApi,
    clock: FakeClock,
    pods: Feed<Pod>,
    claims: Feed<ResourceClaim>,
    slices: Feed<ResourceSlice>,
    rules: Feed<DeviceTaintRule>,
    controller: Arc<DeviceTaintEviction>,
    events: UnboundedReceiver<RecordedEvent>,
    _watches: Watches,
}

async fn cluster() -> Cluster {
    let api = FakeApi::new();
    let (recorder, events) = Recorder::fake();
    let clock = FakeClock::new(start());
    let (pods, pod_informer) = Feed::new();
    let (claims, claim_informer) = Feed::new();
    let (slices, slice_informer) = Feed::new();
    let (rules, rule_informer) = Feed::new();
    let controller = Arc::new(DeviceTaintEviction {
        pods: pod_informer,
        claims: claim_informer,
        slices: slice_informer,
        rules: Some(rule_informer),
        scheduled: Default::default(),
        evicted: UidCache::default(),
        evicted_by: Default::default(),
        queue: Queues::unread(clock.clock()).queue("test"),
        executor: api.executor_with(recorder),
        clock: clock.clock(),
        metrics: Metrics::unread(),
    });
    let mut watches = controller.watch(&Shutdown::new());
    assert!(watches.wait_for_sync().await);
    Cluster {
        api,
        clock,
        pods,
        claims,
        slices,
        rules,
        controller,
        events,
        _watches: watches,
    }
}

impl Cluster {
    fn pod(&self, pod: &Pod) {
        self.api.insert(pod);
        self.pods.apply(pod.clone());
    }

    fn rule(&self, rule: &DeviceTaintRule) {
        self.api.insert(rule);
        self.rules.apply(rule.clone());
    }

    /// Works until nothing is ready, `seconds` later.
    async fn after(&mut self, seconds: u64) -> &mut Self {
        self.clock.advance(Duration::from_secs(seconds));
        loop {
            settle().await;
            if self.controller.queue.is_empty() {
                return self;
            }
            let key = self.controller.queue.get().await.unwrap();
            match self.controller.reconcile(&key).await {
                Ok(Some(delay)) => self.controller.queue.add_after(key.clone(), delay),
                Ok(None) => self.controller.queue.forget(&key),
                Err(_) => self.controller.queue.add_rate_limited(key.clone()),
            }
            self.controller.queue.done(&key);
            // Rules' statuses come back by the watch.
            for rule in self.api.list::<DeviceTaintRule>() {
                self.rules.apply(rule);
            }
        }
    }

    /// What the Pods were told since last asked.
    fn told(&mut self) -> Vec<String> {
        let mut told = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            assert_eq!(
                (event.event_type.as_str(), &*event.reason),
                ("Normal", "DeviceTaintManagerEviction")
            );
            told.push(format!(
                "{} {}",
                event.regarding.name.unwrap(),
                event.message
            ));
        }
        told.sort();
        told
    }

    /// The Pods that are left on the server.
    fn left(&self) -> Vec<String> {
        let pods = self.api.list::<Pod>().into_iter();
        pods.map(|pod| pod.metadata.name.unwrap()).collect()
    }

    /// Status, reason and message of a rule's condition.
    fn condition(&self, rule: &str) -> String {
        let rule: DeviceTaintRule = self.api.get("", rule).unwrap();
        let conditions = rule.status.and_then(|s| s.conditions).unwrap_or_default();
        let [condition] = &conditions[..] else {
            return "-".into();
        };
        assert_eq!(condition.type_, "EvictionInProgress");
        assert_eq!(condition.observed_generation, rule.metadata.generation);
        format!(
            "{} {} {}",
            condition.status, condition.reason, condition.message
        )
    }
}

/// A Pod `p` with a claim `c` on device `d`; whether it is gone at once, and after ten and a hundred seconds.
async fn evicted(taints: Value, tolerations: Value) -> [bool; 3] {
    let mut cluster = cluster().await;
    let pod = pod("ns", "p", &["c"]);
    cluster.pod(&pod);
    cluster.claims.apply(claim("c", "d", tolerations, &[&pod]));
    cluster
        .slices
        .apply(slice("s", 1, json!({ "d": taints, "e": null })));
    let mut gone = [false; 3];
    for (gone, seconds) in gone.iter_mut().zip([0, 10, 90]) {
        *gone = cluster.after(seconds).await.left().is_empty();
    }
    gone
}

#[tokio::test]
async fn tolerations_decide_when() {
    let (now, never, later) = ([true; 3], [false; 3], [false, true, true]);
    let check = async |taints: Value, tolerations: Value, expect: [bool; 3]| {
        assert_eq!(
            evicted(taints.clone(), tolerations.clone()).await,
            expect,
            "{taints} {tolerations}"
        );
    };
    let execute = json!([taint("NoExecute", "k", 0)]);
    check(execute.clone(), json!(null), now).await;
    check(json!(null), json!(null), never).await;
    check(json!([taint("NoSchedule", "k", 0)]), json!(null), never).await;
    check(json!([taint("None", "k", 0)]), json!(null), never).await;
    check(json!([taint("Newer", "k", 0)]), json!(null), never).await;
    check(execute.clone(), tolerated("NoExecute", None), never).await;
    check(execute.clone(), tolerated("NoSchedule", None), now).await;
    check(execute.clone(), json!([{ "operator": "Exists" }]), never).await;
    check(
        execute.clone(),
        json!([{ "key": "other", "operator": "Exists", "effect": "NoExecute" }]),
        now,
    )
    .await;
    check(
        execute.clone(),
        json!([{ "key": "k", "value": "w", "operator": "Equal", "effect": "NoExecute" }]),
        now,
    )
    .await;
    check(execute.clone(), tolerated("NoExecute", Some(10)), later).await;
    check(execute.clone(), tolerated("NoExecute", Some(-5)), now).await;
    // The time counts from when the taint was added.
    check(
        json!([taint("NoExecute", "k", -20)]),
        tolerated("NoExecute", Some(20)),
        now,
    )
    .await;
    check(
        json!([taint("NoExecute", "k", -20)]),
        tolerated("NoExecute", Some(30)),
        later,
    )
    .await;
    // The shortest of several tolerations, and of several taints.
    let mut both = tolerated("NoExecute", Some(1000));
    both.as_array_mut()
        .unwrap()
        .push(tolerated("", Some(10))[0].clone());
    check(execute.clone(), both, later).await;
    let two = json!([taint("NoExecute", "k", 0), taint("NoExecute", "other", 0)]);
    check(two, tolerated("NoExecute", None), now).await;
    // A taint without a time is as old as its slice.
    let untimed = json!([{ "key": "k", "effect": "NoExecute" }]);
    check(untimed.clone(), tolerated("NoExecute", Some(100)), now).await;
    check(untimed, tolerated("NoExecute", Some(110)), later).await;
}

#[tokio::test]
async fn an_eviction_says_why() {
    let mut cluster = cluster().await;
    let mut pod = pod("ns", "p", &["c"]);
    pod.status = from_value(
        json!({ "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] }),
    )
    .unwrap();
    cluster.pod(&pod);
    cluster.claims.apply(claim("c", "d", json!(null), &[&pod]));
    cluster
        .slices
        .apply(slice("s", 1, json!({ "d": [taint("NoExecute", "k", 0)] })));
    let deletion = ApiError::Unreachable("no".into());
    cluster.api.fail(
        |r| r.verb == controller_runtime::transport::Verb::Delete,
        deletion,
    );
    cluster.after(0).await;
    let on_server: Pod = cluster.api.get("ns", "p").unwrap();
    let conditions = on_server.status.unwrap().conditions.unwrap();
    let target = conditions
        .iter()
        .find(|c| c.type_ == "DisruptionTarget")
        .unwrap();
    assert_eq!(
        (
            &*target.status,
            target.reason.as_deref(),
            target.message.as_deref()
        ),
        (
            "True",
            Some("DeletionByDeviceTaintManager"),
            Some("Device Taint manager: deleting due to NoExecute taint")
        )
    );
    // What failed is tried again, and what is done is done.
    cluster.api.heal();
    assert!(cluster.after(1).await.left().is_empty());
    assert!(
        cluster
            .told()
            .iter()
            .all(|told| told == "p Marking for deletion")
    );
    cluster.pods.apply(Pod {
        status: None,
        ..pod.clone()
    });
    cluster.claims.apply(claim("c", "d", json!([]), &[&pod]));
    let writes = cluster.api.writes().len();
    assert!(cluster.after(100).await.told().is_empty());
    assert_eq!(cluster.api.writes().len(), writes);
}

#[tokio::test]
async fn only_the_users_of_the_device_go() {
    let mut cluster = cluster().await;
    let used = pod("ns", "used", &["c"]);
    let other_device = pod("ns", "other-device", &["e"]);
    let mut unscheduled = pod("ns", "unscheduled", &["c"]);
    unscheduled.spec.as_mut().unwrap().node_name = None;
    let not_reserved = pod("ns", "not-reserved", &["c"]);
    let mut ended = pod("ns", "ended", &["c"]);
    ended.status = from_value(json!({ "phase": "Succeeded" })).unwrap();
    let other_namespace = pod("elsewhere", "elsewhere", &["c"]);
    let by_template = |name: &str| {
        let mut pod = pod("ns", name, &[]);
        pod.spec.as_mut().unwrap().resource_claims =
            from_value(json!([{ "name": "r", "resourceClaimTemplateName": "t" }])).unwrap();
        pod.status = from_value(
            json!({ "resourceClaimStatuses": [{ "name": "r", "resourceClaimName": name }] }),
        )
        .unwrap();
        pod
    };
    let (owner, stranger) = (by_template("owner"), by_template("stranger"));
    let mut extended = pod("ns", "extended", &[]);
    extended.status = from_value(json!({ "extendedResourceClaimStatus": { "resourceClaimName": "extended", "requestMappings": [] } })).unwrap();
    for pod in [
        &used,
        &other_device,
        &unscheduled,
        &not_reserved,
        &ended,
        &other_namespace,
        &owner,
        &stranger,
        &extended,
    ] {
        cluster.pod(pod);
    }
    let owned = |name: &str, pod: &Pod| {
        let mut claim = claim(name, "d", json!(null), &[pod]);
        claim.metadata.owner_references = Some(vec![
            component_helpers::owner_ref::new_controller_ref::<Pod>(&pod.metadata),
        ]);
        claim
    };
    for claim in [
        claim("c", "d", json!(null), &[&used, &unscheduled, &ended]),
        claim("e", "e", json!(null), &[&other_device]),
        owned("owner", &owner),
        claim("stranger", "d", json!(null), &[&stranger]),
        owned("extended", &extended),
    ] {
        cluster.claims.apply(claim);
    }
    cluster.slices.apply(slice(
        "s",
        1,
        json!({ "d": [taint("NoExecute", "k", 0)], "e": null }),
    ));
    let mut left = cluster.after(0).await.left();
    left.sort();
    assert_eq!(
        left,
        [
            "elsewhere",
            "ended",
            "not-reserved",
            "other-device",
            "stranger",
            "unscheduled"
        ]
    );
    // One comes onto a node.
    unscheduled.spec.as_mut().unwrap().node_name = Some("n".into());
    cluster.pod(&unscheduled);
    assert!(
        !cluster
            .after(0)
            .await
            .left()
            .contains(&"unscheduled".into())
    );
}

#[tokio::test]
async fn an_eviction_is_called_off() {
    for case in [
        "taint",
        "rule",
        "effect",
        "slice",
        "generation",
        "reservation",
        "allocation",
        "claim",
    ] {
        let mut cluster = cluster().await;
        let pod = pod("ns", "p", &["c"]);
        let used = claim("c", "d", tolerated("NoExecute", Some(60)), &[&pod]);
        let tainted = slice("s", 1, json!({ "d": [taint("NoExecute", "k", 0)] }));
        cluster.pod(&pod);
        cluster.claims.apply(used.clone());
        let by_rule = rule("r", "NoExecute", json!({ "device": "d" }), 0);
        match case {
            "rule" | "effect" => cluster.rule(&by_rule),
            _ => cluster.slices.apply(tainted.clone()),
        }
        assert_eq!(cluster.after(30).await.told(), [""; 0], "{case}");
        match case {
            "taint" => cluster.slices.apply(slice("s", 1, json!({ "d": [] }))),
            "rule" => {
                let delete = controller_runtime::Action::delete::<DeviceTaintRule>(
                    "",
                    "r",
                    Default::default(),
                );
                cluster.controller.executor.execute(&delete).await.unwrap();
                cluster.rules.delete(by_rule);
            }
            "effect" => cluster.rule(&rule("r", "NoSchedule", json!({ "device": "d" }), 0)),
            "slice" => cluster.slices.delete(tainted),
            "generation" => cluster.slices.apply(slice("t", 2, json!({ "e": null }))),
            "reservation" => {
                cluster
                    .claims
                    .apply(claim("c", "d", tolerated("NoExecute", Some(60)), &[]))
            }
            "allocation" => {
                let mut free = used;
                free.status.as_mut().unwrap().allocation = None;
                cluster.claims.apply(free);
            }
            _ => cluster.claims.delete(used),
        }
        assert_eq!(
            cluster.after(0).await.told(),
            ["p Cancelling deletion"],
            "{case}"
        );
        assert_eq!(cluster.after(100).await.left(), ["p"], "{case}");
        assert_eq!(cluster.told(), [""; 0], "{case}");
    }
}

#[tokio::test]
async fn a_pod_that_ends_by_itself_is_not_spoken_of() {
    let mut cluster = cluster().await;
    let pod = pod("ns", "p", &["c"]);
    cluster.pod(&pod);
    cluster
        .claims
        .apply(claim("c", "d", tolerated("NoExecute", Some(60)), &[&pod]));
    cluster.rule(&rule("r", "NoExecute", json!({}), 0));
    cluster.after(15).await;
    assert_eq!(
        cluster.condition("r"),
        "True PodsPendingEviction 1 pod needs to be evicted in 1 namespace."
    );
    cluster.pods.delete(pod.clone());
    assert_eq!(cluster.after(60).await.told(), [""; 0]);
    assert_eq!(cluster.condition("r"), "False NotStarted ");
    // A namesake, which is not the one the claim is reserved for, is left alone.
    let mut namesake = pod;
    namesake.metadata.uid = Some("uid-2".into());
    cluster.pod(&namesake);
    assert_eq!(cluster.after(60).await.left(), ["p"]);
}

#[tokio::test]
async fn a_rule_tells_how_far_it_is() {
    let mut cluster = cluster().await;
    let pods: Vec<_> = ["a", "b", "c"]
        .iter()
        .map(|name| pod(if *name == "c" { "other" } else { "ns" }, name, &[name]))
        .collect();
    for (pod, seconds) in pods.iter().zip([0, 30, 30]) {
        cluster.pod(pod);
        let name = pod.metadata.name.as_deref().unwrap();
        cluster.claims.apply(claim(
            name,
            "d",
            tolerated("NoExecute", Some(seconds)),
            &[pod],
        ));
    }
    let mut by_driver = rule("r", "NoSchedule", json!({ "driver": "drv" }), 0);
    cluster.rule(&by_driver);
    cluster.after(0).await;
    assert_eq!(
        cluster.condition("r"),
        "False OtherEffect Eviction only happens for the NoExecute effect."
    );
    by_driver.spec.taint.effect = "NoExecute".into();
    by_driver.metadata.generation = Some(2);
    by_driver.status = cluster.api.get::<DeviceTaintRule>("", "r").unwrap().status;
    cluster.rule(&by_driver);
    cluster.after(0).await;
    // Said before the first one goes.
    assert_eq!(
        cluster.condition("r"),
        "True PodsPendingEviction 3 pods need to be evicted in 2 different namespaces."
    );
    assert_eq!(cluster.left(), ["b", "c"]);
    cluster.pods.delete(pods[0].clone());
    cluster.after(5).await;
    assert_eq!(
        cluster.condition("r"),
        "True PodsPendingEviction 3 pods need to be evicted in 2 different namespaces."
    );
    cluster.after(6).await;
    let some = "True PodsPendingEviction 2 pods need to be evicted in 2 different namespaces. 1 pod evicted since starting the controller.";
    assert_eq!(cluster.condition("r"), some);
    assert!(cluster.after(20).await.left().is_empty());
    pods.iter().for_each(|pod| cluster.pods.delete(pod.clone()));
    cluster.after(11).await;
    assert_eq!(
        cluster.condition("r"),
        "False Completed 3 pods evicted since starting the controller."
    );
}

#[tokio::test]
async fn a_rule_without_effect_tells_what_it_would_do() {
    let mut cluster = cluster().await;
    let pod = pod("ns", "p", &["c"]);
    cluster.pod(&pod);
    cluster.claims.apply(claim("c", "d", json!(null), &[&pod]));
    cluster
        .slices
        .apply(slice("old", 1, json!({ "x": null, "y": null })));
    cluster
        .slices
        .apply(slice("new", 2, json!({ "d": null, "e": null })));
    cluster.after(0).await;
    let rules: BTreeMap<&str, (Value, &str)> = BTreeMap::from([
        (
            "all",
            (
                json!({}),
                "2 published devices selected. 1 allocated device selected. 1 pod would be evicted in 1 namespace",
            ),
        ),
        (
            "one",
            (
                json!({ "driver": "drv", "pool": "pool", "device": "d" }),
                "1 published device selected. 1 allocated device selected. 1 pod would be evicted in 1 namespace",
            ),
        ),
        (
            "none",
            (
                json!(null),
                "0 published devices selected. 0 allocated devices selected. 0 pods would be evicted in 0 different namespaces",
            ),
        ),
        (
            "other",
            (
                json!({ "driver": "other" }),
                "0 published devices selected. 0 allocated devices selected. 0 pods would be evicted in 0 different namespaces",
            ),
        ),
    ]);
    for (name, (selector, _)) in &rules {
        cluster.rule(&rule(name, "None", selector.clone(), 0));
    }
    cluster.after(0).await;
    for (name, (_, expect)) in &rules {
        let end = "if the effect was NoExecute. This information will not be updated again. Recreate the DeviceTaintRule to trigger an update.";
        assert_eq!(
            cluster.condition(name),
            format!("False NoEffect {expect} {end}"),
            "{name}"
        );
    }
    assert_eq!(cluster.after(100).await.left(), ["p"]);
}
