//! What must hold whatever stands at the other end of a shim's socket: for the fuzz target in `fuzz/`, and for the cases it
//! found. Each function panics when its promise is broken.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::wire::{Decoder, encode};
use crate::{Request, Response, ShimConfig};

/// Frames of either direction, and the record a shim is started with: what was read and written again is read the same,
/// in pieces as in the whole.
pub fn frames(data: &[u8]) {
    let Some((&step, data)) = data.split_first() else {
        return;
    };
    both_ways::<Request>(data, usize::from(step));
    both_ways::<Response>(data, usize::from(step));
    if let Ok(config) = serde_json::from_slice::<ShimConfig>(data) {
        let text = serde_json::to_vec(&config).expect("it can be written");
        let again: ShimConfig = serde_json::from_slice(&text).expect("what is written is read");
        assert_eq!(text, serde_json::to_vec(&again).expect("it can be written"));
    }
}

fn both_ways<T: Serialize + DeserializeOwned + Debug>(data: &[u8], step: usize) {
    let whole = messages::<T>(data, data.len().max(1));
    let pieces = messages::<T>(data, 1 + step);
    assert_eq!(texts(&whole), texts(&pieces));
    for message in whole {
        let frame = encode(&message, 0).expect("what was read can be written");
        let again = messages::<T>(&frame, frame.len());
        assert_eq!(texts(&again), texts(&[message]));
    }
}

fn texts<T: Debug>(messages: &[T]) -> Vec<String> {
    messages.iter().map(|m| format!("{m:?}")).collect()
}

/// Up to the first that cannot be read.
fn messages<T: DeserializeOwned>(data: &[u8], step: usize) -> Vec<T> {
    let mut decoder = Decoder::default();
    let mut all = Vec::new();
    for piece in data.chunks(step) {
        decoder.received(piece);
        loop {
            match decoder.take::<T>() {
                Ok(Some((message, descriptors))) => {
                    assert!(descriptors.is_empty(), "descriptors come from nowhere");
                    all.push(message);
                }
                Ok(None) => break,
                Err(_) => return all,
            }
        }
    }
    all
}

/// Frames to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    let requests = [
        Request::Kill {
            container: "c".into(),
            signal: 9,
            all: false,
        },
        Request::Attach {
            container: "c".into(),
            stdin: true,
            stdout: true,
            stderr: false,
        },
        Request::Unknown,
    ];
    let mut seeds: Vec<Vec<u8>> = requests
        .iter()
        .filter_map(|request| encode(request, 0).ok())
        .map(|frame| [&[9], frame.as_slice()].concat())
        .collect();
    let all: Vec<u8> = seeds.iter().flat_map(|seed| seed[1..].to_vec()).collect();
    seeds.push([&[255], all.as_slice()].concat());
    seeds.push([&[0], br#"{"root": "/run/x", "namespaces": {}}"#.as_slice()].concat());
    seeds
}

#[cfg(test)]
mod tests {
    #[test]
    fn promises_hold() {
        for case in super::seeds() {
            super::frames(&case);
        }
        super::frames(&[0xff; 9]);
    }
}
