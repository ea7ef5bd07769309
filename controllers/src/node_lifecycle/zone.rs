//! How disrupted zones are, and how fast their Nodes may be tainted. Pure.
//!
//! When every zone is down it is more likely the control plane that is cut off: nothing is tainted then.

use std::collections::{BTreeMap, HashMap};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ZoneState {
    Initial,
    Normal,
    FullDisruption,
    PartialDisruption,
}

/// Rates, Nodes a second.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rates {
    pub(super) primary: f64,
    pub(super) secondary: f64,
    pub(super) large_cluster_threshold: usize,
    pub(super) unhealthy_zone_threshold: f64,
}

/// The number of Nodes that are not ready, and what that makes of the zone. `None` is a Node without a Ready condition.
pub(super) fn compute_zone_state(
    ready: &[Option<String>],
    unhealthy_zone_threshold: f64,
) -> (usize, ZoneState) {
    let not_ready = ready
        .iter()
        .filter(|status| status.as_deref() != Some("True"))
        .count();
    let state = if not_ready == ready.len() && not_ready > 0 {
        ZoneState::FullDisruption
    } else if not_ready > 2 && not_ready as f64 / ready.len() as f64 >= unhealthy_zone_threshold {
        ZoneState::PartialDisruption
    } else {
        ZoneState::Normal
    };
    (not_ready, state)
}

/// The rate that goes with a state.
fn rate(state: ZoneState, zone_size: usize, rates: Rates) -> f64 {
    match state {
        ZoneState::PartialDisruption if zone_size > rates.large_cluster_threshold => {
            rates.secondary
        }
        ZoneState::PartialDisruption => 0.0,
        ZoneState::Initial | ZoneState::Normal | ZoneState::FullDisruption => rates.primary,
    }
}

/// What changes after a look at all zones.
#[derive(Clone, Debug, PartialEq, Default)]
pub(super) struct Change {
    /// Zones whose rate changes.
    pub(super) rates: BTreeMap<String, f64>,
    /// Everything is down now: take the taints back.
    pub(super) all_went_down: bool,
    /// Something came back: all Nodes get their grace period anew.
    pub(super) some_came_back: bool,
}

/// Brings `states` to what `ready` (status of Ready of each Node, by zone) says.
pub(super) fn handle_disruption(
    states: &mut HashMap<String, ZoneState>,
    ready: &HashMap<String, Vec<Option<String>>>,
    rates: Rates,
) -> Change {
    let mut new_states = HashMap::new();
    let mut all_are_down = true;
    for (zone, nodes) in ready {
        let (_, state) = compute_zone_state(nodes, rates.unhealthy_zone_threshold);
        all_are_down &= state == ZoneState::FullDisruption;
        new_states.insert(zone.clone(), state);
        states.entry(zone.clone()).or_insert(ZoneState::Initial);
    }
    states.retain(|zone, _| ready.contains_key(zone));
    let all_were_down = states
        .values()
        .all(|state| *state == ZoneState::FullDisruption);
    let mut change = Change::default();
    if all_are_down && all_were_down {
        return change;
    }
    if all_are_down {
        change.all_went_down = true;
        for (zone, state) in states.iter_mut() {
            *state = ZoneState::FullDisruption;
            change.rates.insert(zone.clone(), 0.0);
        }
        return change;
    }
    change.some_came_back = all_were_down;
    for (zone, state) in states.iter_mut() {
        let (new, size) = (new_states[zone], ready[zone].len());
        if *state != new || all_were_down {
            *state = new;
            change.rates.insert(zone.clone(), rate(new, size, rates));
        }
    }
    change
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: Rates = Rates {
        primary: 0.1,
        secondary: 0.01,
        large_cluster_threshold: 5,
        unhealthy_zone_threshold: 0.55,
    };

    fn zone(ready: usize, unknown: usize) -> Vec<Option<String>> {
        let status = |text: &str, count| std::iter::repeat_n(Some(text.to_string()), count);
        status("True", ready)
            .chain(status("Unknown", unknown))
            .collect()
    }

    #[test]
    fn states_of_a_zone() {
        for (ready, unknown, expect) in [
            (3, 0, ZoneState::Normal),
            (0, 3, ZoneState::FullDisruption),
            (2, 2, ZoneState::Normal),
            (2, 3, ZoneState::PartialDisruption),
            (3, 3, ZoneState::Normal),
            (0, 0, ZoneState::Normal),
        ] {
            assert_eq!(
                compute_zone_state(&zone(ready, unknown), 0.55).1,
                expect,
                "{ready} {unknown}"
            );
        }
    }

    #[test]
    fn everything_down_stops_tainting() {
        let mut states = HashMap::new();
        let mut step = |a, b| {
            handle_disruption(
                &mut states,
                &HashMap::from([("a".into(), a), ("b".into(), b)]),
                RATES,
            )
        };
        let normal = step(zone(3, 0), zone(3, 0));
        assert_eq!(
            normal.rates,
            BTreeMap::from([("a".into(), 0.1), ("b".into(), 0.1)])
        );
        assert_eq!(step(zone(3, 0), zone(3, 0)), Change::default());
        // One zone down: it is tainted at the normal rate.
        assert_eq!(
            step(zone(0, 3), zone(3, 0)).rates,
            BTreeMap::from([("a".into(), 0.1)])
        );
        // A small zone in part down: not at all; a large one slowly.
        assert_eq!(
            step(zone(0, 3), zone(2, 3)).rates,
            BTreeMap::from([("b".into(), 0.0)])
        );
        let all = step(zone(0, 3), zone(0, 5));
        assert!(all.all_went_down && all.rates.values().all(|rate| *rate == 0.0));
        assert_eq!(step(zone(0, 3), zone(0, 5)), Change::default());
        let back = step(zone(0, 3), zone(3, 7));
        assert!(back.some_came_back);
        assert_eq!(
            back.rates,
            BTreeMap::from([("a".into(), 0.1), ("b".into(), 0.01)])
        );
    }
}
