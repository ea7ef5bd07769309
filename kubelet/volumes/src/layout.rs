//! The directories of a pod's volumes, named as upstream names them, so that tools that know one know the other.
//!
//! ```text
//! <root>/pods/<uid>/volumes/kubernetes.io~empty-dir/<volume>
//! <root>/pods/<uid>/plugins/kubernetes.io~empty-dir/<volume>/ready
//! <root>/pods/<uid>/volume-subpaths/<volume>/<container>/<index of the mount>
//! <root>/plugins/kubernetes.io/csi: see [`crate::csi`]
//! ```

use std::path::{Component, Path, PathBuf};

/// What would be a directory's name and is none. No retry helps.
#[derive(Debug, thiserror::Error)]
#[error("{field}: {value:?} is not a valid name of a directory")]
pub struct InvalidName {
    /// Of the object that has the name.
    pub field: &'static str,
    /// As it stands there.
    pub value: String,
}

/// Volumes that are an empty directory at first; also the name of their directory.
pub(crate) const EMPTY_DIR: &str = "kubernetes.io/empty-dir";
/// Volumes of drivers; also the name of their directory.
pub(crate) const CSI: &str = "kubernetes.io/csi";

/// The kubelet's root directory, with the path arithmetic below it.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    pub fn pod(&self, uid: &str) -> PathBuf {
        self.pods().join(uid)
    }

    /// What is not one pod's alone.
    pub fn csi_plugin(&self) -> PathBuf {
        self.root.join("plugins").join(CSI)
    }

    /// Where a block device of a driver is staged and published.
    pub fn csi_block(&self, name: &str) -> CsiBlock {
        let root = self.csi_plugin().join(CSI_DEVICES);
        CsiBlock {
            staging: root.join("staging").join(name),
            published: root.join("publish").join(name),
            data: root.join(name).join("data"),
            maps: root.join(name).join("dev"),
        }
    }

    /// Links to the block devices of a pod.
    pub fn csi_device_links(&self, uid: &str) -> PathBuf {
        self.devices(uid).join(escape_qualified_name(CSI))
    }

    pub fn devices(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("volumeDevices")
    }

    pub fn volumes(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("volumes")
    }

    pub fn volume(&self, uid: &str, plugin: &str, volume: &str) -> PathBuf {
        self.volumes(uid)
            .join(escape_qualified_name(plugin))
            .join(volume)
    }

    pub fn plugins(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("plugins")
    }

    /// Holds the `ready` mark of a volume, which is that of the emptyDir it is made of: upstream marks the one below another kind as
    /// `wrapped_<volume>`.
    pub fn meta(&self, uid: &str, plugin: &str, volume: &str) -> PathBuf {
        let of_kind = self.plugins(uid).join(escape_qualified_name(EMPTY_DIR));
        if plugin == EMPTY_DIR {
            of_kind.join(volume)
        } else {
            of_kind.join(format!("wrapped_{volume}"))
        }
    }

    pub fn sub_paths(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("volume-subpaths")
    }

    pub fn sub_path(&self, uid: &str, volume: &str, container: &str, index: usize) -> PathBuf {
        self.sub_paths(uid)
            .join(volume)
            .join(container)
            .join(index.to_string())
    }
}

/// Below a plugin's directory: its block devices.
pub(crate) const CSI_DEVICES: &str = "volumeDevices";

/// The directories of a driver's block device.
#[derive(Clone, Debug)]
pub(crate) struct CsiBlock {
    pub staging: PathBuf,
    /// With a device for each pod, by its UID.
    pub published: PathBuf,
    pub data: PathBuf,
    /// Upstream's kubelet binds the published devices to files here.
    pub maps: PathBuf,
}

/// `kubernetes.io/empty-dir` -> `kubernetes.io~empty-dir`.
pub(crate) fn escape_qualified_name(name: &str) -> String {
    name.replace('/', "~")
}

/// The other way round.
pub(crate) fn unescape_qualified_name(name: &str) -> String {
    name.replace('~', "/")
}

/// A name that becomes one path component must be one.
pub(crate) fn check_component(field: &'static str, value: &str) -> Result<(), InvalidName> {
    let mut components = Path::new(value).components();
    match (components.next(), components.next()) {
        (Some(Component::Normal(one)), None) if one == value => Ok(()),
        _ => Err(InvalidName {
            field,
            value: value.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_component_passes() {
        for (value, ok) in [
            ("a", true),
            ("a.b-c", true),
            ("", false),
            (".", false),
            ("..", false),
            ("a/b", false),
            ("/a", false),
            ("a/", false),
        ] {
            assert_eq!(
                check_component("metadata.uid", value).is_ok(),
                ok,
                "{value:?}"
            );
        }
    }
}
