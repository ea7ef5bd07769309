//! How much a layer may bring: what the file system has to spare, less a reserve for the node itself.

use std::cell::Cell;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// Left alone for everything else that lives on the store's file system: a twentieth of it, at most this.
const RESERVE_MAX_BYTES: u64 = 1 << 30;
const RESERVE_PART: u64 = 20;
/// Headers, padding and the like, which are read and not written.
const OVERHEAD_BYTES: u64 = 1 << 30;

/// Bytes and files that may still be written.
pub(super) struct Budget {
    total_bytes: u64,
    total_inodes: u64,
    bytes: u64,
    inodes: u64,
}

impl Budget {
    pub(super) fn of(directory: &OwnedFd) -> io::Result<Self> {
        let stat = rustix::fs::fstatvfs(directory)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        let reserve = (bytes(stat.f_blocks) / RESERVE_PART).min(RESERVE_MAX_BYTES);
        // Some file systems make inodes as they go, and count none.
        let inodes = if stat.f_files == 0 {
            u64::MAX
        } else {
            stat.f_favail
                .saturating_sub(stat.f_files / RESERVE_PART / 4)
        };
        Ok(Self::new(
            bytes(stat.f_bavail).saturating_sub(reserve),
            inodes,
        ))
    }

    pub(super) fn new(bytes: u64, inodes: u64) -> Self {
        Self {
            total_bytes: bytes,
            total_inodes: inodes,
            bytes,
            inodes,
        }
    }

    /// Takes `count` bytes for a file.
    pub(super) fn bytes(&mut self, count: u64) -> io::Result<()> {
        let total = self.total_bytes;
        let left = self.bytes.checked_sub(count).ok_or_else(|| {
            full(format!(
                "the layer holds more than the {total} bytes that the image store has room for"
            ))
        })?;
        self.bytes = left;
        Ok(())
    }

    /// Takes a file, directory or link.
    pub(super) fn inode(&mut self) -> io::Result<()> {
        let total = self.total_inodes;
        let left = self.inodes.checked_sub(1).ok_or_else(|| {
            full(format!(
                "the layer holds more than the {total} files that the image store has room for"
            ))
        })?;
        self.inodes = left;
        Ok(())
    }

    /// How long the whole archive may be.
    pub(super) fn archive_bytes(&self) -> u64 {
        self.total_bytes.saturating_add(OVERHEAD_BYTES)
    }

    pub(super) fn used_inodes(&self) -> u64 {
        self.total_inodes - self.inodes
    }
}

fn full(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, text)
}

/// Stops reading where the limit is met; the limit may be set while others hold the reader.
pub(super) struct Metered<R> {
    pub(super) inner: R,
    pub(super) left: Rc<Cell<u64>>,
    pub(super) what: &'static str,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let left = self
            .left
            .get()
            .checked_sub(count as u64)
            .ok_or_else(|| full(self.what.to_owned()))?;
        self.left.set(left);
        Ok(count)
    }
}
