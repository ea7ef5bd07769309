//! The Secrets and ConfigMaps a pod refers to by name, so that a kubelet knows what to watch.

use k8s_openapi::api::core::v1::{EnvFromSource, EnvVar, Pod};
use std::collections::BTreeSet;

fn environments(
    pod: &Pod,
) -> impl Iterator<Item = (Option<&Vec<EnvVar>>, Option<&Vec<EnvFromSource>>)> {
    pod.spec.iter().flat_map(|spec| {
        let plain = super::init_and_containers(spec).map(|c| (c.env.as_ref(), c.env_from.as_ref()));
        plain.chain(
            spec.ephemeral_containers
                .iter()
                .flatten()
                .map(|c| (c.env.as_ref(), c.env_from.as_ref())),
        )
    })
}

/// The names of the Secrets: image pull secrets, environment, volumes.
pub fn secret_names(pod: &Pod) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    let Some(spec) = &pod.spec else { return names };
    names.extend(
        spec.image_pull_secrets
            .iter()
            .flatten()
            .map(|reference| reference.name.as_str()),
    );
    for (env, env_from) in environments(pod) {
        let keys = env
            .into_iter()
            .flatten()
            .filter_map(|var| var.value_from.as_ref()?.secret_key_ref.as_ref());
        names.extend(keys.map(|key| key.name.as_str()));
        names.extend(
            env_from
                .into_iter()
                .flatten()
                .filter_map(|from| Some(from.secret_ref.as_ref()?.name.as_str())),
        );
    }
    for volume in spec.volumes.iter().flatten() {
        names.extend(
            volume
                .secret
                .as_ref()
                .and_then(|secret| secret.secret_name.as_deref()),
        );
        for source in volume
            .projected
            .iter()
            .flat_map(|projected| projected.sources.iter().flatten())
        {
            names.extend(source.secret.as_ref().map(|secret| secret.name.as_str()));
        }
        names.extend(
            volume
                .csi
                .as_ref()
                .and_then(|csi| Some(csi.node_publish_secret_ref.as_ref()?.name.as_str())),
        );
        names.extend(
            volume
                .iscsi
                .as_ref()
                .and_then(|iscsi| Some(iscsi.secret_ref.as_ref()?.name.as_str())),
        );
    }
    names.remove("");
    names
}

/// The names of the ConfigMaps: environment, volumes.
pub fn config_map_names(pod: &Pod) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    let Some(spec) = &pod.spec else { return names };
    for (env, env_from) in environments(pod) {
        let keys = env
            .into_iter()
            .flatten()
            .filter_map(|var| var.value_from.as_ref()?.config_map_key_ref.as_ref());
        names.extend(keys.map(|key| key.name.as_str()));
        names.extend(
            env_from
                .into_iter()
                .flatten()
                .filter_map(|from| Some(from.config_map_ref.as_ref()?.name.as_str())),
        );
    }
    for volume in spec.volumes.iter().flatten() {
        names.extend(volume.config_map.as_ref().map(|map| map.name.as_str()));
        for source in volume
            .projected
            .iter()
            .flat_map(|projected| projected.sources.iter().flatten())
        {
            names.extend(source.config_map.as_ref().map(|map| map.name.as_str()));
        }
    }
    names.remove("");
    names
}
