//! `gantry-shim`: parent and reaper of one pod's containers and execs, writer of their logs,
//! keeper of their exit codes. See README.md of `kubelet/` for its place in the house.
//!
//! Owns: the sandbox's namespaces, the containers' processes, their pipes and terminals. Never
//! decides anything: the runtime asks, over the socket of `shim-protocol`.
//!
//! **Invariant:** single-threaded, always: libcontainer clones without fork handlers, and a user
//! namespace can only be entered by a process with one thread.
//! **Invariant:** libcontainer runs in a forked child, never in the shim itself: it changes the
//! process's directory, OOM score and dumpability, and grows the heap.

mod capture;
mod cgroup;
mod container;
mod create;
mod dev_mount;
mod devices;
mod exec;
mod executor;
mod filter;
mod ids;
mod init;
mod launch;
mod log;
mod namespaces;
mod pid_view;
mod process;
mod seccomp;
mod server;
mod start;
mod sys;

fn main() -> std::process::ExitCode {
    start::run(std::env::args_os().skip(1).collect())
}
