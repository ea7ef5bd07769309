//! From the CRI's messages to the runtime's types. Pure.
//!
//! **Invariant:** no field is ignored in silence: it is carried out, it is refused by its name, or a comment here says why there is
//! nothing to carry out.

mod container;
mod resources;
mod sandbox;
mod security;

#[cfg(test)]
mod tests;

use cri_spec::v1;
use runtime::{IdMapping, ImageAuth, NamespaceMode, NamespaceOptions, UserNamespace};

pub use container::container_config;
pub use resources::{resources, update};
pub use sandbox::sandbox_config;

use crate::error::FieldError;

/// What the node is, as far as requests can be refused for it.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeFacts {
    /// SELinux labels would have a meaning here.
    pub selinux: bool,
    /// AppArmor profiles have one.
    pub apparmor: bool,
}

impl NodeFacts {
    /// Of this machine.
    pub fn detect() -> Self {
        Self {
            selinux: std::path::Path::new("/sys/fs/selinux/enforce").exists(),
            apparmor: std::path::Path::new("/sys/kernel/security/apparmor/profiles").exists(),
        }
    }

    /// Labels are not set by this runtime. Without SELinux they have no effect, as with other runtimes.
    fn check_selinux(
        self,
        options: Option<&v1::SeLinuxOption>,
        field: &'static str,
    ) -> Result<(), FieldError> {
        match options {
            Some(options) if self.selinux && *options != v1::SeLinuxOption::default() => {
                Err(FieldError::NotBuilt {
                    field,
                    why: "it sets no SELinux labels yet",
                })
            }
            _ => Ok(()),
        }
    }
}

fn mode(value: i32, field: &'static str) -> Result<NamespaceMode, FieldError> {
    match v1::NamespaceMode::try_from(value) {
        Ok(v1::NamespaceMode::Pod) => Ok(NamespaceMode::Pod),
        Ok(v1::NamespaceMode::Container) => Ok(NamespaceMode::Container),
        Ok(v1::NamespaceMode::Node) => Ok(NamespaceMode::Node),
        Ok(v1::NamespaceMode::Target) => Ok(NamespaceMode::Target),
        Err(_) => Err(FieldError::invalid(field, value, "no such namespace mode")),
    }
}

/// Of the pod or of the node: the network and IPC namespaces know nothing else.
fn pod_or_node(value: i32, field: &'static str) -> Result<NamespaceMode, FieldError> {
    match mode(value, field)? {
        mode @ (NamespaceMode::Pod | NamespaceMode::Node) => Ok(mode),
        other => Err(FieldError::invalid(
            field,
            format!("{other:?}"),
            "must be POD or NODE",
        )),
    }
}

/// `None`: everything of the pod.
fn namespaces(options: Option<&v1::NamespaceOption>) -> Result<NamespaceOptions, FieldError> {
    let Some(options) = options else {
        return Ok(NamespaceOptions::default());
    };
    let pid = mode(options.pid, "namespace_options.pid")?;
    if pid == NamespaceMode::Target && options.target_id.is_empty() {
        return Err(FieldError::Missing("namespace_options.target_id"));
    }
    if pid != NamespaceMode::Target && !options.target_id.is_empty() {
        return Err(FieldError::invalid(
            "namespace_options.target_id",
            &options.target_id,
            "only with the PID namespace mode TARGET",
        ));
    }
    Ok(NamespaceOptions {
        network: pod_or_node(options.network, "namespace_options.network")?,
        pid,
        ipc: pod_or_node(options.ipc, "namespace_options.ipc")?,
        target_id: (!options.target_id.is_empty()).then(|| options.target_id.clone()),
        user: user_namespace(options.userns_options.as_ref())?,
    })
}

/// What a container has of its sandbox's namespaces: network, IPC and users are the sandbox's, whatever a container's configuration
/// leaves out.
///
/// Upstream: containerd's `WithPodNamespaces`.
///
/// # Errors
/// The container asks for what its sandbox has not.
pub fn namespaces_in(
    sandbox: &NamespaceOptions,
    wanted: &NamespaceOptions,
) -> Result<NamespaceOptions, FieldError> {
    for (of_sandbox, wanted, field) in [
        (sandbox.network, wanted.network, "namespace_options.network"),
        (sandbox.ipc, wanted.ipc, "namespace_options.ipc"),
    ] {
        if wanted == NamespaceMode::Node && of_sandbox != NamespaceMode::Node {
            let reason = "the pod sandbox has a namespace of its own";
            return Err(FieldError::invalid(field, "NODE", reason));
        }
    }
    if wanted.user.is_some() && wanted.user != sandbox.user {
        return Err(FieldError::invalid(
            "namespace_options.userns_options",
            format!("{:?}", wanted.user),
            "must be the pod sandbox's",
        ));
    }
    let pid = match (wanted.pid, sandbox.pid) {
        (NamespaceMode::Pod, NamespaceMode::Node) => NamespaceMode::Node,
        // Nothing runs in a sandbox by itself: what is shared with nobody is the container's own.
        (NamespaceMode::Pod, NamespaceMode::Container) => NamespaceMode::Container,
        (wanted, _) => wanted,
    };
    Ok(NamespaceOptions {
        network: sandbox.network,
        pid,
        ipc: sandbox.ipc,
        target_id: wanted.target_id.clone(),
        user: sandbox.user.clone(),
    })
}

fn user_namespace(
    options: Option<&v1::UserNamespace>,
) -> Result<Option<UserNamespace>, FieldError> {
    let Some(options) = options else {
        return Ok(None);
    };
    let field = "namespace_options.userns_options";
    match mode(options.mode, "namespace_options.userns_options.mode")? {
        NamespaceMode::Node if options.uids.is_empty() && options.gids.is_empty() => Ok(None),
        NamespaceMode::Node => Err(FieldError::invalid(
            field,
            format!("{:?}", options.uids),
            "mappings with the mode NODE",
        )),
        NamespaceMode::Pod if options.uids.is_empty() || options.gids.is_empty() => Err(
            FieldError::Missing("namespace_options.userns_options.uids and gids"),
        ),
        NamespaceMode::Pod => Ok(Some(UserNamespace {
            uids: id_mappings(&options.uids),
            gids: id_mappings(&options.gids),
        })),
        other => Err(FieldError::invalid(
            field,
            format!("{other:?}"),
            "must be POD or NODE",
        )),
    }
}

fn id_mappings(mappings: &[v1::IdMapping]) -> Vec<IdMapping> {
    mappings
        .iter()
        .map(|mapping| IdMapping {
            host_id: mapping.host_id,
            container_id: mapping.container_id,
            length: mapping.length,
        })
        .collect()
}

/// An id of a user or group.
fn id(value: i64, field: &'static str) -> Result<u32, FieldError> {
    u32::try_from(value)
        .ok()
        .filter(|id| *id <= i32::MAX as u32)
        .ok_or_else(|| FieldError::invalid(field, value, "must be from 0 to 2147483647"))
}

fn ids(values: &[i64], field: &'static str) -> Result<Vec<u32>, FieldError> {
    values.iter().map(|value| id(*value, field)).collect()
}

/// Credentials for the registry `host`. None: anonymously, also if they are said to be another registry's.
///
/// Upstream: containerd's `ParseAuth`.
///
/// # Errors
/// `auth` is not base64 of `user:password`.
pub fn auth(auth: Option<&v1::AuthConfig>, host: &str) -> Result<Vec<ImageAuth>, FieldError> {
    use base64::Engine as _;
    let Some(auth) = auth else {
        return Ok(Vec::new());
    };
    if !auth.server_address.is_empty() {
        let server = auth
            .server_address
            .split_once("://")
            .map_or(auth.server_address.as_str(), |(_, rest)| rest);
        let server = server.split('/').next().unwrap_or_default();
        let docker = |name: &str| matches!(name, "docker.io" | "index.docker.io");
        if server != host && !(docker(server) && docker(host)) {
            return Ok(Vec::new());
        }
    }
    let mut credentials = ImageAuth {
        username: auth.username.clone(),
        password: auth.password.clone(),
        identity_token: auth.identity_token.clone(),
        registry_token: auth.registry_token.clone(),
    };
    if credentials == ImageAuth::default() && !auth.auth.is_empty() {
        // The value is a secret: it is not told.
        let wrong = || FieldError::Invalid {
            field: "auth.auth",
            value: "(hidden)".to_owned(),
            reason: "must be base64 of user:password".to_owned(),
        };
        let text = base64::engine::general_purpose::STANDARD
            .decode(&auth.auth)
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or_else(wrong)?;
        let (username, password) = text.split_once(':').ok_or_else(wrong)?;
        credentials.username = username.to_owned();
        credentials.password = password.trim_end_matches('\0').to_owned();
    }
    if credentials == ImageAuth::default() {
        return Ok(Vec::new());
    }
    Ok(vec![credentials])
}
