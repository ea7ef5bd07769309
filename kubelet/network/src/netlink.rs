//! The kernel's side of a plan: what is there, and one step at a time. No decisions.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::sync::Arc;

use futures::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags};
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{
    AddressMessageBuilder, Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan,
    RouteMessageBuilder,
};
use tokio::sync::Mutex;

use crate::NetworkError;
use crate::plan::{ALIAS_PREFIX, Change, Link, Mac, Observed, Route, Target, VXLAN, Vxlan, Way};
use crate::rules::POD_LINK_GROUP;

/// Marks our routes (`ip route show proto 71`); not taken in iproute2's list.
const ROUTE_PROTOCOL: RouteProtocol = RouteProtocol::Other(71);

/// A netlink socket of one network namespace.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: Handle,
    /// The kernel runs one dump a socket at a time and refuses a second one with EBUSY.
    dumps: Arc<Mutex<()>>,
}

impl Netlink {
    /// Opens a socket in the network namespace of the calling thread.
    pub fn open() -> Result<Self, NetworkError> {
        let (connection, handle, _) = rtnetlink::new_connection()
            .map_err(|e| NetworkError::io("open a netlink socket", e))?;
        tokio::spawn(connection);
        Ok(Self {
            handle,
            dumps: Arc::default(),
        })
    }

    pub(crate) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    async fn links(&self) -> Result<BTreeMap<String, LinkMessage>, NetworkError> {
        let _turn = self.dumps.lock().await;
        let links: Vec<_> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(error("list links"))?;
        Ok(links
            .into_iter()
            .filter_map(|link| Some((link_name(&link)?.to_owned(), link)))
            .collect())
    }

    /// The index of a link; `None`: there is none of this name.
    pub async fn index(&self, name: &str) -> Result<Option<u32>, NetworkError> {
        let found = self
            .handle
            .link()
            .get()
            .match_name(name.to_owned())
            .execute()
            .try_next()
            .await;
        match found {
            Ok(link) => Ok(link.map(|link| link.header.index)),
            Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -libc::ENODEV => {
                Ok(None)
            }
            Err(source) => Err(error(format!("find link {name}"))(source)),
        }
    }

    async fn required_index(&self, name: &str) -> Result<u32, NetworkError> {
        let missing = || {
            NetworkError::io(
                format!("link {name}"),
                std::io::Error::from_raw_os_error(libc::ENODEV),
            )
        };
        self.index(name).await?.ok_or_else(missing)
    }

    async fn all_routes(&self) -> Result<Vec<RouteMessage>, NetworkError> {
        let _turn = self.dumps.lock().await;
        let mut routes = Vec::new();
        for message in [
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        ] {
            let listed = self.handle.route().get(message).execute();
            routes.extend(
                listed
                    .try_collect::<Vec<_>>()
                    .await
                    .map_err(error("list routes"))?,
            );
        }
        Ok(routes)
    }

    /// Everything of ours that the kernel has, and all links.
    pub async fn observe(&self) -> Result<Observed, NetworkError> {
        let mut observed = Observed::default();
        let mut names = BTreeMap::new();
        for (name, link) in self.links().await? {
            names.insert(link.header.index, name.clone());
            observed.links.insert(name, describe(&link));
        }
        let turn = self.dumps.lock().await;
        let addresses = self.handle.address().get().execute();
        let addresses = addresses
            .try_collect::<Vec<_>>()
            .await
            .map_err(error("list addresses"))?;
        drop(turn);
        for address in addresses {
            let Some(link) = names.get(&address.header.index) else {
                continue;
            };
            for attribute in &address.attributes {
                if let AddressAttribute::Address(found) = attribute {
                    observed.addresses.insert((link.clone(), *found));
                    let ours = |link: &Link| link.alias.starts_with(ALIAS_PREFIX);
                    let network = IpNet::new(*found, address.header.prefix_len);
                    if link != VXLAN && !observed.links.get(link).is_some_and(ours) {
                        observed.networks.extend(network);
                    }
                }
            }
        }
        let ours = |route: &RouteMessage| {
            route.header.protocol == ROUTE_PROTOCOL
                && route.header.table == RouteHeader::RT_TABLE_MAIN
        };
        observed.routes.extend(
            self.all_routes()
                .await?
                .iter()
                .filter(|r| ours(r))
                .filter_map(|r| route(r, &names)),
        );
        if observed.links.contains_key(VXLAN) {
            self.observe_vxlan(&mut observed, &names).await?;
        }
        Ok(observed)
    }

    async fn observe_vxlan(
        &self,
        observed: &mut Observed,
        names: &BTreeMap<u32, String>,
    ) -> Result<(), NetworkError> {
        for family in [
            AddressFamily::Inet,
            AddressFamily::Inet6,
            AddressFamily::Bridge,
        ] {
            let _turn = self.dumps.lock().await;
            let listed = self
                .handle
                .neighbours()
                .get()
                .set_address_family(family)
                .execute();
            for neighbour in listed
                .try_collect::<Vec<_>>()
                .await
                .map_err(error("list neighbours"))?
            {
                let on_vxlan = names
                    .get(&neighbour.header.ifindex)
                    .is_some_and(|name| name == VXLAN);
                if !on_vxlan || neighbour.header.state != NeighbourState::Permanent {
                    continue;
                }
                let (mut mac, mut address) = (None, None);
                for attribute in &neighbour.attributes {
                    match attribute {
                        NeighbourAttribute::LinkLayerAddress(bytes) => {
                            mac = Mac::try_from(bytes.as_slice()).ok()
                        }
                        NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                            address = Some(IpAddr::V4(*v4))
                        }
                        NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                            address = Some(IpAddr::V6(*v6))
                        }
                        // The bridge family's destinations come without a family of their own.
                        NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                            address = from_bytes(bytes)
                        }
                        _ => {}
                    }
                }
                let (Some(mac), Some(address)) = (mac, address) else {
                    continue;
                };
                if family == AddressFamily::Bridge {
                    observed.forwarding.insert((mac, address));
                } else {
                    observed.neighbours.insert((address, mac));
                }
            }
        }
        Ok(())
    }

    /// How the kernel would send to this address. `None`: not at all.
    pub async fn way(&self, to: IpAddr) -> Result<Option<Way>, NetworkError> {
        let message = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(to, if to.is_ipv4() { 32 } else { 128 })
            .map_err(|e| NetworkError::netlink(format!("route to {to}"), e))?
            .build();
        match self.handle.route().get(message).execute().try_next().await {
            Ok(Some(route)) => {
                let by_router = route
                    .attributes
                    .iter()
                    .any(|a| matches!(a, RouteAttribute::Gateway(_) | RouteAttribute::Via(_)));
                let usable = matches!(route.header.kind, RouteType::Unicast);
                Ok(usable.then_some(if by_router { Way::Tunnel } else { Way::OnLink }))
            }
            Ok(None) => Ok(None),
            // Unreachable, prohibited: the answer is an error number.
            Err(rtnetlink::Error::NetlinkError(_)) => Ok(None),
            Err(source) => Err(error(format!("route to {to}"))(source)),
        }
    }

    /// The MTU of the link with the default route.
    pub async fn default_mtu(&self) -> Result<Option<u32>, NetworkError> {
        let routes = self.all_routes().await?;
        let default = |route: &&RouteMessage| {
            route.header.destination_prefix_length == 0
                && route.header.table == RouteHeader::RT_TABLE_MAIN
                && route.header.kind == RouteType::Unicast
        };
        let output = routes.iter().find(default).and_then(output_interface);
        let Some(index) = output else { return Ok(None) };
        Ok(self
            .links()
            .await?
            .values()
            .find(|link| link.header.index == index)
            .map(|link| describe(link).mtu))
    }

    /// Carries one step out.
    pub async fn carry_out(&self, change: &Change) -> Result<(), NetworkError> {
        let context = || format!("{change:?}");
        match change {
            Change::DeleteLink(name) => self.delete_link(name).await,
            Change::SetPodGroup(name) => {
                let index = self.required_index(name).await?;
                self.set_pod_group(index).await
            }
            Change::CreateVxlan(vxlan) => self.create_vxlan(vxlan).await,
            Change::AddAddress { link, address } => {
                let index = self.required_index(link).await?;
                self.add_address(index, *address).await
            }
            Change::AddRoute(route) => {
                let message = self.route_message(route).await?;
                self.handle
                    .route()
                    .add(message)
                    .replace()
                    .execute()
                    .await
                    .map_err(error(context()))
            }
            Change::DeleteRoute(route) => {
                let message = self.route_message(route).await?;
                ignore(
                    self.handle.route().del(message).execute().await,
                    &[libc::ESRCH],
                    context(),
                )
            }
            Change::AddNeighbour(address, mac) => {
                let index = self.required_index(VXLAN).await?;
                let request = self
                    .handle
                    .neighbours()
                    .add(index, *address)
                    .link_layer_address(mac);
                request.replace().execute().await.map_err(error(context()))
            }
            Change::AddForwarding(mac, node) => {
                let index = self.required_index(VXLAN).await?;
                let request = self.handle.neighbours().add_bridge(index, mac);
                let request = request.destination(*node).flags(NeighbourFlags::Own);
                request.replace().execute().await.map_err(error(context()))
            }
            Change::DeleteNeighbour(address, mac) => {
                let mut message = NeighbourMessage::default();
                message.header.family = if address.is_ipv4() {
                    AddressFamily::Inet
                } else {
                    AddressFamily::Inet6
                };
                message.header.ifindex = self.required_index(VXLAN).await?;
                message.attributes = vec![
                    NeighbourAttribute::Destination(neighbour_address(*address)),
                    NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
                ];
                ignore(
                    self.handle.neighbours().del(message).execute().await,
                    &[libc::ENOENT],
                    context(),
                )
            }
            Change::DeleteForwarding(mac, node) => {
                let mut message = NeighbourMessage::default();
                message.header.family = AddressFamily::Bridge;
                message.header.ifindex = self.required_index(VXLAN).await?;
                message.header.flags = NeighbourFlags::Own;
                message.attributes = vec![
                    NeighbourAttribute::Destination(neighbour_address(*node)),
                    NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
                ];
                ignore(
                    self.handle.neighbours().del(message).execute().await,
                    &[libc::ENOENT],
                    context(),
                )
            }
        }
    }

    /// Deletes a link; one that is not there is no error.
    pub async fn delete_link(&self, name: &str) -> Result<(), NetworkError> {
        let Some(index) = self.index(name).await? else {
            return Ok(());
        };
        ignore(
            self.handle.link().del(index).execute().await,
            &[libc::ENODEV],
            format!("delete link {name}"),
        )
    }

    async fn create_vxlan(&self, vxlan: &Vxlan) -> Result<(), NetworkError> {
        let message = LinkVxlan::new(VXLAN, vxlan.id)
            .port(vxlan.port)
            .learning(false)
            .address(vxlan.mac.to_vec())
            .mtu(vxlan.mtu)
            .up()
            .build();
        self.handle
            .link()
            .add(message)
            .execute()
            .await
            .map_err(error(format!("create link {VXLAN}")))
    }

    /// Makes a veth pair: `name` here, `peer` in the network namespace of the descriptor.
    pub async fn create_veth(
        &self,
        name: &str,
        peer: &str,
        namespace: RawFd,
        mtu: u32,
    ) -> Result<(), NetworkError> {
        let other = LinkMessageBuilder::<LinkUnspec>::new()
            .name(peer.to_owned())
            .mtu(mtu)
            .setns_by_fd(namespace)
            .build();
        let message = LinkVeth::new(name, peer)
            .mtu(mtu)
            .append_extra_attribute(LinkAttribute::Group(POD_LINK_GROUP))
            .set_info_data(InfoData::Veth(InfoVeth::Peer(other)))
            .up()
            .build();
        self.handle
            .link()
            .add(message)
            .execute()
            .await
            .map_err(error(format!("create link {name}")))
    }

    pub async fn set_up(&self, index: u32) -> Result<(), NetworkError> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.handle
            .link()
            .set(message)
            .execute()
            .await
            .map_err(error(format!("set link {index} up")))
    }

    /// Puts a link into the group of pods' links.
    pub async fn set_pod_group(&self, index: u32) -> Result<(), NetworkError> {
        let message = LinkUnspec::new_with_index(index)
            .append_extra_attribute(LinkAttribute::Group(POD_LINK_GROUP))
            .build();
        self.handle
            .link()
            .set(message)
            .execute()
            .await
            .map_err(error(format!("set the group of link {index}")))
    }

    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), NetworkError> {
        let message = LinkUnspec::new_with_index(index).mtu(mtu).build();
        self.handle
            .link()
            .set(message)
            .execute()
            .await
            .map_err(error(format!("set the MTU of link {index} to {mtu}")))
    }

    pub async fn set_alias(&self, index: u32, alias: &str) -> Result<(), NetworkError> {
        let message = LinkUnspec::new_with_index(index)
            .alias(alias.to_owned())
            .build();
        self.handle
            .link()
            .set(message)
            .execute()
            .await
            .map_err(error(format!("set the alias of link {index}")))
    }

    /// Adds an address with the longest prefix; one that is there already is no error.
    pub async fn add_address(&self, index: u32, address: IpAddr) -> Result<(), NetworkError> {
        let mut message = match address {
            IpAddr::V4(v4) => AddressMessageBuilder::<std::net::Ipv4Addr>::new()
                .index(index)
                .address(v4, 32)
                .build(),
            IpAddr::V6(v6) => AddressMessageBuilder::<std::net::Ipv6Addr>::new()
                .index(index)
                .address(v6, 128)
                .build(),
        };
        // Nobody else can have it, and waiting for an answer to that question would delay the pod.
        message.header.flags = AddressHeaderFlags::Nodad;
        message
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Nodad));
        let mut request = self
            .handle
            .address()
            .add(index, address, if address.is_ipv4() { 32 } else { 128 })
            .replace();
        *request.message_mut() = message;
        request
            .execute()
            .await
            .map_err(error(format!("add address {address} to link {index}")))
    }

    /// Pod side: everything goes to the gateway, which is right behind the link.
    pub async fn add_default_route(&self, index: u32, gateway: IpAddr) -> Result<(), NetworkError> {
        let failed = |e| NetworkError::netlink(format!("route to {gateway}"), e);
        let length = if gateway.is_ipv4() { 32 } else { 128 };
        let to_gateway = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(gateway, length)
            .map_err(failed)?
            .output_interface(index)
            .scope(RouteScope::Link)
            .build();
        let add = self
            .handle
            .route()
            .add(to_gateway)
            .replace()
            .execute()
            .await;
        add.map_err(error(format!("add route to {gateway}")))?;
        let unspecified: IpAddr = if gateway.is_ipv4() {
            [0u8; 4].into()
        } else {
            [0u8; 16].into()
        };
        let default = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(unspecified, 0)
            .map_err(failed)?
            .gateway(gateway)
            .map_err(failed)?
            .output_interface(index)
            .build();
        let add = self.handle.route().add(default).replace().execute().await;
        add.map_err(error(format!("add default route via {gateway}")))
    }

    async fn route_message(&self, route: &Route) -> Result<RouteMessage, NetworkError> {
        let failed = |e| NetworkError::netlink(format!("{route:?}"), e);
        let builder = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(route.destination.network(), route.destination.prefix_len())
            .map_err(failed)?
            .protocol(ROUTE_PROTOCOL);
        let builder = match &route.target {
            Target::Link(link) => builder
                .output_interface(self.required_index(link).await?)
                .scope(RouteScope::Link),
            Target::Via(gateway) => builder.gateway(*gateway).map_err(failed)?,
            Target::Tunnel(gateway) => builder
                .gateway(*gateway)
                .map_err(failed)?
                .output_interface(self.required_index(VXLAN).await?)
                .onlink(),
            Target::Unreachable => builder.kind(RouteType::Unreachable),
        };
        Ok(builder.build())
    }
}

fn error(context: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    move |source| NetworkError::netlink(context, source)
}

/// What a cleanup finds gone already is clean.
fn ignore(
    result: Result<(), rtnetlink::Error>,
    codes: &[i32],
    context: String,
) -> Result<(), NetworkError> {
    match result {
        Err(rtnetlink::Error::NetlinkError(message)) if codes.contains(&-message.raw_code()) => {
            Ok(())
        }
        other => other.map_err(error(context)),
    }
}

fn link_name(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|a| match a {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

fn describe(link: &LinkMessage) -> Link {
    let mut described = Link::default();
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfAlias(alias) => described.alias = alias.clone(),
            LinkAttribute::Address(mac) => described.mac = Mac::try_from(mac.as_slice()).ok(),
            LinkAttribute::Mtu(mtu) => described.mtu = *mtu,
            LinkAttribute::Group(group) => described.group = *group,
            _ => {}
        }
    }
    if !link.header.flags.contains(LinkFlags::Up) {
        tracing::debug!(link = link_name(link), "link is down");
    }
    described
}

fn output_interface(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|a| match a {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

/// `None`: a route that we would never make.
fn route(message: &RouteMessage, names: &BTreeMap<u32, String>) -> Option<Route> {
    let mut destination: Option<IpAddr> = None;
    let mut gateway = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            _ => {}
        }
    }
    let link = output_interface(message).and_then(|index| names.get(&index));
    let target = match (message.header.kind, gateway, link) {
        (RouteType::Unreachable, ..) => Target::Unreachable,
        (_, Some(gateway), Some(link)) if link == VXLAN => Target::Tunnel(gateway),
        (_, Some(gateway), _) => Target::Via(gateway),
        (_, None, Some(link)) => Target::Link(link.clone()),
        (_, None, None) => return None,
    };
    let destination = IpNet::new(destination?, message.header.destination_prefix_length).ok()?;
    Some(Route {
        destination,
        target,
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn neighbour_address(address: IpAddr) -> NeighbourAddress {
    match address {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    }
}

fn from_bytes(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    v4.or_else(|| <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from))
}
