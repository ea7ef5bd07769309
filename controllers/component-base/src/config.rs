//! Configuration files: YAML or JSON, strict, typed, and every error at once with its field path.
//!
//! Upstream: strict decoding in `k8s.io/apimachinery/pkg/runtime/serializer/json`, `field.ErrorList`.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
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
/// Unknown fields are found by comparing what the file says with what `T` keeps of it, so all are named at once. For that, `T`
/// must serialize every field it reads under the same name (no `skip_serializing` but for `None` and empty values).
///
/// # Errors
/// See [`ConfigError`].
pub fn load_strict<T>(path: &Path, api_version: &str, kind: &str) -> Result<T, ConfigError>
where
    T: DeserializeOwned + serde::Serialize,
{
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
pub fn decode_strict<T>(
    path: &Path,
    text: &str,
    api_version: &str,
    kind: &str,
) -> Result<T, ConfigError>
where
    T: DeserializeOwned + serde::Serialize,
{
    let mut value: Value = serde_saphyr::from_str(text).map_err(|e| ConfigError::Syntax {
        path: path.to_path_buf(),
        message: e.to_string(),
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
    strip_nulls(&mut value);
    let fields = |errors| ConfigError::Fields {
        path: path.to_path_buf(),
        errors,
    };
    let typed: T =
        serde_json::from_value(value.clone()).map_err(|e| fields(vec![e.to_string()]))?;
    if let Some(object) = value.as_object_mut() {
        object.remove("apiVersion");
        object.remove("kind");
    }
    let kept = serde_json::to_value(&typed).map_err(|e| fields(vec![e.to_string()]))?;
    let mut errors = Vec::new();
    unknown_fields("", &value, &kept, &mut errors);
    if errors.is_empty() {
        Ok(typed)
    } else {
        Err(fields(errors))
    }
}

/// A null says the same as nothing, as in Go.
fn strip_nulls(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.retain(|_, v| !v.is_null());
            object.values_mut().for_each(strip_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(strip_nulls),
        _ => {}
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(object) => object.values().all(is_empty),
        Value::Array(list) => list.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(on) => !on,
        Value::Number(number) => number.as_f64() == Some(0.0),
    }
}

fn unknown_fields(path: &str, given: &Value, kept: &Value, errors: &mut Vec<String>) {
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => {
            for (name, value) in given {
                let child = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                match kept.get(name) {
                    Some(kept) => unknown_fields(&child, value, kept, errors),
                    None if is_empty(value) => {}
                    None => errors.push(format!("unknown field \"{child}\"")),
                }
            }
        }
        (Value::Array(given), Value::Array(kept)) => {
            for (index, (given, kept)) in given.iter().zip(kept).enumerate() {
                unknown_fields(&format!("{path}[{index}]"), given, kept, errors);
            }
        }
        _ => {}
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
            error.contains("unknown field \"maxPodz\", unknown field \"nested.list[0].off\""),
            "{error}"
        );
        assert!(decode_strict::<Sample>(Path::new("f"), "kind: Other", "x/v1", "Sample").is_err());
    }
}
