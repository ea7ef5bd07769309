//! TargetLoadPacking: packs nodes by their measured CPU up to a target, and spreads beyond it.
//!
//! What a pod will use is predicted from its limits and requests. Pods that came so lately that no measurement knows them are predicted, too: those bound after
//! the window's end less 60 s. Upstream: pkg/trimaran/targetloadpacking. DIFFERS: when a pod was bound is read off the pod, not off when it was heard of; a
//! restart does not count all pods twice for a minute.

use std::sync::Arc;

use component_helpers::pod::{condition::POD_SCHEDULED, get_condition};
use framework::args::decode;
use framework::{
    CycleState, Fragments, Handle, MAX_NODE_SCORE, NodeInfo, Normalize, Observer, Plugin,
    PluginError, PodInfo, ScorePlugin, Sign, Snapshot, Status,
};

use super::{Collector, milli_cpu};
use crate::args::TargetLoadPackingArgs;
use crate::names;

/// How often an agent measures; a pod younger than this at the window's end may not be in it. Upstream: `metricsAgentReportingIntervalSeconds`.
const REPORTING_INTERVAL_SECONDS: i64 = 60;

struct TargetLoadPacking {
    rule: Rule,
    collector: Arc<Collector>,
    handle: Arc<dyn Handle>,
}

/// How use is predicted, and what is aimed at.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Rule {
    default_milli_cpu: i64,
    multiplier: f64,
    /// Per cent.
    target: f64,
}

/// Makes the plugin.
///
/// # Errors
/// For arguments that do not decode, or a source that cannot be used.
pub fn new(
    args: Option<&serde_json::Value>,
    handle: Arc<dyn Handle>,
) -> Result<Arc<dyn Plugin>, PluginError> {
    let plugin = names::TARGET_LOAD_PACKING;
    let args: TargetLoadPackingArgs = decode(plugin, args)?;
    let watcher = args.watcher_address.as_deref();
    let collector = Collector::new(plugin, &args.metric_provider, watcher)?;
    let multiplier = &args.default_requests_multiplier;
    let Some(multiplier) = multiplier.parse().ok().filter(|m: &f64| m.is_finite()) else {
        return Err(PluginError::Invalid {
            plugin,
            problems: vec![format!(
                "defaultRequestsMultiplier: Invalid value: {multiplier:?}: unable to parse DefaultRequestsMultiplier"
            )],
        });
    };
    Ok(Arc::new(TargetLoadPacking {
        rule: Rule {
            default_milli_cpu: milli_cpu(Some(&args.default_requests)).unwrap_or(0),
            multiplier,
            target: args.target_utilization as f64,
        },
        collector,
        handle,
    }))
}

impl Rule {
    /// What a pod's containers will use, in millicores.
    fn predict(&self, pod: &PodInfo) -> i64 {
        let spec = pod.spec();
        let container = |container: &k8s_openapi::api::core::v1::Container| {
            let resources = container.resources.as_ref();
            if let Some(limit) = milli_cpu(resources.and_then(|r| r.limits.as_ref())) {
                return limit;
            }
            match milli_cpu(resources.and_then(|r| r.requests.as_ref())) {
                Some(request) => (request as f64 * self.multiplier).round() as i64,
                None => self.default_milli_cpu,
            }
        };
        let containers: i64 = spec.containers.iter().map(container).sum();
        containers + milli_cpu(spec.overhead.as_ref()).unwrap_or(0)
    }

    /// What pods use that the measurement up to `window_end` cannot know.
    fn missing(&self, node: &NodeInfo, window_end: i64) -> i64 {
        let unmeasured = |pod: &&Arc<PodInfo>| {
            let bound = get_condition(&pod.pod, POD_SCHEDULED).filter(|c| c.status == "True");
            let bound = bound.and_then(|c| c.last_transition_time.as_ref());
            // One that is assumed, and not bound yet, has no such time.
            bound.is_none_or(|time| window_end - time.0.as_second() < REPORTING_INTERVAL_SECONDS)
        };
        let pods = node.pods().iter().filter(unmeasured);
        pods.map(|pod| self.predict(pod)).sum()
    }

    /// The score for a predicted load of so many per cent: up from the target at none to 100 at the target, then down from the target to 0 at 100 per cent.
    fn score(&self, load: f64) -> i64 {
        let (target, most) = (self.target, MAX_NODE_SCORE as f64);
        let score = if load > 100.0 {
            0.0
        } else if load > target {
            target * (100.0 - load) / (100.0 - target)
        } else {
            (100.0 - target) * load / target + target
        };
        score.round().clamp(0.0, most) as i64
    }
}

impl Plugin for TargetLoadPacking {
    fn name(&self) -> &'static str {
        names::TARGET_LOAD_PACKING
    }
    fn sign(&self, _pod: &PodInfo, _snapshot: &Snapshot) -> Option<Sign> {
        Some(Sign {
            inputs: self.collector.revision(),
            ..Sign::node(Fragments::MORE)
        })
    }
    fn sign_more(&self, pod: &PodInfo, _snapshot: &Snapshot, key: &mut Vec<u8>) {
        key.extend(self.rule.predict(pod).to_le_bytes());
    }
    fn as_score(&self) -> Option<&dyn ScorePlugin> {
        Some(self)
    }
    fn as_observer(&self) -> Option<&dyn Observer> {
        Some(self)
    }
}

impl Observer for TargetLoadPacking {
    fn hears_pods(&self) -> bool {
        false
    }
    fn begin(&self) {
        self.collector.begin(self.name(), &self.handle);
    }
}

impl ScorePlugin for TargetLoadPacking {
    fn score(
        &self,
        _state: &CycleState,
        pod: &Arc<PodInfo>,
        node: &NodeInfo,
    ) -> Result<i64, Status> {
        let measured = self.collector.newest();
        let Some(load) = measured.cpu(node.name()) else {
            return Ok(0);
        };
        let status = node.node().status.as_ref();
        let capacity = milli_cpu(status.and_then(|s| s.capacity.as_ref())).unwrap_or(0) as f64;
        let predicted = match capacity > 0.0 {
            true => {
                let more = self.rule.predict(pod) + self.rule.missing(node, measured.window_end);
                load + 100.0 * more as f64 / capacity
            }
            false => 0.0,
        };
        Ok(self.rule.score(predicted))
    }

    fn normalize(&self) -> Normalize {
        Normalize::Already
    }
}

#[cfg(test)]
mod tests {
    use framework::testing::{PodBuilder, assert_forms_agree, make_node, make_pod, snapshot};
    use k8s_openapi::api::core::v1::PodCondition;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::json;

    use super::*;
    use crate::trimaran::measurements::{Kind, Measurements, Metric, Operator};

    fn limit(pod: PodBuilder, cpu: &str) -> PodBuilder {
        pod.req(&[("cpu", cpu)]).with(|pod| {
            for container in &mut pod.spec.as_mut().unwrap().containers {
                let resources = container.resources.as_mut().unwrap();
                resources.limits = resources.requests.take();
            }
        })
    }

    fn bound(pod: PodBuilder, second: i64) -> PodBuilder {
        pod.node("n").with(|pod| {
            pod.status.as_mut().unwrap().conditions = Some(vec![PodCondition {
                type_: POD_SCHEDULED.into(),
                status: "True".into(),
                last_transition_time: Some(Time(jiff::Timestamp::from_second(second).unwrap())),
                ..PodCondition::default()
            }]);
        })
    }

    /// The score of a node of 1 CPU with that load, measured up to second 1000.
    fn check(load: Option<f64>, on_it: Vec<PodBuilder>, pod: PodBuilder, expect: i64) {
        let plugin = TargetLoadPacking {
            rule: Rule {
                default_milli_cpu: 1000,
                multiplier: 1.5,
                target: 40.0,
            },
            collector: Collector::new("", &Default::default(), None).unwrap(),
            handle: plugins::testing::handle(),
        };
        let before = plugin.collector.revision();
        let metric = load.map(|value| Metric {
            kind: Kind::Cpu,
            operator: Operator::Latest,
            value,
        });
        plugin.collector.set(Measurements {
            nodes: [("n".to_owned(), metric.into_iter().collect())].into(),
            window_end: 1000,
        });
        assert_ne!(plugin.collector.revision(), before, "kept scores are stale");
        let node = make_node("n")
            .capacity(&[("cpu", "1"), ("memory", "1Gi")])
            .build();
        let snapshot = snapshot([node], on_it.into_iter().map(PodBuilder::info));
        let pod = pod.info();
        assert_forms_agree(&plugin, &pod, &snapshot);
        let node = snapshot.get("n").unwrap();
        let score = plugin.score(&CycleState::new(), &pod, node);
        assert_eq!(score, Ok(expect), "load {load:?}");
    }

    #[test]
    fn up_to_the_target_fuller_is_better_and_then_worse() {
        let pod = |cpu| limit(make_pod("p"), cpu);
        check(Some(0.0), vec![], pod("0"), 40);
        check(Some(0.0), vec![], pod("100m"), 55);
        check(Some(30.0), vec![], pod("100m"), 100);
        check(Some(30.0), vec![], pod("200m"), 33);
        check(Some(90.0), vec![], pod("100m"), 0);
        check(Some(99.0), vec![], pod("500m"), 0);
        check(None, vec![], pod("100m"), 0);
    }

    #[test]
    fn what_a_pod_will_use() {
        // 1.5 times the request where there is no limit; a whole CPU where there is neither.
        check(Some(0.0), vec![], make_pod("p").req(&[("cpu", "200m")]), 85);
        check(
            Some(0.0),
            vec![],
            make_pod("p").req(&[("memory", "1Mi")]),
            0,
        );
    }

    #[test]
    fn pods_too_young_to_be_measured_count() {
        let on = |second| bound(limit(make_pod("other"), "200m"), second);
        let pod = || limit(make_pod("p"), "0");
        check(Some(0.0), vec![on(100)], pod(), 40);
        check(Some(0.0), vec![on(940)], pod(), 40);
        check(Some(0.0), vec![on(941)], pod(), 70);
        check(Some(0.0), vec![on(2000)], pod(), 70);
        // Assumed, not bound.
        check(
            Some(0.0),
            vec![limit(make_pod("other"), "200m").node("n")],
            pod(),
            70,
        );
    }

    #[test]
    fn a_multiplier_is_a_number() {
        let args = json!({"defaultRequestsMultiplier": "much"});
        let error = new(Some(&args), plugins::testing::handle()).err();
        let error = error.expect("refused").to_string();
        assert!(
            error.contains("defaultRequestsMultiplier: Invalid value: \"much\""),
            "{error}"
        );
    }
}
