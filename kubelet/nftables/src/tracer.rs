//! [`Tracer`]: what happens to a packet. Tests look at this, never at rendered text.
//!
//! It walks the first packet of a connection through the hooks in the kernel's order:
//!
//! ```text
//! from outside:   prerouting ─► local? input : forward ─► postrouting
//! from here:      output ─► postrouting (and input, where the destination is local)
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::object::{HookKind, HookPoint, Table};
use crate::rule::{Field, Operator, Statement};
use crate::value::{Data, Family, Key, Protocol, Value, Verdict};

/// The first packet of a connection.
#[derive(Clone, Debug)]
pub struct Packet {
    pub source: IpAddr,
    pub source_port: u16,
    pub destination: IpAddr,
    pub destination_port: u16,
    pub protocol: Protocol,
    pub origin: Origin,
}

/// Where a packet comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A process of this machine.
    Local,
    /// It came in at this interface.
    Interface(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// To a process of this machine.
    Delivered,
    /// Out of an interface.
    Forwarded,
    Dropped,
    Rejected,
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub decision: Decision,
    /// After translation, if there was one.
    pub destination: IpAddr,
    pub destination_port: u16,
    pub translated: bool,
    pub masqueraded: bool,
}

/// Runs packets over tables. Remembers what rules put into dynamic sets, so affinity can be followed.
pub struct Tracer<'a> {
    tables: Vec<&'a Table>,
    /// This machine's addresses (loopback is known).
    local: Vec<IpAddr>,
    routes: Vec<(IpNet, String)>,
    groups: BTreeMap<String, u32>,
    dynamic: BTreeMap<(String, String), BTreeMap<Key, Duration>>,
    now: Duration,
    random: Box<dyn FnMut(u32) -> u32 + Send + 'a>,
}

struct State {
    packet: Packet,
    output_interface: String,
    mark: u32,
    translated: bool,
    masqueraded: bool,
}

/// What a rule or chain says of the packet.
enum Step {
    Continue,
    Return,
    Accept,
    Drop,
    Reject,
    /// A nat statement took effect: no other nat chain of the hook is asked.
    Bound,
}

impl<'a> Tracer<'a> {
    pub fn new(
        tables: impl IntoIterator<Item = &'a Table>,
        local: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        Self {
            tables: tables.into_iter().collect(),
            local: local.into_iter().collect(),
            routes: Vec::new(),
            groups: BTreeMap::new(),
            dynamic: BTreeMap::new(),
            now: Duration::ZERO,
            random: Box::new(|_| 0),
        }
    }

    /// Makes `numgen random mod n` give what `random(n)` gives. Without it: 0.
    pub fn with_random(mut self, random: impl FnMut(u32) -> u32 + Send + 'a) -> Self {
        self.random = Box::new(random);
        self
    }

    /// Packets to this range leave by this interface (longest prefix first); others by "eth0".
    pub fn with_route(mut self, net: IpNet, interface: &str) -> Self {
        self.routes.push((net, interface.to_owned()));
        self.routes
            .sort_by_key(|(net, _)| std::cmp::Reverse(net.prefix_len()));
        self
    }

    /// Puts an interface into a group; those that are not named are in group 0.
    pub fn with_group(mut self, interface: &str, group: u32) -> Self {
        self.groups.insert(interface.to_owned(), group);
        self
    }

    /// Goes on with other tables, keeping what the dynamic sets of the same names hold.
    pub fn set_tables(&mut self, tables: impl IntoIterator<Item = &'a Table>) {
        self.tables = tables.into_iter().collect();
        let exists = |table: &str, set: &str| {
            self.tables
                .iter()
                .any(|t| t.name == table && t.sets.contains_key(set))
        };
        self.dynamic.retain(|(table, set), _| exists(table, set));
    }

    /// Lets time pass.
    pub fn advance(&mut self, by: Duration) {
        self.now += by;
    }

    /// Follows one packet.
    pub fn trace(&mut self, packet: &Packet) -> Outcome {
        let mut state = State {
            packet: packet.clone(),
            output_interface: String::new(),
            mark: 0,
            translated: false,
            masqueraded: false,
        };
        let decision = self.walk(&mut state);
        Outcome {
            decision,
            destination: state.packet.destination,
            destination_port: state.packet.destination_port,
            translated: state.translated,
            masqueraded: state.masqueraded,
        }
    }

    fn walk(&mut self, state: &mut State) -> Decision {
        if state.packet.origin == Origin::Local {
            self.route(state);
            if let Some(end) = self.hook(HookPoint::Output, state) {
                return end;
            }
            self.route(state);
            let local = self.is_local(state.packet.destination);
            if let Some(end) = self.hook(HookPoint::Postrouting, state) {
                return end;
            }
            return if local {
                Decision::Delivered
            } else {
                Decision::Forwarded
            };
        }
        if let Some(end) = self.hook(HookPoint::Prerouting, state) {
            return end;
        }
        if self.is_local(state.packet.destination) {
            return self
                .hook(HookPoint::Input, state)
                .unwrap_or(Decision::Delivered);
        }
        self.route(state);
        self.hook(HookPoint::Forward, state)
            .or_else(|| self.hook(HookPoint::Postrouting, state))
            .unwrap_or(Decision::Forwarded)
    }

    fn route(&self, state: &mut State) {
        state.output_interface = self.interface_to(state.packet.destination).to_owned();
    }

    fn interface_to(&self, address: IpAddr) -> &str {
        if self.is_local(address) {
            return "lo";
        }
        let route = self.routes.iter().find(|(net, _)| net.contains(&address));
        route.map_or("eth0", |(_, name)| name)
    }

    fn is_local(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.local.contains(&address)
    }

    /// `Some`: the packet ends here.
    fn hook(&mut self, point: HookPoint, state: &mut State) -> Option<Decision> {
        let mut chains = Vec::new();
        for table in self
            .tables
            .iter()
            .copied()
            .filter(|t| t.family == Family::of(&state.packet.destination))
        {
            for (name, chain) in &table.chains {
                if let Some(hook) = chain.hook.filter(|hook| hook.point == point) {
                    chains.push((hook.priority, hook.kind, table, name));
                }
            }
        }
        chains.sort_by_key(|(priority, ..)| *priority);
        let mut bound = false;
        for (_, kind, table, name) in chains {
            if kind == HookKind::Nat && bound {
                continue;
            }
            match self.chain(table, name, state, 0) {
                Step::Drop => return Some(Decision::Dropped),
                Step::Reject => return Some(Decision::Rejected),
                Step::Bound => bound = true,
                Step::Accept | Step::Continue | Step::Return => {}
            }
        }
        None
    }

    fn chain(&mut self, table: &'a Table, name: &str, state: &mut State, depth: usize) -> Step {
        assert!(depth < 16, "the kernel refuses jumps this deep: {name}");
        let chain = table
            .chains
            .get(name)
            .unwrap_or_else(|| panic!("no chain {name}"));
        for rule in &chain.rules {
            match self.rule(table, rule.statements(), state, depth) {
                Step::Continue => {}
                Step::Return => return Step::Continue,
                end => return end,
            }
        }
        Step::Continue
    }

    fn verdict(
        &mut self,
        table: &'a Table,
        verdict: &Verdict,
        state: &mut State,
        depth: usize,
    ) -> Step {
        match verdict {
            Verdict::Accept => Step::Accept,
            Verdict::Drop => Step::Drop,
            Verdict::Return => Step::Return,
            Verdict::Jump(chain) => self.chain(table, chain, state, depth + 1),
            // What follows a goto is not asked: back to the caller of this chain.
            Verdict::Goto(chain) => match self.chain(table, chain, state, depth + 1) {
                Step::Continue => Step::Return,
                end => end,
            },
        }
    }

    fn rule(
        &mut self,
        table: &'a Table,
        statements: &'a [Statement],
        state: &mut State,
        depth: usize,
    ) -> Step {
        for statement in statements {
            let step = match statement {
                Statement::VerdictMap { fields, map } => {
                    let key = self.key(fields, state);
                    match set(table, map).lookup(&key) {
                        Some(Data::Verdict(verdict)) => self.verdict(table, verdict, state, depth),
                        _ => Step::Continue,
                    }
                }
                Statement::Verdicts { fields, verdicts } => {
                    let key = self.key(fields, state);
                    match verdicts.iter().find(|(held, _)| *held == key) {
                        Some((_, verdict)) => self.verdict(table, verdict, state, depth),
                        None => Step::Continue,
                    }
                }
                Statement::Verdict(verdict) => self.verdict(table, verdict, state, depth),
                Statement::Reject => Step::Reject,
                Statement::DnatMap { fields, map } => {
                    let key = self.key(fields, state);
                    let Some(Data::Values(to)) = set(table, map).lookup(&key) else {
                        return Step::Continue;
                    };
                    let [Value::Address(address), Value::Port(port)] = to.as_slice() else {
                        panic!("@{map}: {to:?} is no address and port");
                    };
                    translate(state, *address, *port);
                    Step::Bound
                }
                Statement::Dnat { address, port } => {
                    translate(state, *address, *port);
                    Step::Bound
                }
                Statement::Masquerade => {
                    state.masqueraded = true;
                    Step::Bound
                }
                _ if self.holds(table, statement, state) => Step::Continue,
                // Nothing behind it is asked.
                _ => return Step::Continue,
            };
            if !matches!(step, Step::Continue) {
                return step;
            }
        }
        Step::Continue
    }

    /// Whether the rest of a rule is asked, after a statement that ends nothing.
    fn holds(&mut self, table: &Table, statement: &Statement, state: &mut State) -> bool {
        match statement {
            Statement::Match {
                fields,
                operator,
                keys,
            } => {
                let key = self.key(fields, state);
                let holds = |held: &Key| held.iter().zip(&key).all(|(h, v)| h.holds(v));
                keys.iter().any(holds) == (*operator == Operator::Is)
            }
            Statement::InSet {
                fields,
                operator,
                set,
            } => {
                let key = self.key(fields, state);
                self.contains(table, set, &key) == (*operator == Operator::Is)
            }
            Statement::CtStateNew => true,
            Statement::CtStatusDnat => state.translated,
            Statement::SourceIsLocal => self.is_local(state.packet.source),
            Statement::DestinationIsLocal => self.is_local(state.packet.destination),
            Statement::NoReversePath => match &state.packet.origin {
                Origin::Local => false,
                Origin::Interface(name) => self.interface_to(state.packet.source) != name,
            },
            Statement::InputGroup(group) => match &state.packet.origin {
                Origin::Local => false,
                Origin::Interface(name) => {
                    self.groups.get(name).copied().unwrap_or_default() == *group
                }
            },
            Statement::MarkHas(bits) => state.mark & bits != 0,
            Statement::MarkOr(bits) => {
                state.mark |= bits;
                true
            }
            Statement::MarkXor(bits) => {
                state.mark ^= bits;
                true
            }
            Statement::Update { set: name, fields } => {
                let key = self.key(fields, state);
                let timeout = set(table, name).shape.timeout.unwrap_or(Duration::MAX);
                let until = self.now.saturating_add(timeout);
                self.dynamic
                    .entry((table.name.clone(), name.to_string()))
                    .or_default()
                    .insert(key, until);
                true
            }
            Statement::VerdictMap { .. }
            | Statement::Verdicts { .. }
            | Statement::Verdict(_)
            | Statement::Reject
            | Statement::DnatMap { .. }
            | Statement::Dnat { .. }
            | Statement::Masquerade => unreachable!("`rule` carries these out"),
        }
    }

    fn contains(&self, table: &Table, name: &str, key: &Key) -> bool {
        let now = self.now;
        let learnt = self.dynamic.get(&(table.name.clone(), name.to_owned()));
        learnt
            .and_then(|set| set.get(key))
            .is_some_and(|until| *until > now)
            || set(table, name).lookup(key).is_some()
    }

    fn key(&mut self, fields: &[Field], state: &State) -> Key {
        let packet = &state.packet;
        fields
            .iter()
            .map(|field| match field {
                Field::SourceAddress => Value::Address(packet.source),
                Field::DestinationAddress => Value::Address(packet.destination),
                Field::Protocol => Value::Protocol(packet.protocol),
                Field::SourcePort => Value::Port(packet.source_port),
                Field::DestinationPort => Value::Port(packet.destination_port),
                Field::InputInterface => Value::Name(match &packet.origin {
                    Origin::Local => "".into(),
                    Origin::Interface(name) => name.as_str().into(),
                }),
                Field::OutputInterface => Value::Name(state.output_interface.as_str().into()),
                Field::Random(modulus) => Value::Number((self.random)(*modulus) % modulus),
            })
            .collect()
    }
}

fn set<'t>(table: &'t Table, name: &str) -> &'t crate::Set {
    table
        .sets
        .get(name)
        .unwrap_or_else(|| panic!("no set {name}"))
}

fn translate(state: &mut State, address: IpAddr, port: u16) {
    state.packet.destination = address;
    state.packet.destination_port = port;
    state.translated = true;
}
