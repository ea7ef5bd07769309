//! What the kubelet noted of its pulls: who opened which image, and which pulls were begun.
//!
//! Owns: the files below `<root>/image_manager`, of upstream's kinds, one file a record, whole or not there; a bounded
//! copy of them in memory. Blocks on the disk: never called from an async thread. Upstream:
//! `pkg/kubelet/images/pullmanager/{fs,mem}_pullrecords.go`, v1.36.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::metrics;
use host::atomic_file;

const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
/// Read too, and written anew as [`API_VERSION`].
const API_VERSION_ALPHA: &str = "kubelet.config.k8s.io/v1alpha1";
const INTENT: &str = "ImagePullIntent";
const PULLED: &str = "ImagePulledRecord";
/// Upstream: `cacheFilesSHA256Prefix`.
const FILE_PREFIX: &str = "sha256-";
const TEMPORARY_SUFFIX: &str = ".tmp";

/// Why a record cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("{path:?}: {source}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path:?}: {source}")]
    Json {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{path:?}: is {api_version} {kind}, expected {expected}")]
    Kind {
        path: PathBuf,
        api_version: String,
        kind: String,
        expected: &'static str,
    },
}

/// A pull that was begun and of which nothing more is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ImagePullIntent {
    kind: String,
    api_version: String,
    image: String,
}

/// An image the kubelet pulled, and what opened it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImagePulledRecord {
    kind: String,
    api_version: String,
    /// Whole seconds on disk.
    #[serde(default)]
    pub last_updated_time: Option<Time>,
    /// The image's id.
    pub image_ref: String,
    /// By the name in the pod, without tag and digest. A name that is missing was never opened.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub credential_mapping: BTreeMap<String, ImagePullCredentials>,
}

/// What opened an image under one name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImagePullCredentials {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kubernetes_secrets: Vec<ImagePullSecret>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kubernetes_service_accounts: Vec<ImagePullServiceAccount>,
    /// Anonymous, or by a credential of the node: every pod may use it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub node_pods_accessible: bool,
}

/// A pull secret and the hash of the credential in it that was used.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImagePullSecret {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    /// Hex SHA-256; empty: unknown, equal to none.
    pub credential_hash: String,
}

impl ImagePullSecret {
    /// Whether both are the same object of the API.
    pub fn same_object(&self, other: &Self) -> bool {
        self.uid == other.uid && self.namespace == other.namespace && self.name == other.name
    }
}

/// A service account whose token a credential provider took.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImagePullServiceAccount {
    pub uid: String,
    pub namespace: String,
    pub name: String,
}

impl ImagePulledRecord {
    pub fn new(image_ref: &str) -> Self {
        Self {
            kind: PULLED.to_owned(),
            api_version: API_VERSION.to_owned(),
            last_updated_time: None,
            image_ref: image_ref.to_owned(),
            credential_mapping: BTreeMap::new(),
        }
    }

    /// Adds what opened the image under `name`; answers whether anything is new.
    pub fn merge(&mut self, name: &str, new: &ImagePullCredentials) -> bool {
        let nothing = !new.node_pods_accessible
            && new.kubernetes_secrets.is_empty()
            && new.kubernetes_service_accounts.is_empty();
        if nothing {
            return false;
        }
        let Some(known) = self.credential_mapping.get_mut(name) else {
            self.credential_mapping.insert(name.to_owned(), new.clone());
            return true;
        };
        if known.node_pods_accessible {
            return false;
        }
        if new.node_pods_accessible {
            *known = ImagePullCredentials {
                node_pods_accessible: true,
                ..ImagePullCredentials::default()
            };
            return true;
        }
        let before = known.clone();
        for secret in &new.kubernetes_secrets {
            known.kubernetes_secrets.retain(|s| !s.same_object(secret));
            known.kubernetes_secrets.push(secret.clone());
        }
        known
            .kubernetes_secrets
            .sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
        for account in &new.kubernetes_service_accounts {
            if !known.kubernetes_service_accounts.contains(account) {
                known.kubernetes_service_accounts.push(account.clone());
            }
        }
        known
            .kubernetes_service_accounts
            .sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
        *known != before
    }
}

/// The records on disk. The kubelet is their only writer.
pub struct PullRecords {
    pulling: PathBuf,
    pulled: PathBuf,
    /// Every intent; there are no more than pulls under way and such as a crash left.
    intents: BTreeSet<String>,
    cache: BTreeMap<String, ImagePulledRecord>,
    /// What `cache` may hold.
    limit: usize,
    /// The cache has all there is; otherwise the disk is asked for what it has not.
    complete: bool,
}

fn file_name(text: &str) -> String {
    let mut name = FILE_PREFIX.to_owned();
    for byte in Sha256::digest(text.as_bytes()) {
        name.push_str(&format!("{byte:02x}"));
    }
    name
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> RecordError {
    let path = path.to_owned();
    move |source| RecordError::Io { path, source }
}

fn decode<T: DeserializeOwned>(
    path: &Path,
    bytes: &[u8],
    expected: &'static str,
    kind: impl Fn(&T) -> (&str, &str),
) -> Result<T, RecordError> {
    let value: T = serde_json::from_slice(bytes).map_err(|source| RecordError::Json {
        path: path.to_owned(),
        source,
    })?;
    let (api_version, found) = kind(&value);
    if found != expected || ![API_VERSION, API_VERSION_ALPHA].contains(&api_version) {
        return Err(RecordError::Kind {
            path: path.to_owned(),
            api_version: api_version.to_owned(),
            kind: found.to_owned(),
            expected,
        });
    }
    Ok(value)
}

fn decode_intent(path: &Path, bytes: &[u8]) -> Result<ImagePullIntent, RecordError> {
    decode(path, bytes, INTENT, |i: &ImagePullIntent| {
        (&i.api_version, &i.kind)
    })
}

fn decode_pulled(path: &Path, bytes: &[u8]) -> Result<ImagePulledRecord, RecordError> {
    decode(path, bytes, PULLED, |r: &ImagePulledRecord| {
        (&r.api_version, &r.kind)
    })
}

/// The directory's record files.
fn record_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut out = vec![];
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(FILE_PREFIX)
            && !name.ends_with(TEMPORARY_SUFFIX)
            && entry.file_type()?.is_file()
        {
            out.push(entry.path());
        }
    }
    Ok(out)
}

fn remove(path: &Path) -> Result<(), RecordError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_at(path)(error)),
        _ => Ok(()),
    }
}

impl PullRecords {
    /// Makes the directories and reads what is there. `limit`: records kept in memory.
    ///
    /// # Errors
    /// The directories cannot be made or listed. A record that cannot be read is warned about and left.
    pub fn open(root: &Path, limit: usize) -> Result<Self, RecordError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let base = root.join("image_manager");
        let mut records = Self {
            pulling: base.join("pulling"),
            pulled: base.join("pulled"),
            intents: BTreeSet::new(),
            cache: BTreeMap::new(),
            limit: limit.max(1),
            complete: true,
        };
        for dir in [&records.pulling, &records.pulled] {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(io_at(dir))?;
        }
        for path in record_files(&records.pulling).map_err(io_at(&records.pulling))? {
            match std::fs::read(&path)
                .map_err(io_at(&path))
                .and_then(|bytes| decode_intent(&path, &bytes))
            {
                Ok(intent) => records.adopt_intent(&intent)?,
                Err(error) => tracing::warn!(%error, "image pull intent is unreadable"),
            }
        }
        for path in record_files(&records.pulled).map_err(io_at(&records.pulled))? {
            match std::fs::read(&path)
                .map_err(io_at(&path))
                .and_then(|bytes| decode_pulled(&path, &bytes))
            {
                Ok(record) if record.api_version == API_VERSION => records.remember(record),
                Ok(mut record) => {
                    record.api_version = API_VERSION.to_owned();
                    records.write_pulled(record)?;
                }
                Err(error) => {
                    tracing::warn!(%error, "image pulled record is unreadable: credentials are asked for anew");
                    records.complete = false;
                }
            }
        }
        records.measure();
        Ok(records)
    }

    fn adopt_intent(&mut self, intent: &ImagePullIntent) -> Result<(), RecordError> {
        if intent.api_version != API_VERSION {
            return self.write_intent(&intent.image);
        }
        self.intents.insert(intent.image.clone());
        Ok(())
    }

    fn remember(&mut self, record: ImagePulledRecord) {
        if self.cache.len() >= self.limit && !self.cache.contains_key(&record.image_ref) {
            self.cache.pop_first();
            self.complete = false;
        }
        self.cache.insert(record.image_ref.clone(), record);
    }

    /// The images whose pull was begun, as the pods named them.
    pub fn intents(&self) -> &BTreeSet<String> {
        &self.intents
    }

    /// Notes that a pull begins.
    ///
    /// # Errors
    /// The disk failed.
    pub fn write_intent(&mut self, image: &str) -> Result<(), RecordError> {
        let intent = ImagePullIntent {
            kind: INTENT.to_owned(),
            api_version: API_VERSION.to_owned(),
            image: image.to_owned(),
        };
        write(&self.pulling.join(file_name(image)), &intent)?;
        self.intents.insert(image.to_owned());
        self.measure();
        Ok(())
    }

    /// # Errors
    /// The disk failed; the intent stands.
    pub fn delete_intent(&mut self, image: &str) -> Result<(), RecordError> {
        remove(&self.pulling.join(file_name(image)))?;
        self.intents.remove(image);
        self.measure();
        Ok(())
    }

    /// The record of an image id. `None`: never pulled by the kubelet.
    ///
    /// # Errors
    /// There is a record, and it cannot be read.
    pub fn pulled(&self, image_ref: &str) -> Result<Option<ImagePulledRecord>, RecordError> {
        if let Some(record) = self.cache.get(image_ref) {
            return Ok(Some(record.clone()));
        }
        if self.complete {
            return Ok(None);
        }
        let path = self.pulled.join(file_name(image_ref));
        match std::fs::read(&path) {
            Ok(bytes) => {
                let record = decode_pulled(&path, &bytes)?;
                Ok((record.image_ref == image_ref).then_some(record))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_at(&path)(error)),
        }
    }

    /// # Errors
    /// The disk failed; the old record stands.
    pub fn write_pulled(&mut self, record: ImagePulledRecord) -> Result<(), RecordError> {
        write(&self.pulled.join(file_name(&record.image_ref)), &record)?;
        self.remember(record);
        self.measure();
        Ok(())
    }

    /// # Errors
    /// The disk failed; the record stands.
    pub fn delete_pulled(&mut self, image_ref: &str) -> Result<(), RecordError> {
        remove(&self.pulled.join(file_name(image_ref)))?;
        self.cache.remove(image_ref);
        self.measure();
        Ok(())
    }

    /// Every readable record, of the disk if memory has not all.
    pub fn all_pulled(&self) -> Vec<ImagePulledRecord> {
        if self.complete {
            return self.cache.values().cloned().collect();
        }
        let files = record_files(&self.pulled).unwrap_or_else(|error| {
            tracing::warn!(path = %self.pulled.display(), %error, "cannot list image pulled records");
            vec![]
        });
        files
            .iter()
            .filter_map(|path| decode_pulled(path, &std::fs::read(path).ok()?).ok())
            .collect()
    }

    fn measure(&self) {
        let count = |dir: &Path| {
            record_files(dir).map_or(0, |f| i64::try_from(f.len()).unwrap_or(i64::MAX))
        };
        let percent = |n: usize| i64::try_from(n * 100 / self.limit).unwrap_or(i64::MAX);
        metrics::PULL_INTENTS_ON_DISK.set(self.intents.len().try_into().unwrap_or(i64::MAX));
        metrics::PULLED_RECORDS_ON_DISK.set(if self.complete {
            self.cache.len().try_into().unwrap_or(i64::MAX)
        } else {
            count(&self.pulled)
        });
        metrics::PULL_INTENTS_IN_MEMORY.set(percent(self.intents.len()));
        metrics::PULLED_RECORDS_IN_MEMORY.set(percent(self.cache.len()));
    }
}

fn write(path: &Path, value: &impl Serialize) -> Result<(), RecordError> {
    let mut json = serde_json::to_vec(value).map_err(|source| RecordError::Json {
        path: path.to_owned(),
        source,
    })?;
    json.push(b'\n');
    atomic_file::write(path, &json).map_err(io_at(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(name: &str, hash: &str) -> ImagePullSecret {
        ImagePullSecret {
            uid: format!("{name}-uid"),
            namespace: "ns".into(),
            name: name.into(),
            credential_hash: hash.into(),
        }
    }

    #[test]
    fn files_are_upstreams() {
        let dir = tempfile::tempdir().unwrap();
        let mut records = PullRecords::open(dir.path(), 10).unwrap();
        records.write_intent("secretorg/myimage:customtag").unwrap();
        let mut record = ImagePulledRecord::new("testimageref");
        record.last_updated_time = Some(Time("2024-10-21T12:26:40Z".parse().unwrap()));
        record.merge(
            "docker.io/testing/test",
            &ImagePullCredentials {
                kubernetes_secrets: vec![secret("pull", "h")],
                ..ImagePullCredentials::default()
            },
        );
        records.write_pulled(record.clone()).unwrap();
        // sha256 of the names, by sha256sum.
        let read = |path: &str| std::fs::read_to_string(dir.path().join(path)).unwrap();
        assert_eq!(
            read(
                "image_manager/pulling/sha256-5f3ca9e4d82e32203c2fafb410dfae9c8047bc6ebe57d642fe264d479e152955"
            ),
            "{\"kind\":\"ImagePullIntent\",\"apiVersion\":\"kubelet.config.k8s.io/v1beta1\",\"image\":\"secretorg/myimage:customtag\"}\n"
        );
        assert_eq!(
            read(
                "image_manager/pulled/sha256-b3c0cc4278800b03a308ceb2611161430df571ca733122f0a40ac8b9792a9064"
            ),
            "{\"kind\":\"ImagePulledRecord\",\"apiVersion\":\"kubelet.config.k8s.io/v1beta1\",\"lastUpdatedTime\":\"2024-10-21T12:26:40Z\",\"imageRef\":\"testimageref\",\"credentialMapping\":{\"docker.io/testing/test\":{\"kubernetesSecrets\":[{\"uid\":\"pull-uid\",\"namespace\":\"ns\",\"name\":\"pull\",\"credentialHash\":\"h\"}]}}}\n"
        );
        let mode = |path: &str| {
            use std::os::unix::fs::PermissionsExt as _;
            let meta = std::fs::metadata(dir.path().join(path)).unwrap();
            meta.permissions().mode() & 0o777
        };
        assert_eq!(mode("image_manager/pulled"), 0o700);

        // A new process finds them.
        let again = PullRecords::open(dir.path(), 10).unwrap();
        assert_eq!(again.pulled("testimageref").unwrap(), Some(record));
        assert!(again.intents().contains("secretorg/myimage:customtag"));
    }

    #[test]
    fn old_versions_and_torn_files() {
        let dir = tempfile::tempdir().unwrap();
        let pulled = dir.path().join("image_manager/pulled");
        std::fs::create_dir_all(&pulled).unwrap();
        let old = |id: &str| {
            format!(
                "{{\"kind\":\"ImagePulledRecord\",\"apiVersion\":\"kubelet.config.k8s.io/v1alpha1\",\"lastUpdatedTime\":null,\"imageRef\":\"{id}\"}}"
            )
        };
        std::fs::write(pulled.join(file_name("old")), old("old")).unwrap();
        std::fs::write(pulled.join(file_name("torn")), "{\"kind\":").unwrap();
        std::fs::write(pulled.join("sha256-x.tmp"), "").unwrap();
        let records = PullRecords::open(dir.path(), 10).unwrap();
        assert!(records.pulled("old").unwrap().is_some());
        let text = std::fs::read_to_string(pulled.join(file_name("old"))).unwrap();
        assert!(text.contains("v1beta1"));
        // Not the same as no record: that would make it everybody's.
        assert!(records.pulled("torn").is_err());
        assert!(records.pulled("none").unwrap().is_none());
    }

    #[test]
    fn memory_is_bounded_and_the_disk_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let mut records = PullRecords::open(dir.path(), 2).unwrap();
        for id in ["a", "b", "c"] {
            records.write_pulled(ImagePulledRecord::new(id)).unwrap();
        }
        assert_eq!(records.cache.len(), 2);
        assert!(records.pulled("a").unwrap().is_some());
        assert_eq!(records.all_pulled().len(), 3);
        records.delete_pulled("a").unwrap();
        assert!(records.pulled("a").unwrap().is_none());
    }

    #[test]
    fn merging() {
        let of = |secrets: &[ImagePullSecret]| ImagePullCredentials {
            kubernetes_secrets: secrets.to_vec(),
            ..ImagePullCredentials::default()
        };
        let mut record = ImagePulledRecord::new("i");
        assert!(!record.merge("n", &ImagePullCredentials::default()));
        assert!(record.merge("n", &of(&[secret("b", "1")])));
        assert!(!record.merge("n", &of(&[secret("b", "1")])));
        assert!(record.merge("n", &of(&[secret("b", "2")])));
        assert!(record.merge("n", &of(&[secret("a", "3")])));
        assert_eq!(
            record.credential_mapping["n"].kubernetes_secrets,
            [secret("a", "3"), secret("b", "2")]
        );
        let all = ImagePullCredentials {
            node_pods_accessible: true,
            ..ImagePullCredentials::default()
        };
        assert!(record.merge("n", &all));
        assert_eq!(record.credential_mapping["n"], all);
        assert!(!record.merge("n", &of(&[secret("c", "4")])));
        assert!(record.merge("m", &of(&[secret("c", "4")])));
    }
}
