//! What must hold whatever somebody sends on a link: for the fuzz target in `fuzz/`, and for the cases it found.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::packet::{Heard, Mac, announcement, answer, parse, probe};

/// A frame is read, or is none; what is answered to it is read as the claim it is.
///
/// # Panics
/// When the promise is broken.
pub fn frames(data: &[u8]) {
    let ours = Mac([2, 0, 0, 0, 0, 1]);
    match parse(data) {
        Some(Heard::Asks { target, from, mac }) => {
            let frame = answer(target, ours, (from, mac), None).expect("families are the same");
            let claims = Heard::Claims {
                address: target,
                mac: ours,
            };
            // An address that no host has is answered to by nobody: it is in no pool.
            if let Some(heard) = parse(&frame) {
                assert_eq!(heard, claims);
            }
        }
        Some(Heard::Claims { mac, .. }) => assert!(mac.is_host()),
        None => {}
    }
}

/// Frames to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    let mac = Mac([2, 0, 0, 0, 0, 2]);
    let (v4, v6) = (Ipv4Addr::new(192, 0, 2, 7), Ipv6Addr::LOCALHOST);
    let mut seeds = Vec::new();
    for address in [IpAddr::V4(v4), IpAddr::V6(v6)] {
        seeds.extend(announcement(address, mac, None));
        seeds.extend(answer(address, mac, (address, mac), Some(v6)));
        seeds.extend(probe(address, mac, Some(v6)));
    }
    seeds
}

#[cfg(test)]
mod tests {
    #[test]
    fn promises_hold() {
        for seed in super::seeds() {
            super::frames(&seed);
            // Each byte changed, and each length.
            for at in 0..seed.len() {
                super::frames(&seed[..at]);
                for bit in 0..8 {
                    let mut changed = seed.clone();
                    changed[at] ^= 1 << bit;
                    super::frames(&changed);
                }
            }
        }
    }
}
