//! The values that packets have and sets hold.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

/// The address family of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    Ip,
    Ip6,
}

impl Family {
    /// nft's word, for tables and for addresses alike.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        }
    }

    pub fn of(address: &IpAddr) -> Self {
        if address.is_ipv4() {
            Self::Ip
        } else {
            Self::Ip6
        }
    }

    /// The type of this family's addresses.
    pub fn address_type(self) -> Type {
        match self {
            Self::Ip => Type::Ipv4,
            Self::Ip6 => Type::Ipv6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// The type of one component of a key or of a map's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Type {
    Ipv4,
    Ipv6,
    Protocol,
    Port,
    /// A number made by `numgen`.
    Number,
    Mark,
    InterfaceName,
}

impl Type {
    /// As in `type …;` and in nft's JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4_addr",
            Self::Ipv6 => "ipv6_addr",
            Self::Protocol => "inet_proto",
            Self::Port => "inet_service",
            Self::Number => "integer",
            Self::Mark => "mark",
            Self::InterfaceName => "ifname",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        [
            Self::Ipv4,
            Self::Ipv6,
            Self::Protocol,
            Self::Port,
            Self::Number,
            Self::Mark,
            Self::InterfaceName,
        ]
        .into_iter()
        .find(|t| t.name() == name)
    }

    /// An expression of this type, for `typeof …;` (nft knows no name for numgen's type).
    pub(crate) fn sample(self) -> &'static str {
        match self {
            Self::Ipv4 => "ip daddr",
            Self::Ipv6 => "ip6 daddr",
            Self::Protocol => "meta l4proto",
            // Not "tcp dport": a rule would then match TCP alone.
            Self::Port => "th dport",
            Self::Number => "numgen random mod 2",
            Self::Mark => "meta mark",
            Self::InterfaceName => "iifname",
        }
    }
}

/// One component of a key or of a map's data.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    Address(IpAddr),
    /// A range of addresses, in interval sets only. A range of one address equals [`Value::Address`]: see [`Value::net`].
    Net(IpNet),
    Protocol(Protocol),
    Port(u16),
    Number(u32),
    /// An interface's name; in rules, a trailing `*` stands for any ending.
    Name(Arc<str>),
}

impl Value {
    /// A range, in the form in which nft lists it: host bits cleared, a range of one as an address.
    pub fn net(net: IpNet) -> Self {
        if net.prefix_len() == net.max_prefix_len() {
            Self::Address(net.addr())
        } else {
            Self::Net(net.trunc())
        }
    }

    /// True where `self` (of a set) holds the packet's `value`.
    pub(crate) fn holds(&self, value: &Value) -> bool {
        match (self, value) {
            (Self::Net(net), Self::Address(address)) => net.contains(address),
            (Self::Name(held), Self::Name(name)) if held.ends_with('*') => {
                name.starts_with(held.trim_end_matches('*'))
            }
            _ => self == value,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Net(net) => net.fmt(f),
            Self::Protocol(protocol) => f.write_str(protocol.as_str()),
            Self::Port(port) => port.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => write!(f, "\"{name}\""),
        }
    }
}

impl From<IpAddr> for Value {
    fn from(address: IpAddr) -> Self {
        Self::Address(address)
    }
}

impl From<Protocol> for Value {
    fn from(protocol: Protocol) -> Self {
        Self::Protocol(protocol)
    }
}

/// A concatenation: `10.96.0.1 . tcp . 80`.
pub type Key = Vec<Value>;

pub(crate) fn write_key(key: &[Value], out: &mut String) {
    use fmt::Write;
    for (i, value) in key.iter().enumerate() {
        let separator = if i == 0 { "" } else { " . " };
        write!(out, "{separator}{value}").expect("writing to a string cannot fail");
    }
}

/// What becomes of a packet, as far as one rule or map element decides.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(Arc<str>),
    Goto(Arc<str>),
}

impl Verdict {
    pub fn goto(chain: impl Into<Arc<str>>) -> Self {
        Self::Goto(chain.into())
    }

    pub fn jump(chain: impl Into<Arc<str>>) -> Self {
        Self::Jump(chain.into())
    }

    /// The chain it leads to.
    pub fn target(&self) -> Option<&str> {
        match self {
            Self::Jump(chain) | Self::Goto(chain) => Some(chain),
            Self::Accept | Self::Drop | Self::Return => None,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Return => f.write_str("return"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

/// What an element carries: nothing (sets), values (maps) or a verdict (verdict maps).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Data {
    None,
    Values(Key),
    Verdict(Verdict),
}
