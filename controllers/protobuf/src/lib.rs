//! Kubernetes' protobuf, read into and written from the types of k8s-openapi, whose serde knows JSON's names alone.
//!
//! A table of upstream's types (`schema.txt`: numbers, names, kinds) stands between the two: [`from_slice`] is a serde format that
//! reads protobuf and calls fields as JSON does, [`to_vec`] its way back. So there are no second types, what nobody has a
//! field for is never allocated, and every kind in the table can be had. A [`View`] leaves out what nobody reads, too.
//!
//! ```text
//! k8s\0 | Unknown { typeMeta, raw }  ->  envelope::open  ->  from_slice(message, raw)  ->  a Pod
//! ```
//!
//! What JSON leaves out because it is zero (`omitempty`) is left out here too, so that an object means the same, whichever way it came.
//! Upstream: `k8s.io/apimachinery/pkg/runtime/serializer/protobuf`.

#![warn(missing_docs)]

mod de;
pub mod envelope;
mod schema;
mod ser;
mod time;
mod view;
mod wire;

pub use de::{from_slice, from_slice_as};
pub use schema::{Message, message};
pub use ser::{escape, to_message, to_vec};
pub use view::View;

/// As in `Accept` and `Content-Type`.
pub const CONTENT_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// The same of a watch.
pub const WATCH_CONTENT_TYPE: &str = "application/vnd.kubernetes.protobuf;stream=watch";

/// What is wrong with bytes or with an object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes end within a value.
    #[error("unexpected end of a protobuf message")]
    End,
    /// A variable-length number has more than ten bytes.
    #[error("a number has too many bytes")]
    Varint,
    /// The wire type is not the one of that field's kind.
    #[error("{message}.{field}: unexpected wire type {wire}")]
    WireType {
        /// Upstream's type.
        message: &'static str,
        /// As JSON calls it.
        field: &'static str,
        /// What stands there.
        wire: u8,
    },
    /// Wire types 3, 4, 6 and 7, or a field with number 0.
    #[error("not a protobuf message: tag {0}")]
    Tag(u64),
    /// A string is none.
    #[error("{0}: not UTF-8")]
    Utf8(&'static str),
    /// The items of a list or map do not stand side by side, as upstream writes them.
    #[error("{message}.{field}: items are scattered")]
    Scattered {
        /// Upstream's type.
        message: &'static str,
        /// As JSON calls it.
        field: &'static str,
    },
    /// A time outside of what can be written down.
    #[error("{0}: not a time")]
    Time(String),
    /// A value that the field cannot hold.
    #[error("{field}: {why}")]
    Value {
        /// As JSON calls it.
        field: &'static str,
        /// What is wrong.
        why: String,
    },
    /// A name that the message has no field for.
    #[error("{message} has no field {field:?}")]
    Unknown {
        /// Upstream's type.
        message: &'static str,
        /// The name.
        field: String,
    },
    /// It does not begin with `k8s\0`.
    #[error("not an object in Kubernetes' protobuf")]
    Magic,
    /// What the type that is read or written says.
    #[error("{0}")]
    Other(String),
}

impl serde::de::Error for Error {
    fn custom<T: std::fmt::Display>(text: T) -> Self {
        Self::Other(text.to_string())
    }
}

impl serde::ser::Error for Error {
    fn custom<T: std::fmt::Display>(text: T) -> Self {
        Self::Other(text.to_string())
    }
}

#[cfg(test)]
mod tests;
