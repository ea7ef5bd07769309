//! Times of directories, which can be set only once nothing is made in them any more: remembered in a file without a
//! name, however many they are.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps};

const NAME: &str = ".times";

/// Where a directory's times come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// From the layer below that it was copied up from.
    CopiedUp,
    /// From the archive.
    Listed,
}

pub(super) struct TimesList {
    file: BufWriter<File>,
}

impl TimesList {
    /// Beside nothing: `directory` is empty still.
    pub(super) fn new(directory: &OwnedFd) -> io::Result<Self> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::openat(directory, NAME, flags, Mode::RUSR | Mode::WUSR)?;
        rustix::fs::unlinkat(directory, NAME, AtFlags::empty())?;
        Ok(Self {
            file: BufWriter::new(File::from(file)),
        })
    }

    pub(super) fn push(&mut self, kind: Kind, path: &[u8], times: Timestamps) -> io::Result<()> {
        self.file.write_all(&[(kind == Kind::Listed) as u8])?;
        self.file.write_all(&(path.len() as u64).to_ne_bytes())?;
        for time in [times.last_access, times.last_modification] {
            self.file.write_all(&time.tv_sec.to_ne_bytes())?;
            self.file.write_all(&time.tv_nsec.to_ne_bytes())?;
        }
        self.file.write_all(path)
    }

    /// All that was remembered so far, from the first on.
    pub(super) fn read(&mut self) -> io::Result<TimesReader> {
        self.file.flush()?;
        let mut file = self.file.get_ref().try_clone()?;
        let bytes = file.stream_position()?;
        Ok(TimesReader {
            file: BufReader::new(At { file, at: 0 }),
            left: bytes,
        })
    }
}

/// Reads without moving the writer's place.
struct At {
    file: File,
    at: u64,
}

impl io::Read for At {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use std::os::unix::fs::FileExt as _;
        let count = self.file.read_at(buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

pub(super) struct TimesReader {
    file: BufReader<At>,
    left: u64,
}

impl TimesReader {
    pub(super) fn next(&mut self) -> io::Result<Option<(Kind, Vec<u8>, Timestamps)>> {
        if self.left == 0 {
            return Ok(None);
        }
        let mut kind = [0];
        self.file.read_exact(&mut kind)?;
        let length = u64::from_ne_bytes(self.number()?);
        let mut times = [Timespec::default(); 2];
        for time in &mut times {
            time.tv_sec = i64::from_ne_bytes(self.number()?);
            time.tv_nsec = i64::from_ne_bytes(self.number()?) as _;
        }
        let mut path = vec![0; length as usize];
        self.file.read_exact(&mut path)?;
        self.left -= 1 + 5 * 8 + length;
        let [last_access, last_modification] = times;
        let kind = if kind[0] == 0 {
            Kind::CopiedUp
        } else {
            Kind::Listed
        };
        let times = Timestamps {
            last_access,
            last_modification,
        };
        Ok(Some((kind, path, times)))
    }

    fn number(&mut self) -> io::Result<[u8; 8]> {
        let mut bytes = [0; 8];
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}
