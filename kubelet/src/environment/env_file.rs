//! Files with variables (`fileKeyRef`): `KEY='value'` lines, as a POSIX shell reads them.
//!
//! Owns: [`value`], pure. Values stand in single quotes and may go over several lines; nothing in them is escaped. A
//! file is read only as far as its key, so what follows may be wrong. Upstream: `pkg/kubelet/util/env`, v1.36.

/// What is wrong with a file. No retry helps until it changes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvFileError {
    #[error("invalid environment variable format at line {0}: missing '='")]
    NoEquals(usize),
    #[error("invalid environment variable format at line {0}: empty variable name")]
    NoName(usize),
    #[error(
        "invalid environment variable format at line {0}: whitespace before '=' is not allowed"
    )]
    BlankBeforeEquals(usize),
    #[error(
        "invalid environment variable format at line {0}: value must be enclosed in single quotes"
    )]
    NotQuoted(usize),
    #[error(
        "invalid environment variable format at line {0}: unexpected content after closing quote"
    )]
    AfterQuote(usize),
    #[error("invalid environment variable format starting at line {0}: unclosed single quote")]
    Unclosed(usize),
}

const BLANK: [char; 2] = [' ', '\t'];

/// The value of `key`, the first if it stands there several times; empty if it is not there.
///
/// # Errors
/// A line before it, or its own, is not of the format.
pub fn value(text: &str, key: &str) -> Result<String, EnvFileError> {
    let mut lines = text
        .lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line));
    while let Some((number, line)) = lines.next() {
        let line = line.trim_start_matches(BLANK);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, quoted) = line.split_once('=').ok_or(EnvFileError::NoEquals(number))?;
        match name.trim_end_matches(BLANK) {
            "" => return Err(EnvFileError::NoName(number)),
            bare if bare != name => return Err(EnvFileError::BlankBeforeEquals(number)),
            _ => {}
        }
        // As a shell has it: the variable is empty, and the rest another word.
        if quoted.starts_with(BLANK) {
            if name == key {
                return Ok(String::new());
            }
            continue;
        }
        let mut rest = quoted
            .strip_prefix('\'')
            .ok_or(EnvFileError::NotQuoted(number))?;
        let (mut value, mut at) = (String::new(), number);
        let after = loop {
            if let Some((end, after)) = rest.split_once('\'') {
                value.push_str(end);
                break after.trim_start_matches(BLANK);
            }
            value.push_str(rest);
            value.push('\n');
            (at, rest) = lines.next().ok_or(EnvFileError::Unclosed(number))?;
        };
        if !after.is_empty() && !after.starts_with('#') {
            return Err(EnvFileError::AfterQuote(at));
        }
        if name == key {
            return Ok(value);
        }
    }
    Ok(String::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_as_a_shell_reads_them() {
        use EnvFileError::*;
        let cases: &[(&str, Result<&str, EnvFileError>)] = &[
            ("K='v'", Ok("v")),
            ("A='1'\n\tK='v'\n", Ok("v")),
            ("# note\n\n  # more\nK='v' # why\n", Ok("v")),
            ("K='a#b=c \"d\" $X \\n'", Ok("a#b=c \"d\" $X \\n")),
            ("K='  padded  '", Ok("  padded  ")),
            ("K='one\n# two\n\nthree'\nA='1'", Ok("one\n# two\n\nthree")),
            ("K='one\r\ntwo'\r\n", Ok("one\ntwo")),
            ("K='first'\nK='second'", Ok("first")),
            ("A='K=wrong\nK=also'\nK='v'", Ok("v")),
            ("K=''", Ok("")),
            ("K= 'v'", Ok("")),
            ("A= 'v'\nK='v'", Ok("v")),
            ("A='1'", Ok("")),
            ("", Ok("")),
            // What follows the key is not looked at.
            ("K='v'\nbroken", Ok("v")),
            ("broken\nK='v'", Err(NoEquals(1))),
            ("\n='x'\nK='v'", Err(NoName(2))),
            (" \t='x'", Err(NoName(1))),
            ("K ='v'", Err(BlankBeforeEquals(1))),
            ("A = '1'\nK='v'", Err(BlankBeforeEquals(1))),
            ("K=v", Err(NotQuoted(1))),
            ("K=", Err(NotQuoted(1))),
            ("K=\"v\"", Err(NotQuoted(1))),
            ("K='v'w", Err(AfterQuote(1))),
            ("K='v\nw' x", Err(AfterQuote(2))),
            ("K='it''s'", Err(AfterQuote(1))),
            ("A='1'\nK='v\n\n", Err(Unclosed(2))),
        ];
        for (text, expect) in cases {
            let expect = expect.clone().map(str::to_owned);
            assert_eq!(value(text, "K"), expect, "{text:?}");
        }
    }
}
