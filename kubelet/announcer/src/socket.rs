//! Frames in and out of the kernel: packet sockets for what is heard and said, group memberships for the questions of IPv6.
//!
//! A packet socket sees its EtherType alone, and of IPv6 a filter in the kernel lets pass neighbour discovery only.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _};
use std::net::Ipv6Addr;
use std::sync::Arc;

use component_base::shutdown::Shutdown;
use socket2::{Domain, Protocol, SockAddr, SockFilter, Socket, Type};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use crate::packet::{ETHERTYPE_ARP, ETHERTYPE_IPV6, Heard, parse};

/// Frames that are heard and not yet looked at; more are lost, as they are on any link.
const HEARD: usize = 256;
/// What the kernel holds for a socket, in bytes.
const RECEIVE_BUFFER: usize = 256 << 10;
/// More than any frame of these has.
const FRAME: usize = 2048;
/// Frames read before others get their turn.
const BATCH: usize = 64;

/// Upstream: `linux/bpf_common.h`.
const LOAD_BYTE: u16 = 0x30;
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

/// Passes what neighbour discovery is: next header 58, type 135 or 136.
fn neighbour_discovery() -> [SockFilter; 7] {
    [
        SockFilter::new(LOAD_BYTE, 0, 0, 14 + 6),
        SockFilter::new(JUMP_EQUAL, 0, 4, 58),
        SockFilter::new(LOAD_BYTE, 0, 0, 14 + 40),
        SockFilter::new(JUMP_EQUAL, 1, 0, 135),
        SockFilter::new(JUMP_EQUAL, 0, 1, 136),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

/// The address of a link for an EtherType.
fn link_address(link: u32, kind: u16) -> io::Result<SockAddr> {
    // SAFETY: `storage` is zeroed and has room for any address; a `sockaddr_ll` is written to it, and its length is said.
    let (_, address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let address = storage.cast::<libc::sockaddr_ll>();
            (*address).sll_family = libc::AF_PACKET as u16;
            (*address).sll_protocol = kind.to_be();
            (*address).sll_ifindex = link as i32;
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })?
    };
    Ok(address)
}

fn open(link: u32, kind: u16) -> io::Result<AsyncFd<Socket>> {
    // Without a protocol it receives nothing before it is bound, and so nothing of other links.
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
    socket.set_nonblocking(true)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    if kind == ETHERTYPE_IPV6 {
        socket.attach_filter(&neighbour_discovery())?;
    }
    socket.bind(&link_address(link, kind)?)?;
    // SAFETY: the socket is owned by the `AsyncFd` and closed with it.
    Ok(unsafe { AsyncFd::register(socket)? })
}

/// What was heard on a link.
pub type HeardOn = (u32, Heard);

/// The sockets of this node's links.
pub struct Sockets {
    /// By link and EtherType, each with the task that listens.
    open: BTreeMap<(u32, u16), (Arc<AsyncFd<Socket>>, Shutdown)>,
    /// Memberships; the kernel tells the link's switches of them.
    member: Socket,
    groups: BTreeSet<(u32, Ipv6Addr)>,
    heard: mpsc::Sender<HeardOn>,
    shutdown: Shutdown,
}

impl Sockets {
    /// None yet; what they will hear comes by the receiver.
    ///
    /// # Errors
    /// The kernel has no IPv6 sockets.
    pub fn new(shutdown: &Shutdown) -> io::Result<(Self, mpsc::Receiver<HeardOn>)> {
        let (heard, receiver) = mpsc::channel(HEARD);
        let sockets = Self {
            open: BTreeMap::new(),
            member: Socket::new(Domain::IPV6, Type::DGRAM, None)?,
            groups: BTreeSet::new(),
            heard,
            shutdown: shutdown.clone(),
        };
        Ok((sockets, receiver))
    }

    /// Listens on links for IPv4 or IPv6 (`wanted`: link, whether IPv4) and in groups, and nowhere else. What fails is logged, and
    /// tried again the next time.
    pub fn set(&mut self, wanted: &BTreeSet<(u32, bool)>, groups: BTreeSet<(u32, Ipv6Addr)>) {
        let kind = |v4: bool| if v4 { ETHERTYPE_ARP } else { ETHERTYPE_IPV6 };
        let wanted: BTreeSet<(u32, u16)> =
            wanted.iter().map(|(link, v4)| (*link, kind(*v4))).collect();
        self.open.retain(|key, (_, listening)| {
            let stays = wanted.contains(key);
            if !stays {
                listening.trigger();
            }
            stays
        });
        for (link, kind) in wanted {
            if self.open.contains_key(&(link, kind)) {
                continue;
            }
            match open(link, kind) {
                Ok(socket) => self.listen(link, kind, Arc::new(socket)),
                Err(error) => tracing::error!(link, kind, %error, "Cannot listen on the link"),
            }
        }
        for (link, group) in self.groups.difference(&groups) {
            // With the link gone the membership is, too.
            let _ = self.member.leave_multicast_v6(group, *link);
        }
        let before = std::mem::take(&mut self.groups);
        for (link, group) in groups {
            let joined = match before.contains(&(link, group)) {
                true => Ok(()),
                false => self.member.join_multicast_v6(&group, link),
            };
            match joined {
                Ok(()) => drop(self.groups.insert((link, group))),
                Err(error) => tracing::error!(link, %group, %error, "Cannot join the group"),
            }
        }
    }

    fn listen(&mut self, link: u32, kind: u16, socket: Arc<AsyncFd<Socket>>) {
        let end = self.shutdown.child();
        let heard = self.heard.clone();
        let listening = end.clone();
        let own = socket.clone();
        end.spawn_essential(format!("listener on link {link}"), async move {
            let _ = listening.run_until(receive(link, own, heard)).await;
        });
        self.open.insert((link, kind), (socket, end));
    }

    /// Sends a frame, or loses it, as any link may.
    pub fn send(&self, link: u32, frame: &[u8]) {
        let kind = frame.get(12..14).map(|k| u16::from_be_bytes([k[0], k[1]]));
        let socket = kind.and_then(|kind| self.open.get(&(link, kind)));
        let Some((socket, _)) = socket else {
            return;
        };
        if let Err(error) = socket.get_ref().send(frame) {
            tracing::warn!(link, %error, "Cannot send on the link");
        }
    }
}

/// Reads frames for good. A link that goes down makes an error, and the next read waits until it is back.
async fn receive(link: u32, socket: Arc<AsyncFd<Socket>>, heard: mpsc::Sender<HeardOn>) {
    let mut frame = vec![0; FRAME];
    loop {
        let Ok(mut ready) = socket.readable().await else {
            return;
        };
        for _ in 0..BATCH {
            match ready.try_io(|socket| socket.get_ref().read(&mut frame)) {
                Ok(Ok(length)) => {
                    if let Some(said) = frame.get(..length).and_then(parse) {
                        // A full queue loses it.
                        let _ = heard.try_send((link, said));
                    }
                }
                Ok(Err(error)) => {
                    tracing::debug!(link, %error, "The link cannot be read");
                    break;
                }
                Err(_would_block) => break,
            }
        }
        tokio::task::yield_now().await;
    }
}
