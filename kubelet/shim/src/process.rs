//! The last steps of a process before `execve`: identity, capabilities, seccomp.
//!
//! Runs in a forked child that already is in the container's namespaces, as their root with every
//! capability. libcontainer's own last steps are not used (its config asks for root and all
//! capabilities): its exec forgets the user namespace and seccomp, and its create compiles the
//! profile each time. Here both take the same road, with a filter compiled once.
//!
//! Order, and why: stdio is chowned while root may; the keep-capabilities flag carries the
//! permitted set over the change of ids; the filter is loaded while CAP_SYS_ADMIN is effective
//! (without no_new_privs the kernel wants it) and after everything a strict profile could forbid
//! except `capset` and `execve`. Where others can be in the PID namespace already, all of this comes
//! before the process is born there: see [`crate::launch`].

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use shim_protocol::ProcessSpec;

use crate::filter;
use crate::launch::{Door, Launch};
use crate::sys::{self, check, exit_now};

/// What `execvp` takes if the environment names none. Source: runc.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const CAP_SYS_ADMIN: u64 = 1 << 21;
const LAST_CAPABILITY: u32 = 63;

/// A process ready to run: everything that must be read before entering the container.
#[derive(Clone, Debug)]
pub struct Prepared {
    pub spec: ProcessSpec,
    filter: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("exec: {0:?}: executable file not found in $PATH")]
    NotInPath(String),
    #[error("exec: {path:?}: {reason}")]
    NotExecutable { path: String, reason: String },
    #[error("{step}: {source}")]
    Step {
        step: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("chdir to cwd ({cwd:?}) set in config.json failed: {source}")]
    WorkingDirectory {
        cwd: String,
        #[source]
        source: io::Error,
    },
    #[error("no command specified")]
    NoCommand,
    #[error("{0}: string with a NUL byte")]
    Nul(&'static str),
    #[error(transparent)]
    Id(#[from] crate::ids::IdError),
}

fn step(step: &'static str) -> impl FnOnce(io::Error) -> ProcessError {
    move |source| ProcessError::Step { step, source }
}

impl Prepared {
    /// Reads the filter; call it before leaving the host's mount namespace.
    pub fn new(spec: ProcessSpec) -> Result<Self, ProcessError> {
        let filter = match &spec.seccomp_bpf {
            Some(path) => std::fs::read(path).map_err(step("read seccomp filter"))?,
            None => Vec::new(),
        };
        Ok(Self { spec, filter })
    }

    /// The working directory is made if it is missing, as runc does. Entering it tells what went wrong.
    fn make_directory(&self) {
        let cwd = Path::new(self.cwd());
        if !cwd.exists() {
            let _ = std::fs::create_dir_all(cwd);
        }
    }

    /// Looks the program up, as the container's root sees it.
    fn find_program(&self) -> Result<PathBuf, ProcessError> {
        let program = self.spec.args.first().ok_or(ProcessError::NoCommand)?;
        if program.is_empty() {
            return Err(ProcessError::NotInPath(String::new()));
        }
        if program.contains('/') {
            let path = Path::new(self.cwd()).join(program);
            return match executable(&path) {
                Ok(()) => Ok(path),
                Err(reason) => Err(ProcessError::NotExecutable {
                    path: program.clone(),
                    reason,
                }),
            };
        }
        let search = self
            .spec
            .env
            .iter()
            .rev()
            .find_map(|entry| entry.strip_prefix("PATH="))
            .unwrap_or(DEFAULT_PATH);
        let mut denied = None;
        for directory in search.split(':') {
            let directory = if directory.is_empty() { "." } else { directory };
            let path = Path::new(self.cwd()).join(directory).join(program);
            match executable(&path) {
                Ok(()) => return Ok(path),
                Err(reason) if path.exists() => denied = denied.or(Some(reason)),
                Err(_) => {}
            }
        }
        match denied {
            Some(reason) => Err(ProcessError::NotExecutable {
                path: program.clone(),
                reason,
            }),
            None => Err(ProcessError::NotInPath(program.clone())),
        }
    }

    fn cwd(&self) -> &str {
        if self.spec.cwd.is_empty() {
            "/"
        } else {
            &self.spec.cwd
        }
    }

    /// Becomes the process. Returns only to tell why it could not. Closes every descriptor but stdio and
    /// `keep`: what the container names (its directory, its program) may lead through /proc/self/fd, and
    /// must find nothing of the host there.
    ///
    /// For the first process of a PID namespace, and for the node's own.
    pub fn become_it(&self, keep: RawFd) -> ProcessError {
        match self.try_become(keep) {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    fn try_become(&self, keep: RawFd) -> Result<std::convert::Infallible, ProcessError> {
        sys::reset_signals();
        sys::close_all_but(3, &[keep]).map_err(step("close descriptors"))?;
        let launch = self.plan()?;
        self.settle(self.spec.no_new_privileges, true, None)?;
        Err(ProcessError::NotExecutable {
            path: self.spec.args[0].clone(),
            reason: describe(&launch.execute()),
        })
    }

    /// Takes every last step here, then bears the process in the door's PID namespace. Our own end is for
    /// the caller.
    pub fn bear(&self, door: &Door) -> Result<(), ProcessError> {
        sys::reset_signals();
        if let Some(namespace) = door.namespace {
            sys::set_namespace(&namespace, libc::CLONE_NEWPID)
                .map_err(step("join pid namespace"))?;
        }
        sys::Memory::hide_arguments("gantry-exec");
        let node_proc = door
            .node_proc
            .filter(|_| self.spec.apparmor_profile.is_some());
        let keep = [Some(door.pid_pipe), Some(door.error_pipe), node_proc];
        let keep: Vec<RawFd> = keep.into_iter().flatten().collect();
        sys::close_all_but(3, &keep).map_err(step("close descriptors"))?;
        let launch = self.plan()?;
        // DIFFERS: runc loads the filter inside the PID namespace, with CAP_SYS_ADMIN. A profile that
        // forbids what is needed to be born gets `no_new_privs` instead, which needs no capability.
        let late_filter = self.needs_late_filter();
        // Until its `execve` nobody without a capability looks into the child; and there is no heap to see.
        // SAFETY: prctl with integers only.
        check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) })
            .map_err(step("set dumpable"))?;
        sys::Memory::keep_heap_from_children();
        self.settle(
            self.spec.no_new_privileges || late_filter,
            !late_filter,
            node_proc,
        )?;
        launch
            .bear(door, late_filter)
            .map_err(step("start the process"))
    }

    /// Whether the filter forbids something that the parent or the child of a birth still does under it.
    /// The process then has `no_new_privs`.
    pub fn needs_late_filter(&self) -> bool {
        let flags = (libc::CLONE_PARENT | libc::SIGCHLD) as u64;
        let mut calls = vec![
            (libc::SYS_capset, [0; 6]),
            (libc::SYS_clone, [flags, 0, 0, 0, 0, 0]),
            (libc::SYS_write, [3, 0, 4, 0, 0, 0]),
            (libc::SYS_exit_group, [0; 6]),
            (libc::SYS_setsid, [0; 6]),
            (libc::SYS_execve, [0; 6]),
        ];
        if self.spec.terminal {
            calls.push((libc::SYS_ioctl, [0, libc::TIOCSCTTY, 0, 0, 0, 0]));
        }
        calls
            .into_iter()
            .any(|(call, args)| !filter::allows(&self.filter, call, args))
    }

    /// Says so once, where it can be read.
    pub fn warn_of_late_filter(&self) {
        if !self.spec.no_new_privileges && self.needs_late_filter() {
            eprintln!(
                "{:?}: the seccomp profile forbids clone, setsid, write or exit: it is loaded with no_new_privs",
                self.spec.args.first()
            );
        }
    }

    /// Finds the program and lays out what it is executed with.
    fn plan(&self) -> Result<Launch, ProcessError> {
        let spec = &self.spec;
        self.make_directory();
        let program = self.find_program()?;
        let program = CString::new(program.into_os_string().into_encoded_bytes())
            .map_err(|_| ProcessError::Nul("program"))?;
        let to_c = |strings: &[String], what| {
            strings
                .iter()
                .map(|text| CString::new(text.as_bytes()).map_err(|_| ProcessError::Nul(what)))
                .collect::<Result<Vec<_>, _>>()
        };
        let (args, env) = (to_c(&spec.args, "args")?, to_c(&spec.env, "env")?);
        let words = format!("exec: {:?}: ", spec.args[0]);
        Launch::new(&program, &args, &env, &self.filter, &words).map_err(step("map memory"))
    }

    /// Identity, directory, capabilities and, with `load`, the filter.
    fn settle(
        &self,
        no_new_privileges: bool,
        load: bool,
        node_proc: Option<RawFd>,
    ) -> Result<(), ProcessError> {
        let spec = &self.spec;
        chown_stdio(spec.uid).map_err(step("chown stdio"))?;
        if let Some(profile) = &spec.apparmor_profile {
            set_apparmor(profile, node_proc).map_err(step("set AppArmor profile"))?;
        }
        if let Some(fd) = node_proc {
            // SAFETY: nothing uses the descriptor afterwards.
            unsafe { libc::close(fd) };
        }
        let root_chdir = std::env::set_current_dir(self.cwd());
        drop_bounding(spec.bounding).map_err(step("drop bounding capabilities"))?;
        // SAFETY: prctl with integers only.
        check(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) })
            .map_err(step("keep capabilities"))?;
        crate::ids::set(spec)?;
        // A directory only its user can enter (a volume with root squash): try again as the user.
        if root_chdir.is_err() {
            std::env::set_current_dir(self.cwd()).map_err(|source| {
                ProcessError::WorkingDirectory {
                    cwd: spec.cwd.clone(),
                    source,
                }
            })?;
        }
        self.check_directory()?;
        let filter = if load { self.filter.as_slice() } else { &[] };
        if !no_new_privileges && !filter.is_empty() {
            let wide = spec.permitted | CAP_SYS_ADMIN;
            set_capabilities(wide, wide, 0).map_err(step("raise capabilities"))?;
            load_filter(filter).map_err(step("load seccomp filter"))?;
        }
        set_capabilities(spec.permitted, spec.permitted, spec.inheritable)
            .map_err(step("set capabilities"))?;
        raise_ambient(spec.ambient).map_err(step("raise ambient capabilities"))?;
        if no_new_privileges {
            // SAFETY: prctl with integers only.
            check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })
                .map_err(step("set no_new_privs"))?;
            if !filter.is_empty() {
                load_filter(filter).map_err(step("load seccomp filter"))?;
            }
        }
        Ok(())
    }

    /// A directory outside the root has no path: the kernel says so.
    fn check_directory(&self) -> Result<(), ProcessError> {
        match std::env::current_dir() {
            Ok(path) if path.is_absolute() => Ok(()),
            _ => Err(ProcessError::WorkingDirectory {
                cwd: self.spec.cwd.clone(),
                source: io::Error::other(
                    "current working directory is outside of container mount namespace root",
                ),
            }),
        }
    }
}

fn executable(path: &Path) -> Result<(), String> {
    let metadata = std::fs::metadata(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => format!("stat {}: no such file or directory", path.display()),
        _ => describe(&error),
    })?;
    if metadata.is_dir() {
        return Err("is a directory".to_owned());
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return Err("permission denied".to_owned());
    }
    Ok(())
}

/// The words Go (and so runc) uses for the errors users know.
pub fn describe(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) => "no such file or directory".to_owned(),
        Some(libc::EACCES) => "permission denied".to_owned(),
        Some(libc::ENOEXEC) => "exec format error".to_owned(),
        _ => error.to_string(),
    }
}

/// Pipes and terminals belong to the user, so that /dev/stdout can be opened again. /dev/null stays.
fn chown_stdio(uid: u32) -> io::Result<()> {
    for fd in 0..3 {
        // SAFETY: `stat` is live; the descriptors are open stdio.
        unsafe {
            let mut stat: libc::stat = std::mem::zeroed();
            if libc::fstat(fd, &mut stat) < 0 || stat.st_uid == uid {
                continue;
            }
            if stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == libc::makedev(1, 3) {
                continue;
            }
            if libc::fchown(fd, uid, u32::MAX) < 0 {
                let error = io::Error::last_os_error();
                // Inherited from outside the user namespace, or read-only: as runc, leave it.
                if !matches!(
                    error.raw_os_error(),
                    Some(libc::EINVAL | libc::EPERM | libc::EROFS)
                ) {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// By `node_proc`, the node's /proc, where the container's own does not know us.
fn set_apparmor(profile: &str, node_proc: Option<RawFd>) -> io::Result<()> {
    let text = format!("exec {profile}");
    let set = |name: &str| {
        let file = open_attribute(Path::new("/proc"), node_proc, name)?;
        sys::write(&file, text.as_bytes()).map(drop)
    };
    set("apparmor/exec").or_else(|_| set("exec"))
}

/// A file of the kernel's, or none: what a container has put in its place would take a profile and hold nobody to it.
fn open_attribute(proc: &Path, node_proc: Option<RawFd>, name: &str) -> io::Result<OwnedFd> {
    let below = format!("thread-self/attr/{name}");
    let path = match node_proc {
        Some(_) => PathBuf::from(below),
        None => proc.join(below),
    };
    let path = CString::new(path.into_os_string().into_encoded_bytes())?;
    let flags = libc::O_WRONLY | libc::O_CLOEXEC;
    // SAFETY: the path outlives the call; the new descriptor is ours.
    let file = unsafe {
        let at = node_proc.unwrap_or(libc::AT_FDCWD);
        OwnedFd::from_raw_fd(check(libc::openat(at, path.as_ptr(), flags))?)
    };
    // SAFETY: `stat` is live, the descriptor open.
    let magic = unsafe {
        let mut stat: libc::statfs = std::mem::zeroed();
        check(libc::fstatfs(file.as_raw_fd(), &mut stat))?;
        stat.f_type as i64
    };
    match magic == libc::PROC_SUPER_MAGIC as i64 {
        true => Ok(file),
        false => Err(io::Error::other("/proc is no procfs")),
    }
}

pub fn drop_bounding(keep: u64) -> io::Result<()> {
    for number in (0..=LAST_CAPABILITY).filter(|number| keep & (1 << number) == 0) {
        // SAFETY: prctl with integers only.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number as libc::c_ulong, 0, 0, 0) } < 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() == Some(libc::EINVAL) {
                break; // past the kernel's last capability
            }
            return Err(error);
        }
    }
    Ok(())
}

pub fn set_capabilities(effective: u64, permitted: u64, inheritable: u64) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    /// _LINUX_CAPABILITY_VERSION_3
    const VERSION: u32 = 0x2008_0522;
    let header = Header {
        version: VERSION,
        pid: 0,
    };
    let data: [[u32; 3]; 2] = [
        [effective as u32, permitted as u32, inheritable as u32],
        [
            (effective >> 32) as u32,
            (permitted >> 32) as u32,
            (inheritable >> 32) as u32,
        ],
    ];
    // SAFETY: both have the layout capset(2) wants for version 3 and outlive the call.
    check(unsafe { libc::syscall(libc::SYS_capset, &header, &data) as libc::c_int }).map(drop)
}

fn raise_ambient(set: u64) -> io::Result<()> {
    for number in (0..=LAST_CAPABILITY).filter(|number| set & (1 << number) != 0) {
        // SAFETY: prctl with integers only.
        check(unsafe {
            libc::prctl(
                libc::PR_CAP_AMBIENT,
                libc::PR_CAP_AMBIENT_RAISE,
                number as libc::c_ulong,
                0,
                0,
            )
        })?;
    }
    Ok(())
}

pub fn load_filter(bytes: &[u8]) -> io::Result<()> {
    let count = bytes.len() / size_of::<libc::sock_filter>();
    let mut instructions: Vec<libc::sock_filter> = Vec::with_capacity(count);
    // SAFETY: the vector has room for `count` plain-data instructions, copied byte by byte.
    unsafe {
        std::ptr::copy_nonoverlapping(
            bytes.as_ptr(),
            instructions.as_mut_ptr().cast(),
            count * size_of::<libc::sock_filter>(),
        );
        instructions.set_len(count);
    }
    let program = libc::sock_fprog {
        len: count as u16,
        filter: instructions.as_mut_ptr(),
    };
    // SAFETY: `program` points to `count` live instructions; the kernel verifies them.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &program,
        ) as libc::c_int
    })
    .map(drop)
}

/// Sets the own score, inherited by what is started. A value the machine does not let us set (lower
/// than our own without CAP_SYS_RESOURCE) is left at the lowest possible.
pub fn set_oom_score_adj(score: i32) -> Result<(), String> {
    const FILE: &str = "/proc/self/oom_score_adj";
    match std::fs::write(FILE, score.to_string()) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            eprintln!("oom_score_adj {score} is not permitted; it stays as it is");
            Ok(())
        }
        result => result.map_err(|error| format!("set oom_score_adj {score}: {error}")),
    }
}

/// Writes an error for the parent and ends the child.
pub fn report_and_exit(pipe: &impl std::os::fd::AsRawFd, message: &str) -> ! {
    let _ = crate::sys::write(pipe, message.as_bytes());
    exit_now(255)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(args: &[&str], env: &[&str]) -> Result<PathBuf, String> {
        Prepared::new(ProcessSpec {
            args: args.iter().map(|s| s.to_string()).collect(),
            env: env.iter().map(|s| s.to_string()).collect(),
            ..Default::default()
        })
        .unwrap()
        .find_program()
        .map_err(|error| error.to_string())
    }

    #[test]
    fn a_profile_is_written_to_the_kernel_and_nobody_else() {
        assert!(open_attribute(Path::new("/proc"), None, "current").is_ok());
        let directory = tempfile::tempdir().unwrap();
        let planted = directory.path().join("thread-self/attr/apparmor");
        std::fs::create_dir_all(&planted).unwrap();
        std::fs::write(planted.join("exec"), "").unwrap();
        let error = open_attribute(directory.path(), None, "apparmor/exec").unwrap_err();
        assert_eq!(error.to_string(), "/proc is no procfs");
        // What is not there is not made.
        assert!(open_attribute(directory.path(), None, "exec").is_err());
        assert!(!directory.path().join("thread-self/attr/exec").exists());
    }

    #[test]
    fn programs_are_found_as_runc_finds_them() {
        assert_eq!(find(&["sh"], &[]).unwrap().file_name().unwrap(), "sh");
        assert_eq!(
            find(&["sh"], &["PATH=/nowhere"]).unwrap_err(),
            "exec: \"sh\": executable file not found in $PATH"
        );
        assert_eq!(
            find(&["/bin/sh"], &["PATH=/nowhere"]).unwrap(),
            PathBuf::from("/bin/sh")
        );
        assert_eq!(
            find(&["/no/such"], &[]).unwrap_err(),
            "exec: \"/no/such\": stat /no/such: no such file or directory"
        );
        assert_eq!(
            find(&["/etc/passwd"], &[]).unwrap_err(),
            "exec: \"/etc/passwd\": permission denied"
        );
        assert_eq!(
            find(&["/etc"], &[]).unwrap_err(),
            "exec: \"/etc\": is a directory"
        );
        assert_eq!(find(&[], &[]).unwrap_err(), "no command specified");
    }
}
