//! Who makes room for a critical pod that is to run here and does not fit.
//!
//! Owns: [`victims`], pure. Upstream: `pkg/kubelet/preemption/preemption.go`, v1.36.

use std::sync::Arc;

use component_helpers::qos::{QosClass, get_pod_qos};
use component_helpers::resources::{PodResourcesOptions, pod_requests};
use k8s_openapi::api::core::v1::Pod;

use crate::admission::{Shortage, number};
use crate::pod;

/// Of the event, and `status.reason`.
pub const REASON: &str = "Preempting";
/// Of the event, and `status.message`.
pub const MESSAGE: &str = "Preempted in order to admit critical pod";
/// Of the condition `DisruptionTarget`.
pub const CONDITION_MESSAGE: &str = "Pod was preempted by Kubelet to accommodate a critical pod.";

/// All pods that may go are not enough.
#[derive(Debug, thiserror::Error)]
#[error(
    "Unexpected error while attempting to recover from admission failure: preemption: error finding a set of pods to preempt: \
     no set of running pods found to reclaim resources: [{}]",
    .0.iter().map(|need| format!("(res: {}, q: {}), ", need.resource, need.amount)).collect::<String>()
)]
pub struct NoVictims(Vec<Need>);

/// `status.reason` of a pod for which [`NoVictims`] were found.
pub const UNEXPECTED: &str = "UnexpectedAdmissionError";

/// What is still missing.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Need {
    resource: String,
    /// In the units of a [`Shortage`]; never 0.
    amount: i64,
}

/// May `preemptor` take the place of `pod`?
fn preemptable(preemptor: &Pod, pod: &Pod) -> bool {
    let priority = |p: &Pod| p.spec.as_ref().and_then(|s| s.priority);
    let outranks = matches!((priority(preemptor), priority(pod)), (Some(a), Some(b)) if a > b);
    (pod::is_critical(preemptor) && !pod::is_critical(pod)) || outranks
}

/// The pods of `active` that go so that `shortages` end: as few as can be, best-effort ones first, guaranteed ones last.
///
/// # Errors
/// All together would not free enough.
pub fn victims(
    preemptor: &Pod,
    active: &[Arc<Pod>],
    shortages: &[Shortage],
) -> Result<Vec<Arc<Pod>>, NoVictims> {
    let needs: Vec<Need> = shortages
        .iter()
        .map(|short| Need {
            resource: short.resource.clone(),
            amount: short.missing(),
        })
        .filter(|need| need.amount > 0)
        .collect();
    let of = |class: QosClass| -> Vec<Candidate> {
        active
            .iter()
            .filter(|p| preemptable(preemptor, p) && get_pod_qos(p) == class)
            .map(Candidate::new)
            .collect()
    };
    let best_effort = of(QosClass::BestEffort);
    let burstable = of(QosClass::Burstable);
    let guaranteed = of(QosClass::Guaranteed);
    let left = without(
        &needs,
        best_effort.iter().chain(&burstable).chain(&guaranteed),
    );
    if !left.is_empty() {
        return Err(NoVictims(left));
    }
    // Those who go last first: only what the others cannot give is taken of them.
    let guaranteed = closest(
        guaranteed,
        without(&needs, best_effort.iter().chain(&burstable)),
    )?;
    let burstable = closest(
        burstable,
        without(&needs, best_effort.iter().chain(&guaranteed)),
    )?;
    let best_effort = closest(
        best_effort,
        without(&needs, burstable.iter().chain(&guaranteed)),
    )?;
    let all = best_effort.into_iter().chain(burstable).chain(guaranteed);
    Ok(all.map(|candidate| candidate.pod).collect())
}

struct Candidate {
    pod: Arc<Pod>,
    requests: std::collections::BTreeMap<String, i64>,
}

impl Candidate {
    fn new(pod: &Arc<Pod>) -> Self {
        let requests = pod_requests(pod, &PodResourcesOptions::default());
        let requests = requests
            .into_iter()
            .map(|(name, amount)| (name.clone(), number(&name, amount)));
        Self {
            pod: pod.clone(),
            requests: requests.chain([("pods".to_owned(), 1)]).collect(),
        }
    }

    fn frees(&self, resource: &str) -> i64 {
        self.requests.get(resource).copied().unwrap_or(0)
    }

    /// Memory first, then CPU.
    fn size(&self) -> (i64, i64) {
        (self.frees("memory"), self.frees("cpu"))
    }

    /// 0: it gives all that is needed; each resource counts alike, whatever its units.
    fn distance(&self, needs: &[Need]) -> f64 {
        let share = |need: &Need| {
            let left = (need.amount - self.frees(&need.resource)).max(0);
            (left as f64 / need.amount as f64).powi(2)
        };
        needs.iter().map(share).sum()
    }
}

fn without<'a>(needs: &[Need], gone: impl Iterator<Item = &'a Candidate> + Clone) -> Vec<Need> {
    needs
        .iter()
        .filter_map(|need| {
            let freed = gone.clone().map(|pod| pod.frees(&need.resource));
            let freed = freed.fold(0, i64::saturating_add);
            let amount = need.amount - freed;
            (amount > 0).then(|| Need {
                resource: need.resource.clone(),
                amount,
            })
        })
        .collect()
}

/// Again and again the one that gives most of what is needed, the smaller of two alike.
fn closest(mut pods: Vec<Candidate>, mut needs: Vec<Need>) -> Result<Vec<Candidate>, NoVictims> {
    let mut chosen = Vec::new();
    while !needs.is_empty() {
        let rank = |pod: &Candidate| (pod.distance(&needs), pod.size());
        let best = (0..pods.len()).min_by(|a, b| {
            let ((one, size), (other, other_size)) = (rank(&pods[*a]), rank(&pods[*b]));
            one.total_cmp(&other).then(size.cmp(&other_size))
        });
        let Some(best) = best else {
            return Err(NoVictims(needs));
        };
        let pod = pods.swap_remove(best);
        needs = without(&needs, std::iter::once(&pod));
        chosen.push(pod);
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, requests: &[(&str, &str)], limits: bool, priority: i32) -> Arc<Pod> {
        let requests: serde_json::Map<_, _> = requests
            .iter()
            .map(|(resource, amount)| ((*resource).to_owned(), json!(amount)))
            .collect();
        let mut resources = json!({"requests": requests});
        if limits {
            resources["limits"] = json!(requests);
        }
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "uid": name},
                "spec": {"priority": priority, "containers": [{"name": "c", "resources": resources}]},
            }))
            .unwrap(),
        )
    }

    fn short(resource: &str, missing: i64) -> Shortage {
        Shortage {
            resource: resource.to_owned(),
            requested: missing,
            used: 0,
            capacity: 0,
        }
    }

    fn chosen(active: &[Arc<Pod>], shortages: &[Shortage]) -> Result<Vec<String>, String> {
        let critical = pod("critical", &[], false, 2_000_000_000);
        let names = |pods: Vec<Arc<Pod>>| {
            pods.iter()
                .map(|p| p.metadata.name.clone().unwrap())
                .collect()
        };
        victims(&critical, active, shortages)
            .map(names)
            .map_err(|e| e.to_string())
    }

    #[test]
    fn as_few_as_can_be_and_the_least_worthy_first() {
        let nothing = pod("nothing", &[], false, 0);
        let small = pod("small", &[("cpu", "100m"), ("memory", "100Mi")], false, 0);
        let twin = pod("twin", &[("cpu", "100m"), ("memory", "50Mi")], false, 0);
        let large = pod("large", &[("cpu", "1"), ("memory", "1Gi")], false, 0);
        let sure = pod("sure", &[("cpu", "2"), ("memory", "2Gi")], true, 0);
        let other = pod("other", &[("cpu", "4")], true, 2_000_000_001);
        let all = [nothing, small, twin, large, sure, other];
        for (shortages, expected) in [
            // The smaller of two that both do.
            (vec![short("cpu", 100)], &["twin"][..]),
            (vec![short("cpu", 500)], &["large"]),
            (vec![short("cpu", 1100)], &["large", "twin"]),
            (
                vec![short("cpu", 100), short("memory", 100 << 20)],
                &["small"],
            ),
            // Only what the burstable ones cannot give is taken of a guaranteed one; then fewer of them go.
            (vec![short("cpu", 1300)], &["sure"]),
            (vec![short("cpu", 2500)], &["large", "sure"]),
            (vec![short("pods", 1)], &["nothing"]),
            (
                vec![short("cpu", 100), short("pods", 2)],
                &["nothing", "twin"],
            ),
            (vec![short("cpu", 0)], &[]),
        ] {
            let expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
            assert_eq!(chosen(&all, &shortages), Ok(expected), "{shortages:?}");
        }
    }

    #[test]
    fn what_cannot_be_freed_is_named() {
        let all = [
            pod("a", &[("cpu", "100m")], false, 0),
            // As critical as the other.
            pod("b", &[("cpu", "4")], false, 2_000_000_000),
        ];
        let error = chosen(&all, &[short("cpu", 300), short("memory", 5)]).unwrap_err();
        assert!(
            error.ends_with("to reclaim resources: [(res: cpu, q: 200), (res: memory, q: 5), ]"),
            "{error}"
        );
    }

    #[test]
    fn a_higher_priority_is_enough_and_an_equal_one_is_not() {
        let low = pod("low", &[], false, 1);
        assert!(preemptable(&pod("p", &[], false, 2), &low));
        assert!(!preemptable(&pod("p", &[], false, 1), &low));
    }
}
