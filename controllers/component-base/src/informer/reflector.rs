//! Asks the API server for all objects and then for what changes, in protobuf where the kind is built in.
//!
//! The first objects come as a watch does, one by one (a streaming list), so neither side holds them all as text at once; a server that
//! knows none of that is asked for pages. A watch that ends is taken up where it was.
//! Upstream: `k8s.io/client-go/tools/cache/reflector.go`.
//!
//! ```text
//! Begin -> Streaming ---(bookmark: that was all)--> Watching <-> Resume
//!       -> Paging ---(last page)--> Resume
//! ```

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use futures::{Stream, stream};
use http::{Request, StatusCode, header};
use http_body_util::BodyExt as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::client::Body;
use kube::core::watch::{Bookmark, BookmarkMeta};
use kube::core::{Status, TypeMeta, WatchEvent};
use kube::runtime::watcher::{Error, Event};
use kube_protobuf::envelope;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::tolerant::Tolerant;
use super::{InformerOptions, Keep, Object};
use crate::client::wire::{self, Encoding, unreadable};

/// Of a page, where the server streams no lists.
const PAGE: u32 = 500;
/// After which the server ends a watch by itself. Upstream: `minWatchTimeout` (and up to as much again, which some connection
/// on the way may not live).
const WATCH_SECONDS: u32 = 290;
/// On the bookmark that ends a streaming list. Upstream: `InitialEventsAnnotationKey`.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";
/// A frame that says it is larger is none: etcd's own bound is 1.5 MiB an object.
const LONGEST_FRAME: usize = 64 << 20;

/// What is asked for, and how the answer is read.
pub(super) struct Source<K> {
    pub client: Client,
    /// As `/api/v1/pods`.
    pub path: String,
    pub options: InformerOptions,
    /// `None`: JSON.
    pub message: Option<&'static kube_protobuf::Message>,
    /// The metadata of whatever the objects are.
    pub metadata: bool,
    pub keep: Keep<K>,
}

/// The answer's encoding.
#[derive(Clone, Copy)]
enum Wire {
    Protobuf(&'static kube_protobuf::Message),
    Json,
}

enum Phase<K> {
    Begin,
    Streaming(Watch<K>),
    Paging {
        items: VecDeque<K>,
        /// `None`: these were the last.
        next: Option<String>,
        version: String,
    },
    Resume(String),
    Watching(Watch<K>, String),
}

/// The objects of `source` as they are, and then as they become.
pub(super) fn reflect<K>(source: Source<K>) -> impl Stream<Item = Result<Event<K>, Error>> + Send
where
    K: Object + DeserializeOwned,
{
    let reflector = Reflector {
        source,
        phase: Phase::Begin,
        pages: false,
    };
    stream::unfold(reflector, |mut reflector| async move {
        let event = reflector.next().await;
        Some((event, reflector))
    })
}

struct Reflector<K> {
    source: Source<K>,
    phase: Phase<K>,
    /// The server streams no lists.
    pages: bool,
}

impl<K: Object + DeserializeOwned> Reflector<K> {
    /// Not cancel-safe: dropped in between, it begins anew.
    async fn next(&mut self) -> Result<Event<K>, Error> {
        loop {
            let event = match std::mem::replace(&mut self.phase, Phase::Begin) {
                Phase::Begin => self.begin().await?,
                Phase::Streaming(watch) => self.streamed(watch).await?,
                Phase::Paging {
                    items,
                    next,
                    version,
                } => self.paged(items, next, version).await?,
                Phase::Resume(version) => {
                    self.resume(version).await?;
                    None
                }
                Phase::Watching(watch, version) => self.watched(watch, version).await?,
            };
            if let Some(event) = event {
                return Ok(event);
            }
        }
    }

    async fn begin(&mut self) -> Result<Option<Event<K>>, Error> {
        if self.pages {
            self.page(None).await?;
            return Ok(Some(Event::Init));
        }
        match self.source.watch(None).await {
            Ok(watch) => {
                self.phase = Phase::Streaming(watch);
                Ok(Some(Event::Init))
            }
            Err(Error::WatchStartFailed(kube::Error::Api(status))) if is_refused(&status) => {
                self.pages = true;
                Ok(None)
            }
            Err(Error::WatchStartFailed(error)) => Err(Error::InitialListFailed(error)),
            Err(error) => Err(error),
        }
    }

    /// The next of a streaming list.
    async fn streamed(&mut self, mut watch: Watch<K>) -> Result<Option<Event<K>>, Error> {
        let event = match watch.next().await? {
            // Cut off: what came is not all.
            None => return Err(Error::InitialListFailed(ended_early())),
            Some(WatchEvent::Bookmark(mark)) => {
                let is_all = mark.metadata.annotations.contains_key(INITIAL_EVENTS_END);
                if is_all {
                    self.phase = Phase::Watching(watch, mark.metadata.resource_version);
                    return Ok(Some(Event::InitDone));
                }
                None
            }
            Some(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                Some(Event::InitApply(object))
            }
            Some(WatchEvent::Deleted(object)) => Some(Event::Delete(object)),
            Some(WatchEvent::Error(status)) => return Err(Error::WatchError(status)),
        };
        self.phase = Phase::Streaming(watch);
        Ok(event)
    }

    /// The next of a page, or the next page.
    async fn paged(
        &mut self,
        mut items: VecDeque<K>,
        next: Option<String>,
        version: String,
    ) -> Result<Option<Event<K>>, Error> {
        match (items.pop_front(), next) {
            (Some(item), next) => {
                self.phase = Phase::Paging {
                    items,
                    next,
                    version,
                };
                Ok(Some(Event::InitApply(item)))
            }
            (None, Some(next)) => {
                self.page(Some(next)).await?;
                Ok(None)
            }
            (None, None) => {
                self.phase = Phase::Resume(version);
                Ok(Some(Event::InitDone))
            }
        }
    }

    async fn resume(&mut self, version: String) -> Result<(), Error> {
        match self.source.watch(Some(&version)).await {
            Ok(watch) => {
                self.phase = Phase::Watching(watch, version);
                Ok(())
            }
            Err(error) => {
                if !is_gone(&error) {
                    self.phase = Phase::Resume(version);
                }
                Err(error)
            }
        }
    }

    /// The next change after `version`.
    async fn watched(
        &mut self,
        mut watch: Watch<K>,
        version: String,
    ) -> Result<Option<Event<K>>, Error> {
        let event = match watch.next().await {
            Ok(event) => event,
            Err(error) => {
                self.phase = Phase::Resume(version);
                return Err(error);
            }
        };
        let (object, deleted) = match event {
            None => {
                self.phase = Phase::Resume(version);
                return Ok(None);
            }
            Some(WatchEvent::Bookmark(mark)) => {
                self.phase = Phase::Watching(watch, mark.metadata.resource_version);
                return Ok(None);
            }
            Some(WatchEvent::Error(status)) => {
                if status.code != StatusCode::GONE.as_u16() {
                    self.phase = Phase::Resume(version);
                }
                return Err(Error::WatchError(status));
            }
            Some(WatchEvent::Added(object) | WatchEvent::Modified(object)) => (object, false),
            Some(WatchEvent::Deleted(object)) => (object, true),
        };
        let newer = object.meta().resource_version.clone();
        let newer = newer.ok_or(Error::NoResourceVersion)?;
        self.phase = Phase::Watching(watch, newer);
        Ok(Some(match deleted {
            true => Event::Delete(object),
            false => Event::Apply(object),
        }))
    }

    async fn page(&mut self, next: Option<String>) -> Result<(), Error> {
        let page = self.source.page(next.as_deref()).await;
        let (items, version, next) = page.map_err(Error::InitialListFailed)?;
        if version.is_empty() {
            return Err(Error::NoResourceVersion);
        }
        self.phase = Phase::Paging {
            items,
            next: Some(next).filter(|n| !n.is_empty()),
            version,
        };
        Ok(())
    }
}

/// The server does not know of streaming lists. Upstream: `handleWatchListError`.
fn is_refused(status: &Status) -> bool {
    [StatusCode::UNPROCESSABLE_ENTITY, StatusCode::BAD_REQUEST]
        .iter()
        .any(|code| status.code == code.as_u16())
}

fn is_gone(error: &Error) -> bool {
    match error {
        Error::WatchStartFailed(kube::Error::Api(status)) => {
            status.code == StatusCode::GONE.as_u16()
        }
        _ => false,
    }
}

fn ended_early() -> kube::Error {
    kube::Error::Service("the list ended early".into())
}

/// `metadata.continue` aside, what lists are made of in JSON.
#[derive(Deserialize)]
#[serde(bound = "K: DeserializeOwned")]
struct JsonList<K> {
    #[serde(default)]
    metadata: JsonListMeta,
    #[serde(default = "Vec::new")]
    items: Vec<Tolerant<K>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct JsonListMeta {
    resource_version: String,
    #[serde(rename = "continue")]
    next: String,
}

/// A bookmark's object, in either encoding.
#[derive(Deserialize)]
struct Mark {
    #[serde(default)]
    metadata: ObjectMeta,
}

impl<K: Object + DeserializeOwned> Source<K> {
    fn request(&self, query: &[(&str, &str)], list: bool) -> Result<Request<Body>, kube::Error> {
        let mut form = {
            let begin = format!("{}?", self.path);
            let start = begin.len();
            form_urlencoded::Serializer::for_suffix(begin, start)
        };
        for (name, selector) in [
            ("labelSelector", &self.options.label_selector),
            ("fieldSelector", &self.options.field_selector),
        ] {
            if let Some(selector) = selector {
                form.append_pair(name, selector);
            }
        }
        form.extend_pairs(query);
        Request::get(form.finish())
            .header(header::ACCEPT, self.accept(list))
            .body(Body::empty())
            .map_err(kube::Error::HttpError)
    }

    fn accept(&self, list: bool) -> String {
        let as_metadata = match (self.metadata, list) {
            (false, _) => "",
            (true, true) => ";as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
            (true, false) => ";as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
        };
        let json = format!("application/json{as_metadata}");
        match self.message {
            Some(_) => format!("{}{as_metadata}, {json}", kube_protobuf::CONTENT_TYPE),
            None => json,
        }
    }

    async fn ask(&self, request: Request<Body>) -> Result<(Wire, Body), kube::Error> {
        let (encoding, body) = wire::send(&self.client, request).await?;
        match (encoding, self.message) {
            (Encoding::Protobuf, Some(message)) => Ok((Wire::Protobuf(message), body)),
            (Encoding::Protobuf, None) => {
                Err(unreadable("an answer in protobuf that was not asked for"))
            }
            (Encoding::Json, _) => Ok((Wire::Json, body)),
        }
    }

    /// Items, the version they are of, and how the next page is asked for.
    async fn page(&self, next: Option<&str>) -> Result<(VecDeque<K>, String, String), kube::Error> {
        let limit = PAGE.to_string();
        let mut query = vec![("limit", limit.as_str())];
        query.extend(next.map(|next| ("continue", next)));
        let (wire, body) = self.ask(self.request(&query, true)?).await?;
        let bytes = body.collect().await?.to_bytes();
        match wire {
            Wire::Json => {
                let list: JsonList<K> =
                    serde_json::from_slice(&bytes).map_err(kube::Error::SerdeError)?;
                let items = list.items.into_iter().map(|Tolerant(mut item)| {
                    (self.keep.trim)(&mut item);
                    item
                });
                Ok((
                    items.collect(),
                    list.metadata.resource_version,
                    list.metadata.next,
                ))
            }
            Wire::Protobuf(message) => {
                let unknown = envelope::open(&bytes).map_err(unreadable)?;
                let list = envelope::list(unknown.raw).map_err(unreadable)?;
                let items = list
                    .items
                    .iter()
                    .map(|item| self.keep.read(message, item))
                    .collect::<Result<_, _>>()
                    .map_err(unreadable)?;
                Ok((
                    items,
                    list.resource_version.to_owned(),
                    list.next.to_owned(),
                ))
            }
        }
    }

    /// Of what changes after `version`; `None`: of what there is, too.
    async fn watch(&self, version: Option<&str>) -> Result<Watch<K>, Error> {
        let timeout = WATCH_SECONDS.to_string();
        let mut query = vec![
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", timeout.as_str()),
        ];
        match version {
            Some(version) => query.push(("resourceVersion", version)),
            None => query.extend([
                ("sendInitialEvents", "true"),
                ("resourceVersionMatch", "NotOlderThan"),
            ]),
        }
        let answer = async { self.ask(self.request(&query, false)?).await };
        let (wire, body) = answer.await.map_err(Error::WatchStartFailed)?;
        Ok(Watch {
            wire,
            body,
            buffer: BytesMut::new(),
            keep: self.keep,
        })
    }
}

/// A watch under way.
struct Watch<K> {
    keep: Keep<K>,
    wire: Wire,
    body: Body,
    /// What is not read yet.
    buffer: BytesMut,
}

impl<K: Object + DeserializeOwned> Watch<K> {
    /// `None`: the server ended it.
    async fn next(&mut self) -> Result<Option<WatchEvent<K>>, Error> {
        let frame = self.frame().await.map_err(Error::WatchFailed)?;
        match frame {
            Some(frame) => self.event(&frame).map(Some).map_err(Error::WatchFailed),
            None => Ok(None),
        }
    }

    fn frame_length(&self) -> Option<usize> {
        match self.wire {
            Wire::Protobuf(_) => envelope::frame_length(&self.buffer),
            Wire::Json => self
                .buffer
                .iter()
                .position(|b| *b == b'\n')
                .map(|at| at + 1),
        }
    }

    /// The next event's bytes.
    async fn frame(&mut self) -> Result<Option<Bytes>, kube::Error> {
        loop {
            let length = self.frame_length();
            if let Some(length) = length.filter(|l| *l <= self.buffer.len()) {
                return Ok(Some(self.buffer.split_to(length).freeze()));
            }
            if length.unwrap_or(self.buffer.len()) > LONGEST_FRAME {
                return Err(unreadable("an event is too large"));
            }
            let Some(frame) = self.body.frame().await else {
                if !self.buffer.is_empty() {
                    tracing::debug!("a watch ended within an event");
                }
                return Ok(None);
            };
            let Ok(data) = frame?.into_data() else {
                continue;
            };
            // Most often an event comes in a piece of its own.
            if self.buffer.is_empty() {
                self.buffer = BytesMut::from(data);
            } else {
                self.buffer.extend_from_slice(&data);
            }
        }
    }

    fn event(&self, frame: &[u8]) -> Result<WatchEvent<K>, kube::Error> {
        let message = match self.wire {
            Wire::Protobuf(message) => message,
            Wire::Json => {
                let event = json_event(frame, self.keep.trim);
                return event.map_err(kube::Error::SerdeError);
            }
        };
        let event = envelope::event(frame).map_err(unreadable)?;
        let unknown = envelope::open(event.object).map_err(unreadable)?;
        let object = || self.keep.read(message, unknown.raw).map_err(unreadable);
        Ok(match event.kind {
            "ADDED" => WatchEvent::Added(object()?),
            "MODIFIED" => WatchEvent::Modified(object()?),
            "DELETED" => WatchEvent::Deleted(object()?),
            "BOOKMARK" => {
                let mark = kube_protobuf::from_slice(message, unknown.raw, false);
                bookmark(mark.map_err(unreadable)?)
            }
            "ERROR" => WatchEvent::Error(Box::new(wire::status(event.object).map_err(unreadable)?)),
            other => return Err(unreadable(format!("{other:?} is no event of a watch"))),
        })
    }
}

fn bookmark<K>(mark: Mark) -> WatchEvent<K> {
    WatchEvent::Bookmark(Bookmark {
        types: TypeMeta::default(),
        metadata: BookmarkMeta {
            resource_version: mark.metadata.resource_version.unwrap_or_default(),
            annotations: mark.metadata.annotations.unwrap_or_default(),
        },
    })
}

fn json_event<K: Object + DeserializeOwned>(
    frame: &[u8],
    trim: fn(&mut K),
) -> serde_json::Result<WatchEvent<K>> {
    #[derive(Deserialize)]
    struct Raw<'a> {
        r#type: std::borrow::Cow<'a, str>,
        #[serde(borrow)]
        object: &'a serde_json::value::RawValue,
    }
    let raw: Raw<'_> = serde_json::from_slice(frame)?;
    let text = raw.object.get();
    let object = || {
        let Tolerant(mut object) = serde_json::from_str::<Tolerant<K>>(text)?;
        trim(&mut object);
        Ok::<_, serde_json::Error>(object)
    };
    Ok(match raw.r#type.as_ref() {
        "ADDED" => WatchEvent::Added(object()?),
        "MODIFIED" => WatchEvent::Modified(object()?),
        "DELETED" => WatchEvent::Deleted(object()?),
        "BOOKMARK" => bookmark(serde_json::from_str(text)?),
        "ERROR" => WatchEvent::Error(serde_json::from_str(text)?),
        other => {
            let why = format!("{other:?} is no event of a watch");
            return Err(serde::de::Error::custom(why));
        }
    })
}

#[cfg(test)]
mod tests;
