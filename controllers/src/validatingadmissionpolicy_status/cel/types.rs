//! Types, and which of them fit together.
//!
//! Upstream: the unification of cel-go's checker (`checker/types.go`).

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

/// An object with named fields.
#[derive(Debug)]
pub struct StructType {
    /// For messages.
    pub name: String,
    /// By the names that expressions use.
    pub fields: BTreeMap<String, Type>,
}

/// A type. Copies are cheap.
#[derive(Clone, Debug)]
pub enum Type {
    /// Anything; what is done with it is seen when it is done.
    Dyn,
    /// What an expression with an error has; fits everything, so that one mistake is told once.
    Error,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Duration,
    Timestamp,
    /// The type of a type.
    Type,
    List(Arc<Type>),
    Map(Arc<(Type, Type)>),
    Struct(Arc<StructType>),
    /// A type of a library, with its parameters.
    Opaque(Arc<str>, Arc<[Type]>),
    /// Stands for any one type.
    Param(usize),
}

impl Type {
    /// `list(T)`
    pub fn list(of: Self) -> Self {
        Self::List(Arc::new(of))
    }

    /// `map(K, V)`
    pub fn map(key: Self, value: Self) -> Self {
        Self::Map(Arc::new((key, value)))
    }

    /// A type of a library without parameters.
    pub fn opaque(name: &str) -> Self {
        Self::Opaque(name.into(), Arc::new([]))
    }

    /// `optional_type(T)`
    pub fn optional(of: Self) -> Self {
        Self::Opaque(OPTIONAL.into(), Arc::new([of]))
    }

    /// An object.
    pub fn object(name: impl Into<String>, fields: BTreeMap<String, Self>) -> Self {
        let name = name.into();
        Self::Struct(Arc::new(StructType { name, fields }))
    }

    /// What an optional holds; the type itself if it is none.
    pub fn unwrap_optional(&self) -> (Self, bool) {
        match self {
            Self::Opaque(name, of) if **name == *OPTIONAL => (of[0].clone(), true),
            other => (other.clone(), false),
        }
    }

    /// Whether it may stand for anything.
    pub fn is_dyn(&self) -> bool {
        matches!(self, Self::Dyn)
    }
}

const OPTIONAL: &str = "optional_type";

impl PartialEq for Type {
    /// Whether they are the same type; an object is only the same as itself.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::List(a), Self::List(b)) => a == b,
            (Self::Map(a), Self::Map(b)) => a == b,
            (Self::Struct(a), Self::Struct(b)) => Arc::ptr_eq(a, b),
            (Self::Opaque(a, of_a), Self::Opaque(b, of_b)) => a == b && of_a == of_b,
            (Self::Param(a), Self::Param(b)) => a == b,
            (a, b) => std::mem::discriminant(a) == std::mem::discriminant(b),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self {
            Self::Dyn => "dyn",
            Self::Error => "!error!",
            Self::Null => "null",
            Self::Bool => "bool",
            Self::Int => "int",
            Self::Uint => "uint",
            Self::Double => "double",
            Self::String => "string",
            Self::Bytes => "bytes",
            Self::Duration => "duration",
            Self::Timestamp => "timestamp",
            Self::Type => "type",
            Self::List(of) => return write!(f, "list({of})"),
            Self::Map(of) => return write!(f, "map({}, {})", of.0, of.1),
            Self::Struct(of) => &of.name,
            Self::Opaque(name, of) if of.is_empty() => name,
            Self::Opaque(name, of) => {
                let of: Vec<String> = of.iter().map(ToString::to_string).collect();
                return write!(f, "{name}({})", of.join(", "));
            }
            Self::Param(number) => return write!(f, "_var{number}"),
        };
        f.write_str(word)
    }
}

/// What type parameters stand for, as far as is known.
#[derive(Clone, Debug, Default)]
pub struct Mapping {
    known: HashMap<usize, Type>,
    next: usize,
}

impl Mapping {
    /// A parameter that nothing is known about.
    pub fn fresh(&mut self) -> Type {
        self.next += 1;
        Type::Param(self.next - 1)
    }

    /// Whether the pairs fit. What is learned of parameters is kept if they do.
    pub fn assign<'a>(&mut self, pairs: impl IntoIterator<Item = (&'a Type, &'a Type)>) -> bool {
        let mut trial = self.clone();
        let fits = pairs.into_iter().all(|(a, b)| trial.fits(a, b));
        if fits {
            *self = trial;
        }
        fits
    }

    /// The type with known parameters put in; unknown ones become dyn if `to_dyn`.
    pub fn substitute(&self, of: &Type, to_dyn: bool) -> Type {
        match of {
            Type::Param(number) => match self.known.get(number) {
                Some(known) => self.substitute(known, to_dyn),
                None if to_dyn => Type::Dyn,
                None => of.clone(),
            },
            Type::List(of) => Type::list(self.substitute(of, to_dyn)),
            Type::Map(of) => Type::map(
                self.substitute(&of.0, to_dyn),
                self.substitute(&of.1, to_dyn),
            ),
            Type::Opaque(name, of) => {
                let of = of.iter().map(|t| self.substitute(t, to_dyn)).collect();
                Type::Opaque(name.clone(), of)
            }
            other => other.clone(),
        }
    }

    /// The type with `Param(i)` replaced by `with[i]`.
    pub fn instantiate(of: &Type, with: &[Type]) -> Type {
        match of {
            Type::Param(number) => with.get(*number).cloned().unwrap_or(Type::Dyn),
            Type::List(of) => Type::list(Self::instantiate(of, with)),
            Type::Map(of) => Type::map(
                Self::instantiate(&of.0, with),
                Self::instantiate(&of.1, with),
            ),
            Type::Opaque(name, of) => {
                let of = of.iter().map(|t| Self::instantiate(t, with)).collect();
                Type::Opaque(name.clone(), of)
            }
            other => other.clone(),
        }
    }

    fn fits(&mut self, a: &Type, b: &Type) -> bool {
        if let Type::Param(number) = b {
            let (valid, known) = self.stands_for(*number, a);
            if valid || known {
                return valid;
            }
        }
        if let Type::Param(number) = a {
            return self.stands_for(*number, b).0;
        }
        match (a, b) {
            (Type::Dyn | Type::Error, _) | (_, Type::Dyn | Type::Error) => true,
            (Type::Null, other) | (other, Type::Null) => matches!(
                other,
                Type::Null | Type::Opaque(..) | Type::Struct(_) | Type::Duration | Type::Timestamp
            ),
            (Type::List(a), Type::List(b)) => self.fits(a, b),
            (Type::Map(a), Type::Map(b)) => self.fits(&a.0, &b.0) && self.fits(&a.1, &b.1),
            (Type::Opaque(a, of_a), Type::Opaque(b, of_b)) => {
                a == b
                    && of_a.len() == of_b.len()
                    && of_a.iter().zip(&**of_b).all(|(a, b)| self.fits(a, b))
            }
            (a, b) => a == b,
        }
    }

    /// Whether the parameter can stand for the type, and whether something was known about it.
    fn stands_for(&mut self, number: usize, of: &Type) -> (bool, bool) {
        if matches!(of, Type::Param(other) if *other == number) {
            return (true, true);
        }
        if let Some(known) = self.known.get(&number).cloned() {
            if known == *of {
                return (true, true);
            }
            if !self.fits(of, &known) {
                return (false, true);
            }
            let general = if less_specific(of, &known) {
                of.clone()
            } else {
                known
            };
            if !self.occurs(number, &general) {
                self.known.insert(number, general);
            }
            return (true, true);
        }
        if self.occurs(number, of) {
            return (false, false);
        }
        self.known.insert(number, of.clone());
        (true, false)
    }

    /// Whether the parameter is a part of the type.
    fn occurs(&self, number: usize, within: &Type) -> bool {
        match within {
            Type::Param(other) => {
                *other == number
                    || self
                        .known
                        .get(other)
                        .is_some_and(|known| self.occurs(number, known))
            }
            Type::List(of) => self.occurs(number, of),
            Type::Map(of) => self.occurs(number, &of.0) || self.occurs(number, &of.1),
            Type::Opaque(_, of) => of.iter().any(|t| self.occurs(number, t)),
            _ => false,
        }
    }
}

/// Whether the first says at most as much as the second. Upstream: `isEqualOrLessSpecific`.
pub fn less_specific(a: &Type, b: &Type) -> bool {
    match (a, b) {
        (Type::Dyn | Type::Param(_), _) => true,
        (_, Type::Dyn | Type::Param(_)) => false,
        (Type::List(a), Type::List(b)) => less_specific(a, b),
        (Type::Map(a), Type::Map(b)) => less_specific(&a.0, &b.0) && less_specific(&a.1, &b.1),
        (Type::Opaque(a, of_a), Type::Opaque(b, of_b)) => {
            a == b
                && of_a.len() == of_b.len()
                && of_a.iter().zip(&**of_b).all(|(a, b)| less_specific(a, b))
        }
        (a, b) => a == b,
    }
}
