use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::*;

pub(crate) mod recorded;

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

/// Unpacks layers one over the other.
fn stack(layers: &[&[Item]]) -> (tempfile::TempDir, Vec<PathBuf>) {
    let outer = tempfile::tempdir().unwrap();
    let mut below = Vec::new();
    for (index, items) in layers.iter().enumerate() {
        let target = outer.path().join(index.to_string());
        std::fs::create_dir(&target).unwrap();
        unpack(&archive(items)[..], &target, &below).unwrap();
        below.insert(0, target);
    }
    (outer, below)
}

fn is_whiteout(path: PathBuf) -> bool {
    std::fs::symlink_metadata(path)
        .is_ok_and(|meta| meta.file_type().is_char_device() && meta.rdev() == 0)
}

fn is_opaque(path: PathBuf) -> bool {
    let mut value = [0u8; 4];
    rustix::fs::getxattr(path, "trusted.overlay.opaque", &mut value[..])
        .is_ok_and(|count| &value[..count] == b"y")
}

fn text(path: PathBuf) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn whiteouts() {
    if !is_root() {
        return;
    }
    let base: &[Item] = &[
        Item::File("a/gone", "0"),
        Item::File("a/kept", "0"),
        Item::File("b/old", "0"),
        Item::File("c/old", "0"),
        Item::File("f", "0"),
    ];
    let top: &[Item] = &[
        Item::File("a/.wh.gone", ""),
        Item::File("a/.wh.never-there", ""),
        Item::File("b/.wh.old", ""),
        Item::File("b/new", "1"),
        Item::File("b/.wh..wh..opq", ""),
        Item::File(".wh.c", ""),
        Item::File("c/new", "1"),
        Item::Dir("f/", 0o755),
        Item::File(".wh..wh.plnk", ""),
    ];
    let (_outer, layers) = stack(&[base, top]);
    let root = &layers[0];
    assert!(is_whiteout(root.join("a/gone")));
    // Nothing to hide leaves nothing behind.
    assert!(!root.join("a/never-there").exists());
    assert!(!is_opaque(root.join("a")));
    // Of an opaque directory its own layer's files stay, whatever came first.
    assert!(is_opaque(root.join("b")));
    assert!(root.join("b/old").symlink_metadata().is_err());
    assert_eq!(text(root.join("b/new")), "1");
    assert!(is_opaque(root.join("c")));
    assert_eq!(text(root.join("c/new")), "1");
    // A directory in the place of a file needs no more than to be one.
    assert!(root.join("f").is_dir());
    assert!(!root.join(".wh..wh.plnk").exists());
}

#[test]
fn an_opaque_root_hides_name_by_name() {
    if !is_root() {
        return;
    }
    let base: &[Item] = &[Item::File("a/old", "0"), Item::File("b", "0")];
    let top: &[Item] = &[Item::File("a/new", "1"), Item::File(".wh..wh..opq", "")];
    let (_outer, layers) = stack(&[base, top]);
    assert!(is_whiteout(layers[0].join("b")));
    // The archive did not list a itself: upstream removes it with what it put there.
    assert!(is_whiteout(layers[0].join("a")));
}

/// The kernel lists whiteouts of a directory that is merged with none below.
#[test]
fn an_opaque_directory_holds_no_whiteouts() {
    if !is_root() {
        return;
    }
    let base: &[Item] = &[Item::File("a/d/old", "0"), Item::File("a/e/f/old", "0")];
    let top: &[Item] = &[
        Item::File("a/d/new", "1"),
        Item::Dir("a/e/", 0o755),
        Item::File("a/e/f/new", "1"),
        Item::File("a/.wh..wh..opq", ""),
    ];
    let (_outer, layers) = stack(&[base, top]);
    for gone in ["a/d", "a/e/f"] {
        assert!(layers[0].join(gone).symlink_metadata().is_err(), "{gone}");
    }
    assert!(is_opaque(layers[0].join("a/e")));
}

/// To upstream a path that was listed once stays so, also where what the archive put there went and something else came.
#[test]
fn what_was_listed_once_survives_a_late_opaque_mark() {
    if !is_root() {
        return;
    }
    let layer: &[Item] = &[
        Item::Dir("a/b/", 0o700),
        Item::File("a/.wh.b", ""),
        Item::File("a/b/c", "again"),
        Item::File("a/d/e", "never listed itself"),
        Item::File("a/.wh..wh..opq", ""),
    ];
    let (_outer, layers) = stack(&[layer]);
    assert_eq!(text(layers[0].join("a/b/c")), "again");
    assert!(!layers[0].join("a/d").exists());
}

/// A path of one name is led through a link's text as it is written, one with a slash before it through its shortest form.
#[test]
fn a_link_that_goes_down_and_up_leads_as_upstream() {
    if !is_root() {
        return;
    }
    let base: &[Item] = &[
        Item::Dir("x/y/", 0o755),
        Item::Symlink("down", "x/y"),
        Item::Symlink("link", "down/../here"),
    ];
    let (_outer, layers) = stack(&[base, &[Item::File("link/f", "1")]]);
    assert_eq!(text(layers[0].join("x/here/f")), "1");
    let (_outer, layers) = stack(&[base, &[Item::File("/link/f", "1")]]);
    assert_eq!(text(layers[0].join("here/f")), "1");
    let (_outer, layers) = stack(&[base, &[Item::File("./x/../link/f", "1")]]);
    assert_eq!(text(layers[0].join("x/here/f")), "1");
}

#[test]
fn paths_lead_through_the_layers_below() {
    if !is_root() {
        return;
    }
    let base: &[Item] = &[
        Item::Dir("usr/", 0o755),
        Item::Dir("usr/bin/", 0o711),
        Item::File("usr/bin/sh", "shell"),
        Item::File("usr/bin/old", "old"),
        Item::Symlink("bin", "usr/bin"),
        Item::Symlink("sbin", "/usr/bin"),
    ];
    let top: &[Item] = &[
        Item::File("bin/extra", "tool"),
        Item::File("sbin/.wh.old", ""),
        Item::Hard("bin/linked", "bin/sh"),
    ];
    let (_outer, layers) = stack(&[base, top]);
    let root = &layers[0];
    assert!(std::fs::symlink_metadata(root.join("bin")).is_err());
    assert_eq!(text(root.join("usr/bin/extra")), "tool");
    assert!(is_whiteout(root.join("usr/bin/old")));
    let stat = |path: &str| std::fs::metadata(root.join(path)).unwrap();
    assert_eq!(stat("usr/bin").mode() & 0o7777, 0o711);
    assert_eq!(stat("usr/bin").mtime(), 1_000_000_000);
    // The file of the lower layer is copied up, and both names are one file.
    assert_eq!(text(root.join("usr/bin/sh")), "shell");
    assert_eq!(stat("usr/bin/sh").ino(), stat("usr/bin/linked").ino());
    // A link that goes is replaced by what comes, and nothing shines through.
    let over: &[Item] = &[Item::Dir("bin/", 0o755), Item::File("bin/only", "x")];
    let (_outer, layers) = stack(&[base, over]);
    assert!(layers[0].join("bin/only").exists() && is_opaque(layers[0].join("bin")));
}

#[test]
fn a_link_to_a_file_below_takes_all_its_names_along() {
    if !is_root() {
        return;
    }
    let base: &[Item] = &[
        Item::File("one", "x"),
        Item::Hard("d/two", "one"),
        Item::Hard("gone", "one"),
    ];
    let top: &[Item] = &[Item::File(".wh.gone", ""), Item::Hard("three", "one")];
    let (_outer, layers) = stack(&[base, top]);
    let inode = |path: &str| std::fs::metadata(layers[0].join(path)).unwrap().ino();
    assert_eq!(inode("one"), inode("three"));
    assert_eq!(inode("one"), inode("d/two"));
    assert!(is_whiteout(layers[0].join("gone")));
}

#[test]
fn an_archive_never_writes_outside_its_layer() {
    if !is_root() {
        return;
    }
    // Climbing out by name ends at the root, as upstream.
    for name in ["../evil", "a/../../evil", "/evil", "../../../evil"] {
        let (outer, result) = run(&[Item::File(name, "x")], &[]);
        result.unwrap();
        assert_eq!(text(outer.path().join("root/evil")), "x", "{name}");
    }
    // Climbing out through a symlink: it resolves inside the root, also where it leads nowhere yet.
    let (outer, result) = run(
        &[
            Item::Symlink("up", "../../.."),
            Item::File("up/evil", "x"),
            Item::Symlink("abs", "/etc"),
            Item::File("abs/evil-gantry", "x"),
        ],
        &[],
    );
    result.unwrap();
    assert!(outer.path().join("root/evil").exists());
    assert!(outer.path().join("root/etc/evil-gantry").exists());
    assert!(!Path::new("/etc/evil-gantry").exists());
    // A file is no directory to write into, nor is a link that leads round in a ring.
    let (_outer, result) = run(&[Item::File("s", ""), Item::File("s/evil", "x")], &[]);
    assert!(result.is_err());
    let (_outer, result) = run(&[Item::Symlink("s", "s"), Item::File("s/evil", "x")], &[]);
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
    for target in ["/etc/passwd", "../../../etc/passwd", "/proc/self/exe"] {
        let (_outer, result) = run(&[Item::Hard("h", target)], &[]);
        assert!(matches!(result, Err(UnpackError::HardLink { .. })));
    }
    let (_outer, result) = run(
        &[Item::Symlink("e", "/etc"), Item::Hard("h", "e/passwd")],
        &[],
    );
    assert!(matches!(result, Err(UnpackError::HardLink { .. })));
    // Whiteouts of the directory itself and of the one above.
    for name in [".wh.", ".wh..", ".wh..."] {
        let (_outer, result) = run(&[Item::File(name, "")], &[]);
        assert!(result.is_err(), "{name}");
    }
}

#[test]
fn the_root_stays_as_it_was() {
    if !is_root() {
        return;
    }
    let (outer, result) = run(&[Item::Dir("./", 0o700), Item::File("x", "")], &[]);
    result.unwrap();
    let mode = std::fs::metadata(outer.path().join("root")).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o755);
}

#[test]
fn a_zstd_layer_may_begin_with_a_skippable_frame() {
    if !is_root() {
        return;
    }
    let plain = archive(&[Item::File("x", "packed")]);
    let mut packed = vec![0x51, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
    packed.extend(zstd::encode_all(&plain[..], 3).unwrap());
    let outer = tempfile::tempdir().unwrap();
    let (blob, target) = (outer.path().join("blob"), outer.path().join("fs"));
    std::fs::write(&blob, packed).unwrap();
    std::fs::create_dir(&target).unwrap();
    unpack_layer(&blob, &target, &[], &crate::digest::sha256(&plain)).unwrap();
    assert_eq!(text(target.join("x")), "packed");
}

#[test]
fn deep_and_endless_archives_end() {
    if !is_root() {
        return;
    }
    let deep = |depth: usize| {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        let path = "d/".repeat(depth) + "f";
        builder.append_data(&mut header, path, &b""[..]).unwrap();
        builder.into_inner().unwrap()
    };
    let result = |bytes: &[u8]| {
        let outer = tempfile::tempdir().unwrap();
        unpack(bytes, outer.path(), &[]).map(drop)
    };
    result(&deep(400)).unwrap();
    assert!(result(&deep(600)).is_err());
    // A file that is all hole, larger than any disk.
    let mut builder = tar::Builder::new(Vec::new());
    let records: [(&str, &[u8]); 5] = [
        ("GNU.sparse.major", b"0"),
        ("GNU.sparse.minor", b"1"),
        ("GNU.sparse.numblocks", b"0"),
        ("GNU.sparse.size", b"9223372036854775807"),
        ("GNU.sparse.name", b"hole"),
    ];
    builder.append_pax_extensions(records).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(0);
    header.set_path("x").unwrap();
    header.set_cksum();
    builder.append(&header, &b""[..]).unwrap();
    let error = result(&builder.into_inner().unwrap()).unwrap_err();
    assert!(error.to_string().contains("has room for"), "{error}");
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
