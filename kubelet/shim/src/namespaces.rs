//! The sandbox's namespaces: made in a forked child, pinned by bind mounts, so that no process has
//! to stand in for the pod. A shared PID namespace is the exception: it lives as long as its init
//! ([`crate::init`]). A view of its /proc is mounted beside the pins while nobody else is in it.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use shim_protocol::{IdMap, ShimConfig};

use crate::{init, pid_view, sys};

/// Names in `/proc/<pid>/ns` and under `<state_dir>/ns`.
const PINNED: [&str; 4] = ["user", "net", "ipc", "uts"];

/// Makes and pins what the configuration asks for. Returns the PID of the pod's init, if it has one.
pub fn create(config: &ShimConfig) -> Result<Option<i32>, String> {
    let directory = config.state_dir.join("ns");
    fs::create_dir_all(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    let pair = || sys::socket_pair().map_err(|error| format!("socketpair: {error}"));
    let ((ours, theirs), (init_ours, init_theirs)) = (pair()?, pair()?);
    let child = sys::fork().map_err(|error| format!("fork: {error}"))?;
    if child == 0 {
        drop((ours, init_ours));
        sys::reset_signals();
        let code = match inside(config, &theirs, &init_theirs) {
            Ok(()) => 0,
            Err(error) => {
                let _ = sys::write(&theirs, format!("e{error}").as_bytes());
                1
            }
        };
        sys::exit_now(code)
    }
    drop((theirs, init_theirs));
    let mut init = None;
    let result = outside(config, &directory, child, &ours, &mut init);
    drop(ours);
    let _ = sys::kill(child, libc::SIGKILL);
    let _ = sys::wait_for(child);
    let result = result.and_then(|()| match init {
        Some(_) => share_pids(&directory, &init_ours),
        None => Ok(()),
    });
    if let Err(error) = &result {
        eprintln!("namespaces: {error}");
        if let Some(init) = init {
            let _ = sys::kill(init, libc::SIGKILL);
            let _ = sys::wait_for(init);
        }
        unpin(&directory);
    }
    result.map(|()| init)
}

/// Mounts the view of /proc, and waits until the pod's init has given everything up.
fn share_pids(directory: &Path, init: &OwnedFd) -> Result<(), String> {
    pid_view::mount_proc(&directory.join("pid"), &directory.join(pid_view::POD_PROC))?;
    let mut told = Vec::new();
    let mut buffer = [0u8; 256];
    loop {
        match sys::read(init, &mut buffer).map_err(|error| format!("read: {error}"))? {
            0 => break,
            count => told.extend_from_slice(&buffer[..count]),
        }
    }
    match told.as_slice() {
        init::READY => Ok(()),
        [b'e', words @ ..] => Err(format!(
            "the pod's init: {}",
            String::from_utf8_lossy(words)
        )),
        _ => Err("the pod's init died".to_owned()),
    }
}

/// The parent's half: `u` asks for the id maps, `p<pid>` tells the pod's init, `d` is done, `e` an error.
fn outside(
    config: &ShimConfig,
    directory: &Path,
    child: i32,
    socket: &OwnedFd,
    init: &mut Option<i32>,
) -> Result<(), String> {
    loop {
        let mut buffer = [0u8; 512];
        let count = sys::read(socket, &mut buffer).map_err(|error| format!("read: {error}"))?;
        let text = String::from_utf8_lossy(&buffer[..count]);
        match text.as_bytes().first() {
            Some(b'u') => {
                let maps = config
                    .namespaces
                    .user
                    .as_ref()
                    .ok_or("unasked user namespace")?;
                write_map(child, "uid_map", &maps.uids)?;
                write_map(child, "gid_map", &maps.gids)?;
            }
            Some(b'p') => {
                *init = Some(
                    text[1..]
                        .parse::<i32>()
                        .map_err(|error| format!("pid: {error}"))?,
                )
            }
            Some(b'd') => break,
            Some(b'e') => return Err(text[1..].to_owned()),
            _ => return Err("the namespaces' maker died".to_owned()),
        }
        sys::write(socket, b"k").map_err(|error| format!("write: {error}"))?;
    }
    let wanted = &config.namespaces;
    let flags = [wanted.user.is_some(), wanted.net, wanted.ipc, wanted.uts];
    for (name, _) in PINNED.iter().zip(flags).filter(|(_, wanted)| *wanted) {
        pin(&format!("/proc/{child}/ns/{name}"), &directory.join(name))?;
    }
    if init.is_some() {
        // The init itself lets nobody look into it.
        let source = format!("/proc/{child}/ns/pid_for_children");
        pin(&source, &directory.join("pid"))?;
    }
    Ok(())
}

fn write_map(pid: i32, name: &str, maps: &[IdMap]) -> Result<(), String> {
    let lines: String = maps
        .iter()
        .map(|map| format!("{} {} {}\n", map.container_id, map.host_id, map.length))
        .collect();
    fs::write(format!("/proc/{pid}/{name}"), lines).map_err(|error| format!("{name}: {error}"))
}

fn pin(source: &str, target: &Path) -> Result<(), String> {
    File::create(target).map_err(|error| format!("{}: {error}", target.display()))?;
    sys::bind_mount(Path::new(source), target)
        .map_err(|error| format!("pin {}: {error}", target.display()))
}

/// Takes every pin away.
pub fn unpin(directory: &Path) {
    for name in PINNED.iter().chain(&["pid"]) {
        let path = directory.join(name);
        if let Ok(c_path) = sys::path_to_c(&path) {
            // SAFETY: the string lives through the call.
            unsafe { libc::umount2(c_path.as_ptr(), libc::MNT_DETACH) };
        }
        let _ = fs::remove_file(&path);
    }
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name
            .as_encoded_bytes()
            .starts_with(pid_view::POD_PROC.as_bytes())
        {
            pid_view::unmount(&entry.path());
        }
    }
}

/// The child's half: enters new namespaces and sets them up from inside.
fn inside(config: &ShimConfig, socket: &OwnedFd, init_socket: &OwnedFd) -> Result<(), String> {
    let wanted = &config.namespaces;
    if wanted.user.is_some() {
        sys::unshare(libc::CLONE_NEWUSER).map_err(|error| format!("unshare user: {error}"))?;
        ask(socket, "u")?;
        // SAFETY: integers only.
        unsafe {
            sys::check(libc::setresgid(0, 0, 0)).map_err(|error| format!("setresgid: {error}"))?;
            sys::check(libc::setresuid(0, 0, 0)).map_err(|error| format!("setresuid: {error}"))?;
            // The change of ids made the process undumpable, and its /proc entries root's.
            libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
        }
    }
    for (name, wanted, flag) in [
        ("net", wanted.net, libc::CLONE_NEWNET),
        ("ipc", wanted.ipc, libc::CLONE_NEWIPC),
        ("uts", wanted.uts, libc::CLONE_NEWUTS),
        ("pid", wanted.pid, libc::CLONE_NEWPID),
    ] {
        if wanted {
            sys::unshare(flag).map_err(|error| format!("unshare {name}: {error}"))?;
        }
    }
    if wanted.uts && !config.hostname.is_empty() {
        let name = config.hostname.as_bytes();
        // SAFETY: the buffer is live and as long as stated.
        sys::check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) })
            .map_err(|error| format!("set hostname {:?}: {error}", config.hostname))?;
    }
    if wanted.net {
        raise_loopback().map_err(|error| format!("raise lo: {error}"))?;
    }
    for (name, value) in &config.sysctls {
        let path = Path::new("/proc/sys").join(sysctl_path(name)?);
        fs::write(&path, value)
            .map_err(|error| format!("set sysctl {name:?} to {value:?}: {error}"))?;
    }
    if wanted.pid {
        // SAFETY: as fork: one thread, and no stack is given. CLONE_PARENT: the shim reaps it.
        let pid = unsafe {
            libc::syscall(
                libc::SYS_clone,
                libc::CLONE_PARENT | libc::SIGCHLD,
                0,
                0,
                0,
                0,
            ) as i32
        };
        match pid {
            0 => init::run(init::user(wanted.user.as_ref()), init_socket),
            pid if pid < 0 => return Err(format!("clone: {}", io::Error::last_os_error())),
            pid => ask(socket, &format!("p{pid}"))?,
        }
    }
    ask(socket, "d").or(Ok(()))
}

/// `net.ipv4.conf.all.x` or, where a name itself has dots, `net/ipv4/conf/eth0.1/x`.
fn sysctl_path(name: &str) -> Result<String, String> {
    let slashed = match name.find(['.', '/']) {
        Some(at) if name.as_bytes()[at] == b'/' => name.to_owned(),
        // Dots separate, and a slash stands for a dot.
        _ => name
            .chars()
            .map(|letter| match letter {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
    };
    if slashed
        .split('/')
        .any(|part| part.is_empty() || part == "..")
    {
        return Err(format!("invalid sysctl name {name:?}"));
    }
    Ok(slashed)
}

fn ask(socket: &OwnedFd, text: &str) -> Result<(), String> {
    sys::write(socket, text.as_bytes()).map_err(|error| format!("write: {error}"))?;
    let mut answer = [0u8; 1];
    match sys::read(socket, &mut answer) {
        Ok(1) => Ok(()),
        Ok(_) => Err("the shim hung up".to_owned()),
        Err(error) => Err(format!("read: {error}")),
    }
}

fn raise_loopback() -> io::Result<()> {
    // SAFETY: `request` lives through both calls and has the layout SIOC?IFFLAGS wants; the socket is
    // closed by the process's end at the latest.
    unsafe {
        let socket = sys::check(libc::socket(
            libc::AF_INET,
            libc::SOCK_DGRAM | libc::SOCK_CLOEXEC,
            0,
        ))?;
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        sys::check(libc::ioctl(socket, libc::SIOCGIFFLAGS, &mut request))?;
        request.ifr_ifru.ifru_flags |= (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        sys::check(libc::ioctl(socket, libc::SIOCSIFFLAGS, &request))?;
        libc::close(socket);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctl_names_have_two_spellings() {
        for (name, expected) in [
            ("kernel.shm_rmid_forced", Some("kernel/shm_rmid_forced")),
            (
                "net.ipv4.conf.eth0/1.forwarding",
                Some("net/ipv4/conf/eth0.1/forwarding"),
            ),
            (
                "net/ipv4/conf/eth0.1/forwarding",
                Some("net/ipv4/conf/eth0.1/forwarding"),
            ),
            ("kernel/../../etc/passwd", None),
            ("", None),
        ] {
            assert_eq!(sysctl_path(name).ok().as_deref(), expected, "{name}");
        }
    }
}
