//! The validatingadmissionpolicy-status controller: checks the types in a policy's expressions against the schemas of what it matches, and
//! writes what it found into the policy's status. A warning changes nothing about what the policy does.
//!
//! `cel.rs` knows the language, `schema.rs` reads the API server's OpenAPI documents, `sync.rs` decides.
//!
//! Upstream: pkg/controller/validatingadmissionpolicystatus, and the TypeChecker of
//! k8s.io/apiserver/pkg/admission/plugin/policy/validating, v1.37.
// DIFFERS: names of types in messages have no random number at their end; a value that may be a string or a number (a quantity) is of any
// type, where upstream takes its field for undefined; what an expression of a CEL library gives that `cel/functions.rs` does not list
// (quantity, ip, cidr, semver, format, and lists' sum, min, max, sort, slice, flatten, distinct, reverse) is not checked; literals of
// durations, times and regular expressions are not looked into.

mod cel;
mod controller;
mod schema;
pub mod sync;

pub use controller::start;
