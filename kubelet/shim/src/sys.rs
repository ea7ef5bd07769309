//! Thin wrappers over system calls: every `unsafe` that is not about processes lives here.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Turns a C return value into a result.
pub fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

pub fn path_to_c(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "path with a NUL byte"))
}

/// (read end, write end), both close-on-exec.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for two descriptors; on success both are new and ours.
    unsafe {
        check(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC))?;
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

/// A connected pair of unix stream sockets, both close-on-exec.
pub fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: as in `pipe`.
    unsafe {
        check(libc::socketpair(
            libc::AF_UNIX,
            libc::SOCK_STREAM | libc::SOCK_CLOEXEC,
            0,
            ends.as_mut_ptr(),
        ))?;
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

pub fn set_nonblocking(fd: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: fcntl on a live descriptor with integer arguments.
    unsafe {
        let flags = check(libc::fcntl(fd.as_raw_fd(), libc::F_GETFL))?;
        check(libc::fcntl(
            fd.as_raw_fd(),
            libc::F_SETFL,
            flags | libc::O_NONBLOCK,
        ))?;
    }
    Ok(())
}

pub fn duplicate(fd: &impl AsRawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl on a live descriptor; the result is new and ours.
    unsafe {
        Ok(OwnedFd::from_raw_fd(check(libc::fcntl(
            fd.as_raw_fd(),
            libc::F_DUPFD_CLOEXEC,
            3,
        ))?))
    }
}

pub fn read(fd: &impl AsRawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer is live and as long as stated.
    let count = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    if count < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(count as usize)
    }
}

pub fn write(fd: &impl AsRawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the buffer is live and as long as stated.
    let count = unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    if count < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(count as usize)
    }
}

/// As [`write`], for a descriptor whose owner is elsewhere.
pub fn write_fd(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    write(&fd, bytes)
}

/// A mapping of our own, outside the heap, for as long as the process lives.
pub fn map_anonymous(length: usize) -> io::Result<*mut u8> {
    // SAFETY: a new private mapping touches nothing that is there.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length.max(1),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(base.cast())
}

/// Where this program's heap and arguments lie: what must not be seen in a container's PID namespace.
pub struct Memory {
    heap_start: usize,
    arguments: (usize, usize),
}

static MEMORY: std::sync::OnceLock<Memory> = std::sync::OnceLock::new();

impl Memory {
    /// Notes the places, while the node's /proc is at hand. Everything is allocated on the one heap from now on.
    pub fn note() {
        // SAFETY: integers only.
        unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30) };
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        let heap_start = maps
            .lines()
            .find(|line| line.ends_with("[heap]"))
            .and_then(|line| usize::from_str_radix(line.split('-').next()?, 16).ok())
            .unwrap_or(0);
        // proc(5): arg_start and arg_end are fields 48 and 49; the name in field 2 may have spaces.
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let fields: Vec<usize> = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .map(|field| field.parse().unwrap_or(0))
            .collect();
        let arguments = match (fields.get(45), fields.get(46)) {
            (Some(start), Some(end)) if *start > 0 && end > start => (*start, *end),
            _ => (0, 0),
        };
        let _ = MEMORY.set(Self {
            heap_start,
            arguments,
        });
    }

    fn heap(&self) -> (*mut libc::c_void, usize) {
        // SAFETY: tells the end of the heap.
        let end = unsafe { libc::sbrk(0) } as usize;
        let length = if self.heap_start == 0 {
            0
        } else {
            end.saturating_sub(self.heap_start)
        };
        (self.heap_start as *mut libc::c_void, length)
    }

    /// Children born from now on have no heap: they may not allocate, nor touch what was allocated.
    pub fn keep_heap_from_children() {
        if let Some(memory) = MEMORY.get() {
            let (start, length) = memory.heap();
            // SAFETY: advice about our own mapping; the children it concerns use none of it.
            unsafe { libc::madvise(start, length, libc::MADV_DONTFORK) };
        }
    }

    /// Empties the heap for good: the process may not use it afterwards.
    pub fn forget_heap() {
        if let Some(memory) = MEMORY.get() {
            let (start, length) = memory.heap();
            // SAFETY: the caller allocates nothing and touches nothing allocated from here on.
            unsafe { libc::madvise(start, length, libc::MADV_DONTNEED) };
        }
    }

    /// Overwrites the command line as others see it. Only for a process of its own: a fork.
    pub fn hide_arguments(name: &str) {
        if let Some(Self {
            arguments: (start, end),
            ..
        }) = MEMORY.get()
            && end > start
        {
            // SAFETY: the kernel told where the strings lie, on our own writable stack; Rust has its own copies.
            let place = unsafe { std::slice::from_raw_parts_mut(*start as *mut u8, end - start) };
            place.fill(0);
            let count = name.len().min(place.len() - 1);
            place[..count].copy_from_slice(&name.as_bytes()[..count]);
        }
    }
}

/// Closes every descriptor from `first` on but those in `keep`.
pub fn close_all_but(first: RawFd, keep: &[RawFd]) -> io::Result<()> {
    let close = |first: u32, last: u32| {
        if first > last {
            return Ok(());
        }
        // SAFETY: integers only; nothing here owns a descriptor that is used afterwards.
        check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) as libc::c_int })
            .map(drop)
    };
    let mut keep: Vec<u32> = keep
        .iter()
        .filter(|fd| **fd >= first)
        .map(|fd| *fd as u32)
        .collect();
    keep.sort_unstable();
    let mut next = first as u32;
    for fd in keep {
        if fd > next {
            close(next, fd - 1)?;
        }
        next = next.max(fd + 1);
    }
    close(next, u32::MAX)
}

/// Sets RLIMIT_NOFILE; what the hard limit in force does not allow is cut to it.
pub fn limit_open_files(soft: u64, hard: u64) -> io::Result<()> {
    // SAFETY: `limit` is live in both calls.
    unsafe {
        let mut limit = libc::rlimit {
            rlim_cur: soft.min(hard),
            rlim_max: hard,
        };
        if libc::setrlimit(libc::RLIMIT_NOFILE, &limit) == 0 {
            return Ok(());
        }
        check(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit))?;
        limit.rlim_cur = soft.min(limit.rlim_max);
        check(libc::setrlimit(libc::RLIMIT_NOFILE, &limit)).map(drop)
    }
}

/// Whether `pid` is a child of ours that was not reaped yet.
pub fn is_child(pid: i32) -> bool {
    // SAFETY: `info` is live; WNOWAIT leaves the child as it is.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
        pid > 0 && libc::waitid(libc::P_PID, pid as libc::id_t, &mut info, options) == 0
    }
}

/// Lets go of the controlling terminal of the session we lead, so that another session can have it.
pub fn release_terminal() {
    // SAFETY: integers only. The kernel hangs our own group up, which must not end us.
    unsafe {
        libc::signal(libc::SIGHUP, libc::SIG_IGN);
        libc::ioctl(0, libc::TIOCNOTTY);
        libc::signal(libc::SIGHUP, libc::SIG_DFL);
    }
}

/// A descriptor that becomes readable with SIGCHLD, which is blocked from now on.
pub fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: plain libc calls on a set that lives here; the descriptor is new and ours.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        check(libc::sigprocmask(
            libc::SIG_BLOCK,
            &set,
            std::ptr::null_mut(),
        ))?;
        Ok(OwnedFd::from_raw_fd(check(libc::signalfd(
            -1,
            &set,
            libc::SFD_CLOEXEC | libc::SFD_NONBLOCK,
        ))?))
    }
}

/// Undoes what the shim did to its signals; for every forked child.
pub fn reset_signals() {
    // SAFETY: plain libc calls; an empty set and default handlers are always valid.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

/// Who writes to a pipe that nobody reads gets an error, and is not ended: hooks need not read what they are told. Until [`reset_signals`].
pub fn ignore_broken_pipes() {
    // SAFETY: a plain libc call; ignoring is always valid.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// One child that ended: PID and raw wait status.
pub fn reap_one() -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: `status` is live.
    let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
    (pid > 0).then_some((pid, status))
}

/// (exit code, signal) of a raw wait status; 128 + signal if killed.
pub fn decode_wait_status(status: i32) -> (i32, Option<i32>) {
    if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        (128 + signal, Some(signal))
    } else {
        (libc::WEXITSTATUS(status), None)
    }
}

pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Forks. The caller is single-threaded, so the child may run any code.
pub fn fork() -> io::Result<i32> {
    // SAFETY: this program has one thread, so no lock can be held by another at the fork.
    check(unsafe { libc::fork() })
}

pub fn wait_for(pid: i32) -> io::Result<i32> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is live.
        match check(unsafe { libc::waitpid(pid, &mut status, 0) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(_) => return Ok(status),
        }
    }
}

pub fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process without running anything of ours.
    unsafe { libc::_exit(code) }
}

pub fn poll(fds: &mut [libc::pollfd], timeout_ms: i32) -> io::Result<()> {
    // SAFETY: the slice is live and as long as stated.
    match check(unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout_ms) }) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
        other => other.map(drop),
    }
}

/// Unix time in nanoseconds.
pub fn now_ns() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as i64)
}

/// Milliseconds that only ever grow.
pub fn monotonic_ms() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is live.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

pub fn dup2(from: RawFd, to: RawFd) -> io::Result<()> {
    // SAFETY: integers only.
    check(unsafe { libc::dup2(from, to) }).map(drop)
}

pub fn set_namespace(fd: &impl AsRawFd, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: integers only.
    check(unsafe { libc::setns(fd.as_raw_fd(), kind) }).map(drop)
}

pub fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: integers only.
    check(unsafe { libc::unshare(flags) }).map(drop)
}

pub fn bind_mount(source: &Path, target: &Path) -> io::Result<()> {
    let (source, target) = (path_to_c(source)?, path_to_c(target)?);
    // SAFETY: both strings live through the call; a bind mount takes neither type nor data.
    check(unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            std::ptr::null(),
            libc::MS_BIND,
            std::ptr::null(),
        )
    })
    .map(drop)
}

/// Mounts the procfs of our PID namespace.
pub fn mount_proc(target: &Path) -> io::Result<()> {
    mount(
        "proc",
        target,
        libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC,
        "",
    )
}

/// Mounts a file system of the kernel's own, by its name.
pub fn mount(kind: &str, target: &Path, flags: libc::c_ulong, data: &str) -> io::Result<()> {
    let (kind, target, data) = (CString::new(kind)?, path_to_c(target)?, CString::new(data)?);
    // SAFETY: all strings live through the call.
    check(unsafe {
        libc::mount(
            kind.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags,
            data.as_ptr().cast(),
        )
    })
    .map(drop)
}

/// Changes flags or propagation of a mount.
pub fn remount(target: &Path, flags: libc::c_ulong) -> io::Result<()> {
    let target = path_to_c(target)?;
    // SAFETY: the string lives through the call; a change takes nothing else.
    check(unsafe {
        libc::mount(
            std::ptr::null(),
            target.as_ptr(),
            std::ptr::null(),
            flags,
            std::ptr::null(),
        )
    })
    .map(drop)
}

/// Makes `directory`, a mount point, the root of our mount namespace, and lets the old one go.
pub fn pivot_into(directory: &Path) -> io::Result<()> {
    std::env::set_current_dir(directory)?;
    // SAFETY: static strings. The old root is stacked on the new one, and taken off again.
    unsafe {
        check(libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) as libc::c_int)?;
        check(libc::umount2(c".".as_ptr(), libc::MNT_DETACH))?;
    }
    std::env::set_current_dir("/")
}

/// A detached copy of the mount at `path`, without those below it.
pub fn clone_mount(path: &Path) -> io::Result<OwnedFd> {
    let path = path_to_c(path)?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: the string lives through the call; the new descriptor is ours.
    unsafe {
        let fd = libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags);
        Ok(OwnedFd::from_raw_fd(check(fd as libc::c_int)?))
    }
}

/// Puts a detached mount at `target`.
pub fn attach_mount(mount: &OwnedFd, target: &Path) -> io::Result<()> {
    let target = path_to_c(target)?;
    // SAFETY: both strings live through the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        ) as libc::c_int
    })
    .map(drop)
}

/// Cuts the mount and those below it off from the host's later mounts.
pub fn make_private(target: &Path) -> io::Result<()> {
    remount(target, libc::MS_PRIVATE | libc::MS_REC)
}
