//! Images: references, a content-addressed store, pull, unpack, snapshots, garbage collection.
//!
//! Owns everything below its root directory; knows nothing of pods or the Kubernetes API.
//!
//! Upstream: containerd's image store, `distribution/reference`, containerd's `certs.d` hosts files.
//!
//! ```text
//! <root>/version                    the layout's version
//! <root>/blobs/sha256/<hex>         manifests and configs of the images (layers are dropped once unpacked)
//! <root>/layers/<16 hex of chain>/  fs/ (the unpacked layer) and layer.json
//! <root>/images/<config hex>.json   one image: tags, digests, layers
//! <root>/holds/<holder>.json        the layers a container stands on
//! <root>/ingest/                    partial downloads, resumed by Range
//! <root>/tmp/                       emptied at start
//! ```
#![forbid(unsafe_code)]

mod digest;
mod image;
mod import;
mod pull;
pub mod reference;
mod store;
mod unpack;

pub use image::{Auth, Image, Usage};
pub use import::ImportError;
pub use pull::PullError;
pub use unpack::UnpackError;
pub use reference::Reference;
pub use store::{ImageStore, ImageStoreConfig, ImageStoreError};

pub use oci_spec::image::ImageConfiguration;
