//! `simulated` of the configuration file.

use std::path::PathBuf;
use std::time::Duration;

use component_base::config::FieldError;
use component_base::duration::GoDuration;
use ipnet::Ipv4Net;
use serde::Deserialize;

/// How pods go, where their annotations say nothing else.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SimulatedConfiguration {
    /// From the creation of a pod until its containers run.
    pub start_delay: GoDuration,
    /// At most so much more; which part of it is the pod's own.
    pub start_jitter: GoDuration,
    /// How long containers run. 0: until somebody ends them.
    pub run_time: GoDuration,
    /// At most so much longer.
    pub run_jitter: GoDuration,
    /// How containers end that ran their time.
    pub exit_code: i32,
    /// The part of the pods, 0 to 1, whose containers end with `failureExitCode` instead.
    pub failure_rate: f64,
    pub failure_exit_code: i32,
    /// What containers take to end when they are asked to; with less grace they are killed.
    pub stop_time: GoDuration,
    /// Where pods' addresses come from.
    #[serde(rename = "podCIDR")]
    pub pod_cidr: Ipv4Net,
    /// The log of every container, a line each.
    pub logs: Vec<String>,
    /// Files with kwok's `Stage` objects, which say how pods go instead of all the above (but `podCIDR`). Relative to the file.
    pub stages: Vec<PathBuf>,
}

impl Default for SimulatedConfiguration {
    fn default() -> Self {
        Self {
            start_delay: GoDuration::default(),
            start_jitter: GoDuration::default(),
            run_time: GoDuration::default(),
            run_jitter: GoDuration::default(),
            exit_code: 0,
            failure_rate: 0.0,
            failure_exit_code: 1,
            stop_time: GoDuration(Duration::ZERO),
            pod_cidr: Ipv4Net::new_assert([10, 0, 0, 0].into(), 8),
            logs: Vec::new(),
            stages: Vec::new(),
        }
    }
}

impl SimulatedConfiguration {
    /// Everything that cannot be.
    pub fn validate(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if !(0.0..=1.0).contains(&self.failure_rate) {
            errors.push(FieldError::invalid(
                "simulated.failureRate",
                self.failure_rate,
                "must be between 0 and 1, inclusive",
            ));
        }
        for (field, code) in [
            ("exitCode", self.exit_code),
            ("failureExitCode", self.failure_exit_code),
        ] {
            if !(0..=255).contains(&code) {
                errors.push(FieldError::invalid(
                    format!("simulated.{field}"),
                    code,
                    "must be between 0 and 255, inclusive",
                ));
            }
        }
        if self.pod_cidr.prefix_len() > 30 {
            errors.push(FieldError::invalid(
                "simulated.podCIDR",
                self.pod_cidr.to_string(),
                "must have room for addresses",
            ));
        }
        let plain = Self {
            pod_cidr: self.pod_cidr,
            stages: self.stages.clone(),
            ..Self::default()
        };
        if !self.stages.is_empty() && *self != plain {
            errors.push(FieldError::forbidden(
                "simulated.stages",
                "stages say how pods go: besides them only podCIDR may be set",
            ));
        }
        errors
    }
}
