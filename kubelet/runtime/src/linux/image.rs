//! The image verbs: the image store's words in the runtime's.

use images::{Auth, Image, ImageStore, ImageStoreError, PullError};

use crate::api::*;
use crate::spec::ImageFacts;
use crate::spec::user::MAX_ID;

pub async fn pull(
    store: &ImageStore,
    image: &str,
    auths: &[ImageAuth],
) -> Result<String, RuntimeError> {
    let auths: Vec<Auth> = auths
        .iter()
        .map(|auth| Auth {
            username: auth.username.clone(),
            password: auth.password.clone(),
            identity_token: auth.identity_token.clone(),
            registry_token: auth.registry_token.clone(),
        })
        .collect();
    store
        .pull(image, &auths)
        .await
        .map(|pulled| pulled.id)
        .map_err(|error| pull_error(error).into())
}

/// As containerd, nearly all are `ErrImagePull`: its users, and upstream's conformance suite, look for that. The reasons
/// go without the words that [`ImageError::Pull`] puts before them.
fn pull_error(error: PullError) -> ImageError {
    let (image, reason) = match error {
        PullError::InvalidName { image, source } => {
            let reason = source.to_string();
            return ImageError::InvalidImageName { image, reason };
        }
        PullError::Unavailable { image, reason }
        | PullError::Verification { image, reason }
        | PullError::Refused { image, reason } => (image, reason),
        PullError::NoMatchingPlatform { image, platform } => (
            image,
            format!("no match for platform in manifest {platform}: not found"),
        ),
        PullError::Unpack { image, source } => (image, shim_protocol::chain(&source)),
        PullError::Store { image, source } => (image, shim_protocol::chain(&source)),
    };
    ImageError::Pull { image, reason }
}

pub fn store_error(error: ImageStoreError) -> RuntimeError {
    match error {
        ImageStoreError::NotFound { image } => ImageError::NotFound { image }.into(),
        ImageStoreError::Invalid {
            field,
            value,
            reason,
        } => RuntimeError::Invalid {
            field,
            value,
            reason,
        },
        ImageStoreError::Io { context, source } => RuntimeError::Io { context, source },
        other => RuntimeError::Io {
            context: "image store".to_owned(),
            source: std::io::Error::other(other),
        },
    }
}

pub async fn status(store: &ImageStore, image: &str) -> Result<Option<ImageStatus>, RuntimeError> {
    Ok(store
        .status(image)
        .await
        .map_err(store_error)?
        .map(|image| describe(&image)))
}

pub async fn list(store: &ImageStore) -> Result<Vec<ImageStatus>, RuntimeError> {
    Ok(store
        .list()
        .await
        .map_err(store_error)?
        .iter()
        .map(describe)
        .collect())
}

pub async fn remove(store: &ImageStore, image: &str) -> Result<(), RuntimeError> {
    match store.remove(image).await {
        Ok(()) | Err(ImageStoreError::NotFound { .. }) => Ok(()),
        Err(error) => Err(store_error(error)),
    }
}

pub async fn fs_info(store: &ImageStore) -> Result<FsUsage, RuntimeError> {
    let usage = store.usage().await.map_err(store_error)?;
    Ok(FsUsage {
        mountpoint: usage.mountpoint,
        used_bytes: usage.used_bytes,
        inodes_used: usage.inodes_used,
    })
}

fn describe(image: &Image) -> ImageStatus {
    let (uid, username) = image_user(&facts(image).user);
    ImageStatus {
        id: image.id.clone(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size_bytes: image.size_bytes,
        uid,
        username,
        pinned: image.pinned,
    }
}

/// The uid of an image's `USER`, or the text that is none. A number beyond [`MAX_ID`] is no uid: -1 among them would
/// leave the process who it is. What it is then is said where the container is made, and refused there.
fn image_user(user: &str) -> (Option<u32>, Option<String>) {
    let user = user.split(':').next().unwrap_or_default();
    let digits = !user.is_empty() && user.bytes().all(|b| b.is_ascii_digit());
    match user.parse().ok().filter(|uid| digits && *uid <= MAX_ID) {
        Some(uid) => (Some(uid), None),
        None => (None, (!user.is_empty()).then(|| user.to_owned())),
    }
}

/// What a container's spec needs of the image's config.
pub fn facts(image: &Image) -> ImageFacts {
    let Some(config) = image.config.config() else {
        return ImageFacts::default();
    };
    ImageFacts {
        user: config.user().clone().unwrap_or_default(),
        entrypoint: config.entrypoint().clone().unwrap_or_default(),
        cmd: config.cmd().clone().unwrap_or_default(),
        env: config.env().clone().unwrap_or_default(),
        working_dir: config.working_dir().clone().unwrap_or_default(),
        volumes: config.volumes().clone().unwrap_or_default(),
    }
}

pub fn stop_signal(image: &Image) -> Option<String> {
    image
        .config
        .config()
        .as_ref()?
        .stop_signal()
        .clone()
        .filter(|signal| !signal.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_of_images() {
        for (user, uid, name) in [
            ("", None, None),
            (":", None, None),
            ("0", Some(0), None),
            ("1000:1000", Some(1000), None),
            ("1000:staff", Some(1000), None),
            ("2147483647", Some(2_147_483_647), None),
            // setresuid(-1) changes nothing.
            ("4294967295", None, Some("4294967295")),
            ("2147483648:1", None, Some("2147483648")),
            ("99999999999999999999", None, Some("99999999999999999999")),
            ("-1", None, Some("-1")),
            ("+5", None, Some("+5")),
            ("nginx:nginx", None, Some("nginx")),
        ] {
            assert_eq!(image_user(user), (uid, name.map(str::to_owned)), "{user}");
        }
    }
}
