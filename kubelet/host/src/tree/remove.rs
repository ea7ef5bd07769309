//! Removing a tree.
//!
//! Goes down at most [`MAX_DEPTH`] directories, each held open; what lies deeper is moved up to the top and taken from
//! there. So there is no way back up to be found, and whatever a process does to the tree meanwhile, nothing but
//! entries of directories that were reached from the top without a link is removed.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{entries, kind_of, open_child};

/// Directories held open while going down.
const MAX_DEPTH: usize = 32;
/// The same where what is deeper cannot be moved.
const MAX_OPEN: usize = 256;
/// Names of directories remembered at a time, of each open one.
const BATCH: usize = 512;
/// How often a directory that fills up again is emptied.
const MAX_ROUNDS: usize = 64;
/// Failures told; the removal ends after so many.
const MAX_FAILURES: usize = 16;

/// What is left of a tree, and why.
#[derive(Debug, thiserror::Error)]
#[error("{}", text(.failures))]
pub struct RemoveError {
    /// Names, relative to their directory, with the reason of each.
    pub failures: Vec<(String, io::Error)>,
}

fn text(failures: &[(String, io::Error)]) -> String {
    let texts: Vec<String> = failures
        .iter()
        .map(|(name, error)| format!("{name}: {error}"))
        .collect();
    texts.join(", ")
}

impl From<RemoveError> for io::Error {
    fn from(error: RemoveError) -> Self {
        let kind = error
            .failures
            .first()
            .map_or(io::ErrorKind::Other, |f| f.1.kind());
        io::Error::new(kind, error)
    }
}

/// Removes whatever stands at `path`: a tree, a file, a link (not its target). What is not there is removed already.
/// Goes on past failures; mount points and what is in them stay.
///
/// # Errors
/// A [`RemoveError`] inside, of what is left. A retry may help.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let parent = if parent.as_os_str().is_empty() {
        Path::new(".")
    } else {
        parent
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::openat(CWD, parent, flags, Mode::empty()) {
        Ok(parent) => remove_tree_at(parent.as_fd(), name),
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// [`remove_tree`] of an entry of an open directory.
///
/// # Errors
/// As [`remove_tree`].
pub fn remove_tree_at(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let name = CString::new(name.as_bytes())?;
    Remover {
        failures: vec![],
        moved: 0,
        before: &mut |_| {},
    }
    .run(parent, &name)
    .map_err(io::Error::from)
}

struct Frame {
    dir: OwnedFd,
    name: CString,
    /// Directories in it that were seen and not yet taken.
    below: Vec<CString>,
    /// Everything in it was seen once.
    seen_whole: bool,
    /// What could not be removed.
    stuck: BTreeSet<CString>,
    rounds: usize,
}

impl Frame {
    fn new(dir: OwnedFd, name: CString) -> Self {
        Self {
            dir,
            name,
            below: vec![],
            seen_whole: false,
            stuck: BTreeSet::new(),
            rounds: 0,
        }
    }
}

struct Remover<'a> {
    failures: Vec<(String, io::Error)>,
    /// Directories moved to the top, for their names.
    moved: u64,
    /// Called before a step with the name it is about; tests change the tree there.
    before: &'a mut dyn FnMut(&CStr),
}

impl Remover<'_> {
    fn run(mut self, parent: BorrowedFd<'_>, name: &CStr) -> Result<(), RemoveError> {
        match self.enter(parent, name) {
            Ok(Some(top)) => self.empty(parent, top),
            Ok(None) => {}
            Err(errno) => self.note(name, errno),
        }
        if self.failures.is_empty() {
            Ok(())
        } else {
            Err(RemoveError {
                failures: self.failures,
            })
        }
    }

    fn note(&mut self, name: &CStr, errno: Errno) {
        let source: io::Error = match errno {
            Errno::XDEV | Errno::BUSY => io::Error::new(
                io::ErrorKind::ResourceBusy,
                "a file system is mounted there",
            ),
            other => other.into(),
        };
        self.failures
            .push((name.to_string_lossy().into_owned(), source));
    }

    /// Opens a directory to be emptied; anything else is removed at once (`None`).
    fn enter(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> Result<Option<Frame>, Errno> {
        (self.before)(name);
        match open_child(parent, name) {
            Ok(dir) => Ok(Some(Frame::new(dir, name.to_owned()))),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => Ok(None),
                    Err(errno) => Err(errno),
                }
            }
            Err(errno) => Err(errno),
        }
    }

    fn empty(&mut self, parent: BorrowedFd<'_>, top: Frame) {
        let mut frames = vec![top];
        while let Some(mut frame) = frames.pop() {
            if self.failures.len() >= MAX_FAILURES {
                return;
            }
            if let Some(name) = frame.below.pop() {
                if frames.len() + 1 >= MAX_DEPTH
                    && let Some(top) = frames.first_mut()
                {
                    match self.move_up(&frame, &name, top) {
                        Ok(()) => {
                            frames.push(frame);
                            continue;
                        }
                        Err(_) if frames.len() + 1 < MAX_OPEN => {}
                        Err(errno) => {
                            self.note(&name, errno);
                            frame.stuck.insert(name);
                            frames.push(frame);
                            continue;
                        }
                    }
                }
                let entered = self.enter(frame.dir.as_fd(), &name);
                if let Err(errno) = &entered {
                    self.note(&name, *errno);
                    frame.stuck.insert(name);
                }
                frames.push(frame);
                frames.extend(entered.ok().flatten());
                continue;
            }
            if !frame.seen_whole {
                if let Err(errno) = self.scan(&mut frame) {
                    let name = frame.name.clone();
                    self.note(&name, errno);
                    if let Some(above) = frames.last_mut() {
                        above.stuck.insert(name);
                    }
                    continue;
                }
                frames.push(frame);
                continue;
            }
            let above = frames.last().map_or(parent, |f| f.dir.as_fd());
            match rustix::fs::unlinkat(above, &*frame.name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::NOTEMPTY | Errno::EXIST)
                    if frame.stuck.is_empty() && frame.rounds < MAX_ROUNDS =>
                {
                    frame.rounds += 1;
                    frame.seen_whole = false;
                    frames.push(frame);
                }
                Err(errno) => {
                    // What is stuck in it was told already.
                    if frame.stuck.is_empty() {
                        self.note(&frame.name, errno);
                    }
                    if let Some(above) = frames.last_mut() {
                        above.stuck.insert(frame.name);
                    }
                }
            }
        }
    }

    /// Takes a directory out of `frame` and leaves it to the top.
    fn move_up(&mut self, frame: &Frame, name: &CStr, top: &mut Frame) -> Result<(), Errno> {
        (self.before)(name);
        loop {
            let new = format!(".gantry-removing-{}", self.moved);
            self.moved += 1;
            match rustix::fs::renameat_with(
                &frame.dir,
                name,
                &top.dir,
                new.as_str(),
                rustix::fs::RenameFlags::NOREPLACE,
            ) {
                Err(Errno::EXIST) => {}
                Err(Errno::NOENT) => return Ok(()),
                result => {
                    top.seen_whole = false;
                    return result;
                }
            }
        }
    }

    /// Removes what is no directory, and remembers directories.
    fn scan(&mut self, frame: &mut Frame) -> Result<(), Errno> {
        frame.seen_whole = true;
        for entry in entries(frame.dir.as_fd())? {
            let entry = entry?;
            let name = entry.file_name();
            if frame.stuck.contains(name) {
                continue;
            }
            match kind_of(frame.dir.as_fd(), &entry) {
                None => continue,
                Some(FileType::Directory) => {}
                Some(_) => {
                    (self.before)(name);
                    match rustix::fs::unlinkat(&frame.dir, name, AtFlags::empty()) {
                        Ok(()) | Err(Errno::NOENT) => continue,
                        Err(Errno::ISDIR) => {}
                        Err(errno) => {
                            self.note(name, errno);
                            frame.stuck.insert(name.to_owned());
                            if self.failures.len() >= MAX_FAILURES {
                                return Ok(());
                            }
                            continue;
                        }
                    }
                }
            }
            if frame.below.len() == BATCH {
                frame.seen_whole = false;
                return Ok(());
            }
            frame.below.push(name.to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::tree::walk::tests::{deep, on_small_stack, quick_dir};

    #[test]
    fn a_tree_of_any_depth_goes() {
        on_small_stack(|| {
            let dir = quick_dir();
            deep(dir.path(), 60_000);
            remove_tree(&dir.path().join("d")).unwrap();
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        });
    }

    #[test]
    fn wide_and_deep() {
        let dir = quick_dir();
        let top = dir.path().join("top");
        for branch in 0..1000 {
            let mut path = top.join(branch.to_string());
            fs::create_dir_all(&path).unwrap();
            if branch % 100 == 0 {
                for level in 0..60 {
                    path.push("x");
                    fs::create_dir(&path).unwrap();
                    fs::write(path.join(format!("f{level}")), "x").unwrap();
                    fs::create_dir(path.join("side")).unwrap();
                }
            }
        }
        for file in 0..1000 {
            fs::write(top.join(format!("file{file}")), "").unwrap();
        }
        remove_tree(&top).unwrap();
        assert!(!top.exists());
        remove_tree(&top).unwrap();
    }

    #[test]
    fn links_go_and_their_targets_stay() {
        let dir = quick_dir();
        let (top, other) = (dir.path().join("top"), dir.path().join("other"));
        fs::create_dir_all(top.join("in")).unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(other.join("file"), "keep").unwrap();
        symlink(&other, top.join("in/link")).unwrap();
        symlink(&other, dir.path().join("direct")).unwrap();
        remove_tree(&top).unwrap();
        remove_tree(&dir.path().join("direct")).unwrap();
        assert_eq!(fs::read_to_string(other.join("file")).unwrap(), "keep");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    /// Between every look and its step, what was looked at becomes a link to somebody else's directory.
    #[test]
    fn a_directory_swapped_for_a_link_leads_nowhere() {
        let dir = quick_dir();
        let (top, other) = (dir.path().join("top"), dir.path().join("other"));
        fs::create_dir(&other).unwrap();
        fs::write(other.join("file"), "keep").unwrap();
        for victim in ["a", "b", "x"] {
            let mut path = top.clone();
            for _ in 0..MAX_DEPTH + 3 {
                path.push("x");
            }
            fs::create_dir_all(&path).unwrap();
            fs::create_dir_all(top.join("a/b/c")).unwrap();
            fs::write(top.join("a/b/f"), "").unwrap();
            let paths: Vec<_> = match victim {
                "a" => vec![top.join("a")],
                "b" => vec![top.join("a/b")],
                _ => path.ancestors().take(4).map(Path::to_owned).collect(),
            };
            let mut swap = |name: &CStr| {
                for at in paths
                    .iter()
                    .filter(|_| name.to_bytes() == victim.as_bytes())
                {
                    let away = dir.path().join("away");
                    if at.is_dir() && !at.is_symlink() && fs::rename(at, &away).is_ok() {
                        symlink(&other, at).unwrap();
                        fs::remove_dir_all(&away).unwrap();
                    }
                }
            };
            let parent = fs::File::open(dir.path()).unwrap();
            let remover = Remover {
                failures: vec![],
                moved: 0,
                before: &mut swap,
            };
            remover.run(parent.as_fd(), c"top").unwrap();
            assert!(!top.exists(), "{victim}");
            assert_eq!(fs::read_to_string(other.join("file")).unwrap(), "keep");
        }
    }

    /// Needs root: mounts.
    #[test]
    fn mounts_stay() {
        let dir = quick_dir();
        let (top, other) = (dir.path().join("top"), dir.path().join("other"));
        fs::create_dir_all(top.join("a/mnt")).unwrap();
        fs::create_dir(top.join("b")).unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(other.join("file"), "keep").unwrap();
        let mount = |args: &[&OsStr]| {
            let done = std::process::Command::new(args[0])
                .args(&args[1..])
                .status();
            assert!(done.unwrap().success(), "needs root");
        };
        let at = top.join("a/mnt");
        mount(&[
            "mount".as_ref(),
            "--bind".as_ref(),
            other.as_ref(),
            at.as_ref(),
        ]);
        let error = remove_tree(&top).unwrap_err();
        mount(&["umount".as_ref(), at.as_ref()]);
        assert_eq!(error.to_string(), "mnt: a file system is mounted there");
        assert!(other.join("file").exists() && !top.join("b").exists());
        remove_tree(&top).unwrap();
    }
}
