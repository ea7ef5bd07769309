//! The image of a node: a Debian root, kind's base files, kubeadm, kubectl and crictl as upstream has them; and of ours kubelet,
//! gantry-shim, gantry-cri, `ctr` and `containerd`, and the images of the control plane in the store.
//!
//! What is not kind's own, all of it: the units `gantry-cri.{socket,service}` in the place of `containerd.service`, the two manifests of
//! `/kind/manifests`, Debian 12 (its systemd still knows cgroup v1).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::{Kind, SET, version};
use crate::csi::{self, Storage};
use crate::images::{self, archive, ours::Made};
use crate::step::output;

/// As images are called that are nowhere but here.
const BASE: &str = "localhost/gantry-kind-base:1";
const PRELOAD: &str = "gantry-kind-preload";
const SUITE: &str = "bookworm";

/// As in kind's own base, less what needs a network at build time or serves other snapshotters; jq for its hooks. libelf and libseccomp: the
/// shim.
const PACKAGES: &[&str] = &[
    "systemd",
    "systemd-sysv",
    "dbus",
    "conntrack",
    "iptables",
    "nftables",
    "iproute2",
    "ethtool",
    "util-linux",
    "mount",
    "kmod",
    "libseccomp2",
    "libelf1",
    "zlib1g",
    "e2fsprogs",
    "bash",
    "ca-certificates",
    "curl",
    "jq",
    "procps",
];

/// As kind's Dockerfile: what a machine in a container does not start. journald reads no kernel messages.
const CLEAN_UP: &str = r#"cd "$1" && rm -f lib/systemd/system/multi-user.target.wants/* etc/systemd/system/*.wants/* \
lib/systemd/system/local-fs.target.wants/* lib/systemd/system/sockets.target.wants/*udev* lib/systemd/system/sockets.target.wants/*initctl* \
lib/systemd/system/basic.target.wants/* lib/systemd/system/sysinit.target.wants/systemd-tmpfiles-setup.service \
&& echo ReadKMsg=no >> etc/systemd/journald.conf"#;

/// Where kind, kubeadm and crictl look for containerd.
const CRI_SOCKET_UNIT: &str = "[Unit]
Description=The Container Runtime Interface: socket
[Socket]
ListenStream=/run/containerd/containerd.sock
SocketMode=0600
[Install]
WantedBy=sockets.target
";
const CRI_UNIT: &str = "[Unit]
Description=The Container Runtime Interface, with or without a kubelet
Requires=gantry-cri.socket
StartLimitIntervalSec=0
[Service]
ExecStart=/usr/bin/gantry-cri
Restart=always
RestartSec=1
OOMScoreAdjust=-999
[Install]
Alias=containerd.service
";

/// In the place of kindnet: the pod network is the kubelet's own, which reads the other nodes.
const DEFAULT_CNI: &str = "apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: 'gantry:pod-network'}
rules: [{apiGroups: [''], resources: [nodes], verbs: [get, list, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: 'gantry:pod-network'}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: 'gantry:pod-network'}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: 'system:nodes'}]
";

const DOCKERFILE: &str = r#"FROM localhost/gantry-kind-base:1
COPY root/ /
ENV container=podman
STOPSIGNAL SIGRTMIN+3
ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]
"#;

/// Images go into the store the way `kind build node-image` does it, by a runtime that runs for that alone.
const PRELOAD_SCRIPT: &str = r#"set -eu
gantry-cri --v=2 > /tmp/gantry-cri.log 2>&1 &
cri=$!
for _ in $(seq 200); do [ -S /run/containerd/containerd.sock ] && break; sleep 0.05; done
ctr --namespace=k8s.io images import --label=io.cri-containerd.pinned=pinned --all-platforms --no-unpack --digests /images/control-plane.tar \
  || { cat /tmp/gantry-cri.log >&2; exit 1; }
kill $cri
wait $cri || true
sync
"#;

/// Builds the image of the node, if one of its parts is new, and gives its name.
///
/// # Errors
/// A part cannot be had, or podman fails.
pub fn build(kind: &Kind, made: &[Made]) -> Result<String> {
    let name = format!("localhost/gantry-kind-node:{}", version());
    let dir = kind.dir();
    let root = dir.join("context/root");
    let module = module_files(kind)?;
    lay_out(kind, &root, &module)?;
    let archive = dir.join("images/control-plane.tar");
    archive::write(&control_plane(kind, made)?, &archive)?;

    let base = debian_root(kind)?;
    let stamp = stamp(&[&root, &archive, &base])?;
    let stamp_path = dir.join("node-image.stamp");
    let is_there = kind
        .podman()
        .args(["image", "exists", &name])
        .status()?
        .success();
    if is_there && fs::read_to_string(&stamp_path).is_ok_and(|old| old == stamp) {
        return Ok(name);
    }
    let step = kind.steps.start("node image", None)?;
    let _ = fs::remove_file(&stamp_path);
    step.message("base");
    step.run(kind.podman().arg("import").arg(&base).arg(BASE))?;
    fs::write(dir.join("context/Dockerfile"), DOCKERFILE)?;
    let half = format!("{name}-half");
    step.run(
        kind.podman()
            .args(["build", "--network=none", "--format=oci", "--tag", &half])
            .arg(dir.join("context")),
    )?;
    step.message("images of the control plane");
    let volume = format!("{}:/images:ro", dir.join("images").display());
    step.run(
        kind.podman()
            .args(["run", "--name", PRELOAD, "--privileged", "--network=none"])
            .args(["--cgroupns=private", "--tmpfs", "/run", "--tmpfs", "/tmp"])
            .args(["--volume", &volume, "--entrypoint", "/bin/sh"])
            .args([&half, "-c", PRELOAD_SCRIPT]),
    )?;
    step.message("commit");
    step.run(
        kind.podman()
            .args(["commit", "--quiet"])
            .args([
                "--change",
                r#"ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]"#,
            ])
            .args(["--change", "CMD []"])
            .args([PRELOAD, &name]),
    )?;
    step.run(kind.podman().args(["rm", "--force", "--volumes", PRELOAD]))?;
    // Those of earlier builds, which nothing is called by any more.
    step.run(kind.podman().args(["image", "prune", "--force"]))?;
    fs::write(stamp_path, stamp)?;
    step.done();
    Ok(name)
}

/// The base files in kind's own module.
fn module_files(kind: &Kind) -> Result<PathBuf> {
    let files =
        csi::module_dir(&kind.outputs, "kind", "sigs.k8s.io/kind")?.join("images/base/files");
    ensure!(
        files.is_dir(),
        "{} is not there: kind's module is laid out otherwise",
        files.display()
    );
    Ok(files)
}

/// Everything over the Debian root.
fn lay_out(kind: &Kind, root: &Path, module: &Path) -> Result<()> {
    if root.exists() {
        fs::remove_dir_all(root)?;
    }
    copy(&module.join("etc"), &root.join("etc"), 0o644)?;
    copy(&module.join("kind"), &root.join("kind"), 0o644)?;
    copy(&module.join("kind/bin"), &root.join("kind/bin"), 0o755)?;
    copy(
        &module.join("usr/local/bin"),
        &root.join("usr/local/bin"),
        0o755,
    )?;
    let put = |path: &str, text: &str| -> Result<()> {
        let file = root.join(path);
        fs::create_dir_all(file.parent().expect("a file lies in a folder"))?;
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))
    };
    let link = |path: &str, target: &str| -> Result<()> {
        let place = root.join(path);
        fs::create_dir_all(place.parent().expect("a link lies in a folder"))?;
        symlink(target, &place).with_context(|| format!("link {}", place.display()))
    };
    for folder in ["etc/kubernetes/manifests", "opt/cni/bin", "etc/cni/net.d"] {
        fs::create_dir_all(root.join(folder))?;
    }
    put("kind/version", &format!("{}\n", version()))?;
    put("kind/manifests/default-cni.yaml", DEFAULT_CNI)?;
    put(
        "kind/manifests/default-storage.yaml",
        &default_storage(kind)?,
    )?;

    // In the place of containerd and its unit.
    let units = "etc/systemd/system";
    for unit in ["containerd.service", "containerd-fuse-overlayfs.service"] {
        fs::remove_file(root.join(units).join(unit))?;
    }
    put(&format!("{units}/gantry-cri.socket"), CRI_SOCKET_UNIT)?;
    put(&format!("{units}/gantry-cri.service"), CRI_UNIT)?;
    link(&format!("{units}/containerd.service"), "gantry-cri.service")?;
    // What `systemctl enable` does.
    for unit in ["kubelet.service", "undo-mount-hacks.service"] {
        link(
            &format!("{units}/multi-user.target.wants/{unit}"),
            &format!("/{units}/{unit}"),
        )?;
    }
    link(
        &format!("{units}/sockets.target.wants/gantry-cri.socket"),
        &format!("/{units}/gantry-cri.socket"),
    )?;
    link(&format!("{units}/systemd-binfmt.service"), "/dev/null")?;

    for program in ["kubeadm", "kubectl"] {
        install(
            &kind.outputs.upstream(program),
            &root.join("usr/bin").join(program),
        )?;
    }
    install(
        &kind.outputs.upstream("crictl"),
        &root.join("usr/local/bin/crictl"),
    )?;
    for program in ["kubelet", "gantry-shim", "gantry-cri", "gantry-ctr"] {
        let to = root.join("usr/bin").join(program);
        output(
            Command::new("strip")
                .args(["--strip-debug", "-o"])
                .args([&to, &kind.outputs.ours(program)]),
        )?;
    }
    link("usr/local/bin/ctr", "/usr/bin/gantry-ctr")?;
    link("usr/local/bin/containerd", "/usr/bin/gantry-ctr")
}

/// kind's own class `standard`, made by the provisioner that kind's nodes have, with images that the node has.
fn default_storage(kind: &Kind) -> Result<String> {
    let text = csi::local_path_objects(&kind.outputs)?;
    let (from, to) = ("\n  name: local-path\n", "\n  name: standard\n");
    ensure!(
        text.contains(from),
        "the provisioner's class has another name"
    );
    Ok(text.replace(from, to))
}

/// Of `from`, files with this mode; folders as they are.
fn copy(from: &Path, to: &Path, mode: u32) -> Result<()> {
    fs::create_dir_all(to)?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))?;
    for entry in fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target, mode)?;
        } else {
            // Not `fs::copy`: what is in the module cache is read-only, a second turn could not write.
            let _ = fs::remove_file(&target);
            fs::write(&target, fs::read(entry.path())?)?;
            fs::set_permissions(&target, fs::Permissions::from_mode(mode))?;
        }
    }
    Ok(())
}

fn install(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().expect("a program lies in a folder"))?;
    fs::copy(from, to).with_context(|| format!("copy {}", from.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// The Debian root as a tar, if it is not there or is of other packages.
fn debian_root(kind: &Kind) -> Result<PathBuf> {
    let tar = kind.dir().join("base.tar");
    let holds = tar.with_extension("packages");
    let wanted = format!("{SUITE}: {}\n{CLEAN_UP}\n", PACKAGES.join(" "));
    if tar.exists() && fs::read_to_string(&holds).is_ok_and(|has| has == wanted) {
        return Ok(tar);
    }
    let step = kind.steps.start("Debian root of the nodes", None)?;
    let half = tar.with_extension("half.tar");
    step.run(
        Command::new("mmdebstrap")
            .env("SOURCE_DATE_EPOCH", "1700000000")
            .args(["--variant=minbase", "--mode=root"])
            .arg(format!("--include={}", PACKAGES.join(",")))
            .arg(format!("--customize-hook={CLEAN_UP}"))
            .arg(SUITE)
            .arg(&half),
    )?;
    fs::rename(&half, &tar)?;
    fs::write(&holds, wanted)?;
    step.done();
    Ok(tar)
}

/// Every image that a cluster has from its first minute, by the name that kubeadm and the manifests ask for.
fn control_plane(kind: &Kind, made: &[Made]) -> Result<BTreeMap<String, PathBuf>> {
    let upstream = [
        format!("registry.k8s.io/kube-apiserver:{}", version()),
        "registry.k8s.io/etcd:3.7.0-0".to_owned(),
        "registry.k8s.io/coredns/coredns:v1.14.6".to_owned(),
        "registry.k8s.io/pause:3.10.2".to_owned(),
        "registry.k8s.io/e2e-test-images/busybox:1.37.0-2".to_owned(),
    ];
    let local_path = images::names(Storage::LocalPath.set())?;
    let mut all: BTreeMap<String, PathBuf> = upstream
        .into_iter()
        .chain(local_path)
        .map(|name| {
            let layout = images::layout(&kind.outputs, &name);
            (name, layout)
        })
        .collect();
    all.extend(
        made.iter()
            .map(|one| (one.name.clone(), one.layout.clone())),
    );
    Ok(all)
}

/// Changes when a part does.
fn stamp(parts: &[&Path]) -> Result<String> {
    let mut hash = Sha256::new();
    for text in [DOCKERFILE, PRELOAD_SCRIPT, SET] {
        hash.update(text);
    }
    for part in parts {
        update(&mut hash, part)?;
    }
    let digest = hash.finalize();
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn update(hash: &mut Sha256, path: &Path) -> Result<()> {
    hash.update(path.as_os_str().as_encoded_bytes());
    let kind = fs::symlink_metadata(path)?.file_type();
    if kind.is_symlink() {
        hash.update(fs::read_link(path)?.as_os_str().as_encoded_bytes());
    } else if kind.is_dir() {
        let mut entries: Vec<PathBuf> = fs::read_dir(path)?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        entries.sort();
        for entry in entries {
            update(hash, &entry)?;
        }
    } else {
        hash.update(fs::read(path)?);
    }
    Ok(())
}
