//! No file is opened on an async thread: one that hangs (a named pipe, a dead file system) would hold up every other
//! task of the node.
//!
//! A reading of the text, not of the language: within `async fn` and `async {}` no call of `std::fs` stands but in what is
//! handed to a thread (`spawn_blocking(…)`, `off_thread(…)`, `blocking(…)`, `in_namespace(…)`, or a closure without arguments).

/// Folders this holds in.
pub const FOLDERS: &[&str] = &[
    "kubelet/images/src",
    "kubelet/network/src",
    "kubelet/runtime/src",
    "kubelet/src",
    "kubelet/volumes/src",
];

/// Files with short calls on paths that nobody but the node can change.
pub const ALLOWED: &[&str] = &[
    // Before anything is served.
    "kubelet/src/app.rs",
    "kubelet/runtime/src/linux.rs",
    // The node's own namespaces and records.
    "kubelet/network/src/namespace.rs",
    "kubelet/network/src/pod_link.rs",
    "kubelet/runtime/src/linux/container/prepare.rs",
    "kubelet/runtime/src/linux/sandbox.rs",
];

const HANDED_OVER: &[&str] = &["spawn_blocking", "off_thread", "blocking", "in_namespace"];

/// Lines of a source file that break the rule, with the call.
pub fn broken(source: &str) -> Vec<(usize, &'static str)> {
    let mut text = blank_out_texts(source);
    if let Some(tests) = find(&text, b"#[cfg(test)]", 0) {
        text.truncate(tests);
    }
    let regions = async_regions(&text);
    let handed = handed_over(&text);
    let inside = |list: &[(usize, usize)], at: usize| list.iter().any(|(a, b)| *a <= at && at < *b);
    let mut found = Vec::new();
    for call in ["std::fs::", "fs::", "File::open(", "File::create("] {
        let mut from = 0;
        while let Some(at) = find(&text, call.as_bytes(), from) {
            from = at + call.len();
            let before = at.checked_sub(1).map(|i| text[i]);
            let is_name = before.is_some_and(|b| is_word(b) || b == b':');
            if !is_name && inside(&regions, at) && !inside(&handed, at) {
                let line = text[..at].iter().filter(|b| **b == b'\n').count() + 1;
                found.push((line, call));
            }
        }
    }
    found.sort_unstable();
    found.dedup_by_key(|(line, _)| *line);
    found
}

/// The source with comments, strings and characters blank, line by line as long as before.
fn blank_out_texts(source: &str) -> Vec<u8> {
    let bytes = source.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes.get(at + 1) == Some(&b'/') => {
                find(bytes, b"\n", at).unwrap_or(bytes.len())
            }
            b'"' => {
                let mut end = at + 1;
                while end < bytes.len() && bytes[end] != b'"' {
                    end += if bytes[end] == b'\\' { 2 } else { 1 };
                }
                (end + 1).min(bytes.len())
            }
            b'\'' if bytes.get(at + 1) == Some(&b'\\') => {
                find(bytes, b"'", at + 3).map_or(bytes.len(), |end| end + 1)
            }
            b'\'' if bytes.get(at + 2) == Some(&b'\'') => at + 3,
            _ => {
                at += 1;
                continue;
            }
        };
        for byte in &mut out[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end;
    }
    out
}

fn async_regions(text: &[u8]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(at) = find_word(text, "async", from) {
        from = at + "async".len();
        let Some(open) = find(text, b"{", from) else {
            break;
        };
        let between: Vec<u8> = text[from..open].trim_ascii().to_vec();
        let is_block = between.is_empty() || between == b"move";
        // A declaration without a body ends before the next brace.
        let is_fn = between.starts_with(b"fn ") && !between.contains(&b';');
        if is_block || is_fn {
            found.push((open, closing(text, open, b'{', b'}')));
        }
    }
    found
}

fn handed_over(text: &[u8]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for name in HANDED_OVER {
        let mut from = 0;
        while let Some(at) = find_word(text, name, from) {
            from = at + name.len();
            if text.get(from) == Some(&b'(') {
                found.push((from, closing(text, from, b'(', b')')));
            }
        }
    }
    let mut from = 0;
    while let Some(at) = find(text, b"||", from) {
        from = at + 2;
        // `move || -> T {` and `= || {`, not `a || b`.
        let before = text[..at].trim_ascii_end();
        let begins = before.ends_with(b"move") || before.ends_with(b"=") || before.ends_with(b"(");
        if let Some(open) = find(text, b"{", from).filter(|_| begins) {
            found.push((open, closing(text, open, b'{', b'}')));
        }
    }
    found
}

/// The end of what `open` begins.
fn closing(text: &[u8], at: usize, open: u8, close: u8) -> usize {
    let mut depth = 0usize;
    for (index, byte) in text.iter().enumerate().skip(at) {
        if *byte == open {
            depth += 1;
        } else if *byte == close {
            depth -= 1;
            if depth == 0 {
                return index;
            }
        }
    }
    text.len()
}

fn find(text: &[u8], what: &[u8], from: usize) -> Option<usize> {
    let rest = text.get(from..)?;
    rest.windows(what.len())
        .position(|window| window == what)
        .map(|at| at + from)
}

fn find_word(text: &[u8], word: &str, mut from: usize) -> Option<usize> {
    loop {
        let at = find(text, word.as_bytes(), from)?;
        from = at + word.len();
        let before = at.checked_sub(1).map(|i| text[i]);
        if !before.is_some_and(is_word) && !text.get(from).copied().is_some_and(is_word) {
            return Some(at);
        }
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_on_async_threads_are_found() {
        for (source, lines) in [
            ("async fn a() {\n std::fs::read(p);\n}", vec![2]),
            (
                "async fn a() {\n let f = File::open(p);\n fs::read(p);\n}",
                vec![2, 3],
            ),
            ("fn a() {\n std::fs::read(p);\n}", vec![]),
            (
                "fn a() {\n tokio::spawn(async move {\n fs::write(p);\n });\n}",
                vec![3],
            ),
            (
                "async fn a() {\n spawn_blocking(move || fs::read(p)).await;\n fs::read(q);\n}",
                vec![3],
            ),
            (
                "async fn a() {\n off_thread(move || {\n  fs::read(p)\n }).await\n}",
                vec![],
            ),
            (
                "async fn a() {\n let look = move || {\n  fs::read(p)\n };\n off_thread(look).await\n}",
                vec![],
            ),
            (
                "async fn a() {\n if x || y {\n  fs::read(p);\n }\n}",
                vec![3],
            ),
            ("async fn a() {\n tokio::fs::read(p).await;\n}", vec![]),
            ("async fn a() {\n // fs::read(p)\n \"fs::read\";\n}", vec![]),
            (
                "trait T {\n async fn a();\n}\nfn b() {\n fs::read(p);\n}",
                vec![],
            ),
            (
                "fn b() {}\n#[cfg(test)]\nmod tests {\n async fn a() {\n fs::read(p);\n }\n}",
                vec![],
            ),
        ] {
            let found: Vec<usize> = broken(source).into_iter().map(|(line, _)| line).collect();
            assert_eq!(found, lines, "{source}");
        }
    }
}
