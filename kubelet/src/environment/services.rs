//! The variables that name services: `FOO_SERVICE_HOST` and Docker's link variables.
//!
//! Owns: [`from_services`], pure. Upstream: `pkg/kubelet/envvars`, `getServiceEnvVarMap`, v1.36.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;

fn cluster_ip(service: &Service) -> Option<&str> {
    let ip = service.spec.as_ref()?.cluster_ip.as_deref()?;
    (!ip.is_empty() && ip != "None").then_some(ip)
}

fn variable_name(text: &str) -> String {
    text.replace('-', "_").to_uppercase()
}

/// `kubernetes` of namespace `default` always; the others of `namespace` when `links` asks for them.
pub fn from_services(
    services: &[Arc<Service>],
    namespace: &str,
    links: bool,
) -> BTreeMap<String, String> {
    let mut chosen: BTreeMap<&str, &Service> = BTreeMap::new();
    for service in services.iter().filter(|s| cluster_ip(s).is_some()) {
        let Some(name) = service.metadata.name.as_deref() else {
            continue;
        };
        let in_namespace = service.metadata.namespace.as_deref();
        if in_namespace == Some("default") && name == "kubernetes" {
            chosen.entry(name).or_insert(service);
        } else if in_namespace == Some(namespace) && links {
            chosen.insert(name, service);
        }
    }
    let mut env = BTreeMap::new();
    for (name, service) in chosen {
        add_service(&mut env, name, service);
    }
    env
}

fn add_service(env: &mut BTreeMap<String, String>, name: &str, service: &Service) {
    let Some(ip) = cluster_ip(service) else {
        return;
    };
    let prefix = variable_name(name);
    let ports = service
        .spec
        .as_ref()
        .and_then(|s| s.ports.as_deref())
        .unwrap_or_default();
    env.insert(format!("{prefix}_SERVICE_HOST"), ip.to_owned());
    for (i, port) in ports.iter().enumerate() {
        if i == 0 {
            env.insert(format!("{prefix}_SERVICE_PORT"), port.port.to_string());
        }
        if let Some(port_name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            env.insert(
                format!("{prefix}_SERVICE_PORT_{}", variable_name(port_name)),
                port.port.to_string(),
            );
        }
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let lower = protocol.to_lowercase();
        let host_port = if ip.contains(':') {
            format!("[{ip}]:{}", port.port)
        } else {
            format!("{ip}:{}", port.port)
        };
        let url = format!("{lower}://{host_port}");
        if i == 0 {
            env.insert(format!("{prefix}_PORT"), url.clone());
        }
        let port_prefix = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
        env.insert(port_prefix.clone(), url);
        env.insert(format!("{port_prefix}_PROTO"), lower);
        env.insert(format!("{port_prefix}_PORT"), port.port.to_string());
        env.insert(format!("{port_prefix}_ADDR"), ip.to_owned());
    }
}
