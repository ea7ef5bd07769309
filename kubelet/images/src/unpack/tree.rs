//! A layer under way over the layers below it, seen as one tree: what overlayfs will show, kept true without a mount.
//!
//! ```text
//! name -> upper (this layer's directory): a file, a directory, a whiteout (device 0:0), or nothing there
//!      -> lowers, topmost first, until one has it, hides it, or is opaque
//! ```
//!
//! Only the upper one is written. A directory of a lower layer in which something changes is copied up (owner, mode,
//! attributes; its times come back at the end); what is removed and lies in a lower layer too leaves a whiteout; a
//! directory made in its place is opaque.
//!
//! Every step opens one plain name below an open directory and follows no symlink, so nothing outside is reached.
//!
//! Upstream: the kernel's overlayfs, in the format of its `trusted.overlay` attributes.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, CWD, Dev, Dir, FileType, Mode, OFlags, Stat, XattrFlags};
use rustix::io::Errno;

use super::budget::Budget;
use super::copy;
use super::resolve::{Links, Names};
use super::times::{Kind as TimesKind, TimesList};

const OPAQUE_XATTR: &str = "trusted.overlay.opaque";
/// Symlinks one look-up follows. Upstream: the kernel's 40; more here, as `resolve` has its own bound.
const MAX_LINKS: usize = 255;
/// Paths that are remembered (as hashes) for opaque marks that come late, of each kind: what the archive did not list,
/// what it listed and took away again, and directories that have had their mark.
const MAX_REMEMBERED: usize = 1 << 20;
/// Names of hard-linked files of the layers below that may be looked through.
const MAX_ALIAS_BYTES: usize = 64 << 20;

/// One directory: where it lies in the layer under way, and in those below.
#[derive(Clone, Default)]
pub(super) struct Node {
    pub(super) upper: Option<Rc<OwnedFd>>,
    lowers: Vec<(usize, Rc<OwnedFd>)>,
}

/// What a name means.
pub(super) struct Found {
    pub(super) stat: Stat,
    /// The directory it lies in, and which of the layers below that is of; `None`: the layer under way.
    directory: Rc<OwnedFd>,
    layer: Option<usize>,
}

impl Found {
    pub(super) fn is_dir(&self) -> bool {
        file_type(&self.stat) == FileType::Directory
    }
}

/// The paths of each inode of one lower layer that has more than one.
type Aliases = HashMap<u64, Vec<Names>>;

pub(super) struct Tree {
    root: Node,
    layers: Vec<Rc<OwnedFd>>,
    /// The directory walked to last. Dropped whenever names begin to mean something else.
    cursor: Option<(Names, Node)>,
    aliases: HashMap<usize, Rc<Aliases>>,
    /// What is there and the archive did not list.
    implicit: HashSet<u64>,
    /// What the archive listed and then removed: to upstream it stays listed, whatever comes in its place.
    once_listed: HashSet<u64>,
    hasher: RandomState,
    opaque: HashSet<u64>,
    pub(super) times: TimesList,
    pub(super) budget: Budget,
}

impl Tree {
    pub(super) fn open(target: &Path, parents: &[PathBuf]) -> Result<Self, (PathBuf, io::Error)> {
        let open = |path: &Path| {
            open_directory(CWD, path.as_os_str())
                .map(Rc::new)
                .map_err(|errno| (path.to_owned(), errno.into()))
        };
        let upper = open(target)?;
        let layers = parents
            .iter()
            .map(|path| open(path))
            .collect::<Result<Vec<_>, _>>()?;
        let at_target = |error: io::Error| (target.to_owned(), error);
        let budget = Budget::of(&upper).map_err(at_target)?;
        let mut times = TimesList::new(&upper).map_err(at_target)?;
        match layers.first() {
            Some(below) => copy::directory(below, &upper)
                .and_then(|below| times.push(TimesKind::CopiedUp, &[], below)),
            None => rustix::fs::fchmod(&upper, Mode::from_raw_mode(0o755)).map_err(Into::into),
        }
        .map_err(at_target)?;
        Ok(Self {
            root: Node {
                upper: Some(upper),
                lowers: layers.iter().cloned().enumerate().collect(),
            },
            layers,
            cursor: None,
            aliases: HashMap::new(),
            implicit: HashSet::new(),
            once_listed: HashSet::new(),
            hasher: RandomState::new(),
            opaque: HashSet::new(),
            times,
            budget,
        })
    }

    pub(super) fn lookup(&self, node: &Node, name: &[u8]) -> io::Result<Option<Found>> {
        let upper = node.upper.iter().map(|directory| (None, directory));
        let lowers = node.lowers.iter().map(|(layer, dir)| (Some(*layer), dir));
        for (layer, directory) in upper.chain(lowers) {
            let Some(stat) = stat(directory, name)? else {
                continue;
            };
            if is_whiteout(&stat) {
                return Ok(None);
            }
            return Ok(Some(Found {
                stat,
                directory: directory.clone(),
                layer,
            }));
        }
        Ok(None)
    }

    /// The directory `name` of `node`, which must be one.
    fn enter(&self, node: &Node, name: &[u8]) -> io::Result<Node> {
        let mut next = Node::default();
        let upper = node.upper.iter().map(|directory| (None, directory));
        let lowers = node.lowers.iter().map(|(layer, dir)| (Some(*layer), dir));
        for (layer, directory) in upper.chain(lowers) {
            let Some(stat) = stat(directory, name)? else {
                continue;
            };
            if file_type(&stat) != FileType::Directory {
                break;
            }
            let opened = Rc::new(open_directory(&**directory, OsStr::from_bytes(name))?);
            let opaque = is_opaque(&opened);
            match layer {
                None => next.upper = Some(opened),
                Some(layer) => next.lowers.push((layer, opened)),
            }
            if opaque {
                break;
            }
        }
        if next.upper.is_none() && next.lowers.is_empty() {
            return Err(Errno::NOTDIR.into());
        }
        Ok(next)
    }

    /// The directory at `path`, symlinks in it followed as if the root were `/`; `None`: not there.
    pub(super) fn directory(&mut self, path: &[Vec<u8>]) -> io::Result<Option<Node>> {
        let (mut at, mut node) = match &self.cursor {
            Some((names, node)) if path.starts_with(names) => (names.clone(), node.clone()),
            _ => (Names::new(), self.root.clone()),
        };
        let mut pending: Names = path[at.len()..].iter().rev().cloned().collect();
        let mut links = 0;
        while let Some(name) = pending.pop() {
            if name == b".." {
                at.pop();
                // No name of `at` is a symlink, so this goes no deeper.
                node = match self.directory(&at.clone())? {
                    Some(node) => node,
                    None => return Ok(None),
                };
                continue;
            }
            let Some(found) = self.lookup(&node, &name)? else {
                return Ok(None);
            };
            match file_type(&found.stat) {
                FileType::Directory => {
                    node = self.enter(&node, &name)?;
                    at.push(name);
                }
                FileType::Symlink => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP.into());
                    }
                    let text = link_text(&found.directory, &name)?;
                    if text.starts_with(b"/") {
                        (at, node) = (Names::new(), self.root.clone());
                    }
                    let names = text.split(|&b| b == b'/').rev();
                    pending.extend(
                        names
                            .filter(|name| !name.is_empty() && *name != b".")
                            .map(<[u8]>::to_vec),
                    );
                }
                _ => return Err(Errno::NOTDIR.into()),
            }
        }
        self.cursor = Some((at, node.clone()));
        Ok(Some(node))
    }

    /// Makes the directories of a resolved path that are not there.
    pub(super) fn make_directories(&mut self, path: &[Vec<u8>]) -> io::Result<()> {
        if self.directory(path)?.is_some() {
            return Ok(());
        }
        for depth in 1..=path.len() {
            if self.directory(&path[..depth])?.is_none() {
                self.make_directory(&path[..depth])?;
                self.note_implicit(&path[..depth])?;
            }
        }
        Ok(())
    }

    /// Makes one directory, of mode 0755, where nothing is; hides one of a lower layer that was removed.
    pub(super) fn make_directory(&mut self, path: &[Vec<u8>]) -> io::Result<()> {
        let (parent, name) = self.room(path)?;
        let hidden = self.clear_whiteout(&parent, &name)?;
        self.budget.inode()?;
        rustix::fs::mkdirat(&parent, OsStr::from_bytes(&name), Mode::RWXU)?;
        let made = open_directory(&parent, OsStr::from_bytes(&name))?;
        rustix::fs::fchmod(&made, Mode::from_raw_mode(0o755))?;
        if hidden {
            set_opaque(&made)?;
        }
        Ok(())
    }

    /// Where the last name of `path` can be made: its directory in the layer under way.
    pub(super) fn room(&mut self, path: &[Vec<u8>]) -> io::Result<(Rc<OwnedFd>, Vec<u8>)> {
        let (name, parent) = path.split_last().ok_or(Errno::EXIST)?;
        let node = self.copy_up_directory(parent)?;
        let upper = node.upper.expect("a directory copied up has an upper one");
        Ok((upper, name.clone()))
    }

    /// As [`Tree::room`], with a whiteout there taken away: for what is no directory.
    pub(super) fn room_for_file(&mut self, path: &[Vec<u8>]) -> io::Result<(Rc<OwnedFd>, Vec<u8>)> {
        let (parent, name) = self.room(path)?;
        self.clear_whiteout(&parent, &name)?;
        self.budget.inode()?;
        Ok((parent, name))
    }

    fn clear_whiteout(&self, parent: &OwnedFd, name: &[u8]) -> io::Result<bool> {
        match stat(parent, name)? {
            Some(stat) if is_whiteout(&stat) => {
                rustix::fs::unlinkat(parent, OsStr::from_bytes(name), AtFlags::empty())?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// The directory of a resolved path, in the layer under way too.
    pub(super) fn copy_up_directory(&mut self, path: &[Vec<u8>]) -> io::Result<Node> {
        if let Some((names, node)) = &self.cursor
            && names == path
            && node.upper.is_some()
        {
            return Ok(node.clone());
        }
        let mut node = self.root.clone();
        for (index, name) in path.iter().enumerate() {
            let mut next = self.enter(&node, name)?;
            if next.upper.is_none() {
                let upper = node.upper.as_ref().expect("the loop copies up as it goes");
                let below = next.lowers[0].1.clone();
                self.budget.inode()?;
                let name = OsStr::from_bytes(name);
                rustix::fs::mkdirat(&**upper, name, Mode::RWXU)?;
                let made = open_directory(&**upper, name)?;
                let times = copy::directory(&below, &made)?;
                let path = &path[..=index];
                self.times
                    .push(TimesKind::CopiedUp, &path.join(&b'/'), times)?;
                self.note_implicit(path)?;
                next.upper = Some(Rc::new(made));
            }
            node = next;
        }
        self.cursor = Some((path.to_vec(), node.clone()));
        Ok(node)
    }

    /// Puts what is at a resolved path into the layer under way. A file that has several names in its layer keeps
    /// all of those that are still its own.
    pub(super) fn copy_up(&mut self, path: &[Vec<u8>]) -> io::Result<()> {
        let Some((name, parent)) = path.split_last() else {
            return Ok(());
        };
        let node = self.directory(parent)?.ok_or(Errno::NOENT)?;
        let found = self.lookup(&node, name)?.ok_or(Errno::NOENT)?;
        let Some(layer) = found.layer else {
            return Ok(());
        };
        if found.is_dir() {
            return self.copy_up_directory(path).map(drop);
        }
        let (room, _) = self.room(path)?;
        self.budget.inode()?;
        self.budget.bytes(found.stat.st_size.cast_unsigned())?;
        copy::file(&found.directory, &room, name, &found.stat)?;
        self.cursor = None;
        self.note_implicit(path)?;
        if found.stat.st_nlink > 1 {
            self.link_aliases(path, &room, layer, found.stat.st_ino)?;
        }
        Ok(())
    }

    fn link_aliases(
        &mut self,
        path: &[Vec<u8>],
        copied: &OwnedFd,
        layer: usize,
        inode: u64,
    ) -> io::Result<()> {
        let aliases = match self.aliases.get(&layer) {
            Some(aliases) => aliases.clone(),
            None => {
                let found = Rc::new(aliases_of(&self.layers[layer])?);
                self.aliases.insert(layer, found.clone());
                found
            }
        };
        let name = OsStr::from_bytes(path.last().expect("it has a name"));
        for alias in aliases.get(&inode).into_iter().flatten() {
            let (Some((alias_name, parent)), true) = (alias.split_last(), alias != path) else {
                continue;
            };
            let visible = match self.directory(parent) {
                Ok(Some(node)) => self
                    .lookup(&node, alias_name)?
                    .is_some_and(|f| f.layer == Some(layer) && f.stat.st_ino == inode),
                // Something else stands where its directory was.
                _ => false,
            };
            // A path that now leads through a symlink is another path.
            let own = self.cursor.as_ref().is_some_and(|(at, _)| at == parent);
            if visible && own {
                let (room, _) = self.room(alias)?;
                let alias_name = OsStr::from_bytes(alias_name);
                rustix::fs::linkat(copied, name, &room, alias_name, AtFlags::empty())?;
                self.note_implicit(alias)?;
            }
        }
        self.cursor = None;
        Ok(())
    }

    /// Removes whatever is at a resolved path, with all below it; that nothing is there is well.
    pub(super) fn remove(&mut self, path: &[Vec<u8>]) -> io::Result<()> {
        let Some((name, parent)) = path.split_last() else {
            return Err(Errno::BUSY.into());
        };
        let Some(node) = self.directory(parent)? else {
            return Ok(());
        };
        self.cursor = None;
        if let Some(upper) = &node.upper {
            match stat(upper, name)? {
                Some(stat) if is_whiteout(&stat) => return Ok(()),
                Some(stat) => {
                    self.note_removed(path, upper, &stat)?;
                    remove_here(upper, name, &stat)?;
                }
                None => {}
            }
        }
        let below = Node {
            upper: None,
            lowers: node.lowers,
        };
        if self.lookup(&below, name)?.is_some() {
            let (room, name) = self.room(path)?;
            self.budget.inode()?;
            make_node(&room, &name, FileType::CharacterDevice, 0)?;
        }
        Ok(())
    }

    /// Removes all that the directory at a resolved path had before this layer's archive put something there.
    pub(super) fn make_opaque(&mut self, path: &[Vec<u8>]) -> io::Result<()> {
        let hash = self.hash(path);
        if !remember(&mut self.opaque, hash, "opaque directories")? {
            return Ok(());
        }
        let node = self.copy_up_directory(path)?;
        let upper = node.upper.expect("a directory copied up has an upper one");
        if path.is_empty() {
            // The kernel knows no opaque root: each name is hidden by itself.
            let below: Vec<Rc<OwnedFd>> = node.lowers.into_iter().map(|(_, dir)| dir).collect();
            for directory in below {
                for name in names_in(&directory)? {
                    let name = name?;
                    if stat(&upper, &name)?.is_none() {
                        self.budget.inode()?;
                        make_node(&upper, &name, FileType::CharacterDevice, 0)?;
                    }
                }
            }
        } else {
            set_opaque(&upper)?;
        }
        self.keep_listed(path.to_vec())?;
        self.cursor = None;
        Ok(())
    }

    /// Removes what the archive did not list below an opaque directory of the layer under way.
    fn keep_listed(&mut self, top: Names) -> io::Result<()> {
        let node = self.copy_up_directory(&top)?;
        let upper = node.upper.expect("a directory copied up has an upper one");
        // It knows the layers below, which do not count here any more.
        self.cursor = None;
        let mut path = top;
        let mut open = vec![(names_in(&upper)?, upper)];
        while let Some((names, upper)) = open.last_mut() {
            let Some(name) = names.next().transpose()? else {
                open.pop();
                if !open.is_empty() {
                    path.pop();
                }
                continue;
            };
            let Some(stat) = stat(upper, &name)? else {
                continue;
            };
            if is_whiteout(&stat) {
                // In a directory that is not merged any more the kernel would list it. The root always is.
                if !path.is_empty() {
                    let upper = upper.clone();
                    self.clear_whiteout(&upper, &name)?;
                }
                continue;
            }
            path.push(name);
            if self.implicit.contains(&self.hash(&path)) {
                self.remove(&path)?;
            } else if file_type(&stat) == FileType::Directory {
                let name = path.last().expect("it was pushed");
                let inner = Rc::new(open_directory(&**upper, OsStr::from_bytes(name))?);
                set_opaque(&inner)?;
                self.cursor = None;
                open.push((names_in(&inner)?, inner));
                continue;
            }
            path.pop();
        }
        self.cursor = None;
        Ok(())
    }

    /// What the archive listed of what is about to be removed stays listed.
    fn note_removed(&mut self, path: &[Vec<u8>], upper: &OwnedFd, stat: &Stat) -> io::Result<()> {
        self.note_once_listed(path)?;
        if file_type(stat) != FileType::Directory {
            return Ok(());
        }
        let mut path = path.to_vec();
        let name = path.last().expect("the root is never removed");
        let top = open_directory(upper, OsStr::from_bytes(name))?;
        let mut open = vec![(names_in(&top)?, top)];
        while let Some((names, directory)) = open.last_mut() {
            let Some(name) = names.next().transpose()? else {
                open.pop();
                path.pop();
                continue;
            };
            let Some(stat) = self::stat(directory, &name)? else {
                continue;
            };
            if is_whiteout(&stat) {
                continue;
            }
            path.push(name);
            self.note_once_listed(&path)?;
            if file_type(&stat) == FileType::Directory {
                let name = path.last().expect("it was pushed");
                let inner = open_directory(&*directory, OsStr::from_bytes(name))?;
                open.push((names_in(&inner)?, inner));
            } else {
                path.pop();
            }
        }
        Ok(())
    }

    fn hash(&self, path: &[Vec<u8>]) -> u64 {
        self.hasher.hash_one(path)
    }

    fn note_implicit(&mut self, path: &[Vec<u8>]) -> io::Result<()> {
        let hash = self.hash(path);
        if self.once_listed.contains(&hash) {
            return Ok(());
        }
        remember(
            &mut self.implicit,
            hash,
            "directories that the archive does not list",
        )
        .map(drop)
    }

    /// It stays listed, whatever becomes of it.
    pub(super) fn note_once_listed(&mut self, path: &[Vec<u8>]) -> io::Result<()> {
        let hash = self.hash(path);
        if self.implicit.contains(&hash) {
            return Ok(());
        }
        let what = "files that the archive lists and takes away again";
        remember(&mut self.once_listed, hash, what).map(drop)
    }

    /// The archive itself put something there.
    pub(super) fn note_listed(&mut self, path: &[Vec<u8>]) {
        self.implicit.remove(&self.hash(path));
    }
}

impl Links for Tree {
    fn read_link(&mut self, path: &[Vec<u8>]) -> io::Result<Option<Vec<u8>>> {
        let Some((name, parent)) = path.split_last() else {
            return Ok(None);
        };
        let Some(node) = self.directory(parent)? else {
            return Ok(None);
        };
        match self.lookup(&node, name)? {
            Some(found) if file_type(&found.stat) == FileType::Symlink => {
                link_text(&found.directory, name).map(Some)
            }
            _ => Ok(None),
        }
    }
}

/// Every file of a layer that has several names.
fn aliases_of(layer: &OwnedFd) -> io::Result<Aliases> {
    let mut aliases = Aliases::new();
    let mut bytes = 0;
    let mut pending = vec![Names::new()];
    while let Some(path) = pending.pop() {
        let mut directory = open_directory(layer, OsStr::new("."))?;
        for name in &path {
            directory = open_directory(&directory, OsStr::from_bytes(name))?;
        }
        for name in names_in(&directory)? {
            let name = name?;
            let Some(stat) = stat(&directory, &name)? else {
                continue;
            };
            let is_dir = file_type(&stat) == FileType::Directory;
            if !is_dir && stat.st_nlink < 2 {
                continue;
            }
            let mut inner = path.clone();
            inner.push(name);
            bytes += inner.iter().map(|name| name.len() + 48).sum::<usize>();
            if bytes > MAX_ALIAS_BYTES {
                return Err(io::Error::other("too many hard links in a layer below"));
            }
            if is_dir {
                pending.push(inner);
            } else {
                aliases.entry(stat.st_ino).or_default().push(inner);
            }
        }
    }
    Ok(aliases)
}

fn remove_here(directory: &OwnedFd, name: &[u8], stat: &Stat) -> io::Result<()> {
    if file_type(stat) == FileType::Directory {
        return host::remove_tree_at(directory.as_fd(), OsStr::from_bytes(name));
    }
    rustix::fs::unlinkat(directory, OsStr::from_bytes(name), AtFlags::empty())?;
    Ok(())
}

/// Answers whether it is new.
fn remember(set: &mut HashSet<u64>, hash: u64, what: &str) -> io::Result<bool> {
    if set.len() >= MAX_REMEMBERED && !set.contains(&hash) {
        return Err(io::Error::other(format!(
            "more than {MAX_REMEMBERED} {what}"
        )));
    }
    Ok(set.insert(hash))
}

/// The names of a directory, one after the other: it may hold more than memory does.
fn names_in(directory: &OwnedFd) -> io::Result<impl Iterator<Item = io::Result<Vec<u8>>> + use<>> {
    let names = Dir::read_from(directory)?.map(|entry| {
        let name = entry?.file_name().to_bytes().to_vec();
        Ok(Some(name).filter(|name| name != b"." && name != b".."))
    });
    Ok(names.filter_map(Result::transpose))
}

/// What `name` is in this one directory; `None`: not there.
pub(super) fn stat(directory: &OwnedFd, name: &[u8]) -> io::Result<Option<Stat>> {
    match rustix::fs::statat(
        directory,
        OsStr::from_bytes(name),
        AtFlags::SYMLINK_NOFOLLOW,
    ) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

pub(super) fn link_text(directory: &OwnedFd, name: &[u8]) -> io::Result<Vec<u8>> {
    let text = rustix::fs::readlinkat(directory, OsStr::from_bytes(name), Vec::new())?;
    Ok(text.into_bytes())
}

pub(super) fn open_directory(at: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(
        at,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// A path of `name` that goes through the open directory, for calls that take no descriptor.
pub(super) fn through_fd(parent: &OwnedFd, name: &[u8]) -> PathBuf {
    Path::new(&format!("/proc/self/fd/{}", parent.as_raw_fd())).join(OsStr::from_bytes(name))
}

pub(super) fn make_node(
    parent: &OwnedFd,
    name: &[u8],
    kind: FileType,
    device: Dev,
) -> io::Result<()> {
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::mknodat(parent, OsStr::from_bytes(name), kind, mode, device)?;
    Ok(())
}

fn set_opaque(directory: &OwnedFd) -> io::Result<()> {
    rustix::fs::fsetxattr(directory, OPAQUE_XATTR, b"y", XattrFlags::empty())?;
    Ok(())
}

fn is_opaque(directory: &OwnedFd) -> bool {
    let mut value = [0u8; 4];
    rustix::fs::fgetxattr(directory, OPAQUE_XATTR, &mut value[..])
        .is_ok_and(|count| &value[..count] == b"y")
}

pub(super) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn is_whiteout(stat: &Stat) -> bool {
    file_type(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}
