//! Which plugins a profile enables where, in which order, with which weight.

use std::sync::Arc;

use component_base::clock::Clock;
use framework::Plugin;
use serde_json::json;

use super::*;
use crate::bench::{CountingWriter, NoObjects};
use crate::metrics::Metrics;

fn framework(yaml: &str) -> Result<Arc<Framework>, ProfileError> {
    let mut profile: KubeSchedulerProfile = serde_json::from_str(yaml).expect("valid JSON");
    profile.scheduler_name = Some("test".to_owned());
    new_framework(
        &profile,
        &plugins::registry::in_tree(),
        shared(),
        Beside::default(),
    )
}

fn shared() -> Arc<Shared> {
    let end = tokio_util::sync::CancellationToken::new();
    let tasks = tokio::runtime::Handle::current();
    Shared::new(
        Arc::new(NoObjects::default()),
        Arc::new(CountingWriter::default()),
        Arc::new(|_| {}),
        tasks,
        end,
        Clock::real(),
        Metrics::unread(Clock::real()),
    )
}

fn names<'a>(list: impl IntoIterator<Item = &'a Arc<dyn Plugin>>) -> String {
    list.into_iter()
        .map(|plugin| plugin.name())
        .collect::<Vec<_>>()
        .join(" ")
}

fn scores(framework: &Framework) -> String {
    framework
        .points()
        .score
        .iter()
        .map(|(plugin, weight)| format!("{}={weight}", plugin.name()))
        .collect::<Vec<_>>()
        .join(" ")
}

const DEFAULT_SCORES: &str = "TaintToleration=3 NodeAffinity=2 NodeResourcesFit=1 PodTopologySpread=2 InterPodAffinity=2 DynamicResources=2 NodeResourcesBalancedAllocation=1 ImageLocality=1";

#[tokio::test]
async fn the_defaults() {
    let framework = framework("{}").expect("valid");
    let points = framework.points();
    assert_eq!(scores(&framework), DEFAULT_SCORES);
    assert_eq!(names(&points.queue_sort), "PrioritySort");
    assert_eq!(names(&points.bind), "DefaultBinder");
    assert_eq!(
        names(&points.post_filter),
        "DynamicResources DefaultPreemption"
    );
    let filters = "NodeName NodeUnschedulable TaintToleration NodeAffinity NodePorts NodeResourcesFit VolumeRestrictions NodeVolumeLimits VolumeBinding VolumeZone PodTopologySpread InterPodAffinity";
    assert!(
        names(&points.filter).starts_with(filters),
        "{}",
        names(&points.filter)
    );
    assert!(names(&points.pre_enqueue).starts_with("SchedulingGates"));
}

#[tokio::test]
async fn changes_to_scoring() {
    for (what, plugins, expect) in [
        (
            "a weight, which also comes first",
            r#"{"score": {"enabled": [{"name": "ImageLocality", "weight": 7}]}}"#,
            {
                "ImageLocality=7 TaintToleration=3 NodeAffinity=2 NodeResourcesFit=1 PodTopologySpread=2 InterPodAffinity=2 DynamicResources=2 NodeResourcesBalancedAllocation=1"
            },
        ),
        (
            "one disabled",
            r#"{"score": {"disabled": [{"name": "PodTopologySpread"}]}}"#,
            {
                "TaintToleration=3 NodeAffinity=2 NodeResourcesFit=1 InterPodAffinity=2 DynamicResources=2 NodeResourcesBalancedAllocation=1 ImageLocality=1"
            },
        ),
        (
            "only one",
            r#"{"score": {"disabled": [{"name": "*"}], "enabled": [{"name": "NodeResourcesFit", "weight": 5}]}}"#,
            "NodeResourcesFit=5",
        ),
        (
            "multiPoint weight keeps the place",
            r#"{"multiPoint": {"enabled": [{"name": "NodeAffinity", "weight": 9}]}}"#,
            {
                "TaintToleration=3 NodeAffinity=9 NodeResourcesFit=1 PodTopologySpread=2 InterPodAffinity=2 DynamicResources=2 NodeResourcesBalancedAllocation=1 ImageLocality=1"
            },
        ),
        (
            "multiPoint disabled",
            r#"{"multiPoint": {"disabled": [{"name": "ImageLocality"}]}}"#,
            {
                "TaintToleration=3 NodeAffinity=2 NodeResourcesFit=1 PodTopologySpread=2 InterPodAffinity=2 DynamicResources=2 NodeResourcesBalancedAllocation=1"
            },
        ),
        (
            "a zero weight is the default's",
            r#"{"multiPoint": {"enabled": [{"name": "NodeAffinity", "weight": 0}]}}"#,
            DEFAULT_SCORES,
        ),
    ] {
        let framework = framework(&format!(r#"{{"plugins": {plugins}}}"#))
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(scores(&framework), expect, "{what}");
    }
}

#[tokio::test]
async fn a_point_may_drop_a_plugin_that_stays_at_others() {
    let framework =
        framework(r#"{"plugins": {"filter": {"disabled": [{"name": "NodeResourcesFit"}]}}}"#)
            .expect("valid");
    let fit = framework
        .judges()
        .iter()
        .find(|judge| judge.plugin.name() == "NodeResourcesFit")
        .expect("still scores");
    assert!(!fit.filter && fit.score == Some(1));
}

#[tokio::test]
async fn what_cannot_work_is_refused_and_named() {
    for (profile, expect) in [
        (
            r#"{"plugins": {"filter": {"enabled": [{"name": "Foo"}]}}}"#,
            "plugin \"Foo\" does not exist",
        ),
        (
            r#"{"plugins": {"filter": {"enabled": [{"name": "DefaultBinder"}]}}}"#,
            "plugin \"DefaultBinder\" does not extend Filter plugin",
        ),
        (
            r#"{"plugins": {"score": {"enabled": [{"name": "ImageLocality"}, {"name": "ImageLocality"}]}}}"#,
            "already registered as Score",
        ),
        (
            r#"{"plugins": {"queueSort": {"disabled": [{"name": "*"}]}}}"#,
            "exactly one queue sort plugin required, got 0",
        ),
        (
            r#"{"plugins": {"bind": {"disabled": [{"name": "*"}]}}}"#,
            "at least one bind plugin is needed",
        ),
        (
            r#"{"plugins": {"score": {"enabled": [{"name": "ImageLocality", "weight": -1}]}}}"#,
            "invalid weight -1",
        ),
        (
            r#"{"pluginConfig": [{"name": "NodeResourcesFit", "args": {"nope": 1}}]}"#,
            "initializing profile \"test\"",
        ),
    ] {
        let error = framework(profile)
            .err()
            .unwrap_or_else(|| panic!("{profile} is accepted"))
            .to_string();
        assert!(error.contains(expect), "{profile}: {error}");
    }
}

#[tokio::test]
async fn what_is_written_out_makes_the_same_framework() {
    for profile in [
        json!({}),
        json!({"plugins": {"score": {"disabled": [{"name": "*"}]}, "multiPoint": {"enabled": [{"name": "NodeAffinity", "weight": 9}]}}}),
        json!({"plugins": {"multiPoint": {"disabled": [{"name": "*"}], "enabled": [{"name": "PrioritySort"}, {"name": "DefaultBinder"}, {"name": "NodeName"}]}}}),
        json!({"plugins": {"filter": {"enabled": [{"name": "NodePorts"}], "disabled": [{"name": "NodeName"}]}}}),
    ] {
        let mut config = crate::config::KubeSchedulerConfiguration::default();
        let of: KubeSchedulerProfile = serde_json::from_value(profile.clone()).expect("valid");
        config.profiles.push(of);
        let written = crate::config::completed(&config, &plugins::registry::in_tree());
        let (a, b) = (
            framework(&profile.to_string()).expect("works"),
            framework(&written["profiles"][0].to_string()).expect("works"),
        );
        assert_eq!(names(&a.points().filter), names(&b.points().filter));
        assert_eq!(names(&a.points().pre_filter), names(&b.points().pre_filter));
        assert_eq!(names(&a.points().bind), names(&b.points().bind));
        assert_eq!(scores(&a), scores(&b));
    }
}

/// Made as `Odd`, whatever the registry calls it.
struct Odd;

impl Plugin for Odd {
    fn name(&self) -> &'static str {
        "Odd"
    }
}

#[tokio::test]
async fn a_plugin_goes_by_the_name_it_was_brought_under() {
    let registry = framework::Registry::new().with_plugin("Even", |_, _| Ok(Arc::new(Odd)));
    let all = crate::app::registry(false, &registry).expect("each name once");
    let profile = serde_json::json!({"schedulerName": "s", "plugins": {"multiPoint": {"enabled": [{"name": "Even"}]}}});
    let profile: KubeSchedulerProfile = serde_json::from_value(profile).expect("decodes");
    let error = new_framework(&profile, &all, shared(), Beside::default()).err();
    assert_eq!(
        error.expect("refused").to_string(),
        "initializing profile \"s\": plugin \"Even\" calls itself \"Odd\""
    );
}

#[tokio::test]
async fn a_component_that_cannot_be_is_refused_by_name() {
    let refused = |yaml: &str| {
        let error = framework(yaml).err().expect("refused");
        match error {
            ProfileError::Plugin { source, .. } => source.to_string(),
            other => panic!("{other}"),
        }
    };
    let error = refused(
        r#"{"plugins": {"score": {"enabled": [{"name": "Greenest"}]}},
            "pluginConfig": [{"name": "Greenest", "args": {"kind": "WasmPluginArgs", "path": "/no/such.wasm"}}]}"#,
    );
    assert!(
        error.contains("path: Invalid value: \"/no/such.wasm\": No such file"),
        "{error}"
    );
    let error = refused(
        r#"{"pluginConfig": [{"name": "NodeName", "args": {"kind": "WasmPluginArgs", "path": "/no/such.wasm"}}]}"#,
    );
    assert!(
        error.contains("NodeName is a plugin of this program"),
        "{error}"
    );
}
