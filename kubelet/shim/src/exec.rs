//! Running a further process in a container.
//!
//! Not by libcontainer's tenant builder: it never joins the user namespace, never applies seccomp,
//! leaves a socket behind each time and takes 7 ms. A helper is forked; it joins the container's
//! cgroup and PID namespace and clones, as its sibling, the process itself, which joins the rest and
//! takes the same last steps as a container's first process.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::json;
use shim_protocol::ProcessSpec;
use shim_protocol::wire;

use crate::process::{Prepared, report_and_exit};
use crate::sys;

/// Joined in this order, the user namespace last: until then every capability on the host's side
/// is there to join namespaces that the host owns.
const JOINED_BY_PROCESS: [(&str, libc::c_int); 6] = [
    ("net", libc::CLONE_NEWNET),
    ("ipc", libc::CLONE_NEWIPC),
    ("uts", libc::CLONE_NEWUTS),
    ("cgroup", libc::CLONE_NEWCGROUP),
    ("mnt", libc::CLONE_NEWNS),
    ("user", libc::CLONE_NEWUSER),
];

/// An exec under way; the reports are frames of JSON: `{"pid": …}` of the helper, and with a
/// terminal `{"terminal": true}` with its master, of the process.
pub struct Starting {
    pub result: OwnedFd,
    pub error_pipe: OwnedFd,
}

/// The process's stdin, stdout and stderr; `None` is /dev/null. All `None` with a terminal.
pub type Stdio = [Option<OwnedFd>; 3];

pub fn begin(
    init: i32,
    cgroup_path: &Path,
    process: ProcessSpec,
    stdio: Stdio,
) -> Result<Starting, String> {
    let process = Prepared::new(process).map_err(|error| error.to_string())?;
    let (result, helper_result) =
        sys::socket_pair().map_err(|error| format!("socketpair: {error}"))?;
    let (error_pipe, errors) = sys::pipe().map_err(|error| format!("pipe: {error}"))?;
    if sys::fork().map_err(|error| format!("fork: {error}"))? == 0 {
        drop((result, error_pipe));
        sys::reset_signals();
        match helper(init, cgroup_path, &process, stdio, &helper_result, &errors) {
            Ok(()) => sys::exit_now(0),
            Err(error) => report_and_exit(&errors, &error),
        }
    }
    sys::set_nonblocking(&result).map_err(|error| format!("fcntl: {error}"))?;
    sys::set_nonblocking(&error_pipe).map_err(|error| format!("fcntl: {error}"))?;
    Ok(Starting { result, error_pipe })
}

fn helper(
    init: i32,
    cgroup_path: &Path,
    process: &Prepared,
    stdio: Stdio,
    result: &OwnedFd,
    errors: &OwnedFd,
) -> Result<(), String> {
    // Before the container can see this process: it must not be traced or looked into from there.
    // SAFETY: prctl with integers only.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    if let Some(score) = process.spec.oom_score_adj {
        crate::process::set_oom_score_adj(score)?;
    }
    let pid_namespace = foreign_namespace(init, "pid")?;
    let mut namespaces = Vec::new();
    for (name, kind) in JOINED_BY_PROCESS {
        if let Some(file) = foreign_namespace(init, name)? {
            namespaces.push((name, kind, file));
        }
    }
    if let Some(file) = pid_namespace {
        sys::set_namespace(&file, libc::CLONE_NEWPID)
            .map_err(|error| format!("join pid namespace: {error}"))?;
    }
    let pid = match clone_into_cgroup(cgroup_path) {
        Some(pid) => pid,
        None => {
            crate::cgroup::join_running(cgroup_path, init)
                .map_err(|error| format!("join cgroup: {error}"))?;
            // SAFETY: as fork: one thread, and no stack is given.
            unsafe {
                libc::syscall(
                    libc::SYS_clone,
                    libc::CLONE_PARENT | libc::SIGCHLD,
                    0,
                    0,
                    0,
                    0,
                ) as i32
            }
        }
    };
    match pid {
        0 => {
            let error = match enter(namespaces, process, stdio, result) {
                Ok(()) => process.become_it(errors.as_raw_fd()).to_string(),
                Err(error) => error,
            };
            report_and_exit(errors, &error)
        }
        pid if pid < 0 => Err(format!("clone: {}", io::Error::last_os_error())),
        pid => send(result, &json!({ "pid": pid }), None),
    }
}

/// Clones a sibling right into the cgroup (v2, kernel 5.7): moving a process later waits for the kernel
/// some 10 ms. `None`: not here, move it.
fn clone_into_cgroup(path: &Path) -> Option<i32> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    /// `struct clone_args` of linux/sched.h.
    #[repr(C)]
    #[derive(Default)]
    struct CloneArgs {
        flags: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        exit_signal: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
        set_tid: u64,
        set_tid_size: u64,
        cgroup: u64,
    }
    if !crate::cgroup::is_unified() {
        return None;
    }
    let directory = File::open(crate::cgroup::unified_directory(path)).ok()?;
    let args = CloneArgs {
        flags: CLONE_INTO_CGROUP | libc::CLONE_PARENT as u64,
        // With CLONE_PARENT the signal is the helper's own: SIGCHLD.
        cgroup: directory.as_raw_fd() as u64,
        ..CloneArgs::default()
    };
    // SAFETY: as fork: one thread, and no stack is given; `args` has the layout and size clone3 wants.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &args, size_of::<CloneArgs>()) as i32 };
    (pid >= 0).then_some(pid)
}

/// The namespace of `init`, if it is not our own.
fn foreign_namespace(init: i32, name: &str) -> Result<Option<File>, String> {
    let open = |path: &str| File::open(path).and_then(|file| Ok((file.metadata()?.ino(), file)));
    let (theirs, file) = open(&format!("/proc/{init}/ns/{name}"))
        .map_err(|error| format!("{name} namespace of process {init}: {error}"))?;
    let (ours, _) = open(&format!("/proc/self/ns/{name}"))
        .map_err(|error| format!("own {name} namespace: {error}"))?;
    Ok((theirs != ours).then_some(file))
}

fn enter(
    namespaces: Vec<(&str, libc::c_int, File)>,
    process: &Prepared,
    stdio: Stdio,
    result: &OwnedFd,
) -> Result<(), String> {
    // SAFETY: no memory is involved.
    unsafe { libc::setsid() };
    for (name, kind, file) in &namespaces {
        sys::set_namespace(file, *kind)
            .map_err(|error| format!("join {name} namespace: {error}"))?;
        if *kind == libc::CLONE_NEWUSER {
            // SAFETY: integers only. Root of the namespace, that later steps may chown and setuid.
            unsafe {
                sys::check(libc::setresgid(0, 0, 0))
                    .map_err(|error| format!("setresgid: {error}"))?;
                sys::check(libc::setresuid(0, 0, 0))
                    .map_err(|error| format!("setresuid: {error}"))?;
            }
        }
    }
    drop(namespaces);
    if process.spec.terminal {
        let (master, slave) = open_terminal().map_err(|error| format!("open terminal: {error}"))?;
        send(result, &json!({ "terminal": true }), Some(&master))?;
        // SAFETY: integers only.
        sys::check(unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0) })
            .map_err(|error| format!("set controlling terminal: {error}"))?;
        for fd in 0..3 {
            sys::dup2(slave.as_raw_fd(), fd).map_err(|error| format!("dup2: {error}"))?;
        }
    } else {
        let null = File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .ok();
        // Two steps, so that no target overwrites a source.
        let sources = stdio
            .iter()
            .map(|fd| match (fd, &null) {
                (Some(fd), _) => sys::duplicate(fd),
                (None, Some(null)) => sys::duplicate(null),
                (None, None) => Err(io::Error::from_raw_os_error(libc::ENOENT)),
            })
            .collect::<io::Result<Vec<_>>>()
            .map_err(|error| format!("stdio: {error}"))?;
        for (target, source) in sources.iter().enumerate() {
            sys::dup2(source.as_raw_fd(), target as i32)
                .map_err(|error| format!("dup2: {error}"))?;
        }
    }
    Ok(())
}

/// A terminal of the container's own devpts: (master, slave).
fn open_terminal() -> io::Result<(OwnedFd, OwnedFd)> {
    let master = File::options().read(true).write(true).open("/dev/ptmx")?;
    // SAFETY: `unlock` lives through the call; TIOCGPTPEER returns a new descriptor that is ours.
    unsafe {
        let unlock: libc::c_int = 0;
        sys::check(libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &unlock))?;
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        let slave = OwnedFd::from_raw_fd(sys::check(libc::ioctl(
            master.as_raw_fd(),
            libc::TIOCGPTPEER,
            flags,
        ))?);
        Ok((master.into(), slave))
    }
}

fn send(socket: &OwnedFd, message: &serde_json::Value, fd: Option<&OwnedFd>) -> Result<(), String> {
    let fds: Vec<_> = fd.iter().map(|fd| fd.as_raw_fd()).collect();
    let frame = wire::encode(message, fds.len()).map_err(|error| error.to_string())?;
    wire::send_with_fds(socket.as_raw_fd(), &frame, &fds)
        .map(drop)
        .map_err(|error| format!("report: {error}"))
}
