//! Which AppArmor profile a container asks for, and whether the node can enforce it.
//!
//! Upstream: `pkg/security/apparmor/{helpers,validate}.go`, v1.36.

use k8s_openapi::api::core::v1::{AppArmorProfile, Container, Pod};

use crate::pod;

/// Of static pods, whose annotations nobody turned into fields.
const ANNOTATION_PREFIX: &str = "container.apparmor.security.beta.kubernetes.io/";

/// The profile of the container: its own field, its annotation, the pod's field.
pub fn profile(pod: &Pod, container: &Container) -> Option<AppArmorProfile> {
    let own = container
        .security_context
        .as_ref()
        .and_then(|context| context.app_armor_profile.clone());
    own.or_else(|| from_annotation(pod, &container.name))
        .or_else(|| of_the_pod(pod))
}

fn of_the_pod(pod: &Pod) -> Option<AppArmorProfile> {
    pod.spec
        .as_ref()?
        .security_context
        .as_ref()?
        .app_armor_profile
        .clone()
}

fn from_annotation(pod: &Pod, container: &str) -> Option<AppArmorProfile> {
    let value = pod
        .metadata
        .annotations
        .as_ref()?
        .get(&format!("{ANNOTATION_PREFIX}{container}"))?;
    let of_type = |type_: &str, localhost_profile: Option<&str>| {
        Some(AppArmorProfile {
            type_: type_.to_owned(),
            localhost_profile: localhost_profile.map(str::to_owned),
        })
    };
    match value.as_str() {
        "runtime/default" => of_type("RuntimeDefault", None),
        "unconfined" => of_type("Unconfined", None),
        other => of_type("Localhost", Some(other.strip_prefix("localhost/")?)),
    }
}

fn all_containers(pod: &Pod) -> impl Iterator<Item = Container> {
    pod::init_containers(pod)
        .iter()
        .chain(pod::containers(pod))
        .cloned()
        .chain(
            pod::ephemeral_containers(pod)
                .iter()
                .map(pod::ephemeral_as_container),
        )
}

/// Does anything of the pod ask for a profile that must be enforced?
fn is_required(pod: &Pod) -> bool {
    let confines = |profile: &AppArmorProfile| profile.type_ != "Unconfined";
    of_the_pod(pod).is_some_and(|profile| confines(&profile))
        || all_containers(pod).any(|container| {
            container
                .security_context
                .as_ref()
                .and_then(|context| context.app_armor_profile.as_ref())
                .is_some_and(confines)
        })
        || pod
            .metadata
            .annotations
            .iter()
            .flatten()
            .any(|(key, value)| key.starts_with(ANNOTATION_PREFIX) && value != "unconfined")
}

/// Can the node enforce what the pod asks for?
///
/// # Errors
/// What follows "Cannot enforce AppArmor: ".
pub fn validate(pod: &Pod, enabled: bool) -> Result<(), String> {
    if !is_required(pod) {
        return Ok(());
    }
    if !enabled {
        return Err("AppArmor is not enabled on the host".to_owned());
    }
    for container in all_containers(pod) {
        let Some(profile) = profile(pod, &container) else {
            continue;
        };
        let name = profile.localhost_profile.unwrap_or_default();
        if profile.type_ == "Localhost" && name.trim().is_empty() {
            return Err(format!("invalid empty AppArmor profile name: {name:?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{PodSecurityContext, PodSpec, SecurityContext};

    fn pod(of_pod: Option<&str>, of_container: Option<&str>, annotation: Option<&str>) -> Pod {
        let profile = |type_: &str| AppArmorProfile {
            type_: type_.to_owned(),
            localhost_profile: (type_ == "Localhost").then(|| "mine".to_owned()),
        };
        let mut pod = Pod {
            spec: Some(PodSpec {
                security_context: of_pod.map(|type_| PodSecurityContext {
                    app_armor_profile: Some(profile(type_)),
                    ..Default::default()
                }),
                init_containers: Some(vec![Container {
                    name: "c".to_owned(),
                    security_context: of_container.map(|type_| SecurityContext {
                        app_armor_profile: Some(profile(type_)),
                        ..Default::default()
                    }),
                    ..Default::default()
                }]),
                ..Default::default()
            }),
            ..Default::default()
        };
        pod.metadata.annotations =
            annotation.map(|value| [(format!("{ANNOTATION_PREFIX}c"), value.to_owned())].into());
        pod
    }

    #[test]
    fn a_node_without_apparmor_takes_only_unconfined_pods() {
        for (of_pod, of_container, annotation, admitted) in [
            (None, None, None, true),
            (Some("Unconfined"), None, None, true),
            (None, Some("Unconfined"), None, true),
            (None, None, Some("unconfined"), true),
            (Some("RuntimeDefault"), None, None, false),
            (Some("Localhost"), Some("Unconfined"), None, false),
            (None, Some("RuntimeDefault"), None, false),
            (None, Some("Localhost"), None, false),
            (None, None, Some("localhost/x"), false),
        ] {
            let pod = pod(of_pod, of_container, annotation);
            let expected = if admitted {
                Ok(())
            } else {
                Err("AppArmor is not enabled on the host".to_owned())
            };
            assert_eq!(
                validate(&pod, false),
                expected,
                "{of_pod:?} {of_container:?} {annotation:?}"
            );
            assert_eq!(validate(&pod, true), Ok(()));
        }
        let mut empty = pod(None, Some("Localhost"), None);
        let containers = empty
            .spec
            .as_mut()
            .unwrap()
            .init_containers
            .as_mut()
            .unwrap();
        let context = containers[0].security_context.as_mut().unwrap();
        context
            .app_armor_profile
            .as_mut()
            .unwrap()
            .localhost_profile = Some(" ".into());
        assert_eq!(
            validate(&empty, true).unwrap_err(),
            "invalid empty AppArmor profile name: \" \""
        );
    }

    #[test]
    fn the_container_goes_before_the_annotation_and_that_before_the_pod() {
        let ask = |of_container, annotation| {
            let pod = pod(Some("RuntimeDefault"), of_container, annotation);
            let container = &pod.spec.as_ref().unwrap().init_containers.as_ref().unwrap()[0];
            let found = profile(&pod, container).unwrap();
            (found.type_, found.localhost_profile)
        };
        let of = |type_: &str, name: Option<&str>| (type_.to_owned(), name.map(str::to_owned));
        assert_eq!(
            ask(Some("Localhost"), Some("unconfined")),
            of("Localhost", Some("mine"))
        );
        assert_eq!(ask(None, Some("localhost/a")), of("Localhost", Some("a")));
        assert_eq!(ask(None, Some("unconfined")), of("Unconfined", None));
        assert_eq!(ask(None, Some("nonsense")), of("RuntimeDefault", None));
        assert_eq!(ask(None, None), of("RuntimeDefault", None));
    }
}
