//! Which Pods a Service selects, and which Services select a Pod: found by labels, so that the work is that of what is found, not of all
//! that a namespace has.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use component_base::informer::Informer;
use component_helpers::labels::is_subset;
use controller_runtime::ObjectKey;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// The index of Pods by each of their labels.
const BY_LABEL: &str = "label";
/// The index of Services by one label that they demand.
const BY_SELECTOR: &str = "selector";

/// Labels that each owner, or each Pod, has a value of its own for and that Services do not select by: not worth an entry each.
const NOT_INDEXED: [&str; 6] = [
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-completion-index",
    "batch.kubernetes.io/job-name",
    "controller-revision-hash",
    "controller-uid",
    "pod-template-hash",
];

/// Lets [`pods_of`] find its Pods.
pub(crate) fn index_pods(pods: &Informer<Pod>) {
    pods.add_index(BY_LABEL, |pod| {
        let namespace = namespace(&pod.metadata);
        let labels = pod.metadata.labels.iter().flatten();
        let indexed = labels.filter(|(key, _)| is_indexed(key));
        indexed
            .map(|(key, value)| pair(namespace, key, value))
            .collect()
    });
}

/// Lets [`services_of`] find its Services.
pub(crate) fn index_services(services: &Informer<Service>) {
    services.add_index(BY_SELECTOR, |service| {
        let Some(selector) = selector(service) else {
            return Vec::new();
        };
        let namespace = namespace(&service.metadata);
        vec![match selector.first_key_value() {
            Some((key, value)) => pair(namespace, key, value),
            None => whole(namespace),
        }]
    });
}

/// The labels that a Service demands of its Pods. `None`: its endpoints are not ours to make.
pub(crate) fn selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    let spec = service.spec.as_ref()?;
    spec.selector
        .as_ref()
        .filter(|_| spec.type_.as_deref() != Some("ExternalName"))
}

/// The Pods of a namespace with all `wanted` labels. Needs [`index_pods`].
pub(crate) fn pods_of(
    pods: &Informer<Pod>,
    namespace: &str,
    wanted: &BTreeMap<String, String>,
) -> Vec<Arc<Pod>> {
    let indexed = wanted.iter().filter(|(key, _)| is_indexed(key));
    let rarest = indexed
        .map(|(key, value)| pair(namespace, key, value))
        .min_by_key(|pair| pods.count_by_index(BY_LABEL, pair));
    let mut found = match rarest {
        Some(pair) => pods.by_index(BY_LABEL, &pair),
        None => pods.list_namespace(namespace),
    };
    found.retain(|pod| is_subset(wanted, &pod.metadata.labels));
    found
}

/// The Services whose selector matches the Pod. Needs [`index_services`].
pub(crate) fn services_of(services: &Informer<Service>, pod: &ObjectMeta) -> BTreeSet<ObjectKey> {
    let namespace = namespace(pod);
    let labels = pod.labels.iter().flatten();
    let places = labels
        .map(|(key, value)| pair(namespace, key, value))
        .chain([whole(namespace)]);
    places
        .flat_map(|place| services.by_index(BY_SELECTOR, &place))
        .filter(|s| selector(s).is_some_and(|selector| is_subset(selector, &pod.labels)))
        .map(|s| ObjectKey::of(&*s))
        .collect()
}

fn namespace(meta: &ObjectMeta) -> &str {
    meta.namespace.as_deref().unwrap_or_default()
}

fn is_indexed(key: &str) -> bool {
    !NOT_INDEXED.contains(&key)
}

/// Neither namespaces nor keys of labels have a `=`, and namespaces no `/`.
fn pair(namespace: &str, key: &str, value: &str) -> String {
    format!("{namespace}/{key}={value}")
}

/// Where Services are that take every Pod.
fn whole(namespace: &str) -> String {
    format!("{namespace}/")
}

#[cfg(test)]
mod tests {
    use controller_runtime::testing::{Feed, settle};
    use serde_json::{Value, json};

    use super::*;

    fn service(name: &str, spec: Value) -> Service {
        let value = json!({ "metadata": { "name": name, "namespace": "n" }, "spec": spec });
        serde_json::from_value(value).unwrap()
    }

    fn pod(name: &str, namespace: &str, labels: Value) -> Pod {
        let meta = json!({ "name": name, "namespace": namespace, "labels": labels });
        serde_json::from_value(json!({ "metadata": meta })).unwrap()
    }

    #[tokio::test]
    async fn indexes_find_what_a_search_of_all_finds() {
        let (service_feed, services) = Feed::<Service>::new();
        let (pod_feed, pods) = Feed::<Pod>::new();
        index_pods(&pods);
        index_services(&services);
        let all_services = [
            service("one", json!({ "selector": { "app": "a" } })),
            service("both", json!({ "selector": { "app": "a", "zone": "z" } })),
            service("hash", json!({ "selector": { "pod-template-hash": "1" } })),
            service("all", json!({ "selector": {} })),
            service("own", json!({})),
            service(
                "name",
                json!({ "type": "ExternalName", "selector": { "app": "a" } }),
            ),
        ];
        let all_pods = [
            pod("a", "n", json!({ "app": "a" })),
            pod("az", "n", json!({ "app": "a", "zone": "z" })),
            pod("z", "n", json!({ "zone": "z" })),
            pod("h", "n", json!({ "pod-template-hash": "1" })),
            pod("bare", "n", Value::Null),
            pod("elsewhere", "m", json!({ "app": "a", "zone": "z" })),
        ];
        all_services
            .iter()
            .for_each(|s| service_feed.apply(s.clone()));
        all_pods.iter().for_each(|p| pod_feed.apply(p.clone()));
        settle().await;
        let matches = |service: &Service, pod: &Pod| {
            service.metadata.namespace == pod.metadata.namespace
                && selector(service).is_some_and(|s| is_subset(s, &pod.metadata.labels))
        };
        for pod in &all_pods {
            let expect: BTreeSet<_> = all_services
                .iter()
                .filter(|service| matches(service, pod))
                .map(ObjectKey::of)
                .collect();
            assert_eq!(services_of(&services, &pod.metadata), expect);
        }
        for service in &all_services {
            let Some(wanted) = selector(service) else {
                continue;
            };
            let found: BTreeSet<_> = pods_of(&pods, "n", wanted)
                .iter()
                .map(|pod| ObjectKey::of(&**pod))
                .collect();
            let expect: BTreeSet<_> = all_pods
                .iter()
                .filter(|pod| matches(service, pod))
                .map(ObjectKey::of)
                .collect();
            assert_eq!(found, expect, "{service:?}");
        }
    }

    #[tokio::test]
    async fn a_change_of_labels_moves_a_pod() {
        let (feed, pods) = Feed::<Pod>::new();
        index_pods(&pods);
        feed.apply(pod("a", "n", json!({ "app": "a" })));
        let mut changed = pod("a", "n", json!({ "app": "b" }));
        changed.metadata.resource_version = Some("2".into());
        feed.apply(changed);
        settle().await;
        let of = |app: &str| {
            let wanted = BTreeMap::from([("app".to_owned(), app.to_owned())]);
            pods_of(&pods, "n", &wanted).len()
        };
        assert_eq!((of("a"), of("b")), (0, 1));
    }
}
