//! One address family's rules: from state to kernel.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use component_base::clock::Clock;
use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;
use nftables::{Family, Nft, NftError, Syncer};

use crate::healthcheck::{ProxyHealth, ServiceHealth, ServiceHealthServer};
use crate::metrics::{METRICS, family_label, now_seconds};
use crate::render::{RenderOptions, ServiceEntry, Slots, TABLE, render};
use crate::service::NamespacedName;
use crate::state::State;
use crate::{conntrack, leftovers, node};

/// How often the kernel's table is read back and compared, whatever happened. Upstream: proxyutil.FullSyncPeriod.
pub const FULL_SYNC_PERIOD: Duration = Duration::from_secs(3600);

/// Which of the node's addresses accept node ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    All,
    Some {
        /// The addresses in the Node object.
        primary: bool,
        /// The machine's addresses in these ranges.
        ranges: Vec<IpNet>,
    },
}

impl NodePortAddresses {
    /// The addresses; `None`: all.
    pub fn resolve(&self, node_ip: Option<IpAddr>) -> Option<Vec<IpAddr>> {
        let Self::Some { primary, ranges } = self else {
            return None;
        };
        let mut addresses: Vec<IpAddr> = node_ip.filter(|_| *primary).into_iter().collect();
        if ranges.is_empty() {
            return Some(addresses);
        }
        match node::local_addresses(ranges) {
            Ok(found) => {
                for address in found {
                    if address.is_loopback() {
                        tracing::error!(%address, "--nodeport-addresses includes localhost but localhost NodePorts are not supported");
                    } else if !addresses.contains(&address) {
                        addresses.push(address);
                    }
                }
            }
            Err(error) => {
                tracing::error!(%error, "Failed to get node ip address matching nodeport cidrs, services with nodeport may not work as intended");
            }
        }
        Some(addresses)
    }
}

/// Keeps one family's table.
pub struct Proxier {
    family: Family,
    pub state: State,
    options: RenderOptions,
    node_port_addresses: NodePortAddresses,
    slots: Slots,
    syncer: Syncer,
    nft: Arc<dyn Nft>,
    /// Another kube-proxy's rules are gone, or there were none.
    leftovers_are_gone: bool,
    health: ProxyHealth,
    service_health: ServiceHealthServer,
    /// Changes before this are no measure of our speed.
    started: Timestamp,
    clock: Clock,
    last_full_sync: Option<Instant>,
    /// After a failure, or for chains that can be deleted only later.
    pub retry_at: Option<Instant>,
    sync_period: Duration,
}

impl Proxier {
    pub fn new(
        nft: Arc<dyn Nft>,
        options: RenderOptions,
        node_port_addresses: NodePortAddresses,
        external_ips: bool,
        health: ProxyHealth,
        service_health: ServiceHealthServer,
        sync_period: Duration,
    ) -> Self {
        let family = options.family;
        let clock = health.clock().clone();
        health.updated(family);
        METRICS
            .sync_proxy_rules_last_queued_timestamp_seconds
            .with_label_values(&[family_label(family)])
            .set(now_seconds(&clock));
        Self {
            family,
            state: State::new(family, &options.place.node, external_ips),
            options,
            node_port_addresses,
            slots: Slots::default(),
            syncer: Syncer::new(nft.clone(), family, TABLE),
            nft,
            leftovers_are_gone: false,
            health,
            service_health,
            started: clock.now(),
            clock,
            last_full_sync: None,
            retry_at: None,
            sync_period,
        }
    }

    pub fn family(&self) -> Family {
        self.family
    }

    /// Something that matters happened.
    pub fn queued(&self) {
        self.health.queued(self.family);
        let label = family_label(self.family);
        METRICS
            .sync_proxy_rules_last_queued_timestamp_seconds
            .with_label_values(&[label])
            .set(now_seconds(&self.clock));
        METRICS
            .endpoint_changes_pending
            .set(self.state.changes().endpoints as i64);
        METRICS
            .service_changes_pending
            .set(self.state.changes().services as i64);
    }

    /// The Node changed: its zone, address or pod ranges. True: this matters.
    pub fn set_node(&mut self, fresh: RenderOptions) -> bool {
        let fresh = RenderOptions {
            node_port_addresses: self.options.node_port_addresses.clone(),
            service_cidrs: self.options.service_cidrs.clone(),
            ..fresh
        };
        if self.options == fresh {
            return false;
        }
        if self.options.node_ip != fresh.node_ip {
            // Node ports may have to move with it.
            self.last_full_sync = None;
        }
        self.options = fresh;
        self.state.touch();
        true
    }

    fn since(&self, start: Instant) -> Duration {
        self.clock.instant().saturating_duration_since(start)
    }

    /// The kernel's table was not looked at for long.
    pub fn is_full_sync_due(&self) -> bool {
        self.last_full_sync
            .is_none_or(|last| self.since(last) >= FULL_SYNC_PERIOD)
    }

    /// The ranges of Service addresses changed. True: this matters.
    pub fn set_service_cidrs(&mut self, cidrs: &[IpNet]) -> bool {
        let mut own: Vec<_> = cidrs
            .iter()
            .copied()
            .filter(|cidr| Family::of(&cidr.addr()) == self.family)
            .collect();
        own.sort();
        if self.options.service_cidrs == own {
            return false;
        }
        self.options.service_cidrs = own;
        self.state.touch();
        true
    }

    /// Brings the kernel in line. A failure is retried after the sync period.
    pub async fn sync(&mut self) {
        let started = self.clock.instant();
        let label = family_label(self.family);
        let changes = self.state.take_changes();
        METRICS
            .endpoint_changes_total
            .inc_by(changes.endpoints as u64);
        METRICS
            .service_changes_total
            .inc_by(changes.services as u64);
        METRICS.endpoint_changes_pending.set(0);
        METRICS.service_changes_pending.set(0);
        let full = self.is_full_sync_due();
        if full {
            self.syncer.forget();
            self.options.node_port_addresses =
                self.node_port_addresses.resolve(self.options.node_ip);
            self.service_health
                .set_addresses(self.options.node_port_addresses.clone());
        }
        let result = self.sync_rules().await;
        METRICS
            .sync_proxy_rules_duration_seconds
            .with_label_values(&[label])
            .observe(self.since(started).as_secs_f64());
        match result {
            Ok(retry_after) => {
                let duration = if full {
                    self.last_full_sync = Some(self.clock.instant());
                    &METRICS.sync_full_proxy_rules_duration_seconds
                } else {
                    &METRICS.sync_partial_proxy_rules_duration_seconds
                };
                duration
                    .with_label_values(&[label])
                    .observe(self.since(started).as_secs_f64());
                self.retry_at = retry_after.map(|after| self.clock.instant() + after);
                self.programmed(&changes.trigger_times);
            }
            Err(error) => {
                tracing::error!(family = label, %error, "nftables sync failed");
                if let NftError::Refused { transaction, .. } = &error {
                    tracing::debug!(family = label, %transaction, "the transaction's beginning");
                }
                METRICS
                    .nftables_sync_failures_total
                    .with_label_values(&[label])
                    .inc();
                // What was taken must not be forgotten: everything is rendered again anyway, conntrack is not.
                self.last_full_sync = None;
                self.retry_at = Some(self.clock.instant() + self.sync_period);
                return;
            }
        }
        self.service_health
            .sync(&service_health(self.state.services()));
        if full && !self.leftovers_are_gone {
            self.remove_leftovers().await;
        }
        if changes.udp || full {
            conntrack::clean_stale_entries(self.family, self.state.services()).await;
        }
    }

    async fn sync_rules(&mut self) -> Result<Option<Duration>, NftError> {
        let rendered = render(&self.options, self.state.services(), &mut self.slots);
        let report = self.syncer.sync(rendered.table).await?;
        let label = family_label(self.family);
        tracing::debug!(
            family = label,
            operations = report.operations,
            "Synced proxy rules"
        );
        let set = |policy, count: usize| {
            METRICS
                .no_local_endpoints_total
                .with_label_values(&[policy, label])
                .set(count as f64);
        };
        set("internal", rendered.no_local_endpoints_internal);
        set("external", rendered.no_local_endpoints_external);
        self.health.updated(self.family);
        METRICS
            .sync_proxy_rules_last_timestamp_seconds
            .with_label_values(&[label])
            .set(now_seconds(&self.clock));
        Ok(report.retry_after)
    }

    /// Not before our own rules stand. A failure is tried again with the next full sync.
    async fn remove_leftovers(&mut self) {
        match leftovers::remove(&*self.nft, self.family).await {
            Ok(()) => self.leftovers_are_gone = true,
            Err(error) => {
                let label = family_label(self.family);
                tracing::error!(family = label, %error, "Unable to remove what another kube-proxy left");
                METRICS
                    .nftables_cleanup_failures_total
                    .with_label_values(&[label])
                    .inc();
            }
        }
    }

    fn programmed(&self, trigger_times: &[Timestamp]) {
        let now = self.clock.now();
        let duration = METRICS
            .network_programming_duration_seconds
            .with_label_values(&[family_label(self.family)]);
        for time in trigger_times.iter().filter(|time| **time >= self.started) {
            duration.observe(now.duration_since(*time).as_secs_f64());
        }
    }
}

/// The wanted health-check node ports.
fn service_health(
    services: &BTreeMap<NamespacedName, ServiceEntry>,
) -> BTreeMap<NamespacedName, ServiceHealth> {
    let mut wanted = BTreeMap::new();
    for (name, entry) in services {
        let Some(port) = entry
            .ports
            .values()
            .find_map(|port| port.health_check_node_port)
        else {
            continue;
        };
        let local = entry
            .endpoints
            .values()
            .flatten()
            .filter(|e| e.is_local && e.ready);
        let addresses: std::collections::BTreeSet<_> =
            local.map(|endpoint| endpoint.address).collect();
        wanted.insert(
            name.clone(),
            ServiceHealth {
                port,
                local_endpoints: addresses.len(),
            },
        );
    }
    wanted
}
