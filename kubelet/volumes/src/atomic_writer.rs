//! Writes a set of files so that a reader sees all of the old or all of the new, never a mix.
//! Upstream: pkg/volume/util/atomic_writer.go; containers and users rely on its layout.
//!
//! ```text
//! <dir>/..2026_01_31_12_00_00.1234567890/user/labels    the files
//! <dir>/..data -> ..2026_01_31_12_00_00.1234567890      swapped by one rename
//! <dir>/user   -> ..data/user                           what a container opens
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Component, Path, PathBuf};

const DATA_DIR: &str = "..data";
const NEW_DATA_DIR: &str = "..data_tmp";
const MAX_FILE_NAME_LENGTH: usize = 255;
const MAX_PATH_LENGTH: usize = 4096;

/// One file's content and access.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileProjection {
    pub data: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Its owner; `None`: root.
    pub fs_user: Option<u32>,
}

/// Path relative to the volume -> file.
pub type Payload = BTreeMap<String, FileProjection>;

/// Why a payload was not written. `InvalidPath` needs a change of the pod; a retry may help the others.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("invalid path: {reason}: {path:?}")]
    InvalidPath { path: String, reason: &'static str },
    #[error("{what} {}: {source}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

trait At<T> {
    fn at(self, what: &'static str, path: &Path) -> Result<T, WriteError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, what: &'static str, path: &Path) -> Result<T, WriteError> {
        self.map_err(|source| WriteError::Io {
            what,
            path: path.to_owned(),
            source,
        })
    }
}

/// Makes the visible files of `target` those of `payload`. Returns whether anything was written;
/// `set_permissions` runs on new content before readers can see it.
///
/// # Errors
/// On any, readers still see the old content whole, and the next write clears what was left behind.
pub fn write(
    target: &Path,
    payload: Payload,
    set_permissions: impl FnOnce() -> io::Result<()>,
) -> Result<bool, WriteError> {
    let payload = clean(payload)?;
    let data = target.join(DATA_DIR);
    let old = match fs::read_link(&data) {
        Ok(link) => Some(target.join(link)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(e).at("reading the link", &data),
    };
    let stale = match &old {
        Some(old) => paths_to_remove(&payload, old)?,
        None => BTreeSet::new(),
    };
    let changed = match &old {
        Some(old) => !stale.is_empty() || should_write(&payload, old)?,
        None => true,
    };
    let mut current = None;
    if changed {
        let dir = new_timestamp_dir(target)?;
        if let Err(error) = publish(target, &data, &dir, &payload, set_permissions) {
            if let Err(e) = host::remove_tree(&dir) {
                tracing::warn!(path = %dir.display(), error = %e, "removing a new timestamp directory after a failed write");
            }
            return Err(error);
        }
        current = Some(dir);
    }
    // Even if nothing changed: a crash may have come between the rename and the links.
    create_user_visible_files(target, &payload)?;
    remove_user_visible_paths(target, &stale)?;
    if let Some(current) = current {
        remove_other_timestamp_dirs(target, &current)?;
    }
    Ok(changed)
}

fn publish(
    target: &Path,
    data: &Path,
    dir: &Path,
    payload: &Payload,
    set_permissions: impl FnOnce() -> io::Result<()>,
) -> Result<(), WriteError> {
    write_payload(dir, payload)?;
    set_permissions().at("applying ownership settings to", target)?;
    let new_data = target.join(NEW_DATA_DIR);
    match fs::remove_file(&new_data) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e).at("removing a leftover", &new_data),
    }
    let name = dir.file_name().expect("a timestamp directory has a name");
    symlink(name, &new_data).at("creating the symbolic link", &new_data)?;
    fs::rename(&new_data, data).at("renaming the symbolic link to", data)
}

fn clean(payload: Payload) -> Result<Payload, WriteError> {
    payload
        .into_iter()
        .map(|(path, file)| {
            validate_path(&path)?;
            let clean: PathBuf = Path::new(&path)
                .components()
                .filter(|c| !matches!(c, Component::CurDir))
                .collect();
            match clean.to_str() {
                Some(clean) if !clean.is_empty() => Ok((clean.to_owned(), file)),
                _ => Err(WriteError::InvalidPath {
                    path,
                    reason: "must name a file",
                }),
            }
        })
        .collect()
}

fn validate_path(path: &str) -> Result<(), WriteError> {
    let first = path.split('/').next().unwrap_or_default();
    let reason = if path.is_empty() {
        "must not be empty"
    } else if path.starts_with('/') {
        "must be relative path"
    } else if path.len() > MAX_PATH_LENGTH {
        "must be less than or equal to 4096 characters"
    } else if path.split('/').any(|item| item == "..") {
        "must not contain '..'"
    } else if path
        .split('/')
        .any(|item| item.len() > MAX_FILE_NAME_LENGTH)
    {
        "filenames must be less than or equal to 255 characters"
    } else if first.starts_with("..") {
        "must not start with '..'"
    } else {
        return Ok(());
    };
    Err(WriteError::InvalidPath {
        path: path.to_owned(),
        reason,
    })
}

fn should_write(payload: &Payload, old: &Path) -> Result<bool, WriteError> {
    for (path, file) in payload {
        let path = old.join(path);
        match fs::read(&path) {
            Ok(content) if content == file.data => {}
            Ok(_) => return Ok(true),
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound
                        | io::ErrorKind::IsADirectory
                        | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(true);
            }
            Err(e) => return Err(e).at("reading", &path),
        }
    }
    Ok(false)
}

/// What the old version holds, files and directories, that the new one does not.
fn paths_to_remove(payload: &Payload, old: &Path) -> Result<BTreeSet<PathBuf>, WriteError> {
    let mut wanted = BTreeSet::new();
    for path in payload.keys() {
        wanted.extend(
            Path::new(path)
                .ancestors()
                .filter(|a| *a != Path::new(""))
                .map(Path::to_owned),
        );
    }
    let mut found = BTreeSet::new();
    collect_paths(old, Path::new(""), &mut found)?;
    Ok(found.difference(&wanted).cloned().collect())
}

fn collect_paths(
    root: &Path,
    relative: &Path,
    found: &mut BTreeSet<PathBuf>,
) -> Result<(), WriteError> {
    let dir = root.join(relative);
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e).at("reading", &dir),
    };
    for entry in entries {
        let entry = entry.at("reading", &dir)?;
        let path = relative.join(entry.file_name());
        if entry.file_type().at("reading", &dir)?.is_dir() {
            collect_paths(root, &path, found)?;
        }
        found.insert(path);
    }
    Ok(())
}

fn new_timestamp_dir(target: &Path) -> Result<PathBuf, WriteError> {
    let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
    let stamp = now.strftime("..%Y_%m_%d_%H_%M_%S.").to_string();
    let mut suffix = u64::from(now.subsec_nanosecond().unsigned_abs()) << 12
        | u64::from(std::process::id()) & 0xfff;
    loop {
        let dir = target.join(format!("{stamp}{suffix}"));
        match DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => {
                // Whatever the umask: group and others must be able to pass.
                fs::set_permissions(&dir, Permissions::from_mode(0o755))
                    .at("setting the mode of", &dir)?;
                return Ok(dir);
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => suffix += 1,
            Err(e) => return Err(e).at("creating", &dir),
        }
    }
}

fn write_payload(dir: &Path, payload: &Payload) -> Result<(), WriteError> {
    for (path, file) in payload {
        let path = dir.join(path);
        let parent = path.parent().expect("a joined path has a parent");
        create_dirs(dir, parent)?;
        let mut out = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .at("creating", &path)?;
        out.write_all(&file.data).at("writing", &path)?;
        out.set_permissions(Permissions::from_mode(file.mode & 0o777))
            .at("setting the mode of", &path)?;
        if file.fs_user.is_some() {
            lchown(&path, file.fs_user, None).at("setting the owner of", &path)?;
        }
    }
    Ok(())
}

/// Directories inside the payload are 0755 whatever the umask.
// DIFFERS: upstream leaves them to the process's umask, which is 022 nearly everywhere.
fn create_dirs(root: &Path, dir: &Path) -> Result<(), WriteError> {
    if dir == root || dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent() {
        create_dirs(root, parent)?;
    }
    fs::create_dir(dir).at("creating", dir)?;
    fs::set_permissions(dir, Permissions::from_mode(0o755)).at("setting the mode of", dir)
}

fn create_user_visible_files(target: &Path, payload: &Payload) -> Result<(), WriteError> {
    for (path, file) in payload {
        let first = path
            .split('/')
            .next()
            .expect("split yields at least one item");
        let visible = target.join(first);
        match fs::read_link(&visible) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                symlink(Path::new(DATA_DIR).join(first), &visible)
                    .at("creating the symbolic link", &visible)?;
                if file.fs_user.is_some() {
                    lchown(&visible, file.fs_user, None).at("setting the owner of", &visible)?;
                }
            }
            // A nested mount point of the same name stays: it is what the container sees anyway.
            _ => {}
        }
    }
    Ok(())
}

/// Only the first level has links; what lies deeper went with its directory.
fn remove_user_visible_paths(target: &Path, stale: &BTreeSet<PathBuf>) -> Result<(), WriteError> {
    let mut last = Ok(());
    for path in stale.iter().filter(|p| p.components().count() == 1) {
        let path = target.join(path);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                last = Err(e).at("pruning the old path", &path)
            }
            _ => {}
        }
    }
    last
}

/// The previous version, and what a crash between two versions left.
fn remove_other_timestamp_dirs(target: &Path, current: &Path) -> Result<(), WriteError> {
    let mut last = Ok(());
    for entry in fs::read_dir(target).at("reading", target)? {
        let entry = entry.at("reading", target)?;
        let name = entry.file_name();
        let is_timestamp = name.to_str().is_some_and(|n| n.starts_with("..2"));
        let path = entry.path();
        if is_timestamp
            && path != current
            && entry.file_type().is_ok_and(|t| t.is_dir())
            && let Err(e) = host::remove_tree(&path)
        {
            last = Err(e).at("removing the old data directory", &path);
        }
    }
    last
}

#[cfg(test)]
#[path = "atomic_writer/tests.rs"]
mod tests;
