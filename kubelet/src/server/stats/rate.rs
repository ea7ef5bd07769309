//! Rates of counters between looks.

use std::collections::HashMap;

use jiff::Timestamp;

/// Two looks closer than this tell no rate; the earlier one is kept.
const MIN_INTERVAL_SECONDS: f64 = 1.0;
/// A little more than that.
pub(super) const MIN_INTERVAL: std::time::Duration = std::time::Duration::from_millis(1050);
/// Counters nobody looked at for this long are forgotten.
const FORGET_SECONDS: f64 = 3600.0;

#[derive(Clone, Copy)]
struct Sample {
    time: Timestamp,
    value: u64,
    rate: Option<u64>,
}

/// The last look at each counter.
#[derive(Default)]
pub(super) struct Rates {
    samples: HashMap<String, Sample>,
}

impl Rates {
    /// Growth a second since the last look; `None` while there is but one. A counter that fell starts anew.
    pub(super) fn observe(&mut self, key: &str, time: Timestamp, value: u64) -> Option<u64> {
        let since = |then: Timestamp| (time - then).total(jiff::Unit::Second).unwrap_or(0.0);
        if self.samples.len() > 256 {
            self.samples
                .retain(|_, sample| since(sample.time) < FORGET_SECONDS);
        }
        let rate = match self.samples.get(key) {
            Some(last) => {
                let seconds = since(last.time);
                if seconds < MIN_INTERVAL_SECONDS {
                    return last.rate;
                }
                value
                    .checked_sub(last.value)
                    .map(|grown| (grown as f64 / seconds) as u64)
            }
            None => None,
        };
        self.samples
            .insert(key.to_owned(), Sample { time, value, rate });
        rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        let mut rates = Rates::default();
        let at = |millis: i64| Timestamp::from_millisecond(millis).unwrap();
        assert_eq!(rates.observe("a", at(0), 100), None);
        assert_eq!(rates.observe("a", at(2000), 300), Some(100));
        assert_eq!(
            rates.observe("a", at(2100), 900),
            Some(100),
            "too early to tell"
        );
        assert_eq!(rates.observe("a", at(4000), 500), Some(100));
        assert_eq!(rates.observe("a", at(6000), 10), None, "it was reset");
        assert_eq!(rates.observe("b", at(6000), 1), None);
    }
}
