//! Reads the flags that belong together (networks of nodes, certificate authorities), and those that have bounds.

use std::collections::BTreeMap;
use std::time::Duration;

use component_base::config::FieldError;
use component_base::flags::Flags;

use super::{CONCURRENT, CaFiles, NodeIpamOptions, SigningOptions};

fn cidrs(flags: &Flags, flag: &'static str, errors: &mut Vec<FieldError>) -> Vec<ipnet::IpNet> {
    let text = flags.string(flag);
    let mut found: Vec<ipnet::IpNet> = Vec::new();
    for part in text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        match part.parse::<ipnet::IpNet>() {
            Ok(net) => found.push(net.trunc()),
            Err(_) => errors.push(FieldError::invalid(
                flag,
                part,
                format!("invalid CIDR address: {part}"),
            )),
        }
    }
    let families = (
        found.iter().filter(|n| n.addr().is_ipv4()).count(),
        found.iter().filter(|n| n.addr().is_ipv6()).count(),
    );
    if found.len() > 2 || families.0 > 1 || families.1 > 1 {
        errors.push(FieldError::invalid(
            flag,
            text,
            "expected at most one IPv4 and one IPv6 CIDR",
        ));
    }
    found
}

pub(super) fn node_ipam(flags: &Flags, errors: &mut Vec<FieldError>) -> NodeIpamOptions {
    let cluster_cidrs = cidrs(flags, "cluster-cidr", errors);
    let service_cidrs = cidrs(flags, "service-cluster-ip-range", errors);
    let allocate = flags.bool("allocate-node-cidrs");
    let kind = flags.string("cidr-allocator-type");
    if kind != "RangeAllocator" {
        errors.push(FieldError::not_supported(
            "cidr-allocator-type",
            kind,
            &["RangeAllocator"],
        ));
    }
    if allocate && cluster_cidrs.is_empty() && flags.string("cluster-cidr").is_empty() {
        errors.push(FieldError::required(
            "cluster-cidr",
            "required with --allocate-node-cidrs",
        ));
    }
    let dual = cluster_cidrs.len() > 1;
    let mut mask = |name: &'static str, ipv6: bool, default: u8| {
        let common = flags.int("node-cidr-mask-size");
        let single_of_family = !dual && cluster_cidrs.iter().any(|n| n.addr().is_ipv6() == ipv6);
        let own = flags.int(name);
        let chosen = if own != 0 {
            own
        } else if common != 0 && single_of_family {
            common
        } else {
            i64::from(default)
        };
        let Some(net) = cluster_cidrs.iter().find(|n| n.addr().is_ipv6() == ipv6) else {
            return default;
        };
        match u8::try_from(chosen) {
            Ok(size) if size >= net.prefix_len() && size <= net.max_prefix_len() => size,
            _ => {
                let detail = format!(
                    "mask size must be between {} and {}",
                    net.prefix_len(),
                    net.max_prefix_len()
                );
                errors.push(FieldError::invalid(name, chosen, detail));
                default
            }
        }
    };
    let (mask_size_ipv4, mask_size_ipv6) = (
        mask("node-cidr-mask-size-ipv4", false, 24),
        mask("node-cidr-mask-size-ipv6", true, 64),
    );
    if dual && flags.int("node-cidr-mask-size") != 0 {
        errors.push(FieldError::forbidden(
            "node-cidr-mask-size",
            "usage of --node-cidr-mask-size is not allowed with dual-stack clusters",
        ));
    }
    for (net, size) in cluster_cidrs.iter().map(|n| {
        (
            n,
            if n.addr().is_ipv6() {
                mask_size_ipv6
            } else {
                mask_size_ipv4
            },
        )
    }) {
        // Upstream's limit on the bitmap.
        if size.saturating_sub(net.prefix_len()) > 16 {
            let detail = "New CIDR set failed; the node CIDR size is too big";
            errors.push(FieldError::invalid("cluster-cidr", net.to_string(), detail));
        }
    }
    NodeIpamOptions {
        allocate_node_cidrs: allocate,
        cidr_allocator_type: kind.to_string(),
        cluster_cidrs,
        service_cidrs,
        mask_size_ipv4,
        mask_size_ipv6,
    }
}

pub(super) fn signing(flags: &Flags, errors: &mut Vec<FieldError>) -> SigningOptions {
    let mut pair =
        |cert: &'static str, key: &'static str| match (flags.optional(cert), flags.optional(key)) {
            (Some(cert), Some(key)) => Some(CaFiles {
                cert_file: cert.into(),
                key_file: key.into(),
            }),
            (None, None) => None,
            (Some(_), None) => {
                errors.push(FieldError::required(key, format!("required with --{cert}")));
                None
            }
            (None, Some(_)) => {
                errors.push(FieldError::required(cert, format!("required with --{key}")));
                None
            }
        };
    let common = pair("cluster-signing-cert-file", "cluster-signing-key-file");
    let kubelet_serving = pair(
        "cluster-signing-kubelet-serving-cert-file",
        "cluster-signing-kubelet-serving-key-file",
    );
    let kubelet_client = pair(
        "cluster-signing-kubelet-client-cert-file",
        "cluster-signing-kubelet-client-key-file",
    );
    let api_client = pair(
        "cluster-signing-kube-apiserver-client-cert-file",
        "cluster-signing-kube-apiserver-client-key-file",
    );
    let legacy = pair(
        "cluster-signing-legacy-unknown-cert-file",
        "cluster-signing-legacy-unknown-key-file",
    );
    let specific = [&kubelet_serving, &kubelet_client, &api_client, &legacy]
        .into_iter()
        .any(Option::is_some);
    if common.is_some() && specific {
        let detail =
            "cannot be specified together with a more specific --cluster-signing-*-cert-file";
        errors.push(FieldError::forbidden("cluster-signing-cert-file", detail));
    }
    SigningOptions {
        duration: flags.duration("cluster-signing-duration"),
        kubelet_serving: kubelet_serving.or(common.clone()),
        kubelet_client: kubelet_client.or(common.clone()),
        kube_apiserver_client: api_client.or(common.clone()),
        legacy_unknown: legacy.or(common),
    }
}

/// `--attach-detach-reconcile-sync-period`, without dashes.
pub(super) const ATTACH_DETACH_PERIOD: &str = "attach-detach-reconcile-sync-period";

/// Workers by the middle word of each `--concurrent-*-syncs`.
pub(super) fn concurrent_syncs(
    flags: &Flags,
    errors: &mut Vec<FieldError>,
) -> BTreeMap<&'static str, usize> {
    let mut found = BTreeMap::new();
    for (key, flag, _) in CONCURRENT {
        match usize::try_from(flags.int(flag)) {
            Ok(count) if count > 0 => drop(found.insert(*key, count)),
            _ => errors.push(FieldError::invalid(
                *flag,
                flags.int(flag),
                "must be greater than zero",
            )),
        }
    }
    found
}

/// How many endpoints one object may have.
pub(super) fn up_to_1000(flags: &Flags, flag: &'static str, errors: &mut Vec<FieldError>) -> usize {
    let value = flags.int(flag);
    match usize::try_from(value) {
        Ok(count) if (1..=1000).contains(&count) => count,
        _ => {
            let reason = "must be between 1 and 1000, inclusive";
            errors.push(FieldError::invalid(flag, value, reason));
            1000
        }
    }
}

/// Periods that must not be zero, and one that has a least.
pub(super) fn periods(flags: &Flags, errors: &mut Vec<FieldError>) {
    for flag in [
        "node-monitor-period",
        "namespace-sync-period",
        "resource-quota-sync-period",
        "legacy-service-account-token-clean-up-period",
        "pvclaimbinder-sync-period",
        "horizontal-pod-autoscaler-sync-period",
    ] {
        if flags.duration(flag).is_zero() {
            errors.push(FieldError::invalid(flag, "0s", "must be greater than zero"));
        }
    }
    let period = flags.duration(ATTACH_DETACH_PERIOD);
    if period < Duration::from_secs(1) {
        errors.push(FieldError::invalid(
            ATTACH_DETACH_PERIOD,
            format!("{period:?}"),
            "duration time must be greater than one second",
        ));
    }
}
