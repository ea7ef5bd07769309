//! Who announces which address. Pure: leases and time in, what to hold and what to write out.
//!
//! An address has a Lease that names its holder and is written only when the holder changes. A node that holds addresses has one
//! Lease that it renews, whatever their number. A holder whose Lease was not seen to change for its duration is gone, and any node
//! that may announce the address takes it: by one write, on the version that was read, so that one succeeds. Clocks of nodes are
//! never compared.
//!
//! ```text
//!              may announce, after its own pause           not wanted, links gone
//!  vacant, or ───────────────────────────────► ours ─────────────────────────────► given back (or deleted)
//!  holder gone                                  │ not renewed for RENEW_DEADLINE
//!                                               ▼
//!                                          unsure: go on answering, ask on the link who has it, claim nothing anew
//! ```
//!
//! A node that cannot reach the API server goes on answering for what it holds until it hears another claim it: an API server that
//! is away takes no address down. Upstream has no such thing; the rules of a Lease are client-go's (`leaderelection`).

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;

/// How long a holder's silence lasts before others take its addresses. A Lease counts whole seconds.
pub const LEASE_DURATION: Duration = Duration::from_secs(2);
/// Between two renewals.
pub const RENEW_INTERVAL: Duration = Duration::from_millis(500);
/// How long after sending a renewal that succeeded a holder is sure that nobody else was free to take its addresses.
pub const RENEW_DEADLINE: Duration = Duration::from_millis(1500);
/// Nodes take a vacant address after pauses below this one, each its own: one is the first, and another one for each address.
pub const MAX_PAUSE: Duration = Duration::from_millis(300);
/// What a Lease may say of its duration: one that says more would hold an address for long after its node is gone.
const MAX_DURATION: Duration = Duration::from_secs(10);

/// What an address's Lease says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressLease {
    /// Who announces it; `None` when it was given back.
    pub holder: Option<String>,
}

/// What a node's Lease says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeLease {
    /// Only compared with what was there before.
    pub renewed: Option<Timestamp>,
    /// How long it counts.
    pub duration: Duration,
}

/// All leases as they are known.
#[derive(Clone, Debug, Default)]
pub struct Leases {
    /// By address.
    pub addresses: BTreeMap<IpAddr, AddressLease>,
    /// By node.
    pub nodes: BTreeMap<String, NodeLease>,
}

/// What is to be written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Become the holder. With `from`, that node is to be looked up once more first: what is known of it may be old.
    Take {
        /// The address.
        address: IpAddr,
        /// Whose it was, and is thought to be gone.
        from: Option<String>,
    },
    /// Have no holder.
    GiveBack(IpAddr),
    /// It is no Service's any more.
    Delete(IpAddr),
}

/// What follows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// What this node is the holder of, and may announce.
    pub hold: BTreeSet<IpAddr>,
    /// What to write.
    pub actions: Vec<Action>,
    /// When to decide again, if nothing happens before.
    pub wake: Option<Duration>,
}

/// What is remembered between decisions.
#[derive(Clone, Debug)]
pub struct Election {
    node: String,
    /// When each node's Lease was first seen as it is.
    seen: BTreeMap<String, (Option<NodeLease>, Duration)>,
    /// Since when an address could be taken.
    vacant: BTreeMap<IpAddr, Duration>,
}

/// A node's own pause for an address.
fn pause(node: &str, address: IpAddr) -> Duration {
    let mut hasher = DefaultHasher::new();
    (node, address).hash(&mut hasher);
    let part = u32::try_from(hasher.finish() & 0xffff).unwrap_or(0);
    MAX_PAUSE * part / 0x1_0000
}

impl Election {
    /// For a node.
    pub fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            seen: BTreeMap::new(),
            vacant: BTreeMap::new(),
        }
    }

    /// When a holder is gone, unless its Lease changes before.
    fn expiry(&mut self, holder: &str, leases: &Leases, now: Duration) -> Duration {
        let lease = leases.nodes.get(holder);
        let seen = self.seen.entry(holder.to_owned());
        let seen = seen.or_insert_with(|| (lease.cloned(), now));
        if seen.0.as_ref() != lease {
            *seen = (lease.cloned(), now);
        }
        let duration = lease.map_or(LEASE_DURATION, |lease| lease.duration.min(MAX_DURATION));
        seen.1 + duration
    }

    /// What to do now. `may` has every wanted address, and whether this node may announce it.
    pub fn decide(
        &mut self,
        may: &BTreeMap<IpAddr, bool>,
        leases: &Leases,
        now: Duration,
    ) -> Decision {
        let mut decision = Decision::default();
        let holders: BTreeSet<&str> = leases
            .addresses
            .values()
            .filter_map(|l| l.holder.as_deref())
            .collect();
        self.seen.retain(|node, _| holders.contains(node.as_str()));
        let known: BTreeSet<IpAddr> = may.keys().chain(leases.addresses.keys()).copied().collect();
        self.vacant.retain(|address, _| known.contains(address));
        for address in known {
            self.decide_one(
                address,
                may.get(&address).copied(),
                leases,
                now,
                &mut decision,
            );
        }
        decision
    }

    fn decide_one(
        &mut self,
        address: IpAddr,
        may: Option<bool>,
        leases: &Leases,
        now: Duration,
        decision: &mut Decision,
    ) {
        let wake = |decision: &mut Decision, at: Duration| {
            decision.wake = Some(decision.wake.map_or(at, |wake| wake.min(at)));
        };
        let lease = leases.addresses.get(&address);
        let holder = lease.and_then(|lease| lease.holder.clone());
        if holder.as_ref() == Some(&self.node) {
            self.vacant.remove(&address);
            match may {
                Some(true) => drop(decision.hold.insert(address)),
                Some(false) => decision.actions.push(Action::GiveBack(address)),
                None => decision.actions.push(Action::Delete(address)),
            }
            return;
        }
        if let Some(other) = &holder {
            let expiry = self.expiry(other, leases, now);
            if now < expiry {
                self.vacant.remove(&address);
                wake(decision, expiry);
                return;
            }
        }
        let action = match may {
            Some(true) => Action::Take {
                address,
                from: holder,
            },
            Some(false) => return,
            // Whoever is first cleans up.
            None => Action::Delete(address),
        };
        let since = *self.vacant.entry(address).or_insert(now);
        let at = since + pause(&self.node, address);
        match at <= now {
            true => decision.actions.push(action),
            false => wake(decision, at),
        }
    }
}

#[cfg(test)]
mod tests;
