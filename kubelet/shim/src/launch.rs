//! Being born in a container's PID namespace.
//!
//! Whoever shares a PID namespace with us and holds CAP_SYS_PTRACE can look into our process
//! (`/proc/PID/root`, `/proc/PID/mem`) and take it over: that it is not dumpable does not matter to a
//! capability of the same user namespace. So nothing of ours stands there with more than the container
//! itself has. The parent, in the node's PID namespace and seen by no container, takes every last step
//! first (root directory, descriptors, ids, capabilities, filter) and only then clones; the child has
//! but a session to open and a program to execute.
//!
//! **Invariant:** the child allocates nothing and has none of the shim's heap ([`sys::Memory`]): what it
//! needs lies in a mapping of its own.

use std::ffi::{CString, c_char};
use std::io;
use std::os::fd::RawFd;

use crate::sys;

/// The first byte of a report that carries an errno: four bytes of it and the words before follow.
const ERRNO_MARK: u8 = 0;

/// Words of a child's report beyond this are cut.
const MAX_WORDS: usize = 1024;

/// How a process gets into its PID namespace.
#[derive(Clone, Copy, Debug)]
pub struct Door {
    /// The namespace; `None`: the one we are in.
    pub namespace: Option<RawFd>,
    /// Stdin is a terminal, to be the process's controlling one.
    pub terminal: bool,
    /// Receives the child's PID, as the node counts: four bytes, native order.
    pub pid_pipe: RawFd,
    /// Close-on-exec: an `execve` that works closes it, one that fails writes why.
    pub error_pipe: RawFd,
    /// The node's /proc, where our own attributes can be reached from other roots.
    pub node_proc: Option<RawFd>,
}

/// Everything that `execve` wants, in one mapping outside the heap.
pub struct Launch {
    program: *const c_char,
    args: *const *const c_char,
    env: *const *const c_char,
    filter: libc::sock_fprog,
    words: &'static [u8],
}

impl Launch {
    /// `words` go before the reason if the program cannot be executed.
    pub fn new(
        program: &CString,
        args: &[CString],
        env: &[CString],
        filter: &[u8],
        words: &str,
    ) -> io::Result<Self> {
        let words = &words.as_bytes()[..words.len().min(MAX_WORDS)];
        let pointers = (args.len() + env.len() + 2) * size_of::<*const c_char>();
        let strings: usize = args
            .iter()
            .chain(env)
            .chain([program])
            .map(|text| text.as_bytes_with_nul().len())
            .sum();
        let length = pointers + filter.len().next_multiple_of(8) + strings + words.len();
        let base = sys::map_anonymous(length)?;
        let mut next = base;
        // SAFETY: `length` is the sum of all that is placed, and `next` only moves by what was placed.
        let mut place = |bytes: &[u8]| unsafe {
            let at = next;
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len());
            next = next.add(bytes.len());
            at
        };
        let table = place(&vec![0; pointers]).cast::<*const c_char>();
        let mut padded = filter.to_vec();
        padded.resize(filter.len().next_multiple_of(8), 0);
        let filter_at = place(&padded).cast::<libc::sock_filter>();
        let program = place(program.as_bytes_with_nul()).cast_const().cast();
        for (index, text) in args.iter().enumerate() {
            let at = place(text.as_bytes_with_nul());
            // SAFETY: the table has a place for each argument and variable, and for two ends.
            unsafe { *table.add(index) = at.cast_const().cast() };
        }
        for (index, text) in env.iter().enumerate() {
            let at = place(text.as_bytes_with_nul());
            // SAFETY: as above.
            unsafe { *table.add(args.len() + 1 + index) = at.cast_const().cast() };
        }
        let words_at = place(words);
        Ok(Self {
            program,
            args: table.cast_const(),
            // SAFETY: inside the table.
            env: unsafe { table.add(args.len() + 1).cast_const() },
            filter: libc::sock_fprog {
                len: (filter.len() / size_of::<libc::sock_filter>()) as u16,
                filter: filter_at,
            },
            // SAFETY: the mapping is never taken back.
            words: unsafe { std::slice::from_raw_parts(words_at, words.len()) },
        })
    }

    /// Returns only to tell why not.
    pub fn execute(&self) -> io::Error {
        // SAFETY: all strings and both null-ended arrays lie in a mapping that is never taken back.
        unsafe { libc::execve(self.program, self.args, self.env) };
        io::Error::last_os_error()
    }

    /// Bears the process and tells its PID; the caller has taken all steps but `late_filter`, a filter
    /// to be loaded by the child (which then has `no_new_privs`).
    pub fn bear(&self, door: &Door, late_filter: bool) -> io::Result<()> {
        // The child has no heap: what it looks at is on the stack or in the mapping.
        let door = *door;
        // SAFETY: as fork: one thread, and no stack is given. The shim, as our parent, reaps the child.
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
            0 => self.live(&door, late_filter),
            pid if pid < 0 => Err(io::Error::last_os_error()),
            pid => sys::write_fd(door.pid_pipe, &pid.to_ne_bytes()).map(drop),
        }
    }

    /// The child's whole life up to its program. No heap, so nothing here may allocate.
    fn live(&self, door: &Door, late_filter: bool) -> ! {
        // SAFETY: integers, and pointers into a mapping that is never taken back.
        unsafe {
            if libc::setsid() < 0 {
                give_up(door, b"setsid: ");
            }
            if door.terminal && libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                give_up(door, b"set controlling terminal: ");
            }
            if late_filter
                && libc::syscall(
                    libc::SYS_seccomp,
                    libc::SECCOMP_SET_MODE_FILTER,
                    0,
                    &raw const self.filter,
                ) < 0
            {
                give_up(door, b"load seccomp filter: ");
            }
            libc::execve(self.program, self.args, self.env);
        }
        give_up(door, self.words)
    }
}

/// Reports errno and ends, without allocating.
fn give_up(door: &Door, words: &[u8]) -> ! {
    // SAFETY: errno's place is always there; the buffer outlives the call and is as long as stated.
    unsafe {
        let errno = *libc::__errno_location();
        let mut report = [ERRNO_MARK; 5 + MAX_WORDS];
        report[1..5].copy_from_slice(&errno.to_ne_bytes());
        let count = words.len().min(MAX_WORDS);
        report[5..5 + count].copy_from_slice(&words[..count]);
        libc::write(door.error_pipe, report.as_ptr().cast(), 5 + count);
        libc::_exit(255)
    }
}

/// What came through an error pipe, as text: words, or an errno with words before it.
pub fn told(report: &[u8]) -> String {
    match report {
        [ERRNO_MARK, a, b, c, d, words @ ..] => {
            let errno = i32::from_ne_bytes([*a, *b, *c, *d]);
            let reason = crate::process::describe(&io::Error::from_raw_os_error(errno));
            format!("{}{reason}", String::from_utf8_lossy(words))
        }
        words => String::from_utf8_lossy(words).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_words_or_an_errno_with_words() {
        let mut report = vec![0];
        report.extend(libc::ENOEXEC.to_ne_bytes());
        report.extend(b"exec: \"/x\": ");
        assert_eq!(told(&report), "exec: \"/x\": exec format error");
        assert_eq!(told(b"chdir: no"), "chdir: no");
        assert_eq!(told(b""), "");
    }

    #[test]
    fn a_mapping_holds_what_execve_wants() {
        let text = |text: &str| CString::new(text).unwrap();
        let launch = Launch::new(
            &text("/bin/x"),
            &[text("x"), text("-v")],
            &[text("A=1")],
            &[7; 24],
            "words",
        )
        .unwrap();
        // SAFETY: what `new` placed.
        unsafe {
            let read = |at: *const c_char| std::ffi::CStr::from_ptr(at).to_str().unwrap();
            assert_eq!(read(launch.program), "/bin/x");
            assert_eq!((read(*launch.args), read(*launch.args.add(1))), ("x", "-v"));
            assert!((*launch.args.add(2)).is_null() && (*launch.env.add(1)).is_null());
            assert_eq!(read(*launch.env), "A=1");
            assert_eq!(
                (launch.filter.len, (*launch.filter.filter.add(2)).code),
                (3, 0x0707)
            );
        }
        assert_eq!(launch.words, b"words");
    }
}
