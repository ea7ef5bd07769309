//! The anchors of ClusterTrustBundles as a projected volume shows them: of one bundle by name, or of a signer's bundles
//! by labels; each anchor once, without comments. Upstream: pkg/kubelet/clustertrustbundle, v1.37.

use std::collections::BTreeSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::{Arc, LazyLock};

use component_helpers::labels::Selector;
use k8s_openapi::api::certificates::v1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::ClusterTrustBundleProjection;

use crate::plugin::SetUpError;
use crate::source::ObjectSource;

/// The content of the file.
///
/// # Errors
/// A bundle that must be there is not, or the source names none. A retry helps where one may still be made.
pub(crate) async fn anchors(
    source: &dyn ObjectSource,
    wanted: &ClusterTrustBundleProjection,
) -> Result<Vec<u8>, SetUpError> {
    let optional = wanted.optional.unwrap_or(false);
    if let Some(name) = &wanted.name {
        return match source.cluster_trust_bundle(name).await? {
            Some(bundle) => normalize(&[bundle]),
            None if optional => Ok(vec![]),
            None => Err(SetUpError::TrustBundleNotFound(name.clone())),
        };
    }
    let Some(signer) = &wanted.signer_name else {
        return Err(SetUpError::TrustBundleUnnamed);
    };
    // No selector matches nothing, an empty one everything.
    let selector = Selector::from_optional(wanted.label_selector.as_ref())
        .map_err(SetUpError::TrustBundleSelector)?;
    let mut bundles = source.cluster_trust_bundles(signer).await?;
    bundles.retain(|bundle| selector.matches(&bundle.metadata.labels));
    if bundles.is_empty() {
        return if optional {
            Ok(vec![])
        } else {
            Err(SetUpError::NoTrustBundleMatches)
        };
    }
    normalize(&bundles)
}

/// Every anchor once. Their order means nothing, so that nobody comes to rely on it: it stays the same while the
/// process lives and is another one after a restart.
fn normalize(bundles: &[Arc<ClusterTrustBundle>]) -> Result<Vec<u8>, SetUpError> {
    static ORDER: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    let mut anchors = BTreeSet::new();
    for bundle in bundles {
        let blocks = pem::parse_many(&bundle.spec.trust_bundle).map_err(|source| {
            SetUpError::TrustBundlePem {
                name: bundle.metadata.name.clone().unwrap_or_default(),
                source,
            }
        })?;
        anchors.extend(blocks.into_iter().map(pem::Pem::into_contents));
    }
    let mut anchors: Vec<_> = anchors.into_iter().collect();
    anchors.sort_by_cached_key(|der| ORDER.hash_one(der));
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    let texts = anchors
        .into_iter()
        .map(|der| pem::encode_config(&pem::Pem::new("CERTIFICATE", der), config));
    Ok(texts.collect::<String>().into_bytes())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use async_trait::async_trait;
    use k8s_openapi::api::core::v1::{
        ConfigMap, Node, PersistentVolume, PersistentVolumeClaim, Secret,
    };
    use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    use serde_json::{Value, json};

    use super::*;
    use crate::source::{
        PodCertificate, PodCertificateKey, ServiceAccountToken, SourceError, TokenRequest,
    };

    struct Bundles(Vec<Arc<ClusterTrustBundle>>);

    #[async_trait]
    impl ObjectSource for Bundles {
        async fn config_map(
            &self,
            _: &str,
            _: &str,
        ) -> Result<Option<Arc<ConfigMap>>, SourceError> {
            unreachable!()
        }
        async fn secret(&self, _: &str, _: &str) -> Result<Option<Arc<Secret>>, SourceError> {
            unreachable!()
        }
        async fn service_account_token(
            &self,
            _: &TokenRequest,
        ) -> Result<ServiceAccountToken, SourceError> {
            unreachable!()
        }
        async fn claim(
            &self,
            _: &str,
            _: &str,
        ) -> Result<Option<Arc<PersistentVolumeClaim>>, SourceError> {
            unreachable!()
        }
        async fn persistent_volume(
            &self,
            _: &str,
        ) -> Result<Option<Arc<PersistentVolume>>, SourceError> {
            unreachable!()
        }
        async fn patch_claim_status(&self, _: &str, _: &str, _: &Value) -> Result<(), SourceError> {
            Ok(())
        }
        async fn until_node(&self, _: &(dyn for<'a> Fn(&'a Node) -> bool + Send + Sync)) {}
        async fn csi_driver(&self, _: &str) -> Result<Option<Arc<CSIDriver>>, SourceError> {
            Ok(None)
        }
        async fn volume_attachment(
            &self,
            _: &str,
        ) -> Result<Option<Arc<VolumeAttachment>>, SourceError> {
            Ok(None)
        }
        fn node(&self) -> Option<Arc<Node>> {
            unreachable!()
        }
        async fn cluster_trust_bundle(
            &self,
            name: &str,
        ) -> Result<Option<Arc<ClusterTrustBundle>>, SourceError> {
            let is = |b: &&Arc<ClusterTrustBundle>| b.metadata.name.as_deref() == Some(name);
            Ok(self.0.iter().find(is).cloned())
        }
        async fn cluster_trust_bundles(
            &self,
            signer: &str,
        ) -> Result<Vec<Arc<ClusterTrustBundle>>, SourceError> {
            let of = |b: &&Arc<ClusterTrustBundle>| b.spec.signer_name.as_deref() == Some(signer);
            Ok(self.0.iter().filter(of).cloned().collect())
        }
        async fn pod_certificate(
            &self,
            _: &PodCertificateKey,
        ) -> Result<PodCertificate, SourceError> {
            unreachable!()
        }
        fn node_allocatable(&self) -> Result<BTreeMap<String, Quantity>, SourceError> {
            unreachable!()
        }
    }

    fn block(content: &str) -> String {
        let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
        pem::encode_config(&pem::Pem::new("CERTIFICATE", content), config)
    }

    fn bundle(name: &str, signer: &str, env: &str, text: String) -> Arc<ClusterTrustBundle> {
        let object = json!({"metadata": {"name": name, "labels": {"env": env}},
            "spec": {"signerName": signer, "trustBundle": text}});
        Arc::new(serde_json::from_value(object).unwrap())
    }

    /// Blocks are compared as a set, errors by their text.
    async fn check(wanted: Value, expect: Result<&[&str], &str>) {
        let source = Bundles(vec![
            bundle(
                "plain",
                "",
                "",
                format!("a comment\n{}\nanother\n{0}{}", block("one"), block("two")),
            ),
            bundle("a", "s.example/x", "prod", block("three")),
            bundle("b", "s.example/x", "test", block("four") + &block("three")),
            bundle("c", "s.example/y", "prod", block("five")),
        ]);
        let wanted: ClusterTrustBundleProjection = serde_json::from_value(wanted).unwrap();
        let got = anchors(&source, &wanted).await;
        match expect {
            Ok(contents) => {
                let got = String::from_utf8(got.unwrap()).unwrap();
                let mut found: Vec<_> =
                    got.split_inclusive("-----END CERTIFICATE-----\n").collect();
                let mut expect: Vec<_> = contents.iter().map(|c| block(c)).collect();
                found.sort_unstable();
                expect.sort_unstable();
                assert_eq!(found, expect, "{wanted:?}");
            }
            Err(text) => assert_eq!(got.unwrap_err().to_string(), text, "{wanted:?}"),
        }
    }

    #[tokio::test]
    async fn what_a_source_means() {
        check(json!({"path": "p", "name": "plain"}), Ok(&["one", "two"])).await;
        let missing = "while getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io \"gone\" not found";
        check(json!({"path": "p", "name": "gone"}), Err(missing)).await;
        check(
            json!({"path": "p", "name": "gone", "optional": true}),
            Ok(&[]),
        )
        .await;
        let signer = |extra: Value| {
            let mut wanted = json!({"path": "p", "signerName": "s.example/x"});
            wanted
                .as_object_mut()
                .unwrap()
                .extend(extra.as_object().unwrap().clone());
            wanted
        };
        check(signer(json!({"labelSelector": {}})), Ok(&["three", "four"])).await;
        check(
            signer(json!({"labelSelector": {"matchLabels": {"env": "prod"}}})),
            Ok(&["three"]),
        )
        .await;
        let none = "combination of signerName and labelSelector matched zero ClusterTrustBundles";
        check(signer(json!({})), Err(none)).await;
        check(signer(json!({"optional": true})), Ok(&[])).await;
        let nobody = json!({"labelSelector": {"matchLabels": {"env": "x"}}});
        check(signer(nobody), Err(none)).await;
        check(
            json!({"path": "p"}),
            Err("ClusterTrustBundle projection requires either name or signerName to be set"),
        )
        .await;
    }

    #[test]
    fn the_order_stays() {
        let bundles: Vec<_> = (0..50)
            .map(|n| bundle(&n.to_string(), "", "", block(&n.to_string())))
            .collect();
        let once = normalize(&bundles).unwrap();
        let mut backwards = bundles.clone();
        backwards.reverse();
        assert_eq!(once, normalize(&backwards).unwrap());
    }
}
