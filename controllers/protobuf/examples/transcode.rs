//! Reads what `protobuf random` (e2e/upstream/protobuf) made up, compares it with JSON, and writes it anew; see `cargo e2e protobuf`.
//!
//! A line in: group, version, kind, protobuf in base64, JSON. A line out: `same` or what differs, and the object in base64 as it is
//! written from JSON.

use std::io::{BufRead as _, Write as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// Go's zero time, which is `null` in JSON.
const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let mut parts = line.split('\t');
        let mut next = || parts.next().ok_or("a line is too short");
        let (group, version, kind) = (next()?, next()?, next()?);
        let (bytes, json) = (STANDARD.decode(next()?)?, next()?);
        let message = kube_protobuf::message(group, version, kind).ok_or("an unknown kind")?;
        let mut wanted: Value = serde_json::from_str(json)?;
        let unknown = kube_protobuf::envelope::open(&bytes)?;
        let mut read: Value = kube_protobuf::from_slice(message, unknown.raw, true)?;
        let api_version = unknown.api_version.to_owned();
        let written = kube_protobuf::to_vec(message, (&api_version, kind), &wanted);
        let written = written.map_or_else(|error| error.to_string(), |b| STANDARD.encode(b));
        for name in ["apiVersion", "kind"] {
            wanted.as_object_mut().ok_or("no object")?.remove(name);
        }
        without_nothing(&mut wanted);
        without_nothing(&mut read);
        let told = difference(kind, &read, &wanted).unwrap_or_else(|| "same".to_owned());
        writeln!(out, "{told}\t{written}")?;
    }
    Ok(())
}

fn without_nothing(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, v| !v.is_null() && *v != ZERO_TIME);
            fields.values_mut().for_each(without_nothing);
        }
        Value::Array(items) => items.iter_mut().for_each(without_nothing),
        _ => {}
    }
}

fn difference(path: &str, read: &Value, wanted: &Value) -> Option<String> {
    match (read, wanted) {
        (Value::Object(a), Value::Object(b)) => {
            let names: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
            names.into_iter().find_map(|name| {
                let of =
                    |v: &serde_json::Map<String, Value>| v.get(name).cloned().unwrap_or_default();
                difference(&format!("{path}.{name}"), &of(a), &of(b))
            })
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            let mut pairs = a.iter().zip(b).enumerate();
            pairs.find_map(|(i, (a, b))| difference(&format!("{path}[{i}]"), a, b))
        }
        _ if read == wanted => None,
        _ => Some(format!("{path}: {read} is not {wanted}")),
    }
}
