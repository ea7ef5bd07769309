//! Neighbour discovery of IPv6 (RFC 4861): solicitations and advertisements, as whole frames.
//!
//! Upstream's way with raw ICMPv6 sockets sees no question that is sent to an address itself, since the address is not the kernel's;
//! whole frames do.

use std::net::{IpAddr, Ipv6Addr};

use super::{ETHERNET, ETHERTYPE_IPV6, Heard, Mac, bytes, ethernet};

const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Only a host of the link can send it: routers count it down.
const HOP_LIMIT: u8 = 255;
const HEADER: usize = 40;
/// Type, code, checksum, flags, target.
const MESSAGE: usize = 24;
const SOURCE_LINK_ADDRESS: u8 = 1;
const TARGET_LINK_ADDRESS: u8 = 2;
/// It answers a question.
const SOLICITED: u32 = 0x4000_0000;
/// It counts more than what was known.
const OVERRIDE: u32 = 0x2000_0000;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Where questions for an address are sent. Upstream: RFC 4291, 2.7.1.
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::new(
        0xff02,
        0,
        0,
        0,
        0,
        1,
        0xff00 | u16::from(a),
        u16::from_be_bytes([b, c]),
    )
}

/// Upstream: RFC 2464, 7.
fn multicast_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    Mac([0x33, 0x33, a, b, c, d])
}

/// Of IPv6's pseudo header and the message. Upstream: RFC 8200, 8.1.
fn checksum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let pseudo = [
        &source.octets()[..],
        &destination.octets(),
        &length.to_be_bytes(),
        &[0, 0, 0, ICMPV6],
    ]
    .concat();
    let words = |bytes: &[u8]| -> u64 {
        let pairs = bytes.chunks(2);
        pairs
            .map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0)))
            .sum()
    };
    let mut sum = words(&pseudo) + words(message);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

struct Addresses {
    from: (Mac, Ipv6Addr),
    to: (Mac, Ipv6Addr),
}

fn frame(
    kind: u8,
    flags: u32,
    target: Ipv6Addr,
    option: (u8, Mac),
    addresses: &Addresses,
) -> Vec<u8> {
    let Addresses { from, to } = addresses;
    let mut message = vec![kind, 0, 0, 0];
    message.extend(flags.to_be_bytes());
    message.extend(target.octets());
    message.extend([option.0, 1]);
    message.extend(option.1.0);
    let sum = checksum(from.1, to.1, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = ethernet(to.0, from.0, ETHERTYPE_IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend((message.len() as u16).to_be_bytes());
    frame.extend([ICMPV6, HOP_LIMIT]);
    frame.extend(from.1.octets());
    frame.extend(to.1.octets());
    frame.extend(message);
    frame
}

/// `address` is at `mac`, told to everybody; from `source`, or from the address itself.
pub fn announcement(address: Ipv6Addr, mac: Mac, source: Option<Ipv6Addr>) -> Vec<u8> {
    let addresses = Addresses {
        from: (mac, source.unwrap_or(address)),
        to: (multicast_mac(ALL_NODES), ALL_NODES),
    };
    frame(
        ADVERTISEMENT,
        OVERRIDE,
        address,
        (TARGET_LINK_ADDRESS, mac),
        &addresses,
    )
}

/// The answer to `to`: `address` is at `mac`. Who has no address yet is answered in front of everybody.
pub fn answer(
    address: Ipv6Addr,
    mac: Mac,
    to: Ipv6Addr,
    to_mac: Mac,
    source: Option<Ipv6Addr>,
) -> Vec<u8> {
    if to.is_unspecified() {
        return announcement(address, mac, source);
    }
    let addresses = Addresses {
        from: (mac, source.unwrap_or(address)),
        to: (to_mac, to),
    };
    frame(
        ADVERTISEMENT,
        SOLICITED | OVERRIDE,
        address,
        (TARGET_LINK_ADDRESS, mac),
        &addresses,
    )
}

/// Is `address` anybody's? The answer goes to `source`.
pub fn probe(address: Ipv6Addr, mac: Mac, source: Ipv6Addr) -> Vec<u8> {
    let group = solicited_node(address);
    let addresses = Addresses {
        from: (mac, source),
        to: (multicast_mac(group), group),
    };
    frame(
        SOLICITATION,
        0,
        address,
        (SOURCE_LINK_ADDRESS, mac),
        &addresses,
    )
}

/// The link address among the options; `Err` where they are not well-formed.
fn link_address(mut options: &[u8], wanted: u8) -> Result<Option<Mac>, ()> {
    let mut found = None;
    while !options.is_empty() {
        let [kind, units, ..] = *options else {
            return Err(());
        };
        let length = usize::from(units) * 8;
        if length == 0 || length > options.len() {
            return Err(());
        }
        if kind == wanted && length == 8 {
            found = bytes(options, 2).map(Mac);
        }
        options = &options[length..];
    }
    Ok(found)
}

/// What a frame of neighbour discovery says. Validation: RFC 4861, 7.1.
pub fn parse(frame: &[u8]) -> Option<Heard> {
    let sender = Mac(bytes(frame, 6)?);
    let packet = frame.get(ETHERNET..)?;
    let header = packet.get(..HEADER)?;
    if header[0] >> 4 != 6 || header[6] != ICMPV6 || header[7] != HOP_LIMIT {
        return None;
    }
    let length = usize::from(u16::from_be_bytes(bytes(header, 4)?));
    let source = Ipv6Addr::from(bytes::<16>(header, 8)?);
    let destination = Ipv6Addr::from(bytes::<16>(header, 24)?);
    let message = packet.get(HEADER..HEADER.checked_add(length)?)?;
    if message.len() < MESSAGE || message[1] != 0 || source.is_multicast() {
        return None;
    }
    // With the checksum in place the sum is nought.
    if checksum(source, destination, message) != 0 {
        return None;
    }
    let target = Ipv6Addr::from(bytes::<16>(message, 8)?);
    if target.is_multicast() || target.is_unspecified() {
        return None;
    }
    let options = message.get(MESSAGE..)?;
    match message[0] {
        SOLICITATION => {
            let option = link_address(options, SOURCE_LINK_ADDRESS).ok()?;
            if source.is_unspecified()
                && (option.is_some() || destination != solicited_node(target))
            {
                return None;
            }
            let mac = option.unwrap_or(sender);
            mac.is_host().then_some(Heard::Asks {
                target: IpAddr::V6(target),
                from: IpAddr::V6(source),
                mac,
            })
        }
        ADVERTISEMENT => {
            let flags = u32::from_be_bytes(bytes(message, 4)?);
            if destination.is_multicast() && flags & SOLICITED != 0 {
                return None;
            }
            let option = link_address(options, TARGET_LINK_ADDRESS).ok()?;
            let mac = option.unwrap_or(sender);
            mac.is_host().then_some(Heard::Claims {
                address: IpAddr::V6(target),
                mac,
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const THEIRS: Mac = Mac([2, 0, 0, 0, 0, 2]);

    fn ip(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    #[test]
    fn groups() {
        assert_eq!(
            solicited_node(ip("fd00::1:ab12:cd34")),
            ip("ff02::1:ff12:cd34")
        );
        assert_eq!(
            multicast_mac(ip("ff02::1:ff12:cd34")),
            Mac([0x33, 0x33, 0xff, 0x12, 0xcd, 0x34])
        );
    }

    #[test]
    fn a_checksum_known_from_elsewhere() {
        // A solicitation of Linux's, fe80::1 to ff02::1:ff00:2 for fe80::2 with its link address, computed by the words of RFC 1071.
        let frame = probe(ip("fe80::2"), Mac([0x02, 0, 0, 0, 0, 0x01]), ip("fe80::1"));
        let message = &frame[ETHERNET + HEADER..];
        let mut sum: u32 = 0;
        let mut pseudo = Vec::new();
        pseudo.extend(ip("fe80::1").octets());
        pseudo.extend(ip("ff02::1:ff00:2").octets());
        pseudo.extend([0, 0, 0, 32, 0, 0, 0, 58]);
        pseudo.extend(message);
        for pair in pseudo.chunks(2) {
            sum += u32::from(pair[0]) * 256 + u32::from(pair[1]);
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        assert_eq!(sum, 0xffff);
    }

    #[test]
    fn questions_and_answers() {
        let (vip, client) = (ip("fd00::7"), ip("fe80::64"));
        let question = probe(vip, THEIRS, client);
        assert_eq!(question[..6], [0x33, 0x33, 0xff, 0, 0, 7]);
        let asks = Heard::Asks {
            target: vip.into(),
            from: client.into(),
            mac: THEIRS,
        };
        assert_eq!(parse(&question), Some(asks));
        let claims = Heard::Claims {
            address: vip.into(),
            mac: OURS,
        };
        for source in [None, Some(ip("fe80::1"))] {
            let answer = answer(vip, OURS, client, THEIRS, source);
            assert_eq!(answer[..6], THEIRS.0);
            assert_eq!(parse(&answer), Some(claims));
            assert_eq!(parse(&announcement(vip, OURS, source)), Some(claims));
        }
        // One without an address is answered in front of everybody.
        let to_all = answer(vip, OURS, Ipv6Addr::UNSPECIFIED, THEIRS, None);
        assert_eq!(to_all, announcement(vip, OURS, None));
    }

    #[test]
    fn what_is_none() {
        let good = probe(ip("fd00::7"), THEIRS, ip("fe80::64"));
        for length in 0..good.len() {
            assert_eq!(parse(&good[..length]), None, "{length}");
        }
        // Version, next header, hop limit, type, code, checksum, target, an option without length.
        for (at, value) in [
            (14, 0x40),
            (20, 17),
            (21, 254),
            (54, 133),
            (55, 1),
            (56, 0),
            (62, 0xff),
            (79, 0),
        ] {
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(parse(&bad), None, "byte {at}");
        }
        // Frames that a router passed on have a good sum all the same.
        let mut routed = good.clone();
        routed[21] = 64;
        assert_eq!(parse(&routed), None);
        let mut padded = good;
        padded.extend([0; 10]);
        assert!(parse(&padded).is_some());
    }
}
