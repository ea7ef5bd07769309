//! The decision: create, repair, or leave the ConfigMap. Pure.

use std::collections::BTreeMap;

use controller_runtime::Action;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// The ConfigMap's name.
pub(super) const NAME: &str = "kube-root-ca.crt";
const KEY: &str = "ca.crt";
const DESCRIPTION_ANNOTATION: &str = "kubernetes.io/description";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";

/// What to do about the ConfigMap of a namespace.
pub(super) fn sync(namespace: &str, root_ca: &str, observed: Option<&ConfigMap>) -> Option<Action> {
    let data = BTreeMap::from([(KEY.to_string(), root_ca.to_string())]);
    let description = (DESCRIPTION_ANNOTATION.to_string(), DESCRIPTION.to_string());
    let Some(observed) = observed else {
        return Some(Action::create(&ConfigMap {
            metadata: ObjectMeta {
                name: Some(NAME.to_string()),
                namespace: Some(namespace.to_string()),
                annotations: Some(BTreeMap::from([description])),
                ..ObjectMeta::default()
            },
            data: Some(data),
            ..ConfigMap::default()
        }));
    };
    let annotations = observed.metadata.annotations.as_ref();
    let described = annotations
        .and_then(|a| a.get(DESCRIPTION_ANNOTATION))
        .is_some_and(|text| !text.is_empty());
    if observed.data.as_ref() == Some(&data) && described {
        return None;
    }
    let mut repaired = observed.clone();
    repaired.data = Some(data);
    repaired
        .metadata
        .annotations
        .get_or_insert_default()
        .insert(description.0, description.1);
    Some(Action::update(&repaired))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn creates_repairs_and_leaves() {
        let Some(Action::Create { object, .. }) = sync("ns", "PEM", None) else {
            panic!("creates")
        };
        let mut map: ConfigMap = serde_json::from_value(object.into_value()).unwrap();
        assert_eq!(sync("ns", "PEM", Some(&map)), None);
        map.data
            .as_mut()
            .unwrap()
            .insert("other".into(), "x".into());
        assert!(matches!(
            sync("ns", "PEM", Some(&map)),
            Some(Action::Update { .. })
        ));
        map.data.as_mut().unwrap().remove("other");
        map.metadata.annotations = None;
        assert!(matches!(
            sync("ns", "PEM", Some(&map)),
            Some(Action::Update { .. })
        ));
    }
}
