//! How much disk a volume uses, for the summary API and eviction.

pub use host::{DiskUsage, disk_usage};
