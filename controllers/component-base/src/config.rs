//! Configuration files: YAML or JSON, strict, typed, and every error at once with its field path.
//!
//! Upstream: strict decoding in `k8s.io/apimachinery/pkg/runtime/serializer/json`, `field.ErrorList`.

pub mod audit;

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_ignored::Path as FieldPath;
use serde_json::Value;

/// Why a configuration file was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("failed to load config file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// It is no YAML.
    #[error("failed to load config file {path}: {message}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The parser's words, with line and column.
        message: String,
    },
    /// It is of another kind or version.
    #[error(
        "failed to load config file {path}: no kind {kind:?} is registered for version {api_version:?}"
    )]
    Kind {
        /// The file.
        path: PathBuf,
        /// What it says.
        api_version: String,
        /// What it says.
        kind: String,
    },
    /// Fields are unknown or of a wrong type.
    #[error("failed to load config file {path}: strict decoding error: {}", .errors.join(", "))]
    Fields {
        /// The file.
        path: PathBuf,
        /// One text for each field, each with its path.
        errors: Vec<String>,
    },
}

/// Reads `path` as `T`, which must be of `api_version` and `kind`; `T` may leave these two fields out.
///
/// A field that `T` does not read is an error whatever its value, a null included, and so is a key given twice; all are named at
/// once. Null says the same as nothing, as in Go. (Fields below `serde(flatten)` or an untagged enum cannot be told apart: `T` has
/// none.)
///
/// # Errors
/// See [`ConfigError`].
pub fn load_strict<T: DeserializeOwned>(
    path: &Path,
    api_version: &str,
    kind: &str,
) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_path_buf(),
        source,
    })?;
    decode_strict(path, &text, api_version, kind)
}

/// As [`load_strict`], from a text; `path` is for errors only.
///
/// # Errors
/// See [`ConfigError`].
pub fn decode_strict<T: DeserializeOwned>(
    path: &Path,
    text: &str,
    api_version: &str,
    kind: &str,
) -> Result<T, ConfigError> {
    let fields = |errors| ConfigError::Fields {
        path: path.to_path_buf(),
        errors,
    };
    let mut value: Value = serde_saphyr::from_str(text).map_err(|e| match duplicate(&e) {
        Some(text) => fields(vec![text]),
        None => ConfigError::Syntax {
            path: path.to_path_buf(),
            message: e.to_string(),
        },
    })?;
    let read = |field: &str| {
        value
            .get(field)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_string()
    };
    let (found_version, found_kind) = (read("apiVersion"), read("kind"));
    if found_version != api_version || found_kind != kind {
        return Err(ConfigError::Kind {
            path: path.to_path_buf(),
            api_version: found_version,
            kind: found_kind,
        });
    }
    if let Some(object) = value.as_object_mut() {
        object.remove("apiVersion");
        object.remove("kind");
    }
    let mut nulls = Vec::new();
    take_nulls(&mut value, &mut Vec::new(), &mut nulls);
    let mut unknown = Vec::new();
    let typed: T =
        read_noting(value.clone(), &mut unknown).map_err(|e| fields(vec![e.to_string()]))?;
    for place in &nulls {
        // In the place of the null, what no known field could pass over: only an unknown one does.
        let mut probe = value.clone();
        put(&mut probe, place, Value::Bool(false));
        let mut noted = Vec::new();
        let _outcome: Result<T, _> = read_noting(probe, &mut noted);
        unknown.extend(noted.into_iter().filter(|path| *path == join(place)));
    }
    unknown.sort();
    unknown.dedup();
    match unknown.is_empty() {
        true => Ok(typed),
        false => Err(fields(
            unknown
                .iter()
                .map(|path| format!("unknown field \"{path}\""))
                .collect(),
        )),
    }
}

/// Upstream's words for a key given twice (`sigs.k8s.io/yaml`).
fn duplicate(error: &serde_saphyr::Error) -> Option<String> {
    match error {
        serde_saphyr::Error::WithSnippet { error, .. } => duplicate(error),
        serde_saphyr::Error::DuplicateMappingKey { key, location } => Some(format!(
            "yaml: unmarshal errors:\n  line {}: key {:?} already set in map",
            location.line(),
            key.as_deref().unwrap_or_default(),
        )),
        _ => None,
    }
}

/// Reads `value`, and notes the paths of what `T` does not know.
fn read_noting<T: DeserializeOwned>(
    value: Value,
    unknown: &mut Vec<String>,
) -> Result<T, serde_json::Error> {
    serde_ignored::deserialize(value, |path| {
        let mut steps = Vec::new();
        note_steps(&path, &mut steps);
        unknown.push(join(&steps));
    })
}

/// A step into an object or a list.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Index(usize),
}

fn note_steps(path: &FieldPath<'_>, steps: &mut Vec<Step>) {
    match path {
        FieldPath::Root => {}
        FieldPath::Map { parent, key } => {
            note_steps(parent, steps);
            steps.push(Step::Field(key.clone()));
        }
        FieldPath::Seq { parent, index } => {
            note_steps(parent, steps);
            steps.push(Step::Index(*index));
        }
        FieldPath::Some { parent }
        | FieldPath::NewtypeStruct { parent }
        | FieldPath::NewtypeVariant { parent } => note_steps(parent, steps),
    }
}

/// `a.b[0].c`.
fn join(steps: &[Step]) -> String {
    let mut text = String::new();
    for step in steps {
        match step {
            Step::Index(index) => text.push_str(&format!("[{index}]")),
            Step::Field(name) if text.is_empty() => text.push_str(name),
            Step::Field(name) => text.push_str(&format!(".{name}")),
        }
    }
    text
}

/// Removes the fields that are null and tells where they stood.
fn take_nulls(value: &mut Value, at: &mut Vec<Step>, nulls: &mut Vec<Vec<Step>>) {
    match value {
        Value::Object(object) => {
            object.retain(|name, field| {
                if field.is_null() {
                    nulls.push([at.as_slice(), &[Step::Field(name.clone())]].concat());
                }
                !field.is_null()
            });
            for (name, field) in object.iter_mut() {
                at.push(Step::Field(name.clone()));
                take_nulls(field, at, nulls);
                at.pop();
            }
        }
        Value::Array(list) => {
            for (index, item) in list.iter_mut().enumerate() {
                at.push(Step::Index(index));
                take_nulls(item, at, nulls);
                at.pop();
            }
        }
        _ => {}
    }
}

fn put(value: &mut Value, place: &[Step], what: Value) {
    match (place, value) {
        ([Step::Field(name)], Value::Object(object)) => drop(object.insert(name.clone(), what)),
        ([Step::Field(name), rest @ ..], Value::Object(object)) => {
            if let Some(inner) = object.get_mut(name) {
                put(inner, rest, what);
            }
        }
        ([Step::Index(index), rest @ ..], Value::Array(list)) => {
            if let Some(inner) = list.get_mut(*index) {
                put(inner, rest, what);
            }
        }
        _ => {}
    }
}

/// Which of `fields` (`a.b`, names as in the file) `config` sets to something else than `default` does, apart from zeroes and
/// empty texts: those a program that does not act on them warns of.
pub fn set_fields<'a, T: Serialize>(config: &T, default: &T, fields: &[&'a str]) -> Vec<&'a str> {
    let value = |config: &T| serde_json::to_value(config).unwrap_or_default();
    let (config, default) = (value(config), value(default));
    let at = |value: &Value, field: &str| {
        let found = field.split('.').try_fold(value, |v, name| v.get(name));
        found.filter(|v| !is_blank(v)).cloned()
    };
    let is_set = |field: &&&str| at(&config, field) != at(&default, field);
    fields.iter().filter(is_set).copied().collect()
}

/// A zero, in the many ways files write it.
fn is_blank(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(object) => object.values().all(is_blank),
        Value::Array(list) => list.is_empty(),
        Value::String(text) => matches!(text.as_str(), "" | "0" | "0s"),
        Value::Bool(on) => !on,
        Value::Number(number) => number.as_f64() == Some(0.0),
    }
}

/// One finding of a validation, with its field path; the text is upstream's `field.Error`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// The value may not be what it is.
    #[error("{path}: Invalid value: {value}: {detail}")]
    Invalid {
        /// Where.
        path: String,
        /// What stands there, as JSON.
        value: String,
        /// Why not.
        detail: String,
    },
    /// Something must stand here.
    #[error("{path}: Required value: {detail}")]
    Required {
        /// Where.
        path: String,
        /// Why.
        detail: String,
    },
    /// Nothing may stand here.
    #[error("{path}: Forbidden: {detail}")]
    Forbidden {
        /// Where.
        path: String,
        /// Why.
        detail: String,
    },
    /// Not one of the words allowed.
    #[error("{path}: Unsupported value: {value}: supported values: {}", .supported.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>().join(", "))]
    NotSupported {
        /// Where.
        path: String,
        /// What stands there.
        value: String,
        /// What may stand there.
        supported: Vec<String>,
    },
}

impl FieldError {
    /// An invalid value.
    pub fn invalid(
        path: impl Into<String>,
        value: impl serde::Serialize,
        detail: impl Into<String>,
    ) -> Self {
        let value = serde_json::to_string(&value).unwrap_or_default();
        Self::Invalid {
            path: path.into(),
            value,
            detail: detail.into(),
        }
    }
    /// A missing value.
    pub fn required(path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Required {
            path: path.into(),
            detail: detail.into(),
        }
    }
    /// A value that may not be there.
    pub fn forbidden(path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Forbidden {
            path: path.into(),
            detail: detail.into(),
        }
    }
    /// A word that is not allowed.
    pub fn not_supported(path: impl Into<String>, value: &str, supported: &[&str]) -> Self {
        let supported = supported.iter().map(ToString::to_string).collect();
        Self::NotSupported {
            path: path.into(),
            value: format!("{value:?}"),
            supported,
        }
    }
}

/// Several findings as upstream prints them: `[a, b]`, or the one alone.
pub fn aggregate(errors: &[FieldError]) -> String {
    match errors {
        [one] => one.to_string(),
        many => format!(
            "[{}]",
            many.iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Serialize, serde::Deserialize, Debug)]
    #[serde(rename_all = "camelCase", default)]
    struct Sample {
        max_pods: u32,
        nested: Nested,
    }
    impl Default for Sample {
        fn default() -> Self {
            Self {
                max_pods: 110,
                nested: Nested::default(),
            }
        }
    }
    #[derive(serde::Serialize, serde::Deserialize, Debug, Default)]
    #[serde(default)]
    struct Nested {
        list: Vec<Nested>,
        on: Option<bool>,
    }

    fn check(body: &str) -> Result<Sample, String> {
        let text = format!("apiVersion: x/v1\nkind: Sample\n{body}");
        decode_strict(Path::new("f"), &text, "x/v1", "Sample").map_err(|e| e.to_string())
    }

    #[test]
    fn strict() {
        assert_eq!(check("").unwrap().max_pods, 110);
        assert_eq!(
            check("maxPods: 5\nnested: {list: [{on: true}]}")
                .unwrap()
                .max_pods,
            5
        );
        let error = check("maxPodz: 5\nnested: {list: [{off: true}]}").unwrap_err();
        assert!(
            error.ends_with(
                "strict decoding error: unknown field \"maxPodz\", unknown field \"nested.list[0].off\""
            ),
            "{error}"
        );
        assert!(decode_strict::<Sample>(Path::new("f"), "kind: Other", "x/v1", "Sample").is_err());
    }

    #[test]
    fn an_unknown_field_is_refused_whatever_its_value() {
        for value in [
            "false",
            "0",
            "0.0",
            "\"\"",
            "[]",
            "{}",
            "null",
            "~",
            "{a: null}",
            "1",
            "x",
        ] {
            let error = check(&format!("maxPodz: {value}")).unwrap_err();
            assert!(
                error.ends_with("strict decoding error: unknown field \"maxPodz\""),
                "{value}: {error}"
            );
            let error = check(&format!("nested:\n  list:\n  - on: null\n  - off: {value}"));
            let error = error.unwrap_err();
            assert!(
                error.ends_with("unknown field \"nested.list[1].off\""),
                "{value}: {error}"
            );
        }
    }

    #[test]
    fn a_null_says_the_same_as_nothing() {
        let sample = check("maxPods: null\nnested: {list: null, on: ~}").unwrap();
        assert_eq!((sample.max_pods, sample.nested.on), (110, None));
    }

    #[test]
    fn a_key_given_twice_is_refused() {
        let error = check("maxPods: 5\nmaxPods: 6").unwrap_err();
        assert!(
            error.ends_with(
                "strict decoding error: yaml: unmarshal errors:\n  line 4: key \"maxPods\" already set in map"
            ),
            "{error}"
        );
    }

    #[test]
    fn what_is_set_is_what_differs() {
        let mut config = Sample::default();
        let fields = ["maxPods", "nested.on", "nested.list"];
        assert!(set_fields(&config, &Sample::default(), &fields).is_empty());
        config.nested.on = Some(false);
        assert!(set_fields(&config, &Sample::default(), &fields).is_empty());
        config.nested.on = Some(true);
        assert_eq!(
            set_fields(&config, &Sample::default(), &fields),
            ["nested.on"]
        );
    }
}
