//! Holds nothing: its `Cargo.toml`, which `cargo hakari` writes, gives every crate of the workspace one set of features of its
//! dependencies, so that no selection of packages compiles again what another has compiled.
