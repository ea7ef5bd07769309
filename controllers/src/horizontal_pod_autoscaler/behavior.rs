//! How fast and how far: what was recommended and done lately, windows, policies. Pure.
//!
//! Times are the clock's monotonic ones. Upstream: horizontal.go (`normalizeDesiredReplicas*`, `stabilizeRecommendation*`,
//! `calculateScale*`).

use std::time::Duration;

use k8s_openapi::api::autoscaling::v2::{HPAScalingRules, HorizontalPodAutoscalerBehavior};

const SCALE_UP_LIMIT_FACTOR: f64 = 2.0;
const SCALE_UP_LIMIT_MINIMUM: f64 = 4.0;

/// What was recommended and done for one autoscaler.
#[derive(Clone, Debug, Default)]
pub struct History {
    recommendations: Vec<(i32, Duration)>,
    ups: Vec<(i32, Duration)>,
    downs: Vec<(i32, Duration)>,
}

/// Between what, and from where.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub min: i32,
    pub max: i32,
    pub current: i32,
}

/// A reason and a message of a condition.
pub type Words = (&'static str, &'static str);

/// What became of a recommendation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Normalized {
    pub replicas: i32,
    /// Of the condition AbleToScale.
    pub able: Words,
    /// Whether the condition ScalingLimited is true, and why.
    pub limited: bool,
    pub limit: Words,
}

const READY: Words = ("ReadyForNewScale", "recommended size matches current size");
const DOWN_STABILIZED: Words = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const UP_STABILIZED: Words = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const WITHIN: Words = (
    "DesiredWithinRange",
    "the desired count is within the acceptable range",
);
const TOO_FEW: Words = (
    "TooFewReplicas",
    "the desired replica count is less than the minimum replica count",
);
const TOO_MANY: Words = (
    "TooManyReplicas",
    "the desired replica count is more than the maximum replica count",
);
const UP_LIMIT: Words = (
    "ScaleUpLimit",
    "the desired replica count is increasing faster than the maximum scale rate",
);
const DOWN_LIMIT: Words = (
    "ScaleDownLimit",
    "the desired replica count is decreasing faster than the maximum scale rate",
);

impl History {
    /// Something that was recommended.
    #[cfg(test)]
    pub fn recommend(&mut self, replicas: i32, at: Duration) {
        self.recommendations.push((replicas, at));
    }

    /// Changes that were made.
    #[cfg(test)]
    pub fn with_events(ups: Vec<(i32, Duration)>, downs: Vec<(i32, Duration)>) -> Self {
        let recommendations = Vec::new();
        Self {
            recommendations,
            ups,
            downs,
        }
    }

    /// What is there at the first look.
    pub fn begin(&mut self, current: i32, now: Duration) {
        if self.recommendations.is_empty() {
            self.recommendations.push((current, now));
        }
    }

    /// A recommendation without behavior: down only to the highest of the window, up to twice the current number or 4.
    pub fn normalize(
        &mut self,
        desired: i32,
        bounds: Bounds,
        window: Duration,
        now: Duration,
    ) -> Normalized {
        let recent = |at: Duration| at + window >= now;
        let highest = self
            .recommendations
            .iter()
            .filter(|(_, at)| recent(*at))
            .map(|(r, _)| *r);
        let stabilized = highest.max().unwrap_or(desired).max(desired);
        self.recommendations.retain(|(_, at)| recent(*at));
        self.recommendations.push((desired, now));
        let able = if stabilized == desired {
            READY
        } else {
            DOWN_STABILIZED
        };
        let limit =
            (SCALE_UP_LIMIT_FACTOR * f64::from(bounds.current)).max(SCALE_UP_LIMIT_MINIMUM) as i32;
        let (max, at_max) = if bounds.max > limit {
            (limit, UP_LIMIT)
        } else {
            (bounds.max, TOO_MANY)
        };
        let (replicas, limit) = if stabilized < bounds.min {
            (bounds.min, TOO_FEW)
        } else if stabilized > max {
            (max, at_max)
        } else {
            (stabilized, WITHIN)
        };
        Normalized {
            replicas,
            able,
            limited: replicas != stabilized,
            limit,
        }
    }

    /// A recommendation with behavior. `window` is for scaling down where the rules have none.
    pub fn normalize_with(
        &mut self,
        desired: i32,
        bounds: Bounds,
        behavior: &HorizontalPodAutoscalerBehavior,
        window: Duration,
        now: Duration,
    ) -> Normalized {
        let none = HPAScalingRules::default();
        let up = behavior.scale_up.as_ref().unwrap_or(&none);
        let down = behavior.scale_down.as_ref().unwrap_or(&none);
        let (up_window, down_window) = (seconds(up.stabilization_window_seconds.unwrap_or(0)), {
            down.stabilization_window_seconds.map_or(window, seconds)
        });
        let stabilized = self.stabilize(desired, bounds.current, up_window, down_window, now);
        let able = match stabilized == desired {
            true => READY,
            false if desired >= bounds.current => UP_STABILIZED,
            false => DOWN_STABILIZED,
        };
        let (replicas, limit) = self.limit(stabilized, bounds, up, down, now);
        Normalized {
            replicas,
            able,
            limited: replicas != stabilized,
            limit,
        }
    }

    /// Upstream: `stabilizeRecommendationWithBehaviors`.
    fn stabilize(
        &mut self,
        desired: i32,
        current: i32,
        up: Duration,
        down: Duration,
        now: Duration,
    ) -> i32 {
        let (mut lowest, mut highest) = (desired, desired);
        for (recommended, at) in &self.recommendations {
            if *at + up > now {
                lowest = lowest.min(*recommended);
            }
            if *at + down > now {
                highest = highest.max(*recommended);
            }
        }
        self.recommendations
            .retain(|(_, at)| *at + up.max(down) >= now);
        self.recommendations.push((desired, now));
        current.max(lowest).min(highest)
    }

    /// Upstream: `convertDesiredReplicasWithBehaviorRate`.
    fn limit(
        &self,
        desired: i32,
        bounds: Bounds,
        up: &HPAScalingRules,
        down: &HPAScalingRules,
        now: Duration,
    ) -> (i32, Words) {
        if desired > bounds.current {
            let limit = self.up_limit(bounds.current, up, now).max(bounds.current);
            let (max, words) = if bounds.max > limit {
                (limit, UP_LIMIT)
            } else {
                (bounds.max, TOO_MANY)
            };
            if desired > max {
                return (max, words);
            }
        } else if desired < bounds.current {
            let limit = self
                .down_limit(bounds.current, down, now)
                .min(bounds.current);
            let (min, words) = if bounds.min < limit {
                (limit, DOWN_LIMIT)
            } else {
                (bounds.min, TOO_FEW)
            };
            if desired < min {
                return (min, words);
            }
        }
        (desired, WITHIN)
    }

    /// How many there were when the period began.
    fn at_start_of(&self, period_seconds: i32, current: i32, now: Duration) -> i32 {
        let period = seconds(period_seconds);
        let changes = |list: &[(i32, Duration)]| -> i32 {
            list.iter()
                .filter(|(_, at)| *at + period > now)
                .map(|(change, _)| *change)
                .sum()
        };
        current - changes(&self.ups) + changes(&self.downs)
    }

    fn up_limit(&self, current: i32, rules: &HPAScalingRules, now: Duration) -> i32 {
        let proposals = rules.policies.iter().flatten().map(|policy| {
            let start = self.at_start_of(policy.period_seconds, current, now);
            match policy.type_.as_str() {
                "Pods" => start.saturating_add(policy.value),
                // Rounded up, or small numbers would never grow.
                _ => (f64::from(start) * (1.0 + f64::from(policy.value) / 100.0)).ceil() as i32,
            }
        });
        match rules.select_policy.as_deref() {
            Some("Disabled") => current,
            Some("Min") => proposals.min().unwrap_or(i32::MAX),
            _ => proposals.max().unwrap_or(i32::MAX),
        }
    }

    fn down_limit(&self, current: i32, rules: &HPAScalingRules, now: Duration) -> i32 {
        let proposals = rules.policies.iter().flatten().map(|policy| {
            let start = self.at_start_of(policy.period_seconds, current, now);
            match policy.type_.as_str() {
                "Pods" => start.saturating_sub(policy.value),
                _ => (f64::from(start) * (1.0 - f64::from(policy.value) / 100.0)) as i32,
            }
        });
        match rules.select_policy.as_deref() {
            Some("Disabled") => current,
            // The smallest change leaves the most.
            Some("Min") => proposals.max().unwrap_or(0),
            _ => proposals.min().unwrap_or(0),
        }
    }

    /// A scale was written. Without behavior nobody asks for it later.
    pub fn scaled(
        &mut self,
        behavior: Option<&HorizontalPodAutoscalerBehavior>,
        before: i32,
        after: i32,
        now: Duration,
    ) {
        let Some(behavior) = behavior else {
            return;
        };
        let (events, rules, change) = if after > before {
            (&mut self.ups, &behavior.scale_up, after - before)
        } else {
            (&mut self.downs, &behavior.scale_down, before - after)
        };
        let policies = rules
            .iter()
            .flat_map(|rules| rules.policies.iter().flatten());
        let longest = policies
            .map(|policy| policy.period_seconds)
            .max()
            .unwrap_or(0);
        events.retain(|(_, at)| *at + seconds(longest) >= now);
        events.push((change, now));
    }
}

fn seconds(count: i32) -> Duration {
    Duration::from_secs(u64::try_from(count).unwrap_or(0))
}
