use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::*;

/// What the test archives are made of.
enum Item<'a> {
    Dir(&'a str, u32),
    File(&'a str, &'a str),
    Setuid(&'a str),
    Symlink(&'a str, &'a str),
    Hard(&'a str, &'a str),
    Char(&'a str),
    Xattr(&'a str, &'a str, &'a str),
}

fn archive(items: &[Item]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for item in items {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1_000_000_000);
        header.set_size(0);
        let mut body: &[u8] = b"";
        let mut link = "";
        let name = match item {
            Item::Dir(name, mode) => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(*mode);
                name
            }
            Item::File(name, text) => {
                body = text.as_bytes();
                name
            }
            Item::Setuid(name) => {
                header.set_mode(0o4755);
                name
            }
            Item::Symlink(name, target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                link = target;
                name
            }
            Item::Hard(name, target) => {
                header.set_entry_type(tar::EntryType::Link);
                link = target;
                name
            }
            Item::Char(name) => {
                header.set_entry_type(tar::EntryType::Char);
                header.set_device_major(1).unwrap();
                header.set_device_minor(3).unwrap();
                name
            }
            Item::Xattr(name, key, value) => {
                let key = format!("SCHILY.xattr.{key}");
                builder
                    .append_pax_extensions([(key.as_str(), value.as_bytes())])
                    .unwrap();
                name
            }
        };
        // Written by hand, since the builder refuses what we want to try.
        let bytes = name.as_bytes();
        header.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_size(body.len() as u64);
        header.set_cksum();
        builder.append(&header, body).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Unpacks into `<outer>/root`, and says whether anything else appeared in `<outer>`.
fn run(items: &[Item], parents: &[PathBuf]) -> (tempfile::TempDir, Result<Unpacked, UnpackError>) {
    let outer = tempfile::tempdir().unwrap();
    let root = outer.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let result = unpack(&archive(items)[..], &root, parents);
    let others = std::fs::read_dir(outer.path()).unwrap().count();
    assert_eq!(others, 1, "something was written outside the root");
    (outer, result)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn files_modes_owners_links() {
    if !is_root() {
        return;
    }
    let (outer, result) = run(
        &[
            Item::Dir("etc/", 0o755),
            Item::File("etc/passwd", "root"),
            Item::Hard("etc/shadow", "etc/passwd"),
            Item::Symlink("etc/link", "/etc/passwd"),
            Item::Setuid("bin/su"),
            Item::Char("dev/null"),
            Item::Xattr("x", "user.a", "b"),
            Item::Xattr("y", "trusted.overlay.redirect", "/etc"),
        ],
        &[],
    );
    let unpacked = result.unwrap();
    let root = outer.path().join("root");
    let stat = |path: &str| std::fs::symlink_metadata(root.join(path)).unwrap();
    assert_eq!(
        std::fs::read_to_string(root.join("etc/shadow")).unwrap(),
        "root"
    );
    assert_eq!(stat("etc/shadow").ino(), stat("etc/passwd").ino());
    assert_eq!((stat("etc/passwd").uid(), stat("etc/passwd").gid()), (7, 8));
    assert_eq!(stat("etc").mtime(), 1_000_000_000);
    assert_eq!(stat("etc/link").mtime(), 1_000_000_000);
    assert_eq!(stat("bin/su").mode() & 0o7777, 0o4755);
    assert_eq!(stat("bin").mode() & 0o7777, 0o755);
    assert!(stat("dev/null").file_type().is_char_device());
    let mut value = [0u8; 8];
    let count = rustix::fs::getxattr(root.join("x"), "user.a", &mut value[..]).unwrap();
    assert_eq!(&value[..count], b"b");
    assert!(
        rustix::fs::getxattr(root.join("y"), "trusted.overlay.redirect", &mut value[..]).is_err()
    );
    assert!(unpacked.inodes >= 8);
}

#[test]
fn whiteouts() {
    if !is_root() {
        return;
    }
    let (outer, result) = run(
        &[
            Item::File("a/.wh.gone", ""),
            Item::Dir("b/", 0o755),
            Item::File("b/.wh..wh..opq", ""),
            Item::File(".wh.c", ""),
            Item::File("c/new", "1"),
            Item::File("d/kept", "1"),
            Item::File(".wh.d", ""),
            Item::File(".wh..wh.plnk", ""),
        ],
        &[],
    );
    result.unwrap();
    let root = outer.path().join("root");
    let gone = std::fs::symlink_metadata(root.join("a/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    let opaque = |path: &str| {
        let mut value = [0u8; 4];
        rustix::fs::getxattr(root.join(path), OVERLAY_OPAQUE_XATTR, &mut value[..])
            .is_ok_and(|count| &value[..count] == b"y")
    };
    assert!(opaque("b") && opaque("c") && opaque("d"));
    assert!(!opaque("a"));
    assert!(root.join("d/kept").exists());
    assert!(!root.join(".wh..wh.plnk").exists());
}

#[test]
fn never_outside() {
    if !is_root() {
        return;
    }
    // Climbing out by name.
    let (_outer, result) = run(&[Item::File("../evil", "x")], &[]);
    assert!(matches!(result, Err(UnpackError::Breakout { .. })));
    let (_outer, result) = run(&[Item::File("a/../../evil", "x")], &[]);
    assert!(matches!(result, Err(UnpackError::Breakout { .. })));
    // Climbing out through a symlink: it resolves inside the root.
    let (outer, result) = run(
        &[
            Item::Symlink("up", "../../.."),
            Item::File("up/evil", "x"),
            Item::Symlink("abs", "/etc"),
            Item::Dir("etc/", 0o755),
            Item::File("abs/evil-gantry", "x"),
        ],
        &[],
    );
    result.unwrap();
    assert!(outer.path().join("root/evil").exists());
    assert!(outer.path().join("root/etc/evil-gantry").exists());
    assert!(!Path::new("/etc/evil-gantry").exists());
    // A symlink that leads nowhere inside is no directory to write into.
    let (_outer, result) = run(
        &[Item::Symlink("s", "/nowhere"), Item::File("s/evil", "x")],
        &[],
    );
    assert!(result.is_err());
    // A file does not follow the symlink it replaces.
    let (outer, result) = run(
        &[Item::Symlink("f", "/etc/gantry-evil"), Item::File("f", "x")],
        &[],
    );
    result.unwrap();
    assert!(
        outer
            .path()
            .join("root/f")
            .symlink_metadata()
            .unwrap()
            .is_file()
    );
    assert!(!Path::new("/etc/gantry-evil").exists());
    // A hard link to a file of the host.
    let (_outer, result) = run(&[Item::Hard("h", "/etc/passwd")], &[]);
    assert!(matches!(result, Err(UnpackError::HardLink { .. })));
    let (_outer, result) = run(&[Item::Hard("h", "../../../etc/passwd")], &[]);
    assert!(matches!(result, Err(UnpackError::Breakout { .. })));
    let (_outer, result) = run(
        &[Item::Symlink("e", "/etc"), Item::Hard("h", "e/passwd")],
        &[],
    );
    assert!(matches!(result, Err(UnpackError::HardLink { .. })));
    // The whiteout of nothing.
    let (_outer, result) = run(&[Item::File(".wh...", "")], &[]);
    assert!(result.is_err());
}

#[test]
fn a_forgotten_directory_comes_from_below() {
    if !is_root() {
        return;
    }
    let (lower, result) = run(&[Item::Dir("srv/", 0o2770)], &[]);
    result.unwrap();
    let below = lower.path().join("root");
    let (outer, result) = run(&[Item::File("srv/file", "x")], &[below]);
    result.unwrap();
    let stat = std::fs::metadata(outer.path().join("root/srv")).unwrap();
    assert_eq!(stat.mode() & 0o7777, 0o2770);
    assert_eq!((stat.uid(), stat.gid()), (7, 8));
    assert_eq!(stat.mtime(), 1_000_000_000);
}

#[test]
fn times() {
    let time = |text| metadata::parse_time(text).map(|time| (time.tv_sec, time.tv_nsec));
    assert_eq!(time("12"), Some((12, 0)));
    assert_eq!(time("12.5"), Some((12, 500_000_000)));
    assert_eq!(time("-1.25"), Some((-2, 750_000_000)));
    assert_eq!(time("x"), None);
}
