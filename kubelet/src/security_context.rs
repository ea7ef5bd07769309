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
        out.app_armor_profile = out
            .app_armor_profile
            .or_else(|| p.app_armor_profile.clone());
    }
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

fn apparmor(
    profile: Option<&AppArmorProfile>,
) -> Result<cri::SecurityProfile, SecurityContextError> {
    match profile.map(|p| (p.type_.as_str(), p.localhost_profile.as_deref())) {
        None | Some(("RuntimeDefault", _)) => Ok(cri::SecurityProfile::RuntimeDefault),
        Some(("Unconfined", _)) => Ok(cri::SecurityProfile::Unconfined),
        Some(("Localhost", Some(name))) => Ok(cri::SecurityProfile::Localhost(name.into())),
        Some((other, _)) => Err(SecurityContextError::Unsupported {
            field: "appArmorProfile.type",
            value: other.to_owned(),
        }),
    }
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
    /// Does the kernel have AppArmor?
    pub apparmor_enabled: bool,
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
    let unmasked = effective.proc_mount.as_deref() == Some("Unmasked");
    let paths = |list: &[&str]| {
        if unmasked {
            vec![]
        } else {
            list.iter().map(|p| (*p).to_owned()).collect()
        }
    };

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
        apparmor: if privileged || !defaults.apparmor_enabled {
            cri::SecurityProfile::Unconfined
        } else {
            apparmor(effective.app_armor_profile.as_ref())?
        },
        masked_paths: if privileged {
            vec![]
        } else {
            paths(MASKED_PATHS)
        },
        readonly_paths: if privileged {
            vec![]
        } else {
            paths(READONLY_PATHS)
        },
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
            apparmor_enabled: false,
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
}
