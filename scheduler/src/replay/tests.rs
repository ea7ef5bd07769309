//! What is recorded is played again: the same way each time, another way by another configuration.

use std::io::Cursor;
use std::time::Duration;

use framework::testing::{NodeBuilder, PodBuilder, make_node, make_pod};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::play::{Settings, play, recorded};
use super::report::{Report, report, text};
use super::tally::Played;
use super::{audit, plot};
use crate::config::{KubeSchedulerConfiguration, set_defaults};
use crate::trace::object::{Kind, TraceObject};
use crate::trace::{Change, Trace, TraceEvent};

mod recording;

const SETTINGS: Settings = Settings {
    seed: 7,
    after: Duration::from_secs(60),
    pod_groups: false,
    topology_aware: false,
};

fn config(value: serde_json::Value) -> KubeSchedulerConfiguration {
    let mut config: KubeSchedulerConfiguration = serde_json::from_value(value).expect("valid");
    set_defaults(&mut config);
    config
}

/// Full nodes first.
fn packing() -> KubeSchedulerConfiguration {
    let strategy = json!({"scoringStrategy": {"type": "MostAllocated", "resources": [{"name": "cpu", "weight": 1}]}});
    let off = json!([{"name": "NodeResourcesBalancedAllocation"}, {"name": "PodTopologySpread"}]);
    config(json!({"profiles": [{
        "plugins": {"score": {"disabled": off}},
        "pluginConfig": [{"name": "NodeResourcesFit", "args": strategy}],
    }]}))
}

fn played(trace: &Trace, config: &KubeSchedulerConfiguration) -> Played {
    let registry =
        crate::app::registry(false, &framework::Registry::new()).expect("each name once");
    let mut played = play(trace, "test", config, &registry, SETTINGS).expect("plays");
    // They are measured.
    played.decisions.clear();
    played
}

fn node(name: &str, cpu: &str) -> NodeBuilder {
    make_node(name).capacity(&[("cpu", cpu), ("memory", "64Gi"), ("pods", "110")])
}

fn pod(name: &str, cpu: &str) -> PodBuilder {
    make_pod(name).uid(name).req(&[("cpu", cpu)])
}

/// A trace of events at seconds from its beginning; the first `initial` were there.
fn trace(initial: usize, events: Vec<(u64, Change, TraceObject)>) -> Trace {
    let start: Timestamp = "2026-11-30T04:00:00Z".parse().expect("a time");
    let event = |(seconds, change, object)| TraceEvent {
        time: start + SignedDuration::from_secs(seconds as i64),
        change,
        object,
    };
    Trace {
        events: events.into_iter().map(event).collect(),
        initial,
        truncated: None,
    }
}

fn added(object: impl Into<TraceObject>) -> (u64, Change, TraceObject) {
    (0, Change::Added, object.into())
}

/// `pod -> node`, of those that got one.
fn placed(played: &Played) -> Vec<String> {
    let pods = played.pods.values();
    let placed = pods.filter_map(|pod| Some(format!("{} -> {}", pod.key, pod.node.as_ref()?)));
    placed.collect()
}

/// Two nodes, and four pods a second apart.
fn four_pods() -> Trace {
    let mut events = vec![added(node("a", "4").build()), added(node("b", "4").build())];
    for (i, name) in ["p1", "p2", "p3", "p4"].into_iter().enumerate() {
        let at = i as u64 + 1;
        events.push((at, Change::Added, pod(name, "1").build().into()));
    }
    trace(2, events)
}

#[test]
fn the_same_each_time_and_another_by_another_configuration() {
    let trace = four_pods();
    let spreading = played(&trace, &config(json!({})));
    assert_eq!(spreading, played(&trace, &config(json!({}))));
    let packed = played(&trace, &packing());
    assert_eq!(packed, played(&trace, &packing()));

    let on = |played: &Played, node: &str| {
        let end = format!("-> {node}");
        placed(played).iter().filter(|p| p.ends_with(&end)).count()
    };
    assert_eq!((on(&spreading, "a"), on(&spreading, "b")), (2, 2));
    let mut counts = [on(&packed, "a"), on(&packed, "b")];
    counts.sort_unstable();
    assert_eq!(counts, [0, 4], "{:?}", placed(&packed));

    let recorded = recorded(&trace, SETTINGS.after);
    let report: Report = report(&trace, SETTINGS.seed, &[recorded, spreading, packed]);
    let [_, spread, packed] = &report.runs[..] else {
        panic!("{report:?}");
    };
    assert_eq!((spread.bound, packed.bound), (4, 4));
    assert_eq!(
        (spread.nodes_in_use.peak, packed.nodes_in_use.peak),
        (1.0, 0.5)
    );
    assert_eq!((spread.cpu.peak, packed.cpu.peak), (0.5, 0.5));
    let between = report.comparisons.last().expect("of both configurations");
    assert_eq!((between.same_node, between.moved.len()), (2, 2));
    // A pod waits no longer than a binding takes.
    assert!(spread.waited.max <= 0.01, "{:?}", spread.waited);
    let told = text(&report);
    let moved = &between.moved[0];
    let moved = format!("{}: {} -> {}", moved.pod, moved.a, moved.b);
    for expect in ["pods to place", "on another node", &moved] {
        assert!(told.contains(expect), "{expect:?} in {told}");
    }
}

#[test]
fn pods_wait_for_room_as_long_as_the_trace_makes_them() {
    let trace = trace(
        1,
        vec![
            added(node("a", "1").build()),
            (1, Change::Added, pod("first", "1").build().into()),
            (2, Change::Added, pod("second", "1").build().into()),
            // Its node in the recorded cluster, which is not that of the one that plays.
            (
                3,
                Change::Modified,
                pod("second", "1").node("z").build().into(),
            ),
            (
                3602,
                Change::Deleted,
                pod("first", "1").node("a").build().into(),
            ),
        ],
    );
    let result = played(&trace, &config(json!({})));
    let second = &result.pods["second"];
    assert_eq!(second.node.as_deref(), Some("a"));
    let waited = second.waited().expect("bound");
    let hour = Duration::from_secs(3600);
    assert!(
        (hour..hour + Duration::from_secs(1)).contains(&waited),
        "{waited:?}"
    );
    assert_eq!(result.pods["first"].ended, Some(Duration::from_secs(3602)));
    let never = played(
        &Trace {
            events: trace.events[..4].to_vec(),
            ..trace
        },
        &config(json!({})),
    );
    assert!(
        never.pods["second"].reason.contains("Insufficient cpu"),
        "{never:?}"
    );
}

#[test]
fn preemption_is_played() {
    let urgent = || pod("urgent", "1").priority(100);
    let trace = trace(
        1,
        vec![
            added(node("a", "1").build()),
            (
                1,
                Change::Added,
                pod("lazy", "1").priority(0).build().into(),
            ),
            (10, Change::Added, urgent().build().into()),
            (
                20,
                Change::Modified,
                urgent().label("seen", "yes").build().into(),
            ),
        ],
    );
    let with = played(&trace, &config(json!({})));
    assert!(
        with.pods["lazy"].preempted && with.pods["lazy"].ended.is_some(),
        "{with:?}"
    );
    assert_eq!(with.pods["urgent"].node.as_deref(), Some("a"));
    let off = json!({"profiles": [{"plugins": {"multiPoint": {"disabled": [{"name": "DefaultPreemption"}]}}}]});
    let without = played(&trace, &config(off));
    assert!(!without.pods["lazy"].preempted, "{without:?}");
    assert_eq!(without.pods["urgent"].node, None);
    let report = report(
        &trace,
        7,
        &[recorded(&trace, SETTINGS.after), with, without],
    );
    let between = report.comparisons.last().expect("of both configurations");
    assert_eq!(between.preempted_only_a, ["default/lazy"]);
    assert_eq!(between.only_a, ["default/urgent"]);
}

#[test]
fn claims_get_volumes_where_the_pod_goes_here() {
    let decode = |value: serde_json::Value| {
        let kind = value["kind"].as_str().expect("a kind");
        let version = value["apiVersion"].as_str().expect("a version");
        let kind = Kind::of(version, kind, &[]).expect("known");
        kind.decode("object", value).expect("valid")
    };
    let class = decode(
        json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "wait", "uid": "c"},
        "provisioner": "example.com/disk", "volumeBindingMode": "WaitForFirstConsumer"}),
    );
    let claim = |volume: Option<&str>| {
        let annotations = volume.map(|_| json!({"pv.kubernetes.io/bind-completed": "yes"}));
        decode(json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": "data", "namespace": "default", "uid": "claim", "annotations": annotations},
            "spec": {"storageClassName": "wait", "accessModes": ["ReadWriteOnce"], "volumeName": volume,
                     "resources": {"requests": {"storage": "1Gi"}}}}))
    };
    let theirs = decode(
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "theirs", "uid": "v"},
        "spec": {"storageClassName": "wait", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
                 "claimRef": {"kind": "PersistentVolumeClaim", "namespace": "default", "name": "data", "uid": "claim"},
                 "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                     {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["elsewhere"]}]}]}}}}),
    );
    let reader = || pod("reader", "1").claim("data");
    let trace = trace(
        3,
        vec![
            added(class),
            added(node("a", "1").zone("here").build()),
            (0, Change::Added, claim(None)),
            (1, Change::Added, reader().build().into()),
            (2, Change::Added, theirs),
            (2, Change::Modified, claim(Some("theirs"))),
            (
                3,
                Change::Modified,
                reader().node("elsewhere").build().into(),
            ),
            (
                4,
                Change::Added,
                make_pod("later").uid("later").claim("data").build().into(),
            ),
        ],
    );
    let played = played(&trace, &config(json!({})));
    assert_eq!(
        placed(&played),
        ["default/later -> a", "default/reader -> a"],
        "{played:?}"
    );
}

#[test]
fn pods_of_other_schedulers_go_where_they_went() {
    let other = || pod("other", "1").scheduler_name("mine");
    let trace = trace(
        1,
        vec![
            added(node("a", "1").build()),
            (1, Change::Added, other().build().into()),
            (2, Change::Modified, other().node("a").build().into()),
            (3, Change::Added, pod("late", "1").build().into()),
            (4, Change::Deleted, node("a", "1").build().into()),
        ],
    );
    let played = played(&trace, &config(json!({})));
    assert_eq!(placed(&played), ["default/other -> a"]);
    assert!(
        played.pods["other"].lost && played.pods["other"].given,
        "{played:?}"
    );
}

#[test]
fn errors_name_the_line_and_the_field() {
    let head = r#"{"format":"gantry-scheduler-trace","version":1,"time":"2026-11-30T04:00:00Z"}"#;
    let line = |object: &str| {
        format!(
            "{head}\n{{\"time\":\"2026-11-30T04:00:00Z\",\"type\":\"ADDED\",\"object\":{object}}}\n"
        )
    };
    let pod = |spec: &str| {
        line(&format!(
            r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"p","uid":"u"}},"spec":{spec}}}"#
        ))
    };
    for (input, expect) in [
        (String::new(), "line 1: format: Required value"),
        ("{}\n".into(), "line 1: (line)"),
        (
            head.replace("gantry", "other"),
            "line 1: format: Invalid value: \"other-scheduler-trace\"",
        ),
        (
            head.replace(":1,", ":2,"),
            "line 1: version: Unsupported value: 2",
        ),
        (format!("{head}\nnonsense\n"), "line 2: (line)"),
        (
            format!("{head}\n{{\"time\":\"noon\",\"type\":\"SYNCED\"}}\n"),
            "line 2: time: Invalid value: \"noon\"",
        ),
        (
            line("{}").replace("ADDED", "EATEN"),
            "line 2: type: Unsupported value: \"EATEN\"",
        ),
        (
            line(r#"{"apiVersion":"v1","kind":"Secret","metadata":{"name":"s"}}"#),
            "line 2: object.kind: Unsupported value: \"Secret\"",
        ),
        (
            pod(r#"{"priority":"high","containers":[]}"#),
            "line 2: object.spec.priority",
        ),
        (
            pod("{\"containers\":[]}").replace("\"u\"", "\"\""),
            "line 2: object.metadata.uid: Required value",
        ),
        (
            pod("{\"containers\":[]}")
                + "{\"time\":\"2026-11-30T03:00:00Z\",\"type\":\"ADDED\",\"object\":{\"apiVersion\":\"v1\",\"kind\":\"Node\",\"metadata\":{\"name\":\"n\"}}}\n",
            "line 3: time: Invalid value: 2026-11-30T03:00:00Z",
        ),
    ] {
        let error = Trace::read(Cursor::new(&input), &[])
            .expect_err(expect)
            .to_string();
        assert!(error.starts_with(expect), "{error:?}, not {expect:?}");
    }
    let cut = pod("{\"containers\":[]}") + "{\"time\":\"2026-11-";
    let read = Trace::read(Cursor::new(cut), &[]).expect("its writer was ended");
    assert_eq!(
        (read.events.len(), read.truncated.as_deref()),
        (1, Some("line 3 was cut off"))
    );
}

#[test]
fn an_audit_log_becomes_a_trace() {
    let event = |at: u32, verb: &str, resource: &str, more: serde_json::Value| {
        let mut event = json!({"kind": "Event", "apiVersion": "audit.k8s.io/v1", "stage": "ResponseComplete", "verb": verb,
            "objectRef": {"resource": resource, "namespace": "default", "name": "p"}, "responseStatus": {"code": 200},
            "stageTimestamp": format!("2026-11-30T04:00:{at:02}.000000Z")});
        for (key, value) in more.as_object().expect("fields") {
            event[key] = value.clone();
        }
        event.to_string()
    };
    let object = |object: TraceObject| serde_json::to_value(&object).expect("serialises");
    let p = object(pod("p", "1").build().into());
    let n = object(node("a", "4").build().into());
    let log = [
        event(1, "create", "pods", json!({"responseObject": p})),
        // Refused, read, and of a kind that nobody schedules by.
        event(
            2,
            "create",
            "pods",
            json!({"responseStatus": {"code": 403}, "responseObject": {"kind": "Status"}}),
        ),
        event(2, "get", "pods", json!({"responseObject": p})),
        event(
            2,
            "create",
            "secrets",
            json!({"responseObject": {"kind": "Secret"}}),
        ),
        event(
            3,
            "create",
            "pods",
            json!({"requestObject": {"target": {"name": "a"}}, "responseObject": {"kind": "Status"},
            "objectRef": {"resource": "pods", "subresource": "binding", "namespace": "default", "name": "p"}}),
        ),
        event(
            4,
            "patch",
            "nodes",
            json!({"responseObject": n, "objectRef": {"resource": "nodes", "subresource": "status", "name": "a"}}),
        ),
        event(5, "update", "pods", json!({})),
        event(6, "delete", "pods", json!({"responseObject": p})),
    ];
    let converted = audit::convert(Cursor::new(log.join("\n")), Vec::new(), &[]).expect("a log");
    assert_eq!(converted.without_object, 1);
    let told: Vec<String> = converted
        .trace
        .events
        .iter()
        .map(|event| format!("{:?} {}", event.change, event.object.name()))
        .collect();
    assert_eq!(told, ["Added a", "Added p", "Modified p", "Deleted p"]);
    assert_eq!(converted.trace.initial, 1);
    let recorded = recorded(&converted.trace, Duration::ZERO);
    assert_eq!(recorded.pods["p"].node.as_deref(), Some("a"));
    assert_eq!(recorded.pods["p"].waited(), Some(Duration::from_secs(2)));
    let again = played(&converted.trace, &config(json!({})));
    assert_eq!(placed(&again), ["default/p -> a"]);

    let bad = event(
        1,
        "create",
        "pods",
        json!({"responseObject": {"spec": {"nodeName": 1}}}),
    );
    let error = audit::convert(Cursor::new(bad), Vec::new(), &[]).expect_err("no name");
    assert!(
        error
            .to_string()
            .starts_with("line 1: responseObject.spec.nodeName"),
        "{error}"
    );
}

#[test]
fn plots_show_every_run() {
    let trace = four_pods();
    let mut runs = vec![recorded(&trace, SETTINGS.after), played(&trace, &packing())];
    runs[1].name = "<packing>".into();
    let plots = plot::plots(&runs);
    assert_eq!(plots.len(), 5);
    for (name, svg) in plots {
        assert!(
            name.ends_with(".svg") && svg.starts_with("<svg ") && svg.ends_with("</svg>\n"),
            "{name}"
        );
        assert!(
            svg.contains("recorded") && svg.contains("&lt;packing&gt;"),
            "{name}"
        );
        assert_eq!(svg.matches("<path ").count(), 2, "{name}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{name}");
    }
}

#[test]
fn the_command_reads_and_writes_files() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).display().to_string();
    let file = std::fs::File::create(path("trace.jsonl")).expect("writable");
    four_pods().write(file).expect("written");
    let head = "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n";
    std::fs::write(path("a.yaml"), head).expect("written");
    let extender = "extenders: [{urlPrefix: 'http://127.0.0.1:1', filterVerb: filter}]\n";
    std::fs::write(path("b.yaml"), format!("{head}{extender}")).expect("written");
    let run = |args: &[&str]| {
        let own = ["kube-scheduler".to_owned()].into_iter();
        let args = own.chain(args.iter().map(ToString::to_string));
        super::command::main(
            args,
            &super::command::Known {
                registry: &|gate| crate::app::registry(gate, &framework::Registry::new()),
                kinds: &[],
            },
        )
    };
    let (trace, config, plots) = (path("trace.jsonl"), path("a.yaml"), path("plots"));
    assert_eq!(
        run(&[
            "--trace", &trace, "--config", &config, "--plots", &plots, "-o", "json"
        ]),
        0
    );
    for name in [
        "cpu.svg",
        "memory.svg",
        "waiting.svg",
        "nodes.svg",
        "waited.svg",
    ] {
        assert!(directory.path().join("plots").join(name).exists(), "{name}");
    }
    assert_eq!(run(&["--trace", &trace]), 1, "no configuration");
    assert_eq!(
        run(&["--trace", &path("none"), "--config", &config]),
        1,
        "no trace"
    );
    assert_eq!(
        run(&["--trace", &trace, "--config", &path("b.yaml")]),
        1,
        "an extender"
    );
    assert_eq!(run(&["--config", &config]), 2, "nothing to play");
}
