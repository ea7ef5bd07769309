//! SELinux labels of Pods' volumes, as far as they can be known away from the nodes. Pure.

use std::collections::BTreeSet;

use component_helpers::csi_migration::InTreePlugin;
use k8s_openapi::api::core::v1::{PersistentVolume, Pod, SELinuxOptions, Volume};

/// The policy of Pods that want their volumes labelled file by file.
pub(super) const RECURSIVE: &str = "Recursive";
/// The policy of Pods that want a mount option, and of those that say nothing.
const MOUNT_OPTION: &str = "MountOption";

/// `user:role:type:level`; what is not given is for the node to fill in, and empty here. All empty means no label.
pub(super) fn label(options: &SELinuxOptions) -> String {
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    let (user, role) = (part(&options.user), part(&options.role));
    let (type_, level) = (part(&options.type_), part(&options.level));
    let label = format!("{user}:{role}:{type_}:{level}");
    if label == ":::" { String::new() } else { label }
}

fn parts(label: &str) -> [&str; 4] {
    let mut parts = [""; 4];
    for (part, found) in parts.iter_mut().zip(label.splitn(4, ':')) {
        *part = found;
    }
    parts
}

/// Whether two labels of [`label`] cannot be one. A node fills in user, role and type, so that an empty one may be anything; nobody fills
/// in the level.
pub(super) fn conflicts(a: &str, b: &str) -> bool {
    let ([user_a, role_a, type_a, level_a], [user_b, role_b, type_b, level_b]) =
        (parts(a), parts(b));
    let differ = |a: &str, b: &str| a != b && !a.is_empty() && !b.is_empty();
    level_a != level_b || differ(user_a, user_b) || differ(role_a, role_b) || differ(type_a, type_b)
}

/// The labels of all containers that mount a volume of the Pod.
pub(super) fn mount_labels(pod: &Pod, volume: &str) -> BTreeSet<String> {
    let Some(spec) = &pod.spec else {
        return BTreeSet::new();
    };
    let of_pod = spec.security_context.as_ref();
    let of_pod = of_pod.and_then(|s| s.se_linux_options.as_ref());
    let plain = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten());
    let plain = plain.map(|c| (&c.volume_mounts, &c.security_context));
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    let ephemeral = ephemeral.map(|c| (&c.volume_mounts, &c.security_context));
    plain
        .chain(ephemeral)
        .filter(|(mounts, _)| mounts.iter().flatten().any(|mount| mount.name == volume))
        .filter_map(|(_, security)| {
            let own = security.as_ref().and_then(|s| s.se_linux_options.as_ref());
            own.or(of_pod).map(label)
        })
        .collect()
}

/// Whether any container of the Pod mounts the volume.
pub(super) fn is_mounted(pod: &Pod, volume: &str) -> bool {
    let Some(spec) = &pod.spec else {
        return false;
    };
    let plain = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten());
    let plain = plain.map(|c| &c.volume_mounts);
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    let mut all = plain.chain(ephemeral.map(|c| &c.volume_mounts));
    all.any(|mounts| mounts.iter().flatten().any(|mount| mount.name == volume))
}

/// The Pod's policy, whatever the volume is.
pub(super) fn change_policy(pod: &Pod) -> &str {
    let security = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let policy = security.and_then(|s| s.se_linux_change_policy.as_deref());
    policy.unwrap_or(MOUNT_OPTION)
}

/// A volume that kubelets may mount with a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Labelled {
    /// The same for the same volume in all Pods.
    pub(super) unique_name: String,
    /// The CSI driver, which says whether it takes labels; the plugins in the tree do.
    pub(super) driver: Option<String>,
}

fn csi(driver: &str, handle: &str) -> Labelled {
    Labelled {
        unique_name: format!("kubernetes.io/csi/{driver}^{handle}"),
        driver: Some(driver.to_owned()),
    }
}

fn iscsi(portal: &str, iqn: &str, lun: i32) -> Labelled {
    let portal = match portal.contains(':') {
        true => portal.to_owned(),
        false => format!("{portal}:3260"),
    };
    Labelled {
        unique_name: format!("kubernetes.io/iscsi/{portal}:{iqn}:{lun}"),
        driver: None,
    }
}

fn fc(targets: Option<&[String]>, lun: Option<i32>, wwids: Option<&[String]>) -> Option<Labelled> {
    let name = match (targets.unwrap_or_default(), lun, wwids.unwrap_or_default()) {
        (targets @ [_, ..], Some(lun), _) => format!("[{}]:{lun}", targets.join(" ")),
        (_, _, wwids @ [_, ..]) => format!("[{}]", wwids.join(" ")),
        _ => return None,
    };
    Some(Labelled {
        unique_name: format!("kubernetes.io/fc/{name}"),
        driver: None,
    })
}

/// A PersistentVolume, if it may be mounted with a label.
pub(super) fn of_persistent_volume(volume: &PersistentVolume) -> Option<Labelled> {
    let spec = volume.spec.as_ref()?;
    if let Some(source) = &spec.csi {
        return Some(csi(&source.driver, &source.volume_handle));
    }
    if let Some(plugin) = InTreePlugin::of_volume(volume) {
        return Some(csi(plugin.driver(), &plugin.handle(volume)?));
    }
    if let Some(source) = &spec.iscsi {
        return Some(iscsi(&source.target_portal, &source.iqn, source.lun));
    }
    let source = spec.fc.as_ref()?;
    fc(
        source.target_wwns.as_deref(),
        source.lun,
        source.wwids.as_deref(),
    )
}

/// An inline volume, if it may be mounted with a label and other Pods may have it.
pub(super) fn of_inline(volume: &Volume) -> Option<Labelled> {
    if let Some(source) = &volume.iscsi {
        return Some(iscsi(&source.target_portal, &source.iqn, source.lun));
    }
    let source = volume.fc.as_ref()?;
    fc(
        source.target_wwns.as_deref(),
        source.lun,
        source.wwids.as_deref(),
    )
}
