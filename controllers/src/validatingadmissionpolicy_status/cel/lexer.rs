//! Cuts an expression into words.

use super::parser::SyntaxError;
use super::syntax::{Literal, Offset};

/// A word and its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    pub at: Offset,
    pub kind: TokenKind,
}

/// What kind of word.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenKind {
    Literal(Literal),
    /// Without the backticks a field may be written in.
    Ident(String),
    Symbol(&'static str),
    End,
}

/// Longer ones first.
const SYMBOLS: &[&str] = &[
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "!", "(", ")", "[", "]", "{", "}", ".", ",", ":",
    "?", "+", "-", "*", "/", "%",
];

/// The words of a text; the last one is the end.
///
/// # Errors
/// A character that begins no word, or a string that does not end.
pub fn lex(text: &str) -> Result<Vec<Token>, SyntaxError> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(&c) = chars.get(at) {
        let rest = &chars[at..];
        let (length, kind) = match c {
            ' ' | '\t' | '\n' | '\r' | '\u{c}' => {
                at += 1;
                continue;
            }
            '/' if rest.get(1) == Some(&'/') => {
                at += rest.iter().take_while(|c| **c != '\n').count();
                continue;
            }
            '`' => {
                let end = rest[1..].iter().position(|c| *c == '`');
                let end = end.ok_or_else(|| SyntaxError::new(at, "unclosed '`'"))?;
                let name = rest[1..=end].iter().collect();
                (end + 2, TokenKind::Ident(name))
            }
            _ if string_start(rest).is_some() => string(at, rest)?,
            '0'..='9' => number(rest),
            '.' if rest.get(1).is_some_and(char::is_ascii_digit) => number(rest),
            'a'..='z' | 'A'..='Z' | '_' => word(rest),
            _ => symbol(rest).ok_or_else(|| {
                SyntaxError::new(at, format!("token recognition error at: '{c}'"))
            })?,
        };
        tokens.push(Token { at, kind });
        at += length;
    }
    tokens.push(Token {
        at,
        kind: TokenKind::End,
    });
    Ok(tokens)
}

fn symbol(rest: &[char]) -> Option<(usize, TokenKind)> {
    let symbol = SYMBOLS.iter().find(|symbol| {
        let mut wanted = symbol.chars();
        rest.iter().copied().take(symbol.len()).eq(&mut wanted)
    })?;
    Some((symbol.len(), TokenKind::Symbol(symbol)))
}

fn word(rest: &[char]) -> (usize, TokenKind) {
    let length = rest
        .iter()
        .take_while(|c| c.is_ascii_alphanumeric() || **c == '_')
        .count();
    let word: String = rest[..length].iter().collect();
    let kind = match word.as_str() {
        "true" | "false" => TokenKind::Literal(Literal::Bool),
        "null" => TokenKind::Literal(Literal::Null),
        _ => TokenKind::Ident(word),
    };
    (length, kind)
}

fn number(rest: &[char]) -> (usize, TokenKind) {
    let get = |at: usize| rest.get(at).copied().unwrap_or('\0');
    let digits = |from: usize| {
        rest[from.min(rest.len())..]
            .iter()
            .take_while(|c| c.is_ascii_digit())
            .count()
    };
    let unsigned = |length: usize, literal| match get(length) {
        'u' | 'U' if literal == Literal::Int => (length + 1, TokenKind::Literal(Literal::Uint)),
        _ => (length, TokenKind::Literal(literal)),
    };
    if get(0) == '0' && get(1) == 'x' {
        let hex = rest[2..]
            .iter()
            .take_while(|c| c.is_ascii_hexdigit())
            .count();
        return unsigned(2 + hex, Literal::Int);
    }
    let mut length = digits(0);
    let mut literal = Literal::Int;
    if get(length) == '.' && get(length + 1).is_ascii_digit() {
        length += 1 + digits(length + 1);
        literal = Literal::Double;
    }
    if matches!(get(length), 'e' | 'E') {
        let sign = usize::from(matches!(get(length + 1), '+' | '-'));
        let exponent = digits(length + 1 + sign);
        if exponent > 0 {
            length += 1 + sign + exponent;
            literal = Literal::Double;
        }
    }
    unsigned(length, literal)
}

/// How many letters stand before the quote of a string (`r`, `b`, `rb`), if one begins here.
fn string_start(rest: &[char]) -> Option<usize> {
    let prefix = rest
        .iter()
        .take(2)
        .take_while(|c| matches!(c, 'r' | 'R' | 'b' | 'B'))
        .count();
    matches!(rest.get(prefix), Some('"' | '\'')).then_some(prefix)
}

fn string(at: Offset, rest: &[char]) -> Result<(usize, TokenKind), SyntaxError> {
    let prefix = string_start(rest).unwrap_or_default();
    let has = |letter: char| {
        rest[..prefix]
            .iter()
            .any(|c| c.eq_ignore_ascii_case(&letter))
    };
    let (raw, bytes) = (has('r'), has('b'));
    let quote = rest[prefix];
    let triple = rest[prefix..].starts_with(&[quote, quote, quote]);
    let width = if triple { 3 } else { 1 };
    let mut end = prefix + width;
    loop {
        match rest.get(end) {
            None => return Err(SyntaxError::new(at, "a string does not end")),
            Some('\n' | '\r') if !triple => {
                return Err(SyntaxError::new(at, "a string does not end"));
            }
            Some('\\') if !raw => end += 2,
            Some(c) if *c == quote && (!triple || rest[end..].starts_with(&[quote; 3])) => break,
            Some(_) => end += 1,
        }
    }
    let literal = if bytes {
        Literal::Bytes
    } else {
        Literal::String
    };
    Ok((end + width, TokenKind::Literal(literal)))
}
