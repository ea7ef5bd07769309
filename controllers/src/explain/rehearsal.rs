//! A transport that lets reads through and takes writes down: a controller above it decides as ever, and nothing happens.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use controller_runtime::transport::{Answer, Request, Verb};
use controller_runtime::{ApiError, Transport};
use serde_json::{Value, json};

/// What stands where the API server would generate a part of a name.
pub const GENERATED: &str = "<generated>";

pub struct Rehearsal {
    live: Arc<dyn Transport>,
    writes: Mutex<Vec<Request>>,
}

impl Rehearsal {
    /// Reads come from `live`.
    pub fn new(live: Arc<dyn Transport>) -> Self {
        Self {
            live,
            writes: Mutex::default(),
        }
    }

    /// What would have been written so far, in order.
    pub fn writes(&self) -> Vec<Request> {
        let writes = self.writes.lock();
        writes.expect("no panic while the lock is held").clone()
    }
}

#[async_trait]
impl Transport for Rehearsal {
    async fn send(&self, request: Request) -> Result<Answer, ApiError> {
        if matches!(request.verb, Verb::Get | Verb::List) {
            return self.live.send(request).await;
        }
        let answer = answer(&request);
        let writes = self.writes.lock();
        writes
            .expect("no panic while the lock is held")
            .push(request);
        Ok(Answer::Json(answer))
    }
}

/// As if all went well.
fn answer(request: &Request) -> Value {
    match request.verb {
        Verb::Create => {
            let mut object = (*request.body).clone();
            let meta = &mut object["metadata"];
            if meta["name"].is_null() {
                let prefix = meta["generateName"].as_str().unwrap_or_default();
                meta["name"] = json!(format!("{prefix}{GENERATED}"));
            }
            meta["uid"] = json!(GENERATED);
            object
        }
        Verb::Update => (*request.body).clone(),
        _ => json!({ "metadata": { "name": request.name, "namespace": request.namespace } }),
    }
}
