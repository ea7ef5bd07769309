//! A runtime on this machine, in directories and cgroups of its own, taken away at the end.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use images::{ImageStore, ImageStoreConfig};
use network::{NetworkConfig, PodNetwork};
use runtime::linux::{LinuxRuntime, LinuxRuntimeConfig, OpenFiles};
use runtime::*;

use super::image;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// What containers get, whatever this process has.
pub const OPEN_FILES: OpenFiles = OpenFiles {
    soft: 777,
    hard: 4000,
};

/// Root is needed for everything here.
pub fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: only root can run containers");
    }
    root
}

/// A cgroup of each node's own, in every hierarchy.
pub fn cgroup_root(directory: &Path) -> String {
    format!(
        "/gantry-rt-test-{}",
        directory.file_name().unwrap().to_str().unwrap()
    )
}

/// Below the node's cgroup, so that it goes with it.
pub fn shim_cgroup(directory: &Path) -> String {
    format!("{}/shims", cgroup_root(directory))
}

/// The shim next to this test, freshly built.
fn shim() -> PathBuf {
    static SHIM: OnceLock<PathBuf> = OnceLock::new();
    SHIM.get_or_init(|| {
        if let Some(path) = std::env::var_os("GANTRY_RT_SHIM") {
            return path.into();
        }
        let deps = std::env::current_exe().unwrap();
        let path = deps.parent().unwrap().parent().unwrap().join("gantry-shim");
        if std::env::var_os("GANTRY_RT_NO_BUILD").is_none() {
            let built = std::process::Command::new(env!("CARGO"))
                .args(["build", "-q", "-p", "shim"])
                .status()
                .unwrap();
            assert!(built.success());
        }
        path
    })
    .clone()
}

pub struct Node {
    pub directory: PathBuf,
    pub runtime: LinuxRuntime,
    pub owned: bool,
}

impl Node {
    pub async fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory =
            std::env::temp_dir().join(format!("gantry-rt-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        image::write(&directory.join("image.tar"));
        let mut node = Self::open(&directory).await;
        node.runtime
            .images()
            .import(&directory.join("image.tar"))
            .await
            .unwrap();
        node.owned = true;
        node
    }

    /// The runtime over what is in `directory` already.
    pub async fn open(directory: &Path) -> Self {
        let images = open_images(directory).await;
        let network = PodNetwork::open(NetworkConfig {
            state_dir: directory.join("network"),
            cni_conf_dir: directory.join("cni"),
            ..Default::default()
        })
        .await
        .unwrap();
        let config = LinuxRuntimeConfig {
            root_dir: directory.join("root"),
            state_dir: directory.join("state"),
            shim_path: Some(shim()),
            shim_cgroup: Some(shim_cgroup(directory)),
            open_files: Some(OPEN_FILES),
            cdi_spec_dirs: vec![directory.join("cdi")],
            ..Default::default()
        };
        let runtime = LinuxRuntime::open(config, images, network).await.unwrap();
        Self {
            directory: directory.to_owned(),
            runtime,
            owned: false,
        }
    }

    /// A sandbox on the host's network.
    pub fn sandbox_config(&self, name: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: PodSandboxMetadata {
                name: name.into(),
                uid: format!("uid-{name}"),
                namespace: "default".into(),
                attempt: 0,
            },
            hostname: name.into(),
            log_directory: self.directory.join("logs").join(name),
            cgroup_parent: format!("{}/pod-{name}", cgroup_root(&self.directory)),
            namespaces: NamespaceOptions {
                network: NamespaceMode::Node,
                pid: NamespaceMode::Container,
                ..Default::default()
            },
            ..Default::default()
        }
    }

    pub async fn sandbox(&self, name: &str) -> String {
        self.runtime
            .run_pod_sandbox(&self.sandbox_config(name))
            .await
            .unwrap()
    }

    pub async fn start(&self, sandbox: &str, config: &ContainerConfig) -> String {
        let id = self
            .runtime
            .create_container(sandbox, config)
            .await
            .unwrap();
        self.runtime.start_container(&id).await.unwrap();
        id
    }

    /// Runs a script to its end: (exit code, log).
    pub async fn run(&self, sandbox: &str, config: &ContainerConfig) -> (i32, String) {
        let id = self.start(sandbox, config).await;
        let status = self.wait(&id).await;
        (status.exit_code, self.log(&status))
    }

    pub async fn wait(&self, id: &str) -> ContainerStatus {
        let mut events = self.runtime.events();
        for _ in 0..600 {
            let status = self.runtime.container_status(id).await.unwrap();
            if status.state == ContainerState::Exited {
                return status;
            }
            let _ = tokio::time::timeout(Duration::from_millis(100), events.recv()).await;
        }
        panic!("container {id} does not end");
    }

    /// What the container wrote, without times.
    pub fn log(&self, status: &ContainerStatus) -> String {
        std::fs::read_to_string(&status.log_path)
            .unwrap()
            .lines()
            .map(|line| line.splitn(4, ' ').nth(3).unwrap_or("").to_owned() + "\n")
            .collect()
    }

    pub async fn exec(&self, id: &str, script: &str) -> (i32, String) {
        let command = ["/bin/sh", "-c", script].map(str::to_owned);
        let response = self
            .runtime
            .exec_sync(id, &command, Some(Duration::from_secs(20)), 1 << 20)
            .await
            .unwrap();
        let text = [response.stdout, response.stderr].concat();
        (response.exit_code, String::from_utf8(text).unwrap())
    }
}

/// A store that was just left may be held for a moment by its last work.
async fn open_images(directory: &Path) -> ImageStore {
    for _ in 0..100 {
        let config = ImageStoreConfig {
            root: directory.join("images"),
            ..Default::default()
        };
        match ImageStore::open(config).await {
            Err(images::ImageStoreError::Locked { .. }) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            result => return result.unwrap(),
        }
    }
    panic!("the image store stays locked");
}

impl Drop for Node {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        let (runtime, directory) = (self.runtime.clone(), self.directory.clone());
        let cleanup = std::thread::spawn(move || {
            let executor = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            executor.block_on(async {
                for sandbox in runtime.list_pod_sandboxes().await.unwrap() {
                    if let Err(error) = runtime.remove_pod_sandbox(&sandbox.id).await {
                        eprintln!("remove sandbox: {error}");
                    }
                }
            });
        });
        let _ = cleanup.join();
        remove_cgroups(&directory);
        if !std::thread::panicking() {
            std::fs::remove_dir_all(&directory).unwrap();
        }
    }
}

fn remove_cgroups(node: &Path) {
    fn remove(directory: &Path) {
        if let Ok(entries) = std::fs::read_dir(directory) {
            for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
                remove(&entry.path());
            }
        }
        let _ = std::fs::remove_dir(directory);
    }
    let name = cgroup_root(node);
    for entry in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let path = entry.path().join(name.trim_start_matches('/'));
        if path.is_dir() {
            remove(&path);
        }
    }
}

/// A container that runs a script with `sh`.
pub fn script(text: &str) -> ContainerConfig {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    ContainerConfig {
        metadata: ContainerMetadata {
            name: format!("c{number}"),
            attempt: 0,
        },
        image: image::NAME.into(),
        user_specified_image: image::NAME.into(),
        command: ["/bin/sh", "-c", text].map(str::to_owned).to_vec(),
        log_path: format!("c{number}/0.log").into(),
        security: SecurityContext {
            namespaces: NamespaceOptions {
                network: NamespaceMode::Node,
                pid: NamespaceMode::Container,
                ..Default::default()
            },
            ..Default::default()
        },
        ..Default::default()
    }
}
