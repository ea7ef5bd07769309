//! [`router`]: `/gantry/why/NAMESPACE/NAME` and `/gantry/whatif`, as JSON on the secure port; beside them [`scheduling`], the page for people.
//!
//! Who may ask is the server's to know: `get` of `/gantry/why/*` and `post` of `/gantry/whatif` are non-resource URLs for RBAC. An answer tells of pods and
//! nodes of the whole cluster, whatever the asker may read by the API. Both decide on a copy of the cluster, beside the scheduling thread, one after the
//! other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use framework::{PodInfo, Snapshot};
use http::StatusCode;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::causes::with_causes;
use crate::explain::{Explanation, explain};
use crate::runtime::Shared;
use crate::scheduler::{Profiles, Scheduler, new_profiles, scheduler_name};
use crate::what_if::{self, InvalidQuestion, Question, what_if};

pub mod scheduling;
#[cfg(test)]
mod tests;

/// A question may be this large: many pods and nodes.
const MAX_QUESTION: usize = 16 << 20;
/// Questions that are read or wait for their turn; more are sent away.
const MAX_QUESTIONS: usize = 8;

/// What the pages ask.
#[derive(Clone)]
struct Pages {
    scheduler: Arc<Scheduler>,
    /// This process schedules: before, it knows nothing of the cluster.
    active: Arc<AtomicBool>,
    /// One question at a time.
    turn: Arc<Semaphore>,
}

/// The routes. `active` becomes true when this process has begun to schedule.
pub fn router(scheduler: Arc<Scheduler>, active: Arc<AtomicBool>) -> Router {
    let pages = Pages {
        scheduler,
        active,
        turn: Arc::new(Semaphore::new(1)),
    };
    // Before any body is read: a crowd of them would not fit into memory.
    let places = Arc::new(Semaphore::new(MAX_QUESTIONS));
    let page = scheduling::router(pages.clone());
    Router::new()
        .route("/gantry/why/{namespace}/{name}", get(why))
        .route("/gantry/whatif", post(ask_what_if))
        .layer(DefaultBodyLimit::max(MAX_QUESTION))
        .layer(from_fn_with_state(places, admit))
        .with_state(pages)
        .merge(page)
}

async fn admit(State(places): State<Arc<Semaphore>>, request: Request, next: Next) -> Response {
    match places.try_acquire() {
        Ok(_place) => next.run(request).await,
        Err(_) => {
            let why = "too many questions are under way: ask again";
            refuse(StatusCode::TOO_MANY_REQUESTS, why)
        }
    }
}

fn refuse(code: StatusCode, error: impl Into<String>) -> Response {
    let error: String = error.into();
    (code, Json(json!({ "error": error }))).into_response()
}

impl Pages {
    /// What is said while this process does not schedule.
    fn inactive(&self) -> Option<Response> {
        if self.active.load(Ordering::Acquire) {
            return None;
        }
        let why = "this scheduler does not schedule now: another one leads, or its caches are not filled yet";
        Some(refuse(StatusCode::SERVICE_UNAVAILABLE, why))
    }

    /// Runs on a thread of its own: deciding takes time, and extenders are waited for.
    async fn answer(&self, work: impl FnOnce(&Scheduler) -> Response + Send + 'static) -> Response {
        if let Some(refusal) = self.inactive() {
            return refusal;
        }
        let Ok(_turn) = self.turn.acquire().await else {
            return refuse(StatusCode::SERVICE_UNAVAILABLE, "the scheduler is ending");
        };
        let scheduler = Arc::clone(&self.scheduler);
        let done = tokio::task::spawn_blocking(move || work(&scheduler)).await;
        done.unwrap_or_else(|error| {
            tracing::error!(%error, "a question could not be answered");
            refuse(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the question could not be answered",
            )
        })
    }
}

async fn why(
    State(pages): State<Pages>,
    Path((namespace, name)): Path<(String, String)>,
) -> Response {
    pages
        .answer(
            move |scheduler| match why_pod(scheduler, &namespace, &name) {
                Ok(explanation) => Json(explanation).into_response(),
                Err((code, error)) => refuse(code, error),
            },
        )
        .await
}

/// The cluster as the cache has it now.
fn copy_of_cluster(scheduler: &Scheduler) -> Snapshot {
    let mut snapshot = Snapshot::new();
    let (nodes, _) = scheduler.cache.dump();
    nodes.into_iter().for_each(|node| snapshot.set_node(node));
    snapshot
}

fn why_pod(
    scheduler: &Scheduler,
    namespace: &str,
    name: &str,
) -> Result<Explanation, (StatusCode, String)> {
    let not_found = |text: String| (StatusCode::NOT_FOUND, text);
    let Some(listed) = scheduler.shared.listers().pod(namespace, name) else {
        let text = format!("pod {namespace}/{name} not found among pods that have not ended");
        return Err(not_found(text));
    };
    let profile = scheduler_name(&listed);
    let profiles = scheduler.profiles();
    let Some(framework) = profiles.get(profile) else {
        let text =
            format!("pod {namespace}/{name} is for the scheduler {profile:?}, not for this one");
        return Err(not_found(text));
    };
    let pod = PodInfo::new(Arc::clone(&listed))
        .map(Arc::new)
        .map_err(|error| (StatusCode::UNPROCESSABLE_ENTITY, error.to_string()))?;
    let snapshot = copy_of_cluster(scheduler);
    let has = |node: &&Arc<framework::NodeInfo>| node.pods().iter().any(|p| p.uid == pod.uid);
    let on = snapshot.list().map(|(_, node)| node).find(has).cloned();
    let named = pod.spec().node_name.clone().filter(|node| !node.is_empty());
    if let Some(node) = named.or_else(|| on.map(|node| node.name().to_string())) {
        return Ok(Explanation {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            scheduler_name: profile.to_owned(),
            node: Some(node),
            nodes: snapshot.num_nodes(),
            ..Explanation::default()
        });
    }
    let (queue, waiting) = (&scheduler.queue, scheduler.queue.find(&pod.uid));
    Ok(explain(
        framework,
        &snapshot,
        &pod,
        queue.nominator(),
        waiting,
    ))
}

async fn ask_what_if(
    State(pages): State<Pages>,
    question: Result<Json<Question>, JsonRejection>,
) -> Response {
    let Json(question) = match question {
        Ok(question) => question,
        Err(rejection) => return refuse(rejection.status(), rejection.body_text()),
    };
    pages
        .answer(move |scheduler| match play(scheduler, &question) {
            Ok(answer) => Json(answer).into_response(),
            Err(error) => refuse(StatusCode::BAD_REQUEST, error.to_string()),
        })
        .await
}

fn play(scheduler: &Scheduler, question: &Question) -> Result<what_if::Answer, InvalidQuestion> {
    let profiles: Arc<Profiles> = match &question.config {
        None => scheduler.profiles(),
        Some(config) => {
            let config = what_if::config_of(config)?;
            let shared: &Arc<Shared> = &scheduler.shared;
            let profiles = new_profiles(&config, scheduler.registry(), shared);
            let profiles = profiles.map_err(|e| InvalidQuestion::Config(with_causes(&e)))?;
            let made = profiles.values();
            made.for_each(|framework| shared.observers().inform(framework.points().plugins()));
            Arc::new(profiles)
        }
    };
    let mut snapshot = copy_of_cluster(scheduler);
    let queue = &scheduler.queue;
    let waiting = queue.pending_pods();
    what_if(
        &profiles,
        &mut snapshot,
        queue.nominator(),
        waiting,
        question,
    )
}
