//! Takes a pod's volumes away. Goes on past errors and reports all of them; what is left is found again by the next
//! call, also after a restart, because it starts from the kernel's mounts and the directories that are there.
//!
//! **Invariant:** nothing is deleted below a mount point. A bind mount that cannot be undone keeps its directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use crate::layout::Layout;
use crate::mountinfo;

/// One thing that could not be taken away.
#[derive(Debug, thiserror::Error)]
#[error("{what} {}: {source}", path.display())]
pub struct TearDownFailure {
    pub what: &'static str,
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

/// Everything that could not be taken away. A retry may help.
#[derive(Debug, thiserror::Error)]
#[error("{}", crate::aggregate::aggregate(.failures))]
pub struct TearDownError {
    pub failures: Vec<TearDownFailure>,
}

/// Collects what fails on the way.
#[derive(Debug, Default)]
pub(crate) struct Report {
    failures: Vec<TearDownFailure>,
}

impl Report {
    /// Whether it went well; what is not there is gone already.
    fn note(&mut self, what: &'static str, path: &Path, result: io::Result<()>) -> bool {
        match result {
            Ok(()) => true,
            Err(e) if e.kind() == io::ErrorKind::NotFound => true,
            Err(source) => {
                self.failures.push(TearDownFailure {
                    what,
                    path: path.to_owned(),
                    source,
                });
                false
            }
        }
    }

    pub fn extend(&mut self, error: TearDownError) {
        self.failures.extend(error.failures);
    }

    pub fn finish(self) -> Result<(), TearDownError> {
        if self.failures.is_empty() {
            Ok(())
        } else {
            Err(TearDownError {
                failures: self.failures,
            })
        }
    }
}

/// Every subPath of a pod. Blocks.
pub(crate) fn tear_down_sub_paths(layout: &Layout, uid: &str) -> Result<(), TearDownError> {
    let mut report = Report::default();
    let sub_paths = layout.sub_paths(uid);
    if unmount_all(&sub_paths, &mut report) {
        remove_sub_paths(&sub_paths, &mut report);
    }
    report.finish()
}

/// Every volume and subPath of a pod; what drivers did was undone before. Blocks.
pub(crate) fn tear_down_pod(layout: &Layout, uid: &str) -> Result<(), TearDownError> {
    let mut report = Report::default();
    if let Err(error) = tear_down_sub_paths(layout, uid) {
        report.extend(error);
    }
    for (plugin, volume) in volume_dirs(layout, uid, &mut report) {
        tear_down_dir(&layout.volume(uid, &plugin, &volume), &mut report);
    }
    if report.failures.is_empty() {
        remove_tree(&layout.volumes(uid), &mut report);
        remove_tree(&layout.plugins(uid), &mut report);
        remove_tree(&layout.devices(uid), &mut report);
    }
    report.finish()
}

/// One volume. Blocks.
pub(crate) fn tear_down_volume(
    layout: &Layout,
    uid: &str,
    plugin: &str,
    volume: &str,
) -> Result<(), TearDownError> {
    let mut report = Report::default();
    let sub_paths = layout.sub_paths(uid).join(volume);
    if unmount_all(&sub_paths, &mut report) {
        remove_sub_paths_of_volume(&sub_paths, &mut report);
        // The mark first: without it, a half removed volume is set up anew.
        let meta = layout.meta(uid, plugin, volume);
        remove_tree(&meta, &mut report);
        tear_down_dir(&layout.volume(uid, plugin, volume), &mut report);
    }
    report.finish()
}

/// The whole directory of a pod that has no containers any more. Blocks.
pub(crate) fn remove_pod_dir(layout: &Layout, uid: &str) -> Result<(), TearDownError> {
    tear_down_pod(layout, uid)?;
    let mut report = Report::default();
    let dir = layout.pod(uid);
    if unmount_all(&dir, &mut report) {
        remove_tree(&dir, &mut report);
    }
    report.finish()
}

/// The (plugin, volume) pairs that have a directory.
pub(crate) fn volume_dirs(
    layout: &Layout,
    uid: &str,
    report: &mut Report,
) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for plugin in names(&layout.volumes(uid), report) {
        let plugin_dir = layout.volumes(uid).join(&plugin);
        let volumes = names(&plugin_dir, report);
        found.extend(
            volumes
                .into_iter()
                .map(|v| (crate::layout::unescape_qualified_name(&plugin), v)),
        );
    }
    found
}

/// The names in a directory; none if it is not there.
pub(crate) fn names(dir: &Path, report: &mut Report) -> Vec<String> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => {
            report.note("failed to read directory", dir, Err(error));
            return Vec::new();
        }
    };
    entries
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .collect()
}

fn tear_down_dir(dir: &Path, report: &mut Report) {
    if unmount_all(dir, report) {
        remove_tree(dir, report);
    }
}

/// Unmounts everything at `dir` and below. Returns whether nothing is mounted there any more.
fn unmount_all(dir: &Path, report: &mut Report) -> bool {
    let list = |report: &mut Report| match mountinfo::list() {
        Ok(mounts) => Some(mountinfo::at_or_below(&mounts, dir)),
        Err(error) => {
            report.note("failed to list the mounts at", dir, Err(error));
            None
        }
    };
    let Some(mounts) = list(report) else {
        return false;
    };
    for mount in &mounts {
        let result = match umount2(&mount.path, MntFlags::UMOUNT_NOFOLLOW) {
            // Gone meanwhile.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
            Err(e) => Err(e.into()),
        };
        report.note("failed to unmount", &mount.path, result);
    }
    mounts.is_empty() || list(report).is_some_and(|left| left.is_empty())
}

/// `<volume>/<container>/<index>`: only empty mount points, so only what is empty is removed.
fn remove_sub_paths(dir: &Path, report: &mut Report) {
    for volume in names(dir, report) {
        remove_sub_paths_of_volume(&dir.join(volume), report);
    }
    report.note("failed to remove", dir, fs::remove_dir(dir));
}

fn remove_sub_paths_of_volume(dir: &Path, report: &mut Report) {
    for container in names(dir, report) {
        let container = dir.join(container);
        for index in names(&container, report) {
            let path = container.join(index);
            let is_dir = fs::symlink_metadata(&path).is_ok_and(|i| i.is_dir());
            let result = if is_dir {
                fs::remove_dir(&path)
            } else {
                fs::remove_file(&path)
            };
            report.note("failed to remove", &path, result);
        }
        report.note("failed to remove", &container, fs::remove_dir(&container));
    }
    report.note("failed to remove", dir, fs::remove_dir(dir));
}

/// Never follows a link, and goes into no mount that came meanwhile.
fn remove_tree(dir: &Path, report: &mut Report) {
    report.note("failed to remove", dir, host::remove_tree(dir));
}
