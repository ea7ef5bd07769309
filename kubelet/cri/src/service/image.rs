//! `ImageService`.

use cri_spec::v1;
use cri_spec::v1::image_service_server::ImageService;
use images::Reference;
use runtime::ImageStatus;
use tonic::{Request, Response, Status};

use super::{Answers, CriService, in_messages};
use crate::error::{FieldError, status};
use crate::{from_cri, to_cri};

/// The name in an image's specification. The rest of it does not tell one image from another here: annotations are for those who read
/// them back, and every handler runs the same images.
fn name(image: Option<v1::ImageSpec>) -> Result<String, FieldError> {
    match image.map(|image| image.image) {
        Some(name) if !name.is_empty() => Ok(name),
        _ => Err(FieldError::Missing("image.image")),
    }
}

impl CriService {
    async fn images(&self, filter: Option<v1::ImageFilter>) -> Result<Vec<v1::Image>, Status> {
        let wanted = filter
            .and_then(|filter| filter.image)
            .map(|image| image.image)
            .filter(|name| !name.is_empty());
        let found: Vec<ImageStatus> = match wanted {
            None => self.runtime().list_images().await.map_err(status)?,
            Some(name) => {
                let image = self.runtime().image_status(&name).await.map_err(status)?;
                image.into_iter().collect()
            }
        };
        Ok(found.iter().map(to_cri::image).collect())
    }

    /// What `crictl inspecti` shows beside the image itself, in containerd's words.
    async fn image_info(&self, id: &str) -> std::collections::HashMap<String, String> {
        let Ok(Some(image)) = self.inner.images.status(id).await else {
            return Default::default();
        };
        let info = serde_json::json!({
            "chainID": image.layers.last(),
            "imageSpec": image.config,
        });
        [("info".to_owned(), info.to_string())].into()
    }
}

#[tonic::async_trait]
impl ImageService for CriService {
    async fn list_images(
        &self,
        request: Request<v1::ListImagesRequest>,
    ) -> Result<Response<v1::ListImagesResponse>, Status> {
        let images = self.images(request.into_inner().filter).await?;
        Ok(Response::new(v1::ListImagesResponse { images }))
    }

    type StreamImagesStream = Answers<v1::StreamImagesResponse>;

    async fn stream_images(
        &self,
        request: Request<v1::StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        let images = self.images(request.into_inner().filter).await?;
        let message = |images| v1::StreamImagesResponse { images };
        Ok(Response::new(in_messages(images, message)))
    }

    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Result<Response<v1::ImageStatusResponse>, Status> {
        let request = request.into_inner();
        let name = name(request.image)?;
        let found = self.runtime().image_status(&name).await.map_err(status)?;
        let info = match &found {
            Some(image) if request.verbose => self.image_info(&image.id).await,
            _ => Default::default(),
        };
        Ok(Response::new(v1::ImageStatusResponse {
            image: found.as_ref().map(to_cri::image),
            info,
        }))
    }

    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Result<Response<v1::PullImageResponse>, Status> {
        let request = request.into_inner();
        let name = name(request.image)?;
        let reference = Reference::parse(&name)
            .map_err(|error| FieldError::invalid("image.image", &name, error.to_string()))?;
        // The pod the image is for (`sandbox_config`) changes nothing about the image.
        let auths = from_cri::auth(request.auth.as_ref(), reference.domain())?;
        let image_ref = self
            .runtime()
            .pull_image(&name, &auths)
            .await
            .map_err(status)?;
        Ok(Response::new(v1::PullImageResponse { image_ref }))
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Result<Response<v1::RemoveImageResponse>, Status> {
        let name = name(request.into_inner().image)?;
        self.runtime().remove_image(&name).await.map_err(status)?;
        Ok(Response::new(v1::RemoveImageResponse {}))
    }

    /// Images and writable layers lie on one file system.
    async fn image_fs_info(
        &self,
        _: Request<v1::ImageFsInfoRequest>,
    ) -> Result<Response<v1::ImageFsInfoResponse>, Status> {
        let usage = self.runtime().image_fs_info().await.map_err(status)?;
        let usage = v1::FilesystemUsage {
            timestamp: to_cri::nanoseconds(jiff::Timestamp::now()),
            fs_id: Some(v1::FilesystemIdentifier {
                mountpoint: usage.mountpoint.display().to_string(),
            }),
            used_bytes: Some(v1::UInt64Value {
                value: usage.used_bytes,
            }),
            inodes_used: Some(v1::UInt64Value {
                value: usage.inodes_used,
            }),
        };
        Ok(Response::new(v1::ImageFsInfoResponse {
            image_filesystems: vec![usage.clone()],
            container_filesystems: vec![usage],
        }))
    }
}
