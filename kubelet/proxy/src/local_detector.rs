//! What traffic comes from a pod (of the cluster, or of this node, by the mode).
//!
//! Upstream: pkg/proxy/util/localdetector.go.

use ipnet::IpNet;
use nftables::{Family, Field, Statement, Value};

/// How to tell a pod's traffic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LocalDetector {
    /// There is no way to tell: nothing is treated as coming from outside.
    #[default]
    None,
    /// By its source (modes ClusterCIDR and NodeCIDR).
    Source(IpNet),
    /// By the link it comes in at (modes BridgeInterface and, with a trailing `*`, InterfaceNamePrefix).
    Interface(String),
}

impl LocalDetector {
    /// The first of the ranges that is of this family.
    pub fn from_ranges(ranges: &[IpNet], family: Family) -> Self {
        let found = ranges
            .iter()
            .find(|range| Family::of(&range.addr()) == family);
        found.map_or(Self::None, |range| Self::Source(range.trunc()))
    }

    /// Matches a pod's traffic. `None`: no way to tell.
    pub fn if_local(&self) -> Option<Statement> {
        match self {
            Self::None => None,
            Self::Source(range) => Some(Statement::is(Field::SourceAddress, [Value::net(*range)])),
            Self::Interface(name) => Some(Statement::is(
                Field::InputInterface,
                [Value::Name(name.as_str().into())],
            )),
        }
    }

    /// Matches all other traffic. `None`: no way to tell.
    pub fn if_not_local(&self) -> Option<Statement> {
        match self {
            Self::None => None,
            Self::Source(range) => Some(Statement::is_not(
                Field::SourceAddress,
                [Value::net(*range)],
            )),
            Self::Interface(name) => Some(Statement::is_not(
                Field::InputInterface,
                [Value::Name(name.as_str().into())],
            )),
        }
    }
}
