//! Which object of the API a pod leans on, if any.
//!
//! Owns: [`find`], pure. A static pod runs without the API server and with nobody's leave: one that could name Secrets or
//! ServiceAccounts would hand them to whoever writes the manifest. Upstream: `HasAPIObjectReference` in `pkg/api/pod`,
//! v1.36 (gate `PreventStaticPodAPIReferences`).

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Volume};

use crate::pod;

fn named(name: &str) -> bool {
    !name.is_empty()
}

fn all_containers(pod: &Pod) -> Vec<Container> {
    let ephemeral = pod::ephemeral_containers(pod)
        .iter()
        .map(pod::ephemeral_as_container);
    pod::init_containers(pod)
        .iter()
        .chain(pod::containers(pod))
        .cloned()
        .chain(ephemeral)
        .collect()
}

fn container_names_secret(c: &Container) -> bool {
    let from = c.env_from.iter().flatten();
    let env = c.env.iter().flatten().filter_map(|e| e.value_from.as_ref());
    from.filter_map(|f| f.secret_ref.as_ref())
        .any(|r| named(&r.name))
        || env
            .filter_map(|v| v.secret_key_ref.as_ref())
            .any(|r| named(&r.name))
}

fn container_names_config_map(c: &Container) -> bool {
    let from = c.env_from.iter().flatten();
    let env = c.env.iter().flatten().filter_map(|e| e.value_from.as_ref());
    from.filter_map(|f| f.config_map_ref.as_ref())
        .any(|r| named(&r.name))
        || env
            .filter_map(|v| v.config_map_key_ref.as_ref())
            .any(|r| named(&r.name))
}

/// The Secrets that a volume's source names, whatever the kind of volume.
fn volume_names_secret(v: &Volume) -> bool {
    let refs = [
        v.cephfs.as_ref().and_then(|s| s.secret_ref.as_ref()),
        v.cinder.as_ref().and_then(|s| s.secret_ref.as_ref()),
        v.flex_volume.as_ref().and_then(|s| s.secret_ref.as_ref()),
        v.rbd.as_ref().and_then(|s| s.secret_ref.as_ref()),
        v.scale_io.as_ref().map(|s| &s.secret_ref),
        v.iscsi.as_ref().and_then(|s| s.secret_ref.as_ref()),
        v.storageos.as_ref().and_then(|s| s.secret_ref.as_ref()),
        v.csi
            .as_ref()
            .and_then(|s| s.node_publish_secret_ref.as_ref()),
    ];
    let projected = v.projected.iter().flat_map(|p| p.sources.iter().flatten());
    refs.into_iter().flatten().any(|r| named(&r.name))
        || v.azure_file.as_ref().is_some_and(|s| named(&s.secret_name))
        || v.secret
            .as_ref()
            .and_then(|s| s.secret_name.as_deref())
            .is_some_and(named)
        || projected
            .filter_map(|s| s.secret.as_ref())
            .any(|s| named(&s.name))
}

fn volume_names_config_map(v: &Volume) -> bool {
    let projected = v.projected.iter().flat_map(|p| p.sources.iter().flatten());
    v.config_map.as_ref().is_some_and(|s| named(&s.name))
        || projected
            .filter_map(|s| s.config_map.as_ref())
            .any(|s| named(&s.name))
}

/// What else a volume needs the API for; Secrets and ConfigMaps without a name among it.
fn of_volume(v: &Volume) -> Option<&'static str> {
    if v.config_map.is_some() {
        return Some("configmaps (via configmap volumes)");
    }
    if v.secret.is_some() {
        return Some("secrets (via secret volumes)");
    }
    if v.csi.is_some() {
        return Some("csidrivers (via CSI volumes)");
    }
    if v.glusterfs.is_some() {
        return Some("endpoints (via glusterFS volumes)");
    }
    if v.persistent_volume_claim.is_some() {
        return Some("persistentvolumeclaims");
    }
    if v.ephemeral.is_some() {
        return Some("persistentvolumeclaims (via ephemeral volumes)");
    }
    if v.azure_file.is_some() {
        return Some("secrets (via azureFile volumes)");
    }
    for source in v.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
        if source.config_map.is_some() {
            return Some("configmaps (via projected volumes)");
        }
        if source.secret.is_some() {
            return Some("secrets (via projected volumes)");
        }
        if source.service_account_token.is_some() {
            return Some("serviceaccounts (via projected volumes)");
        }
        if source.cluster_trust_bundle.is_some() {
            return Some("clustertrustbundles");
        }
        if source.pod_certificate.is_some() {
            return Some("podcertificates");
        }
        if source.downward_api.is_none() {
            return Some("an unknown source of a projected volume");
        }
    }
    None
}

/// The kind of object that the pod names, in upstream's words; the first that is found. `None`: it needs no API.
pub fn find(pod: &Pod) -> Option<&'static str> {
    let spec: &PodSpec = pod.spec.as_ref()?;
    let accounts = [&spec.service_account_name, &spec.service_account];
    if accounts.iter().any(|a| a.as_deref().is_some_and(named)) {
        return Some("serviceaccounts");
    }
    let containers = all_containers(pod);
    let volumes = spec.volumes.as_deref().unwrap_or_default();
    let pull = spec.image_pull_secrets.iter().flatten();
    if pull.into_iter().any(|r| named(&r.name))
        || containers.iter().any(container_names_secret)
        || volumes.iter().any(volume_names_secret)
    {
        return Some("secrets");
    }
    if containers.iter().any(container_names_config_map)
        || volumes.iter().any(volume_names_config_map)
    {
        return Some("configmaps");
    }
    if spec.resource_claims.as_ref().is_some_and(|c| !c.is_empty()) {
        return Some("resourceclaims");
    }
    volumes.iter().find_map(of_volume)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn check(spec: Value, expect: Option<&str>) {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}});
        for (key, value) in spec.as_object().unwrap() {
            pod["spec"][key] = value.clone();
        }
        let pod: Pod = serde_json::from_value(pod).unwrap();
        assert_eq!(find(&pod), expect, "{spec}");
    }

    fn volume(source: Value, expect: Option<&str>) {
        let mut v = source;
        v["name"] = json!("v");
        check(json!({ "volumes": [v] }), expect);
    }

    #[test]
    fn pods_that_need_no_api() {
        check(json!({}), None);
        check(
            json!({"serviceAccountName": "", "imagePullSecrets": [], "resourceClaims": []}),
            None,
        );
        check(
            json!({"containers": [{"name": "c", "env": [
                {"name": "A", "value": "1"},
                {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "C", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "p", "key": "k"}}}
            ]}]}),
            None,
        );
        for source in [
            json!({}),
            json!({"emptyDir": {}}),
            json!({"hostPath": {"path": "/"}}),
            json!({"downwardAPI": {}}),
            json!({"image": {"reference": "x"}}),
            json!({"nfs": {"server": "s", "path": "/"}}),
            json!({"projected": {"sources": [{"downwardAPI": {}}]}}),
        ] {
            volume(source, None);
        }
    }

    #[test]
    fn accounts_claims_and_pull_secrets() {
        check(json!({"serviceAccountName": "a"}), Some("serviceaccounts"));
        check(json!({"serviceAccount": "a"}), Some("serviceaccounts"));
        check(
            json!({"imagePullSecrets": [{"name": "s"}]}),
            Some("secrets"),
        );
        check(
            json!({"resourceClaims": [{"name": "r", "resourceClaimName": "x"}]}),
            Some("resourceclaims"),
        );
    }

    #[test]
    fn every_kind_of_container() {
        let env = |from: Value| json!([{"name": "A", "valueFrom": from}]);
        let secret = json!({"secretKeyRef": {"name": "s", "key": "k"}});
        let map = json!({"configMapKeyRef": {"name": "s", "key": "k"}});
        for list in ["containers", "initContainers", "ephemeralContainers"] {
            let with = |key: &str, value: Value| json!({ list: [{"name": "c", "image": "i", key: value}] });
            check(with("env", env(secret.clone())), Some("secrets"));
            check(with("env", env(map.clone())), Some("configmaps"));
            check(
                with("envFrom", json!([{"secretRef": {"name": "s"}}])),
                Some("secrets"),
            );
            check(
                with("envFrom", json!([{"configMapRef": {"name": "s"}}])),
                Some("configmaps"),
            );
        }
    }

    #[test]
    fn every_kind_of_volume() {
        let secret = json!({"name": "s"});
        for (source, expect) in [
            (json!({"secret": {"secretName": "s"}}), "secrets"),
            (json!({"secret": {}}), "secrets (via secret volumes)"),
            (json!({"configMap": {"name": "m"}}), "configmaps"),
            (
                json!({"configMap": {}}),
                "configmaps (via configmap volumes)",
            ),
            (
                json!({"csi": {"driver": "d"}}),
                "csidrivers (via CSI volumes)",
            ),
            (
                json!({"csi": {"driver": "d", "nodePublishSecretRef": secret}}),
                "secrets",
            ),
            (
                json!({"glusterfs": {"endpoints": "e", "path": "p"}}),
                "endpoints (via glusterFS volumes)",
            ),
            (
                json!({"persistentVolumeClaim": {"claimName": "c"}}),
                "persistentvolumeclaims",
            ),
            (
                json!({"ephemeral": {}}),
                "persistentvolumeclaims (via ephemeral volumes)",
            ),
            (
                json!({"azureFile": {"secretName": "s", "shareName": "x"}}),
                "secrets",
            ),
            (
                json!({"azureFile": {"secretName": "", "shareName": "x"}}),
                "secrets (via azureFile volumes)",
            ),
            (
                json!({"cephfs": {"monitors": [], "secretRef": secret}}),
                "secrets",
            ),
            (
                json!({"cinder": {"volumeID": "v", "secretRef": secret}}),
                "secrets",
            ),
            (
                json!({"flexVolume": {"driver": "d", "secretRef": secret}}),
                "secrets",
            ),
            (
                json!({"rbd": {"image": "i", "monitors": [], "secretRef": secret}}),
                "secrets",
            ),
            (
                json!({"iscsi": {"iqn": "i", "lun": 0, "targetPortal": "t", "secretRef": secret}}),
                "secrets",
            ),
            (json!({"storageos": {"secretRef": secret}}), "secrets"),
            (
                json!({"scaleIO": {"gateway": "g", "system": "s", "secretRef": secret}}),
                "secrets",
            ),
        ] {
            volume(source, Some(expect));
        }
        for (source, expect) in [
            (json!({"secret": secret}), "secrets"),
            (json!({"configMap": secret}), "configmaps"),
            (
                json!({"serviceAccountToken": {"path": "t"}}),
                "serviceaccounts (via projected volumes)",
            ),
            (
                json!({"clusterTrustBundle": {"path": "t"}}),
                "clustertrustbundles",
            ),
            (
                json!({"podCertificate": {"keyType": "ED25519", "signerName": "s"}}),
                "podcertificates",
            ),
            (json!({}), "an unknown source of a projected volume"),
        ] {
            volume(json!({"projected": {"sources": [source]}}), Some(expect));
        }
    }
}
