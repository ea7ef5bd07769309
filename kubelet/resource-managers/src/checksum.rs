//! Upstream's checksum of a checkpoint: FNV-1a of what Go's spew prints of it.
//!
//! Upstream: pkg/kubelet/checkpointmanager/checksum, `DeepHashObject`, k8s.io/utils/dump `ForHash`.

use std::fmt::{self, Write as _};

/// What is written into is hashed.
pub struct Fnv(u32);

impl Default for Fnv {
    fn default() -> Self {
        Self(0x811c_9dc5)
    }
}

impl fmt::Write for Fnv {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        const PRIME: u32 = 0x0100_0193;
        self.0 = text.bytes().fold(self.0, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(PRIME)
        });
        Ok(())
    }
}

/// The sum of what `print` writes.
pub fn of(print: impl FnOnce(&mut Fnv) -> fmt::Result) -> u64 {
    let mut hash = Fnv::default();
    // What is written into never fails.
    let _ = print(&mut hash);
    u64::from(hash.0)
}

/// Of a text alone.
pub fn of_text(text: &str) -> u64 {
    of(|out| write!(out, "(string){text}"))
}

/// `map[a:… b:…]`
pub fn print_map<K: fmt::Display, V>(
    out: &mut Fnv,
    entries: impl IntoIterator<Item = (K, V)>,
    mut value: impl FnMut(&mut Fnv, V) -> fmt::Result,
) -> fmt::Result {
    out.write_str("map[")?;
    for (at, (key, entry)) in entries.into_iter().enumerate() {
        let blank = if at == 0 { "" } else { " " };
        write!(out, "{blank}{key}:")?;
        value(out, entry)?;
    }
    out.write_str("]")
}

/// `[a b]`
pub fn print_list<T>(
    out: &mut Fnv,
    entries: impl IntoIterator<Item = T>,
    mut value: impl FnMut(&mut Fnv, T) -> fmt::Result,
) -> fmt::Result {
    out.write_str("[")?;
    for (at, entry) in entries.into_iter().enumerate() {
        out.write_str(if at == 0 { "" } else { " " })?;
        value(out, entry)?;
    }
    out.write_str("]")
}
