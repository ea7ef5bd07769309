//! The loop: what changed comes in, decisions are made, frames and writes go out. It waits for nothing but news and time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use cloud_provider::gantry::pools::Pools;
use cloud_provider::gantry::service::is_ours;
use component_base::clock::Clock;
use component_base::events::{EventType, Recorder, object_reference};
use component_base::informer::Receiver;
use component_base::informer::{Informer, InformerEvent};
use component_base::shutdown::Shutdown;
use futures::stream::{BoxStream, StreamExt as _};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use tokio::sync::mpsc;

use crate::election::{Action, Election, RENEW_DEADLINE, RENEW_INTERVAL};
use crate::lease::{Cache, Of, Writer};
use crate::link::{self, Link};
use crate::metrics::METRICS;
use crate::options::Options;
use crate::packet::Heard;
use crate::socket::{HeardOn, Sockets};
use crate::speaker::Speaker;
use crate::wanted::{Observed, SERVICE_NAME, Wanted, is_local, wanted};
use crate::writes::{Change, Write, Writes, Written};

/// How long giving addresses back may take at the end.
const END: Duration = Duration::from_secs(2);
/// Without anything to wait for.
const IDLE: Duration = Duration::from_secs(3600);
/// Frames that are looked at before other news.
const FRAMES: usize = 64;

/// What is known of the cluster.
pub struct Caches {
    /// All Services.
    pub services: Informer<Service>,
    /// All slices, with the index [`SERVICE_NAME`].
    pub slices: Informer<EndpointSlice>,
    /// This node's Node.
    pub nodes: Informer<Node>,
}

/// Where news come from.
pub struct Inputs {
    /// Of Services.
    pub services: Receiver<Service>,
    /// Of slices.
    pub slices: Receiver<EndpointSlice>,
    /// Of the Node.
    pub nodes: Receiver<Node>,
    /// Of leases.
    pub leases: Receiver<Lease>,
    /// Of links: frames.
    pub heard: mpsc::Receiver<HeardOn>,
    /// Of links: that they changed.
    pub links: BoxStream<'static, ()>,
    /// Of the pools' file: that it may have changed.
    pub file: BoxStream<'static, ()>,
}

/// `NAMESPACE/NAME` of the Service a slice is of.
pub fn service_of(slice: &EndpointSlice) -> Option<String> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
    Some(format!("{namespace}/{name}"))
}

fn owner(node: &Node) -> OwnerReference {
    OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: node.metadata.name.clone().unwrap_or_default(),
        uid: node.metadata.uid.clone().unwrap_or_default(),
        ..OwnerReference::default()
    }
}

/// The loop's state.
pub struct Announcer {
    options: Options,
    clock: Clock,
    pools: Pools,
    caches: Caches,
    links: Vec<Link>,
    sockets: Sockets,
    writer: Writer,
    recorder: Recorder,
    leases: Cache,
    election: Election,
    speaker: Speaker,
    wanted: BTreeMap<IpAddr, Wanted>,
    /// `wanted` is to be made anew.
    changed: bool,
    /// When the last renewal that succeeded was sent.
    renewed: Option<Duration>,
    /// When the next renewal is due.
    renew_at: Duration,
    /// When the leases may be read next.
    list_at: Duration,
    /// The leases were read since this node was last unsure.
    verified: bool,
    /// As last decided: renewed and verified.
    sure: bool,
    /// When to decide again.
    wake: Option<Duration>,
    /// There were news since the last decision.
    stale: bool,
}

impl Announcer {
    /// Nothing is announced yet.
    pub fn new(
        options: Options,
        pools: Pools,
        caches: Caches,
        sockets: Sockets,
        writer: Writer,
        recorder: Recorder,
        clock: Clock,
    ) -> Self {
        let election = Election::new(&options.node_name);
        Self {
            options,
            clock,
            pools,
            caches,
            links: Vec::new(),
            sockets,
            writer,
            recorder,
            leases: Cache::default(),
            election,
            speaker: Speaker::default(),
            wanted: BTreeMap::new(),
            changed: true,
            renewed: None,
            renew_at: Duration::ZERO,
            list_at: Duration::ZERO,
            verified: false,
            sure: false,
            wake: None,
            stale: true,
        }
    }

    /// Runs until shutdown; gives back what it holds then, for others to take at once.
    pub async fn run(mut self, mut inputs: Inputs, shutdown: &Shutdown) {
        let (mut writes, mut written) =
            Writes::new(self.writer.clone(), self.clock.clone(), shutdown);
        self.read_links();
        loop {
            self.step(&mut writes);
            let now = self.clock.monotonic();
            let wake = [self.wake, self.speaker.wake(), writes.wake()];
            let wake = wake.into_iter().flatten().min();
            let pause = wake.map_or(IDLE, |wake| wake.saturating_sub(now));
            let mut stale = true;
            // Fair: whoever fills the link keeps nothing else from being heard.
            tokio::select! {
                () = shutdown.triggered() => break,
                // Answers need no decision.
                Some(heard) = inputs.heard.recv() => {
                    stale = false;
                    self.hear(heard);
                    for _ in 0..FRAMES {
                        let Ok(heard) = inputs.heard.try_recv() else { break };
                        self.hear(heard);
                    }
                }
                Some(news) = written.recv() => {
                    self.written(news, &mut writes);
                    while let Ok(news) = written.try_recv() {
                        self.written(news, &mut writes);
                    }
                }
                Some(event) = inputs.leases.recv() => {
                    self.lease(event);
                    while let Some(event) = inputs.leases.try_recv() {
                        self.lease(event);
                    }
                }
                Some(event) = inputs.services.recv() => {
                    self.service(&event);
                    while let Some(event) = inputs.services.try_recv() {
                        self.service(&event);
                    }
                }
                Some(event) = inputs.slices.recv() => {
                    self.slice(event.object());
                    while let Some(event) = inputs.slices.try_recv() {
                        self.slice(event.object());
                    }
                }
                Some(_) = inputs.nodes.recv() => self.changed = true,
                Some(()) = inputs.links.next() => self.read_links(),
                Some(()) = inputs.file.next() => self.read_file(),
                () = self.clock.sleep(pause) => stale = false,
            }
            self.stale |= stale;
        }
        self.give_back().await;
    }

    fn service(&mut self, event: &InformerEvent<Service>) {
        let is_old = matches!(event, InformerEvent::Updated { old, .. } if is_ours(old));
        self.changed |= is_old || is_ours(event.object());
    }

    /// Slices matter where only nodes with endpoints announce.
    fn slice(&mut self, slice: &EndpointSlice) {
        let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
        let name = slice
            .metadata
            .labels
            .as_ref()
            .and_then(|l| l.get(SERVICE_NAME));
        let service = name.and_then(|name| self.caches.services.get(namespace, name));
        self.changed |= service.is_some_and(|s| is_ours(&s) && is_local(&s));
    }

    fn lease(&mut self, event: InformerEvent<Lease>) {
        let now = self.clock.now().as_duration().as_secs_f64();
        METRICS.last_news.set(now);
        match event {
            InformerEvent::Deleted(lease) => self.leases.remove(&lease),
            InformerEvent::Added(lease) | InformerEvent::Updated { new: lease, .. } => {
                self.leases.apply(Arc::unwrap_or_clone(lease));
            }
        }
    }

    fn read_links(&mut self) {
        match link::read() {
            Ok(links) => {
                self.speaker.set_links(&links, self.clock.monotonic());
                self.changed |= links != self.links;
                self.links = links;
            }
            Err(error) => tracing::error!(%error, "Cannot read the links"),
        }
    }

    fn read_file(&mut self) {
        match Pools::load(&self.options.cloud_config) {
            Ok(pools) if pools == self.pools => {}
            Ok(pools) => {
                tracing::info!("The pools changed");
                self.pools = pools;
                self.changed = true;
            }
            Err(error) => tracing::error!(%error, "The pools cannot be read, the old ones stay"),
        }
    }

    fn written(&mut self, news: Written, writes: &mut Writes) {
        match news {
            Written::Is(lease) => self.is_now(*lease),
            Written::Gone(lease) => self.leases.remove(&lease),
            Written::Done(address, again) => writes.done(address, again, self.clock.monotonic()),
            Written::NotRenewed => writes.renewing = false,
            Written::Renewed(sent) => {
                writes.renewing = false;
                // While nobody was sure of this node, others may have taken what it held: the leases are read before it is sure.
                if !self.is_renewed(sent) {
                    self.verified = !self.holds_any();
                }
                self.renewed = Some(sent);
            }
            Written::Listed(listed) => {
                writes.listing = false;
                if let Some(all) = listed {
                    self.leases.replace(all);
                    self.verified = true;
                }
            }
        }
    }

    /// A Lease as an answer had it; that it is this node's now is told.
    fn is_now(&mut self, lease: Lease) {
        let of = Of::read(&lease);
        // The watch may have told first: that it is this node's is news to users all the same. A Lease of an address is written when its
        // holder changes and then alone.
        self.leases.apply(lease);
        let Some(Of::Address(address)) = of else {
            return;
        };
        let is_ours = self.holder(address) == Some(&self.options.node_name);
        let Some(wanted) = self.wanted.get(&address).filter(|_| is_ours) else {
            return;
        };
        tracing::info!(%address, "Announcing the address");
        METRICS.taken.inc();
        let message = format!("{address} is announced by node {}", self.options.node_name);
        let regarding = object_reference(&*wanted.service);
        let (reason, normal) = ("AddressAnnounced", EventType::Normal);
        self.recorder
            .event(&regarding, normal, reason, "Announce", message);
    }

    fn holder(&self, address: IpAddr) -> Option<&String> {
        self.leases
            .leases()
            .addresses
            .get(&address)?
            .holder
            .as_ref()
    }

    fn is_renewed(&self, now: Duration) -> bool {
        self.renewed.is_some_and(|sent| now < sent + RENEW_DEADLINE)
    }

    /// Whether any Lease says that this node holds its address.
    fn holds_any(&self) -> bool {
        let node = Some(&self.options.node_name);
        let mut leases = self.leases.leases().addresses.values();
        leases.any(|lease| lease.holder.as_ref() == node)
    }

    /// Decides where there is something to decide, and does what follows; says what is due.
    fn step(&mut self, writes: &mut Writes) {
        let now = self.clock.monotonic();
        self.stale |= writes.forget(now);
        let is_due = self.wake.is_some_and(|wake| wake <= now);
        if std::mem::take(&mut self.stale) || is_due {
            self.decide(now, writes);
        }
        for (link, frame) in self.speaker.due(now) {
            METRICS.frames.with_label_values(&["unasked"]).inc();
            self.sockets.send(link, &frame);
        }
    }

    fn decide(&mut self, now: Duration, writes: &mut Writes) {
        if std::mem::take(&mut self.changed) {
            self.look();
            writes.owner = self
                .caches
                .nodes
                .get("", &self.options.node_name)
                .map(|n| owner(&n));
        }
        let may: BTreeMap<IpAddr, bool> = self
            .wanted
            .iter()
            .map(|(address, wanted)| (*address, !wanted.links.is_empty()))
            .collect();
        let decision = self.election.decide(&may, self.leases.leases(), now);
        self.wake = decision.wake;
        self.renew(now, writes);

        let sure = self.verified && self.is_renewed(now);
        if std::mem::replace(&mut self.sure, sure) && !sure && self.holds_any() {
            tracing::warn!(
                "This node's Lease is not renewed: what is announced is gone on with, and nothing new is begun"
            );
        }
        let links = |address: &IpAddr| self.wanted.get(address).map(|w| w.links.clone());
        let hold = decision.hold.iter();
        let hold = hold.filter_map(|address| Some((*address, links(address)?)));
        self.speaker.set(hold.collect(), sure, now);
        self.set_sockets();
        let begun: Vec<Write> = decision
            .actions
            .into_iter()
            .filter_map(|action| self.write(action, writes))
            .collect();
        writes.begin(begun);
    }

    /// Makes `wanted` anew.
    fn look(&mut self) {
        let services = self.caches.services.list();
        let slices = |service: &str| self.caches.slices.by_index(SERVICE_NAME, service);
        let node = self.caches.nodes.get("", &self.options.node_name);
        self.wanted = wanted(&Observed {
            pools: &self.pools,
            services: &services,
            slices: &slices,
            node_name: &self.options.node_name,
            node: node.as_deref(),
            links: &self.links,
        });
    }

    /// A node that holds addresses renews its Lease; one that was unsure reads all leases, too.
    fn renew(&mut self, now: Duration, writes: &mut Writes) {
        if !self.holds_any() {
            return;
        }
        if now >= self.renew_at && !writes.renewing {
            self.renew_at = now + RENEW_INTERVAL;
            writes.renew();
        }
        if self.is_renewed(now) && !self.verified && !writes.listing && now >= self.list_at {
            self.list_at = now + RENEW_INTERVAL;
            writes.list();
        }
        let deadline = self.renewed.map(|sent| sent + RENEW_DEADLINE);
        let times = [deadline, Some(self.renew_at), Some(self.list_at), self.wake];
        self.wake = times.into_iter().flatten().filter(|at| *at > now).min();
    }

    fn set_sockets(&mut self) {
        let announced = self.speaker.announced();
        let wanted: BTreeSet<(u32, bool)> = announced
            .flat_map(|(address, links)| links.iter().map(move |link| (*link, address.is_ipv4())))
            .collect();
        METRICS
            .announced
            .set(self.speaker.announced().count() as i64);
        self.sockets.set(&wanted, self.speaker.groups());
    }

    /// The write of an action, unless one of its address is under way.
    fn write(&self, action: Action, writes: &Writes) -> Option<Write> {
        let node = |name: String| {
            let known = self.leases.get(&Of::Node(name.clone())).cloned();
            (name, known)
        };
        let (address, change) = match action {
            Action::Take { address, from } => (address, Change::Take(from.map(node))),
            Action::GiveBack(address) => (address, Change::GiveBack),
            Action::Delete(address) => (address, Change::Delete),
        };
        if !writes.is_free(address) {
            return None;
        }
        let known = self.leases.get(&Of::Address(address)).cloned();
        Some(Write {
            address,
            known,
            change,
        })
    }

    fn hear(&mut self, (link, heard): (u32, Heard)) {
        if let Some((link, frame)) = self.speaker.hear(link, heard, self.clock.monotonic()) {
            METRICS.frames.with_label_values(&["asked"]).inc();
            self.sockets.send(link, &frame);
        }
    }

    /// What is held is nobody's, so that others need not wait for this node to be found gone.
    async fn give_back(&self) {
        let node = Some(&self.options.node_name);
        let leases = self.leases.leases().addresses.iter();
        let held = leases.filter(|(_, lease)| lease.holder.as_ref() == node);
        let all = held.map(|(address, _)| {
            let known = self.leases.get(&Of::Address(*address)).cloned();
            self.writer.set_holder(*address, known, false)
        });
        let all = futures::future::join_all(all);
        if tokio::time::timeout(END, all).await.is_err() {
            tracing::warn!("Addresses could not be given back, others find this node gone");
        }
    }
}
