//! The terminal's size: one JSON object after another, `{"Width":80,"Height":24}`.

use serde::Deserialize;
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;

use super::{Inbound, TerminalSize};

/// An object that is not whole after this many bytes never will be.
const MAX_PENDING_BYTES: usize = 4096;

#[derive(Deserialize)]
struct Size {
    #[serde(rename = "Width", alias = "width", default)]
    width: u16,
    #[serde(rename = "Height", alias = "height", default)]
    height: u16,
}

/// Passes sizes on until the client's stream ends or holds something else.
pub(super) async fn forward(from: Option<Inbound>, to: Option<mpsc::Sender<TerminalSize>>) {
    let Some(mut from) = from else { return };
    let mut pending = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => pending.extend_from_slice(&buffer[..count]),
        }
        let (sizes, used) = match parse(&pending) {
            Ok(parsed) => parsed,
            Err(error) => {
                tracing::debug!(%error, "the resize stream is no JSON");
                return;
            }
        };
        pending.drain(..used);
        if pending.len() > MAX_PENDING_BYTES {
            return;
        }
        for size in sizes {
            let Some(to) = &to else { continue };
            if to.send(size).await.is_err() {
                return;
            }
        }
    }
}

/// The whole objects at the front, and how many bytes they take.
fn parse(bytes: &[u8]) -> Result<(Vec<TerminalSize>, usize), serde_json::Error> {
    let mut stream = serde_json::Deserializer::from_slice(bytes).into_iter::<Size>();
    let mut sizes = Vec::new();
    let mut used = 0;
    while let Some(size) = stream.next() {
        match size {
            Ok(Size { width, height }) => {
                sizes.push(TerminalSize { width, height });
                used = stream.byte_offset();
            }
            Err(error) if error.is_eof() => break,
            Err(error) => return Err(error),
        }
    }
    Ok((sizes, used))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_in_pieces() {
        let check = |text: &str, expect: &[(u16, u16)], rest: &str| {
            let (sizes, used) = parse(text.as_bytes()).unwrap();
            let sizes: Vec<_> = sizes.iter().map(|size| (size.width, size.height)).collect();
            assert_eq!((sizes.as_slice(), text[used..].trim()), (expect, rest));
        };
        check("{\"Width\":80,\"Height\":24}\n", &[(80, 24)], "");
        check(
            "{\"Width\":1,\"Height\":2}{\"Width\":3,\"Height\":4}{\"Wi",
            &[(1, 2), (3, 4)],
            "{\"Wi",
        );
        check("", &[], "");
        assert!(parse(b"nonsense").is_err());
    }
}
