//! One turn of the loop: what to wait for, and what to do with what came.

use super::*;

/// Whom a polled descriptor belongs to. Indexes hold for one turn's dispatch only as far as nothing
/// was removed before; handlers look again.
#[derive(Clone, Debug)]
pub enum Token {
    Signals,
    Listener,
    Client(u64),
    Sink(u64, usize),
    Creation(String),
    Output(String, Stream),
    Exec(u64),
}

impl Server {
    pub(super) fn turn(&mut self) -> Result<(), String> {
        let (mut fds, tokens) = self.interests();
        let timeout = self.timeout();
        sys::poll(&mut fds, timeout).map_err(|error| format!("poll: {error}"))?;
        // Output before signals: what a container wrote is in the log when its exit is told.
        let ready = |fd: &libc::pollfd| fd.revents != 0;
        for (fd, token) in fds.iter().zip(&tokens).filter(|(fd, _)| ready(fd)) {
            self.dispatch(token, fd.revents);
        }
        self.timers();
        self.finish_shutdown();
        Ok(())
    }

    fn interests(&self) -> (Vec<libc::pollfd>, Vec<Token>) {
        let (mut fds, mut tokens) = (Vec::new(), Vec::new());
        let mut add = |fd: i32, events: i16, token: Token| {
            fds.push(libc::pollfd {
                fd,
                events,
                revents: 0,
            });
            tokens.push(token);
        };
        for container in &self.containers {
            let id = &container.start.id;
            if let Phase::Creating(pending) = &container.phase {
                if pending.created.is_none() {
                    add(
                        pending.creation.result.as_raw_fd(),
                        libc::POLLIN,
                        Token::Creation(id.clone()),
                    );
                }
                if !pending.errors_ended {
                    add(
                        pending.creation.error_pipe.as_raw_fd(),
                        libc::POLLIN,
                        Token::Creation(id.clone()),
                    );
                }
            }
            for stream in [Stream::Stdout, Stream::Stderr] {
                if let Some(fd) = container.output(stream)
                    && !self.is_held_back(id, stream)
                {
                    add(
                        fd.as_raw_fd(),
                        libc::POLLIN,
                        Token::Output(id.clone(), stream),
                    );
                }
            }
        }
        for exec in &self.execs {
            if let Some(starting) = &exec.starting {
                add(
                    starting.error_pipe.as_raw_fd(),
                    libc::POLLIN,
                    Token::Exec(exec.client),
                );
            }
        }
        for (id, client) in &self.clients {
            let events = libc::POLLIN
                | if client.outgoing.is_empty() {
                    0
                } else {
                    libc::POLLOUT
                };
            add(client.socket.as_raw_fd(), events, Token::Client(*id));
            if let Role::Attached { sinks, .. } = &client.role {
                for (index, sink) in sinks.iter().enumerate() {
                    if let Some(sink) = sink {
                        // With nothing to write only a vanished reader is of interest.
                        let events = if sink.pending.is_empty() {
                            0
                        } else {
                            libc::POLLOUT
                        };
                        add(sink.fd.as_raw_fd(), events, Token::Sink(*id, index));
                    }
                }
            }
        }
        add(self.signals.as_raw_fd(), libc::POLLIN, Token::Signals);
        add(self.listener.as_raw_fd(), libc::POLLIN, Token::Listener);
        (fds, tokens)
    }

    fn timeout(&self) -> i32 {
        let now = sys::monotonic_ms();
        let drains = self
            .containers
            .iter()
            .filter_map(|container| match container.phase {
                Phase::Draining { deadline_ms, .. } => Some(deadline_ms),
                _ => None,
            });
        let stalls = self
            .clients
            .values()
            .filter_map(|client| match &client.role {
                Role::Attached { sinks, .. } => Some(sinks.iter().flatten()),
                _ => None,
            })
            .flatten()
            .filter_map(|sink| Some(sink.stalled_since_ms? + STALL_MS));
        let shutdown = self.shutdown.map(|(_, deadline)| deadline);
        drains
            .chain(stalls)
            .chain(shutdown)
            .min()
            .map_or(-1, |deadline| {
                deadline.saturating_sub(now).min(60_000) as i32
            })
    }

    fn timers(&mut self) {
        for index in 0..self.containers.len() {
            self.finish_container(index);
        }
        let now = sys::monotonic_ms();
        for client in self.clients.values_mut() {
            if let Role::Attached { sinks, .. } = &mut client.role {
                for sink in sinks {
                    if sink.as_ref().is_some_and(|sink| {
                        sink.stalled_since_ms
                            .is_some_and(|since| now >= since + STALL_MS)
                    }) {
                        *sink = None;
                    }
                }
            }
        }
    }

    fn dispatch(&mut self, token: &Token, events: i16) {
        match token {
            Token::Signals => self.reap(),
            Token::Listener => self.accept(),
            Token::Client(id) => self.serve_client(*id, events),
            Token::Sink(id, index) => {
                if let Some(Client {
                    role: Role::Attached { sinks, .. },
                    ..
                }) = self.clients.get_mut(id)
                {
                    let gone = events & (libc::POLLERR | libc::POLLNVAL) != 0;
                    if gone || sinks[*index].as_mut().is_some_and(|sink| !sink.flush()) {
                        sinks[*index] = None;
                    }
                }
            }
            Token::Creation(id) => {
                if let Some(index) = self
                    .containers
                    .iter()
                    .position(|container| container.start.id == *id)
                {
                    if let Phase::Creating(pending) = &mut self.containers[index].phase {
                        pending.read_result();
                        pending.read_errors();
                        if matches!(pending.created, Some(Err(_))) {
                            // Whether a signal ended a helper belongs into the answer.
                            self.reap();
                        }
                    }
                    self.decide_start(index);
                }
            }
            Token::Output(id, stream) => self.copy_output(id, *stream),
            Token::Exec(client) => {
                if let Some(index) = self.execs.iter().position(|exec| exec.client == *client) {
                    self.decide_exec(index);
                }
            }
        }
    }

    fn accept(&mut self) {
        while let Ok((socket, _)) = self.listener.accept() {
            if self.clients.len() < MAX_CLIENTS && socket.set_nonblocking(true).is_ok() {
                self.clients.insert(self.next_client, Client::new(socket));
                self.next_client += 1;
            }
        }
    }

    fn serve_client(&mut self, id: u64, events: i16) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        if events & libc::POLLOUT != 0 && client.flush().is_err() {
            return self.drop_client(id);
        }
        if events & (libc::POLLIN | libc::POLLHUP | libc::POLLERR) == 0 {
            return;
        }
        loop {
            let Some(client) = self.clients.get_mut(&id) else {
                return;
            };
            match client.decoder.take::<Request>() {
                Ok(Some((request, fds))) => {
                    self.handle(id, request, fds);
                    continue;
                }
                Ok(None) => {}
                Err(error) => {
                    eprintln!("client {id}: {error}");
                    return self.drop_client(id);
                }
            }
            match client.decoder.receive(&client.socket) {
                Ok(0) => return self.drop_client(id),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(_) => return self.drop_client(id),
            }
        }
    }

    fn sinks<'a>(&'a self, id: &'a str, stream: Stream) -> impl Iterator<Item = &'a Sink> {
        self.clients
            .values()
            .filter_map(move |client| match &client.role {
                Role::Attached {
                    container, sinks, ..
                } if container == id => sinks[stream as usize].as_ref(),
                _ => None,
            })
    }

    fn is_held_back(&self, id: &str, stream: Stream) -> bool {
        self.sinks(id, stream).any(Sink::is_full)
    }

    fn copy_output(&mut self, id: &str, stream: Stream) {
        let Some(index) = self
            .containers
            .iter()
            .position(|container| container.start.id == *id)
        else {
            return;
        };
        let container = &mut self.containers[index];
        let Some(fd) = container.output(stream) else {
            return;
        };
        match sys::read(fd, &mut self.buffer) {
            Ok(count) if count > 0 => {
                let bytes = &self.buffer[..count];
                container.log.append(stream, bytes, sys::now_ns());
                for client in self.clients.values_mut() {
                    if let Role::Attached {
                        container, sinks, ..
                    } = &mut client.role
                        && container == id
                        && sinks[stream as usize]
                            .as_mut()
                            .is_some_and(|sink| !sink.push(bytes))
                    {
                        sinks[stream as usize] = None;
                    }
                }
            }
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted
                ) => {}
            // The end; a terminal tells it as EIO.
            _ => {
                container.end_output(stream);
                self.finish_container(index);
            }
        }
    }

    fn reap(&mut self) {
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>() * 8];
        while sys::read(&self.signals, &mut info).is_ok_and(|count| count == info.len()) {}
        let now_ns = sys::now_ns();
        while let Some((pid, status)) = sys::reap_one() {
            self.reaped(pid, status, now_ns);
        }
        let waiting = self.execs.iter().any(|exec| exec.starting.is_some())
            || self
                .containers
                .iter()
                .any(|container| matches!(container.phase, Phase::Creating(_)));
        if !waiting {
            self.strays.clear();
        }
    }

    fn reaped(&mut self, pid: i32, status: i32, now_ns: i64) {
        if self.init == Some(pid) {
            self.init = None;
            return;
        }
        if let Some(index) = self
            .containers
            .iter()
            .position(|container| container.pid == pid)
        {
            return self.container_exited(index, status, now_ns);
        }
        if let Some(index) = self.execs.iter().position(|exec| exec.pid == pid) {
            self.execs[index].status = Some(status);
            return self.finish_exec(index);
        }
        if self.strays.len() >= MAX_STRAYS {
            self.strays.remove(0);
        }
        self.strays.push((pid, status, now_ns));
    }
}
