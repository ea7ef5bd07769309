//! Addresses of CSI: `unix:///path`, `tcp://host:port`, or a path alone; listening on one, and talking to the other end of one.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tonic::transport::Channel;
use tonic::transport::server::Connected;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Unix(PathBuf),
    /// `host:port`; an empty host is every address.
    Tcp(String),
}

/// What is wrong with an endpoint.
#[derive(Debug, Error)]
pub enum EndpointError {
    #[error("endpoint {0:?} is empty")]
    Empty(String),
    #[error("endpoint {0:?} is not unix://PATH, tcp://HOST:PORT or a path")]
    Scheme(String),
    #[error("listen on {endpoint}")]
    Listen {
        endpoint: String,
        #[source]
        source: io::Error,
    },
}

impl Endpoint {
    /// # Errors
    /// The text is empty or has another scheme.
    pub fn parse(text: &str) -> Result<Self, EndpointError> {
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (scheme.to_ascii_lowercase(), rest),
            None => ("unix".to_owned(), text),
        };
        if rest.is_empty() {
            return Err(EndpointError::Empty(text.to_owned()));
        }
        match scheme.as_str() {
            "unix" => Ok(Self::Unix(PathBuf::from(rest))),
            "tcp" => Ok(Self::Tcp(rest.to_owned())),
            _ => Err(EndpointError::Scheme(text.to_owned())),
        }
    }

    /// Listens; what an earlier process left in the place of the socket goes.
    ///
    /// # Errors
    /// The address is taken or cannot be made; a retry may help.
    pub async fn listen(&self) -> Result<Listener, EndpointError> {
        let failed = |source| EndpointError::Listen {
            endpoint: self.to_string(),
            source,
        };
        match self {
            Self::Unix(path) => {
                match tokio::fs::remove_file(path).await {
                    Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(failed(err)),
                    _ => {}
                }
                Ok(Listener::Unix(UnixListener::bind(path).map_err(failed)?))
            }
            Self::Tcp(address) => {
                let address = if address.starts_with(':') {
                    format!("0.0.0.0{address}")
                } else {
                    address.clone()
                };
                Ok(Listener::Tcp(
                    TcpListener::bind(address).await.map_err(failed)?,
                ))
            }
        }
    }

    /// Removes the socket's file, if there is one.
    pub async fn forget(&self) {
        if let Self::Unix(path) = self {
            let _ = tokio::fs::remove_file(path).await;
        }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

/// A listening socket of either kind.
#[derive(Debug)]
pub enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    /// # Errors
    /// As `accept(2)`.
    pub async fn accept(&self) -> io::Result<Connection> {
        Ok(match self {
            Self::Unix(listener) => Connection::Unix(listener.accept().await?.0),
            Self::Tcp(listener) => Connection::Tcp(listener.accept().await?.0),
        })
    }

    /// The connections, without an end.
    pub fn into_stream(self) -> impl Stream<Item = io::Result<Connection>> {
        futures::stream::unfold(self, |listener| async {
            Some((listener.accept().await, listener))
        })
    }
}

/// A connection of either kind.
#[derive(Debug)]
pub enum Connection {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// A client's connection to a socket; it is made at once.
///
/// # Errors
/// Nobody listens there (yet).
pub async fn connect(path: &Path) -> Result<Channel, tonic::transport::Error> {
    tonic::transport::Endpoint::from_shared(format!("unix://{}", path.display()))?
        .connect()
        .await
}

/// The path of a `--csi-address`, with or without a scheme.
pub fn socket_path(address: &str) -> PathBuf {
    PathBuf::from(address.strip_prefix("unix://").unwrap_or(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_socket_a_port_or_a_path() {
        let unix = |path: &str| Some(Endpoint::Unix(PathBuf::from(path)));
        for (text, expected) in [
            ("unix:///csi/csi.sock", unix("/csi/csi.sock")),
            ("UNIX:///a", unix("/a")),
            ("/csi/csi.sock", unix("/csi/csi.sock")),
            ("tcp://:9000", Some(Endpoint::Tcp(":9000".to_owned()))),
            ("unix://", None),
            ("", None),
            ("http://a", None),
        ] {
            assert_eq!(Endpoint::parse(text).ok(), expected, "{text:?}");
        }
    }
}
