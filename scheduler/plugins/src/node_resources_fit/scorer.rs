//! The three strategies: least allocated, most allocated, by a given shape.

use framework::MAX_NODE_SCORE;
use framework::args::{ScoringStrategy, ScoringStrategyType};

use crate::resource_allocation::{Share, Wanted};

/// Scores in a shape run to 10 (upstream: MaxCustomPriorityScore); ours to 100.
const SHAPE_FACTOR: i64 = MAX_NODE_SCORE / 10;

pub(super) enum Scorer {
    LeastAllocated,
    MostAllocated,
    RequestedToCapacityRatio(Vec<(i64, i64)>),
}

impl Scorer {
    pub(super) fn new(strategy: &ScoringStrategy) -> Self {
        match strategy.type_ {
            ScoringStrategyType::LeastAllocated => Scorer::LeastAllocated,
            ScoringStrategyType::MostAllocated => Scorer::MostAllocated,
            ScoringStrategyType::RequestedToCapacityRatio => {
                let shape = strategy
                    .requested_to_capacity_ratio
                    .iter()
                    .flat_map(|param| &param.shape);
                Scorer::RequestedToCapacityRatio(
                    shape
                        .map(|p| (i64::from(p.utilization), i64::from(p.score) * SHAPE_FACTOR))
                        .collect(),
                )
            }
        }
    }

    fn of(&self, requested: i64, capacity: i64) -> i64 {
        match self {
            Scorer::LeastAllocated if requested > capacity => 0,
            Scorer::LeastAllocated => part(capacity - requested, capacity),
            Scorer::MostAllocated => part(requested.min(capacity), capacity),
            Scorer::RequestedToCapacityRatio(shape) => broken_linear(
                shape,
                if requested > capacity {
                    100
                } else {
                    part(requested, capacity)
                },
            ),
        }
    }

    /// The mean over the resources that count, by weight.
    #[inline]
    pub(super) fn score(&self, wanted: &[Wanted], shares: &[Share]) -> i64 {
        let by_shape = matches!(self, Scorer::RequestedToCapacityRatio(_));
        let (mut sum, mut weights) = (0, 0);
        for (resource, share) in wanted.iter().zip(shares) {
            if share.allocatable == 0 {
                continue;
            }
            let score = self.of(share.requested, share.allocatable);
            if by_shape && score <= 0 {
                continue;
            }
            sum += score * resource.weight;
            weights += resource.weight;
        }
        match weights {
            0 => 0,
            _ if by_shape => (sum as f64 / weights as f64).round() as i64,
            _ => sum / weights,
        }
    }
}

/// `amount` in hundredths of `capacity`, which a node may say is as much as a number holds.
fn part(amount: i64, capacity: i64) -> i64 {
    const _: () = assert!(MAX_NODE_SCORE == 100);
    match amount.checked_mul(MAX_NODE_SCORE) {
        Some(product) => product / capacity,
        // At most 100, as amount <= capacity.
        None => (i128::from(amount) * i128::from(MAX_NODE_SCORE) / i128::from(capacity)) as i64,
    }
}

/// The value at `x` of the lines through `shape`, flat before the first point and after the last.
fn broken_linear(shape: &[(i64, i64)], x: i64) -> i64 {
    for (i, &(to, high)) in shape.iter().enumerate() {
        if x <= to {
            let Some(&(from, low)) = i.checked_sub(1).and_then(|i| shape.get(i)) else {
                return high;
            };
            return low + (high - low) * (x - from) / (to - from);
        }
    }
    shape.last().map_or(0, |&(_, score)| score)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        let shape = [(10, 10), (50, 90), (100, 0)];
        for (x, expect) in [
            (0, 10),
            (10, 10),
            (30, 50),
            (50, 90),
            (75, 45),
            (100, 0),
            (200, 0),
        ] {
            assert_eq!(broken_linear(&shape, x), expect, "{x}");
        }
    }

    #[test]
    fn strategies() {
        for (requested, capacity, least, most) in [
            (0, 100, 100, 0),
            (25, 100, 75, 25),
            (100, 100, 0, 100),
            (150, 100, 0, 100),
            (1, 3, 66, 33),
            (0, i64::MAX, 100, 0),
            (i64::MAX / 4, i64::MAX, 75, 24),
            (i64::MAX, i64::MAX, 0, 100),
            (i64::MAX, 1, 0, 100),
        ] {
            assert_eq!(Scorer::LeastAllocated.of(requested, capacity), least);
            assert_eq!(Scorer::MostAllocated.of(requested, capacity), most);
        }
    }
}
