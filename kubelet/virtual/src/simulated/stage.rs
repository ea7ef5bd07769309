//! kwok's `Stage` objects: which one an object is in, when it is over, and what comes next. Pure.
//!
//! Understood are stages of pods with selectors by labels, annotations and expressions, weights, delays with jitter, and
//! `next.{event,finalizers,statusTemplate,delete}`. What is not built is refused when the file is read, by its field. Upstream:
//! `kwok.x-k8s.io/v1alpha1`, `pkg/utils/lifecycle`, v0.7.

use std::collections::BTreeMap;
use std::path::{Path as FilePath, PathBuf};
use std::time::Duration;

use component_base::config::{ConfigError, FieldError, aggregate, decode_strict};
use component_base::duration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use super::path::Path;
use super::template::Template;

const API_VERSION: &str = "kwok.x-k8s.io/v1alpha1";
const KIND: &str = "Stage";

#[derive(Clone, Debug, Deserialize)]
struct File {
    #[serde(default)]
    metadata: ObjectMeta,
    spec: Spec,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    resource_ref: ResourceRef,
    selector: Option<Selector>,
    #[serde(default)]
    weight: i64,
    weight_from: Option<From>,
    delay: Option<Delay>,
    #[serde(default)]
    next: Next,
    #[serde(default)]
    immediate_next_stage: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ResourceRef {
    api_group: String,
    kind: String,
}

impl Default for ResourceRef {
    fn default() -> Self {
        Self {
            api_group: "v1".to_owned(),
            kind: String::new(),
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Selector {
    match_labels: BTreeMap<String, String>,
    match_annotations: BTreeMap<String, String>,
    match_expressions: Vec<Requirement>,
}

#[derive(Clone, Debug, Deserialize)]
struct Requirement {
    key: String,
    operator: String,
    #[serde(default)]
    values: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct From {
    expression_from: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Delay {
    duration_milliseconds: Option<i64>,
    duration_from: Option<From>,
    jitter_duration_milliseconds: Option<i64>,
    jitter_duration_from: Option<From>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Next {
    event: Option<Event>,
    finalizers: Option<Finalizers>,
    delete: bool,
    status_template: String,
    status_subresource: Option<String>,
    status_patch_as: Option<Value>,
    patches: Option<Value>,
}

/// `next.event`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Event {
    #[serde(rename = "type")]
    pub type_: String,
    pub reason: String,
    pub message: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Finalizers {
    add: Vec<FinalizerItem>,
    remove: Vec<FinalizerItem>,
    empty: bool,
}

#[derive(Clone, Debug, Deserialize)]
struct FinalizerItem {
    value: String,
}

/// Why stages cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    #[error("stages: {path}: {source}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    File(#[from] ConfigError),
    #[error("{path}: stage {name:?}: {}", aggregate(.errors))]
    Invalid {
        path: PathBuf,
        name: String,
        errors: Vec<FieldError>,
    },
    #[error("{0}: no Stage is in it")]
    Empty(PathBuf),
}

#[derive(Clone, Debug)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

/// A number or a time that the object may say itself.
#[derive(Clone, Debug, Default)]
struct TimeSource {
    fixed: Option<Duration>,
    from: Option<Path>,
}

impl TimeSource {
    fn get(&self, object: &Value, now: Timestamp) -> Option<Duration> {
        let said = self.from.as_ref().and_then(|path| {
            let text = path.values(object).first()?.as_str()?;
            match text.parse::<Timestamp>() {
                Ok(at) => {
                    Some(Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO))
                }
                Err(_) => duration::parse(text).ok(),
            }
        });
        said.or(self.fixed)
    }
}

/// A stage that was read.
#[derive(Clone, Debug)]
pub struct Stage {
    pub name: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    expressions: Vec<(Path, Operator, Vec<String>)>,
    weight: i64,
    weight_from: Option<Path>,
    delay: TimeSource,
    jitter: TimeSource,
    pub event: Option<Event>,
    finalizers: Option<Finalizers>,
    pub delete: bool,
    pub status: Option<Template>,
    /// The object that the write gave is looked at at once.
    pub immediate_next: bool,
}

/// Reads a file of stages; a file may hold several documents.
///
/// # Errors
/// See [`StageError`].
pub fn load(path: &FilePath) -> Result<Vec<Stage>, StageError> {
    let text = std::fs::read_to_string(path).map_err(|source| StageError::Read {
        path: path.to_owned(),
        source,
    })?;
    let stages = decode(path, &text)?;
    match stages.is_empty() {
        true => Err(StageError::Empty(path.to_owned())),
        false => Ok(stages),
    }
}

fn decode(path: &FilePath, text: &str) -> Result<Vec<Stage>, StageError> {
    let mut stages = Vec::new();
    let mut document = String::new();
    for line in text.lines().chain(["---"]) {
        if line.trim_end() != "---" {
            document.push_str(line);
            document.push('\n');
            continue;
        }
        let document = std::mem::take(&mut document);
        let said = document.lines().map(str::trim);
        if said
            .clone()
            .all(|line| line.is_empty() || line.starts_with('#'))
        {
            continue;
        }
        let file: File = decode_strict(path, &document, API_VERSION, KIND)?;
        let name = file.metadata.name.unwrap_or_default();
        let stage = compile(name.clone(), file.spec).map_err(|errors| StageError::Invalid {
            path: path.to_owned(),
            name,
            errors,
        })?;
        stages.push(stage);
    }
    Ok(stages)
}

/// What a stage may say elsewhere and not here.
fn not_built(spec: &Spec) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let resource = (
        spec.resource_ref.api_group.as_str(),
        spec.resource_ref.kind.as_str(),
    );
    if resource != ("v1", "Pod") {
        errors.push(FieldError::invalid(
            "spec.resourceRef",
            format!("{} {}", resource.0, resource.1),
            "only stages of v1 Pod are built: nodes have the loops of virtual-kubelet itself",
        ));
    }
    let next = &spec.next;
    for (field, set) in [
        ("patches", next.patches.is_some()),
        ("statusPatchAs", next.status_patch_as.is_some()),
    ] {
        if set {
            errors.push(FieldError::forbidden(
                format!("spec.next.{field}"),
                "is not built",
            ));
        }
    }
    if let Some(subresource) = next.status_subresource.as_ref().filter(|s| *s != "status") {
        let path = "spec.next.statusSubresource";
        errors.push(FieldError::not_supported(path, subresource, &["status"]));
    }
    errors
}

fn compile(name: String, spec: Spec) -> Result<Stage, Vec<FieldError>> {
    let mut errors = not_built(&spec);
    let next = spec.next;
    let mut path = |field: &str, expression: &str| {
        let path = Path::parse(expression);
        path.map_err(|error| errors.push(FieldError::invalid(field, expression, error.what)))
            .ok()
    };
    let selector = spec.selector.unwrap_or_default();
    let mut operators = Vec::new();
    let mut expressions = Vec::new();
    for (index, requirement) in selector.match_expressions.into_iter().enumerate() {
        let at = format!("spec.selector.matchExpressions[{index}]");
        let operator = match requirement.operator.as_str() {
            "In" => Operator::In,
            "NotIn" => Operator::NotIn,
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            other => {
                operators.push((format!("{at}.operator"), other.to_owned()));
                continue;
            }
        };
        let key = path(&format!("{at}.key"), &requirement.key);
        expressions.extend(key.map(|key| (key, operator, requirement.values)));
    }
    let weight_from = spec.weight_from;
    let weight_from =
        weight_from.and_then(|f| path("spec.weightFrom.expressionFrom", &f.expression_from));
    let delay = spec.delay.unwrap_or_default();
    let mut time = |name: &str, fixed: Option<i64>, from: Option<From>| TimeSource {
        fixed: fixed.map(|ms| Duration::from_millis(u64::try_from(ms).unwrap_or(0))),
        from: from.and_then(|f| {
            path(
                &format!("spec.delay.{name}.expressionFrom"),
                &f.expression_from,
            )
        }),
    };
    let jitter = time(
        "jitterDurationFrom",
        delay.jitter_duration_milliseconds,
        delay.jitter_duration_from,
    );
    let delay = time(
        "durationFrom",
        delay.duration_milliseconds,
        delay.duration_from,
    );
    for (path, operator) in operators {
        let known = ["In", "NotIn", "Exists", "DoesNotExist"];
        errors.push(FieldError::not_supported(path, &operator, &known));
    }
    let status = match next.status_template.trim() {
        "" => None,
        text => Template::parse(text)
            .map_err(|error| {
                let path = "spec.next.statusTemplate";
                errors.push(FieldError::invalid(path, "…", error.to_string()));
            })
            .ok(),
    };
    match errors.is_empty() {
        true => Ok(Stage {
            name,
            labels: selector.match_labels,
            annotations: selector.match_annotations,
            expressions,
            weight: spec.weight,
            weight_from,
            delay,
            jitter,
            event: next.event,
            finalizers: next.finalizers,
            delete: next.delete,
            status,
            immediate_next: spec.immediate_next_stage,
        }),
        false => Err(errors),
    }
}

impl Stage {
    /// Whether an object is in this stage.
    pub fn matches(&self, object: &Value) -> bool {
        let subset = |wanted: &BTreeMap<String, String>, of: &str| {
            let have = &object["metadata"][of];
            wanted
                .iter()
                .all(|(key, value)| have[key] == value.as_str())
        };
        let expression = |(path, operator, values): &(Path, Operator, Vec<String>)| {
            let found = path.values(object);
            let listed = || {
                found.iter().any(|value| match value.as_str() {
                    Some(text) => values.iter().any(|v| v == text),
                    None => values.contains(&value.to_string()),
                })
            };
            match operator {
                Operator::In => listed(),
                Operator::NotIn => !listed(),
                Operator::Exists => !found.is_empty(),
                Operator::DoesNotExist => found.is_empty(),
            }
        };
        subset(&self.labels, "labels")
            && subset(&self.annotations, "annotations")
            && self.expressions.iter().all(expression)
    }

    fn weight(&self, object: &Value) -> i64 {
        let said = self.weight_from.as_ref().and_then(|path| {
            let values = path.values(object);
            let value = values.first()?;
            value.as_i64().or_else(|| value.as_str()?.parse().ok())
        });
        said.unwrap_or(self.weight).max(0)
    }

    /// How long the stage lasts; `dice` is from 0 to 1. Upstream: a jitter below the duration is the duration.
    pub fn delay(&self, object: &Value, now: Timestamp, dice: f64) -> Duration {
        let duration = self.delay.get(object, now).unwrap_or_default();
        match self.jitter.get(object, now) {
            None => duration,
            Some(jitter) if jitter < duration => jitter,
            Some(jitter) => duration + (jitter - duration).mul_f64(dice),
        }
    }

    /// The finalizers that the object is to have; `None`: they stay.
    pub fn finalizers(&self, have: &[String]) -> Option<Vec<String>> {
        let change = self.finalizers.as_ref()?;
        let mut list = if change.empty {
            Vec::new()
        } else {
            have.to_vec()
        };
        list.retain(|f| change.remove.iter().all(|item| item.value != *f));
        for item in &change.add {
            if !list.contains(&item.value) {
                list.push(item.value.clone());
            }
        }
        (list != have).then_some(list)
    }
}

/// The stage an object is in: by chance, as heavy as they are, where there are several. `dice` is from 0 to 1.
pub fn choose(stages: &[Stage], object: &Value, dice: f64) -> Option<usize> {
    let matching: Vec<usize> = (0..stages.len())
        .filter(|at| stages[*at].matches(object))
        .collect();
    let weights: Vec<i64> = matching
        .iter()
        .map(|at| stages[*at].weight(object))
        .collect();
    let total: i64 = weights.iter().sum();
    // A dice of 1 would be behind the last one.
    let dice = dice.clamp(0.0, 1.0 - f64::EPSILON);
    if total == 0 {
        let at = (matching.len() as f64 * dice) as usize;
        return matching.get(at).copied();
    }
    let mut left = (total as f64 * dice) as i64;
    for (at, weight) in matching.into_iter().zip(weights) {
        if left < weight {
            return Some(at);
        }
        left -= weight;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(spec: &str) -> Result<Stage, String> {
        let text = format!(
            "apiVersion: {API_VERSION}\nkind: {KIND}\nmetadata: {{name: s}}\nspec:\n  resourceRef: {{apiGroup: v1, kind: Pod}}\n{spec}"
        );
        let stages = decode(FilePath::new("f.yaml"), &text).map_err(|error| error.to_string());
        Ok(stages?.remove(0))
    }

    #[test]
    fn an_object_is_in_the_stage_that_selects_it() {
        let stage = read("  selector:\n    matchLabels: {app: a}\n    matchExpressions:\n    - {key: .metadata.deletionTimestamp, operator: DoesNotExist}\n    - {key: .status.phase, operator: In, values: [Pending]}\n").unwrap();
        let object = |app: &str, phase: &str, deletion: Value| json!({"metadata": {"labels": {"app": app}, "deletionTimestamp": deletion}, "status": {"phase": phase}});
        assert!(stage.matches(&object("a", "Pending", Value::Null)));
        assert!(!stage.matches(&object("b", "Pending", Value::Null)));
        assert!(!stage.matches(&object("a", "Running", Value::Null)));
        assert!(!stage.matches(&object("a", "Pending", json!("2026-01-01T00:00:00Z"))));
    }

    #[test]
    fn delays_are_upstreams() {
        let now = Timestamp::from_second(0).unwrap();
        let check = |delay: &str, expect: u64| {
            let stage = read(&format!("  delay: {delay}\n")).unwrap();
            let object = json!({"metadata": {"annotations": {"d": "3s"}, "deletionTimestamp": "1970-01-01T00:00:07Z"}});
            assert_eq!(
                stage.delay(&object, now, 0.5),
                Duration::from_millis(expect),
                "{delay}"
            );
        };
        check("{}", 0);
        check("{durationMilliseconds: 1000}", 1000);
        check(
            "{durationMilliseconds: 1000, jitterDurationMilliseconds: 5000}",
            3000,
        );
        check(
            "{durationMilliseconds: 1000, jitterDurationMilliseconds: 500}",
            500,
        );
        check(
            "{durationMilliseconds: 1000, durationFrom: {expressionFrom: '.metadata.annotations[\"d\"]'}}",
            3000,
        );
        check(
            "{durationMilliseconds: 1000, durationFrom: {expressionFrom: '.metadata.annotations[\"e\"]'}}",
            1000,
        );
        check(
            "{durationFrom: {expressionFrom: .metadata.deletionTimestamp}}",
            7000,
        );
    }

    #[test]
    fn the_heavy_one_is_chosen_more_often() {
        let stage = |weight: i64| read(&format!("  weight: {weight}\n")).unwrap();
        let object = json!({});
        let check = |weights: &[i64], dice: f64, expect: Option<usize>| {
            let stages: Vec<Stage> = weights.iter().map(|w| stage(*w)).collect();
            assert_eq!(choose(&stages, &object, dice), expect, "{weights:?} {dice}");
        };
        check(&[], 0.5, None);
        check(&[0, 0], 0.4, Some(0));
        check(&[0, 0], 1.0, Some(1));
        check(&[1, 3], 0.2, Some(0));
        check(&[1, 3], 0.3, Some(1));
        check(&[0, 1], 0.0, Some(1));
    }

    #[test]
    fn finalizers_are_added_and_removed() {
        let have = ["a".to_owned(), "b".to_owned()];
        let check = |next: &str, expect: Option<&[&str]>| {
            let stage = read(&format!("  next: {{finalizers: {next}}}\n")).unwrap();
            let got = stage.finalizers(&have);
            assert_eq!(
                got,
                expect.map(|l| l.iter().map(|f| (*f).to_owned()).collect()),
                "{next}"
            );
        };
        check("{empty: true}", Some(&[]));
        check(
            "{add: [{value: c}], remove: [{value: a}]}",
            Some(&["b", "c"]),
        );
        check("{add: [{value: b}]}", None);
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        let check = |spec: &str, expect: &str| {
            let error = read(spec).unwrap_err();
            assert!(error.contains(expect), "{error}");
        };
        check(
            "  next: {patches: []}\n",
            "spec.next.patches: Forbidden: is not built",
        );
        check(
            "  next: {statusPatchAs: {username: a}}\n",
            "spec.next.statusPatchAs",
        );
        check("  next: {exec: []}\n", "unknown field \"spec.next.exec\"");
        check(
            "  selector: {matchExpressions: [{key: .a, operator: Gt}]}\n",
            "matchExpressions[0].operator",
        );
        check(
            "  selector: {matchExpressions: [{key: '.a | length', operator: Exists}]}\n",
            "matchExpressions[0].key",
        );
        check(
            "  next: {statusTemplate: '{{ upper .a }}'}\n",
            "\"upper\" not defined",
        );
        let node = format!(
            "apiVersion: {API_VERSION}\nkind: {KIND}\nspec: {{resourceRef: {{kind: Node}}}}\n"
        );
        let error = decode(FilePath::new("f"), &node).unwrap_err().to_string();
        assert!(error.contains("only stages of v1 Pod"), "{error}");
    }
}
