//! Paths into objects as jq writes them, as far as stages use them: `.metadata.deletionTimestamp`, `.spec.containers.[].name`,
//! `.metadata.annotations["a/b"]`, `.status.conditions.[] | select( .type == "Ready" ) | .status`. Pure.
//!
//! Whatever else jq has is refused by name. Upstream: kwok's `pkg/utils/expression` (gojq).

use serde_json::Value;

/// A compiled path.
#[derive(Clone, Debug, PartialEq)]
pub struct Path {
    steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Index(usize),
    Each,
    Select { path: Path, equal: bool, to: Value },
}

/// What is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{expression:?}: {what}")]
pub struct PathError {
    pub expression: String,
    pub what: String,
}

impl Path {
    /// Reads a path.
    ///
    /// # Errors
    /// Names what is not understood.
    pub fn parse(expression: &str) -> Result<Self, PathError> {
        let mut steps = Vec::new();
        let error = |what: String| PathError {
            expression: expression.to_owned(),
            what,
        };
        for part in split_pipes(expression) {
            let part = part.trim();
            if let Some(inner) = part.strip_prefix("select") {
                let inner = inner.trim();
                let inner = inner.strip_prefix('(').and_then(|i| i.strip_suffix(')'));
                let inner = inner
                    .ok_or_else(|| error("select needs a condition in brackets".to_owned()))?;
                steps.push(select(inner, &error)?);
            } else {
                plain(part, &mut steps, &error)?;
            }
        }
        Ok(Self { steps })
    }

    /// Everything it leads to that is not null.
    pub fn values<'a>(&self, object: &'a Value) -> Vec<&'a Value> {
        let mut values = vec![object];
        for step in &self.steps {
            values = match step {
                Step::Field(name) => values.into_iter().filter_map(|v| v.get(name)).collect(),
                Step::Index(index) => values.into_iter().filter_map(|v| v.get(index)).collect(),
                Step::Each => values.into_iter().flat_map(each).collect(),
                Step::Select { path, equal, to } => values
                    .into_iter()
                    .filter(|v| path.values(v).contains(&to) == *equal)
                    .collect(),
            };
        }
        values.retain(|v| !v.is_null());
        values
    }
}

fn each(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(list) => list.iter().collect(),
        Value::Object(object) => object.values().collect(),
        _ => Vec::new(),
    }
}

/// At the bars that stand in no text and in no brackets.
fn split_pipes(text: &str) -> Vec<&str> {
    let (mut parts, mut begin, mut depth, mut quoted) = (Vec::new(), 0, 0_i32, false);
    for (at, c) in text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if !quoted => depth -= 1,
            '|' if !quoted && depth == 0 => {
                parts.push(&text[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[begin..]);
    parts
}

fn select(inner: &str, error: &impl Fn(String) -> PathError) -> Result<Step, PathError> {
    let (left, right, equal) = match (inner.split_once("=="), inner.split_once("!=")) {
        (Some((left, right)), _) => (left, right, true),
        (None, Some((left, right))) => (left, right, false),
        (None, None) => {
            return Err(error(format!(
                "the condition {:?} is not understood: only == and != are",
                inner.trim()
            )));
        }
    };
    let right = right.trim();
    let to = serde_json::from_str(right)
        .map_err(|_| error(format!("{right:?} is no text, number or word")))?;
    Ok(Step::Select {
        path: Path::parse(left.trim())?,
        equal,
        to,
    })
}

fn plain(
    mut rest: &str,
    steps: &mut Vec<Step>,
    error: &impl Fn(String) -> PathError,
) -> Result<(), PathError> {
    if rest == "." {
        return Ok(());
    }
    if !rest.starts_with('.') {
        return Err(error(format!(
            "{rest:?} is not understood: a path begins with a dot"
        )));
    }
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('[').or_else(|| rest.strip_prefix(".[")) {
            let end = after
                .find(']')
                .ok_or_else(|| error("a bracket is not closed".to_owned()))?;
            let (inner, after) = (after[..end].trim(), &after[end + 1..]);
            steps.push(match (inner.is_empty(), inner.parse::<usize>()) {
                (true, _) => Step::Each,
                (_, Ok(index)) => Step::Index(index),
                _ => Step::Field(
                    serde_json::from_str(inner)
                        .map_err(|_| error(format!("[{inner}] is not understood")))?,
                ),
            });
            rest = after;
            continue;
        }
        let Some(after) = rest.strip_prefix('.') else {
            return Err(error(format!("{rest:?} is not understood")));
        };
        if after.starts_with('"') {
            let end = after[1..]
                .find('"')
                .ok_or_else(|| error("a text is not closed".to_owned()))?;
            steps.push(Step::Field(after[1..=end].to_owned()));
            rest = &after[end + 2..];
            continue;
        }
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let end = after.find(|c| !is_word(c)).unwrap_or(after.len());
        if end == 0 {
            return Err(error(format!("{rest:?} is not understood")));
        }
        steps.push(Step::Field(after[..end].to_owned()));
        rest = &after[end..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_lead_to_values() {
        let object = json!({
            "metadata": {"annotations": {"a/b": "c"}, "finalizers": ["x", "y"]},
            "spec": {"containers": [{"name": "one"}, {"name": "two"}]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}], "reason": null},
        });
        let check = |path: &str, expect: Value| {
            let path = Path::parse(path).unwrap();
            assert_eq!(json!(path.values(&object)), expect, "{path:?}");
        };
        check(".metadata.deletionTimestamp", json!([]));
        check(".status.reason", json!([]));
        check(".metadata.annotations[\"a/b\"]", json!(["c"]));
        check(".metadata.annotations.\"a/b\"", json!(["c"]));
        check(".metadata.finalizers.[]", json!(["x", "y"]));
        check(".spec.containers.[].name", json!(["one", "two"]));
        check(".spec.containers[1].name", json!(["two"]));
        check(
            ".status.conditions.[] | select( .type == \"Ready\" ) | .status",
            json!(["True"]),
        );
        check(
            ".status.conditions.[] | select( .type != \"Ready\" ) | .status",
            json!(["False"]),
        );
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let check = |path: &str, expect: &str| {
            let error = Path::parse(path).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        };
        check("metadata", "begins with a dot");
        check(".a | length", "\"length\"");
        check(".a | select(.b > 1)", ".b > 1");
        check(".a[.b]", "[.b]");
        check(".a // 1", "\" // 1\"");
        check(".a[", "not closed");
    }
}
