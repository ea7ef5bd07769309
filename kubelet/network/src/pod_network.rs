//! [`PodNetwork`]: the thin shell that carries plans out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use nftables::{Family, NftProgram, Syncer};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::admission::{Own, Refused, admit};
use crate::namespace::run_in;
use crate::netlink::Netlink;
use crate::plan::{self, ALIAS_PREFIX, ResolvedPeer, Way};
use crate::pod_link;
use crate::stale_flows::forget_udp_flows;
use crate::store::{SandboxRecord, Store};
use crate::{Mode, NetworkConfig, NetworkError, Peer, SandboxNetwork, cni, ipam, rules};

/// Looks at the kernel in one pass, before what fails is told.
const SYNC_ATTEMPTS: usize = 3;

/// The node's pod network. Cheap to clone; every method may be called from several tasks at once.
///
/// Works in the network namespace of the thread that called [`PodNetwork::open`], which must be the process's.
#[derive(Clone)]
pub struct PodNetwork {
    inner: Arc<Inner>,
}

struct Inner {
    config: NetworkConfig,
    netlink: Netlink,
    store: Arc<Store>,
    state: Mutex<State>,
    /// Held while the node's routes and nft tables are brought in line: one at a time.
    node: Mutex<Node>,
    /// One lock a sandbox, so that a teardown never meets a setup halfway.
    sandboxes: std::sync::Mutex<HashMap<String, Arc<Mutex<()>>>>,
}

struct State {
    records: BTreeMap<String, SandboxRecord>,
    /// Sandboxes whose rules go before their records do: whoever syncs the rules meanwhile leaves them out.
    leaving: BTreeSet<String>,
    last_reserved: BTreeMap<IpNet, IpAddr>,
    pod_cidrs: Vec<IpNet>,
    /// Why the node's own part (routes, tables) is not as it should be, as of the last time it was looked at.
    sync_error: Option<String>,
    peers: Vec<Peer>,
    /// How the kernel reaches the peers, as last asked; in their order.
    resolved: Vec<ResolvedPeer>,
    /// Those of them whose ranges are believed, as of the last look at the node's links.
    believed: Vec<ResolvedPeer>,
    /// What is not believed: told once.
    refused: BTreeSet<Refused>,
}

impl State {
    /// Decides anew which peers are believed, and tells of the others.
    fn believe(&mut self, config: &NetworkConfig, networks: &[IpNet]) {
        let own = Own {
            pod_cidrs: &self.pod_cidrs,
            cluster_cidrs: &config.cluster_cidrs,
            networks,
        };
        let (believed, refused) = admit(&own, &self.peers);
        for new in refused.difference(&self.refused) {
            tracing::warn!(
                node = new.node, pod_cidr = %new.range, reason = %new.why,
                "no routes to a node's pods: its podCIDRs are not believed"
            );
        }
        self.refused = refused;
        let peers = self.resolved.iter().zip(believed);
        let believed = peers.filter_map(|(peer, believed)| believed.then_some(peer));
        self.believed = believed.cloned().collect();
    }
}

struct Node {
    ip: Syncer,
    ip6: Syncer,
}

impl PodNetwork {
    /// Reads the state directory and what the kernel has. Changes nothing in the kernel.
    ///
    /// # Errors
    /// The state directory cannot be used, or a configured name is too long.
    pub async fn open(config: NetworkConfig) -> Result<Self, NetworkError> {
        let netlink = Netlink::open()?;
        let (store, mut records) = Store::open(&config.state_dir)?;
        let observed = netlink.observe().await?;
        let links = observed.links;
        for record in records.values_mut() {
            let alias = format!("{ALIAS_PREFIX}{}", record.sandbox_id);
            record.connected = match &record.cni {
                Some(cni) => !cni.result.is_null(),
                None => links
                    .get(&record.link)
                    .is_some_and(|link| link.alias == alias),
            };
        }
        let peers = store.peers();
        let (resolved, _) = resolve(&netlink, &peers).await?;
        let mut state = State {
            records,
            leaving: BTreeSet::new(),
            last_reserved: store.last_reserved(),
            pod_cidrs: store.pod_cidrs(),
            sync_error: None,
            peers,
            resolved,
            believed: Vec::new(),
            refused: BTreeSet::new(),
        };
        state.believe(&config, &observed.networks);
        let nft = Arc::new(NftProgram::new());
        let node = Node {
            ip: Syncer::new(nft.clone(), Family::Ip, config.table.clone()),
            ip6: Syncer::new(nft, Family::Ip6, config.table.clone()),
        };
        let inner = Inner {
            config,
            netlink,
            store: Arc::new(store),
            state: Mutex::new(state),
            node: Mutex::new(node),
            sandboxes: Default::default(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Tells the ranges of this node's pods (Node `.spec.podCIDRs`) and brings the kernel in line.
    ///
    /// Pods that are connected keep addresses of a former range.
    pub async fn set_pod_cidrs(&self, pod_cidrs: Vec<IpNet>) -> Result<(), NetworkError> {
        for range in &pod_cidrs {
            if range.max_prefix_len() - range.prefix_len() < 2 {
                let reason = "a range of pods needs room for a gateway and a pod".into();
                return Err(NetworkError::Invalid {
                    field: "podCIDR",
                    value: range.to_string(),
                    reason,
                });
            }
        }
        {
            let mut state = self.inner.state.lock().await;
            let pod_cidrs: Vec<_> = pod_cidrs.iter().map(IpNet::trunc).collect();
            if state.pod_cidrs != pod_cidrs {
                self.inner.store.write_pod_cidrs(&pod_cidrs)?;
                state.pod_cidrs = pod_cidrs;
            }
        }
        self.sync_node().await
    }

    /// Tells all other nodes; routes (or tunnel entries) of nodes that are not named are removed.
    ///
    /// # Errors
    /// After all that could be done was done: the first peer to which there is no way.
    pub async fn set_peers(&self, peers: Vec<Peer>) -> Result<(), NetworkError> {
        let (resolved, no_way) = resolve(&self.inner.netlink, &peers).await?;
        {
            let mut state = self.inner.state.lock().await;
            if state.peers != peers {
                self.inner.store.write_peers(&peers)?;
            }
            state.peers = peers;
            state.resolved = resolved;
        }
        self.sync_node().await?;
        no_way.into_iter().next().map_or(Ok(()), Err)
    }

    /// `Ok` when sandboxes can be connected; otherwise the text for `NetworkReady=false`.
    pub async fn ready(&self) -> Result<(), NetworkError> {
        let not_ready = |reason: &dyn std::fmt::Display| {
            NetworkError::NotReady(format!("Network plugin returns error: {reason}"))
        };
        match self.cni_config() {
            Ok(Some(_)) => return Ok(()),
            Ok(None) => {}
            Err(error) => return Err(not_ready(&error)),
        }
        let state = self.inner.state.lock().await;
        if state.pod_cidrs.is_empty() {
            return Err(not_ready(
                &"the node has no podCIDR yet, and there is no CNI configuration",
            ));
        }
        match &state.sync_error {
            Some(error) => Err(not_ready(error)),
            None => Ok(()),
        }
    }

    /// The CNI configuration that connects a pod now; `None`: the built-in network does.
    ///
    /// # Errors
    /// There must be one and there is none, or there are files and none can be used.
    fn cni_config(&self) -> Result<Option<cni::CniConfig>, NetworkError> {
        let config = &self.inner.config;
        if config.mode == Mode::BuiltIn {
            return Ok(None);
        }
        match cni::load(&config.cni_conf_dir)? {
            None if config.mode == Mode::Cni => {
                Err(NetworkError::NotReady("cni config uninitialized".into()))
            }
            found => Ok(found),
        }
    }

    /// Connects a sandbox and returns its addresses, the primary one first. A second call for the same sandbox
    /// returns the same addresses.
    pub async fn setup(&self, sandbox: &SandboxNetwork) -> Result<Vec<IpAddr>, NetworkError> {
        valid_id(&sandbox.sandbox_id)?;
        let _guard = self.lock_sandbox(&sandbox.sandbox_id).await;
        if let Some(record) = self
            .inner
            .state
            .lock()
            .await
            .records
            .get(&sandbox.sandbox_id)
            && record.connected
        {
            return Ok(record.addresses.clone());
        }
        match self.cni_config()? {
            Some(config) => self.setup_by_cni(&config, sandbox).await,
            None => self.setup_built_in(sandbox).await,
        }
    }

    async fn setup_by_cni(
        &self,
        config: &cni::CniConfig,
        sandbox: &SandboxNetwork,
    ) -> Result<Vec<IpAddr>, NetworkError> {
        let inner = &self.inner;
        let up = |source| NetworkError::Namespace {
            sandbox_id: sandbox.sandbox_id.clone(),
            path: sandbox.netns.clone(),
            source,
        };
        run_in(&sandbox.netns, || async {
            pod_link::set_loopback_up(&Netlink::open()?).await
        })
        .await
        .map_err(up)??;
        let pod_cidrs = inner.state.lock().await.pod_cidrs.clone();
        // Known before the plugins start, so that a crash in between still leads to a DEL.
        let mut record = SandboxRecord::new(sandbox, String::new(), Vec::new());
        let unfinished = crate::store::CniRecord {
            config: config.json.clone(),
            result: serde_json::Value::Null,
            pod_cidrs: pod_cidrs.clone(),
        };
        record.cni = Some(unfinished);
        self.write(&record).await?;
        inner
            .state
            .lock()
            .await
            .records
            .insert(sandbox.sandbox_id.clone(), record.clone());
        match cni::add(config, &inner.config.cni_bin_dirs, sandbox, &pod_cidrs).await {
            Ok((cni, addresses)) => {
                record.cni = Some(cni);
                record.addresses = addresses.clone();
                record.connected = true;
                self.write(&record).await?;
                inner
                    .state
                    .lock()
                    .await
                    .records
                    .insert(sandbox.sandbox_id.clone(), record);
                Ok(addresses)
            }
            Err(cni::AddError { error, is_undone }) => {
                // As containerd: what could not be undone stays known, for the teardown, or the next start, to call DEL again.
                if is_undone {
                    self.forget(&sandbox.sandbox_id).await?;
                }
                Err(error)
            }
        }
    }

    async fn setup_built_in(&self, sandbox: &SandboxNetwork) -> Result<Vec<IpAddr>, NetworkError> {
        let inner = &self.inner;
        let (mut record, pod_cidrs) = self.reserve(sandbox).await?;
        let connect = async {
            self.write(&record).await?;
            let mtu = self.pod_mtu().await?;
            pod_link::connect(&inner.netlink, &record, &pod_cidrs, mtu).await?;
            if record
                .port_mappings
                .iter()
                .any(|mapping| mapping.host_port != 0)
            {
                self.sync_rules().await?;
                forget_udp_flows(&record).await;
            }
            Ok(())
        };
        if let Err(error) = connect.await {
            if let Err(cleanup) = self.disconnect(&record).await {
                tracing::warn!(sandbox = %record.sandbox_id, error = %cleanup, "cleaning up after a failed setup failed too");
            }
            return Err(error);
        }
        record.connected = true;
        let addresses = record.addresses.clone();
        inner
            .state
            .lock()
            .await
            .records
            .insert(record.sandbox_id.clone(), record);
        Ok(addresses)
    }

    /// Chooses addresses and notes them in memory, so that no other setup can take them.
    async fn reserve(
        &self,
        sandbox: &SandboxNetwork,
    ) -> Result<(SandboxRecord, Vec<IpNet>), NetworkError> {
        let inner = &self.inner;
        let mut state = inner.state.lock().await;
        let state = &mut *state;
        if state.pod_cidrs.is_empty() {
            return Err(NetworkError::NotReady("the node has no podCIDR yet".into()));
        }
        rules::check_host_ports(
            &sandbox.sandbox_id,
            &sandbox.port_mappings,
            state.records.values(),
        )?;
        let others = state
            .records
            .values()
            .filter(|record| record.sandbox_id != sandbox.sandbox_id);
        let used: BTreeSet<IpAddr> = others
            .flat_map(|record| record.addresses.iter().copied())
            .collect();
        let mut addresses = Vec::new();
        for range in &state.pod_cidrs {
            let last = state.last_reserved.get(range).copied();
            let address = ipam::allocate(range, &used, last)
                .ok_or(NetworkError::NoFreeAddress { range: *range })?;
            addresses.push(address);
        }
        for (range, address) in state.pod_cidrs.iter().zip(&addresses) {
            state.last_reserved.insert(*range, *address);
        }
        inner.store.write_last_reserved(&state.last_reserved)?;
        let record =
            SandboxRecord::new(sandbox, pod_link::link_name(&sandbox.sandbox_id), addresses);
        state.leaving.remove(&sandbox.sandbox_id);
        state
            .records
            .insert(sandbox.sandbox_id.clone(), record.clone());
        Ok((record, state.pod_cidrs.clone()))
    }

    /// The addresses of a sandbox that is connected, from the records on disk.
    pub async fn addresses(&self, sandbox_id: &str) -> Option<Vec<IpAddr>> {
        let state = self.inner.state.lock().await;
        state
            .records
            .get(sandbox_id)
            .filter(|record| record.connected)
            .map(|record| record.addresses.clone())
    }

    /// Disconnects a sandbox and frees its addresses. Idempotent; the namespace may be gone already.
    pub async fn teardown(&self, sandbox_id: &str) -> Result<(), NetworkError> {
        valid_id(sandbox_id)?;
        let _guard = self.lock_sandbox(sandbox_id).await;
        let record = self
            .inner
            .state
            .lock()
            .await
            .records
            .get(sandbox_id)
            .cloned();
        match record {
            None => {
                self.inner
                    .netlink
                    .delete_link(&pod_link::link_name(sandbox_id))
                    .await
            }
            Some(record) => match &record.cni {
                Some(cni) => {
                    cni::delete(cni, &self.inner.config.cni_bin_dirs, &record.sandbox()).await?;
                    self.forget(sandbox_id).await
                }
                None => self.disconnect(&record).await,
            },
        }
    }

    /// Built-in: link and rules go first, the reservation last.
    async fn disconnect(&self, record: &SandboxRecord) -> Result<(), NetworkError> {
        self.inner.netlink.delete_link(&record.link).await?;
        if record
            .port_mappings
            .iter()
            .any(|mapping| mapping.host_port != 0)
        {
            let id = record.sandbox_id.clone();
            self.inner.state.lock().await.leaving.insert(id);
            self.sync_rules().await?;
        }
        self.forget(&record.sandbox_id).await
    }

    async fn forget(&self, sandbox_id: &str) -> Result<(), NetworkError> {
        let (store, id) = (self.inner.store.clone(), sandbox_id.to_owned());
        blocking(move || store.remove(&id)).await?;
        let mut state = self.inner.state.lock().await;
        state.records.remove(sandbox_id);
        state.leaving.remove(sandbox_id);
        Ok(())
    }

    /// After a restart: frees the addresses, links and host ports of sandboxes that are not named, and mends what
    /// is missing of the others.
    ///
    /// # Errors
    /// Cleanup goes on past errors and returns all of them.
    pub async fn reconcile(&self, live_sandbox_ids: &[String]) -> Result<(), NetworkError> {
        let live: BTreeSet<&String> = live_sandbox_ids.iter().collect();
        let known: Vec<String> = self
            .inner
            .state
            .lock()
            .await
            .records
            .keys()
            .cloned()
            .collect();
        let mut errors = Vec::new();
        for id in known.iter().filter(|id| !live.contains(id)) {
            errors.extend(self.teardown(id).await.err());
        }
        errors.extend(self.sync_node().await.err());
        if errors.is_empty() {
            Ok(())
        } else {
            Err(NetworkError::Cleanup(errors))
        }
    }

    /// Looks at the kernel anew, whatever it is believed to have, and mends what others took away: a firewall that is
    /// loaded anew flushes every table, and some network managers clear the routes they do not know.
    ///
    /// # Errors
    /// As [`PodNetwork::set_pod_cidrs`]; a retry may help.
    pub async fn resync(&self) -> Result<(), NetworkError> {
        {
            let mut node = self.inner.node.lock().await;
            node.ip.forget();
            node.ip6.forget();
        }
        self.sync_node().await
    }

    /// Brings the node's routes, addresses and nft tables in line. With CNI, they are the plugins' business; and
    /// before the node has a range there is nothing to say.
    async fn sync_node(&self) -> Result<(), NetworkError> {
        let inner = &self.inner;
        if inner.config.mode == Mode::Cni || self.cni_config().is_ok_and(|config| config.is_some())
        {
            return Ok(());
        }
        let mut node = inner.node.lock().await;
        let result = self.sync_built_in(&mut node).await;
        inner.state.lock().await.sync_error = result.as_ref().err().map(ToString::to_string);
        result
    }

    async fn sync_built_in(&self, node: &mut Node) -> Result<(), NetworkError> {
        let mut errors = Vec::new();
        for _ in 0..SYNC_ATTEMPTS {
            errors = self.sync_links(node).await?;
            if errors.is_empty() {
                return Ok(());
            }
        }
        match errors.len() {
            1 => Err(errors.remove(0)),
            _ => Err(NetworkError::Cleanup(errors)),
        }
    }

    /// One look at the kernel, and everything that follows from it. Goes on past what fails: a pod may leave between the
    /// look and the change of its route; then the next look has nothing to complain of.
    async fn sync_links(&self, node: &mut Node) -> Result<Vec<NetworkError>, NetworkError> {
        let inner = &self.inner;
        // First the kernel, then the records: a link that is seen has a record, unless it was torn down since.
        let observed = inner.netlink.observe().await?;
        let (pod_cidrs, resolved, records) = {
            let mut state = inner.state.lock().await;
            state.believe(&inner.config, &observed.networks);
            let records: Vec<_> = state
                .records
                .values()
                .filter(|r| r.cni.is_none())
                .cloned()
                .collect();
            (state.pod_cidrs.clone(), state.believed.clone(), records)
        };
        if pod_cidrs.is_empty() {
            return Ok(Vec::new());
        }
        if pod_cidrs.iter().any(|range| range.addr().is_ipv4()) {
            pod_link::write_sysctl("net/ipv4/ip_forward", "1")?;
        }
        if pod_cidrs.iter().any(|range| range.addr().is_ipv6()) {
            pod_link::write_sysctl("net/ipv6/conf/all/forwarding", "1")?;
        }
        let (pod_mtu, tunnel_mtu) = plan::mtus(self.node_mtu().await?, inner.config.mtu, &resolved);
        let vxlan = (inner.config.vxlan_id, inner.config.vxlan_port, tunnel_mtu);
        let desired = plan::desired(&pod_cidrs, &resolved, &records, vxlan);
        let changes = plan::diff(&desired, &observed);
        let mut errors = Vec::new();
        for change in &changes {
            tracing::debug!(?change, node = %inner.config.node_name, "changing the pod network");
            errors.extend(inner.netlink.carry_out(change).await.err());
        }
        for record in plan::too_wide(&records, &observed, pod_mtu) {
            tracing::debug!(sandbox = %record.sandbox_id, mtu = pod_mtu, "a tunnel is in use: narrowing a pod's link");
            errors.extend(
                pod_link::set_mtu(&inner.netlink, record, pod_mtu)
                    .await
                    .err(),
            );
        }
        errors.extend(self.sync_node_rules(node).await.err());
        Ok(errors)
    }

    async fn sync_rules(&self) -> Result<(), NetworkError> {
        let mut node = self.inner.node.lock().await;
        self.sync_node_rules(&mut node).await
    }

    async fn sync_node_rules(&self, node: &mut Node) -> Result<(), NetworkError> {
        let name = &self.inner.config.table;
        let (ip, ip6, has_ip6) = {
            let state = self.inner.state.lock().await;
            let built_in =
                |r: &&SandboxRecord| r.cni.is_none() && !state.leaving.contains(&r.sandbox_id);
            let mut cluster = self.inner.config.cluster_cidrs.clone();
            if cluster.is_empty() {
                cluster.extend(state.pod_cidrs.iter().copied());
                let believed = state.believed.iter();
                cluster.extend(believed.flat_map(|peer| peer.pod_cidrs.iter().copied()));
            }
            let of = |family| {
                rules::table(
                    family,
                    name,
                    &state.pod_cidrs,
                    &cluster,
                    state.records.values().filter(built_in),
                )
            };
            let has_ip6 = state.pod_cidrs.iter().any(|range| range.addr().is_ipv6());
            (of(Family::Ip), of(Family::Ip6), has_ip6)
        };
        node.ip.sync(ip).await?;
        if has_ip6 {
            node.ip6.sync(ip6).await?;
        }
        Ok(())
    }

    /// The MTU of the node's own way out.
    async fn node_mtu(&self) -> Result<u32, NetworkError> {
        const ETHERNET: u32 = 1500;
        match self.inner.config.mtu {
            Some(mtu) => Ok(mtu),
            None => Ok(self.inner.netlink.default_mtu().await?.unwrap_or(ETHERNET)),
        }
    }

    async fn pod_mtu(&self) -> Result<u32, NetworkError> {
        let node = self.node_mtu().await?;
        let state = self.inner.state.lock().await;
        Ok(plan::mtus(node, self.inner.config.mtu, &state.believed).0)
    }

    async fn write(&self, record: &SandboxRecord) -> Result<(), NetworkError> {
        let (store, record) = (self.inner.store.clone(), record.clone());
        blocking(move || store.write(&record)).await
    }

    async fn lock_sandbox(&self, sandbox_id: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self
                .inner
                .sandboxes
                .lock()
                .expect("no holder of the lock panics");
            // Those that nobody holds or waits for are of no use any more.
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            locks.entry(sandbox_id.to_owned()).or_default().clone()
        };
        lock.lock_owned().await
    }
}

/// Asks the kernel for the way to each peer. A peer without one is given the tunnel, which may work later.
async fn resolve(
    netlink: &Netlink,
    peers: &[Peer],
) -> Result<(Vec<ResolvedPeer>, Vec<NetworkError>), NetworkError> {
    let mut resolved = Vec::with_capacity(peers.len());
    let mut no_way = Vec::new();
    for peer in peers {
        let way = netlink.way(peer.internal_ip).await?;
        if way.is_none() {
            let reason = "the kernel has no route".into();
            no_way.push(NetworkError::Peer {
                node: peer.node.clone(),
                address: peer.internal_ip,
                reason,
            });
        }
        let (internal_ip, pod_cidrs) = (peer.internal_ip, peer.pod_cidrs.clone());
        resolved.push(ResolvedPeer {
            internal_ip,
            pod_cidrs,
            way: way.unwrap_or(Way::Tunnel),
        });
    }
    Ok((resolved, no_way))
}

async fn blocking(
    work: impl FnOnce() -> Result<(), NetworkError> + Send + 'static,
) -> Result<(), NetworkError> {
    let panicked = |e| NetworkError::io("write the state", std::io::Error::other(e));
    tokio::task::spawn_blocking(work).await.map_err(panicked)?
}

/// The id becomes a file's name.
fn valid_id(sandbox_id: &str) -> Result<(), NetworkError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !sandbox_id.is_empty()
        && sandbox_id.len() <= 128
        && sandbox_id.chars().all(fits)
        && !sandbox_id.starts_with('.')
    {
        return Ok(());
    }
    let reason = "letters, digits, '-', '_' and '.' only".into();
    Err(NetworkError::Invalid {
        field: "sandbox_id",
        value: sandbox_id.to_owned(),
        reason,
    })
}
