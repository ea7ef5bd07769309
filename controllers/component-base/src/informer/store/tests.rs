use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::*;

fn object(namespace: &str, name: &str, label: &str, version: u32) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some(namespace.into()),
            uid: Some(format!("{namespace}-{name}")),
            resource_version: Some(version.to_string()),
            labels: Some([("app".to_owned(), label.to_owned())].into()),
            ..ObjectMeta::default()
        },
        ..ConfigMap::default()
    }
}

fn names(objects: Vec<Arc<ConfigMap>>) -> Vec<String> {
    let mut names: Vec<String> = objects
        .iter()
        .map(|o| {
            let (namespace, name) = name_of(&**o);
            format!("{namespace}/{name}")
        })
        .collect();
    names.sort();
    names
}

fn app(object: &ConfigMap) -> Vec<String> {
    object
        .metadata
        .labels
        .iter()
        .flatten()
        .map(|(_, v)| v.clone())
        .collect()
}

/// The store says the same as a plain map, whatever came and went, also when all names have one hash.
#[test]
fn places_are_given_back_and_never_mixed_up() {
    for same_hash in [false, true] {
        let store = Store::<ConfigMap>::new();
        store.add_index("app", Box::new(app));
        if same_hash {
            store.write().names.mask = 0;
        }
        let mut expected: std::collections::BTreeMap<String, ConfigMap> = Default::default();
        let mut random = 7_u32;
        for version in 0..4_000 {
            random = random.wrapping_mul(1_103_515_245).wrapping_add(12_345);
            let (namespace, name) = (random >> 16 & 1, random >> 18 & 15);
            let label = (random >> 24 & 3).to_string();
            let object = object(
                &format!("ns{namespace}"),
                &format!("n{name}"),
                &label,
                version,
            );
            let key = format!("ns{namespace}/n{name}");
            if random >> 28 & 3 == 0 {
                expected.remove(&key);
                store.apply(Event::Delete(object));
            } else {
                expected.insert(key, object.clone());
                store.apply(Event::Apply(object));
            }
            assert_eq!(store.len(), expected.len());
            assert_eq!(
                names(store.list()),
                expected.keys().cloned().collect::<Vec<_>>()
            );
            let of = |keep: &dyn Fn(&ConfigMap) -> bool| -> Vec<String> {
                let kept = expected.iter().filter(|(_, o)| keep(o));
                kept.map(|(key, _)| key.clone()).collect()
            };
            let in_first = of(&|o| o.metadata.namespace.as_deref() == Some("ns0"));
            assert_eq!(names(store.list_namespace("ns0")), in_first);
            assert_eq!(names(store.by_index("app", "2")), of(&|o| app(o) == ["2"]));
            for (key, object) in &expected {
                let (namespace, name) = key.split_once('/').expect("made so");
                let found = store.get(namespace, name);
                assert_eq!(found.as_deref(), Some(object));
            }
        }
        assert!(store.read().slots.len() <= 32, "places are used again");
    }
}

#[test]
fn what_a_list_lacks_is_gone() {
    let store = Store::<ConfigMap>::new();
    for name in ["a", "b", "c"] {
        store.apply(Event::Apply(object("ns", name, "x", 1)));
    }
    store.apply(Event::Init);
    store.apply(Event::InitApply(object("ns", "b", "x", 1)));
    store.apply(Event::InitApply(object("ns", "d", "x", 9)));
    assert_eq!(store.len(), 4);
    assert!(store.apply(Event::InitDone));
    assert_eq!(names(store.list()), ["ns/b", "ns/d"]);
}
