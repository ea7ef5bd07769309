//! [`Quotas`]: what namespaces are promised and may use, and what they use. [`Ledger`]: the same within one decision, with pods tried away and back.
//!
//! Upstream: pkg/capacityscheduling/elasticquota.go. DIFFERS: pods that were there before their namespace had a quota count, too; requests are the scheduler's
//! own figures (sidecars, resizes), not a sum of containers.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use component_helpers::resources::{PodResourcesOptions, pod_requests};
use framework::{Object, PodInfo, Resource};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::kinds::{ElasticQuota, ElasticQuotaSpec};

/// Bounds and use of a namespace's quota.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quota {
    /// What it can always have back.
    pub min: Resource,
    /// What it never exceeds. Resources that are not native and not named have no bound.
    pub max: Resource,
    /// What its pods with a node ask for.
    pub used: Resource,
}

impl Quota {
    fn new(spec: &ElasticQuotaSpec, used: Resource) -> Self {
        let unbounded = || Resource {
            milli_cpu: i64::MAX,
            memory: i64::MAX,
            ephemeral_storage: i64::MAX,
            ..Resource::default()
        };
        Quota {
            min: spec
                .min
                .as_ref()
                .map(Resource::from_list)
                .unwrap_or_default(),
            max: spec
                .max
                .as_ref()
                .map_or_else(unbounded, Resource::from_list),
            used,
        }
    }

    /// Is more used than is promised?
    pub fn used_over_min(&self) -> bool {
        exceeds(&self.used, &Resource::default(), &self.min, 0)
    }

    /// Would more be used than is promised, with `request`?
    pub fn used_over_min_with(&self, request: &Resource) -> bool {
        exceeds(request, &self.used, &self.min, 0)
    }

    /// Would more be used than may be, with `request`?
    pub fn used_over_max_with(&self, request: &Resource) -> bool {
        exceeds(request, &self.used, &self.max, i64::MAX)
    }
}

/// Is `a + b` more than `limit` of some resource? Of extended resources those in `a` are looked at; one without a limit has `unnamed`.
fn exceeds(a: &Resource, b: &Resource, limit: &Resource, unnamed: i64) -> bool {
    let native = |of: fn(&Resource) -> i64| of(a).saturating_add(of(b)) > of(limit);
    native(|r| r.milli_cpu)
        || native(|r| r.memory)
        || native(|r| r.ephemeral_storage)
        || native(|r| r.allowed_pod_number)
        || a.scalar.iter().any(|(name, amount)| {
            let limit = limit.scalar.get(name).copied().unwrap_or(unnamed);
            amount.saturating_add(b.get(name)) > limit
        })
}

/// What a pod counts for.
pub fn request(pod: &Pod) -> Resource {
    let options = PodResourcesOptions {
        use_status_resources: true,
        ..PodResourcesOptions::default()
    };
    Resource::from_amounts(&pod_requests(pod, &options))
}

#[derive(Default)]
struct Namespace {
    /// By name: one counts, the oldest.
    specs: BTreeMap<String, (Option<Timestamp>, ElasticQuotaSpec)>,
    /// What each pod with a node counts for, by UID.
    pods: HashMap<String, Resource>,
    used: Resource,
}

/// See the module.
#[derive(Default)]
pub struct Quotas {
    namespaces: HashMap<String, Namespace>,
    /// What a decision takes as it is; made anew when it is asked for after a change.
    ledger: Option<Arc<BTreeMap<String, Quota>>>,
}

impl Quotas {
    /// A quota was made, or changed.
    pub fn set_quota(&mut self, object: &Object) {
        let decoded: Result<ElasticQuota, _> = object.decode();
        match decoded {
            Ok(quota) => {
                let created = object.metadata.creation_timestamp.as_ref().map(|t| t.0);
                let namespace = self.namespace(object.namespace());
                let name = object.name().to_owned();
                namespace.specs.insert(name, (created, quota.spec));
                if namespace.specs.len() > 1 {
                    tracing::warn!(
                        namespace = object.namespace(),
                        "a namespace has several ElasticQuotas; the oldest counts"
                    );
                }
            }
            Err(error) => {
                tracing::error!(elasticQuota = object.key(), %error, "an ElasticQuota cannot be read");
            }
        }
    }

    /// A quota is gone.
    pub fn delete_quota(&mut self, object: &Object) {
        self.namespace(object.namespace())
            .specs
            .remove(object.name());
    }

    fn namespace(&mut self, name: &str) -> &mut Namespace {
        self.ledger = None;
        self.namespaces.entry(name.to_owned()).or_default()
    }

    /// A pod has a node, or changed there. Once more is no change.
    pub fn set_pod(&mut self, namespace: &str, uid: &str, request: Resource) {
        let known = self.namespaces.get(namespace);
        if known.and_then(|known| known.pods.get(uid)) == Some(&request) {
            return;
        }
        let namespace = self.namespace(namespace);
        namespace.used.add(&request, 1);
        namespace.used.allowed_pod_number += request.allowed_pod_number;
        if let Some(old) = namespace.pods.insert(uid.to_owned(), request) {
            namespace.used.add(&old, -1);
            namespace.used.allowed_pod_number -= old.allowed_pod_number;
        }
    }

    /// A pod has no node any more.
    pub fn delete_pod(&mut self, namespace: &str, uid: &str) {
        if !(self.namespaces.get(namespace)).is_some_and(|known| known.pods.contains_key(uid)) {
            return;
        }
        let known = self.namespace(namespace);
        if let Some(old) = known.pods.remove(uid) {
            known.used.add(&old, -1);
            known.used.allowed_pod_number -= old.allowed_pod_number;
        }
        if known.pods.is_empty() && known.specs.is_empty() {
            self.namespaces.remove(namespace);
        }
    }

    /// Has the namespace a quota?
    pub fn has_quota(&self, namespace: &str) -> bool {
        let namespace = self.namespaces.get(namespace);
        namespace.is_some_and(|namespace| !namespace.specs.is_empty())
    }

    /// All quotas as they are now.
    pub fn ledger(&mut self) -> Ledger {
        let quotas = self.ledger.get_or_insert_with(|| {
            let oldest = |(name, namespace): (&String, &Namespace)| {
                let (_, (_, spec)) = namespace
                    .specs
                    .iter()
                    .min_by_key(|(name, (created, _))| (*created, (*name).clone()))?;
                Some((name.clone(), Quota::new(spec, namespace.used.clone())))
            };
            Arc::new(self.namespaces.iter().filter_map(oldest).collect())
        });
        Ledger {
            quotas: Arc::clone(quotas),
            moved: BTreeMap::new(),
        }
    }
}

/// Quotas within one decision. A copy is cheap until a pod is tried away or in.
#[derive(Debug, Clone)]
pub struct Ledger {
    quotas: Arc<BTreeMap<String, Quota>>,
    /// By UID: tried away (false) or in (true), against what is.
    moved: BTreeMap<Arc<str>, bool>,
}

impl Ledger {
    /// The quota of a namespace.
    pub fn quota(&self, namespace: &str) -> Option<&Quota> {
        self.quotas.get(namespace)
    }

    /// As if the pod were there.
    pub fn add(&mut self, pod: &PodInfo) {
        self.shift(pod, true);
    }

    /// As if the pod were not there.
    pub fn remove(&mut self, pod: &PodInfo) {
        self.shift(pod, false);
    }

    fn shift(&mut self, pod: &PodInfo, there: bool) {
        if !self.quotas.contains_key(pod.namespace()) {
            return;
        }
        match self.moved.get(&pod.uid).copied() {
            // Once more is no change.
            Some(before) if before == there => return,
            // Back to what is.
            Some(_) => {
                self.moved.remove(&pod.uid);
            }
            None => {
                self.moved.insert(Arc::clone(&pod.uid), there);
            }
        }
        if let Some(quota) = Arc::make_mut(&mut self.quotas).get_mut(pod.namespace()) {
            let sign = if there { 1 } else { -1 };
            quota.used.add(&pod.requests.resource, sign);
        }
    }

    /// Would all quotas together use more than all are promised, with `request`?
    pub fn aggregated_used_over_min_with(&self, request: &Resource) -> bool {
        let (mut used, mut min) = (request.clone(), Resource::default());
        for quota in self.quotas.values() {
            for (sum, part) in [(&mut used, &quota.used), (&mut min, &quota.min)] {
                sum.add(part, 1);
                sum.allowed_pod_number += part.allowed_pod_number;
            }
        }
        exceeds(&used, &Resource::default(), &min, 0)
    }
}
