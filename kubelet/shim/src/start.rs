//! The program's start: arguments, becoming a daemon, setting the sandbox up.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;

use shim_protocol::{CONFIG_NAME, SOCKET_NAME, ShimConfig, VERSION};

use crate::server::Server;
use crate::{cgroup, namespaces, seccomp, sys};

const USAGE: &str =
    "usage: gantry-shim serve STATE_DIR | compile-seccomp PROFILE FILTER | --version";

pub fn run(args: Vec<OsString>) -> ExitCode {
    // What the starter was started with itself is no business of ours, nor of a pod's.
    if let Err(error) = sys::close_all_but(3, &[]) {
        eprintln!("close descriptors: {error}");
        return ExitCode::FAILURE;
    }
    sys::Memory::note();
    let words: Vec<_> = args.iter().map(|arg| arg.to_str().unwrap_or("")).collect();
    let result = match words.as_slice() {
        ["serve", directory] => serve(Path::new(directory)),
        ["compile-seccomp", input, output] => {
            seccomp::compile(Path::new(input), Path::new(output)).map_err(|error| error.to_string())
        }
        ["--version"] => {
            println!(
                "gantry-shim {} (protocol {VERSION})",
                env!("CARGO_PKG_VERSION")
            );
            Ok(())
        }
        _ => Err(USAGE.to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Forks the daemon and returns when it serves, or with what it failed on.
fn serve(directory: &Path) -> Result<(), String> {
    let path = directory.join(CONFIG_NAME);
    let text = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let config: ShimConfig =
        serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    let (ready, tell) = sys::pipe().map_err(|error| format!("pipe: {error}"))?;
    if sys::fork().map_err(|error| format!("fork: {error}"))? == 0 {
        drop(ready);
        let code = match daemon(config, tell) {
            Ok(()) => 0,
            Err((tell, error)) => {
                eprintln!("{error}");
                if let Some(tell) = tell {
                    let _ = sys::write(&tell, error.as_bytes());
                }
                1
            }
        };
        sys::exit_now(code);
    }
    drop(tell);
    let mut message = Vec::new();
    let mut buffer = [0u8; 1024];
    loop {
        match sys::read(&ready, &mut buffer) {
            Ok(0) => break,
            Ok(count) => message.extend_from_slice(&buffer[..count]),
            Err(error) => return Err(format!("read: {error}")),
        }
    }
    match message.as_slice() {
        b"ok" => Ok(()),
        b"" => Err("the shim died at its start".to_owned()),
        error => Err(String::from_utf8_lossy(error).into_owned()),
    }
}

type Failure = (Option<OwnedFd>, String);

fn daemon(config: ShimConfig, tell: OwnedFd) -> Result<(), Failure> {
    let (server, _lock) = match prepare(config) {
        Ok(prepared) => prepared,
        Err(error) => return Err((Some(tell), error)),
    };
    let _ = sys::write(&tell, b"ok");
    drop(tell);
    // SAFETY: malloc_trim takes an integer. What the start used goes back to the kernel.
    unsafe { libc::malloc_trim(0) };
    server.run().map_err(|error| (None, error))
}

fn prepare(config: ShimConfig) -> Result<(Server, File), String> {
    // SAFETY: plain calls with integers and a static string; the process has one thread.
    unsafe {
        libc::setsid();
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_NAME, c"gantry-shim".as_ptr(), 0, 0, 0);
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 * 1024);
        libc::umask(0o022);
    }
    // A shim must outlive its pod under memory pressure. Without the right to do so, go on.
    let _ = fs::write("/proc/self/oom_score_adj", "-998");
    redirect_stdio(&config.state_dir)?;
    if let Some(limit) = config.open_files {
        sys::limit_open_files(limit.soft, limit.hard)
            .map_err(|error| format!("set RLIMIT_NOFILE to {}: {error}", limit.soft))?;
    }
    let lock = lock(&config.lock_path)?;
    let signals = sys::child_signals().map_err(|error| format!("signalfd: {error}"))?;
    if let Some(path) = &config.shim_cgroup {
        cgroup::enter_new(Path::new(path))
            .map_err(|error| format!("enter cgroup {path}: {error}"))?;
    }
    let init = namespaces::create(&config)?;
    // Bound by a relative name: a socket's name has 107 bytes, the state directory may be longer.
    std::env::set_current_dir(&config.state_dir)
        .map_err(|error| format!("{}: {error}", config.state_dir.display()))?;
    let _ = fs::remove_file(SOCKET_NAME);
    let listener =
        UnixListener::bind(SOCKET_NAME).map_err(|error| format!("bind {SOCKET_NAME}: {error}"))?;
    listener
        .set_nonblocking(true)
        .map_err(|error| format!("fcntl: {error}"))?;
    std::env::set_current_dir("/").map_err(|error| format!("chdir: {error}"))?;
    host::atomic_file::write(
        &config.state_dir.join("shim.pid"),
        std::process::id().to_string().as_bytes(),
    )
    .map_err(|error| format!("shim.pid: {error}"))?;
    let root = config.state_dir.join("libcontainer");
    // What libcontainer keeps of containers is not for the pod's root, whose way leads through here.
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&root)
        .map_err(|error| format!("{}: {error}", root.display()))?;
    Ok((Server::new(config, root, listener, signals, init), lock))
}

fn redirect_stdio(directory: &Path) -> Result<(), String> {
    let null = File::open("/dev/null").map_err(|error| format!("/dev/null: {error}"))?;
    let path = directory.join("shim.log");
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path)
        .map_err(|error| format!("{}: {error}", path.display()))?;
    for (fd, target) in [
        (null.as_raw_fd(), 0),
        (log.as_raw_fd(), 1),
        (log.as_raw_fd(), 2),
    ] {
        sys::dup2(fd, target).map_err(|error| format!("dup2: {error}"))?;
    }
    Ok(())
}

/// One running sandbox a pod UID: the kernel drops the lock with the shim, however it ends.
fn lock(path: &Path) -> Result<File, String> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|error| format!("{}: {error}", parent.display()))?;
    }
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| format!("{}: {error}", path.display()))?;
    file.try_lock().map_err(|error| {
        format!(
            "another sandbox of this pod is running ({}: {error})",
            path.display()
        )
    })?;
    Ok(file)
}
