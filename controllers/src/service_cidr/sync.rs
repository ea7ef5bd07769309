//! The decision: a ServiceCIDR, all of them, and the allocated addresses -> finalizer and condition. Pure.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use controller_runtime::executor::{PatchKind, Target};
use controller_runtime::{Action, Plan};
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use serde_json::json;

/// The name under which conditions are applied.
pub const FIELD_MANAGER: &str = "service-cidr-controller";
/// Keeps a ServiceCIDR.
pub const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
/// API servers need this long to learn that they must not allocate from a ServiceCIDR any more.
const DELETION_GRACE_PERIOD: SignedDuration = SignedDuration::from_secs(10);

const LABEL_MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
/// Who makes the IPAddresses of Services.
const IP_ALLOCATOR: &str = "ipallocator.k8s.io";

/// What a ServiceCIDR's condition `Ready` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ready {
    True,
    Terminating,
}

impl Ready {
    /// Status, reason, message.
    fn text(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::True => ("True", "", "Kubernetes Service CIDR is ready"),
            Self::Terminating => (
                "False",
                "Terminating",
                "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR",
            ),
        }
    }
}

/// Decides one pass; `all` includes `cidr` itself.
pub fn sync(
    cidr: &ServiceCIDR,
    all: &[Arc<ServiceCIDR>],
    addresses: &[Arc<IPAddress>],
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::none();
    let has_finalizer = cidr
        .metadata
        .finalizers
        .iter()
        .flatten()
        .any(|f| f == FINALIZER);
    let name = cidr.metadata.name.as_deref().unwrap_or_default();
    let Some(deleted) = &cidr.metadata.deletion_timestamp else {
        if !has_finalizer {
            let patch = json!({"metadata": {"finalizers": [FINALIZER]}});
            plan.push(Action::strategic_patch::<ServiceCIDR>("", name, patch));
        }
        plan.actions.extend(condition(cidr, Ready::True, now));
        return plan;
    };
    if !can_delete_cidr(cidr, all, addresses) {
        // An event of a ServiceCIDR or an IPAddress brings it back.
        plan.actions
            .extend(condition(cidr, Ready::Terminating, now));
        return plan;
    }
    let left = DELETION_GRACE_PERIOD - now.duration_since(deleted.0);
    if left.is_positive() {
        plan.requeue(Duration::try_from(left).unwrap_or_default());
    } else if has_finalizer {
        let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": [FINALIZER]}});
        plan.push(Action::strategic_patch::<ServiceCIDR>("", name, patch));
    }
    plan
}

/// `None`: it says so already.
fn condition(cidr: &ServiceCIDR, ready: Ready, now: Timestamp) -> Option<Action> {
    let (status, reason, message) = ready.text();
    let conditions = cidr.status.as_ref().and_then(|s| s.conditions.as_ref());
    let current = conditions
        .into_iter()
        .flatten()
        .find(|c| c.type_ == "Ready");
    if current.is_some_and(|c| c.status == status && c.reason == reason && c.message == message) {
        return None;
    }
    let name = cidr.metadata.name.as_deref().unwrap_or_default();
    // Whole seconds, as the API has it.
    let time = Timestamp::from_second(now.as_second()).unwrap_or(now);
    Some(Action::Patch {
        target: Target::of::<ServiceCIDR>("", name).subresource("status"),
        kind: PatchKind::Apply(FIELD_MANAGER),
        patch: json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "ServiceCIDR",
            "metadata": {"name": name},
            "status": {"conditions": [{
                "type": "Ready", "status": status, "reason": reason, "message": message,
                "lastTransitionTime": time.to_string(),
            }]},
        }),
    })
}

/// Whether no address would be orphaned: each of its ranges lies in another ServiceCIDR, or no address lies in it alone.
fn can_delete_cidr(
    cidr: &ServiceCIDR,
    all: &[Arc<ServiceCIDR>],
    addresses: &[Arc<IPAddress>],
) -> bool {
    let is_self = |other: &ServiceCIDR| other.metadata.name == cidr.metadata.name;
    let has_parent = |net: &IpNet| {
        all.iter()
            .any(|other| !is_self(other) && ranges(other).any(|range| range.contains(net)))
    };
    if ranges(cidr).all(|net| has_parent(&net)) {
        return true;
    }
    !addresses
        .iter()
        .filter_map(|a| service_address(a))
        .any(|ip| {
            let mut holders = all.iter().filter(|c| contains_address(c, ip));
            holders.next().is_some_and(|first| is_self(first)) && holders.next().is_none()
        })
}

fn ranges(cidr: &ServiceCIDR) -> impl Iterator<Item = IpNet> {
    let ranges = cidr.spec.iter().flat_map(|s| s.cidrs.iter().flatten());
    ranges.filter_map(|text| text.parse::<IpNet>().ok().map(|net| net.trunc()))
}

/// The address, if it is a Service's.
pub fn service_address(address: &IPAddress) -> Option<IpAddr> {
    let labels = address.metadata.labels.as_ref()?;
    labels
        .get(LABEL_MANAGED_BY)
        .filter(|by| *by == IP_ALLOCATOR)?;
    address.metadata.name.as_ref()?.parse().ok()
}

/// Whether a Service could get the address from this ServiceCIDR: network and IPv4 broadcast addresses are not given out.
pub fn contains_address(cidr: &ServiceCIDR, ip: IpAddr) -> bool {
    ranges(cidr).any(|net| {
        net.contains(&ip) && net.network() != ip && !(ip.is_ipv4() && net.broadcast() == ip)
    })
}

/// Whether one contains the other, in one of their ranges.
pub fn overlap(a: &ServiceCIDR, b: &ServiceCIDR) -> bool {
    ranges(a).any(|x| ranges(b).any(|y| x.contains(&y) || y.contains(&x)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    const NOW: &str = "2026-01-01T00:01:00Z";

    fn cidr(
        name: &str,
        cidrs: &[&str],
        deleted: Option<&str>,
        ready: Option<Ready>,
    ) -> ServiceCIDR {
        let condition = |ready: Ready| {
            let (status, reason, message) = ready.text();
            json!({"type": "Ready", "status": status, "reason": reason, "message": message, "lastTransitionTime": NOW})
        };
        let conditions: Vec<Value> = ready.into_iter().map(condition).collect();
        serde_json::from_value(json!({
            "metadata": {"name": name, "deletionTimestamp": deleted, "finalizers": [FINALIZER]},
            "spec": {"cidrs": cidrs}, "status": {"conditions": conditions}}))
        .unwrap()
    }

    fn address(ip: &str, by: &str) -> Arc<IPAddress> {
        Arc::new(
            serde_json::from_value(
                json!({"metadata": {"name": ip, "labels": {LABEL_MANAGED_BY: by}}}),
            )
            .unwrap(),
        )
    }

    fn show(plan: &Plan) -> String {
        let action = |action: &Action| match action {
            Action::Patch {
                kind: PatchKind::Apply(_),
                patch,
                ..
            } => {
                let condition = &patch["status"]["conditions"][0];
                format!(
                    "{}{}",
                    condition["status"].as_str().unwrap(),
                    condition["reason"].as_str().unwrap()
                )
            }
            Action::Patch { patch, .. } if patch["metadata"]["finalizers"].is_array() => {
                "add".to_owned()
            }
            Action::Patch { .. } => "remove".to_owned(),
            other => panic!("{other:?}"),
        };
        let mut shown: Vec<String> = plan.actions.iter().map(action).collect();
        shown.extend(plan.requeue_after.map(|d| format!("{d:?}")));
        shown.join(" ")
    }

    #[test]
    fn living() {
        let now = NOW.parse().unwrap();
        let mut new = cidr("a", &["10.0.0.0/24"], None, None);
        new.metadata.finalizers = None;
        assert_eq!(show(&sync(&new, &[], &[], now)), "add True");
        let old = cidr("a", &["10.0.0.0/24"], None, Some(Ready::True));
        assert_eq!(show(&sync(&old, &[], &[], now)), "");
        let back = cidr("a", &["10.0.0.0/24"], None, Some(Ready::Terminating));
        assert_eq!(show(&sync(&back, &[], &[], now)), "True");
    }

    #[test]
    fn dying() {
        let now = NOW.parse().unwrap();
        let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-01T00:00:56Z");
        let service = address("10.0.0.5", IP_ALLOCATOR);
        for (deleted, others, addresses, expect) in [
            (early, vec![], vec![], "remove"),
            (late, vec![], vec![], "6s"),
            (early, vec![], vec![service.clone()], "FalseTerminating"),
            (
                early,
                vec![],
                vec![address("10.0.0.5", "somebody")],
                "remove",
            ),
            (
                early,
                vec![],
                vec![address("10.0.9.5", IP_ALLOCATOR)],
                "remove",
            ),
            // network and broadcast address are nobody's
            (
                early,
                vec![],
                vec![
                    address("10.0.0.255", IP_ALLOCATOR),
                    address("10.0.0.0", IP_ALLOCATOR),
                ],
                "remove",
            ),
            // a larger one, the same, one beside it, a smaller one with and without the address
            (early, vec!["10.0.0.0/16"], vec![service.clone()], "remove"),
            (early, vec!["10.0.0.0/24"], vec![service.clone()], "remove"),
            (
                early,
                vec!["10.0.1.0/24"],
                vec![service.clone()],
                "FalseTerminating",
            ),
            (early, vec!["10.0.0.0/28"], vec![service.clone()], "remove"),
            (
                early,
                vec!["10.0.0.128/28"],
                vec![service.clone()],
                "FalseTerminating",
            ),
        ] {
            let dying = cidr("a", &["10.0.0.0/24"], Some(deleted), Some(Ready::True));
            let mut all = vec![Arc::new(dying.clone())];
            if !others.is_empty() {
                all.push(Arc::new(cidr("b", &others, None, None)));
            }
            assert_eq!(
                show(&sync(&dying, &all, &addresses, now)),
                expect,
                "{others:?} {addresses:?}"
            );
        }
        // Both families need a parent.
        let dual = cidr("a", &["10.0.0.0/24", "fd00::/112"], Some(early), None);
        let all = [
            Arc::new(dual.clone()),
            Arc::new(cidr("b", &["10.0.0.0/16"], None, None)),
        ];
        let plan = sync(&dual, &all, &[address("fd00::5", IP_ALLOCATOR)], now);
        assert_eq!(show(&plan), "FalseTerminating");
    }

    #[test]
    fn overlaps() {
        let a = cidr("a", &["10.0.0.0/24"], None, None);
        for (other, expect) in [
            ("10.0.0.0/16", true),
            ("10.0.0.128/25", true),
            ("10.0.1.0/24", false),
            ("fd00::/64", false),
        ] {
            assert_eq!(
                overlap(&a, &cidr("b", &[other], None, None)),
                expect,
                "{other}"
            );
        }
    }
}
