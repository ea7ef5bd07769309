//! PID 1 of a pod whose containers share their PID namespace: it reaps, until the shim dies.
//!
//! Every container of the pod sees this process, and one with CAP_SYS_PTRACE can look into it and take
//! it over. So it has nothing: an empty read-only root in a mount namespace of its own, no descriptor,
//! no capability, no user of the node's, no heap, a filter that knows waiting only, and no path of the
//! node on its command line. The shim lets no container near before that is so.

use std::os::fd::OwnedFd;
use std::path::Path;

use shim_protocol::{IdMap, UserMappings};

use crate::{filter, process, sys};

/// As the pause image's user. Source: containerd's and Kubernetes' pause, 65535.
const USER: u32 = 65_535;

/// The user to run as: the namespace's root where it has no other.
pub fn user(mappings: Option<&UserMappings>) -> u32 {
    let maps = |maps: &[IdMap]| {
        maps.iter().any(|map| {
            USER.checked_sub(map.container_id)
                .is_some_and(|offset| offset < map.length)
        })
    };
    match mappings {
        Some(mappings) if !(maps(&mappings.uids) && maps(&mappings.gids)) => 0,
        _ => USER,
    }
}

/// What a process needs that waits for signals and children.
const CALLS: [libc::c_long; 6] = [
    libc::SYS_wait4,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    // Once, for what is still open.
    libc::SYS_close_range,
    libc::SYS_exit_group,
];

/// Told on the socket when all is given up but the socket itself; its end then tells the rest.
pub const READY: &[u8] = b"r";

/// Never returns. What goes wrong is told on `socket`, as `e` and words.
pub fn run(user: u32, socket: &OwnedFd) -> ! {
    if let Err(error) = give_up_all(user, socket) {
        let _ = sys::write(socket, format!("e{error}").as_bytes());
        sys::exit_now(1)
    }
    let mut filter = [filter::instruction(0, 0, 0, 0); 2 * CALLS.len()];
    let program = filter::only(&CALLS);
    filter[..program.len()].copy_from_slice(&program);
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: plain libc calls in a process of one thread; nothing allocates or looks at the heap, what is
    // pointed to lies on the stack.
    unsafe {
        sys::Memory::forget_heap();
        if libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        ) < 0
        {
            libc::_exit(1);
        }
        libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0);
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        loop {
            while libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) > 0 {}
            libc::sigwaitinfo(&set, std::ptr::null_mut());
        }
    }
}

fn give_up_all(user: u32, socket: &OwnedFd) -> Result<(), String> {
    sys::Memory::hide_arguments("gantry-init");
    // SAFETY: plain libc calls with integers and a static string.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, c"gantry-init".as_ptr(), 0, 0, 0);
        libc::setsid();
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
    }
    empty_root()?;
    process::drop_bounding(0).map_err(|error| format!("drop bounding capabilities: {error}"))?;
    // SAFETY: integers only.
    unsafe {
        sys::check(libc::setgroups(0, std::ptr::null()))
            .and_then(|_| sys::check(libc::setresgid(user, user, user)))
            .and_then(|_| sys::check(libc::setresuid(user, user, user)))
            .map_err(|error| format!("set user {user}: {error}"))?;
    }
    process::set_capabilities(0, 0, 0).map_err(|error| format!("drop capabilities: {error}"))?;
    // The change of ids undoes these two.
    for (option, value) in [
        (libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong),
        (libc::PR_SET_DUMPABLE, 0),
        (libc::PR_SET_NO_NEW_PRIVS, 1),
    ] {
        // SAFETY: integers only.
        sys::check(unsafe { libc::prctl(option, value, 0, 0, 0) })
            .map_err(|error| format!("prctl {option}: {error}"))?;
    }
    sys::write(socket, READY)
        .map(drop)
        .map_err(|error| format!("report: {error}"))
}

/// A mount namespace with nothing in it but an empty directory.
fn empty_root() -> Result<(), String> {
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    // Any directory serves that everybody may enter: the mount is on top of it for us alone.
    let place = Path::new("/proc");
    sys::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP)
        .and_then(|()| sys::make_private(Path::new("/")))
        .and_then(|()| sys::mount("tmpfs", place, flags, "mode=555,size=4k,nr_inodes=2"))
        .and_then(|()| sys::pivot_into(place))
        .and_then(|()| {
            let remount = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY;
            sys::remount(Path::new("/"), remount | flags)
        })
        .map_err(|error| format!("empty root: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_is_one_that_the_namespace_has() {
        let mappings = |length| UserMappings {
            uids: vec![IdMap {
                container_id: 0,
                host_id: 500_000,
                length,
            }],
            gids: vec![IdMap {
                container_id: 0,
                host_id: 500_000,
                length,
            }],
        };
        assert_eq!(user(None), 65_535);
        assert_eq!(user(Some(&mappings(65_536))), 65_535);
        assert_eq!(user(Some(&mappings(65_535))), 0);
    }
}
