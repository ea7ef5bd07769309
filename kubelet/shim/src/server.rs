//! The shim's one loop: signals, clients, streams, timers.
//!
//! Owns every descriptor and child of the sandbox. Nothing here blocks but the log's file.
//!
//! Attach: output is read once, goes to the log and then to each attached client. A client that
//! does not read holds the container's output back (nothing is lost), for [`STALL_MS`] at most: then
//! it is let go.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use shim_protocol::wire::{self, Decoder};
use shim_protocol::{
    ContainerExit, ContainerStart, ErrorKind, Event, ProcessSpec, Request, Response, ShimConfig,
    ShimError, ShimState, VERSION,
};

use crate::container::{Container, DRAIN_MS, Phase};
use crate::exec;
use crate::log::Stream;
use crate::pid_view::{self, PidPlan};
use crate::{cgroup, create, ids, launch, namespaces, sys};

mod client;
mod events;

use client::{Client, Outgoing, Role, Sink};

const READ_BYTES: usize = 32 * 1024;
const STALL_MS: u64 = 10_000;
/// A shutdown answers after this time even if a container refuses to die.
const SHUTDOWN_MS: u64 = 5_000;
/// Clients at once; more are hung up on.
const MAX_CLIENTS: usize = 512;
/// Reaped processes kept for a start or exec whose PID is not known yet; each has up to two helpers.
const MAX_STRAYS: usize = 1024;
/// Of why an exec failed at most this much is kept.
const MAX_ERROR_BYTES: usize = 16 * 1024;

pub struct Server {
    config: ShimConfig,
    /// libcontainer's state.
    root: PathBuf,
    listener: UnixListener,
    signals: OwnedFd,
    /// The pod's own init, with a shared PID namespace.
    init: Option<i32>,
    clients: BTreeMap<u64, Client>,
    next_client: u64,
    containers: Vec<Container>,
    execs: Vec<Exec>,
    strays: Vec<(i32, i32, i64)>,
    shutdown: Option<(u64, u64)>,
    ended: bool,
    buffer: Vec<u8>,
}

/// An exec, from its request to its exit.
struct Exec {
    client: u64,
    starting: Option<exec::Starting>,
    decoder: Decoder,
    wants_terminal: bool,
    terminal: Option<OwnedFd>,
    pid: i32,
    error_text: Vec<u8>,
    status: Option<i32>,
}

fn failure(kind: ErrorKind, message: impl Into<String>) -> Response {
    Response::Error(ShimError {
        kind,
        message: message.into(),
    })
}

impl Server {
    pub fn new(
        config: ShimConfig,
        root: PathBuf,
        listener: UnixListener,
        signals: OwnedFd,
        init: Option<i32>,
    ) -> Self {
        Self {
            config,
            root,
            listener,
            signals,
            init,
            clients: BTreeMap::new(),
            next_client: 1,
            containers: Vec::new(),
            execs: Vec::new(),
            strays: Vec::new(),
            shutdown: None,
            ended: false,
            buffer: vec![0; READ_BYTES],
        }
    }

    /// Serves until a `Shutdown` is answered.
    pub fn run(mut self) -> Result<(), String> {
        while !self.ended {
            self.turn()?;
        }
        namespaces::unpin(&self.pins());
        let _ = std::fs::remove_file(self.config.state_dir.join(shim_protocol::SOCKET_NAME));
        Ok(())
    }

    fn container(&mut self, id: &str) -> Option<&mut Container> {
        self.containers
            .iter_mut()
            .find(|container| container.start.id == id)
    }

    fn handle(&mut self, client: u64, request: Request, fds: Vec<OwnedFd>) {
        let answer = match request {
            Request::Subscribe => {
                if let Some(client) = self.clients.get_mut(&client) {
                    client.role = Role::Subscriber;
                }
                Some(Response::State(ShimState {
                    version: VERSION,
                    sandbox_id: self.config.sandbox_id.clone(),
                    pid: std::process::id() as i32,
                    containers: self.containers.iter().map(Container::info).collect(),
                }))
            }
            Request::Start(start) => self.start(client, *start),
            Request::Kill {
                container,
                signal,
                all,
            } => Some(self.kill(&container, signal, all)),
            Request::Exec {
                container,
                process,
                stdin,
                stdout,
                stderr,
            } => self.exec(client, &container, *process, [stdin, stdout, stderr], fds),
            Request::KillExec { pid, signal } => Some(
                match self
                    .execs
                    .iter()
                    .any(|e| e.pid == pid && e.status.is_none())
                {
                    true => match sys::kill(pid, signal) {
                        Ok(()) => Response::Ok,
                        Err(error) => failure(ErrorKind::System, format!("kill {pid}: {error}")),
                    },
                    false => failure(ErrorKind::NotFound, format!("no exec with PID {pid}")),
                },
            ),
            Request::Attach {
                container,
                stdin,
                stdout,
                stderr,
            } => {
                self.attach(client, &container, stdin, [stdout, stderr], fds);
                None
            }
            Request::CloseStdin { container } => Some(match self.container(&container) {
                None => not_found(&container),
                Some(container) => {
                    container.stdin = None;
                    Response::Ok
                }
            }),
            Request::ReopenLog { container } => Some(match self.container(&container) {
                None => not_found(&container),
                Some(container) => match container.log.reopen() {
                    Ok(()) => Response::Ok,
                    Err(error) => failure(ErrorKind::System, format!("reopen log: {error}")),
                },
            }),
            Request::Remove { container } => Some(self.remove(&container)),
            Request::Shutdown => {
                self.begin_shutdown(client);
                None
            }
            Request::Unknown => Some(failure(ErrorKind::Unsupported, "unknown request")),
        };
        if let Some(answer) = answer {
            self.send(client, &answer, Vec::new());
        }
    }

    fn start(&mut self, client: u64, start: ContainerStart) -> Option<Response> {
        if self.shutdown.is_some() {
            return Some(failure(ErrorKind::State, "the sandbox is shutting down"));
        }
        if self.container(&start.id).is_some() {
            return Some(failure(
                ErrorKind::State,
                format!("container {} has been started already", start.id),
            ));
        }
        if let Err(error) = ids::validate(&start.process) {
            return Some(failure(ErrorKind::Create, error.to_string()));
        }
        let begun = self
            .pid_plan(&start)
            .and_then(|plan| Container::begin(start, &self.root, &plan, client));
        match begun {
            Ok(container) => {
                self.containers.push(container);
                None
            }
            Err(message) => Some(failure(ErrorKind::Create, message)),
        }
    }

    fn pins(&self) -> PathBuf {
        self.config.state_dir.join("ns")
    }

    /// Which PID namespace the container is to be in, as its configuration asks for.
    fn pid_plan(&mut self, start: &ContainerStart) -> Result<PidPlan, String> {
        let path = match pid_view::wanted(&start.bundle)? {
            None => return Ok(PidPlan::Plain { is_new: false }),
            Some(None) => return Ok(PidPlan::Plain { is_new: true }),
            Some(Some(path)) => path,
        };
        let pins = self.pins();
        let views = self
            .containers
            .iter_mut()
            .filter(|container| matches!(container.phase, Phase::Running))
            .filter_map(|container| Some((container.start.id.as_str(), container.view.as_mut()?)));
        pid_view::plan(&path, &pins, views)
    }

    fn kill(&mut self, id: &str, signal: i32, all: bool) -> Response {
        let Some(container) = self.container(id) else {
            return not_found(id);
        };
        if all {
            cgroup::signal_all(&container.start.cgroup_path, signal);
        }
        if !container.is_alive() {
            return if all {
                Response::Ok
            } else {
                failure(ErrorKind::State, format!("container {id} is not running"))
            };
        }
        match sys::kill(container.pid, signal) {
            Ok(()) => Response::Ok,
            Err(error) => failure(
                ErrorKind::System,
                format!("kill {}: {error}", container.pid),
            ),
        }
    }

    fn remove(&mut self, id: &str) -> Response {
        let Some(index) = self
            .containers
            .iter()
            .position(|container| container.start.id == id)
        else {
            return Response::Ok;
        };
        if !matches!(self.containers[index].phase, Phase::Exited(_)) {
            return failure(ErrorKind::State, format!("container {id} is running"));
        }
        let container = self.containers.swap_remove(index);
        cgroup::remove(&container.start.cgroup_path);
        create::remove(&self.root, id);
        Response::Ok
    }

    fn exec(
        &mut self,
        client: u64,
        id: &str,
        process: ProcessSpec,
        wanted: [bool; 3],
        fds: Vec<OwnedFd>,
    ) -> Option<Response> {
        let Some(container) = self.container(id) else {
            return Some(not_found(id));
        };
        if !matches!(container.phase, Phase::Running) {
            return Some(failure(
                ErrorKind::State,
                format!("container {id} is not running"),
            ));
        }
        let mut fds = fds.into_iter();
        let stdio = wanted.map(|wanted| if wanted { fds.next() } else { None });
        let wants_terminal = process.terminal;
        let (init, path) = (container.pid, container.start.cgroup_path.clone());
        if let Err(error) = ids::validate(&process) {
            return Some(failure(ErrorKind::Create, error.to_string()));
        }
        match exec::begin(init, &path, process, stdio) {
            Ok(starting) => {
                if let Some(client) = self.clients.get_mut(&client) {
                    client.role = Role::Exec;
                }
                self.execs.push(Exec {
                    client,
                    starting: Some(starting),
                    decoder: Decoder::default(),
                    wants_terminal,
                    terminal: None,
                    pid: 0,
                    error_text: Vec::new(),
                    status: None,
                });
                None
            }
            Err(message) => Some(failure(ErrorKind::System, message)),
        }
    }

    fn attach(&mut self, client: u64, id: &str, stdin: bool, wanted: [bool; 2], fds: Vec<OwnedFd>) {
        let Some(container) = self
            .containers
            .iter()
            .find(|container| container.start.id == id)
        else {
            return self.send(client, &not_found(id), Vec::new());
        };
        if !matches!(container.phase, Phase::Running) {
            let answer = failure(ErrorKind::State, format!("container {id} is not running"));
            return self.send(client, &answer, Vec::new());
        }
        let terminal = container.start.process.terminal;
        let given = match (terminal, stdin) {
            (true, _) => container.stdout.as_ref(),
            (false, true) => container.stdin.as_ref(),
            (false, false) => None,
        };
        let given: Vec<_> = given
            .and_then(|fd| sys::duplicate(fd).ok())
            .into_iter()
            .collect();
        let mut fds = fds.into_iter();
        let sinks = wanted.map(|wanted| {
            let fd = if wanted { fds.next() } else { None }?;
            sys::set_nonblocking(&fd).ok()?;
            Some(Sink::new(fd))
        });
        if let Some(client) = self.clients.get_mut(&client) {
            client.role = Role::Attached {
                container: id.to_owned(),
                stdin,
                sinks,
            };
        }
        self.send(client, &Response::Attached { terminal }, given);
    }

    fn begin_shutdown(&mut self, client: u64) {
        self.shutdown = Some((client, sys::monotonic_ms() + SHUTDOWN_MS));
        for container in &self.containers {
            if !matches!(container.phase, Phase::Exited(_)) {
                cgroup::signal_all(&container.start.cgroup_path, libc::SIGKILL);
                if container.is_alive() {
                    let _ = sys::kill(container.pid, libc::SIGKILL);
                }
            }
        }
        if let Some(init) = self.init {
            let _ = sys::kill(init, libc::SIGKILL);
        }
    }

    /// Ends the loop when everything is down, or took too long.
    fn finish_shutdown(&mut self) {
        let Some((client, deadline)) = self.shutdown else {
            return;
        };
        let down = self
            .containers
            .iter()
            .all(|container| matches!(container.phase, Phase::Exited(_)));
        if !down && sys::monotonic_ms() < deadline {
            return;
        }
        for container in &self.containers {
            cgroup::remove(&container.start.cgroup_path);
            create::remove(&self.root, &container.start.id);
        }
        self.send(client, &Response::Ok, Vec::new());
        self.ended = true;
    }

    fn send(&mut self, client: u64, response: &Response, fds: Vec<OwnedFd>) {
        let Some(target) = self.clients.get_mut(&client) else {
            return;
        };
        match wire::encode(response, fds.len()) {
            Ok(bytes) => target.outgoing.push_back(Outgoing {
                bytes,
                sent: 0,
                fds,
            }),
            Err(error) => eprintln!("encode: {error}"),
        }
        if target.flush().is_err() {
            self.drop_client(client);
        }
    }

    fn broadcast(&mut self, event: Event) {
        let subscribers: Vec<u64> = self
            .clients
            .iter()
            .filter(|(_, client)| matches!(client.role, Role::Subscriber))
            .map(|(id, _)| *id)
            .collect();
        let response = Response::Event(event);
        for client in subscribers {
            self.send(client, &response, Vec::new());
        }
    }

    fn drop_client(&mut self, id: u64) {
        let Some(client) = self.clients.remove(&id) else {
            return;
        };
        if let Role::Attached {
            container,
            stdin: true,
            ..
        } = client.role
            && let Some(container) = self.container(&container)
            && container.start.stdin_once
        {
            container.stdin = None;
        }
    }

    /// The start is decided, for good or bad.
    fn decide_start(&mut self, index: usize) {
        let container = &mut self.containers[index];
        let Phase::Creating(pending) = &mut container.phase else {
            return;
        };
        if !pending.is_decided() {
            return;
        }
        pending.read_errors();
        let Phase::Creating(pending) = std::mem::replace(&mut container.phase, Phase::Running)
        else {
            return;
        };
        let text = launch::told(&pending.error_text);
        let client = pending.client;
        let created = match (pending.created, text.is_empty()) {
            (Some(Ok(created)), true) => created,
            (created, _) => {
                let (kind, message) = match created {
                    Some(Err(message)) if text.is_empty() => {
                        (ErrorKind::Create, message + &self.signalled())
                    }
                    _ => (ErrorKind::Exec, text),
                };
                return self.fail_start(index, client, kind, message);
            }
        };
        if !self.is_new_child(created.pid) {
            let message = format!("process {} is no new child", created.pid);
            return self.fail_start(index, client, ErrorKind::Create, message);
        }
        let container = &mut self.containers[index];
        container.pid = created.pid;
        container.view = created.view;
        container.started_at_ns = sys::now_ns();
        if let Some(master) = created.terminal {
            let _ = sys::set_nonblocking(&master);
            container.stdout = Some(master);
        }
        let (pid, started_at_ns) = (container.pid, container.started_at_ns);
        let id = container.start.id.clone();
        let stray = self
            .strays
            .iter()
            .position(|(stray, ..)| *stray == pid)
            .map(|at| {
                let (_, status, at_ns) = self.strays.swap_remove(at);
                (status, at_ns)
            });
        self.send(
            client,
            &Response::Started { pid, started_at_ns },
            Vec::new(),
        );
        self.broadcast(Event::ContainerStarted {
            container: id,
            pid,
            started_at_ns,
        });
        if let Some((status, finished_at_ns)) = stray {
            self.container_exited(index, status, finished_at_ns);
        }
    }

    /// Whether a PID that was reported can be what it should: a child of ours that is nothing else yet.
    fn is_new_child(&self, pid: i32) -> bool {
        let known = self.init == Some(pid)
            || self.containers.iter().any(|one| one.pid == pid)
            || self.execs.iter().any(|one| one.pid == pid);
        let stray = self.strays.iter().any(|(stray, ..)| *stray == pid);
        !known && (stray || sys::is_child(pid))
    }

    /// Which processes a signal ended while something was being created. libcontainer's own can tell nothing then but
    /// that a channel broke.
    fn signalled(&self) -> String {
        let ends: Vec<String> = self
            .strays
            .iter()
            .filter_map(|(pid, status, _)| {
                let signal = sys::decode_wait_status(*status).1?;
                Some(format!("process {pid} was ended by signal {signal}"))
            })
            .collect();
        match ends.is_empty() {
            true => String::new(),
            false => format!(" ({})", ends.join(", ")),
        }
    }

    fn fail_start(&mut self, index: usize, client: u64, kind: ErrorKind, message: String) {
        let container = self.containers.swap_remove(index);
        cgroup::signal_all(&container.start.cgroup_path, libc::SIGKILL);
        cgroup::remove(&container.start.cgroup_path);
        create::remove(&self.root, &container.start.id);
        let error = ShimError { kind, message };
        self.send(client, &Response::Error(error.clone()), Vec::new());
        self.broadcast(Event::ContainerFailed {
            container: container.start.id,
            error,
        });
    }

    fn container_exited(&mut self, index: usize, status: i32, finished_at_ns: i64) {
        let container = &mut self.containers[index];
        if container.start.shared_pid {
            // No PID namespace dies with the first process: what it left behind is ended here.
            cgroup::signal_all(&container.start.cgroup_path, libc::SIGKILL);
        }
        container.stdin = None;
        container.phase = Phase::Draining {
            status,
            finished_at_ns,
            deadline_ms: sys::monotonic_ms() + DRAIN_MS,
        };
        self.finish_container(index);
    }

    /// Writes the exit down and tells everybody, once the streams are at their ends.
    fn finish_container(&mut self, index: usize) {
        let container = &mut self.containers[index];
        let Phase::Draining {
            status,
            finished_at_ns,
            deadline_ms,
        } = container.phase
        else {
            return;
        };
        let open = container.stdout.is_some() || container.stderr.is_some();
        if open && sys::monotonic_ms() < deadline_ms {
            return;
        }
        for stream in [Stream::Stdout, Stream::Stderr] {
            if container.output(stream).is_some() {
                container.end_output(stream);
            }
        }
        let exit = container.exit_record(status, finished_at_ns);
        self.record_exit(&exit, index);
        let container = &mut self.containers[index];
        cgroup::remove(&container.start.cgroup_path);
        create::remove(&self.root, &container.start.id);
        container.pid = 0;
        container.view = None;
        pid_view::forget(&self.config.state_dir.join("ns"), &container.start.id);
        container.phase = Phase::Exited(exit.clone());
        let attached: Vec<u64> = self
            .clients
            .iter_mut()
            .filter_map(|(id, client)| match &mut client.role {
                Role::Attached {
                    container, sinks, ..
                } if *container == exit.id => {
                    sinks.iter_mut().for_each(Sink::end);
                    Some(*id)
                }
                _ => None,
            })
            .collect();
        for client in attached {
            self.send(client, &Response::Exited(exit.clone()), Vec::new());
        }
        self.broadcast(Event::ContainerExited(exit));
    }

    fn record_exit(&self, exit: &ContainerExit, index: usize) {
        let path = &self.containers[index].start.exit_file;
        let written = serde_json::to_vec(exit)
            .map_err(std::io::Error::from)
            .and_then(|bytes| host::atomic_file::write(path, &bytes));
        if let Err(error) = written {
            eprintln!("write {}: {error}", path.display());
        }
    }

    fn decide_exec(&mut self, index: usize) {
        let exec = &mut self.execs[index];
        let Some(starting) = &exec.starting else {
            return;
        };
        let mut buffer = [0u8; 1024];
        let ended = loop {
            match sys::read(&starting.error_pipe, &mut buffer) {
                Ok(0) => break true,
                Ok(count) if exec.error_text.len() < MAX_ERROR_BYTES => {
                    exec.error_text.extend_from_slice(&buffer[..count]);
                }
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break false,
                Err(_) => break true,
            }
        };
        loop {
            match exec.decoder.take::<serde_json::Value>() {
                Ok(Some((message, mut fds))) => {
                    if let (Some(true), Some(fd)) = (message["terminal"].as_bool(), fds.pop()) {
                        exec.terminal = Some(fd);
                    }
                }
                Ok(None) => match exec.decoder.receive(&starting.result) {
                    Ok(0) | Err(_) => break,
                    Ok(_) => {}
                },
                Err(_) => break,
            }
        }
        if !ended {
            return;
        }
        let text = launch::told(&exec.error_text);
        let client = exec.client;
        let pid = exec::told_pid(&starting.pid_pipe);
        let lost = exec.wants_terminal && exec.terminal.is_none();
        let lost = lost || !self.is_new_child(pid);
        let exec = &mut self.execs[index];
        if !text.is_empty() || lost {
            let message = if text.is_empty() {
                "the exec's helper died".to_owned()
            } else {
                text
            };
            self.execs.swap_remove(index);
            return self.send(client, &failure(ErrorKind::Exec, message), Vec::new());
        }
        exec.starting = None;
        exec.pid = pid;
        let fds = exec.terminal.take().into_iter().collect();
        if let Some(at) = self.strays.iter().position(|(stray, ..)| *stray == pid) {
            exec.status = Some(self.strays.swap_remove(at).1);
        }
        self.send(client, &Response::ExecStarted { pid }, fds);
        self.finish_exec(index);
    }

    fn finish_exec(&mut self, index: usize) {
        let exec = &self.execs[index];
        let (Some(status), true) = (exec.status, exec.starting.is_none()) else {
            return;
        };
        let client = exec.client;
        self.execs.swap_remove(index);
        let (exit_code, _) = sys::decode_wait_status(status);
        self.send(client, &Response::ExecExited { exit_code }, Vec::new());
    }
}

fn not_found(id: &str) -> Response {
    failure(ErrorKind::NotFound, format!("container {id} not found"))
}
