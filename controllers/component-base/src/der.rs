//! ASN.1 DER: enough to write a certificate, and a strict reader for what strangers send.
//!
//! The reader takes DER alone: definite lengths in their shortest form, tags of one byte, nothing left over. What another parser might
//! read otherwise is an error here. Certificate libraries rebuild names from what they parsed and lose repeated attributes (several
//! `O=` are several groups), which is why names are written here.

use jiff::Timestamp;

/// `SEQUENCE`.
pub const SEQUENCE: u8 = 0x30;
/// `SET`.
pub const SET: u8 = 0x31;
/// `INTEGER`.
pub const INTEGER: u8 = 0x02;
/// `BIT STRING`.
pub const BIT_STRING: u8 = 0x03;
/// `OCTET STRING`.
pub const OCTET_STRING: u8 = 0x04;
/// `OBJECT IDENTIFIER`.
pub const OID: u8 = 0x06;
/// `BOOLEAN`.
pub const BOOLEAN: u8 = 0x01;

/// Why bytes are no DER.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DerError {
    /// The data ends within an element.
    #[error("truncated")]
    Truncated,
    /// A tag of several bytes.
    #[error("tag number is too large")]
    Tag,
    /// A length that is indefinite, too long, or not in its shortest form.
    #[error("length is not in its shortest form")]
    Length,
    /// Another element than the one that belongs there.
    #[error("expected tag {expected:#04x}, found {found:#04x}")]
    Unexpected {
        /// The tag that belongs there.
        expected: u8,
        /// The tag found.
        found: u8,
    },
    /// Data behind the last element.
    #[error("trailing data")]
    Trailing,
    /// A value its type does not allow.
    #[error("invalid value")]
    Value,
}

/// One element: its tag, its content, and both with the length between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element<'a> {
    /// The tag, class and form included.
    pub tag: u8,
    /// The content.
    pub content: &'a [u8],
    /// The whole element as it came.
    pub raw: &'a [u8],
}

/// Reads elements one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the beginning of `data`.
    pub fn new(data: &'a [u8]) -> Self {
        Self { rest: data }
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next element's tag; `None` at the end.
    pub fn peek(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    /// The next element.
    ///
    /// # Errors
    /// When it is cut off, or written otherwise than DER demands.
    pub fn element(&mut self) -> Result<Element<'a>, DerError> {
        let data = self.rest;
        let (&tag, after_tag) = data.split_first().ok_or(DerError::Truncated)?;
        if tag & 0x1f == 0x1f {
            return Err(DerError::Tag);
        }
        let (&first, after_first) = after_tag.split_first().ok_or(DerError::Truncated)?;
        let (length, body) = if first < 0x80 {
            (usize::from(first), after_first)
        } else {
            let count = usize::from(first & 0x7f);
            if count == 0 || count > 4 {
                return Err(DerError::Length);
            }
            let (bytes, body) = after_first
                .split_at_checked(count)
                .ok_or(DerError::Truncated)?;
            let length = bytes.iter().fold(0usize, |n, b| n << 8 | usize::from(*b));
            if bytes[0] == 0 || length < 0x80 {
                return Err(DerError::Length);
            }
            (length, body)
        };
        let (content, rest) = body.split_at_checked(length).ok_or(DerError::Truncated)?;
        self.rest = rest;
        Ok(Element {
            tag,
            content,
            raw: &data[..data.len() - rest.len()],
        })
    }

    /// The next element, which must have this tag.
    ///
    /// # Errors
    /// As [`Self::element`], and when it has another tag.
    pub fn expect(&mut self, tag: u8) -> Result<Element<'a>, DerError> {
        let element = self.element()?;
        if element.tag == tag {
            Ok(element)
        } else {
            Err(DerError::Unexpected {
                expected: tag,
                found: element.tag,
            })
        }
    }

    /// The content of the next element, to be read in turn.
    ///
    /// # Errors
    /// As [`Self::expect`].
    pub fn enter(&mut self, tag: u8) -> Result<Reader<'a>, DerError> {
        self.expect(tag).map(|element| Reader::new(element.content))
    }

    /// The bytes of the next element, a bit string of whole bytes.
    ///
    /// # Errors
    /// As [`Self::expect`], and when bits are unused.
    pub fn whole_bits(&mut self) -> Result<&'a [u8], DerError> {
        match self.expect(BIT_STRING)?.content.split_first() {
            Some((0, bytes)) => Ok(bytes),
            _ => Err(DerError::Value),
        }
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// When something is left.
    pub fn finish(self) -> Result<(), DerError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(DerError::Trailing)
        }
    }
}

/// An object identifier's content in dotted form, for people.
pub fn dotted(content: &[u8]) -> String {
    let mut arcs: Vec<u64> = Vec::new();
    let mut arc = 0u64;
    for byte in content {
        arc = arc
            .saturating_mul(128)
            .saturating_add(u64::from(byte & 0x7f));
        if byte & 0x80 == 0 {
            if arcs.is_empty() {
                let first = (arc / 40).min(2);
                arcs.push(first);
                arc -= first * 40;
            }
            arcs.push(arc);
            arc = 0;
        }
    }
    let texts: Vec<String> = arcs.iter().map(ToString::to_string).collect();
    texts.join(".")
}

/// Tag, length, content.
pub fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    if content.len() < 128 {
        out.push(content.len() as u8);
    } else {
        let bytes = content.len().to_be_bytes();
        let skip = bytes.iter().take_while(|b| **b == 0).count();
        out.push(0x80 | (bytes.len() - skip) as u8);
        out.extend_from_slice(&bytes[skip..]);
    }
    out.extend_from_slice(content);
    out
}

/// A sequence of parts that are DER already.
pub fn sequence(parts: &[Vec<u8>]) -> Vec<u8> {
    tlv(SEQUENCE, &parts.concat())
}

/// A positive integer of big-endian bytes.
pub fn integer(bytes: &[u8]) -> Vec<u8> {
    let skip = bytes
        .iter()
        .take_while(|b| **b == 0)
        .count()
        .min(bytes.len().saturating_sub(1));
    let bytes = &bytes[skip..];
    let mut content = Vec::with_capacity(bytes.len() + 1);
    if bytes.first().is_none_or(|b| b & 0x80 != 0) {
        content.push(0);
    }
    content.extend_from_slice(bytes);
    tlv(INTEGER, &content)
}

/// An object identifier.
pub fn oid(arcs: &[u64]) -> Vec<u8> {
    let mut content = Vec::new();
    let first = arcs.first().copied().unwrap_or(0) * 40 + arcs.get(1).copied().unwrap_or(0);
    for arc in std::iter::once(first).chain(arcs.iter().skip(2).copied()) {
        let mut groups = vec![(arc & 0x7f) as u8];
        let mut rest = arc >> 7;
        while rest > 0 {
            groups.push((rest & 0x7f) as u8 | 0x80);
            rest >>= 7;
        }
        content.extend(groups.into_iter().rev());
    }
    tlv(OID, &content)
}

/// A bit string of whole bytes.
pub fn bit_string(bytes: &[u8]) -> Vec<u8> {
    tlv(BIT_STRING, &[&[0], bytes].concat())
}

/// A named-bit list: bit 0 is the first; trailing zero bits are cut, as DER demands.
pub fn named_bits(bits: &[usize]) -> Vec<u8> {
    let Some(last) = bits.iter().max() else {
        return tlv(BIT_STRING, &[0]);
    };
    let mut bytes = vec![0u8; last / 8 + 1];
    for bit in bits {
        bytes[bit / 8] |= 0x80 >> (bit % 8);
    }
    let unused = 7 - (last % 8) as u8;
    tlv(BIT_STRING, &[&[unused], bytes.as_slice()].concat())
}

/// An X.509 extension.
pub fn extension(id: &[u64], critical: bool, value: &[u8]) -> Vec<u8> {
    let mut parts = vec![oid(id)];
    if critical {
        parts.push(tlv(BOOLEAN, &[0xff]));
    }
    parts.push(tlv(OCTET_STRING, value));
    sequence(&parts)
}

/// A time: UTCTime until 2049, GeneralizedTime after.
pub fn time(at: Timestamp) -> Vec<u8> {
    let date = at.to_zoned(jiff::tz::TimeZone::UTC);
    if date.year() < 2050 {
        tlv(0x17, date.strftime("%y%m%d%H%M%SZ").to_string().as_bytes())
    } else {
        tlv(0x18, date.strftime("%Y%m%d%H%M%SZ").to_string().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_der_is_read() {
        let check = |bytes: &[u8], expect: Result<&[u8], DerError>| {
            let mut reader = Reader::new(bytes);
            let read = reader
                .element()
                .and_then(|e| reader.finish().map(|()| e.content));
            assert_eq!(read, expect, "{bytes:02x?}");
        };
        check(&[4, 1, 7], Ok(&[7]));
        check(&tlv(4, &[9; 300]), Ok(&[9; 300]));
        check(&[], Err(DerError::Truncated));
        check(&[4], Err(DerError::Truncated));
        check(&[4, 2, 7], Err(DerError::Truncated));
        check(&[4, 0x82, 1], Err(DerError::Truncated));
        // Indefinite, padded, and longer than needed.
        check(&[0x30, 0x80, 0, 0], Err(DerError::Length));
        check(&[4, 0x81, 1, 7], Err(DerError::Length));
        check(&[4, 0x82, 0, 0x80], Err(DerError::Length));
        check(&[4, 0x85, 1, 0, 0, 0, 0], Err(DerError::Length));
        check(&[0x1f, 0x81, 1, 0], Err(DerError::Tag));
        check(&[4, 1, 7, 0], Err(DerError::Trailing));
        assert_eq!(
            Reader::new(&[4, 0]).expect(SEQUENCE),
            Err(DerError::Unexpected {
                expected: SEQUENCE,
                found: 4
            })
        );
        assert_eq!(Reader::new(&[3, 2, 0, 5]).whole_bits(), Ok(&[5u8][..]));
        assert_eq!(
            Reader::new(&[3, 2, 1, 4]).whole_bits(),
            Err(DerError::Value)
        );
        let id = oid(&[1, 3, 6, 1, 4, 1, 57683, 2]);
        assert_eq!(dotted(&id[2..]), "1.3.6.1.4.1.57683.2");
        assert_eq!(dotted(&[0x55, 4, 3]), "2.5.4.3");
    }

    #[test]
    fn encodings() {
        assert_eq!(oid(&[2, 5, 29, 15]), [6, 3, 0x55, 0x1d, 0x0f]);
        assert_eq!(
            oid(&[1, 2, 840, 113549]),
            [6, 6, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d]
        );
        assert_eq!(integer(&[0, 0x80]), [2, 2, 0, 0x80]);
        assert_eq!(integer(&[0, 0x7f]), [2, 1, 0x7f]);
        assert_eq!(named_bits(&[0, 2]), [3, 2, 5, 0xa0]);
        assert_eq!(tlv(4, &[0; 200])[..3], [4, 0x81, 200]);
        let at: Timestamp = "2026-11-21T10:00:00Z".parse().unwrap();
        assert_eq!(
            time(at),
            [&[0x17, 13], b"261121100000Z".as_slice()].concat()
        );
    }
}
