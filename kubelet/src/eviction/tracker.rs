//! Which thresholds are to be acted on now, from one round to the next.
//!
//! Owns: the grace of soft thresholds, minimum reclaim (a threshold once acted on stays met until so much more is free)
//! and the node's conditions with their transition period. Pure. Upstream: `synchronize` in
//! `pkg/kubelet/eviction/eviction_manager.go`, v1.36.

use std::collections::BTreeMap;
use std::time::Duration;

use super::threshold::{Observation, Signal, Threshold, thresholds_met};

/// What one round came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Round {
    /// Node conditions, sorted.
    pub conditions: Vec<&'static str>,
    /// To be acted on, the most urgent first.
    pub due: Vec<Threshold>,
}

/// What rounds remember.
#[derive(Debug, Default)]
pub struct Tracker {
    first_met: Vec<(Threshold, Duration)>,
    /// The due ones of the last round.
    due: Vec<Threshold>,
    /// When a condition was last seen.
    last_seen: BTreeMap<&'static str, Duration>,
}

impl Tracker {
    /// `now`: of a clock that never steps back.
    pub fn round(
        &mut self,
        thresholds: &[Threshold],
        observations: &BTreeMap<Signal, Observation>,
        now: Duration,
        transition_period: Duration,
    ) -> Round {
        let mut met = thresholds_met(thresholds, observations, false);
        for unresolved in thresholds_met(&self.due, observations, true) {
            if !met.contains(&unresolved) {
                met.push(unresolved);
            }
        }
        let since = |threshold: &Threshold| {
            let known = self.first_met.iter().find(|(known, _)| known == threshold);
            known.map_or(now, |(_, at)| *at)
        };
        self.first_met = met.iter().map(|t| (t.clone(), since(t))).collect();
        for threshold in &met {
            self.last_seen
                .insert(threshold.signal.node_condition(), now);
        }
        self.last_seen
            .retain(|_, at| now.saturating_sub(*at) < transition_period || *at == now);
        self.due = self
            .first_met
            .iter()
            .filter(|(threshold, at)| now.saturating_sub(*at) >= threshold.grace_period)
            .map(|(threshold, _)| threshold.clone())
            .collect();
        // Memory first: it kills fastest.
        let mut due = self.due.clone();
        due.sort_by_key(|t| (t.signal.resource() != "memory", t.signal));
        Round {
            conditions: self.last_seen.keys().copied().collect(),
            due,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::threshold::ThresholdValue;
    use super::*;

    fn threshold(signal: Signal, value: i64, grace: u64, reclaim: Option<i64>) -> Threshold {
        Threshold {
            signal,
            value: ThresholdValue::Quantity(value),
            grace_period: Duration::from_secs(grace),
            min_reclaim: reclaim.map(ThresholdValue::Quantity),
        }
    }

    /// Rounds of (seconds, available): the number of due thresholds and of conditions.
    fn check(thresholds: &[Threshold], rounds: &[(u64, u64, usize, usize)]) {
        let mut tracker = Tracker::default();
        for (at, available, due, conditions) in rounds {
            let observed = thresholds.iter().map(|t| {
                let seen = Observation {
                    available: *available,
                    capacity: 1000,
                };
                (t.signal, seen)
            });
            let round = tracker.round(
                thresholds,
                &observed.collect(),
                Duration::from_secs(*at),
                Duration::from_secs(30),
            );
            assert_eq!(
                (round.due.len(), round.conditions.len()),
                (*due, *conditions),
                "at {at} s with {available}"
            );
        }
    }

    #[test]
    fn a_threshold_acted_on_stays_met_until_enough_is_free() {
        let list = [threshold(Signal::NodeFsAvailable, 100, 0, Some(50))];
        check(
            &list,
            &[
                (0, 120, 0, 0),
                (10, 99, 1, 1),
                (20, 120, 1, 1),
                (30, 149, 1, 1),
                (40, 150, 0, 1),
                (50, 120, 0, 1),
                (80, 120, 0, 0),
            ],
        );
    }

    #[test]
    fn soft_ones_wait_and_hard_ones_of_the_same_signal_do_not() {
        let list = [
            threshold(Signal::MemoryAvailable, 200, 60, None),
            threshold(Signal::MemoryAvailable, 100, 0, None),
        ];
        check(
            &list,
            &[
                (0, 150, 0, 1),
                (50, 150, 0, 1),
                (55, 90, 1, 1),
                (60, 150, 1, 1),
                (70, 250, 0, 1),
                (80, 150, 0, 1),
            ],
        );
    }

    #[test]
    fn memory_goes_first() {
        let list = [
            threshold(Signal::NodeFsInodesFree, 100, 0, None),
            threshold(Signal::PidAvailable, 100, 0, None),
            threshold(Signal::MemoryAvailable, 100, 0, None),
        ];
        let seen = Observation {
            available: 1,
            capacity: 1000,
        };
        let observed = list.iter().map(|t| (t.signal, seen)).collect();
        let round =
            Tracker::default().round(&list, &observed, Duration::ZERO, Duration::from_secs(30));
        assert_eq!(round.due[0].signal, Signal::MemoryAvailable);
        assert_eq!(
            round.conditions,
            ["DiskPressure", "MemoryPressure", "PIDPressure"]
        );
    }
}
