//! The `RuntimeDefault` seccomp profile: what it allows always, and what with which capability.
//!
//! Pure: capabilities in, an OCI `linux.seccomp` object out. The shim compiles it.
//!
//! Upstream: containerd's `contrib/seccomp`, v2.4 (the list of names and conditions).

use serde_json::{Value, json};
use shim_protocol::capability;

/// Allowed whatever the container may do.
const ALWAYS: &str = "\
    _llseek _newselect accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown \
    chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 \
    clock_nanosleep clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 \
    epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd \
    eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark \
    fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock \
    fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex \
    futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu \
    getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer \
    getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 \
    getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getuid32 getxattr getxattrat \
    inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents \
    io_pgetevents_time64 io_setup io_submit ioctl ioprio_get ioprio_set ipc kill landlock_add_rule \
    landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount \
    listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lsm_get_self_attr lsm_list_modules \
    lsm_set_self_attr lstat lstat64 madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir \
    mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open \
    mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget \
    msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat open openat openat2 pause \
    pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl \
    pread64 preadv preadv2 prlimit64 process_mrelease pselect6 pselect6_time64 pwrite64 pwritev pwritev2 read \
    readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages \
    removexattr removexattrat rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending \
    rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 \
    rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam \
    sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr \
    sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64 \
    send sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address setfsgid \
    setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid \
    setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setsockopt setuid \
    setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask \
    sigreturn socketcall socketpair splice stat stat64 statfs statfs64 statmount statx symlink symlinkat sync \
    sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime \
    timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime \
    timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime \
    utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev";

/// On this architecture only.
const ARCHITECTURE: &[&str] = if cfg!(target_arch = "x86_64") {
    &["arch_prctl", "modify_ldt"]
} else if cfg!(target_arch = "aarch64") {
    &[
        "arm_fadvise64_64",
        "arm_sync_file_range",
        "sync_file_range2",
        "breakpoint",
        "cacheflush",
        "set_tls",
    ]
} else {
    &[]
};

/// Allowed since kernel 4.8, whose ptrace no longer steps around seccomp.
const TRACING: &[&str] = &["process_vm_readv", "process_vm_writev", "ptrace"];

/// Allowed with a capability in the bounding set.
const BY_CAPABILITY: &[(&str, &str)] = &[
    ("DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr \
         move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount \
         umount2 unshare",
    ),
    ("SYS_BOOT", "reboot"),
    ("SYS_CHROOT", "chroot"),
    ("SYS_MODULE", "delete_module init_module finit_module"),
    ("SYS_PACCT", "acct"),
    (
        "SYS_PTRACE",
        "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    ),
    ("SYS_RAWIO", "iopl ioperm"),
    (
        "SYS_TIME",
        "settimeofday stime clock_settime clock_settime64",
    ),
    ("SYS_TTY_CONFIG", "vhangup"),
    (
        "SYS_NICE",
        "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    ),
    ("SYSLOG", "syslog"),
    ("BPF", "bpf"),
    ("PERFMON", "perf_event_open"),
];

/// personality(2) may ask for Linux, with or without 32-bit uname and fixed addresses, or just ask.
const PERSONALITIES: [u64; 5] = [0x0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Address families whose sockets are refused below.
const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;
/// AF_MCTP, the newest.
const AF_LAST: u64 = 45;

/// Namespaces that clone(2) may not make without CAP_SYS_ADMIN.
const CLONE_NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP) as u64;

/// The profile for a container with this bounding set.
pub fn default_profile(bounding: u64) -> Value {
    let has = |name: &str| capability::bit(name).is_some_and(|bit| bounding & bit != 0);
    let mut allowed: Vec<&str> = ALWAYS.split_whitespace().collect();
    allowed.extend(ARCHITECTURE);
    allowed.extend(TRACING);
    for (capability, names) in BY_CAPABILITY {
        if has(capability) {
            allowed.extend(names.split_whitespace());
        }
    }
    allowed.sort_unstable();
    allowed.dedup();
    let argument = |index: u32, value: u64, value_two: u64, op: &str| json!({ "index": index, "value": value, "valueTwo": value_two, "op": op });
    let allow_if = |name: &str, args: Vec<Value>| json!({ "names": [name], "action": "SCMP_ACT_ALLOW", "args": args });
    let mut syscalls = vec![json!({ "names": allowed, "action": "SCMP_ACT_ALLOW" })];
    syscalls.push(allow_if(
        "socket",
        vec![argument(0, AF_ALG, 0, "SCMP_CMP_LT")],
    ));
    for family in (AF_ALG + 1..=AF_LAST).filter(|family| *family != AF_VSOCK) {
        syscalls.push(allow_if(
            "socket",
            vec![argument(0, family, 0, "SCMP_CMP_EQ")],
        ));
    }
    for value in PERSONALITIES {
        syscalls.push(allow_if(
            "personality",
            vec![argument(0, value, 0, "SCMP_CMP_EQ")],
        ));
    }
    if !has("SYS_ADMIN") {
        syscalls.push(allow_if(
            "clone",
            vec![argument(0, CLONE_NAMESPACES, 0, "SCMP_CMP_MASKED_EQ")],
        ));
        // Not EPERM: glibc falls back to clone(2) on ENOSYS only.
        syscalls.push(
            json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS }),
        );
    }
    let architectures = if cfg!(target_arch = "x86_64") {
        json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"])
    } else if cfg!(target_arch = "aarch64") {
        json!(["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"])
    } else {
        json!([])
    };
    json!({ "defaultAction": "SCMP_ACT_ERRNO", "architectures": architectures, "syscalls": syscalls })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(bounding: u64, name: &str) -> bool {
        default_profile(bounding)["syscalls"][0]["names"]
            .as_array()
            .unwrap()
            .iter()
            .any(|known| known == name)
    }

    #[test]
    fn capabilities_open_their_calls() {
        let admin = capability::bit("SYS_ADMIN").unwrap();
        for (bounding, name, expected) in [
            (0, "read", true),
            (0, "ptrace", true),
            (0, "mount", false),
            (0, "unshare", false),
            (0, "chroot", false),
            (admin, "mount", true),
            (admin, "reboot", false),
            (capability::bit("SYS_CHROOT").unwrap(), "chroot", true),
        ] {
            assert_eq!(allows(bounding, name), expected, "{name} with {bounding:x}");
        }
        let text = default_profile(0).to_string();
        assert!(text.contains("clone3"));
        assert!(!default_profile(admin).to_string().contains("errnoRet"));
    }
}
