//! Running a further process in a container.
//!
//! Not by libcontainer's tenant builder: it never joins the user namespace, never applies seccomp,
//! leaves a socket behind each time and takes 7 ms. A helper is forked; it joins the container's
//! cgroup and namespaces, takes the same last steps as a container's first process, and only then has
//! the process itself born in the container's PID namespace (see [`crate::launch`]).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::json;
use shim_protocol::ProcessSpec;
use shim_protocol::wire;

use crate::launch::Door;
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

/// An exec under way.
pub struct Starting {
    /// With a terminal: a frame of JSON comes, `{"terminal": true}`, with its master.
    pub result: OwnedFd,
    /// The process's PID comes, four bytes; see [`told_pid`].
    pub pid_pipe: OwnedFd,
    /// At its end the program runs; what came tells why not.
    pub error_pipe: OwnedFd,
}

/// The PID that was written to a pipe whose writers are gone; 0 if none was.
pub fn told_pid(pipe: &OwnedFd) -> i32 {
    let mut bytes = [0u8; 4];
    match sys::read(pipe, &mut bytes) {
        Ok(4) => i32::from_ne_bytes(bytes),
        _ => 0,
    }
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
    process.warn_of_late_filter();
    let (result, helper_result) =
        sys::socket_pair().map_err(|error| format!("socketpair: {error}"))?;
    let pipe = || sys::pipe().map_err(|error| format!("pipe: {error}"));
    let ((error_pipe, errors), (pid_pipe, pids)) = (pipe()?, pipe()?);
    if sys::fork().map_err(|error| format!("fork: {error}"))? == 0 {
        drop((result, error_pipe, pid_pipe));
        sys::reset_signals();
        let door = Door {
            namespace: None,
            terminal: process.spec.terminal,
            pid_pipe: pids.as_raw_fd(),
            error_pipe: errors.as_raw_fd(),
            node_proc: None,
        };
        match helper(init, cgroup_path, &process, stdio, &helper_result, door) {
            Ok(()) => sys::exit_now(0),
            Err(error) => report_and_exit(&errors, &error),
        }
    }
    for fd in [&result, &pid_pipe, &error_pipe] {
        sys::set_nonblocking(fd).map_err(|error| format!("fcntl: {error}"))?;
    }
    Ok(Starting {
        result,
        pid_pipe,
        error_pipe,
    })
}

/// In the node's namespaces, but for the cgroup's; ends when the process is born.
fn helper(
    init: i32,
    cgroup_path: &Path,
    process: &Prepared,
    stdio: Stdio,
    result: &OwnedFd,
    mut door: Door,
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
    let node_proc = open_node_proc(process)?;
    door.namespace = pid_namespace.as_ref().map(AsRawFd::as_raw_fd);
    door.node_proc = node_proc.as_ref().map(AsRawFd::as_raw_fd);
    match clone_into_cgroup(cgroup_path) {
        Some(0) => {}
        Some(_) => return Ok(()),
        None => crate::cgroup::join_running(cgroup_path, init)
            .map_err(|error| format!("join cgroup: {error}"))?,
    }
    // The user namespace is among those joined; the PID namespace is entered with it, by the last step.
    let born = enter(namespaces, process, stdio, result)
        .and_then(|()| process.bear(&door).map_err(|error| error.to_string()));
    match born {
        Ok(()) => sys::exit_now(0),
        Err(error) => report_and_exit(&door.error_pipe, &error),
    }
}

/// Where the process's AppArmor profile is set, once our own /proc is out of reach.
pub fn open_node_proc(process: &Prepared) -> Result<Option<File>, String> {
    process
        .spec
        .apparmor_profile
        .as_ref()
        .map(|_| File::open("/proc"))
        .transpose()
        .map_err(|error| format!("open /proc: {error}"))
}

/// Clones a sibling right into the cgroup (v2, kernel 5.7): moving a process later waits for the kernel
/// some 10 ms. As fork: 0 in the sibling. `None`: not here, move it.
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
