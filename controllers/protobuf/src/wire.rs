//! Protobuf's own encoding: tags, numbers, lengths.

use crate::Error;

pub(crate) const VARINT: u8 = 0;
const FIXED64: u8 = 1;
pub(crate) const BYTES: u8 = 2;
const FIXED32: u8 = 5;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'de>(pub &'de [u8]);

impl<'de> Reader<'de> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0;
        for (i, byte) in self.0.iter().copied().enumerate().take(10) {
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte < 0x80 {
                self.0 = &self.0[i + 1..];
                return Ok(value);
            }
        }
        Err(match self.0.len() {
            0..10 => Error::End,
            _ => Error::Varint,
        })
    }

    /// Number and wire type.
    pub fn tag(&mut self) -> Result<(u32, u8), Error> {
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| Error::Tag(tag))?;
        match number {
            0 => Err(Error::Tag(tag)),
            _ => Ok((number, (tag & 7) as u8)),
        }
    }

    pub fn take(&mut self, length: usize) -> Result<&'de [u8], Error> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Error::End)?;
        self.0 = rest;
        Ok(taken)
    }

    pub fn bytes(&mut self) -> Result<&'de [u8], Error> {
        let length = self.varint()?;
        self.take(usize::try_from(length).map_err(|_| Error::End)?)
    }

    pub fn skip(&mut self, number: u32, wire: u8) -> Result<(), Error> {
        match wire {
            VARINT => self.varint().map(drop),
            FIXED64 => self.take(8).map(drop),
            BYTES => self.bytes().map(drop),
            FIXED32 => self.take(4).map(drop),
            _ => Err(Error::Tag(u64::from(number) << 3 | u64::from(wire))),
        }
    }
}

pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(crate) fn put_tag(out: &mut Vec<u8>, number: u32, wire: u8) {
    put_varint(out, u64::from(number) << 3 | u64::from(wire));
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_tag(out, number, BYTES);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}
