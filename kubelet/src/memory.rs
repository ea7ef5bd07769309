//! How this process gives memory back; see [`component_base::memory`].

pub use component_base::memory::{run, set_up};
