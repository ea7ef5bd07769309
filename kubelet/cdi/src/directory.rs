//! The folders of the files. Blocking calls: not for async threads.
//!
//! They are read when a container wants a device, anew each time: drivers write a file just before. Upstream: pkg/cdi/spec-dirs.go (it
//! reads at every change of a folder).
//!
//! **Invariant:** a file that is broken, too long or no file costs the others nothing.

use std::fs;
use std::path::{Path, PathBuf};

use host::{FileError, Root};

use crate::resolve::Loaded;
use crate::spec::{Spec, SpecError, parse};

/// The later counts. Upstream: `DefaultSpecDirs`.
pub const DEFAULT_DIRS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// Of a folder, whatever they are: a driver writes one for each claim.
const MOST_ENTRIES: usize = 16 << 10;
/// Of a file. The largest that are known have some hundred KiB.
const MOST_BYTES: u64 = 2 << 20;
/// Of all files together, at one time.
const MOST_BYTES_OF_ALL: u64 = 64 << 20;

/// A file or a folder that counts for nothing.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    #[error("failed to read CDI Spec {path:?}: {source}")]
    File {
        path: PathBuf,
        #[source]
        source: FileError,
    },
    #[error("failed to parse CDI Spec {path:?}: {source}")]
    Spec {
        path: PathBuf,
        #[source]
        source: SpecError,
    },
    #[error(
        "the CDI Specs have more than {MOST_BYTES_OF_ALL} bytes: {0:?} and those after it are not read"
    )]
    TooMuch(PathBuf),
}

/// What the folders have.
#[derive(Debug, Default)]
pub struct Files {
    pub specs: Vec<Loaded>,
    pub unreadable: Vec<Unreadable>,
}

/// Reads the files of the kinds (`vendor/class`) in `kinds`; the others are looked at and let go. A folder that is not there is no fault.
pub fn read(dirs: &[PathBuf], kinds: &[String]) -> Files {
    let mut files = Files::default();
    let mut left = MOST_BYTES_OF_ALL;
    for (priority, dir) in dirs.iter().enumerate() {
        let names = match names(dir) {
            Ok(names) => names,
            Err(source) if source.is_not_found() => continue,
            Err(source) => {
                let path = dir.clone();
                files.unreadable.push(Unreadable::File { path, source });
                continue;
            }
        };
        for path in names {
            match read_one(&path, &mut left) {
                Ok(spec) if kinds.contains(&spec.kind) => files.specs.push(Loaded {
                    path,
                    priority,
                    spec,
                }),
                Ok(_) => {}
                // It went since the folder was read.
                Err(Unreadable::File { source, .. }) if source.is_not_found() => {}
                Err(error @ Unreadable::TooMuch(_)) => {
                    files.unreadable.push(error);
                    return files;
                }
                Err(error) => files.unreadable.push(error),
            }
        }
    }
    files
}

fn names(dir: &Path) -> Result<Vec<PathBuf>, FileError> {
    let entries = Root::open(dir)?.entries(MOST_ENTRIES)?;
    let is_spec = |path: &PathBuf| {
        let extension = path.extension().and_then(|e| e.to_str());
        matches!(extension, Some("json" | "yaml"))
    };
    let paths = entries.into_iter().filter(|(_, is_dir)| !is_dir);
    let paths = paths.map(|(name, _)| dir.join(name));
    Ok(paths.filter(is_spec).collect())
}

fn read_one(path: &Path, left: &mut u64) -> Result<Spec, Unreadable> {
    let at = |source| Unreadable::File {
        path: path.to_owned(),
        source,
    };
    let io = |source| FileError::Io {
        path: path.to_owned(),
        source,
    };
    // Links are followed, as by upstream: whoever writes here is root. What stands there in the end may still be no file.
    let real = fs::canonicalize(path).map_err(io).map_err(at)?;
    let text = host::read_regular(&real, MOST_BYTES).map_err(at)?;
    let bytes = text.len() as u64;
    let spent = left.checked_sub(bytes);
    *left = spent.ok_or_else(|| Unreadable::TooMuch(path.to_owned()))?;
    let broken = |source| Unreadable::Spec {
        path: path.to_owned(),
        source,
    };
    let text = String::from_utf8(text);
    let text = text.map_err(|error| broken(SpecError::Text(error.to_string())))?;
    parse(&text).map_err(broken)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn spec(kind: &str, device: &str) -> String {
        format!(
            r#"{{"cdiVersion": "0.5.0", "kind": "{kind}", "devices": [{{"name": "{device}", "containerEdits": {{"env": ["A=1"]}}}}]}}"#
        )
    }

    #[test]
    fn one_broken_file_costs_the_others_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let low = dir.path().join("low");
        fs::create_dir(&low).unwrap();
        let write = |name: &str, text: &str| fs::write(low.join(name), text).unwrap();
        write("a.json", &spec("v/gpu", "0"));
        write("b.yaml", "cdiVersion: 0.3.0\nkind: v/gpu\ndevices: [");
        write("c.json", &spec("v/gpu", "0").replace("0.5.0", "9.9.9"));
        write("d.json", &" ".repeat(MOST_BYTES as usize + 1));
        write("e.txt", "no file of ours");
        write("f.json", &spec("w/nic", "0"));
        fs::create_dir(low.join("g.json")).unwrap();
        // A reader of it would wait for its writer.
        let made = std::process::Command::new("mkfifo")
            .arg(low.join("h.json"))
            .status();
        assert!(made.unwrap().success());
        symlink("a.json", low.join("i.json")).unwrap();
        symlink("gone", low.join("j.json")).unwrap();
        fs::write(low.join("k.json"), [0xff, 0xfe]).unwrap();

        let dirs = [dir.path().join("missing"), low.clone()];
        let files = read(&dirs, &["v/gpu".to_owned()]);
        let found: Vec<_> = files.specs.iter().map(|one| &one.path).collect();
        assert_eq!(found, [&low.join("a.json"), &low.join("i.json")]);
        assert!(files.specs.iter().all(|one| one.priority == 1));
        let faults: Vec<String> = files.unreadable.iter().map(ToString::to_string).collect();
        let faults = faults.join("\n");
        for (name, words) in [
            ("b.yaml", "failed to parse"),
            ("c.json", "invalid version \"9.9.9\""),
            ("d.json", "more than"),
            ("h.json", "a named pipe"),
            ("k.json", "utf-8"),
        ] {
            let told = faults.lines().find(|line| line.contains(name));
            assert!(told.is_some_and(|told| told.contains(words)), "{faults}");
        }
        assert_eq!(files.unreadable.len(), 5, "{faults}");
    }
}
