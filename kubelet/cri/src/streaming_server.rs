//! The addresses that exec, attach and port-forward answer with: one use each, for a minute, on the loopback alone.
//!
//! The listener begins with the first of them: a node where nobody asks has no port open. A token is the only credential: whoever may
//! talk to the CRI's socket is root, and nobody else can guess it.
//!
//! Upstream: `k8s.io/cri-streaming/pkg/streaming` (`request_cache.go`: a minute, 1000 at a time, one use).

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use runtime::{Runtime, StreamOptions};
use streaming::{PortForwardOptions, RemoteCommand, RemoteCommandOptions, StreamConfig};
use tokio::net::TcpListener;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::session::process;

/// How long an address may wait for its client. Upstream: `cacheTTL`.
const TOKEN_AGE: Duration = Duration::from_secs(60);
/// Addresses that wait at a time. Upstream: `maxInFlight`.
const MAX_TOKENS: usize = 1000;
/// 128 bits are beyond guessing.
const TOKEN_BYTES: usize = 16;
/// A client that takes longer for the head of its request is let go.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that have not said yet what they want. Pods on the host's network reach this port, too: they must not use up the
/// process's descriptors.
const MAX_UNASKED: usize = 256;

type Response = http::Response<Full<Bytes>>;

/// What an address stands for.
enum Wanted {
    Exec {
        container: String,
        command: Vec<String>,
        options: StreamOptions,
    },
    Attach {
        container: String,
        options: StreamOptions,
    },
    PortForward {
        sandbox: String,
        ports: Vec<u16>,
    },
}

struct Waiting {
    wanted: Wanted,
    until: Instant,
}

/// Tokens that wait, pure but for what is given in.
#[derive(Default)]
struct Tokens {
    waiting: HashMap<String, Waiting>,
    /// The same, by age.
    ages: BTreeMap<(Instant, String), ()>,
}

impl Tokens {
    fn forget_old(&mut self, now: Instant) {
        while let Some(((until, token), ())) = self.ages.first_key_value() {
            if *until > now {
                return;
            }
            self.waiting.remove(token);
            self.ages.pop_first();
        }
    }

    /// `false`: too many wait.
    fn insert(&mut self, token: String, wanted: Wanted, now: Instant) -> bool {
        self.forget_old(now);
        if self.waiting.len() >= MAX_TOKENS {
            return false;
        }
        let until = now + TOKEN_AGE;
        self.ages.insert((until, token.clone()), ());
        self.waiting.insert(token, Waiting { wanted, until });
        true
    }

    /// What the token stands for; it stands for nothing afterwards.
    fn take(&mut self, token: &str, now: Instant) -> Option<Wanted> {
        self.forget_old(now);
        let waiting = self.waiting.remove(token)?;
        self.ages.remove(&(waiting.until, token.to_owned()));
        Some(waiting.wanted)
    }
}

/// Serves streams of one runtime.
#[derive(Clone)]
pub struct StreamingServer {
    inner: Arc<Inner>,
}

struct Inner {
    runtime: Arc<dyn Runtime>,
    tokens: Mutex<Tokens>,
    address: OnceCell<SocketAddr>,
    pool: Arc<streaming::Pool>,
    /// Ends the listener and forwarded ports.
    ending: CancellationToken,
}

impl StreamingServer {
    /// Exec and attach go on when `ending` is cancelled: they need nothing of the runtime any more.
    pub fn new(runtime: Arc<dyn Runtime>, ending: CancellationToken) -> Self {
        Self {
            inner: Arc::new(Inner {
                runtime,
                tokens: Mutex::default(),
                address: OnceCell::new(),
                pool: Arc::default(),
                ending,
            }),
        }
    }

    pub(crate) async fn exec(
        &self,
        container: String,
        command: Vec<String>,
        options: StreamOptions,
    ) -> Result<String, Status> {
        let wanted = Wanted::Exec {
            container,
            command,
            options,
        };
        self.url("exec", wanted).await
    }

    pub(crate) async fn attach(
        &self,
        container: String,
        options: StreamOptions,
    ) -> Result<String, Status> {
        self.url("attach", Wanted::Attach { container, options })
            .await
    }

    pub(crate) async fn port_forward(
        &self,
        sandbox: String,
        ports: Vec<u16>,
    ) -> Result<String, Status> {
        self.url("portforward", Wanted::PortForward { sandbox, ports })
            .await
    }

    async fn url(&self, verb: &str, wanted: Wanted) -> Result<String, Status> {
        let listening = self.inner.address.get_or_try_init(|| self.listen());
        let address = listening
            .await
            .map_err(|error| Status::unknown(format!("cannot listen for streams: {error}")))?;
        let token: String = rand::random::<[u8; TOKEN_BYTES]>()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        if !self
            .inner
            .tokens()
            .insert(token.clone(), wanted, Instant::now())
        {
            return Err(Status::resource_exhausted(
                "maximum number of in-flight requests exceeded",
            ));
        }
        Ok(format!("http://{address}/{verb}/{token}"))
    }

    async fn listen(&self) -> std::io::Result<SocketAddr> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (weak, ending) = (Arc::downgrade(&self.inner), self.inner.ending.clone());
        let places = Arc::new(Semaphore::new(MAX_UNASKED));
        tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = ending.cancelled() => return,
                };
                let Some(inner) = weak.upgrade() else { return };
                match accepted {
                    Ok((connection, _)) => match places.clone().try_acquire_owned() {
                        Ok(place) => drop(tokio::spawn(serve(inner, connection, place))),
                        Err(_) => tracing::debug!("too many streaming connections ask for nothing"),
                    },
                    // Of files, mostly: somebody must end first.
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a streaming connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        });
        Ok(address)
    }
}

/// Until the request is answered or the connection has become a stream.
async fn serve(inner: Arc<Inner>, connection: tokio::net::TcpStream, _place: OwnedSemaphorePermit) {
    let _ = connection.set_nodelay(true);
    let ending = inner.ending.clone();
    let service = service_fn(move |request| {
        let response = inner.answer(request);
        async move { Ok::<_, std::convert::Infallible>(response) }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(connection), service)
        .with_upgrades();
    tokio::select! {
        served = serving => if let Err(error) = served {
            tracing::debug!(%error, "a streaming connection failed");
        },
        () = ending.cancelled() => {}
    }
}

impl Inner {
    fn tokens(&self) -> MutexGuard<'_, Tokens> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(self: &Arc<Self>, request: Request<Incoming>) -> Response {
        let path = request.uri().path().to_owned();
        let mut parts = path.trim_start_matches('/').splitn(2, '/');
        let (verb, token) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        let Some(wanted) = self.tokens().take(token, Instant::now()) else {
            return refuse(StatusCode::NOT_FOUND, "404 page not found");
        };
        match (verb, wanted) {
            (
                "exec",
                Wanted::Exec {
                    container,
                    command,
                    options,
                },
            ) => self.exec(request, container, command, options),
            ("attach", Wanted::Attach { container, options }) => {
                self.attach(request, container, options)
            }
            ("portforward", Wanted::PortForward { sandbox, ports }) => {
                self.port_forward(request, sandbox, ports)
            }
            _ => refuse(StatusCode::NOT_FOUND, "404 page not found"),
        }
    }

    fn config(&self, shutdown: CancellationToken) -> StreamConfig {
        StreamConfig {
            pool: self.pool.clone(),
            shutdown,
            ..StreamConfig::default()
        }
    }

    fn exec(
        self: &Arc<Self>,
        request: Request<Incoming>,
        container: String,
        command: Vec<String>,
        options: StreamOptions,
    ) -> Response {
        let runtime = self.runtime.clone();
        let asked = asked(&options);
        let start = move || async move {
            let session = runtime.exec(&container, &command, &options).await;
            session.map(process).map_err(|error| error.to_string())
        };
        let config = self.config(CancellationToken::new());
        streaming::serve_remote_command(request, RemoteCommand::Exec, asked, config, start)
    }

    fn attach(
        self: &Arc<Self>,
        request: Request<Incoming>,
        container: String,
        options: StreamOptions,
    ) -> Response {
        let runtime = self.runtime.clone();
        let asked = asked(&options);
        let start = move || async move {
            let session = runtime.attach(&container, &options).await;
            session.map(process).map_err(|error| error.to_string())
        };
        let config = self.config(CancellationToken::new());
        streaming::serve_remote_command(request, RemoteCommand::Attach, asked, config, start)
    }

    fn port_forward(
        self: &Arc<Self>,
        request: Request<Incoming>,
        sandbox: String,
        ports: Vec<u16>,
    ) -> Response {
        let options = match PortForwardOptions::from_request(&request) {
            Ok(options) => options,
            // A client of WebSocket streams says the ports in the call that gave it the address.
            Err(_) if !ports.is_empty() => PortForwardOptions { ports },
            Err(reason) => return refuse(StatusCode::BAD_REQUEST, &reason),
        };
        let (runtime, name) = (self.runtime.clone(), sandbox.clone());
        let connect = move |port: u16| {
            let (runtime, sandbox) = (runtime.clone(), sandbox.clone());
            async move {
                runtime
                    .port_forward(&sandbox, port)
                    .await
                    .map_err(|error| error.to_string())
            }
        };
        let config = self.config(self.ending.clone());
        streaming::serve_port_forward(request, name, options, config, connect)
    }
}

fn refuse(status: StatusCode, text: &str) -> Response {
    let mut response = http::Response::new(Full::new(Bytes::from(format!("{text}\n"))));
    *response.status_mut() = status;
    // Whoever has no token keeps no connection either.
    let close = http::HeaderValue::from_static("close");
    response
        .headers_mut()
        .insert(http::header::CONNECTION, close);
    response
}

fn asked(options: &StreamOptions) -> RemoteCommandOptions {
    RemoteCommandOptions {
        stdin: options.stdin,
        stdout: options.stdout,
        stderr: options.stderr,
        tty: options.tty,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        Wanted::PortForward {
            sandbox: "s".into(),
            ports: Vec::new(),
        }
    }

    #[test]
    fn a_token_is_good_once_and_for_a_minute() {
        let (mut tokens, now) = (Tokens::default(), Instant::now());
        assert!(tokens.insert("a".into(), wanted(), now));
        assert!(tokens.insert("b".into(), wanted(), now));
        assert!(tokens.take("c", now).is_none());
        assert!(tokens.take("a", now).is_some());
        assert!(tokens.take("a", now).is_none());
        assert!(tokens.take("b", now + TOKEN_AGE).is_none());
        assert!(tokens.waiting.is_empty() && tokens.ages.is_empty());
    }

    #[test]
    fn so_many_wait_and_no_more_until_they_are_old() {
        let (mut tokens, now) = (Tokens::default(), Instant::now());
        for number in 0..MAX_TOKENS {
            assert!(tokens.insert(number.to_string(), wanted(), now));
        }
        assert!(!tokens.insert("more".into(), wanted(), now));
        assert!(tokens.take("0", now).is_some());
        assert!(tokens.insert("more".into(), wanted(), now));
        assert!(!tokens.insert("again".into(), wanted(), now));
        assert!(tokens.insert("again".into(), wanted(), now + TOKEN_AGE));
    }
}
