//! The shell over [`super`]: finds, adopts, writes and drops the revisions of one owner.

use std::sync::Arc;

use component_base::informer::{Factory, Informer, InformerOptions};
use component_helpers::labels::Selector;
use component_helpers::owner_ref::{is_controlled_by, new_controller_ref};
use controller_runtime::executor::{Action, DeleteOptions, Executor};
use controller_runtime::{ApiError, ObjectKey, Watches, WorkQueue};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, StatefulSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;

use super::{HASH_LABEL, Next, REVISION_HASH_LABEL, next, surplus};
use crate::controller_ref::index_by_controller;
use crate::controller_ref_manager::{Kind, claim_objects, concerned};

/// `spec.revisionHistoryLimit` as the API server defaults it.
const HISTORY_LIMIT: i32 = 10;

/// A kind whose templates are kept as revisions.
pub trait Revisioned: Kind + Clone + serde::Serialize {
    /// The label of its revisions that holds their hash.
    const HASH_LABEL: &'static str;

    fn template(&self) -> Option<&PodTemplateSpec>;
    /// `None`: it selects nothing.
    fn selector(&self) -> Option<Selector>;
    fn history_limit(&self) -> Option<i32>;
    fn collision_count(&self) -> Option<i32>;
    fn set_collision_count(&mut self, count: i32);
}

macro_rules! revisioned {
    ($kind:ty, $label:expr) => {
        impl Revisioned for $kind {
            const HASH_LABEL: &'static str = $label;

            fn template(&self) -> Option<&PodTemplateSpec> {
                Some(&self.spec.template)
            }

            fn selector(&self) -> Option<Selector> {
                let selector = Selector::new(&self.spec.selector).ok()?;
                (!selector.is_everything()).then_some(selector)
            }

            fn history_limit(&self) -> Option<i32> {
                self.spec.revision_history_limit
            }

            fn collision_count(&self) -> Option<i32> {
                self.status.as_ref()?.collision_count
            }

            fn set_collision_count(&mut self, count: i32) {
                self.status.get_or_insert_default().collision_count = Some(count);
            }
        }
    };
}

revisioned!(DaemonSet, HASH_LABEL);
revisioned!(StatefulSet, REVISION_HASH_LABEL);

/// The revisions there are, and the way to write them.
pub struct Revisions {
    informer: Informer<ControllerRevision>,
    executor: Executor,
}

impl Revisions {
    pub fn new(factory: &Factory, executor: Executor) -> Self {
        Self::over(factory.informer(InformerOptions::default()), executor)
    }

    pub(crate) fn over(informer: Informer<ControllerRevision>, executor: Executor) -> Self {
        index_by_controller(&informer);
        Self { informer, executor }
    }

    /// Queues the owner of every revision that comes, goes or changes, and who might adopt it.
    pub fn watch<K: Revisioned>(
        &self,
        watches: &mut Watches,
        owners: Informer<K>,
        queue: WorkQueue,
    ) {
        watches.on(&self.informer, move |event| {
            let selects = |owner: &K, revision: &ControllerRevision| {
                owner
                    .selector()
                    .is_some_and(|s| s.matches(&revision.metadata.labels))
            };
            concerned(&owners, &event, selects)
                .into_iter()
                .for_each(|key| queue.add(key));
        });
    }

    /// The revisions of `owner`. `None`: some were adopted, and the watch brings the owner back.
    ///
    /// # Errors
    /// What the server said; a retry may help.
    pub async fn claim<K: Revisioned>(
        &self,
        owner: &K,
        selector: &Selector,
    ) -> Result<Option<Vec<Arc<ControllerRevision>>>, ApiError> {
        claim_objects::<K, ControllerRevision>(
            &self.executor,
            &self.informer,
            owner.meta(),
            selector,
            None,
            |_| true,
        )
        .await
    }

    /// The revision of the present template, made if need be. `None`: nothing can be created there any more.
    ///
    /// DIFFERS: upstream numbers by its cache alone, so that a revision that the cache does not have yet (its watch may be behind that
    /// of the owners) gets its number a second time. Here the server is asked before a number is given, once a new template.
    ///
    /// # Errors
    /// What the server said; a retry may help, after a collision of names by another name.
    pub async fn of_template<K: Revisioned>(
        &self,
        owner: &K,
        existing: &[Arc<ControllerRevision>],
    ) -> Result<Option<Arc<ControllerRevision>>, ApiError> {
        let template = owner.template().cloned().unwrap_or_default();
        let decide = |existing: &[Arc<ControllerRevision>]| {
            next(
                K::HASH_LABEL,
                owner.meta(),
                new_controller_ref::<K>(owner.meta()),
                &template,
                existing,
                owner.collision_count(),
            )
        };
        if let Next::Use(revision) = decide(existing) {
            return Ok(Some(revision));
        }
        let revision = match decide(&self.live(owner).await?) {
            Next::Use(revision) => return Ok(Some(revision)),
            Next::Renumber(revision) => {
                return Ok(Some(Arc::new(self.executor.update(&*revision).await?)));
            }
            Next::Create(revision) => revision,
        };
        let error = match self.executor.create(&*revision).await {
            Ok(created) => return Ok(Some(Arc::new(created))),
            Err(ApiError::NamespaceTerminating(_)) => return Ok(None),
            Err(error) if error.is_already_exists() => error,
            Err(error) => return Err(error),
        };
        let key = ObjectKey::of(&*revision);
        let found = self
            .executor
            .get::<ControllerRevision>(&key.namespace, &key.name)
            .await?;
        // Our own, which the cache does not have yet.
        if let Some(found) = found.filter(|f| f.data == revision.data) {
            return Ok(Some(Arc::new(found)));
        }
        let mut owner = owner.clone();
        owner.set_collision_count(owner.collision_count().unwrap_or(0) + 1);
        self.executor.update_status(&owner).await?;
        Err(error)
    }

    /// The revisions of `owner` by the server's word.
    async fn live<K: Revisioned>(
        &self,
        owner: &K,
    ) -> Result<Vec<Arc<ControllerRevision>>, ApiError> {
        let namespace = owner.meta().namespace.as_deref().unwrap_or_default();
        let uid = owner.meta().uid.as_deref().unwrap_or_default();
        let selector = owner.selector().map(|s| s.to_string());
        let selector = selector.unwrap_or_default();
        let found = self.executor.list(namespace, &selector, "").await?;
        let own = |revision: &ControllerRevision| is_controlled_by(&revision.metadata, uid);
        Ok(found.into_iter().filter(own).map(Arc::new).collect())
    }

    /// The revision of that name: of `existing`, else by the server's word, since the cache may not have it yet.
    ///
    /// # Errors
    /// What the server said; a retry may help.
    pub async fn named<K: Revisioned>(
        &self,
        owner: &K,
        name: &str,
        existing: &[Arc<ControllerRevision>],
    ) -> Result<Option<Arc<ControllerRevision>>, ApiError> {
        let is_it = |r: &&Arc<ControllerRevision>| r.metadata.name.as_deref() == Some(name);
        if let Some(found) = existing.iter().find(is_it) {
            return Ok(Some(found.clone()));
        }
        let meta = owner.meta();
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let uid = meta.uid.as_deref().unwrap_or_default();
        let found: Option<ControllerRevision> = self.executor.get(namespace, name).await?;
        let own = |revision: &ControllerRevision| is_controlled_by(&revision.metadata, uid);
        Ok(found.filter(own).map(Arc::new))
    }

    /// Drops the oldest revisions beyond the owner's limit of those that are not `live`.
    ///
    /// # Errors
    /// What the server said; a retry may help.
    pub async fn truncate<K: Revisioned>(
        &self,
        owner: &K,
        existing: &[Arc<ControllerRevision>],
        is_live: impl Fn(&ControllerRevision) -> bool,
    ) -> Result<(), ApiError> {
        let limit = owner.history_limit().unwrap_or(HISTORY_LIMIT);
        for revision in surplus(existing, is_live, usize::try_from(limit).unwrap_or(0)) {
            let key = ObjectKey::of(&*revision);
            let options = DeleteOptions {
                uid: revision.metadata.uid.clone(),
                // Not one that was made the newest since, by a rollback.
                resource_version: revision.metadata.resource_version.clone(),
                ..DeleteOptions::default()
            };
            self.executor
                .execute(&Action::delete::<ControllerRevision>(
                    &key.namespace,
                    &key.name,
                    options,
                ))
                .await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use controller_runtime::testing::FakeApi;
    use serde_json::json;

    use super::*;
    use crate::testing::{Feed, settle};

    struct World {
        api: FakeApi,
        cache: Feed<ControllerRevision>,
        revisions: Revisions,
    }

    impl World {
        fn new() -> Self {
            let (api, (cache, informer)) = (FakeApi::new(), Feed::new());
            let revisions = Revisions::over(informer, api.executor());
            api.insert(&set("v1"));
            Self {
                api,
                cache,
                revisions,
            }
        }

        /// Writes past the controller, the cache included.
        async fn put(&self, revision: ControllerRevision) {
            self.api.insert(&revision);
            self.cache.apply(revision);
            settle().await;
        }

        fn stored(&self) -> Vec<ControllerRevision> {
            self.api.list()
        }

        fn set(&self) -> StatefulSet {
            self.api.get("ns", "db").unwrap()
        }
    }

    fn set(image: &str) -> StatefulSet {
        serde_json::from_value(json!({
            "metadata": {"name": "db", "namespace": "ns", "uid": "s"},
            "spec": {
                "serviceName": "db", "selector": {"matchLabels": {"app": "db"}}, "revisionHistoryLimit": 1,
                "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "c", "image": image}]}},
            },
        }))
        .unwrap()
    }

    #[tokio::test]
    async fn a_late_cache_makes_no_second_revision() {
        let world = World::new();
        let first = world.revisions.of_template(&set("v1"), &[]).await.unwrap();
        let again = world.revisions.of_template(&set("v1"), &[]).await.unwrap();
        assert_eq!(first.unwrap().metadata.name, again.unwrap().metadata.name);
        assert_eq!(
            (world.stored().len(), world.set().collision_count()),
            (1, None)
        );
    }

    /// The specs of upstream's suite for ControllerRevisions: a revision that somebody made a moment ago counts.
    #[tokio::test]
    async fn numbers_follow_what_the_server_has() {
        let world = World::new();
        let of = async |image: &str, cached: &[Arc<ControllerRevision>]| {
            let made = world.revisions.of_template(&set(image), cached).await;
            made.unwrap().unwrap()
        };
        let first = of("v1", &[]).await;
        // The cache lags behind: it has the first alone from now on.
        let cached = [first.clone()];
        let second = of("v2", &cached).await;
        let third = of("v3", &cached).await;
        let numbers = [&first, &second, &third].map(|r| r.revision);
        assert_eq!(numbers, [Some(1), Some(2), Some(3)]);
        // A rollback to what the cache knows, and to what it does not.
        let back = of("v1", &cached).await;
        assert_eq!(
            (back.revision, &back.metadata.name),
            (Some(1), &first.metadata.name)
        );
        let seen = [first.clone(), third];
        let back = of("v1", &seen).await;
        assert_eq!(
            (back.revision, &back.metadata.name),
            (Some(4), &first.metadata.name)
        );
        let back = of("v2", &cached).await;
        assert_eq!(
            (back.revision, &back.metadata.name),
            (Some(5), &second.metadata.name)
        );
        assert_eq!(world.stored().len(), 3);
    }

    #[tokio::test]
    async fn the_current_revision_is_found_past_the_cache() {
        let world = World::new();
        let made = world.revisions.of_template(&set("v1"), &[]).await;
        let name = made.unwrap().unwrap().metadata.name.clone().unwrap();
        let find = async |name: &str| world.revisions.named(&set("v2"), name, &[]).await.unwrap();
        assert_eq!(find(&name).await.and_then(|r| r.revision), Some(1));
        assert_eq!(find("db-none").await, None);
        let mut foreign = world.stored().remove(0);
        foreign.metadata.owner_references = None;
        world.api.insert(&foreign);
        assert_eq!(find(&name).await, None);
    }

    /// By the cache it is the oldest; the server knows that a rollback made it the newest.
    #[tokio::test]
    async fn what_was_renumbered_is_not_dropped() {
        let world = World::new();
        let mut cached = Vec::new();
        for image in ["v1", "v2", "v3"] {
            let made = world.revisions.of_template(&set(image), &cached).await;
            cached.push(made.unwrap().unwrap());
        }
        let back = world.revisions.of_template(&set("v1"), &cached).await;
        assert_eq!(back.unwrap().unwrap().revision, Some(4));
        let dropped = world
            .revisions
            .truncate(&set("v1"), &cached, |_| false)
            .await;
        assert!(dropped.is_err_and(|error| error.is_conflict()));
        assert_eq!(world.stored().len(), 3);
    }

    #[tokio::test]
    async fn a_strangers_name_is_avoided() {
        let world = World::new();
        world.revisions.of_template(&set("v1"), &[]).await.unwrap();
        let mut foreign = world.stored().remove(0);
        foreign.data.0 = json!({});
        world.api.insert(&foreign);
        let refused = world.revisions.of_template(&set("v1"), &[]).await;
        assert!(refused.is_err_and(|error| error.is_already_exists()));
        assert_eq!(world.set().collision_count(), Some(1));
        let made = world.revisions.of_template(&world.set(), &[]).await;
        assert_ne!(made.unwrap().unwrap().metadata.name, foreign.metadata.name);
    }

    #[tokio::test]
    async fn orphans_are_adopted_and_old_ones_dropped() {
        let world = World::new();
        for (image, number) in [("v1", 1), ("v2", 2), ("v3", 3)] {
            let made = world.revisions.of_template(&set(image), &[]).await.unwrap();
            let mut orphan = (*made.unwrap()).clone();
            orphan.metadata.owner_references = None;
            orphan.metadata.uid = Some(image.to_owned());
            orphan.revision = Some(number);
            world.put(orphan).await;
        }
        let selector = set("v3").selector().unwrap();
        let claim = async || world.revisions.claim(&set("v3"), &selector).await.unwrap();
        assert!(claim().await.is_none());
        for mut adopted in world.stored() {
            // The server's merge of patches is not the fake's; the cache sees the owner.
            adopted.metadata.owner_references =
                Some(vec![new_controller_ref::<StatefulSet>(&set("v3").metadata)]);
            world.put(adopted).await;
        }
        let owned = claim().await.unwrap();
        assert_eq!(owned.len(), 3);
        let is_live = |r: &ControllerRevision| r.revision == Some(3);
        world
            .revisions
            .truncate(&set("v3"), &owned, is_live)
            .await
            .unwrap();
        let mut left: Vec<_> = world.stored().iter().filter_map(|r| r.revision).collect();
        left.sort_unstable();
        assert_eq!(left, [2, 3]);
    }
}
