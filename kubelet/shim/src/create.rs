//! Creating and starting a container with libcontainer, in a forked child of the shim.
//!
//! The child's clones are made siblings (`CLONE_PARENT`), so the container's init becomes the
//! shim's own child. The child reports over a socket: the init's PID with the terminal's master, or
//! an error. Then it ends; the shim learns from the error pipe whether `execve` worked.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use serde_json::json;
use shim_protocol::ContainerStart;
use shim_protocol::wire::{self, Decoder};

use crate::executor::ShimExecutor;
use crate::process::Prepared;
use crate::sys;

/// A creation under way.
pub struct Creation {
    /// Readable when the helper has something to say, or ended.
    pub result: OwnedFd,
    /// At its end the program runs; text on it says why not.
    pub error_pipe: OwnedFd,
}

/// What the helper reported.
pub struct Created {
    pub pid: i32,
    pub terminal: Option<OwnedFd>,
}

/// The container's ends of its stdio; none with a terminal.
pub struct Stdio {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// Forks the helper. `stdio` is closed in the shim when this returns.
pub fn begin(
    start: &ContainerStart,
    root: &Path,
    stdio: Option<Stdio>,
) -> Result<Creation, String> {
    let process = Prepared::new(start.process.clone()).map_err(|error| error.to_string())?;
    let (result, helper_result) =
        sys::socket_pair().map_err(|error| format!("socketpair: {error}"))?;
    let (error_pipe, helper_errors) = sys::pipe().map_err(|error| format!("pipe: {error}"))?;
    match sys::fork().map_err(|error| format!("fork: {error}"))? {
        0 => {
            drop((result, error_pipe));
            sys::reset_signals();
            let code = match create(start, root, stdio, process, &helper_errors) {
                Ok(created) => report(
                    &helper_result,
                    &json!({ "pid": created.pid }),
                    created.terminal.as_ref(),
                ),
                Err(message) => report(&helper_result, &json!({ "error": message }), None),
            };
            sys::exit_now(code)
        }
        _ => {
            sys::set_nonblocking(&result).map_err(|error| format!("fcntl: {error}"))?;
            sys::set_nonblocking(&error_pipe).map_err(|error| format!("fcntl: {error}"))?;
            Ok(Creation { result, error_pipe })
        }
    }
}

fn report(socket: &OwnedFd, message: &serde_json::Value, terminal: Option<&OwnedFd>) -> i32 {
    let fds: Vec<_> = terminal.iter().map(|fd| fd.as_raw_fd()).collect();
    let sent = wire::encode(message, fds.len())
        .map_err(|error| error.to_string())
        .and_then(|frame| {
            wire::send_with_fds(socket.as_raw_fd(), &frame, &fds).map_err(|error| error.to_string())
        });
    i32::from(sent.is_err())
}

/// Reads the helper's report. `None`: not there yet.
pub fn finish(decoder: &mut Decoder, result: &OwnedFd) -> Option<Result<Created, String>> {
    loop {
        match decoder.take::<serde_json::Value>() {
            Err(error) => return Some(Err(error.to_string())),
            Ok(Some((message, mut fds))) => {
                return Some(match (message["pid"].as_i64(), message["error"].as_str()) {
                    (Some(pid), _) => Ok(Created {
                        pid: pid as i32,
                        terminal: fds.pop(),
                    }),
                    (None, Some(error)) => Err(error.to_owned()),
                    (None, None) => Err("the helper's report is empty".to_owned()),
                });
            }
            Ok(None) => match decoder.receive(result) {
                Ok(0) => return Some(Err("the helper died without a report".to_owned())),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Some(Err(error.to_string())),
            },
        }
    }
}

fn create(
    start: &ContainerStart,
    root: &Path,
    stdio: Option<Stdio>,
    process: Prepared,
    errors: &OwnedFd,
) -> Result<Created, String> {
    if let Some(score) = start.process.oom_score_adj {
        crate::process::set_oom_score_adj(score)?;
    }
    let terminal = start.process.terminal;
    let mut builder = ContainerBuilder::new(start.id.clone(), SyscallType::default())
        .with_root_path(root)
        .map_err(|error| chain(&error))?
        .with_executor(ShimExecutor {
            process,
            private_mounts: start.private_mounts.clone(),
            error_pipe: errors.as_raw_fd(),
        });
    let mut console = None;
    if terminal {
        // Bound by a relative name: a socket's name has 107 bytes, the state directory may be longer.
        let name = format!("console-{}.sock", std::process::id());
        std::env::set_current_dir(root)
            .map_err(|error| format!("chdir {}: {error}", root.display()))?;
        let listener =
            UnixListener::bind(&name).map_err(|error| format!("console socket: {error}"))?;
        let path = root.join(&name);
        builder = builder.with_console_socket(Some(path.clone()));
        console = Some((listener, path));
    }
    if let Some(stdio) = stdio {
        builder = builder
            .with_stdin(stdio.stdin)
            .with_stdout(stdio.stdout)
            .with_stderr(stdio.stderr);
    }
    let built = builder
        .as_init(&start.bundle)
        .with_systemd(false)
        .with_detach(true)
        .as_sibling(true)
        .build();
    if let Some((_, path)) = &console {
        let _ = std::fs::remove_file(path);
    }
    let mut container = built.map_err(|error| chain(&error))?;
    let pid = container.pid().ok_or("libcontainer told no PID")?.as_raw();
    let finish = || -> Result<Option<OwnedFd>, String> {
        let master = match &console {
            Some((listener, _)) => Some(receive_terminal(listener)?),
            None => None,
        };
        crate::cgroup::finish_setup(&start.cgroup_path, &start.unified, &start.devices)?;
        Ok(master)
    };
    let started = finish().and_then(|master| {
        container.start().map_err(|error| chain(&error))?;
        Ok(master)
    });
    match started {
        Ok(terminal) => Ok(Created { pid, terminal }),
        Err(message) => {
            let _ = sys::kill(pid, libc::SIGKILL);
            remove(root, &start.id);
            Err(message)
        }
    }
}

fn receive_terminal(listener: &UnixListener) -> Result<OwnedFd, String> {
    let (stream, _) = listener
        .accept()
        .map_err(|error| format!("console socket: {error}"))?;
    // libcontainer sends the master as runc does: one descriptor with a few bytes of name.
    let mut space = [0u64; 8];
    let mut name = [0u8; 4096];
    let mut iov = libc::iovec {
        iov_base: name.as_mut_ptr().cast(),
        iov_len: name.len(),
    };
    // SAFETY: all buffers live through recvmsg and are as long as stated; a descriptor in an
    // SCM_RIGHTS message is new and ours.
    unsafe {
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_iov = &mut iov;
        header.msg_iovlen = 1;
        header.msg_control = space.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&space);
        sys::check(
            libc::recvmsg(stream.as_raw_fd(), &mut header, libc::MSG_CMSG_CLOEXEC) as libc::c_int,
        )
        .map_err(|error| format!("console socket: {error}"))?;
        let control = libc::CMSG_FIRSTHDR(&header);
        if control.is_null() || (*control).cmsg_type != libc::SCM_RIGHTS {
            return Err("console socket: no terminal came".to_owned());
        }
        Ok(OwnedFd::from_raw_fd(
            libc::CMSG_DATA(control).cast::<i32>().read_unaligned(),
        ))
    }
}

/// Removes what libcontainer keeps of a container: its state directory with its sockets.
pub fn remove(root: &Path, id: &str) {
    if let Err(error) = std::fs::remove_dir_all(root.join(id))
        && error.kind() != std::io::ErrorKind::NotFound
    {
        eprintln!("remove state of container {id}: {error}");
    }
}

/// An error with its causes, outermost first.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
