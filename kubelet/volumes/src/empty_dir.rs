//! `emptyDir` volumes on disk, on tmpfs and on huge pages; also the floor under configMap, secret, projected and
//! downwardAPI volumes. Upstream: pkg/volume/emptydir.
//!
//! The root of a volume is 0777 (1777 on tmpfs, the kernel's default), made once: a `ready` mark beside the pod's
//! plugins says so after a restart. tmpfs is not charged to the pod's cgroup until written to, and bounded by the
//! smallest of node allocatable, the pod's memory limit and `sizeLimit`.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use component_helpers::quantity::{Amount, amount};
use k8s_openapi::api::core::v1::{Container, Pod, Volume};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{FsType, HUGETLBFS_MAGIC, TMPFS_MAGIC, statfs};

use crate::location::VolumeLocation;
use crate::ownership::{self, ChangePolicy};
use crate::plugin::{IoAt, Mounter, SetUpError, VolumePlugin, blocking};

pub(crate) const NAME: &str = crate::layout::EMPTY_DIR;
const MODE: u32 = 0o777;
const READY: &str = "ready";

pub(crate) struct EmptyDir;

#[async_trait]
impl VolumePlugin for EmptyDir {
    fn name(&self) -> &'static str {
        NAME
    }

    fn can_support(&self, volume: &Volume) -> bool {
        volume.empty_dir.is_some()
    }

    async fn set_up(&self, mounter: &Mounter<'_>) -> Result<VolumeLocation, SetUpError> {
        let medium = medium(mounter.volume, mounter.pod)?;
        let request = Request::new(mounter, NAME, medium)?;
        blocking(move || set_up(&request).map(VolumeLocation::Path)).await
    }
}

/// What the volume's files live on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Medium {
    Default,
    Memory,
    /// With the page size as the API writes it, e.g. `2Mi`.
    HugePages(String),
}

/// One directory to set up: all that the blocking part needs.
#[derive(Debug)]
pub(crate) struct Request {
    dir: PathBuf,
    meta: PathBuf,
    /// Directories of the pod that must be there first, private to root.
    parents: [PathBuf; 3],
    medium: Medium,
    /// Of a tmpfs; zero: the kernel's default.
    size_bytes: i64,
    fs_group: Option<u32>,
}

impl Request {
    pub fn new(mounter: &Mounter<'_>, plugin: &str, medium: Medium) -> Result<Self, SetUpError> {
        let (layout, uid, volume) = (mounter.layout, mounter.pod_uid, mounter.directory);
        let size_bytes = match medium {
            Medium::Memory => {
                let allocatable = mounter.source.node_allocatable()?;
                memory_size(
                    allocatable.get("memory").map(amount),
                    mounter.pod,
                    mounter.volume,
                )
                .value()
            }
            Medium::Default | Medium::HugePages(_) => 0,
        };
        Ok(Self {
            dir: layout.volume(uid, plugin, volume),
            meta: layout.meta(uid, plugin, volume),
            parents: [layout.pod(uid), layout.volumes(uid), layout.plugins(uid)],
            medium,
            size_bytes,
            fs_group: mounter.ownership.fs_group,
        })
    }
}

/// Whether the `ready` mark in `meta` is there.
pub(crate) fn is_ready(meta: &Path) -> bool {
    meta.join(READY).exists()
}

/// Idempotent; what is ready is not touched. Blocks.
pub(crate) fn set_up(request: &Request) -> Result<PathBuf, SetUpError> {
    let dir = &request.dir;
    if is_ready(&request.meta) {
        let done = match request.medium {
            Medium::Default => dir.is_dir(),
            Medium::Memory => is_mounted(dir, TMPFS_MAGIC),
            Medium::HugePages(_) => is_mounted(dir, HUGETLBFS_MAGIC),
        };
        if done {
            return Ok(dir.clone());
        }
    }
    for parent in &request.parents {
        make_dirs(parent, 0o750)?;
    }
    make_dirs(dir, 0o755)?;
    fs::set_permissions(dir, Permissions::from_mode(MODE))
        .io_at("failed to set the mode of", dir)?;
    match &request.medium {
        Medium::Default => {}
        Medium::Memory if is_mounted(dir, TMPFS_MAGIC) => {}
        Medium::Memory => {
            mount_tmpfs(dir, request.size_bytes).io_at("failed to mount tmpfs at", dir)?
        }
        Medium::HugePages(_) if is_mounted(dir, HUGETLBFS_MAGIC) => {}
        Medium::HugePages(size) => {
            let options = format!("pagesize={size}");
            mount(
                Some("nodev"),
                dir,
                Some("hugetlbfs"),
                MsFlags::empty(),
                Some(options.as_str()),
            )
            .map_err(io::Error::from)
            .io_at("failed to mount hugetlbfs at", dir)?;
        }
    }
    if let Some(group) = request.fs_group {
        ownership::change_permissions(dir, group, false, ChangePolicy::Always)
            .io_at("failed to set the group of", dir)?;
    }
    mark_ready(&request.meta)?;
    Ok(dir.clone())
}

/// Says in `meta` that the volume was set up to the end. Blocks.
pub(crate) fn mark_ready(meta: &Path) -> Result<(), SetUpError> {
    make_dirs(meta, 0o750)?;
    let ready = meta.join(READY);
    fs::write(&ready, []).io_at("failed to write", ready)
}

pub(crate) fn make_dirs(dir: &Path, mode: u32) -> Result<(), SetUpError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(dir)
        .io_at("failed to create directory", dir)
}

/// A mount has another device than its parent; tmpfs and hugetlbfs always do.
pub(crate) fn is_mounted(dir: &Path, fs_type: FsType) -> bool {
    let Some(parent) = dir.parent() else {
        return false;
    };
    let (Ok(own), Ok(above)) = (fs::symlink_metadata(dir), fs::symlink_metadata(parent)) else {
        return false;
    };
    own.is_dir()
        && own.dev() != above.dev()
        && statfs(dir).is_ok_and(|s| s.filesystem_type() == fs_type)
}

/// Whether this kernel's tmpfs knows `noswap` (6.4 and later, and not in a user namespace).
static NOSWAP: AtomicBool = AtomicBool::new(true);

fn mount_tmpfs(dir: &Path, size_bytes: i64) -> io::Result<()> {
    let size = if size_bytes > 0 {
        format!("size={size_bytes}")
    } else {
        String::new()
    };
    let attempt = |noswap: bool| {
        let options: Vec<&str> = [size.as_str(), if noswap { "noswap" } else { "" }]
            .into_iter()
            .filter(|o| !o.is_empty())
            .collect();
        mount(
            Some("tmpfs"),
            dir,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options.join(",").as_str()),
        )
    };
    if NOSWAP.load(Ordering::Relaxed) {
        match attempt(true) {
            Ok(()) => return Ok(()),
            Err(Errno::EINVAL | Errno::EPERM) => {}
            Err(e) => return Err(e.into()),
        }
        attempt(false)?;
        NOSWAP.store(false, Ordering::Relaxed);
        return Ok(());
    }
    Ok(attempt(false)?)
}

/// The medium that the volume asks for.
pub(crate) fn medium(volume: &Volume, pod: &Pod) -> Result<Medium, SetUpError> {
    match volume
        .empty_dir
        .as_ref()
        .and_then(|e| e.medium.as_deref())
        .unwrap_or_default()
    {
        "" => Ok(Medium::Default),
        "Memory" => Ok(Medium::Memory),
        medium @ "HugePages" => huge_page_size(medium, None, pod).map(Medium::HugePages),
        medium => match medium.strip_prefix("HugePages-") {
            Some(size) => huge_page_size(medium, Some(size), pod).map(Medium::HugePages),
            None => Err(SetUpError::UnknownMedium(medium.to_owned())),
        },
    }
}

/// The page size of the medium, which some container must request; without one in the medium, the only one requested.
fn huge_page_size(medium: &str, wanted: Option<&str>, pod: &Pod) -> Result<String, SetUpError> {
    let parse = |size: &str| size.parse::<Amount>().ok();
    let spec = pod.spec.as_ref();
    let containers = spec.into_iter().flat_map(|s| {
        s.containers
            .iter()
            .chain(s.init_containers.iter().flatten())
    });
    let of_containers = containers.filter_map(|c| c.resources.as_ref()?.requests.as_ref());
    let of_pod = spec.and_then(|s| s.resources.as_ref()?.requests.as_ref());
    let mut found: Option<String> = None;
    for size in of_pod
        .into_iter()
        .chain(of_containers)
        .flat_map(|r| r.keys())
        .filter_map(|k| k.strip_prefix("hugepages-"))
    {
        match (wanted, &found) {
            (Some(wanted), _) if parse(wanted) != parse(size) => {}
            (None, Some(other)) if parse(other) != parse(size) => {
                return Err(SetUpError::ManyHugePageSizes(medium.to_owned()));
            }
            _ => found = Some(size.to_owned()),
        }
    }
    found.ok_or_else(|| SetUpError::NoHugePageRequest(medium.to_owned()))
}

/// The smallest of what the node has, what the pod may use, and `sizeLimit`; zero counts as not set.
fn memory_size(node_allocatable: Option<Amount>, pod: &Pod, volume: &Volume) -> Amount {
    let limit = volume
        .empty_dir
        .as_ref()
        .and_then(|e| e.size_limit.as_ref())
        .map(amount);
    [node_allocatable, pod_memory_limit(pod), limit]
        .into_iter()
        .flatten()
        .filter(Amount::is_positive)
        .min()
        .unwrap_or(Amount::ZERO)
}

/// The memory limit of the pod's cgroup; `None` unless every container has one.
fn pod_memory_limit(pod: &Pod) -> Option<Amount> {
    let spec = pod.spec.as_ref()?;
    if let Some(limit) = spec
        .resources
        .as_ref()
        .and_then(|r| r.limits.as_ref()?.get("memory"))
    {
        return Some(amount(limit));
    }
    let of = |c: &Container| {
        c.resources
            .as_ref()
            .and_then(|r| r.limits.as_ref()?.get("memory"))
            .map(|q| amount(q).value())
            .filter(|v| *v > 0)
    };
    let mut regular = 0i64;
    for container in &spec.containers {
        regular = regular.saturating_add(of(container)?);
    }
    // Sidecars run beside all that starts after them.
    let (mut sidecars, mut init_peak) = (0i64, 0i64);
    for container in spec.init_containers.iter().flatten() {
        let limit = of(container)?;
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars = sidecars.saturating_add(limit);
            init_peak = init_peak.max(sidecars);
        } else {
            init_peak = init_peak.max(sidecars.saturating_add(limit));
        }
    }
    let overhead = spec
        .overhead
        .as_ref()
        .and_then(|o| o.get("memory"))
        .map_or(0, |q| amount(q).value());
    let peak = regular.saturating_add(sidecars).max(init_peak);
    Some(Amount::from_bytes(peak.saturating_add(overhead)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(containers: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({ "spec": { "containers": containers } })).unwrap()
    }

    fn volume(source: serde_json::Value) -> Volume {
        serde_json::from_value(serde_json::json!({ "name": "v", "emptyDir": source })).unwrap()
    }

    #[test]
    fn memory_is_bounded_by_the_smallest() {
        let limited =
            |m: &str| serde_json::json!({"name": "c", "resources": {"limits": {"memory": m}}});
        let free = serde_json::json!({"name": "d"});
        for (containers, size_limit, expect) in [
            (serde_json::json!([free]), None, "8Gi"),
            (serde_json::json!([free]), Some("1Gi"), "1Gi"),
            (serde_json::json!([free]), Some("0"), "8Gi"),
            (
                serde_json::json!([limited("256Mi"), limited("256Mi")]),
                Some("1Gi"),
                "512Mi",
            ),
            (serde_json::json!([limited("256Mi"), free]), None, "8Gi"),
            (serde_json::json!([limited("64Gi")]), None, "8Gi"),
            (
                serde_json::json!([limited("9223372036854775807"), limited("1Gi")]),
                Some("1Gi"),
                "1Gi",
            ),
        ] {
            let volume = volume(serde_json::json!({"medium": "Memory", "sizeLimit": size_limit}));
            let node = "8Gi".parse().ok();
            let expect: Amount = expect.parse().unwrap();
            assert_eq!(
                memory_size(node, &pod(containers.clone()), &volume).value(),
                expect.value(),
                "{containers} {size_limit:?}"
            );
        }
    }

    #[test]
    fn huge_pages_must_be_requested() {
        let c = |keys: &[&str]| {
            let requests: serde_json::Map<_, _> = keys
                .iter()
                .map(|k| ((*k).to_owned(), "4Mi".into()))
                .collect();
            pod(serde_json::json!([{"name": "c", "resources": {"requests": requests}}]))
        };
        for (medium_name, keys, expect) in [
            ("HugePages", &["hugepages-2Mi"][..], Ok("2Mi")),
            (
                "HugePages",
                &["hugepages-2Mi", "hugepages-1Gi"],
                Err(
                    "medium: HugePages can't be used if container requests multiple huge page sizes",
                ),
            ),
            (
                "HugePages-2Mi",
                &["hugepages-2Mi", "hugepages-1Gi"],
                Ok("2Mi"),
            ),
            (
                "HugePages-2Mi",
                &["memory"],
                Err(
                    "medium HugePages-2Mi: hugePages storage requested, but there is no resource request for huge pages",
                ),
            ),
            ("Floppy", &[], Err("unknown storage medium \"Floppy\"")),
        ] {
            let result = medium(
                &volume(serde_json::json!({ "medium": medium_name })),
                &c(keys),
            )
            .map_err(|e| e.to_string());
            assert_eq!(
                result,
                expect
                    .map(|s| Medium::HugePages(s.to_owned()))
                    .map_err(str::to_owned),
                "{medium_name}"
            );
        }
    }
}
