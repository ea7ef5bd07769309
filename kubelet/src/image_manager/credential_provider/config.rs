//! `CredentialProviderConfig`: read from a file or a folder of files, strictly, and validated.
//!
//! Owns: the kind in its three versions and the hash that the metrics tell. Upstream:
//! `pkg/credentialprovider/plugin/config.go`, `k8s.io/kubelet/config`, v1.37.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use component_base::config::{ConfigError, FieldError, aggregate, decode_strict};
use component_base::duration;
use component_helpers::labels::validate_label_key;
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::image_url::SchemelessUrl;
use super::protocol::{API_VERSIONS, V1};

const KIND: &str = "CredentialProviderConfig";
const CONFIG_V1: &str = "kubelet.config.k8s.io/v1";
/// Without `tokenAttributes`.
const CONFIG_OLD: [&str; 2] = [
    "kubelet.config.k8s.io/v1beta1",
    "kubelet.config.k8s.io/v1alpha1",
];
/// Of the files in a folder, those that are read.
const EXTENSIONS: [&str; 3] = ["json", "yaml", "yml"];

/// Why the configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ProviderConfigError {
    #[error("unable to access path {path:?}: {source}")]
    Access {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("no configuration files found in directory {0:?}")]
    NoFiles(PathBuf),
    #[error("error decoding config {path:?}: {source}")]
    Decode {
        path: PathBuf,
        #[source]
        source: ConfigError,
    },
    #[error("duplicate provider name {0:?} found in configuration file(s)")]
    DuplicateName(String),
    #[error("failed to validate credential provider config: {}", aggregate(.0))]
    Invalid(Vec<FieldError>),
}

/// A plugin as it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider {
    /// The program's name in the folder of plugins.
    pub name: String,
    /// Images that the plugin is asked about.
    pub match_images: Vec<SchemelessUrl>,
    /// For answers that do not say how long they are good; zero: those are not kept.
    pub default_cache_duration: Duration,
    /// Of requests and answers; one of [`API_VERSIONS`].
    pub api_version: &'static str,
    pub args: Vec<String>,
    /// Added to the kubelet's own environment; the last of a name counts.
    pub env: Vec<EnvVar>,
    /// `None`: the plugin sees no token.
    pub token: Option<TokenAttributes>,
}

/// What of the pod's service account a plugin is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenAttributes {
    pub audience: String,
    pub cache_type: CacheType,
    /// Pods without an account do without the plugin; otherwise it is asked without a token for them.
    pub require_service_account: bool,
    /// An account that lacks one of these does without the plugin.
    pub required_annotations: Vec<String>,
    pub optional_annotations: Vec<String>,
}

/// Whom answers that were given for a token are kept for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheType {
    /// Every pod of the account.
    ServiceAccount,
    /// Whoever shows the same token.
    Token,
}

/// An environment variable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct EnvVar {
    pub name: String,
    pub value: String,
}

/// The providers of all files, and the digest of what the files hold (`sha256:…`).
#[derive(Debug)]
pub struct Loaded {
    pub providers: Vec<Provider>,
    pub hash: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Wire {
    name: String,
    match_images: Vec<String>,
    default_cache_duration: Option<String>,
    api_version: String,
    args: Vec<String>,
    env: Vec<EnvVar>,
    token_attributes: Option<WireToken>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WireToken {
    service_account_token_audience: String,
    cache_type: String,
    require_service_account: Option<bool>,
    required_service_account_annotation_keys: Vec<String>,
    optional_service_account_annotation_keys: Vec<String>,
}

/// [`Wire`] before it knew of tokens.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WireOld {
    name: String,
    match_images: Vec<String>,
    default_cache_duration: Option<String>,
    api_version: String,
    args: Vec<String>,
    env: Vec<EnvVar>,
}

impl From<WireOld> for Wire {
    fn from(old: WireOld) -> Self {
        Self {
            name: old.name,
            match_images: old.match_images,
            default_cache_duration: old.default_cache_duration,
            api_version: old.api_version,
            args: old.args,
            env: old.env,
            token_attributes: None,
        }
    }
}

#[derive(Deserialize)]
struct File<P> {
    #[serde(default = "Vec::new")]
    providers: Vec<P>,
}

/// Reads a file, or every `*.json`, `*.yaml` and `*.yml` of a folder by name. `tokens`: the gate
/// `KubeletServiceAccountTokenForCredentialProviders`. Blocks on the disk.
///
/// # Errors
/// See [`ProviderConfigError`].
pub fn load(path: &Path, tokens: bool) -> Result<Loaded, ProviderConfigError> {
    let mut hasher = Sha256::new();
    let mut wires = vec![];
    for file in files(path)? {
        let bytes = std::fs::read(&file).map_err(access(&file))?;
        // With their lengths, so that no two sets of files read the same.
        hasher.update((bytes.len() as u64).to_be_bytes());
        hasher.update(&bytes);
        let read = decode(&file, &String::from_utf8_lossy(&bytes));
        wires.extend(read.map_err(|source| ProviderConfigError::Decode { path: file, source })?);
    }
    let mut names = BTreeSet::new();
    for wire in &wires {
        if !names.insert(&wire.name) {
            return Err(ProviderConfigError::DuplicateName(wire.name.clone()));
        }
    }
    let hex: String = hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok(Loaded {
        providers: validate(wires, tokens).map_err(ProviderConfigError::Invalid)?,
        hash: format!("sha256:{hex}"),
    })
}

fn access(path: &Path) -> impl FnOnce(std::io::Error) -> ProviderConfigError {
    let path = path.to_owned();
    move |source| ProviderConfigError::Access { path, source }
}

fn files(path: &Path) -> Result<Vec<PathBuf>, ProviderConfigError> {
    if !std::fs::metadata(path).map_err(access(path))?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = vec![];
    for entry in std::fs::read_dir(path).map_err(access(path))? {
        let entry = entry.map_err(access(path))?;
        let file = entry.path();
        let named = file
            .extension()
            .and_then(|e| e.to_str())
            .is_some_and(|e| EXTENSIONS.contains(&e));
        // As upstream: a link counts, whatever it leads to.
        if named && !entry.file_type().map_err(access(&file))?.is_dir() {
            files.push(file);
        }
    }
    files.sort();
    match files.is_empty() {
        true => Err(ProviderConfigError::NoFiles(path.to_owned())),
        false => Ok(files),
    }
}

fn decode(path: &Path, text: &str) -> Result<Vec<Wire>, ConfigError> {
    let value: Value = serde_saphyr::from_str(text).unwrap_or_default();
    let version = value.get("apiVersion").and_then(Value::as_str);
    match CONFIG_OLD.into_iter().find(|old| version == Some(*old)) {
        Some(old) => {
            let file: File<WireOld> = decode_strict(path, text, old, KIND)?;
            Ok(file.providers.into_iter().map(Wire::from).collect())
        }
        None => Ok(decode_strict::<File<Wire>>(path, text, CONFIG_V1, KIND)?.providers),
    }
}

/// What is right, or all that is wrong.
fn validate(wires: Vec<Wire>, tokens: bool) -> Result<Vec<Provider>, Vec<FieldError>> {
    let mut errors = vec![];
    if wires.is_empty() {
        let detail = "at least 1 item in plugins is required";
        errors.push(FieldError::required("providers", detail));
    }
    let providers: Vec<Provider> = wires
        .into_iter()
        .filter_map(|wire| validate_one(wire, tokens, &mut errors))
        .collect();
    match errors.is_empty() {
        true => Ok(providers),
        false => Err(errors),
    }
}

fn validate_name(name: &str, errors: &mut Vec<FieldError>) {
    for (wrong, detail) in [
        (name.contains('/'), "provider name cannot contain '/'"),
        (name.contains(' '), "provider name cannot contain spaces"),
        (name == ".", "provider name cannot be '.'"),
        (name == "..", "provider name cannot be '..'"),
        // DIFFERS: upstream finds a folder where it looks for the program.
        (name.is_empty(), "provider name cannot be empty"),
    ] {
        if wrong {
            errors.push(FieldError::invalid("providers.name", name, detail));
        }
    }
}

fn validate_one(wire: Wire, tokens: bool, errors: &mut Vec<FieldError>) -> Option<Provider> {
    validate_name(&wire.name, errors);
    let api_version = API_VERSIONS.into_iter().find(|v| *v == wire.api_version);
    let path = "providers.apiVersion";
    match (wire.api_version.as_str(), api_version) {
        ("", _) => errors.push(FieldError::required(path, "")),
        (text, None) => errors.push(FieldError::not_supported(path, text, &API_VERSIONS)),
        _ => {}
    }
    let path = "providers.matchImages";
    if wire.match_images.is_empty() {
        let detail = "at least 1 item in matchImages is required";
        errors.push(FieldError::required(path, detail));
    }
    let mut match_images = vec![];
    for text in &wire.match_images {
        match SchemelessUrl::parse(text) {
            Ok(url) => match_images.push(url),
            Err(error) => {
                let detail = format!("match image is invalid: {error}");
                errors.push(FieldError::invalid(path, text, detail));
            }
        }
    }
    let path = "providers.defaultCacheDuration";
    let duration = match wire.default_cache_duration.as_deref() {
        None => {
            errors.push(FieldError::required(path, ""));
            None
        }
        Some(text) => match duration::parse(text) {
            Ok(duration) => Some(duration),
            Err(duration::DurationError::Negative(_)) => {
                let detail = "must be greater than or equal to 0";
                errors.push(FieldError::invalid(path, text, detail));
                None
            }
            Err(error) => {
                errors.push(FieldError::invalid(path, text, error.to_string()));
                None
            }
        },
    };
    let token = match wire.token_attributes {
        None => None,
        Some(token) => {
            let path = "providers.tokenAttributes";
            if !tokens {
                let detail = "tokenAttributes is not supported when KubeletServiceAccountTokenForCredentialProviders feature gate is disabled";
                errors.push(FieldError::forbidden(path, detail));
            }
            if wire.api_version != V1 {
                let detail = format!("tokenAttributes is only supported for {V1} API version");
                errors.push(FieldError::forbidden(path, detail));
            }
            validate_token(token, errors)
        }
    };
    Some(Provider {
        name: wire.name,
        match_images,
        default_cache_duration: duration?,
        api_version: api_version?,
        args: wire.args,
        env: wire.env,
        token,
    })
}

fn validate_token(token: WireToken, errors: &mut Vec<FieldError>) -> Option<TokenAttributes> {
    let at = |field: &str| format!("providers.tokenAttributes.{field}");
    let (required, optional) = (
        &token.required_service_account_annotation_keys,
        &token.optional_service_account_annotation_keys,
    );
    if token.service_account_token_audience.is_empty() {
        errors.push(FieldError::required(at("serviceAccountTokenAudience"), ""));
    }
    match token.require_service_account {
        None => errors.push(FieldError::required(at("requireServiceAccount"), "")),
        Some(false) if !required.is_empty() => {
            let detail = "requireServiceAccount cannot be false when requiredServiceAccountAnnotationKeys is set";
            let path = at("requiredServiceAccountAnnotationKeys");
            errors.push(FieldError::forbidden(path, detail));
        }
        Some(_) => {}
    }
    validate_keys(
        &at("requiredServiceAccountAnnotationKeys"),
        required,
        errors,
    );
    validate_keys(
        &at("optionalServiceAccountAnnotationKeys"),
        optional,
        errors,
    );
    let both: BTreeSet<&String> = required.iter().filter(|k| optional.contains(k)).collect();
    if !both.is_empty() {
        let detail = "annotation keys cannot be both required and optional";
        errors.push(FieldError::invalid(
            "providers.tokenAttributes",
            both,
            detail,
        ));
    }
    let cache_type = match token.cache_type.as_str() {
        "ServiceAccount" => Some(CacheType::ServiceAccount),
        "Token" => Some(CacheType::Token),
        "" => {
            let detail = "cacheType is required to be set when tokenAttributes is specified. Supported values are: ServiceAccount, Token";
            errors.push(FieldError::required(at("cacheType"), detail));
            None
        }
        other => {
            let known = ["ServiceAccount", "Token"];
            errors.push(FieldError::not_supported(at("cacheType"), other, &known));
            None
        }
    };
    Some(TokenAttributes {
        audience: token.service_account_token_audience,
        cache_type: cache_type?,
        require_service_account: token.require_service_account?,
        required_annotations: token.required_service_account_annotation_keys,
        optional_annotations: token.optional_service_account_annotation_keys,
    })
}

/// Qualified names, whatever their case, each once.
fn validate_keys(path: &str, keys: &[String], errors: &mut Vec<FieldError>) {
    let mut seen = BTreeSet::new();
    for key in keys {
        if let Err(detail) = validate_label_key(&key.to_lowercase()) {
            errors.push(FieldError::invalid(path, key, detail));
        }
        if !seen.insert(key) {
            errors.push(FieldError::invalid(path, key, "must be unique"));
        }
    }
}

#[cfg(test)]
mod tests;
