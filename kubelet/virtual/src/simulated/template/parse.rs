//! From text to nodes.

use serde_json::Value;

use super::{Command, FUNCTIONS, Node, Operand, Pipeline};

/// What is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("template: line {line}: {what}")]
pub struct TemplateError {
    pub line: usize,
    pub what: String,
}

/// How deep blocks and brackets may stand in each other.
const MAX_DEPTH: usize = 64;
/// Actions of Go's that are not built.
const NOT_BUILT: &[&str] = &["define", "template", "block", "break", "continue"];

#[derive(Clone, Debug)]
enum Piece {
    Text(String),
    Action { line: usize, tokens: Vec<Token> },
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    /// `.`, `.a.b`
    Dot(Vec<String>),
    /// `$`, `$a.b`
    Variable(String, Vec<String>),
    Word(String),
    Literal(Value),
    Open,
    /// With the fields that follow at once.
    Close(Vec<String>),
    Pipe,
    Assign,
    Declare,
    Comma,
}

pub(super) fn parse(text: &str) -> Result<Vec<Node>, TemplateError> {
    let pieces = pieces(text)?;
    let mut parser = Parser {
        pieces: pieces.into_iter().peekable(),
        line: 1,
        depth: 0,
    };
    let (nodes, end) = parser.nodes()?;
    match end {
        None => Ok(nodes),
        Some((word, _)) => Err(parser.error(format!("unexpected {{{{{word}}}}}"))),
    }
}

fn pieces(text: &str) -> Result<Vec<Piece>, TemplateError> {
    let mut pieces = Vec::new();
    let (mut rest, mut line, mut trim) = (text, 1, false);
    let trimmed = |text: &str, left: bool, right: bool| {
        let text = if left { text.trim_start() } else { text };
        let text = if right { text.trim_end() } else { text };
        Piece::Text(text.to_owned())
    };
    while let Some(begin) = rest.find("{{") {
        let before = &rest[..begin];
        let mut inner = &rest[begin + 2..];
        let left = inner.starts_with("- ") || inner.starts_with("-\n");
        if left {
            inner = &inner[1..];
        }
        pieces.push(trimmed(before, trim, left));
        line += before.matches('\n').count();
        let error = |what: &str| TemplateError {
            line,
            what: what.to_owned(),
        };
        let comment = inner.trim_start().starts_with("/*");
        let end = match comment {
            true => inner
                .find("*/")
                .and_then(|at| Some(at + inner[at..].find("}}")?)),
            false => end_of_action(inner),
        };
        let end = end.ok_or_else(|| error("unclosed action"))?;
        let action = &inner[..end];
        rest = &inner[end + 2..];
        trim = action.ends_with(" -") || action.ends_with("\n-");
        let action = if trim {
            &action[..action.len() - 1]
        } else {
            action
        };
        if !comment {
            let tokens = tokens(action).map_err(|what| error(&what))?;
            pieces.push(Piece::Action { line, tokens });
        }
        line += action.matches('\n').count();
    }
    pieces.push(trimmed(rest, trim, false));
    Ok(pieces)
}

fn end_of_action(text: &str) -> Option<usize> {
    let (mut quote, mut escaped) = (None, false);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some('"'), '\\') if !escaped => {
                escaped = true;
                continue;
            }
            (Some(q), c) if q == c && !escaped => quote = None,
            (None, '"' | '`') => quote = Some(c),
            (None, '}') if text[at..].starts_with("}}") => return Some(at),
            _ => {}
        }
        escaped = false;
    }
    None
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// `.a.b` from the begin of `rest`.
fn fields(rest: &mut &str) -> Vec<String> {
    let mut fields = Vec::new();
    while let Some(after) = rest.strip_prefix('.') {
        let end = after.find(|c| !is_word(c)).unwrap_or(after.len());
        if end == 0 {
            break;
        }
        fields.push(after[..end].to_owned());
        *rest = &after[end..];
    }
    fields
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(c) = rest.chars().next() {
        match c {
            '(' | '|' | ',' | '=' => {
                tokens.push(match c {
                    '(' => Token::Open,
                    '|' => Token::Pipe,
                    ',' => Token::Comma,
                    _ => Token::Assign,
                });
                rest = &rest[1..];
            }
            ')' => {
                rest = &rest[1..];
                tokens.push(Token::Close(fields(&mut rest)));
            }
            ':' if rest.starts_with(":=") => {
                tokens.push(Token::Declare);
                rest = &rest[2..];
            }
            '.' => {
                let found = fields(&mut rest);
                if found.is_empty() {
                    rest = &rest[1..];
                }
                tokens.push(Token::Dot(found));
            }
            '$' => {
                let after = &rest[1..];
                let end = after.find(|c| !is_word(c)).unwrap_or(after.len());
                let name = after[..end].to_owned();
                rest = &after[end..];
                tokens.push(Token::Variable(name, fields(&mut rest)));
            }
            '"' => {
                let mut stream = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
                match stream.next() {
                    Some(Ok(value)) => tokens.push(Token::Literal(value)),
                    _ => return Err(format!("the text {rest:?} is not understood")),
                }
                rest = &rest[stream.byte_offset()..];
            }
            '`' => {
                let end = rest[1..].find('`').ok_or("a raw text is not closed")?;
                tokens.push(Token::Literal(rest[1..=end].into()));
                rest = &rest[end + 2..];
            }
            c if c.is_ascii_digit() || c == '-' => {
                let end = rest[1..]
                    .find(|c: char| !is_word(c) && c != '.')
                    .map_or(rest.len(), |e| e + 1);
                let number: Value = serde_json::from_str(&rest[..end])
                    .map_err(|_| format!("the number {:?} is not understood", &rest[..end]))?;
                tokens.push(Token::Literal(number));
                rest = &rest[end..];
            }
            c if is_word(c) => {
                let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
                tokens.push(match &rest[..end] {
                    "true" => Token::Literal(true.into()),
                    "false" => Token::Literal(false.into()),
                    "nil" => Token::Literal(Value::Null),
                    word => Token::Word(word.to_owned()),
                });
                rest = &rest[end..];
            }
            c => return Err(format!("unexpected {c:?}")),
        }
        rest = rest.trim_start();
    }
    Ok(tokens)
}

struct Parser {
    pieces: std::iter::Peekable<std::vec::IntoIter<Piece>>,
    line: usize,
    depth: usize,
}

/// What ended a list of nodes: `end` or `else`, and the rest of that action.
type End = Option<(String, Vec<Token>)>;

impl Parser {
    fn error(&self, what: impl Into<String>) -> TemplateError {
        TemplateError {
            line: self.line,
            what: what.into(),
        }
    }

    fn nodes(&mut self) -> Result<(Vec<Node>, End), TemplateError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.error("blocks stand too deep in each other"));
        }
        let mut nodes = Vec::new();
        let mut end = None;
        while let Some(piece) = self.pieces.next() {
            let (line, tokens) = match piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Piece::Action { line, tokens } => (line, tokens),
            };
            self.line = line;
            match tokens.split_first() {
                None => return Err(self.error("missing value for command")),
                Some((Token::Word(word), rest)) if word == "end" || word == "else" => {
                    end = Some((word.clone(), rest.to_vec()));
                    break;
                }
                Some((Token::Word(word), _)) if NOT_BUILT.contains(&word.as_str()) => {
                    return Err(self.error(format!("{word:?} is not built")));
                }
                Some((Token::Word(word), rest)) if word == "if" || word == "with" => {
                    nodes.push(self.condition(word == "with", rest)?);
                }
                Some((Token::Word(word), rest)) if word == "range" => {
                    nodes.push(self.range(rest)?);
                }
                Some((Token::Variable(name, fields), rest))
                    if fields.is_empty() && !name.is_empty() =>
                {
                    match rest.split_first() {
                        Some((sign @ (Token::Assign | Token::Declare), rest)) => {
                            nodes.push(Node::Assign {
                                name: name.clone(),
                                declares: *sign == Token::Declare,
                                value: self.pipeline(rest)?,
                            })
                        }
                        _ => nodes.push(Node::Print(self.pipeline(&tokens)?)),
                    }
                }
                Some(_) => nodes.push(Node::Print(self.pipeline(&tokens)?)),
            }
        }
        self.depth -= 1;
        Ok((nodes, end))
    }

    fn condition(&mut self, with: bool, tokens: &[Token]) -> Result<Node, TemplateError> {
        let condition = self.pipeline(tokens)?;
        let (then, end) = self.nodes()?;
        let otherwise = self.otherwise(end)?;
        Ok(Node::If {
            with,
            condition,
            then,
            otherwise,
        })
    }

    fn otherwise(&mut self, end: End) -> Result<Vec<Node>, TemplateError> {
        let Some((word, rest)) = end else {
            return Err(self.error("a block is not closed by {{end}}"));
        };
        match (word.as_str(), rest.split_first()) {
            ("end", None) => Ok(Vec::new()),
            ("else", None) => {
                let (nodes, end) = self.nodes()?;
                match end {
                    Some((word, rest)) if word == "end" && rest.is_empty() => Ok(nodes),
                    _ => Err(self.error("an {{else}} is not closed by {{end}}")),
                }
            }
            ("else", Some((Token::Word(word), rest))) if word == "if" || word == "with" => {
                Ok(vec![self.condition(word == "with", rest)?])
            }
            _ => Err(self.error(format!("{{{{{word}}}}} takes no arguments"))),
        }
    }

    fn range(&mut self, tokens: &[Token]) -> Result<Node, TemplateError> {
        let plain = |name: &String, fields: &Vec<String>| fields.is_empty() && !name.is_empty();
        let (key, value, rest) = match tokens {
            [
                Token::Variable(k, kf),
                Token::Comma,
                Token::Variable(v, vf),
                Token::Declare,
                rest @ ..,
            ] if plain(k, kf) && plain(v, vf) => (Some(k.clone()), Some(v.clone()), rest),
            [Token::Variable(v, vf), Token::Declare, rest @ ..] if plain(v, vf) => {
                (None, Some(v.clone()), rest)
            }
            rest => (None, None, rest),
        };
        let over = self.pipeline(rest)?;
        let (body, end) = self.nodes()?;
        let otherwise = self.otherwise(end)?;
        Ok(Node::Range {
            key,
            value,
            over,
            body,
            otherwise,
        })
    }

    fn pipeline(&self, tokens: &[Token]) -> Result<Pipeline, TemplateError> {
        let mut rest = tokens;
        let pipeline = self.commands(&mut rest, 0)?;
        match rest.first() {
            None => Ok(pipeline),
            Some(token) => Err(self.error(format!("unexpected {token:?}"))),
        }
    }

    /// Up to the end or a closing bracket.
    fn commands(&self, rest: &mut &[Token], depth: usize) -> Result<Pipeline, TemplateError> {
        if depth > MAX_DEPTH {
            return Err(self.error("brackets stand too deep in each other"));
        }
        let mut commands = Vec::new();
        loop {
            let mut operands = Vec::new();
            while let Some((token, after)) = rest.split_first() {
                let operand = match token {
                    Token::Pipe | Token::Close(_) => break,
                    Token::Dot(fields) => Operand::Dot(fields.clone()),
                    Token::Variable(name, fields) => {
                        Operand::Variable(name.clone(), fields.clone())
                    }
                    Token::Literal(value) => Operand::Literal(value.clone()),
                    Token::Word(word) if FUNCTIONS.contains(&word.as_str()) => {
                        Operand::Function(word.clone())
                    }
                    Token::Word(word) => {
                        return Err(self.error(format!("function {word:?} not defined")));
                    }
                    Token::Open => {
                        let mut inner = after;
                        let nested = self.commands(&mut inner, depth + 1)?;
                        let Some((Token::Close(fields), after)) = inner.split_first() else {
                            return Err(self.error("a bracket is not closed"));
                        };
                        operands.push(Operand::Nested(nested, fields.clone()));
                        *rest = after;
                        continue;
                    }
                    other => return Err(self.error(format!("unexpected {other:?}"))),
                };
                operands.push(operand);
                *rest = after;
            }
            commands.push(self.command(operands)?);
            match rest.split_first() {
                Some((Token::Pipe, after)) => *rest = after,
                _ => return Ok(Pipeline(commands)),
            }
        }
    }

    fn command(&self, operands: Vec<Operand>) -> Result<Command, TemplateError> {
        let mut operands = operands.into_iter();
        match operands.next() {
            None => Err(self.error("missing value for command")),
            Some(Operand::Function(name)) => Ok(Command::Call(name, operands.collect())),
            Some(operand) if operands.len() == 0 => Ok(Command::Operand(operand)),
            Some(_) => Err(self.error("what is no function takes no arguments")),
        }
    }
}
