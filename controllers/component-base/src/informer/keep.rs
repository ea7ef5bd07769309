//! What of the objects a process keeps: fields that nobody in it reads are stepped over when an object is read, and take no memory.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::LazyLock;

use kube_protobuf::View;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Object;

/// What is kept of one kind.
pub struct Keep<K> {
    /// What is read of it.
    pub view: &'static View,
    /// What no view can tell, as entries of a map, is taken off afterwards.
    pub trim: fn(&mut K),
}

impl<K> Clone for Keep<K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K> Copy for Keep<K> {}

impl<K> Default for Keep<K> {
    /// All but managed fields.
    fn default() -> Self {
        Self {
            view: View::without_managed_fields(),
            trim: |_| {},
        }
    }
}

impl<K> Keep<K> {
    /// Reads a message.
    ///
    /// # Errors
    /// The bytes are not that message, or the type says no.
    pub(super) fn read(
        &self,
        message: &'static kube_protobuf::Message,
        bytes: &[u8],
    ) -> Result<K, kube_protobuf::Error>
    where
        K: DeserializeOwned,
    {
        let mut object = kube_protobuf::from_slice_as(message, bytes, self.view)?;
        (self.trim)(&mut object);
        Ok(object)
    }

    /// What is kept of an object: shows in a test that its readers miss nothing.
    ///
    /// # Errors
    /// The object has a field that its message has not.
    pub fn of_object(
        &self,
        (group, version, kind): (&str, &str, &str),
        object: &K,
    ) -> Result<K, kube_protobuf::Error>
    where
        K: DeserializeOwned + Serialize,
    {
        let message = kube_protobuf::message(group, version, kind)
            .ok_or_else(|| kube_protobuf::Error::Other(format!("{kind} has no message")))?;
        self.read(message, &kube_protobuf::to_message(message, object)?)
    }

    /// Of whatever kind, what an owner or a count is found by: name, namespace, UID, version, owners, finalizers, time of deletion.
    pub(super) fn identity() -> Self {
        static VIEW: LazyLock<View> = LazyLock::new(|| {
            View::without(&[(
                "meta.v1.ObjectMeta",
                &[
                    "labels",
                    "annotations",
                    "generateName",
                    "selfLink",
                    "generation",
                    "creationTimestamp",
                    "deletionGracePeriodSeconds",
                ],
            )])
        });
        Self {
            view: &VIEW,
            trim: |_| {},
        }
    }
}

/// By kind; of others everything is kept but managed fields.
///
/// **Invariant:** an object of a kind in here is never written whole from the cache: what was not kept would be deleted.
#[derive(Default)]
pub struct Keeps {
    kinds: HashMap<TypeId, Box<dyn Any + Send + Sync>>,
}

impl Keeps {
    /// Of `K`, this is kept.
    pub fn with<K: Object>(mut self, keep: Keep<K>) -> Self {
        self.kinds.insert(TypeId::of::<K>(), Box::new(keep));
        self
    }

    /// What is kept of `K`.
    pub fn of<K: Object>(&self) -> Keep<K> {
        let keep = self.kinds.get(&TypeId::of::<K>());
        keep.and_then(|keep| keep.downcast_ref().copied())
            .unwrap_or_default()
    }
}
