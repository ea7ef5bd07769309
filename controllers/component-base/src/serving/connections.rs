//! How many connections there may be, and which of them goes when there are too many.
//!
//! A new connection is always taken; an old one makes room for it. Connections stand in three pools that never crowd each other out:
//!
//! ```text
//! Stranger (nothing proven) -> Certified (holds a good client certificate) -> Trusted (a request of it was authorized)
//! ```
//!
//! So nobody who may ask is kept out by those who may not, even from the same address: the API server's certificate lifts it out of the
//! strangers at once, and its first answer out of the reach of other certificates. The decision is [`Table`], pure; [`Connections`] and
//! [`Slot`] carry it out.
//!
//! DIFFERS: upstream has no limit but its file descriptors.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex};

use tokio_util::sync::CancellationToken;

/// What a connection has proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Stranger = 0,
    Certified = 1,
    Trusted = 2,
}

/// How many connections a pool holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PoolLimit {
    /// At once.
    pub(super) total: usize,
    /// At once from one address (from one /64 of IPv6).
    pub(super) per_peer: usize,
}

/// The limits of the pools, by [`Standing`].
pub(super) type Limits = [PoolLimit; 3];

/// A connection costs some 30 KiB: with all pools full, a server stays below 200 MiB.
pub(super) const LIMITS: Limits = [
    PoolLimit {
        total: 1024,
        per_peer: 512,
    },
    PoolLimit {
        total: 512,
        per_peer: 256,
    },
    // Who is authorized has one address, often: the API server.
    PoolLimit {
        total: 4096,
        per_peer: 4096,
    },
];

pub(super) type Id = u64;

#[derive(Debug)]
struct Entry {
    peer: IpAddr,
    /// Requests not yet answered, or an upgraded stream.
    busy: usize,
    /// When it was taken, or last became idle, in the order of events.
    since: u64,
}

/// All connections of a server. Pure.
#[derive(Debug)]
pub(super) struct Table {
    limits: Limits,
    pools: [HashMap<Id, Entry>; 3],
    events: u64,
}

impl Table {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            pools: Default::default(),
            events: 0,
        }
    }

    fn tick(&mut self) -> u64 {
        self.events += 1;
        self.events
    }

    /// A new connection, and the one that must go for it.
    pub(super) fn admit(&mut self, address: IpAddr) -> (Id, Option<Id>) {
        let id = self.tick();
        let peer = group(address);
        let victim = self.make_room(Standing::Stranger, peer, true);
        let entry = Entry {
            peer,
            busy: 0,
            since: id,
        };
        self.pools[Standing::Stranger as usize].insert(id, entry);
        (id, victim)
    }

    /// Puts a connection into another pool; returns the one that must go for it. Where a pool is full of connections that must stay,
    /// the connection stays where it is.
    pub(super) fn set_standing(&mut self, id: Id, standing: Standing) -> Option<Id> {
        let (from, entry) = self.find(id)?;
        let peer = entry.peer;
        if from == standing as usize {
            return None;
        }
        // A trusted one with requests in hand never goes.
        let busy_too = standing != Standing::Trusted;
        let victim = self.make_room(standing, peer, busy_too);
        if victim.is_none()
            && self.pools[standing as usize].len() >= self.limits[standing as usize].total
        {
            return None;
        }
        if let Some(entry) = self.pools[from].remove(&id) {
            self.pools[standing as usize].insert(id, entry);
        }
        victim
    }

    /// A stream that lives on after its request: trusted from now on, and never idle.
    pub(super) fn pin(&mut self, id: Id) {
        if let Some((from, _)) = self.find(id)
            && let Some(mut entry) = self.pools[from].remove(&id)
        {
            entry.busy += 1;
            self.pools[Standing::Trusted as usize].insert(id, entry);
        }
    }

    /// A request came.
    pub(super) fn begin(&mut self, id: Id) {
        if let Some((pool, _)) = self.find(id)
            && let Some(entry) = self.pools[pool].get_mut(&id)
        {
            entry.busy += 1;
        }
    }

    /// A request was answered.
    pub(super) fn end(&mut self, id: Id) {
        let now = self.tick();
        if let Some((pool, _)) = self.find(id)
            && let Some(entry) = self.pools[pool].get_mut(&id)
        {
            entry.busy = entry.busy.saturating_sub(1);
            entry.since = now;
        }
    }

    /// The connection ended.
    pub(super) fn remove(&mut self, id: Id) {
        for pool in &mut self.pools {
            pool.remove(&id);
        }
    }

    /// The stranger that goes first, when there is no room for anybody (no file descriptors).
    pub(super) fn evict(&mut self) -> Option<Id> {
        let victim = self.victim(Standing::Stranger as usize, None, true)?;
        self.remove(victim);
        Some(victim)
    }

    fn find(&self, id: Id) -> Option<(usize, &Entry)> {
        self.pools
            .iter()
            .enumerate()
            .find_map(|(at, pool)| pool.get(&id).map(|entry| (at, entry)))
    }

    fn make_room(&mut self, standing: Standing, peer: IpAddr, busy_too: bool) -> Option<Id> {
        let at = standing as usize;
        let (pool, limit) = (&self.pools[at], self.limits[at]);
        let of_peer = |peer: IpAddr| pool.values().filter(|e| e.peer == peer).count();
        let victim = if pool.len() >= limit.per_peer && of_peer(peer) >= limit.per_peer {
            self.victim(at, Some(peer), busy_too)
        } else if pool.len() >= limit.total {
            let mut counts: HashMap<IpAddr, usize> = HashMap::new();
            for entry in pool.values() {
                *counts.entry(entry.peer).or_default() += 1;
            }
            // Of those with most connections any is as good as another; the address decides, for the sake of tests.
            let most = counts.into_iter().max_by_key(|(peer, n)| (*n, *peer));
            self.victim(at, most.map(|(peer, _)| peer), busy_too)
                .or_else(|| self.victim(at, None, busy_too))
        } else {
            None
        };
        if let Some(victim) = victim {
            self.remove(victim);
        }
        victim
    }

    /// The one that was idle longest; of those with requests in hand (where these may go) the oldest.
    fn victim(&self, pool: usize, peer: Option<IpAddr>, busy_too: bool) -> Option<Id> {
        self.pools[pool]
            .iter()
            .filter(|(_, e)| peer.is_none_or(|peer| e.peer == peer))
            .filter(|(_, e)| busy_too || e.busy == 0)
            .min_by_key(|(_, e)| (e.busy > 0, e.since))
            .map(|(id, _)| *id)
    }
}

/// Whose address it is: whoever has one address of IPv6 mostly has the /64.
pub(super) fn group(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 => v4,
    }
}

struct State {
    table: Table,
    tokens: HashMap<Id, CancellationToken>,
}

impl State {
    fn close(&mut self, victim: Option<Id>) {
        if let Some(token) = victim.and_then(|id| self.tokens.remove(&id)) {
            token.cancel();
        }
    }
}

/// The connections of a server; cheap to clone.
#[derive(Clone)]
pub(super) struct Connections {
    state: Arc<Mutex<State>>,
}

impl Connections {
    pub(super) fn new(limits: Limits) -> Self {
        let state = State {
            table: Table::new(limits),
            tokens: HashMap::new(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().expect("no panic while the lock is held"))
    }

    /// Takes a new connection, and closes another for it if need be.
    pub(super) fn admit(&self, address: IpAddr) -> Arc<Slot> {
        let closed = CancellationToken::new();
        let id = self.with(|state| {
            let (id, victim) = state.table.admit(address);
            state.tokens.insert(id, closed.clone());
            state.close(victim);
            id
        });
        Arc::new(Slot {
            id,
            closed,
            connections: self.clone(),
        })
    }

    /// Closes a stranger's connection; whether there was one.
    pub(super) fn evict(&self) -> bool {
        self.with(|state| {
            let victim = state.table.evict();
            state.close(victim);
            victim.is_some()
        })
    }
}

/// A connection's place; given back when dropped.
pub(super) struct Slot {
    id: Id,
    closed: CancellationToken,
    connections: Connections,
}

impl Slot {
    /// Resolves when the connection must end to make room.
    pub(super) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    pub(super) fn set_standing(&self, standing: Standing) {
        self.connections.with(|state| {
            let victim = state.table.set_standing(self.id, standing);
            state.close(victim);
        });
    }

    pub(super) fn pin(&self) {
        self.connections.with(|state| state.table.pin(self.id));
    }

    pub(super) fn begin(&self) {
        self.connections.with(|state| state.table.begin(self.id));
    }

    pub(super) fn end(&self) {
        self.connections.with(|state| state.table.end(self.id));
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.connections.with(|state| {
            state.table.remove(self.id);
            state.tokens.remove(&self.id);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Limits = [
        PoolLimit {
            total: 4,
            per_peer: 3,
        },
        PoolLimit {
            total: 2,
            per_peer: 2,
        },
        PoolLimit {
            total: 2,
            per_peer: 2,
        },
    ];

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn a_new_one_is_taken_and_the_longest_idle_goes() {
        let mut table = Table::new(SMALL);
        let ids: Vec<Id> = (0..3).map(|_| table.admit(ip(1)).0).collect();
        // The first is busy, the second was busy lately: the third goes.
        table.begin(ids[0]);
        table.begin(ids[1]);
        table.end(ids[1]);
        let (_, victim) = table.admit(ip(1));
        assert_eq!(victim, Some(ids[2]));
        // Another address has its own share, until all are taken; then the one with most gives.
        let (other, victim) = table.admit(ip(2));
        assert_eq!(victim, None);
        let (_, victim) = table.admit(ip(3));
        assert_eq!(victim, Some(ids[1]));
        table.remove(other);
        assert_eq!(table.admit(ip(2)).1, None);
    }

    #[test]
    fn when_all_are_busy_the_oldest_goes() {
        let mut table = Table::new(SMALL);
        let ids: Vec<Id> = (0..3).map(|_| table.admit(ip(1)).0).collect();
        ids.iter().for_each(|id| table.begin(*id));
        assert_eq!(table.admit(ip(1)).1, Some(ids[0]));
    }

    #[test]
    fn pools_do_not_crowd_each_other_out() {
        let mut table = Table::new(SMALL);
        let (known, _) = table.admit(ip(1));
        assert_eq!(table.set_standing(known, Standing::Certified), None);
        let (trusted, _) = table.admit(ip(1));
        assert_eq!(table.set_standing(trusted, Standing::Trusted), None);
        for _ in 0..100 {
            let (_, victim) = table.admit(ip(1));
            assert!(victim != Some(known) && victim != Some(trusted));
        }
        // An address that comes with many certificates crowds out itself alone.
        for _ in 0..100 {
            let (id, _) = table.admit(ip(2));
            assert_ne!(table.set_standing(id, Standing::Certified), Some(trusted));
        }
        assert_eq!(table.find(known).map(|(pool, _)| pool), Some(1));
        assert_eq!(table.find(trusted).map(|(pool, _)| pool), Some(2));
        assert_eq!(table.pools.each_ref().map(HashMap::len), [3, 2, 1]);
    }

    #[test]
    fn trusted_ones_with_requests_in_hand_stay() {
        let mut table = Table::new(SMALL);
        let ids: Vec<Id> = (0..2)
            .map(|n| {
                let (id, _) = table.admit(ip(n));
                assert_eq!(table.set_standing(id, Standing::Trusted), None);
                id
            })
            .collect();
        table.begin(ids[0]);
        let (third, _) = table.admit(ip(9));
        assert_eq!(table.set_standing(third, Standing::Trusted), Some(ids[1]));
        table.begin(third);
        // Full of busy ones: the next stays a stranger, unless it is a stream that was let through.
        let (fourth, _) = table.admit(ip(9));
        assert_eq!(table.set_standing(fourth, Standing::Trusted), None);
        assert_eq!(table.find(fourth).map(|(pool, _)| pool), Some(0));
        table.pin(fourth);
        assert_eq!(
            table.find(fourth).map(|(pool, e)| (pool, e.busy)),
            Some((2, 1))
        );
        // And back.
        table.end(third);
        assert_eq!(table.set_standing(third, Standing::Stranger), None);
        assert_eq!(table.find(third).map(|(pool, _)| pool), Some(0));
    }

    #[test]
    fn addresses_are_grouped() {
        let v6 = |text: &str| group(text.parse().unwrap());
        assert_eq!(v6("2001:db8::1"), v6("2001:db8::ffff:2"));
        assert_ne!(v6("2001:db8::1"), v6("2001:db8:0:1::1"));
        assert_eq!(v6("::ffff:10.0.0.1"), ip(1));
    }
}
