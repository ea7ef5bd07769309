//! The volumes an image declares (VOLUME): directories of the container's own beside its overlay, with
//! what the image has at their place. They go with the container.
//!
//! Upstream: containerd's `customopts.WithVolumes`.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};

use host::Repeats;

use super::mount;
use crate::spec::clean;

/// How many an image may declare. Each is a copy of what the image has there, made before the container runs: an image of a
/// megabyte could ask for a hundred thousand of one tree.
///
/// DIFFERS: containerd has no bound.
const MAX_VOLUMES: usize = 256;

/// How much of the image they may copy again: volumes within each other or behind links to one tree, and files with several names.
///
/// DIFFERS: containerd has no bound, and keeps the names of one file together.
const MAX_REPEATED_BYTES: u64 = 1 << 30;

/// Makes a directory below `directory` for each volume, filled from `rootfs`. `taken` are the paths of
/// the container's own mounts, which win.
pub fn prepare(
    rootfs: &Path,
    directory: &Path,
    volumes: &[String],
    taken: &[String],
) -> io::Result<Vec<(String, PathBuf)>> {
    let mut repeats = Repeats::within(MAX_REPEATED_BYTES);
    prepare_within(rootfs, directory, volumes, taken, &mut repeats)
}

fn prepare_within(
    rootfs: &Path,
    directory: &Path,
    volumes: &[String],
    taken: &[String],
    repeats: &mut Repeats,
) -> io::Result<Vec<(String, PathBuf)>> {
    let mut wanted: Vec<String> = volumes.iter().map(|path| clean(path)).collect();
    wanted.retain(|path| path != "/" && !taken.contains(path));
    wanted.sort();
    wanted.dedup();
    if wanted.len() > MAX_VOLUMES {
        let count = wanted.len();
        let text = format!("the image declares {count} volumes, more than {MAX_VOLUMES}");
        return Err(io::Error::other(text));
    }
    let mut made = Vec::new();
    let mut copied: Vec<PathBuf> = Vec::new();
    for (index, path) in wanted.into_iter().enumerate() {
        let target = directory.join(index.to_string());
        fs::create_dir_all(&target)?;
        match mount::open_in_root(rootfs, &path, libc::O_PATH | libc::O_DIRECTORY) {
            Ok(source) => {
                // The very directory that was found: no link of the image leads elsewhere.
                let link = format!("/proc/self/fd/{}", source.as_raw_fd());
                let place = fs::read_link(&link)?;
                let within =
                    |other: &PathBuf| place.starts_with(other) || other.starts_with(&place);
                repeats.set_again(copied.iter().any(within));
                copied.push(place);
                host::copy_tree(File::open(&link)?.into(), &target, repeats)?;
            }
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
                // As new as the root itself, and the root's owner's.
                let data = fs::metadata(rootfs)?;
                lchown(&target, Some(data.uid()), Some(data.gid()))?;
            }
            Err(error) => return Err(error),
        }
        made.push((path, target));
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn volumes_hold_what_the_image_has_and_links_stay_inside() {
        let directory = tempfile::tempdir().unwrap();
        let (rootfs, volumes) = (
            directory.path().join("root"),
            directory.path().join("volumes"),
        );
        fs::create_dir_all(rootfs.join("data/deep")).unwrap();
        fs::write(rootfs.join("data/deep/file"), "x").unwrap();
        symlink("/etc", rootfs.join("data/link")).unwrap();
        symlink("/etc", rootfs.join("out")).unwrap();
        let wanted = ["/data/", "/out", "/new", "/taken", "/data"].map(str::to_owned);
        let made = prepare(&rootfs, &volumes, &wanted, &["/taken".to_owned()]).unwrap();
        let paths: Vec<&str> = made.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(paths, ["/data", "/new", "/out"]);
        assert_eq!(
            fs::read_to_string(made[0].1.join("deep/file")).unwrap(),
            "x"
        );
        assert_eq!(
            fs::read_link(made[0].1.join("link")).unwrap(),
            Path::new("/etc")
        );
        let many: Vec<String> = (0..1000).map(|n| format!("/v{n}")).collect();
        let error = prepare(&rootfs, &volumes, &many, &[]).unwrap_err();
        let expect = "the image declares 1000 volumes, more than 256";
        assert_eq!(error.to_string(), expect);
        assert_eq!(
            fs::read_dir(&made[2].1).unwrap().count(),
            0,
            "the host's /etc is not the image's"
        );
    }

    /// One large tree under many names must not fill the disk.
    #[test]
    fn a_tree_that_many_volumes_name_is_copied_within_a_bound() {
        let directory = tempfile::tempdir().unwrap();
        let rootfs = directory.path().join("root");
        fs::create_dir_all(rootfs.join("data/sub")).unwrap();
        fs::write(rootfs.join("data/sub/file"), [7; 1000]).unwrap();
        symlink("data", rootfs.join("again")).unwrap();
        let bound = 10 << 10;
        let copy = |name: &str, volumes: &[&str]| {
            let volumes: Vec<String> = volumes.iter().map(|v| (*v).to_owned()).collect();
            let place = directory.path().join(name);
            let mut repeats = Repeats::within(bound);
            let made = prepare_within(&rootfs, &place, &volumes, &[], &mut repeats);
            made.map(|made| made.len()).map_err(|e| e.to_string())
        };
        // A directory within another is common: it is a page and a file of a page and a bit.
        assert_eq!(copy("nested", &["/data", "/data/sub"]), Ok(2));
        let refused = format!("more than {bound} bytes would be copied again");
        assert_eq!(copy("linked", &["/again", "/data"]), Err(refused.clone()));
        assert_eq!(
            copy("both", &["/data", "/data/sub", "/again"]),
            Err(refused)
        );
    }
}
