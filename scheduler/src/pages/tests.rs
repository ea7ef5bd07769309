//! The pages over HTTP, and what the kubectl plugin makes of them.

use component_base::client::ClientConfig;
use framework::testing::{make_node, make_pod};
use http::Request;
use serde_json::Value;

use super::*;
use crate::kubectl::{ask, show_answer, show_explanation};
use crate::testing::Bed;

struct Served {
    _bed: Bed,
    active: Arc<AtomicBool>,
    client: kube::Client,
}

/// A node of 1 CPU with a pod, a pod that is too large, one of another scheduler.
async fn served() -> Served {
    let pods = [
        make_pod("large").uid("large").req(&[("cpu", "4")]).info(),
        make_pod("other")
            .uid("other")
            .scheduler_name("other")
            .info(),
        make_pod("placed").uid("placed").req(&[("cpu", "1")]).info(),
    ];
    let mut bed = Bed::new(&pods);
    let scheduler = Arc::clone(&bed.scheduler);
    let node = make_node("n").capacity(&[("cpu", "1"), ("pods", "10")]);
    scheduler.cache.add_node(node.build());
    scheduler.queue.add(Arc::clone(&pods[2]));
    bed.settle().await;
    scheduler.queue.add(Arc::clone(&pods[0]));
    bed.settle().await;
    let active = Arc::new(AtomicBool::new(true));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = router(scheduler, Arc::clone(&active));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let config = kube::Config::new(url.parse().unwrap());
    let client = ClientConfig::new("test").build_from(config).unwrap();
    Served {
        _bed: bed,
        active,
        client,
    }
}

impl Served {
    async fn why(&self, name: &str) -> Result<Explanation, String> {
        let request = Request::get(format!("/gantry/why/default/{name}"))
            .body(Vec::new())
            .unwrap();
        ask(&self.client, request)
            .await
            .map_err(|error| error.to_string())
    }

    async fn what_if(&self, question: Value) -> Result<what_if::Answer, String> {
        let request = Request::post("/gantry/whatif")
            .header("content-type", "application/json")
            .body(question.to_string().into_bytes())
            .unwrap();
        ask(&self.client, request)
            .await
            .map_err(|error| error.to_string())
    }
}

#[tokio::test]
async fn why_is_told_of_pods_that_wait_and_of_pods_with_a_node() {
    let served = served().await;
    let said = served.why("placed").await.expect("known");
    assert_eq!(show_explanation(&said), "pod default/placed is on node n\n");
    let said = served.why("large").await.expect("known");
    let text = show_explanation(&said);
    for line in [
        "pod default/large fits on none of 1 nodes\n",
        "It waits for an event, after 1 attempts, rejected by NodeResourcesFit\n",
        "\n1 node (n)\n  NodeResourcesFit: Insufficient cpu\n",
        "  nearest is n: cpu asks for 4000m, free are 0m of 1000m: 4000m missing\n",
        "\nPreemption (DefaultPreemption) does not help: preemption: 0/1 nodes are available:",
        "\nIt is tried again after:\n",
    ] {
        assert!(text.contains(line), "{line:?} in:\n{text}");
    }
    let error = served.why("nobody").await.expect_err("unknown");
    assert_eq!(
        error,
        "pod default/nobody not found among pods that have not ended"
    );
    let error = served.why("other").await.expect_err("another's");
    assert_eq!(
        error,
        "pod default/other is for the scheduler \"other\", not for this one"
    );
}

#[tokio::test]
async fn what_if_is_played_with_the_pods_that_wait() {
    let served = served().await;
    let node =
        json!({"metadata": {"name": "x"}, "status": {"allocatable": {"cpu": "8", "pods": "10"}}});
    let answer = served
        .what_if(json!({"addNodes": [{"count": 1, "node": node}]}))
        .await
        .expect("good");
    assert_eq!(
        show_answer(&answer),
        "1 of 1 pods get a node, of 2 nodes\nwaiting default/large -> what-if-0-0\n"
    );
    let answer = served.what_if(json!({"drain": ["n"]})).await.expect("good");
    assert_eq!(
        show_answer(&answer),
        "0 of 2 pods get a node, of 0 nodes\n\
         drained default/placed from n: no nodes available to schedule pods\n\
         waiting default/large: no nodes available to schedule pods\n"
    );
    let error = served
        .what_if(json!({"drain": ["m"]}))
        .await
        .expect_err("no such node");
    assert_eq!(error, "drain[0]: node \"m\" not found");
    let error = served
        .what_if(json!({"drian": []}))
        .await
        .expect_err("no such field");
    assert!(error.contains("drian"), "{error}");
    let config = json!({"config": {"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration",
        "profiles": [{"plugins": {"filter": {"enabled": [{"name": "Nope"}]}}}]}});
    let error = served.what_if(config).await.expect_err("no such plugin");
    assert!(error.contains("\"Nope\" does not exist"), "{error}");
}

#[tokio::test]
async fn a_scheduler_that_does_not_schedule_says_so() {
    let served = served().await;
    served.active.store(false, Ordering::Release);
    let error = served.why("large").await.expect_err("inactive");
    assert!(
        error.starts_with("this scheduler does not schedule now"),
        "{error}"
    );
}

#[tokio::test]
async fn a_crowd_of_questions_is_sent_away() {
    let places = Arc::new(Semaphore::new(1));
    let router: Router = Router::new()
        .route("/", get(async || Json(json!("asked"))))
        .layer(from_fn_with_state(Arc::clone(&places), admit));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let config = kube::Config::new(url.parse().unwrap());
    let client = ClientConfig::new("test").build_from(config).unwrap();
    let asked = async || {
        let request = Request::get("/").body(Vec::new()).unwrap();
        let answer: anyhow::Result<Value> = ask(&client, request).await;
        answer.map_err(|error| error.to_string())
    };
    assert_eq!(asked().await, Ok(json!("asked")));
    let taken = places.try_acquire().unwrap();
    let refused = asked().await.unwrap_err();
    assert_eq!(refused, "too many questions are under way: ask again");
    drop(taken);
    assert_eq!(asked().await, Ok(json!("asked")));
}
