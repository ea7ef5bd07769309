//! Keeps a container's environment out of its record: it may hold what Secrets hold, and the record lies on disk.
//!
//! Execs need it, also those of a runtime that was started again; so it stands in a file of root's own on the state's
//! side, which is a tmpfs, and goes with the container.

use std::io;
use std::path::PathBuf;

use crate::linux::record::ContainerRecord;
use crate::linux::{Inner, layout};

fn file(inner: &Inner, id: &str) -> PathBuf {
    inner.layout.container_state(id).join("environment.json")
}

/// Writes the environment down; once, at the container's creation.
pub fn keep(inner: &Inner, record: &ContainerRecord) -> io::Result<()> {
    layout::write_record(&file(inner, &record.id), &record.process.env)
}

/// Writes the record, without the environment.
pub fn write_record(inner: &Inner, record: &ContainerRecord) -> io::Result<()> {
    inner
        .layout
        .write_container(&record.id, &without_environment(record))
}

fn without_environment(record: &ContainerRecord) -> ContainerRecord {
    let mut record = record.clone();
    record.process.env = Vec::new();
    record.config.envs = Vec::new();
    record
}

/// Puts the environment back into a record that was read; records of earlier versions have their own.
pub fn restore(inner: &Inner, record: &mut ContainerRecord) {
    match layout::read_record(&file(inner, &record.id)) {
        Ok(Some(env)) => record.process.env = env,
        Ok(None) => {}
        Err(error) => {
            tracing::warn!(container = %record.id, %error, "cannot read a container's environment: execs go without it");
        }
    }
}
