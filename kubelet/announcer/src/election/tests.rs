//! Elections of several nodes over one set of leases, with time that the tests move.

use super::*;

const A: &str = "192.0.2.1";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn held(by: Option<&str>) -> AddressLease {
    AddressLease {
        holder: by.map(str::to_owned),
    }
}

fn renewed(at: i64) -> NodeLease {
    NodeLease {
        renewed: Some(Timestamp::from_second(at).unwrap()),
        duration: LEASE_DURATION,
    }
}

/// Nodes that see the same leases; writes succeed at once.
struct Nodes {
    leases: Leases,
    elections: BTreeMap<String, Election>,
    /// Cut off: they neither see nor write.
    cut: BTreeSet<String>,
    may: BTreeMap<String, BTreeMap<IpAddr, bool>>,
    now: Duration,
    renewals: i64,
    writes: usize,
}

impl Nodes {
    fn new(names: &[&str], addresses: &[&str]) -> Self {
        let may: BTreeMap<_, _> = addresses.iter().map(|a| (ip(a), true)).collect();
        let name = |n: &&str| (*n).to_owned();
        Self {
            leases: Leases::default(),
            elections: names.iter().map(|n| (name(n), Election::new(n))).collect(),
            cut: BTreeSet::new(),
            may: names.iter().map(|n| (name(n), may.clone())).collect(),
            now: Duration::ZERO,
            renewals: 0,
            writes: 0,
        }
    }

    /// Time goes on in steps of 10 ms; holders renew every half second.
    fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            self.now += ms(10);
            let names: Vec<String> = self.elections.keys().cloned().collect();
            for name in &names {
                if self.cut.contains(name) {
                    continue;
                }
                let election = self.elections.get_mut(name).unwrap();
                let decision = election.decide(&self.may[name], &self.leases, self.now);
                if !decision.hold.is_empty() && self.now.as_millis() % 500 == 0 {
                    self.renew(name);
                }
                for action in decision.actions {
                    self.write(name, action);
                }
            }
        }
    }

    fn renew(&mut self, name: &str) {
        self.renewals += 1;
        self.leases
            .nodes
            .insert(name.to_owned(), renewed(self.renewals));
    }

    fn write(&mut self, name: &str, action: Action) {
        self.writes += 1;
        match action {
            Action::Take { address, .. } => {
                self.renew(name);
                self.leases.addresses.insert(address, held(Some(name)));
            }
            Action::GiveBack(address) => {
                self.leases.addresses.insert(address, held(None));
            }
            Action::Delete(address) => {
                self.leases.addresses.remove(&address);
            }
        }
    }

    fn holder(&self, address: &str) -> Option<String> {
        self.leases.addresses.get(&ip(address))?.holder.clone()
    }
}

#[test]
fn an_address_is_taken_once_and_stays() {
    let mut nodes = Nodes::new(&["a", "b", "c"], &[A]);
    nodes.run(MAX_PAUSE + ms(50));
    let first = nodes.holder(A).unwrap();
    assert_eq!(nodes.writes, 1);
    nodes.run(Duration::from_secs(60));
    assert_eq!((nodes.holder(A).unwrap(), nodes.writes), (first, 1));
}

#[test]
fn the_addresses_of_a_cut_node_are_taken_within_three_seconds_and_do_not_go_back() {
    let addresses: Vec<String> = (1..=40).map(|n| format!("192.0.2.{n}")).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let mut nodes = Nodes::new(&["a", "b", "c"], &addresses);
    nodes.run(MAX_PAUSE + ms(50));
    let by_node = |nodes: &Nodes| {
        let mut count: BTreeMap<String, usize> = BTreeMap::new();
        for address in &addresses {
            *count.entry(nodes.holder(address).unwrap()).or_default() += 1;
        }
        count
    };
    let before = by_node(&nodes);
    assert!(
        before.values().all(|count| *count >= 5),
        "spread over all: {before:?}"
    );

    nodes.run(Duration::from_secs(5));
    nodes.cut.insert("a".into());
    // Nothing of the others' moves.
    nodes.run(LEASE_DURATION - ms(600));
    assert_eq!(by_node(&nodes), before);
    nodes.run(ms(650) + MAX_PAUSE);
    let after = by_node(&nodes);
    assert!(!after.contains_key("a"), "{after:?}");
    let writes = nodes.writes;
    nodes.cut.clear();
    nodes.run(Duration::from_secs(20));
    assert_eq!((by_node(&nodes), nodes.writes), (after, writes));
}

#[test]
fn a_cut_node_and_the_others_are_never_both_sure() {
    // What a holder is sure of ends before anybody may take it.
    assert!(RENEW_DEADLINE < LEASE_DURATION);
    assert!(RENEW_INTERVAL * 2 < RENEW_DEADLINE);
    // Two lost renewals and the time of a write stay below the three seconds that are promised.
    assert!(LEASE_DURATION + MAX_PAUSE + ms(500) < Duration::from_secs(3));
}

#[test]
fn what_a_node_may_not_announce_it_gives_back() {
    let mut nodes = Nodes::new(&["a", "b"], &[A]);
    nodes.run(MAX_PAUSE + ms(50));
    let first = nodes.holder(A).unwrap();
    nodes.may.get_mut(&first).unwrap().insert(ip(A), false);
    nodes.run(MAX_PAUSE + ms(50));
    let second = nodes.holder(A).unwrap();
    assert_ne!(first, second);
    // Nobody may: nobody holds it, and nothing is written over and over.
    nodes.may.get_mut(&second).unwrap().insert(ip(A), false);
    nodes.run(Duration::from_secs(5));
    let writes = nodes.writes;
    assert_eq!(nodes.holder(A), None);
    nodes.run(Duration::from_secs(5));
    assert_eq!(nodes.writes, writes);
}

#[test]
fn the_lease_of_an_address_that_nobody_wants_goes() {
    let mut nodes = Nodes::new(&["a", "b"], &[A]);
    nodes.run(MAX_PAUSE + ms(50));
    for may in nodes.may.values_mut() {
        may.clear();
    }
    nodes.run(ms(20));
    assert!(nodes.leases.addresses.is_empty());
    // That of a node that is gone, too.
    nodes.leases.addresses.insert(ip(A), held(Some("gone")));
    nodes.run(LEASE_DURATION - ms(10));
    assert!(!nodes.leases.addresses.is_empty());
    nodes.run(MAX_PAUSE + ms(50));
    assert!(nodes.leases.addresses.is_empty());
}

#[test]
fn a_node_that_starts_waits_for_a_sign_of_the_holder() {
    let mut election = Election::new("b");
    let mut leases = Leases::default();
    leases.addresses.insert(ip(A), held(Some("a")));
    leases.nodes.insert("a".into(), renewed(1));
    let may = BTreeMap::from([(ip(A), true)]);
    let begin = Duration::from_secs(1000);
    // However old the renewal says it is: clocks are not compared.
    let decision = election.decide(&may, &leases, begin);
    assert_eq!(
        (decision.actions.len(), decision.wake),
        (0, Some(begin + LEASE_DURATION))
    );
    leases.nodes.insert("a".into(), renewed(2));
    let decision = election.decide(&may, &leases, begin + ms(1900));
    assert_eq!(decision.wake, Some(begin + ms(1900) + LEASE_DURATION));
    let end = begin + ms(1900) + LEASE_DURATION;
    assert!(
        election
            .decide(&may, &leases, end - ms(1))
            .actions
            .is_empty()
    );
    let pause = election.decide(&may, &leases, end).wake.unwrap_or(end);
    assert!(pause - end < MAX_PAUSE);
    let take = Action::Take {
        address: ip(A),
        from: Some("a".into()),
    };
    assert_eq!(election.decide(&may, &leases, pause).actions, [take]);
    // A sign in the last moment.
    leases.nodes.insert("a".into(), renewed(3));
    assert!(election.decide(&may, &leases, pause).actions.is_empty());
}

#[test]
fn a_lease_that_says_too_much_counts_for_a_while() {
    let mut election = Election::new("b");
    let mut leases = Leases::default();
    leases.addresses.insert(ip(A), held(Some("a")));
    let long = NodeLease {
        duration: Duration::from_secs(1_000_000),
        ..renewed(1)
    };
    leases.nodes.insert("a".into(), long);
    let may = BTreeMap::from([(ip(A), true)]);
    let wake = election.decide(&may, &leases, Duration::ZERO).wake;
    assert_eq!(wake, Some(MAX_DURATION));
}
