//! Reading a tar archive as a stream, in every dialect that layers come in: v7, ustar, star, GNU, PAX, and the
//! sparse forms (old GNU; PAX 0.0, 0.1, 1.0).
//!
//! Owns no file and writes none. What an archive can make it remember is bounded: an extension header or a sparse map
//! of more than [`MAX_SPECIAL_BYTES`] is refused, and of extension headers only the fields that mean something here
//! are kept.
//!
//! Upstream: Go's `archive/tar`, which containerd reads layers with: what it takes and refuses is taken and refused here.

use std::collections::BTreeMap;
use std::io::{self, Read};

mod extensions;
mod numbers;

use extensions::Extensions;
pub(super) use numbers::{Time, pax_time};
use numbers::{numeric, octal, text};

/// An extension header, a long name or a sparse map is at most this large. Upstream: `archive/tar`'s `maxSpecialFileSize`.
pub(crate) const MAX_SPECIAL_BYTES: u64 = 1 << 20;
const BLOCK: usize = 512;

/// Why an archive cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Upstream's words.
    #[error("archive/tar: invalid tar header: {0}")]
    Header(&'static str),
    #[error("an {what} of more than {MAX_SPECIAL_BYTES} bytes")]
    TooLong { what: &'static str },
    #[error("the data of a sparse file does not match its map")]
    SparseData,
}

/// What kind of file an entry is; the archive's type flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
    /// PAX values for all that follows; of no meaning to a layer.
    Global,
    Other(u8),
}

/// One entry, with all that its extension headers said.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    pub(crate) name: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: i64,
    pub(crate) gid: i64,
    /// Of the file when it is unpacked: with its holes.
    pub(crate) size: u64,
    pub(crate) mtime: Time,
    pub(crate) atime: Option<Time>,
    pub(crate) device: (i64, i64),
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A run of bytes that the archive holds for a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    offset: u64,
    length: u64,
}

/// The entries of an archive, one after the other.
pub(crate) struct TarStream<R> {
    reader: R,
    /// Bytes of the current entry that are not read yet.
    remaining: u64,
    padding: u64,
    /// Of a sparse file: what of it the archive holds. Read from the front.
    map: Option<std::vec::IntoIter<Segment>>,
    segment: Segment,
}

impl<R: Read> TarStream<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self {
            reader,
            remaining: 0,
            padding: 0,
            map: None,
            segment: Segment {
                offset: 0,
                length: 0,
            },
        }
    }

    /// The next entry; what was not read of the one before is skipped. `None`: the archive ends here.
    pub(crate) fn next(&mut self) -> Result<Option<Header>, TarError> {
        let (mut long_name, mut long_link) = (None, None);
        let mut extensions = Extensions::default();
        loop {
            if !self.skip_rest()? {
                return Ok(None);
            }
            let Some(block) = self.block()? else {
                return Ok(None);
            };
            let mut header = parse_block(&block)?;
            self.set_size(&header)?;
            match block[156] {
                flag @ (b'x' | b'g') => {
                    let bytes = self.special("extension header")?;
                    extensions = Extensions::parse(&bytes)?;
                    if flag == b'g' {
                        extensions.apply(&mut header)?;
                        header.kind = Kind::Global;
                        return Ok(Some(header));
                    }
                }
                b'L' => long_name = Some(text(&self.special("extension header")?).to_vec()),
                b'K' => long_link = Some(text(&self.special("extension header")?).to_vec()),
                flag => {
                    extensions.apply(&mut header)?;
                    header.name = long_name.filter(|n| !n.is_empty()).unwrap_or(header.name);
                    header.link = long_link.filter(|n| !n.is_empty()).unwrap_or(header.link);
                    if flag == 0 && header.name.ends_with(b"/") {
                        header.kind = Kind::Directory;
                    }
                    self.set_size(&header)?;
                    self.sparse(&mut header, &extensions, block)?;
                    return Ok(Some(header));
                }
            }
        }
    }

    /// What comes next of a file, and where in it: up to the buffer's size. `None`: it ends. Holes are not told.
    pub(crate) fn data(&mut self, buffer: &mut [u8]) -> Result<Option<(u64, usize)>, TarError> {
        while self.segment.length == 0 {
            let Some(next) = self.map.as_mut().and_then(Iterator::next) else {
                if self.map.is_some() && self.remaining > 0 {
                    return Err(TarError::SparseData);
                }
                return Ok(None);
            };
            self.segment = next;
        }
        let want = self.segment.length.min(buffer.len() as u64);
        if self.remaining < want && self.map.is_some() {
            return Err(TarError::SparseData);
        }
        let count = read_some(&mut self.reader, &mut buffer[..want as usize])?;
        if count == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let at = self.segment.offset;
        self.segment.offset += count as u64;
        self.segment.length -= count as u64;
        self.remaining -= count as u64;
        Ok(Some((at, count)))
    }

    /// The reader, behind what was read so far.
    pub(crate) fn into_inner(self) -> R {
        self.reader
    }

    /// Passes over the rest of an entry. `false`: the archive ends where only padding is missing.
    fn skip_rest(&mut self) -> Result<bool, TarError> {
        let skipped = io::copy(
            &mut (&mut self.reader).take(self.remaining),
            &mut io::sink(),
        )?;
        if skipped < self.remaining {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let padding = io::copy(&mut (&mut self.reader).take(self.padding), &mut io::sink())?;
        let whole = padding == self.padding;
        (self.remaining, self.padding, self.map) = (0, 0, None);
        self.segment.length = 0;
        Ok(whole)
    }

    /// A header's block; `None` at the end of the archive, which two blocks of zeros mark.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let Some(block) = self.whole_block()? else {
            return Ok(None);
        };
        if block.iter().any(|&b| b != 0) {
            return Ok(Some(block));
        }
        match self.whole_block()? {
            Some(second) if second.iter().any(|&b| b != 0) => {
                Err(TarError::Header("one block of zeros amid the archive"))
            }
            _ => Ok(None),
        }
    }

    fn whole_block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        let mut have = 0;
        while have < BLOCK {
            match read_some(&mut self.reader, &mut block[have..])? {
                0 if have == 0 => return Ok(None),
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                count => have += count,
            }
        }
        Ok(Some(block))
    }

    fn set_size(&mut self, header: &Header) -> Result<(), TarError> {
        let bytes = match header.kind {
            Kind::HardLink
            | Kind::Symlink
            | Kind::CharDevice
            | Kind::BlockDevice
            | Kind::Directory
            | Kind::Fifo => 0,
            _ => header.size,
        };
        if i64::try_from(bytes).is_err() {
            return Err(TarError::Header("negative size"));
        }
        self.remaining = bytes;
        self.padding = bytes.wrapping_neg() % BLOCK as u64;
        self.segment = Segment {
            offset: 0,
            length: bytes,
        };
        self.map = None;
        Ok(())
    }

    /// The content of an entry that only says something about the next one.
    fn special(&mut self, what: &'static str) -> Result<Vec<u8>, TarError> {
        if self.remaining > MAX_SPECIAL_BYTES {
            return Err(TarError::TooLong { what });
        }
        let mut bytes = Vec::new();
        (&mut self.reader)
            .take(self.remaining)
            .read_to_end(&mut bytes)?;
        if (bytes.len() as u64) < self.remaining {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        self.remaining = 0;
        self.segment.length = 0;
        Ok(bytes)
    }

    /// Finds out whether the entry is a sparse file, and reads its map.
    fn sparse(
        &mut self,
        header: &mut Header,
        extensions: &Extensions,
        block: [u8; BLOCK],
    ) -> Result<(), TarError> {
        let map = if block[156] == b'S' {
            Some(self.old_gnu_map(header, block)?)
        } else if let Some(one_zero) = extensions.sparse_version() {
            extensions.apply_sparse(header)?;
            Some(if one_zero {
                self.map_1_0()?
            } else {
                extensions.map_0_1()?
            })
        } else {
            None
        };
        let Some(map) = map else { return Ok(()) };
        let plain = matches!(header.kind, Kind::File | Kind::Other(_));
        if !plain || !is_ordered(&map, header.size) {
            return Err(TarError::Header("sparse map"));
        }
        self.segment.length = 0;
        self.map = Some(map.into_iter());
        Ok(())
    }

    fn old_gnu_map(
        &mut self,
        header: &mut Header,
        block: [u8; BLOCK],
    ) -> Result<Vec<Segment>, TarError> {
        if Dialect::of(&block)? != Dialect::Gnu {
            return Err(TarError::Header("sparse file of a dialect that has none"));
        }
        header.size = unsigned(numeric(&block[483..495])?)?;
        let mut map = Vec::new();
        push_entries(&mut map, &block[386..482])?;
        let mut extended = block[482] != 0;
        let mut total = 0u64;
        while extended {
            total += BLOCK as u64;
            if total > MAX_SPECIAL_BYTES {
                return Err(TarError::TooLong { what: "sparse map" });
            }
            let next = self
                .whole_block()?
                .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
            push_entries(&mut map, &next[..504])?;
            extended = next[504] != 0;
        }
        Ok(map)
    }

    /// PAX 1.0: decimal numbers, a line each, in whole blocks before the data.
    fn map_1_0(&mut self) -> Result<Vec<Segment>, TarError> {
        let mut lines = Lines::default();
        let count = self.map_number(&mut lines)?;
        let mut map = Vec::new();
        for _ in 0..count {
            let offset = self.map_number(&mut lines)?;
            let length = self.map_number(&mut lines)?;
            map.push(Segment { offset, length });
        }
        Ok(map)
    }

    fn map_number(&mut self, lines: &mut Lines) -> Result<u64, TarError> {
        loop {
            let rest = &lines.bytes[lines.at..];
            if let Some(end) = rest.iter().position(|&b| b == b'\n') {
                let number = decimal(&rest[..end]);
                lines.at += end + 1;
                return number.ok_or(TarError::Header("sparse map"));
            }
            if rest.len() > BLOCK {
                return Err(TarError::Header("sparse map"));
            }
            lines.total += BLOCK as u64;
            if lines.total > MAX_SPECIAL_BYTES {
                return Err(TarError::TooLong { what: "sparse map" });
            }
            if self.remaining < BLOCK as u64 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            let block = self
                .whole_block()?
                .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
            self.remaining -= BLOCK as u64;
            lines.bytes.drain(..lines.at);
            lines.at = 0;
            lines.bytes.extend_from_slice(&block);
        }
    }
}

#[derive(Default)]
struct Lines {
    bytes: Vec<u8>,
    at: usize,
    total: u64,
}

fn push_entries(map: &mut Vec<Segment>, bytes: &[u8]) -> Result<(), TarError> {
    for entry in bytes.as_chunks::<24>().0 {
        if entry[0] == 0 {
            break;
        }
        map.push(Segment {
            offset: unsigned(numeric(&entry[..12])?)?,
            length: unsigned(numeric(&entry[12..])?)?,
        });
    }
    Ok(())
}

fn is_ordered(map: &[Segment], size: u64) -> bool {
    let mut end = 0;
    map.iter().all(|segment| {
        let ordered = segment.offset >= end;
        match segment.offset.checked_add(segment.length) {
            Some(next) => {
                end = next;
                ordered && next <= size
            }
            None => false,
        }
    })
}

fn decimal(bytes: &[u8]) -> Option<u64> {
    let number: i64 = std::str::from_utf8(bytes).ok()?.parse().ok()?;
    u64::try_from(number).ok()
}

fn unsigned(number: i64) -> Result<u64, TarError> {
    u64::try_from(number).map_err(|_| TarError::Header("negative number"))
}

fn read_some(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    V7,
    Ustar,
    Star,
    Gnu,
}

impl Dialect {
    /// Checks the sum too. Old archivers added signed bytes.
    fn of(block: &[u8; BLOCK]) -> Result<Self, TarError> {
        let (mut plain, mut signed) = (0i64, 0i64);
        for (index, &byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&index) {
                b' '
            } else {
                byte
            };
            plain += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        let sum = octal(&block[148..156])?;
        if sum != plain && sum != signed {
            return Err(TarError::Header("checksum"));
        }
        Ok(match (&block[257..263], &block[263..265]) {
            (b"ustar\0", _) if &block[508..] == b"tar\0" => Self::Star,
            (b"ustar\0", _) => Self::Ustar,
            (b"ustar ", b" \0") => Self::Gnu,
            _ => Self::V7,
        })
    }
}

fn parse_block(block: &[u8; BLOCK]) -> Result<Header, TarError> {
    let dialect = Dialect::of(block)?;
    let mut header = Header {
        name: text(&block[..100]).to_vec(),
        link: text(&block[157..257]).to_vec(),
        kind: match block[156] {
            // '7' is a file that once had to lie in one piece.
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => Kind::Other(other),
        },
        mode: (numeric(&block[100..108])? & 0o7777) as u32,
        uid: numeric(&block[108..116])?,
        gid: numeric(&block[116..124])?,
        size: numeric(&block[124..136])?.cast_unsigned(),
        mtime: Time::seconds(numeric(&block[136..148])?),
        atime: None,
        device: (0, 0),
        xattrs: BTreeMap::new(),
    };
    if dialect == Dialect::V7 {
        return Ok(header);
    }
    header.device = (numeric(&block[329..337])?, numeric(&block[337..345])?);
    let mut prefix: &[u8] = b"";
    match dialect {
        Dialect::V7 => {}
        Dialect::Ustar => prefix = text(&block[345..500]),
        Dialect::Star => {
            prefix = text(&block[345..476]);
            header.atime = Some(Time::seconds(numeric(&block[476..488])?));
            numeric(&block[488..500])?;
        }
        Dialect::Gnu => {
            let time = |field: &[u8]| match field[0] {
                0 => Ok(None),
                _ => numeric(field).map(|seconds| Some(Time::seconds(seconds))),
            };
            match (time(&block[345..357]), time(&block[357..369])) {
                (Ok(access), Ok(_)) => header.atime = access,
                // Go before 1.8 wrote a prefix where GNU has times.
                _ => {
                    prefix = text(&block[345..500]);
                    if !prefix.is_ascii() {
                        prefix = b"";
                    }
                }
            }
        }
    }
    if !prefix.is_empty() {
        header.name = [prefix, b"/", &header.name].concat();
    }
    Ok(header)
}

#[cfg(test)]
mod tests;
