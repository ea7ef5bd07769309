//! The health of kube-proxy (10256), and the health-check node ports of Services with external policy Local.
//!
//! Upstream: pkg/proxy/healthcheck.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use component_base::clock::Clock;
use component_base::events::{EventType, Recorder};
use component_base::informer::Informer;
use component_base::shutdown::Shutdown;
use k8s_openapi::api::core::v1::{Node, ObjectReference};
use k8s_openapi::jiff::Timestamp;
use nftables::Family;
use serde_json::json;

use crate::metrics::{METRICS, family_label};
use crate::node;
use crate::service::NamespacedName;

/// How each family's proxier is doing. Cheap to clone.
#[derive(Clone)]
pub struct ProxyHealth {
    inner: Arc<Mutex<BTreeMap<Family, FamilyHealth>>>,
    /// After this long with changes that are not in the kernel, a proxier is unhealthy. Upstream: 2 * syncPeriod.
    timeout: Duration,
    clock: Clock,
}

#[derive(Clone, Copy)]
struct FamilyHealth {
    last_updated: Timestamp,
    /// Since when a change waits, by the clock's monotonic time.
    oldest_pending: Option<Duration>,
}

impl ProxyHealth {
    pub fn new(timeout: Duration, clock: Clock) -> Self {
        Self {
            inner: Default::default(),
            timeout,
            clock,
        }
    }

    /// What it and the proxiers go by.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The kernel has everything.
    pub fn updated(&self, family: Family) {
        let health = FamilyHealth {
            last_updated: self.clock.now(),
            oldest_pending: None,
        };
        self.lock().insert(family, health);
    }

    /// Something waits to be put into the kernel.
    pub fn queued(&self, family: Family) {
        if let Some(health) = self.lock().get_mut(&family) {
            let now = || self.clock.monotonic();
            health.oldest_pending.get_or_insert_with(now);
        }
    }

    pub fn is_healthy(&self) -> bool {
        self.lock().values().all(|health| self.fits(health))
    }

    fn fits(&self, health: &FamilyHealth) -> bool {
        health
            .oldest_pending
            .is_none_or(|since| self.clock.monotonic().saturating_sub(since) < self.timeout)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Family, FamilyHealth>> {
        self.inner.lock().expect("no holder of the lock panics")
    }

    /// `eligible`: what `/healthz` adds; `None` for `/livez`.
    fn page(&self, eligible: Option<bool>) -> Response {
        let families = self.lock().clone();
        let mut status = serde_json::Map::new();
        for (family, health) in &families {
            let one = json!({ "lastUpdated": health.last_updated.to_string(), "healthy": self.fits(health) });
            status.insert(family_label(*family).to_owned(), one);
        }
        let healthy = families.values().all(|health| self.fits(health));
        let ok = healthy && eligible.unwrap_or(true);
        let now = self.clock.now().to_string();
        // "Recent" for as long as all is well; upstream keeps this of older releases.
        let last = families
            .values()
            .map(|health| health.last_updated)
            .max()
            .map(|time| time.to_string());
        let last_updated = if ok { Some(now.clone()) } else { last };
        let mut body = json!({ "lastUpdated": last_updated, "currentTime": now, "healthy": healthy, "status": status });
        if let Some(eligible) = eligible {
            body["nodeEligible"] = eligible.into();
        }
        let code = if ok {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        let total = if eligible.is_some() {
            &METRICS.proxy_healthz_total
        } else {
            &METRICS.proxy_livez_total
        };
        total.with_label_values(&[code.as_str()]).inc();
        answer(code, &[], body.to_string())
    }

    /// `/healthz` and `/livez`.
    pub fn router(&self, nodes: Informer<Node>, node_name: String) -> Router {
        let (healthz, livez) = (self.clone(), self.clone());
        let eligible = move || node::is_eligible(nodes.get("", &node_name).as_deref());
        Router::new()
            .route(
                "/healthz",
                get(move || async move { healthz.page(Some(eligible())) }),
            )
            .route("/livez", get(move || async move { livez.page(None) }))
    }
}

fn answer(code: StatusCode, more: &[(HeaderName, String)], body: String) -> Response {
    let mut response = (
        code,
        [
            (header::CONTENT_TYPE, "application/json"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ],
        body,
    )
        .into_response();
    for (name, value) in more {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name.clone(), value);
        }
    }
    response
}

/// A wanted health-check node port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceHealth {
    pub port: u16,
    /// Ready endpoints on this node.
    pub local_endpoints: usize,
}

/// Serves the health-check node ports: load balancers ask there which nodes have endpoints.
pub struct ServiceHealthServer {
    node_name: String,
    recorder: Recorder,
    health: ProxyHealth,
    shutdown: Shutdown,
    family: Family,
    /// Where to listen; one entry of 0.0.0.0 means everywhere.
    addresses: BTreeSet<IpAddr>,
    /// By port: it stays open when another Service gets it, as the old listener could be there yet when the new one begins.
    open: BTreeMap<u16, Open>,
}

struct Open {
    served: Arc<RwLock<Served>>,
    listening: BTreeMap<IpAddr, Shutdown>,
}

/// Whose health a port tells.
#[derive(Clone)]
struct Served {
    name: NamespacedName,
    local_endpoints: usize,
}

impl ServiceHealthServer {
    /// `addresses` are those that accept node ports; `None`: all.
    pub fn new(
        node_name: &str,
        recorder: Recorder,
        health: ProxyHealth,
        addresses: Option<Vec<IpAddr>>,
        family: Family,
        shutdown: &Shutdown,
    ) -> Self {
        let mut server = Self {
            node_name: node_name.to_owned(),
            recorder,
            health,
            shutdown: shutdown.clone(),
            family,
            addresses: BTreeSet::new(),
            open: BTreeMap::new(),
        };
        server.set_addresses(addresses);
        server
    }

    /// Where to listen from the next sync on; `None`: everywhere.
    pub fn set_addresses(&mut self, addresses: Option<Vec<IpAddr>>) {
        let any: IpAddr = match self.family {
            Family::Ip => Ipv4Addr::UNSPECIFIED.into(),
            Family::Ip6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        self.addresses = addresses.unwrap_or_else(|| vec![any]).into_iter().collect();
    }

    /// Opens and closes ports so that exactly these are served.
    pub fn sync(&mut self, wanted: &BTreeMap<NamespacedName, ServiceHealth>) {
        let addresses = &self.addresses;
        self.open.retain(|port, open| {
            let keep = wanted.values().any(|wanted| wanted.port == *port);
            open.listening.retain(|address, listening| {
                let stays = keep && addresses.contains(address);
                if !stays {
                    listening.trigger();
                }
                stays
            });
            keep
        });
        let mut taken = BTreeSet::new();
        for (name, health) in wanted {
            let port = health.port;
            let served = Served {
                name: name.clone(),
                local_endpoints: health.local_endpoints,
            };
            if !taken.insert(port) {
                let error = std::io::Error::from(std::io::ErrorKind::AddrInUse);
                self.failed(name, port, &error);
            } else if let Err(error) = self.serve(port, served) {
                self.failed(name, port, &error);
            }
        }
    }

    fn failed(&self, name: &NamespacedName, port: u16, error: &std::io::Error) {
        let text = format!(
            "node {} failed to start healthcheck {:?} on port {port}: {error}",
            self.node_name,
            name.to_string(),
        );
        let reference = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Service".into()),
            namespace: Some(name.namespace.clone()),
            name: Some(name.name.clone()),
            ..ObjectReference::default()
        };
        tracing::error!(service = %name, port, %error, "Failed to start healthcheck");
        let reason = "FailedToStartServiceHealthcheck";
        self.recorder
            .event(&reference, EventType::Warning, reason, "Listen", text);
    }

    /// Tells this at the port from now on, at every address.
    fn serve(&mut self, port: u16, served: Served) -> std::io::Result<()> {
        let known = self.open.get(&port);
        let is_new = |address: &&IpAddr| known.is_none_or(|o| !o.listening.contains_key(*address));
        let listen = |address: &IpAddr| {
            let bound = bind(SocketAddr::new(*address, port));
            bound.map(|listener| (*address, listener))
        };
        let listeners: std::io::Result<Vec<_>> =
            self.addresses.iter().filter(is_new).map(listen).collect();
        if let Some(open) = known {
            *open.served.write().expect("no holder of the lock panics") = served.clone();
        }
        let listeners = listeners?;
        let open = self.open.entry(port).or_insert_with(|| Open {
            served: Arc::new(RwLock::new(served)),
            listening: BTreeMap::new(),
        });
        for (address, listener) in listeners {
            let shutdown = self.shutdown.child();
            let router = service_router(open.served.clone(), self.health.clone());
            let serving =
                component_base::serving::serve_insecure(listener, router, shutdown.clone());
            shutdown.spawn_guarded("server of a service's health", serving);
            open.listening.insert(address, shutdown);
        }
        Ok(())
    }
}

/// IPv6's "any" must not take IPv4's place, since each family has its own proxier.
fn bind(address: SocketAddr) -> std::io::Result<tokio::net::TcpListener> {
    use nix::sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, setsockopt, socket, sockopt,
    };
    let family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let fd = socket(
        family,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    if address.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    use std::os::fd::AsRawFd;
    nix::sys::socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    nix::sys::socket::listen(&fd, Backlog::new(128)?)?;
    tokio::net::TcpListener::from_std(std::net::TcpListener::from(fd))
}

fn service_router(served: Arc<RwLock<Served>>, health: ProxyHealth) -> Router {
    let page = move || {
        let Served {
            name,
            local_endpoints: count,
        } = served.read().expect("no holder of the lock panics").clone();
        let healthy = health.is_healthy();
        let code = if count != 0 && healthy {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        let body = json!({
            "service": { "namespace": name.namespace, "name": name.name },
            "localEndpoints": count,
            "serviceProxyHealthy": healthy,
        });
        let weight = (
            HeaderName::from_static("x-load-balancing-endpoint-weight"),
            count.to_string(),
        );
        answer(code, &[weight], body.to_string())
    };
    let fallback = page.clone();
    Router::new()
        .route("/", get(move || async move { page() }))
        .fallback(move || async move { fallback() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn ask(port: u16) -> Option<String> {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .ok()?;
        let request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        Some(text)
    }

    #[tokio::test]
    async fn ports_follow_the_nodes_addresses() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let (recorder, mut events) = Recorder::fake();
        let health = ProxyHealth::new(Duration::from_secs(60), Clock::real());
        // The Node has no address yet.
        let mut server = ServiceHealthServer::new(
            "n",
            recorder,
            health,
            Some(Vec::new()),
            Family::Ip,
            &Shutdown::new(),
        );
        let name = NamespacedName {
            namespace: "ns".into(),
            name: "a".into(),
        };
        let local_endpoints = 1;
        let wanted = BTreeMap::from([(
            name,
            ServiceHealth {
                port,
                local_endpoints,
            },
        )]);
        server.sync(&wanted);
        assert!(ask(port).await.is_none());
        server.set_addresses(Some(vec![[127, 0, 0, 1].into()]));
        server.sync(&wanted);
        let answer = ask(port).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        // One more, and the one that was there goes on.
        server.set_addresses(Some(vec![[127, 0, 0, 1].into(), [127, 0, 0, 2].into()]));
        server.sync(&wanted);
        assert!(ask(port).await.is_some());
        let other = tokio::net::TcpStream::connect(("127.0.0.2", port)).await;
        assert!(other.is_ok());
        server.set_addresses(Some(vec![[127, 0, 0, 2].into()]));
        server.sync(&wanted);
        assert_eq!(server.open[&port].listening.len(), 1);
        assert!(events.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_port_goes_from_one_service_to_another_without_a_gap() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let (recorder, mut events) = Recorder::fake();
        let health = ProxyHealth::new(Duration::from_secs(60), Clock::real());
        let mut server = ServiceHealthServer::new(
            "n",
            recorder,
            health,
            Some(vec![[127, 0, 0, 1].into()]),
            Family::Ip,
            &Shutdown::new(),
        );
        let wanted = |services: &[(&str, usize)]| -> BTreeMap<_, _> {
            let one = |(name, local_endpoints): &(&str, usize)| {
                let name = NamespacedName {
                    namespace: "ns".into(),
                    name: (*name).into(),
                };
                let local_endpoints = *local_endpoints;
                (
                    name,
                    ServiceHealth {
                        port,
                        local_endpoints,
                    },
                )
            };
            services.iter().map(one).collect()
        };
        server.sync(&wanted(&[("a", 1)]));
        let answer = ask(port).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.contains("\"name\":\"a\""), "{answer}");
        // Deleted, and another one made with its port, before the rules were written.
        server.sync(&wanted(&[("b", 0)]));
        let answer = ask(port).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.contains("\"name\":\"b\""), "{answer}");
        assert!(events.try_recv().is_err());
        server.sync(&wanted(&[("b", 0), ("c", 0)]));
        let event = events.try_recv().unwrap();
        assert_eq!(event.reason, "FailedToStartServiceHealthcheck");
        assert_eq!(event.regarding.name.as_deref(), Some("c"));
    }
}
