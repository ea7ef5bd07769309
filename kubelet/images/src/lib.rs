//! Images: references, a content-addressed store, pull, unpack, snapshots, garbage collection.
//!
//! Owns everything below its root directory; knows nothing of pods or the Kubernetes API.
//!
//! Upstream: containerd's image store and distribution reference names.
