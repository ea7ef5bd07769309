//! What was granted, on disk: a resize that came while the kubelet was down is told from one that was granted before.
//!
//! Owns: one file below the kubelet's root. Upstream keeps `allocated_pods_state` there, whose checksum depends on Go's
//! way to print; another name, so that neither trips over the other's file. Upstream: `pkg/kubelet/allocation/state`, v1.36.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::allocation::Granted;

/// Below the kubelet's root directory.
pub const FILE: &str = "pod_allocations.json";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct State {
    version: u32,
    /// By pod UID.
    pods: HashMap<String, Granted>,
}

/// What the file holds; nothing if there is none, or if it cannot be understood (the API's statuses tell it then).
pub fn load(path: &Path) -> HashMap<String, Granted> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return HashMap::new(),
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "cannot read what pods were granted, their statuses will tell");
            return HashMap::new();
        }
    };
    match serde_json::from_slice::<State>(&text) {
        Ok(state) if state.version == VERSION => state.pods,
        Ok(state) => {
            tracing::error!(path = %path.display(), version = state.version, "another version wrote what pods were granted, their statuses will tell");
            HashMap::new()
        }
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "cannot understand what pods were granted, their statuses will tell");
            HashMap::new()
        }
    }
}

/// # Errors
/// I/O; the old file stands.
pub fn store(path: &Path, pods: HashMap<String, Granted>) -> std::io::Result<()> {
    let state = State {
        version: VERSION,
        pods,
    };
    let text = serde_json::to_vec(&state).map_err(std::io::Error::other)?;
    host::atomic_file::write(path, &text)
}
