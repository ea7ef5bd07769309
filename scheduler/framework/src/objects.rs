//! [`ObjectKind`] and [`Object`]: kinds of objects that only some plugins know, such as those of custom resource definitions.
//!
//! A plugin names the kinds in [`crate::plugin::Observer::kinds`]; the scheduler watches them from then on, tells the plugin of each change and then the
//! queue, as an event of [`crate::event::EventResource::Custom`]. What is in an object is JSON until the plugin decodes it. Never here: a client.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;

/// A kind of objects that the scheduler watches for plugins alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKind {
    /// The API group; empty for the core one.
    pub group: &'static str,
    /// The version, as `v1alpha1`.
    pub version: &'static str,
    /// The kind, as `PodGroup`.
    pub kind: &'static str,
    /// The resource, as `podgroups`.
    pub plural: &'static str,
    /// What upstream calls its events, `plural.version.group`: a custom resource's name in logs and metrics.
    pub event: &'static str,
}

/// An [`ObjectKind`] of its group, version, kind and plural, which are literals; the name of its events is made of them.
///
/// ```
/// const POOL: framework::ObjectKind =
///     framework::object_kind!("example.com", "v1alpha1", "Pool", "pools");
/// assert_eq!(POOL.event, "pools.v1alpha1.example.com");
/// ```
#[macro_export]
macro_rules! object_kind {
    ($group:literal, $version:literal, $kind:literal, $plural:literal) => {
        $crate::ObjectKind {
            group: $group,
            version: $version,
            kind: $kind,
            plural: $plural,
            event: concat!($plural, ".", $version, ".", $group),
        }
    };
}

/// An object of such a kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// What it is.
    pub kind: ObjectKind,
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// All else: `spec`, `status`, …
    pub data: serde_json::Value,
}

impl Object {
    /// The name.
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// The namespace; empty for cluster objects.
    pub fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// `namespace/name`, or the name of a cluster object.
    pub fn key(&self) -> String {
        match self.namespace() {
            "" => self.name().to_owned(),
            namespace => format!("{namespace}/{}", self.name()),
        }
    }

    /// All but the metadata as `T`. Fields unknown to `T` are no error: the object may be of a newer minor version.
    ///
    /// # Errors
    /// When a field has another type than `T` wants; names it. A retry with the same object does not help.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        T::deserialize(&self.data)
    }
}
