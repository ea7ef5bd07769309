//! `configMap` volumes. Upstream: pkg/volume/configmap.

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ConfigMap, KeyToPath, Volume};

use crate::atomic_writer::{FileProjection, Payload};
use crate::content::{self, Size, mode};
use crate::empty_dir::Medium;
use crate::location::VolumeLocation;
use crate::plugin::{Mounter, SetUpError, VolumePlugin};

pub(crate) struct ConfigMapVolume;

#[async_trait]
impl VolumePlugin for ConfigMapVolume {
    fn name(&self) -> &'static str {
        "kubernetes.io/configmap"
    }

    fn can_support(&self, volume: &Volume) -> bool {
        volume.config_map.is_some()
    }

    fn requires_remount(&self) -> bool {
        true
    }

    fn read_only(&self) -> bool {
        true
    }

    async fn set_up(&self, mounter: &Mounter<'_>) -> Result<VolumeLocation, SetUpError> {
        let source = mounter
            .volume
            .config_map
            .as_ref()
            .expect("can_support said so");
        let payload = collect(
            mounter,
            &source.name,
            source.items.as_deref().unwrap_or_default(),
            mode(source.default_mode),
            source.optional.unwrap_or(false),
        )
        .await?;
        // On disk, as upstream: a tmpfs would be charged to the wrong cgroup.
        content::set_up(mounter, self.name(), Medium::Default, payload).await
    }
}

/// Also a source of projected volumes.
pub(crate) async fn collect(
    mounter: &Mounter<'_>,
    name: &str,
    items: &[KeyToPath],
    default_mode: u32,
    optional: bool,
) -> Result<Payload, SetUpError> {
    match mounter.source.config_map(mounter.namespace(), name).await? {
        Some(config_map) => make_payload(items, &config_map, default_mode, optional),
        None if optional => Ok(Payload::new()),
        None => Err(SetUpError::ConfigMapNotFound(name.to_owned())),
    }
}

fn make_payload(
    items: &[KeyToPath],
    config_map: &ConfigMap,
    default_mode: u32,
    optional: bool,
) -> Result<Payload, SetUpError> {
    let text = config_map
        .data
        .iter()
        .flatten()
        .map(|(key, value)| (key, value.as_bytes()));
    let binary = config_map
        .binary_data
        .iter()
        .flatten()
        .map(|(key, value)| (key, value.0.as_slice()));
    let data = text
        .chain(binary)
        .map(|(key, value)| (key.as_str(), value))
        .collect();
    select(
        items,
        data,
        default_mode,
        optional,
        SetUpError::ConfigKeyNotFound,
    )
}

/// All keys, or those that `items` choose, under the paths they choose.
pub(crate) fn select(
    items: &[KeyToPath],
    data: std::collections::BTreeMap<&str, &[u8]>,
    default_mode: u32,
    optional: bool,
    not_found: fn(String) -> SetUpError,
) -> Result<Payload, SetUpError> {
    let file = |data: &[u8], mode| FileProjection {
        data: data.to_vec(),
        mode,
        fs_user: None,
    };
    if items.is_empty() {
        return Ok(data
            .into_iter()
            .map(|(key, value)| (key.to_owned(), file(value, default_mode)))
            .collect());
    }
    let (mut payload, mut size) = (Payload::new(), Size::default());
    for item in items {
        match data.get(item.key.as_str()) {
            Some(value) => {
                size.add(value.len())?;
                let mode = item.mode.map_or(default_mode, |m| mode(Some(m)));
                payload.insert(item.path.clone(), file(value, mode));
            }
            None if optional => {}
            None => return Err(not_found(item.key.clone())),
        }
    }
    Ok(payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_object_named_many_times_is_not_made_as_often() {
        let data = std::collections::BTreeMap::from([("big".to_owned(), "x".repeat(1 << 20))]);
        let config_map = ConfigMap {
            data: Some(data),
            ..ConfigMap::default()
        };
        let items = |n: usize| -> Vec<KeyToPath> {
            let item = |i| KeyToPath {
                key: "big".to_owned(),
                path: format!("{i}"),
                ..KeyToPath::default()
            };
            (0..n).map(item).collect()
        };
        let files = make_payload(&items(32), &config_map, 0o644, false).unwrap();
        assert_eq!(files.len(), 32);
        let error = make_payload(&items(20_000), &config_map, 0o644, false).unwrap_err();
        let expect = "the files of the volume have more than 33554432 bytes";
        assert_eq!(error.to_string(), expect);
    }

    #[test]
    fn items_choose_keys_paths_and_modes() {
        let config_map: ConfigMap = serde_json::from_value(
            serde_json::json!({"data": {"a": "1", "b": "2"}, "binaryData": {"c": "AAE="}}),
        )
        .unwrap();
        let item = |key: &str, path: &str, mode| KeyToPath {
            key: key.to_owned(),
            path: path.to_owned(),
            mode,
            ..KeyToPath::default()
        };
        let all = make_payload(&[], &config_map, 0o644, false).unwrap();
        assert_eq!(all.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(all["c"].data, [0, 1]);
        let some = make_payload(
            &[item("a", "x/y", Some(0o400)), item("b", "z", None)],
            &config_map,
            0o640,
            false,
        )
        .unwrap();
        assert_eq!(
            (some["x/y"].mode, some["z"].mode, some.len()),
            (0o400, 0o640, 2)
        );
        let missing = [item("nope", "p", None)];
        assert_eq!(
            make_payload(&missing, &config_map, 0o644, false)
                .unwrap_err()
                .to_string(),
            "configmap references non-existent config key: nope"
        );
        assert!(
            make_payload(&missing, &config_map, 0o644, true)
                .unwrap()
                .is_empty()
        );
    }
}
