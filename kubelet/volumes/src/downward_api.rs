//! `downwardAPI` volumes: fields of the pod and its containers' resources as files. Upstream: pkg/volume/downwardapi.

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, Volume};

use crate::atomic_writer::{FileProjection, Payload};
use crate::content::{self, Size, mode};
use crate::empty_dir::Medium;
use crate::field_path::extract_field_path_as_string;
use crate::location::VolumeLocation;
use crate::plugin::{Mounter, SetUpError, VolumePlugin};
use crate::resource_field::extract_resource_value;

pub(crate) struct DownwardApi;

#[async_trait]
impl VolumePlugin for DownwardApi {
    fn name(&self) -> &'static str {
        "kubernetes.io/downward-api"
    }

    fn can_support(&self, volume: &Volume) -> bool {
        volume.downward_api.is_some()
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
            .downward_api
            .as_ref()
            .expect("can_support said so");
        let payload = collect(
            mounter,
            source.items.as_deref().unwrap_or_default(),
            mode(source.default_mode),
        )?;
        content::set_up(mounter, self.name(), Medium::Memory, payload).await
    }
}

/// Also a source of projected volumes. Reports every item that fails.
pub(crate) fn collect(
    mounter: &Mounter<'_>,
    items: &[DownwardAPIVolumeFile],
    default_mode: u32,
) -> Result<Payload, SetUpError> {
    let (mut payload, mut size) = (Payload::new(), Size::default());
    let mut errors = Vec::new();
    for item in items {
        match value(mounter, item) {
            Ok(data) => {
                size.add(data.len())?;
                let mode = item.mode.map_or(default_mode, |m| mode(Some(m)));
                payload.insert(
                    item.path.clone(),
                    FileProjection {
                        data: data.into_bytes(),
                        mode,
                        fs_user: None,
                    },
                );
            }
            Err(error) => errors.push(error),
        }
    }
    SetUpError::from_list(errors).map(|()| payload)
}

fn value(mounter: &Mounter<'_>, item: &DownwardAPIVolumeFile) -> Result<String, SetUpError> {
    if let Some(field) = &item.field_ref {
        return Ok(extract_field_path_as_string(
            mounter.pod,
            &field.field_path,
        )?);
    }
    match &item.resource_field_ref {
        Some(selector) => Ok(extract_resource_value(
            selector,
            mounter.pod,
            "",
            &mounter.source.node_allocatable()?,
        )?),
        None => Ok(String::new()),
    }
}
