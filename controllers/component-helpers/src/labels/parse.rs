//! The string form of selectors: `key`, `!key`, `key=value`, `key==value`, `key!=value`, `key in (a,b)`, `key notin (a,b)`,
//! `key>1`, `key<1`, joined by commas.

use super::{Requirement, SelectorError};

#[derive(Clone, Debug, PartialEq)]
enum Token<'a> {
    Word(&'a str),
    Symbol(&'static str),
    End,
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

/// Reads a whole selector.
pub(super) fn parse(text: &str) -> Result<Vec<Requirement>, SelectorError> {
    let mut parser = Parser { text, at: 0 };
    let mut requirements = Vec::new();
    if parser.peek() == Token::End {
        return Ok(requirements);
    }
    loop {
        requirements.push(parser.requirement()?);
        match parser.next() {
            Token::End => return Ok(requirements),
            Token::Symbol(",") => {}
            found => return Err(parser.expected(&found, "',' or the end")),
        }
    }
}

impl<'a> Parser<'a> {
    fn expected(&self, found: &Token<'_>, what: &str) -> SelectorError {
        let found = match found {
            Token::Word(word) => format!("'{word}'"),
            Token::Symbol(symbol) => format!("'{symbol}'"),
            Token::End => "the end".into(),
        };
        SelectorError::Parse {
            text: self.text.into(),
            reason: format!("found {found}, expected: {what}"),
        }
    }

    fn peek(&mut self) -> Token<'a> {
        let at = self.at;
        let token = self.next();
        self.at = at;
        token
    }

    fn next(&mut self) -> Token<'a> {
        let rest = &self.text[self.at..];
        let trimmed = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        self.at += rest.len() - trimmed.len();
        if trimmed.is_empty() {
            return Token::End;
        }
        for symbol in ["==", "!=", "=", "!", "(", ")", ",", ">", "<"] {
            if trimmed.starts_with(symbol) {
                self.at += symbol.len();
                return Token::Symbol(symbol);
            }
        }
        let end = trimmed
            .find(|c: char| "=!(),>< \t\r\n".contains(c))
            .unwrap_or(trimmed.len());
        self.at += end;
        Token::Word(&trimmed[..end])
    }

    fn word(&mut self, what: &str) -> Result<&'a str, SelectorError> {
        match self.next() {
            Token::Word(word) => Ok(word),
            found => Err(self.expected(&found, what)),
        }
    }

    /// The value after `=`: may be left out (the empty value).
    fn exact_value(&mut self) -> Result<Vec<String>, SelectorError> {
        Ok(match self.peek() {
            Token::End | Token::Symbol(",") => vec![String::new()],
            _ => vec![self.word("a value")?.to_string()],
        })
    }

    fn set(&mut self) -> Result<Vec<String>, SelectorError> {
        match self.next() {
            Token::Symbol("(") => {}
            found => return Err(self.expected(&found, "'('")),
        }
        let mut values = Vec::new();
        let mut pending = String::new();
        loop {
            match self.next() {
                Token::Word(word) if pending.is_empty() => pending = word.to_string(),
                Token::Symbol(",") => values.push(std::mem::take(&mut pending)),
                Token::Symbol(")") => {
                    values.push(pending);
                    return Ok(values);
                }
                found => return Err(self.expected(&found, "',', ')' or a value")),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        if self.peek() == Token::Symbol("!") {
            self.next();
            let key = self.word("a key")?;
            return Requirement::new(key, "DoesNotExist", &[]);
        }
        let key = self.word("'!' or a key")?;
        match self.peek() {
            Token::End | Token::Symbol(",") => Requirement::new(key, "Exists", &[]),
            found => {
                self.next();
                let (operator, values) = match found {
                    Token::Symbol("=" | "==") => ("In", self.exact_value()?),
                    Token::Symbol("!=") => ("NotIn", self.exact_value()?),
                    Token::Symbol(">") => ("Gt", vec![self.word("an integer")?.to_string()]),
                    Token::Symbol("<") => ("Lt", vec![self.word("an integer")?.to_string()]),
                    Token::Word("in") => ("In", self.set()?),
                    Token::Word("notin") => ("NotIn", self.set()?),
                    found => return Err(self.expected(&found, "in, notin, =, ==, !=, > or <")),
                };
                Requirement::new(key, operator, &values)
            }
        }
    }
}
