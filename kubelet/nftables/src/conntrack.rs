//! ctnetlink, as little of it as is needed: list the UDP entries of connection tracking, delete some.
//!
//! NAT is decided once for each entry, and a UDP entry lives for as long as packets come: whoever changes where
//! packets go must delete the entries that lead where nothing is any more.
//!
//! linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use crate::Family;

const HEADER_BYTES: usize = 16;
const NFGEN_BYTES: usize = 4;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const CT_GET: u16 = 1 << 8 | 1;
const CT_DELETE: u16 = 1 << 8 | 2;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const NLA_TYPE_MASK: u16 = 0x3fff;
const UDP: u8 = 17;

/// A UDP entry, as far as it matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where the client sent to.
    pub destination: IpAddr,
    pub destination_port: u16,
    /// Who answers.
    pub reply_source: IpAddr,
    pub reply_source_port: u16,
    /// The attribute CTA_TUPLE_ORIG as the kernel gave it: what names the entry in a deletion.
    original: Vec<u8>,
}

impl Entry {
    /// One that is in no kernel, for tests.
    pub fn sample(
        destination: IpAddr,
        destination_port: u16,
        reply_source: IpAddr,
        reply_source_port: u16,
    ) -> Self {
        Self {
            destination,
            destination_port,
            reply_source,
            reply_source_port,
            original: Vec::new(),
        }
    }
}

#[derive(Default)]
struct Tuple {
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    protocol: u8,
    source_port: u16,
    destination_port: u16,
}

/// Deletes the UDP entries that `is_stale` names, in the network namespace of the calling thread; returns how many
/// there were. Blocks.
pub fn delete_matching(family: Family, is_stale: impl Fn(&Entry) -> bool) -> io::Result<u64> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let stale: Vec<_> = list(&socket, family)?
        .into_iter()
        .filter(is_stale)
        .collect();
    let mut deleted = 0;
    for entry in stale {
        socket.send(
            &message(
                CT_DELETE,
                NLM_F_REQUEST | NLM_F_ACK,
                family,
                &entry.original,
            ),
            0,
        )?;
        match receive(&socket, |_, _| {}) {
            Ok(()) => deleted += 1,
            // Gone by itself.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(deleted)
}

fn list(socket: &Socket, family: Family) -> io::Result<Vec<Entry>> {
    socket.send(&message(CT_GET, NLM_F_REQUEST | NLM_F_DUMP, family, &[]), 0)?;
    let mut entries = Vec::new();
    receive(socket, |_, payload| {
        if let Some(entry) = payload.get(NFGEN_BYTES..).and_then(parse) {
            entries.push(entry);
        }
    })?;
    Ok(entries)
}

fn message(kind: u16, flags: u16, family: Family, attributes: &[u8]) -> Vec<u8> {
    let length = HEADER_BYTES + NFGEN_BYTES + attributes.len();
    let mut message = Vec::with_capacity(length);
    message.extend(
        u32::try_from(length)
            .expect("messages are short")
            .to_ne_bytes(),
    );
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    let family = match family {
        Family::Ip => libc::AF_INET,
        Family::Ip6 => libc::AF_INET6,
    };
    message.extend([
        u8::try_from(family).expect("address families are small"),
        0,
        0,
        0,
    ]);
    message.extend(attributes);
    message
}

/// Reads until the end of the answer: "done", or an acknowledgement.
fn receive(socket: &Socket, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        if let Some(end) = messages(&bytes, &mut each) {
            return end;
        }
    }
}

/// Goes over the messages of one datagram. `None`: the answer goes on.
fn messages(bytes: &[u8], each: &mut impl FnMut(u16, &[u8])) -> Option<io::Result<()>> {
    let mut rest = bytes;
    while let Some(header) = rest.get(..HEADER_BYTES) {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let Some(payload) = rest.get(HEADER_BYTES..length) else {
            break;
        };
        match kind {
            NLMSG_DONE => return Some(Ok(())),
            NLMSG_ERROR => {
                let code = payload
                    .get(..4)
                    .map_or(0, |c| i32::from_ne_bytes([c[0], c[1], c[2], c[3]]));
                return Some(match code {
                    0 => Ok(()),
                    code => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
                });
            }
            other => each(other, payload),
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

/// Type, value, and the whole attribute with its header.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8], &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes([*bytes.first()?, *bytes.get(1)?]));
        let kind = u16::from_ne_bytes([*bytes.get(2)?, *bytes.get(3)?]) & NLA_TYPE_MASK;
        let (value, whole) = (bytes.get(4..length)?, bytes.get(..length)?);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value, whole))
    })
}

/// `None`: no UDP entry.
fn parse(bytes: &[u8]) -> Option<Entry> {
    let (mut original, mut reply) = (None, None);
    for (kind, value, whole) in attributes(bytes) {
        match kind {
            CTA_TUPLE_ORIG => {
                let mut padded = whole.to_vec();
                padded.resize(whole.len().next_multiple_of(4), 0);
                original = Some((tuple(value), padded));
            }
            CTA_TUPLE_REPLY => reply = Some(tuple(value)),
            _ => {}
        }
    }
    let ((original, bytes), reply) = (original?, reply?);
    if original.protocol != UDP {
        return None;
    }
    Some(Entry {
        destination: original.destination?,
        destination_port: original.destination_port,
        reply_source: reply.source?,
        reply_source_port: reply.source_port,
        original: bytes,
    })
}

fn tuple(bytes: &[u8]) -> Tuple {
    let mut tuple = Tuple::default();
    for (kind, value, _) in attributes(bytes) {
        for (inner, value, _) in attributes(value) {
            match (kind, inner) {
                (CTA_TUPLE_IP, CTA_IP_V4_SRC | CTA_IP_V6_SRC) => tuple.source = address(value),
                (CTA_TUPLE_IP, CTA_IP_V4_DST | CTA_IP_V6_DST) => tuple.destination = address(value),
                (CTA_TUPLE_PROTO, CTA_PROTO_NUM) => {
                    tuple.protocol = value.first().copied().unwrap_or(0)
                }
                (CTA_TUPLE_PROTO, CTA_PROTO_SRC_PORT) => tuple.source_port = port(value),
                (CTA_TUPLE_PROTO, CTA_PROTO_DST_PORT) => tuple.destination_port = port(value),
                _ => {}
            }
        }
    }
    tuple
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes)
        .ok()
        .map(|b| IpAddr::V4(Ipv4Addr::from(b)));
    v4.or_else(|| {
        <[u8; 16]>::try_from(bytes)
            .ok()
            .map(|b| IpAddr::V6(Ipv6Addr::from(b)))
    })
}

fn port(bytes: &[u8]) -> u16 {
    <[u8; 2]>::try_from(bytes)
        .map(u16::from_be_bytes)
        .unwrap_or(0)
}

/// Answers of the kernel: what an entry says comes from its own attributes, and what would delete it names the same.
/// For the fuzz target.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    let mut entries = Vec::new();
    let _ = messages(data, &mut |_, payload| {
        assert!(payload.len() + HEADER_BYTES <= data.len());
        entries.extend(payload.get(NFGEN_BYTES..).and_then(parse));
    });
    entries.extend(parse(data));
    for entry in entries {
        assert!(entry.original.len() % 4 == 0 && entry.original.len() <= data.len() + 3);
        let request = message(CT_DELETE, NLM_F_REQUEST, Family::Ip, &entry.original);
        let mut named = None;
        let more = messages(&request, &mut |kind, payload| {
            assert_eq!(kind, CT_DELETE);
            let mut all = attributes(&payload[NFGEN_BYTES..]);
            let (kind, value, _) = all.next().expect("the tuple was written");
            assert!(kind == CTA_TUPLE_ORIG && all.next().is_none());
            named = Some(tuple(value));
        });
        assert!(more.is_none());
        let named = named.expect("a request is one message");
        assert_eq!(named.destination, Some(entry.destination));
        assert_eq!(named.destination_port, entry.destination_port);
    }
}
