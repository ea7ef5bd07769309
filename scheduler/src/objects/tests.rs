//! Plugins are told all there is once they work, and then what changes.

use std::sync::Mutex;

use component_base::clock::Clock;
use framework::testing::make_pod;
use framework::{Handle, Observer, PluginError, Registration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::bench::NoObjects;
use crate::config::{KubeSchedulerConfiguration, set_defaults};
use crate::metrics::Metrics;
use crate::runtime::Shared;
use crate::scheduler::{POD_MAX_IN_UNSCHEDULABLE_PODS_DURATION, Scheduler, new_profiles};
use crate::testing::Writes;

const KIND: ObjectKind = ObjectKind {
    group: "example.com",
    version: "v1",
    kind: "Thing",
    plural: "things",
    event: "things.v1.example.com",
};

/// What observers of these tests hear; one test runs at a time.
static HEARD: Mutex<Vec<String>> = Mutex::new(Vec::new());
static TURN: Mutex<()> = Mutex::new(());

fn heard() -> Vec<String> {
    std::mem::take(&mut *HEARD.lock().unwrap())
}

struct Listening {
    pods: bool,
}

impl Plugin for Listening {
    fn name(&self) -> &'static str {
        if self.pods { "Listening" } else { "Deaf" }
    }
    fn as_pre_enqueue(&self) -> Option<&dyn framework::PreEnqueuePlugin> {
        Some(self)
    }
    fn as_observer(&self) -> Option<&dyn Observer> {
        Some(self)
    }
}

impl framework::PreEnqueuePlugin for Listening {
    fn pre_enqueue(&self, _: &Arc<Pod>) -> framework::Status {
        framework::Status::success()
    }
}

impl Observer for Listening {
    fn kinds(&self) -> Vec<ObjectKind> {
        if self.pods { vec![KIND] } else { Vec::new() }
    }
    fn hears_pods(&self) -> bool {
        self.pods
    }
    fn begin(&self) {
        HEARD
            .lock()
            .unwrap()
            .push(format!("{} begins", self.name()));
    }
    fn observe(&self, old: Option<&EventObject>, new: Option<&EventObject>) {
        let name = |object: Option<&EventObject>| match object {
            None => "-".to_owned(),
            Some(EventObject::Pod(pod)) => pod.metadata.name.clone().unwrap_or_default(),
            Some(EventObject::Custom(object)) => object.key(),
            Some(other) => panic!("not asked for: {other:?}"),
        };
        let what = format!("{}: {} {}", self.name(), name(old), name(new));
        HEARD.lock().unwrap().push(what);
    }
}

fn thing(name: &str) -> Arc<Object> {
    Arc::new(Object {
        kind: KIND,
        metadata: ObjectMeta {
            namespace: Some("ns".into()),
            name: Some(name.into()),
            ..ObjectMeta::default()
        },
        data: json!({"spec": {"size": 3}}),
    })
}

#[derive(Default)]
struct Known {
    watched: Mutex<Vec<ObjectKind>>,
}

impl Sources for Known {
    fn watch(&self, kind: ObjectKind) {
        self.watched.lock().unwrap().push(kind);
    }
    fn objects(&self, kind: ObjectKind) -> Vec<Arc<Object>> {
        assert!(
            self.watched.lock().unwrap().contains(&kind),
            "watched first"
        );
        vec![thing("a")]
    }
    fn pods(&self) -> Vec<Arc<Pod>> {
        vec![make_pod("p").build()]
    }
}

type Factory =
    fn(Option<&serde_json::Value>, Arc<dyn Handle>) -> Result<Arc<dyn Plugin>, PluginError>;

fn registry() -> Vec<Registration> {
    let mut registry = plugins::registry::in_tree();
    let factories: [(&'static str, Factory); 2] = [
        ("Listening", |_, _| Ok(Arc::new(Listening { pods: true }))),
        ("Deaf", |_, _| Ok(Arc::new(Listening { pods: false }))),
    ];
    registry.extend(factories.map(|(name, factory)| Registration {
        name,
        default_weight: 0,
        default_enabled: false,
        factory,
    }));
    registry
}

fn config(enabled: &[&str]) -> KubeSchedulerConfiguration {
    let enabled: Vec<_> = enabled.iter().map(|name| json!({"name": name})).collect();
    let profile = json!({"plugins": {"multiPoint": {"enabled": enabled}}});
    let mut config = KubeSchedulerConfiguration::default();
    config
        .profiles
        .push(serde_json::from_value(profile).expect("valid"));
    set_defaults(&mut config);
    config
}

fn scheduler(enabled: &[&str]) -> Arc<Scheduler> {
    let shared = Shared::new(
        Arc::new(NoObjects::with_pods(std::iter::empty())),
        Arc::new(Writes::default()),
        Arc::new(|_| {}),
        tokio::runtime::Handle::current(),
        CancellationToken::new(),
        Clock::real(),
        Metrics::unread(Clock::real()),
    );
    shared.observers().set_sources(Arc::new(Known::default()));
    let wait = POD_MAX_IN_UNSCHEDULABLE_PODS_DURATION;
    Scheduler::new(&config(enabled), &registry(), shared, wait).expect("valid")
}

#[tokio::test]
async fn a_plugin_is_told_all_there_is_and_what_changes() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    heard();
    let scheduler = scheduler(&["Listening", "Deaf"]);
    assert_eq!(
        heard(),
        [
            "Listening: - ns/a",
            "Listening: - p",
            "Listening begins",
            "Deaf begins"
        ]
    );
    let observers = scheduler.shared.observers();
    let (one, two) = (make_pod("one").build(), make_pod("two").build());
    observers.tell_pod(Some(&one), Some(&two));
    let object = EventObject::Custom(thing("b"));
    observers.tell_object(KIND, Some(&object), None);
    let other = ObjectKind {
        plural: "others",
        ..KIND
    };
    observers.tell_object(other, Some(&object), None);
    assert_eq!(heard(), ["Listening: one two", "Listening: ns/b -"]);
    observers.tell_objects();
    assert_eq!(heard(), ["Listening: - ns/a"]);
}

#[tokio::test]
async fn after_a_reload_the_new_plugins_hear_and_the_old_ones_do_not() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    heard();
    let scheduler = scheduler(&[]);
    let observers = scheduler.shared.observers();
    let pod = make_pod("x").build();
    observers.tell_pod(None, Some(&pod));
    assert!(heard().is_empty());
    scheduler
        .reconfigure(&config(&["Listening"]))
        .expect("valid");
    assert_eq!(
        heard(),
        ["Listening: - ns/a", "Listening: - p", "Listening begins"]
    );
    observers.tell_pod(None, Some(&pod));
    assert_eq!(heard(), ["Listening: - x"]);
    scheduler.reconfigure(&config(&["Deaf"])).expect("valid");
    heard();
    observers.tell_pod(None, Some(&pod));
    assert!(heard().is_empty());
}

#[tokio::test]
async fn one_that_answers_a_question_is_informed_and_does_not_begin() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let scheduler = scheduler(&["Listening"]);
    heard();
    let profiles = new_profiles(&config(&["Listening"]), &registry(), &scheduler.shared);
    for framework in profiles.expect("valid").values() {
        scheduler
            .shared
            .observers()
            .inform(framework.points().plugins());
    }
    assert_eq!(heard(), ["Listening: - ns/a", "Listening: - p"]);
}

#[test]
fn an_object_is_decoded_by_the_plugin() {
    #[derive(serde::Deserialize)]
    struct Thing {
        spec: Spec,
    }
    #[derive(serde::Deserialize)]
    struct Spec {
        size: u32,
    }
    let decoded: Thing = thing("a").decode().expect("decodes");
    assert_eq!(decoded.spec.size, 3);
    #[derive(serde::Deserialize)]
    #[allow(dead_code)]
    struct Other {
        spec: Vec<u32>,
    }
    assert!(thing("a").decode::<Other>().is_err());
}
