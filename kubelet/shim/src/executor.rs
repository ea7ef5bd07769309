//! How libcontainer hands over to the container's first process: with our own last steps.

use std::collections::HashMap;
use std::os::fd::RawFd;

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};

use crate::process::{Prepared, ProcessError};

#[derive(Clone)]
pub struct ShimExecutor {
    pub process: Prepared,
    pub private_mounts: Vec<String>,
    /// Close-on-exec: an `execve` that works closes it, one that fails writes why.
    pub error_pipe: RawFd,
}

struct Pipe(RawFd);
impl std::os::fd::AsRawFd for Pipe {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

impl ShimExecutor {
    /// libcontainer knows one propagation for all mounts; those that want less lose it here.
    fn make_mounts_private(&self) -> Result<(), ProcessError> {
        for path in &self.private_mounts {
            crate::sys::make_private(std::path::Path::new(path)).map_err(|source| {
                ProcessError::Step {
                    step: "make mount private",
                    source,
                }
            })?;
        }
        Ok(())
    }
}

impl Executor for ShimExecutor {
    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        let error = self.process.become_it();
        crate::process::report_and_exit(&Pipe(self.error_pipe), &error.to_string())
    }

    /// Runs before the container counts as created: a missing program fails the create.
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        self.make_mounts_private()
            .and_then(|()| self.process.prepare_directory())
            .and_then(|()| self.process.find_program())
            .map(drop)
            .map_err(|error| {
                // libcontainer wraps the text; the pipe carries it as it is.
                let _ = crate::sys::write(&Pipe(self.error_pipe), error.to_string().as_bytes());
                ExecutorValidationError::ArgValidationError(error.to_string())
            })
    }

    /// The environment goes to `execve` as it is; nothing of the shim's reaches it.
    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }
}
