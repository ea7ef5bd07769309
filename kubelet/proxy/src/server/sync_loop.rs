//! One loop over all events; it alone changes the proxiers.

use std::time::{Duration, Instant};

use component_base::clock::Clock;
use component_base::informer::{Informer, InformerEvent, Receiver};
use component_base::shutdown::Shutdown;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;

use crate::proxier::{FULL_SYNC_PERIOD, Proxier};

/// Where events come from.
pub struct Inputs {
    pub nodes: Receiver<Node>,
    pub services: Receiver<Service>,
    pub slices: Receiver<EndpointSlice>,
    pub cidrs: Receiver<ServiceCIDR>,
}

enum Event {
    Node(InformerEvent<Node>),
    Service(InformerEvent<Service>),
    Slice(InformerEvent<EndpointSlice>),
    Cidr,
    Due,
    Ended,
}

/// Runs until shutdown. `update_node` gives a proxier what its Node means, and says whether that matters.
pub async fn sync_loop(
    mut inputs: Inputs,
    cidrs: &Informer<ServiceCIDR>,
    proxiers: &mut [Proxier],
    update_node: impl Fn(&mut Proxier, &Node) -> bool,
    min_sync_period: Duration,
    (clock, shutdown): (&Clock, &Shutdown),
) {
    // Everything that the caches hold goes into the first sync.
    drain(&mut inputs, cidrs, proxiers, &update_node);
    let mut last_sync: Option<Instant> = None;
    for proxier in proxiers.iter_mut() {
        proxier.retry_at = Some(clock.instant());
    }
    loop {
        let now = clock.instant();
        let due = due(proxiers, now, last_sync, min_sync_period);
        // What is due is not put off by a stream of events.
        let event = if due <= now {
            Event::Due
        } else {
            tokio::select! {
                biased;
                () = shutdown.triggered() => return,
                event = inputs.services.recv() => event.map_or(Event::Ended, Event::Service),
                event = inputs.slices.recv() => event.map_or(Event::Ended, Event::Slice),
                event = inputs.nodes.recv() => event.map_or(Event::Ended, Event::Node),
                event = inputs.cidrs.recv() => event.map_or(Event::Ended, |_| Event::Cidr),
                () = clock.sleep(due.saturating_duration_since(now)) => Event::Due,
            }
        };
        match event {
            Event::Ended => return,
            Event::Due => {
                if shutdown.is_triggered() {
                    return;
                }
                // Each family has what is waiting for it; one failing does not hold the other up.
                for proxier in proxiers.iter_mut() {
                    if is_due(proxier, clock.instant()) {
                        proxier.sync().await;
                    }
                }
                last_sync = Some(clock.instant());
            }
            event => {
                apply(event, cidrs, proxiers, &update_node);
                drain(&mut inputs, cidrs, proxiers, &update_node);
            }
        }
    }
}

/// When the next sync is due.
fn due(
    proxiers: &[Proxier],
    now: Instant,
    last_sync: Option<Instant>,
    min_sync_period: Duration,
) -> Instant {
    let allowed = last_sync.map_or(now, |last| (last + min_sync_period).max(now));
    let next = proxiers.iter().filter_map(|proxier| {
        let wanted = if proxier.state.is_changed() {
            Some(now)
        } else {
            None
        };
        [wanted, proxier.retry_at].into_iter().flatten().min()
    });
    let latest = last_sync.map_or(now, |last| last + FULL_SYNC_PERIOD);
    next.min()
        .map_or(latest, |next| next.max(allowed))
        .min(latest.max(allowed))
}

fn is_due(proxier: &Proxier, now: Instant) -> bool {
    proxier.state.is_changed()
        || proxier.retry_at.is_some_and(|at| at <= now)
        || proxier.is_full_sync_due()
}

fn drain(
    inputs: &mut Inputs,
    cidrs: &Informer<ServiceCIDR>,
    proxiers: &mut [Proxier],
    update_node: &impl Fn(&mut Proxier, &Node) -> bool,
) {
    while let Some(event) = inputs.services.try_recv() {
        apply(Event::Service(event), cidrs, proxiers, update_node);
    }
    while let Some(event) = inputs.slices.try_recv() {
        apply(Event::Slice(event), cidrs, proxiers, update_node);
    }
    while let Some(event) = inputs.nodes.try_recv() {
        apply(Event::Node(event), cidrs, proxiers, update_node);
    }
    let mut ranges_changed = false;
    while inputs.cidrs.try_recv().is_some() {
        ranges_changed = true;
    }
    if ranges_changed {
        apply(Event::Cidr, cidrs, proxiers, update_node);
    }
}

fn apply(
    event: Event,
    cidrs: &Informer<ServiceCIDR>,
    proxiers: &mut [Proxier],
    update_node: &impl Fn(&mut Proxier, &Node) -> bool,
) {
    for proxier in proxiers {
        let state = &mut proxier.state;
        let matters = match &event {
            Event::Service(
                InformerEvent::Added(service) | InformerEvent::Updated { new: service, .. },
            ) => state.apply_service(service),
            Event::Service(InformerEvent::Deleted(service)) => state.remove_service(service),
            Event::Slice(
                InformerEvent::Added(slice) | InformerEvent::Updated { new: slice, .. },
            ) => state.apply_slice(slice),
            Event::Slice(InformerEvent::Deleted(slice)) => state.remove_slice(slice),
            Event::Node(InformerEvent::Added(node) | InformerEvent::Updated { new: node, .. }) => {
                update_node(proxier, node)
            }
            // Until it is back, the node stays what it was.
            Event::Node(InformerEvent::Deleted(_)) => false,
            Event::Cidr => proxier.set_service_cidrs(&service_ranges(cidrs)),
            Event::Due | Event::Ended => false,
        };
        if matters {
            proxier.queued();
        }
    }
}

fn service_ranges(cidrs: &Informer<ServiceCIDR>) -> Vec<IpNet> {
    let all = cidrs.list();
    let texts = all
        .iter()
        .filter_map(|cidr| cidr.spec.as_ref())
        .flat_map(|spec| spec.cidrs.iter().flatten());
    texts.filter_map(|text| text.parse().ok()).collect()
}
