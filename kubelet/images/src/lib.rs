//! Images: references, a content-addressed store, pull, unpack, snapshots, garbage collection.
//!
//! Owns everything below its root directory; knows nothing of pods or the Kubernetes API.
//!
//! Upstream: containerd's image store, `distribution/reference`, containerd's `certs.d` hosts files.
//!
//! ```text
//! <root>/version                    the layout's version
//! <root>/blobs/sha256/<hex>         manifests and configs of the images (layers are dropped once unpacked)
//! <root>/layers/<hex of chain id>/  fs/ (the unpacked layer) and layer.json
//! <root>/images/<config hex>.json   one image: tags, digests, layers
//! <root>/holds/<holder>.json        the layers a container stands on
//! <root>/ingest/                    partial downloads, resumed by Range
//! <root>/tmp/                       emptied at start
//! ```
#![forbid(unsafe_code)]

mod blocking;
mod config;
mod digest;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod image;
mod import;
mod layout;
mod manifest;
pub mod mirrors;
mod pull;
pub mod reference;
mod registry;
mod store;
mod unpack;

pub use image::{Auth, Image, Usage};
pub use import::ImportError;
pub use pull::PullError;
pub use reference::Reference;
pub use store::{ImageStore, ImageStoreConfig, ImageStoreError};
pub use unpack::{TarError, UnpackError, unpack_stack};

pub use oci_spec::image::ImageConfiguration;
