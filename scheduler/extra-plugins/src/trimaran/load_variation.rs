//! LoadVariationRiskBalancing: prefers nodes whose measured load is low, and varies little.
//!
//! The risk of a resource is half the sum of its mean load (the pod's request on top) and its deviation, taken to a root and weighted by the arguments; a node
//! is as good as its riskier resource. Upstream: pkg/trimaran/loadvariationriskbalancing.

use std::sync::Arc;

use framework::args::decode;
use framework::{
    CycleState, Fragments, Handle, MAX_NODE_SCORE, NodeInfo, Normalize, Observer, Plugin,
    PluginError, PodInfo, ScorePlugin, Sign, Snapshot, Status,
};

use super::measurements::{Kind, Measurements};
use super::{Collector, mu_sigma, requests};
use crate::args::LoadVariationRiskBalancingArgs;
use crate::names;

struct LoadVariationRiskBalancing {
    args: LoadVariationRiskBalancingArgs,
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
    let plugin = names::LOAD_VARIATION_RISK_BALANCING;
    let args: LoadVariationRiskBalancingArgs = decode(plugin, args)?;
    let watcher = args.watcher_address.as_deref();
    let collector = Collector::new(plugin, &args.metric_provider, watcher)?;
    Ok(Arc::new(LoadVariationRiskBalancing {
        args,
        collector,
        handle,
    }))
}

/// 100 for no risk, 0 for a certain one. Upstream: `computeScore`.
fn resource_score(mu: f64, sigma: f64, margin: f64, sensitivity: f64) -> f64 {
    // The root of order 0 of anything below 1 is 0.
    let sigma = sigma.powf(1.0 / sensitivity);
    let risk = (mu + (sigma * margin).clamp(0.0, 1.0)) / 2.0;
    (1.0 - risk) * MAX_NODE_SCORE as f64
}

impl LoadVariationRiskBalancing {
    fn score_by(&self, measured: &Measurements, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let request = requests(pod);
        let score = |kind: Kind| {
            let (mu, sigma) = mu_sigma(measured, node, kind, request.get(kind))?;
            if super::allocatable(node).get(kind) <= 0 {
                return Some(0.0);
            }
            let (margin, sensitivity) = (
                self.args.safe_variance_margin,
                self.args.safe_variance_sensitivity,
            );
            Some(resource_score(mu, sigma, margin, sensitivity))
        };
        let score = match (score(Kind::Cpu), score(Kind::Memory)) {
            (Some(cpu), Some(memory)) => cpu.min(memory),
            (cpu, memory) => cpu.or(memory).unwrap_or(0.0),
        };
        score.round() as i64
    }
}

impl Plugin for LoadVariationRiskBalancing {
    fn name(&self) -> &'static str {
        names::LOAD_VARIATION_RISK_BALANCING
    }
    fn sign(&self, _pod: &PodInfo, _snapshot: &Snapshot) -> Option<Sign> {
        Some(Sign {
            inputs: self.collector.revision(),
            ..Sign::node(Fragments::REQUESTS)
        })
    }
    fn as_score(&self) -> Option<&dyn ScorePlugin> {
        Some(self)
    }
    fn as_observer(&self) -> Option<&dyn Observer> {
        Some(self)
    }
}

impl Observer for LoadVariationRiskBalancing {
    fn hears_pods(&self) -> bool {
        false
    }
    fn begin(&self) {
        self.collector.begin(self.name(), &self.handle);
    }
}

impl ScorePlugin for LoadVariationRiskBalancing {
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
    use framework::testing::{assert_forms_agree, make_node, make_pod, snapshot};
    use serde_json::json;

    use super::*;
    use crate::trimaran::measurements::{Metric, Operator};

    fn check(args: serde_json::Value, metrics: &[(Kind, Operator, f64)], expect: i64) {
        let args: LoadVariationRiskBalancingArgs = serde_json::from_value(args).unwrap();
        let plugin = LoadVariationRiskBalancing {
            args,
            collector: Collector::new("", &Default::default(), None).unwrap(),
            handle: plugins::testing::handle(),
        };
        let metric = |&(kind, operator, value): &(Kind, Operator, f64)| Metric {
            kind,
            operator,
            value,
        };
        plugin.collector.set(Measurements {
            nodes: [("n".to_owned(), metrics.iter().map(metric).collect())].into(),
            window_end: 0,
        });
        let node = make_node("n")
            .capacity(&[("cpu", "1"), ("memory", "1000")])
            .build();
        let snapshot = snapshot([node], []);
        let pod = make_pod("p")
            .req(&[("cpu", "100m"), ("memory", "100")])
            .info();
        assert_forms_agree(&plugin, &pod, &snapshot);
        let score = plugin.score(&CycleState::new(), &pod, snapshot.get("n").unwrap());
        assert_eq!(score, Ok(expect), "{metrics:?}");
    }

    #[test]
    fn low_and_even_is_best() {
        use Kind::{Cpu, Memory};
        use Operator::{Average, Std};
        let plain = || json!({});
        check(plain(), &[], 0);
        check(plain(), &[(Cpu, Average, 0.0)], 95);
        check(plain(), &[(Cpu, Average, 50.0), (Cpu, Std, 36.0)], 52);
        check(
            plain(),
            &[
                (Cpu, Average, 50.0),
                (Cpu, Std, 36.0),
                (Memory, Average, 20.0),
            ],
            52,
        );
        check(
            plain(),
            &[
                (Cpu, Average, 10.0),
                (Memory, Average, 90.0),
                (Memory, Std, 100.0),
            ],
            0,
        );
        check(
            json!({"safeVarianceMargin": 2}),
            &[(Cpu, Average, 50.0), (Cpu, Std, 36.0)],
            34,
        );
        check(
            json!({"safeVarianceSensitivity": 2}),
            &[(Cpu, Average, 50.0), (Cpu, Std, 36.0)],
            40,
        );
        // Below none stands for the default.
        check(
            json!({"safeVarianceMargin": -1}),
            &[(Cpu, Average, 50.0), (Cpu, Std, 36.0)],
            52,
        );
        check(
            json!({"safeVarianceSensitivity": 0}),
            &[(Cpu, Average, 50.0), (Cpu, Std, 36.0)],
            70,
        );
    }
}
