//! Writing tar archives in every dialect, and packing them; by hand, since libraries refuse to write what is odd.

use std::io::Write as _;

/// The dialect an entry is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    V7,
    Ustar,
    Gnu,
    Pax,
}

#[derive(Clone, Debug)]
pub enum Kind {
    Directory,
    File(Vec<u8>),
    /// Pieces with their offsets, and the whole size.
    Sparse(Vec<(u64, Vec<u8>)>, u64, SparseVersion),
    Symlink(String),
    HardLink(String),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
    Global,
}

#[derive(Clone, Copy, Debug)]
pub enum SparseVersion {
    ZeroZero,
    ZeroOne,
    OneZero,
}

#[derive(Clone, Debug)]
pub struct Entry {
    pub name: String,
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (u64, u32),
    pub xattrs: Vec<(String, Vec<u8>)>,
}

const BLOCK: usize = 512;

pub fn write(entries: &[(Dialect, Entry)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (dialect, entry) in entries {
        write_entry(&mut out, *dialect, entry);
    }
    out.extend([0; 2 * BLOCK]);
    out
}

fn write_entry(out: &mut Vec<u8>, dialect: Dialect, entry: &Entry) {
    let (flag, link, device) = match &entry.kind {
        Kind::Directory => (b'5', "", (0, 0)),
        Kind::File(_) | Kind::Sparse(..) => (b'0', "", (0, 0)),
        Kind::HardLink(target) => (b'1', target.as_str(), (0, 0)),
        Kind::Symlink(target) => (b'2', target.as_str(), (0, 0)),
        Kind::Char(major, minor) => (b'3', "", (*major, *minor)),
        Kind::Block(major, minor) => (b'4', "", (*major, *minor)),
        Kind::Fifo => (b'6', "", (0, 0)),
        Kind::Global => (b'g', "", (0, 0)),
    };
    let mut records: Vec<(String, Vec<u8>)> = Vec::new();
    let mut body = match &entry.kind {
        Kind::File(bytes) => bytes.clone(),
        Kind::Sparse(pieces, size, version) => sparse(pieces, *size, *version, entry, &mut records),
        Kind::Global => record("comment", b"made up"),
        _ => Vec::new(),
    };
    if dialect == Dialect::Pax {
        for (key, value) in &entry.xattrs {
            records.push((format!("SCHILY.xattr.{key}"), value.clone()));
        }
        if entry.mtime.1 != 0 {
            let time = format!("{}.{:09}", entry.mtime.0, entry.mtime.1);
            records.push(("mtime".into(), time.into_bytes()));
        }
        if entry.name.len() > 100 {
            records.push(("path".into(), entry.name.clone().into_bytes()));
        }
        if link.len() > 100 {
            records.push(("linkpath".into(), link.as_bytes().to_vec()));
        }
        for (key, id) in [("uid", entry.uid), ("gid", entry.gid)] {
            if id >= 1 << 21 {
                records.push((key.into(), id.to_string().into_bytes()));
            }
        }
    }
    if dialect == Dialect::Gnu {
        for (flag, text) in [(b'L', entry.name.as_str()), (b'K', link)] {
            if text.len() > 100 {
                let bytes = [text.as_bytes(), b"\0"].concat();
                let mut block = header(Dialect::Gnu, flag, b"././@LongLink", "", bytes.len());
                finish(&mut block);
                out.extend(block);
                out.extend(padded(bytes));
            }
        }
    }
    if !records.is_empty() {
        let bytes: Vec<u8> = records
            .iter()
            .flat_map(|(key, value)| record(key, value))
            .collect();
        let mut block = header(Dialect::Ustar, b'x', b"PaxHeaders/x", "", bytes.len());
        finish(&mut block);
        out.extend(block);
        out.extend(padded(bytes));
    }
    // An old archive tells a directory by its slash alone.
    let flag = match (dialect, flag) {
        (Dialect::V7, b'5' | b'0') if entry.mode & 1 == 0 || flag == b'0' => 0,
        (_, flag) => flag,
    };
    let mut name = entry.name.clone().into_bytes();
    if matches!(entry.kind, Kind::Directory) && !name.ends_with(b"/") && flag == 0 {
        name.push(b'/');
    }
    let mut block = header(dialect, flag, &name, link, body.len());
    number(&mut block[100..108], u64::from(entry.mode), dialect);
    let small = |id: u32| {
        if dialect == Dialect::Gnu {
            id
        } else {
            id.min(0o7_777_777)
        }
    };
    number(&mut block[108..116], small(entry.uid).into(), dialect);
    number(&mut block[116..124], small(entry.gid).into(), dialect);
    number(&mut block[136..148], entry.mtime.0, dialect);
    if dialect != Dialect::V7 {
        number(&mut block[329..337], device.0.into(), dialect);
        number(&mut block[337..345], device.1.into(), dialect);
    }
    finish(&mut block);
    out.extend(block);
    body = padded(body);
    out.extend(body);
}

fn header(dialect: Dialect, flag: u8, name: &[u8], link: &str, size: usize) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut short = name;
    if dialect == Dialect::Ustar && name.len() > 100 {
        // The name is cut at a slash: what is before it has a field of its own.
        if let Some(cut) = name[..name.len() - 1]
            .iter()
            .enumerate()
            .position(|(at, &b)| b == b'/' && at <= 155 && name.len() - at - 1 <= 100)
        {
            block[345..345 + cut].copy_from_slice(&name[..cut]);
            short = &name[cut + 1..];
        }
    }
    let length = short.len().min(100);
    block[..length].copy_from_slice(&short[..length]);
    let length = link.len().min(100);
    block[157..157 + length].copy_from_slice(&link.as_bytes()[..length]);
    number(&mut block[100..108], 0o644, dialect);
    number(&mut block[124..136], size as u64, dialect);
    block[156] = flag;
    match dialect {
        Dialect::V7 => {}
        Dialect::Ustar | Dialect::Pax => block[257..265].copy_from_slice(b"ustar\x0000"),
        Dialect::Gnu => block[257..265].copy_from_slice(b"ustar  \0"),
    }
    block
}

fn number(field: &mut [u8], value: u64, dialect: Dialect) {
    let digits = field.len() - 1;
    let text = format!("{value:0digits$o}");
    if text.len() <= digits {
        field[..digits].copy_from_slice(text.as_bytes());
    } else if dialect == Dialect::Gnu {
        let bytes = value.to_be_bytes();
        let start = field.len() - 8;
        field[start..].copy_from_slice(&bytes);
        field[0] |= 0x80;
    }
}

fn finish(block: &mut [u8; BLOCK]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

fn sparse(
    pieces: &[(u64, Vec<u8>)],
    size: u64,
    version: SparseVersion,
    entry: &Entry,
    records: &mut Vec<(String, Vec<u8>)>,
) -> Vec<u8> {
    let mut add = |key: &str, value: String| {
        records.push((format!("GNU.sparse.{key}"), value.into_bytes()));
    };
    let mut body = Vec::new();
    match version {
        SparseVersion::ZeroZero => {
            add("size", size.to_string());
            add("numblocks", pieces.len().to_string());
            for (offset, bytes) in pieces {
                add("offset", offset.to_string());
                add("numbytes", bytes.len().to_string());
            }
        }
        SparseVersion::ZeroOne => {
            add("size", size.to_string());
            add("numblocks", pieces.len().to_string());
            let map: Vec<String> = pieces
                .iter()
                .map(|(offset, bytes)| format!("{offset},{}", bytes.len()))
                .collect();
            add("map", map.join(","));
            add("name", entry.name.clone());
        }
        SparseVersion::OneZero => {
            add("major", "1".into());
            add("minor", "0".into());
            add("name", entry.name.clone());
            add("realsize", size.to_string());
            let mut map = format!("{}\n", pieces.len());
            for (offset, bytes) in pieces {
                map += &format!("{offset}\n{}\n", bytes.len());
            }
            body = padded(map.into_bytes());
        }
    }
    body.extend(pieces.iter().flat_map(|(_, bytes)| bytes));
    body
}

/// How an archive is packed.
#[derive(Clone, Copy, Debug)]
pub enum Packing {
    Plain,
    Gzip,
    /// Two members, as estargz has many.
    GzipMembers,
    Zstd,
    /// Begins with a frame to skip and has several, as zstd:chunked.
    ZstdFrames,
}

pub fn pack(plain: &[u8], packing: Packing) -> Vec<u8> {
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("memory takes all");
        encoder.finish().expect("memory takes all")
    };
    let half = plain.len() / 2;
    match packing {
        Packing::Plain => plain.to_vec(),
        Packing::Gzip => gzip(plain),
        Packing::GzipMembers => [gzip(&plain[..half]), gzip(&plain[half..])].concat(),
        Packing::Zstd => zstd_frame(plain),
        Packing::ZstdFrames => {
            let skip = [0x5a, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, b's', b'k', b'i', b'p'];
            [
                &skip[..],
                &zstd_frame(&plain[..half]),
                &skip,
                &zstd_frame(&plain[half..]),
            ]
            .concat()
        }
    }
}

/// A frame of blocks that are stored, or repeat one byte.
fn zstd_frame(plain: &[u8]) -> Vec<u8> {
    let mut out = vec![0x28, 0xb5, 0x2f, 0xfd, 0xe0];
    out.extend((plain.len() as u64).to_le_bytes());
    let chunks: Vec<&[u8]> = plain.chunks(1 << 10).collect();
    if chunks.is_empty() {
        out.extend([1, 0, 0]);
    }
    for (index, chunk) in chunks.iter().enumerate() {
        let last = u32::from(index + 1 == chunks.len());
        let repeats = chunk.iter().all(|&b| b == chunk[0]);
        let block = last | u32::from(repeats) << 1 | (chunk.len() as u32) << 3;
        out.extend(&block.to_le_bytes()[..3]);
        if repeats {
            out.push(chunk[0]);
        } else {
            out.extend(*chunk);
        }
    }
    out
}
