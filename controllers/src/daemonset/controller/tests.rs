//! The shell over an in-memory API.

use component_base::clock::Clock;
use controller_runtime::testing::FakeApi;
use serde_json::json;

use super::*;
use crate::testing::{Feed, settle};
use controller_runtime::Queues;

#[tokio::test]
async fn a_namesake_does_not_wait_for_what_was_expected_of_its_predecessor() {
    let (api, clock, shutdown) = (FakeApi::new(), Clock::real(), Shutdown::new());
    let (daemon_sets, of_daemon_sets) = Feed::new();
    let (_pods, of_pods) = Feed::new();
    let (_nodes, of_nodes) = Feed::new();
    let (_revisions, of_revisions) = Feed::new();
    let (controller, _queue, _watches) = DaemonSetController::over(
        &Queues::unread(Clock::real()),
        (of_daemon_sets, of_pods, of_nodes),
        Revisions::over(of_revisions, api.executor()),
        api.executor(),
        clock,
        &shutdown,
    );
    let of_uid = |uid: &str| -> DaemonSet {
        serde_json::from_value(json!({
            "metadata": {"name": "d", "namespace": "ns", "uid": uid},
            "spec": {"selector": {"matchLabels": {"a": "a"}}, "template": {}},
        }))
        .unwrap()
    };
    let key = ObjectKey::new("ns", "d");
    daemon_sets.apply(of_uid("first"));
    settle().await;
    controller.expectations.expect_creations(&key, 1);
    daemon_sets.apply(of_uid("first"));
    settle().await;
    assert!(!controller.expectations.satisfied(&key));
    daemon_sets.delete(of_uid("first"));
    daemon_sets.apply(of_uid("second"));
    settle().await;
    assert!(controller.expectations.satisfied(&key));
    controller.expectations.expect_creations(&key, 1);
    // The watch was down meanwhile.
    daemon_sets.apply(of_uid("third"));
    settle().await;
    assert!(controller.expectations.satisfied(&key));
}
