//! The decision: the rules an aggregated ClusterRole should have. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use component_helpers::labels::Selector;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};

/// The rules, each once, when they differ from what the role has; `None` when it has them or does not aggregate. A selector that
/// cannot be read selects nothing (the API server lets none in).
pub(super) fn sync(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Option<Vec<PolicyRule>> {
    let rule = role.aggregation_rule.as_ref()?;
    let none = BTreeMap::new();
    let mut rules: Vec<PolicyRule> = Vec::new();
    for selector in rule.cluster_role_selectors.iter().flatten() {
        let Ok(selector) = Selector::new(selector) else {
            continue;
        };
        let mut selected: Vec<&Arc<ClusterRole>> = all
            .iter()
            .filter(|other| other.metadata.name != role.metadata.name)
            .filter(|other| selector.matches(other.metadata.labels.as_ref().unwrap_or(&none)))
            .collect();
        selected.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        for other in selected {
            for candidate in other.rules.iter().flatten() {
                if !rules.contains(candidate) {
                    rules.push(candidate.clone());
                }
            }
        }
    }
    (rules.as_slice() != role.rules.as_deref().unwrap_or_default()).then_some(rules)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn role(name: &str, label: &str, verbs: &[&str], aggregates: Option<&str>) -> Arc<ClusterRole> {
        let rules: Vec<_> = verbs.iter().map(|v| json!({ "verbs": [v] })).collect();
        let rule =
            aggregates.map(|l| json!({ "clusterRoleSelectors": [{ "matchLabels": { "to": l } }] }));
        let value = json!({ "metadata": { "name": name, "labels": { "to": label } }, "rules": rules, "aggregationRule": rule });
        Arc::new(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn collects_each_rule_once_in_order_of_names() {
        let all = [
            role("z", "view", &["get", "list"], None),
            role("a", "view", &["watch", "get"], None),
            role("o", "edit", &["x"], None),
        ];
        let rules = sync(&role("view", "", &[], Some("view")), &all).unwrap();
        let verbs: Vec<&str> = rules.iter().map(|r| r.verbs[0].as_str()).collect();
        assert_eq!(verbs, ["watch", "get", "list"]);
        assert_eq!(
            sync(
                &role("view", "", &["watch", "get", "list"], Some("view")),
                &all
            ),
            None
        );
        assert_eq!(sync(&role("plain", "", &[], None), &all), None);
    }
}
