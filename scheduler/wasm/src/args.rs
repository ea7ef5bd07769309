//! [`WasmPluginArgs`]: the arguments of a plugin that is a WASM component, as `pluginConfig` carries them.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use framework::PluginError;
use framework::args::decode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The `kind` that makes a plugin a WASM component.
pub const KIND: &str = "WasmPluginArgs";
/// How much memory a component may have where nothing is said: 128 MiB.
pub const DEFAULT_MEMORY_LIMIT_BYTES: i64 = 128 << 20;
/// One page, which is the least a component can use.
pub const MIN_MEMORY_LIMIT_BYTES: i64 = 64 << 10;
/// All that a component can address.
pub const MAX_MEMORY_LIMIT_BYTES: i64 = 4 << 30;
/// How much fuel a call may take where nothing is said: about a second. An instruction costs one unit.
pub const DEFAULT_FUEL_PER_CALL: i64 = 1_000_000_000;

/// The arguments of a plugin that is a WASM component.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct WasmPluginArgs {
    /// The component's file, absolute.
    pub path: PathBuf,
    /// An object that is handed to the component as JSON.
    pub args: Value,
    /// How many bytes its memories may have together.
    pub memory_limit_bytes: i64,
    /// How much fuel a call may take; an instruction costs one unit.
    pub fuel_per_call: i64,
}

impl Default for WasmPluginArgs {
    fn default() -> Self {
        WasmPluginArgs {
            path: PathBuf::new(),
            args: Value::Object(serde_json::Map::new()),
            memory_limit_bytes: DEFAULT_MEMORY_LIMIT_BYTES,
            fuel_per_call: DEFAULT_FUEL_PER_CALL,
        }
    }
}

impl WasmPluginArgs {
    /// Every field that makes no sense, with its value.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !self.path.is_absolute() {
            problems.push(invalid_path(&self.path, "must be an absolute path"));
        }
        if !self.args.is_object() {
            problems.push(format!(
                "args: Invalid value: {}: must be an object",
                self.args
            ));
        }
        let (least, most) = (MIN_MEMORY_LIMIT_BYTES, MAX_MEMORY_LIMIT_BYTES);
        if !(least..=most).contains(&self.memory_limit_bytes) {
            problems.push(format!(
                "memoryLimitBytes: Invalid value: {}: must be within {least}..{most}",
                self.memory_limit_bytes
            ));
        }
        if self.fuel_per_call <= 0 {
            problems.push(format!(
                "fuelPerCall: Invalid value: {}: must be greater than 0",
                self.fuel_per_call
            ));
        }
        problems
    }
}

pub(crate) fn invalid_path(path: &Path, why: impl std::fmt::Display) -> String {
    format!("path: Invalid value: {:?}: {why}", path.display())
}

/// Do these arguments say that their plugin is a WASM component?
pub fn is_wasm(args: &Value) -> bool {
    args.get("kind").and_then(Value::as_str) == Some(KIND)
}

/// The arguments with all defaults written out, as JSON with `apiVersion` and `kind`. `name` is the plugin's, for errors.
///
/// # Errors
/// For an unknown field or a wrong type, naming it.
pub fn completed(name: &str, args: &Value) -> Result<Value, PluginError> {
    let args: WasmPluginArgs = decode(interned(name), Some(args))?;
    let mut value = serde_json::to_value(args).expect("arguments serialise into memory");
    if let Some(object) = value.as_object_mut() {
        let version = "kubescheduler.config.k8s.io/v1";
        object.insert("apiVersion".to_owned(), version.into());
        object.insert("kind".to_owned(), KIND.into());
    }
    Ok(value)
}

/// Names live as long as the program. There are as many as configurations name; a name that comes again takes no more room.
pub(crate) fn interned(name: &str) -> &'static str {
    static NAMES: Mutex<Option<HashSet<&'static str>>> = Mutex::new(None);
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    let names = names.get_or_insert_default();
    if let Some(known) = names.get(name) {
        return known;
    }
    let name: &'static str = Box::leak(name.to_owned().into_boxed_str());
    names.insert(name);
    name
}
