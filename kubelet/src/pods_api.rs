//! The kubelet's pods for agents of the node: see the crate `pods-api`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use pods_api::{Method, PodSource, VERSION};
use tonic::Code;

use crate::kubelet::Kubelet;
use crate::metrics;

/// The kubelet as such an API sees it.
pub struct Source(pub Arc<Kubelet>);

impl PodSource for Source {
    fn is_ready(&self) -> bool {
        self.0.sources_told.load(Ordering::Acquire)
    }

    fn pods(&self) -> Vec<Arc<Pod>> {
        self.0.pods.pods()
    }

    fn pod(&self, uid: &str) -> Option<Arc<Pod>> {
        self.0.pods.get_pod_by_uid(uid)
    }

    fn status(&self, uid: &str) -> Option<PodStatus> {
        self.0.status.get_pod_status(uid)
    }

    fn observe(&self, method: Method, failed: Option<Code>) {
        let code = code_name(failed);
        let own = match method {
            Method::List => &metrics::POD_REQUESTS_LIST,
            Method::Get => &metrics::POD_REQUESTS_GET,
            Method::Watch => &metrics::POD_REQUESTS_WATCH,
        };
        for counter in [&metrics::POD_REQUESTS, own] {
            counter.with_label_values(&[VERSION, &code]).inc();
        }
    }

    fn dropped(&self, events: u64) {
        metrics::POD_WATCH_EVENTS_DROPPED.inc_by(events);
    }
}

/// As Go's gRPC writes it.
fn code_name(failed: Option<Code>) -> String {
    match failed {
        None | Some(Code::Ok) => "OK".to_owned(),
        Some(Code::Cancelled) => "Canceled".to_owned(),
        Some(other) => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_upstreams_names() {
        assert_eq!(code_name(None), "OK");
        assert_eq!(code_name(Some(Code::Cancelled)), "Canceled");
        assert_eq!(
            code_name(Some(Code::FailedPrecondition)),
            "FailedPrecondition"
        );
        assert_eq!(
            code_name(Some(Code::ResourceExhausted)),
            "ResourceExhausted"
        );
    }
}
