//! Scheduler plugins in any language: WASM components that filter and score batches of nodes.
//!
//! A plugin is a component that exports `gantry:scheduler/plugin` (`wit/plugin.wit`). It is named in a profile like any other, and its arguments say
//! that it is one: [`WasmPluginArgs`]. Each plugin has an instance of its own, with bounds on memory and on what a call may take (fuel). One that traps, takes too much or
//! answers nonsense has its pod rejected with the reason, is thrown away and made anew; nothing else notices. Never here: files, network, environment
//! or time for a component ([`wasi`]).
#![deny(unsafe_code)]
#![warn(missing_docs)]

mod args;
mod bindings;
mod component;
mod convert;
mod guest;
mod host;
mod plugin;
mod wasi;

#[cfg(test)]
mod tests;

pub use args::{
    DEFAULT_FUEL_PER_CALL, DEFAULT_MEMORY_LIMIT_BYTES, KIND, MAX_MEMORY_LIMIT_BYTES,
    MIN_MEMORY_LIMIT_BYTES, WasmPluginArgs, completed, is_wasm,
};
pub use component::{INTERFACE, MAX_COMPONENT_BYTES};
pub use plugin::new;
