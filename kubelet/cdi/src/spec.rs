//! A file's content; pure. Upstream: pkg/cdi/spec.go, pkg/cdi/device.go, internal/validation.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::edits::{ContainerEdits, EditsError, or_default};
use crate::name::{NameError, check_device, parse_kind};
use crate::version;

/// Of all annotations of a file or a device together. Upstream: `TotalAnnotationSizeLimitB`.
const MOST_ANNOTATION_BYTES: usize = 256 << 10;

/// One file: the devices of one class of a vendor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    #[serde(default, deserialize_with = "or_default")]
    pub cdi_version: String,
    /// `vendor/class`.
    #[serde(default, deserialize_with = "or_default")]
    pub kind: String,
    #[serde(default, deserialize_with = "or_default")]
    pub annotations: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default")]
    pub devices: Vec<Device>,
    /// For every container that gets one of the devices.
    #[serde(default, deserialize_with = "or_default")]
    pub container_edits: ContainerEdits,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Device {
    #[serde(default, deserialize_with = "or_default")]
    pub name: String,
    #[serde(default, deserialize_with = "or_default")]
    pub annotations: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default")]
    pub container_edits: ContainerEdits,
}

/// Why a file counts for nothing. Reading it again says the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error("failed to unmarshal CDI Spec: {0}")]
    Text(String),
    #[error("no Spec data")]
    NoData,
    #[error("invalid version {0:?}")]
    Version(String),
    #[error("the spec version must be at least v{0}")]
    TooOld(&'static str),
    #[error("kind {kind:?}: {source}")]
    Kind {
        kind: String,
        #[source]
        source: NameError,
    },
    #[error("failed add device {device:?}: {source}")]
    DeviceName {
        device: String,
        #[source]
        source: NameError,
    },
    #[error("invalid container edits: {0}")]
    Edits(#[source] EditsError),
    #[error("invalid device {device:?}: {source}")]
    DeviceEdits {
        device: String,
        #[source]
        source: EditsError,
    },
    #[error("invalid device {0:?}, empty device edits")]
    EmptyDevice(String),
    #[error("invalid spec, multiple device {0:?}")]
    Twice(String),
    #[error("invalid spec, no devices")]
    NoDevices,
    #[error("annotations of {of:?}: {why}")]
    Annotations { of: String, why: &'static str },
}

/// JSON or YAML; of several documents the first.
///
/// # Errors
/// It is none, has a field that there is not, or says what cannot be.
pub fn parse(text: &str) -> Result<Spec, SpecError> {
    let spec = decode(text)?;
    validate(&spec)?;
    Ok(spec)
}

fn decode(text: &str) -> Result<Spec, SpecError> {
    // JSON is YAML, too, but for tabs.
    if text.trim_start().starts_with('{')
        && let Ok(spec) = serde_json::from_str(text)
    {
        return Ok(spec);
    }
    let options = serde_saphyr::options! {
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    let mut bytes = text.as_bytes();
    let first = serde_saphyr::read_with_options::<_, Option<Spec>>(&mut bytes, options).next();
    match first {
        Some(Ok(Some(spec))) => Ok(spec),
        None | Some(Ok(None)) => Err(SpecError::NoData),
        Some(Err(error)) => Err(SpecError::Text(error.to_string())),
    }
}

fn validate(spec: &Spec) -> Result<(), SpecError> {
    let unknown = || SpecError::Version(spec.cdi_version.clone());
    let named = version::position(&spec.cdi_version).ok_or_else(unknown)?;
    let all = spec.devices.iter();
    let of_devices = all.clone().map(|device| &device.container_edits);
    let required = version::required(&version::Used {
        kind: &spec.kind,
        annotated: !spec.annotations.is_empty()
            || all.clone().any(|device| !device.annotations.is_empty()),
        devices: all.map(|device| device.name.as_str()).collect(),
        edits: of_devices.chain([&spec.container_edits]).collect(),
    });
    if version::position(required).is_some_and(|least| named < least) {
        return Err(SpecError::TooOld(required));
    }
    parse_kind(&spec.kind).map_err(|source| SpecError::Kind {
        kind: spec.kind.clone(),
        source,
    })?;
    check_annotations(&spec.kind, &spec.annotations)?;
    spec.container_edits.validate().map_err(SpecError::Edits)?;
    let mut names = BTreeSet::new();
    for device in &spec.devices {
        let name = || device.name.clone();
        check_device(&device.name).map_err(|source| SpecError::DeviceName {
            device: name(),
            source,
        })?;
        check_annotations(&device.name, &device.annotations)?;
        if device.container_edits.is_empty() {
            return Err(SpecError::EmptyDevice(name()));
        }
        let edits = device.container_edits.validate();
        edits.map_err(|source| SpecError::DeviceEdits {
            device: name(),
            source,
        })?;
        if !names.insert(&device.name) {
            return Err(SpecError::Twice(name()));
        }
    }
    match names.is_empty() {
        true => Err(SpecError::NoDevices),
        false => Ok(()),
    }
}

/// They say something about the file alone; nobody gets them.
fn check_annotations(of: &str, annotations: &BTreeMap<String, String>) -> Result<(), SpecError> {
    let bad = |why| {
        Err(SpecError::Annotations {
            of: of.to_owned(),
            why,
        })
    };
    let bytes: usize = annotations.iter().map(|(k, v)| k.len() + v.len()).sum();
    if bytes > MOST_ANNOTATION_BYTES {
        return bad("they are too long");
    }
    let is_name = |key: &String| {
        let (prefix, name) = match key.split_once('/') {
            Some((prefix, name)) => (Some(prefix), name),
            None => (None, key.as_str()),
        };
        let plain = |c: char| c.is_ascii_alphanumeric();
        let ends = name.starts_with(plain) && name.ends_with(plain);
        let inner = name.chars().all(|c| plain(c) || "-_.".contains(c));
        let prefix = prefix.is_none_or(|prefix| {
            let labels = prefix.split('.').all(|label| {
                let inner = label.chars().all(|c| plain(c) || c == '-');
                label.starts_with(plain) && label.ends_with(plain) && inner
            });
            prefix.len() <= 253 && labels
        });
        ends && inner && name.len() <= 63 && prefix
    };
    match annotations.keys().all(is_name) {
        true => Ok(()),
        false => bad("a key is no qualified name"),
    }
}

#[cfg(test)]
mod tests;
