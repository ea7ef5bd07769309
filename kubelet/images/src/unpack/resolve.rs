//! Paths of archives: cleaned by their text, then led through the symlinks of the tree they go into. Pure; the tree is
//! seen through [`Links`]. Nothing it answers leads outside the root: a path is a list of plain names below it.
//!
//! Upstream: Go's `filepath.Clean`, and `continuity/fs.RootPath`, whose order of evaluation is kept: a pass goes over the
//! whole path and puts a link's text in the place of the link, passes go on until none meets a link. What a pass
//! answers is taken apart by its text in the next one, and where it ends in a link its text stands as it is written:
//! in `b/../c` there, `b` is followed before `..` goes up. Everywhere else `..` takes back the name before it.

use std::io;

/// Links one path may lead through. Upstream: `continuity/fs`.
const MAX_LINKS: usize = 255;
/// The kernel's bound on a path, which upstream meets with whole paths.
pub(super) const MAX_PATH_BYTES: usize = 4096;
/// Directories one in the other.
///
/// DIFFERS: upstream has the bound of bytes alone; this one keeps those who delete trees within their descriptors.
pub(super) const MAX_DEPTH: usize = 512;

/// The names of a path below the root, each plain: no `/`, no `.`, no `..`, not empty.
pub(super) type Names = Vec<Vec<u8>>;

/// A tree, looked at.
pub(super) trait Links {
    /// The text of the symlink at `path`, whose directories may be reached through symlinks; `None`: something
    /// else, or nothing, is there.
    fn read_link(&mut self, path: &[Vec<u8>]) -> io::Result<Option<Vec<u8>>>;
}

/// A path as it is written: the names between its slashes, `.` and `..` among them.
#[derive(Clone)]
struct Text {
    rooted: bool,
    names: Names,
}

impl Text {
    fn of(path: &[u8]) -> Self {
        Self {
            rooted: path.starts_with(b"/"),
            names: path
                .split(|&b| b == b'/')
                .filter(|name| !name.is_empty())
                .map(<[u8]>::to_vec)
                .collect(),
        }
    }

    /// The shortest text of the same meaning. Above a root there is nothing; other paths keep `..` at their front.
    fn clean(self) -> Self {
        let mut names = Names::new();
        for name in self.names {
            let goes_up = name == b"..";
            match names.last().map(Vec::as_slice) {
                _ if name == b"." => {}
                None if goes_up && self.rooted => {}
                Some(last) if goes_up && last != b".." => {
                    names.pop();
                }
                _ => names.push(name),
            }
        }
        Self {
            rooted: self.rooted,
            names,
        }
    }

    fn join(mut self, path: &[u8]) -> Self {
        self.names.extend(Self::of(path).names);
        self.clean()
    }

    /// The same with the root before it.
    fn below_root(mut self) -> Names {
        self.rooted = true;
        self.clean().names
    }
}

/// The shortest text of the same meaning: empty for the root, and what leads above it begins with `..` still.
pub(super) fn clean(path: &[u8]) -> Vec<u8> {
    let text = Text::of(path).clean();
    let mut clean = text.names.join(&b'/');
    if text.rooted {
        clean.insert(0, b'/');
    }
    clean
}

/// A path's last name, and all before it with its slash.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let cut = path.iter().rposition(|&b| b == b'/').map_or(0, |i| i + 1);
    path.split_at(cut)
}

/// Where `path` leads; parts that are not there are taken as they are. The last name is followed too.
pub(super) fn resolve(tree: &mut impl Links, path: &[u8]) -> io::Result<Names> {
    let mut text = Text::of(path);
    check(path.len(), text.names.len())?;
    let mut links = 0;
    loop {
        let before = links;
        text = pass(tree, &text, &mut links)?;
        if links == before {
            let names = text.below_root();
            check(length(&names), names.len())?;
            return Ok(names);
        }
    }
}

fn pass(tree: &mut impl Links, path: &Text, links: &mut usize) -> io::Result<Text> {
    let mut current = Text {
        rooted: true,
        names: Names::new(),
    };
    // Whether it is rooted and clean.
    let mut plain = true;
    for (index, name) in path.names.iter().enumerate() {
        if *links > MAX_LINKS {
            return Err(rustix::io::Errno::LOOP.into());
        }
        let before = if plain && !matches!(name.as_slice(), b"." | b"..") {
            current.names.push(name.clone());
            None
        } else {
            let here = Text {
                rooted: true,
                names: current.clone().join(name).below_root(),
            };
            Some(std::mem::replace(&mut current, here))
        };
        plain = true;
        if current.names.is_empty() {
            continue;
        }
        let Some(link) = tree.read_link(&current.names)? else {
            continue;
        };
        *links += 1;
        let stands_alone = index == 0 && !path.rooted;
        if link.starts_with(b"/") || stands_alone {
            (current, plain) = (Text::of(&link), false);
        } else {
            current = before.unwrap_or_else(|| {
                current.names.pop();
                current
            });
            current = current.join(&link);
            plain = current.rooted;
        }
        check(length(&current.names), current.names.len())?;
    }
    Ok(current)
}

fn length(names: &[Vec<u8>]) -> usize {
    names.iter().map(|name| name.len() + 1).sum()
}

/// Whether a path may be this long and this deep.
pub(super) fn check(bytes: usize, depth: usize) -> io::Result<()> {
    if bytes > MAX_PATH_BYTES || depth > MAX_DEPTH {
        return Err(rustix::io::Errno::NAMETOOLONG.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    struct Fake(HashMap<&'static str, &'static str>);

    impl Links for Fake {
        fn read_link(&mut self, path: &[Vec<u8>]) -> io::Result<Option<Vec<u8>>> {
            let path = String::from_utf8(path.join(&b'/')).unwrap();
            Ok(self
                .0
                .get(path.as_str())
                .map(|text| text.as_bytes().to_vec()))
        }
    }

    fn check_path(links: &[(&'static str, &'static str)], path: &str, expect: &str) {
        let mut tree = Fake(links.iter().copied().collect());
        let found = resolve(&mut tree, path.as_bytes()).unwrap().join(&b'/');
        assert_eq!(
            String::from_utf8(found).unwrap(),
            expect,
            "{path} with {links:?}"
        );
    }

    #[test]
    fn leads_through_links() {
        check_path(&[], "a/b", "a/b");
        check_path(&[("bin", "usr/bin")], "bin", "usr/bin");
        check_path(&[("bin", "/usr/bin")], "bin/x", "usr/bin/x");
        check_path(
            &[("bin", "usr/bin"), ("usr", "system")],
            "bin/x",
            "system/bin/x",
        );
        check_path(&[("up", "../../..")], "up/x", "x");
        check_path(&[("a/l", "../b")], "a/l/c", "b/c");
        check_path(&[("a", "/")], "a/c", "c");
        check_path(&[], "../../x", "x");
    }

    /// What stands in for a link at a path's end is followed name by name, what stands in its middle is text.
    #[test]
    fn a_links_text_stands_as_it_is_written() {
        let links: &[_] = &[("l", "d/../f"), ("d", "e/g")];
        check_path(links, "l", "e/f");
        check_path(links, "/l", "f");
        check_path(links, "./l", "f");
        check_path(links, "l/x", "f/x");
        let links: &[_] = &[("l", "/d/../f"), ("d", "e/g")];
        check_path(links, "/l", "e/f");
        check_path(links, "l/x", "f/x");
        // Behind `..` the name that is come back to is looked at too, and its text joins what was left.
        let links: &[_] = &[("l", "/m/.."), ("m", "/x/y"), ("x", "t")];
        check_path(links, "/l", "t/y/t");
        check_path(&[("a", "b"), ("b", "..")], "a/c", "c");
    }

    #[test]
    fn bounds() {
        let mut tree = Fake([("a", "b"), ("b", "a")].into());
        assert!(resolve(&mut tree, b"a").is_err());
        assert!(resolve(&mut tree, "x/".repeat(600).as_bytes()).is_err());
        assert!(resolve(&mut tree, "x".repeat(5000).as_bytes()).is_err());
    }

    #[test]
    fn cleans() {
        let text = |path: &str| String::from_utf8(clean(path.as_bytes())).unwrap();
        assert_eq!(text("./a//b/../c/"), "a/c");
        assert_eq!(text("../../x"), "../../x");
        assert_eq!(text("/../../x"), "/x");
        assert_eq!(text("a/../../../x"), "../../x");
        assert_eq!(text("/"), "/");
        assert_eq!(text("."), "");
        assert_eq!(text("a/.."), "");
    }
}
