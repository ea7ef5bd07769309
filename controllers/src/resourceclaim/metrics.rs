//! Metrics of claims.
//!
//! Upstream: pkg/controller/resourceclaim/metrics, k8s.io/dynamic-resource-allocation/resourceclaim/metrics, v1.37.

use std::collections::HashMap;

use component_base::informer::Informer;
use component_base::metrics::{RegisterError, Registry, make};
use component_helpers::owner_ref::get_controller_of;
use component_helpers::resource_claim::{
    EXTENDED_RESOURCE_CLAIM_ANNOTATION, POD_RESOURCE_CLAIM_ANNOTATION, has_admin_access,
    is_allocated,
};
use k8s_openapi::api::resource::v1::ResourceClaim;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, IntCounterVec};

component_base::metrics! {
    /// What is counted as it happens.
    pub(super) struct Metrics {
        creates: IntCounterVec = make::counters(
            "dynamic_resource_allocation_resourceclaim_creates_total",
            "Number of ResourceClaims creation requests, categorized by creation status, admin access, and owning API group and kind (either Pod or scheduling.k8s.io/PodGroup)",
            &["status", "admin_access", "owner_api_group", "owner_api_kind"],
        ),
    }
}

fn word(value: bool) -> &'static str {
    if value { "true" } else { "false" }
}

impl Metrics {
    /// Counts a request to make a claim.
    pub(super) fn record_create(&self, claim: &ResourceClaim, success: bool) {
        let owner = get_controller_of(&claim.metadata);
        let group = owner.and_then(|o| o.api_version.split_once('/'));
        self.creates
            .with_label_values(&[
                if success { "success" } else { "failure" },
                word(has_admin_access(claim)),
                group.map_or("", |(group, _)| group),
                owner.map_or("", |o| &o.kind),
            ])
            .inc();
    }
}

/// Who made a claim: a template, the scheduler, or a user (empty).
fn source(claim: &ResourceClaim) -> &'static str {
    let annotation = |key: &str| {
        let annotations = claim.metadata.annotations.as_ref();
        annotations.and_then(|a| a.get(key)).map_or("", |v| v)
    };
    if annotation(EXTENDED_RESOURCE_CLAIM_ANNOTATION) == "true" {
        "extended_resource"
    } else if annotation(POD_RESOURCE_CLAIM_ANNOTATION).is_empty() {
        ""
    } else {
        "resource_claim_template"
    }
}

/// Counts claims when it is asked.
struct Claims {
    claims: Informer<ResourceClaim>,
    count: GaugeVec,
}

impl Claims {
    fn new(claims: Informer<ResourceClaim>) -> Result<Self, RegisterError> {
        let count = make::gauges(
            "dynamic_resource_allocation_resource_claims",
            "Number of ResourceClaims, categorized by allocation status, admin access, and source. Source can be 'resource_claim_template' (created from a template), 'extended_resource' (extended resources), or empty (manually created by a user).",
            &["allocated", "admin_access", "source"],
        )?;
        Ok(Self { claims, count })
    }
}

/// Shows the claims.
///
/// # Errors
/// The registry shows others already.
pub(super) fn register(
    registry: &Registry,
    claims: &Informer<ResourceClaim>,
) -> Result<(), RegisterError> {
    registry.register(Box::new(Claims::new(claims.clone())?))
}

impl Collector for Claims {
    fn desc(&self) -> Vec<&Desc> {
        self.count.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut counts: HashMap<[&str; 3], f64> = HashMap::new();
        for claim in self.claims.list() {
            let labels = [
                word(is_allocated(&claim)),
                word(has_admin_access(&claim)),
                source(&claim),
            ];
            *counts.entry(labels).or_default() += 1.0;
        }
        self.count.reset();
        for (labels, count) in &counts {
            self.count.with_label_values(labels).set(*count);
        }
        self.count.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Feed, settle};
    use serde_json::{from_value, json};

    #[tokio::test]
    async fn claims_by_kind() {
        let (feed, informer) = Feed::<ResourceClaim>::new();
        let claim = |name: &str, annotation: &str, allocated: bool| {
            let annotations = json!({ annotation: "true" });
            let status = if allocated {
                json!({ "allocation": {} })
            } else {
                json!({})
            };
            let claim = json!({ "metadata": { "name": name, "namespace": "ns", "annotations": annotations },
                "spec": { "devices": { "requests": [{ "name": "r", "exactly": { "deviceClassName": "d", "adminAccess": allocated } }] } },
                "status": status });
            feed.apply(from_value(claim).unwrap());
        };
        claim("a", POD_RESOURCE_CLAIM_ANNOTATION, false);
        claim("b", POD_RESOURCE_CLAIM_ANNOTATION, false);
        claim("c", EXTENDED_RESOURCE_CLAIM_ANNOTATION, true);
        claim("d", "other", false);
        settle().await;
        let families = Claims::new(informer).unwrap().collect();
        let mut found: Vec<_> = families[0]
            .get_metric()
            .iter()
            .map(|metric| {
                let labels = metric.get_label().iter().map(|label| label.value());
                (
                    labels.collect::<Vec<_>>().join(","),
                    metric.get_gauge().get_value(),
                )
            })
            .collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        // admin_access, allocated, source
        let expect = [
            ("false,false,".to_owned(), 1.0),
            ("false,false,resource_claim_template".to_owned(), 2.0),
            ("true,true,extended_resource".to_owned(), 1.0),
        ];
        assert_eq!(found, expect);
    }
}
