//! The shell around one pass: lists, deletes, lists again, and writes conditions and finalizer.

use std::sync::Arc;

use component_base::clock::Clock;
use controller_runtime::executor::{Executor, Target};
use controller_runtime::transport::Verb;
use controller_runtime::{ApiError, ObjectKey, Resource};
use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use serde_json::{Value, json};

use super::sync::{self, Findings, Remaining};
use crate::discovery::{Discovered, Discovery};

/// Resources emptied at the same time.
const PARALLEL: usize = 8;
/// Tries of a write to the namespace itself that others write to as well.
const MAX_CONFLICTS: usize = 10;

/// Why a namespace is not gone; a retry may help.
#[derive(Debug, thiserror::Error)]
pub enum DeletionError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("namespace {0}: uid has changed across retries")]
    Replaced(String),
    #[error("{}", .0.join(", "))]
    Content(Vec<String>),
}

/// What one pass came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing more to do.
    Done,
    /// Content remains that may take so many seconds more.
    Remaining { estimate_seconds: i64 },
}

pub(super) struct Deleter {
    pub executor: Executor,
    pub discovery: Arc<dyn Discovery>,
    pub clock: Clock,
}

impl Deleter {
    /// One pass over the namespace; the caller comes back until it is [`Progress::Done`].
    pub async fn delete(&self, name: &str) -> Result<Progress, DeletionError> {
        // Past the cache: several controllers write to a namespace that goes.
        let Some(namespace) = self.executor.get::<Namespace>("", name).await? else {
            return Ok(Progress::Done);
        };
        let Some(deleted_at) = namespace.metadata.deletion_timestamp.as_ref().map(|t| t.0) else {
            return Ok(Progress::Done);
        };
        let terminating = self
            .write(namespace, |n| {
                sync::mark_terminating(n).map(|n| (n, "status"))
            })
            .await?;
        let Some(namespace) = terminating.filter(|n| !sync::finalized(n)) else {
            return Ok(Progress::Done);
        };
        let (findings, namespace) = self.delete_all_content(namespace, deleted_at).await?;
        if findings.estimate_seconds > 0 {
            return Ok(Progress::Remaining {
                estimate_seconds: findings.estimate_seconds,
            });
        }
        self.write(namespace, |n| {
            (!sync::finalized(n)).then(|| (sync::finalize(n), "finalize"))
        })
        .await?;
        Ok(Progress::Done)
    }

    /// Writes what `change` makes of the namespace, again on a fresh copy after a conflict. `None`: it is gone.
    async fn write(
        &self,
        mut namespace: Namespace,
        change: impl Fn(&Namespace) -> Option<(Namespace, &'static str)>,
    ) -> Result<Option<Namespace>, DeletionError> {
        let name = namespace.metadata.name.clone().unwrap_or_default();
        for attempt in 0.. {
            let Some((changed, subresource)) = change(&namespace) else {
                return Ok(Some(namespace));
            };
            let target = Target::of::<Namespace>("", &name).subresource(subresource);
            let body =
                serde_json::to_value(&changed).map_err(|e| ApiError::Decode(e.to_string()))?;
            match self
                .executor
                .send(Verb::Update, &target, Vec::new(), body)
                .await
            {
                Ok(answer) => {
                    let written = serde_json::from_value(answer)
                        .map_err(|e| ApiError::Decode(e.to_string()))?;
                    return Ok(Some(written));
                }
                Err(error) if error.is_not_found() => return Ok(None),
                Err(error) if error.is_conflict() && attempt < MAX_CONFLICTS => {
                    let Some(fresh) = self.executor.get::<Namespace>("", &name).await? else {
                        return Ok(None);
                    };
                    if fresh.metadata.uid != namespace.metadata.uid {
                        return Err(DeletionError::Replaced(name));
                    }
                    namespace = fresh;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// Errors are collected and told; what can be deleted is.
    async fn delete_all_content(
        &self,
        namespace: Namespace,
        deleted_at: Timestamp,
    ) -> Result<(Findings, Namespace), DeletionError> {
        let name = &namespace.metadata.name.clone().unwrap_or_default();
        let mut findings = Findings::default();
        let mut failed = Vec::new();
        let resources = match self.discovery.resources().await {
            Ok(found) => {
                if !found.failed.is_empty() {
                    let groups = found.failed.len();
                    let message = format!(
                        "Discovery failed for some groups, {groups} failing: unable to retrieve the complete list of server APIs: {}: stale GroupVersion discovery",
                        found.failed.join(", ")
                    );
                    failed.push(message.clone());
                    findings.discovery = Some(message);
                }
                found.resources
            }
            Err(error) => {
                failed.push(error.to_string());
                findings.discovery = Some(error.to_string());
                Vec::new()
            }
        };
        let deletable = |d: &Discovered| d.preferred && d.namespaced && d.supports(&["delete"]);
        let pods = Resource::of::<Pod>();
        let (of_pods, others): (Vec<_>, Vec<_>) = resources
            .into_iter()
            .filter(deletable)
            .partition(|d| d.resource == pods);

        for resource in of_pods {
            self.empty(&mut findings, &resource, name, deleted_at).await;
        }
        let pods_remain = !findings.remaining.is_empty();
        if !pods_remain {
            let results: Vec<_> = futures::stream::iter(others)
                .map(|resource| async move {
                    let mut part = Findings::default();
                    self.empty(&mut part, &resource, name, deleted_at).await;
                    part
                })
                .buffer_unordered(PARALLEL)
                .collect()
                .await;
            for part in results {
                findings.estimate_seconds = findings.estimate_seconds.max(part.estimate_seconds);
                findings.errors.extend(part.errors);
                findings.remaining.extend(part.remaining);
                for (finalizer, count) in part.finalizers {
                    *findings.finalizers.entry(finalizer).or_default() += count;
                }
            }
        }
        let namespace = self.report(namespace, &findings, !pods_remain).await;
        failed.extend(findings.errors.iter().cloned());
        if failed.is_empty() {
            Ok((findings, namespace))
        } else {
            Err(DeletionError::Content(failed))
        }
    }

    /// Returns the namespace as it was written.
    async fn report(&self, namespace: Namespace, findings: &Findings, totals: bool) -> Namespace {
        let now = self.clock.now();
        let change = |n: &Namespace| {
            sync::update_conditions(n, findings, totals, now).map(|n| (n, "status"))
        };
        match self.write(namespace.clone(), change).await {
            Ok(written) => written.unwrap_or(namespace),
            Err(error) => {
                // The deletion goes on; the next pass tries again.
                let name = namespace.metadata.name.as_deref().unwrap_or_default();
                tracing::warn!(namespace = name, %error, "Couldn't update status condition for namespace");
                namespace
            }
        }
    }

    /// Deletes all objects of one resource and adds what is left.
    async fn empty(
        &self,
        findings: &mut Findings,
        resource: &Discovered,
        namespace: &str,
        deleted_at: Timestamp,
    ) {
        match self.delete_all_of(resource, namespace, deleted_at).await {
            Ok((remaining, stuck)) => {
                let plural = format!("{}.{}", resource.resource.plural, resource.resource.group);
                findings.add(&plural, &remaining);
                if stuck {
                    let Resource {
                        group,
                        version,
                        plural,
                        ..
                    } = &resource.resource;
                    findings.errors.push(format!(
                        "unexpected items still remain in namespace: {namespace} for gvr: {group}/{version}, Resource={plural}"
                    ));
                }
            }
            Err(error) => findings.errors.push(error.to_string()),
        }
    }

    async fn delete_all_of(
        &self,
        resource: &Discovered,
        namespace: &str,
        deleted_at: Timestamp,
    ) -> Result<(Remaining, bool), ApiError> {
        let estimate = if resource.resource == Resource::of::<Pod>() {
            let pods = self.list(resource, namespace).await?.unwrap_or_default();
            sync::estimate_graceful_termination(&pods, deleted_at, self.clock.now())
        } else {
            0
        };
        if !self.delete_collection(resource, namespace).await? {
            self.delete_each(resource, namespace).await?;
        }
        match self.list(resource, namespace).await? {
            Some(items) => Ok(Remaining::of(&items, estimate)),
            None => Ok((
                Remaining {
                    estimate_seconds: estimate,
                    ..Remaining::default()
                },
                false,
            )),
        }
    }

    /// `false`: the server cannot.
    async fn delete_collection(
        &self,
        resource: &Discovered,
        namespace: &str,
    ) -> Result<bool, ApiError> {
        if !resource.supports(&["deletecollection"]) {
            return Ok(false);
        }
        let target = target(resource, namespace, "");
        match self
            .executor
            .send(Verb::DeleteCollection, &target, Vec::new(), background())
            .await
        {
            Ok(_) => Ok(true),
            Err(error) if is_unsupported(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn delete_each(&self, resource: &Discovered, namespace: &str) -> Result<(), ApiError> {
        for item in self.list(resource, namespace).await?.unwrap_or_default() {
            let name = item["metadata"]["name"].as_str().unwrap_or_default();
            match self
                .executor
                .send(
                    Verb::Delete,
                    &target(resource, namespace, name),
                    Vec::new(),
                    background(),
                )
                .await
            {
                Ok(_) => {}
                Err(error) if is_unsupported(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// `None`: the server cannot.
    async fn list(
        &self,
        resource: &Discovered,
        namespace: &str,
    ) -> Result<Option<Vec<Value>>, ApiError> {
        if !resource.supports(&["list"]) {
            return Ok(None);
        }
        match self
            .executor
            .send(
                Verb::List,
                &target(resource, namespace, ""),
                Vec::new(),
                Value::Null,
            )
            .await
        {
            Ok(mut list) => Ok(Some(match list["items"].take() {
                Value::Array(items) => items,
                _ => Vec::new(),
            })),
            Err(error) if is_unsupported(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn target(resource: &Discovered, namespace: &str, name: &str) -> Target {
    Target {
        resource: resource.resource.clone(),
        key: ObjectKey::new(namespace, name),
        subresource: "",
    }
}

/// The garbage collector must not orphan anything here: all of it goes.
fn background() -> Value {
    json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"})
}

fn is_unsupported(error: &ApiError) -> bool {
    matches!(
        error,
        ApiError::NotFound(_) | ApiError::Server { code: 405, .. }
    )
}
