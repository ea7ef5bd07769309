//! The one list of controllers: name, alias from before names were canonical, whether it is on by default, and how it starts.
//!
//! A controller without a constructor is known and not built yet: `*` leaves it out and the log says so once, asking for it by name is
//! an error. Upstream: cmd/kube-controller-manager/{names,app/controller_descriptor.go}, v1.37.

use component_base::config::FieldError;
use futures::FutureExt as _;
use futures::future::BoxFuture;

use crate::context::{ControllerContext, Running, StartError};

/// Builds a controller; the future it returns runs it until shutdown.
pub type Constructor = fn(ControllerContext) -> BoxFuture<'static, Result<Running, StartError>>;

/// One controller.
#[derive(Clone, Copy)]
pub struct Descriptor {
    /// The canonical name.
    pub name: &'static str,
    /// The old name, empty if it never had one.
    pub alias: &'static str,
    /// Whether `*` means it.
    pub on_by_default: bool,
    /// `None` when it is not built yet.
    pub constructor: Option<Constructor>,
}

const fn built(name: &'static str, alias: &'static str, constructor: Constructor) -> Descriptor {
    Descriptor {
        name,
        alias,
        on_by_default: true,
        constructor: Some(constructor),
    }
}

const fn built_off(
    name: &'static str,
    alias: &'static str,
    constructor: Constructor,
) -> Descriptor {
    Descriptor {
        name,
        alias,
        on_by_default: false,
        constructor: Some(constructor),
    }
}

const fn missing_off(name: &'static str, alias: &'static str) -> Descriptor {
    Descriptor {
        name,
        alias,
        on_by_default: false,
        constructor: None,
    }
}

/// Every controller upstream has, in the order they start.
pub const CONTROLLERS: &[Descriptor] = &[
    // built
    built("serviceaccount-controller", "serviceaccount", |c| {
        crate::serviceaccount::start(c).boxed()
    }),
    built(
        "root-ca-certificate-publisher-controller",
        "root-ca-cert-publisher",
        |c| crate::root_ca_certificate_publisher::start(c).boxed(),
    ),
    built("replicaset-controller", "replicaset", |c| {
        crate::replicaset::start(c).boxed()
    }),
    built(
        "replicationcontroller-controller",
        "replicationcontroller",
        |c| crate::replicaset::start_replication(c).boxed(),
    ),
    built("job-controller", "job", |c| crate::job::start(c).boxed()),
    built("cronjob-controller", "cronjob", |c| {
        crate::cronjob::start(c).boxed()
    }),
    built("daemonset-controller", "daemonset", |c| {
        crate::daemonset::start(c).boxed()
    }),
    built("statefulset-controller", "statefulset", |c| {
        crate::statefulset::start(c).boxed()
    }),
    built("resourcequota-controller", "resourcequota", |c| {
        crate::resourcequota::start(c).boxed()
    }),
    built("ttl-after-finished-controller", "ttl-after-finished", |c| {
        crate::ttl_after_finished::start(c).boxed()
    }),
    built("deployment-controller", "deployment", |c| {
        crate::deployment::start(c).boxed()
    }),
    built("endpoints-controller", "endpoint", |c| {
        crate::endpoints::start(c).boxed()
    }),
    built("endpointslice-controller", "endpointslice", |c| {
        crate::endpointslice::start(c).boxed()
    }),
    built(
        "certificatesigningrequest-signing-controller",
        "csrsigning",
        |c| crate::certificatesigningrequest::start_signing(c).boxed(),
    ),
    built(
        "certificatesigningrequest-approving-controller",
        "csrapproving",
        |c| crate::certificatesigningrequest::start_approving(c).boxed(),
    ),
    built("namespace-controller", "namespace", |c| {
        crate::namespace::start(c).boxed()
    }),
    built("garbage-collector-controller", "garbagecollector", |c| {
        crate::garbage_collector::start(c).boxed()
    }),
    built("node-ipam-controller", "nodeipam", |c| {
        crate::node_ipam::start(c).boxed()
    }),
    built("node-lifecycle-controller", "nodelifecycle", |c| {
        crate::node_lifecycle::start(c).boxed()
    }),
    built("taint-eviction-controller", "", |c| {
        crate::taint_eviction::start(c).boxed()
    }),
    built("pod-garbage-collector-controller", "podgc", |c| {
        crate::pod_garbage_collector::start(c).boxed()
    }),
    built(
        "certificatesigningrequest-cleaner-controller",
        "csrcleaner",
        |c| crate::certificatesigningrequest::start_cleaning(c).boxed(),
    ),
    built(
        "clusterrole-aggregation-controller",
        "clusterrole-aggregation",
        |c| crate::clusterrole_aggregation::start(c).boxed(),
    ),
    built(
        "endpointslice-mirroring-controller",
        "endpointslicemirroring",
        |c| crate::endpointslice_mirroring::start(c).boxed(),
    ),
    built(
        "persistentvolume-protection-controller",
        "pv-protection",
        |c| crate::volume_protection::start_persistent_volume(c).boxed(),
    ),
    built(
        "persistentvolumeclaim-protection-controller",
        "pvc-protection",
        |c| crate::volume_protection::start_persistent_volume_claim(c).boxed(),
    ),
    built("volumeattributesclass-protection-controller", "", |c| {
        crate::volume_protection::start_volume_attributes_class(c).boxed()
    }),
    built("ttl-controller", "ttl", |c| crate::ttl::start(c).boxed()),
    built("service-cidr-controller", "", |c| {
        crate::service_cidr::start(c).boxed()
    }),
    built("disruption-controller", "disruption", |c| {
        crate::disruption::start(c).boxed()
    }),
    built(
        "serviceaccount-token-controller",
        "serviceaccount-token",
        |c| crate::serviceaccount_token::start(c).boxed(),
    ),
    built("ephemeral-volume-controller", "ephemeral-volume", |c| {
        crate::ephemeral_volume::start(c).boxed()
    }),
    built(
        "legacy-serviceaccount-token-cleaner-controller",
        "legacy-service-account-token-cleaner",
        |c| crate::legacy_token_cleaner::start(c).boxed(),
    ),
    built(
        "persistentvolume-binder-controller",
        "persistentvolume-binder",
        |c| crate::persistentvolume_binder::start(c).boxed(),
    ),
    built(
        "persistentvolume-expander-controller",
        "persistentvolume-expander",
        |c| crate::persistentvolume_expander::start(c).boxed(),
    ),
    built("podcertificaterequest-cleaner-controller", "", |c| {
        crate::podcertificaterequest_cleaner::start(c).boxed()
    }),
    built(
        "kube-apiserver-serving-clustertrustbundle-publisher-controller",
        "",
        |c| crate::clustertrustbundle_publisher::start(c).boxed(),
    ),
    built("validatingadmissionpolicy-status-controller", "", |c| {
        crate::validatingadmissionpolicy_status::start(c).boxed()
    }),
    built(
        "persistentvolume-attach-detach-controller",
        "attachdetach",
        |c| crate::persistentvolume_attach_detach::start(c).boxed(),
    ),
    built(
        "horizontal-pod-autoscaler-controller",
        "horizontalpodautoscaling",
        |c| crate::horizontal_pod_autoscaler::start(c).boxed(),
    ),
    built(
        "resourceclaim-controller",
        "resource-claim-controller",
        |c| crate::resourceclaim::start(c).boxed(),
    ),
    built("device-taint-eviction-controller", "", |c| {
        crate::device_taint_eviction::start(c).boxed()
    }),
    built("storage-version-migrator-controller", "svm", |c| {
        crate::storage_version_migrator::start(c).boxed()
    }),
    // off by default, or behind a feature gate upstream has off
    built_off("bootstrap-signer-controller", "bootstrapsigner", |c| {
        crate::bootstrap_signer::start(c).boxed()
    }),
    built_off("token-cleaner-controller", "tokencleaner", |c| {
        crate::token_cleaner::start(c).boxed()
    }),
    built_off("selinux-warning-controller", "", |c| {
        crate::selinux_warning::start(c).boxed()
    }),
    // not built
    missing_off("podgroup-protection-controller", ""),
    missing_off("resourcepoolstatusrequest-controller", ""),
    missing_off(
        "storageversion-garbage-collector-controller",
        "storage-version-gc",
    ),
];

/// The controller of a canonical name or an alias.
pub fn find(name: &str) -> Option<&'static Descriptor> {
    CONTROLLERS
        .iter()
        .find(|d| d.name == name || (!d.alias.is_empty() && d.alias == name))
}

/// What is wrong with `--controllers`: unknown names, and names of what is not built yet.
pub fn validate(selection: &[String]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for item in selection.iter().filter(|item| *item != "*") {
        let (name, asked_for) = match item.strip_prefix('-') {
            Some(name) => (name, false),
            None => (item.as_str(), true),
        };
        match find(name) {
            None => errors.push(FieldError::invalid(
                "controllers",
                name,
                "not in the list of known controllers",
            )),
            Some(d) if asked_for && d.constructor.is_none() => {
                errors.push(FieldError::invalid(
                    "controllers",
                    name,
                    "the controller is known but not built yet",
                ));
            }
            Some(_) => {}
        }
    }
    errors
}

/// Whether `--controllers` wants a controller: its own entry first, then `*`.
pub fn is_enabled(descriptor: &Descriptor, selection: &[String]) -> bool {
    let mut star = false;
    for item in selection {
        match item.strip_prefix('-') {
            Some(name) if find(name).is_some_and(|d| d.name == descriptor.name) => return false,
            Some(_) => {}
            None if item == "*" => star = true,
            None if find(item).is_some_and(|d| d.name == descriptor.name) => return true,
            None => {}
        }
    }
    star && descriptor.on_by_default
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selection() {
        let list = |items: &[&str]| items.iter().map(ToString::to_string).collect::<Vec<_>>();
        let (account, signer) = (
            find("serviceaccount").unwrap(),
            find("bootstrapsigner").unwrap(),
        );
        assert_eq!(account.name, "serviceaccount-controller");
        assert!(is_enabled(account, &list(&["*"])) && !is_enabled(signer, &list(&["*"])));
        assert!(!is_enabled(account, &list(&["*", "-serviceaccount"])));
        assert!(is_enabled(account, &list(&["serviceaccount-controller"])));
        assert!(!is_enabled(account, &list(&["root-ca-cert-publisher"])));
        assert!(validate(&list(&["*", "-attachdetach", "serviceaccount"])).is_empty());
        assert_eq!(validate(&list(&["storage-version-gc", "nobody"])).len(), 2);
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<&str> = CONTROLLERS
            .iter()
            .flat_map(|d| [d.name, d.alias])
            .filter(|n| !n.is_empty())
            .collect();
        names.sort_unstable();
        let before = names.len();
        names.dedup();
        assert_eq!(before, names.len());
    }
}
