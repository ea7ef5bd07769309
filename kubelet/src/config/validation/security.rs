//! Security contexts.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{PodSecurityContext, PodSpec, SeccompProfile, SecurityContext};

use super::field::{Errors, Path};
use super::names::{descending_path, in_range};

/// Upstream: `SysctlMaxLength`.
const MAX_SYSCTL: usize = 253;

fn id(value: Option<i64>, path: &Path, errors: &mut Errors) {
    const MOST: i64 = i32::MAX as i64;
    if let Some(value) = value
        && !(0..=MOST).contains(&value)
    {
        errors.invalid(path, value, &in_range(0, MOST));
    }
}

pub fn of_pod(context: &PodSecurityContext, spec: &PodSpec, path: &Path, errors: &mut Errors) {
    id(context.fs_group, &path.child("fsGroup"), errors);
    id(context.run_as_user, &path.child("runAsUser"), errors);
    id(context.run_as_group, &path.child("runAsGroup"), errors);
    let groups = path.child("supplementalGroups");
    for (index, group) in context.supplemental_groups.iter().flatten().enumerate() {
        id(Some(*group), &groups.index(index), errors);
    }
    let mut names = HashSet::new();
    for (index, sysctl) in context.sysctls.iter().flatten().enumerate() {
        let path = path.child("sysctls").index(index).child("name");
        let name = sysctl.name.as_str();
        if name.is_empty() {
            errors.required(&path, "");
        } else if !is_sysctl(name) {
            let text = format!(
                "must have at most {MAX_SYSCTL} characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$"
            );
            errors.invalid(&path, name, &text);
        } else if !names.insert(name) {
            errors.duplicate(&path, name);
        }
        let plain = name.replace('/', ".");
        let of_network = plain.starts_with("net.");
        let of_ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."];
        let of_ipc = plain == "kernel.sem" || of_ipc.iter().any(|p| plain.starts_with(p));
        if spec.host_network == Some(true) && of_network {
            let text = "may not be specified when 'hostNetwork' is true";
            errors.invalid(&path, name, text);
        } else if spec.host_ipc == Some(true) && of_ipc {
            errors.invalid(&path, name, "may not be specified when 'hostIPC' is true");
        }
    }
    for (value, field, supported) in [
        (
            &context.fs_group_change_policy,
            "fsGroupChangePolicy",
            ["Always", "OnRootMismatch"],
        ),
        (
            &context.supplemental_groups_policy,
            "supplementalGroupsPolicy",
            ["Merge", "Strict"],
        ),
    ] {
        if let Some(value) = value
            && !supported.contains(&value.as_str())
        {
            errors.not_supported(&path.child(field), value, &supported);
        }
    }
    seccomp(
        &context.seccomp_profile,
        &path.child("seccompProfile"),
        errors,
    );
}

pub fn of_container(context: &SecurityContext, host_users: bool, path: &Path, errors: &mut Errors) {
    id(context.run_as_user, &path.child("runAsUser"), errors);
    id(context.run_as_group, &path.child("runAsGroup"), errors);
    if let Some(mount) = context.proc_mount.as_deref() {
        let path = path.child("procMount");
        if !["Default", "Unmasked"].contains(&mount) {
            errors.not_supported(&path, mount, &["Default", "Unmasked"]);
        }
        if host_users && mount == "Unmasked" {
            let text = "`hostUsers` must be false to use `Unmasked`";
            errors.invalid(&path, mount, text);
        }
    }
    seccomp(
        &context.seccomp_profile,
        &path.child("seccompProfile"),
        errors,
    );
    if context.allow_privilege_escalation == Some(false) {
        if context.privileged == Some(true) {
            let text = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.invalid_json(path, context, text);
        }
        let added = context.capabilities.as_ref().and_then(|c| c.add.as_ref());
        if added.into_iter().flatten().any(|c| c == "CAP_SYS_ADMIN") {
            let text = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.invalid_json(path, context, text);
        }
    }
}

fn seccomp(profile: &Option<SeccompProfile>, path: &Path, errors: &mut Errors) {
    let Some(profile) = profile else { return };
    let supported = ["Localhost", "RuntimeDefault", "Unconfined"];
    if !supported.contains(&profile.type_.as_str()) {
        errors.not_supported(&path.child("type"), &profile.type_, &supported);
    }
    let path = path.child("localhostProfile");
    match &profile.localhost_profile {
        None if profile.type_ == "Localhost" => {
            errors.required(&path, "must be set when seccomp type is Localhost");
        }
        Some(file) if profile.type_ == "Localhost" => descending_path(file, &path, errors),
        Some(_) => {
            let text = "can only be set when seccomp type is Localhost";
            errors.invalid_json(&path, profile, text);
        }
        None => {}
    }
}

fn is_sysctl(name: &str) -> bool {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let is_part = |part: &str| {
        let bytes = part.as_bytes();
        let ends = [bytes.first(), bytes.last()];
        ends.iter().all(|end| end.is_some_and(|b| fits(*b)))
            && bytes.iter().all(|b| fits(*b) || b"-_".contains(b))
    };
    name.len() <= MAX_SYSCTL && name.split(['.', '/']).all(is_part)
}
