//! What is being worked on: two calls for the same volume or snapshot do not run at once, the second is told to come again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The names and IDs in use: how many readers, or `None` for one writer.
#[derive(Clone, Debug, Default)]
pub struct Operations {
    busy: Arc<Mutex<HashMap<String, Option<usize>>>>,
}

/// Held for the length of a call; dropping it lets others in.
#[derive(Debug)]
pub struct Guard {
    operations: Operations,
    key: String,
}

impl Operations {
    /// Takes a key alone; `None` if anybody has it.
    pub fn alone(&self, key: &str) -> Option<Guard> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if busy.contains_key(key) {
            return None;
        }
        busy.insert(key.to_owned(), None);
        Some(self.guard(key))
    }

    /// Takes a key with other readers; `None` if somebody has it alone.
    pub fn shared(&self, key: &str) -> Option<Guard> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let readers = busy.entry(key.to_owned()).or_insert(Some(0));
        *readers.as_mut()? += 1;
        Some(self.guard(key))
    }

    fn guard(&self, key: &str) -> Guard {
        Guard {
            operations: self.clone(),
            key: key.to_owned(),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let busy = &self.operations.busy;
        let mut busy = busy.lock().unwrap_or_else(PoisonError::into_inner);
        match busy.get_mut(&self.key) {
            Some(Some(readers)) if *readers > 1 => *readers -= 1,
            _ => drop(busy.remove(&self.key)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_writer_or_many_readers() {
        let operations = Operations::default();
        let first = operations.shared("a").unwrap();
        let second = operations.shared("a").unwrap();
        assert!(operations.alone("a").is_none());
        assert!(operations.alone("b").is_some(), "and given back at once");
        drop(first);
        assert!(operations.alone("a").is_none());
        drop(second);
        let writer = operations.alone("a").unwrap();
        assert!(operations.shared("a").is_none() && operations.alone("a").is_none());
        drop(writer);
        assert!(operations.shared("a").is_some());
    }
}
