//! Tables and what they hold.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::Rule;
use crate::value::{Data, Family, Key, Type, Value, Verdict};

/// Priorities of base chains, as nft's names for them.
pub mod priority {
    /// Destination NAT (prerouting, output).
    pub const DSTNAT: i32 = -100;
    pub const FILTER: i32 = 0;
    /// Source NAT (postrouting).
    pub const SRCNAT: i32 = 100;
}

/// One table with everything in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub family: Family,
    pub name: String,
    pub chains: BTreeMap<String, Chain>,
    pub sets: BTreeMap<String, Set>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookKind {
    Filter,
    Nat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HookPoint {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

impl HookKind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
        }
    }
}

impl HookPoint {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        [
            Self::Prerouting,
            Self::Input,
            Self::Forward,
            Self::Output,
            Self::Postrouting,
        ]
        .into_iter()
        .find(|p| p.as_str() == name)
    }
}

/// Where a base chain is attached. Its policy is always accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    pub kind: HookKind,
    pub point: HookPoint,
    pub priority: i32,
}

/// A chain; without a hook it is only reached by jumps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    pub hook: Option<Hook>,
    pub rules: Vec<Rule>,
}

/// What cannot be changed of a set without making it anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetShape {
    pub key: Vec<Type>,
    /// `None`: a set. Empty: a verdict map. Otherwise a map to such values.
    pub data: Option<Vec<Type>>,
    /// The keys may hold ranges.
    pub interval: bool,
    /// Filled by rules; elements go after this time without use.
    pub timeout: Option<Duration>,
}

/// A set, map or verdict map. The elements of one that rules fill are the kernel's own and not listed here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    pub shape: SetShape,
    pub elements: BTreeMap<Key, Data>,
}

impl Set {
    fn with_shape(
        key: &[Type],
        data: Option<&[Type]>,
        interval: bool,
        timeout: Option<Duration>,
    ) -> Self {
        let shape = SetShape {
            key: key.to_vec(),
            data: data.map(<[Type]>::to_vec),
            interval,
            timeout,
        };
        Self {
            shape,
            elements: BTreeMap::new(),
        }
    }

    pub fn plain(key: &[Type]) -> Self {
        Self::with_shape(key, None, false, None)
    }

    pub fn interval_set(key: &[Type]) -> Self {
        Self::with_shape(key, None, true, None)
    }

    pub fn map(key: &[Type], data: &[Type]) -> Self {
        Self::with_shape(key, Some(data), false, None)
    }

    pub fn verdict_map(key: &[Type]) -> Self {
        Self::with_shape(key, Some(&[]), false, None)
    }

    /// Filled by rules ([`crate::Statement::Update`]).
    pub fn dynamic_set(key: &[Type], timeout: Duration) -> Self {
        Self::with_shape(key, None, false, Some(timeout))
    }

    pub fn insert(&mut self, key: Key) {
        self.elements.insert(key, Data::None);
    }

    pub fn insert_values(&mut self, key: Key, values: Key) {
        self.elements.insert(key, Data::Values(values));
    }

    pub fn insert_verdict(&mut self, key: Key, verdict: Verdict) {
        self.elements.insert(key, Data::Verdict(verdict));
    }

    /// The data under the packet's `key`; intervals are honoured.
    pub fn lookup(&self, key: &[Value]) -> Option<&Data> {
        if !self.shape.interval {
            return self.elements.get(key);
        }
        self.elements
            .iter()
            .find(|(held, _)| {
                held.len() == key.len() && held.iter().zip(key).all(|(h, v)| h.holds(v))
            })
            .map(|(_, data)| data)
    }
}

impl Table {
    pub fn new(family: Family, name: impl Into<String>) -> Self {
        Self {
            family,
            name: name.into(),
            chains: BTreeMap::new(),
            sets: BTreeMap::new(),
        }
    }

    /// Adds a base chain without rules.
    pub fn base_chain(
        &mut self,
        name: &str,
        kind: HookKind,
        point: HookPoint,
        priority: i32,
    ) -> &mut Chain {
        let chain = self.chains.entry(name.to_owned()).or_default();
        chain.hook = Some(Hook {
            kind,
            point,
            priority,
        });
        chain
    }

    /// The chain of this name; made if missing.
    pub fn chain(&mut self, name: &str) -> &mut Chain {
        if !self.chains.contains_key(name) {
            self.chains.insert(name.to_owned(), Chain::default());
        }
        self.chains.get_mut(name).expect("inserted above")
    }

    /// Adds a rule to a chain (which is made if missing).
    pub fn rule(&mut self, chain: &str, statements: impl IntoIterator<Item = crate::Statement>) {
        let rule = Rule::new(self.family, statements.into_iter().collect());
        self.chain(chain).rules.push(rule);
    }

    pub fn add_set(&mut self, name: impl Into<String>, set: Set) -> &mut Set {
        let name = name.into();
        self.sets.insert(name.clone(), set);
        self.sets.get_mut(&name).expect("inserted above")
    }

    /// Names that rules or elements speak of and the table has not: empty in a table that the kernel would take.
    pub fn dangling(&self) -> BTreeSet<String> {
        let mut missing = BTreeSet::new();
        for rule in self.chains.values().flat_map(|c| &c.rules) {
            for statement in rule.statements() {
                if let Some(set) = statement.set_name()
                    && !self.sets.contains_key(set)
                {
                    missing.insert(format!("@{set}"));
                }
                let unknown = |chain: &&str| !self.chains.contains_key(*chain);
                missing.extend(
                    statement
                        .targets()
                        .into_iter()
                        .filter(unknown)
                        .map(str::to_owned),
                );
            }
        }
        for data in self.sets.values().flat_map(|s| s.elements.values()) {
            if let Data::Verdict(verdict) = data
                && let Some(chain) = verdict.target()
                && !self.chains.contains_key(chain)
            {
                missing.insert(chain.to_owned());
            }
        }
        missing
    }
}
