//! [`ObjectStore`]: what a plugin knows of the objects of a kind of its own, decoded once: its lister.
//!
//! The scheduler watches the kind and tells the plugin ([`crate::Observer::observe`]), which hands it on to the store. Never here: a client.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use serde::de::DeserializeOwned;

use crate::event::EventObject;
use crate::objects::{Object, ObjectKind};

/// An object that cannot be read as what the plugin wants.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {key:?}: {message}")]
pub struct ObjectError {
    /// The kind.
    pub kind: &'static str,
    /// `namespace/name`, or the name.
    pub key: String,
    /// What is wrong, with the field.
    pub message: String,
}

struct Known<T> {
    object: Arc<Object>,
    decoded: Option<Arc<T>>,
}

/// The objects of one kind, by `namespace/name` (or the name of a cluster object). See the module.
pub struct ObjectStore<T> {
    kind: ObjectKind,
    known: RwLock<BTreeMap<String, Known<T>>>,
    revision: AtomicU64,
    decodes: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> ObjectStore<T> {
    /// An empty store. `T` has the fields of the object beside its metadata that the plugin reads, as `spec`; others are no error.
    pub fn new(kind: ObjectKind) -> Self {
        ObjectStore {
            kind,
            known: RwLock::default(),
            revision: AtomicU64::new(0),
            decodes: PhantomData,
        }
    }

    /// The kind.
    pub fn kind(&self) -> ObjectKind {
        self.kind
    }

    /// Takes in what [`crate::Observer::observe`] was told. The key of the object that changed; `None` for what is of another kind, or not new.
    ///
    /// # Errors
    /// The object cannot be decoded. It counts as not there until it is written anew; what it was before is forgotten.
    pub fn observe(
        &self,
        old: Option<&EventObject>,
        new: Option<&EventObject>,
    ) -> Result<Option<String>, ObjectError> {
        let of_kind = |object: Option<&EventObject>| {
            let object = object.and_then(EventObject::custom);
            object.filter(|object| object.kind == self.kind).cloned()
        };
        let (old, new) = (of_kind(old), of_kind(new));
        let Some(key) = new.as_ref().or(old.as_ref()).map(|object| object.key()) else {
            return Ok(None);
        };
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let Some(object) = new else {
            let was_there = known.remove(&key).is_some();
            if was_there {
                self.revision.fetch_add(1, Ordering::AcqRel);
            }
            return Ok(was_there.then_some(key));
        };
        if known.get(&key).is_some_and(|known| known.object == object) {
            return Ok(None);
        }
        let decoded = serde_path_to_error::deserialize::<_, T>(&object.data);
        self.revision.fetch_add(1, Ordering::AcqRel);
        let (decoded, result) = match decoded {
            Ok(decoded) => (Some(Arc::new(decoded)), Ok(Some(key.clone()))),
            Err(error) => {
                let (kind, key, message) = (self.kind.kind, key.clone(), error.to_string());
                (None, Err(ObjectError { kind, key, message }))
            }
        };
        known.insert(key, Known { object, decoded });
        result
    }

    /// The object of this key; `None` when there is none, or it cannot be decoded.
    pub fn get(&self, key: &str) -> Option<Arc<T>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(key)?.decoded.clone()
    }

    /// All objects that can be decoded, by key.
    pub fn list(&self) -> Vec<(String, Arc<T>)> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let decoded = known
            .iter()
            .filter_map(|(key, known)| Some((key.clone(), known.decoded.clone()?)));
        decoded.collect()
    }

    /// Grows with each change. For [`crate::Sign::inputs`], where a verdict depends on many objects; never 0.
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire) + 1
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use serde_json::{Value, json};

    use super::*;

    const KIND: ObjectKind = crate::object_kind!("example.com", "v1", "Thing", "things");

    #[derive(serde::Deserialize)]
    struct Thing {
        spec: Spec,
    }
    #[derive(serde::Deserialize)]
    struct Spec {
        sizes: Vec<u32>,
    }

    fn thing(kind: ObjectKind, name: &str, data: Value) -> EventObject {
        let metadata = ObjectMeta {
            namespace: Some("ns".into()),
            name: Some(name.into()),
            ..ObjectMeta::default()
        };
        EventObject::Custom(Arc::new(Object {
            kind,
            metadata,
            data,
        }))
    }

    fn sizes(sizes: &[u32]) -> EventObject {
        thing(KIND, "a", json!({"spec": {"sizes": sizes}}))
    }

    #[test]
    fn the_same_told_twice_counts_once() {
        let store = ObjectStore::<Thing>::new(KIND);
        let one = sizes(&[1]);
        let first = store.revision();
        assert_eq!(store.observe(None, Some(&one)), Ok(Some("ns/a".to_owned())));
        let after = store.revision();
        assert!(after > first);
        assert_eq!(store.observe(None, Some(&one)), Ok(None));
        assert_eq!(store.revision(), after);
        assert_eq!(store.get("ns/a").expect("there").spec.sizes, [1]);
        let two = sizes(&[2, 3]);
        store.observe(Some(&one), Some(&two)).expect("decodes");
        let list = store.list();
        assert_eq!(list.len(), 1);
        assert_eq!(list[0].1.spec.sizes, [2, 3]);
        assert_eq!(store.observe(Some(&two), None), Ok(Some("ns/a".to_owned())));
        assert_eq!(store.observe(Some(&two), None), Ok(None));
        assert!(store.get("ns/a").is_none());
    }

    #[test]
    fn what_cannot_be_read_is_told_with_its_field_and_is_not_there() {
        let store = ObjectStore::<Thing>::new(KIND);
        store.observe(None, Some(&sizes(&[1]))).expect("decodes");
        let wrong = thing(KIND, "a", json!({"spec": {"sizes": [1, "large"]}}));
        let error = store.observe(None, Some(&wrong)).expect_err("a text");
        let text = error.to_string();
        assert!(
            text.starts_with("Thing \"ns/a\": spec.sizes[1]: "),
            "{text}"
        );
        assert!(store.get("ns/a").is_none());
        assert!(store.list().is_empty());
        store.observe(None, Some(&sizes(&[4]))).expect("mended");
        assert_eq!(store.get("ns/a").expect("there").spec.sizes, [4]);
    }

    #[test]
    fn other_kinds_and_other_objects_are_not_its_own() {
        let store = ObjectStore::<Thing>::new(KIND);
        let other = crate::object_kind!("example.com", "v1", "Other", "others");
        let other = thing(other, "a", json!({"spec": {"sizes": []}}));
        assert_eq!(store.observe(None, Some(&other)), Ok(None));
        let pod = EventObject::Pod(crate::testing::make_pod("p").build());
        assert_eq!(store.observe(None, Some(&pod)), Ok(None));
        assert_eq!(store.revision(), 1);
    }
}
