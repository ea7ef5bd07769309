//! A registry in the test's own process, which says whatever a test wants it to say. It listens on a node's own loopback,
//! where a kubelet asks registries without TLS and without being told so.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::cluster::Cluster;
use crate::cluster::layout::netns_path;

/// A repository whose name begins so wants a token first.
const GUARDED: &str = "guarded";
const PIECE: usize = 64 * 1024;

#[derive(Default)]
struct Shelf {
    /// By path below `/v2/`.
    documents: Mutex<HashMap<String, Arc<[u8]>>>,
    /// What the token endpoint answers with: so many bytes of one token.
    token_bytes: AtomicU64,
    /// Of those, how many somebody took.
    token_taken: AtomicU64,
    stop: AtomicBool,
}

/// Ends with its owner.
pub struct Registry {
    /// Host and port, as the node sees it.
    pub address: String,
    shelf: Arc<Shelf>,
}

impl Registry {
    /// # Errors
    /// The node's network cannot be entered.
    pub fn start(cluster: &Cluster, node: &str) -> Result<Self> {
        let path = netns_path(&cluster.layout.node_netns(node));
        let namespace = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        let shelf = Arc::new(Shelf::default());
        let (started, address) = mpsc::channel();
        let served = shelf.clone();
        std::thread::spawn(move || {
            let listener = nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET)
                .context("enter the node's network")
                .and_then(|()| TcpListener::bind("127.0.0.1:0").context("listen"))
                .and_then(|listener| Ok((listener.local_addr()?.to_string(), listener)));
            match listener {
                Ok((address, listener)) => {
                    let _ = started.send(Ok(address));
                    accept(&listener, &served);
                }
                Err(error) => drop(started.send(Err(error))),
            }
        });
        let address = address.recv().context("the registry's thread ended")??;
        Ok(Self { address, shelf })
    }

    /// Puts bytes into a repository; answers their digest.
    pub fn put(&self, repository: &str, kind: &str, bytes: &[u8]) -> String {
        let digest = digest(bytes);
        self.put_as(repository, kind, &digest, bytes);
        digest
    }

    /// Puts bytes under a name of their own.
    pub fn put_as(&self, repository: &str, kind: &str, name: &str, bytes: &[u8]) {
        let path = format!("{repository}/{kind}/{name}");
        self.shelf
            .documents
            .lock()
            .expect("nobody panics with it")
            .insert(path, bytes.into());
    }

    /// Puts a JSON document there; answers a descriptor of it.
    pub fn put_json(&self, repository: &str, kind: &str, value: &Value) -> Value {
        let bytes = value.to_string();
        let media_type = value["mediaType"].as_str().unwrap_or("m");
        serde_json::json!({
            "mediaType": media_type, "digest": self.put(repository, kind, bytes.as_bytes()), "size": bytes.len(),
        })
    }

    /// Names what a descriptor describes.
    pub fn tag(&self, repository: &str, tag: &str, descriptor: &Value) {
        let digest = descriptor["digest"].as_str().unwrap_or_default();
        let path = format!("{repository}/manifests/{digest}");
        let bytes = self
            .shelf
            .documents
            .lock()
            .expect("nobody panics with it")
            .get(&path)
            .cloned();
        self.put_as(
            repository,
            "manifests",
            tag,
            &bytes.unwrap_or_else(|| Arc::from(&b""[..])),
        );
    }

    /// From now on whoever wants something of a repository that begins with `guarded` is sent for a token of this size.
    pub fn ask_for_tokens_of(&self, bytes: u64) {
        self.shelf.token_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Bytes of tokens that were taken so far.
    pub fn token_bytes_taken(&self) -> u64 {
        self.shelf.token_taken.load(Ordering::Relaxed)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.shelf.stop.store(true, Ordering::Relaxed);
    }
}

/// `sha256:…` of bytes.
pub fn digest(bytes: &[u8]) -> String {
    let sum = Sha256::digest(bytes);
    let hex: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn accept(listener: &TcpListener, shelf: &Arc<Shelf>) {
    if listener.set_nonblocking(true).is_err() {
        return;
    }
    while !shelf.stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => {
                let shelf = shelf.clone();
                std::thread::spawn(move || serve(stream, &shelf));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Until the client hangs up.
fn serve(stream: TcpStream, shelf: &Shelf) {
    let _ = stream.set_nonblocking(false);
    let Ok(mut out) = stream.try_clone() else {
        return;
    };
    let mut reader = BufReader::new(stream);
    // Somebody tries TLS first; he is told in plain text that there is none, and comes again without.
    if matches!(reader.fill_buf(), Ok([0x16, ..])) {
        let _ = plain(
            &mut out,
            "400 Bad Request",
            "Connection: close\r\n",
            b"",
            true,
        );
        return;
    }
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            match reader.read_line(&mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) if line.trim().is_empty() => break,
                Ok(_) => head.push(line.trim().to_owned()),
            }
        }
        if answer(&mut out, &head, shelf).is_err() {
            return;
        }
    }
}

fn answer(out: &mut TcpStream, head: &[String], shelf: &Shelf) -> std::io::Result<()> {
    let mut words = head.first().map_or("", String::as_str).split(' ');
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let path = target.split('?').next().unwrap_or("");
    let header = |name: &str| {
        head.iter().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then(|| value.to_owned())
        })
    };
    let with_body = method != "HEAD";
    if path == "/token" {
        return token(out, shelf);
    }
    let Some(below) = path.strip_prefix("/v2/") else {
        return plain(out, "404 Not Found", "", b"", with_body);
    };
    if below.starts_with(GUARDED) && header("authorization").is_none() {
        let challenge = format!(
            "WWW-Authenticate: Bearer realm=\"http://{}/token\",service=\"s\",scope=\"repository:x:pull\"\r\n",
            header("host").unwrap_or_default()
        );
        return plain(out, "401 Unauthorized", &challenge, b"", with_body);
    }
    let found = shelf
        .documents
        .lock()
        .expect("nobody panics with it")
        .get(below)
        .cloned();
    match found {
        Some(bytes) => {
            let digest = format!("Docker-Content-Digest: {}\r\n", digest(&bytes));
            plain(out, "200 OK", &digest, &bytes, with_body)
        }
        None => plain(out, "404 Not Found", "", b"{}", with_body),
    }
}

fn plain(
    out: &mut TcpStream,
    status: &str,
    headers: &str,
    body: &[u8],
    with_body: bool,
) -> std::io::Result<()> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{headers}\r\n");
    out.write_all(head.as_bytes())?;
    if with_body {
        out.write_all(body)?;
    }
    out.flush()
}

fn token(out: &mut TcpStream, shelf: &Shelf) -> std::io::Result<()> {
    let total = shelf.token_bytes.load(Ordering::Relaxed);
    let (before, after) = (b"{\"token\":\"", b"\"}");
    let length = total + (before.len() + after.len()) as u64;
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
    out.write_all(head.as_bytes())?;
    out.write_all(before)?;
    let piece = [b'a'; PIECE];
    let mut left = total;
    while left > 0 {
        let count = left.min(PIECE as u64);
        out.write_all(&piece[..count as usize])?;
        shelf.token_taken.fetch_add(count, Ordering::Relaxed);
        left -= count;
    }
    out.write_all(after)?;
    out.flush()
}
