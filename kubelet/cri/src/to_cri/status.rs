//! Sandboxes and containers.

use cri_spec::v1;
use runtime::{
    ContainerMetadata, ContainerState, ContainerStatus, IdMapping, Mount, MountPropagation,
    NamespaceMode, NamespaceOptions, PodSandboxMetadata, PodSandboxStatus, Resources, SandboxState,
};

use super::nanoseconds;

fn sandbox_metadata(metadata: &PodSandboxMetadata) -> v1::PodSandboxMetadata {
    v1::PodSandboxMetadata {
        name: metadata.name.clone(),
        uid: metadata.uid.clone(),
        namespace: metadata.namespace.clone(),
        attempt: metadata.attempt,
    }
}

fn sandbox_state(state: SandboxState) -> i32 {
    match state {
        SandboxState::Ready => v1::PodSandboxState::SandboxReady.into(),
        SandboxState::NotReady => v1::PodSandboxState::SandboxNotready.into(),
    }
}

pub fn sandbox(status: &PodSandboxStatus) -> v1::PodSandbox {
    v1::PodSandbox {
        id: status.id.clone(),
        metadata: Some(sandbox_metadata(&status.metadata)),
        state: sandbox_state(status.state),
        created_at: nanoseconds(status.created_at),
        labels: status.labels.clone().into_iter().collect(),
        annotations: status.annotations.clone().into_iter().collect(),
        runtime_handler: status.runtime_handler.clone(),
    }
}

fn mode(mode: NamespaceMode) -> i32 {
    match mode {
        NamespaceMode::Pod => v1::NamespaceMode::Pod.into(),
        NamespaceMode::Container => v1::NamespaceMode::Container.into(),
        NamespaceMode::Node => v1::NamespaceMode::Node.into(),
        NamespaceMode::Target => v1::NamespaceMode::Target.into(),
    }
}

fn namespaces(options: &NamespaceOptions) -> v1::NamespaceOption {
    let mappings = |mappings: &[IdMapping]| {
        mappings
            .iter()
            .map(|mapping| v1::IdMapping {
                host_id: mapping.host_id,
                container_id: mapping.container_id,
                length: mapping.length,
            })
            .collect()
    };
    v1::NamespaceOption {
        network: mode(options.network),
        pid: mode(options.pid),
        ipc: mode(options.ipc),
        target_id: options.target_id.clone().unwrap_or_default(),
        userns_options: options.user.as_ref().map(|user| v1::UserNamespace {
            mode: v1::NamespaceMode::Pod.into(),
            uids: mappings(&user.uids),
            gids: mappings(&user.gids),
        }),
    }
}

pub fn sandbox_status(status: &PodSandboxStatus) -> v1::PodSandboxStatus {
    let mut ips = status.ips.iter();
    v1::PodSandboxStatus {
        id: status.id.clone(),
        metadata: Some(sandbox_metadata(&status.metadata)),
        state: sandbox_state(status.state),
        created_at: nanoseconds(status.created_at),
        network: Some(v1::PodSandboxNetworkStatus {
            ip: ips.next().cloned().unwrap_or_default(),
            additional_ips: ips.map(|ip| v1::PodIp { ip: ip.clone() }).collect(),
        }),
        linux: Some(v1::LinuxPodSandboxStatus {
            namespaces: Some(v1::Namespace {
                options: Some(namespaces(&status.namespaces)),
            }),
        }),
        labels: status.labels.clone().into_iter().collect(),
        annotations: status.annotations.clone().into_iter().collect(),
        runtime_handler: status.runtime_handler.clone(),
    }
}

fn container_metadata(metadata: &ContainerMetadata) -> v1::ContainerMetadata {
    v1::ContainerMetadata {
        name: metadata.name.clone(),
        attempt: metadata.attempt,
    }
}

fn container_state(state: ContainerState) -> i32 {
    match state {
        ContainerState::Created => v1::ContainerState::ContainerCreated.into(),
        ContainerState::Running => v1::ContainerState::ContainerRunning.into(),
        ContainerState::Exited => v1::ContainerState::ContainerExited.into(),
        ContainerState::Unknown => v1::ContainerState::ContainerUnknown.into(),
    }
}

fn image(status: &ContainerStatus) -> v1::ImageSpec {
    v1::ImageSpec {
        image: status.image.clone(),
        user_specified_image: status.image.clone(),
        ..v1::ImageSpec::default()
    }
}

pub fn container(status: &ContainerStatus) -> v1::Container {
    v1::Container {
        id: status.id.clone(),
        pod_sandbox_id: status.sandbox_id.clone(),
        metadata: Some(container_metadata(&status.metadata)),
        image: Some(image(status)),
        // As containerd: the list says the id, the status where it came from.
        image_ref: status.image_id.clone(),
        state: container_state(status.state),
        created_at: nanoseconds(status.created_at),
        labels: status.labels.clone().into_iter().collect(),
        annotations: status.annotations.clone().into_iter().collect(),
        image_id: status.image_id.clone(),
    }
}

pub fn container_status(status: &ContainerStatus) -> v1::ContainerStatus {
    v1::ContainerStatus {
        id: status.id.clone(),
        metadata: Some(container_metadata(&status.metadata)),
        state: container_state(status.state),
        created_at: nanoseconds(status.created_at),
        started_at: status.started_at.map_or(0, nanoseconds),
        finished_at: status.finished_at.map_or(0, nanoseconds),
        exit_code: status.exit_code,
        image: Some(image(status)),
        image_ref: status.image_ref.clone(),
        reason: status.reason.clone(),
        message: status.message.clone(),
        labels: status.labels.clone().into_iter().collect(),
        annotations: status.annotations.clone().into_iter().collect(),
        mounts: status.mounts.iter().map(mount).collect(),
        log_path: status.log_path.display().to_string(),
        resources: Some(v1::ContainerResources {
            linux: Some(resources(&status.resources)),
            windows: None,
        }),
        image_id: status.image_id.clone(),
        user: status
            .user
            .as_ref()
            .map(|(uid, gid, groups)| v1::ContainerUser {
                linux: Some(v1::LinuxContainerUser {
                    uid: i64::from(*uid),
                    gid: i64::from(*gid),
                    supplemental_groups: supplemental_groups(*gid, groups),
                }),
            }),
        stop_signal: signal(&status.stop_signal),
    }
}

/// With the primary one, as containerd and the kernel's `/proc/self/status` of its containers have it.
fn supplemental_groups(gid: u32, groups: &[u32]) -> Vec<i64> {
    let mut all: Vec<i64> = groups.iter().map(|group| i64::from(*group)).collect();
    if !groups.contains(&gid) {
        all.insert(0, i64::from(gid));
    }
    all
}

fn mount(mount: &Mount) -> v1::Mount {
    let propagation = match mount.propagation {
        MountPropagation::Private => v1::MountPropagation::PropagationPrivate,
        MountPropagation::HostToContainer => v1::MountPropagation::PropagationHostToContainer,
        MountPropagation::Bidirectional => v1::MountPropagation::PropagationBidirectional,
    };
    v1::Mount {
        container_path: mount.container_path.clone(),
        host_path: mount.host_path.display().to_string(),
        readonly: mount.readonly,
        propagation: propagation.into(),
        recursive_read_only: mount.recursive_read_only,
        image: mount.image.as_ref().map(|image| v1::ImageSpec {
            image: image.clone(),
            // Clients say the id that the pull told them; a name may mean another image by now.
            image_ref: match image.starts_with("sha256:") {
                true => image.clone(),
                false => String::new(),
            },
            ..v1::ImageSpec::default()
        }),
        image_sub_path: mount.image_sub_path.clone(),
        ..v1::Mount::default()
    }
}

pub fn resources(resources: &Resources) -> v1::LinuxContainerResources {
    let signed = |value: Option<u64>| value.and_then(|v| i64::try_from(v).ok()).unwrap_or(0);
    v1::LinuxContainerResources {
        cpu_period: signed(resources.cpu_period_us),
        cpu_quota: resources.cpu_quota_us.unwrap_or(0),
        cpu_shares: signed(resources.cpu_shares),
        memory_limit_in_bytes: resources.memory_limit_bytes.unwrap_or(0),
        oom_score_adj: i64::from(resources.oom_score_adj),
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        hugepage_limits: resources
            .hugepage_limits
            .iter()
            .map(|(page_size, limit)| v1::HugepageLimit {
                page_size: page_size.clone(),
                limit: *limit,
            })
            .collect(),
        unified: resources.unified.clone().into_iter().collect(),
        memory_swap_limit_in_bytes: resources.memory_swap_limit_bytes.unwrap_or(0),
    }
}

/// The CRI's name of a signal; what it has no name for (a number) is said as the default.
fn signal(name: &str) -> i32 {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    let name = format!(
        "SIGNAL_SIG{}",
        bare.replace('+', "PLUS").replace('-', "MINUS")
    );
    v1::Signal::from_str_name(&name)
        .unwrap_or(v1::Signal::RuntimeDefault)
        .into()
}
