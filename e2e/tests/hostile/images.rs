//! What an image and a registry can do to a node that pulls.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::layers::archive::{Dialect, Entry, Kind, Packing, pack, write};
use e2e::probe::{Namespace, cluster, wait_until};
use e2e::registry::{Registry, digest};
use serde_json::json;

use crate::sound::Sound;

const NODE: &str = "node-1";
/// A pulling kubelet keeps below this, in bytes; its program's own pages, of which the dev profile has 55 MiB, not counted.
const MEMORY_LIMIT: u64 = 200 << 20;
/// What the bombs would take, uncompressed.
const BOMB_BYTES: usize = 3_400 << 20;
/// The largest window of zstd that is taken.
const WINDOW_BYTES: usize = 128 << 20;
const TOKEN_BYTES: u64 = 2_300 << 20;

fn octal(field: &mut [u8], value: usize) {
    let digits = field.len() - 1;
    field[..digits].copy_from_slice(format!("{value:0digits$o}").as_bytes());
}

/// A header of a tar that says how long what follows is.
fn header(flag: u8, size: usize) -> [u8; 512] {
    let mut block = [0; 512];
    block[..1].copy_from_slice(b"x");
    octal(&mut block[100..108], 0o644);
    octal(&mut block[108..116], 0);
    octal(&mut block[116..124], 0);
    octal(&mut block[124..136], size);
    octal(&mut block[136..148], 0);
    block[156] = flag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: usize = block.iter().map(|b| usize::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// Layers that are small as they come, and want more than a node has: a long name, a long link, extension headers. They are
/// packed a piece at a time, the same piece again and again.
fn bombs() -> Vec<(&'static str, Vec<u8>)> {
    const PIECE: usize = 1 << 20;
    let gzip = |bytes: &[u8]| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        std::io::Write::write_all(&mut gzip, bytes).expect("memory takes all");
        gzip.finish().expect("memory takes all")
    };
    let letters = gzip(&vec![b'a'; PIECE]);
    let mut record = format!("{BOMB_BYTES} path=").into_bytes();
    record.resize(PIECE, b'a');
    let record = gzip(&record);
    let packed = |flag: u8, first: &[u8]| {
        let rest = letters.repeat(BOMB_BYTES / PIECE - 1);
        [&gzip(&header(flag, BOMB_BYTES)), first, &rest].concat()
    };
    vec![
        ("long-name", packed(b'L', &letters)),
        ("long-link", packed(b'K', &letters)),
        ("extension", packed(b'x', &record)),
        ("global", packed(b'g', &record)),
    ]
}

#[test]
fn images_and_registries_cost_a_node_little_memory() -> Result<()> {
    let cluster = cluster()?;
    let sound = Sound::begin(&cluster, NODE)?;
    let registry = Registry::start(&cluster, NODE)?;
    registry.ask_for_tokens_of(TOKEN_BYTES);
    let ns = Namespace::create(&cluster, "hostile-images")?;
    let mut names = vec!["guarded".to_owned()];
    for (name, blob) in bombs() {
        ensure!(blob.len() < 32 << 20, "{name} has {} bytes", blob.len());
        publish(&registry, name, &blob, &digest(name.as_bytes()));
        names.push(name.to_owned());
    }
    // Many files: ordinary, and each with its attributes.
    let many: Vec<(Dialect, Entry)> = (0..20_000)
        .map(|n| {
            let entry = Entry {
                name: format!("{}/{n}", "directory".repeat(8)),
                kind: Kind::File(Vec::new()),
                mode: 0o644,
                uid: 0,
                gid: 0,
                mtime: (1, 1),
                xattrs: vec![("user.note".to_owned(), vec![b'n'; 900])],
            };
            (Dialect::Pax, entry)
        })
        .collect();
    let plain = write(&many);
    publish(
        &registry,
        "many",
        &pack(&plain, Packing::Gzip),
        &digest(&plain),
    );
    names.push("many".to_owned());

    // A window as large as any that is taken: all that was unpacked is kept to look back at.
    let mut window = header(b'0', WINDOW_BYTES - 3 * 512).to_vec();
    // Another one each time: what lies in the store already is not unpacked again.
    let fill = registry.address.bytes().fold(0, u8::wrapping_add);
    window.resize(WINDOW_BYTES - 2 * 512, fill);
    window.resize(WINDOW_BYTES, 0);
    publish(
        &registry,
        "window",
        &pack(&window, Packing::Zstd),
        &digest(&window),
    );
    drop(window);
    names.push("window".to_owned());

    let (done, peak) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                if let Ok(memory) = sound.anonymous() {
                    peak.fetch_max(memory, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let outcome = pull_all(&ns, &registry, &names);
        done.store(true, Ordering::Relaxed);
        outcome
    })?;
    let peak = peak.load(Ordering::Relaxed);
    println!(
        "the kubelet's memory came to {} MiB; {} MiB of a token were taken",
        peak >> 20,
        registry.token_bytes_taken() >> 20
    );
    ensure!(peak < MEMORY_LIMIT, "the kubelet used {} MiB", peak >> 20);
    ensure!(
        registry.token_bytes_taken() < TOKEN_BYTES / 4,
        "{} bytes of a token were read",
        registry.token_bytes_taken()
    );
    sound.check()?;
    ns.delete()
}

fn publish(registry: &Registry, repository: &str, blob: &[u8], diff_id: &str) {
    let layer = registry.put(repository, "blobs", blob);
    let config = registry.put_json(
        repository,
        "blobs",
        &json!({"os": "linux", "architecture": "amd64", "config": {"Cmd": ["/none"]}, "rootfs": {"type": "layers", "diff_ids": [diff_id]}}),
    );
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config,
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": layer, "size": blob.len()}],
    });
    let descriptor = registry.put_json(repository, "manifests", &manifest);
    registry.tag(repository, "1", &descriptor);
}

/// One pod an image, all at once; none of them runs, each says why.
fn pull_all(ns: &Namespace<'_>, registry: &Registry, names: &[String]) -> Result<()> {
    for name in names {
        let image = format!("{}/{name}:1", registry.address);
        ns.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{nodeName: {NODE}, terminationGracePeriodSeconds: 1, \
             restartPolicy: Never, containers: [{{name: c, image: '{image}'}}]}}}}"
        ))?;
    }
    for name in names {
        wait_until(
            &format!("{name} to be refused"),
            Duration::from_secs(120),
            || {
                let pod = ns.json(&["get", "pod", name])?;
                let state = &pod["status"]["containerStatuses"][0]["state"];
                let told = state["waiting"]["message"]
                    .as_str()
                    .or(state["terminated"]["message"].as_str())
                    .unwrap_or_default();
                let expected = match name.as_str() {
                    "guarded" => "larger than",
                    "many" | "window" => "/none",
                    _ => "of more than 1048576 bytes",
                };
                ensure!(told.contains(expected), "{name}: {state}");
                Ok(true)
            },
        )?;
    }
    Ok(())
}
