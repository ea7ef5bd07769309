//! What `ctr` asks for beyond the CRI: archives in, names on.

use cri_spec::archives as pb;
use cri_spec::archives::archives_server::Archives;
use images::{Image, ImageStore, ImageStoreError};
use tokio::io::AsyncWriteExt as _;
use tonic::{Request, Response, Status, Streaming};

pub struct ArchiveService {
    images: ImageStore,
}

impl ArchiveService {
    pub fn new(images: ImageStore) -> Self {
        Self { images }
    }
}

/// An archive on its way in; the file goes with it.
struct Incoming {
    path: std::path::PathBuf,
}

impl Drop for Incoming {
    fn drop(&mut self) {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), %error, "cannot remove an archive that was imported");
            }
            _ => {}
        }
    }
}

fn store_error(error: ImageStoreError) -> Status {
    let text = error.to_string();
    match error {
        ImageStoreError::NotFound { .. } => Status::not_found(text),
        ImageStoreError::Invalid { .. } => Status::invalid_argument(text),
        _ => Status::unknown(text),
    }
}

fn imported(image: Image) -> pb::ImportedImage {
    pb::ImportedImage {
        id: image.id,
        repo_tags: image.repo_tags,
        repo_digests: image.repo_digests,
    }
}

#[tonic::async_trait]
impl Archives for ArchiveService {
    async fn import(
        &self,
        request: Request<Streaming<pb::ImportRequest>>,
    ) -> Result<Response<pb::ImportResponse>, Status> {
        let mut messages = request.into_inner();
        let incoming = Incoming {
            path: self.images.scratch(),
        };
        let failed = |error: std::io::Error| {
            Status::unknown(format!("write {}: {error}", incoming.path.display()))
        };
        let mut file = tokio::fs::File::create(&incoming.path)
            .await
            .map_err(failed)?;
        let mut options = pb::ImportOptions::default();
        while let Some(message) = messages.message().await? {
            if let Some(said) = message.options {
                options = said;
            }
            file.write_all(&message.chunk).await.map_err(failed)?;
        }
        file.flush().await.map_err(failed)?;
        drop(file);
        let images = self
            .images
            .import(&incoming.path)
            .await
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        for image in images.iter().filter(|_| options.pinned) {
            self.images
                .pin(&image.id, true)
                .await
                .map_err(store_error)?;
        }
        Ok(Response::new(pb::ImportResponse {
            images: images.into_iter().map(imported).collect(),
        }))
    }

    async fn tag(
        &self,
        request: Request<pb::TagRequest>,
    ) -> Result<Response<pb::TagResponse>, Status> {
        let request = request.into_inner();
        let there = self
            .images
            .status(&request.target)
            .await
            .map_err(store_error)?;
        if there.is_some() && !request.force {
            return Err(Status::already_exists(format!(
                "image {:?}: already exists",
                request.target
            )));
        }
        self.images
            .tag(&request.source, &request.target)
            .await
            .map_err(store_error)?;
        Ok(Response::new(pb::TagResponse {}))
    }
}
