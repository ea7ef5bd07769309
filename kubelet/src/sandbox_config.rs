//! From a pod to the sandbox the runtime makes.
//!
//! Owns: [`generate_pod_sandbox_config`], pure but for what its arguments were read from. Upstream:
//! `pkg/kubelet/kuberuntime/kuberuntime_sandbox*.go`, v1.36.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use k8s_openapi::api::core::v1::Pod;
use runtime::api as cri;

use crate::pod::{self, label};

/// What the rest of the kubelet found out about the pod.
pub struct SandboxFacts {
    pub hostname: String,
    pub dns: cri::DnsConfig,
    pub log_directory: PathBuf,
    pub cgroup_parent: String,
    pub runtime_handler: String,
    pub user: Option<cri::UserNamespace>,
}

/// Labels of the pod, and those by which it is found again.
pub fn new_pod_labels(pod: &Pod) -> cri::Labels {
    let mut labels = pod.metadata.labels.clone().unwrap_or_default();
    labels.insert(label::POD_NAME.to_owned(), pod::name(pod).to_owned());
    labels.insert(
        label::POD_NAMESPACE.to_owned(),
        pod::namespace(pod).to_owned(),
    );
    labels.insert(label::POD_UID.to_owned(), pod::uid(pod).to_owned());
    labels
}

/// Namespaces of the pod as a whole; a container's PID namespace may differ.
pub fn namespaces_for_pod(pod: &Pod, user: Option<cri::UserNamespace>) -> cri::NamespaceOptions {
    let spec = pod.spec.as_ref();
    let on = |v: Option<bool>| v.unwrap_or(false);
    cri::NamespaceOptions {
        network: if pod::is_host_network(pod) {
            cri::NamespaceMode::Node
        } else {
            cri::NamespaceMode::Pod
        },
        pid: if on(spec.and_then(|s| s.host_pid)) {
            cri::NamespaceMode::Node
        } else if on(spec.and_then(|s| s.share_process_namespace)) {
            cri::NamespaceMode::Pod
        } else {
            cri::NamespaceMode::Container
        },
        ipc: if on(spec.and_then(|s| s.host_ipc)) {
            cri::NamespaceMode::Node
        } else {
            cri::NamespaceMode::Pod
        },
        target_id: None,
        user,
    }
}

fn protocol(text: Option<&str>) -> cri::Protocol {
    match text {
        Some("UDP") => cri::Protocol::Udp,
        Some("SCTP") => cri::Protocol::Sctp,
        _ => cri::Protocol::Tcp,
    }
}

fn port_mappings(pod: &Pod) -> Vec<cri::PortMapping> {
    let sidecars = pod::init_containers(pod)
        .iter()
        .filter(|c| pod::is_restartable_init(c));
    let mut out: Vec<cri::PortMapping> = vec![];
    let mut seen = HashSet::new();
    for port in sidecars
        .chain(pod::containers(pod))
        .flat_map(|c| c.ports.iter().flatten())
    {
        let Some(host_port) = port
            .host_port
            .and_then(|p| u16::try_from(p).ok())
            .filter(|p| *p != 0)
        else {
            continue;
        };
        let container_port = u16::try_from(port.container_port).unwrap_or(0);
        let (of, address) = (port.protocol.as_deref(), port.host_ip.as_deref());
        // A pod may have ten thousands of them.
        if seen.insert((of, address, host_port, container_port)) {
            out.push(cri::PortMapping {
                protocol: protocol(of),
                container_port,
                host_port,
                host_ip: address.unwrap_or_default().to_owned(),
            });
        }
    }
    out
}

pub fn generate_pod_sandbox_config(
    pod: &Pod,
    attempt: u32,
    facts: SandboxFacts,
) -> cri::PodSandboxConfig {
    let spec = pod.spec.as_ref();
    let context = spec.and_then(|s| s.security_context.as_ref());
    let sysctls: BTreeMap<String, String> = context
        .and_then(|c| c.sysctls.as_deref())
        .unwrap_or_default()
        .iter()
        // Slashes and dots name the same; the kernel's own separator is needed to tell namespaced ones.
        .map(|s| (s.name.replace('/', "."), s.value.clone()))
        .collect();
    let privileged = pod::containers(pod)
        .iter()
        .chain(pod::init_containers(pod))
        .any(|c| {
            c.security_context
                .as_ref()
                .and_then(|s| s.privileged)
                .unwrap_or(false)
        });
    let supplemental_groups = context
        .map(|c| {
            c.fs_group
                .into_iter()
                .chain(c.supplemental_groups.iter().flatten().copied())
        })
        .into_iter()
        .flatten()
        .filter_map(|g| u32::try_from(g).ok())
        .collect();
    cri::PodSandboxConfig {
        origin: cri::Origin::Kubelet,
        metadata: cri::PodSandboxMetadata {
            name: pod::name(pod).to_owned(),
            uid: pod::uid(pod).to_owned(),
            namespace: pod::namespace(pod).to_owned(),
            attempt,
        },
        // The node's own name where the network is the node's.
        hostname: if pod::is_host_network(pod) {
            String::new()
        } else {
            facts.hostname
        },
        log_directory: facts.log_directory,
        dns: Some(facts.dns),
        port_mappings: if pod::is_host_network(pod) {
            vec![]
        } else {
            port_mappings(pod)
        },
        labels: new_pod_labels(pod),
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        cgroup_parent: facts.cgroup_parent,
        namespaces: namespaces_for_pod(pod, facts.user),
        sysctls,
        shm_size_bytes: None,
        runtime_handler: facts.runtime_handler,
        privileged,
        supplemental_groups,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{Container, ContainerPort, PodSpec};

    #[test]
    fn host_ports_and_namespaces() {
        let port = |host_port| ContainerPort {
            container_port: 80,
            host_port,
            ..Default::default()
        };
        let pod = Pod {
            spec: Some(PodSpec {
                containers: vec![Container {
                    ports: Some(vec![port(Some(8080)), port(None)]),
                    ..Default::default()
                }],
                share_process_namespace: Some(true),
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_eq!(port_mappings(&pod).len(), 1);
        assert_eq!(namespaces_for_pod(&pod, None).pid, cri::NamespaceMode::Pod);
    }
}
