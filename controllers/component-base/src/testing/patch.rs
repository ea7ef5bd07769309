//! How patches are merged: RFC 7386, and upstream's strategic merge, whose lists have keys.

use serde_json::{Map, Value};

/// Lists that a strategic merge merges item by item, and by which of their fields. Where a name means lists of several
/// kinds (`ports`), the first field that the items have. Source: `x-kubernetes-patch-merge-key` of upstream's OpenAPI.
const KEYED: &[(&str, &[&str])] = &[
    ("addresses", &["type", "ip"]),
    ("conditions", &["type"]),
    ("containers", &["name"]),
    ("env", &["name"]),
    ("ephemeralContainers", &["name"]),
    ("hostAliases", &["ip"]),
    ("imagePullSecrets", &["name"]),
    ("initContainers", &["name"]),
    ("ownerReferences", &["uid"]),
    ("podIPs", &["ip"]),
    ("ports", &["containerPort", "port"]),
    ("secrets", &["name"]),
    ("taints", &["key"]),
    ("volumeMounts", &["mountPath"]),
    ("volumes", &["name"]),
    ("volumesAttached", &["name"]),
];
/// Lists of words that it makes a union of.
const UNIONS: &[&str] = &["finalizers"];

/// RFC 7386.
pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    for (name, value) in patch {
        let object = as_object(target);
        match value.is_null() {
            true => drop(object.remove(name)),
            false => merge(object.entry(name).or_insert(Value::Null), value),
        }
    }
    as_object(target);
}

/// Upstream: `k8s.io/apimachinery/pkg/util/strategicpatch`.
pub(super) fn strategic(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if patch.get("$patch").is_some_and(|how| how == "replace") {
        let mut whole = patch.clone();
        whole.remove("$patch");
        *target = Value::Object(whole);
        return;
    }
    for (name, value) in patch {
        let object = as_object(target);
        if let Some(list) = name.strip_prefix("$deleteFromPrimitiveList/") {
            if let (Some(Value::Array(have)), Some(gone)) = (object.get_mut(list), value.as_array())
            {
                have.retain(|item| !gone.contains(item));
            }
            continue;
        }
        if name.starts_with('$') {
            continue;
        }
        if value.is_null() {
            object.remove(name);
            continue;
        }
        let slot = object.entry(name).or_insert(Value::Null);
        match value {
            Value::Array(items) => merge_list(name, slot, items),
            _ => strategic(slot, value),
        }
    }
    as_object(target);
}

fn merge_list(name: &str, target: &mut Value, items: &[Value]) {
    if UNIONS.contains(&name) && target.is_array() {
        let have = target.as_array_mut().expect("just looked");
        for item in items {
            if !have.contains(item) {
                have.push(item.clone());
            }
        }
        return;
    }
    let keys = KEYED.iter().find(|(list, _)| *list == name);
    let key = keys.and_then(|(_, keys)| {
        let has = |key: &&&str| items.iter().any(|item| !item[**key].is_null());
        keys.iter().find(has)
    });
    let (Some(key), true) = (key, target.is_array() || target.is_null()) else {
        *target = Value::Array(items.to_vec());
        return;
    };
    let mut have = match target.take() {
        Value::Array(have) => have,
        _ => Vec::new(),
    };
    for item in items {
        let at = have.iter().position(|held| held[*key] == item[*key]);
        match (item.get("$patch").and_then(Value::as_str), at) {
            (Some("delete"), Some(at)) => drop(have.remove(at)),
            (Some("delete"), None) => {}
            (_, Some(at)) => strategic(&mut have[at], item),
            (_, None) => have.push(item.clone()),
        }
    }
    *target = Value::Array(have);
}

fn as_object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("made one just now")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn patches_are_merged_as_upstream_does() {
        for (how, target, patch, expect) in [
            (
                merge as fn(&mut Value, &Value),
                json!({"a": {"b": 1, "c": 2}}),
                json!({"a": {"b": null}}),
                json!({"a": {"c": 2}}),
            ),
            (
                merge,
                json!({"l": [1, 2]}),
                json!({"l": [3]}),
                json!({"l": [3]}),
            ),
            (
                merge,
                json!({}),
                json!({"a": {"b": {}}}),
                json!({"a": {"b": {}}}),
            ),
            (
                strategic,
                json!({"conditions": [{"type": "A", "status": "True"}, {"type": "B"}]}),
                json!({"conditions": [{"type": "A", "status": "False"}, {"type": "C"}]}),
                json!({"conditions": [{"type": "A", "status": "False"}, {"type": "B"}, {"type": "C"}]}),
            ),
            (
                strategic,
                json!({"containers": [{"name": "a"}, {"name": "b"}]}),
                json!({"containers": [{"name": "a", "$patch": "delete"}]}),
                json!({"containers": [{"name": "b"}]}),
            ),
            (
                strategic,
                json!({"finalizers": ["a", "b"]}),
                json!({"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"]}),
                json!({"finalizers": ["b", "c"]}),
            ),
            (
                strategic,
                json!({"args": ["a"]}),
                json!({"args": ["b"]}),
                json!({"args": ["b"]}),
            ),
            (
                strategic,
                json!({"addresses": [{"type": "InternalIP", "address": "1"}]}),
                json!({"addresses": [{"type": "InternalIP", "address": "2"}], "$setElementOrder/addresses": []}),
                json!({"addresses": [{"type": "InternalIP", "address": "2"}]}),
            ),
        ] {
            let mut merged = target.clone();
            how(&mut merged, &patch);
            assert_eq!(merged, expect, "{target} by {patch}");
        }
    }
}
