//! The types and calls of `wit/plugin.wit`.
#![allow(
    unsafe_code,
    missing_docs,
    reason = "what is generated reads and writes a component's memory; it is documented in the WIT file"
)]

wasmtime::component::bindgen!({ path: "wit", world: "scheduler-plugin" });

pub use exports::gantry::scheduler::plugin::{Description, Node, Pod, Verdicts};
pub use gantry::scheduler::log::{Host as Log, Level};
pub use gantry::scheduler::types::{
    NodeFields, Normalize, PodFields, Points, RejectionCode, Resources, Scope, Taint, TaintEffect,
    Toleration,
};
