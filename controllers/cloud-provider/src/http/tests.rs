use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Mutex;

use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::{Json, Router};
use serde_json::{from_value, json};

use super::*;

/// What was asked: method, path, token, body.
type Asked = Arc<Mutex<Vec<(String, String, String, Value)>>>;

async fn answer(State(asked): State<Asked>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let token = parts
        .headers
        .get(header::AUTHORIZATION)
        .map(|value| value.to_str().unwrap().to_owned());
    let body = axum::body::to_bytes(body, MAX_ANSWER).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let path = parts.uri.path().to_owned();
    asked.lock().unwrap().push((
        parts.method.to_string(),
        path.clone(),
        token.unwrap_or_default(),
        body.clone(),
    ));
    let failure = |code: &str| {
        let failure = json!({ "code": code, "message": "words", "retryAfterSeconds": 7 });
        (StatusCode::CONFLICT, Json(failure)).into_response()
    };
    let node = body["node"]["metadata"]["name"]
        .as_str()
        .unwrap_or_default();
    match (path.strip_prefix("/base/v1/").unwrap(), node) {
        ("provider", _) => Json(json!({ "name": "acme", "supports": ["instances", "loadBalancers", "routes"] })).into_response(),
        (_, "html") => (StatusCode::BAD_GATEWAY, "<html>").into_response(),
        (_, "text") => "no json".into_response(),
        (_, code) if code.chars().next().is_some_and(char::is_uppercase) => failure(code),
        ("instances/exists", node) => Json(json!({ "exists": node == "a" })).into_response(),
        ("instances/shutdown", node) => Json(json!({ "shutDown": node == "a" })).into_response(),
        ("instances/metadata", "foreign") => Json(json!({ "metadata": null })).into_response(),
        ("instances/metadata", _) => Json(json!({ "metadata": { "providerID": "acme://a", "nodeAddresses": [] } })).into_response(),
        ("loadbalancers/get", _) => Json(json!({ "status": null })).into_response(),
        ("loadbalancers/ensure", _) => Json(json!({ "status": { "ingress": [{ "ip": "192.0.2.1" }] } })).into_response(),
        ("routes/list", _) => Json(json!({ "routes": [{ "name": "x", "targetNode": "a", "destinationCIDR": "10.0.0.0/24" }] })).into_response(),
        _ => Json(json!({})).into_response(),
    }
}

async fn serve() -> (SocketAddr, Asked) {
    let asked = Asked::default();
    let router = Router::new().fallback(answer).with_state(asked.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    (address, asked)
}

async fn open(text: &str) -> Result<HttpCloud, ConfigError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    HttpCloud::open(file.path()).await
}

fn node(name: &str) -> Node {
    from_value(json!({ "metadata": { "name": name } })).unwrap()
}

#[tokio::test]
async fn questions_and_answers() {
    let (address, asked) = serve().await;
    let mut token = tempfile::NamedTempFile::new().unwrap();
    token.write_all(b"secret\n").unwrap();
    let cloud = open(&format!(
        "url: http://{address}/base/\ntokenFile: {}",
        token.path().display()
    ))
    .await
    .unwrap();
    assert_eq!(cloud.name(), "acme");
    assert!(cloud.instances().is_some() && cloud.zones().is_none());
    assert_eq!(cloud.exists(&node("a")).await, Ok(true));
    assert_eq!(cloud.exists(&node("b")).await, Ok(false));
    assert_eq!(cloud.is_shut_down(&node("a")).await, Ok(true));
    let metadata = Instances::metadata(&cloud, &node("a"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(metadata.provider_id, "acme://a");
    assert_eq!(
        Instances::metadata(&cloud, &node("foreign")).await,
        Ok(None)
    );
    let service = Service::default();
    assert_eq!(cloud.get("k", &service).await, Ok(None));
    let status = cloud
        .ensure("k", &service, &[Arc::new(node("a"))])
        .await
        .unwrap();
    assert_eq!(status.ingress.unwrap()[0].ip.as_deref(), Some("192.0.2.1"));
    assert_eq!(cloud.update("k", &service, &[]).await, Ok(()));
    assert_eq!(cloud.ensure_deleted("k", &service).await, Ok(()));
    let routes = cloud.list("k").await.unwrap();
    assert_eq!(
        (&*routes[0].target_node, &*routes[0].destination_cidr),
        ("a", "10.0.0.0/24")
    );
    assert_eq!(cloud.create("k", "hint", &routes[0]).await, Ok(()));
    assert_eq!(cloud.delete("k", &routes[0]).await, Ok(()));
    let asked = asked.lock().unwrap();
    assert!(
        asked
            .iter()
            .all(|(_, _, token, _)| token == "Bearer secret")
    );
    assert_eq!((&*asked[0].0, &*asked[0].1), ("GET", "/base/v1/provider"));
    let ensured = asked
        .iter()
        .find(|(_, path, ..)| path.ends_with("/ensure"))
        .unwrap();
    assert_eq!(
        (
            &ensured.3["clusterName"],
            &ensured.3["nodes"][0]["metadata"]["name"]
        ),
        (&json!("k"), &json!("a"))
    );
    let created = asked
        .iter()
        .find(|(_, path, ..)| path.ends_with("/create"))
        .unwrap();
    assert_eq!(
        (
            &created.3["nameHint"],
            &created.3["route"]["destinationCIDR"]
        ),
        (&json!("hint"), &json!("10.0.0.0/24"))
    );
}

#[tokio::test]
async fn failures() {
    let (address, _) = serve().await;
    let cloud = open(&format!("url: http://{address}/base")).await.unwrap();
    let error = async |name: &str| cloud.exists(&node(name)).await.unwrap_err();
    assert_eq!(
        error("InstanceNotFound").await,
        CloudError::InstanceNotFound
    );
    assert_eq!(error("NotImplemented").await, CloudError::NotImplemented);
    assert_eq!(
        error("ImplementedElsewhere").await,
        CloudError::ImplementedElsewhere
    );
    let after = Duration::from_secs(7);
    assert_eq!(
        error("RetryAfter").await,
        CloudError::RetryAfter {
            message: "words".into(),
            after
        }
    );
    assert_eq!(
        error("Quota").await,
        CloudError::Failed("Quota: words".into())
    );
    let asked = format!("POST http://{address}/base/v1/instances/exists");
    assert_eq!(
        error("html").await,
        CloudError::Failed(format!("{asked}: 502 Bad Gateway"))
    );
    assert!(error("text").await.to_string().starts_with(&asked));
}

#[tokio::test]
async fn configurations() {
    for (text, expect) in [
        (
            "url: http://203.0.113.1/x",
            "http is only for this machine, use https",
        ),
        (
            "url: https://cloud.example.com",
            "caFile: must be set with https",
        ),
        ("url: ftp://127.0.0.1", "is neither http nor https"),
        ("url: /path", "is not SCHEME://HOST"),
        ("url: http://127.0.0.1:1/?a=b", "is not SCHEME://HOST"),
        (
            "url: http://[::1]:1\ntimeoutSeconds: 0",
            "timeoutSeconds: must be greater than zero",
        ),
        ("uri: http://127.0.0.1", "uri"),
        (
            "url: https://127.0.0.1\ncaFile: /nowhere",
            "caFile: /nowhere",
        ),
        (
            "url: http://127.0.0.1:1",
            "url: GET http://127.0.0.1:1/v1/provider: ",
        ),
        (
            "url: http://localhost:1\ntokenFile: /nowhere",
            "tokenFile /nowhere",
        ),
    ] {
        let error = open(text).await.err().expect(text).to_string();
        assert!(error.contains(expect), "{error}");
    }
}

#[tokio::test]
async fn the_certificate_must_be_of_the_ca() {
    let signed = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key =
        rustls::pki_types::PrivateKeyDer::try_from(signed.signing_key.serialize_der()).unwrap();
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![signed.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let service =
                    hyper::service::service_fn(async |_: http::Request<hyper::body::Incoming>| {
                        let body = json!({ "name": "acme", "supports": ["instances"] }).to_string();
                        Ok::<_, std::convert::Infallible>(http::Response::new(Full::<Bytes>::from(
                            body,
                        )))
                    });
                let io = hyper_util::rt::TokioIo::new(stream);
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(io, service)
                    .await;
            });
        }
    });
    let with = async |pem: String| {
        let mut ca = tempfile::NamedTempFile::new().unwrap();
        ca.write_all(pem.as_bytes()).unwrap();
        open(&format!(
            "url: https://localhost:{port}\ncaFile: {}",
            ca.path().display()
        ))
        .await
    };
    assert_eq!(with(signed.cert.pem()).await.unwrap().name(), "acme");
    let error = with(other.cert.pem()).await.err().unwrap().to_string();
    assert!(error.contains("certificate"), "{error}");
    let error = with(String::new()).await.err().unwrap().to_string();
    assert!(error.contains("caFile"), "{error}");
}
