//! Reads an expression of the Common Expression Language.
//!
//! The API server has read it before us with the same grammar, so an error here says that it knows more of the language than this does.

use super::lexer::{Token, TokenKind, lex};
use super::syntax::{Expr, Kind, Literal, Offset};

/// As deep may parentheses, lists and calls be nested. Upstream: cel-go's `defaultMaxRecursionDepth`.
const MAX_DEPTH: usize = 250;
/// As high may the tree be: `a.b.c` and `a + b + c` are not nested, but make it higher. `&&` and `||` do not.
const MAX_HEIGHT: usize = 1000;

/// What could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SyntaxError {
    /// Where.
    pub at: Offset,
    /// What.
    pub message: String,
}

impl SyntaxError {
    pub(super) fn new(at: Offset, message: impl Into<String>) -> Self {
        let message = format!("Syntax error: {}", message.into());
        Self { at, message }
    }
}

type Parsed<T> = Result<T, SyntaxError>;

/// Reads a whole expression.
///
/// # Errors
/// The first thing that does not fit the grammar, or what is nested too deeply.
pub fn parse(text: &str) -> Parsed<Expr> {
    let mut parser = Parser {
        tokens: lex(text)?,
        next: 0,
        depth: 0,
    };
    let expr = parser.expr()?;
    match parser.peek() {
        TokenKind::End => Ok(expr),
        _ => Err(parser.unexpected()),
    }
}

struct Parser {
    tokens: Vec<Token>,
    next: usize,
    depth: usize,
}

impl Parser {
    /// The last token is the end, and is never passed.
    fn peek(&self) -> &TokenKind {
        &self.tokens[self.next].kind
    }

    fn at(&self) -> Offset {
        self.tokens[self.next].at
    }

    fn take(&mut self) -> Token {
        let token = self.tokens[self.next].clone();
        if token.kind != TokenKind::End {
            self.next += 1;
        }
        token
    }

    fn is(&self, symbol: &str) -> bool {
        matches!(self.peek(), TokenKind::Symbol(s) if *s == symbol)
    }

    /// The place of a symbol that was there, and passes it.
    fn accept(&mut self, symbol: &str) -> Option<Offset> {
        self.is(symbol).then(|| self.take().at)
    }

    fn expect(&mut self, symbol: &str) -> Parsed<Offset> {
        self.accept(symbol).ok_or_else(|| self.unexpected())
    }

    fn unexpected(&self) -> SyntaxError {
        let found = match self.peek() {
            TokenKind::End => "<EOF>".to_owned(),
            TokenKind::Symbol(symbol) => (*symbol).to_owned(),
            TokenKind::Ident(name) => name.clone(),
            TokenKind::Literal(_) => "literal".to_owned(),
        };
        SyntaxError::new(self.at(), format!("unexpected '{found}'"))
    }

    /// The node, unless the tree gets too high by it.
    fn node(&self, at: Offset, kind: Kind) -> Parsed<Expr> {
        let expr = Expr::new(at, kind);
        if expr.height > MAX_HEIGHT {
            return Err(SyntaxError::new(at, "expression is too long"));
        }
        Ok(expr)
    }

    fn call(&self, at: Offset, function: &str, args: Vec<Expr>) -> Parsed<Expr> {
        let kind = Kind::Call {
            function: function.to_owned(),
            target: None,
            args,
        };
        self.node(at, kind)
    }

    fn expr(&mut self) -> Parsed<Expr> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            let message = "expression recursion limit exceeded";
            return Err(SyntaxError::new(self.at(), message));
        }
        let condition = self.binary(0)?;
        let expr = match self.accept("?") {
            None => condition,
            Some(at) => {
                let then = self.binary(0)?;
                self.expect(":")?;
                let otherwise = self.expr()?;
                self.call(at, "_?_:_", vec![condition, then, otherwise])?
            }
        };
        self.depth -= 1;
        Ok(expr)
    }

    /// Operators of a level of [`LEVELS`] and those that bind tighter; all of them group from the left.
    fn binary(&mut self, level: usize) -> Parsed<Expr> {
        let Some(operators) = LEVELS.get(level) else {
            return self.unary();
        };
        let mut left = self.binary(level + 1)?;
        loop {
            let found = operators.iter().find(|(symbol, _)| match self.peek() {
                TokenKind::Symbol(s) => s == symbol,
                TokenKind::Ident(name) => *symbol == "in" && name == "in",
                _ => false,
            });
            let Some((_, function)) = found else {
                return Ok(left);
            };
            let at = self.take().at;
            let right = self.binary(level + 1)?;
            left = match left.kind {
                // As upstream's variadic forms of both.
                Kind::Call {
                    function: previous,
                    target: None,
                    mut args,
                } if level < 2 && previous == *function => {
                    args.push(right);
                    self.call(left.at, function, args)?
                }
                kind => {
                    let left = Expr { kind, ..left };
                    self.call(at, function, vec![left, right])?
                }
            };
        }
    }

    fn unary(&mut self) -> Parsed<Expr> {
        let (symbol, function) = match self.peek() {
            TokenKind::Symbol("!") => ("!", "!_"),
            TokenKind::Symbol("-") => ("-", "-_"),
            _ => return self.member(),
        };
        let at = self.at();
        let mut count = 0;
        while self.accept(symbol).is_some() {
            count += 1;
        }
        // `-1` is a constant.
        let number = matches!(
            self.peek(),
            TokenKind::Literal(Literal::Int | Literal::Double)
        );
        if symbol == "-" && number {
            count -= 1;
        }
        let mut operand = self.member()?;
        // Two of a kind are none.
        if count % 2 == 1 {
            operand = self.call(at, function, vec![operand])?;
        }
        Ok(operand)
    }

    fn member(&mut self) -> Parsed<Expr> {
        let mut operand = self.primary()?;
        loop {
            let at = self.at();
            if self.accept(".").is_some() {
                let optional = self.accept("?").is_some();
                let field = self.ident()?;
                let open = (!optional).then(|| self.accept("(")).flatten();
                let operand_box = Box::new(operand);
                let (at, kind) = match open {
                    Some(open) => {
                        let kind = Kind::Call {
                            function: field,
                            target: Some(operand_box),
                            args: self.exprs(")")?,
                        };
                        (open, kind)
                    }
                    None => {
                        let kind = Kind::Select {
                            operand: operand_box,
                            field,
                            optional,
                        };
                        (at, kind)
                    }
                };
                operand = self.node(at, kind)?;
            } else if self.accept("[").is_some() {
                let optional = self.accept("?").is_some();
                let index = self.expr()?;
                self.expect("]")?;
                let function = if optional { "_[?_]" } else { "_[_]" };
                operand = self.call(at, function, vec![operand, index])?;
            } else if self.is("{") {
                let Some(name) = operand.qualified_name() else {
                    return Ok(operand);
                };
                self.take();
                let fields = self.fields()?;
                let kind = Kind::Struct { name, fields };
                operand = self.node(at, kind)?;
            } else {
                return Ok(operand);
            }
        }
    }

    fn ident(&mut self) -> Parsed<String> {
        let TokenKind::Ident(name) = self.peek() else {
            return Err(self.unexpected());
        };
        let name = name.clone();
        self.take();
        Ok(name)
    }

    fn primary(&mut self) -> Parsed<Expr> {
        if let TokenKind::End = self.peek() {
            return Err(self.unexpected());
        }
        let Token { at, kind } = self.take();
        let kind = match kind {
            TokenKind::Literal(literal) => Kind::Literal(literal),
            TokenKind::Ident(name) => return self.name(at, name),
            TokenKind::Symbol(".") => {
                let name = self.ident()?;
                return self.name(at, format!(".{name}"));
            }
            TokenKind::Symbol("(") => {
                let expr = self.expr()?;
                self.expect(")")?;
                return Ok(expr);
            }
            TokenKind::Symbol("[") => {
                let mut elements = Vec::new();
                while !self.is("]") {
                    let optional = self.accept("?").is_some();
                    elements.push((optional, self.expr()?));
                    if self.accept(",").is_none() {
                        break;
                    }
                }
                self.expect("]")?;
                Kind::List(elements)
            }
            TokenKind::Symbol("{") => {
                let mut entries = Vec::new();
                while !self.is("}") {
                    let optional = self.accept("?").is_some();
                    let key = self.expr()?;
                    self.expect(":")?;
                    entries.push((optional, key, self.expr()?));
                    if self.accept(",").is_none() {
                        break;
                    }
                }
                self.expect("}")?;
                Kind::Map(entries)
            }
            TokenKind::Symbol(_) | TokenKind::End => {
                self.next -= 1;
                return Err(self.unexpected());
            }
        };
        self.node(at, kind)
    }

    fn name(&mut self, at: Offset, name: String) -> Parsed<Expr> {
        if name == "in" {
            self.next -= 1;
            return Err(self.unexpected());
        }
        match self.accept("(") {
            Some(open) => {
                let args = self.exprs(")")?;
                self.call(open, &name, args)
            }
            None => self.node(at, Kind::Ident(name)),
        }
    }

    fn exprs(&mut self, close: &str) -> Parsed<Vec<Expr>> {
        let mut found = Vec::new();
        if self.accept(close).is_some() {
            return Ok(found);
        }
        loop {
            found.push(self.expr()?);
            if self.accept(",").is_none() {
                self.expect(close)?;
                return Ok(found);
            }
        }
    }

    fn fields(&mut self) -> Parsed<Vec<(Offset, String, Expr)>> {
        let mut fields = Vec::new();
        while !self.is("}") {
            let _ = self.accept("?");
            let name = self.ident()?;
            let at = self.expect(":")?;
            fields.push((at, name, self.expr()?));
            if self.accept(",").is_none() {
                break;
            }
        }
        self.expect("}")?;
        Ok(fields)
    }
}

/// Signs and the functions they stand for, from what binds least.
const LEVELS: &[&[(&str, &str)]] = &[
    &[("||", "_||_")],
    &[("&&", "_&&_")],
    &[
        ("<", "_<_"),
        ("<=", "_<=_"),
        (">", "_>_"),
        (">=", "_>=_"),
        ("==", "_==_"),
        ("!=", "_!=_"),
        ("in", "@in"),
    ],
    &[("+", "_+_"), ("-", "_-_")],
    &[("*", "_*_"), ("/", "_/_"), ("%", "_%_")],
];
