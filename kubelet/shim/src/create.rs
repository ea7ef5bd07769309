//! Creating and starting a container with libcontainer, in a forked child of the shim.
//!
//! The child's clones are made siblings (`CLONE_PARENT`), so the container's init becomes the
//! shim's own child. The child reports over a socket: the init's PID with the terminal's master and
//! the view of its PID namespace, or an error. Then it ends; the shim learns from the error pipe
//! whether `execve` worked.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use serde_json::json;
use shim_protocol::wire::{self, Decoder};
use shim_protocol::{ContainerStart, chain};

use crate::capture::Capture;
use crate::executor::{Birth, ShimExecutor};
use crate::launch::Door;
use crate::pid_view::{self, PidPlan, View};
use crate::process::Prepared;
use crate::{exec, sys};

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
    /// Of its PID namespace, if that is new.
    pub view: Option<View>,
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
    plan: &PidPlan,
) -> Result<Creation, String> {
    let process = Prepared::new(start.process.clone()).map_err(|error| error.to_string())?;
    if matches!(plan, PidPlan::Existing { .. }) {
        process.warn_of_late_filter();
    }
    let (result, helper_result) =
        sys::socket_pair().map_err(|error| format!("socketpair: {error}"))?;
    let (error_pipe, helper_errors) = sys::pipe().map_err(|error| format!("pipe: {error}"))?;
    match sys::fork().map_err(|error| format!("fork: {error}"))? {
        0 => {
            drop((result, error_pipe));
            sys::reset_signals();
            sys::ignore_broken_pipes();
            let code = match create(start, root, stdio, process, plan, &helper_errors) {
                Ok(created) => report_created(&helper_result, created),
                Err(message) => report(&helper_result, &json!({ "error": message }), &[]),
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

fn report_created(socket: &OwnedFd, created: Created) -> i32 {
    let view = created.view.as_ref();
    let message = json!({
        "pid": created.pid,
        "terminal": created.terminal.is_some(),
        "namespace": view.map(|view| view.namespace),
    });
    let mount = view.and_then(|view| view.mount.as_ref());
    let fds: Vec<_> = [created.terminal.as_ref(), mount]
        .into_iter()
        .flatten()
        .map(AsRawFd::as_raw_fd)
        .collect();
    report(socket, &message, &fds)
}

fn report(socket: &OwnedFd, message: &serde_json::Value, fds: &[RawFd]) -> i32 {
    let sent = wire::encode(message, fds.len())
        .map_err(|error| error.to_string())
        .and_then(|frame| {
            wire::send_with_fds(socket.as_raw_fd(), &frame, fds).map_err(|error| error.to_string())
        });
    i32::from(sent.is_err())
}

/// Reads the helper's report. `None`: not there yet.
pub fn finish(decoder: &mut Decoder, result: &OwnedFd) -> Option<Result<Created, String>> {
    loop {
        match decoder.take::<serde_json::Value>() {
            Err(error) => return Some(Err(error.to_string())),
            Ok(Some((message, fds))) => {
                let mut fds = fds.into_iter().peekable();
                return Some(match (message["pid"].as_i64(), message["error"].as_str()) {
                    (Some(pid), _) => Ok(Created {
                        pid: pid as i32,
                        terminal: fds.next_if(|_| message["terminal"].as_bool() == Some(true)),
                        view: message["namespace"].as_u64().map(|namespace| View {
                            namespace,
                            mount: fds.next(),
                        }),
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
    plan: &PidPlan,
    errors: &OwnedFd,
) -> Result<Created, String> {
    if let Some(score) = start.process.oom_score_adj {
        crate::process::set_oom_score_adj(score)?;
    }
    let terminal = start.process.terminal;
    let node_proc = exec::open_node_proc(&process)?;
    let (view, view_out) = sys::socket_pair().map_err(|error| format!("socketpair: {error}"))?;
    let (pid_pipe, pids) = sys::pipe().map_err(|error| format!("pipe: {error}"))?;
    let own = || start.bundle.clone();
    let (birth, bundle) = match plan {
        PidPlan::Plain { is_new: false } => (Birth::InPlace, own()),
        PidPlan::Plain { is_new: true } => {
            let view = view_out.as_raw_fd();
            (Birth::InNew { view }, own())
        }
        PidPlan::Existing { namespace, proc } => {
            let bundle = rewritten(root, &start.id);
            pid_view::rewrite(&start.bundle, proc, &bundle)?;
            let door = Door {
                namespace: Some(namespace.as_raw_fd()),
                terminal,
                pid_pipe: pids.as_raw_fd(),
                error_pipe: errors.as_raw_fd(),
                node_proc: node_proc.as_ref().map(AsRawFd::as_raw_fd),
            };
            (Birth::Elsewhere(door), bundle)
        }
    };
    let mut builder = ContainerBuilder::new(start.id.clone(), SyscallType::default())
        .with_root_path(root)
        .map_err(|error| chain(&error))?
        .with_executor(ShimExecutor {
            process,
            private_mounts: start.private_mounts.clone(),
            error_pipe: errors.as_raw_fd(),
            birth,
        });
    let mut console = None;
    if terminal {
        let (listener, path) = bind_console(root)?;
        builder = builder.with_console_socket(Some(path.clone()));
        console = Some((listener, path));
    }
    if let Some(stdio) = stdio {
        builder = builder
            .with_stdin(stdio.stdin)
            .with_stdout(stdio.stdout)
            .with_stderr(stdio.stderr);
    }
    let capture = Capture::begin().map_err(|error| format!("pipe: {error}"))?;
    let built = builder
        .as_init(&bundle)
        .with_systemd(false)
        .with_detach(true)
        .as_sibling(true)
        .build();
    if let Some((_, path)) = &console {
        let _ = std::fs::remove_file(path);
    }
    let mut container = built.map_err(|error| capture.explain(chain(&error)))?;
    let pid = container.pid().ok_or("libcontainer told no PID")?.as_raw();
    let listener = console.as_ref().map(|(listener, _)| listener);
    let view = matches!(birth, Birth::InNew { .. }).then_some(&view);
    let started = before_start(start, pid, listener, view).and_then(|made| {
        container
            .start()
            .map_err(|error| capture.explain(chain(&error)))?;
        Ok(made)
    });
    drop((view_out, pids));
    let created = started.and_then(|(terminal, view)| match birth {
        Birth::InPlace | Birth::InNew { .. } => Ok((pid, terminal, view)),
        // At the pipe's end libcontainer's process has borne the container's, or has told why not.
        Birth::Elsewhere(_) => match exec::told_pid(&pid_pipe) {
            0 => Err("the process was not started".to_owned()),
            pid => Ok((pid, terminal, view)),
        },
    });
    let (pid, terminal, view) = created.inspect_err(|_| {
        let _ = sys::kill(pid, libc::SIGKILL);
        remove(root, &start.id);
    })?;
    Ok(Created {
        pid,
        terminal,
        view,
    })
}

/// All that is done before the program runs, which may be over in no time: the terminal's master and the view of a new PID
/// namespace are received, where there is one.
fn before_start(
    start: &ContainerStart,
    pid: i32,
    console: Option<&UnixListener>,
    view: Option<&OwnedFd>,
) -> Result<(Option<OwnedFd>, Option<View>), String> {
    let master = console.map(receive_terminal).transpose()?;
    let view = view.map(|socket| receive_view(pid, socket)).transpose()?;
    if let Some(mount) = &start.dev_mount {
        crate::dev_mount::cover(pid, mount)?;
    }
    crate::cgroup::finish_setup(&start.cgroup_path, &start.unified, &start.devices)?;
    Ok((master, view))
}

/// Where libcontainer sends the terminal's master to.
fn bind_console(root: &Path) -> Result<(UnixListener, PathBuf), String> {
    // Bound by a relative name: a socket's name has 107 bytes, the state directory may be longer.
    let name = format!("console-{}.sock", std::process::id());
    std::env::set_current_dir(root)
        .map_err(|error| format!("chdir {}: {error}", root.display()))?;
    let listener = UnixListener::bind(&name).map_err(|error| format!("console socket: {error}"))?;
    Ok((listener, root.join(&name)))
}

fn receive_view(pid: i32, socket: &OwnedFd) -> Result<View, String> {
    let mut decoder = Decoder::default();
    let failed = |error: String| format!("the view of the PID namespace: {error}");
    decoder
        .receive(socket)
        .map_err(|error| failed(error.to_string()))?;
    let message = decoder
        .take::<serde_json::Value>()
        .map_err(|error| failed(error.to_string()))?;
    let Some((_, mut fds)) = message else {
        return Err(failed("nothing came".to_owned()));
    };
    let namespace = pid_view::inode(Path::new(&format!("/proc/{pid}/ns/pid")))
        .map_err(|error| failed(error.to_string()))?;
    Ok(View {
        namespace,
        mount: fds.pop(),
    })
}

/// The bundle that libcontainer is given instead of the runtime's.
fn rewritten(root: &Path, id: &str) -> PathBuf {
    root.join(format!("{id}.bundle"))
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
    for directory in [root.join(id), rewritten(root, id)] {
        if let Err(error) = std::fs::remove_dir_all(&directory)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            eprintln!("remove {}: {error}", directory.display());
        }
    }
}
