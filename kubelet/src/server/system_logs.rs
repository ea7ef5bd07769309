//! `/logs/`: the node's log directory.
//!
//! DIFFERS: a file is served only if it really lies below the log directories: a symlink that a pod plants in a
//! mounted /var/log leads nowhere else.

use std::path::{Path as FsPath, PathBuf};

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{Html, IntoResponse, Response};
use tokio_util::io::ReaderStream;

use super::{ApiError, Server};

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
    let missing = || ApiError::not_found("404 page not found\n");
    let root = server.context.system_log_directory();
    let roots = [
        root.to_owned(),
        server.context.paths().pod_logs_root().to_owned(),
    ];
    let file = resolve(&roots, root, path).await.ok_or_else(missing)?;
    let meta = tokio::fs::metadata(&file).await.map_err(|_| missing())?;
    if meta.is_dir() {
        return Ok(Html(listing(&file).await).into_response());
    }
    if !meta.is_file() {
        return Err(missing());
    }
    let file = tokio::fs::File::open(&file).await.map_err(|_| missing())?;
    let headers = [(http::header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    Ok((headers, Body::from_stream(ReaderStream::new(file))).into_response())
}

/// The real path, if it lies below one of `roots`.
async fn resolve(roots: &[PathBuf], root: &FsPath, path: &str) -> Option<PathBuf> {
    if path.split('/').any(|part| part == "..") {
        return None;
    }
    let real = tokio::fs::canonicalize(root.join(path.trim_start_matches('/')))
        .await
        .ok()?;
    for root in roots {
        let Ok(root) = tokio::fs::canonicalize(root).await else {
            continue;
        };
        if real.starts_with(root) {
            return Some(real);
        }
    }
    None
}

async fn listing(directory: &FsPath) -> String {
    let mut names = Vec::new();
    if let Ok(mut entries) = tokio::fs::read_dir(directory).await {
        while let Ok(Some(entry)) = entries.next_entry().await {
            let slash = if entry.path().is_dir() { "/" } else { "" };
            names.push(format!("{}{slash}", entry.file_name().to_string_lossy()));
        }
    }
    names.sort();
    let mut page = String::from("<!doctype html>\n<pre>\n");
    for name in names {
        let text = name
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
    use super::*;

    #[tokio::test]
    async fn symlinks_do_not_lead_out() {
        let dir = std::env::temp_dir().join(format!("gantry-logs-{}", std::process::id()));
        let root = dir.join("log");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(root.join("sub/a.log"), "x").unwrap();
        std::fs::write(dir.join("secret"), "x").unwrap();
        std::os::unix::fs::symlink(dir.join("secret"), root.join("evil")).unwrap();
        std::os::unix::fs::symlink("sub/a.log", root.join("good")).unwrap();
        let roots = [root.clone()];
        for (path, found) in [
            ("sub/a.log", true),
            ("good", true),
            ("evil", false),
            ("../secret", false),
            ("no", false),
        ] {
            assert_eq!(
                resolve(&roots, &root, path).await.is_some(),
                found,
                "{path}"
            );
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
