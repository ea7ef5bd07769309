use std::path::Path;
use std::sync::Arc;

use component_base::clock::Clock;
use component_base::shutdown::Shutdown;
use controller_runtime::testing::FakeApi;
use serde_json::json;

use super::{Parts, Staged};
use crate::simulated::stage::load;
use crate::testing::{Rig, client, eventually, pod};

async fn rig(first: Vec<k8s_openapi::api::core::v1::Pod>) -> Rig {
    let (api, shutdown) = (FakeApi::new(), Shutdown::new());
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/stages.yaml");
    let provider = Staged::new(Parts {
        stages: load(&file).unwrap(),
        client: client(&api),
        pod_cidr: "10.7.0.0/16".parse().unwrap(),
        node_ip: Some([10, 9, 0, 1].into()),
        port: 10250,
        clock: Clock::real(),
        queues: controller_runtime::Queues::unread(Clock::real()),
        shutdown: shutdown.clone(),
    });
    Rig::start(api, Arc::new(provider), shutdown, first).await
}

#[tokio::test]
async fn pods_go_from_stage_to_stage() {
    let mut job = pod("job", json!({}), json!({}));
    job.metadata.owner_references = Some(vec![
        serde_json::from_value(
            json!({ "apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "u" }),
        )
        .unwrap(),
    ]);
    let mut rig = rig(vec![pod("a", json!({}), json!({})), job]).await;
    eventually("both run", || {
        rig.phase("a") == "Running" && rig.phase("job") == "Running"
    })
    .await;
    assert_eq!(rig.events.recv().await.unwrap().reason, "Started");
    let status = rig.pod("a").unwrap().status.unwrap();
    assert!(status.pod_ip.unwrap().starts_with("10.7.0."));
    assert_eq!(status.host_ip.as_deref(), Some("10.9.0.1"));
    assert_eq!(status.container_statuses.unwrap()[0].name, "c");
    rig.echo("a");
    rig.echo("job");
    eventually("the job completes", || rig.phase("job") == "Succeeded").await;
    assert_eq!(rig.phase("a"), "Running");
    let mut held = rig.pod("a").unwrap();
    held.metadata.finalizers = Some(vec!["x/y".to_owned()]);
    rig.api.insert(&held);
    rig.delete("a", 30);
    eventually("the object goes", || rig.pod("a").is_none()).await;
    let writes = rig.api.writes();
    let finalizers = writes
        .iter()
        .find(|w| w.body["metadata"].get("finalizers").is_some());
    assert_eq!(
        finalizers.unwrap().body["metadata"]["finalizers"],
        json!([])
    );
}
