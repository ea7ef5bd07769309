//! Stacks of layers with what containerd's applier made of them, recorded by
//! `cargo e2e layers --stacks 200 --record kubelet/images/src/unpack/tests/stacks.tar.gz`.

use std::collections::{BTreeMap, HashMap};
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use crate::unpack_stack;

const STACKS: &[u8] = include_bytes!("stacks.tar.gz");

/// What is seen of layers through an overlay, topmost first: a line a file, as the recording has them.
pub(crate) fn merged(layers: &[PathBuf]) -> Vec<String> {
    let mut lister = Lister {
        lines: Vec::new(),
        inodes: HashMap::new(),
    };
    lister.directory(layers, &[]);
    lister.lines
}

/// Where each file lies that is seen of layers through an overlay, topmost first.
pub(crate) fn merged_shallow(layers: &[PathBuf]) -> HashMap<String, PathBuf> {
    let mut all = HashMap::new();
    let mut pending = vec![(layers.to_vec(), String::new())];
    while let Some((layers, name)) = pending.pop() {
        for (own, paths) in seen(&layers) {
            let full = format!("{name}{}", String::from_utf8_lossy(&own));
            if paths[0].symlink_metadata().unwrap().is_dir() {
                pending.push((paths.clone(), format!("{full}/")));
            }
            all.insert(full, paths[0].clone());
        }
    }
    all
}

/// The names of a directory that lies in several layers, each with the directories it stands for, or the one file.
fn seen(layers: &[PathBuf]) -> BTreeMap<Vec<u8>, Vec<PathBuf>> {
    let mut found: BTreeMap<Vec<u8>, Vec<PathBuf>> = BTreeMap::new();
    let mut closed: Vec<Vec<u8>> = Vec::new();
    for layer in layers {
        for entry in std::fs::read_dir(layer).unwrap() {
            let path = entry.unwrap().path();
            let own = path.file_name().unwrap().as_bytes().to_vec();
            if closed.contains(&own) {
                continue;
            }
            let meta = std::fs::symlink_metadata(&path).unwrap();
            let opaque = meta.is_dir() && super::is_opaque(path.clone());
            if !meta.is_dir() || opaque {
                closed.push(own.clone());
            }
            let whiteout = meta.file_type().is_char_device() && meta.rdev() == 0;
            if whiteout || (!meta.is_dir() && found.contains_key(&own)) {
                continue;
            }
            found.entry(own).or_default().push(path);
        }
    }
    found
}

struct Lister {
    lines: Vec<String>,
    inodes: HashMap<(u64, u64), Vec<u8>>,
}

impl Lister {
    fn directory(&mut self, layers: &[PathBuf], name: &[u8]) {
        for (own, paths) in seen(layers) {
            let mut full = name.to_vec();
            if !full.is_empty() {
                full.push(b'/');
            }
            full.extend(own);
            self.file(&paths[0], &full);
            if paths[0].symlink_metadata().unwrap().is_dir() {
                self.directory(&paths, &full);
            }
        }
    }

    fn file(&mut self, path: &Path, name: &[u8]) {
        let meta = std::fs::symlink_metadata(path).unwrap();
        let mut line = format!(
            "{} mode={:o} uid={} gid={} mtime={}.{:09}",
            quote(name),
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec()
        );
        let kind = meta.file_type();
        if kind.is_file() {
            let sum = crate::digest::sha256(&std::fs::read(path).unwrap());
            line += &format!(" size={} sha256={}", meta.len(), &sum[7..23]);
        } else if kind.is_symlink() {
            let target = std::fs::read_link(path).unwrap();
            line += &format!(" link={}", quote(target.as_os_str().as_bytes()));
        } else if kind.is_char_device() || kind.is_block_device() {
            let (major, minor) = (
                rustix::fs::major(meta.rdev()),
                rustix::fs::minor(meta.rdev()),
            );
            line += &format!(" device={major}:{minor}");
        }
        line += &attributes(path);
        if !meta.is_dir() {
            let inode = (meta.dev(), meta.ino());
            if let Some(other) = self.inodes.get(&inode) {
                line += &format!(" same={}", quote(other));
            } else {
                self.inodes.insert(inode, name.to_vec());
            }
        }
        self.lines.push(line);
    }
}

fn attributes(path: &Path) -> String {
    let mut list = vec![0u8; 4096];
    let size = rustix::fs::llistxattr(path, &mut list[..]).unwrap();
    let mut names: Vec<&str> = std::str::from_utf8(&list[..size])
        .unwrap()
        .split_terminator('\0')
        .filter(|name| !name.starts_with("trusted.overlay."))
        .collect();
    names.sort_unstable();
    names
        .iter()
        .map(|name| {
            let mut value = vec![0u8; 4096];
            let size = rustix::fs::lgetxattr(path, *name, &mut value[..]).unwrap();
            format!(" {name}={}", quote(&value[..size]))
        })
        .collect()
}

/// As Go writes a text with `%q`.
fn quote(bytes: &[u8]) -> String {
    let mut text = String::from("\"");
    for c in String::from_utf8_lossy(bytes).chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            '\u{0}'..'\u{7}' | '\u{e}'..' ' => text += &format!("\\x{:02x}", u32::from(c)),
            '\u{7}'..'\u{e}' => {
                text.extend(['\\', char::from(b"abtnvfr"[c as usize - 7])]);
            }
            c => text.push(c),
        }
    }
    text + "\""
}

/// `mtime=*` is a directory's that upstream left at the time of unpacking.
fn is_same(expected: &str, found: &str) -> bool {
    let Some((before, after)) = expected.split_once(" mtime=*") else {
        return expected == found;
    };
    let Some((own_before, rest)) = found.split_once(" mtime=") else {
        return false;
    };
    let own_after = rest.find(' ').map_or("", |at| &rest[at..]);
    before == own_before && after == own_after
}

#[test]
fn recorded_stacks_come_out_as_containerd_makes_them() {
    if !super::is_root() {
        return;
    }
    let mut stacks: BTreeMap<String, BTreeMap<String, Vec<u8>>> = BTreeMap::new();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(STACKS));
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let (stack, file) = path.split_once('/').unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        let files = stacks.entry(stack.to_owned()).or_default();
        files.insert(file.to_owned(), bytes);
    }
    assert_eq!(stacks.len(), 200);
    for (seed, mut files) in stacks {
        let dir = tempfile::tempdir().unwrap();
        let tree = String::from_utf8(files.remove("tree").unwrap()).unwrap();
        let layers: Vec<PathBuf> = files
            .into_iter()
            .map(|(index, bytes)| {
                let path = dir.path().join(format!("layer{index}"));
                std::fs::write(&path, bytes).unwrap();
                path
            })
            .collect();
        let made = unpack_stack(&layers, dir.path()).unwrap();
        let found = merged(&made);
        let expected: Vec<&str> = tree.lines().filter(|line| !line.is_empty()).collect();
        let same = expected.len() == found.len()
            && expected.iter().zip(&found).all(|(a, b)| is_same(a, b));
        assert!(same, "stack {seed}:\n{expected:#?}\n{found:#?}");
    }
}
