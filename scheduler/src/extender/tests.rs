//! Extenders behind a real HTTP server, of this process.

use std::net::SocketAddr;
use std::sync::Mutex;

use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use component_base::clock::Clock;
use framework::testing::{PodBuilder, make_node, make_pod};
use framework::{ActionType, ClusterEvent, EXTENDER_NAME, EventResource};
use http::StatusCode;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use serde_json::json;

use super::*;
use crate::config::{Extender as Config, ExtenderTlsConfig, KubeSchedulerConfiguration};
use crate::testing::Bed;

type AnswerFn = Box<dyn Fn(&str, &Value) -> (StatusCode, Value) + Send + Sync>;

/// Answers by a function, and remembers what it was asked.
struct Script {
    answer: AnswerFn,
    asked: Mutex<Vec<(String, Value)>>,
}

impl Script {
    fn asked(&self, verb: &str) -> Vec<Value> {
        let asked = self.asked.lock().unwrap();
        let of_verb = asked.iter().filter(|(path, _)| path == verb);
        of_verb.map(|(_, body)| body.clone()).collect()
    }
}

async fn handle(State(script): State<Arc<Script>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    assert_eq!(parts.method, http::Method::POST);
    assert_eq!(parts.headers["content-type"], "application/json");
    let verb = parts.uri.path().trim_start_matches("/x/").to_owned();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    let (code, answer) = (script.answer)(&verb, &body);
    script.asked.lock().unwrap().push((verb, body));
    (code, answer.to_string()).into_response()
}

fn script(
    answer: impl Fn(&str, &Value) -> (StatusCode, Value) + Send + Sync + 'static,
) -> Arc<Script> {
    Arc::new(Script {
        answer: Box::new(answer),
        asked: Mutex::default(),
    })
}

async fn serve(script: &Arc<Script>) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = axum::Router::new()
        .fallback(handle)
        .with_state(Arc::clone(script));
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// Serves and says how the scheduler gets there; the slash at the end is one too many on purpose.
async fn extender(script: &Arc<Script>) -> Config {
    Config {
        url_prefix: format!("http://{}/x/", serve(script).await),
        weight: 1,
        ..Config::default()
    }
}

/// A cluster of nodes of 2 CPUs, the first named n0.
async fn bed(extenders: Vec<Config>, pods: &[PodBuilder], nodes: usize) -> Bed {
    let infos: Vec<Arc<PodInfo>> = pods.iter().cloned().map(PodBuilder::info).collect();
    let config = KubeSchedulerConfiguration {
        extenders,
        ..KubeSchedulerConfiguration::default()
    };
    let bed = Bed::with_config(config, &infos);
    for i in 0..nodes {
        let node = make_node(&format!("n{i}")).capacity(&[("cpu", "2"), ("pods", "10")]);
        bed.scheduler.cache.add_node(node.build());
    }
    infos
        .into_iter()
        .for_each(|info| bed.scheduler.queue.add(info));
    bed
}

fn pod(name: &str) -> PodBuilder {
    make_pod(name).uid(name).req(&[("cpu", "1")])
}

fn names(nodes: &Value) -> Vec<String> {
    let items = nodes["items"].as_array().expect("a node list");
    let name = |node: &Value| node["metadata"]["name"].as_str().unwrap().to_owned();
    items.iter().map(name).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_are_asked_once_in_turn_and_leave_less_and_less() {
    // The first gets whole nodes and refuses one; the second knows them, and answers by other names of the fields.
    let first = script(|_, body| {
        let kept: Vec<Value> = body["Nodes"]["items"].as_array().unwrap()[1..].to_vec();
        (
            StatusCode::OK,
            json!({"Nodes": {"items": kept}, "FailedNodes": {"n0": "too hot"}}),
        )
    });
    let second = script(|_, body| {
        assert_eq!(body["NodeNames"], json!(["n1", "n2"]));
        (StatusCode::OK, json!({"nodenames": ["n2"], "error": ""}))
    });
    let configs = vec![
        Config {
            filter_verb: "fit".into(),
            ..extender(&first).await
        },
        Config {
            filter_verb: "fit".into(),
            node_cache_capable: true,
            ..extender(&second).await
        },
    ];
    let mut bed = bed(configs, &[pod("a")], 3).await;
    bed.settle().await;
    bed.until("a is bound", |bed| {
        !bed.writes.bound.lock().unwrap().is_empty()
    })
    .await;
    assert_eq!(*bed.writes.bound.lock().unwrap(), ["a -> n2"]);
    let asked = first.asked("fit");
    assert_eq!(asked.len(), 1, "once, with all nodes");
    assert_eq!(names(&asked[0]["Nodes"]), ["n0", "n1", "n2"]);
    assert_eq!(asked[0]["Pod"]["metadata"]["name"], "a");
    assert_eq!(asked[0]["NodeNames"], Value::Null);
    assert_eq!(second.asked("fit")[0]["Nodes"], Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_filters_refuse_is_told_and_wakes_by_any_event() {
    let refusing = script(|_, _| {
        let answer = json!({
            "NodeNames": [],
            "FailedNodes": {"n0": "no slot", "n1": "no slot", "elsewhere": "?"},
            "FailedAndUnresolvableNodes": {"n1": "wrong rack"},
        });
        (StatusCode::OK, answer)
    });
    let config = Config {
        filter_verb: "fit".into(),
        node_cache_capable: true,
        ..extender(&refusing).await
    };
    let mut bed = bed(vec![config], &[pod("a")], 3).await;
    bed.settle().await;
    bed.until("a condition", |bed| {
        !bed.writes.conditions.lock().unwrap().is_empty()
    })
    .await;
    let conditions = bed.writes.conditions.lock().unwrap().clone();
    assert!(
        conditions[0]
            .starts_with("a Unschedulable 0/3 nodes are available: 1 no slot, 1 wrong rack."),
        "{conditions:?}"
    );
    assert_eq!(bed.scheduler.queue.rejected_by(), [(EXTENDER_NAME, 1)]);
    let event = ClusterEvent::new(EventResource::CSIDriver, ActionType::ADD);
    let queue = &bed.scheduler.queue;
    queue.move_all_to_active_or_backoff_queue(event, None, None, None);
    assert_eq!(queue.counts().unschedulable, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_none_fails_the_pod_unless_ignorable() {
    for (code, answer, want) in [
        (StatusCode::OK, json!({"Error": "I am lost"}), "I am lost"),
        (
            StatusCode::BAD_GATEWAY,
            json!({}),
            "failed fit with extender at URL http://ADDRESS/x/fit, code 502",
        ),
        (
            StatusCode::OK,
            json!({"NodeNames": ["mars"]}),
            "extender \"http://ADDRESS/x/\" claims a filtered node \"mars\" which is not found in the input node list",
        ),
        (
            StatusCode::OK,
            json!({"NodeNames": "n0"}),
            "the extender's answer: NodeNames: want a list, found a text",
        ),
    ] {
        for ignorable in [false, true] {
            let answer = answer.clone();
            let failing = script(move |_, _| (code, answer.clone()));
            let config = Config {
                filter_verb: "fit".into(),
                node_cache_capable: true,
                ignorable,
                ..extender(&failing).await
            };
            let address = config.url_prefix.replace("http://", "").replace("/x/", "");
            let mut bed = bed(vec![config], &[pod("a")], 1).await;
            bed.settle().await;
            bed.until(want, |bed| !bed.events.lock().unwrap().is_empty())
                .await;
            let events = bed.events.lock().unwrap().clone();
            let want = match ignorable {
                true => "Scheduled Successfully assigned default/a to n0".to_owned(),
                false => format!("FailedScheduling {}", want.replace("ADDRESS", &address)),
            };
            assert_eq!(events, [want]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_does_not_come_is_not_waited_for() {
    // It takes the connection and says nothing.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let held = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    let config = Config {
        url_prefix: format!("http://{address}"),
        filter_verb: "fit".into(),
        http_timeout: Duration::from_millis(50).into(),
        ..Config::default()
    };
    let mut bed = bed(vec![config], &[pod("a")], 1).await;
    bed.settle().await;
    let events = bed.events.lock().unwrap().clone();
    let want = format!("FailedScheduling Post \"http://{address}/fit\": no answer within 50ms");
    assert_eq!(events, [want]);
    held.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scores_are_weighted_and_added_and_failures_give_none() {
    let liking = |host: &'static str| {
        script(move |_, _| {
            (
                StatusCode::OK,
                json!([{"Host": host, "Score": 10}, {"host": "mars", "score": 10}]),
            )
        })
    };
    let (likes_1, likes_2) = (liking("n1"), liking("n2"));
    let broken = script(|_, _| (StatusCode::OK, json!({"not": "a list"})));
    let config = |weight, config: Config| Config {
        prioritize_verb: "rank".into(),
        weight,
        ..config
    };
    let configs = vec![
        config(3, extender(&likes_1).await),
        config(5, extender(&likes_2).await),
        config(1_000, extender(&broken).await),
    ];
    let mut bed = bed(configs, &[pod("a")], 4).await;
    bed.settle().await;
    bed.until("a is bound", |bed| {
        !bed.writes.bound.lock().unwrap().is_empty()
    })
    .await;
    assert_eq!(*bed.writes.bound.lock().unwrap(), ["a -> n2"]);
    assert_eq!(broken.asked("rank").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_pods_that_ask_for_what_it_manages_are_its_business() {
    let managing = script(|verb, _| match verb {
        "fit" => (StatusCode::OK, json!({"NodeNames": ["n1"]})),
        _ => (StatusCode::OK, json!({})),
    });
    let resource = config::ExtenderManagedResource {
        name: "example.com/slot".into(),
        ignored_by_scheduler: true,
    };
    let config = Config {
        filter_verb: "fit".into(),
        bind_verb: "bind".into(),
        node_cache_capable: true,
        managed_resources: vec![resource],
        ..extender(&managing).await
    };
    // No node has the resource: NodeResourcesFit is not to look at it.
    let with_slot = make_pod("slot")
        .uid("slot-uid")
        .req(&[("cpu", "1"), ("example.com/slot", "1")]);
    let mut bed = bed(vec![config], &[pod("plain"), with_slot], 2).await;
    bed.settle().await;
    bed.until("both are bound", |bed| {
        bed.events.lock().unwrap().len() == 2
    })
    .await;
    let events = bed.events.lock().unwrap().clone();
    assert!(
        events.contains(&"Scheduled Successfully assigned default/slot to n1".to_owned()),
        "{events:?}"
    );
    assert_eq!(managing.asked("fit").len(), 1);
    let binding =
        json!({"PodName": "slot", "PodNamespace": "default", "PodUID": "slot-uid", "Node": "n1"});
    assert_eq!(managing.asked("bind"), [binding]);
    let bound = bed.writes.bound.lock().unwrap().clone();
    assert_eq!(bound.len(), 1, "the extender binds the other: {bound:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_binder_that_fails_is_the_failure_of_the_binding() {
    for ignorable in [false, true] {
        let failing = script(|_, _| (StatusCode::OK, json!({"Error": "not today"})));
        let config = Config {
            bind_verb: "bind".into(),
            ignorable,
            ..extender(&failing).await
        };
        let mut bed = bed(vec![config], &[pod("a")], 1).await;
        bed.settle().await;
        bed.until("an event", |bed| !bed.events.lock().unwrap().is_empty())
            .await;
        let want = match ignorable {
            true => "Scheduled Successfully assigned default/a to n0",
            false => "FailedScheduling not today",
        };
        assert_eq!(*bed.events.lock().unwrap(), [want]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nomination_holds_only_as_far_as_the_extenders_agree() {
    let agreeing_on = |node: &'static str| {
        script(move |_, body| {
            let asked = body["NodeNames"].as_array().unwrap();
            let left: Vec<&Value> = asked.iter().filter(|name| **name == node).collect();
            (StatusCode::OK, json!({"NodeNames": left}))
        })
    };
    for (node, asked) in [
        ("n1", vec![json!(["n1"])]),
        ("n0", vec![json!(["n1"]), json!(["n0", "n1"])]),
    ] {
        let script = agreeing_on(node);
        let config = Config {
            filter_verb: "fit".into(),
            node_cache_capable: true,
            ..extender(&script).await
        };
        let mut bed = bed(vec![config], &[pod("a").nominated_node_name("n1")], 2).await;
        bed.settle().await;
        bed.until("a is bound", |bed| {
            !bed.writes.bound.lock().unwrap().is_empty()
        })
        .await;
        assert_eq!(*bed.writes.bound.lock().unwrap(), [format!("a -> {node}")]);
        let names: Vec<Value> = script
            .asked("fit")
            .iter()
            .map(|b| b["NodeNames"].clone())
            .collect();
        assert_eq!(names, asked);
    }
}

/// A full cluster of two nodes and a pod of high priority.
async fn preempting(script: &Arc<Script>, known: bool, ignorable: bool) -> Bed {
    let config = Config {
        preempt_verb: "preempt".into(),
        node_cache_capable: known,
        ignorable,
        ..extender(script).await
    };
    let high = make_pod("high")
        .uid("high")
        .priority(10)
        .req(&[("cpu", "2")]);
    let mut bed = bed(vec![config], &[high], 2).await;
    for (name, node) in [("low0", "n0"), ("low1", "n1")] {
        let low = make_pod(name).uid(name).req(&[("cpu", "2")]).node(node);
        bed.scheduler.cache.add_pod(low.info());
    }
    bed.settle().await;
    bed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn preemption_goes_where_the_extender_leaves() {
    for known in [false, true] {
        let only_1 = script(move |_, body| {
            let (whole, meta) = (&body["NodeNameToVictims"], &body["NodeNameToMetaVictims"]);
            let uid = match known {
                true => {
                    assert!(whole.is_null());
                    meta["n1"]["Pods"][0]["UID"].clone()
                }
                false => {
                    assert!(meta.is_null());
                    whole["n1"]["Pods"][0]["metadata"]["uid"].clone()
                }
            };
            assert_eq!(uid, "low1");
            let left = json!({"n1": {"Pods": [{"UID": uid}], "NumPDBViolations": 0}});
            (StatusCode::OK, json!({"NodeNameToMetaVictims": left}))
        });
        let bed = preempting(&only_1, known, false).await;
        bed.until("a nomination", |bed| {
            !bed.writes.nominations.lock().unwrap().is_empty()
        })
        .await;
        assert_eq!(*bed.writes.nominations.lock().unwrap(), ["high -> n1"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn preemption_that_the_extender_refuses_does_not_happen() {
    let victims = |pods: Value| json!({"NodeNameToMetaVictims": {"n1": {"Pods": pods}}});
    for (answer, want) in [
        (json!({}), "preemption: no candidate node for preemption"),
        (
            victims(json!([])),
            "preemption: expected at least one victim pod on node \"n1\"",
        ),
        (
            victims(json!([{"UID": "nobody"}])),
            "claims to preempt pod (UID: nobody) on node: n1",
        ),
        (
            json!({"NodeNameToMetaVictims": {"mars": {"Pods": []}}}),
            "nodeinfo not found for node name \"mars\"",
        ),
    ] {
        let refusing = script(move |_, _| (StatusCode::OK, answer.clone()));
        let bed = preempting(&refusing, true, false).await;
        bed.until("a condition", |bed| {
            !bed.writes.conditions.lock().unwrap().is_empty()
        })
        .await;
        let conditions = bed.writes.conditions.lock().unwrap().clone();
        assert!(conditions[0].contains(want), "{want}: {conditions:?}");
        assert!(bed.writes.nominations.lock().unwrap().is_empty());
    }
    let broken = script(|_, _| (StatusCode::INTERNAL_SERVER_ERROR, json!({})));
    let bed = preempting(&broken, true, true).await;
    bed.until("a nomination", |bed| {
        !bed.writes.nominations.lock().unwrap().is_empty()
    })
    .await;
}

/// A server with TLS that knows its clients by `client`, if given.
async fn serve_tls(
    script: &Arc<Script>,
    name: &str,
    client: Option<&rcgen::Certificate>,
) -> (SocketAddr, String) {
    component_base::client::install_crypto_provider();
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    let cert = params.self_signed(&key).unwrap();
    let builder = rustls::ServerConfig::builder();
    let builder = match client {
        None => builder.with_no_client_auth(),
        Some(client) => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(client.der().clone()).unwrap();
            let verifier = rustls::server::WebPkiClientVerifier::builder(Arc::new(roots));
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let der = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
    let config = builder
        .with_single_cert(vec![cert.der().clone()], der.into())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = axum::Router::new()
        .fallback(handle)
        .with_state(Arc::clone(script));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, router) = (acceptor.clone(), router.clone());
            tokio::spawn(async move {
                // A client that does not trust us goes away.
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let service = TowerToHyperService::new(router);
                let connection = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = connection
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    (address, cert.pem())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_verified_as_the_configuration_says() {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["scheduler".to_owned()]).unwrap();
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let client = params.self_signed(&key).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (cert_file, key_file) = (
        directory.path().join("c.pem"),
        directory.path().join("k.pem"),
    );
    std::fs::write(&cert_file, client.pem()).unwrap();
    std::fs::write(&key_file, key.serialize_pem()).unwrap();

    let script = script(|_, _| (StatusCode::OK, json!({"NodeNames": ["n0"]})));
    let (open, open_ca) = serve_tls(&script, "extender.example", None).await;
    let (closed, closed_ca) = serve_tls(&script, "extender.example", Some(&client)).await;
    let base64 = |pem: &str| base64::engine::general_purpose::STANDARD.encode(pem);
    let trusting = |ca: &str| ExtenderTlsConfig {
        ca_data: base64(ca),
        server_name: "extender.example".into(),
        ..ExtenderTlsConfig::default()
    };
    let cases = [
        ("no CA, not asked for HTTPS", open, false, None, false),
        ("HTTPS without a CA is not verified", open, true, None, true),
        (
            "insecure",
            open,
            false,
            Some(ExtenderTlsConfig {
                insecure: true,
                ..Default::default()
            }),
            true,
        ),
        ("CA and name", open, true, Some(trusting(&open_ca)), true),
        (
            "another name",
            open,
            true,
            Some(ExtenderTlsConfig {
                server_name: String::new(),
                ..trusting(&open_ca)
            }),
            false,
        ),
        ("another CA", open, true, Some(trusting(&closed_ca)), false),
        (
            "no certificate of ours",
            closed,
            true,
            Some(trusting(&closed_ca)),
            false,
        ),
        (
            "our certificate",
            closed,
            true,
            Some(ExtenderTlsConfig {
                cert_file: cert_file.display().to_string(),
                key_file: key_file.display().to_string(),
                ..trusting(&closed_ca)
            }),
            true,
        ),
    ];
    for (what, address, enable_https, tls_config, reached) in cases {
        let config = Config {
            url_prefix: format!("https://{address}/x"),
            filter_verb: "fit".into(),
            node_cache_capable: true,
            enable_https,
            tls_config,
            ..Config::default()
        };
        let mut bed = bed(vec![config], &[pod("a")], 1).await;
        bed.settle().await;
        bed.until(what, |bed| !bed.events.lock().unwrap().is_empty())
            .await;
        let events = bed.events.lock().unwrap().clone();
        assert_eq!(
            events[0].starts_with("Scheduled"),
            reached,
            "{what}: {events:?}"
        );
    }
}

#[tokio::test]
async fn tls_settings_that_cannot_be_used_are_named() {
    let tasks = tokio::runtime::Handle::current();
    let check = |tls: ExtenderTlsConfig, want: &str| {
        let config = Config {
            url_prefix: "https://extender.example".into(),
            tls_config: Some(tls),
            ..Config::default()
        };
        let error = new_extenders(&[config], &tasks, &Metrics::unread(Clock::real()))
            .err()
            .expect(want);
        let text = error.to_string();
        assert!(
            text.contains("extender \"https://extender.example\"") && text.contains(want),
            "{text}"
        );
    };
    let none = ExtenderTlsConfig::default;
    check(
        ExtenderTlsConfig {
            ca_file: "/nowhere/ca".into(),
            ..none()
        },
        "tlsConfig.caFile: /nowhere/ca",
    );
    check(
        ExtenderTlsConfig {
            ca_data: "%".into(),
            ..none()
        },
        "tlsConfig.caData: illegal base64 data",
    );
    check(
        ExtenderTlsConfig {
            ca_data: "eA==".into(),
            ..none()
        },
        "tlsConfig CA",
    );
    check(
        ExtenderTlsConfig {
            cert_data: "eA==".into(),
            ..none()
        },
        "a certificate and its key go together",
    );
    let pem = rcgen::generate_simple_self_signed(vec!["x".to_owned()])
        .unwrap()
        .cert
        .pem();
    let ca_data = base64::engine::general_purpose::STANDARD.encode(pem);
    check(
        ExtenderTlsConfig {
            insecure: true,
            ca_data,
            ..none()
        },
        "insecure flag",
    );
}

#[test]
fn ignorable_extenders_go_last_and_their_resources_are_collected() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let config = |name: &str, ignorable| Config {
        url_prefix: format!("http://{name}"),
        ignorable,
        managed_resources: vec![config::ExtenderManagedResource {
            name: format!("example.com/{name}"),
            ignored_by_scheduler: ignorable,
        }],
        ..Config::default()
    };
    let configs = [config("a", true), config("b", false), config("c", true)];
    let extenders =
        new_extenders(&configs, runtime.handle(), &Metrics::unread(Clock::real())).unwrap();
    let order: Vec<&str> = extenders.iter().map(|e| e.name()).collect();
    assert_eq!(order, ["http://b", "http://a", "http://c"]);
    assert_eq!(
        ignored_resources(&configs),
        ["example.com/a", "example.com/c"]
    );
}
