//! What the driver remembers: every volume, snapshot and group, in one file.
//!
//! **Invariant:** the file is whole at any moment: a change is written beside it, synced and renamed, and only then seen by others.
//!
//! **Invariant:** data of a volume or snapshot lies on disk only while the file names it. It is entered as [`Phase::Creating`] before
//! its data is made and marked [`Phase::Deleting`] before its data goes; what is in either phase when the driver starts is removed.
//!
//! ```text
//!  (none) ──enter──> Creating ──data made──> Ready ──mark──> Deleting ──data gone──> (none)
//!                       └──────────failed, or found at start──────────────┘
//! ```

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::{fs, io};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The form of the file; another one is refused.
const VERSION: u32 = 1;

/// Whether an entry's data is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    Creating,
    Ready,
    Deleting,
}

/// How a volume is used: for its whole life one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// A directory.
    Mount,
    /// A file behind a loop device.
    Block,
}

/// What a volume was filled from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    Snapshot(String),
    Volume(String),
}

/// A volume was attached to this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    pub read_only: bool,
}

/// One volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    pub id: String,
    /// What the caller named it; unique.
    pub name: String,
    pub size_bytes: i64,
    pub access: Access,
    pub phase: Phase,
    /// Made by a publish, and gone with the unpublish.
    #[serde(default)]
    pub ephemeral: bool,
    /// The kind of storage its size is taken from; `None` where capacity is not counted.
    #[serde(default)]
    pub kind: Option<String>,
    #[serde(default)]
    pub source: Option<Source>,
    /// The parameters it was made with.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
    /// What was changed since by a VolumeAttributesClass.
    #[serde(default)]
    pub mutable_parameters: BTreeMap<String, String>,
    #[serde(default)]
    pub attached: Option<Attachment>,
    /// Where it is staged.
    #[serde(default)]
    pub staged: Vec<String>,
    /// Where it is published, and whether read-only.
    #[serde(default)]
    pub published: BTreeMap<String, bool>,
}

impl Volume {
    /// Attached, staged or published.
    pub fn is_used(&self) -> bool {
        self.attached.is_some() || !self.staged.is_empty() || !self.published.is_empty()
    }
}

/// A moment, as protobuf has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    pub seconds: i64,
    pub nanos: i32,
}

impl From<Moment> for prost_types::Timestamp {
    fn from(moment: Moment) -> Self {
        Self {
            seconds: moment.seconds,
            nanos: moment.nanos,
        }
    }
}

/// One snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    pub id: String,
    /// What the caller named it; unique.
    pub name: String,
    pub volume_id: String,
    pub created: Moment,
    /// The volume's size then.
    pub size_bytes: i64,
    pub access: Access,
    pub phase: Phase,
    /// The group it was taken with.
    #[serde(default)]
    pub group: Option<String>,
}

/// Snapshots taken together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    pub id: String,
    /// What the caller named it; unique.
    pub name: String,
    pub created: Moment,
    pub phase: Phase,
    /// In the order the volumes were named in.
    pub snapshots: Vec<String>,
    pub volumes: Vec<String>,
}

/// All of it, by ID.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    #[serde(default)]
    version: u32,
    #[serde(default)]
    pub volumes: BTreeMap<String, Volume>,
    #[serde(default)]
    pub snapshots: BTreeMap<String, Snapshot>,
    #[serde(default)]
    pub groups: BTreeMap<String, Group>,
}

impl State {
    pub fn volume_by_name(&self, name: &str) -> Option<&Volume> {
        self.volumes.values().find(|volume| volume.name == name)
    }

    pub fn snapshot_by_name(&self, name: &str) -> Option<&Snapshot> {
        self.snapshots
            .values()
            .find(|snapshot| snapshot.name == name)
    }

    pub fn group_by_name(&self, name: &str) -> Option<&Group> {
        self.groups.values().find(|group| group.name == name)
    }

    /// The bytes that volumes of a kind take.
    pub fn allocated(&self, kind: &str) -> i64 {
        self.volumes
            .values()
            .filter(|volume| volume.kind.as_deref() == Some(kind))
            .fold(0, |sum, volume| sum.saturating_add(volume.size_bytes))
    }

    /// How many volumes are attached.
    pub fn attached(&self) -> usize {
        self.volumes
            .values()
            .filter(|volume| volume.attached.is_some())
            .count()
    }
}

/// The file cannot be used.
#[derive(Debug, Error)]
pub enum StateError {
    #[error("read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is not a state file")]
    Parse {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{path} has version {found}, this program knows {VERSION}")]
    Version { path: PathBuf, found: u32 },
    #[error("write {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The state and its file.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    state: Mutex<State>,
}

impl StateFile {
    /// Reads the file; a missing one is an empty state.
    ///
    /// # Errors
    /// It cannot be read, or is not of this program. No retry helps.
    pub fn open(path: PathBuf) -> Result<Self, StateError> {
        let state = match fs::read(&path) {
            Ok(bytes) => {
                let state: State =
                    serde_json::from_slice(&bytes).map_err(|source| StateError::Parse {
                        path: path.clone(),
                        source,
                    })?;
                if state.version != VERSION {
                    return Err(StateError::Version {
                        path,
                        found: state.version,
                    });
                }
                state
            }
            Err(err) if err.kind() == io::ErrorKind::NotFound => State {
                version: VERSION,
                ..State::default()
            },
            Err(source) => return Err(StateError::Read { path, source }),
        };
        Ok(Self {
            path,
            state: Mutex::new(state),
        })
    }

    /// Looks at the state.
    pub fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the state: what `change` made is on disk before it is seen, and nothing is changed where `change` or the disk refuses.
    ///
    /// # Errors
    /// What `change` says, or that the file cannot be written; a retry may help.
    pub fn update<T, E: From<StateError>>(
        &self,
        change: impl FnOnce(&mut State) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = state.clone();
        let value = change(&mut next)?;
        if next != *state {
            self.write(&next)?;
            *state = next;
        }
        Ok(value)
    }

    fn write(&self, state: &State) -> Result<(), StateError> {
        let failed = |source| StateError::Write {
            path: self.path.clone(),
            source,
        };
        let bytes = serde_json::to_vec_pretty(state).map_err(|err| failed(err.into()))?;
        let half = self.path.with_extension("half");
        let mut file = fs::File::create(&half).map_err(failed)?;
        file.write_all(&bytes).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        fs::rename(&half, &self.path).map_err(failed)?;
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        fs::File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(id: &str) -> Volume {
        Volume {
            id: id.to_owned(),
            name: format!("name of {id}"),
            size_bytes: 5,
            access: Access::Mount,
            phase: Phase::Ready,
            ephemeral: false,
            kind: Some("fast".to_owned()),
            source: None,
            parameters: BTreeMap::new(),
            mutable_parameters: BTreeMap::new(),
            attached: None,
            staged: Vec::new(),
            published: BTreeMap::new(),
        }
    }

    #[test]
    fn what_was_changed_is_read_again_and_what_was_refused_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        let file = StateFile::open(path.clone()).unwrap();
        file.update::<_, StateError>(|state| {
            state.volumes.insert("a".to_owned(), volume("a"));
            Ok(())
        })
        .unwrap();
        let refused = file.update::<(), StateError>(|state| {
            state.volumes.insert("b".to_owned(), volume("b"));
            Err(StateError::Version {
                path: path.clone(),
                found: 0,
            })
        });
        assert!(refused.is_err());
        assert_eq!(file.read(|state| state.allocated("fast")), 5);
        let again = StateFile::open(path).unwrap();
        assert!(again.read(|state| state.volumes.keys().eq(["a"])));
    }

    #[test]
    fn a_torn_new_file_harms_nothing_and_a_strange_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        let file = StateFile::open(path.clone()).unwrap();
        file.update::<_, StateError>(|state| {
            state.volumes.insert("a".to_owned(), volume("a"));
            Ok(())
        })
        .unwrap();
        // A write that was cut short.
        fs::write(dir.path().join("state.half"), "{\"vol").unwrap();
        assert_eq!(
            StateFile::open(path.clone())
                .unwrap()
                .read(|state| state.volumes.len()),
            1
        );
        for strange in ["{\"vol", "{}", "{\"version\": 2}"] {
            fs::write(&path, strange).unwrap();
            assert!(StateFile::open(path.clone()).is_err(), "{strange}");
        }
    }
}
