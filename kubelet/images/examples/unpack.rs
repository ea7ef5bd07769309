//! Unpacks stacks of layers with the image store's unpacker, for those who compare it with others.
//!
//! Each line of the input names a directory to make and the layers, lowest first, with tabs between. The answer is a
//! line of the layers' directories, topmost first, with tabs between, or `error: ` and why.

use std::io::{BufRead as _, Write as _};
use std::path::{Path, PathBuf};

fn main() -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let mut fields = line.split('\t');
        let directory = Path::new(fields.next().unwrap_or_default());
        let layers: Vec<PathBuf> = fields.map(PathBuf::from).collect();
        std::fs::create_dir_all(directory)?;
        match images::unpack_stack(&layers, directory) {
            Ok(made) => {
                let made: Vec<String> = made.iter().map(|p| p.display().to_string()).collect();
                writeln!(out, "{}", made.join("\t"))?;
            }
            Err(error) => writeln!(out, "error: {}", error.to_string().replace('\n', " "))?,
        }
        out.flush()?;
    }
    Ok(())
}
