//! The legacy-serviceaccount-token-cleaner controller: of the token Secrets that were made for ServiceAccounts by themselves, marks those
//! not used for `--legacy-service-account-token-clean-up-period`, and deletes them as long after the mark.
//!
//! A label, not a flag, says when a token was last used; API servers write it. Tokens that users made are never touched.
//!
//! Upstream: pkg/controller/serviceaccount/legacy_serviceaccount_token_cleaner.go, v1.36.

mod controller;
pub mod sync;

pub use controller::start;
