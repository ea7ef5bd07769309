//! `cargo e2e images --ours`: an image of each control loop of ours, of kube-proxy and of virtual-kubelet, as kubeadm's manifests and
//! our charts look for them.
//!
//! No distribution and no shell in them: the program, the shared libraries it is linked to, certificates of authorities, users;
//! kube-proxy's has `nft`, too.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::layer::{Blob, Tar};
use super::{Built, Image, assemble, write_layout};
use crate::cluster::layout::{CONTROL_PLANE_IP, REGISTRY_PORT};
use crate::cluster::{Cluster, Component};
use crate::programs::{self, KUBERNETES_VERSION, Outputs};
use crate::step::{Steps, output};

/// An image of ours.
pub struct Ours {
    /// The program, its package and its image.
    pub program: &'static str,
    /// The machine's own programs that it calls.
    tools: &'static [&'static str],
}

/// All of them.
pub const OURS: &[Ours] = &[
    Ours {
        program: "kube-scheduler",
        tools: &[],
    },
    Ours {
        program: "kube-controller-manager",
        tools: &[],
    },
    Ours {
        program: "kube-proxy",
        tools: &["/usr/sbin/nft"],
    },
    Ours {
        program: "cloud-controller-manager",
        tools: &[],
    },
    Ours {
        program: "virtual-kubelet",
        tools: &[],
    },
];

/// In a layout, beside what an image's layout has: what was made.
const RECORD: &str = "made.json";

/// The authorities that the machine trusts.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

const PASSWD: &str = "root:x:0:0:root:/root:/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin
nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin
";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\nnonroot:x:65532:\n";

/// An image that was made.
#[derive(Debug, Serialize, Deserialize)]
pub struct Made {
    /// A digest of all that it was made from.
    from: String,
    /// As kubeadm calls it.
    pub name: String,
    /// An OCI layout.
    pub layout: PathBuf,
    /// The program alone, stripped.
    pub program_bytes: u64,
    /// All files unpacked.
    pub unpacked_bytes: u64,
    /// All layers as they are pushed.
    pub packed_bytes: u64,
}

/// Builds the images of the named programs; those that are `upstream` hold upstream's program in the same place.
///
/// # Errors
/// A program does not build, or a library or tool is missing on this machine.
pub fn build(
    steps: &Steps,
    outputs: &Outputs,
    wanted: &[&str],
    upstream: &[Component],
) -> Result<Vec<Made>> {
    let is_upstream = |program: &str| upstream.iter().any(|one| one.name() == program);
    let (theirs, own): (Vec<&str>, Vec<&str>) =
        wanted.iter().partition(|program| is_upstream(program));
    programs::build_upstream(steps, outputs, &theirs)?;
    programs::build_ours(steps, outputs, &own)?;
    let step = steps.start("build images of ours", Some(wanted.len() as u64))?;
    let mut made = Vec::new();
    for program in wanted {
        step.message(program);
        let ours = OURS
            .iter()
            .find(|ours| ours.program == *program)
            .with_context(|| format!("there is no image of {program:?}"))?;
        let (binary, folder) = if is_upstream(program) {
            (outputs.upstream(program), "upstream")
        } else {
            (outputs.ours(program), "ours")
        };
        let layout = outputs.images().join(folder).join(program);
        made.push(component(ours, &binary, &layout)?);
        step.advance();
    }
    step.done();
    Ok(made)
}

/// Makes one image from a program, unless its layout is of the same: what a layout held before goes.
fn component(ours: &Ours, binary: &Path, layout: &Path) -> Result<Made> {
    let mut libraries = libraries(binary)?;
    let mut tools = BTreeMap::new();
    for tool in ours.tools {
        let path = Path::new(tool);
        tools.insert(path.to_path_buf(), read(path)?);
        libraries.extend(self::libraries(path)?);
    }
    let base = BTreeMap::from([
        ("/etc/passwd".into(), PASSWD.into()),
        ("/etc/group".into(), GROUP.into()),
        (AUTHORITIES.into(), read(Path::new(AUTHORITIES))?),
    ]);
    let from = made_from(ours, binary, &[&base, &libraries, &tools])?;
    let record = layout.join(RECORD);
    let before = fs::read(&record).ok();
    let before = before.and_then(|text| serde_json::from_slice::<Made>(&text).ok());
    if let Some(made) = before.filter(|made| made.from == from) {
        return Ok(made);
    }
    let program = stripped(binary)?;
    let mut layers = Vec::new();
    let mut unpacked_bytes = 0;
    let mut add = |files: &BTreeMap<PathBuf, Vec<u8>>, more: &[(&str, u32)]| -> Result<()> {
        unpacked_bytes += files.values().map(|bytes| bytes.len() as u64).sum::<u64>();
        layers.push(layer(files, more)?);
        Ok(())
    };
    add(&base, &[("tmp/", 0o1777)])?;
    if !libraries.is_empty() {
        // The same in most images: one layer of all of them.
        add(&libraries, &[])?;
    }
    if !tools.is_empty() {
        add(&tools, &[])?;
    }
    let path = format!("/usr/local/bin/{}", ours.program);
    let program_bytes = program.len() as u64;
    add(&BTreeMap::from([(path.clone().into(), program)]), &[])?;
    let name = format!("registry.k8s.io/{}:v{KUBERNETES_VERSION}", ours.program);
    let image = Image {
        names: vec![name.clone()],
        layers: Vec::new(),
        entrypoint: vec![path],
        cmd: Vec::new(),
        user: String::new(),
        working_dir: "/".to_owned(),
        ports: Vec::new(),
        stop_signal: String::new(),
        set: String::new(),
    };
    let built: Built = assemble(&image, layers);
    let packed_bytes = built
        .layers
        .iter()
        .map(|layer| layer.compressed.len() as u64)
        .sum();
    if layout.exists() {
        fs::remove_dir_all(layout)?;
    }
    write_layout(layout, &built)?;
    let made = Made {
        from,
        name,
        layout: layout.to_path_buf(),
        program_bytes,
        unpacked_bytes,
        packed_bytes,
    };
    fs::write(record, serde_json::to_vec(&made)?)?;
    Ok(made)
}

/// A digest of everything that goes into an image, and of how it is put together.
fn made_from(ours: &Ours, binary: &Path, files: &[&BTreeMap<PathBuf, Vec<u8>>]) -> Result<String> {
    let mut hash = Sha256::new();
    for text in [
        include_str!("ours.rs"),
        include_str!("layer.rs"),
        include_str!("../images.rs"),
        ours.program,
        KUBERNETES_VERSION,
    ] {
        hash.update(text);
    }
    hash.update(read(binary)?);
    for (path, bytes) in files.iter().copied().flatten() {
        hash.update(path.as_os_str().as_encoded_bytes());
        hash.update(bytes);
    }
    Ok(super::layer::hex(&hash.finalize()))
}

/// Pushes images to the cluster's registry, from which its nodes take those of registry.k8s.io; gives the digest of each.
///
/// # Errors
/// The registry refuses one.
pub fn push(cluster: &Cluster, made: &[Made]) -> Result<Vec<String>> {
    let address = format!("{CONTROL_PLANE_IP}:{REGISTRY_PORT}");
    let mut digests = Vec::new();
    for one in made {
        let (_, path) = one.name.split_once('/').context("a name has a host")?;
        let pushed = output(
            cluster
                .control_plane()
                .command(cluster.outputs.upstream("crane"))
                .args(["push", "--insecure", "--index"])
                .arg(&one.layout)
                .arg(format!("{address}/{path}")),
        )?;
        let (_, digest) = pushed.trim().split_once('@').with_context(|| {
            format!("crane pushed {} and named no digest: {pushed:?}", one.name)
        })?;
        digests.push(digest.to_owned());
    }
    Ok(digests)
}

/// A layer of files at absolute paths, the directories above them, and further directories. Programs and libraries are 0755, what is in
/// /etc 0644.
fn layer(files: &BTreeMap<PathBuf, Vec<u8>>, more: &[(&str, u32)]) -> Result<Blob> {
    let mut tar = Tar::default();
    let mut made = std::collections::BTreeSet::new();
    for (path, bytes) in files {
        let inside = path.strip_prefix("/").unwrap_or(path);
        let mut above: Vec<&Path> = inside.ancestors().skip(1).collect();
        above.reverse();
        for directory in above {
            if !directory.as_os_str().is_empty() && made.insert(directory.to_path_buf()) {
                tar.directory(&format!("{}/", directory.display()), 0o755)?;
            }
        }
        let mode = if path.starts_with("/etc") {
            0o644
        } else {
            0o755
        };
        tar.file(&inside.to_string_lossy(), mode, bytes)?;
    }
    for (directory, mode) in more {
        tar.directory(directory, *mode)?;
    }
    tar.finish()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// The program without what only debuggers read; names of functions stay, for the traces of panics.
fn stripped(binary: &Path) -> Result<Vec<u8>> {
    let folder = tempfile::tempdir()?;
    let to = folder.path().join("stripped");
    output(
        Command::new("strip")
            .args(["--strip-debug", "-o"])
            .arg(&to)
            .arg(binary),
    )?;
    read(&to)
}

/// The shared libraries that a program is linked to, the loader among them, by the paths at which it looks for them.
///
/// # Errors
/// One is not there.
pub fn libraries(binary: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let out = Command::new("ldd")
        .arg(binary)
        .output()
        .context("start ldd")?;
    let text = String::from_utf8_lossy(&out.stdout);
    if !out.status.success() {
        let error = String::from_utf8_lossy(&out.stderr).into_owned();
        if (error + &text).contains("not a dynamic executable") {
            return Ok(BTreeMap::new());
        }
        bail!("ldd {} ended with {}", binary.display(), out.status);
    }
    let mut found = BTreeMap::new();
    for path in library_paths(&text).with_context(|| format!("ldd {}", binary.display()))? {
        let bytes = read(&path)?;
        found.insert(path, bytes);
    }
    Ok(found)
}

/// What `ldd` says: a library a line, with where it is.
fn library_paths(ldd: &str) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for line in ldd.lines().map(str::trim) {
        let place = match line.split_once(" => ") {
            Some((name, place)) if place.starts_with("not found") => bail!("{name} is not found"),
            Some((_, place)) => place,
            None => line,
        };
        let place = place.split(" (0x").next().unwrap_or_default();
        // The rest is the kernel's own (linux-vdso) and lines for people.
        if place.starts_with('/') {
            paths.push(PathBuf::from(place));
        }
    }
    Ok(paths)
}

/// For people: a line an image.
pub fn table(made: &[Made]) -> String {
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
    let mut text = format!(
        "{:<52} {:>12} {:>12} {:>12}\n",
        "image (sizes in MiB)", "program", "unpacked", "packed"
    );
    for one in made {
        text += &format!(
            "{:<52} {:>12} {:>12} {:>12}\n",
            one.name,
            mib(one.program_bytes),
            mib(one.unpacked_bytes),
            mib(one.packed_bytes)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_off_ldd() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd4b1f2000)\n\tlibgcc_s.so.1 => /lib/x86_64-linux-gnu/libgcc_s.so.1 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f00)\n";
        let paths = library_paths(text).unwrap();
        assert_eq!(
            paths,
            [
                PathBuf::from("/lib/x86_64-linux-gnu/libgcc_s.so.1"),
                PathBuf::from("/lib64/ld-linux-x86-64.so.2")
            ]
        );
        let error = library_paths("\tlibseccomp.so.2 => not found\n").unwrap_err();
        assert!(error.to_string().contains("libseccomp.so.2"));
    }

    /// The same twice, and nothing in it that a shell could be started by.
    #[test]
    fn an_image_is_the_same_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let ours = Ours {
            program: "true",
            tools: &[],
        };
        let make = |name: &str| {
            let layout = folder.path().join(name);
            let made = component(&ours, Path::new("/bin/true"), &layout).unwrap();
            assert!(made.packed_bytes > 0 && made.unpacked_bytes > made.program_bytes);
            fs::read_to_string(layout.join("index.json")).unwrap()
        };
        assert_eq!(make("one"), make("two"));
        // A layout of the same is left as it is, one of something else is not.
        let record = folder.path().join("one").join(RECORD);
        let index = folder.path().join("one/index.json");
        fs::write(&index, "kept").unwrap();
        assert_eq!(make("one"), "kept");
        fs::write(&record, "{}").unwrap();
        assert_eq!(make("one"), make("two"));
    }
}
