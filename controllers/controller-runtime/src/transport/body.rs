//! What is sent: one value, encoded once however often it is sent. A ReplicaSet makes a thousand Pods of one body.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use kube_protobuf::Message;
use serde_json::Value;

/// An object, a patch or DeleteOptions; null for nothing. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Body {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    value: Value,
    /// In protobuf. `None`: it cannot be.
    encoded: OnceLock<Option<Bytes>>,
}

impl Body {
    /// Nothing.
    pub fn null() -> Self {
        Self::default()
    }

    /// The value, for whoever changes it.
    pub fn into_value(self) -> Value {
        Arc::try_unwrap(self.inner).map_or_else(|shared| shared.value.clone(), |own| own.value)
    }

    /// In protobuf with its envelope. `None`: the message has no field for something that it has. `message` and `kind` are the same
    /// at each call: a body is of one kind.
    pub(super) fn protobuf(&self, message: &'static Message, kind: (&str, &str)) -> Option<Bytes> {
        let encode = || {
            let bytes = kube_protobuf::to_vec(message, kind, &self.inner.value);
            bytes
                .inspect_err(|error| tracing::debug!(%error, kind = kind.1, "No protobuf"))
                .ok()
                .map(Bytes::from)
        };
        self.inner.encoded.get_or_init(encode).clone()
    }
}

impl From<Value> for Body {
    fn from(value: Value) -> Self {
        let encoded = OnceLock::new();
        let inner = Arc::new(Inner { value, encoded });
        Self { inner }
    }
}

impl Deref for Body {
    type Target = Value;
    fn deref(&self) -> &Value {
        &self.inner.value
    }
}

impl PartialEq for Body {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl PartialEq<Value> for Body {
    fn eq(&self, other: &Value) -> bool {
        **self == *other
    }
}
