//! What controllers of pods have in common: writing pods, with the events that tell of it.
//!
//! Upstream: pkg/controller/controller_utils.go (RealPodControl), v1.36.

use component_base::events::EventType;
use component_helpers::pod::{name, namespace};
use controller_runtime::ApiError;
use controller_runtime::executor::{Action, DeleteOptions, Executor};
use k8s_openapi::api::core::v1::{ObjectReference, Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

/// A pod of a template, controlled by `owner`; `generate_name` may be replaced by a name.
pub fn pod_from_template(
    template: &PodTemplateSpec,
    ns: Option<String>,
    generate_name: String,
    owner: OwnerReference,
) -> Pod {
    let of_template = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            namespace: ns,
            generate_name: Some(generate_name),
            labels: of_template.labels,
            annotations: of_template.annotations,
            finalizers: of_template.finalizers,
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// What became of pods that were to be created.
#[derive(Debug, Default)]
pub struct Created {
    /// How many there are now.
    pub count: usize,
    /// The first failure; a namespace that is going is none.
    pub error: Option<ApiError>,
}

/// Creates pods in a slow start, and tells of each in an event about `about`.
pub async fn create_pods(executor: &Executor, about: &ObjectReference, pods: &[Pod]) -> Created {
    let actions = creations(pods);
    let mut created = Created::default();
    for result in executor.slow_start_batch(&actions).await {
        match result {
            Ok(pod) => {
                created.count += 1;
                let name = pod["metadata"]["name"].as_str().unwrap_or_default();
                record(
                    executor,
                    about,
                    EventType::Normal,
                    "SuccessfulCreate",
                    format!("Created pod: {name}"),
                )
                .await;
            }
            // Nothing can be created there any more, and nobody wants to hear of it.
            Err(ApiError::NamespaceTerminating(_)) => {}
            Err(error) => {
                record(
                    executor,
                    about,
                    EventType::Warning,
                    "FailedCreate",
                    format!("Error creating: {error}"),
                )
                .await;
                created.error.get_or_insert(error);
            }
        }
    }
    created
}

/// Pods of a Job are most often the same but for their names, which the server gives: those share one body, which is encoded once.
fn creations(pods: &[Pod]) -> Vec<Action> {
    let mut actions: Vec<Action> = Vec::with_capacity(pods.len());
    for (index, pod) in pods.iter().enumerate() {
        let same = index.checked_sub(1).filter(|last| pods[*last] == *pod);
        actions.push(match same {
            Some(last) => actions[last].clone(),
            None => Action::create(pod),
        });
    }
    actions
}

/// Deletes this incarnation of a pod. `Ok(false)`: it was gone before.
///
/// # Errors
/// What the server said; a retry may help.
pub async fn delete(executor: &Executor, pod: &Pod) -> Result<bool, ApiError> {
    let options = DeleteOptions {
        uid: pod.metadata.uid.clone(),
        ..DeleteOptions::default()
    };
    let action = Action::delete::<Pod>(namespace(pod), name(pod), options);
    match executor.execute(&action).await {
        Ok(answer) => Ok(!answer.is_null()),
        // A namesake: ours is gone.
        Err(error) if error.is_conflict() => Ok(false),
        Err(error) => Err(error),
    }
}

/// As [`delete`], and tells so.
///
/// # Errors
/// As [`delete`].
pub async fn delete_pod(
    executor: &Executor,
    about: &ObjectReference,
    pod: &Pod,
) -> Result<bool, ApiError> {
    let result = delete(executor, pod).await;
    let (event_type, reason, message) = match &result {
        Ok(false) => return result,
        Ok(true) => (
            EventType::Normal,
            "SuccessfulDelete",
            format!("Deleted pod: {}", name(pod)),
        ),
        Err(error) => (
            EventType::Warning,
            "FailedDelete",
            format!("Error deleting: {error}"),
        ),
    };
    record(executor, about, event_type, reason, message).await;
    result
}

/// Records an event; recording only queues, it has no failure that anyone could act on.
pub async fn record(
    executor: &Executor,
    about: &ObjectReference,
    event_type: EventType,
    reason: &'static str,
    message: impl Into<String>,
) {
    let regarding = Box::new(about.clone());
    let event = Action::Event {
        regarding,
        event_type,
        reason,
        message: message.into(),
    };
    let _ = executor.execute(&event).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_of_equal_pods_are_the_same_and_of_others_their_own() {
        let pod = |index: Option<&str>| {
            let mut pod = Pod::default();
            pod.metadata.generate_name = Some("job-".to_owned());
            pod.metadata.labels = index.map(|index| {
                let label = ("index".to_owned(), index.to_owned());
                [label].into()
            });
            pod
        };
        let pods = [
            pod(None),
            pod(None),
            pod(Some("1")),
            pod(Some("2")),
            pod(None),
        ];
        let expect: Vec<_> = pods.iter().map(Action::create).collect();
        assert_eq!(creations(&pods), expect);
        assert!(creations(&[]).is_empty());
    }
}
