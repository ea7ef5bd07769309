//! `projected` volumes: several sources in one directory, tokens among them. Upstream: pkg/volume/projected.

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ServiceAccountTokenProjection, Volume, VolumeProjection};

use crate::atomic_writer::{FileProjection, Payload};
use crate::content::{self, mode};
use crate::empty_dir::Medium;
use crate::manager::VolumeLocation;
use crate::plugin::{Mounter, SetUpError, VolumePlugin};
use crate::source::TokenRequest;
use crate::{config_map, downward_api, secret};

pub(crate) struct Projected;

#[async_trait]
impl VolumePlugin for Projected {
    fn name(&self) -> &'static str {
        "kubernetes.io/projected"
    }

    fn can_support(&self, volume: &Volume) -> bool {
        volume.projected.is_some()
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
            .projected
            .as_ref()
            .expect("can_support said so");
        let default_mode = mode(source.default_mode);
        let mut payload = Payload::new();
        let mut errors = Vec::new();
        for projection in source.sources.iter().flatten() {
            match collect(mounter, projection, default_mode).await {
                // Of two sources with the same path the later wins.
                Ok(files) => payload.extend(files),
                Err(error) => errors.push(error),
            }
        }
        SetUpError::from_list(errors)?;
        content::set_up(mounter, self.name(), Medium::Memory, payload).await
    }
}

async fn collect(
    mounter: &Mounter<'_>,
    projection: &VolumeProjection,
    default_mode: u32,
) -> Result<Payload, SetUpError> {
    if let Some(source) = &projection.secret {
        let items = source.items.as_deref().unwrap_or_default();
        return secret::collect(
            mounter,
            &source.name,
            items,
            default_mode,
            source.optional.unwrap_or(false),
        )
        .await;
    }
    if let Some(source) = &projection.config_map {
        let items = source.items.as_deref().unwrap_or_default();
        return config_map::collect(
            mounter,
            &source.name,
            items,
            default_mode,
            source.optional.unwrap_or(false),
        )
        .await;
    }
    if let Some(source) = &projection.downward_api {
        return downward_api::collect(
            mounter,
            source.items.as_deref().unwrap_or_default(),
            default_mode,
        );
    }
    if let Some(source) = &projection.service_account_token {
        return token(mounter, source, default_mode).await;
    }
    if projection.cluster_trust_bundle.is_some() {
        return Err(SetUpError::UnsupportedSource {
            source_kind: "clusterTrustBundle",
        });
    }
    if projection.pod_certificate.is_some() {
        return Err(SetUpError::UnsupportedSource {
            source_kind: "podCertificate",
        });
    }
    Ok(Payload::new())
}

async fn token(
    mounter: &Mounter<'_>,
    source: &ServiceAccountTokenProjection,
    default_mode: u32,
) -> Result<Payload, SetUpError> {
    let request = TokenRequest {
        namespace: mounter.namespace().to_owned(),
        service_account: service_account_name(mounter),
        audiences: source
            .audience
            .iter()
            .filter(|a| !a.is_empty())
            .cloned()
            .collect(),
        expiration_seconds: source.expiration_seconds,
        pod_name: mounter.pod.metadata.name.clone().unwrap_or_default(),
        pod_uid: mounter.pod_uid.to_owned(),
    };
    let token = mounter
        .tokens
        .get(mounter.source, &request, mounter.now)
        .await
        .map_err(SetUpError::Token)?;
    // Someone in particular may read it: then nobody else. With an fsGroup, the change of ownership makes it 0640.
    let owned = mounter.ownership.fs_user.is_some() || mounter.ownership.fs_group.is_some();
    let file = FileProjection {
        data: token.token.into_bytes(),
        mode: if owned { 0o600 } else { default_mode },
        fs_user: mounter.ownership.fs_user,
    };
    Ok(Payload::from([(source.path.clone(), file)]))
}

fn service_account_name(mounter: &Mounter<'_>) -> String {
    let spec = mounter.pod.spec.as_ref();
    spec.and_then(|s| s.service_account_name.clone())
        .filter(|n| !n.is_empty())
        .unwrap_or_else(|| "default".to_owned())
}
