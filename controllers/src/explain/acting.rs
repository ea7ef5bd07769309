//! Which controllers act on an object, and why. Pure.

use component_helpers::labels::Selector;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde::Serialize;
use serde_json::Value;

use super::kind::Kind;

/// A controller that acts on the object.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Acting {
    /// Its canonical name.
    pub name: &'static str,
    pub why: String,
}

fn acting(name: &'static str, why: impl Into<String>) -> Acting {
    let why = why.into();
    Acting { name, why }
}

/// Those that act on `object`, its own first.
pub fn controllers(
    kind: Kind,
    object: &Value,
    autoscalers: &[HorizontalPodAutoscaler],
    budgets: &[PodDisruptionBudget],
) -> Vec<Acting> {
    let mut found = vec![own(kind, object)];
    found.extend(owner(object));
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    for autoscaler in autoscalers {
        let target = &autoscaler.spec.scale_target_ref;
        if (target.kind.as_str(), target.name.as_str()) == (kind.name(), name) {
            let its = autoscaler.metadata.name.as_deref().unwrap_or_default();
            let (least, most) = (
                autoscaler.spec.min_replicas.unwrap_or(1),
                autoscaler.spec.max_replicas,
            );
            found.push(acting(
                "horizontal-pod-autoscaler-controller",
                format!("HorizontalPodAutoscaler/{its} sets spec.replicas, from {least} to {most}"),
            ));
        }
    }
    for budget in budgets.iter().filter(|budget| covers(budget, object)) {
        let its = budget.metadata.name.as_deref().unwrap_or_default();
        found.push(acting(
            "disruption-controller",
            format!("PodDisruptionBudget/{its} limits evictions of its pods"),
        ));
    }
    if let Some(seconds) = object["spec"]["ttlSecondsAfterFinished"].as_i64() {
        found.push(acting(
            "ttl-after-finished-controller",
            format!("deletes it {seconds} s after it finished"),
        ));
    }
    found.extend(collector(object));
    found
}

fn own(kind: Kind, object: &Value) -> Acting {
    match kind {
        Kind::Deployment => acting("deployment-controller", "makes and scales its ReplicaSets"),
        Kind::ReplicaSet => acting("replicaset-controller", "creates and deletes its pods"),
        Kind::ReplicationController => acting(
            "replicationcontroller-controller",
            "creates and deletes its pods",
        ),
        Kind::StatefulSet => acting(
            "statefulset-controller",
            "creates and deletes its pods and their claims in order",
        ),
        Kind::DaemonSet => acting("daemonset-controller", "keeps one pod on each of its nodes"),
        Kind::Job => {
            let by = object["spec"]["managedBy"].as_str();
            match by.filter(|by| *by != "kubernetes.io/job-controller") {
                Some(by) => acting(
                    "job-controller",
                    format!("leaves it alone: spec.managedBy is {by:?}"),
                ),
                None => acting(
                    "job-controller",
                    "creates its pods, and counts those that ended",
                ),
            }
        }
    }
}

/// The controller of what controls it.
fn owner(object: &Value) -> Option<Acting> {
    let owners = object["metadata"]["ownerReferences"].as_array()?;
    let owner = owners.iter().find(|owner| owner["controller"] == true)?;
    let (kind, name) = (owner["kind"].as_str()?, owner["name"].as_str()?);
    match kind {
        "Deployment" => Some(acting(
            "deployment-controller",
            format!("sets its size, as Deployment/{name} controls it"),
        )),
        "CronJob" => Some(acting(
            "cronjob-controller",
            format!("made it, and deletes it when there are too many, for CronJob/{name}"),
        )),
        _ => None,
    }
}

fn covers(budget: &PodDisruptionBudget, object: &Value) -> bool {
    let labels = &object["spec"]["template"]["metadata"]["labels"];
    let labels: std::collections::BTreeMap<String, String> =
        serde_json::from_value(labels.clone()).unwrap_or_default();
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    Selector::from_optional(selector).is_ok_and(|selector| selector.matches(&labels))
}

fn collector(object: &Value) -> Option<Acting> {
    let (meta, name) = (&object["metadata"], "garbage-collector-controller");
    let finalizers = meta["finalizers"].as_array();
    let has = |finalizer: &str| finalizers.is_some_and(|all| all.iter().any(|f| f == finalizer));
    if !meta["deletionTimestamp"].is_null() {
        if has("foregroundDeletion") {
            let why = "it is being deleted: first goes what it owns";
            return Some(acting(name, why));
        }
        if has("orphan") {
            let why = "it is being deleted: what it owns is let go of first";
            return Some(acting(name, why));
        }
    }
    let owner = meta["ownerReferences"].as_array()?.first()?;
    let (kind, owner) = (owner["kind"].as_str()?, owner["name"].as_str()?);
    let why = format!("deletes it when its owners are gone, as {kind}/{owner}");
    Some(acting(name, why))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(kind: Kind, object: Value, expect: &[&str]) {
        let budget = |name: &str, app: &str| {
            let value = json!({ "metadata": { "name": name }, "spec": { "selector": { "matchLabels": { "app": app } } } });
            serde_json::from_value(value).unwrap()
        };
        let autoscaler = json!({
            "metadata": { "name": "h" },
            "spec": { "maxReplicas": 9, "scaleTargetRef": { "kind": "Deployment", "name": "web" } },
        });
        let autoscaler = serde_json::from_value(autoscaler).unwrap();
        let found = controllers(
            kind,
            &object,
            &[autoscaler],
            &[budget("b", "web"), budget("other", "db")],
        );
        let texts: Vec<_> = found
            .iter()
            .map(|acting| format!("{}: {}", acting.name, acting.why))
            .collect();
        assert_eq!(texts, expect);
    }

    #[test]
    fn who_acts_on_what() {
        check(
            Kind::Deployment,
            json!({ "metadata": { "name": "web" }, "spec": { "template": { "metadata": { "labels": { "app": "web" } } } } }),
            &[
                "deployment-controller: makes and scales its ReplicaSets",
                "horizontal-pod-autoscaler-controller: HorizontalPodAutoscaler/h sets spec.replicas, from 1 to 9",
                "disruption-controller: PodDisruptionBudget/b limits evictions of its pods",
            ],
        );
        let owner = |kind: &str| json!([{ "kind": kind, "name": "o", "controller": true }]);
        check(
            Kind::ReplicaSet,
            json!({ "metadata": { "name": "web", "ownerReferences": owner("Deployment") } }),
            &[
                "replicaset-controller: creates and deletes its pods",
                "deployment-controller: sets its size, as Deployment/o controls it",
                "garbage-collector-controller: deletes it when its owners are gone, as Deployment/o",
            ],
        );
        check(
            Kind::Job,
            json!({
                "metadata": { "ownerReferences": owner("CronJob") },
                "spec": { "managedBy": "example.com/queue", "ttlSecondsAfterFinished": 60 },
            }),
            &[
                "job-controller: leaves it alone: spec.managedBy is \"example.com/queue\"",
                "cronjob-controller: made it, and deletes it when there are too many, for CronJob/o",
                "ttl-after-finished-controller: deletes it 60 s after it finished",
                "garbage-collector-controller: deletes it when its owners are gone, as CronJob/o",
            ],
        );
        check(
            Kind::StatefulSet,
            json!({ "metadata": { "deletionTimestamp": "t", "finalizers": ["foregroundDeletion"] } }),
            &[
                "statefulset-controller: creates and deletes its pods and their claims in order",
                "garbage-collector-controller: it is being deleted: first goes what it owns",
            ],
        );
    }
}
