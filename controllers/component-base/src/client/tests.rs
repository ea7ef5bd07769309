//! The client against servers that count connections.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::{StreamExt, TryStreamExt};
use http_body_util::{Either, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::WatchParams;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::*;

/// An API server that has every object, and whose watches tell nothing.
struct Server {
    config: kube::Config,
    state: Arc<Counters>,
}

#[derive(Default)]
struct Counters {
    accepted: AtomicUsize,
    open: AtomicUsize,
    watches: AtomicUsize,
    /// Connections end before a byte is said.
    sick: std::sync::atomic::AtomicBool,
    /// Ends the connections of now, in good order.
    goaway: std::sync::Mutex<CancellationToken>,
}

impl Counters {
    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
    fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

impl Server {
    async fn start(protocols: &[&[u8]], max_streams: u32) -> Self {
        install_crypto_provider();
        let pair = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pair.signing_key.serialize_der()));
        let certificate = pair.cert.der().clone();
        let mut tls = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
        tls.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Counters::default());
        tokio::spawn(serve(listener, Arc::new(tls), max_streams, state.clone()));
        let mut config = kube::Config::new(format!("https://{address}").parse().unwrap());
        config.root_cert = Some(vec![certificate.to_vec()]);
        Self { config, state }
    }

    fn client(&self, qps: f32) -> Api<ConfigMap> {
        let own = ClientConfig {
            qps,
            burst: 1,
            ..ClientConfig::new("test")
        };
        Api::namespaced(own.build_from(self.config.clone()).unwrap(), "default")
    }
}

async fn serve(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    max_streams: u32,
    state: Arc<Counters>,
) {
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        state.accepted.fetch_add(1, Ordering::SeqCst);
        if state.sick.load(Ordering::SeqCst) {
            continue;
        }
        let (tls, state) = (tls.clone(), state.clone());
        let goaway = state.goaway.lock().unwrap().clone();
        tokio::spawn(async move {
            let acceptor = tokio_rustls::TlsAcceptor::from(tls);
            let Ok(socket) = acceptor.accept(socket).await else {
                return;
            };
            state.open.fetch_add(1, Ordering::SeqCst);
            let http2 = socket.get_ref().1.alpn_protocol() == Some(b"h2");
            let counters = state.clone();
            let service = service_fn(move |request| answer(request, counters.clone()));
            let socket = TokioIo::new(socket);
            if http2 {
                let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .max_concurrent_streams(max_streams)
                    .serve_connection(socket, service);
                let mut connection = std::pin::pin!(connection);
                let ended = tokio::select! {
                    _ = &mut connection => true,
                    () = goaway.cancelled() => false,
                };
                if !ended {
                    connection.as_mut().graceful_shutdown();
                    let _ = connection.await;
                }
            } else {
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(socket, service)
                    .await;
            }
            state.open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

/// Counts a watch until its body is dropped.
struct Watching(Arc<Counters>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.watches.fetch_sub(1, Ordering::SeqCst);
    }
}

type Answer = Response<
    Either<
        Full<Bytes>,
        StreamBody<futures::stream::BoxStream<'static, Result<Frame<Bytes>, Infallible>>>,
    >,
>;

async fn answer(request: Request<Incoming>, state: Arc<Counters>) -> Result<Answer, Infallible> {
    let watch = request
        .uri()
        .query()
        .unwrap_or_default()
        .contains("watch=true");
    let body = if watch {
        state.watches.fetch_add(1, Ordering::SeqCst);
        let held = Watching(state);
        let silence = futures::stream::pending().map(move |frame| {
            let _ = &held;
            frame
        });
        Either::Right(StreamBody::new(silence.boxed()))
    } else {
        let name = request.uri().path().rsplit('/').next().unwrap_or_default();
        let object = serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
        Either::Left(Full::from(object.to_string()))
    };
    Ok(Response::new(body))
}

async fn watch_all(api: &Api<ConfigMap>, count: usize) -> Vec<impl Sized + use<>> {
    let parameters = WatchParams::default();
    futures::stream::iter(0..count)
        .map(|_| async { api.watch(&parameters, "0").await.map(StreamExt::boxed) })
        .buffer_unordered(count)
        .try_collect()
        .await
        .unwrap()
}

#[tokio::test]
async fn three_hundred_watches_share_three_connections() {
    let server = Server::start(&[b"h2", b"http/1.1"], 250).await;
    let api = server.client(0.0);
    let watches = watch_all(&api, 300).await;
    assert_eq!(server.state.watches.load(Ordering::SeqCst), 300);
    assert_eq!(server.state.accepted(), 3);
    // All are full: one more request takes one more connection, and the next that one again.
    api.get("a").await.unwrap();
    api.get("b").await.unwrap();
    assert_eq!(server.state.accepted(), 4);
    drop(watches);
    while server.state.watches.load(Ordering::SeqCst) > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let _again = watch_all(&api, 300).await;
    assert_eq!(server.state.accepted(), 4);
}

#[tokio::test]
async fn a_server_that_takes_fewer_streams_gets_more_connections() {
    let server = Server::start(&[b"h2"], 10).await;
    let api = server.client(0.0);
    api.get("a").await.unwrap();
    let _watches = watch_all(&api, 50).await;
    assert!(
        (5..8).contains(&server.state.accepted()),
        "{}",
        server.state.accepted()
    );
}

#[tokio::test]
async fn a_server_of_http1_is_spoken_to() {
    let server = Server::start(&[b"http/1.1"], 1).await;
    let api = server.client(0.0);
    for name in ["a", "b", "c"] {
        assert_eq!(
            api.get(name).await.unwrap().metadata.name.as_deref(),
            Some(name)
        );
    }
    let _watches = watch_all(&api, 5).await;
    // One found out, one for the requests, one each for the watches.
    assert!(server.state.accepted() <= 8, "{}", server.state.accepted());
}

#[tokio::test]
async fn a_broken_server_is_dialled_by_one_and_more_and_more_rarely() {
    let server = Server::start(&[b"h2"], 100).await;
    server.state.sick.store(true, Ordering::SeqCst);
    let api = server.client(0.0);
    let work = futures::future::join_all((0..300).map(|_| async {
        while api.get("a").await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }));
    let healing = async {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let tries = server.state.accepted();
        assert!((3..12).contains(&tries), "{tries}");
        server.state.sick.store(false, Ordering::SeqCst);
        tries
    };
    let (_, tries) = tokio::time::timeout(
        Duration::from_secs(10),
        futures::future::join(work, healing),
    )
    .await
    .unwrap();
    let accepted = server.state.accepted();
    assert!(accepted <= tries + 6, "{accepted} after {tries}");
}

#[tokio::test]
async fn a_connection_that_goes_is_followed_by_another_and_no_request_is_lost() {
    let server = Server::start(&[b"h2"], 100).await;
    let api = server.client(0.0);
    let watches = watch_all(&api, 10).await;
    let going = std::mem::take(&mut *server.state.goaway.lock().unwrap());
    going.cancel();
    for _ in 0..50 {
        api.get("a").await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(server.state.accepted(), 2);
    // The watches hold the old one.
    assert_eq!(server.state.open(), 2);
    drop(watches);
    while server.state.open() > 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_watch_costs_no_token() {
    let server = Server::start(&[b"h2"], 100).await;
    let api = server.client(0.1);
    // The only one for ten seconds.
    api.get("a").await.unwrap();
    let begin = Instant::now();
    let _watches = watch_all(&api, 90).await;
    assert!(begin.elapsed() < Duration::from_secs(5));
    let more = tokio::time::timeout(Duration::from_millis(200), api.get("b")).await;
    assert!(more.is_err(), "a request costs one");
}

#[tokio::test]
async fn a_timeout_holds_for_the_wait_for_tokens_too() {
    let server = Server::start(&[b"h2"], 100).await;
    let own = ClientConfig {
        qps: 0.01,
        burst: 1,
        timeout: Some(Duration::from_millis(300)),
        ..ClientConfig::new("test")
    };
    let client = own.build_from(server.config.clone()).unwrap();
    let api: Api<ConfigMap> = Api::namespaced(client, "default");
    api.get("a").await.unwrap();
    let error = api.get("b").await.unwrap_err();
    let error = format!("{error:?}");
    assert!(error.contains("NoAnswer"), "{error}");
}

#[tokio::test]
async fn clients_that_differ_in_their_token_share_a_connection() {
    let server = Server::start(&[b"h2"], 100).await;
    let connections = Connections::anonymous(&server.config).unwrap();
    for account in ["a", "b", "c"] {
        let token = BearerToken::default();
        token.set(account);
        let own = ClientConfig::new("test");
        let client = own.build_with_token(server.config.clone(), token, &connections);
        let api: Api<ConfigMap> = Api::namespaced(client.unwrap(), "default");
        api.get("object").await.unwrap();
    }
    assert_eq!(server.state.accepted(), 1);
}
