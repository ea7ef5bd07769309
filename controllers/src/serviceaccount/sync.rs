//! The decision: which ServiceAccounts a namespace lacks. Pure.

use controller_runtime::{Action, Plan};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// The accounts every namespace has.
pub(super) const ACCOUNTS: &[&str] = &["default"];

/// Whether new objects may be made in a namespace.
pub(super) fn is_active(namespace: &Namespace) -> bool {
    namespace.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Active")
}

/// Creates what `exists` does not know.
pub(super) fn sync(namespace: &Namespace, exists: impl Fn(&str) -> bool) -> Plan {
    let mut plan = Plan::none();
    if !is_active(namespace) {
        return plan;
    }
    for name in ACCOUNTS.iter().filter(|name| !exists(name)) {
        plan.push(Action::create(&ServiceAccount {
            metadata: ObjectMeta {
                name: Some(name.to_string()),
                namespace: namespace.metadata.name.clone(),
                ..ObjectMeta::default()
            },
            ..ServiceAccount::default()
        }));
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::NamespaceStatus;

    fn check(phase: &str, existing: &[&str], expect: usize) {
        let namespace = Namespace {
            metadata: ObjectMeta {
                name: Some("ns".into()),
                ..Default::default()
            },
            status: Some(NamespaceStatus {
                phase: Some(phase.into()),
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_eq!(
            sync(&namespace, |name| existing.contains(&name))
                .actions
                .len(),
            expect,
            "{phase} {existing:?}"
        );
    }

    #[test]
    fn makes_what_is_missing_in_active_namespaces() {
        check("Active", &[], 1);
        check("Active", &["default"], 0);
        check("Terminating", &[], 0);
    }
}
