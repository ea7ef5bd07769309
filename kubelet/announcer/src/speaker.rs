//! What is said on the links, and what follows from what is heard there. Pure: frames and time in, frames out.
//!
//! A holder that is sure (its Lease was renewed a moment ago) announces what it takes over, at once and a few times more, repeats
//! it now and then, answers who asks, and contradicts others' claims. One that is not sure only answers, asks on the link who has the
//! address, and gives way to whoever says so.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use crate::link::Link;
use crate::packet::{Heard, Mac, announcement, answer, probe};

/// After a takeover it is announced at these times: a host or switch may miss one, or not believe a second one that comes within
/// the same second (Linux' `locktime`).
const ANNOUNCE_AT: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_millis(200),
    Duration::from_millis(600),
    Duration::from_millis(1500),
    Duration::from_secs(3),
    Duration::from_secs(6),
];
/// Afterwards so often: what was cut off from the link at the takeover learns of it.
const REPEAT: Duration = Duration::from_secs(30);
/// How often one who is not sure asks who has an address.
const PROBE: Duration = Duration::from_millis(500);
/// How often a claim is contradicted: two that are both sure must not fill the link.
const CONTRADICT: Duration = Duration::from_secs(1);

/// A frame and the link it goes out on.
pub type Outgoing = (u32, Vec<u8>);

#[derive(Clone, Debug)]
struct Held {
    links: BTreeSet<u32>,
    since: Duration,
    /// Announcements since then.
    announced: usize,
    next: Duration,
    contradicted: Option<Duration>,
}

/// What this node announces.
#[derive(Clone, Debug, Default)]
pub struct Speaker {
    held: BTreeMap<IpAddr, Held>,
    links: BTreeMap<u32, Link>,
    sure: bool,
}

impl Speaker {
    /// This node's links.
    pub fn set_links(&mut self, links: &[Link], now: Duration) {
        let links: BTreeMap<u32, Link> = links.iter().map(|l| (l.index, l.clone())).collect();
        for held in self.held.values_mut() {
            // A link that is back, or has another address, is told anew.
            let changed = held.links.iter().any(|i| {
                let key = |links: &BTreeMap<u32, Link>| links.get(i).map(|l| (l.mac, l.running));
                key(&links) != key(&self.links)
            });
            if changed {
                held.begin(now);
            }
        }
        self.links = links;
    }

    /// What this node is the holder of, on which links, and whether it is sure of it. Without being sure nothing is begun, only
    /// gone on with.
    pub fn set(&mut self, hold: BTreeMap<IpAddr, BTreeSet<u32>>, sure: bool, now: Duration) {
        if sure != self.sure {
            self.sure = sure;
            for held in self.held.values_mut() {
                held.next = now;
            }
        }
        self.held.retain(|address, _| hold.contains_key(address));
        for (address, links) in hold {
            match self.held.get_mut(&address) {
                Some(held) if held.links == links => {}
                Some(held) => {
                    held.links = links;
                    held.begin(now);
                }
                None if sure => {
                    let mut held = Held {
                        links,
                        since: now,
                        announced: 0,
                        next: now,
                        contradicted: None,
                    };
                    held.begin(now);
                    self.held.insert(address, held);
                }
                None => {}
            }
        }
    }

    /// What is announced now.
    pub fn announced(&self) -> impl Iterator<Item = (IpAddr, &BTreeSet<u32>)> {
        self.held
            .iter()
            .map(|(address, held)| (*address, &held.links))
    }

    /// When something is to be said unasked.
    pub fn wake(&self) -> Option<Duration> {
        self.held.values().map(|held| held.next).min()
    }

    /// What is to be said unasked, by now.
    pub fn due(&mut self, now: Duration) -> Vec<Outgoing> {
        let mut frames = Vec::new();
        for (address, held) in &mut self.held {
            if now < held.next {
                continue;
            }
            for link in held.links.iter().filter_map(|i| self.links.get(i)) {
                let source = link.link_local();
                let said = match self.sure {
                    true => announcement(*address, link.mac, source),
                    false => probe(*address, link.mac, source).into_iter().collect(),
                };
                frames.extend(said.into_iter().map(|frame| (link.index, frame)));
            }
            held.next = match self.sure {
                false => now + PROBE,
                true => {
                    held.announced += 1;
                    match ANNOUNCE_AT.get(held.announced) {
                        Some(at) => (held.since + *at).max(now),
                        None => now + REPEAT,
                    }
                }
            };
        }
        frames
    }

    /// What follows from what was heard on a link.
    pub fn hear(&mut self, link: u32, heard: Heard, now: Duration) -> Option<Outgoing> {
        match heard {
            Heard::Asks { target, from, mac } => {
                // Whoever asks in an address's name is taken to have it by those who hear (RFC 5227, 2.4). It is no reason
                // to give way: a node that has the address on a link of no use to others (IPVS) asks so, too.
                if self.sure {
                    self.contradict(link, from, mac, now);
                }
                let on = self.links.get(&link)?;
                // Our own questions come back by bridges.
                if self.is_own(mac) || !self.held.get(&target)?.links.contains(&link) {
                    return None;
                }
                let frame = answer(target, on.mac, (from, mac), on.link_local())?;
                Some((link, frame))
            }
            Heard::Claims { address, mac } => {
                self.contradict(link, address, mac, now);
                None
            }
        }
    }

    /// Another says that an address of ours is its: whoever is sure says so again, the other gives way.
    fn contradict(&mut self, link: u32, address: IpAddr, mac: Mac, now: Duration) {
        if self.is_own(mac) {
            return;
        }
        let Some(held) = self.held.get_mut(&address) else {
            return;
        };
        if !held.links.contains(&link) {
            return;
        }
        if !self.sure {
            tracing::warn!(%address, %mac, "Another node announces the address, giving way");
            self.held.remove(&address);
            return;
        }
        if held.contradicted.is_none_or(|at| now >= at + CONTRADICT) {
            tracing::warn!(%address, %mac, "Another host claims an address of this node's");
            held.contradicted = Some(now);
            held.next = now;
        }
    }

    fn is_own(&self, mac: Mac) -> bool {
        self.links.values().any(|link| link.mac == mac)
    }

    /// The groups that questions for the announced addresses are sent to, and their links.
    pub fn groups(&self) -> BTreeSet<(u32, Ipv6Addr)> {
        let mut groups = BTreeSet::new();
        for (address, held) in &self.held {
            if let IpAddr::V6(v6) = address {
                let group = crate::packet::ndp::solicited_node(*v6);
                groups.extend(held.links.iter().map(|link| (*link, group)));
            }
        }
        groups
    }
}

impl Held {
    /// It is news again.
    fn begin(&mut self, now: Duration) {
        (self.since, self.announced, self.next) = (now, 0, now);
    }
}

#[cfg(test)]
mod tests;
