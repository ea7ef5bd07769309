//! Rules: what they match and what they do, and nft's text for them.

use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;

use crate::value::{Family, Key, Verdict, write_key};

/// What a rule reads of a packet (or of chance).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Field {
    SourceAddress,
    DestinationAddress,
    Protocol,
    SourcePort,
    DestinationPort,
    InputInterface,
    OutputInterface,
    /// A random number below this.
    Random(u32),
}

impl Field {
    fn write(self, family: Family, out: &mut String) {
        match self {
            Self::SourceAddress => write!(out, "{family} saddr"),
            Self::DestinationAddress => write!(out, "{family} daddr"),
            Self::Protocol => write!(out, "meta l4proto"),
            Self::SourcePort => write!(out, "th sport"),
            Self::DestinationPort => write!(out, "th dport"),
            Self::InputInterface => write!(out, "iifname"),
            Self::OutputInterface => write!(out, "oifname"),
            Self::Random(modulus) => write!(out, "numgen random mod {modulus}"),
        }
        .expect("writing to a string cannot fail");
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    Is,
    IsNot,
}

/// One part of a rule. A rule's statements are tried in order; the first that does not match ends the rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Statement {
    /// The fields are (not) one of these keys (which may hold ranges).
    Match {
        fields: Vec<Field>,
        operator: Operator,
        keys: Vec<Key>,
    },
    /// The fields are (not) in the set or map of this name.
    InSet {
        fields: Vec<Field>,
        operator: Operator,
        set: Arc<str>,
    },
    /// The packet begins a connection.
    CtStateNew,
    /// The connection's destination was translated.
    CtStatusDnat,
    /// The source address is one of this machine's.
    SourceIsLocal,
    /// The destination address is one of this machine's.
    DestinationIsLocal,
    /// No route leads back to the source address by the interface that the packet came in at. Only in prerouting,
    /// input and forward.
    NoReversePath,
    /// The interface that the packet came in at belongs to the group of this number.
    InputGroup(u32),
    /// The bits are set in the packet's mark.
    MarkHas(u32),
    /// Sets the bits in the packet's mark.
    MarkOr(u32),
    /// Turns the bits of the packet's mark over.
    MarkXor(u32),
    /// Looks the verdict up; goes on where there is none.
    VerdictMap {
        fields: Vec<Field>,
        map: Arc<str>,
    },
    /// A verdict map of the rule's own.
    Verdicts {
        fields: Vec<Field>,
        verdicts: Vec<(Key, Verdict)>,
    },
    Verdict(Verdict),
    /// Drops with an ICMP "port unreachable". Only in input, forward and output.
    Reject,
    /// Sends the connection to the address and port found in the map; the rule ends where there is none.
    DnatMap {
        fields: Vec<Field>,
        map: Arc<str>,
    },
    Dnat {
        address: IpAddr,
        port: u16,
    },
    /// The connection's source becomes this machine's address on the way out, with a random port.
    Masquerade,
    /// Puts the fields into a dynamic set, or renews their timeout there.
    Update {
        set: Arc<str>,
        fields: Vec<Field>,
    },
}

impl Statement {
    pub fn is(field: Field, values: impl IntoIterator<Item = crate::Value>) -> Self {
        let keys = values.into_iter().map(|v| vec![v]).collect();
        Self::Match {
            fields: vec![field],
            operator: Operator::Is,
            keys,
        }
    }

    pub fn is_not(field: Field, values: impl IntoIterator<Item = crate::Value>) -> Self {
        let keys = values.into_iter().map(|v| vec![v]).collect();
        Self::Match {
            fields: vec![field],
            operator: Operator::IsNot,
            keys,
        }
    }

    pub fn in_set(fields: &[Field], set: impl Into<Arc<str>>) -> Self {
        Self::InSet {
            fields: fields.to_vec(),
            operator: Operator::Is,
            set: set.into(),
        }
    }

    pub fn not_in_set(fields: &[Field], set: impl Into<Arc<str>>) -> Self {
        Self::InSet {
            fields: fields.to_vec(),
            operator: Operator::IsNot,
            set: set.into(),
        }
    }

    pub fn verdict_map(fields: &[Field], map: impl Into<Arc<str>>) -> Self {
        Self::VerdictMap {
            fields: fields.to_vec(),
            map: map.into(),
        }
    }

    pub fn dnat_map(fields: &[Field], map: impl Into<Arc<str>>) -> Self {
        Self::DnatMap {
            fields: fields.to_vec(),
            map: map.into(),
        }
    }

    pub fn jump(chain: impl Into<Arc<str>>) -> Self {
        Self::Verdict(Verdict::jump(chain))
    }

    pub fn goto(chain: impl Into<Arc<str>>) -> Self {
        Self::Verdict(Verdict::goto(chain))
    }

    /// The set or map it speaks of.
    pub fn set_name(&self) -> Option<&str> {
        match self {
            Self::InSet { set, .. } | Self::Update { set, .. } => Some(set),
            Self::VerdictMap { map, .. } | Self::DnatMap { map, .. } => Some(map),
            _ => None,
        }
    }

    /// The chains it leads to.
    pub fn targets(&self) -> Vec<&str> {
        match self {
            Self::Verdict(verdict) => verdict.target().into_iter().collect(),
            Self::Verdicts { verdicts, .. } => verdicts
                .iter()
                .filter_map(|(_, verdict)| verdict.target())
                .collect(),
            _ => Vec::new(),
        }
    }

    fn write(&self, family: Family, out: &mut String) {
        let sign = |operator: &Operator| if *operator == Operator::Is { "" } else { "!= " };
        match self {
            Self::Match {
                fields,
                operator,
                keys,
            } => {
                write_fields(fields, family, out);
                write!(out, " {}", sign(operator)).expect(INFALLIBLE);
                if let [key] = keys.as_slice() {
                    write_key(key, out);
                    return;
                }
                out.push_str("{ ");
                for (i, key) in keys.iter().enumerate() {
                    out.push_str(if i == 0 { "" } else { ", " });
                    write_key(key, out);
                }
                out.push_str(" }");
            }
            Self::InSet {
                fields,
                operator,
                set,
            } => {
                write_fields(fields, family, out);
                write!(out, " {}@{set}", sign(operator)).expect(INFALLIBLE);
            }
            Self::CtStateNew => out.push_str("ct state new"),
            Self::CtStatusDnat => out.push_str("ct status dnat"),
            Self::SourceIsLocal => out.push_str("fib saddr type local"),
            Self::DestinationIsLocal => out.push_str("fib daddr type local"),
            Self::NoReversePath => out.push_str("fib saddr . iif oif missing"),
            Self::InputGroup(group) => write!(out, "iifgroup {group}").expect(INFALLIBLE),
            Self::MarkHas(bits) => write!(out, "meta mark and {bits:#x} != 0").expect(INFALLIBLE),
            Self::MarkOr(bits) => {
                write!(out, "meta mark set meta mark or {bits:#x}").expect(INFALLIBLE)
            }
            Self::MarkXor(bits) => {
                write!(out, "meta mark set meta mark xor {bits:#x}").expect(INFALLIBLE)
            }
            Self::VerdictMap { fields, map } => {
                write_fields(fields, family, out);
                write!(out, " vmap @{map}").expect(INFALLIBLE);
            }
            Self::Verdicts { fields, verdicts } => {
                write_fields(fields, family, out);
                out.push_str(" vmap { ");
                for (i, (key, verdict)) in verdicts.iter().enumerate() {
                    out.push_str(if i == 0 { "" } else { ", " });
                    write_key(key, out);
                    write!(out, " : {verdict}").expect(INFALLIBLE);
                }
                out.push_str(" }");
            }
            Self::Verdict(verdict) => write!(out, "{verdict}").expect(INFALLIBLE),
            Self::Reject => out.push_str("reject"),
            Self::DnatMap { fields, map } => {
                write!(out, "dnat {family} to ").expect(INFALLIBLE);
                write_fields(fields, family, out);
                write!(out, " map @{map}").expect(INFALLIBLE);
            }
            Self::Dnat {
                address: IpAddr::V4(address),
                port,
            } => {
                write!(out, "dnat to {address}:{port}").expect(INFALLIBLE);
            }
            Self::Dnat {
                address: IpAddr::V6(address),
                port,
            } => {
                write!(out, "dnat to [{address}]:{port}").expect(INFALLIBLE);
            }
            Self::Masquerade => out.push_str("masquerade fully-random"),
            Self::Update { set, fields } => {
                write!(out, "update @{set} {{ ").expect(INFALLIBLE);
                write_fields(fields, family, out);
                out.push_str(" }");
            }
        }
    }
}

const INFALLIBLE: &str = "writing to a string cannot fail";

fn write_fields(fields: &[Field], family: Family, out: &mut String) {
    for (i, field) in fields.iter().enumerate() {
        out.push_str(if i == 0 { "" } else { " . " });
        field.write(family, out);
    }
}

/// A rule. Two rules are equal when their fingerprints are; one that was read back from the kernel has
/// nothing but its fingerprint.
#[derive(Clone, Debug)]
pub struct Rule {
    fingerprint: u64,
    statements: Vec<Statement>,
}

impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
    }
}

impl Eq for Rule {}

impl Rule {
    pub fn new(family: Family, statements: Vec<Statement>) -> Self {
        let mut rule = Self {
            fingerprint: 0,
            statements,
        };
        rule.fingerprint = fnv1a(rule.text(family).as_bytes());
        rule
    }

    /// A rule of the kernel that carries this fingerprint (0: none of ours).
    pub(crate) fn adopted(fingerprint: u64) -> Self {
        Self {
            fingerprint,
            statements: Vec::new(),
        }
    }

    pub fn statements(&self) -> &[Statement] {
        &self.statements
    }

    pub(crate) fn text(&self, family: Family) -> String {
        let mut out = String::new();
        for (i, statement) in self.statements.iter().enumerate() {
            out.push_str(if i == 0 { "" } else { " " });
            statement.write(family, &mut out);
        }
        out
    }

    /// The comment by which the rule is known again.
    pub(crate) fn comment(&self) -> String {
        format!("{:016x}", self.fingerprint)
    }

    pub(crate) fn fingerprint_of_comment(comment: &str) -> u64 {
        u64::from_str_radix(comment, 16).unwrap_or(0)
    }
}

/// FNV-1a, 64 bits: small, and the same in every version of the program.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
