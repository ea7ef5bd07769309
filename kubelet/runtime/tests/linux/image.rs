//! An image out of this machine's own programs: an OCI archive with one layer.

use std::collections::BTreeSet;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use sha2::{Digest, Sha256};

pub const NAME: &str = "registry.test/tools:1";

const PROGRAMS: [&str; 36] = [
    "sh", "cat", "sleep", "ls", "id", "echo", "head", "stat", "touch", "chmod", "mkdir", "mount",
    "unshare", "env", "grep", "stty", "tail", "dd", "kill", "true", "false", "hostname",
    "readlink", "mknod", "seq", "wc", "pwd", "tr", "cut", "sed", "test", "ps", "setpriv", "umount",
    "chroot", "nsenter",
];

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn find(program: &str) -> Option<PathBuf> {
    ["/usr/bin", "/bin", "/usr/sbin", "/sbin"]
        .iter()
        .map(|dir| Path::new(dir).join(program))
        .find(|path| path.exists())
}

/// What `ldd` says a program loads.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().expect("ldd runs");
    String::from_utf8_lossy(&output.stdout)
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

fn layer() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut entry =
        |path: &str, kind: tar::EntryType, mode: u32, data: &[u8], link: Option<&str>| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_size(data.len() as u64);
            header.set_mtime(1_700_000_000);
            match link {
                Some(link) => builder.append_link(&mut header, path, link).unwrap(),
                None => builder
                    .append_data(&mut header, path, Cursor::new(data))
                    .unwrap(),
            }
        };
    for directory in [
        "bin/", "usr/", "usr/bin/", "lib/", "lib64/", "etc/", "proc/", "sys/", "dev/", "root/",
        "home/",
    ] {
        entry(directory, tar::EntryType::Directory, 0o755, &[], None);
    }
    entry("tmp/", tar::EntryType::Directory, 0o1777, &[], None);
    let passwd = "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/home:/bin/sh\n";
    let group = "root:x:0:\nalice:x:1000:\nstaff:x:50000:alice\n";
    entry(
        "etc/passwd",
        tar::EntryType::Regular,
        0o644,
        passwd.as_bytes(),
        None,
    );
    entry(
        "etc/group",
        tar::EntryType::Regular,
        0o644,
        group.as_bytes(),
        None,
    );
    entry(
        "bin/notexecutable",
        tar::EntryType::Regular,
        0o644,
        b"x",
        None,
    );
    entry(
        "bin/garbage",
        tar::EntryType::Regular,
        0o755,
        b"\x01\x02garbage",
        None,
    );
    let mut needed = BTreeSet::new();
    for program in PROGRAMS {
        let Some(path) = find(program) else { continue };
        needed.extend(libraries(&path));
        let mut bytes = Vec::new();
        std::fs::File::open(&path)
            .unwrap()
            .read_to_end(&mut bytes)
            .unwrap();
        entry(
            &format!("bin/{program}"),
            tar::EntryType::Regular,
            0o755,
            &bytes,
            None,
        );
    }
    for library in needed {
        let bytes = std::fs::read(&library).unwrap();
        let path = library.to_str().unwrap().trim_start_matches('/').to_owned();
        entry(&path, tar::EntryType::Regular, 0o755, &bytes, None);
    }
    builder.into_inner().unwrap()
}

/// Writes the archive.
pub fn write(path: &Path) {
    let layer = layer();
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Env": ["PATH=/usr/bin:/bin", "FROM_IMAGE=yes"], "Cmd": ["sh"], "Volumes": { "/home": {}, "/made/by/image": {} } },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", digest(&layer))] },
    })
    .to_string()
    .into_bytes();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": format!("sha256:{}", digest(&config)), "size": config.len(),
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": format!("sha256:{}", digest(&layer)), "size": layer.len(),
        }],
    })
    .to_string()
    .into_bytes();
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": format!("sha256:{}", digest(&manifest)), "size": manifest.len(),
            "annotations": { "io.containerd.image.name": NAME, "org.opencontainers.image.ref.name": NAME },
        }],
    })
    .to_string()
    .into_bytes();
    let mut archive = tar::Builder::new(std::fs::File::create(path).unwrap());
    let mut add = |name: String, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive
            .append_data(&mut header, name, Cursor::new(bytes))
            .unwrap();
    };
    add("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#);
    add("index.json".into(), &index);
    for blob in [&layer, &config, &manifest] {
        add(format!("blobs/sha256/{}", digest(blob)), blob);
    }
    archive.finish().unwrap();
}
