//! Finding and reading a CNI configuration.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::NetworkError;

/// A configuration list (a single plugin's configuration is a list of one).
#[derive(Clone, Debug, PartialEq)]
pub struct CniConfig {
    pub path: PathBuf,
    pub json: Value,
}

/// The first configuration by name in the directory; `None`: there is none.
///
/// # Errors
/// Only when there are files and none of them can be used: the error of the first one.
pub fn load(dir: &Path) -> Result<Option<CniConfig>, NetworkError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(NetworkError::io(format!("read {}", dir.display()), error)),
    };
    let extensions = ["conf", "conflist", "json"];
    let fits = |path: &PathBuf| {
        path.extension()
            .and_then(|e| e.to_str())
            .is_some_and(|e| extensions.contains(&e))
    };
    let mut paths: Vec<_> = entries
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(fits)
        .collect();
    paths.sort();
    let mut first_error = None;
    for path in paths {
        match read(&path) {
            Ok(config) => return Ok(Some(config)),
            Err(error) => {
                tracing::warn!(%error, "CNI configuration skipped");
                first_error.get_or_insert(error);
            }
        }
    }
    first_error.map_or(Ok(None), Err)
}

fn read(path: &Path) -> Result<CniConfig, NetworkError> {
    let text =
        std::fs::read(path).map_err(|e| NetworkError::io(format!("read {}", path.display()), e))?;
    let wrong = |reason: String| NetworkError::CniConfig {
        path: path.to_owned(),
        reason,
    };
    let mut json: Value = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
    if path
        .extension()
        .is_none_or(|extension| extension != "conflist")
        && json.get("plugins").is_none()
    {
        let name = json.get("name").cloned().unwrap_or_default();
        let version = json
            .get("cniVersion")
            .cloned()
            .unwrap_or_else(|| "0.1.0".into());
        json = json!({ "name": name, "cniVersion": version, "plugins": [json] });
    }
    if json
        .get("name")
        .and_then(Value::as_str)
        .is_none_or(str::is_empty)
    {
        return Err(wrong("name: must not be empty".into()));
    }
    let plugins = json
        .get("plugins")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    if plugins.is_empty() {
        return Err(wrong("plugins: must name at least one".into()));
    }
    for (i, plugin) in plugins.iter().enumerate() {
        let kind = plugin
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or_default();
        // It becomes a path: never one that leads out of the directories of plugins.
        if kind.is_empty() || kind.contains('/') {
            return Err(wrong(format!(
                "plugins[{i}].type: {kind:?} is no name of a plugin"
            )));
        }
    }
    Ok(CniConfig {
        path: path.to_owned(),
        json,
    })
}

impl CniConfig {
    /// The plugins in order.
    pub fn plugins(&self) -> impl DoubleEndedIterator<Item = &Value> {
        self.json
            .get("plugins")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
    }

    /// What a plugin reads: its own part, the list's name and version, the result so far, and of the runtime's
    /// values those whose capability it has.
    pub fn input(&self, plugin: &Value, previous: &Value, runtime_config: &Value) -> Value {
        let mut input = plugin.clone();
        input["name"] = self.json["name"].clone();
        input["cniVersion"] = self
            .json
            .get("cniVersion")
            .cloned()
            .unwrap_or_else(|| "0.1.0".into());
        if !previous.is_null() {
            input["prevResult"] = previous.clone();
        }
        let capabilities = plugin.get("capabilities").and_then(Value::as_object);
        let wanted = |name: &str| {
            capabilities
                .and_then(|c| c.get(name))
                .and_then(Value::as_bool)
                .unwrap_or(false)
        };
        let given: Map<String, Value> = runtime_config
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(name, _)| wanted(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if let Some(object) = input.as_object_mut() {
            object.remove("capabilities");
            if !given.is_empty() {
                object.insert("runtimeConfig".into(), given.into());
            }
        }
        input
    }
}
