//! Remembers who opened which image, and decides whether a pod may use what is on the node.
//!
//! Owns: [`access`] (pure) and [`PullManager`], which keeps the records in step with pulls. Everything but [`access`]
//! blocks on the disk. Upstream: `pkg/kubelet/images/pullmanager/image_pull_manager.go`, v1.36.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use images::Reference;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use runtime::api::ImageStatus;

use super::pull_record::{
    ImagePullCredentials, ImagePullSecret, ImagePullServiceAccount, ImagePulledRecord, PullRecords,
    RecordError,
};
use super::verification::{Verification, trim_tag_and_digest};
use crate::metrics;

/// So many secrets of one image are noted without a pull. Upstream: `writeRecordWhileMatchingLimit`.
const REMEMBERED_SECRETS_MAX: usize = 100;
/// An intent whose image did not come is dropped after this; a commit of an abandoned pull may still be under way before.
const ABANDONED_INTENT_AGE: Duration = Duration::from_secs(3600);

/// What a pod can show.
#[derive(Clone, Debug, Default)]
pub struct PodCredentials {
    pub secrets: Vec<ImagePullSecret>,
    pub service_account: Option<ImagePullServiceAccount>,
}

/// Whether a pod may use an image that is on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// The policy asks for nothing.
    Allowed,
    /// The records say so. `remember`: noted too, so that it is known when the pod's secret changes next.
    Recorded { remember: Option<ImagePullSecret> },
    /// The registry must be asked.
    MustAuthenticate,
}

/// Upstream: `MustAttemptImagePull`. `record`: of the image's id. `credentials` is asked only if it matters.
pub fn access(
    verification: &Verification,
    image: &str,
    pulled_by_kubelet: bool,
    record: Option<&ImagePulledRecord>,
    credentials: impl FnOnce() -> PodCredentials,
) -> Access {
    if !verification.required(image, pulled_by_kubelet) {
        return Access::Allowed;
    }
    let known = record
        .zip(trim_tag_and_digest(image).ok())
        .and_then(|(record, name)| record.credential_mapping.get(&name));
    let Some(known) = known else {
        return Access::MustAuthenticate;
    };
    if known.node_pods_accessible {
        return Access::Recorded { remember: None };
    }
    if known.kubernetes_secrets.is_empty() && known.kubernetes_service_accounts.is_empty() {
        return Access::MustAuthenticate;
    }
    let room = known.kubernetes_secrets.len() < REMEMBERED_SECRETS_MAX;
    let pod = credentials();
    for mine in &pod.secrets {
        for theirs in &known.kubernetes_secrets {
            let same_hash = !theirs.credential_hash.is_empty()
                && theirs.credential_hash == mine.credential_hash;
            let same_object = theirs.same_object(mine);
            if same_hash {
                return Access::Recorded {
                    remember: (!same_object && room).then(|| mine.clone()),
                };
            }
            // The secret that opened it once, with another content now: still its owner's.
            if same_object && room {
                return Access::Recorded {
                    remember: Some(mine.clone()),
                };
            }
        }
    }
    match pod.service_account {
        Some(account) if known.kubernetes_service_accounts.contains(&account) => {
            Access::Recorded { remember: None }
        }
        _ => Access::MustAuthenticate,
    }
}

/// An intent's pulls.
#[derive(Default)]
struct Pulls {
    under_way: u32,
    /// When one was given up whose image may have come.
    abandoned: Option<Timestamp>,
    /// The image that had the name, and no record, before the first pull: it stays everybody's.
    preloaded: Option<String>,
}

struct State {
    records: PullRecords,
    /// By the name in the pod; one for each intent.
    pulls: HashMap<String, Pulls>,
}

/// Shared by the workers; each call blocks on the disk.
pub struct PullManager {
    verification: Verification,
    state: Mutex<State>,
}

/// Whether `image`, as a pod wrote it, is one of the names of the image.
fn is_named(image: &str, status: &ImageStatus) -> bool {
    let normal = Reference::parse(image).map(|reference| reference.to_string());
    status
        .repo_tags
        .iter()
        .chain(&status.repo_digests)
        .any(|name| name == image || normal.as_ref().is_ok_and(|normal| normal == name))
}

impl PullManager {
    /// Reads the records below `root`. `limit`: how many are kept in memory.
    ///
    /// # Errors
    /// The records' directories cannot be used.
    pub fn open(
        root: &Path,
        limit: usize,
        verification: Verification,
    ) -> Result<Self, RecordError> {
        let records = PullRecords::open(root, limit)?;
        let now = Timestamp::now();
        let left = || Pulls {
            abandoned: Some(now),
            ..Pulls::default()
        };
        let pulls = records
            .intents()
            .iter()
            .map(|image| (image.clone(), left()))
            .collect();
        Ok(Self {
            verification,
            state: Mutex::new(State { records, pulls }),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pull of `image` begins. Each call is answered by one of `pulled`, `failed` and `abandoned`. `present`: the id of
    /// the image that has the name now.
    ///
    /// # Errors
    /// It cannot be noted: then nothing must be pulled.
    pub fn begin(&self, image: &str, present: Option<&str>) -> Result<(), RecordError> {
        let mut state = self.state();
        if !state.pulls.contains_key(image) {
            state.records.write_intent(image)?;
            let preloaded = present.filter(|id| matches!(state.records.pulled(id), Ok(None)));
            let pulls = Pulls {
                preloaded: preloaded.map(str::to_owned),
                ..Pulls::default()
            };
            state.pulls.insert(image.to_owned(), pulls);
        }
        if let Some(pulls) = state.pulls.get_mut(image) {
            pulls.under_way += 1;
        }
        Ok(())
    }

    /// The pull brought the image `id`, opened by `credentials`.
    pub fn pulled(&self, image: &str, id: &str, credentials: &ImagePullCredentials) {
        let mut state = self.state();
        match state.record(image, id, Some(credentials), Timestamp::now()) {
            Ok(()) => state.end(image),
            // The intent stands: the image stays one that the kubelet pulled.
            Err(error) => {
                tracing::error!(image, id, %error, "failed to write image pulled record");
                state.leave(image);
            }
        }
    }

    /// The pull brought nothing.
    pub fn failed(&self, image: &str) {
        self.state().end(image);
    }

    /// Nobody waits for the pull any more; the image may come all the same.
    pub fn abandoned(&self, image: &str) {
        self.state().leave(image);
    }

    /// Whether [`Self::must_attempt_pull`] would ask for the pod's credentials, which may take a plugin's time.
    pub fn asks_for_credentials(&self, image: &str, found: &ImageStatus) -> bool {
        let state = self.state();
        let Ok(record) = state.records.pulled(&found.id) else {
            return false;
        };
        let pulled_by_kubelet = state.pulled_by_kubelet(image, found, record.as_ref());
        let mut asked = false;
        let verification = &self.verification;
        access(
            verification,
            image,
            pulled_by_kubelet,
            record.as_ref(),
            || {
                asked = true;
                PodCredentials::default()
            },
        );
        asked
    }

    /// Whether the registry must be asked before a pod may use `found`, which is on the node as `image`.
    pub fn must_attempt_pull(
        &self,
        image: &str,
        found: &ImageStatus,
        credentials: impl FnOnce() -> PodCredentials,
    ) -> bool {
        let mut state = self.state();
        let count = |result: &str| {
            metrics::MUST_PULL_CHECKS.with_label_values(&[result]).inc();
        };
        let record = match state.records.pulled(&found.id) {
            Ok(record) => record,
            Err(error) => {
                tracing::error!(image, %error, "unable to access records about image pulls");
                count("error");
                return true;
            }
        };
        let pulled_by_kubelet = state.pulled_by_kubelet(image, found, record.as_ref());
        let access = access(
            &self.verification,
            image,
            pulled_by_kubelet,
            record.as_ref(),
            credentials,
        );
        match access {
            Access::Allowed => {
                count("credentialPolicyAllowed");
                false
            }
            Access::Recorded { remember } => {
                if let Some(secret) = remember {
                    let credentials = ImagePullCredentials {
                        kubernetes_secrets: vec![secret],
                        ..ImagePullCredentials::default()
                    };
                    let now = Timestamp::now();
                    if let Err(error) = state.record(image, &found.id, Some(&credentials), now) {
                        tracing::error!(image, %error, "failed to write an image pulled record");
                    }
                }
                count("credentialRecordFound");
                false
            }
            Access::MustAuthenticate => {
                count("mustAuthenticate");
                true
            }
        }
    }

    /// Forgets images that are gone, and settles intents without a pull. `images`: every image of the runtime, listed
    /// after `until`.
    pub fn prune(&self, images: &[ImageStatus], until: Timestamp) {
        let mut state = self.state();
        // Records have whole seconds.
        let until_second = Timestamp::from_second(until.as_second()).unwrap_or(until);
        for record in state.records.all_pulled() {
            let old = record
                .last_updated_time
                .as_ref()
                .is_none_or(|at| at.0 < until_second);
            if old
                && !images.iter().any(|image| image.id == record.image_ref)
                && let Err(error) = state.records.delete_pulled(&record.image_ref)
            {
                tracing::error!(image = record.image_ref, %error, "failed to remove an image pulled record");
            }
        }
        state.settle(images, until);
    }

    /// After a start: images whose pull was cut by the end of the last process are the kubelet's, opened by nobody.
    pub fn adopt(&self, images: &[ImageStatus]) {
        self.state().settle(images, Timestamp::now());
    }
}

impl State {
    // DIFFERS: upstream asks for an intent under the very name the pod uses. An image that came a moment ago, or just before a
    // crash, has other names: any of them counts.
    fn pulled_by_kubelet(
        &self,
        image: &str,
        found: &ImageStatus,
        record: Option<&ImagePulledRecord>,
    ) -> bool {
        let begun = |(intent, pulls): (&String, &Pulls)| {
            pulls.preloaded.as_ref() != Some(&found.id)
                && (intent == image || is_named(intent, found))
        };
        record.is_some() || self.pulls.iter().any(begun)
    }

    fn record(
        &mut self,
        image: &str,
        id: &str,
        credentials: Option<&ImagePullCredentials>,
        now: Timestamp,
    ) -> Result<(), RecordError> {
        let known = self.records.pulled(id).unwrap_or_else(|error| {
            tracing::warn!(image, %error, "image pulled record is replaced");
            None
        });
        let mut changed = known.is_none();
        let mut record = known.unwrap_or_else(|| ImagePulledRecord::new(id));
        if let (Some(credentials), Ok(name)) = (credentials, trim_tag_and_digest(image)) {
            changed |= record.merge(&name, credentials);
        }
        if !changed {
            return Ok(());
        }
        record.last_updated_time =
            Some(Time(Timestamp::from_second(now.as_second()).unwrap_or(now)));
        self.records.write_pulled(record)
    }

    /// A pull ended and left nothing unrecorded.
    fn end(&mut self, image: &str) {
        let Some(pulls) = self.pulls.get_mut(image) else {
            return;
        };
        pulls.under_way = pulls.under_way.saturating_sub(1);
        if pulls.under_way > 0 || pulls.abandoned.is_some() {
            return;
        }
        self.forget(image);
    }

    /// A pull ended, and its image may be here without a record.
    fn leave(&mut self, image: &str) {
        if let Some(pulls) = self.pulls.get_mut(image) {
            pulls.under_way = pulls.under_way.saturating_sub(1);
            pulls.abandoned = Some(Timestamp::now());
        }
    }

    fn forget(&mut self, image: &str) {
        match self.records.delete_intent(image) {
            Ok(()) => drop(self.pulls.remove(image)),
            Err(error) => {
                tracing::error!(image, %error, "failed to remove image pull intent");
                if let Some(pulls) = self.pulls.get_mut(image) {
                    pulls.abandoned.get_or_insert(Timestamp::now());
                }
            }
        }
    }

    /// Intents without a pull become records of nobody if their image is here, and go if it does not come.
    fn settle(&mut self, images: &[ImageStatus], now: Timestamp) {
        let waiting: Vec<(String, Timestamp, Option<String>)> = self
            .pulls
            .iter()
            .filter(|(_, pulls)| pulls.under_way == 0)
            .filter_map(|(image, p)| Some((image.clone(), p.abandoned?, p.preloaded.clone())))
            .collect();
        for (image, since, preloaded) in waiting {
            let mut done = false;
            for status in images
                .iter()
                .filter(|status| preloaded.as_ref() != Some(&status.id) && is_named(&image, status))
            {
                done = match self.record(&image, &status.id, None, now) {
                    Ok(()) => true,
                    Err(error) => {
                        tracing::error!(image, %error, "failed to write an image pulled record");
                        false
                    }
                };
            }
            let age = Duration::try_from(now.duration_since(since)).unwrap_or_default();
            if done || age > ABANDONED_INTENT_AGE {
                self.forget(&image);
            }
        }
    }
}

#[cfg(test)]
mod tests;
