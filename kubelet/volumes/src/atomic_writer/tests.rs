use std::os::unix::fs::MetadataExt;

use super::*;

fn payload(files: &[(&str, &str)]) -> Payload {
    files
        .iter()
        .map(|(path, data)| {
            (
                (*path).to_owned(),
                FileProjection {
                    data: data.as_bytes().to_vec(),
                    mode: 0o644,
                    fs_user: None,
                },
            )
        })
        .collect()
}

fn visible(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| !n.starts_with("..2"))
        .collect();
    names.sort();
    names
}

fn timestamps(dir: &Path) -> usize {
    fs::read_dir(dir)
        .unwrap()
        .filter(|e| {
            e.as_ref()
                .unwrap()
                .file_name()
                .to_str()
                .unwrap()
                .starts_with("..2")
        })
        .count()
}

fn put(dir: &Path, files: &[(&str, &str)]) -> bool {
    write(dir, payload(files), || Ok(())).unwrap()
}

#[test]
fn refuses_paths_that_leave_the_volume() {
    for (path, ok) in [
        ("a", true),
        ("a/b", true),
        (".hidden", true),
        ("a/..b", true),
        ("", false),
        (".", false),
        ("/a", false),
        ("..", false),
        ("../a", false),
        ("a/../b", false),
        ("..data", false),
        (&"x".repeat(256), false),
        (&"x".repeat(255), true),
        (&"x/".repeat(3000), false),
    ] {
        assert_eq!(clean(payload(&[(path, "")])).is_ok(), ok, "{path:?}");
    }
}

#[test]
fn each_step_shows_exactly_its_payload() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    type Step<'a> = (&'a [(&'a str, &'a str)], bool, &'a [&'a str]);
    let steps: &[Step] = &[
        (
            &[("a", "1"), ("k8s/labels", "x")],
            true,
            &["..data", "a", "k8s"],
        ),
        (
            &[("a", "1"), ("k8s/labels", "x")],
            false,
            &["..data", "a", "k8s"],
        ),
        (
            &[("a", "2"), ("k8s/labels", "x")],
            true,
            &["..data", "a", "k8s"],
        ),
        (
            &[("k8s/labels", "x"), ("k8s/more/z", "")],
            true,
            &["..data", "k8s"],
        ),
        (&[("k8s", "now a file")], true, &["..data", "k8s"]),
        (&[("k8s/labels", "and back")], true, &["..data", "k8s"]),
        (&[], true, &["..data"]),
        (&[], false, &["..data"]),
    ];
    for (files, wrote, names) in steps {
        assert_eq!(put(dir, files), *wrote, "{files:?}");
        assert_eq!(visible(dir), *names, "{files:?}");
        assert_eq!(timestamps(dir), 1);
        for (path, data) in *files {
            assert_eq!(fs::read_to_string(dir.join(path)).unwrap(), *data);
        }
    }
}

#[test]
fn modes_are_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = payload(&[("a", ""), ("d/b", "")]);
    files.get_mut("a").unwrap().mode = 0o400;
    files.get_mut("d/b").unwrap().mode = 0o777;
    files.get_mut("d/b").unwrap().fs_user = Some(1000);
    write(dir.path(), files, || Ok(())).unwrap();
    let mode = |p: &str| fs::metadata(dir.path().join(p)).unwrap().mode() & 0o7777;
    assert_eq!(
        (mode("a"), mode("d"), mode("d/b"), mode("..data")),
        (0o400, 0o755, 0o777, 0o755)
    );
    assert_eq!(fs::metadata(dir.path().join("d/b")).unwrap().uid(), 1000);
}

#[test]
fn a_failed_write_keeps_the_old_and_a_crash_leaves_nothing_for_long() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    put(dir, &[("a", "old")]);
    let failed = write(dir, payload(&[("a", "new")]), || {
        Err(io::Error::other("no"))
    });
    assert!(failed.is_err());
    assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "old");
    assert_eq!(timestamps(dir), 1);

    // As a crash would leave them: a torn version, the temporary link, and a missing visible link.
    fs::create_dir(dir.join("..2020_01_01_00_00_00.1")).unwrap();
    symlink("..2020_01_01_00_00_00.1", dir.join(NEW_DATA_DIR)).unwrap();
    fs::remove_file(dir.join("a")).unwrap();
    assert!(!put(dir, &[("a", "old")]), "same content");
    assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "old");
    assert!(put(dir, &[("a", "new")]));
    assert_eq!(visible(dir), ["..data", "a"]);
    assert_eq!(timestamps(dir), 1);
}
