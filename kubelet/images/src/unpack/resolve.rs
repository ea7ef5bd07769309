//! Paths of archives: cleaned by their text, then led through the symlinks of the tree they go into. Pure; the tree is
//! seen through [`Links`]. Nothing it answers leads outside the root: a path is a list of plain names below it.
//!
//! Upstream: Go's `filepath.Clean`, and `continuity/fs.RootPath`, whose order of evaluation is kept: a pass over the
//! whole path replaces each link by its text, `..` is taken by the text, and passes go on until none meets a link.

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

/// The names of a text; `..` above the root stays there.
pub(super) fn clean(path: &[u8]) -> Names {
    let mut names = Names::new();
    join(&mut names, path);
    names
}

fn join(names: &mut Names, path: &[u8]) {
    for name in path.split(|&b| b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                names.pop();
            }
            name => names.push(name.to_vec()),
        }
    }
}

/// Where `path` leads; parts that are not there are taken as they are. The last name is followed too.
pub(super) fn resolve(tree: &mut impl Links, path: &[u8]) -> io::Result<Names> {
    check(path.len(), 0)?;
    let mut path: Names = path
        .split(|&b| b == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
        .map(<[u8]>::to_vec)
        .collect();
    let mut links = 0;
    loop {
        let before = links;
        let mut current = Names::new();
        for name in &path {
            if name == b".." {
                current.pop();
                continue;
            }
            current.push(name.clone());
            let Some(text) = tree.read_link(&current)? else {
                continue;
            };
            links += 1;
            if links > MAX_LINKS {
                return Err(rustix::io::Errno::LOOP.into());
            }
            current.pop();
            if text.starts_with(b"/") {
                current.clear();
            }
            join(&mut current, &text);
            check(length(&current), current.len())?;
        }
        path = current;
        if links == before {
            check(length(&path), path.len())?;
            return Ok(path);
        }
    }
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

    #[test]
    fn bounds() {
        let mut tree = Fake([("a", "b"), ("b", "a")].into());
        assert!(resolve(&mut tree, b"a").is_err());
        assert!(resolve(&mut tree, "x/".repeat(600).as_bytes()).is_err());
        assert!(resolve(&mut tree, "x".repeat(5000).as_bytes()).is_err());
    }

    #[test]
    fn cleans() {
        let text = |path: &str| String::from_utf8(clean(path.as_bytes()).join(&b'/')).unwrap();
        assert_eq!(text("./a//b/../c/"), "a/c");
        assert_eq!(text("../../x"), "x");
        assert_eq!(text("/"), "");
        assert_eq!(text("a/.."), "");
    }
}
