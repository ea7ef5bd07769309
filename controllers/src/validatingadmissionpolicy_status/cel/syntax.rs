//! The tree of an expression, with the place of each node.

/// Where a node begins: the number of the character, from 0. As in upstream, that of an operator is its sign, of a selection its dot, and of
/// a call its opening parenthesis.
pub type Offset = usize;

/// A node.
#[derive(Clone, Debug, PartialEq)]
pub struct Expr {
    /// Its place.
    pub at: Offset,
    /// What it is.
    pub kind: Kind,
    /// How many nodes the longest way down has, itself among them.
    pub height: usize,
}

/// The types a literal can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Literal {
    /// `null`
    Null,
    /// `true`
    Bool,
    /// `1`
    Int,
    /// `1u`
    Uint,
    /// `1.0`
    Double,
    /// `'a'`; what is in it matters to nobody here
    String,
    /// `b'a'`
    Bytes,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// A constant.
    Literal(Literal),
    /// A name; begins with a dot if it was written so.
    Ident(String),
    /// `operand.field`, or `operand.?field`.
    Select {
        operand: Box<Expr>,
        field: String,
        optional: bool,
    },
    /// A function or an operator (`_+_`); with a target, a member function.
    Call {
        function: String,
        target: Option<Box<Expr>>,
        args: Vec<Expr>,
    },
    /// `[a, ?b]`; whether each one is optional.
    List(Vec<(bool, Expr)>),
    /// `{a: b, ?c: d}`.
    Map(Vec<(bool, Expr, Expr)>),
    /// `Type{field: value}`.
    Struct {
        name: String,
        fields: Vec<(Offset, String, Expr)>,
    },
}

impl Expr {
    /// A node with what is below it.
    pub fn new(at: Offset, kind: Kind) -> Self {
        let of =
            |exprs: &mut dyn Iterator<Item = &Expr>| exprs.map(|e| e.height).max().unwrap_or(0);
        let below = match &kind {
            Kind::Literal(_) | Kind::Ident(_) => 0,
            Kind::Select { operand, .. } => operand.height,
            Kind::Call { target, args, .. } => of(&mut args.iter().chain(target.as_deref())),
            Kind::List(elements) => of(&mut elements.iter().map(|(_, e)| e)),
            Kind::Map(entries) => of(&mut entries.iter().flat_map(|(_, k, v)| [k, v])),
            Kind::Struct { fields, .. } => of(&mut fields.iter().map(|(_, _, e)| e)),
        };
        let height = below + 1;
        Self { at, kind, height }
    }

    /// `a.b.c` as one name, if it is nothing but names.
    pub fn qualified_name(&self) -> Option<String> {
        match &self.kind {
            Kind::Ident(name) => Some(name.clone()),
            Kind::Select {
                operand,
                field,
                optional: false,
            } => Some(format!("{}.{field}", operand.qualified_name()?)),
            _ => None,
        }
    }
}
