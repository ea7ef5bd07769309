//! `LinuxContainerSecurityContext`.

use cri_spec::v1;
use cri_spec::v1::security_profile::ProfileType;
use runtime::{SecurityContext, SecurityProfile};

use super::{NodeFacts, id, ids, namespaces};
use crate::error::FieldError;

/// # Errors
/// A field is wrong or not built.
#[allow(deprecated)]
pub fn security_context(
    security: &v1::LinuxContainerSecurityContext,
    node: NodeFacts,
) -> Result<SecurityContext, FieldError> {
    node.check_selinux(
        security.selinux_options.as_ref(),
        "linux.security_context.selinux_options",
    )?;
    let capabilities = security.capabilities.clone().unwrap_or_default();
    if !capabilities.add_ambient_capabilities.is_empty() {
        return Err(FieldError::NotBuilt {
            field: "linux.security_context.capabilities.add_ambient_capabilities",
            why: "it gives no ambient capabilities",
        });
    }
    for (value, field) in [
        (
            &security.apparmor_profile,
            "linux.security_context.apparmor_profile",
        ),
        (
            &security.seccomp_profile_path,
            "linux.security_context.seccomp_profile_path",
        ),
    ] {
        if !value.is_empty() {
            return Err(FieldError::NotBuilt {
                field,
                why: "the field is deprecated, `apparmor` and `seccomp` say it",
            });
        }
    }
    if security.run_as_user.is_some() && !security.run_as_username.is_empty() {
        return Err(FieldError::invalid(
            "linux.security_context.run_as_username",
            &security.run_as_username,
            "not together with run_as_user",
        ));
    }
    if security.run_as_group.is_some()
        && security.run_as_user.is_none()
        && security.run_as_username.is_empty()
    {
        return Err(FieldError::invalid(
            "linux.security_context.run_as_group",
            security.run_as_group.map_or(0, |group| group.value),
            "run_as_group is set without run_as_user or run_as_username",
        ));
    }
    let optional_id = |value: &Option<v1::Int64Value>, field| {
        value
            .as_ref()
            .map(|value| id(value.value, field))
            .transpose()
    };
    let policy = v1::SupplementalGroupsPolicy::try_from(security.supplemental_groups_policy)
        .map_err(|_| {
            FieldError::invalid(
                "linux.security_context.supplemental_groups_policy",
                security.supplemental_groups_policy,
                "no such policy",
            )
        })?;
    Ok(SecurityContext {
        privileged: security.privileged,
        add_capabilities: capabilities.add_capabilities,
        drop_capabilities: capabilities.drop_capabilities,
        run_as_user: optional_id(&security.run_as_user, "linux.security_context.run_as_user")?,
        run_as_username: (!security.run_as_username.is_empty())
            .then(|| security.run_as_username.clone()),
        run_as_group: optional_id(
            &security.run_as_group,
            "linux.security_context.run_as_group",
        )?,
        supplemental_groups: ids(
            &security.supplemental_groups,
            "linux.security_context.supplemental_groups",
        )?,
        merge_image_groups: policy == v1::SupplementalGroupsPolicy::Merge,
        readonly_rootfs: security.readonly_rootfs,
        no_new_privileges: security.no_new_privs,
        // As containerd: without a word no filter, but the default AppArmor profile.
        seccomp: match &security.seccomp {
            None => SecurityProfile::Unconfined,
            Some(profile) => security_profile(profile, "linux.security_context.seccomp")?,
        },
        apparmor: apparmor(security, node)?,
        masked_paths: security.masked_paths.clone(),
        readonly_paths: security.readonly_paths.clone(),
        namespaces: namespaces(security.namespace_options.as_ref())?,
    })
}

/// The default profile also where nothing is said. As with containerd, a node without AppArmor has no default to apply, and a profile
/// of a name is refused there (by the runtime, which looks for it).
fn apparmor(
    security: &v1::LinuxContainerSecurityContext,
    node: NodeFacts,
) -> Result<SecurityProfile, FieldError> {
    let wanted = match &security.apparmor {
        None if security.privileged => SecurityProfile::Unconfined,
        None => SecurityProfile::RuntimeDefault,
        Some(profile) => security_profile(profile, "linux.security_context.apparmor")?,
    };
    Ok(match wanted {
        SecurityProfile::RuntimeDefault if !node.apparmor => SecurityProfile::Unconfined,
        wanted => wanted,
    })
}

fn security_profile(
    profile: &v1::SecurityProfile,
    field: &'static str,
) -> Result<SecurityProfile, FieldError> {
    match ProfileType::try_from(profile.profile_type) {
        Ok(ProfileType::RuntimeDefault) => Ok(SecurityProfile::RuntimeDefault),
        Ok(ProfileType::Unconfined) => Ok(SecurityProfile::Unconfined),
        Ok(ProfileType::Localhost) if profile.localhost_ref.is_empty() => Err(FieldError::invalid(
            field,
            "",
            "Localhost wants a localhost_ref",
        )),
        // Some clients write the prefix of the annotations of old.
        Ok(ProfileType::Localhost) => Ok(SecurityProfile::Localhost(
            profile
                .localhost_ref
                .strip_prefix("localhost/")
                .unwrap_or(&profile.localhost_ref)
                .into(),
        )),
        Err(_) => Err(FieldError::invalid(
            field,
            profile.profile_type,
            "no such type of profile",
        )),
    }
}
