//! `projected` volumes: several sources in one directory, tokens among them. Upstream: pkg/volume/projected.

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{
    ClusterTrustBundleProjection, PodCertificateProjection, ServiceAccountTokenProjection, Volume,
    VolumeProjection,
};

use crate::atomic_writer::{FileProjection, Payload};
use crate::content::{self, Size, mode};
use crate::empty_dir::Medium;
use crate::location::VolumeLocation;
use crate::plugin::{Mounter, SetUpError, VolumePlugin};
use crate::source::{PodCertificateKey, TokenRequest};
use crate::{config_map, downward_api, secret, trust_bundle};

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
        let (mut payload, mut size) = (Payload::new(), Size::default());
        let mut errors = Vec::new();
        for (index, projection) in source.sources.iter().flatten().enumerate() {
            match collect(mounter, projection, index, default_mode).await {
                // Of two sources with the same path the later wins.
                Ok(files) => {
                    files
                        .values()
                        .try_for_each(|file| size.add(file.data.len()))?;
                    payload.extend(files);
                }
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
    index: usize,
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
    if let Some(source) = &projection.cluster_trust_bundle {
        return trust_anchors(mounter, source, default_mode).await;
    }
    if let Some(source) = &projection.pod_certificate {
        return certificate(mounter, source, index, default_mode).await;
    }
    Ok(Payload::new())
}

/// A file that is for the pod's one user, if it has one: then nobody else may read it. With an fsGroup, the change of
/// ownership makes it 0640.
fn private_file(mounter: &Mounter<'_>, data: Vec<u8>, default_mode: u32) -> FileProjection {
    let owned = mounter.ownership.fs_user.is_some() || mounter.ownership.fs_group.is_some();
    FileProjection {
        data,
        mode: if owned { 0o600 } else { default_mode },
        fs_user: mounter.ownership.fs_user,
    }
}

async fn trust_anchors(
    mounter: &Mounter<'_>,
    source: &ClusterTrustBundleProjection,
    default_mode: u32,
) -> Result<Payload, SetUpError> {
    let anchors = trust_bundle::anchors(mounter.source, source).await?;
    let file = private_file(mounter, anchors, default_mode);
    Ok(Payload::from([(source.path.clone(), file)]))
}

async fn certificate(
    mounter: &Mounter<'_>,
    source: &PodCertificateProjection,
    index: usize,
    default_mode: u32,
) -> Result<Payload, SetUpError> {
    let key = PodCertificateKey {
        namespace: mounter.namespace().to_owned(),
        pod_name: mounter.pod.metadata.name.clone().unwrap_or_default(),
        pod_uid: mounter.pod_uid.to_owned(),
        volume: mounter.volume.name.clone(),
        source_index: index,
    };
    let issued = mounter.source.pod_certificate(&key).await?;
    let both = || [&*issued.key, &*issued.chain].concat();
    let mut payload = Payload::new();
    let mut add = |path: &Option<String>, data: &dyn Fn() -> Vec<u8>| {
        if let Some(path) = path.as_ref().filter(|path| !path.is_empty()) {
            let file = private_file(mounter, data(), default_mode);
            payload.insert(path.clone(), file);
        }
    };
    add(&source.credential_bundle_path, &both);
    add(&source.key_path, &|| issued.key.to_vec());
    add(&source.certificate_chain_path, &|| issued.chain.to_vec());
    Ok(payload)
}

async fn token(
    mounter: &Mounter<'_>,
    source: &ServiceAccountTokenProjection,
    default_mode: u32,
) -> Result<Payload, SetUpError> {
    let request = TokenRequest {
        namespace: mounter.namespace().to_owned(),
        service_account: service_account_name(mounter),
        service_account_uid: None,
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
    let file = private_file(mounter, token.token.into_bytes(), default_mode);
    Ok(Payload::from([(source.path.clone(), file)]))
}

fn service_account_name(mounter: &Mounter<'_>) -> String {
    let spec = mounter.pod.spec.as_ref();
    spec.and_then(|s| s.service_account_name.clone())
        .filter(|n| !n.is_empty())
        .unwrap_or_else(|| "default".to_owned())
}
