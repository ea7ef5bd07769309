//! The decision: which token Secrets to mark and which to delete. Pure.

use std::collections::HashSet;
use std::time::Duration;

use controller_runtime::{Action, DeleteOptions, Plan};
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan as _};
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, ServiceAccount};
use serde_json::json;

use crate::serviceaccount_token::sync::{
    NAME_ANNOTATION, SECRET_TYPE, UID_ANNOTATION, annotation, is_account,
};

/// The ConfigMap in kube-system that says since when the use of tokens is tracked.
pub const TRACKING_CONFIG_MAP: &str = "kube-apiserver-legacy-service-account-token-tracking";
const TRACKED_SINCE: &str = "since";
const LAST_USED_LABEL: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE_LABEL: &str = "kubernetes.io/legacy-token-invalid-since";

/// A day that is no day.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ConfigMap {TRACKING_CONFIG_MAP} has no day under {TRACKED_SINCE:?}")]
pub struct NotTracked;

/// What the caches hold.
pub trait Cluster {
    /// The ServiceAccount of this name.
    fn account(&self, namespace: &str, name: &str) -> Option<std::sync::Arc<ServiceAccount>>;
    /// Whether a Pod of the namespace names the Secret.
    fn is_mounted(&self, namespace: &str, secret: &str) -> bool;
}

/// Whether the use of tokens has been tracked for `period`; the day it began does not count.
///
/// # Errors
/// When the ConfigMap does not say since when.
pub fn tracked_long_enough(
    tracking: &ConfigMap,
    period: Duration,
    now: Timestamp,
) -> Result<bool, NotTracked> {
    let data = tracking.data.as_ref().and_then(|d| d.get(TRACKED_SINCE));
    let since = data.and_then(|text| day(text)).ok_or(NotTracked)?;
    let next = since.checked_add(1.day()).map_err(|_| NotTracked)?;
    let start = next.to_zoned(TimeZone::UTC).map_err(|_| NotTracked)?;
    let left = SignedDuration::try_from(period).unwrap_or(SignedDuration::MAX);
    Ok(now.duration_since(start.timestamp()) >= left)
}

fn day(text: &str) -> Option<Date> {
    text.parse().ok()
}

/// Marks and deletions. Only for when the use has been tracked long enough.
pub fn sync(
    secrets: &[impl AsRef<Secret>],
    cluster: &impl Cluster,
    period: Duration,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::none();
    let left = SignedDuration::try_from(period).unwrap_or(SignedDuration::MAX);
    let Ok(preserve) = now.checked_sub(left) else {
        return plan;
    };
    let preserve_day = preserve.to_zoned(TimeZone::UTC).date();
    for secret in secrets.iter().map(AsRef::as_ref) {
        if !is_old(secret, preserve, preserve_day) || !is_generated_and_unused(secret, cluster) {
            continue;
        }
        let meta = &secret.metadata;
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let name = meta.name.as_deref().unwrap_or_default();
        match label(secret, INVALID_SINCE_LABEL).and_then(day) {
            None => {
                let today = now.to_zoned(TimeZone::UTC).date().to_string();
                let labels = json!({INVALID_SINCE_LABEL: today});
                let patch = json!({"metadata": {"uid": meta.uid, "labels": labels}});
                plan.push(Action::merge_patch::<Secret>(namespace, name, patch));
            }
            Some(invalid_since) if invalid_since >= preserve_day => {}
            Some(_) => {
                let options = DeleteOptions {
                    resource_version: meta.resource_version.clone(),
                    ..DeleteOptions::default()
                };
                plan.push(Action::delete::<Secret>(namespace, name, options));
            }
        }
    }
    plan
}

fn label<'a>(secret: &'a Secret, key: &str) -> Option<&'a str> {
    let labels = secret.metadata.labels.as_ref()?;
    labels.get(key).map(String::as_str)
}

/// A token made before `preserve`, and not used since. A day that cannot be read counts as a use.
fn is_old(secret: &Secret, preserve: Timestamp, preserve_day: Date) -> bool {
    let created = secret.metadata.creation_timestamp.as_ref();
    secret.type_.as_deref() == Some(SECRET_TYPE)
        && secret.metadata.deletion_timestamp.is_none()
        && created.is_some_and(|time| time.0 < preserve)
        && label(secret, LAST_USED_LABEL)
            .is_none_or(|text| day(text).is_some_and(|used| used < preserve_day))
}

fn is_generated_and_unused(secret: &Secret, cluster: &impl Cluster) -> bool {
    let namespace = secret.metadata.namespace.as_deref().unwrap_or_default();
    let name = secret.metadata.name.as_deref().unwrap_or_default();
    let account = annotation(secret, NAME_ANNOTATION);
    // Only what the ServiceAccount refers to was made for it.
    let generated = cluster.account(namespace, account).is_some_and(|account| {
        is_account(&account, annotation(secret, UID_ANNOTATION))
            && account
                .secrets
                .iter()
                .flatten()
                .any(|s| s.name.as_deref() == Some(name))
    });
    generated && !cluster.is_mounted(namespace, name)
}

/// The names of the Secrets a Pod refers to, in any field.
pub fn pod_secret_names(pod: &Pod) -> HashSet<String> {
    let mut names = HashSet::new();
    let Some(spec) = &pod.spec else {
        return names;
    };
    names.extend(
        spec.image_pull_secrets
            .iter()
            .flatten()
            .map(|s| s.name.clone()),
    );
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    names.extend(ephemeral.flat_map(|c| env_secrets(c.env.as_deref(), c.env_from.as_deref())));
    let containers = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten());
    names.extend(
        containers.flat_map(|c: &Container| env_secrets(c.env.as_deref(), c.env_from.as_deref())),
    );
    for volume in spec.volumes.iter().flatten() {
        let reference = |r: &k8s_openapi::api::core::v1::LocalObjectReference| r.name.clone();
        let projected = volume
            .projected
            .iter()
            .flat_map(|p| p.sources.iter().flatten());
        names.extend(projected.filter_map(|s| s.secret.as_ref().map(|s| s.name.clone())));
        names.extend(
            [
                volume.secret.as_ref().and_then(|s| s.secret_name.clone()),
                volume.azure_file.as_ref().map(|v| v.secret_name.clone()),
                volume
                    .cephfs
                    .as_ref()
                    .and_then(|v| v.secret_ref.as_ref().map(reference)),
                volume
                    .cinder
                    .as_ref()
                    .and_then(|v| v.secret_ref.as_ref().map(reference)),
                volume
                    .flex_volume
                    .as_ref()
                    .and_then(|v| v.secret_ref.as_ref().map(reference)),
                volume
                    .rbd
                    .as_ref()
                    .and_then(|v| v.secret_ref.as_ref().map(reference)),
                volume.scale_io.as_ref().map(|v| v.secret_ref.name.clone()),
                volume
                    .iscsi
                    .as_ref()
                    .and_then(|v| v.secret_ref.as_ref().map(reference)),
                volume
                    .storageos
                    .as_ref()
                    .and_then(|v| v.secret_ref.as_ref().map(reference)),
                volume
                    .csi
                    .as_ref()
                    .and_then(|v| v.node_publish_secret_ref.as_ref().map(reference)),
            ]
            .into_iter()
            .flatten(),
        );
    }
    names
}

fn env_secrets(
    env: Option<&[k8s_openapi::api::core::v1::EnvVar]>,
    env_from: Option<&[k8s_openapi::api::core::v1::EnvFromSource]>,
) -> Vec<String> {
    let keys = env.into_iter().flatten().filter_map(|e| {
        let source = e.value_from.as_ref()?.secret_key_ref.as_ref()?;
        Some(source.name.clone())
    });
    let whole = env_from.into_iter().flatten();
    keys.chain(whole.filter_map(|e| e.secret_ref.as_ref().map(|s| s.name.clone())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use serde_json::Value;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    struct Fake {
        refers: bool,
        mounted: bool,
    }

    impl Cluster for Fake {
        fn account(&self, namespace: &str, name: &str) -> Option<Arc<ServiceAccount>> {
            let secrets = if self.refers {
                json!([{"name": "s"}])
            } else {
                json!([])
            };
            let account = json!({"metadata": {"name": name, "namespace": namespace, "uid": "u"}, "secrets": secrets});
            (name == "a").then(|| Arc::new(serde_json::from_value(account).unwrap()))
        }
        fn is_mounted(&self, _: &str, _: &str) -> bool {
            self.mounted
        }
    }

    fn now() -> Timestamp {
        "2026-03-01T12:00:00Z".parse().unwrap()
    }

    fn check(labels: Value, annotations: Value, created: &str, fake: &Fake) -> &'static str {
        let secret: Secret = serde_json::from_value(json!({"type": SECRET_TYPE, "metadata": {
            "name": "s", "namespace": "ns", "uid": "x", "creationTimestamp": created,
            "labels": labels, "annotations": annotations}}))
        .unwrap();
        let plan = sync(&[Arc::new(secret)], fake, 30 * DAY, now());
        match &plan.actions[..] {
            [] => "keep",
            [Action::Patch { patch, .. }] => {
                assert_eq!(
                    patch["metadata"]["labels"][INVALID_SINCE_LABEL],
                    "2026-03-01"
                );
                "mark"
            }
            [Action::Delete { .. }] => "delete",
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn marks_and_deletes() {
        let auto = Fake {
            refers: true,
            mounted: false,
        };
        let of = |uid: &str| json!({NAME_ANNOTATION: "a", UID_ANNOTATION: uid});
        let used = |day: &str| json!({LAST_USED_LABEL: day});
        let marked = |day: &str| json!({INVALID_SINCE_LABEL: day});
        let old = "2025-01-01T00:00:00Z";
        for (labels, expect) in [
            (json!({}), "mark"),
            (used("2026-01-15"), "mark"),
            (used("2026-01-30"), "keep"),
            (used("yesterday"), "keep"),
            (marked("2026-02-20"), "keep"),
            (marked("2026-01-20"), "delete"),
            (marked("nonsense"), "mark"),
        ] {
            assert_eq!(
                check(labels.clone(), of("u"), old, &auto),
                expect,
                "{labels}"
            );
        }
        assert_eq!(
            check(json!({}), of("u"), "2026-02-20T00:00:00Z", &auto),
            "keep"
        );
        assert_eq!(check(json!({}), of("other"), old, &auto), "keep");
        assert_eq!(
            check(json!({}), json!({NAME_ANNOTATION: "b"}), old, &auto),
            "keep"
        );
        let by_hand = Fake {
            refers: false,
            mounted: false,
        };
        assert_eq!(check(json!({}), of("u"), old, &by_hand), "keep");
        let mounted = Fake {
            refers: true,
            mounted: true,
        };
        assert_eq!(check(json!({}), of("u"), old, &mounted), "keep");
    }

    #[test]
    fn tracking() {
        for (since, expect) in [
            (json!({"since": "2026-01-29"}), Ok(true)),
            (json!({"since": "2026-01-30"}), Ok(true)),
            (json!({"since": "2026-01-31"}), Ok(false)),
            (json!({"since": "long"}), Err(NotTracked)),
            (json!({}), Err(NotTracked)),
        ] {
            let map = serde_json::from_value(json!({"data": since})).unwrap();
            assert_eq!(
                tracked_long_enough(&map, 29 * DAY, now()),
                expect,
                "{since}"
            );
        }
    }

    #[test]
    fn secrets_of_pods() {
        let pod = serde_json::from_value(json!({"spec": {
            "imagePullSecrets": [{"name": "pull"}],
            "containers": [{"name": "c", "envFrom": [{"secretRef": {"name": "all"}}],
                "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": "key", "key": "k"}}}]}],
            "volumes": [{"name": "v", "secret": {"secretName": "volume"}},
                {"name": "w", "projected": {"sources": [{"secret": {"name": "projected"}}]}}]}}))
        .unwrap();
        let mut names: Vec<String> = pod_secret_names(&pod).into_iter().collect();
        names.sort();
        assert_eq!(names, ["all", "key", "projected", "pull", "volume"]);
    }
}
