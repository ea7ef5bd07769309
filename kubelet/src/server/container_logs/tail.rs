//! Opening a log at its last lines.

use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;

use crate::container_log;
use crate::off_thread::off_thread;
use crate::paths::Paths;

const BLOCK_BYTES: u64 = 16 * 1024;

/// Opens the log, placed before its last `tail` lines; `None`: at its start.
pub(super) async fn open(
    paths: Paths,
    path: PathBuf,
    tail: Option<u64>,
) -> io::Result<tokio::fs::File> {
    let opened = off_thread(move || {
        let mut file = container_log::open(&paths, &path).map_err(io::Error::other)?;
        if let Some(lines) = tail {
            let start = find_tail_start(&mut file, lines)?;
            file.seek(SeekFrom::Start(start))?;
        }
        Ok::<_, io::Error>(file)
    });
    Ok(tokio::fs::File::from_std(
        opened.await.map_err(io::Error::other)??,
    ))
}

/// The offset of the `lines`-th line from the end, read backwards. A line without its end counts as one.
pub(super) fn find_tail_start<F>(file: &mut F, lines: u64) -> io::Result<u64>
where
    F: io::Read + io::Seek,
{
    let size = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(size);
    }
    let mut block = Vec::new();
    let mut found = 0;
    let mut end = size;
    while end > 0 {
        let start = end.saturating_sub(BLOCK_BYTES);
        file.seek(SeekFrom::Start(start))?;
        block.clear();
        file.by_ref().take(end - start).read_to_end(&mut block)?;
        for (index, byte) in block.iter().enumerate().rev() {
            let offset = start + index as u64;
            // The very last newline ends the last line, it begins none.
            if *byte == b'\n' && offset + 1 != size {
                found += 1;
                if found == lines {
                    return Ok(offset + 1);
                }
            }
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn starts() {
        let path = std::env::temp_dir().join(format!("gantry-tail-{}", std::process::id()));
        let check = |text: &str, lines: u64, expect: &str| {
            let mut file = std::fs::File::create(&path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            let start = find_tail_start(&mut std::fs::File::open(&path).unwrap(), lines).unwrap();
            assert_eq!(&text[start as usize..], expect, "{lines} of {text:.20?}");
        };
        check("a\nb\nc\n", 0, "");
        check("a\nb\nc\n", 1, "c\n");
        check("a\nb\nc\n", 2, "b\nc\n");
        check("a\nb\nc\n", 9, "a\nb\nc\n");
        check("a\nb\nc", 1, "c");
        check("", 3, "");
        let long = format!("{}\n{}\nend\n", "x".repeat(40_000), "y".repeat(40_000));
        check(&long, 2, &long[40_001..]);
        std::fs::remove_file(&path).unwrap();
    }
}
