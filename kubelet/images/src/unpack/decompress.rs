//! What a blob is packed with, told by its first bytes, as media types of old registries lie.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read};

const BUFFER_BYTES: usize = 128 * 1024;
/// Frames with a larger window are refused: 128 MiB, which `zstd --ultra -22` and `--long` use.
/// Upstream: the default of the `zstd` program.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// How a blob is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// Upstream: containerd's `compression.DetectCompression`. A skippable frame before the first real one is zstd's.
    pub(crate) fn of(magic: &[u8]) -> Self {
        if magic.starts_with(&[0x1f, 0x8b, 0x08]) {
            return Self::Gzip;
        }
        let skippable =
            magic.len() >= 8 && magic[0] & 0xf0 == 0x50 && magic[1..4] == [0x2a, 0x4d, 0x18];
        if skippable || magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            return Self::Zstd;
        }
        Self::None
    }

    /// Of a file, which is left where it was.
    pub(crate) fn of_file(file: &File) -> io::Result<Self> {
        use std::os::unix::fs::FileExt as _;
        let mut magic = [0; 8];
        let mut have = 0;
        while have < magic.len() {
            match file.read_at(&mut magic[have..], have as u64)? {
                0 => break,
                count => have += count,
            }
        }
        Ok(Self::of(&magic[..have]))
    }
}

/// The plain bytes of a blob.
pub(crate) fn decompress(file: File) -> io::Result<Box<dyn Read>> {
    let mut blob = BufReader::with_capacity(BUFFER_BYTES, file);
    Ok(match Compression::of(blob.fill_buf()?) {
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(blob)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(blob)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(decoder)
        }
        Compression::None => Box::new(blob),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells() {
        let check = |magic: &[u8], expect| assert_eq!(Compression::of(magic), expect, "{magic:?}");
        check(&[0x1f, 0x8b, 8, 0], Compression::Gzip);
        check(&[0x28, 0xb5, 0x2f, 0xfd, 0], Compression::Zstd);
        check(&[0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0], Compression::Zstd);
        check(&[0x5f, 0x2a, 0x4d, 0x18, 1, 0, 0, 0], Compression::Zstd);
        check(&[0x60, 0x2a, 0x4d, 0x18, 1, 0, 0, 0], Compression::None);
        check(&[0x50, 0x2a, 0x4d, 0x18], Compression::None);
        check(b"", Compression::None);
    }
}
