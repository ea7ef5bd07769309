//! For tests: which settings nobody reads. A setting that is taken and then forgotten does nothing in silence.
//!
//! Looks at sources as text: a field counts as read where `.field` stands outside the file that declares it, a flag where its name
//! stands twice (declared and read).

use std::path::Path;

/// All Rust text below `root`, but for files whose path from there begins with one of `except`.
///
/// # Panics
/// When the sources cannot be read.
pub fn sources(root: &Path, except: &[&str]) -> String {
    let mut text = String::new();
    collect(root, root, except, &mut text);
    text
}

fn collect(root: &Path, dir: &Path, except: &[&str], text: &mut String) {
    for entry in std::fs::read_dir(dir).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        let within = path
            .strip_prefix(root)
            .expect("it lies below")
            .to_string_lossy()
            .into_owned();
        if except.iter().any(|e| within.starts_with(e)) {
            continue;
        }
        if path.is_dir() {
            collect(root, &path, except, text);
        } else if path.extension().is_some_and(|e| e == "rs") {
            text.push_str(&std::fs::read_to_string(&path).expect("a source"));
        }
    }
}

/// The `pub` fields of struct `name` in `declaration`.
pub fn fields<'a>(declaration: &'a str, name: &str) -> Vec<&'a str> {
    let begin = format!("pub struct {name} {{");
    let body = declaration.split_once(&begin).map_or("", |(_, rest)| rest);
    let body = body.split_once("\n}").map_or(body, |(body, _)| body);
    body.lines()
        .filter_map(|line| line.trim().strip_prefix("pub ")?.split_once(':'))
        .map(|(field, _)| field)
        .collect()
}

/// Whether `.field` stands in `sources`, as a word.
pub fn is_read(sources: &str, field: &str) -> bool {
    let used = format!(".{field}");
    sources.match_indices(&used).any(|(at, _)| {
        let next = sources[at + used.len()..].chars().next();
        !next.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '(')
    })
}

/// Those of `flags` whose names do not stand twice in `sources`.
pub fn unread_flags<'a>(sources: &str, flags: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    flags
        .into_iter()
        .filter(|flag| sources.matches(&format!("\"{flag}\"")).count() < 2)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_and_what_is_not() {
        let text = "/// x\npub struct Options {\n    /// a\n    pub a: u8,\n    pub ab: Vec<u8>,\n}\npub struct B { pub c: u8 }";
        assert_eq!(fields(text, "Options"), ["a", "ab"]);
        assert!(is_read("let x = options.ab;", "ab"));
        assert!(!is_read("let x = options.ab;", "a"));
        assert!(!is_read("options.ab()", "ab"));
        let read = "flags.string(\"x\", \"\"); flags.optional(\"x\"); set.int(\"y\", 1)";
        assert_eq!(unread_flags(read, ["x", "y"]), ["y"]);
    }
}
