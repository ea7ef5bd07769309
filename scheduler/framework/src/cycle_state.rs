//! [`CycleState`]: what plugins hand from one extension point to the next within one pod's scheduling cycle.
//!
//! Cloning is cheap (shared until written): preemption clones the state for each node it tries, and the runtime
//! shares one state between pods of one signature. Upstream: pkg/scheduler/framework/cycle_state.go, v1.36.

use std::any::Any;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

trait StateData: Any + Send + Sync {
    fn clone_data(&self) -> Arc<dyn StateData>;
    fn as_any(&self) -> &dyn Any;
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

impl<T: Any + Clone + Send + Sync> StateData for T {
    fn clone_data(&self) -> Arc<dyn StateData> {
        Arc::new(self.clone())
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

/// Typed values by key. By custom the key is `PluginName` or `PluginName/what`.
#[derive(Clone, Default)]
pub struct CycleState {
    data: HashMap<&'static str, Arc<dyn StateData>>,
    skip_filter: BTreeSet<&'static str>,
    skip_score: BTreeSet<&'static str>,
    skip_pre_bind: BTreeSet<&'static str>,
}

impl CycleState {
    /// An empty state.
    pub fn new() -> Self {
        Self::default()
    }

    /// Stores `value` under `key`, replacing what was there.
    pub fn write<T: Clone + Send + Sync + 'static>(&mut self, key: &'static str, value: T) {
        self.data.insert(key, Arc::new(value));
    }

    /// The value under `key`; `None` when absent or of another type.
    pub fn read<T: 'static>(&self, key: &str) -> Option<&T> {
        self.data.get(key)?.as_ref().as_any().downcast_ref()
    }

    /// The value under `key` for change; a value shared with another state is cloned first.
    pub fn read_mut<T: 'static>(&mut self, key: &str) -> Option<&mut T> {
        let entry = self.data.get_mut(key)?;
        if Arc::get_mut(entry).is_none() {
            *entry = entry.as_ref().clone_data();
        }
        Arc::get_mut(entry)?.as_any_mut().downcast_mut()
    }

    /// Forgets the value under `key`.
    pub fn delete(&mut self, key: &str) {
        self.data.remove(key);
    }

    /// Filter plugins whose PreFilter said `Skip`.
    pub fn skip_filter_plugins(&self) -> &BTreeSet<&'static str> {
        &self.skip_filter
    }

    /// Set by the runtime after PreFilter.
    pub fn set_skip_filter_plugins(&mut self, plugins: BTreeSet<&'static str>) {
        self.skip_filter = plugins;
    }

    /// Score plugins whose PreScore said `Skip`.
    pub fn skip_score_plugins(&self) -> &BTreeSet<&'static str> {
        &self.skip_score
    }

    /// Set by the runtime after PreScore.
    pub fn set_skip_score_plugins(&mut self, plugins: BTreeSet<&'static str>) {
        self.skip_score = plugins;
    }

    /// PreBind plugins whose PreBindPreFlight said `Skip`.
    pub fn skip_pre_bind_plugins(&self) -> &BTreeSet<&'static str> {
        &self.skip_pre_bind
    }

    /// Set by the runtime after PreBindPreFlight.
    pub fn set_skip_pre_bind_plugins(&mut self, plugins: BTreeSet<&'static str>) {
        self.skip_pre_bind = plugins;
    }
}

impl std::fmt::Debug for CycleState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CycleState")
            .field("keys", &self.data.keys())
            .field("skip_filter", &self.skip_filter)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_is_shared_until_written() {
        let mut a = CycleState::new();
        a.write("k", vec![1]);
        let mut b = a.clone();
        b.read_mut::<Vec<i32>>("k").expect("written above").push(2);
        assert_eq!(a.read::<Vec<i32>>("k"), Some(&vec![1]));
        assert_eq!(b.read::<Vec<i32>>("k"), Some(&vec![1, 2]));
        assert_eq!(a.read::<String>("k"), None);
    }
}
