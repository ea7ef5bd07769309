//! An image's config: what the store itself needs of it.

use oci_spec::image::ImageConfiguration;
use serde_json::Value;

use crate::manifest::Platform;

/// A config, read.
pub(crate) struct Config {
    pub(crate) image: ImageConfiguration,
    /// Uncompressed digests of the layers, lowest first.
    pub(crate) diff_ids: Vec<String>,
    pub(crate) platform: Platform,
}

/// Why a config cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("not an image config: {0}")]
    Json(#[from] serde_json::Error),
    #[error("diff id {value:?}: {reason}")]
    DiffId { value: String, reason: String },
}

/// Reads a config, forgiving what builders leave out.
pub(crate) fn parse(bytes: &[u8]) -> Result<Config, ConfigError> {
    let mut json: Value = serde_json::from_slice(bytes)?;
    let host = Platform::host();
    if let Some(object) = json.as_object_mut() {
        for (key, default) in [("os", &host.os), ("architecture", &host.architecture)] {
            let given = object
                .get(key)
                .and_then(Value::as_str)
                .is_some_and(|text| !text.is_empty());
            if !given {
                object.insert(key.to_owned(), Value::String(default.clone()));
            }
        }
        let rootfs = object.entry("rootfs").or_insert(Value::Null);
        if rootfs.is_null() {
            *rootfs = serde_json::json!({ "type": "layers" });
        }
        if let Some(rootfs) = rootfs.as_object_mut()
            && rootfs.get("diff_ids").is_none_or(Value::is_null)
        {
            rootfs.insert("diff_ids".to_owned(), Value::Array(Vec::new()));
        }
    }
    let text = |key: &str| {
        json.get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let platform = Platform {
        os: text("os"),
        architecture: text("architecture"),
        variant: Some(text("variant")).filter(|variant| !variant.is_empty()),
    };
    let image: ImageConfiguration = serde_json::from_value(json)?;
    let diff_ids = image.rootfs().diff_ids().clone();
    for diff_id in &diff_ids {
        crate::reference::validate_digest(diff_id).map_err(|error| ConfigError::DiffId {
            value: diff_id.clone(),
            reason: error.to_string(),
        })?;
    }
    Ok(Config {
        image,
        diff_ids,
        platform,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgives() {
        let config =
            parse(br#"{"rootfs":{"type":"layers","diff_ids":null},"config":null}"#).unwrap();
        assert!(config.diff_ids.is_empty());
        assert_eq!(config.platform.os, "linux");
        let config = parse(
            br#"{"os":"linux","architecture":"amd64","config":{"User":"1000","Env":null,"Cmd":["a"],
            "ExposedPorts":{"80/tcp":{}},"Volumes":{"/data":{}},"Healthcheck":{"Test":["x"]},"ArgsEscaped":true,
            "Labels":null},"container_config":{"Hostname":"x"},"history":[{"created_by":"x","empty_layer":true}],
            "rootfs":{"type":"layers","diff_ids":[]}}"#,
        )
        .unwrap();
        let inner = config.image.config().clone().unwrap();
        assert_eq!(inner.user().as_deref(), Some("1000"));
        assert!(parse(br#"{"rootfs":{"type":"layers","diff_ids":["sha256:../x"]}}"#).is_err());
        assert!(parse(b"[]").is_err());
    }
}
