//! Walking a tree without changing it: [`walk`] tells a [`Visit`] of every entry, a directory before and after what is in it.
//!
//! Of the directories on the way down the first and the last [`KEPT`] are held open. The way back to one in between is
//! `..`, and it is gone only if it is the very directory that was left; else somebody moved it, and the walk goes on
//! with the nearest directory that is still held.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::{entries, open_child};

/// Directories held open at either end of the way down.
const KEPT: usize = 16;
/// What the walk may remember: bytes of names not yet visited, and of directories on the way.
const MAX_MEMORY_BYTES: usize = 64 << 20;
/// What a directory on the way costs, beside names.
const FRAME_BYTES: usize = 64;

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    Continue,
    Stop,
}

/// What is done with each entry. An error ends the walk.
pub trait Visit {
    /// Before what is in a directory; `name` is empty for the top.
    ///
    /// # Errors
    /// The visitor's.
    fn enter(&mut self, dir: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> io::Result<Flow>;
    /// Anything else, of the directory `parent`.
    ///
    /// # Errors
    /// The visitor's.
    fn file(&mut self, parent: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> io::Result<Flow>;
    /// After what is in a directory. Called once for each `enter`, also for directories that were moved away
    /// (`None`).
    ///
    /// # Errors
    /// The visitor's.
    fn leave(&mut self, dir: Option<BorrowedFd<'_>>) -> io::Result<Flow>;
}

/// How a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything that was there all the time was visited.
    Whole,
    /// Something was moved or unreadable, or there was more than can be remembered.
    Partial,
    Stopped,
}

struct Frame {
    dir: Option<OwnedFd>,
    /// Device and inode.
    id: (u64, u64),
    below: Vec<CString>,
}

fn id(stat: &Stat) -> (u64, u64) {
    // Narrower on some machines.
    #[allow(clippy::useless_conversion, clippy::unnecessary_cast)]
    (stat.st_dev as u64, stat.st_ino as u64)
}

/// Walks the directory `top` (no link). Mount points are not visited.
///
/// # Errors
/// `top` cannot be opened, or what the visitor says.
pub fn walk(top: &Path, visit: &mut dyn Visit) -> io::Result<Outcome> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(CWD, top, flags, Mode::empty())?;
    walk_at(dir, visit)
}

/// [`walk`] of an open directory.
///
/// # Errors
/// As [`walk`].
pub fn walk_at(top: OwnedFd, visit: &mut dyn Visit) -> io::Result<Outcome> {
    Walk {
        visit,
        frames: vec![],
        memory_bytes: 0,
        partial: false,
    }
    .run(top)
}

struct Walk<'a> {
    visit: &'a mut dyn Visit,
    frames: Vec<Frame>,
    memory_bytes: usize,
    partial: bool,
}

/// The visitor wants no more.
struct Stopped;

impl Walk<'_> {
    fn run(mut self, top: OwnedFd) -> io::Result<Outcome> {
        let device = id(&rustix::fs::fstat(&top)?).0;
        if self.push(top, c"", device)?.is_err() {
            return Ok(Outcome::Stopped);
        }
        while let Some(frame) = self.frames.last_mut() {
            let Some(name) = frame.below.pop() else {
                if self.pop()?.is_err() {
                    return Ok(Outcome::Stopped);
                }
                continue;
            };
            self.memory_bytes -= name.as_bytes_with_nul().len();
            let Some(dir) = &frame.dir else {
                // The way back was lost.
                continue;
            };
            match open_child(dir.as_fd(), &name) {
                Ok(child) => {
                    if self.push(child, &name, device)?.is_err() {
                        return Ok(Outcome::Stopped);
                    }
                }
                // Gone, replaced, or a mount point.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => {}
                Err(_) => self.partial = true,
            }
        }
        Ok(if self.partial {
            Outcome::Partial
        } else {
            Outcome::Whole
        })
    }

    /// Visits a directory and its files; directories in it wait.
    fn push(&mut self, dir: OwnedFd, name: &CStr, device: u64) -> io::Result<Result<(), Stopped>> {
        let stat = rustix::fs::fstat(&dir)?;
        if self.visit.enter(dir.as_fd(), name, &stat)? == Flow::Stop {
            return Ok(Err(Stopped));
        }
        let mut below = vec![];
        let list = match entries(dir.as_fd()) {
            Ok(list) => Some(list),
            Err(_) => {
                self.partial = true;
                None
            }
        };
        for entry in list.into_iter().flatten() {
            let Ok(entry) = entry else {
                self.partial = true;
                break;
            };
            let name = entry.file_name();
            let Ok(stat) = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            if id(&stat).0 != device {
                continue;
            }
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                if self.visit.file(dir.as_fd(), name, &stat)? == Flow::Stop {
                    return Ok(Err(Stopped));
                }
                continue;
            }
            let cost = name.to_bytes_with_nul().len();
            if self.memory_bytes + cost > MAX_MEMORY_BYTES {
                self.partial = true;
                continue;
            }
            self.memory_bytes += cost;
            below.push(name.to_owned());
        }
        self.memory_bytes += FRAME_BYTES;
        self.frames.push(Frame {
            dir: Some(dir),
            id: id(&stat),
            below,
        });
        if let Some(close) = self
            .frames
            .len()
            .checked_sub(KEPT + 1)
            .filter(|i| *i >= KEPT)
        {
            self.frames[close].dir = None;
        }
        Ok(Ok(()))
    }

    /// Leaves the last directory, and finds the way back to the one above.
    fn pop(&mut self) -> io::Result<Result<(), Stopped>> {
        let Some(frame) = self.frames.pop() else {
            return Ok(Ok(()));
        };
        self.memory_bytes -= FRAME_BYTES;
        let dir = frame.dir.as_ref();
        if self.visit.leave(dir.map(AsFd::as_fd))? == Flow::Stop {
            return Ok(Err(Stopped));
        }
        if let Some(above) = self.frames.last_mut()
            && above.dir.is_none()
        {
            above.dir = dir.and_then(|dir| go_up(dir, above.id).ok());
            if above.dir.is_none() {
                self.partial = true;
            }
        }
        Ok(Ok(()))
    }
}

/// The directory above, if it is still the one that was left.
fn go_up(dir: &OwnedFd, wanted: (u64, u64)) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let above = rustix::fs::openat(dir, c"..", flags, Mode::empty())?;
    if id(&rustix::fs::fstat(&above)?) == wanted {
        Ok(above)
    } else {
        Err(Errno::STALE)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;

    use super::*;

    /// `d/d/d/…`, each made in an open directory, for no path is that long.
    pub(crate) fn deep(top: &Path, levels: usize) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let mut at = rustix::fs::openat(CWD, top, flags, Mode::empty()).unwrap();
        for _ in 0..levels {
            rustix::fs::mkdirat(&at, c"d", Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, c"d", flags, Mode::empty()).unwrap();
        }
    }

    /// In memory, if the machine allows: some disks take milliseconds a directory.
    pub(crate) fn quick_dir() -> tempfile::TempDir {
        tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap()
    }

    /// 128 KiB: a walk that recursed would not come far.
    pub(crate) fn on_small_stack(work: impl FnOnce() + Send + 'static) {
        let thread = std::thread::Builder::new().stack_size(128 << 10);
        thread.spawn(work).unwrap().join().unwrap();
    }

    #[derive(Default)]
    struct Count {
        entered: usize,
        left: usize,
        files: Vec<String>,
        on_enter: Option<Box<dyn FnMut(usize)>>,
    }

    impl Visit for Count {
        fn enter(&mut self, _: BorrowedFd<'_>, _: &CStr, _: &Stat) -> io::Result<Flow> {
            self.entered += 1;
            if let Some(act) = &mut self.on_enter {
                act(self.entered);
            }
            Ok(Flow::Continue)
        }
        fn file(&mut self, _: BorrowedFd<'_>, name: &CStr, _: &Stat) -> io::Result<Flow> {
            self.files.push(name.to_string_lossy().into_owned());
            Ok(Flow::Continue)
        }
        fn leave(&mut self, _: Option<BorrowedFd<'_>>) -> io::Result<Flow> {
            self.left += 1;
            Ok(Flow::Continue)
        }
    }

    #[test]
    fn every_level_is_entered_and_left() {
        on_small_stack(|| {
            let dir = quick_dir();
            deep(dir.path(), 60_000);
            fs::write(dir.path().join("d/d/file"), "").unwrap();
            let mut count = Count::default();
            assert_eq!(walk(dir.path(), &mut count).unwrap(), Outcome::Whole);
            assert_eq!((count.entered, count.left), (60_001, 60_001));
            assert_eq!(count.files, ["file"]);
            super::super::remove_tree(dir.path()).unwrap();
        });
    }

    /// The way back from the deep leads elsewhere: the walk goes on at the top, and says that it did not see all.
    #[test]
    fn a_tree_moved_away_meanwhile_leads_nowhere() {
        let dir = quick_dir();
        let other = dir.path().join("other");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("secret"), "").unwrap();
        let top = dir.path().join("top");
        fs::create_dir(&top).unwrap();
        deep(&top, 100);
        let level = |n: usize| (0..n).fold(top.clone(), |p, _| p.join("d"));
        fs::create_dir(top.join("later")).unwrap();
        fs::write(top.join("later/file"), "").unwrap();
        // A sibling where the way back will be lost.
        fs::create_dir(level(39).join("z")).unwrap();
        fs::write(level(39).join("z/lost"), "").unwrap();
        let (from, to) = (level(40), other.join("moved"));
        let mut count = Count {
            on_enter: Some(Box::new(move |n| {
                if n == 100 {
                    let _ = fs::rename(&from, &to);
                }
            })),
            ..Count::default()
        };
        walk(&top, &mut count).unwrap();
        assert_eq!(count.entered, count.left);
        assert!(count.files.contains(&"file".to_owned()));
        assert!(!count.files.contains(&"secret".to_owned()));
    }
}
