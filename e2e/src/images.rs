//! Builds every image of `images.toml` as an OCI layout, offline, and pushes them to the cluster's registry.
//!
//! **Invariant:** the same inputs give the same bytes: fixed times, sorted entries, no host names.

pub mod archive;
mod base;
mod layer;
pub mod ours;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::cluster::Cluster;
use crate::programs::{self, Outputs};
use crate::step::{Step, Steps, output};
use layer::{Blob, Entry};

const MANIFEST: &str = include_str!("../images.toml");
/// 2023-11-14T22:13:20Z, the age of everything in an image.
const CREATED: &str = "2023-11-14T22:13:20Z";
/// The images of every cluster; others are built for those that ask for them.
pub const BASE: &str = "";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    debian: Debian,
    layer: BTreeMap<String, Vec<Entry>>,
    image: Vec<Image>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Debian {
    suite: String,
    packages: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Image {
    names: Vec<String>,
    layers: Vec<String>,
    #[serde(default)]
    entrypoint: Vec<String>,
    #[serde(default)]
    cmd: Vec<String>,
    #[serde(default)]
    user: String,
    #[serde(default)]
    working_dir: String,
    #[serde(default)]
    ports: Vec<String>,
    #[serde(default)]
    stop_signal: String,
    /// Whose image it is: of every cluster where none is given.
    #[serde(default)]
    set: String,
}

impl Manifest {
    fn read() -> Result<Self> {
        toml::from_str(MANIFEST).context("read images.toml")
    }

    fn images(&self, set: &str) -> impl Iterator<Item = &Image> {
        self.image.iter().filter(move |image| image.set == set)
    }

    /// What the images of a set hold, one name once.
    fn programs(&self, set: &str, of: impl Fn(&Entry) -> Option<&String>) -> BTreeSet<&str> {
        self.images(set)
            .flat_map(|image| &image.layers)
            .filter_map(|layer| self.layer.get(layer))
            .flatten()
            .filter_map(of)
            .map(String::as_str)
            .collect()
    }
}

/// What an image consists of, to be embedded in agnhost's fake registry.
struct Built {
    manifest: Vec<u8>,
    config: Vec<u8>,
    layers: Vec<Blob>,
}

/// Builds what is missing or older than its inputs, of the images of every cluster.
///
/// # Errors
/// A program, package or file is missing.
pub fn build(steps: &Steps, outputs: &Outputs) -> Result<()> {
    build_set(steps, outputs, BASE)
}

/// The sets that images.toml has besides the images of every cluster.
///
/// # Errors
/// images.toml cannot be read.
pub fn sets() -> Result<BTreeSet<String>> {
    let images = Manifest::read()?.image.into_iter();
    Ok(images
        .map(|image| image.set)
        .filter(|set| set != BASE)
        .collect())
}

/// The same for a set of images.
///
/// # Errors
/// A program, package or file is missing.
pub fn build_set(steps: &Steps, outputs: &Outputs, set: &str) -> Result<()> {
    let manifest = Manifest::read()?;
    ensure!(
        manifest.image.iter().any(|image| image.set == set),
        "images.toml has no set {set:?}"
    );
    let upstream: Vec<&str> = manifest
        .programs(set, |entry| entry.program.as_ref())
        .into_iter()
        .collect();
    programs::build_upstream(steps, outputs, &upstream)?;
    let ours = manifest.programs(set, |entry| entry.ours.as_ref());
    if !ours.is_empty() {
        programs::build_csi_hostpath(steps, outputs)?;
    }
    let stamp_path = outputs.images().join(if set == BASE {
        "stamp".to_owned()
    } else {
        format!("stamp-{set}")
    });
    let made_from: Vec<PathBuf> = upstream
        .iter()
        .map(|program| outputs.upstream(program))
        .chain(ours.iter().map(|program| outputs.ours(program)))
        .collect();
    let stamp = stamp(&made_from)?;
    if fs::read_to_string(&stamp_path).is_ok_and(|old| old == stamp) {
        return Ok(());
    }
    fs::create_dir_all(outputs.images())?;
    base::debian(
        steps,
        outputs,
        &manifest.debian.suite,
        &manifest.debian.packages,
    )?;
    base::busybox(steps, outputs)?;
    base::c_programs(steps, outputs)?;

    let number = manifest.images(set).count() as u64;
    let step = steps.start("build images", Some(number))?;
    let mut layers: BTreeMap<String, Blob> = BTreeMap::new();
    let mut built: BTreeMap<String, Built> = BTreeMap::new();
    for image in manifest.images(set) {
        step.message(&image.names[0]);
        for name in &image.layers {
            if !layers.contains_key(name) {
                let blob = match name.as_str() {
                    "debian" => Blob::from_tar(&base::debian_tar(outputs))?,
                    "busybox" => base::busybox_layer(outputs)?,
                    name => {
                        let entries = manifest
                            .layer
                            .get(name)
                            .with_context(|| format!("images.toml: no layer {name:?}"))?;
                        layer::build(outputs, entries, |name| {
                            let image = built.get(name).with_context(|| {
                                format!("images.toml: no image {name:?} before this")
                            })?;
                            Ok((
                                image.manifest.as_slice(),
                                image.config.as_slice(),
                                image.layers.as_slice(),
                            ))
                        })?
                    }
                };
                layers.insert(name.clone(), blob);
            }
        }
        let blobs: Vec<Blob> = image
            .layers
            .iter()
            .map(|name| layers[name].clone())
            .collect();
        let image_built = assemble(image, blobs);
        for name in &image.names {
            write_layout(&layout(outputs, name), &image_built)?;
        }
        built.insert(image.names[0].clone(), image_built);
        step.advance();
    }
    step.done();
    fs::write(stamp_path, stamp)?;
    Ok(())
}

/// Changes when an input does.
fn stamp(made_from: &[PathBuf]) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(MANIFEST);
    for text in [
        include_str!("images/base.rs"),
        include_str!("images/layer.rs"),
        include_str!("images.rs"),
    ] {
        hash.update(text);
    }
    for program in made_from {
        hash.update(fs::read(program).with_context(|| format!("read {}", program.display()))?);
    }
    Ok(layer::hex(&hash.finalize()))
}

fn assemble(image: &Image, layers: Vec<Blob>) -> Built {
    let mut config =
        json!({"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]});
    for (key, words) in [("Entrypoint", &image.entrypoint), ("Cmd", &image.cmd)] {
        if !words.is_empty() {
            config[key] = json!(words);
        }
    }
    for (key, word) in [
        ("User", &image.user),
        ("WorkingDir", &image.working_dir),
        ("StopSignal", &image.stop_signal),
    ] {
        if !word.is_empty() {
            config[key] = json!(word);
        }
    }
    if !image.ports.is_empty() {
        config["ExposedPorts"] = image
            .ports
            .iter()
            .map(|port| (port.clone(), json!({})))
            .collect::<serde_json::Map<_, _>>()
            .into();
    }
    let config = json!({
        "architecture": "amd64", "os": "linux", "created": CREATED, "config": config,
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| &layer.diff_id).collect::<Vec<_>>()},
        "history": layers.iter().map(|_| json!({"created": CREATED, "created_by": "cargo e2e images"})).collect::<Vec<_>>(),
    })
    .to_string()
    .into_bytes();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": layer::digest(&config), "size": config.len()},
        "layers": layers.iter().map(|layer| json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": layer.digest, "size": layer.compressed.len(),
        })).collect::<Vec<_>>(),
    })
    .to_string()
    .into_bytes();
    Built {
        manifest,
        config,
        layers,
    }
}

/// An OCI layout whose index holds an index, as upstream's images are multi-architecture.
fn write_layout(dir: &Path, image: &Built) -> Result<()> {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": layer::digest(&image.manifest),
            "size": image.manifest.len(), "platform": {"architecture": "amd64", "os": "linux"}}],
    })
    .to_string();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    fs::write(dir.join("index.json"), index)?;
    let layers = image
        .layers
        .iter()
        .map(|layer| (layer.digest.clone(), layer.compressed.as_slice()));
    let rest = [
        (layer::digest(&image.manifest), image.manifest.as_slice()),
        (layer::digest(&image.config), image.config.as_slice()),
    ];
    for (digest, bytes) in layers.chain(rest) {
        let path = blobs.join(digest.trim_start_matches("sha256:"));
        if !path.exists() {
            fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))?;
        }
    }
    Ok(())
}

/// The names of a set's images.
///
/// # Errors
/// images.toml is not well-formed.
pub fn names(set: &str) -> Result<Vec<String>> {
    let manifest = Manifest::read()?;
    Ok(manifest
        .images(set)
        .flat_map(|image| image.names.clone())
        .collect())
}

/// The OCI layout of an image of images.toml.
pub fn layout(outputs: &Outputs, name: &str) -> PathBuf {
    outputs.images().join("oci").join(file_name(name))
}

fn file_name(image: &str) -> String {
    image.replace(['/', ':'], "_")
}

/// Pushes the images of a set to the registry at `address`, under their own names less their hosts. `crane`: runs it where the
/// registry is.
///
/// # Errors
/// The registry does not answer, or refuses one.
pub fn push_set(
    outputs: &Outputs,
    set: &str,
    address: &str,
    step: &Step,
    crane: impl Fn() -> std::process::Command,
) -> Result<()> {
    let manifest = Manifest::read()?;
    for name in manifest.images(set).flat_map(|image| &image.names) {
        step.message(&format!("push {name}"));
        let (_, path) = name
            .split_once('/')
            .with_context(|| format!("images.toml: {name:?} has no host"))?;
        step.run(
            crane()
                .args(["push", "--insecure", "--index"])
                .arg(layout(outputs, name))
                .arg(format!("{address}/{path}")),
        )?;
    }
    Ok(())
}

/// The hosts that a set's images come from.
///
/// # Errors
/// images.toml is not well-formed.
pub fn hosts_of(set: &str) -> Result<std::collections::BTreeSet<String>> {
    let manifest = Manifest::read()?;
    let names = manifest.images(set).flat_map(|image| &image.names);
    Ok(names
        .filter_map(|name| Some(name.split_once('/')?.0.to_owned()))
        .collect())
}

/// Pushes every image of the cluster to the registry at `address`, under its own name less the host.
///
/// # Errors
/// The registry does not answer, or refuses one.
pub fn push_all(cluster: &Cluster, address: &str, step: &Step) -> Result<()> {
    let manifest = Manifest::read()?;
    let wanted = cluster.state.options.image_sets();
    let is_wanted = |image: &&Image| image.set == BASE || wanted.contains(image.set.as_str());
    let crane = cluster.outputs.upstream("crane");
    let deadline = Instant::now() + std::time::Duration::from_secs(20);
    while let Err(err) =
        output(
            cluster
                .control_plane()
                .command(&crane)
                .args(["catalog", "--insecure", address]),
        )
    {
        if Instant::now() > deadline {
            bail!("the registry at {address} does not answer: {err:#}");
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let images = manifest.image.iter().filter(is_wanted);
    for name in images.flat_map(|image| &image.names) {
        step.message(&format!("push {name}"));
        let path = name
            .strip_prefix("registry.k8s.io/")
            .with_context(|| format!("images.toml: {name:?} has another host"))?;
        let layout = layout(&cluster.outputs, name);
        step.run(
            cluster
                .control_plane()
                .command(&crane)
                .args(["push", "--insecure", "--index"])
                .arg(&layout)
                .arg(format!("{address}/{path}")),
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::csi::Storage;

    #[test]
    fn every_image_names_layers_that_exist() {
        let manifest = Manifest::read().expect("images.toml is well-formed");
        let sets = sets().unwrap();
        for storage in [Storage::Hostpath, Storage::LocalPath] {
            assert!(sets.contains(storage.set()));
        }
        assert!(sets.contains(crate::critest::SET));
        assert!(sets.contains(crate::kind::SET));
        for image in &manifest.image {
            assert!(!image.names.is_empty());
            for layer in &image.layers {
                assert!(
                    ["debian", "busybox"].contains(&layer.as_str())
                        || manifest.layer.contains_key(layer),
                    "{layer}"
                );
            }
        }
    }
}
