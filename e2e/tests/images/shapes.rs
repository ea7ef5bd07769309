//! The table: images in the shapes that the world builds them in, and what becomes of each.

use e2e::layers::archive::{Dialect, Entry, Kind, Packing, SparseVersion, pack, write};
use e2e::registry::{Registry, digest};
use serde_json::{Value, json};

const OCI: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const REPOSITORY: &str = "x";

pub enum Expect {
    /// The container ends well and its log holds this.
    Says(&'static str),
    /// One of these reasons, and a message that holds this.
    Refused(&'static [&'static str], &'static str),
}

pub struct Shape {
    pub name: &'static str,
    pub command: Option<Vec<String>>,
    pub expect: Expect,
}

/// A file of a layer, in the dialect it is written in.
type Item = (Dialect, Entry);

fn item(name: &str, kind: Kind, mode: u32) -> Item {
    let entry = Entry {
        name: name.to_owned(),
        kind,
        mode,
        uid: 0,
        gid: 0,
        mtime: (1_700_000_000, 0),
        xattrs: Vec::new(),
    };
    (Dialect::Gnu, entry)
}

fn dir(name: &str) -> Item {
    item(name, Kind::Directory, 0o755)
}

fn file(name: &str, text: &str) -> Item {
    item(name, Kind::File(text.as_bytes().to_vec()), 0o755)
}

fn link(name: &str, target: &str) -> Item {
    item(name, Kind::Symlink(target.to_owned()), 0o777)
}

struct Layer {
    blob: Vec<u8>,
    media_type: String,
    diff_id: String,
}

fn packed(items: &[Item], packing: Packing, media_type: &str) -> Layer {
    let plain = write(items);
    Layer {
        diff_id: digest(&plain),
        media_type: media_type.to_owned(),
        blob: pack(&plain, packing),
    }
}

fn layer(items: &[Item]) -> Layer {
    packed(items, Packing::Gzip, DOCKER)
}

/// A manifest with its config and layers in the registry; answers its descriptor.
fn image(registry: &Registry, layers: &[&Layer], config: Value) -> Value {
    let diff_ids: Vec<&String> = layers.iter().map(|layer| &layer.diff_id).collect();
    let whole = json!({
        "os": "linux", "architecture": "amd64", "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    image_of(registry, layers, &whole)
}

fn image_of(registry: &Registry, layers: &[&Layer], config: &Value) -> Value {
    let config = registry.put_json(REPOSITORY, "blobs", config);
    let descriptors: Vec<Value> = layers
        .iter()
        .map(|layer| {
            let digest = registry.put(REPOSITORY, "blobs", &layer.blob);
            json!({"mediaType": layer.media_type, "digest": digest, "size": layer.blob.len()})
        })
        .collect();
    let manifest =
        json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": descriptors});
    registry.put_json(REPOSITORY, "manifests", &manifest)
}

fn index(registry: &Registry, media_type: &str, manifests: &[Value]) -> Value {
    let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests});
    registry.put_json(REPOSITORY, "manifests", &index)
}

fn platform(mut descriptor: Value, os: &str, architecture: &str) -> Value {
    descriptor["platform"] = json!({"os": os, "architecture": architecture});
    descriptor
}

fn shell(script: &str) -> Option<Vec<String>> {
    Some(
        ["/bin/busybox", "sh", "-c", script]
            .map(str::to_owned)
            .to_vec(),
    )
}

const PULLS_NOT: &[&str] = &["ErrImagePull", "ImagePullBackOff"];
const STARTS_NOT: &[&str] = &["StartError", "RunContainerError", "CreateContainerError"];

struct Table<'a> {
    registry: &'a Registry,
    shapes: Vec<Shape>,
}

impl Table<'_> {
    fn add(
        &mut self,
        name: &'static str,
        top: &Value,
        command: Option<Vec<String>>,
        expect: Expect,
    ) {
        self.registry.tag(REPOSITORY, name, top);
        self.shapes.push(Shape {
            name,
            command,
            expect,
        });
    }

    /// Runs a script that says `right` where all is as it should be.
    fn runs(&mut self, name: &'static str, layers: &[&Layer], script: &str) {
        let top = image(self.registry, layers, json!({}));
        let script = format!("{script} && echo right");
        self.add(name, &top, shell(&script), Expect::Says("right"));
    }
}

/// Fills the registry; answers what to run. `long`: what takes minutes, too.
pub fn all(registry: &Registry, busybox: &[u8], long: bool) -> Vec<Shape> {
    let mut table = Table {
        registry,
        shapes: Vec::new(),
    };
    let program = |name: &str| item(name, Kind::File(busybox.to_vec()), 0o755);
    let base = layer(&[
        dir("bin/"),
        program("bin/busybox"),
        link("bin/sh", "busybox"),
        link("bin/cat", "busybox"),
    ]);
    bases(&mut table, &program);
    lists(&mut table, &base);
    packings(&mut table, &base);
    layers_over_layers(&mut table, &base);
    refused(&mut table, &base);
    if long {
        let noise: Vec<u8> = (0u64..1 << 27)
            .flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
            .collect();
        let large = [item("large", Kind::File(noise), 0o644)];
        let large = packed(&large, Packing::Plain, OCI);
        table.runs(
            "gigabyte",
            &[&base, &large],
            "[ $(/bin/busybox stat -c %s /large) = 1073741824 ]",
        );
    }
    table.shapes
}

fn bases(table: &mut Table<'_>, program: &impl Fn(&str) -> Item) {
    let registry = table.registry;
    let merged = layer(&[
        dir("usr/"),
        dir("usr/bin/"),
        program("usr/bin/busybox"),
        link("usr/bin/sh", "busybox"),
        file("usr/bin/old", "old"),
        link("bin", "usr/bin"),
        link("sbin", "/usr/bin"),
    ]);
    let top = layer(&[file("bin/extra", "#!/bin/sh\necho extra\n")]);
    table.runs(
        "usr-merged",
        &[&merged, &top],
        "[ $(/bin/extra) = extra ] && [ -L /bin ] && [ -x /sbin/sh ]",
    );
    let top = layer(&[file("sbin/.wh.old", ""), file("bin/new", "new")]);
    table.runs(
        "usr-merged-whiteout",
        &[&merged, &top],
        "[ ! -e /usr/bin/old ] && [ -e /usr/bin/new ] && [ -L /bin ]",
    );
    // No shell, one program, a user by name, files written with a dot before them.
    let below = layer(&[
        dir("./etc/"),
        file(
            "./etc/passwd",
            "root:x:0:0::/:/none\nnonroot:x:65532:65532::/home:/none\n",
        ),
        dir("./home/"),
    ]);
    let app = layer(&[program("./app/busybox")]);
    let config =
        json!({"User": "nonroot", "WorkingDir": "/home", "Entrypoint": ["/app/busybox", "id"]});
    let top = image(registry, &[&below, &app], config);
    table.add(
        "distroless",
        &top,
        None,
        Expect::Says("uid=65532(nonroot) gid=65532"),
    );
    let app = layer(&[program("busybox")]);
    let config =
        json!({"Entrypoint": ["/busybox", "echo"], "Cmd": ["from", "scratch"], "Env": null});
    let top = image(registry, &[&app], config);
    table.add("scratch", &top, None, Expect::Says("from scratch"));
    // A working directory that no layer has is made; a volume of the image is there.
    let config = json!({
        "WorkingDir": "/work/here", "Volumes": {"/data": {}}, "Env": ["PATH=/", "A=b c"],
        "Cmd": ["busybox", "sh", "-c", "echo $A in $PWD; busybox touch /data/x && echo and /data"],
    });
    let top = image(registry, &[&app], config);
    table.add(
        "working-dir-and-volume",
        &top,
        None,
        Expect::Says("b c in /work/here\nand /data"),
    );
}

fn lists(table: &mut Table<'_>, base: &Layer) {
    let registry = table.registry;
    let for_whom = |text: &str| {
        let layer = layer(&[file("for", text)]);
        image(registry, &[base, &layer], json!({}))
    };
    let (own, other) = (for_whom("amd64"), for_whom("other"));
    let linux = |descriptor: &Value| platform(descriptor.clone(), "linux", "amd64");
    let attested = json!({
        "mediaType": MANIFEST, "digest": other["digest"], "size": other["size"],
        "platform": {"os": "unknown", "architecture": "unknown"},
        "annotations": {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": own["digest"]},
    });
    let mut newer = linux(&other);
    newer["platform"]["variant"] = json!("v3");
    let gone =
        json!({"mediaType": MANIFEST, "digest": format!("sha256:{}", "1".repeat(64)), "size": 7});
    let docker = "application/vnd.docker.distribution.manifest.list.v2+json";
    let cases = [
        (
            "multi-arch",
            INDEX,
            platform(other.clone(), "linux", "s390x"),
        ),
        (
            "docker-list",
            docker,
            platform(other.clone(), "windows", "amd64"),
        ),
        ("attestations", INDEX, attested),
        ("variants", INDEX, newer),
        // A registry may hold less than an index names.
        ("sparse-index", INDEX, platform(gone, "linux", "arm64")),
    ];
    for (name, media_type, first) in cases {
        let top = index(registry, media_type, &[first, linux(&own)]);
        table.add(name, &top, shell("cat /for"), Expect::Says("amd64"));
    }
    let inner = index(
        registry,
        INDEX,
        &[platform(other, "linux", "s390x"), linux(&own)],
    );
    let top = index(registry, INDEX, &[inner]);
    let expect = Expect::Says("amd64");
    table.add("index-of-indexes", &top, shell("cat /for"), expect);
}

fn packings(table: &mut Table<'_>, base: &Layer) {
    let registry = table.registry;
    let text = [file("f", "carried")];
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let cases = [
        ("oci-plain", Packing::Plain, OCI.to_owned()),
        ("oci-zstd", Packing::Zstd, format!("{OCI}+zstd")),
        ("zstd-chunked", Packing::ZstdFrames, format!("{OCI}+zstd")),
        ("estargz", Packing::GzipMembers, format!("{OCI}+gzip")),
        ("wrong-media-type", Packing::Zstd, DOCKER.to_owned()),
        ("foreign-layers", Packing::Gzip, foreign.to_owned()),
    ];
    for (name, packing, media_type) in cases {
        let top = packed(&text, packing, &media_type);
        table.runs(name, &[base, &top], "[ $(cat /f) = carried ]");
    }
    let size = 1 << 30;
    let pieces = vec![(0, b"one".to_vec()), (size - 3, b"end".to_vec())];
    let sparse = Kind::Sparse(pieces, size, SparseVersion::OneZero);
    let mut sparse = item("large", sparse, 0o644);
    sparse.0 = Dialect::Pax;
    table.runs(
        "sparse-gigabyte",
        &[base, &layer(&[sparse])],
        "[ $(/bin/busybox stat -c %s /large) = 1073741824 ] && [ $(/bin/busybox tail -c 3 /large) = end ]",
    );
    let mut capable = item("ping", Kind::File(b"x".to_vec()), 0o4755);
    capable.0 = Dialect::Pax;
    let mut capability = vec![0; 20];
    (capability[0], capability[3], capability[5]) = (1, 2, 0x20);
    capable.1.xattrs = vec![("security.capability".to_owned(), capability)];
    capable.1.uid = 3_000_000;
    table.runs(
        "attributes",
        &[base, &layer(&[capable])],
        "[ $(/bin/busybox stat -c %a:%u /ping) = 4755:3000000 ]",
    );
    // An image's own history and comments do not matter.
    let config = json!({
        "os": "linux", "architecture": "amd64", "config": {"Cmd": ["/bin/sh", "-c", "echo right"]}, "history": null,
        "rootfs": {"type": "layers", "diff_ids": [base.diff_id]}, "container_config": {"Cmd": ["nonsense"]},
    });
    let top = image_of(registry, &[base], &config);
    table.add("docker-config", &top, None, Expect::Says("right"));
}

fn layers_over_layers(table: &mut Table<'_>, base: &Layer) {
    let many: Vec<Layer> = (0..99)
        .map(|n| layer(&[file("n", &n.to_string()), file(&format!("f{n}"), "x")]))
        .collect();
    let all: Vec<&Layer> = std::iter::once(base).chain(&many).collect();
    table.runs(
        "hundred-layers",
        &all,
        "[ $(cat /n) = 98 ] && [ -e /f0 ] && [ -e /f57 ]",
    );
    let (text, gone) = (layer(&[file("f", "same")]), layer(&[file(".wh.f", "")]));
    table.runs(
        "same-layer-twice",
        &[base, &text, &gone, &text],
        "[ $(cat /f) = same ]",
    );
    table.runs("empty-layer", &[base, &text, &layer(&[])], "[ -e /f ]");
    let nothing = Layer {
        blob: Vec::new(),
        media_type: OCI.to_owned(),
        diff_id: digest(b""),
    };
    table.runs("layer-of-no-bytes", &[base, &nothing, &text], "[ -e /f ]");
    let below = layer(&[file("d/a", "a"), file("d/b", "b"), file("e/c", "c")]);
    let above = layer(&[
        file("d/.wh..wh..opq", ""),
        file("d/n", "n"),
        file("e/.wh.c", ""),
    ]);
    table.runs(
        "whiteouts",
        &[base, &below, &above],
        "[ ! -e /d/a ] && [ -e /d/n ] && [ ! -e /e/c ] && [ -d /e ] && [ \"$(/bin/busybox ls /d)\" = n ]",
    );
    let linked = layer(&[item("g", Kind::HardLink("f".into()), 0o755)]);
    table.runs(
        "link-to-a-lower-layer",
        &[base, &text, &linked],
        "[ $(/bin/busybox stat -c %i /f) = $(/bin/busybox stat -c %i /g) ]",
    );
    let (first, then, last) = (
        layer(&[dir("t/"), file("t/old", "x")]),
        layer(&[file("t", "no directory")]),
        layer(&[dir("t/"), file("t/new", "x")]),
    );
    table.runs(
        "types-replaced",
        &[base, &first, &then, &last],
        "[ -e /t/new ] && [ ! -e /t/old ]",
    );
}

fn refused(table: &mut Table<'_>, base: &Layer) {
    let registry = table.registry;
    let top = image(registry, &[], json!({"Cmd": ["/run"]}));
    let expect = Expect::Refused(STARTS_NOT, "/run");
    table.add("no-layers", &top, None, expect);
    let top = image_of(
        registry,
        &[],
        &json!({"os": "linux", "architecture": "amd64", "config": null, "rootfs": {"type": "layers", "diff_ids": null}}),
    );
    let expect = Expect::Refused(STARTS_NOT, "no command specified");
    table.add("nothing-at-all", &top, None, expect);
    let top = image(
        registry,
        &[base],
        json!({"User": "nobody-there", "Cmd": ["/bin/sh"]}),
    );
    let expect = Expect::Refused(STARTS_NOT, "nobody-there");
    table.add("unknown-user", &top, None, expect);

    let some = image(registry, &[base], json!({}));
    let top = index(registry, INDEX, &[platform(some, "windows", "amd64")]);
    let expect = Expect::Refused(PULLS_NOT, "no match for platform");
    table.add("windows", &top, None, expect);
    let top = image_of(
        registry,
        &[base],
        &json!({"name": "chart", "version": "1.0.0"}),
    );
    let expect = Expect::Refused(PULLS_NOT, "mismatched image rootfs and manifest layers");
    table.add("chart", &top, None, expect);
    let old = json!({"schemaVersion": 1, "name": "x", "fsLayers": []});
    let top = registry.put_json(REPOSITORY, "manifests", &old);
    let expect = Expect::Refused(PULLS_NOT, "no longer supported");
    table.add("schema1", &top, None, expect);
    let mut lies = layer(&[file("f", "x")]);
    lies.diff_id = digest(b"something else");
    let top = image(registry, &[base, &lies], json!({}));
    let expect = Expect::Refused(PULLS_NOT, "diff");
    table.add("another-layer-than-said", &top, None, expect);
}
