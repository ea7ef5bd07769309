//! A provider in another process, in any language: `gantry.provider.v1` over a unix socket (`proto/provider.proto`).
//!
//! Owns: the connection, what is done after it broke, and the meaning of gRPC's codes.

mod convert;
mod streams;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use component_base::shutdown::Shutdown;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kubelet_provider::{
    AttachOptions, Connection, Features, LogOptions, LogStream, NodeDescription, PodEvents, PodId,
    PodReport, PodUsage, Process, Provider, ProviderError,
};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tonic::transport::{Channel, Endpoint as TonicEndpoint, Uri};
use tower::service_fn;

/// The messages, the client and the server of the protocol.
#[allow(clippy::all, missing_docs, rustdoc::all)]
pub mod v1 {
    tonic::include_proto!("gantry.provider.v1");
}

use convert::failure;
use v1::provider_client::ProviderClient;

/// What a call may take that is no stream.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the provider may be away at the start.
const START_TIMEOUT: Duration = Duration::from_secs(60);
const FIRST_RETRY: Duration = Duration::from_millis(200);
const MAX_RETRY: Duration = Duration::from_secs(5);
/// Pods with large annotations, and lists of many.
const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// HTTP/2 wants one; a unix socket has none.
const AUTHORITY: &str = "http://localhost";

/// Where a provider is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    socket: PathBuf,
}

/// Text that is no endpoint.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "Invalid value: {0:?}: must be the absolute path of a unix socket, as unix:///run/provider.sock"
)]
pub struct EndpointError(String);

impl Endpoint {
    /// Reads `unix:///run/provider.sock`.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self, EndpointError> {
        let path = text
            .strip_prefix("unix://")
            .or_else(|| text.strip_prefix("unix:"));
        let socket = PathBuf::from(path.unwrap_or_default());
        match socket.is_absolute() {
            true => Ok(Self { socket }),
            false => Err(EndpointError(text.to_owned())),
        }
    }

    fn channel(&self) -> Channel {
        let socket = self.socket.clone();
        TonicEndpoint::from_static(AUTHORITY).connect_with_connector_lazy(service_fn(
            move |_: Uri| {
                let socket = socket.clone();
                async move { UnixStream::connect(socket).await.map(TokioIo::new) }
            },
        ))
    }
}

type Client = ProviderClient<Channel>;

/// A provider behind a socket.
pub struct Remote {
    shared: Arc<Shared>,
    features: Features,
}

struct Shared {
    client: Client,
    /// What it said of itself at the start.
    info: v1::InfoResponse,
    events: OnceLock<PodEvents>,
    /// What the provider has, as far as we know: whatever is not in its list after it was away is gone.
    known: Mutex<HashMap<Arc<str>, PodId>>,
    shutdown: Shutdown,
}

fn request<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

fn who() -> v1::InfoRequest {
    v1::InfoRequest {
        api_version: kubelet_provider::API_VERSION.to_owned(),
    }
}

impl Remote {
    /// Asks who is there, for as long as a provider may take to start.
    ///
    /// # Errors
    /// Nobody answered, or what was answered is not understood.
    pub async fn connect(endpoint: Endpoint, shutdown: Shutdown) -> Result<Self, ProviderError> {
        let client = ProviderClient::new(endpoint.channel())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let asking = async {
            let mut pause = FIRST_RETRY;
            loop {
                match client.clone().info(request(who())).await {
                    Ok(info) => return Ok(info.into_inner()),
                    Err(status) if status.code() == tonic::Code::Unavailable => {
                        tracing::warn!(
                            error = status.message(),
                            "The provider does not answer, will retry"
                        );
                    }
                    Err(status) => return Err(failure(&status, "Info")),
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(MAX_RETRY);
            }
        };
        let info = tokio::time::timeout(START_TIMEOUT, asking)
            .await
            .map_err(|_| {
                ProviderError::Unavailable(format!("nobody answered within {START_TIMEOUT:?}"))
            })??;
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if info.name.is_empty() || info.name.len() > 63 || !info.name.chars().all(is_name) {
            let text = format!(
                "Info says the name {:?}: lower case letters, digits and '-' were expected",
                info.name
            );
            return Err(ProviderError::Failed(text));
        }
        let mut features = Features::none();
        for feature in &info.features {
            let known = feature.parse();
            let known = known.map_err(|e: kubelet_provider::UnknownFeature| {
                ProviderError::Failed(format!("Info: {e}"))
            })?;
            features = features.with(known);
        }
        const CALLS: [&str; 5] = ["Logs", "Exec", "Attach", "PortForward", "Stats"];
        if let Some(call) = info
            .calls
            .iter()
            .find(|call| !CALLS.contains(&call.as_str()))
        {
            return Err(ProviderError::Failed(format!(
                "Info: unknown optional call {call:?}"
            )));
        }
        Ok(Self {
            shared: Arc::new(Shared {
                client,
                info,
                events: OnceLock::new(),
                known: Mutex::default(),
                shutdown,
            }),
            features,
        })
    }

    fn client(&self) -> Client {
        self.shared.client.clone()
    }

    fn has(&self, call: &str, what: &'static str) -> Result<(), ProviderError> {
        match self.shared.info.calls.iter().any(|c| c == call) {
            true => Ok(()),
            false => Err(ProviderError::Unsupported(what)),
        }
    }
}

/// The fields of Info that differ, but for the version.
fn changes(old: &v1::InfoResponse, new: &v1::InfoResponse) -> Vec<&'static str> {
    [
        ("name", old.name != new.name),
        ("features", old.features != new.features),
        ("labels", old.labels != new.labels),
        ("calls", old.calls != new.calls),
    ]
    .into_iter()
    .filter_map(|(field, differs)| differs.then_some(field))
    .collect()
}

impl Shared {
    fn known(&self) -> MutexGuard<'_, HashMap<Arc<str>, PodId>> {
        self.known.lock().expect("no panic while the lock is held")
    }

    /// Follows what the provider tells; after it was away, asks for everything anew.
    async fn watch(self: Arc<Self>, ready: oneshot::Sender<Result<(), ProviderError>>) {
        let mut ready = Some(ready);
        let mut pause = FIRST_RETRY;
        loop {
            let began = std::time::Instant::now();
            if let Err(error) = self.watch_once(&mut ready).await {
                tracing::warn!(%error, "The provider's events ended, will retry");
                if let Some(ready) = ready.take() {
                    // Whoever waited gave up with the process.
                    let _ = ready.send(Err(error));
                }
            }
            if began.elapsed() > MAX_RETRY {
                pause = FIRST_RETRY;
            }
            if self
                .shutdown
                .run_until(tokio::time::sleep(pause))
                .await
                .is_none()
            {
                return;
            }
            pause = (pause * 2).min(MAX_RETRY);
        }
    }

    async fn watch_once(
        &self,
        ready: &mut Option<oneshot::Sender<Result<(), ProviderError>>>,
    ) -> Result<(), ProviderError> {
        let failed = |status: tonic::Status| failure(&status, "WatchPods");
        let mut client = self.client.clone();
        let watching = client.watch_pods(v1::WatchPodsRequest {});
        let watching = self.shutdown.run_until(watching).await;
        let Some(stream) = watching else {
            return Ok(());
        };
        let mut stream = stream.map_err(failed)?.into_inner();
        let mut first = true;
        while let Some(next) = self.shutdown.run_until(stream.message()).await {
            let Some(event) = next.map_err(failed)? else {
                return Err(ProviderError::Unavailable(
                    "the stream of events was closed".to_owned(),
                ));
            };
            if std::mem::take(&mut first) {
                match ready.take() {
                    // Nobody has asked for the list yet.
                    Some(ready) => drop(ready.send(Ok(()))),
                    None => {
                        self.ask_anew().await?;
                        self.list_anew().await?;
                    }
                }
            }
            self.told(event);
        }
        Ok(())
    }

    /// Who is there now: nodes have the name and the labels of the one before, and pods were judged by its features.
    async fn ask_anew(&self) -> Result<(), ProviderError> {
        let info = self.client.clone().info(request(who())).await;
        let info = info
            .map_err(|status| failure(&status, "Info"))?
            .into_inner();
        let changed = changes(&self.info, &info);
        if !changed.is_empty() {
            tracing::warn!(
                changed = changed.join(", "),
                "The provider says something else of itself than at the start: it counts when this process is started again"
            );
        }
        Ok(())
    }

    async fn list(&self) -> Result<Vec<(PodId, PodReport)>, ProviderError> {
        let mut client = self.client.clone();
        let listed = client.list_pods(request(v1::ListPodsRequest {})).await;
        let listed = listed.map_err(|status| failure(&status, "ListPods"))?;
        let pods = listed.into_inner().pods.into_iter();
        Ok(pods.filter_map(convert::status).collect())
    }

    async fn list_anew(&self) -> Result<(), ProviderError> {
        // As it was before the question: what is created meanwhile may miss in the answer.
        let mut gone = self.known().clone();
        let listed = self.list().await?;
        let Some(events) = self.events.get() else {
            return Ok(());
        };
        for (id, report) in listed {
            gone.remove(&id.uid);
            self.known().insert(id.uid.clone(), id.clone());
            events.report(&id, report);
        }
        for id in gone.values() {
            self.known().remove(&id.uid);
            events.gone(id);
        }
        Ok(())
    }

    fn told(&self, event: v1::PodEvent) {
        let Some(events) = self.events.get() else {
            return;
        };
        match event.event {
            Some(v1::pod_event::Event::Status(status)) => {
                if let Some((id, report)) = convert::status(status) {
                    self.known().insert(id.uid.clone(), id.clone());
                    events.report(&id, report);
                }
            }
            Some(v1::pod_event::Event::Gone(id)) => {
                let id = convert::id(id);
                self.known().remove(&id.uid);
                events.gone(&id);
            }
            Some(v1::pod_event::Event::Message(message)) => {
                if let Some(id) = message.id {
                    let level = match message.warning {
                        true => kubelet_provider::EventLevel::Warning,
                        false => kubelet_provider::EventLevel::Normal,
                    };
                    events.message(&convert::id(id), level, &message.reason, message.message);
                }
            }
            Some(v1::pod_event::Event::Node(node)) => {
                let conditions = node.conditions.into_iter().map(convert::condition);
                events.node_conditions(&node.node, conditions.collect());
            }
            None => {}
        }
    }
}

#[async_trait]
impl Provider for Remote {
    fn name(&self) -> &str {
        &self.shared.info.name
    }

    fn version(&self) -> String {
        self.shared.info.version.clone()
    }

    fn features(&self) -> Features {
        self.features.clone()
    }

    async fn configure_node(&self, node: &mut NodeDescription) -> Result<(), ProviderError> {
        let labels: BTreeMap<String, String> =
            self.shared.info.labels.clone().into_iter().collect();
        node.labels.extend(labels);
        Ok(())
    }

    async fn start(&self, events: PodEvents) -> Result<(), ProviderError> {
        let twice = |_| ProviderError::Failed("started twice".to_owned());
        self.shared.events.set(events).map_err(twice)?;
        let (ready, told) = oneshot::channel();
        let shutdown = &self.shared.shutdown;
        shutdown.spawn_essential("events of the provider", self.shared.clone().watch(ready));
        let told = tokio::time::timeout(CALL_TIMEOUT, told).await;
        let late = || ProviderError::Unavailable("WatchPods did not begin in time".to_owned());
        told.ok()
            .and_then(Result::ok)
            .unwrap_or_else(|| Err(late()))
    }

    async fn pods(&self) -> Result<Vec<(PodId, PodReport)>, ProviderError> {
        let listed = self.shared.list().await?;
        let ids = listed.iter().map(|(id, _)| (id.uid.clone(), id.clone()));
        self.shared.known().extend(ids);
        Ok(listed)
    }

    async fn create_pod(&self, pod: Arc<Pod>) -> Result<(), ProviderError> {
        let (id, json) = convert::pod(&pod)?;
        let message = v1::CreatePodRequest {
            id: Some(convert::message(&id)),
            pod: json,
        };
        let created = self.client().create_pod(request(message)).await;
        created.map_err(|status| failure(&status, "CreatePod"))?;
        self.shared.known().insert(id.uid.clone(), id);
        Ok(())
    }

    async fn update_pod(&self, pod: Arc<Pod>) -> Result<(), ProviderError> {
        let (id, json) = convert::pod(&pod)?;
        let message = v1::UpdatePodRequest {
            id: Some(convert::message(&id)),
            pod: json,
        };
        let updated = self.client().update_pod(request(message)).await;
        updated
            .map(drop)
            .map_err(|status| failure(&status, "changes of a running pod"))
    }

    async fn delete_pod(&self, pod: &PodId, grace: Duration) -> Result<(), ProviderError> {
        let message = v1::DeletePodRequest {
            id: Some(convert::message(pod)),
            grace_period_seconds: i64::try_from(grace.as_secs()).unwrap_or(i64::MAX),
        };
        let deleted = self.client().delete_pod(request(message)).await;
        deleted
            .map(drop)
            .map_err(|status| failure(&status, "DeletePod"))
    }

    async fn logs(
        &self,
        pod: &PodId,
        container: &str,
        options: &LogOptions,
    ) -> Result<LogStream, ProviderError> {
        self.has("Logs", "logs")?;
        streams::logs(self.client(), pod, container, options).await
    }

    async fn exec(
        &self,
        pod: &PodId,
        container: &str,
        command: &[String],
        options: &AttachOptions,
    ) -> Result<Process, ProviderError> {
        self.has("Exec", "exec")?;
        let start = streams::start(pod, container, command, options);
        Ok(streams::process(self.client(), start, true))
    }

    async fn attach(
        &self,
        pod: &PodId,
        container: &str,
        options: &AttachOptions,
    ) -> Result<Process, ProviderError> {
        self.has("Attach", "attach")?;
        let start = streams::start(pod, container, &[], options);
        Ok(streams::process(self.client(), start, false))
    }

    async fn port_forward(&self, pod: &PodId, port: u16) -> Result<Connection, ProviderError> {
        self.has("PortForward", "port-forward")?;
        Ok(streams::connection(self.client(), pod, port))
    }

    async fn stats(&self, node: &str) -> Result<Vec<PodUsage>, ProviderError> {
        self.has("Stats", "stats")?;
        let message = v1::StatsRequest {
            node: node.to_owned(),
        };
        let stats = self.client().stats(request(message)).await;
        let stats = stats.map_err(|status| failure(&status, "stats"))?;
        Ok(stats
            .into_inner()
            .pods
            .into_iter()
            .filter_map(convert::usage)
            .collect())
    }
}
