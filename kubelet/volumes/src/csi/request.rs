//! What a driver is asked for, from a volume, a pod and a `CSIDriver`: pure.

use std::collections::BTreeMap;

use csi::Capabilities;
use csi::proto::VolumeCapability;
use csi::proto::volume_capability::access_mode::Mode;
use csi::proto::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use k8s_openapi::api::core::v1::{PersistentVolume, Pod};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use sha2::{Digest, Sha256};

use super::{CsiError, hex};

/// Unless its `CSIDriver` says otherwise, a driver's volumes are attached before they are used.
pub(super) fn attach_required(driver: Option<&CSIDriver>) -> bool {
    driver.and_then(|d| d.spec.attach_required) != Some(false)
}

/// The VolumeAttachment's; upstream: `getAttachmentName`.
pub(super) fn attachment_name(handle: &str, driver: &str, node: &str) -> String {
    let text = format!("{handle}{driver}{node}");
    format!("csi-{}", hex(&Sha256::digest(text.as_bytes())))
}

/// Of a pod's own volume; upstream: `makeVolumeHandle`.
pub(super) fn ephemeral_handle(uid: &str, volume: &str) -> String {
    let text = format!("{uid}{volume}");
    format!("csi-{}", hex(&Sha256::digest(text.as_bytes())))
}

/// What the attacher has for the driver. Upstream: `verifyAttachmentStatus`.
///
/// # Errors
/// It is not attached, or not for long.
pub(super) fn verify_attachment(
    attachment: &VolumeAttachment,
    handle: &str,
) -> Result<BTreeMap<String, String>, CsiError> {
    if attachment.metadata.deletion_timestamp.is_some() {
        return Err(CsiError::AttachmentDeleted);
    }
    let status = attachment.status.as_ref();
    if status.is_some_and(|s| s.attached) {
        let context = status.and_then(|s| s.attachment_metadata.clone());
        return Ok(context.unwrap_or_default());
    }
    match status.and_then(|s| s.attach_error.as_ref()) {
        Some(error) => Err(CsiError::AttachFailed(
            error.message.clone().unwrap_or_default(),
        )),
        None => Err(CsiError::NotYetAttached {
            handle: handle.to_owned(),
            attachment: attachment.metadata.name.clone().unwrap_or_default(),
        }),
    }
}

/// Whether the driver takes volumes of that lifecycle. Without a `CSIDriver`, persistent ones alone.
/// Upstream: `supportsVolumeLifecycleMode`.
pub(super) fn check_lifecycle(
    driver: Option<&CSIDriver>,
    name: &str,
    ephemeral: bool,
) -> Result<(), CsiError> {
    let mode = if ephemeral { "Ephemeral" } else { "Persistent" };
    let Some(driver) = driver else {
        if !ephemeral {
            return Ok(());
        }
        return Err(CsiError::Mode(format!(
            "volume mode {mode:?} not supported by driver {name} (no CSIDriver object)"
        )));
    };
    let modes = driver.spec.volume_lifecycle_modes.as_deref();
    let modes = modes.unwrap_or_default();
    // The API server fills in the default.
    if modes.iter().any(|m| m == mode) || (modes.is_empty() && !ephemeral) {
        return Ok(());
    }
    let only: Vec<_> = modes.iter().map(|m| format!("{m:?}")).collect();
    Err(CsiError::Mode(format!(
        "volume mode {mode:?} not supported by driver {name} (only supports [{}])",
        only.join(" ")
    )))
}

/// Whether the kubelet hands the volume's files to the pod's group, where the driver does not.
/// Upstream: `supportsFSGroup`, `getFSGroupPolicy`.
pub(super) fn hands_to_group(
    driver: Option<&CSIDriver>,
    fs_type: &str,
    volume: Option<&PersistentVolume>,
    read_only: bool,
) -> Result<bool, CsiError> {
    let policy = match driver.map(|d| d.spec.fs_group_policy.as_deref()) {
        None => "ReadWriteOnceWithFSType",
        Some(None | Some("")) => return Err(CsiError::NoGroupPolicy),
        Some(Some(policy)) => policy,
    };
    if read_only || policy == "None" {
        return Ok(false);
    }
    if policy == "File" {
        return Ok(true);
    }
    if fs_type.is_empty() {
        return Ok(false);
    }
    let Some(volume) = volume else {
        // A pod's own is always for one node.
        return Ok(true);
    };
    let modes = volume.spec.as_ref().and_then(|s| s.access_modes.as_ref());
    let mut modes = modes.into_iter().flatten();
    Ok(modes.any(|m| m == "ReadWriteOnce" || m == "ReadWriteOncePod"))
}

/// A PersistentVolume's first mode counts; `None`: ReadWriteOnce.
pub(super) fn access_mode(mode: Option<&str>, capabilities: &Capabilities) -> Mode {
    let multi_writer = capabilities.single_node_multi_writer();
    match mode.unwrap_or("ReadWriteOnce") {
        "ReadWriteOnce" if multi_writer => Mode::SingleNodeMultiWriter,
        "ReadWriteOncePod" if multi_writer => Mode::SingleNodeSingleWriter,
        // A driver that does not know of it cannot tell the difference.
        "ReadWriteOnce" | "ReadWriteOncePod" => Mode::SingleNodeWriter,
        "ReadOnlyMany" => Mode::MultiNodeReaderOnly,
        "ReadWriteMany" => Mode::MultiNodeMultiWriter,
        _ => Mode::Unknown,
    }
}

/// How the volume is to be had. `group`: for drivers that hand the files over by themselves.
pub(super) fn mount_capability(
    mode: Mode,
    fs_type: &str,
    options: &[String],
    group: Option<u32>,
) -> VolumeCapability {
    capability(
        mode,
        AccessType::Mount(MountVolume {
            fs_type: fs_type.to_owned(),
            mount_flags: options.to_vec(),
            volume_mount_group: group.map(|g| g.to_string()).unwrap_or_default(),
        }),
    )
}

pub(super) fn block_capability(mode: Mode) -> VolumeCapability {
    capability(mode, AccessType::Block(BlockVolume {}))
}

fn capability(mode: Mode, access: AccessType) -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode as i32 }),
        access_type: Some(access),
    }
}

/// For drivers that want to know the pod; upstream: `getPodInfoAttrs`.
pub(super) fn pod_info(pod: &Pod, ephemeral: bool) -> [(String, String); 5] {
    let of = |text: &Option<String>| text.clone().unwrap_or_default();
    let account = pod
        .spec
        .as_ref()
        .and_then(|s| s.service_account_name.clone());
    [
        ("pod.name", of(&pod.metadata.name)),
        ("pod.namespace", of(&pod.metadata.namespace)),
        ("pod.uid", of(&pod.metadata.uid)),
        ("serviceAccount.name", account.unwrap_or_default()),
        ("ephemeral", ephemeral.to_string()),
    ]
    .map(|(key, value)| (format!("csi.storage.k8s.io/{key}"), value))
}

#[cfg(test)]
mod tests {
    use csi::proto::node_service_capability::rpc::Type;
    use k8s_openapi::serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;

    fn of<T: DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn driver(spec: Value) -> CSIDriver {
        of(json!({"metadata": {"name": "d"}, "spec": spec}))
    }

    #[test]
    fn names_are_upstreams() {
        // By sha256sum.
        assert_eq!(
            ephemeral_handle("uid", "v"),
            format!("csi-{}", hex(&Sha256::digest(b"uidv")))
        );
        assert_eq!(
            attachment_name("h", "d", "n"),
            "csi-9072ed11cc1acb5fa433a877ff339b6311d013f33bddd1d0092711a8ace5b16d"
        );
    }

    #[test]
    fn lifecycles() {
        let persistent = driver(json!({"volumeLifecycleModes": ["Persistent"]}));
        let both = driver(json!({"volumeLifecycleModes": ["Persistent", "Ephemeral"]}));
        for (driver, ephemeral, expected) in [
            (None, false, None),
            (None, true, Some("no CSIDriver object")),
            (Some(&persistent), false, None),
            (
                Some(&persistent),
                true,
                Some("(only supports [\"Persistent\"])"),
            ),
            (Some(&both), true, None),
            (Some(&driver(json!({}))), false, None),
        ] {
            let told = check_lifecycle(driver, "d", ephemeral).err();
            let told = told.map(|e| e.to_string());
            match (&told, expected) {
                (None, None) => {}
                (Some(told), Some(words)) => assert!(told.contains(words), "{told}"),
                _ => panic!("{told:?}, not {expected:?}"),
            }
        }
    }

    #[test]
    fn who_hands_files_to_the_group() {
        let pv =
            |modes: &[&str]| -> PersistentVolume { of(json!({"spec": {"accessModes": modes}})) };
        let once = pv(&["ReadWriteOnce"]);
        let many = pv(&["ReadWriteMany"]);
        let policy = |p: &str| driver(json!({"fsGroupPolicy": p}));
        let (default, file, none) = (
            policy("ReadWriteOnceWithFSType"),
            policy("File"),
            policy("None"),
        );
        for (driver, fs_type, volume, read_only, expected) in [
            (None, "ext4", Some(&once), false, true),
            (None, "", Some(&once), false, false),
            (None, "ext4", Some(&many), false, false),
            (None, "ext4", None, false, true),
            (Some(&default), "ext4", Some(&once), true, false),
            (
                Some(&default),
                "ext4",
                Some(&pv(&["ReadWriteOncePod"])),
                false,
                true,
            ),
            (Some(&file), "", Some(&many), false, true),
            (Some(&file), "", Some(&many), true, false),
            (Some(&none), "ext4", Some(&once), false, false),
        ] {
            let got = hands_to_group(driver, fs_type, volume, read_only).unwrap();
            assert_eq!(got, expected, "{driver:?} {fs_type} {volume:?} {read_only}");
        }
        assert!(hands_to_group(Some(&driver(json!({}))), "ext4", None, false).is_err());
    }

    #[test]
    fn access_modes() {
        let old = Capabilities::default();
        let new: Capabilities = [Type::SingleNodeMultiWriter].into_iter().collect();
        for (mode, with_old, with_new) in [
            (None, Mode::SingleNodeWriter, Mode::SingleNodeMultiWriter),
            (
                Some("ReadWriteOncePod"),
                Mode::SingleNodeWriter,
                Mode::SingleNodeSingleWriter,
            ),
            (
                Some("ReadOnlyMany"),
                Mode::MultiNodeReaderOnly,
                Mode::MultiNodeReaderOnly,
            ),
            (
                Some("ReadWriteMany"),
                Mode::MultiNodeMultiWriter,
                Mode::MultiNodeMultiWriter,
            ),
        ] {
            assert_eq!(
                (access_mode(mode, &old), access_mode(mode, &new)),
                (with_old, with_new),
                "{mode:?}"
            );
        }
    }

    #[test]
    fn attachments() {
        let check = |value: Value, expected: Result<Option<&str>, &str>| {
            let attachment: VolumeAttachment = of(value);
            match (verify_attachment(&attachment, "h"), expected) {
                (Ok(context), Ok(device)) => {
                    assert_eq!(context.get("device").map(String::as_str), device);
                }
                (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error}"),
                (got, _) => panic!("{got:?}, not {expected:?}"),
            }
        };
        let spec = json!({"attacher": "d", "nodeName": "n", "source": {}});
        let status = |status: Value| json!({"spec": spec, "status": status});
        check(
            status(json!({"attached": true, "attachmentMetadata": {"device": "sdb"}})),
            Ok(Some("sdb")),
        );
        check(status(json!({"attached": true})), Ok(None));
        check(status(json!({"attached": false})), Err("is not attached"));
        check(
            status(json!({"attached": false, "attachError": {"message": "no room"}})),
            Err("no room"),
        );
        check(
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec, "status": {"attached": true}}),
            Err("being deleted"),
        );
    }
}
