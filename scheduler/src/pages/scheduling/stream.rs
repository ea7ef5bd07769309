//! `GET /debug/scheduling/events`: decisions as they are made, as server-sent events.
//!
//! ```text
//! event: decisions   id: where to go on   data: {"missed": 0, "decisions": [...]}
//! event: end         data: {"reason": "..."}      the last one
//! ```
//!
//! A stream looks at the ring a few times a second and sends what is new in one piece; the scheduling thread knows nothing of it. What waits to be sent has a
//! bound: who does not take it for [`Limits::patience`] is told so, and dropped. A stream ends after a while, so that who may no longer look looks no longer;
//! a browser comes back by itself, and goes on where it was.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use component_base::tasks;
use futures::stream::{self, Stream};
use serde_json::json;
use tokio::sync::mpsc::{self, error::SendTimeoutError};
use tokio::sync::{OwnedSemaphorePermit, mpsc::Sender};

use super::state::decision_row;
use crate::scheduler::Scheduler;

/// How long things take, and how much waits.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The ring is looked at this often.
    pub period: Duration,
    /// Who takes nothing for this long is dropped.
    pub patience: Duration,
    /// A stream lasts this long.
    pub lifetime: Duration,
    /// So many pieces wait to be sent, each of at most [`crate::decisions::KEPT`] decisions.
    pub buffer: usize,
}

/// Those of the process.
pub const LIMITS: Limits = Limits {
    period: Duration::from_millis(250),
    patience: Duration::from_secs(10),
    lifetime: Duration::from_secs(600),
    buffer: 4,
};

/// Why a stream ended.
type Farewell = Arc<OnceLock<&'static str>>;

/// The decisions from `next` on. `place` is held for as long as the stream lasts.
pub fn follow(
    scheduler: Arc<Scheduler>,
    next: u64,
    limits: Limits,
    place: OwnedSemaphorePermit,
) -> Response {
    let (sender, receiver) = mpsc::channel(limits.buffer);
    let farewell = Farewell::default();
    let said = Arc::clone(&farewell);
    tasks::spawn_helper("page of decisions", async move {
        let _place = place;
        if let Some(why) = send(&scheduler, next, limits, &sender).await {
            // Set here alone.
            let _ = said.set(why);
        }
    });
    let keep_alive = KeepAlive::new().interval(Duration::from_secs(15));
    Sse::new(events(receiver, farewell))
        .keep_alive(keep_alive)
        .into_response()
}

/// What was sent, then why it ended.
fn events(
    receiver: mpsc::Receiver<Event>,
    farewell: Farewell,
) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(Some((receiver, farewell)), async |state| {
        let (mut receiver, farewell) = state?;
        if let Some(event) = receiver.recv().await {
            return Some((Ok(event), Some((receiver, farewell))));
        }
        let reason = farewell.get()?;
        let data = json!({ "reason": reason }).to_string();
        Some((Ok(Event::default().event("end").data(data)), None))
    })
}

/// Sends until somebody has enough; why, unless it is the reader who left.
async fn send(
    scheduler: &Scheduler,
    mut next: u64,
    limits: Limits,
    sender: &Sender<Event>,
) -> Option<&'static str> {
    let mut ticks = tokio::time::interval(limits.period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let over = tokio::time::sleep(limits.lifetime);
    tokio::pin!(over);
    let mut first = true;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = sender.closed() => return None,
            () = scheduler.shared.end().cancelled() => return Some("the scheduler is ending"),
            () = &mut over => return Some("the stream has lasted its time: ask again to go on"),
        }
        let Some(event) = news(scheduler, &mut next, std::mem::take(&mut first)) else {
            continue;
        };
        match sender.send_timeout(event, limits.patience).await {
            Ok(()) => {}
            Err(SendTimeoutError::Closed(_)) => return None,
            Err(SendTimeoutError::Timeout(_)) => {
                return Some("dropped: decisions came faster than they were read");
            }
        }
    }
}

/// What is new; the first time even if nothing is, so that the reader knows that it is heard.
fn news(scheduler: &Scheduler, next: &mut u64, first: bool) -> Option<Event> {
    let shared = &scheduler.shared;
    let news = shared.decisions().since(*next);
    *next = news.next;
    if news.decisions.is_empty() && !first {
        return None;
    }
    let now = (shared.clock().now(), shared.metrics().start());
    let rows = news.decisions.into_iter();
    let rows: Vec<_> = rows.map(|decision| decision_row(decision, now)).collect();
    let data = json!({ "missed": news.missed, "decisions": rows }).to_string();
    let event = Event::default().event("decisions").id(next.to_string());
    Some(event.data(data))
}
