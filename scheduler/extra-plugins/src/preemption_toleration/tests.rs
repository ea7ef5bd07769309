use framework::Verdicts;
use framework::testing::{PodBuilder, make_node, make_pod, snapshot};
use k8s_openapi::api::core::v1::PodCondition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use plugins::testing::FakeHandle;
use serde_json::json;

use super::*;

fn class(name: &str, value: i32, minimum: Option<&str>, seconds: Option<&str>) -> Arc<Object> {
    let annotations = [
        (MINIMUM_PREEMPTABLE_PRIORITY, minimum),
        (TOLERATION_SECONDS, seconds),
    ];
    let given = annotations
        .iter()
        .filter_map(|(key, value)| Some(((*key).to_owned(), (*value)?.to_owned())));
    Arc::new(Object {
        kind: PRIORITY_CLASS,
        metadata: ObjectMeta {
            name: Some(name.into()),
            annotations: Some(given.collect()),
            ..ObjectMeta::default()
        },
        data: json!({"value": value}),
    })
}

#[test]
fn what_a_class_says() {
    let check = |minimum, seconds, expect: Option<(i32, i64)>| {
        let policy = Policy::parse(&class("c", 10, minimum, seconds));
        let got = policy.map(|p| (p.minimum_preemptable_priority, p.toleration_seconds));
        assert_eq!(got, expect, "{minimum:?} {seconds:?}");
    };
    check(None, None, Some((11, 0)));
    check(Some("100"), Some("3600"), Some((100, 3600)));
    check(Some("-5"), Some("-1"), Some((-5, -1)));
    check(Some("much"), None, None);
    check(None, Some("long"), None);
    check(Some("9999999999"), None, None);
}

fn victim(seconds_ago: Option<i64>) -> PodBuilder {
    let pod = make_pod("victim")
        .uid("victim")
        .priority(10)
        .req(&[("cpu", "1")])
        .node("n");
    pod.with(|pod| {
        pod.spec.as_mut().unwrap().priority_class_name = Some("c".into());
        let condition = |ago| PodCondition {
            type_: POD_SCHEDULED.into(),
            status: "True".into(),
            last_transition_time: Some(Time(Timestamp::now() - SignedDuration::from_secs(ago))),
            ..PodCondition::default()
        };
        let conditions = seconds_ago.map(condition);
        pod.status.as_mut().unwrap().conditions = Some(conditions.into_iter().collect());
    })
}

/// Is the victim ended for a pod of that priority?
fn preempted(
    class: Option<Arc<Object>>,
    victim: PodBuilder,
    priority: i32,
) -> Result<bool, String> {
    let preemptor = make_pod("p")
        .uid("p")
        .priority(priority)
        .req(&[("cpu", "1")]);
    let mut handle = FakeHandle::default();
    let fit = plugins::node_resources_fit::new(None, plugins::testing::handle());
    handle.plugins = vec![fit.expect("valid")];
    handle.pods.lock().unwrap().push(preemptor.clone().build());
    let handle = Arc::new(handle);
    let plugin = new(None, Arc::clone(&handle) as _).expect("valid");
    if let Some(class) = class {
        let observer = plugin.as_observer().unwrap();
        observer.observe(None, Some(&EventObject::Custom(class)));
    }
    let node = make_node("n")
        .capacity(&[("cpu", "1"), ("pods", "10")])
        .build();
    let snapshot = snapshot([node], [victim.info()]);
    let mut verdicts = Verdicts::new(snapshot.columns().live().clone(), snapshot.columns().len());
    let all = verdicts.feasible().clone();
    verdicts.reject_all(&all, Status::unschedulable("full"));
    let statuses = NodeToStatus::from_verdicts(Arc::new(verdicts));
    let post_filter = plugin.as_post_filter().unwrap();
    let (_, status) = post_filter.post_filter(
        &mut CycleState::new(),
        &preemptor.info(),
        &snapshot,
        &statuses,
    );
    if status.is_error() {
        return Err(status.message());
    }
    let events = handle.events.lock().unwrap();
    assert_eq!(
        status.is_success(),
        events.iter().any(|event| event.starts_with("Preempted"))
    );
    Ok(status.is_success())
}

#[test]
fn a_class_tolerates_preemption_for_a_while() {
    let of = |minimum, seconds| Some(class("c", 10, minimum, seconds));
    for (what, class, victim, priority, expect) in [
        ("says nothing", of(None, None), victim(Some(5)), 11, true),
        ("as important", of(None, None), victim(Some(5)), 10, false),
        (
            "below the minimum, for ever",
            of(Some("100"), Some("-1")),
            victim(Some(5)),
            99,
            false,
        ),
        (
            "at the minimum",
            of(Some("100"), Some("-1")),
            victim(Some(5)),
            100,
            true,
        ),
        (
            "not long enough",
            of(Some("100"), Some("60")),
            victim(Some(5)),
            99,
            false,
        ),
        (
            "long enough",
            of(Some("100"), Some("60")),
            victim(Some(65)),
            99,
            true,
        ),
        (
            "just placed",
            of(Some("100"), Some("60")),
            victim(None),
            99,
            false,
        ),
        (
            "no time at all",
            of(Some("100"), None),
            victim(Some(5)),
            99,
            true,
        ),
        (
            "no number",
            of(Some("100"), Some("x")),
            victim(Some(5)),
            99,
            true,
        ),
        (
            "longer than time goes",
            of(Some("100"), Some("9223372036854775807")),
            victim(Some(5)),
            99,
            false,
        ),
    ] {
        assert_eq!(preempted(class, victim, priority), Ok(expect), "{what}");
    }
    // Nobody knows whether a pod of an unknown class may go.
    let error = preempted(None, victim(Some(5)), 11).expect_err("not found");
    assert!(error.contains("\"c\" not found"), "{error}");
    let without = victim(Some(5)).with(|pod| pod.spec.as_mut().unwrap().priority_class_name = None);
    assert_eq!(preempted(None, without, 11), Ok(true));
}

#[test]
fn arguments_are_those_of_default_preemption() {
    let args = json!({"minCandidateNodesPercentage": 0, "minCandidateNodesAbsolute": 0});
    let error = new(Some(&args), plugins::testing::handle()).err();
    let error = error.expect("refused").to_string();
    assert!(
        error.contains("minCandidateNodesPercentage: Invalid value: 0"),
        "{error}"
    );
}
