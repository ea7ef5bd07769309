//! How libcontainer hands over to the container's first process: with our own last steps.

use std::collections::HashMap;
use std::os::fd::RawFd;

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};

use crate::process::Prepared;

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

impl Executor for ShimExecutor {
    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        let error = self.process.become_it(self.error_pipe);
        crate::process::report_and_exit(&Pipe(self.error_pipe), &error.to_string())
    }

    /// Runs inside the container's mounts, as root, before the container counts as created.
    /// libcontainer knows one propagation for all mounts; those that want less lose it here. Whether
    /// there is a program at all is for `exec` to find out, when no descriptor of the host is left.
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        for path in &self.private_mounts {
            crate::sys::make_private(std::path::Path::new(path)).map_err(|error| {
                ExecutorValidationError::ArgValidationError(format!(
                    "make mount {path} private: {error}"
                ))
            })?;
        }
        Ok(())
    }

    /// The environment goes to `execve` as it is; nothing of the shim's reaches it.
    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }
}
