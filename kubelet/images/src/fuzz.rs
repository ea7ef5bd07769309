//! What must hold whatever a registry, an image or a hosts file says: for the fuzz targets in `fuzz/`, and for the cases
//! they found. Each function panics when its promise is broken.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::manifest::{Document, MAX_LAYERS, Platform};
use crate::reference::Reference;
use crate::unpack::{self, MAX_FUZZED_BYTES};

/// A manifest, an index, an image's config: no more layers than may be, every digest one, the choice of a platform one of
/// those offered; a config that was read and written again is read the same.
pub fn image_documents(data: &[u8]) {
    match Document::parse(data) {
        Ok(Document::Manifest(manifest)) => {
            assert!(manifest.layers.len() <= MAX_LAYERS);
            for descriptor in manifest.layers.iter().chain([&manifest.config]) {
                let (algorithm, hex) = descriptor
                    .digest
                    .split_once(':')
                    .expect("a digest has two parts");
                assert!(!algorithm.contains('/') && hex.bytes().all(|b| b.is_ascii_hexdigit()));
            }
        }
        Ok(Document::Index(manifests)) => {
            if let Some(chosen) = Platform::host().choose(&manifests) {
                assert!(manifests.contains(chosen));
            }
        }
        Err(error) => drop(error.to_string()),
    }
    if let Ok(config) = serde_json::from_slice::<crate::ImageConfiguration>(data) {
        let text = serde_json::to_vec(&config).expect("it can be written");
        let again: crate::ImageConfiguration =
            serde_json::from_slice(&text).expect("what is written is read");
        assert_eq!(
            serde_json::to_value(&again).expect("it can be written"),
            serde_json::to_value(&config).expect("it can be written")
        );
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(reference) = Reference::parse_normalized(text)
    {
        let written = reference.to_string();
        let again = Reference::parse_normalized(&written).expect("what is written is read");
        assert_eq!(again.to_string(), written);
        assert!(!reference.path().contains("..") && !reference.domain().contains('/'));
    }
}

/// A `hosts.toml`, for a registry in its first line: each host is one to ask, the registry's own comes last, and no file
/// of a certificate is looked for but where the file says.
pub fn hosts_file(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (registry, file) = text.split_once('\n').unwrap_or(("a.example:5000", text));
    if Reference::parse_normalized(&format!("{registry}/x")).is_err() {
        return;
    }
    crate::mirrors::fuzz(file, registry);
}

static RUNS: AtomicU64 = AtomicU64::new(0);

/// A place of its own, on a tmpfs, gone when it is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        let name = format!("gantry-fuzz-{}-{run}", std::process::id());
        let place = Path::new("/dev/shm").join(name);
        std::fs::create_dir(&place).expect("a tmpfs is mounted there");
        Self(place)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        host::remove_tree(&self.0).expect("what was unpacked can be removed");
    }
}

/// Two layers, one over the other: nothing appears or changes outside their directories, they hold no more files than
/// was counted, and no name in them is one that overlayfs would take for its own. Needs root.
pub fn unpack_layers(data: &[u8]) {
    let Some((&cut, data)) = data.split_first() else {
        return;
    };
    let middle = data.len() * usize::from(cut) / 256;
    let (base, top) = data.split_at(middle);
    let place = Scratch::new();
    let outer = place.0.join("outer");
    let canary = place.0.join("canary");
    std::fs::create_dir(&outer).expect("the place is empty");
    std::fs::write(&canary, b"as it was").expect("the place is empty");
    let mut below = Vec::new();
    for (index, part) in [base, top].into_iter().enumerate() {
        let directory = outer.join(index.to_string());
        std::fs::create_dir(&directory).expect("it is new");
        let archive = made_archive(part);
        assert!(archive.len() <= MAX_FUZZED_BYTES);
        let Ok(unpacked) = unpack::unpack(&archive[..], &directory, &below) else {
            break;
        };
        let usage = host::disk_usage(&directory).expect("it can be walked");
        // The directory itself is the store's.
        assert!(
            usage.inodes <= unpacked.inodes + 1,
            "{usage:?} {unpacked:?}"
        );
        below.insert(0, directory);
    }
    let mut names: Vec<_> = std::fs::read_dir(&place.0)
        .expect("it is there")
        .map(|entry| entry.expect("it can be read").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["canary", "outer"]);
    let inside = std::fs::read_dir(&outer).expect("it is there").count();
    assert!(inside <= 2, "something was written beside the layers");
    let said = std::fs::read(&canary).expect("it is there");
    assert_eq!(said, b"as it was", "something outside was written to");
}

/// An archive: the bytes as they are with the headers' sums set right, or written from a list of small instructions,
/// which reach further.
fn made_archive(data: &[u8]) -> Vec<u8> {
    match data.split_first() {
        Some((0..64, rest)) => with_sums(rest),
        Some((_, rest)) => instructed(rest),
        None => Vec::new(),
    }
}

const BLOCK: usize = 512;

fn with_sums(data: &[u8]) -> Vec<u8> {
    let mut archive = data[..data.len().min(MAX_FUZZED_BYTES)].to_vec();
    for block in archive.chunks_exact_mut(BLOCK) {
        if &block[257..262] == b"ustar" || block[156] == b'L' || block[156] == b'x' {
            set_sum(block);
        }
    }
    archive
}

fn set_sum(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Names, link texts and kinds are taken from short lists, so that they meet each other.
fn instructed(data: &[u8]) -> Vec<u8> {
    const PARTS: [&str; 12] = [
        "a",
        "b",
        "c",
        "..",
        ".",
        "/",
        ".wh.",
        ".wh.a",
        ".wh..wh..opq",
        ".wh..wh.",
        "a/b",
        "",
    ];
    let mut archive = Vec::new();
    for instruction in data.as_chunks::<6>().0 {
        if archive.len() + 4 * BLOCK > MAX_FUZZED_BYTES {
            break;
        }
        let [kind, one, two, three, link, size] = *instruction;
        let part = |byte: u8| PARTS[usize::from(byte) % PARTS.len()];
        let name = format!("{}/{}/{}", part(one), part(two), part(three));
        let name = name.trim_end_matches('/');
        let target = format!("{}/{}", part(link), part(link / 16));
        let mut block = [0; BLOCK];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[100..107]
            .copy_from_slice(format!("{:07o}", u32::from(size) << 4 & 0o7777).as_bytes());
        let mut body = Vec::new();
        let flag = [b'0', b'1', b'2', b'3', b'5', b'6', b'0', b'5', b'g'][usize::from(kind) % 9];
        if matches!(flag, b'1' | b'2') {
            block[157..157 + target.len()].copy_from_slice(target.as_bytes());
        }
        if flag == b'0' {
            body = vec![b'x'; usize::from(size) * 3];
        }
        block[124..135].copy_from_slice(format!("{:011o}", body.len()).as_bytes());
        block[156] = flag;
        block[257..265].copy_from_slice(b"ustar\x0000");
        block[329..336].copy_from_slice(b"0000000");
        block[337..344].copy_from_slice(b"0000000");
        set_sum(&mut block);
        archive.extend(block);
        body.resize(body.len().next_multiple_of(BLOCK), 0);
        archive.extend(body);
    }
    archive
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// Documents to begin with.
pub fn document_seeds() -> Vec<Vec<u8>> {
    let digest = format!("sha256:{}", "1".repeat(64));
    let manifest = format!(
        r#"{{"schemaVersion": 2, "config": {{"digest": "{digest}", "size": 1}}, "layers": [{{"mediaType": "m", "digest": "{digest}", "size": 2}}]}}"#
    );
    let index = format!(
        r#"{{"manifests": [{{"digest": "{digest}", "size": 1, "platform": {{"os": "linux", "architecture": "amd64", "variant": "v1"}}}}]}}"#
    );
    let config = format!(
        r#"{{"os": "linux", "architecture": "amd64", "config": {{"User": "1", "Env": ["A=b"], "Cmd": ["x"], "Volumes": {{"/v": {{}}}}}}, "rootfs": {{"type": "layers", "diff_ids": ["{digest}"]}}, "history": [{{"created": "2023-11-14T22:13:20Z"}}]}}"#
    );
    texts(&[
        &manifest,
        &index,
        &config,
        "docker.io/library/a:b",
        &format!("localhost:5000/x/y@{digest}"),
        "[::1]:5000/a",
    ])
}

/// Files to begin with.
pub fn hosts_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "",
        "a.example\nserver = \"https://b.example\"\n[host.\"http://c.example:5000\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        "127.0.0.1:5000\n[host.\"https://m\"]\nca = [\"a\", \"b\"]\nclient = [[\"c\", \"k\"]]\nskip_verify = true\noverride_path = true\ndial_timeout = \"1m\"\n[host.\"https://m\".header]\nx = [\"y\"]\n",
    ])
}

/// Archives to begin with.
pub fn unpack_seeds() -> Vec<Vec<u8>> {
    let instructions: Vec<u8> = (0u8..=255)
        .flat_map(|n| [n, n / 3, n / 5, n, n / 2, n])
        .collect();
    let mut seeds: Vec<Vec<u8>> = [0, 10, 128, 255]
        .map(|cut| [&[cut, 255], instructions.as_slice()].concat())
        .to_vec();
    seeds.push([&[255, 0], instructed(&instructions[..240]).as_slice()].concat());
    let mut sparse = tar::Builder::new(vec![255, 0]);
    let records: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"s"),
        ("SCHILY.xattr.user.a", b"b"),
    ];
    let mut header = tar::Header::new_gnu();
    header.set_size(512);
    let body = [b"1\n0\n3\n".as_slice(), &[b'a'; 505]].concat();
    let written = sparse
        .append_pax_extensions(records)
        .and_then(|()| sparse.append_data(&mut header, "x".repeat(120), &body[..]))
        .and_then(|()| sparse.into_inner());
    seeds.push(written.expect("memory can be written to"));
    seeds
}

#[cfg(test)]
mod tests {
    #[test]
    fn promises_hold() {
        for case in super::document_seeds() {
            super::image_documents(&case);
        }
        for case in super::hosts_seeds() {
            super::hosts_file(&case);
        }
        if !rustix::process::geteuid().is_root() {
            return;
        }
        for mut case in super::unpack_seeds() {
            super::unpack_layers(&case);
            case[1] = !case[1];
            super::unpack_layers(&case);
        }
    }
}
