//! The Address Resolution Protocol over Ethernet (RFC 826), and announcements and probes by it (RFC 5227).

use std::net::{IpAddr, Ipv4Addr};

use super::{ETHERNET, ETHERTYPE_ARP, Heard, Mac, bytes, ethernet};

const REQUEST: u16 = 1;
const REPLY: u16 = 2;
/// Ethernet, IPv4, lengths of their addresses.
const HEAD: [u8; 6] = [0, 1, 8, 0, 6, 4];
/// Of the packet, without padding.
const LENGTH: usize = 28;

fn packet(operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr), to: Mac) -> Vec<u8> {
    let mut frame = ethernet(to, sender.0, ETHERTYPE_ARP);
    frame.extend(HEAD);
    frame.extend(operation.to_be_bytes());
    frame.extend(sender.0.0);
    frame.extend(sender.1.octets());
    frame.extend(target.0.0);
    frame.extend(target.1.octets());
    frame
}

/// `address` is at `mac`, as a request to everybody.
pub fn gratuitous_request(address: Ipv4Addr, mac: Mac) -> Vec<u8> {
    packet(
        REQUEST,
        (mac, address),
        (Mac::ZERO, address),
        Mac::BROADCAST,
    )
}

/// `address` is at `mac`, as a reply to everybody.
pub fn gratuitous_reply(address: Ipv4Addr, mac: Mac) -> Vec<u8> {
    packet(
        REPLY,
        (mac, address),
        (Mac::BROADCAST, address),
        Mac::BROADCAST,
    )
}

/// The answer to `to`: `address` is at `mac`.
pub fn reply(address: Ipv4Addr, mac: Mac, to: Ipv4Addr, to_mac: Mac) -> Vec<u8> {
    packet(REPLY, (mac, address), (to_mac, to), to_mac)
}

/// Is `address` anybody's? Its sender claims nothing.
pub fn probe(address: Ipv4Addr, mac: Mac) -> Vec<u8> {
    packet(
        REQUEST,
        (mac, Ipv4Addr::UNSPECIFIED),
        (Mac::ZERO, address),
        Mac::BROADCAST,
    )
}

/// What a frame of ARP says.
pub fn parse(frame: &[u8]) -> Option<Heard> {
    let packet = frame.get(ETHERNET..ETHERNET + LENGTH)?;
    if bytes::<6>(packet, 0)? != HEAD {
        return None;
    }
    let operation = u16::from_be_bytes(bytes(packet, 6)?);
    let mac = Mac(bytes(packet, 8)?);
    let sender = Ipv4Addr::from(bytes::<4>(packet, 14)?);
    let target = Ipv4Addr::from(bytes::<4>(packet, 24)?);
    if !mac.is_host() || sender.is_multicast() || sender.is_broadcast() {
        return None;
    }
    match operation {
        REQUEST if sender != target => Some(Heard::Asks {
            target: IpAddr::V4(target),
            from: IpAddr::V4(sender),
            mac,
        }),
        // A request for oneself is an announcement.
        REQUEST | REPLY if !sender.is_unspecified() => Some(Heard::Claims {
            address: IpAddr::V4(sender),
            mac,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const THEIRS: Mac = Mac([2, 0, 0, 0, 0, 2]);
    const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
    const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);

    #[test]
    fn a_request_as_linux_sends_it() {
        // tcpdump -x of `arping`'s kind: who-has 192.0.2.7 tell 192.0.2.100, padded to 60 bytes.
        let mut frame = vec![
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02, 0, 0, 0, 0, 0x02, 0x08, 0x06, 0, 1, 8, 0, 6,
            4, 0, 1, 0x02, 0, 0, 0, 0, 0x02, 192, 0, 2, 100, 0, 0, 0, 0, 0, 0, 192, 0, 2, 7,
        ];
        frame.resize(60, 0);
        let asks = Heard::Asks {
            target: VIP.into(),
            from: CLIENT.into(),
            mac: THEIRS,
        };
        assert_eq!(parse(&frame), Some(asks));
        let answer = reply(VIP, OURS, CLIENT, THEIRS);
        assert_eq!(answer[..6], THEIRS.0);
        assert_eq!(
            answer[14..],
            [
                0, 1, 8, 0, 6, 4, 0, 2, 2, 0, 0, 0, 0, 1, 192, 0, 2, 7, 2, 0, 0, 0, 0, 2, 192, 0,
                2, 100
            ]
        );
        let claims = Heard::Claims {
            address: VIP.into(),
            mac: OURS,
        };
        assert_eq!(parse(&answer), Some(claims));
        assert_eq!(parse(&gratuitous_request(VIP, OURS)), Some(claims));
        assert_eq!(parse(&gratuitous_reply(VIP, OURS)), Some(claims));
    }

    #[test]
    fn a_probe_asks_and_claims_nothing() {
        let asks = Heard::Asks {
            target: VIP.into(),
            from: Ipv4Addr::UNSPECIFIED.into(),
            mac: OURS,
        };
        assert_eq!(parse(&probe(VIP, OURS)), Some(asks));
    }

    #[test]
    fn what_is_none() {
        let good = gratuitous_request(VIP, OURS);
        for length in 0..good.len() {
            assert_eq!(parse(&good[..length]), None, "{length}");
        }
        for (at, value) in [(15, 6), (16, 0x86), (18, 8), (19, 16), (21, 3), (22, 0x03)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(parse(&bad), None, "byte {at}");
        }
        // A reply of nobody's address, and one of nobody.
        assert_eq!(parse(&gratuitous_reply(Ipv4Addr::UNSPECIFIED, OURS)), None);
        assert_eq!(parse(&gratuitous_reply(VIP, Mac::ZERO)), None);
        assert_eq!(parse(&gratuitous_reply(Ipv4Addr::BROADCAST, OURS)), None);
    }
}
