//! From files and flags to one configuration.
//!
//! Owns: the order file < drop-ins (by name) < flags, and Go's rule that a zero says "the default". Strict: unknown
//! fields are errors, all at once. Upstream: `cmd/kubelet/app/server.go`, `pkg/kubelet/kubeletconfig/configfiles`, v1.36.

use std::path::{Path, PathBuf};

use component_base::config::{ConfigError, FieldError, aggregate, decode_strict};
use component_base::duration::GoDuration;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::validation::validate_kubelet_configuration;
use super::{API_VERSION, KIND, KubeletConfiguration, UNUSED_FIELDS};

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    File(#[from] ConfigError),
    #[error("failed to read config directory {path}: {source}")]
    Directory {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("failed to load kubelet config: {0}")]
    Decode(#[from] serde_json::Error),
    #[error("failed to validate kubelet configuration, error: {}, path: {path}", aggregate(.errors))]
    Invalid {
        path: String,
        errors: Vec<FieldError>,
    },
}

/// In Go these are pointers: a zero is a value of its own and not the default.
const ZERO_MEANS_ZERO: &[&str] = &[
    "registryPullQPS",
    "eventRecordQPS",
    "healthzPort",
    "oomScoreAdj",
    "imageGCHighThresholdPercent",
    "imageGCLowThresholdPercent",
    "nodeStatusMaxImages",
    "kubeAPIQPS",
    "maxParallelImagePulls",
    "maxContainerRestartPeriod",
    "podPidsLimit",
    "resolvConf",
    "containerLogMaxFiles",
    "containerLogMaxWorkers",
    "iptablesMasqueradeBit",
    "iptablesDropBit",
    "memoryThrottlingFactor",
    "priority",
    "numaNode",
    "shutdownGracePeriodSeconds",
    "logging",
    "tracing",
    "value",
];

/// The configuration, and the names of given fields that this build does not act on.
pub struct Loaded {
    pub config: KubeletConfiguration,
    pub unused: Vec<String>,
}

/// # Errors
/// Everything that is wrong with the first bad file, or every validation error of the whole.
pub fn load(
    file: Option<&Path>,
    drop_ins: Option<&Path>,
    flags: Map<String, Value>,
) -> Result<Loaded, LoadError> {
    let mut merged = Value::Object(Map::new());
    let mut files: Vec<PathBuf> = file.map(Path::to_path_buf).into_iter().collect();
    if let Some(dir) = drop_ins {
        files.extend(drop_in_files(dir)?);
    }
    for path in &files {
        merge(&mut merged, read(path)?);
    }
    merge(&mut merged, Value::Object(flags));
    let mut unused: Vec<String> = UNUSED_FIELDS
        .iter()
        .filter(|f| merged.get(**f).is_some())
        .map(|f| (*f).to_owned())
        .collect();
    unused.extend(unused_logging(&merged));
    strip_zeroes(
        &mut merged,
        &serde_json::to_value(KubeletConfiguration::default())?,
    );
    let follow = merged.get("nodeStatusReportFrequency").is_none();
    let mut config: KubeletConfiguration = serde_json::from_value(merged.clone())?;
    if follow && merged.get("nodeStatusUpdateFrequency").is_some() {
        config.node_status_report_frequency = config.node_status_update_frequency;
    }
    let errors = validate_kubelet_configuration(&config);
    if errors.is_empty() {
        Ok(Loaded { config, unused })
    } else {
        let path = file.map(|p| p.display().to_string()).unwrap_or_default();
        Err(LoadError::Invalid { path, errors })
    }
}

/// Fields of `logging` that say more than nothing, and are not acted on.
fn unused_logging(merged: &Value) -> impl Iterator<Item = String> + '_ {
    let says = |value: &Value| match value {
        Value::Object(object) => !object.is_empty(),
        Value::Array(list) => !list.is_empty(),
        value => *value != 0 && *value != "0s" && *value != "",
    };
    ["flushFrequency", "vmodule", "options"]
        .into_iter()
        .filter(move |name| merged["logging"].get(name).is_some_and(says))
        .map(|name| format!("logging.{name}"))
}

/// `*.conf` below `dir`, by name.
fn drop_in_files(dir: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let fail = |source| LoadError::Directory {
        path: dir.to_path_buf(),
        source,
    };
    let mut files = vec![];
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path.is_dir() {
            files.extend(drop_in_files(&path)?);
        } else if path.extension().is_some_and(|e| e == "conf") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<Value, LoadError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_path_buf(),
        source,
    })?;
    // Checks kind, types and unknown fields of this file alone.
    decode_strict::<KubeletConfiguration>(path, &text, API_VERSION, KIND)?;
    let mut value: Value = serde_saphyr::from_str(&text).map_err(|e| ConfigError::Syntax {
        path: path.to_path_buf(),
        message: e.to_string(),
    })?;
    if let Some(object) = value.as_object_mut() {
        object.remove("apiVersion");
        object.remove("kind");
    }
    Ok(value)
}

/// Objects are merged, everything else is replaced; a null changes nothing.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                if value.is_null() {
                    continue;
                }
                match into.get_mut(&key) {
                    Some(slot) if slot.is_object() && value.is_object() => merge(slot, value),
                    _ => {
                        into.insert(key, value);
                    }
                }
            }
        }
        (slot, value) => *slot = value,
    }
}

/// Removes what Go's defaulting takes for not given: null, 0, "", and a duration of nothing where `defaults` has a duration. The
/// text "0" of another field is its value.
fn strip_zeroes(value: &mut Value, defaults: &Value) {
    let Some(object) = value.as_object_mut() else {
        return;
    };
    object.retain(|key, value| {
        ZERO_MEANS_ZERO.contains(&key.as_str())
            || !match value {
                Value::Null => true,
                Value::String(s) => {
                    s.is_empty() || is_no_time(value) && is_duration(&defaults[key.as_str()])
                }
                Value::Number(n) => n.as_f64() == Some(0.0),
                _ => false,
            }
    });
    for (key, value) in object.iter_mut() {
        // Maps from the user's own names are left as they are.
        if matches!(
            key.as_str(),
            "authentication"
                | "authorization"
                | "webhook"
                | "x509"
                | "anonymous"
                | "memorySwap"
                | "crashLoopBackOff"
        ) {
            strip_zeroes(value, &defaults[key.as_str()]);
        }
    }
}

fn is_duration(value: &Value) -> bool {
    GoDuration::deserialize(value).is_ok()
}

fn is_no_time(value: &Value) -> bool {
    GoDuration::deserialize(value).is_ok_and(|d| d.0.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::io::Write;

    fn file(dir: &Path, name: &str, body: &str) -> PathBuf {
        let path = dir.join(name);
        let mut f = std::fs::File::create(&path).unwrap();
        write!(f, "apiVersion: {API_VERSION}\nkind: {KIND}\n{body}").unwrap();
        path
    }

    #[test]
    fn what_kubeadm_writes() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(
            dir.path(),
            "config.yaml",
            "authentication:\n  anonymous:\n    enabled: false\n  webhook:\n    cacheTTL: 0s\n    enabled: true\n  \
             x509:\n    clientCAFile: /etc/kubernetes/pki/ca.crt\nauthorization:\n  mode: Webhook\n  webhook:\n    \
             cacheAuthorizedTTL: 0s\n    cacheUnauthorizedTTL: 0s\ncgroupDriver: cgroupfs\nclusterDNS:\n- 10.96.0.10\n\
             clusterDomain: cluster.local\ncpuManagerReconcilePeriod: 0s\nsyncFrequency: 0s\nevictionHard:\n  \
             imagefs.available: 0%\n  nodefs.available: 0%\nlogging:\n  flushFrequency: 0\n  verbosity: 0\nmaxPods: 0\n\
             memorySwap: {}\nnodeStatusReportFrequency: 0s\nnodeStatusUpdateFrequency: 0s\nrotateCertificates: true\n",
        );
        let drop_ins = dir.path().join("d");
        std::fs::create_dir(&drop_ins).unwrap();
        file(&drop_ins, "20.conf", "maxPods: 20\n");
        file(
            &drop_ins,
            "10.conf",
            "maxPods: 10\nclusterDNS: [10.0.0.1]\n",
        );
        let flags = json!({"clusterDomain": "by.flag"})
            .as_object()
            .cloned()
            .unwrap();
        let got = load(Some(&path), Some(&drop_ins), flags)
            .unwrap_or_else(|e| panic!("{e}"))
            .config;
        assert_eq!(got.max_pods, 20);
        assert_eq!(got.cluster_dns, ["10.0.0.1"]);
        assert_eq!(got.cluster_domain, "by.flag");
        assert_eq!(got.sync_frequency.0.as_secs(), 60);
        assert_eq!(got.node_status_report_frequency.0.as_secs(), 300);
        assert_eq!(got.authentication.webhook.cache_ttl.0.as_secs(), 120);
    }

    #[test]
    fn unknown_fields_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path(), "c", "maxPodz: 1\n");
        let error = load(Some(&path), None, Map::new())
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("unknown field \"maxPodz\""), "{error}");
    }
}
