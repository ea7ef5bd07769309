//! What a Service says to this provider: whose it is, which addresses it wants, which it has. Pure.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;

use super::pools::CLASS;

/// On a Service: the addresses it wants, one of each family, with commas between them.
pub const ADDRESSES: &str = "loadbalancer.gantry/addresses";
/// On a Service: the pool it wants its addresses from.
pub const POOL: &str = "loadbalancer.gantry/pool";

/// What a Service wants that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WantedError {
    /// No address.
    #[error("{field}: {value:?} is no IP address")]
    NoAddress {
        /// Where.
        field: &'static str,
        /// What is there.
        value: String,
    },
    /// Two of one family.
    #[error("{field}: {value:?} has several addresses of one IP family; one of each is supported")]
    Several {
        /// Where.
        field: &'static str,
        /// What is there.
        value: String,
    },
    /// Two places say different things.
    #[error(
        "spec.loadBalancerIP {spec} is not among the addresses {annotation:?} of the annotation {ADDRESSES}"
    )]
    Contradiction {
        /// One.
        spec: IpAddr,
        /// The other.
        annotation: String,
    },
}

const SPEC_FIELD: &str = "spec.loadBalancerIP";

/// Whether a Service's load balancer is this provider's.
pub fn is_ours(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| {
        let class = spec.load_balancer_class.as_deref();
        spec.type_.as_deref() == Some("LoadBalancer") && class.is_none_or(|class| class == CLASS)
    })
}

/// `NAMESPACE/NAME`.
pub fn key(service: &Service) -> String {
    let meta = &service.metadata;
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    format!("{namespace}/{}", meta.name.as_deref().unwrap_or_default())
}

fn annotation<'a>(service: &'a Service, name: &str) -> Option<&'a str> {
    let annotations = service.metadata.annotations.as_ref();
    let value = annotations.and_then(|all| all.get(name));
    value.map(|value| value.trim()).filter(|v| !v.is_empty())
}

/// The pool a Service asks for.
pub fn wanted_pool(service: &Service) -> Option<&str> {
    annotation(service, POOL)
}

/// The addresses a Service asks for, by `spec.loadBalancerIP` and the annotation; none for whatever there is.
///
/// # Errors
/// See [`WantedError`].
pub fn wanted(service: &Service) -> Result<Vec<IpAddr>, WantedError> {
    let parse = |field: &'static str, text: &str| {
        let value = || text.to_owned();
        let parsed = text.trim().parse::<IpAddr>();
        parsed.map_err(|_| WantedError::NoAddress {
            field,
            value: value(),
        })
    };
    let spec = service.spec.as_ref();
    let spec = spec.and_then(|s| s.load_balancer_ip.as_deref());
    let spec = match spec.filter(|text| !text.is_empty()) {
        Some(text) => Some(parse(SPEC_FIELD, text)?),
        None => None,
    };
    let Some(text) = annotation(service, ADDRESSES) else {
        return Ok(spec.into_iter().collect());
    };
    let mut wanted: Vec<IpAddr> = Vec::new();
    for part in text.split(',') {
        let address = parse(ADDRESSES, part)?;
        if wanted.iter().any(|w| w.is_ipv4() == address.is_ipv4()) {
            return Err(WantedError::Several {
                field: ADDRESSES,
                value: text.to_owned(),
            });
        }
        wanted.push(address);
    }
    match spec {
        Some(spec) if !wanted.contains(&spec) => Err(WantedError::Contradiction {
            spec,
            annotation: text.to_owned(),
        }),
        _ => Ok(wanted),
    }
}

/// The addresses of a Service's status that packets come with.
pub fn status_addresses(service: &Service) -> Vec<IpAddr> {
    let status = service.status.as_ref();
    let ingress = status
        .and_then(|s| s.load_balancer.as_ref())
        .and_then(|l| l.ingress.as_deref())
        .unwrap_or_default();
    ingress
        .iter()
        .filter(|i| i.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|i| i.ip.as_deref()?.parse().ok())
        .collect()
}

/// Whether each family of the Service is IPv4, in its order.
pub fn families(service: &Service) -> Vec<bool> {
    let families = service.spec.as_ref().and_then(|s| s.ip_families.as_ref());
    let families: Vec<bool> = families
        .into_iter()
        .flatten()
        .map(|f| f == "IPv4")
        .collect();
    // The API server always says it; objects of tests and of old servers may not.
    match families.is_empty() {
        true => vec![true],
        false => families,
    }
}

/// Whether one address is enough where the Service has two families.
pub fn is_second_optional(service: &Service) -> bool {
    let policy = service
        .spec
        .as_ref()
        .and_then(|s| s.ip_family_policy.as_deref());
    policy == Some("PreferDualStack")
}
