//! Stacks of layers from a seed: files, links, whiteouts, opaque marks, types that change, in every dialect.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::archive::{Dialect, Entry, Kind, Packing, SparseVersion, pack, write};

pub struct Stack {
    /// Packed archives, lowest first.
    pub layers: Vec<Vec<u8>>,
    /// What is in them, for people.
    pub text: String,
}

/// The stack of a seed.
pub fn stack(seed: u64) -> Stack {
    let mut maker = Maker {
        random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        known: BTreeMap::new(),
        listed: BTreeSet::new(),
    };
    let mut stack = Stack {
        layers: Vec::new(),
        text: String::new(),
    };
    let count = 1 + maker.random.below(4);
    for index in 0..count {
        let (entries, packing) = maker.layer(index == 0);
        let _ = writeln!(stack.text, "layer {index}, {packing:?}");
        for (dialect, entry) in &entries {
            let _ = writeln!(
                stack.text,
                "  {dialect:?} {:?} {} {:o} {}:{} {:?} {:?}",
                entry.name,
                short(&entry.kind),
                entry.mode,
                entry.uid,
                entry.gid,
                entry.mtime,
                entry.xattrs
            );
        }
        let mut plain = write(&entries);
        if maker.random.one_in(6) {
            // Archivers pad to their record.
            plain.resize(plain.len().next_multiple_of(10240), 0);
        }
        stack.layers.push(pack(&plain, packing));
    }
    stack
}

fn short(kind: &Kind) -> String {
    match kind {
        Kind::File(bytes) => format!("File({} bytes)", bytes.len()),
        Kind::Sparse(pieces, size, version) => {
            format!("Sparse({} pieces, {size}, {version:?})", pieces.len())
        }
        other => format!("{other:?}"),
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len() as u64) as usize]
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Is {
    Directory,
    Symlink,
    Other,
}

struct Maker {
    random: Random,
    /// What was made at which path, by the text of it. Only a guess: links are not followed.
    known: BTreeMap<String, Is>,
    /// Directories that the layer lists: upstream refuses a layer that takes one away again.
    listed: BTreeSet<String>,
}

const NAMES: &[&str] = &["a", "b", "c", "d", "bin", "lib", "usr", "etc", "x y", "ü"];

impl Maker {
    fn layer(&mut self, base: bool) -> (Vec<(Dialect, Entry)>, Packing) {
        let dialects = [
            Dialect::V7,
            Dialect::Ustar,
            Dialect::Gnu,
            Dialect::Pax,
            Dialect::Pax,
        ];
        let usual = dialects[self.random.below(5) as usize];
        self.listed.clear();
        let mut entries = Vec::new();
        if base && self.random.one_in(2) {
            self.merged_base(&mut entries);
        }
        if self.random.one_in(5) {
            entries.push(self.entry("./".into(), Kind::Directory));
        }
        for _ in 0..1 + self.random.below(9) {
            self.step(&mut entries);
        }
        let entries = entries
            .into_iter()
            .map(|entry| {
                let dialect = if self.random.one_in(4) {
                    dialects[self.random.below(5) as usize]
                } else {
                    usual
                };
                (able(dialect, &entry), entry)
            })
            .collect();
        let packing = [
            Packing::Plain,
            Packing::Gzip,
            Packing::GzipMembers,
            Packing::Zstd,
            Packing::ZstdFrames,
        ][self.random.below(5) as usize];
        (entries, packing)
    }

    fn merged_base(&mut self, entries: &mut Vec<Entry>) {
        for name in ["usr/", "usr/bin/", "usr/lib/"] {
            let entry = self.entry(name.into(), Kind::Directory);
            self.put(entries, entry);
        }
        let file = self.file();
        let entry = self.entry("usr/bin/sh".into(), file);
        self.put(entries, entry);
        for name in ["bin", "lib"] {
            let slash = if self.random.one_in(2) { "/" } else { "" };
            let target = format!("{slash}usr/{name}");
            let entry = self.entry(name.into(), Kind::Symlink(target));
            self.put(entries, entry);
        }
    }

    fn put(&mut self, entries: &mut Vec<Entry>, entry: Entry) {
        let is = match entry.kind {
            Kind::Directory => Is::Directory,
            Kind::Symlink(_) => Is::Symlink,
            _ => Is::Other,
        };
        let path = entry.name.trim_matches('/').to_owned();
        if is != Is::Directory && self.takes_listed(&path) {
            return;
        }
        if is == Is::Directory {
            self.listed.insert(path.clone());
        }
        if is != Is::Directory || self.known.get(&path) != Some(&Is::Directory) {
            self.forget(&path);
        }
        let mut above = path.as_str();
        while let Some((parent, _)) = above.rsplit_once('/') {
            self.known.entry(parent.to_owned()).or_insert(Is::Directory);
            above = parent;
        }
        self.known.insert(path, is);
        entries.push(entry);
    }

    /// Whether the path's going takes a listed directory along. Let through at times: containerd alone refuses it.
    fn takes_listed(&mut self, path: &str) -> bool {
        let below = format!("{path}/");
        let takes = self
            .listed
            .iter()
            .any(|listed| listed == path || listed.starts_with(&below));
        takes && !self.random.one_in(50)
    }

    fn forget(&mut self, path: &str) {
        let below = format!("{path}/");
        self.known
            .retain(|known, _| known != path && !known.starts_with(&below));
    }

    fn step(&mut self, entries: &mut Vec<Entry>) {
        let name = self.name();
        let kind = match self.random.below(100) {
            0..25 => self.file(),
            25..42 => Kind::Directory,
            42..56 => Kind::Symlink(self.target()),
            56..68 => match self.known_path(|is| is != Is::Directory) {
                Some(target) => {
                    let slash = if self.random.one_in(4) { "/" } else { "" };
                    Kind::HardLink(format!("{slash}{target}"))
                }
                None => self.file(),
            },
            68..82 => return self.whiteout(entries),
            82..87 => {
                let place = self.known_path(|is| is != Is::Other);
                let place = place.filter(|_| !self.random.one_in(8));
                let path = place.map_or(String::new(), |path| path + "/");
                let entry = self.entry(format!("{path}.wh..wh..opq"), Kind::File(Vec::new()));
                return entries.push(entry);
            }
            87..89 => Kind::Fifo,
            89..91 => Kind::Char(
                1 + self.random.below(20) as u32,
                self.random.below(600) as u32,
            ),
            91..92 => Kind::Block(1 + self.random.below(20) as u32, 3),
            92..97 => self.sparse(),
            97..98 => {
                let entry = self.entry("pax_global_header".into(), Kind::Global);
                return entries.push(entry);
            }
            _ => Kind::File(b"again".to_vec()),
        };
        let entry = self.entry(name, kind);
        self.put(entries, entry);
    }

    fn whiteout(&mut self, entries: &mut Vec<Entry>) {
        let path = match self.known_path(|_| true) {
            Some(path) if !self.random.one_in(6) => path,
            _ => self.name().trim_matches('/').to_owned(),
        };
        let nameless = matches!(path.rsplit('/').next(), None | Some("" | "." | ".."));
        if self.takes_listed(&path) || (nameless && !self.random.one_in(20)) {
            return;
        }
        self.forget(&path);
        let name = match path.rsplit_once('/') {
            Some((parent, name)) => format!("{parent}/.wh.{name}"),
            None => format!(".wh.{path}"),
        };
        let entry = self.entry(name, Kind::File(Vec::new()));
        entries.push(entry);
    }

    fn known_path(&mut self, wanted: impl Fn(Is) -> bool) -> Option<String> {
        let paths: Vec<&String> = self
            .known
            .iter()
            .filter(|(_, is)| wanted(**is))
            .map(|(path, _)| path)
            .collect();
        if paths.is_empty() {
            return None;
        }
        Some(paths[self.random.below(paths.len() as u64) as usize].clone())
    }

    /// Mostly in a directory that is there or behind a link; at times at something that is there.
    fn name(&mut self) -> String {
        let last = self.random.pick(NAMES);
        let name = match self.random.below(20) {
            0..11 => match self.known_path(|is| is != Is::Other) {
                Some(parent) => format!("{parent}/{last}"),
                None => last.to_owned(),
            },
            11..14 => last.to_owned(),
            14..17 => self.known_path(|_| true).unwrap_or_else(|| last.to_owned()),
            17..18 => format!(
                "{}/{}/{last}",
                self.random.pick(NAMES),
                self.random.pick(NAMES)
            ),
            18..19 => {
                let long = "long-name-of-a-directory-".repeat(1 + self.random.below(7) as usize);
                format!("{long}/{long}/{last}")
            }
            _ => {
                let prefix = self
                    .random
                    .pick(&["./", "/", "../", "a/../", "a/./", "c//"]);
                format!("{prefix}{last}")
            }
        };
        if self.random.one_in(12) {
            format!("./{name}")
        } else {
            name
        }
    }

    fn target(&mut self) -> String {
        let some = self.random.pick(NAMES).to_owned();
        let known = self.known_path(|_| true).unwrap_or_else(|| some.clone());
        match self.random.below(10) {
            0..3 => some,
            3..5 => known,
            5..7 => format!("/{known}"),
            7 => format!("../{known}"),
            8 => format!("{some}/../{known}"),
            _ => self
                .random
                .pick(&[".", "..", "/", "../..", "nowhere/at/all"])
                .to_owned(),
        }
    }

    fn file(&mut self) -> Kind {
        let size = match self.random.below(8) {
            0 => 0,
            1 => 512,
            2 => 1500,
            other => other * 7,
        };
        let byte = b'a' + self.random.below(26) as u8;
        Kind::File(vec![byte; size as usize])
    }

    fn sparse(&mut self) -> Kind {
        let mut pieces = Vec::new();
        let mut at = 0;
        for _ in 0..self.random.below(5) {
            at += self.random.below(3) * 4096 + self.random.below(10);
            let bytes = vec![b's'; 1 + self.random.below(600) as usize];
            let length = bytes.len() as u64;
            pieces.push((at, bytes));
            at += length;
        }
        let size = at + self.random.below(2) * 5000;
        let versions = [
            SparseVersion::ZeroZero,
            SparseVersion::ZeroOne,
            SparseVersion::OneZero,
        ];
        // Without a piece the old versions have an empty map, which means no map.
        let version = if pieces.is_empty() {
            2
        } else {
            self.random.below(3)
        };
        Kind::Sparse(pieces, size, versions[version as usize])
    }

    fn entry(&mut self, name: String, kind: Kind) -> Entry {
        let modes = [0o644, 0o755, 0o600, 0o4755, 0o2755, 0o1777, 0o700, 0, 0o777];
        let ids = [0, 0, 1, 1000, 65534, 3_000_000];
        let mtime = match self.random.below(4) {
            0 => (0, 0),
            1 => (1_000_000_000 + self.random.below(1000), 123_456_789),
            _ => (1_500_000_000 + self.random.below(100_000), 0),
        };
        let mut xattrs = Vec::new();
        if self.random.one_in(5) {
            xattrs.push(("user.note".to_owned(), b"made up".to_vec()));
        }
        if self.random.one_in(10) {
            xattrs.push(("user.empty".to_owned(), Vec::new()));
        }
        if self.random.one_in(12) && matches!(kind, Kind::File(_)) {
            let mut value = vec![0; 20];
            (value[0], value[3], value[5]) = (1, 2, 4);
            xattrs.push(("security.capability".to_owned(), value));
        }
        if self.random.one_in(15) {
            xattrs.push(("trusted.overlay.opaque".to_owned(), b"y".to_vec()));
        }
        Entry {
            name,
            kind,
            mode: modes[self.random.below(modes.len() as u64) as usize],
            uid: ids[self.random.below(ids.len() as u64) as usize],
            gid: ids[self.random.below(ids.len() as u64) as usize],
            mtime,
            xattrs,
        }
    }
}

/// The wanted dialect, or one that can hold the entry.
fn able(wanted: Dialect, entry: &Entry) -> Dialect {
    let link = match &entry.kind {
        Kind::Symlink(link) | Kind::HardLink(link) => link.len(),
        _ => 0,
    };
    let special = matches!(
        entry.kind,
        Kind::Char(..) | Kind::Block(..) | Kind::Fifo | Kind::Sparse(..) | Kind::Global
    );
    let long = entry.name.len() > 98 || link > 98;
    match wanted {
        Dialect::V7 if special || long => Dialect::Pax,
        Dialect::Ustar if entry.name.len() > 250 || link > 98 => Dialect::Gnu,
        Dialect::Gnu if matches!(entry.kind, Kind::Sparse(..)) => Dialect::Pax,
        other => other,
    }
}
