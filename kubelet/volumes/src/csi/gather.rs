//! Collects from the API server all that a driver must be told of a pod's volume, before any driver is asked.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::TokenRequestStatus;
use k8s_openapi::api::core::v1::{Pod, SecretReference, Volume};
use k8s_openapi::api::storage::v1::CSIDriver;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::mount::{Job, Place, Staging};
use super::request::{
    attach_required, attachment_name, check_lifecycle, ephemeral_handle, hands_to_group, pod_info,
};
use super::{CsiError, CsiVolumes, DeviceKey, MOUNT, NAME};
use crate::claim::Persistent;
use crate::layout::check_component;
use crate::ownership::ChangePolicy;
use crate::source::{ObjectSource, TokenRequest};
use crate::token::TokenCache;

/// A kernel with SELinux has it.
const SELINUX_FS: &str = "/sys/fs/selinux/enforce";
const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";

/// What a pod wants of a driver.
pub(crate) struct Wanted<'a> {
    pub csi: &'a Arc<CsiVolumes>,
    pub tokens: &'a TokenCache,
    pub now: Timestamp,
    pub pod: &'a Pod,
    pub pod_uid: &'a str,
    pub namespace: &'a str,
    /// The pod's own volume of a driver, if nothing is behind a claim.
    pub volume: &'a Volume,
    /// What is behind the claim, if the pod's volume is one.
    pub persistent: Option<&'a Persistent>,
    /// The name of its directories.
    pub directory: &'a str,
    /// Who gets the files.
    pub group: Option<u32>,
    pub group_policy: ChangePolicy,
}

/// What the two kinds of source have in common.
struct Source {
    driver: String,
    handle: String,
    fs_type: String,
    attributes: BTreeMap<String, String>,
    access_mode: Option<String>,
    mount_options: Vec<String>,
    read_only: bool,
    /// One pod at a time may have it.
    alone: bool,
    stage_secret: Option<SecretReference>,
    publish_secret: Option<SecretReference>,
}

impl Source {
    fn of(wanted: &Wanted<'_>) -> Result<Self, CsiError> {
        let missing = || CsiError::Missing("volume source not found in volume.Spec");
        let Some(persistent) = wanted.persistent else {
            let csi = wanted.volume.csi.clone().ok_or_else(missing)?;
            return Ok(Self {
                driver: csi.driver,
                handle: ephemeral_handle(wanted.pod_uid, &wanted.volume.name),
                fs_type: csi.fs_type.unwrap_or_default(),
                attributes: csi.volume_attributes.unwrap_or_default(),
                access_mode: None,
                mount_options: Vec::new(),
                read_only: csi.read_only.unwrap_or(false),
                alone: false,
                stage_secret: None,
                publish_secret: csi.node_publish_secret_ref.map(|secret| SecretReference {
                    name: Some(secret.name),
                    namespace: Some(wanted.namespace.to_owned()),
                }),
            });
        };
        let spec = persistent.volume.spec.as_ref().ok_or_else(missing)?;
        let csi = spec.csi.clone().ok_or_else(missing)?;
        let modes = spec.access_modes.as_ref();
        Ok(Self {
            driver: csi.driver,
            handle: csi.volume_handle,
            fs_type: csi.fs_type.unwrap_or_default(),
            attributes: csi.volume_attributes.unwrap_or_default(),
            access_mode: modes.and_then(|m| m.first().cloned()),
            mount_options: spec.mount_options.clone().unwrap_or_default(),
            read_only: persistent.read_only,
            alone: modes.is_some_and(|m| m.iter().any(|mode| mode == "ReadWriteOncePod")),
            stage_secret: csi.node_stage_secret_ref,
            publish_secret: csi.node_publish_secret_ref,
        })
    }
}

/// Where on the node it is published and staged.
fn place(wanted: &Wanted<'_>, key: &DeviceKey) -> Place {
    let (layout, uid) = (&wanted.csi.layout, wanted.pod_uid);
    if wanted.persistent.is_some_and(Persistent::is_block) {
        let paths = layout.csi_block(wanted.directory);
        Place::Block {
            data: paths.data,
            link: layout.csi_device_links(uid).join(wanted.directory),
            target: paths.published.join(uid),
            staging: paths.staging,
        }
    } else {
        Place::Mount {
            target: layout.volume(uid, NAME, wanted.directory).join(MOUNT),
            staging: wanted.csi.staging_path(key),
        }
    }
}

/// Waits until the volume is attached, where it must be.
pub(crate) async fn gather(wanted: &Wanted<'_>) -> Result<Job, CsiError> {
    let csi = wanted.csi;
    let source = Source::of(wanted)?;
    check_component("csi.driver", &source.driver)?;
    if source.handle.is_empty() {
        return Err(CsiError::Missing("missing volume id"));
    }
    let ephemeral = wanted.persistent.is_none();
    let object = csi.source.csi_driver(&source.driver).await;
    let object = object.map_err(|error| CsiError::Driver {
        driver: source.driver.clone(),
        source: error,
    })?;
    let driver = object.as_deref();
    check_lifecycle(driver, &source.driver, ephemeral)?;
    refuse_selinux(driver, &source.driver)?;
    let key = DeviceKey {
        driver: source.driver,
        handle: source.handle,
    };
    let attachment = attachment_name(&key.handle, &key.driver, &csi.node_name);
    let mut publish_context = BTreeMap::new();
    if !ephemeral {
        // Also enforced by the scheduler, which not every pod comes by.
        if source.alone && !csi.in_use.want_alone(&key, wanted.pod_uid) {
            return Err(CsiError::InUse);
        }
        publish_context = if attach_required(driver) {
            let limited = driver.and_then(|d| d.spec.node_allocatable_update_period_seconds);
            let limited = limited.is_some_and(|seconds| seconds > 0);
            csi.wait_for_attach(&key, wanted.pod_uid, wanted.directory, limited)
                .await?
        } else {
            csi.in_use.want(&key, wanted.pod_uid);
            BTreeMap::new()
        };
    }
    let mut volume_context = source.attributes.clone();
    if driver.and_then(|d| d.spec.pod_info_on_mount) == Some(true) {
        volume_context.extend(pod_info(wanted.pod, ephemeral));
    }
    let mut publish_secrets =
        secrets(&*csi.source, "NodePublishSecretRef", source.publish_secret).await?;
    if let Some(tokens) = tokens(wanted, driver).await? {
        let in_secrets = driver.and_then(|d| d.spec.service_account_token_in_secrets);
        let map = match in_secrets {
            Some(true) => &mut publish_secrets,
            _ => &mut volume_context,
        };
        map.insert(TOKENS.to_owned(), tokens);
    }
    let volume = wanted.persistent.map(|p| &*p.volume);
    let hands_over = hands_to_group(driver, &source.fs_type, volume, source.read_only)?;
    let uid = wanted.pod_uid;
    let place = place(wanted, &key);
    let staging = if ephemeral {
        None
    } else {
        Some(Staging {
            volume_context: source.attributes,
            secrets: secrets(&*csi.source, "NodeStageSecretRef", source.stage_secret).await?,
        })
    };
    let mut memory = csi.memory();
    let begun = memory.begun.entry(uid.to_owned()).or_default();
    begun.insert(key.clone());
    drop(memory);
    Ok(Job {
        csi: Arc::clone(csi),
        key,
        uid: uid.to_owned(),
        name: wanted.directory.to_owned(),
        attachment,
        place,
        staging,
        fs_type: source.fs_type,
        access_mode: source.access_mode,
        mount_options: source.mount_options,
        read_only: source.read_only,
        publish_context,
        volume_context,
        publish_secrets,
        group: wanted.group,
        group_policy: wanted.group_policy,
        hands_over,
    })
}

/// A driver that mounts with a context of the pod's would leave files that no other pod may read, where SELinux is on.
fn refuse_selinux(driver: Option<&CSIDriver>, name: &str) -> Result<(), CsiError> {
    let asks = driver.and_then(|d| d.spec.se_linux_mount) == Some(true);
    if asks && Path::new(SELINUX_FS).exists() {
        return Err(CsiError::SeLinux(name.to_owned()));
    }
    Ok(())
}

pub(super) async fn secrets(
    source: &dyn ObjectSource,
    which: &'static str,
    reference: Option<SecretReference>,
) -> Result<BTreeMap<String, String>, CsiError> {
    let Some(reference) = reference else {
        return Ok(BTreeMap::new());
    };
    let namespace = reference.namespace.unwrap_or_default();
    let name = reference.name.unwrap_or_default();
    let failed = |why: String| CsiError::Secret {
        which,
        namespace: namespace.clone(),
        name: name.clone(),
        why,
    };
    let found = source.secret(&namespace, &name).await;
    let found = found.map_err(|error| failed(error.to_string()))?;
    let found = found.ok_or_else(|| failed(format!("secrets {name:?} not found")))?;
    let data = found.data.iter().flatten();
    Ok(data
        .map(|(key, value)| (key.clone(), String::from_utf8_lossy(&value.0).into_owned()))
        .collect())
}

/// The tokens the driver asks for in the pod's name, as JSON by audience. Upstream: `podServiceAccountTokenAttrs`.
async fn tokens(
    wanted: &Wanted<'_>,
    driver: Option<&CSIDriver>,
) -> Result<Option<String>, CsiError> {
    let Some(driver) = driver else {
        return Ok(None);
    };
    let requests = driver.spec.token_requests.as_deref().unwrap_or_default();
    if requests.is_empty() {
        return Ok(None);
    }
    let spec = wanted.pod.spec.as_ref();
    let account = spec.and_then(|s| s.service_account_name.clone());
    let republished = driver.spec.requires_republish == Some(true);
    let source = &*wanted.csi.source;
    let mut answers = BTreeMap::new();
    for request in requests {
        let audience = &request.audience;
        let token = TokenRequest {
            namespace: wanted.namespace.to_owned(),
            service_account: account.clone().unwrap_or_default(),
            service_account_uid: None,
            audiences: Some(audience.clone())
                .filter(|a| !a.is_empty())
                .into_iter()
                .collect(),
            expiration_seconds: request.expiration_seconds,
            pod_name: wanted.pod.metadata.name.clone().unwrap_or_default(),
            pod_uid: wanted.pod_uid.to_owned(),
        };
        // One that is never given again is not to be renewed.
        let token = if republished {
            wanted.tokens.get(source, &token, wanted.now).await
        } else {
            source.service_account_token(&token).await
        };
        let token = token.map_err(CsiError::Token)?;
        let seconds = token.expires_at.as_second();
        let expires = Timestamp::from_second(seconds).unwrap_or(token.expires_at);
        let status = TokenRequestStatus {
            token: Some(token.token),
            expiration_timestamp: Some(Time(expires)),
        };
        answers.insert(audience.clone(), status);
    }
    let text = serde_json::to_string(&answers);
    Ok(Some(text.expect("strings and times are JSON")))
}
