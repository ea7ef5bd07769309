//! `$(VAR)` references.
//!
//! Owns: [`expand`]. Pure. What comes of a text has a bound: references to variables that are made of references grow it a
//! thousandfold at each step. Upstream: `third_party/forked/golang/expansion`, v1.36.

use std::borrow::Cow;

/// Bytes of all arguments and variables that a program can be started with. Source: `bprm_stack_limits` of the kernel's
/// `fs/exec.c`, three quarters of 8 MiB, whatever the limit of the stack.
pub const MAX_BYTES: usize = 6 << 20;

/// What came of the text was longer than asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {max} bytes after its variables were put in")]
pub struct TooLong {
    pub max: usize,
}

/// Why a text could not be expanded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpandError {
    #[error("nobody knows the variable {0:?}")]
    Unknown(String),
    #[error(transparent)]
    TooLong(#[from] TooLong),
}

/// Replaces `$(NAME)` by its value; `$$` is a dollar; an unknown name stays as it is written. `max`: bytes of the result.
///
/// # Errors
/// It is longer.
pub fn expand<'a>(
    text: &str,
    max: usize,
    lookup: impl Fn(&str) -> Option<&'a str>,
) -> Result<String, TooLong> {
    expand_with(text, max, |name| match lookup(name) {
        Some(value) => Cow::Borrowed(value),
        None => Cow::Owned(format!("$({name})")),
    })
}

/// As [`expand`], but an unknown name is an error that carries the name (`subPathExpr`).
///
/// # Errors
/// The first name nobody knows, or what is too long.
pub fn try_expand<'a>(
    text: &str,
    max: usize,
    lookup: impl Fn(&str) -> Option<&'a str>,
) -> Result<String, ExpandError> {
    let missing = std::cell::RefCell::new(None);
    let out = expand_with(text, max, |name| match lookup(name) {
        Some(value) => Cow::Borrowed(value),
        None => {
            missing.borrow_mut().get_or_insert_with(|| name.to_owned());
            Cow::Borrowed("")
        }
    });
    match missing.into_inner() {
        Some(name) => Err(ExpandError::Unknown(name)),
        None => Ok(out?),
    }
}

fn expand_with<'a>(
    text: &str,
    max: usize,
    lookup: impl Fn(&str) -> Cow<'a, str>,
) -> Result<String, TooLong> {
    let mut out = String::with_capacity(text.len().min(max));
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        if out.len() > max {
            return Err(TooLong { max });
        }
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
    match out.len() > max {
        true => Err(TooLong { max }),
        false => Ok(out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expands_as_upstream() {
        let lookup = |name: &str| match name {
            "VAR_A" => Some("A"),
            "VAR_EMPTY" => Some(""),
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
            assert_eq!(expand(input, 100, lookup).unwrap(), expect, "{input}");
        }
        let unknown = ExpandError::Unknown("NOPE".into());
        assert_eq!(try_expand("$(NOPE)", 100, lookup), Err(unknown));
    }

    #[test]
    fn what_comes_of_a_text_is_bounded() {
        let big = "x".repeat(1 << 20);
        let lookup = |name: &str| (name == "BIG").then_some(big.as_str());
        let text = "$(BIG)".repeat(200_000);
        assert_eq!(
            expand(&text, MAX_BYTES, lookup),
            Err(TooLong { max: MAX_BYTES })
        );
        let error = try_expand(&text, 4096, lookup).unwrap_err();
        assert_eq!(error, ExpandError::TooLong(TooLong { max: 4096 }));
        assert_eq!(expand("abc", 3, lookup).as_deref(), Ok("abc"));
        assert_eq!(expand("abc", 2, lookup), Err(TooLong { max: 2 }));
    }
}
