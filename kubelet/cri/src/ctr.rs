//! The node's commands that scripts know by containerd's names: `ctr` (images) and `containerd` (`config dump`). One program, called
//! by either name, or by its own with the name as the first word.
//!
//! It speaks to the CRI's socket like any client and touches no file of the runtime's.
//!
//! Upstream: containerd's `ctr`, as far as kind and its users call it.

mod command;

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;
use cri_spec::archives as pb;
use cri_spec::archives::archives_client::ArchivesClient;
use cri_spec::v1;
use cri_spec::v1::image_service_client::ImageServiceClient;
use cri_spec::v1::runtime_service_client::RuntimeServiceClient;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Uri};

use command::{Containerd, Content, Ctr, Images, Program, Verb};

/// A part of an archive in one message.
const CHUNK_BYTES: usize = 1 << 20;
/// Messages that wait for the server.
const CHUNKS: usize = 4;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum CtrError {
    #[error("failed to dial {path:?}: {source}")]
    Connect {
        path: String,
        #[source]
        source: tonic::transport::Error,
    },
    #[error("{}: {}", .0.code().description(), .0.message())]
    Refused(#[from] Box<tonic::Status>),
    #[error("{path}: {source}")]
    Io {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{0}")]
    Usage(String),
}

impl From<tonic::Status> for CtrError {
    fn from(status: tonic::Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

/// Runs the command line of the process.
pub async fn main() -> ExitCode {
    let result = match Program::of(std::env::args()) {
        Program::Ctr(args) => ctr(Ctr::parse_from(args)).await,
        Program::Containerd(args) => {
            containerd(Containerd::parse_from(args));
            Ok(())
        }
        Program::Unknown(name) => Err(CtrError::Usage(format!(
            "called as {name:?}: this program is `ctr` or `containerd`"
        ))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ctr: {error}");
            ExitCode::FAILURE
        }
    }
}

fn containerd(command: Containerd) {
    match command {
        Containerd::Config(_) => print!("{}", command::config()),
    }
}

async fn ctr(ctr: Ctr) -> Result<(), CtrError> {
    ctr.check().map_err(CtrError::Usage)?;
    let channel = connect(&ctr.address).await?;
    match ctr.verb {
        Verb::Version => version(channel).await,
        Verb::Images(Images::Import(import)) => {
            let pinned = import.pinned().map_err(CtrError::Usage)?;
            self::import(channel, &import.archive, pinned).await
        }
        Verb::Images(Images::Tag(tag)) => {
            let mut client = ArchivesClient::new(channel);
            for target in tag.targets {
                let request = pb::TagRequest {
                    source: tag.source.clone(),
                    target: target.clone(),
                    force: tag.force,
                };
                client.tag(request).await?;
                say(&target);
            }
            Ok(())
        }
        Verb::Images(Images::List(list)) => self::list(channel, list.quiet).await,
        Verb::Images(Images::Remove(remove)) => {
            let mut client = ImageServiceClient::new(channel);
            for image in remove.images {
                let request = v1::RemoveImageRequest {
                    image: Some(spec(&image)),
                };
                client.remove_image(request).await?;
                say(&image);
            }
            Ok(())
        }
        Verb::Images(Images::Pull(pull)) | Verb::Content(Content::Fetch(pull)) => {
            pull.check().map_err(CtrError::Usage)?;
            let request = v1::PullImageRequest {
                image: Some(spec(&pull.image)),
                ..Default::default()
            };
            let pulled = ImageServiceClient::new(channel).pull_image(request).await?;
            say(&pulled.into_inner().image_ref);
            Ok(())
        }
        Verb::Images(Images::Export(_)) => Err(CtrError::Usage(
            "images export: this image store keeps layers unpacked only, and packed anew they would be another image".to_owned(),
        )),
    }
}

fn spec(image: &str) -> v1::ImageSpec {
    v1::ImageSpec {
        image: image.to_owned(),
        ..Default::default()
    }
}

/// A reader that went away needs no more lines.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

async fn connect(address: &str) -> Result<Channel, CtrError> {
    let path = address.trim_start_matches("unix://").to_owned();
    let socket = path.clone();
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .map_err(|source| CtrError::Connect { path, source })
}

async fn version(channel: Channel) -> Result<(), CtrError> {
    let server = RuntimeServiceClient::new(channel)
        .version(v1::VersionRequest::default())
        .await?
        .into_inner();
    say(&format!("Client:\n  Version:  {}\n", command::version()));
    say(&format!(
        "Server:\n  Runtime:  {}\n  Version:  {}",
        server.runtime_name, server.runtime_version
    ));
    Ok(())
}

async fn import(channel: Channel, archive: &Path, pinned: bool) -> Result<(), CtrError> {
    let io = |source| CtrError::Io {
        path: archive.display().to_string(),
        source,
    };
    let from: Box<dyn AsyncRead + Send + Unpin> = match archive.to_str() {
        Some("-") => Box::new(tokio::io::stdin()),
        _ => Box::new(tokio::fs::File::open(archive).await.map_err(io)?),
    };
    let (messages, stream) = mpsc::channel(CHUNKS);
    let reading = tokio::spawn(read(from, messages, pinned));
    let answer = ArchivesClient::new(channel)
        .import(ReceiverStream::new(stream))
        .await;
    // What could not be read is the cause, whatever the server says of half an archive.
    match reading.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(io(error)),
        Err(error) => return Err(io(std::io::Error::other(error))),
    }
    for image in answer?.into_inner().images {
        let name = image
            .repo_tags
            .first()
            .or(image.repo_digests.first())
            .unwrap_or(&image.id);
        say(&format!("{name}\tsaved ({})", image.id));
    }
    Ok(())
}

/// Ends without an error if the server does not want more: its answer says why.
async fn read(
    mut from: impl AsyncRead + Unpin,
    to: mpsc::Sender<pb::ImportRequest>,
    pinned: bool,
) -> std::io::Result<()> {
    let mut options = Some(pb::ImportOptions { pinned });
    loop {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        (&mut from)
            .take(CHUNK_BYTES as u64)
            .read_to_end(&mut chunk)
            .await?;
        if chunk.is_empty() && options.is_none() {
            return Ok(());
        }
        let request = pb::ImportRequest {
            options: options.take(),
            chunk,
        };
        if to.send(request).await.is_err() {
            return Ok(());
        }
    }
}

async fn list(channel: Channel, quiet: bool) -> Result<(), CtrError> {
    let images = ImageServiceClient::new(channel)
        .list_images(v1::ListImagesRequest::default())
        .await?
        .into_inner()
        .images;
    for line in command::table(&images, quiet) {
        say(&line);
    }
    Ok(())
}
