//! The node's files that somebody else can change: opened, read, walked and removed so that no container can lead the
//! node astray, hold it up or fill its memory. Synchronous and small; callers keep it off their async threads.
//!
//! Owns: [`alone`], [`atomic_file`], [`file`] (regular files only, never through a link that leads out, never more bytes than asked for) and
//! [`tree`] (walks without recursion, with a bounded number of descriptors, on one mount).
//!
//! **Invariant:** nothing here opens a FIFO, a device or a socket, follows a link out of its root, or goes into a mount.

#![forbid(unsafe_code)]

pub mod alone;
pub mod atomic_file;
pub mod file;
pub mod tree;

pub use file::{FileError, Links, Root, open_regular, read_regular, read_tail};
pub use tree::{DiskUsage, Repeats, copy_tree, disk_usage, remove_tree, remove_tree_at};
