//! What stands around an object: `k8s\0` and a `runtime.Unknown`; and around an event of a watch.
//!
//! Upstream: `k8s.io/apimachinery/pkg/runtime/serializer/protobuf/protobuf.go`, `pkg/util/framer`.

use crate::Error;
use crate::wire::{BYTES, Reader, put_bytes};

const MAGIC: &[u8] = b"k8s\0";
/// Of the length before an event.
const FRAME_HEAD: usize = 4;

/// An object that is not decoded yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unknown<'a> {
    /// As in JSON; empty where nobody says.
    pub api_version: &'a str,
    /// The same.
    pub kind: &'a str,
    /// The message.
    pub raw: &'a [u8],
}

/// Takes the envelope off.
///
/// # Errors
/// It is none.
pub fn open(bytes: &[u8]) -> Result<Unknown<'_>, Error> {
    let mut reader = Reader(bytes.strip_prefix(MAGIC).ok_or(Error::Magic)?);
    let mut unknown = Unknown::default();
    while !reader.is_empty() {
        match reader.tag()? {
            (1, BYTES) => {
                let mut meta = Reader(reader.bytes()?);
                while !meta.is_empty() {
                    match meta.tag()? {
                        (1, BYTES) => unknown.api_version = text(meta.bytes()?, "apiVersion")?,
                        (2, BYTES) => unknown.kind = text(meta.bytes()?, "kind")?,
                        (number, wire) => meta.skip(number, wire)?,
                    }
                }
            }
            (2, BYTES) => unknown.raw = reader.bytes()?,
            (number, wire) => reader.skip(number, wire)?,
        }
    }
    Ok(unknown)
}

fn text<'a>(bytes: &'a [u8], field: &'static str) -> Result<&'a str, Error> {
    std::str::from_utf8(bytes).map_err(|_| Error::Utf8(field))
}

/// Puts the envelope around a message.
pub fn seal(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut meta = Vec::with_capacity(api_version.len() + kind.len() + 4);
    put_bytes(&mut meta, 1, api_version.as_bytes());
    put_bytes(&mut meta, 2, kind.as_bytes());
    let mut out = Vec::with_capacity(raw.len() + meta.len() + 16);
    out.extend_from_slice(MAGIC);
    put_bytes(&mut out, 1, &meta);
    put_bytes(&mut out, 2, raw);
    out
}

/// One event of a watch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event<'a> {
    /// `ADDED`, `MODIFIED`, `DELETED`, `BOOKMARK`, `ERROR`.
    pub kind: &'a str,
    /// In its envelope.
    pub object: &'a [u8],
}

/// The length of the first frame in `bytes`, with its head; `None`: its head is not whole yet.
pub fn frame_length(bytes: &[u8]) -> Option<usize> {
    let (head, _) = bytes.split_first_chunk::<FRAME_HEAD>()?;
    Some(u32::from_be_bytes(*head) as usize + FRAME_HEAD)
}

/// Reads a whole frame, as long as [`frame_length`] said.
///
/// # Errors
/// It is none.
pub fn event(frame: &[u8]) -> Result<Event<'_>, Error> {
    let mut reader = Reader(frame.get(FRAME_HEAD..).ok_or(Error::End)?);
    let mut event = Event::default();
    while !reader.is_empty() {
        match reader.tag()? {
            (1, BYTES) => event.kind = text(reader.bytes()?, "type")?,
            (2, BYTES) => {
                let mut object = Reader(reader.bytes()?);
                while !object.is_empty() {
                    match object.tag()? {
                        (1, BYTES) => event.object = object.bytes()?,
                        (number, wire) => object.skip(number, wire)?,
                    }
                }
            }
            (number, wire) => reader.skip(number, wire)?,
        }
    }
    Ok(event)
}

/// The items of a list and what else it says: `list` is its message, as `PodList`.
///
/// # Errors
/// It is none.
pub fn list(list: &[u8]) -> Result<List<'_>, Error> {
    let mut reader = Reader(list);
    let mut found = List::default();
    while !reader.is_empty() {
        match reader.tag()? {
            (1, BYTES) => {
                let mut meta = Reader(reader.bytes()?);
                while !meta.is_empty() {
                    match meta.tag()? {
                        (2, BYTES) => {
                            found.resource_version = text(meta.bytes()?, "resourceVersion")?
                        }
                        (3, BYTES) => found.next = text(meta.bytes()?, "continue")?,
                        (number, wire) => meta.skip(number, wire)?,
                    }
                }
            }
            (2, BYTES) => found.items.push(reader.bytes()?),
            (number, wire) => reader.skip(number, wire)?,
        }
    }
    Ok(found)
}

/// A list whose items are not decoded yet. All lists have their metadata and items in the same two fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List<'a> {
    /// That of the list.
    pub resource_version: &'a str,
    /// `metadata.continue`; empty: the last page.
    pub next: &'a str,
    /// A message each.
    pub items: Vec<&'a [u8]>,
}
