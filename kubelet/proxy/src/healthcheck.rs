//! The health of kube-proxy (10256), and the health-check node ports of Services with external policy Local.
//!
//! Upstream: pkg/proxy/healthcheck.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
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
}

#[derive(Clone, Copy)]
struct FamilyHealth {
    last_updated: Timestamp,
    /// Since when a change waits.
    oldest_pending: Option<Instant>,
}

impl ProxyHealth {
    pub fn new(timeout: Duration) -> Self {
        Self {
            inner: Default::default(),
            timeout,
        }
    }

    /// The kernel has everything.
    pub fn updated(&self, family: Family) {
        let health = FamilyHealth {
            last_updated: Timestamp::now(),
            oldest_pending: None,
        };
        self.lock().insert(family, health);
    }

    /// Something waits to be put into the kernel.
    pub fn queued(&self, family: Family) {
        if let Some(health) = self.lock().get_mut(&family) {
            health.oldest_pending.get_or_insert_with(Instant::now);
        }
    }

    pub fn is_healthy(&self) -> bool {
        self.lock().values().all(|health| self.fits(health))
    }

    fn fits(&self, health: &FamilyHealth) -> bool {
        health
            .oldest_pending
            .is_none_or(|since| since.elapsed() < self.timeout)
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
        let now = Timestamp::now().to_string();
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
    /// Where to listen; one entry of 0.0.0.0 means everywhere.
    addresses: Vec<IpAddr>,
    open: BTreeMap<NamespacedName, Open>,
}

struct Open {
    port: u16,
    local_endpoints: Arc<RwLock<usize>>,
    shutdown: Shutdown,
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
        let any: IpAddr = match family {
            Family::Ip => Ipv4Addr::UNSPECIFIED.into(),
            Family::Ip6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        let shutdown = shutdown.clone();
        let addresses = addresses.unwrap_or_else(|| vec![any]);
        Self {
            node_name: node_name.to_owned(),
            recorder,
            health,
            shutdown,
            addresses,
            open: BTreeMap::new(),
        }
    }

    /// Opens and closes ports so that exactly these are served.
    pub async fn sync(&mut self, wanted: &BTreeMap<NamespacedName, ServiceHealth>) {
        self.open.retain(|name, open| {
            let keep = wanted
                .get(name)
                .is_some_and(|wanted| wanted.port == open.port);
            if !keep {
                open.shutdown.trigger();
            }
            keep
        });
        for (name, health) in wanted {
            if let Some(open) = self.open.get(name) {
                *open
                    .local_endpoints
                    .write()
                    .expect("no holder of the lock panics") = health.local_endpoints;
            } else if let Some(open) = self.listen(name, *health).await {
                self.open.insert(name.clone(), open);
            }
        }
    }

    async fn listen(&self, name: &NamespacedName, health: ServiceHealth) -> Option<Open> {
        let shutdown = self.shutdown.child();
        let local_endpoints = Arc::new(RwLock::new(health.local_endpoints));
        for address in &self.addresses {
            let listener = match bind(SocketAddr::new(*address, health.port)) {
                Ok(listener) => listener,
                Err(error) => {
                    shutdown.trigger();
                    let text = format!(
                        "node {} failed to start healthcheck {:?} on port {}: {error}",
                        self.node_name,
                        name.to_string(),
                        health.port
                    );
                    let reference = ObjectReference {
                        api_version: Some("v1".into()),
                        kind: Some("Service".into()),
                        namespace: Some(name.namespace.clone()),
                        name: Some(name.name.clone()),
                        ..ObjectReference::default()
                    };
                    tracing::error!(service = %name, port = health.port, %error, "Failed to start healthcheck");
                    let reason = "FailedToStartServiceHealthcheck";
                    self.recorder
                        .event(&reference, EventType::Warning, reason, "Listen", text);
                    return None;
                }
            };
            let router = service_router(name.clone(), local_endpoints.clone(), self.health.clone());
            let serving =
                component_base::serving::serve_insecure(listener, router, shutdown.clone());
            shutdown.spawn_guarded("server of a service's health", serving);
        }
        Some(Open {
            port: health.port,
            local_endpoints,
            shutdown,
        })
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

fn service_router(
    name: NamespacedName,
    local_endpoints: Arc<RwLock<usize>>,
    health: ProxyHealth,
) -> Router {
    let page = move || {
        let count = *local_endpoints
            .read()
            .expect("no holder of the lock panics");
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
