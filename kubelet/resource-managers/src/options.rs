//! Options of policies: a name, a text, and the gate of the name's stage.
//!
//! Upstream: policy_options.go of cpumanager and topologymanager, v1.37.

use std::collections::BTreeMap;

/// How far an option is; without the gate of its stage it cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Alpha,
    Beta,
    Stable,
}

/// Which stages may be used: `CPUManagerPolicyAlphaOptions`, `CPUManagerPolicyBetaOptions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gates {
    pub alpha: bool,
    pub beta: bool,
}

impl Default for Gates {
    /// As they are in v1.37.
    fn default() -> Self {
        Self {
            alpha: false,
            beta: true,
        }
    }
}

/// The policy cannot be had as it is asked for. Another start says the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    #[error("unknown CPU Manager Policy option: {0:?}")]
    UnknownOfCpu(String),
    #[error("CPU Manager Policy {stage}-level Options not enabled, but option {name:?} provided")]
    NotEnabled { stage: &'static str, name: String },
    #[error("bad value for option {name:?}: strconv.ParseBool: parsing {value:?}: invalid syntax")]
    NotBool { name: String, value: String },
    #[error("static policy options {0} and {1} can not be used at the same time")]
    Together(&'static str, &'static str),
    #[error("None policy: received unsupported options={0}")]
    OfNone(String),
    #[error(
        "Topolgy manager single-numa-node policy is incompatible with CPUManager align-by-socket policy option"
    )]
    SocketsOfSingleNode,
    #[error(
        "Align by socket is not compatible with hardware where number of sockets are more than number of NUMA"
    )]
    MoreSocketsThanNodes,
    #[error("unknown Topology Manager Policy option: {0:?}")]
    UnknownOfTopology(String),
    #[error(
        "unable to convert policy option to integer {name:?}: strconv.Atoi: parsing {value:?}: invalid syntax"
    )]
    NotInteger { name: String, value: String },
    #[error("the minimum value of {name:?} should not be less than {least}")]
    TooSmall { name: String, least: usize },
}

const FULL_PCPUS_ONLY: &str = "full-pcpus-only";
const DISTRIBUTE_ACROSS_NUMA: &str = "distribute-cpus-across-numa";
const ALIGN_BY_SOCKET: &str = "align-by-socket";
const DISTRIBUTE_ACROSS_CORES: &str = "distribute-cpus-across-cores";
const STRICT_RESERVATION: &str = "strict-cpu-reservation";
const PREFER_UNCORE_CACHE: &str = "prefer-align-cpus-by-uncorecache";

/// What the options of the static policy come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StaticOptions {
    /// No two containers share a core: numbers that are no multiple of its threads are refused.
    pub full_pcpus_only: bool,
    /// Where it takes several NUMA nodes, as many CPUs of each.
    pub distribute_across_numa: bool,
    /// A socket counts where otherwise a NUMA node does.
    pub align_by_socket: bool,
    /// One thread of every core first.
    pub distribute_across_cores: bool,
    /// Reserved CPUs are nobody's, not even of containers that share.
    pub strict_reservation: bool,
    /// As few uncore caches as can be.
    pub prefer_uncore_cache: bool,
}

impl StaticOptions {
    /// # Errors
    /// A name is not known or not to be used, a value is none, or two do not go together.
    pub fn parse(given: &BTreeMap<String, String>, gates: Gates) -> Result<Self, OptionsError> {
        let mut options = Self::default();
        for (name, value) in given {
            let (stage, slot) = match name.as_str() {
                FULL_PCPUS_ONLY => (Stage::Stable, &mut options.full_pcpus_only),
                DISTRIBUTE_ACROSS_NUMA => (Stage::Beta, &mut options.distribute_across_numa),
                ALIGN_BY_SOCKET => (Stage::Alpha, &mut options.align_by_socket),
                DISTRIBUTE_ACROSS_CORES => (Stage::Alpha, &mut options.distribute_across_cores),
                STRICT_RESERVATION => (Stage::Stable, &mut options.strict_reservation),
                PREFER_UNCORE_CACHE => (Stage::Stable, &mut options.prefer_uncore_cache),
                _ => return Err(OptionsError::UnknownOfCpu(name.clone())),
            };
            let (on, stage) = match stage {
                Stage::Alpha => (gates.alpha, "Alpha"),
                Stage::Beta => (gates.beta, "Beta"),
                Stage::Stable => (true, ""),
            };
            if !on {
                let name = name.clone();
                return Err(OptionsError::NotEnabled { stage, name });
            }
            *slot = parse_bool(name, value)?;
        }
        options.check()?;
        Ok(options)
    }

    fn check(self) -> Result<(), OptionsError> {
        for (both, first, second) in [
            (
                self.full_pcpus_only && self.distribute_across_cores,
                FULL_PCPUS_ONLY,
                DISTRIBUTE_ACROSS_CORES,
            ),
            (
                self.distribute_across_numa && self.distribute_across_cores,
                DISTRIBUTE_ACROSS_NUMA,
                DISTRIBUTE_ACROSS_CORES,
            ),
            (
                self.prefer_uncore_cache && self.distribute_across_cores,
                PREFER_UNCORE_CACHE,
                DISTRIBUTE_ACROSS_CORES,
            ),
            (
                self.prefer_uncore_cache && self.distribute_across_numa,
                PREFER_UNCORE_CACHE,
                DISTRIBUTE_ACROSS_NUMA,
            ),
        ] {
            if both {
                return Err(OptionsError::Together(first, second));
            }
        }
        Ok(())
    }
}

/// As Go reads them.
fn parse_bool(name: &str, value: &str) -> Result<bool, OptionsError> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(OptionsError::NotBool {
            name: name.to_owned(),
            value: value.to_owned(),
        }),
    }
}

/// So many NUMA nodes there can be unless more are allowed: the masks over them are two to the power of their number. Upstream:
/// `defaultMaxAllowableNUMANodes`.
pub const MAX_ALLOWABLE_NUMA_NODES: usize = 8;

/// What the options of the topology manager come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopologyOptions {
    /// Of as many NUMA nodes those that are nearest to each other.
    pub prefer_closest_numa: bool,
    pub max_allowable_numa_nodes: usize,
}

impl Default for TopologyOptions {
    fn default() -> Self {
        Self {
            prefer_closest_numa: false,
            max_allowable_numa_nodes: MAX_ALLOWABLE_NUMA_NODES,
        }
    }
}

impl TopologyOptions {
    /// # Errors
    /// A name is not known, or a value is none.
    pub fn parse(given: &BTreeMap<String, String>) -> Result<Self, OptionsError> {
        let mut options = Self::default();
        for (name, value) in given {
            match name.as_str() {
                "prefer-closest-numa-nodes" => {
                    options.prefer_closest_numa = parse_bool(name, value)?;
                }
                "max-allowable-numa-nodes" => {
                    let most: i64 = value.parse().map_err(|_| OptionsError::NotInteger {
                        name: name.clone(),
                        value: value.clone(),
                    })?;
                    let most = usize::try_from(most).unwrap_or(0);
                    if most < MAX_ALLOWABLE_NUMA_NODES {
                        return Err(OptionsError::TooSmall {
                            name: name.clone(),
                            least: MAX_ALLOWABLE_NUMA_NODES,
                        });
                    }
                    if most > MAX_ALLOWABLE_NUMA_NODES {
                        tracing::warn!(
                            most,
                            recommended = MAX_ALLOWABLE_NUMA_NODES,
                            "the value of max-allowable-numa-nodes is more than the default recommended value"
                        );
                    }
                    options.max_allowable_numa_nodes = most;
                }
                _ => return Err(OptionsError::UnknownOfTopology(name.clone())),
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn options_of_the_static_policy() {
        let all = Gates {
            alpha: true,
            beta: true,
        };
        let none = Gates {
            alpha: false,
            beta: false,
        };
        let check = |pairs: &[(&str, &str)], gates: Gates, expect: &str| {
            let got = match StaticOptions::parse(&given(pairs), gates) {
                Ok(options) => format!("{options:?}").matches("true").count().to_string(),
                Err(error) => error.to_string(),
            };
            assert_eq!(got, expect, "{pairs:?}");
        };
        let stable = [
            (FULL_PCPUS_ONLY, "true"),
            (STRICT_RESERVATION, "1"),
            (PREFER_UNCORE_CACHE, "T"),
        ];
        check(&stable, none, "3");
        check(&[(DISTRIBUTE_ACROSS_NUMA, "true")], Gates::default(), "1");
        check(
            &[(DISTRIBUTE_ACROSS_NUMA, "true")],
            none,
            "CPU Manager Policy Beta-level Options not enabled, but option \"distribute-cpus-across-numa\" provided",
        );
        for name in [ALIGN_BY_SOCKET, DISTRIBUTE_ACROSS_CORES] {
            check(
                &[(name, "false")],
                Gates::default(),
                &format!(
                    "CPU Manager Policy Alpha-level Options not enabled, but option {name:?} provided"
                ),
            );
            check(&[(name, "true")], all, "1");
        }
        check(
            &[("x", "true")],
            all,
            "unknown CPU Manager Policy option: \"x\"",
        );
        check(
            &[(FULL_PCPUS_ONLY, "yes")],
            all,
            "bad value for option \"full-pcpus-only\": strconv.ParseBool: parsing \"yes\": invalid syntax",
        );
        for (a, b) in [
            (FULL_PCPUS_ONLY, DISTRIBUTE_ACROSS_CORES),
            (DISTRIBUTE_ACROSS_NUMA, DISTRIBUTE_ACROSS_CORES),
            (PREFER_UNCORE_CACHE, DISTRIBUTE_ACROSS_CORES),
            (PREFER_UNCORE_CACHE, DISTRIBUTE_ACROSS_NUMA),
        ] {
            check(
                &[(a, "true"), (b, "true")],
                all,
                &format!("static policy options {a} and {b} can not be used at the same time"),
            );
        }
    }

    #[test]
    fn options_of_the_topology_manager() {
        let check = |pairs: &[(&str, &str)], expect: Result<(bool, usize), &str>| {
            let got = TopologyOptions::parse(&given(pairs))
                .map(|o| (o.prefer_closest_numa, o.max_allowable_numa_nodes))
                .map_err(|error| error.to_string());
            assert_eq!(got, expect.map_err(str::to_owned), "{pairs:?}");
        };
        check(&[], Ok((false, 8)));
        check(&[("prefer-closest-numa-nodes", "true")], Ok((true, 8)));
        check(&[("max-allowable-numa-nodes", "16")], Ok((false, 16)));
        check(
            &[("max-allowable-numa-nodes", "7")],
            Err("the minimum value of \"max-allowable-numa-nodes\" should not be less than 8"),
        );
        check(
            &[("max-allowable-numa-nodes", "x")],
            Err(
                "unable to convert policy option to integer \"max-allowable-numa-nodes\": strconv.Atoi: parsing \"x\": invalid syntax",
            ),
        );
        check(
            &[("y", "1")],
            Err("unknown Topology Manager Policy option: \"y\""),
        );
    }
}
