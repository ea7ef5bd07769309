//! LowRiskOverCommitment: prefers nodes where overcommitment is little of a risk.
//!
//! The risk of a resource has two parts. That of limits: by how much they may exceed what the node has, of all they may exceed the requests. That of load: how
//! probable it is, by the measured mean and deviation, that more is used than is requested there. The node's rank is that of its riskier resource.
//! Upstream: pkg/trimaran/lowriskovercommitment.

use std::sync::Arc;

use framework::args::decode;
use framework::{
    CycleState, Fragments, Handle, MAX_NODE_SCORE, NodeInfo, Normalize, Observer, Plugin,
    PluginError, PodInfo, ScorePlugin, Sign, Snapshot, Status,
};

use super::beta;
use super::measurements::{Kind, Measurements};
use super::{Collector, CpuAndMemory, allocatable, limits, mu_sigma, requests};
use crate::args::LowRiskOverCommitmentArgs;
use crate::names;

/// A deviation comes at most so near to the largest there is; at it the distribution has no shape. Upstream: `MaxVarianceAllowance`.
const MAX_VARIANCE_ALLOWANCE: f64 = 0.99;

struct LowRiskOverCommitment {
    args: LowRiskOverCommitmentArgs,
    collector: Arc<Collector>,
    handle: Arc<dyn Handle>,
}

/// Makes the plugin.
///
/// # Errors
/// For arguments that do not decode, or a source that cannot be used.
pub fn new(
    args: Option<&serde_json::Value>,
    handle: Arc<dyn Handle>,
) -> Result<Arc<dyn Plugin>, PluginError> {
    let plugin = names::LOW_RISK_OVER_COMMITMENT;
    let args: LowRiskOverCommitmentArgs = decode(plugin, args)?;
    let watcher = args.watcher_address.as_deref();
    let collector = Collector::new(plugin, &args.metric_provider, watcher)?;
    Ok(Arc::new(LowRiskOverCommitment {
        args,
        collector,
        handle,
    }))
}

/// Sums over the pods of a node; requests at most what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sums {
    capacity: CpuAndMemory,
    /// Without the pod that is decided on.
    requests: CpuAndMemory,
    limits: CpuAndMemory,
    /// With it.
    all_requests: CpuAndMemory,
    all_limits: CpuAndMemory,
}

impl Sums {
    fn of(node: &NodeInfo, pod: &PodInfo) -> Self {
        let capacity = allocatable(node);
        let (mut on_requests, mut on_limits) = (CpuAndMemory::default(), CpuAndMemory::default());
        for on in node.pods() {
            on_requests.add(requests(on));
            on_limits.add(limits(on));
        }
        let (mut all_requests, mut all_limits) = (on_requests, on_limits);
        all_requests.add(requests(pod));
        all_limits.add(limits(pod));
        Sums {
            capacity,
            requests: on_requests.min(capacity),
            limits: on_limits,
            all_requests: all_requests.min(capacity),
            all_limits,
        }
    }
}

impl LowRiskOverCommitment {
    /// 0 for none, 1 for a certain one. Upstream: `computeRisk`.
    fn risk(&self, measured: &Measurements, node: &NodeInfo, sums: &Sums, kind: Kind) -> f64 {
        let of = |sum: CpuAndMemory| sum.get(kind) as f64;
        let capacity = of(sums.capacity);
        let mut of_limits = 0.0;
        if of(sums.all_limits) > capacity {
            let over = of(sums.all_limits) - capacity;
            of_limits = over / (of(sums.all_limits) - of(sums.all_requests));
        }
        let mut of_load = 0.0;
        if let Some((mu, sigma)) = mu_sigma(measured, node, kind, 0) {
            let smoothed = sigma * (self.args.smoothing_window_size as f64).sqrt();
            let largest = if mu > 0.0 && mu < 1.0 {
                mu * (1.0 - mu)
            } else {
                0.0
            };
            let sigma = smoothed.min((largest * MAX_VARIANCE_ALLOWANCE).sqrt());
            let share = |value: f64| match capacity > 0.0 {
                true => (value / capacity).clamp(0.0, 1.0),
                false => 0.0,
            };
            let (mut within, distribution) = beta::probability(mu, sigma, share(of(sums.requests)));
            // No pod uses more than its limit: only what is below them all can happen.
            if sums.limits.get(kind) < sums.capacity.get(kind)
                && sums.requests.get(kind) <= sums.limits.get(kind)
            {
                let most = share(of(sums.limits));
                if most == 0.0 {
                    within = 1.0;
                } else if let Some(distribution) = distribution {
                    let possible = distribution.probability_up_to(most);
                    if possible > 0.0 {
                        within = (within / possible).clamp(0.0, 1.0);
                    }
                }
            }
            of_load = 1.0 - within;
        }
        let name = match kind {
            Kind::Cpu => "cpu",
            Kind::Memory => "memory",
        };
        let weight = self.args.risk_limit_weights.get(name).copied();
        let weight = weight.unwrap_or(0.5);
        (weight * of_limits + (1.0 - weight) * of_load).clamp(0.0, 1.0)
    }

    fn score_by(&self, measured: &Measurements, pod: &PodInfo, node: &NodeInfo) -> i64 {
        // Pods that ask for nothing are not this plugin's concern.
        if limits(pod) == CpuAndMemory::default() || !measured.nodes.contains_key(&**node.name()) {
            return 0;
        }
        let sums = Sums::of(node, pod);
        let risk = |kind| self.risk(measured, node, &sums, kind);
        let rank = 1.0 - risk(Kind::Cpu).max(risk(Kind::Memory));
        (rank * MAX_NODE_SCORE as f64).round() as i64
    }
}

impl Plugin for LowRiskOverCommitment {
    fn name(&self) -> &'static str {
        names::LOW_RISK_OVER_COMMITMENT
    }
    fn sign(&self, _pod: &PodInfo, _snapshot: &Snapshot) -> Option<Sign> {
        Some(Sign {
            inputs: self.collector.revision(),
            ..Sign::node(Fragments::REQUESTS | Fragments::MORE)
        })
    }
    fn sign_more(&self, pod: &PodInfo, _snapshot: &Snapshot, key: &mut Vec<u8>) {
        let limits = limits(pod);
        key.extend(limits.milli_cpu.to_le_bytes());
        key.extend(limits.memory.to_le_bytes());
    }
    fn as_score(&self) -> Option<&dyn ScorePlugin> {
        Some(self)
    }
    fn as_observer(&self) -> Option<&dyn Observer> {
        Some(self)
    }
}

impl Observer for LowRiskOverCommitment {
    fn hears_pods(&self) -> bool {
        false
    }
    fn begin(&self) {
        self.collector.begin(self.name(), &self.handle);
    }
}

impl ScorePlugin for LowRiskOverCommitment {
    fn score(
        &self,
        _state: &CycleState,
        pod: &Arc<PodInfo>,
        node: &NodeInfo,
    ) -> Result<i64, Status> {
        Ok(self.score_by(&self.collector.newest(), pod, node))
    }

    fn normalize(&self) -> Normalize {
        Normalize::Already
    }
}

#[cfg(test)]
mod tests {
    use framework::testing::{PodBuilder, assert_forms_agree, make_node, make_pod, snapshot};
    use serde_json::json;

    use super::*;
    use crate::trimaran::measurements::{Metric, Operator};

    /// A pod that asks for one and is bounded by the other.
    fn pod(name: &str, request: &str, limit: &str) -> PodBuilder {
        let limit = limit.to_owned();
        make_pod(name)
            .req(&[("cpu", request), ("memory", "0")])
            .with(move |pod| {
                let container = &mut pod.spec.as_mut().unwrap().containers[0];
                let limits = [(
                    "cpu".to_owned(),
                    k8s_openapi::apimachinery::pkg::api::resource::Quantity(limit),
                )];
                container.resources.as_mut().unwrap().limits = Some(limits.into());
            })
    }

    /// The score of a node of 4 CPUs whose CPU has that mean and deviation (per cent).
    fn check(
        args: serde_json::Value,
        load: Option<(f64, f64)>,
        on_it: Vec<PodBuilder>,
        new: PodBuilder,
        expect: i64,
    ) {
        let args: LowRiskOverCommitmentArgs = serde_json::from_value(args).unwrap();
        let plugin = LowRiskOverCommitment {
            args,
            collector: Collector::new("", &Default::default(), None).unwrap(),
            handle: plugins::testing::handle(),
        };
        let metric = |operator, value| Metric {
            kind: Kind::Cpu,
            operator,
            value,
        };
        let nodes = load.map(|(mean, deviation)| {
            let metrics = vec![
                metric(Operator::Average, mean),
                metric(Operator::Std, deviation),
            ];
            ("n".to_owned(), metrics)
        });
        plugin.collector.set(Measurements {
            nodes: nodes.into_iter().collect(),
            window_end: 0,
        });
        let node = make_node("n")
            .capacity(&[("cpu", "4"), ("memory", "1Gi")])
            .build();
        let snapshot = snapshot([node], on_it.into_iter().map(|pod| pod.node("n").info()));
        let new = new.info();
        assert_forms_agree(&plugin, &new, &snapshot);
        let score = plugin.score(&CycleState::new(), &new, snapshot.get("n").unwrap());
        assert_eq!(score, Ok(expect), "{load:?}");
    }

    #[test]
    fn risks_of_limits_and_load() {
        let plain = || json!({});
        // Nothing is overcommitted, nothing runs.
        check(plain(), Some((0.0, 0.0)), vec![], pod("p", "1", "2"), 100);
        // Limits of 8 on 4 CPUs with requests of 2: 4 of 6 may be too much, and half of that counts.
        check(
            plain(),
            Some((0.0, 0.0)),
            vec![pod("a", "1", "4")],
            pod("p", "1", "4"),
            67,
        );
        check(
            json!({"riskLimitWeights": {"cpu": 1}}),
            Some((0.0, 0.0)),
            vec![pod("a", "1", "4")],
            pod("p", "1", "4"),
            33,
        );
        // A load of 50 % for certain, and 25 % requested: more is used than asked for.
        check(
            json!({"riskLimitWeights": {"cpu": 0}}),
            Some((50.0, 0.0)),
            vec![pod("a", "1", "4")],
            pod("p", "0", "1"),
            0,
        );
        check(
            json!({"riskLimitWeights": {"cpu": 0}}),
            Some((50.0, 0.0)),
            vec![pod("a", "2", "4")],
            pod("p", "0", "1"),
            100,
        );
        // Mean 0.4 and deviation 0.2: 0.6875 of it is below a half.
        let one = json!({"smoothingWindowSize": 1, "riskLimitWeights": {"cpu": 0}});
        check(
            one.clone(),
            Some((40.0, 20.0)),
            vec![pod("a", "2", "4")],
            pod("p", "0", "1"),
            69,
        );
        // Limits below what there is: what is beyond them cannot be (I_0.5 / I_0.75 of (2, 3)).
        check(
            one,
            Some((40.0, 20.0)),
            vec![pod("a", "2", "3")],
            pod("p", "0", "1"),
            72,
        );
        // Not measured; asks for nothing.
        check(plain(), None, vec![], pod("p", "1", "2"), 0);
        check(plain(), Some((0.0, 0.0)), vec![], make_pod("p"), 0);
        // A weight out of range is the default one.
        check(
            json!({"riskLimitWeights": {"cpu": 7}}),
            Some((0.0, 0.0)),
            vec![pod("a", "1", "4")],
            pod("p", "1", "4"),
            67,
        );
    }
}
