//! PrioritySort: the highest priority first, among equals the one that came first.
//!
//! Upstream: plugins/queuesort, v1.36.

use std::sync::Arc;

use framework::{Handle, Plugin, PluginError, QueueSortPlugin, QueuedPod};

use crate::names;

struct PrioritySort;

/// Makes the plugin.
///
/// # Errors
/// Never.
pub fn new(
    _args: Option<&serde_json::Value>,
    _handle: Arc<dyn Handle>,
) -> Result<Arc<dyn Plugin>, PluginError> {
    Ok(Arc::new(PrioritySort))
}

impl Plugin for PrioritySort {
    fn name(&self) -> &'static str {
        names::PRIORITY_SORT
    }
    fn as_queue_sort(&self) -> Option<&dyn QueueSortPlugin> {
        Some(self)
    }
}

impl QueueSortPlugin for PrioritySort {
    fn less(&self, a: &QueuedPod<'_>, b: &QueuedPod<'_>) -> bool {
        a.pod.priority > b.pod.priority
            || (a.pod.priority == b.pod.priority && a.timestamp < b.timestamp)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use framework::testing::make_pod;

    use super::*;

    #[test]
    fn priority_then_age() {
        let now = Instant::now();
        let of = |priority| {
            make_pod("p")
                .with(move |pod| pod.spec.get_or_insert_default().priority = Some(priority))
                .info()
        };
        let (low, high) = (of(1), of(2));
        let at = |pod, seconds| QueuedPod {
            pod,
            timestamp: now + Duration::from_secs(seconds),
            initial_attempt_timestamp: None,
        };
        for (a, b, less) in [
            (at(&*high, 9), at(&*low, 0), true),
            (at(&*low, 0), at(&*high, 9), false),
            (at(&*low, 0), at(&*low, 1), true),
            (at(&*low, 1), at(&*low, 0), false),
            (at(&*low, 0), at(&*low, 0), false),
        ] {
            assert_eq!(PrioritySort.less(&a, &b), less);
        }
    }
}
