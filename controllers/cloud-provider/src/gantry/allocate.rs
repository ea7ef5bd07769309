//! Which addresses a Service gets. Pure: everything follows from the pools and from what Services' statuses say, so that a restart
//! gives the same addresses.
//!
//! A Service keeps what it has as long as it may have it; what it asks for comes first; then the first free address of the first
//! pool that takes it. Of two Services with one address in their statuses the older has it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;

use super::pools::{Pool, Pools};
use super::service::{
    WantedError, families, is_ours, is_second_optional, key, status_addresses, wanted, wanted_pool,
};

/// Why a Service gets no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocateError {
    /// It asks for something that cannot be.
    #[error(transparent)]
    Wanted(#[from] WantedError),
    /// It asks for a pool that is not there.
    #[error("no pool is called {0:?}")]
    NoPool(String),
    /// It asks for an address of no pool.
    #[error("the wanted address {0} is in no pool")]
    Foreign(IpAddr),
    /// It asks for an address of a pool and for another pool.
    #[error("the wanted address {address} is not in the wanted pool {pool:?}, but in {of:?}")]
    OtherPool {
        /// The address.
        address: IpAddr,
        /// Wanted.
        pool: String,
        /// Where the address is.
        of: String,
    },
    /// The pool is for others.
    #[error("pool {pool:?} is not for namespace {namespace:?}")]
    NotAdmitted {
        /// The pool.
        pool: String,
        /// The Service's.
        namespace: String,
    },
    /// Another Service has it.
    #[error(
        "the wanted address {address} is that of Service {holder}; sharing an address is not supported"
    )]
    InUse {
        /// The address.
        address: IpAddr,
        /// `NAMESPACE/NAME`.
        holder: String,
    },
    /// It asks for an address of a family it has not.
    #[error("the wanted address {address} is of no IP family of the Service")]
    Family {
        /// The address.
        address: IpAddr,
    },
    /// No pool has addresses of a family for it.
    #[error("no pool has {family} addresses for the Service")]
    NoFamily {
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
    /// All are in use.
    #[error("no {family} address is left in pool {}", .pools.join(", "))]
    Exhausted {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// Those that were tried.
        pools: Vec<String>,
    },
}

fn family(v4: bool) -> &'static str {
    match v4 {
        true => "IPv4",
        false => "IPv6",
    }
}

/// What was given out and is not yet, or no longer, in what the API server says.
#[derive(Clone, Debug, Default)]
pub struct Pending {
    /// By a Service's UID: its addresses, whatever its status says. Empty: given back.
    pub given: BTreeMap<String, Vec<IpAddr>>,
}

fn uid(service: &Service) -> &str {
    service.metadata.uid.as_deref().unwrap_or_default()
}

/// Who has which address.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// UID and key of the holder.
    holders: BTreeMap<IpAddr, (String, String)>,
}

impl Ledger {
    /// What Services' statuses say, and what is pending.
    pub fn read(services: &[Arc<Service>], pending: &Pending) -> Self {
        let mut ours: Vec<_> = services.iter().filter(|s| is_held(s, pending)).collect();
        let age = |s: &Service| s.metadata.creation_timestamp.as_ref().map(|t| t.0);
        ours.sort_by(|a, b| (age(a), uid(a)).cmp(&(age(b), uid(b))));
        // What was given a moment ago is sure; statuses may be written by others.
        let (given, told): (Vec<_>, Vec<_>) = ours
            .into_iter()
            .partition(|s| pending.given.contains_key(uid(s)));
        let mut ledger = Self::default();
        for service in given {
            ledger.enter(service, &pending.given[uid(service)]);
        }
        for service in told {
            ledger.enter(service, &status_addresses(service));
        }
        ledger
    }

    fn enter(&mut self, service: &Service, addresses: &[IpAddr]) {
        for address in addresses {
            let holder = || (uid(service).to_owned(), key(service));
            self.holders.entry(*address).or_insert_with(holder);
        }
    }

    /// The addresses of a Service.
    pub fn of(&self, service: &Service) -> Vec<IpAddr> {
        let own = |(address, (holder, _)): (&IpAddr, &(String, String))| {
            (holder == uid(service)).then_some(*address)
        };
        self.holders.iter().filter_map(own).collect()
    }
}

/// A Service on its way out holds its addresses until they are given back.
fn is_held(service: &Service, pending: &Pending) -> bool {
    is_ours(service)
        || pending.given.contains_key(uid(service))
        || service.metadata.deletion_timestamp.is_some()
        || service
            .metadata
            .finalizers
            .iter()
            .flatten()
            .any(|f| f == FINALIZER)
}

/// Of the service controller.
const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";

/// The addresses of a Service, one a family, in the order of its families.
///
/// # Errors
/// See [`AllocateError`]; [`AllocateError::InUse`] and [`AllocateError::Exhausted`] may pass when another Service goes.
pub fn allocate(
    pools: &Pools,
    ledger: &Ledger,
    service: &Service,
) -> Result<Vec<IpAddr>, AllocateError> {
    let wanted = wanted(service)?;
    let families = families(service);
    for address in &wanted {
        if !families.contains(&address.is_ipv4()) {
            return Err(AllocateError::Family { address: *address });
        }
    }
    let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
    let pool = match wanted_pool(service) {
        None => None,
        Some(name) => {
            let found = pools.named(name);
            Some(found.ok_or_else(|| AllocateError::NoPool(name.to_owned()))?)
        }
    };
    let request = Request {
        pools,
        ledger,
        service,
        namespace,
        pool,
    };
    let mut given = Vec::new();
    let mut missing = None;
    for v4 in families.iter().copied() {
        let wanted = wanted.iter().find(|address| address.is_ipv4() == v4);
        match request.of_family(v4, wanted.copied()) {
            Ok(address) => given.push(address),
            Err(error @ (AllocateError::NoFamily { .. } | AllocateError::Exhausted { .. })) => {
                missing = missing.or(Some(error));
            }
            Err(error) => return Err(error),
        }
    }
    match missing {
        Some(error) if given.is_empty() || !is_second_optional(service) => Err(error),
        _ => Ok(given),
    }
}

struct Request<'a> {
    pools: &'a Pools,
    ledger: &'a Ledger,
    service: &'a Service,
    namespace: &'a str,
    /// That was asked for.
    pool: Option<&'a Pool>,
}

impl Request<'_> {
    fn of_family(&self, v4: bool, wanted: Option<IpAddr>) -> Result<IpAddr, AllocateError> {
        if let Some(pool) = self.pool {
            self.admitted(pool)?;
        }
        if let Some(wanted) = wanted {
            return self.wanted(wanted);
        }
        let current = self.ledger.of(self.service).into_iter();
        let mut current = current.filter(|address| address.is_ipv4() == v4);
        if let Some(kept) = current.find(|address| self.may_keep(*address)) {
            return Ok(kept);
        }
        let tried: Vec<&Pool> = match self.pool {
            Some(pool) => vec![pool],
            None => {
                let open = |p: &&Pool| p.auto_assign && p.admits(self.namespace);
                self.pools.iter().filter(open).collect()
            }
        };
        let tried: Vec<&Pool> = tried.into_iter().filter(|p| p.has_family(v4)).collect();
        if tried.is_empty() {
            return Err(AllocateError::NoFamily { family: family(v4) });
        }
        let taken: BTreeSet<IpAddr> = self.ledger.holders.keys().copied().collect();
        let free = tried.iter().find_map(|pool| pool.first_free(v4, &taken));
        free.ok_or_else(|| AllocateError::Exhausted {
            family: family(v4),
            pools: tried.iter().map(|pool| pool.name.clone()).collect(),
        })
    }

    fn admitted(&self, pool: &Pool) -> Result<(), AllocateError> {
        match pool.admits(self.namespace) {
            true => Ok(()),
            false => Err(AllocateError::NotAdmitted {
                pool: pool.name.clone(),
                namespace: self.namespace.to_owned(),
            }),
        }
    }

    fn wanted(&self, address: IpAddr) -> Result<IpAddr, AllocateError> {
        let of = self
            .pools
            .of(address)
            .ok_or(AllocateError::Foreign(address))?;
        self.admitted(of)?;
        if let Some(pool) = self.pool.filter(|pool| pool.name != of.name) {
            return Err(AllocateError::OtherPool {
                address,
                pool: pool.name.clone(),
                of: of.name.clone(),
            });
        }
        match self.ledger.holders.get(&address) {
            Some((holder, key)) if holder != uid(self.service) => Err(AllocateError::InUse {
                address,
                holder: key.clone(),
            }),
            _ => Ok(address),
        }
    }

    fn may_keep(&self, address: IpAddr) -> bool {
        let of = self.pools.of(address);
        of.is_some_and(|of| {
            of.admits(self.namespace) && self.pool.is_none_or(|pool| pool.name == of.name)
        })
    }
}
