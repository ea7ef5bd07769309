//! How libcontainer hands over to the container's first process: with our own last steps.

use std::collections::HashMap;
use std::os::fd::RawFd;

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use serde_json::json;
use shim_protocol::wire;

use crate::launch::Door;
use crate::pid_view;
use crate::process::Prepared;

/// What is to become of libcontainer's process in the end.
#[derive(Clone, Copy, Debug)]
pub enum Birth {
    /// It becomes the container's, in its new PID namespace; a view of /proc goes to this socket first.
    InNew { view: RawFd },
    /// It becomes the container's, in the node's PID namespace.
    InPlace,
    /// It bears the container's in a PID namespace that others are in, and ends.
    Elsewhere(Door),
}

#[derive(Clone)]
pub struct ShimExecutor {
    pub process: Prepared,
    pub private_mounts: Vec<String>,
    /// Close-on-exec: an `execve` that works closes it, one that fails writes why.
    pub error_pipe: RawFd,
    pub birth: Birth,
}

impl Executor for ShimExecutor {
    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        let error = match &self.birth {
            Birth::InNew { .. } | Birth::InPlace => self.process.become_it(self.error_pipe),
            Birth::Elsewhere(door) => {
                if door.terminal {
                    crate::sys::release_terminal();
                }
                match self.process.bear(door) {
                    Ok(()) => crate::sys::exit_now(0),
                    Err(error) => error,
                }
            }
        };
        crate::process::report_and_exit(&self.error_pipe, &error.to_string())
    }

    /// Runs inside the container's mounts, as root, before the container counts as created.
    /// libcontainer knows one propagation for all mounts; those that want less lose it here. Whether
    /// there is a program at all is for `exec` to find out, when no descriptor of the host is left.
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        let failed = |what: &str, error: std::io::Error| {
            ExecutorValidationError::ArgValidationError(format!("{what}: {error}"))
        };
        for path in &self.private_mounts {
            crate::sys::make_private(std::path::Path::new(path))
                .map_err(|error| failed(&format!("make mount {path} private"), error))?;
        }
        if let Birth::InNew { view } = self.birth {
            use std::os::fd::AsRawFd;
            let mount =
                pid_view::detach_own().map_err(|error| failed("copy the mount of /proc", error))?;
            let frame = wire::encode(&json!({}), 1)
                .map_err(|error| ExecutorValidationError::ArgValidationError(error.to_string()))?;
            wire::send_with_fds(view, &frame, &[mount.as_raw_fd()])
                .map_err(|error| failed("hand over the mount of /proc", error))?;
        }
        Ok(())
    }

    /// The environment goes to `execve` as it is; nothing of the shim's reaches it.
    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }
}
