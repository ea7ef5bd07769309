//! Ids of the node for pods with `hostUsers: false`.
//!
//! Owns: a block of ids for each pod, no two alike, remembered on disk as long as the pod lives. Upstream:
//! `pkg/kubelet/userns`, `getKubeletMappings`, v1.36.
//!
//! **Invariant:** a block that a sandbox of the runtime uses is never given to another pod, whatever became of the
//! pod's record.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use k8s_openapi::api::core::v1::Pod;
use runtime::api::{IdMapping, UserNamespace};
use serde::{Deserialize, Serialize};

use crate::paths::Paths;
use crate::pod;

/// Blocks are whole multiples of this; upstream: `userNsUnitLength`.
const UNIT_LENGTH: u32 = 65_536;
/// Whose subordinate ids the pods get, if the node has such a user; upstream: `kubeletUser`.
const KUBELET_USER: &str = "kubelet";
/// The file in the pod's directory; upstream: `mappingsFile`.
const MAPPINGS_FILE: &str = "userns";

/// Why a pod gets no ids, or the node cannot give any.
#[derive(Debug, thiserror::Error)]
pub enum UserNamespaceError {
    #[error("create user namespace: could not find an empty slot to allocate a user namespace")]
    Full,
    #[error("{}", unsupported(.0))]
    Unsupported(String),
    #[error("kubelet user namespace length {0} is not a multiple of {UNIT_LENGTH}")]
    Length(u32),
    #[error("kubelet user assigned ID {first} is not a multiple of {length}")]
    FirstNotAligned { first: u32, length: u32 },
    #[error("kubelet user assigned ID {first} must be greater or equal to {length}")]
    FirstTooLow { first: u32, length: u32 },
    #[error("kubelet user assigned IDs length {total} is not a multiple of {length}")]
    TotalNotAligned { total: u32, length: u32 },
    #[error("kubelet user assigned IDs are not enough to support {0} pods")]
    TooFew(u32),
    #[error("kubelet mappings: {what} of user {KUBELET_USER:?}: {reason}")]
    SubIds { what: &'static str, reason: String },
    #[error("{path}: {source}")]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

fn unsupported(handler: &str) -> String {
    if handler.is_empty() {
        "can't set `spec.hostUsers: false`, runtime does not support user namespaces".to_owned()
    } else {
        format!(
            "can't set `spec.hostUsers: false`, RuntimeClass handler {handler:?} does not support user namespaces"
        )
    }
}

/// The node's ids for all pods: `total` of them from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KubeletMappings {
    pub first: u32,
    pub total: u32,
}

impl KubeletMappings {
    /// Every id but the first block, which is the node's own. Upstream's default.
    pub fn all_but(ids_per_pod: u32) -> Self {
        Self {
            first: ids_per_pod,
            total: u32::MAX - ids_per_pod + 1,
        }
    }

    /// The subordinate ids of the user `kubelet`, asked of `getsubids`; all ids where there is no such user or program.
    /// Blocks: ask it off the async threads.
    ///
    /// # Errors
    /// There is such a user, and its ids cannot be told, or differ between users and groups.
    pub fn of_this_node(ids_per_pod: u32) -> Result<Self, UserNamespaceError> {
        match nix::unistd::User::from_name(KUBELET_USER) {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(Self::all_but(ids_per_pod)),
            Err(error) => return Err(sub_ids("look-up", error.to_string())),
        }
        let program = std::env::var_os("PATH").and_then(|path| {
            std::env::split_paths(&path)
                .map(|directory| directory.join("getsubids"))
                .find(|program| program.is_file())
        });
        let Some(program) = program else {
            tracing::info!("getsubids is not installed: user namespaces get the default mappings");
            return Ok(Self::all_but(ids_per_pod));
        };
        let users = get_sub_ids(&program, "additional uids", &[KUBELET_USER])?;
        let groups = get_sub_ids(&program, "additional gids", &["-g", KUBELET_USER])?;
        if users != groups {
            return Err(sub_ids(
                "mismatched subuids and subgids",
                format!("{:?} and {:?}", users.trim(), groups.trim()),
            ));
        }
        parse_sub_ids(&users)
    }

    /// Blocks of `length` ids that a pod may get: (number of the first, count).
    fn slots(&self, length: u32, max_pods: u32) -> Result<(u32, u32), UserNamespaceError> {
        let Self { first, total } = *self;
        if length == 0 || !length.is_multiple_of(UNIT_LENGTH) {
            return Err(UserNamespaceError::Length(length));
        }
        if !first.is_multiple_of(length) {
            return Err(UserNamespaceError::FirstNotAligned { first, length });
        }
        if first < length {
            return Err(UserNamespaceError::FirstTooLow { first, length });
        }
        if !total.is_multiple_of(length) {
            return Err(UserNamespaceError::TotalNotAligned { total, length });
        }
        if total / length < max_pods {
            return Err(UserNamespaceError::TooFew(max_pods));
        }
        Ok((first / length, total / length))
    }
}

fn sub_ids(what: &'static str, reason: impl Into<String>) -> UserNamespaceError {
    UserNamespaceError::SubIds {
        what,
        reason: reason.into(),
    }
}

fn get_sub_ids(
    program: &Path,
    what: &'static str,
    args: &[&str],
) -> Result<String, UserNamespaceError> {
    let output = Command::new(program)
        .args(args)
        .output()
        .map_err(|error| sub_ids(what, format!("{}: {error}", program.display())))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(sub_ids(
            what,
            format!("{}: {}: {text}", program.display(), output.status),
        ));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// One line: `0: kubelet 65536 2147483648`.
fn parse_sub_ids(text: &str) -> Result<KubeletMappings, UserNamespaceError> {
    let bad = |reason: &str| sub_ids("additional ids", format!("{text:?}: {reason}"));
    let mut lines = text.trim_matches('\n').lines();
    let (Some(line), None) = (lines.next(), lines.next()) else {
        return Err(bad("it must contain only one line"));
    };
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, _, first, total] = fields.as_slice() else {
        return Err(bad("it must have four fields"));
    };
    let number = |text: &str| text.parse::<u32>().map_err(|error| bad(&error.to_string()));
    Ok(KubeletMappings {
        first: number(first)?,
        total: number(total)?,
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    host_id: u32,
    container_id: u32,
    length: u32,
}

/// The file in the pod's directory, as upstream writes it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    uid_mappings: Vec<Mapping>,
    gid_mappings: Vec<Mapping>,
}

/// Ids of one pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Block {
    first: u32,
    length: u32,
}

impl Block {
    fn overlaps(&self, other: &Self) -> bool {
        let end = |block: &Self| u64::from(block.first) + u64::from(block.length);
        u64::from(self.first) < end(other) && u64::from(other.first) < end(self)
    }

    /// The kernel has no id 4294967295, and refuses a mapping that ends there.
    fn is_usable(&self) -> bool {
        self.length > 0
            && self.first >= UNIT_LENGTH
            && self.first.checked_add(self.length).is_some()
    }

    fn of(maps: &[IdMapping]) -> Option<Self> {
        maps.iter()
            .find(|map| map.container_id == 0)
            .map(|map| Self {
                first: map.host_id,
                length: map.length,
            })
    }
}

/// What a record says, if it is one of ours.
fn parse_record(text: &[u8]) -> Result<Block, String> {
    let record: Record = serde_json::from_slice(text)
        .map_err(|error| format!("invalid user namespace mappings file: {error}"))?;
    let ([uids], [gids]) = (
        record.uid_mappings.as_slice(),
        record.gid_mappings.as_slice(),
    ) else {
        return Err(
            "invalid user namespace configuration: no more than one mapping allowed".into(),
        );
    };
    if uids != gids {
        return Err(
            "invalid user namespace configuration: GID and UID mapping should be identical".into(),
        );
    }
    if uids.container_id != 0 {
        return Err("invalid user namespace configuration: UID 0 must be mapped".into());
    }
    let block = Block {
        first: uids.host_id,
        length: uids.length,
    };
    if block.is_usable() {
        Ok(block)
    } else {
        Err(format!("id {} is out of range", block.first))
    }
}

/// Shared by the workers.
#[derive(Debug)]
pub struct UserNamespaceManager {
    paths: Paths,
    ids_per_pod: u32,
    /// The first block's number, and how many there are.
    slots: (u32, u32),
    /// Pod UID -> its block, and others that are held for it.
    used: Mutex<HashMap<String, Vec<Block>>>,
}

impl UserNamespaceManager {
    /// Reads the records of the pods on disk. One that is torn is named in the log; what its pod uses is learnt from
    /// the runtime, by [`reserve`](Self::reserve).
    ///
    /// # Errors
    /// The ids do not suffice, or do not begin where a block can.
    pub fn load(
        paths: Paths,
        mappings: KubeletMappings,
        ids_per_pod: u32,
        max_pods: u32,
    ) -> Result<Self, UserNamespaceError> {
        let slots = mappings.slots(ids_per_pod, max_pods)?;
        let mut used = HashMap::new();
        for entry in std::fs::read_dir(paths.pods())
            .into_iter()
            .flatten()
            .flatten()
        {
            let path = entry.path().join(MAPPINGS_FILE);
            let Ok(text) = std::fs::read(&path) else {
                continue;
            };
            match parse_record(&text) {
                Ok(block) => {
                    used.insert(
                        entry.file_name().to_string_lossy().into_owned(),
                        vec![block],
                    );
                }
                Err(reason) => {
                    tracing::warn!(path = %path.display(), reason, "a user namespace's record is unreadable; its pod keeps the ids of its sandbox");
                }
            }
        }
        Ok(Self {
            paths,
            ids_per_pod,
            slots,
            used: Mutex::new(used),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Vec<Block>>> {
        self.used.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// A sandbox of the pod has these ids: nobody else gets them while the pod lives. To be called for every sandbox
    /// that the runtime knows, before the first pod starts.
    pub fn reserve(&self, uid: &str, user: &UserNamespace) {
        let mut used = self.lock();
        let blocks = used.entry(uid.to_owned()).or_default();
        for block in [Block::of(&user.uids), Block::of(&user.gids)]
            .into_iter()
            .flatten()
        {
            if !blocks.contains(&block) {
                blocks.push(block);
            }
        }
    }

    /// The mapping of the pod, made if need be; `None` for a pod that uses the node's ids. `handler` is the
    /// RuntimeClass's, `supported` whether the runtime can do it.
    ///
    /// # Errors
    /// No free block, or the record cannot be written.
    pub fn get_or_create(
        &self,
        pod: &Pod,
        handler: &str,
        supported: bool,
    ) -> Result<Option<UserNamespace>, UserNamespaceError> {
        if pod.spec.as_ref().and_then(|s| s.host_users).unwrap_or(true) {
            return Ok(None);
        }
        if !supported {
            return Err(UserNamespaceError::Unsupported(handler.to_owned()));
        }
        let uid = pod::uid(pod);
        let mut used = self.lock();
        let known = used.get(uid).and_then(|blocks| blocks.first()).copied();
        let block = match known {
            Some(block) => {
                // The record was torn, or lost with the pod's directory.
                let path = self.paths.pod(uid).join(MAPPINGS_FILE);
                let written =
                    std::fs::read(&path).is_ok_and(|text| parse_record(&text) == Ok(block));
                if !written {
                    self.write(uid, block)?;
                }
                block
            }
            None => {
                let block = self.free_block(&used).ok_or(UserNamespaceError::Full)?;
                self.write(uid, block)?;
                used.insert(uid.to_owned(), vec![block]);
                block
            }
        };
        let mapping = IdMapping {
            host_id: block.first,
            container_id: 0,
            length: block.length,
        };
        Ok(Some(UserNamespace {
            uids: vec![mapping.clone()],
            gids: vec![mapping],
        }))
    }

    /// As upstream, the search begins anywhere: ids of a pod that just ended are not the next pod's.
    fn free_block(&self, used: &HashMap<String, Vec<Block>>) -> Option<Block> {
        let (first, count) = self.slots;
        let start = rand::random::<u32>() % count;
        (0..count)
            .map(|offset| first + (start + offset) % count)
            .filter_map(|slot| {
                Some(Block {
                    first: slot.checked_mul(self.ids_per_pod)?,
                    length: self.ids_per_pod,
                })
            })
            .find(|block| {
                block.is_usable() && !used.values().flatten().any(|other| other.overlaps(block))
            })
    }

    fn write(&self, uid: &str, block: Block) -> Result<(), UserNamespaceError> {
        let dir = self.paths.pod(uid);
        let path = dir.join(MAPPINGS_FILE);
        let fail = |source| UserNamespaceError::Io {
            path: path.clone(),
            source,
        };
        std::fs::create_dir_all(&dir).map_err(fail)?;
        let mapping = vec![Mapping {
            host_id: block.first,
            container_id: 0,
            length: block.length,
        }];
        let record = Record {
            uid_mappings: mapping.clone(),
            gid_mappings: mapping,
        };
        let text = serde_json::to_vec(&record).map_err(|e| fail(e.into()))?;
        host::atomic_file::write(&path, &text).map_err(fail)
    }

    /// The pod is gone; its ids may be used again.
    pub fn release(&self, uid: &str) {
        self.lock().remove(uid);
        // Gone with the pod's directory anyway.
        let _ = std::fs::remove_file(self.paths.pod(uid).join(MAPPINGS_FILE));
    }

    /// Frees the ids of pods that nothing is left of: not among `known` (UIDs), and without a directory.
    pub fn release_orphans(&self, known: &dyn Fn(&str) -> bool) {
        self.lock()
            .retain(|uid, _| known(uid) || self.paths.pod(uid).exists());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn pod(uid: &str) -> Pod {
        let mut pod = Pod {
            spec: Some(k8s_openapi::api::core::v1::PodSpec {
                host_users: Some(false),
                ..Default::default()
            }),
            ..Default::default()
        };
        pod.metadata.uid = Some(uid.to_owned());
        pod
    }

    fn open(root: &Path, first: u32, total: u32, max_pods: u32) -> UserNamespaceManager {
        let paths = Paths::new(root.to_owned(), root.join("logs"));
        let mappings = KubeletMappings { first, total };
        UserNamespaceManager::load(paths, mappings, UNIT_LENGTH, max_pods).unwrap()
    }

    fn first(manager: &UserNamespaceManager, uid: &str) -> u32 {
        let user = manager.get_or_create(&pod(uid), "", true).unwrap().unwrap();
        assert_eq!(user.uids, user.gids);
        assert_eq!(
            (user.uids[0].container_id, user.uids[0].length),
            (0, UNIT_LENGTH)
        );
        user.uids[0].host_id
    }

    #[test]
    fn every_pod_has_a_block_of_its_own_and_keeps_it() {
        let root = tempfile::tempdir().unwrap();
        let manager = open(root.path(), UNIT_LENGTH, 3 * UNIT_LENGTH, 3);
        let blocks: HashSet<u32> = ["a", "b", "c"].map(|uid| first(&manager, uid)).into();
        assert_eq!(blocks, [1, 2, 3].map(|slot| slot * UNIT_LENGTH).into());
        let error = manager.get_or_create(&pod("d"), "", true).unwrap_err();
        assert!(matches!(error, UserNamespaceError::Full), "{error}");

        let again = open(root.path(), UNIT_LENGTH, 3 * UNIT_LENGTH, 3);
        assert_eq!(first(&again, "b"), first(&manager, "b"));
        let freed = first(&again, "c");
        again.release("c");
        assert_eq!(first(&again, "e"), freed);
    }

    #[test]
    fn no_block_ends_at_the_last_id() {
        let root = tempfile::tempdir().unwrap();
        let last = u32::MAX - UNIT_LENGTH + 1;
        let manager = open(root.path(), last - UNIT_LENGTH, 2 * UNIT_LENGTH, 1);
        assert_eq!(first(&manager, "a"), last - UNIT_LENGTH);
        assert!(manager.get_or_create(&pod("b"), "", true).is_err());
        assert_eq!(
            KubeletMappings::all_but(UNIT_LENGTH),
            KubeletMappings {
                first: UNIT_LENGTH,
                total: 65_535 * UNIT_LENGTH
            }
        );
    }

    #[test]
    fn a_torn_record_frees_no_ids() {
        let root = tempfile::tempdir().unwrap();
        let manager = open(root.path(), UNIT_LENGTH, 2 * UNIT_LENGTH, 2);
        let block = first(&manager, "a");
        let user = manager.get_or_create(&pod("a"), "", true).unwrap().unwrap();
        let record = root.path().join("pods/a/userns");
        for torn in [
            "",
            "{\"uidMappings\":[{\"hostId\":6",
            "[]",
            "{\"uidMappings\":[],\"gidMappings\":[]}",
        ] {
            std::fs::write(&record, torn).unwrap();
            let again = open(root.path(), UNIT_LENGTH, 2 * UNIT_LENGTH, 2);
            again.reserve("a", &user);
            assert_ne!(first(&again, "b"), block, "{torn:?}");
            assert!(
                again.get_or_create(&pod("c"), "", true).is_err(),
                "{torn:?}"
            );
            assert_eq!(first(&again, "a"), block, "{torn:?}");
            let whole = std::fs::read(&record).unwrap();
            assert_eq!(
                parse_record(&whole).unwrap().first,
                block,
                "it is written again"
            );
            again.release("b");
        }
    }

    #[test]
    fn blocks_of_another_length_are_kept_clear_of() {
        let root = tempfile::tempdir().unwrap();
        let manager = open(root.path(), UNIT_LENGTH, 2 * UNIT_LENGTH, 1);
        let wide = IdMapping {
            host_id: 0x2_0000,
            container_id: 0,
            length: 0x2_0000,
        };
        let user = UserNamespace {
            uids: vec![wide.clone()],
            gids: vec![wide],
        };
        manager.reserve("wide", &user);
        assert_eq!(first(&manager, "a"), UNIT_LENGTH);
        assert!(manager.get_or_create(&pod("b"), "", true).is_err());
        manager.release_orphans(&|uid| uid == "a");
        assert_eq!(first(&manager, "b"), 2 * UNIT_LENGTH);
    }

    #[test]
    fn the_nodes_ids_are_checked_as_upstream_does() {
        let check = |first, total, length, pods| {
            KubeletMappings { first, total }
                .slots(length, pods)
                .map_err(|error| error.to_string())
        };
        assert_eq!(check(131_072, 262_144, 65_536, 4), Ok((2, 4)));
        for (first, total, length, pods, expected) in [
            (
                65_536,
                65_536,
                1000,
                1,
                "kubelet user namespace length 1000 is not a multiple of 65536",
            ),
            (
                100_000,
                65_536,
                65_536,
                1,
                "kubelet user assigned ID 100000 is not a multiple of 65536",
            ),
            (
                0,
                65_536,
                65_536,
                1,
                "kubelet user assigned ID 0 must be greater or equal to 65536",
            ),
            (
                65_536,
                65_537,
                65_536,
                1,
                "kubelet user assigned IDs length 65537 is not a multiple of 65536",
            ),
            (
                65_536,
                65_536,
                65_536,
                2,
                "kubelet user assigned IDs are not enough to support 2 pods",
            ),
        ] {
            assert_eq!(check(first, total, length, pods).unwrap_err(), expected);
        }
    }

    #[test]
    fn getsubids_output_is_one_line() {
        assert_eq!(
            parse_sub_ids("0: kubelet 65536 2147483648\n").unwrap(),
            KubeletMappings {
                first: 65_536,
                total: 2_147_483_648
            }
        );
        for bad in [
            "",
            "0: kubelet 1\n",
            "0: kubelet a 1\n",
            "0: k 1 1\n1: k 2 2\n",
            "0: k 1 4294967296\n",
        ] {
            assert!(parse_sub_ids(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_runtime_without_user_namespaces_is_named() {
        let root = tempfile::tempdir().unwrap();
        let manager = open(root.path(), UNIT_LENGTH, UNIT_LENGTH, 1);
        let say = |handler| {
            manager
                .get_or_create(&pod("a"), handler, false)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            say(""),
            "can't set `spec.hostUsers: false`, runtime does not support user namespaces"
        );
        assert_eq!(
            say("kata"),
            "can't set `spec.hostUsers: false`, RuntimeClass handler \"kata\" does not support user namespaces"
        );
        assert_eq!(
            manager.get_or_create(&Pod::default(), "", false).unwrap(),
            None
        );
    }
}
