//! The services on a socket of their own, or on connections that somebody else accepted.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cri_spec::archives::archives_server::ArchivesServer;
use cri_spec::v1::image_service_server::ImageServiceServer;
use cri_spec::v1::runtime_service_server::RuntimeServiceServer;
use futures::Stream;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::archives::ArchiveService;
use crate::service::CriService;

/// What a client may send in one message. Upstream: the CRI client's `maxMsgSize`.
const MESSAGE_BYTES: usize = 16 << 20;
/// How long calls that are under way may take when the services end.
const GRACE: Duration = Duration::from_secs(20);

/// Why a socket is not served.
#[derive(Debug, thiserror::Error)]
#[error("listen on {path}: {source}")]
pub struct ServeError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Services on connections that are given one by one.
pub struct Served {
    connections: mpsc::Sender<io::Result<UnixStream>>,
    ending: CancellationToken,
    /// `None` once it was waited for.
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Served {
    /// `ending` is the service's own.
    pub fn start(service: CriService, ending: CancellationToken) -> Self {
        let (connections, incoming) = mpsc::channel(1);
        let task = tokio::spawn(run(service, ReceiverStream::new(incoming), ending.clone()));
        Self {
            connections,
            ending,
            task: Mutex::new(Some(task)),
        }
    }

    /// Gives the connection back if the services are ending.
    pub async fn take(&self, connection: UnixStream) -> Result<(), UnixStream> {
        match self.connections.send(Ok(connection)).await {
            Ok(()) => Ok(()),
            Err(mpsc::error::SendError(connection)) => {
                Err(connection.expect("only connections are sent"))
            }
        }
    }

    /// Ends endless answers, waits for the others, and drops the runtime.
    pub async fn end(&self) {
        self.ending.cancel();
        let task = self
            .task
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(task) = task
            && task.await.is_err()
        {
            tracing::warn!("the CRI's services did not end well");
        }
    }
}

async fn run<I>(service: CriService, incoming: I, ending: CancellationToken)
where
    I: Stream<Item = io::Result<UnixStream>> + Send + 'static,
{
    let images = service.inner.images.clone();
    let router = Server::builder()
        .add_service(
            RuntimeServiceServer::new(service.clone())
                .max_decoding_message_size(MESSAGE_BYTES)
                .max_encoding_message_size(MESSAGE_BYTES),
        )
        .add_service(
            ImageServiceServer::new(service)
                .max_decoding_message_size(MESSAGE_BYTES)
                .max_encoding_message_size(MESSAGE_BYTES),
        )
        .add_service(ArchivesServer::new(ArchiveService::new(images)));
    let served = router.serve_with_incoming_shutdown(incoming, ending.clone().cancelled_owned());
    let too_late = async {
        ending.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        served = served => if let Err(error) = served {
            tracing::warn!(%error, "the CRI's services ended");
        },
        () = too_late => tracing::warn!("calls of the CRI were cut off: they took too long"),
    }
}

/// Serves a socket of root's own until `ending`. What lies at its path is of an earlier process.
///
/// # Errors
/// The socket cannot be made.
pub fn serve_socket(
    path: &Path,
    service: CriService,
    ending: CancellationToken,
) -> Result<JoinHandle<()>, ServeError> {
    let listener = listen(path).map_err(|source| ServeError {
        path: path.to_owned(),
        source,
    })?;
    Ok(tokio::spawn(run(
        service,
        UnixListenerStream::new(listener),
        ending,
    )))
}

/// A socket that only root may connect to.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt as _;
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
