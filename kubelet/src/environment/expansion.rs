//! `$(VAR)` references.
//!
//! Owns: [`expand`]. Pure. Upstream: `third_party/forked/golang/expansion`, v1.36.

/// Replaces `$(NAME)` by its value; `$$` is a dollar; an unknown name stays as it is written.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    expand_with(text, |name| {
        lookup(name).unwrap_or_else(|| format!("$({name})"))
    })
}

/// As [`expand`], but an unknown name is an error that carries the name (`subPathExpr`).
///
/// # Errors
/// The first name nobody knows.
pub fn try_expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let missing = std::cell::RefCell::new(None);
    let out = expand_with(text, |name| {
        lookup(name).unwrap_or_else(|| {
            missing.borrow_mut().get_or_insert_with(|| name.to_owned());
            String::new()
        })
    });
    match missing.into_inner() {
        Some(name) => Err(name),
        None => Ok(out),
    }
}

fn expand_with(text: &str, lookup: impl Fn(&str) -> String) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        match after.chars().next() {
            Some('$') => {
                out.push('$');
                rest = &after[1..];
            }
            Some('(') => match after.find(')') {
                Some(end) => {
                    out.push_str(&lookup(&after[1..end]));
                    rest = &after[end + 1..];
                }
                None => {
                    out.push_str("$(");
                    rest = &after[1..];
                }
            },
            Some(c) => {
                out.push('$');
                out.push(c);
                rest = &after[c.len_utf8()..];
            }
            None => {
                out.push('$');
                rest = "";
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expands_as_upstream() {
        let lookup = |name: &str| match name {
            "VAR_A" => Some("A".to_owned()),
            "VAR_EMPTY" => Some(String::new()),
            _ => None,
        };
        for (input, expect) in [
            ("$(VAR_A)", "A"),
            ("___$(VAR_A)___", "___A___"),
            ("$(VAR_A", "$(VAR_A"),
            ("$$(VAR_A)", "$(VAR_A)"),
            ("$$$(VAR_A)", "$A"),
            ("$VAR_A", "$VAR_A"),
            ("foo$(VAR_EMPTY)bar", "foobar"),
            ("$(NOPE)", "$(NOPE)"),
            ("x$", "x$"),
            ("$(VAR_A)$(VAR_A)", "AA"),
        ] {
            assert_eq!(expand(input, lookup), expect, "{input}");
        }
        assert_eq!(try_expand("$(NOPE)", lookup), Err("NOPE".to_owned()));
    }
}
