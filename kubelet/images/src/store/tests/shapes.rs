//! Images in the shapes that the world builds them in, each pulled from a registry and looked at.

use super::*;

const OCI: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// An entry of a layer: its path; what it is is told by the first byte of the text.
type Item<'a> = (&'a str, &'a str);

/// `>` a symlink, `=` a hard link, `/` a directory, everything else a file's content.
fn plain(items: &[Item]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, text) in items {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_size(0);
        let (kind, rest) = text.split_at(text.len().min(1));
        let link = match kind {
            ">" => tar::EntryType::Symlink,
            "=" => tar::EntryType::Link,
            "/" => tar::EntryType::Directory,
            _ => {
                header.set_size(text.len() as u64);
                let data = text.as_bytes();
                builder.append_data(&mut header, name, data).unwrap();
                continue;
            }
        };
        header.set_entry_type(link);
        if link == tar::EntryType::Directory {
            builder.append_data(&mut header, name, &b""[..]).unwrap();
        } else {
            builder.append_link(&mut header, name, rest).unwrap();
        }
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

const SKIPPED: &[u8] = &[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4];

struct Layer {
    blob: Vec<u8>,
    media_type: String,
    diff_id: String,
}

fn packed(plain: &[u8], blob: Vec<u8>, media_type: &str) -> Layer {
    Layer {
        diff_id: crate::digest::sha256(plain),
        media_type: media_type.to_owned(),
        blob,
    }
}

fn docker(items: &[Item]) -> Layer {
    let plain = plain(items);
    packed(&plain, gzip(&plain), DOCKER)
}

/// A registry being filled with one repository, `x`.
#[derive(Default)]
struct Shelf {
    fake: Fake,
}

impl Shelf {
    fn put(&mut self, kind: &str, bytes: Vec<u8>) -> String {
        let digest = crate::digest::sha256(&bytes);
        self.fake
            .documents
            .insert(format!("x/{kind}/{digest}"), bytes.into());
        digest
    }

    fn json(&mut self, kind: &str, value: &serde_json::Value) -> serde_json::Value {
        let bytes = serde_json::to_vec(value).unwrap();
        let size = bytes.len();
        let media_type = value["mediaType"].as_str().unwrap_or("m").to_owned();
        serde_json::json!({"mediaType": media_type, "digest": self.put(kind, bytes), "size": size})
    }

    /// A manifest with its config and layers; answers its descriptor.
    fn image(
        &mut self,
        layers: &[Layer],
        change: impl Fn(&mut serde_json::Value),
    ) -> serde_json::Value {
        let diff_ids: Vec<&String> = layers.iter().map(|layer| &layer.diff_id).collect();
        let host = crate::manifest::Platform::host();
        let mut config = serde_json::json!({
            "os": "linux", "architecture": host.architecture, "config": {"Cmd": ["/run"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        change(&mut config);
        let config = self.json("blobs", &config);
        let descriptors: Vec<_> = layers
            .iter()
            .map(|layer| {
                let digest = self.put("blobs", layer.blob.clone());
                serde_json::json!({"mediaType": layer.media_type, "digest": digest, "size": layer.blob.len()})
            })
            .collect();
        self.json(
            "manifests",
            &serde_json::json!({
                "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": config, "layers": descriptors,
            }),
        )
    }

    fn index(&mut self, manifests: &[serde_json::Value]) -> serde_json::Value {
        self.json("manifests", &serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests,
        }))
    }

    fn tag(&mut self, tag: &str, descriptor: &serde_json::Value) {
        let digest = descriptor["digest"].as_str().unwrap();
        let bytes = self.fake.documents[&format!("x/manifests/{digest}")].clone();
        self.fake
            .documents
            .insert(format!("x/manifests/{tag}"), bytes);
    }
}

fn for_host(mut descriptor: serde_json::Value, variant: Option<&str>) -> serde_json::Value {
    let host = crate::manifest::Platform::host();
    descriptor["platform"] = serde_json::json!({"os": "linux", "architecture": host.architecture});
    if let Some(variant) = variant {
        descriptor["platform"]["variant"] = variant.into();
    }
    descriptor
}

fn for_other(mut descriptor: serde_json::Value, os: &str) -> serde_json::Value {
    descriptor["platform"] = serde_json::json!({"os": os, "architecture": "s390x"});
    descriptor
}

fn attestation(mut descriptor: serde_json::Value, of: &serde_json::Value) -> serde_json::Value {
    descriptor["platform"] = serde_json::json!({"os": "unknown", "architecture": "unknown"});
    descriptor["annotations"] = serde_json::json!({
        "vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": of["digest"],
    });
    descriptor
}

/// A file of one GiB that is all hole but for its ends, as GNU tar writes it.
fn sparse_gigabyte() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let size = 1u64 << 30;
    let records: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"large"),
        ("GNU.sparse.realsize", b"1073741824"),
    ];
    builder.append_pax_extensions(records).unwrap();
    let map = format!("2\n0\n3\n{}\n3\n", size - 3);
    let mut body = map.into_bytes();
    body.resize(512, 0);
    body.extend(b"oneend");
    let mut header = tar::Header::new_ustar();
    header.set_size(body.len() as u64);
    header.set_mode(0o644);
    header.set_path("GNUSparseFile.0/large").unwrap();
    header.set_cksum();
    builder.append(&header, &body[..]).unwrap();
    builder.into_inner().unwrap()
}

/// Members of their own for each file, and one with nothing at the end.
fn estargz(items: &[Item]) -> Layer {
    let whole = plain(items);
    let cut = whole.len() / 2;
    let blob = [gzip(&whole[..cut]), gzip(&whole[cut..]), gzip(b"")].concat();
    packed(&whole, blob, &format!("{OCI}+gzip"))
}

/// Every case: what it is called, and what of it must be there: path and content, or `-` for what must not.
#[expect(clippy::too_many_lines, reason = "a table")]
fn fill(shelf: &mut Shelf) -> Vec<(&'static str, Vec<(&'static str, &'static str)>)> {
    let nothing = |_: &mut serde_json::Value| {};
    let base: &[Item] = &[
        ("usr/", "/"),
        ("usr/bin/", "/"),
        ("usr/bin/sh", "shell"),
        ("bin", ">usr/bin"),
        ("etc/", "/"),
        ("etc/conf", "old"),
    ];
    let mut cases = Vec::new();
    let mut add = |shelf: &mut Shelf, name: &'static str, top: &serde_json::Value, files| {
        shelf.tag(name, top);
        cases.push((name, files));
    };

    let layers = [docker(base), docker(&[("bin/extra", "tool")])];
    let top = shelf.image(&layers, nothing);
    add(
        shelf,
        "usr-merged",
        &top,
        vec![("usr/bin/sh", "shell"), ("usr/bin/extra", "tool")],
    );
    let layers = [
        docker(base),
        docker(&[("bin/busybox", "b"), ("bin/.wh.sh", "")]),
    ];
    let top = shelf.image(&layers, nothing);
    add(
        shelf,
        "usr-merged-whiteout",
        &top,
        vec![("usr/bin/busybox", "b"), ("usr/bin/sh", "-")],
    );
    let layers = [
        docker(&[("./etc/", "/"), ("./etc/passwd", "root")]),
        docker(&[("./app", "go")]),
    ];
    let top = shelf.image(&layers, nothing);
    add(
        shelf,
        "distroless",
        &top,
        vec![("etc/passwd", "root"), ("app", "go")],
    );
    let top = shelf.image(&[docker(&[("app", "static")])], nothing);
    add(shelf, "scratch", &top, vec![("app", "static")]);
    let top = shelf.image(&[], nothing);
    add(shelf, "no-layers", &top, vec![]);
    let top = shelf.image(&[], |config| {
        config["rootfs"]["diff_ids"] = serde_json::Value::Null;
        config["config"] = serde_json::Value::Null;
        config["history"] = serde_json::Value::Null;
    });
    add(shelf, "nulls", &top, vec![]);

    let own = shelf.image(&[docker(&[("for", "host")])], nothing);
    let other = shelf.image(&[docker(&[("for", "other")])], nothing);
    let top = shelf.index(&[
        for_other(other.clone(), "linux"),
        for_host(own.clone(), None),
    ]);
    add(shelf, "multi-arch", &top, vec![("for", "host")]);
    let top = shelf.json("manifests", &serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.list.v2+json",
        "manifests": [for_other(other.clone(), "windows"), for_host(own.clone(), None)],
    }));
    add(shelf, "docker-list", &top, vec![("for", "host")]);
    let top = shelf.index(&[
        attestation(other.clone(), &own),
        for_host(own.clone(), None),
    ]);
    add(shelf, "attestations", &top, vec![("for", "host")]);
    if cfg!(target_arch = "x86_64") {
        let top = shelf.index(&[
            for_host(other.clone(), Some("v3")),
            for_host(own.clone(), None),
        ]);
        add(shelf, "variants", &top, vec![("for", "host")]);
    }
    // Indexes of indexes, by the platform or without a word of it.
    let inner = shelf.index(&[
        for_other(other.clone(), "linux"),
        for_host(own.clone(), None),
    ]);
    let top = shelf.index(&[
        for_other(other.clone(), "linux"),
        for_host(inner.clone(), None),
    ]);
    add(shelf, "nested", &top, vec![("for", "host")]);
    let middle = shelf.index(std::slice::from_ref(&inner));
    let top = shelf.index(std::slice::from_ref(&middle));
    add(shelf, "nested-silent", &top, vec![("for", "host")]);
    // Built elsewhere, for nothing but what it holds.
    let foreign = |config: &mut serde_json::Value| config["architecture"] = "s390x".into();
    let data = shelf.image(&[docker(&[("model", "weights")])], foreign);
    add(shelf, "other-machine", &data, vec![("model", "weights")]);
    let top = shelf.index(&[for_host(data, None)]);
    add(shelf, "said-by-the-index", &top, vec![("model", "weights")]);
    // A registry may hold more of an index than there is.
    let gone = serde_json::json!({"mediaType": "m", "digest": format!("sha256:{}", "1".repeat(64)), "size": 7});
    let top = shelf.index(&[for_other(gone, "linux"), for_host(own, None)]);
    add(shelf, "sparse-index", &top, vec![("for", "host")]);

    let whole = plain(&[("f", "plain")]);
    let top = shelf.image(&[packed(&whole, whole.clone(), OCI)], nothing);
    add(shelf, "oci-plain", &top, vec![("f", "plain")]);
    let whole = plain(&[("f", "zstd")]);
    let top = shelf.image(
        &[packed(&whole, zstd(&whole), &format!("{OCI}+zstd"))],
        nothing,
    );
    add(shelf, "oci-zstd", &top, vec![("f", "zstd")]);
    let cut = whole.len() / 2;
    let chunked = [zstd(&whole[..cut]), zstd(&whole[cut..]), SKIPPED.to_vec()].concat();
    let top = shelf.image(&[packed(&whole, chunked, &format!("{OCI}+zstd"))], nothing);
    add(shelf, "zstd-chunked", &top, vec![("f", "zstd")]);
    let skipping = [SKIPPED, &zstd(&whole)].concat();
    let top = shelf.image(&[packed(&whole, skipping, &format!("{OCI}+zstd"))], nothing);
    add(shelf, "zstd-skippable", &top, vec![("f", "zstd")]);
    let top = shelf.image(
        &[estargz(&[("f", "star"), ("stargz.index.json", "{}")])],
        nothing,
    );
    add(shelf, "estargz", &top, vec![("f", "star")]);
    // What a layer is called does not matter.
    let whole = plain(&[("f", "lies")]);
    let top = shelf.image(&[packed(&whole, zstd(&whole), DOCKER)], nothing);
    add(shelf, "wrong-media-type", &top, vec![("f", "lies")]);
    let whole = plain(&[("f", "foreign")]);
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let top = shelf.image(&[packed(&whole, gzip(&whole), foreign)], nothing);
    add(shelf, "foreign-layers", &top, vec![("f", "foreign")]);

    let hundred: Vec<Layer> = (0..100)
        .map(|n| docker(&[("n", &format!("{n}")), (&format!("f{n}"), "x")]))
        .collect();
    let top = shelf.image(&hundred, nothing);
    add(
        shelf,
        "hundred-layers",
        &top,
        vec![("n", "99"), ("f0", "x"), ("f57", "x")],
    );
    let whole = sparse_gigabyte();
    let top = shelf.image(&[packed(&whole, gzip(&whole), DOCKER)], nothing);
    add(
        shelf,
        "sparse-gigabyte",
        &top,
        vec![("large", "*1073741824")],
    );
    let same = || docker(&[("f", "same")]);
    let top = shelf.image(&[same(), docker(&[(".wh.f", "")]), same()], nothing);
    add(shelf, "same-layer-twice", &top, vec![("f", "same")]);
    let top = shelf.image(&[docker(&[("f", "x")]), docker(&[])], nothing);
    add(shelf, "empty-layer", &top, vec![("f", "x")]);
    let top = shelf.image(
        &[packed(b"", Vec::new(), OCI), docker(&[("f", "x")])],
        nothing,
    );
    add(shelf, "layer-of-no-bytes", &top, vec![("f", "x")]);
    let layers = [
        docker(&[("d/a", "a"), ("d/b", "b"), ("e/c", "c")]),
        docker(&[("d/.wh..wh..opq", ""), ("d/n", "n"), ("e/.wh.c", "")]),
    ];
    let top = shelf.image(&layers, nothing);
    add(
        shelf,
        "whiteouts",
        &top,
        vec![("d/a", "-"), ("d/n", "n"), ("e/c", "-")],
    );
    let layers = [docker(&[("a", "linked")]), docker(&[("b", "=a")])];
    let top = shelf.image(&layers, nothing);
    add(
        shelf,
        "link-to-a-lower-layer",
        &top,
        vec![("a", "linked"), ("b", "linked")],
    );
    let layers = [
        docker(base),
        docker(&[("etc", "no directory")]),
        docker(&[("etc/", "/"), ("etc/n", "n")]),
    ];
    let top = shelf.image(&layers, nothing);
    add(
        shelf,
        "types-replaced",
        &top,
        vec![("etc/conf", "-"), ("etc/n", "n")],
    );
    cases
}

#[tokio::test(flavor = "multi_thread")]
async fn every_shape_is_pulled() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let mut shelf = Shelf::default();
    let cases = fill(&mut shelf);
    assert!(cases.len() >= 25, "{}", cases.len());
    let fake = start(shelf.fake).await;
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    for (name, files) in cases {
        let image = store.pull(&format!("{}/x:{name}", fake.address), &[]).await;
        let image = image.unwrap_or_else(|error| panic!("{name}: {error}"));
        let layers = store.hold(&image.id, name).await.unwrap();
        let lines = crate::unpack::tests::recorded::merged_shallow(&layers);
        for (path, content) in files {
            let found = lines.get(path);
            let right = match content {
                "-" => found.is_none(),
                text if text.starts_with('*') => {
                    found.is_some_and(|at| format!("*{}", at.metadata().unwrap().len()) == text)
                }
                text => found.is_some_and(|at| std::fs::read(at).unwrap() == text.as_bytes()),
            };
            assert!(
                right,
                "{name}: {path} should be {content:?}, is at {found:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_image_is_refused_by_name() {
    let mut shelf = Shelf::default();
    let nothing = |_: &mut serde_json::Value| {};
    let image = shelf.image(&[docker(&[("f", "x")])], nothing);
    let mut nested = image.clone();
    for _ in 0..=crate::manifest::MAX_INDEXES {
        nested = shelf.index(&[for_host(nested, None)]);
    }
    shelf.tag("nested", &nested);
    let elsewhere = shelf.image(&[docker(&[("f", "x")])], |config| {
        config["architecture"] = "s390x".into();
    });
    let silent = shelf.index(&[elsewhere]);
    shelf.tag("silent", &silent);
    let alone = shelf.image(&[docker(&[("f", "x")])], |config| {
        config["os"] = "windows".into();
    });
    shelf.tag("windows-alone", &alone);
    let windows = shelf.index(&[for_other(image, "windows")]);
    shelf.tag("windows", &windows);
    let chart = shelf.image(&[docker(&[("Chart.yaml", "x")])], |config| {
        *config = serde_json::json!({"name": "chart", "version": "1.0.0"});
    });
    shelf.tag("chart", &chart);
    let old = shelf.json(
        "manifests",
        &serde_json::json!({"schemaVersion": 1, "name": "x", "fsLayers": []}),
    );
    shelf.tag("schema1", &old);
    let fake = start(shelf.fake).await;
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    for (tag, expect) in [
        ("nested", "leads through more than 4 indexes"),
        ("silent", "no match for platform"),
        ("windows-alone", "no match for platform"),
        ("windows", "no match for platform"),
        ("chart", "mismatched image rootfs and manifest layers"),
        ("schema1", "no longer supported"),
    ] {
        let error = store
            .pull(&format!("{}/x:{tag}", fake.address), &[])
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains(expect), "{tag}: {error}");
    }
}
