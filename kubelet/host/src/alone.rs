//! Whether a thread does everything by itself.
//!
//! Work on files is handed to other threads, so that nobody waits for a disk. Who comes first is then chance. Where one thread and one clock
//! hold a whole node (in a test that is to have the same history twice), it is done in its turn among the tasks instead.

use std::cell::Cell;

thread_local! {
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// From now on this thread hands nothing to others.
pub fn work_alone() {
    ALONE.set(true);
}

/// Whether this thread hands nothing to others.
pub fn works_alone() -> bool {
    ALONE.get()
}
