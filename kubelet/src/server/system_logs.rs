//! `/logs/`: the node's log directory.
//!
//! DIFFERS: a file is served only if it really lies below the log directories: a symlink that a pod plants in a
//! mounted /var/log leads nowhere else.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path as FsPath, PathBuf};

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{Html, IntoResponse, Response};
use host::{Links, Root};
use tokio_util::io::ReaderStream;

use super::{ApiError, Server};
use crate::off_thread::off_thread;

/// Of a directory, told to a client.
const MAX_ENTRIES: usize = 100_000;

pub(super) async fn root(State(server): State<Server>) -> Result<Response, ApiError> {
    serve(&server, "").await
}

pub(super) async fn path(
    State(server): State<Server>,
    Path(path): Path<String>,
) -> Result<Response, ApiError> {
    serve(&server, &path).await
}

async fn serve(server: &Server, path: &str) -> Result<Response, ApiError> {
    let root = server.context.system_log_directory().to_owned();
    let roots = [
        root.clone(),
        server.context.paths().pod_logs_root().to_owned(),
    ];
    let path = path.to_owned();
    let found = off_thread(move || find(&roots, &root, &path)).await;
    match found.map_err(|error| ApiError::internal(error.to_string()))? {
        Some(Found::Directory(entries)) => Ok(Html(listing(&entries)).into_response()),
        Some(Found::File(file)) => {
            let headers = [(http::header::CONTENT_TYPE, "text/plain; charset=utf-8")];
            let stream = ReaderStream::new(tokio::fs::File::from_std(file));
            Ok((headers, Body::from_stream(stream)).into_response())
        }
        None => Err(ApiError::not_found("404 page not found\n")),
    }
}

enum Found {
    /// Names, and whether each is a directory.
    Directory(Vec<(OsString, bool)>),
    File(File),
}

/// What `path` leads to, if that lies below one of `roots`. Links are resolved first; what they lead to is then
/// opened without any, so that no change meanwhile leads elsewhere. Blocks.
fn find(roots: &[PathBuf], root: &FsPath, path: &str) -> Option<Found> {
    if path.split('/').any(|part| part == "..") {
        return None;
    }
    let real = std::fs::canonicalize(root.join(path.trim_start_matches('/'))).ok()?;
    roots.iter().find_map(|root| {
        let root = std::fs::canonicalize(root).ok()?;
        let below = real.strip_prefix(&root).ok()?;
        let root = Root::open(&root).ok()?;
        if let Ok(directory) = root.open_directory(below, Links::Refused) {
            return directory.entries(MAX_ENTRIES).ok().map(Found::Directory);
        }
        let file = root.open_regular(below, Links::Refused);
        file.ok().map(Found::File)
    })
}

fn listing(entries: &[(OsString, bool)]) -> String {
    let mut page = String::from("<!doctype html>\n<pre>\n");
    for (name, is_directory) in entries {
        let slash = if *is_directory { "/" } else { "" };
        let text = format!("{}{slash}", name.to_string_lossy())
            .replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('"', "&#34;");
        page.push_str(&format!("<a href=\"{text}\">{text}</a>\n"));
    }
    page.push_str("</pre>\n");
    page
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn links_do_not_lead_out_and_pipes_hold_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("log");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(root.join("sub/a.log"), "x").unwrap();
        std::fs::write(dir.path().join("secret"), "secret").unwrap();
        let link = |to: &FsPath, name: &str| {
            std::os::unix::fs::symlink(to, root.join(name)).unwrap();
        };
        link(&dir.path().join("secret"), "evil");
        link(FsPath::new("sub/a.log"), "good");
        link(&root.join("sub/a.log"), "absolute");
        link(FsPath::new("/"), "all");
        nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let roots = [root.clone()];
        for (path, expect) in [
            ("sub/a.log", Some("x")),
            ("/good", Some("x")),
            ("absolute", Some("x")),
            ("sub", Some("a.log")),
            ("evil", None),
            ("all/etc/passwd", None),
            ("../secret", None),
            ("pipe", None),
            ("no", None),
        ] {
            let text = find(&roots, &root, path).map(|found| match found {
                Found::Directory(names) => names[0].0.to_string_lossy().into_owned(),
                Found::File(mut file) => {
                    let mut text = String::new();
                    file.read_to_string(&mut text).unwrap();
                    text
                }
            });
            assert_eq!(text.as_deref(), expect, "{path}");
        }
        assert_eq!(
            listing(&[("a<b".into(), true)]),
            "<!doctype html>\n<pre>\n<a href=\"a&lt;b/\">a&lt;b/</a>\n</pre>\n"
        );
    }
}
