//! Whole servers on loopback: who is let in by what certificate and when, and whether strangers can keep others out.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Body;
use axum::routing::get;
use http::{Request, Response, StatusCode, header};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, PublicKeyData as _, SigningKey as _,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::connections::PoolLimit;
use super::*;
use crate::clock::{Clock, FakeClock};
use crate::der;
use crate::subject::Subject;
use crate::tls::{ServerTls, TlsOptions, generate_self_signed};

const CLIENT_AUTH: &[u64] = &[1, 3, 6, 1, 5, 5, 7, 3, 2];
const SERVER_AUTH: &[u64] = &[1, 3, 6, 1, 5, 5, 7, 3, 1];
const UTF8: u8 = 0x0c;
const BMP: u8 = 0x1e;

/// A CA of clients.
struct Ca {
    key: KeyPair,
    name: Vec<u8>,
    pem: String,
}

impl Ca {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.self_signed(&key).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate.der()).unwrap();
        Self {
            name: parsed.subject().as_raw().to_vec(),
            pem: certificate.pem(),
            key,
        }
    }

    /// A certificate for any name (DER), written by hand; with its key.
    fn issue(&self, subject: &[u8], usage: &[u64], not_after: Timestamp) -> Identity {
        let key = KeyPair::generate().unwrap();
        let algorithm = der::sequence(&[der::oid(&[1, 2, 840, 10045, 4, 3, 2])]);
        let usages = der::sequence(&[der::oid(usage)]);
        let extensions = der::sequence(&[der::extension(&[2, 5, 29, 37], false, &usages)]);
        let tbs = der::sequence(&[
            der::tlv(0xa0, &der::integer(&[2])),
            der::integer(&[7]),
            algorithm.clone(),
            self.name.clone(),
            der::sequence(&[
                der::time(Timestamp::from_second(1_600_000_000).unwrap()),
                der::time(not_after),
            ]),
            subject.to_vec(),
            key.subject_public_key_info(),
            der::tlv(0xa3, &extensions),
        ]);
        let signature = self.key.sign(&tbs).unwrap();
        let certificate = der::sequence(&[tbs, algorithm, der::bit_string(&signature)]);
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        (CertificateDer::from(certificate), key)
    }

    fn user(&self, name: &str, groups: &[&str]) -> Identity {
        self.issue(&Subject::new(name, groups).to_der(), CLIENT_AUTH, later())
    }
}

type Identity = (CertificateDer<'static>, PrivateKeyDer<'static>);

fn now() -> Timestamp {
    "2026-01-01T12:00:00Z".parse().unwrap()
}

fn later() -> Timestamp {
    "2026-01-01T13:00:00Z".parse().unwrap()
}

/// A name of attributes (identifier, string type, value), one a set.
fn name(attributes: &[(&[u64], u8, &[u8])]) -> Vec<u8> {
    let sets: Vec<Vec<u8>> = attributes
        .iter()
        .map(|(id, tag, value)| {
            let attribute = der::sequence(&[der::oid(id), der::tlv(*tag, value)]);
            der::tlv(der::SET, &attribute)
        })
        .collect();
    der::sequence(&sets)
}

struct House {
    address: SocketAddr,
    tls: ServerTls,
    roots: RootCertStore,
    shutdown: Shutdown,
    _directory: tempfile::TempDir,
}

impl Drop for House {
    fn drop(&mut self) {
        self.shutdown.trigger();
    }
}

impl House {
    /// Who is in system:masters may do everything, others nothing; `tokens` are asked about.
    async fn new(
        ca: &Ca,
        clock: Clock,
        limits: Limits,
        timeouts: Timeouts,
        tokens: Option<DelegatedAuthentication>,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (cert, key) = generate_self_signed(&["localhost".into()]).unwrap();
        let file = |name: &str, data: &[u8]| {
            let path = directory.path().join(name);
            std::fs::write(&path, data).unwrap();
            Some(path)
        };
        let options = TlsOptions {
            cert_file: file("crt", &cert),
            key_file: file("key", &key),
            ..TlsOptions::default()
        };
        let tls = ServerTls::new(options, Some(ca.pem.clone().into_bytes())).unwrap();
        let mut roots = RootCertStore::empty();
        let chain = crate::tls::certificates("test", &cert).unwrap();
        roots.add(chain[1].clone()).unwrap();
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = SecureServer {
            listener,
            tls: tls.clone(),
            access: AccessControl::new(tokens, true, Authorization::AllowNone)
                .clock(clock)
                .always_allow_paths(["/healthz"]),
        };
        let router = Router::new()
            .route("/", get(|| async { "in" }))
            .route("/heard", get(heard))
            .route("/healthz", get(|| async { "ok" }));
        let shutdown = Shutdown::new();
        tokio::spawn(server.serve_within(router, limits, timeouts, shutdown.clone()));
        Self {
            address,
            tls,
            roots,
            shutdown,
            _directory: directory,
        }
    }

    async fn handshake(
        &self,
        identity: Option<&Identity>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let builder = ClientConfig::builder().with_root_certificates(self.roots.clone());
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => builder
                .with_client_auth_cert(vec![certificate.clone()], key.clone_key())
                .unwrap(),
        };
        let stream = TcpStream::connect(self.address).await?;
        let connector = TlsConnector::from(Arc::new(config));
        let name = ServerName::try_from("localhost").unwrap();
        connector.connect(name, stream).await
    }

    async fn client(&self, identity: Option<&Identity>) -> SendRequest<Body> {
        let stream = TokioIo::new(self.handshake(identity).await.unwrap());
        let (sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        sender
    }
}

async fn ask(client: &mut SendRequest<Body>, path: &str, token: Option<&str>) -> StatusCode {
    let mut request = Request::get(path).header(header::HOST, "localhost");
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    client.ready().await.unwrap();
    let request = request.body(Body::empty()).unwrap();
    let response = client.send_request(request).await.unwrap();
    let status = response.status();
    http_body_util::BodyExt::collect(response.into_body())
        .await
        .unwrap();
    status
}

/// What a handler is told of tokens.
async fn heard(headers: http::HeaderMap) -> String {
    let told = |name| {
        headers
            .get(name)
            .and_then(|value: &http::HeaderValue| value.to_str().ok())
    };
    let names = [header::AUTHORIZATION, header::SEC_WEBSOCKET_PROTOCOL];
    names
        .map(|name| told(name).unwrap_or("-").to_owned())
        .join(" ")
}

#[tokio::test]
async fn certificates_are_judged_at_each_request() {
    let (ca, other) = (Ca::new("ca"), Ca::new("other"));
    let clock = FakeClock::new(now());
    let house = House::new(&ca, clock.clock(), LIMITS, TIMEOUTS, None).await;
    let masters = ["system:masters"];
    let admin = ca.user("admin", &masters);
    let mut kept = house.client(Some(&admin)).await;
    assert_eq!(ask(&mut kept, "/", None).await, 200);
    // No route is looked up before it is known who asks.
    let mut nobody = house.client(None).await;
    assert_eq!(ask(&mut nobody, "/healthz", None).await, 200);
    assert_eq!(ask(&mut nobody, "/", None).await, 403);
    assert_eq!(ask(&mut nobody, "/nothing", None).await, 403);
    assert_eq!(ask(&mut kept, "/nothing", None).await, 404);
    // Another CA is in force: the certificate of the connection is none any more, then it is again.
    let set = |ca: &Ca| house.tls.set_client_ca(Some(ca.pem.clone().into_bytes()));
    set(&other).unwrap();
    assert_eq!(ask(&mut kept, "/", None).await, 401);
    assert_eq!(ask(&mut kept, "/healthz", None).await, 401);
    set(&ca).unwrap();
    assert_eq!(ask(&mut kept, "/", None).await, 200);
    clock.advance(Duration::from_secs(3600));
    assert_eq!(ask(&mut kept, "/", None).await, 200);
    clock.advance(Duration::from_secs(1));
    assert_eq!(ask(&mut kept, "/", None).await, 401);
    // Who comes with it now is not anonymous either.
    let mut late = house.client(Some(&admin)).await;
    assert_eq!(ask(&mut late, "/healthz", None).await, 401);
}

#[tokio::test]
async fn certificates_that_name_nobody_or_two() {
    const CN: &[u64] = &[2, 5, 4, 3];
    const O: &[u64] = &[2, 5, 4, 10];
    let (ca, other) = (Ca::new("ca"), Ca::new("other"));
    let clock = FakeClock::new(now());
    let house = House::new(&ca, clock.clock(), LIMITS, TIMEOUTS, None).await;
    let bmp: Vec<u8> = "system:masters".bytes().flat_map(|b| [0, b]).collect();
    let of = |attributes: &[(&[u64], u8, &[u8])]| ca.issue(&name(attributes), CLIENT_AUTH, later());
    let masters: (&[u64], u8, &[u8]) = (O, UTF8, b"system:masters");
    // Go writes several groups into one relative name; such certificates are good.
    let attribute =
        |id: &[u64], value: &[u8]| der::sequence(&[der::oid(id), der::tlv(UTF8, value)]);
    let groups = [attribute(O, b"a"), attribute(O, b"system:masters")].concat();
    let by_go = der::sequence(&[
        der::tlv(der::SET, &groups),
        der::tlv(der::SET, &attribute(CN, b"a")),
    ]);
    let check = async |identity: Identity, path: &str, expect: u16| {
        let mut client = house.client(Some(&identity)).await;
        assert_eq!(ask(&mut client, path, None).await, expect);
    };
    check(of(&[masters, (CN, UTF8, b"a")]), "/", 200).await;
    check(ca.issue(&by_go, CLIENT_AUTH, later()), "/", 200).await;
    check(ca.user("a", &["system:nodes"]), "/", 403).await;
    check(ca.user("a", &["system:nodes"]), "/healthz", 200).await;
    // No CN is no user: anonymous, as upstream.
    check(of(&[masters]), "/", 403).await;
    check(of(&[masters]), "/healthz", 200).await;
    for refused in [
        of(&[
            masters,
            (CN, UTF8, b"system:node:a"),
            (CN, UTF8, b"kube-apiserver"),
        ]),
        of(&[(O, BMP, &bmp), (CN, UTF8, b"a")]),
        of(&[masters, (CN, BMP, &bmp)]),
        of(&[masters, (CN, UTF8, b"")]),
        other.user("a", &["system:masters"]),
        ca.issue(&name(&[masters, (CN, UTF8, b"a")]), SERVER_AUTH, later()),
        ca.issue(
            &name(&[masters, (CN, UTF8, b"a")]),
            CLIENT_AUTH,
            now() - jiff::SignedDuration::from_secs(1),
        ),
    ] {
        check(refused.clone_identity(), "/", 401).await;
        check(refused, "/healthz", 401).await;
    }
}

trait CloneIdentity {
    fn clone_identity(&self) -> Self;
}

impl CloneIdentity for Identity {
    fn clone_identity(&self) -> Self {
        (self.0.clone(), self.1.clone_key())
    }
}

/// Some thousands of connections that say nothing, without TLS and with it, from the address the API server has: it is still answered, on
/// a new connection and on the one it kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_keep_nobody_out() {
    let ca = Ca::new("ca");
    let clock = FakeClock::new(Timestamp::now());
    let not_after = Timestamp::now() + jiff::SignedDuration::from_hours(1);
    let subject = Subject::new("kube-apiserver", &["system:masters"]).to_der();
    let api_server = ca.issue(&subject, CLIENT_AUTH, not_after);
    let node = ca.issue(
        &Subject::new("system:node:a", &["system:nodes"]).to_der(),
        CLIENT_AUTH,
        not_after,
    );
    let house = House::new(&ca, clock.clock(), LIMITS, TIMEOUTS, None).await;
    let mut kept = house.client(Some(&api_server)).await;
    assert_eq!(ask(&mut kept, "/", None).await, 200);
    let mut idle = Vec::new();
    for _ in 0..3000 {
        idle.push(TcpStream::connect(house.address).await.unwrap());
    }
    let mut with_tls = Vec::new();
    for n in 0..400 {
        // Every other one is a node's, which may ask nothing of this server.
        let identity = (n % 2 == 0).then_some(&node);
        with_tls.push(house.handshake(identity).await);
    }
    let answered = async {
        assert_eq!(ask(&mut kept, "/", None).await, 200);
        let mut new = house.client(Some(&api_server)).await;
        assert_eq!(ask(&mut new, "/", None).await, 200);
    };
    tokio::time::timeout(Duration::from_secs(5), answered)
        .await
        .unwrap();
    // The oldest of the idle were closed for it.
    let mut byte = [0];
    let end = tokio::time::timeout(Duration::from_secs(5), idle[0].read(&mut byte)).await;
    assert!(matches!(end, Ok(Ok(0) | Err(_))), "{end:?}");
    assert!(with_tls.iter().filter(|c| c.is_ok()).count() > 300);
}

/// More certificates that may do nothing than there are places for them.
#[tokio::test]
async fn certificates_of_others_keep_nobody_out() {
    const FEW: Limits = [PoolLimit {
        total: 4,
        per_peer: 4,
    }; 3];
    let ca = Ca::new("ca");
    let not_after = Timestamp::now() + jiff::SignedDuration::from_hours(1);
    let issue = |user: &str, group: &str| {
        ca.issue(
            &Subject::new(user, &[group]).to_der(),
            CLIENT_AUTH,
            not_after,
        )
    };
    let (api_server, node) = (
        issue("kube-apiserver", "system:masters"),
        issue("system:node:a", "system:nodes"),
    );
    let house = House::new(&ca, Clock::real(), FEW, TIMEOUTS, None).await;
    let mut kept = house.client(Some(&api_server)).await;
    assert_eq!(ask(&mut kept, "/", None).await, 200);
    let mut others = Vec::new();
    for _ in 0..20 {
        let mut client = house.client(Some(&node)).await;
        assert_eq!(ask(&mut client, "/", None).await, 403);
        others.push(client);
    }
    let open = others.iter().filter(|c| !c.is_closed()).count();
    assert!(open <= 5, "{open}");
    assert_eq!(ask(&mut kept, "/", None).await, 200);
    // Its own many connections: the longest idle goes, none is refused.
    let mut own = Vec::new();
    for _ in 0..10 {
        let mut client = house.client(Some(&api_server)).await;
        assert_eq!(ask(&mut client, "/", None).await, 200);
        own.push(client);
    }
}

#[tokio::test]
async fn slow_peers_are_let_go() {
    let timeouts = Timeouts {
        handshake: Duration::from_millis(300),
        header: Duration::from_millis(300),
        idle: Duration::from_millis(900),
    };
    let ca = Ca::new("ca");
    let house = House::new(&ca, Clock::real(), LIMITS, timeouts, None).await;
    let ends = async |stream: &mut (dyn tokio::io::AsyncRead + Unpin + Send)| {
        let mut data = Vec::new();
        let end = stream.read_to_end(&mut data);
        tokio::time::timeout(Duration::from_secs(5), end)
            .await
            .expect("the server closes it")
            .ok();
    };
    // No handshake; half of one.
    let mut silent = TcpStream::connect(house.address).await.unwrap();
    ends(&mut silent).await;
    let mut half = TcpStream::connect(house.address).await.unwrap();
    half.write_all(&[22, 3, 1]).await.unwrap();
    ends(&mut half).await;
    // No request; half of one, with a byte now and then.
    let mut quiet = house.handshake(None).await.unwrap();
    ends(&mut quiet).await;
    let mut slow = house.handshake(None).await.unwrap();
    slow.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
    let start = std::time::Instant::now();
    let trickle = async {
        while slow.write_all(b"a").await.is_ok() && slow.flush().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), trickle)
        .await
        .expect("the server closes it");
    assert!(start.elapsed() < Duration::from_secs(4));
    // One that asked may be idle for longer, but not for ever.
    let mut client = house.client(None).await;
    assert_eq!(ask(&mut client, "/healthz", None).await, 200);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(ask(&mut client, "/healthz", None).await, 200);
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(client.is_closed());
}

/// HTTP/2, as Go's clients speak it: many requests on one connection, and idle ones end.
#[tokio::test]
async fn connections_of_http2() {
    let timeouts = Timeouts {
        idle: Duration::from_millis(800),
        header: Duration::from_millis(400),
        ..TIMEOUTS
    };
    let ca = Ca::new("ca");
    let house = House::new(&ca, Clock::real(), LIMITS, timeouts, None).await;
    let not_after = Timestamp::now() + jiff::SignedDuration::from_hours(1);
    let subject = Subject::new("kube-apiserver", &["system:masters"]).to_der();
    let (certificate, key) = ca.issue(&subject, CLIENT_AUTH, not_after);
    let mut config = ClientConfig::builder()
        .with_root_certificates(house.roots.clone())
        .with_client_auth_cert(vec![certificate], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(house.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let stream = TokioIo::new(connector.connect(name, stream).await.unwrap());
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut client, connection) = hyper::client::conn::http2::handshake(executor, stream)
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = |path: &str, extra: usize| {
        Request::get(format!("https://localhost{path}"))
            .header("x", "a".repeat(extra))
            .body(Body::empty())
            .unwrap()
    };
    for (path, extra, expect) in [("/", 1, 200), ("/nothing", 1, 404), ("/", 40_000, 431)] {
        let response = client.send_request(request(path, extra)).await.unwrap();
        assert_eq!(response.status(), expect, "{path} {extra}");
    }
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(client.is_closed());
}

#[tokio::test]
async fn heads_of_requests_have_a_size() {
    let ca = Ca::new("ca");
    let house = House::new(&ca, Clock::real(), LIMITS, TIMEOUTS, None).await;
    let mut stream = house.handshake(None).await.unwrap();
    let head = format!(
        "GET /healthz HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n",
        "a".repeat(100_000)
    );
    // The server may answer and close before all is written.
    let _ = stream.write_all(head.as_bytes()).await;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 431");
}

/// An API server that knows one token, takes its time, and counts.
fn api_server(
    asked: Arc<AtomicUsize>,
    at_once: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
) -> kube::Client {
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let (asked, at_once, most) = (asked.clone(), at_once.clone(), most.clone());
        async move {
            asked.fetch_add(1, Ordering::SeqCst);
            most.fetch_max(at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(100)).await;
            at_once.fetch_sub(1, Ordering::SeqCst);
            let body = request.into_body().collect_bytes().await.unwrap();
            let mut review: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let good = review["spec"]["token"] == "good";
            review["status"] = if good {
                serde_json::json!({"authenticated": true, "user": {"username": "prometheus", "groups": ["system:masters"]}})
            } else {
                serde_json::json!({"authenticated": false})
            };
            let body = kube::client::Body::from(serde_json::to_vec(&review).unwrap());
            Ok::<_, std::convert::Infallible>(Response::builder().status(201).body(body).unwrap())
        }
    });
    kube::Client::new(service, "default")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn junk_tokens_are_asked_about_within_bounds() {
    let count = || Arc::new(AtomicUsize::new(0));
    let (asked, at_once, most) = (count(), count(), count());
    let client = api_server(asked.clone(), at_once, most.clone());
    let tokens = DelegatedAuthentication::new(client, Duration::from_secs(60));
    let ca = Ca::new("ca");
    let house = Arc::new(House::new(&ca, Clock::real(), LIMITS, TIMEOUTS, Some(tokens)).await);
    let mut prometheus = house.client(None).await;
    assert_eq!(ask(&mut prometheus, "/", Some("good")).await, 200);
    assert_eq!(ask(&mut prometheus, "/healthz", Some("bad")).await, 401);
    // One flight for a hundred who bring the same token.
    let before = asked.load(Ordering::SeqCst);
    let mut same = Vec::new();
    for _ in 0..100 {
        let house = house.clone();
        same.push(tokio::spawn(async move {
            let mut client = house.client(None).await;
            ask(&mut client, "/", Some("the same")).await
        }));
    }
    for one in same {
        assert_eq!(one.await.unwrap(), 401);
    }
    assert_eq!(asked.load(Ordering::SeqCst), before + 1);
    // A hundred different ones: some are asked about, the others are told to come again.
    let mut junk = Vec::new();
    for n in 0..100 {
        let house = house.clone();
        junk.push(tokio::spawn(async move {
            let mut client = house.client(None).await;
            client.ready().await.unwrap();
            let request = Request::get("/")
                .header(header::HOST, "localhost")
                .header(header::AUTHORIZATION, format!("Bearer junk{n}"))
                .body(Body::empty())
                .unwrap();
            let response = client.send_request(request).await.unwrap();
            if response.status() == 429 {
                assert_eq!(response.headers()[header::RETRY_AFTER], "1");
            }
            response.status().as_u16()
        }));
    }
    let mut seen = std::collections::BTreeMap::<u16, usize>::new();
    for one in junk {
        *seen.entry(one.await.unwrap()).or_default() += 1;
    }
    assert_eq!(seen.keys().copied().collect::<Vec<_>>(), [401, 429]);
    assert!(most.load(Ordering::SeqCst) <= 8, "{most:?}");
    // Who is known needs no question.
    assert_eq!(ask(&mut prometheus, "/", Some("good")).await, 200);
    // A token that is too long is none, and nobody is asked.
    let before = asked.load(Ordering::SeqCst);
    let long = "a".repeat(delegated::MAX_TOKEN_BYTES + 1);
    assert_eq!(ask(&mut prometheus, "/", Some(&long)).await, 401);
    assert_eq!(asked.load(Ordering::SeqCst), before);
}

#[tokio::test]
async fn a_websocket_may_bring_its_token_in_a_subprotocol() {
    let count = || Arc::new(AtomicUsize::new(0));
    let client = api_server(count(), count(), count());
    let tokens = DelegatedAuthentication::new(client, Duration::from_secs(60));
    let ca = Ca::new("ca");
    let house = House::new(&ca, Clock::real(), LIMITS, TIMEOUTS, Some(tokens)).await;
    let mut browser = house.client(None).await;
    let token = |encoded: &str| {
        format!("base64url.bearer.authorization.k8s.io.{encoded}, v5.channel.k8s.io")
    };
    let (good, bad) = (token("Z29vZA"), token("YmFk"));
    let alone = good.replace(", v5.channel.k8s.io", "");
    for (path, upgrade, protocol, status, heard) in [
        ("/heard", "websocket", &good, 200, "- v5.channel.k8s.io"),
        ("/heard", "websocket", &bad, 401, ""),
        ("/healthz", "websocket", &bad, 401, ""),
        ("/heard", "websocket", &alone, 401, ""),
        // Who wants no WebSocket is nobody.
        ("/heard", "h2c", &good, 403, ""),
    ] {
        browser.ready().await.unwrap();
        let request = Request::get(path)
            .header(header::HOST, "localhost")
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, upgrade)
            .header(header::SEC_WEBSOCKET_PROTOCOL, protocol)
            .body(Body::empty())
            .unwrap();
        let response = browser.send_request(request).await.unwrap();
        assert_eq!(response.status(), status, "{path} {upgrade} {protocol}");
        let body = http_body_util::BodyExt::collect(response.into_body()).await;
        if status == 200 {
            assert_eq!(body.unwrap().to_bytes(), heard);
        }
    }
    // A good token of a header goes no further, either.
    let request = Request::get("/heard")
        .header(header::HOST, "localhost")
        .header(header::AUTHORIZATION, "Bearer good")
        .body(Body::empty())
        .unwrap();
    let response = browser.send_request(request).await.unwrap();
    let body = http_body_util::BodyExt::collect(response.into_body()).await;
    assert_eq!(body.unwrap().to_bytes(), "- -");
}
