//! Times: seconds and nanoseconds on the wire, RFC 3339 in JSON.

use jiff::Timestamp;
use jiff::fmt::temporal::DateTimePrinter;

use crate::Error;
use crate::wire::{BYTES, Reader, VARINT, put_tag, put_varint};

/// Go's zero time, which a message without content is.
pub(crate) const ZERO: &str = "0001-01-01T00:00:00Z";

/// `micro`: six digits of a second, else none.
pub(crate) fn read(bytes: &[u8], micro: bool) -> Result<String, Error> {
    if bytes.is_empty() {
        return Ok(ZERO.to_owned());
    }
    let (mut seconds, mut nanos) = (0_i64, 0_i32);
    let mut reader = Reader(bytes);
    while !reader.is_empty() {
        match reader.tag()? {
            (1, VARINT) => seconds = reader.varint()?.cast_signed(),
            (2, VARINT) => nanos = reader.varint()?.cast_signed() as i32,
            (number, wire) => reader.skip(number, wire)?,
        }
    }
    if !micro {
        nanos = 0;
    }
    let at = Timestamp::new(seconds, nanos).map_err(|e| Error::Time(e.to_string()))?;
    let printer = DateTimePrinter::new().precision(Some(if micro { 6 } else { 0 }));
    Ok(printer.timestamp_to_string(&at))
}

pub(crate) fn write(out: &mut Vec<u8>, number: u32, text: &str) -> Result<(), Error> {
    put_tag(out, number, BYTES);
    if text == ZERO {
        put_varint(out, 0);
        return Ok(());
    }
    let at: Timestamp = text
        .parse()
        .map_err(|e| Error::Time(format!("{text:?}: {e}")))?;
    let mut inner = Vec::with_capacity(12);
    put_tag(&mut inner, 1, VARINT);
    put_varint(&mut inner, at.as_second().cast_unsigned());
    put_tag(&mut inner, 2, VARINT);
    put_varint(
        &mut inner,
        i64::from(at.subsec_nanosecond()).cast_unsigned(),
    );
    put_varint(out, inner.len() as u64);
    out.extend_from_slice(&inner);
    Ok(())
}
