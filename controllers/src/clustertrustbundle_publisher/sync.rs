//! The decision: one bundle with the CA, and no other of the signer. Pure.

use controller_runtime::{Action, DeleteOptions};
use k8s_openapi::api::certificates::v1::{ClusterTrustBundle, ClusterTrustBundleSpec};
use sha2::{Digest as _, Sha256};

/// Whose bundles these are.
pub(super) const SIGNER: &str = "kubernetes.io/kube-apiserver-serving";

/// The bundle's name says its content: readers of an old one never see it change below them.
/// Upstream: `constructBundleName`.
fn name(ca: &str) -> String {
    let digest = Sha256::digest(ca.as_bytes());
    let digest: String = digest[..12]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{}:{digest}", SIGNER.replace('/', ":"))
}

/// What to do about the signer's bundles, in order: the new one first.
pub(super) fn sync<'a>(
    ca: &str,
    observed: impl IntoIterator<Item = &'a ClusterTrustBundle>,
) -> Vec<Action> {
    let name = name(ca);
    let mut actions = Vec::new();
    let mut found = false;
    for bundle in observed {
        let observed = bundle.metadata.name.as_deref().unwrap_or_default();
        if observed != name {
            let options = DeleteOptions::default();
            actions.push(Action::delete::<ClusterTrustBundle>("", observed, options));
            continue;
        }
        found = true;
        if bundle.spec.trust_bundle != ca {
            let mut repaired = bundle.clone();
            repaired.spec.trust_bundle = ca.to_owned();
            actions.insert(0, Action::update(&repaired));
        }
    }
    if !found {
        let mut bundle = ClusterTrustBundle {
            spec: ClusterTrustBundleSpec {
                signer_name: Some(SIGNER.to_owned()),
                trust_bundle: ca.to_owned(),
            },
            ..ClusterTrustBundle::default()
        };
        bundle.metadata.name = Some(name);
        actions.insert(0, Action::create(&bundle));
    }
    actions
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `create`, `update`, `delete NAME`.
    fn check(observed: &[&ClusterTrustBundle], expect: &[&str]) -> Vec<Action> {
        let actions = sync("PEM", observed.iter().copied());
        let words: Vec<_> = actions
            .iter()
            .map(|action| match action {
                Action::Create { .. } => "create".to_owned(),
                Action::Update { .. } => "update".to_owned(),
                Action::Delete { target, .. } => format!("delete {}", target.key.name),
                other => format!("{other:?}"),
            })
            .collect();
        assert_eq!(words, expect);
        actions
    }

    #[test]
    fn one_bundle_and_no_other() {
        let [Action::Create { object, .. }] = &check(&[], &["create"])[..] else {
            panic!("creates")
        };
        let mut bundle: ClusterTrustBundle = serde_json::from_value((**object).clone()).unwrap();
        // `sha256sum` of PEM, its first 24 digits.
        assert_eq!(
            bundle.metadata.name.as_deref(),
            Some("kubernetes.io:kube-apiserver-serving:384fb9a44fabe158be2757b9")
        );
        check(&[&bundle], &[]);
        let mut old = bundle.clone();
        old.metadata.name = Some("kubernetes.io:kube-apiserver-serving:old".into());
        let gone = "delete kubernetes.io:kube-apiserver-serving:old";
        check(&[&old], &["create", gone]);
        check(&[&old, &bundle], &[gone]);
        bundle.spec.trust_bundle = "OTHER".into();
        check(&[&old, &bundle], &["update", gone]);
    }
}
