//! What a pod's volumes should be, and what is found of them.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Pod, Volume};

use super::{Inner, SetUpFailure};
use crate::claim::{self, Persistent, Used};
use crate::kinds::find_plugin;
use crate::layout::check_component;
use crate::nested::{volume_devices, volume_mounts};
use crate::plugin::{SetUpError, VolumePlugin};
use crate::reconcile::{Desired, Observed};
use crate::tear_down::{self, Report, TearDownError};
use crate::{csi, empty_dir, local, mountinfo};

/// A volume that some container mounts, and how it is made.
pub(super) struct Wanted<'a> {
    pub want: Desired,
    /// As [`Mounter::volume`].
    pub volume: Cow<'a, Volume>,
    pub plugin: &'static dyn VolumePlugin,
    /// It has a directory, or a driver's record, of its own.
    pub managed: bool,
    pub persistent: Option<&'a Persistent>,
}

impl Wanted<'_> {
    /// With the driver, as metrics name it. Upstream: `GetFullQualifiedPluginNameForVolume`.
    pub fn kind(&self) -> String {
        let own = self.volume.csi.as_ref().map(|csi| csi.driver.as_str());
        let name = self.plugin.name();
        match own.or_else(|| self.persistent.and_then(Persistent::driver)) {
            Some(driver) => format!("{name}:{driver}"),
            None => name.to_owned(),
        }
    }

    pub fn failure(&self, source: SetUpError) -> SetUpFailure {
        SetUpFailure {
            volume: self.volume.name.clone(),
            name: self
                .persistent
                .map_or(&*self.volume.name, Persistent::name)
                .to_owned(),
            block: self.persistent.is_some_and(Persistent::is_block),
            source,
        }
    }
}

/// How containers use a volume.
pub(super) fn used(pod: &Pod, volume: &str) -> Used {
    Used {
        mounted: volume_mounts(pod).flatten().any(|m| m.name == volume),
        as_device: volume_devices(pod).any(|name| name == volume),
    }
}

/// The volumes that containers mount, or get as devices.
pub(super) fn mounted_volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    let used: BTreeSet<&str> = volume_mounts(pod)
        .flatten()
        .map(|m| m.name.as_str())
        .chain(volume_devices(pod))
        .collect();
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes.filter(move |v| used.contains(v.name.as_str()))
}

/// The volumes that containers mount, and those of them that cannot be. Claims of which nothing is known are in neither.
/// `republished`: what is set up anew with every round.
pub(super) fn desired<'a>(
    pod: &'a Pod,
    persistent: &'a BTreeMap<String, Persistent>,
    republished: &BTreeSet<String>,
) -> (Vec<Wanted<'a>>, Vec<SetUpFailure>) {
    let (mut desired, mut failures) = (Vec::new(), Vec::new());
    for volume in mounted_volumes(pod) {
        let behind = persistent.get(&volume.name);
        if behind.is_none() && claim::claim_of(pod, volume).is_some() {
            continue;
        }
        match want(volume, behind, pod) {
            Ok(mut wanted) => {
                wanted.want.requires_remount |= republished.contains(&volume.name);
                desired.push(wanted);
            }
            Err(source) => failures.push(SetUpFailure {
                volume: volume.name.clone(),
                name: behind.map_or(&*volume.name, Persistent::name).to_owned(),
                block: behind.is_some_and(Persistent::is_block),
                source,
            }),
        }
    }
    (desired, failures)
}

fn want<'a>(
    volume: &'a Volume,
    persistent: Option<&'a Persistent>,
    pod: &Pod,
) -> Result<Wanted<'a>, SetUpError> {
    check_component("spec.volumes[].name", &volume.name)?;
    let volume = match persistent {
        Some(behind) => Cow::Owned(behind.as_volume(&volume.name)),
        None => Cow::Borrowed(volume),
    };
    let plugin = find_plugin(&volume, persistent.map(|p| &*p.volume))?;
    let block = persistent.is_some_and(Persistent::is_block);
    if block && ![csi::NAME, local::NAME].contains(&plugin.name()) {
        return Err(SetUpError::UnsupportedKind {
            kind: "volumeMode Block of another kind than csi and local",
        });
    }
    // Of a local device nothing is kept.
    let managed = plugin.managed() && !(block && plugin.name() == local::NAME);
    let mounted = match plugin.name() {
        empty_dir::NAME => empty_dir::medium(&volume, pod)? != empty_dir::Medium::Default,
        // A driver's mounts are the driver's business.
        "kubernetes.io/configmap" | csi::NAME => false,
        _ => managed,
    };
    // A kind without a directory is kept by the pod's own name for it.
    let name = match persistent {
        Some(behind) if managed => behind.name(),
        _ => &volume.name,
    };
    let want = Desired {
        name: name.to_owned(),
        plugin: plugin.name(),
        requires_remount: plugin.requires_remount(),
        mounted,
    };
    Ok(Wanted {
        want,
        managed,
        volume,
        plugin,
        persistent,
    })
}

pub(super) fn observe_dirs(inner: &Inner, uid: &str) -> Result<Vec<Observed>, TearDownError> {
    let layout = &inner.layout;
    let mut report = Report::default();
    let dirs = tear_down::volume_dirs(layout, uid, &mut report);
    report.finish()?;
    let devices = inner.csi.block_devices(uid).into_iter();
    let devices = devices.map(|name| Observed {
        ready: inner.csi.is_published(uid, &name),
        name,
        plugin: csi::NAME.to_owned(),
        is_mount: false,
    });
    if dirs.is_empty() {
        return Ok(devices.collect());
    }
    let mounts = mountinfo::list().map_err(|source| TearDownError {
        failures: vec![tear_down::TearDownFailure {
            what: "failed to list mounts",
            path: layout.volumes(uid),
            source,
        }],
    })?;
    let observed = dirs.into_iter().map(|(plugin, name)| {
        if plugin == csi::NAME {
            // After a restart the driver is asked again: only it knows what it did.
            return Observed {
                ready: inner.csi.is_published(uid, &name),
                name,
                plugin,
                is_mount: false,
            };
        }
        let ready = empty_dir::is_ready(&layout.meta(uid, &plugin, &name));
        let is_mount = mountinfo::at(&mounts, &layout.volume(uid, &plugin, &name)).is_some();
        Observed {
            name,
            plugin,
            ready,
            is_mount,
        }
    });
    Ok(observed.chain(devices).collect())
}
