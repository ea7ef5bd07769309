//! PAX extension headers: records `length key=value\n` that override or add to the header they stand before.

use std::collections::BTreeMap;

use super::{Header, MAX_SPECIAL_BYTES, Segment, TarError, Time, decimal, pax_time};

const XATTR_PREFIX: &str = "SCHILY.xattr.";

/// The records that mean something to a layer; the last of each key.
#[derive(Default)]
pub(super) struct Extensions {
    path: Vec<u8>,
    link: Vec<u8>,
    uid: String,
    gid: String,
    size: String,
    mtime: String,
    atime: String,
    /// An empty value is a value here.
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    sparse_major: String,
    sparse_minor: String,
    sparse_name: Vec<u8>,
    sparse_size: String,
    sparse_real_size: String,
    sparse_count: String,
    sparse_map: String,
}

const BAD: TarError = TarError::Header("extension header");

impl Extensions {
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, TarError> {
        let mut all = Self::default();
        // Version 0.0 repeats its keys: offset, length, offset, length.
        let mut pairs: Vec<String> = Vec::new();
        while !bytes.is_empty() {
            let (key, value, rest) = record(bytes)?;
            bytes = rest;
            let owned = || String::from_utf8(value.to_vec()).map_err(|_| BAD);
            match key {
                "path" => all.path = value.to_vec(),
                "linkpath" => all.link = value.to_vec(),
                "uid" => all.uid = owned()?,
                "gid" => all.gid = owned()?,
                "size" => all.size = owned()?,
                "mtime" => all.mtime = owned()?,
                "atime" => all.atime = owned()?,
                "ctime" if !value.is_empty() => {
                    pax_time(&owned()?).ok_or(BAD)?;
                }
                "GNU.sparse.major" => all.sparse_major = owned()?,
                "GNU.sparse.minor" => all.sparse_minor = owned()?,
                "GNU.sparse.name" => all.sparse_name = value.to_vec(),
                "GNU.sparse.size" => all.sparse_size = owned()?,
                "GNU.sparse.realsize" => all.sparse_real_size = owned()?,
                "GNU.sparse.numblocks" => all.sparse_count = owned()?,
                "GNU.sparse.map" => all.sparse_map = owned()?,
                "GNU.sparse.offset" | "GNU.sparse.numbytes" => {
                    let turn = ["GNU.sparse.offset", "GNU.sparse.numbytes"][pairs.len() % 2];
                    if key != turn || value.contains(&b',') {
                        return Err(BAD);
                    }
                    pairs.push(owned()?);
                }
                _ => {
                    if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
                        all.xattrs.insert(name.as_bytes().to_vec(), value.to_vec());
                    }
                }
            }
        }
        if !pairs.is_empty() {
            all.sparse_map = pairs.join(",");
        }
        Ok(all)
    }

    /// Puts what is given in the place of what the plain header said.
    pub(super) fn apply(&self, header: &mut Header) -> Result<(), TarError> {
        if !self.path.is_empty() {
            header.name = self.path.clone();
        }
        if !self.link.is_empty() {
            header.link = self.link.clone();
        }
        let number = |text: &str| text.parse::<i64>().map_err(|_| BAD);
        let time = |text: &str| -> Result<Time, TarError> { pax_time(text).ok_or(BAD) };
        if !self.uid.is_empty() {
            header.uid = number(&self.uid)?;
        }
        if !self.gid.is_empty() {
            header.gid = number(&self.gid)?;
        }
        if !self.size.is_empty() {
            header.size = number(&self.size)?.cast_unsigned();
        }
        if !self.mtime.is_empty() {
            header.mtime = time(&self.mtime)?;
        }
        if !self.atime.is_empty() {
            header.atime = Some(time(&self.atime)?);
        }
        header.xattrs.clone_from(&self.xattrs);
        Ok(())
    }

    /// Whether the file is sparse by PAX records: `Some(true)` for version 1.0, `Some(false)` for those before.
    pub(super) fn sparse_version(&self) -> Option<bool> {
        match (self.sparse_major.as_str(), self.sparse_minor.as_str()) {
            ("0", "0" | "1") => Some(false),
            ("1", "0") => Some(true),
            ("", "") if !self.sparse_map.is_empty() => Some(false),
            _ => None,
        }
    }

    pub(super) fn apply_sparse(&self, header: &mut Header) -> Result<(), TarError> {
        if !self.sparse_name.is_empty() {
            header.name = self.sparse_name.clone();
        }
        let size = [&self.sparse_size, &self.sparse_real_size]
            .into_iter()
            .find(|text| !text.is_empty());
        if let Some(size) = size {
            header.size = decimal(size.as_bytes()).ok_or(TarError::Header("sparse size"))?;
        }
        Ok(())
    }

    pub(super) fn map_0_1(&self) -> Result<Vec<Segment>, TarError> {
        let bad = || TarError::Header("sparse map");
        let count = decimal(self.sparse_count.as_bytes()).ok_or_else(bad)?;
        let numbers: Vec<u64> = if self.sparse_map.is_empty() {
            Vec::new()
        } else {
            self.sparse_map
                .split(',')
                .map(|text| decimal(text.as_bytes()).ok_or_else(bad))
                .collect::<Result<_, _>>()?
        };
        if count > MAX_SPECIAL_BYTES || numbers.len() as u64 != 2 * count {
            return Err(bad());
        }
        Ok(numbers
            .as_chunks::<2>()
            .0
            .iter()
            .map(|&[offset, length]| Segment { offset, length })
            .collect())
    }
}

/// The first record: its key, its value, and what follows.
fn record(bytes: &[u8]) -> Result<(&str, &[u8], &[u8]), TarError> {
    let space = bytes.iter().position(|&b| b == b' ').ok_or(BAD)?;
    let length: usize = std::str::from_utf8(&bytes[..space])
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or(BAD)?;
    if length < 5 || length > bytes.len() || length <= space + 1 {
        return Err(BAD);
    }
    let body = bytes[space + 1..length].strip_suffix(b"\n").ok_or(BAD)?;
    let equals = body.iter().position(|&b| b == b'=').ok_or(BAD)?;
    let (key, value) = (&body[..equals], &body[equals + 1..]);
    let key = std::str::from_utf8(key).map_err(|_| BAD)?;
    let is_text = matches!(key, "path" | "linkpath" | "uname" | "gname");
    if key.is_empty() || key.contains('\0') || (is_text && value.contains(&0)) {
        return Err(BAD);
    }
    Ok((key, value, &bytes[length..]))
}
