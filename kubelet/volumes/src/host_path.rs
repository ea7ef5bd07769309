//! `hostPath` volumes: a path of the node, checked against its `type`. Upstream: pkg/volume/hostpath.

use std::fs::{self, FileType, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Volume;

use crate::location::VolumeLocation;
use crate::plugin::{IoAt, Mounter, SetUpError, VolumePlugin, blocking};

pub(crate) struct HostPath;

#[async_trait]
impl VolumePlugin for HostPath {
    fn name(&self) -> &'static str {
        "kubernetes.io/host-path"
    }

    fn can_support(&self, volume: &Volume) -> bool {
        volume.host_path.is_some()
    }

    fn managed(&self) -> bool {
        false
    }

    async fn set_up(&self, mounter: &Mounter<'_>) -> Result<VolumeLocation, SetUpError> {
        let source = mounter
            .volume
            .host_path
            .clone()
            .expect("can_support said so");
        blocking(move || {
            let path = PathBuf::from(&source.path);
            if path.components().any(|c| c == Component::ParentDir) {
                return Err(SetUpError::HostPathBacksteps(source.path));
            }
            check_type(&path, source.type_.as_deref().unwrap_or_default())?;
            Ok(VolumeLocation::Path(path))
        })
        .await
    }
}

/// Follows symbolic links; the empty type checks nothing.
fn check_type(path: &Path, host_path_type: &str) -> Result<(), SetUpError> {
    let expected: (&'static str, fn(&FileType) -> bool) = match host_path_type {
        "" => return Ok(()),
        "DirectoryOrCreate" => {
            if !exists(path) {
                return make_dir(path).io_at("failed to create directory", path);
            }
            ("a directory", FileType::is_dir)
        }
        "Directory" => ("a directory", FileType::is_dir),
        "FileOrCreate" => {
            if !exists(path) {
                return make_file(path).io_at("failed to create file", path);
            }
            ("a file", FileType::is_file)
        }
        "File" => ("a file", FileType::is_file),
        "Socket" => ("a socket file", FileType::is_socket),
        "CharDevice" => ("a character device", FileType::is_char_device),
        "BlockDevice" => ("a block device", FileType::is_block_device),
        other => return Err(SetUpError::HostPathUnknownType(other.to_owned())),
    };
    let (expected, fits) = expected;
    let text = path.display().to_string();
    let no_type = |path: String, why: String| SetUpError::HostPathNoType {
        path,
        expected,
        why,
    };
    match fs::metadata(path) {
        Ok(info) if fits(&info.file_type()) => Ok(()),
        Ok(info) => Err(match type_of(&info.file_type()) {
            Some(found) => SetUpError::HostPathOtherType {
                path: text,
                expected,
                found,
            },
            None => no_type(
                text,
                "only recognise file, directory, socket, block device and character device"
                    .to_owned(),
            ),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let why = format!("path {text:?} does not exist");
            Err(no_type(text, why))
        }
        Err(error) => Err(no_type(text, error.to_string())),
    }
}

/// The API's word; `None`: it has none. Upstream: `getFileType`.
fn type_of(file: &FileType) -> Option<&'static str> {
    let kinds: [(fn(&FileType) -> bool, &'static str); 5] = [
        (FileType::is_dir, "Directory"),
        (FileType::is_file, "File"),
        (FileType::is_socket, "Socket"),
        (FileType::is_char_device, "CharDevice"),
        (FileType::is_block_device, "BlockDevice"),
    ];
    kinds
        .into_iter()
        .find_map(|(is, name)| is(file).then_some(name))
}

fn exists(path: &Path) -> bool {
    fs::metadata(path).is_ok()
}

fn make_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
}

fn make_file(path: &Path) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .open(path)
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_and_creates() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("dir")).unwrap();
        fs::write(at("file"), "").unwrap();
        std::os::unix::fs::symlink("dir", at("link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let cases: &[(PathBuf, &str, Option<&str>)] = &[
            (at("missing"), "", None),
            (at("dir"), "Directory", None),
            (at("link"), "Directory", None),
            (at("file"), "Directory", Some("a directory, it's a File")),
            (at("new/deep"), "DirectoryOrCreate", None),
            (at("new/deep"), "Directory", None),
            (
                at("file"),
                "DirectoryOrCreate",
                Some("a directory, it's a File"),
            ),
            (at("file"), "File", None),
            (at("dir"), "File", Some("a file, it's a Directory")),
            (at("made"), "FileOrCreate", None),
            (at("made"), "File", None),
            (at("dir"), "FileOrCreate", Some("a file, it's a Directory")),
            (at("socket"), "Socket", None),
            (at("file"), "Socket", Some("a socket file, it's a File")),
            (PathBuf::from("/dev/null"), "CharDevice", None),
            (
                at("file"),
                "CharDevice",
                Some("a character device, it's a File"),
            ),
            (
                PathBuf::from("/dev/null"),
                "BlockDevice",
                Some("a block device, it's a CharDevice"),
            ),
        ];
        for (path, kind, refused) in cases {
            let text = check_type(path, kind).err().map(|e| e.to_string());
            let expect = refused
                .map(|r| format!("hostPath type check failed: {} is not {r}", path.display()));
            assert_eq!(text, expect, "{} {kind}", path.display());
        }
        let missing = at("missing").display().to_string();
        assert_eq!(
            check_type(&at("missing"), "Directory")
                .unwrap_err()
                .to_string(),
            format!(
                "hostPath type check failed, {missing} is not a directory, unable to determine its type: path {missing:?} does not exist"
            )
        );
        assert_eq!(
            check_type(&at("dir"), "Door").unwrap_err().to_string(),
            "Door is an invalid volume type"
        );
    }
}
