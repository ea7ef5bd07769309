//! Volumes that are directories of this machine: for one node and for trying things out, never for more.
//!
//! `provision` and `refuse` are pure, `make` and `delete` touch the disk and block. Upstream: pkg/volume/hostpath, v1.36.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use component_helpers::persistent_volume::{
    BLOCK, BOUND_BY_CONTROLLER, PROVISIONED_BY, PV_CONTROLLER_FINALIZER, STORAGE, claim_class,
    claim_reference, claim_volume_mode, requested_storage, set_annotation,
};
use k8s_openapi::api::core::v1::{
    HostPathVolumeSource, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// The plugin's name, in classes and on volumes.
pub const PLUGIN_NAME: &str = "kubernetes.io/host-path";
/// Where directories are made.
pub const ROOT: &str = "/tmp/hostpath_pv";
/// Below what directories are deleted.
const DELETABLE: &str = "/tmp";
/// Mode of a directory.
const MODE: u32 = 0o750;

/// Why no volume is made; the words of upstream's events.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The claim wants a copy of something.
    #[error(
        "plugin \"{PLUGIN_NAME}\" is not a CSI plugin. Only CSI plugin can provision a claim with a datasource"
    )]
    DataSource,
    /// The class has mount options.
    #[error("Mount options are not supported by the provisioner but StorageClass \"{class}\" has mount options [{}]", options.join(" "))]
    MountOptions {
        /// The class.
        class: String,
        /// Its options.
        options: Vec<String>,
    },
    /// `--enable-hostpath-provisioner` is not given.
    #[error(
        "Failed to create provisioner: provisioning in volume plugin \"{PLUGIN_NAME}\" is disabled"
    )]
    Disabled,
    /// The node that the scheduler chose is gone.
    #[error("Failed to get target node: node \"{0}\" not found")]
    NoNode(String),
    /// A directory is no device.
    #[error(
        "Failed to provision volume with StorageClass \"{0}\": {PLUGIN_NAME} does not support block volume provisioning"
    )]
    Block(String),
    /// The directory cannot be made.
    #[error("Failed to provision volume with StorageClass \"{class}\": {message}")]
    Directory {
        /// The class.
        class: String,
        /// What the system said.
        message: String,
    },
}

impl Refusal {
    /// Whether another node may do better, so that the scheduler is asked again.
    pub fn reschedules(&self) -> bool {
        matches!(self, Self::Block(_) | Self::Directory { .. })
    }
}

/// Why there is no directory.
#[derive(Debug, thiserror::Error)]
#[error("mkdir {}: {source}", path.display())]
pub struct MakeError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Why a directory is still there.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// It is not where such directories are.
    #[error("host_path deleter only supports /tmp/.+ but received provided {0}")]
    Elsewhere(String),
    /// The volume points to nothing.
    #[error(
        "failed to create deleter for volume \"{0}\": spec.PersistentVolumeSource.HostPath is nil"
    )]
    NoPath(String),
    /// The system refused.
    #[error("unlinkat {path}: {source}")]
    Io {
        /// The directory.
        path: String,
        /// Its reason.
        #[source]
        source: io::Error,
    },
}

/// The name of the volume that is made for a claim.
pub fn volume_name_for(claim: &PersistentVolumeClaim) -> String {
    format!("pvc-{}", claim.metadata.uid.as_deref().unwrap_or_default())
}

/// Why the claim gets no volume, if so; `missing_node` is the node the scheduler chose, if that is gone.
pub fn refuse(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    enabled: bool,
    missing_node: Option<&str>,
) -> Option<Refusal> {
    let name = claim_class(claim).to_owned();
    let options = class.mount_options.clone().unwrap_or_default();
    if !options.is_empty() {
        Some(Refusal::MountOptions {
            class: name,
            options,
        })
    } else if !enabled {
        Some(Refusal::Disabled)
    } else if let Some(node) = missing_node {
        Some(Refusal::NoNode(node.to_owned()))
    } else {
        (claim_volume_mode(claim) == BLOCK).then_some(Refusal::Block(name))
    }
}

/// The volume of a claim, bound to it, at `path`.
pub fn provision(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    path: &str,
) -> PersistentVolume {
    let spec = claim.spec.clone().unwrap_or_default();
    let policy = class.reclaim_policy.as_deref().unwrap_or("Delete");
    let finalizer = PV_CONTROLLER_FINALIZER.to_owned();
    let mut metadata = ObjectMeta {
        name: Some(volume_name_for(claim)),
        finalizers: (policy == "Delete").then(|| vec![finalizer]),
        ..Default::default()
    };
    for (key, value) in [
        ("kubernetes.io/createdby", "hostpath-dynamic-provisioner"),
        (BOUND_BY_CONTROLLER, "yes"),
        (PROVISIONED_BY, PLUGIN_NAME),
    ] {
        set_annotation(&mut metadata, key, value);
    }
    let size = Quantity::from(requested_storage(claim));
    let modes = spec.access_modes.filter(|modes| !modes.is_empty());
    PersistentVolume {
        metadata,
        spec: Some(PersistentVolumeSpec {
            access_modes: Some(modes.unwrap_or_else(|| vec!["ReadWriteOnce".to_owned()])),
            capacity: Some(BTreeMap::from([(STORAGE.to_owned(), size)])),
            claim_ref: Some(claim_reference(claim)),
            host_path: Some(HostPathVolumeSource {
                path: path.to_owned(),
                type_: None,
            }),
            persistent_volume_reclaim_policy: Some(policy.to_owned()),
            storage_class_name: Some(claim_class(claim).to_owned()),
            ..Default::default()
        }),
        status: None,
    }
}

/// Makes a directory below `root` for a volume, under a name nobody has. Blocks.
///
/// # Errors
/// Those of the file system.
pub fn make(root: &Path) -> Result<String, MakeError> {
    let wrap = |path: &Path| {
        let path = path.to_path_buf();
        |source| MakeError { path, source }
    };
    let unique = Path::new("/proc/sys/kernel/random/uuid");
    let unique = std::fs::read_to_string(unique).map_err(wrap(unique))?;
    let path = root.join(unique.trim());
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(MODE);
    builder.create(&path).map_err(wrap(&path))?;
    Ok(path.to_string_lossy().into_owned())
}

/// Deletes what a volume points to; it is no error when that is gone. Blocks.
///
/// # Errors
/// When it is not below `/tmp`, or the file system refuses.
// DIFFERS: upstream looks for `/tmp/` anywhere in the path, and follows links on the way to it.
pub fn delete(path: &str) -> Result<(), DeleteError> {
    let elsewhere = || DeleteError::Elsewhere(path.to_owned());
    let wrap = |source| DeleteError::Io {
        path: path.to_owned(),
        source,
    };
    let given = PathBuf::from(path);
    let (Some(parent), Some(name)) = (given.parent(), given.file_name()) else {
        return Err(elsewhere());
    };
    if !given.starts_with(DELETABLE) || given == Path::new(DELETABLE) {
        return Err(elsewhere());
    }
    let parent = match parent.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        parent => parent.map_err(wrap)?,
    };
    let root = Path::new(DELETABLE).canonicalize().map_err(wrap)?;
    if !parent.starts_with(root) {
        return Err(elsewhere());
    }
    let real = parent.join(name);
    let kind = match real.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        kind => kind.map_err(wrap)?,
    };
    if kind.is_dir() {
        std::fs::remove_dir_all(&real).map_err(wrap)
    } else {
        std::fs::remove_file(&real).map_err(wrap)
    }
}
