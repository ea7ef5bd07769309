use component_base::clock::Clock;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use component_base::clock::FakeClock;
use component_base::events::{RecordedEvent, Recorder};
use component_base::shutdown::Shutdown;
use component_helpers::resource_claim::{
    FINALIZER, POD_RESOURCE_CLAIM_ANNOTATION, consumer, entries, is_allocated, reserved_for,
    statuses,
};
use controller_runtime::testing::FakeApi;
use controller_runtime::transport::{Request, Verb};
use controller_runtime::{ApiError, Controller as _, ObjectKey, Queues, Watches};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimTemplate};
use serde_json::{Value, from_value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use super::controller::{Key, ResourceClaims};
use super::created::Created;
use super::release::{Verdict, is_left_over, verdict};
use super::sync::{claim_from_template, needs_work};
use crate::testing::{Feed, settle};
use crate::uid_cache::UidCache;

/// A Pod with entries of the template `t` under these names.
fn pod(entries: &[&str]) -> Pod {
    let entries: Vec<_> = entries
        .iter()
        .map(|name| json!({ "name": name, "resourceClaimTemplateName": "t" }))
        .collect();
    from_value(
        json!({ "metadata": { "name": "p", "namespace": "ns", "uid": "pod-1" },
        "spec": { "containers": [], "resourceClaims": entries }, "status": { "phase": "Pending" } }),
    )
    .unwrap()
}

fn with(mut pod: Pod, change: impl FnOnce(&mut Pod)) -> Pod {
    change(&mut pod);
    pod
}

fn phase(pod: Pod, phase: &str) -> Pod {
    with(pod, |p| {
        p.status.get_or_insert_default().phase = Some(phase.into());
    })
}

fn on_node(pod: Pod) -> Pod {
    with(pod, |p| {
        p.spec.as_mut().unwrap().node_name = Some("n".into());
    })
}

fn recorded(pod: Pod, claims: Value) -> Pod {
    with(pod, |p| {
        p.status.get_or_insert_default().resource_claim_statuses =
            Some(from_value(claims).unwrap());
    })
}

fn template() -> ResourceClaimTemplate {
    from_value(json!({ "metadata": { "name": "t", "namespace": "ns" }, "spec": {
        "metadata": { "labels": { "l": "v" }, "annotations": { "a": "b" } },
        "spec": { "devices": { "requests": [{ "name": "r", "exactly": { "deviceClassName": "gpu" } }] } } } }))
    .unwrap()
}

fn claim(name: &str, owner: Option<&Pod>) -> ResourceClaim {
    let mut claim: ResourceClaim = from_value(
        json!({ "metadata": { "name": name, "namespace": "ns", "uid": format!("uid-{name}"), "resourceVersion": "1" }, "spec": {} }),
    )
    .unwrap();
    if let Some(pod) = owner {
        let mut entry = entries(pod).first().cloned().unwrap_or_default();
        entry.name = "r".into();
        let made = claim_from_template(pod, &entry, &template());
        claim.metadata.owner_references = made.metadata.owner_references;
        claim.metadata.annotations = made.metadata.annotations;
    }
    claim
}

fn allocated(mut claim: ResourceClaim) -> ResourceClaim {
    claim.metadata.finalizers = Some(vec!["other".into(), FINALIZER.into()]);
    claim.status.get_or_insert_default().allocation = Some(Default::default());
    claim
}

fn reserved(mut claim: ResourceClaim, pod: &Pod) -> ResourceClaim {
    let status = claim.status.get_or_insert_default();
    status
        .reserved_for
        .get_or_insert_default()
        .push(consumer(pod));
    claim
}

fn going(mut claim: ResourceClaim) -> ResourceClaim {
    claim.metadata.deletion_timestamp = from_value(json!("2026-01-01T00:00:00Z")).unwrap();
    claim
}

struct Cluster {
    api: FakeApi,
    pods: Feed<Pod>,
    claims: Feed<ResourceClaim>,
    templates: Feed<ResourceClaimTemplate>,
    clock: FakeClock,
    controller: Arc<ResourceClaims>,
    events: UnboundedReceiver<RecordedEvent>,
    _watches: Watches,
}

async fn cluster() -> Cluster {
    let api = FakeApi::new();
    let (recorder, events) = Recorder::fake();
    let (pods, pod_informer) = Feed::new();
    let (claims, claim_informer) = Feed::new();
    let (templates, template_informer) = Feed::new();
    let clock = FakeClock::new(Timestamp::UNIX_EPOCH);
    let controller = Arc::new(ResourceClaims {
        pods: pod_informer,
        claims: claim_informer,
        templates: template_informer,
        created: Created::new(clock.clock()),
        deleted: UidCache::default(),
        queue: Queues::unread(Clock::real()).queue("test"),
        executor: api.executor_with(recorder),
        metrics: super::metrics::Metrics::unread(),
    });
    let mut watches = controller.watch(&Shutdown::new());
    assert!(watches.wait_for_sync().await);
    Cluster {
        api,
        pods,
        claims,
        templates,
        clock,
        controller,
        events,
        _watches: watches,
    }
}

impl Cluster {
    async fn pod(&self, pod: &Pod) {
        self.api.insert(pod);
        self.pods.apply(pod.clone());
        settle().await;
    }

    async fn claim(&self, claim: &ResourceClaim) {
        self.api.insert(claim);
        self.claims.apply(claim.clone());
        settle().await;
    }

    async fn template(&self) {
        self.templates.apply(template());
        settle().await;
    }

    /// Works on all that is queued, in order; what it was.
    async fn work(&self) -> Vec<String> {
        settle().await;
        let mut worked = Vec::new();
        while !self.controller.queue.is_empty() {
            let key = self.controller.queue.get().await.unwrap();
            worked.push(match self.controller.reconcile(&key).await {
                Ok(_) => key.to_string(),
                Err(error) => format!("{key}: {error}"),
            });
            self.controller.queue.done(&key);
        }
        worked.sort();
        worked
    }

    /// The server's changes reach the caches.
    async fn catch_up(&self) {
        self.api
            .list::<ResourceClaim>()
            .into_iter()
            .for_each(|c| self.claims.apply(c));
        self.api
            .list::<Pod>()
            .into_iter()
            .for_each(|p| self.pods.apply(p));
        settle().await;
    }

    /// `entry=claim` of the Pod's status on the server.
    fn recorded(&self) -> Vec<String> {
        let pod: Pod = self.api.get("ns", "p").unwrap();
        let line = |s: &k8s_openapi::api::core::v1::PodResourceClaimStatus| {
            format!(
                "{}={}",
                s.name,
                s.resource_claim_name.as_deref().unwrap_or("-")
            )
        };
        statuses(&pod).iter().map(line).collect()
    }

    fn event(&mut self) -> Option<String> {
        let event = self.events.try_recv().ok()?;
        Some(format!(
            "{} {}: {}",
            event.event_type.as_str(),
            event.reason,
            event.message
        ))
    }

    fn writes(&self) -> usize {
        self.api.writes().len()
    }
}

#[tokio::test]
async fn a_claim_is_made_and_recorded() {
    let mut cluster = cluster().await;
    let pod = pod(&["r"]);
    cluster.pod(&pod).await;
    let error = "pod:ns/p: pod ns/p, PodResourceClaim r: resource claim template \"t\": resourceclaimtemplate.resource.k8s.io \"t\" not found";
    assert_eq!(cluster.work().await, [error]);
    let event = "Warning FailedResourceClaimCreation: PodResourceClaim r: resource claim template \"t\": resourceclaimtemplate.resource.k8s.io \"t\" not found";
    assert_eq!(cluster.event().as_deref(), Some(event));
    // The template's coming is enough.
    cluster.template().await;
    assert_eq!(cluster.work().await, ["pod:ns/p"]);
    let [made] = &cluster.api.list::<ResourceClaim>()[..] else {
        panic!("one claim")
    };
    let meta = serde_json::to_value(&made.metadata).unwrap();
    assert!(meta["name"].as_str().unwrap().starts_with("p-r-"));
    assert_eq!(
        meta["annotations"],
        json!({ "a": "b", POD_RESOURCE_CLAIM_ANNOTATION: "r" })
    );
    assert_eq!(meta["labels"], json!({ "l": "v" }));
    let owner = json!([{ "apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "pod-1", "controller": true }]);
    assert_eq!(meta["ownerReferences"], owner);
    assert_eq!(made.spec, template().spec.unwrap().spec);
    let expect = format!("r={}", meta["name"].as_str().unwrap());
    assert_eq!(cluster.recorded(), [expect]);
    // All is right now.
    let writes = cluster.writes();
    cluster.catch_up().await;
    cluster.work().await;
    assert_eq!((cluster.writes(), cluster.event()), (writes, None));
}

#[tokio::test]
async fn a_claim_is_made_once_even_where_recording_it_fails() {
    let cluster = cluster().await;
    cluster.template().await;
    let is_record = |r: &Request| matches!(r.verb, Verb::Patch(_));
    cluster
        .api
        .fail(is_record, ApiError::Forbidden("no".into()));
    cluster.pod(&pod(&["r"])).await;
    let failed = "pod:ns/p: update pod ns/p ResourceClaimStatuses: no";
    assert_eq!(cluster.work().await, [failed]);
    // The watch has not told of the claim when the retry comes, nor of the status.
    cluster.api.heal();
    for _ in 0..2 {
        cluster
            .controller
            .queue
            .add(Key::Pod(ObjectKey::new("ns", "p")));
        assert_eq!(cluster.work().await, ["pod:ns/p"]);
        assert_eq!(cluster.api.list::<ResourceClaim>().len(), 1);
    }
    // With the status on record and a claim nobody has seen for long, the server is asked.
    let name = cluster.api.list::<ResourceClaim>()[0].metadata.name.clone();
    let known = recorded(
        pod(&["r"]),
        json!([{ "name": "r", "resourceClaimName": name }]),
    );
    cluster.pods.apply(known.clone());
    cluster.clock.advance(Duration::from_secs(61));
    assert_eq!(cluster.work().await, ["pod:ns/p"]);
    assert_eq!(cluster.api.list::<ResourceClaim>().len(), 1);
}

#[tokio::test]
async fn a_recorded_claim_that_is_gone_is_made_anew() {
    let cluster = cluster().await;
    cluster.template().await;
    let recording = json!([{ "name": "r", "resourceClaimName": "old" }]);
    let pod = recorded(pod(&["r"]), recording);
    cluster.pod(&pod).await;
    assert_eq!(cluster.work().await, ["pod:ns/p"]);
    let made = cluster.api.list::<ResourceClaim>();
    assert_eq!(made.len(), 1);
    assert_eq!(
        cluster.recorded(),
        [format!("r={}", made[0].metadata.name.as_deref().unwrap())]
    );
}

#[tokio::test]
async fn claims_of_others_are_left_alone() {
    let cluster = cluster().await;
    cluster.template().await;
    // A claim on record that another owns blocks the Pod until it is gone.
    let other = with(pod(&["r"]), |p| p.metadata.uid = Some("pod-0".into()));
    let foreign = claim("c", Some(&other));
    cluster.claim(&foreign).await;
    cluster.work().await;
    let known = recorded(
        pod(&["r"]),
        json!([{ "name": "r", "resourceClaimName": "c" }]),
    );
    cluster.pod(&known).await;
    assert_eq!(cluster.work().await, Vec::<String>::new());
    // A claim the user makes is waited for.
    let own = with(pod(&[]), |p| {
        let entry = json!([{ "name": "r", "resourceClaimName": "mine" }]);
        p.spec.as_mut().unwrap().resource_claims = from_value(entry).unwrap();
    });
    cluster.pod(&own).await;
    assert_eq!(cluster.work().await, Vec::<String>::new());
    assert_eq!(cluster.writes(), 0);
}

#[tokio::test]
async fn what_is_on_record_stays_on_record() {
    let cluster = cluster().await;
    cluster.template().await;
    let pod = pod(&["r", "s", "u"]);
    let known = json!([{ "name": "r", "resourceClaimName": "c" }, { "name": "u" }]);
    cluster.claim(&claim("c", Some(&pod))).await;
    cluster.pod(&recorded(pod, known)).await;
    cluster.work().await;
    let made: Vec<_> = cluster.api.list::<ResourceClaim>();
    let made = made
        .iter()
        .find(|c| c.metadata.name.as_deref() != Some("c"));
    let made = made.unwrap().metadata.name.clone().unwrap();
    assert_eq!(cluster.recorded(), ["r=c".to_owned(), format!("s={made}")]);
}

#[tokio::test]
async fn a_pod_bound_by_hand_gets_its_reservation() {
    let cluster = cluster().await;
    let pod = on_node(pod(&["r"]));
    let known = recorded(pod, json!([{ "name": "r", "resourceClaimName": "c" }]));
    cluster.claim(&claim("c", Some(&known))).await;
    cluster.pod(&known).await;
    // Not allocated: nothing to reserve.
    assert_eq!(cluster.work().await, ["claim:ns/c"]);
    let mut chosen = allocated(claim("c", Some(&known)));
    chosen.metadata.resource_version = Some("2".into());
    cluster.claim(&chosen).await;
    assert_eq!(cluster.work().await, ["claim:ns/c", "pod:ns/p"]);
    let stored: ResourceClaim = cluster.api.get("ns", "c").unwrap();
    assert_eq!(reserved_for(&stored), [consumer(&known)]);
    cluster.claims.apply(stored);
    assert_eq!(cluster.work().await, ["claim:ns/c"]);
}

#[tokio::test]
async fn pods_of_pod_groups_are_refused() {
    let cluster = cluster().await;
    cluster.template().await;
    let pod = with(pod(&["r"]), |p| {
        let group = json!({ "podGroupName": "g" });
        p.spec.as_mut().unwrap().scheduling_group = from_value(group).unwrap();
    });
    cluster.pod(&pod).await;
    assert_eq!(cluster.work().await, ["pod:ns/p"]);
    assert_eq!(cluster.writes(), 0);
}

/// What becomes of a claim when the Pods are as given: `users allocated finalizers`, `gone`.
async fn settled(pods: &[Pod], observed: &ResourceClaim) -> String {
    let cluster = cluster().await;
    for pod in pods {
        cluster.pod(pod).await;
    }
    cluster.claim(observed).await;
    let worked = cluster.work().await;
    let name = observed.metadata.name.as_deref().unwrap();
    assert!(worked.contains(&format!("claim:ns/{name}")), "{worked:?}");
    let Some(claim) = cluster.api.get::<ResourceClaim>("ns", name) else {
        return "gone".into();
    };
    let users = reserved_for(&claim).iter().map(|u| &*u.uid);
    let finalizers = claim.metadata.finalizers.clone().unwrap_or_default();
    format!(
        "[{}] {} [{}]",
        users.collect::<Vec<_>>().join(","),
        if is_allocated(&claim) {
            "allocated"
        } else {
            "free"
        },
        finalizers.join(",")
    )
}

#[tokio::test]
async fn claims_are_released() {
    let (running, bare) = (on_node(pod(&["r"])), claim("c", None));
    let chosen = allocated(bare.clone());
    let used = reserved(chosen.clone(), &running);
    let kept = format!("[pod-1] allocated [other,{FINALIZER}]");
    let check = async |pods: &[Pod], claim: &ResourceClaim, expect: &str| {
        assert_eq!(settled(pods, claim).await, expect);
    };
    check(std::slice::from_ref(&running), &used, &kept).await;
    // Gone, and not in the cache: the server was asked.
    check(&[], &used, "[] free [other]").await;
    check(
        &[phase(running.clone(), "Succeeded")],
        &used,
        "[] free [other]",
    )
    .await;
    let replaced = with(running.clone(), |p| p.metadata.uid = Some("pod-2".into()));
    check(std::slice::from_ref(&replaced), &used, "[] free [other]").await;
    let never_bound = with(pod(&["r"]), |p| {
        p.metadata.deletion_timestamp = from_value(json!("2026-01-01T00:00:00Z")).unwrap();
    });
    check(&[never_bound], &used, "[] free [other]").await;
    // Another user stays.
    let second = with(running.clone(), |p| p.metadata.name = Some("q".into()));
    let second = with(second, |p| p.metadata.uid = Some("pod-2".into()));
    let twice = reserved(used.clone(), &second);
    check(std::slice::from_ref(&running), &twice, &kept).await;
    // A user of an unknown kind stays, and the allocation with it.
    let mut strange = used.clone();
    let foo = json!({ "apiGroup": "foo.com", "resource": "foo", "name": "foo", "uid": "123" });
    let users = &mut strange.status.as_mut().unwrap().reserved_for;
    users.as_mut().unwrap().push(from_value(foo).unwrap());
    let expect = format!("[123] allocated [other,{FINALIZER}]");
    check(&[], &strange, &expect).await;
    // Never used: allocated until it is to go.
    check(&[], &chosen, &format!("[] allocated [other,{FINALIZER}]")).await;
    check(&[], &going(chosen.clone()), "[] free [other]").await;
    let mut unallocated = going(chosen.clone());
    unallocated.status = None;
    check(&[], &unallocated, "[] free [other]").await;
    check(&[], &going(used.clone()), "[] free [other]").await;
    check(std::slice::from_ref(&running), &going(used.clone()), &kept).await;
    // Without the control plane's finalizer somebody else allocated it.
    let mut classic = used.clone();
    classic.metadata.finalizers = None;
    check(&[], &classic, "[] allocated []").await;
}

#[tokio::test]
async fn generated_claims_go_with_their_pods() {
    let running = on_node(pod(&["r"]));
    let own = reserved(allocated(claim("c", Some(&running))), &running);
    let done = phase(running.clone(), "Failed");
    assert_eq!(settled(std::slice::from_ref(&done), &own).await, "gone");
    // The Pod may not be known yet; the garbage collector knows when it is gone.
    assert_eq!(
        settled(&[], &claim("c", Some(&running))).await,
        "[] free []"
    );
    assert_eq!(
        settled(std::slice::from_ref(&running), &claim("c", Some(&running))).await,
        "[] free []"
    );
    // One for extended resources, too.
    let mut extended = own;
    let annotations = BTreeMap::from([(
        "resource.kubernetes.io/extended-resource-claim".into(),
        "true".into(),
    )]);
    extended.metadata.annotations = Some(annotations);
    let user = with(phase(on_node(pod(&[])), "Succeeded"), |p| {
        let status = json!({ "resourceClaimName": "c", "requestMappings": [] });
        p.status.as_mut().unwrap().extended_resource_claim_status = from_value(status).unwrap();
    });
    assert_eq!(settled(&[user], &extended).await, "gone");
}

#[tokio::test]
async fn the_end_of_a_pod_releases_its_claims_without_asking() {
    let cluster = cluster().await;
    let pod = recorded(
        on_node(pod(&["r"])),
        json!([{ "name": "r", "resourceClaimName": "c" }]),
    );
    cluster.pod(&pod).await;
    cluster
        .claim(&reserved(allocated(claim("c", None)), &pod))
        .await;
    cluster.claim(&claim("c", Some(&pod))).await;
    cluster.work().await;
    let used = reserved(allocated(claim("c", Some(&pod))), &pod);
    let used = ResourceClaim {
        metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
            resource_version: Some("9".into()),
            ..used.metadata
        },
        ..used
    };
    cluster.claim(&used).await;
    cluster.work().await;
    // The server still has the Pod: only the event knows of its end.
    cluster.pods.delete(pod.clone());
    assert_eq!(cluster.work().await, ["claim:ns/c"]);
    let stored: ResourceClaim = cluster.api.get("ns", "c").unwrap();
    assert!(reserved_for(&stored).is_empty() && !is_allocated(&stored));
}

#[test]
fn a_pod_that_is_done_gets_no_claim() {
    let none = |_: &str| None::<Arc<ResourceClaim>>;
    assert!(needs_work(&pod(&["r"]), none));
    assert!(!needs_work(&phase(pod(&["r"]), "Succeeded"), none));
    let ending = with(pod(&["r"]), |p| {
        p.metadata.deletion_timestamp = from_value(json!("2026-01-01T00:00:00Z")).unwrap();
    });
    assert!(!needs_work(&ending, none));
}

#[test]
fn reservations_by_what_is_known() {
    let pod = on_node(pod(&[]));
    let user = consumer(&pod);
    assert_eq!(verdict(&user, false, None), Verdict::Ask);
    assert_eq!(verdict(&user, true, None), Verdict::Drop);
    assert_eq!(verdict(&user, true, Some(&pod)), Verdict::Drop);
    assert_eq!(verdict(&user, false, Some(&pod)), Verdict::Keep);
    assert!(!is_left_over(&claim("c", Some(&pod)), None));
}

#[test]
fn long_names_are_shortened_in_proportion() {
    let name = |pod_name: &str, entry: &str| {
        let pod = with(pod(&[entry]), |p| p.metadata.name = Some(pod_name.into()));
        let made = claim_from_template(&pod, &entries(&pod)[0], &template());
        made.metadata.generate_name.unwrap()
    };
    assert_eq!(name("p", "r"), "p-r-");
    let long = name(&"p".repeat(100), &"r".repeat(50));
    assert_eq!(long, format!("{}-{}-", "p".repeat(37), "r".repeat(18)));
    // No part ends with what may not stand before a hyphen.
    let dotted = name(
        &format!("{}{}", "p".repeat(36), ".q".repeat(32)),
        &"r".repeat(50),
    );
    assert!(!dotted.contains(".-") && dotted.len() <= 58, "{dotted}");
}
