//! [`TraceObject`]: an object of any kind that the scheduler reads, as a trace has it.

use std::sync::Arc;

use framework::{EventObject, EventResource, Object, ObjectKind};
use k8s_openapi::Resource as _;
use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{
    Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController, Service,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::{DeviceClass, DeviceTaintRule, ResourceClaim, ResourceSlice};
use k8s_openapi::api::scheduling::v1beta1::PodGroup;
use k8s_openapi::api::storage::v1::{
    CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::trim;

/// A field of an object that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct FieldError {
    /// Its path.
    pub field: String,
    /// What is wrong.
    pub message: String,
}

impl FieldError {
    pub(crate) fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        FieldError {
            field: field.into(),
            message: message.into(),
        }
    }
}

/// Reads `T`; an error names the field, below `at`.
pub(super) fn read<T: serde::de::DeserializeOwned>(
    at: &str,
    value: Value,
) -> Result<T, FieldError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let field = match path.as_str() {
            "." => at.to_owned(),
            path => format!("{at}.{path}"),
        };
        FieldError::new(field, error.inner().to_string())
    })
}

macro_rules! kinds {
    ($($kind:ident, $trim:path;)*) => {
        /// What kind of object. Ordered as a trace begins: what others are judged by comes first.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        #[allow(missing_docs, reason = "the names are the API's")]
        pub enum Kind {
            $($kind,)*
            /// A kind that only plugins know.
            Custom(ObjectKind),
        }

        /// See the module.
        #[derive(Debug, Clone)]
        #[allow(missing_docs, reason = "the names are the API's")]
        pub enum TraceObject {
            $($kind(Arc<$kind>),)*
            /// Of a kind that only plugins know.
            Custom(Arc<Object>),
        }

        impl Kind {
            /// The kind of this name; `custom` are those that plugins know.
            pub fn of(api_version: &str, kind: &str, custom: &[ObjectKind]) -> Option<Kind> {
                $(
                    if (api_version, kind) == ($kind::API_VERSION, $kind::KIND) {
                        return Some(Kind::$kind);
                    }
                )*
                let mut custom = custom.iter();
                custom.find(|k| k.kind == kind && group_version(k) == api_version).map(|k| Kind::Custom(*k))
            }

            /// The kind of this resource, as `pods` of the empty group.
            pub fn of_resource(group: &str, resource: &str, custom: &[ObjectKind]) -> Option<Kind> {
                $(
                    if (group, resource) == ($kind::GROUP, $kind::URL_PATH_SEGMENT) {
                        return Some(Kind::$kind);
                    }
                )*
                let mut custom = custom.iter();
                custom.find(|k| k.plural == resource && k.group == group).map(|k| Kind::Custom(*k))
            }

            /// Its name.
            pub fn name(self) -> &'static str {
                match self {
                    $(Kind::$kind => $kind::KIND,)*
                    Kind::Custom(kind) => kind.kind,
                }
            }

            /// `apiVersion`.
            pub fn api_version(self) -> String {
                match self {
                    $(Kind::$kind => $kind::API_VERSION.to_owned(),)*
                    Kind::Custom(kind) => group_version(&kind),
                }
            }

            /// Reads an object; an error names its field below `at`.
            ///
            /// # Errors
            /// When a field is missing or of another type.
            pub fn decode(self, at: &str, value: Value) -> Result<TraceObject, FieldError> {
                Ok(match self {
                    $(Kind::$kind => TraceObject::$kind(Arc::new(read::<$kind>(at, value)?)),)*
                    Kind::Custom(kind) => TraceObject::Custom(Arc::new(custom(kind, at, value)?)),
                })
            }
        }

        impl TraceObject {
            /// Its kind.
            pub fn kind(&self) -> Kind {
                match self {
                    $(TraceObject::$kind(_) => Kind::$kind,)*
                    TraceObject::Custom(object) => Kind::Custom(object.kind),
                }
            }

            /// Its metadata.
            pub fn metadata(&self) -> &ObjectMeta {
                match self {
                    $(TraceObject::$kind(object) => &object.metadata,)*
                    TraceObject::Custom(object) => &object.metadata,
                }
            }

            /// Its metadata, to be changed: in a copy, if somebody else has the object, too.
            pub fn metadata_mut(&mut self) -> &mut ObjectMeta {
                match self {
                    $(TraceObject::$kind(object) => &mut Arc::make_mut(object).metadata,)*
                    TraceObject::Custom(object) => &mut Arc::make_mut(object).metadata,
                }
            }

            /// Without what the scheduler does not read and nobody else should.
            pub fn trimmed(&self) -> TraceObject {
                let mut trimmed = match self {
                    $(TraceObject::$kind(object) => {
                        let mut object = $kind::clone(object);
                        $trim(&mut object);
                        TraceObject::$kind(Arc::new(object))
                    })*
                    TraceObject::Custom(object) => TraceObject::Custom(Arc::clone(object)),
                };
                trim::metadata(trimmed.metadata_mut());
                trimmed
            }
        }

        impl Serialize for TraceObject {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                match self {
                    $(TraceObject::$kind(object) => object.serialize(serializer),)*
                    TraceObject::Custom(object) => custom_json(object).serialize(serializer),
                }
            }
        }

        $(
            impl From<Arc<$kind>> for TraceObject {
                fn from(object: Arc<$kind>) -> Self {
                    TraceObject::$kind(object)
                }
            }
        )*
    };
}

kinds! {
    Namespace, trim::nothing;
    PersistentVolume, trim::volume;
    PersistentVolumeClaim, trim::nothing;
    StorageClass, trim::class;
    CSINode, trim::nothing;
    CSIDriver, trim::nothing;
    CSIStorageCapacity, trim::nothing;
    VolumeAttachment, trim::attachment;
    DeviceTaintRule, trim::nothing;
    ResourceSlice, trim::nothing;
    DeviceClass, trim::nothing;
    ResourceClaim, trim::nothing;
    Service, trim::service;
    ReplicationController, trim::replication_controller;
    ReplicaSet, trim::replica_set;
    StatefulSet, trim::stateful_set;
    PodDisruptionBudget, trim::nothing;
    Node, trim::nothing;
    PodGroup, trim::nothing;
    Pod, trim::pod;
}

fn group_version(kind: &ObjectKind) -> String {
    match kind.group {
        "" => kind.version.to_owned(),
        group => format!("{group}/{}", kind.version),
    }
}

fn custom(kind: ObjectKind, at: &str, value: Value) -> Result<Object, FieldError> {
    let Value::Object(mut fields) = value else {
        return Err(FieldError::new(at, "must be an object"));
    };
    let metadata = fields.remove("metadata").unwrap_or_default();
    fields.remove("apiVersion");
    fields.remove("kind");
    Ok(Object {
        kind,
        metadata: read(&format!("{at}.metadata"), metadata)?,
        data: Value::Object(fields),
    })
}

fn custom_json(object: &Object) -> Value {
    let mut json = object.data.clone();
    if let Some(fields) = json.as_object_mut() {
        fields.insert("apiVersion".into(), group_version(&object.kind).into());
        fields.insert("kind".into(), object.kind.kind.into());
        let metadata = serde_json::to_value(&object.metadata);
        fields.insert("metadata".into(), metadata.unwrap_or_default());
    }
    json
}

impl TraceObject {
    /// The name.
    pub fn name(&self) -> &str {
        self.metadata().name.as_deref().unwrap_or_default()
    }

    /// The namespace; empty for cluster objects.
    pub fn namespace(&self) -> &str {
        self.metadata().namespace.as_deref().unwrap_or_default()
    }

    /// The UID.
    pub fn uid(&self) -> &str {
        self.metadata().uid.as_deref().unwrap_or_default()
    }

    /// Is it a pod?
    pub fn pod(&self) -> Option<&Arc<Pod>> {
        match self {
            TraceObject::Pod(pod) => Some(pod),
            _ => None,
        }
    }

    /// For kinds of storage, devices and plugins: as the queue hears of it.
    pub fn event_object(&self) -> Option<(EventResource, EventObject)> {
        macro_rules! pairs {
            ($($kind:ident),*) => {
                match self {
                    $(TraceObject::$kind(o) => Some((EventResource::$kind, EventObject::$kind(Arc::clone(o)))),)*
                    // The queue hears of devices through their cache, which names what happened itself.
                    TraceObject::DeviceTaintRule(o) => Some((EventResource::ResourceSlice, EventObject::DeviceTaintRule(Arc::clone(o)))),
                    TraceObject::Custom(o) => Some((EventResource::Custom(o.kind), EventObject::Custom(Arc::clone(o)))),
                    _ => None,
                }
            };
        }
        pairs!(
            PersistentVolume,
            PersistentVolumeClaim,
            StorageClass,
            CSINode,
            CSIDriver,
            CSIStorageCapacity,
            VolumeAttachment,
            ResourceSlice,
            DeviceClass,
            ResourceClaim
        )
    }

    /// The same the other way round: an object that the queue was told of.
    pub fn of_event(object: &EventObject) -> TraceObject {
        match object {
            EventObject::Pod(o) => o.clone().into(),
            EventObject::Node(o) => o.clone().into(),
            EventObject::Namespace(o) => o.clone().into(),
            EventObject::PersistentVolume(o) => o.clone().into(),
            EventObject::PersistentVolumeClaim(o) => o.clone().into(),
            EventObject::StorageClass(o) => o.clone().into(),
            EventObject::CSINode(o) => o.clone().into(),
            EventObject::CSIDriver(o) => o.clone().into(),
            EventObject::CSIStorageCapacity(o) => o.clone().into(),
            EventObject::VolumeAttachment(o) => o.clone().into(),
            EventObject::ResourceClaim(o) => o.clone().into(),
            EventObject::ResourceSlice(o) => o.clone().into(),
            EventObject::DeviceClass(o) => o.clone().into(),
            EventObject::DeviceTaintRule(o) => o.clone().into(),
            EventObject::PodGroup(o) => o.clone().into(),
            EventObject::Custom(o) => TraceObject::Custom(Arc::clone(o)),
        }
    }
}
