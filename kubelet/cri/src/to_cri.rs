//! From the runtime's types to the CRI's messages. Pure.

mod metrics;
mod stats;
mod status;

#[cfg(test)]
mod tests;

use cri_spec::v1;
use runtime::{ImageStatus, RuntimeStatus};

pub use metrics::{FsFacts, descriptors, sandbox_metrics};
pub use stats::{Rates, StatsOf, container_stats, sandbox_stats};
pub use status::{container, container_status, resources, sandbox, sandbox_status};

/// Nanoseconds since 1970.
pub fn nanoseconds(time: jiff::Timestamp) -> i64 {
    i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX)
}

pub fn image(image: &ImageStatus) -> v1::Image {
    v1::Image {
        id: image.id.clone(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size_bytes,
        // As containerd: an image that names nobody is root's.
        uid: match (image.uid, &image.username) {
            (Some(uid), _) => Some(v1::Int64Value {
                value: i64::from(uid),
            }),
            (None, Some(_)) => None,
            (None, None) => Some(v1::Int64Value { value: 0 }),
        },
        username: image.username.clone().unwrap_or_default(),
        spec: None,
        pinned: image.pinned,
    }
}

/// The two conditions that every client looks for.
pub fn conditions(status: &RuntimeStatus) -> v1::RuntimeStatus {
    let condition = |kind: &str, problem: &Option<(String, String)>| {
        let (reason, message) = problem.clone().unwrap_or_default();
        v1::RuntimeCondition {
            r#type: kind.to_owned(),
            status: problem.is_none(),
            reason,
            message,
        }
    };
    v1::RuntimeStatus {
        conditions: vec![
            condition(v1::RUNTIME_READY, &status.runtime_ready),
            condition(v1::NETWORK_READY, &status.network_ready),
        ],
    }
}

pub fn handlers(status: &RuntimeStatus) -> Vec<v1::RuntimeHandler> {
    status
        .handlers
        .iter()
        .map(|handler| v1::RuntimeHandler {
            name: handler.name.clone(),
            features: Some(v1::RuntimeHandlerFeatures {
                recursive_read_only_mounts: handler.recursive_read_only_mounts,
                user_namespaces: handler.user_namespaces,
            }),
        })
        .collect()
}
