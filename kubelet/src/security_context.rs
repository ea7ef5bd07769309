//! Pod and container security contexts, as the runtime wants them.
//!
//! Owns: the merge of both, seccomp and AppArmor profiles, masked paths, the check of `runAsNonRoot`. Pure.
//! Upstream: `pkg/kubelet/kuberuntime/security_context*.go`, `pkg/securitycontext`, v1.36.

use std::path::Path;

use k8s_openapi::api::core::v1::{
    AppArmorProfile, Container, Pod, SeccompProfile, SecurityContext,
};
use runtime::api as cri;

use crate::pod;

pub mod apparmor;
pub mod node;

pub use node::NodeSecurity;

/// Why the container may not be made like that; reason `CreateContainerConfigError`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecurityContextError {
    #[error("container's runAsUser breaks non-root policy (pod: {pod:?}, container: {container})")]
    RunAsUserIsRoot { pod: String, container: String },
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root (pod: {pod:?}, container: {container})"
    )]
    ImageUserIsAName {
        user: String,
        pod: String,
        container: String,
    },
    #[error(
        "container has runAsNonRoot and image will run as root (pod: {pod:?}, container: {container})"
    )]
    ImageRunsAsRoot { pod: String, container: String },
    #[error("localhostProfile must be set if seccompProfile type is Localhost.")]
    NoLocalhostProfile,
    #[error("unsupported {field}: {value}")]
    Unsupported { field: &'static str, value: String },
    #[error("{field}: {value} is out of range")]
    OutOfRange { field: &'static str, value: i64 },
}

/// The user the image asks for.
#[derive(Clone, Debug, Default)]
pub struct ImageUser {
    pub uid: Option<u32>,
    pub username: Option<String>,
}

/// The container's own context, with what it does not say taken from the pod's.
pub fn determine_effective_security_context(pod: &Pod, container: &Container) -> SecurityContext {
    let mut out = container.security_context.clone().unwrap_or_default();
    if let Some(p) = pod.spec.as_ref().and_then(|s| s.security_context.as_ref()) {
        out.run_as_user = out.run_as_user.or(p.run_as_user);
        out.run_as_group = out.run_as_group.or(p.run_as_group);
        out.run_as_non_root = out.run_as_non_root.or(p.run_as_non_root);
        out.se_linux_options = out.se_linux_options.or_else(|| p.se_linux_options.clone());
        out.seccomp_profile = out.seccomp_profile.or_else(|| p.seccomp_profile.clone());
        out.windows_options = out.windows_options.or_else(|| p.windows_options.clone());
    }
    out.app_armor_profile = apparmor::profile(pod, container);
    out
}

/// # Errors
/// When the policy asks for a user other than root, and the container would run as root or might.
pub fn verify_run_as_non_root(
    pod: &Pod,
    container: &Container,
    image: &ImageUser,
) -> Result<(), SecurityContextError> {
    let effective = determine_effective_security_context(pod, container);
    if effective.run_as_non_root != Some(true) {
        return Ok(());
    }
    let (pod, container) = (pod::format(pod), container.name.clone());
    if let Some(user) = effective.run_as_user {
        return if user == 0 {
            Err(SecurityContextError::RunAsUserIsRoot { pod, container })
        } else {
            Ok(())
        };
    }
    match (
        image.uid,
        image.username.as_deref().filter(|u| !u.is_empty()),
    ) {
        (None, Some(user)) => Err(SecurityContextError::ImageUserIsAName {
            user: user.to_owned(),
            pod,
            container,
        }),
        // An image without USER runs as root.
        (Some(0), _) | (None, None) => {
            Err(SecurityContextError::ImageRunsAsRoot { pod, container })
        }
        (Some(_), _) => Ok(()),
    }
}

/// What the kernel hides of /proc from a container that is not `procMount: Unmasked`.
/// Upstream: `pkg/securitycontext/util.go`.
const MASKED_PATHS: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READONLY_PATHS: &[&str] = &[
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

fn seccomp(
    profile: Option<&SeccompProfile>,
    seccomp_root: &Path,
    seccomp_default: bool,
) -> Result<cri::SecurityProfile, SecurityContextError> {
    let Some(profile) = profile else {
        return Ok(if seccomp_default {
            cri::SecurityProfile::RuntimeDefault
        } else {
            cri::SecurityProfile::Unconfined
        });
    };
    match profile.type_.as_str() {
        "RuntimeDefault" => Ok(cri::SecurityProfile::RuntimeDefault),
        "Unconfined" => Ok(cri::SecurityProfile::Unconfined),
        "Localhost" => {
            let name = profile
                .localhost_profile
                .as_deref()
                .filter(|n| !n.is_empty());
            let name = name.ok_or(SecurityContextError::NoLocalhostProfile)?;
            Ok(cri::SecurityProfile::Localhost(seccomp_root.join(name)))
        }
        other => Err(SecurityContextError::Unsupported {
            field: "seccompProfile.type",
            value: other.to_owned(),
        }),
    }
}

/// `None` of the pod is the runtime's own profile where that can be had, as with containerd.
fn apparmor_profile(
    profile: Option<&AppArmorProfile>,
    privileged: bool,
    node: &NodeSecurity,
) -> Result<cri::SecurityProfile, SecurityContextError> {
    let unsupported = |value: &str| SecurityContextError::Unsupported {
        field: "appArmorProfile.type",
        value: value.to_owned(),
    };
    let Some(profile) = profile else {
        return Ok(if node.apparmor_default && !privileged {
            cri::SecurityProfile::RuntimeDefault
        } else {
            cri::SecurityProfile::Unconfined
        });
    };
    match profile.type_.as_str() {
        "Unconfined" => Ok(cri::SecurityProfile::Unconfined),
        // Admission refuses such pods; what was admitted before AppArmor went is not started unconfined.
        "RuntimeDefault" | "Localhost" if !node.apparmor => Err(unsupported(&format!(
            "{}: AppArmor is not enabled on the host",
            profile.type_
        ))),
        "RuntimeDefault" if privileged => Ok(cri::SecurityProfile::Unconfined),
        "RuntimeDefault" => Ok(cri::SecurityProfile::RuntimeDefault),
        "Localhost" => {
            let name = profile.localhost_profile.as_deref().unwrap_or_default();
            if name.trim().is_empty() {
                return Err(unsupported("Localhost without localhostProfile"));
            }
            Ok(cri::SecurityProfile::Localhost(name.into()))
        }
        other => Err(unsupported(other)),
    }
}

/// (masked, read-only) paths. Upstream: `ConvertToRuntimeMaskedPaths` and its sister.
fn proc_paths(
    effective: &SecurityContext,
    node: &NodeSecurity,
) -> Result<(Vec<String>, Vec<String>), SecurityContextError> {
    match effective.proc_mount.as_deref() {
        None | Some("" | "Default") => {}
        Some("Unmasked") => return Ok((vec![], vec![])),
        Some(other) => {
            return Err(SecurityContextError::Unsupported {
                field: "procMount",
                value: other.to_owned(),
            });
        }
    }
    if effective.privileged == Some(true) {
        return Ok((vec![], vec![]));
    }
    let list = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
    let mut masked: Vec<String> = list(MASKED_PATHS);
    masked.extend(node.thermal_paths.iter().cloned());
    Ok((masked, list(READONLY_PATHS)))
}

/// What other systems enforce: refused where it would be expected to work, named in the log where upstream's kubelet
/// takes it without effect too.
fn check_other_systems(
    pod: &Pod,
    container: &Container,
    effective: &SecurityContext,
    node: &NodeSecurity,
) -> Result<(), SecurityContextError> {
    if let Some(options) = &effective.se_linux_options {
        let fields = [&options.user, &options.role, &options.type_, &options.level];
        let text = fields
            .map(|field| field.as_deref().unwrap_or_default())
            .join(":");
        if text != ":::" {
            // DIFFERS: containerd can be told to label processes and files; this runtime cannot yet.
            if node.selinux {
                return Err(SecurityContextError::Unsupported {
                    field: "seLinuxOptions",
                    value: text,
                });
            }
            tracing::warn!(pod = %pod::format(pod), container = container.name, options = text, "seLinuxOptions have no effect: SELinux is not enabled on the host");
        }
    }
    if effective.windows_options.is_some() {
        tracing::warn!(pod = %pod::format(pod), container = container.name, "windowsOptions have no effect on Linux");
    }
    Ok(())
}

fn id(field: &'static str, value: i64) -> Result<u32, SecurityContextError> {
    // Kubernetes' ids end there; to the kernel 4294967295 means "leave it as it is".
    i32::try_from(value)
        .ok()
        .and_then(|id| u32::try_from(id).ok())
        .ok_or(SecurityContextError::OutOfRange { field, value })
}

/// What stays the same for every container of the node.
#[derive(Clone, Debug)]
pub struct SecurityDefaults<'a> {
    /// `<root-dir>/seccomp`
    pub seccomp_root: &'a Path,
    /// `seccompDefault` of the configuration.
    pub seccomp_default: bool,
    /// What the machine enforces and hides.
    pub node: &'a NodeSecurity,
}

/// The whole of what the runtime is told.
///
/// # Errors
/// A field that does not fit; no retry helps.
pub fn to_runtime(
    pod: &Pod,
    container: &Container,
    image: &ImageUser,
    namespaces: cri::NamespaceOptions,
    defaults: &SecurityDefaults<'_>,
) -> Result<cri::SecurityContext, SecurityContextError> {
    let effective = determine_effective_security_context(pod, container);
    let pod_context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let privileged = effective.privileged.unwrap_or(false);
    check_other_systems(pod, container, &effective, defaults.node)?;
    let (masked_paths, readonly_paths) = proc_paths(&effective, defaults.node)?;
    let mut supplemental_groups = vec![];
    let mut merge_image_groups = true;
    if let Some(context) = pod_context {
        if let Some(group) = context.fs_group {
            supplemental_groups.push(id("fsGroup", group)?);
        }
        for group in context.supplemental_groups.iter().flatten() {
            supplemental_groups.push(id("supplementalGroups", *group)?);
        }
        merge_image_groups = match context.supplemental_groups_policy.as_deref() {
            None | Some("Merge") => true,
            Some("Strict") => false,
            Some(other) => {
                return Err(SecurityContextError::Unsupported {
                    field: "supplementalGroupsPolicy",
                    value: other.to_owned(),
                });
            }
        };
    }
    let run_as_user = match effective.run_as_user {
        Some(user) => Some(id("runAsUser", user)?),
        None => image.uid,
    };
    let capabilities = effective.capabilities.clone().unwrap_or_default();
    Ok(cri::SecurityContext {
        privileged,
        add_capabilities: capabilities.add.unwrap_or_default(),
        drop_capabilities: capabilities.drop.unwrap_or_default(),
        run_as_user,
        run_as_username: if run_as_user.is_none() {
            image.username.clone()
        } else {
            None
        },
        run_as_group: effective
            .run_as_group
            .map(|g| id("runAsGroup", g))
            .transpose()?,
        supplemental_groups,
        merge_image_groups,
        readonly_rootfs: effective.read_only_root_filesystem.unwrap_or(false),
        no_new_privileges: effective.allow_privilege_escalation == Some(false),
        seccomp: if privileged {
            cri::SecurityProfile::Unconfined
        } else {
            seccomp(
                effective.seccomp_profile.as_ref(),
                defaults.seccomp_root,
                defaults.seccomp_default,
            )?
        },
        apparmor: apparmor_profile(
            effective.app_armor_profile.as_ref(),
            privileged,
            defaults.node,
        )?,
        masked_paths,
        readonly_paths,
        namespaces,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{PodSecurityContext, PodSpec};

    fn pod(context: PodSecurityContext) -> Pod {
        let mut pod = Pod {
            spec: Some(PodSpec {
                security_context: Some(context),
                ..Default::default()
            }),
            ..Default::default()
        };
        pod.metadata.name = Some("p".into());
        pod.metadata.namespace = Some("ns".into());
        pod.metadata.uid = Some("u".into());
        pod
    }

    #[test]
    fn non_root() {
        let pod = pod(PodSecurityContext {
            run_as_non_root: Some(true),
            ..Default::default()
        });
        let c = Container {
            name: "c".into(),
            ..Default::default()
        };
        let check = |uid, name: Option<&str>| {
            verify_run_as_non_root(
                &pod,
                &c,
                &ImageUser {
                    uid,
                    username: name.map(Into::into),
                },
            )
            .map_err(|e| e.to_string())
        };
        assert_eq!(check(Some(1000), None), Ok(()));
        assert_eq!(
            check(Some(0), None).unwrap_err(),
            "container has runAsNonRoot and image will run as root (pod: \"p_ns(u)\", container: c)"
        );
        assert!(check(None, None).is_err());
        assert_eq!(
            check(None, Some("nginx")).unwrap_err(),
            "container has runAsNonRoot and image has non-numeric user (nginx), cannot verify user is non-root (pod: \"p_ns(u)\", container: c)"
        );
    }

    #[test]
    fn the_container_goes_before_the_pod() {
        let pod = pod(PodSecurityContext {
            run_as_user: Some(1),
            fs_group: Some(9),
            ..Default::default()
        });
        let c = Container {
            security_context: Some(SecurityContext {
                run_as_user: Some(2),
                ..Default::default()
            }),
            ..Default::default()
        };
        let defaults = SecurityDefaults {
            seccomp_root: Path::new("/s"),
            seccomp_default: true,
            node: &NodeSecurity::default(),
        };
        let got = to_runtime(
            &pod,
            &c,
            &ImageUser::default(),
            Default::default(),
            &defaults,
        )
        .unwrap();
        assert_eq!(got.run_as_user, Some(2));
        assert_eq!(got.supplemental_groups, [9]);
        assert_eq!(got.seccomp, cri::SecurityProfile::RuntimeDefault);
    }

    /// What becomes of each field: it changes what the runtime is told, it is refused by name, or, as upstream, another
    /// part of the kubelet acts on it.
    #[derive(Debug, PartialEq)]
    enum Fate {
        ActedOn,
        Refused(&'static str),
        /// Volumes, sysctls: applied by those who own them.
        Elsewhere,
        /// No effect on such a node, upstream as here; named in the log.
        Warned,
    }

    fn fate(pod: &Pod, container: &Container, node: &NodeSecurity) -> Fate {
        let run = |pod: &Pod, container: &Container| {
            let defaults = SecurityDefaults {
                seccomp_root: Path::new("/s"),
                seccomp_default: false,
                node,
            };
            let image = ImageUser::default();
            verify_run_as_non_root(pod, container, &image)?;
            to_runtime(pod, container, &image, Default::default(), &defaults)
        };
        let plain = run(
            &Pod::default(),
            &Container {
                name: container.name.clone(),
                ..Default::default()
            },
        );
        match run(pod, container) {
            Err(SecurityContextError::Unsupported { field, .. }) => Fate::Refused(field),
            // A policy that the image breaks.
            Err(_) => Fate::ActedOn,
            Ok(told) if Ok(&told) != plain.as_ref() => Fate::ActedOn,
            Ok(_) => Fate::Warned,
        }
    }

    fn check_fields(kind: &str, value: serde_json::Value, table: &[(&str, Fate)]) {
        let fields: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        let mut listed: Vec<&str> = table.iter().map(|(field, _)| *field).collect();
        listed.sort_unstable();
        assert_eq!(fields, listed, "every field of {kind} has its line");
        let node = NodeSecurity {
            apparmor: true,
            ..Default::default()
        };
        for (field, expected) in table {
            let one = serde_json::json!({ *field: value[*field] });
            let (pod, container) = if kind == "PodSecurityContext" {
                (pod(serde_json::from_value(one).unwrap()), None)
            } else {
                (Pod::default(), Some(serde_json::from_value(one).unwrap()))
            };
            let container = Container {
                name: "c".into(),
                security_context: container,
                ..Default::default()
            };
            let got = fate(&pod, &container, &node);
            if *expected == Fate::Elsewhere {
                assert_eq!(got, Fate::Warned, "{kind}.{field}");
            } else {
                assert_eq!(&got, expected, "{kind}.{field}");
            }
        }
    }

    /// A field that a later version brings does not compile here until the tables below have it.
    #[test]
    fn no_field_is_missing_below() {
        let SecurityContext {
            allow_privilege_escalation: _,
            app_armor_profile: _,
            capabilities: _,
            privileged: _,
            proc_mount: _,
            read_only_root_filesystem: _,
            run_as_group: _,
            run_as_non_root: _,
            run_as_user: _,
            se_linux_options: _,
            seccomp_profile: _,
            windows_options: _,
        } = SecurityContext::default();
        let PodSecurityContext {
            app_armor_profile: _,
            fs_group: _,
            fs_group_change_policy: _,
            run_as_group: _,
            run_as_non_root: _,
            run_as_user: _,
            se_linux_change_policy: _,
            se_linux_options: _,
            seccomp_profile: _,
            supplemental_groups: _,
            supplemental_groups_policy: _,
            sysctls: _,
            windows_options: _,
        } = PodSecurityContext::default();
    }

    #[test]
    fn every_field_has_an_effect_or_is_named() {
        let selinux = serde_json::json!({ "level": "s0:c1,c2" });
        let windows = serde_json::json!({ "runAsUserName": "x" });
        check_fields(
            "SecurityContext",
            serde_json::json!({
                "allowPrivilegeEscalation": false,
                "appArmorProfile": { "type": "Localhost", "localhostProfile": "p" },
                "capabilities": { "add": ["NET_ADMIN"] },
                "privileged": true,
                "procMount": "Unmasked",
                "readOnlyRootFilesystem": true,
                "runAsGroup": 5,
                "runAsNonRoot": true,
                "runAsUser": 5,
                "seLinuxOptions": selinux,
                "seccompProfile": { "type": "RuntimeDefault" },
                "windowsOptions": windows,
            }),
            &[
                ("allowPrivilegeEscalation", Fate::ActedOn),
                ("appArmorProfile", Fate::ActedOn),
                ("capabilities", Fate::ActedOn),
                ("privileged", Fate::ActedOn),
                ("procMount", Fate::ActedOn),
                ("readOnlyRootFilesystem", Fate::ActedOn),
                ("runAsGroup", Fate::ActedOn),
                ("runAsNonRoot", Fate::ActedOn),
                ("runAsUser", Fate::ActedOn),
                ("seLinuxOptions", Fate::Warned),
                ("seccompProfile", Fate::ActedOn),
                ("windowsOptions", Fate::Warned),
            ],
        );
        check_fields(
            "PodSecurityContext",
            serde_json::json!({
                "appArmorProfile": { "type": "Localhost", "localhostProfile": "p" },
                "fsGroup": 5,
                "fsGroupChangePolicy": "Always",
                "runAsGroup": 5,
                "runAsNonRoot": true,
                "runAsUser": 5,
                "seLinuxChangePolicy": "Recursive",
                "seLinuxOptions": selinux,
                "seccompProfile": { "type": "RuntimeDefault" },
                "supplementalGroups": [5],
                "supplementalGroupsPolicy": "Strict",
                "sysctls": [{ "name": "net.ipv4.tcp_syncookies", "value": "1" }],
                "windowsOptions": windows,
            }),
            &[
                ("appArmorProfile", Fate::ActedOn),
                ("fsGroup", Fate::ActedOn),
                ("fsGroupChangePolicy", Fate::Elsewhere),
                ("runAsGroup", Fate::ActedOn),
                ("runAsNonRoot", Fate::ActedOn),
                ("runAsUser", Fate::ActedOn),
                // Only says how labels get onto volumes, which needs SELinux.
                ("seLinuxChangePolicy", Fate::Warned),
                ("seLinuxOptions", Fate::Warned),
                ("seccompProfile", Fate::ActedOn),
                ("supplementalGroups", Fate::ActedOn),
                ("supplementalGroupsPolicy", Fate::ActedOn),
                ("sysctls", Fate::Elsewhere),
                ("windowsOptions", Fate::Warned),
            ],
        );
    }

    #[test]
    fn values_that_nobody_knows_are_refused_by_name() {
        let of = |context: serde_json::Value, node: &NodeSecurity| {
            let container = Container {
                name: "c".into(),
                security_context: Some(serde_json::from_value(context).unwrap()),
                ..Default::default()
            };
            fate(&Pod::default(), &container, node)
        };
        let plain = NodeSecurity::default();
        let selinux = NodeSecurity {
            selinux: true,
            ..Default::default()
        };
        for (context, node, field) in [
            (
                serde_json::json!({ "procMount": "Other" }),
                &plain,
                "procMount",
            ),
            (
                serde_json::json!({ "seccompProfile": { "type": "Other" } }),
                &plain,
                "seccompProfile.type",
            ),
            (
                serde_json::json!({ "appArmorProfile": { "type": "Other" } }),
                &plain,
                "appArmorProfile.type",
            ),
            (
                serde_json::json!({ "appArmorProfile": { "type": "RuntimeDefault" } }),
                &plain,
                "appArmorProfile.type",
            ),
            (
                serde_json::json!({ "privileged": true, "appArmorProfile": { "type": "Localhost", "localhostProfile": "p" } }),
                &plain,
                "appArmorProfile.type",
            ),
            (
                serde_json::json!({ "seLinuxOptions": { "level": "s0" } }),
                &selinux,
                "seLinuxOptions",
            ),
        ] {
            assert_eq!(of(context.clone(), node), Fate::Refused(field), "{context}");
        }
    }

    #[test]
    fn what_is_hidden_of_proc_and_sys() {
        let node = NodeSecurity {
            thermal_paths: vec!["/sys/devices/system/cpu/cpu0/thermal_throttle".into()],
            ..Default::default()
        };
        let of = |proc_mount: Option<&str>, privileged: bool| {
            let context = SecurityContext {
                proc_mount: proc_mount.map(str::to_owned),
                privileged: Some(privileged),
                ..Default::default()
            };
            proc_paths(&context, &node).unwrap()
        };
        let (masked, readonly) = of(None, false);
        for path in [
            "/proc/interrupts",
            "/proc/keys",
            "/sys/devices/virtual/powercap",
            "/sys/devices/system/cpu/cpu0/thermal_throttle",
        ] {
            assert!(masked.iter().any(|masked| masked == path), "{path}");
        }
        assert!(readonly.contains(&"/proc/sys".to_owned()));
        assert_eq!(of(Some("Unmasked"), false), (vec![], vec![]));
        assert_eq!(of(None, true), (vec![], vec![]));
    }
}
