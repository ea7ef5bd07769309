//! What an update changes, in words. Pure.

use std::collections::BTreeSet;

use serde_json::Value;

/// Each change of a leaf as `path: old -> new`, in the order of paths. Null and nothing are the same; conditions and containers are
/// known by their type and name, whatever their place.
pub fn changes(old: &Value, new: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare("", old, new, &mut found);
    found
}

/// What a patch sets.
pub fn settings(patch: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare("", &Value::Null, patch, &mut found);
    found
}

fn compare(path: &str, old: &Value, new: &Value, found: &mut Vec<String>) {
    if old == new || path == "metadata.managedFields" {
        return;
    }
    let below = |name: &str| match path {
        "" => name.to_owned(),
        path => format!("{path}.{name}"),
    };
    let keys: BTreeSet<String> = keys(old).chain(keys(new)).collect();
    let both = [old, new].map(|v| v.is_null() || v.is_object() || identity(v).is_some());
    if both != [true, true] || keys.is_empty() {
        if !is_nothing(old) || !is_nothing(new) {
            found.push(format!("{path}: {} -> {}", text(old), text(new)));
        }
        return;
    }
    for key in keys {
        let (old, new) = (child(old, &key), child(new, &key));
        compare(&below(&key), old, new, found);
    }
}

/// By what the items of a list are known, where they are.
fn identity(value: &Value) -> Option<&'static str> {
    let items = value.as_array()?;
    ["type", "name", "uid"]
        .into_iter()
        .find(|key| !items.is_empty() && items.iter().all(|item| item[*key].is_string()))
}

fn keys(value: &Value) -> Box<dyn Iterator<Item = String> + '_> {
    if let Some(fields) = value.as_object() {
        return Box::new(fields.keys().cloned());
    }
    match (identity(value), value.as_array()) {
        (Some(key), Some(items)) => {
            let names = items.iter().filter_map(move |item| item[key].as_str());
            Box::new(names.map(|name| format!("[{name}]")))
        }
        _ => Box::new(std::iter::empty()),
    }
}

fn child<'a>(value: &'a Value, key: &str) -> &'a Value {
    if let (Some(by), Some(items)) = (identity(value), value.as_array()) {
        let name = key.trim_start_matches('[').trim_end_matches(']');
        let found = items.iter().find(|item| item[by] == name);
        return found.unwrap_or(&Value::Null);
    }
    value.get(key).unwrap_or(&Value::Null)
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

fn text(value: &Value) -> String {
    match value {
        value if is_nothing(value) => "nothing".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn leaves_by_their_paths() {
        let old = json!({
            "metadata": { "managedFields": [1], "name": "a", "labels": {} },
            "spec": { "replicas": 1, "paused": null },
            "status": { "conditions": [
                { "type": "Available", "status": "True" }, { "type": "Progressing", "status": "True", "reason": "New" },
            ] },
        });
        let new = json!({
            "metadata": { "managedFields": [2], "name": "a" },
            "spec": { "replicas": 3, "list": [1, 2] },
            "status": { "conditions": [
                { "type": "Progressing", "status": "False", "reason": "Late" }, { "type": "Available", "status": "True" },
            ] },
        });
        let expect = [
            "spec.list: nothing -> [1,2]",
            "spec.replicas: 1 -> 3",
            "status.conditions.[Progressing].reason: New -> Late",
            "status.conditions.[Progressing].status: True -> False",
        ];
        assert_eq!(changes(&old, &new), expect);
        assert!(changes(&old, &old).is_empty());
    }

    #[test]
    fn a_patch_sets_its_leaves() {
        let patch =
            json!({ "metadata": { "uid": "u", "$deleteFromPrimitiveList/finalizers": ["f"] } });
        let expect = [
            "metadata.$deleteFromPrimitiveList/finalizers: nothing -> [\"f\"]",
            "metadata.uid: nothing -> u",
        ];
        assert_eq!(settings(&patch), expect);
    }
}
