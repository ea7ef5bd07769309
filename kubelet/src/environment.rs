//! The environment variables of a container.
//!
//! Owns: [`make_environment_variables`]: services, `envFrom`, `env` and `$(VAR)` references. Gets API objects
//! from [`Objects`] and never caches them. Upstream: `makeEnvironmentVariables`, `pkg/kubelet/envvars`, v1.36.

pub mod env_file;
pub mod expansion;
pub mod services;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use component_helpers::resources::ResourceList;
use k8s_openapi::api::core::v1::{ConfigMap, Container, ObjectFieldSelector, Pod, Secret, Service};
use volumes::field_path::{FieldPathError, extract_field_path_as_string};
use volumes::resource_field::{ResourceFieldError, extract_resource_value};

use crate::pod;
use expansion::{MAX_BYTES, expand};

/// Why the environment cannot be made; the container waits with reason `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    #[error("services have not yet been read at least once, cannot construct envvars")]
    ServicesNotSynced,
    #[error("{resource} {name:?} not found")]
    NotFound {
        resource: &'static str,
        name: String,
    },
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey {
        kind: &'static str,
        namespace: String,
        name: String,
        key: String,
    },
    #[error(transparent)]
    Source(#[from] volumes::SourceError),
    #[error(transparent)]
    Field(#[from] FieldPathError),
    #[error(transparent)]
    Resource(#[from] ResourceFieldError),
    #[error("cannot find the volume {0:?} referenced by FileKeyRef")]
    NoVolume(String),
    #[error("couldn't parse env file")]
    EnvFile,
    #[error("environment variable key {key:?} not found in file {path:?}")]
    NoFileKey { key: String, path: String },
    #[error("the addresses of the node are not known yet")]
    NoHostIp,
    #[error("the environment has more than {MAX_BYTES} bytes: no program can be started with it")]
    TooLarge,
}

/// Where API objects and files come from.
#[async_trait]
pub trait Objects: Send + Sync {
    async fn config_map(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<ConfigMap>>, volumes::SourceError>;
    async fn secret(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Secret>>, volumes::SourceError>;
    /// `None` until the services were listed once.
    fn services(&self) -> Option<Vec<Arc<Service>>>;
    /// The text of a file in a volume of the pod (`fileKeyRef`); never outside the volume.
    async fn volume_file(
        &self,
        pod_uid: &str,
        volume: &str,
        path: &str,
    ) -> Result<String, EnvironmentError>;
}

/// What the node adds.
pub struct NodeFacts<'a> {
    pub host_ips: &'a [String],
    pub pod_ips: &'a [String],
    pub allocatable: &'a ResourceList,
}

/// Variables by name, within [`MAX_BYTES`].
#[derive(Default)]
struct Variables {
    by_name: BTreeMap<String, String>,
    bytes: usize,
}

impl Variables {
    fn set(&mut self, name: String, value: String) -> Result<(), EnvironmentError> {
        // Each ends with a zero, and has a sign of equality in the middle.
        let size = |name: &str, value: &str| name.len() + value.len() + 2;
        self.bytes += size(&name, &value);
        if let Some(old) = self.by_name.get(&name) {
            self.bytes -= size(&name, old);
        }
        if self.bytes > MAX_BYTES {
            return Err(EnvironmentError::TooLarge);
        }
        self.by_name.insert(name, value);
        Ok(())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.by_name.get(name).map(String::as_str)
    }
}

/// The variables in upstream's order of precedence: `env` over `envFrom` over services. Sorted by name.
///
/// DIFFERS: a pod of a few kilobytes may ask for any number of gigabytes (references to references, one ConfigMap under many
/// prefixes). Upstream makes them all, for a program that the kernel then does not start.
///
/// # Errors
/// A retry helps: objects may appear, services may be synced.
pub async fn make_environment_variables(
    pod: &Pod,
    container: &Container,
    facts: &NodeFacts<'_>,
    objects: &dyn Objects,
) -> Result<Vec<(String, String)>, EnvironmentError> {
    let namespace = pod::namespace(pod);
    let links = pod
        .spec
        .as_ref()
        .and_then(|s| s.enable_service_links)
        .unwrap_or(true);
    let service_env = match objects.services() {
        Some(list) => services::from_services(&list, namespace, links),
        None if pod::is_static(pod) => BTreeMap::new(),
        None => return Err(EnvironmentError::ServicesNotSynced),
    };

    let mut env = Variables::default();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(r) = &from.config_map_ref {
            if let Some(map) = get_config_map(objects, namespace, &r.name, r.optional).await? {
                for (key, value) in map.data.iter().flatten() {
                    env.set(format!("{prefix}{key}"), value.clone())?;
                }
            }
        } else if let Some(r) = &from.secret_ref
            && let Some(secret) = get_secret(objects, namespace, &r.name, r.optional).await?
        {
            for (key, value) in secret.data.iter().flatten() {
                let value = String::from_utf8_lossy(&value.0).into_owned();
                env.set(format!("{prefix}{key}"), value)?;
            }
        }
    }

    for var in container.env.iter().flatten() {
        let value = match (&var.value, &var.value_from) {
            (Some(text), _) if !text.is_empty() => {
                let of_services = |name: &str| service_env.get(name).map(String::as_str);
                let known = |name: &str| env.get(name).or_else(|| of_services(name));
                let value = expand(text, MAX_BYTES, known);
                Some(value.map_err(|_| EnvironmentError::TooLarge)?)
            }
            (_, Some(source)) => resolve(pod, container, source, facts, objects).await?,
            _ => Some(String::new()),
        };
        // `None`: an optional source that is not there leaves the variable out.
        if let Some(value) = value {
            env.set(var.name.clone(), value)?;
        }
    }
    for (name, value) in service_env {
        if env.get(&name).is_none() {
            env.set(name, value)?;
        }
    }
    Ok(env.by_name.into_iter().collect())
}

async fn get_config_map(
    objects: &dyn Objects,
    namespace: &str,
    name: &str,
    optional: Option<bool>,
) -> Result<Option<Arc<ConfigMap>>, EnvironmentError> {
    match objects.config_map(namespace, name).await? {
        Some(map) => Ok(Some(map)),
        None if optional == Some(true) => Ok(None),
        None => Err(EnvironmentError::NotFound {
            resource: "configmap",
            name: name.to_owned(),
        }),
    }
}

async fn get_secret(
    objects: &dyn Objects,
    namespace: &str,
    name: &str,
    optional: Option<bool>,
) -> Result<Option<Arc<Secret>>, EnvironmentError> {
    match objects.secret(namespace, name).await? {
        Some(secret) => Ok(Some(secret)),
        None if optional == Some(true) => Ok(None),
        None => Err(EnvironmentError::NotFound {
            resource: "secret",
            name: name.to_owned(),
        }),
    }
}

async fn resolve(
    pod: &Pod,
    container: &Container,
    source: &k8s_openapi::api::core::v1::EnvVarSource,
    facts: &NodeFacts<'_>,
    objects: &dyn Objects,
) -> Result<Option<String>, EnvironmentError> {
    let namespace = pod::namespace(pod);
    let missing = |kind, name: &str, key: &str| EnvironmentError::NoKey {
        kind,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        key: key.to_owned(),
    };
    if let Some(field) = &source.field_ref {
        return pod_field_selector_runtime_value(field, pod, facts).map(Some);
    }
    if let Some(resource) = &source.resource_field_ref {
        return Ok(Some(extract_resource_value(
            resource,
            pod,
            &container.name,
            facts.allocatable,
        )?));
    }
    if let Some(r) = &source.config_map_key_ref {
        let Some(map) = get_config_map(objects, namespace, &r.name, r.optional).await? else {
            return Ok(None);
        };
        return match map.data.as_ref().and_then(|d| d.get(&r.key)) {
            Some(value) => Ok(Some(value.clone())),
            None if r.optional == Some(true) => Ok(None),
            None => Err(missing("ConfigMap", &r.name, &r.key)),
        };
    }
    if let Some(r) = &source.secret_key_ref {
        let Some(secret) = get_secret(objects, namespace, &r.name, r.optional).await? else {
            return Ok(None);
        };
        return match secret.data.as_ref().and_then(|d| d.get(&r.key)) {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None if r.optional == Some(true) => Ok(None),
            None => Err(missing("Secret", &r.name, &r.key)),
        };
    }
    if let Some(r) = &source.file_key_ref {
        let text = objects
            .volume_file(pod::uid(pod), &r.volume_name, &r.path)
            .await?;
        let found = env_file::value(&text, &r.key).map_err(|error| {
            tracing::error!(pod = %pod::format(pod), path = r.path, %error, "failed to parse env file");
            EnvironmentError::EnvFile
        })?;
        // Upstream tells a key that is missing and one without a value alike.
        return match found.is_empty() {
            false => Ok(Some(found)),
            true if r.optional == Some(true) => Ok(None),
            true => Err(EnvironmentError::NoFileKey {
                key: r.key.clone(),
                path: r.path.clone(),
            }),
        };
    }
    Ok(Some(String::new()))
}

/// Those of the node's own family first, as the pod's status has them. Upstream: `sortPodIPs`.
fn sorted_pod_ips(facts: &NodeFacts<'_>) -> Vec<String> {
    let is_v6 = |ip: &String| ip.contains(':');
    let mut ips = facts.pod_ips.to_vec();
    if let Some(node) = facts.host_ips.first() {
        ips.sort_by_key(|ip| is_v6(ip) != is_v6(node));
    }
    ips
}

/// `fieldRef` of an environment variable: metadata, and what only a running pod has.
pub fn pod_field_selector_runtime_value(
    field: &ObjectFieldSelector,
    pod: &Pod,
    facts: &NodeFacts<'_>,
) -> Result<String, EnvironmentError> {
    let spec = pod.spec.as_ref();
    let first = |list: &[String]| list.first().cloned();
    let pod_ips = sorted_pod_ips(facts);
    Ok(match field.field_path.as_str() {
        "spec.nodeName" => spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => spec
            .and_then(|s| s.service_account_name.clone())
            .unwrap_or_default(),
        "status.hostIP" => first(facts.host_ips).ok_or(EnvironmentError::NoHostIp)?,
        "status.hostIPs" if facts.host_ips.is_empty() => return Err(EnvironmentError::NoHostIp),
        "status.hostIPs" => facts.host_ips.join(","),
        "status.podIP" => first(&pod_ips).unwrap_or_default(),
        "status.podIPs" => pod_ips.join(","),
        other => extract_field_path_as_string(pod, other)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;
    use k8s_openapi::api::core::v1::{
        ConfigMapKeySelector, EnvFromSource, EnvVar, EnvVarSource, SecretEnvSource, ServicePort,
        ServiceSpec,
    };

    struct Fixture;

    #[async_trait]
    impl Objects for Fixture {
        async fn config_map(
            &self,
            _: &str,
            name: &str,
        ) -> Result<Option<Arc<ConfigMap>>, volumes::SourceError> {
            let data = Some([("k".to_owned(), "v".to_owned())].into());
            Ok((name == "cm").then(|| {
                Arc::new(ConfigMap {
                    data,
                    ..Default::default()
                })
            }))
        }
        async fn secret(
            &self,
            _: &str,
            name: &str,
        ) -> Result<Option<Arc<Secret>>, volumes::SourceError> {
            let data = Some([("s".to_owned(), ByteString(b"secret".to_vec()))].into());
            Ok((name == "sec").then(|| {
                Arc::new(Secret {
                    data,
                    ..Default::default()
                })
            }))
        }
        fn services(&self) -> Option<Vec<Arc<Service>>> {
            let mut service = Service::default();
            service.metadata.name = Some("kubernetes".into());
            service.metadata.namespace = Some("default".into());
            service.spec = Some(ServiceSpec {
                cluster_ip: Some("10.96.0.1".into()),
                ports: Some(vec![ServicePort {
                    name: Some("https".into()),
                    port: 443,
                    ..Default::default()
                }]),
                ..Default::default()
            });
            Some(vec![Arc::new(service)])
        }
        async fn volume_file(&self, _: &str, _: &str, _: &str) -> Result<String, EnvironmentError> {
            Err(EnvironmentError::EnvFile)
        }
    }

    async fn run(container: Container) -> Result<BTreeMap<String, String>, String> {
        let mut pod = Pod::default();
        pod.metadata.namespace = Some("ns".into());
        pod.metadata.name = Some("p".into());
        let facts = NodeFacts {
            host_ips: &["10.0.0.9".into()],
            pod_ips: &["10.1.0.2".into()],
            allocatable: &Default::default(),
        };
        make_environment_variables(&pod, &container, &facts, &Fixture)
            .await
            .map(|list| list.into_iter().collect())
            .map_err(|e| e.to_string())
    }

    #[tokio::test]
    async fn sources_in_order() {
        let var = |name: &str, value: &str| EnvVar {
            name: name.into(),
            value: Some(value.into()),
            ..Default::default()
        };
        let env = run(Container {
            env_from: Some(vec![EnvFromSource {
                prefix: Some("P_".into()),
                secret_ref: Some(SecretEnvSource {
                    name: "sec".into(),
                    optional: None,
                }),
                ..Default::default()
            }]),
            env: Some(vec![
                var("A", "1"),
                var("B", "$(A)-$(P_s)-$$(A)-$(NONE)"),
                var("H", "$(KUBERNETES_SERVICE_HOST)"),
            ]),
            ..Default::default()
        })
        .await
        .unwrap();
        assert_eq!(env["B"], "1-secret-$(A)-$(NONE)");
        assert_eq!(env["H"], "10.96.0.1");
        assert_eq!(env["KUBERNETES_PORT_443_TCP"], "tcp://10.96.0.1:443");
        assert_eq!(env["KUBERNETES_SERVICE_PORT_HTTPS"], "443");
    }

    /// A pod of a few kilobytes must not have the kubelet make gigabytes.
    #[tokio::test]
    async fn an_environment_that_no_program_can_have_is_refused() {
        let var = |name: String, value: String| EnvVar {
            name,
            value: Some(value),
            ..Default::default()
        };
        let refused =
            "the environment has more than 6291456 bytes: no program can be started with it";
        // Each variable is the one before a thousand times.
        let mut vars = vec![var("V0".into(), "0123456789".into())];
        vars.extend((1..9).map(|n| var(format!("V{n}"), format!("$(V{})", n - 1).repeat(1000))));
        let laughs = Container {
            env: Some(vars),
            ..Default::default()
        };
        assert_eq!(run(laughs).await.unwrap_err(), refused);
        // One object under many names.
        let long = "P".repeat(1 << 10);
        let from = |n: u32| EnvFromSource {
            prefix: Some(format!("{long}{n}")),
            secret_ref: Some(SecretEnvSource {
                name: "sec".into(),
                optional: None,
            }),
            ..Default::default()
        };
        let many = |n: u32| Container {
            env_from: Some((0..n).map(from).collect()),
            ..Default::default()
        };
        assert_eq!(run(many(10_000)).await.unwrap_err(), refused);
        assert!(run(many(5_000)).await.unwrap().len() > 5_000);
    }

    #[test]
    fn a_pods_addresses_are_in_the_order_of_its_status() {
        let check = |host_ips: &[&str], pod_ips: &[&str], expect: (&str, &str)| {
            let owned =
                |ips: &[&str]| -> Vec<String> { ips.iter().map(|ip| (*ip).into()).collect() };
            let facts = NodeFacts {
                host_ips: &owned(host_ips),
                pod_ips: &owned(pod_ips),
                allocatable: &Default::default(),
            };
            let value = |path: &str| {
                let field = ObjectFieldSelector {
                    field_path: path.into(),
                    ..Default::default()
                };
                pod_field_selector_runtime_value(&field, &Pod::default(), &facts).unwrap()
            };
            let got = (value("status.podIP"), value("status.podIPs"));
            assert_eq!((got.0.as_str(), got.1.as_str()), expect);
        };
        let both = ["10.1.0.2", "fd00::2"];
        check(&["fd00::1"], &both, ("fd00::2", "fd00::2,10.1.0.2"));
        check(&["10.0.0.9"], &both, ("10.1.0.2", "10.1.0.2,fd00::2"));
        check(&[], &both, ("10.1.0.2", "10.1.0.2,fd00::2"));
        check(&["10.0.0.9"], &[], ("", ""));
    }

    #[tokio::test]
    async fn a_missing_key_is_named() {
        let of = |name: &str, key: &str, optional| Container {
            env: Some(vec![EnvVar {
                name: "X".into(),
                value_from: Some(EnvVarSource {
                    config_map_key_ref: Some(ConfigMapKeySelector {
                        name: name.into(),
                        key: key.into(),
                        optional,
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            }]),
            ..Default::default()
        };
        assert_eq!(
            run(of("cm", "nope", None)).await.unwrap_err(),
            "couldn't find key nope in ConfigMap ns/cm"
        );
        assert_eq!(
            run(of("gone", "k", None)).await.unwrap_err(),
            "configmap \"gone\" not found"
        );
        assert!(
            !run(of("gone", "k", Some(true)))
                .await
                .unwrap()
                .contains_key("X")
        );
        assert_eq!(run(of("cm", "k", None)).await.unwrap()["X"], "v");
    }
}
