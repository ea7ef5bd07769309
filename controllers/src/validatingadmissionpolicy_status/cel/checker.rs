//! Finds the type of an expression, and what is wrong with it.
//!
//! Upstream: cel-go's `checker/checker.go`; macros are checked as they stand, with the errors their expansions would have.

use std::collections::HashMap;

use super::functions::{Overload, overloads};
use super::syntax::{Expr, Kind, Literal, Offset};
use super::types::{Mapping, Type, less_specific};

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    /// Where.
    pub at: Offset,
    /// Upstream's words.
    pub message: String,
}

/// Names of types, which are values too.
const TYPE_NAMES: &[&str] = &[
    "bool",
    "bytes",
    "double",
    "dyn",
    "duration",
    "int",
    "list",
    "map",
    "null_type",
    "string",
    "timestamp",
    "type",
    "uint",
    "optional_type",
    "net.IP",
    "net.CIDR",
];

/// The type of an expression and the issues found, by their place. `variables` may have dots in their names.
pub fn check(expr: &Expr, variables: &HashMap<String, Type>) -> (Type, Vec<Issue>) {
    let mut checker = Checker {
        variables,
        scopes: Vec::new(),
        mapping: Mapping::default(),
        issues: Vec::new(),
        mixed: Vec::new(),
        within_format: 0,
    };
    let found = checker.check(expr);
    let found = checker.mapping.substitute(&found, true);
    if checker.issues.is_empty() {
        checker.issues = checker.mixed;
    }
    checker.issues.sort_by_key(|issue| issue.at);
    (found, checker.issues)
}

struct Checker<'a> {
    variables: &'a HashMap<String, Type>,
    /// Variables of macros, the innermost last.
    scopes: Vec<(String, Type)>,
    mapping: Mapping,
    issues: Vec<Issue>,
    /// Literals whose elements have different types; told only where nothing else is wrong.
    mixed: Vec<Issue>,
    /// Within so many calls of `format`, whose lists may be mixed.
    within_format: usize,
}

impl Checker<'_> {
    fn issue(&mut self, at: Offset, message: String) -> Type {
        self.issues.push(Issue { at, message });
        Type::Error
    }

    fn check(&mut self, expr: &Expr) -> Type {
        let at = expr.at;
        match &expr.kind {
            Kind::Literal(literal) => literal_type(*literal),
            Kind::Ident(name) => match self.variable(name) {
                Some(found) => found,
                None => self.undeclared(at, name),
            },
            Kind::Select {
                operand,
                field,
                optional,
            } => {
                let whole = expr.qualified_name();
                if let Some(found) = whole.and_then(|name| self.variable(&name)) {
                    return found;
                }
                self.select(at, operand, field, *optional)
            }
            Kind::Call {
                function,
                target: None,
                args,
            } => self.call(at, function, args),
            Kind::Call {
                function,
                target: Some(target),
                args,
            } => self.member_call(at, function, target, args),
            Kind::List(elements) => {
                let mut of = None;
                for (optional, element) in elements {
                    let found = self.check(element);
                    let found = self.unwrap(element.at, *optional, found);
                    of = Some(self.join(element.at, of, found));
                }
                Type::list(of.unwrap_or_else(|| self.mapping.fresh()))
            }
            Kind::Map(entries) => {
                let (mut key_type, mut value_type) = (None, None);
                for (optional, key, value) in entries {
                    let found = self.check(key);
                    key_type = Some(self.join(key.at, key_type, found));
                    let found = self.check(value);
                    let found = self.unwrap(value.at, *optional, found);
                    value_type = Some(self.join(value.at, value_type, found));
                }
                let key = key_type.unwrap_or_else(|| self.mapping.fresh());
                let value = value_type.unwrap_or_else(|| self.mapping.fresh());
                Type::map(key, value)
            }
            // Types that can be made are of mutations; the API server has checked them.
            Kind::Struct { fields, .. } => {
                for (_, _, value) in fields {
                    self.check(value);
                }
                Type::Dyn
            }
        }
    }

    fn variable(&self, name: &str) -> Option<Type> {
        let global = name.strip_prefix('.');
        let name = global.unwrap_or(name);
        let scoped = self.scopes.iter().rev().find(|(n, _)| n == name);
        if let (Some((_, found)), None) = (scoped, global) {
            return Some(found.clone());
        }
        let is_type = || TYPE_NAMES.contains(&name).then_some(Type::Type);
        self.variables.get(name).cloned().or_else(is_type)
    }

    fn undeclared(&mut self, at: Offset, name: &str) -> Type {
        self.issue(
            at,
            format!("undeclared reference to '{name}' (in container '')"),
        )
    }

    fn mismatch(&mut self, at: Offset, expected: &Type, found: &Type) -> Type {
        self.issue(
            at,
            format!("expected type '{expected}' but found '{found}'"),
        )
    }

    fn select(&mut self, at: Offset, operand: &Expr, field: &str, optional: bool) -> Type {
        let found = self.check(operand);
        let found = self.mapping.substitute(&found, false);
        let (target, was_optional) = found.unwrap_optional();
        let result = match &target {
            Type::Map(of) => of.1.clone(),
            Type::Struct(of) => match of.fields.get(field) {
                Some(found) => found.clone(),
                None => self.issue(at, format!("undefined field '{field}'")),
            },
            Type::Param(_) => {
                self.mapping.assign([(&Type::Dyn, &target)]);
                Type::Dyn
            }
            Type::Dyn | Type::Error => Type::Dyn,
            other => {
                let message = format!("type '{other}' does not support field selection");
                self.issue(at, message);
                Type::Dyn
            }
        };
        if was_optional || optional {
            return Type::optional(result);
        }
        result
    }

    fn call(&mut self, at: Offset, function: &str, args: &[Expr]) -> Type {
        match (function, args) {
            ("has", [arg]) => {
                if let Kind::Select { operand, field, .. } = &arg.kind {
                    self.select(at, operand, field, false);
                } else {
                    self.check(arg);
                }
                return Type::Bool;
            }
            ("_&&_" | "_||_", args) => {
                let mut result = Type::Bool;
                for arg in args {
                    let found = self.check(arg);
                    if !self.mapping.assign([(&found, &Type::Bool)]) {
                        result = self.mismatch(arg.at, &Type::Bool, &found);
                    }
                }
                return result;
            }
            _ => {}
        }
        let types: Vec<Type> = args.iter().map(|arg| self.check(arg)).collect();
        self.resolve(at, function, types, false)
    }

    fn member_call(&mut self, at: Offset, function: &str, target: &Expr, args: &[Expr]) -> Type {
        if let Some(result) = self.macro_call(at, function, target, args) {
            return result;
        }
        let is_format = usize::from(function == "format");
        self.within_format += is_format;
        let types: Vec<Type> = args.iter().map(|arg| self.check(arg)).collect();
        self.within_format -= is_format;
        // `a.b.c()` is the function `a.b.c` if there is one.
        if let Some(prefix) = target.qualified_name() {
            let name = format!("{prefix}.{function}");
            if overloads(&name).is_some() {
                return self.resolve(at, &name, types, false);
            }
            // A function of a library that is not known here.
            if self.variable(&prefix).is_none() && LIBRARIES.contains(&prefix.as_str()) {
                return Type::Dyn;
            }
        }
        let mut all = vec![self.check(target)];
        all.extend(types);
        self.resolve(at, function, all, true)
    }

    fn resolve(&mut self, at: Offset, function: &str, types: Vec<Type>, member: bool) -> Type {
        // Whether it exists, the API server has found out.
        let Some(overloads) = overloads(function) else {
            return Type::Dyn;
        };
        let mut result: Option<Type> = None;
        for overload in overloads.iter().filter(|o| o.member == member) {
            let Some(found) = self.apply(overload, &types) else {
                continue;
            };
            result = Some(match result {
                None => found,
                Some(before) if before.is_dyn() || before == found => before,
                Some(_) => Type::Dyn,
            });
        }
        if let Some(result) = result {
            return result;
        }
        let types: Vec<Type> = types
            .iter()
            .map(|t| self.mapping.substitute(t, true))
            .collect();
        let (target, args) = match types.split_first() {
            Some((target, args)) if member => (format!("{target}."), args),
            _ => (String::new(), types.as_slice()),
        };
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        let signature = format!("{target}({})", args.join(", "));
        self.issue(
            at,
            format!("found no matching overload for '{function}' applied to '{signature}'"),
        )
    }

    /// What the function gives, if it can be called so.
    fn apply(&mut self, overload: &Overload, types: &[Type]) -> Option<Type> {
        if overload.args.len() != types.len() {
            return None;
        }
        let fresh: Vec<Type> = (0..overload.params).map(|_| self.mapping.fresh()).collect();
        let wanted: Vec<Type> = overload
            .args
            .iter()
            .map(|arg| Mapping::instantiate(arg, &fresh))
            .collect();
        if !self.mapping.assign(types.iter().zip(&wanted)) {
            return None;
        }
        let result = Mapping::instantiate(&overload.result, &fresh);
        Some(self.mapping.substitute(&result, false))
    }

    /// What the variables of a macro over a range are: one, or index and element, or key and value.
    fn iterate(&mut self, range: &Expr, count: usize) -> Vec<Type> {
        let found = self.check(range);
        let found = self.mapping.substitute(&found, false);
        match &found {
            Type::List(of) if count == 1 => vec![(**of).clone()],
            Type::List(of) => vec![Type::Int, (**of).clone()],
            Type::Map(of) if count == 1 => vec![of.0.clone()],
            Type::Map(of) => vec![of.0.clone(), of.1.clone()],
            Type::Dyn | Type::Error | Type::Param(_) => {
                self.mapping.assign([(&Type::Dyn, &found)]);
                vec![Type::Dyn; count]
            }
            other => {
                let message = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.issue(range.at, message);
                vec![Type::Error; count]
            }
        }
    }

    /// Checks an expression that knows more variables.
    fn within(&mut self, names: &[&str], types: &[Type], expr: &Expr) -> Type {
        let before = self.scopes.len();
        let more = names
            .iter()
            .zip(types)
            .map(|(n, t)| ((*n).to_owned(), t.clone()));
        self.scopes.extend(more);
        let found = self.check(expr);
        self.scopes.truncate(before);
        found
    }

    fn condition(&mut self, at: Offset, found: &Type, ternary: Option<&Type>) {
        if self.mapping.assign([(found, &Type::Bool)]) {
            return;
        }
        // What the expansion of the macro is told.
        match ternary {
            None => self.mismatch(at, &Type::Bool, found),
            Some(accumulated) => {
                let accumulated = self.mapping.substitute(accumulated, true);
                let message = format!(
                    "found no matching overload for '_?_:_' applied to '({found}, {accumulated}, {accumulated})'"
                );
                self.issue(at, message)
            }
        };
    }

    /// The result of a macro; `None` if it is none.
    fn macro_call(
        &mut self,
        at: Offset,
        function: &str,
        target: &Expr,
        args: &[Expr],
    ) -> Option<Type> {
        let names: Vec<&str> = args
            .iter()
            .map_while(|arg| match &arg.kind {
                Kind::Ident(name) if !name.starts_with('.') => Some(name.as_str()),
                _ => None,
            })
            .collect();
        let name_count = |wanted: usize| names.len() >= wanted;
        match (function, args.len()) {
            ("all" | "exists", count @ (2 | 3)) if name_count(count - 1) => {
                let types = self.iterate(target, count - 1);
                let last = &args[count - 1];
                let found = self.within(&names[..count - 1], &types, last);
                self.condition(last.at, &found, None);
                Some(Type::Bool)
            }
            ("exists_one" | "existsOne", count @ (2 | 3)) if name_count(count - 1) => {
                let types = self.iterate(target, count - 1);
                let found = self.within(&names[..count - 1], &types, &args[count - 1]);
                self.condition(at, &found, Some(&Type::Int));
                Some(Type::Bool)
            }
            ("filter", 2) if name_count(1) => {
                let types = self.iterate(target, 1);
                let found = self.within(&names[..1], &types, &args[1]);
                let result = Type::list(types[0].clone());
                self.condition(at, &found, Some(&result));
                Some(result)
            }
            ("map", count @ (2 | 3)) if name_count(1) => {
                let types = self.iterate(target, 1);
                let guard = (count == 3).then(|| self.within(&names[..1], &types, &args[1]));
                let result = Type::list(self.within(&names[..1], &types, &args[count - 1]));
                if let Some(guard) = guard {
                    self.condition(at, &guard, Some(&result));
                }
                Some(result)
            }
            ("transformList" | "transformMap", count @ (3 | 4)) if name_count(2) => {
                let types = self.iterate(target, 2);
                let guard = (count == 4).then(|| self.within(&names[..2], &types, &args[2]));
                let value = self.within(&names[..2], &types, &args[count - 1]);
                let result = match function {
                    "transformList" => Type::list(value),
                    _ => Type::map(types[0].clone(), value),
                };
                if let Some(guard) = guard {
                    self.condition(at, &guard, Some(&result));
                }
                Some(result)
            }
            ("transformMapEntry", count @ (3 | 4)) if name_count(2) => {
                let types = self.iterate(target, 2);
                let guard = (count == 4).then(|| self.within(&names[..2], &types, &args[2]));
                let result = self.within(&names[..2], &types, &args[count - 1]);
                if let Some(guard) = guard {
                    self.condition(at, &guard, Some(&result));
                }
                Some(result)
            }
            ("optMap" | "optFlatMap", 2) if name_count(1) => {
                let found = self.check(target);
                let found = self.mapping.substitute(&found, false);
                let (of, is_optional) = found.unwrap_optional();
                let of = if is_optional || of.is_dyn() {
                    of
                } else {
                    Type::Dyn
                };
                let result = self.within(&names[..1], &[of], &args[1]);
                Some(match function {
                    "optMap" => Type::optional(result),
                    _ => result,
                })
            }
            _ => None,
        }
    }

    fn unwrap(&mut self, at: Offset, optional: bool, found: Type) -> Type {
        if !optional {
            return found;
        }
        let (of, was_optional) = found.unwrap_optional();
        if !was_optional && !of.is_dyn() {
            self.mismatch(at, &Type::optional(of.clone()), &of);
        }
        of
    }

    /// The type of elements that stand in one list. Upstream: `joinTypes`, `ValidateHomogeneousAggregateLiterals`.
    // DIFFERS: upstream tells of literals that mix dyn with another type, too.
    fn join(&mut self, at: Offset, before: Option<Type>, found: Type) -> Type {
        let Some(before) = before else {
            return found;
        };
        if !self.mapping.assign([(&before, &found)]) {
            if self.within_format == 0 {
                let message = format!("expected type '{before}' but found '{found}'");
                self.mixed.push(Issue { at, message });
            }
            return Type::Dyn;
        }
        if less_specific(&before, &found) {
            before
        } else {
            found
        }
    }
}

/// First words of functions with dots in their names.
const LIBRARIES: &[&str] = &[
    "optional",
    "sets",
    "strings",
    "lists",
    "ip",
    "cidr",
    "format",
    "math",
    "base64",
    "jsonpatch",
    "cel",
];

fn literal_type(literal: Literal) -> Type {
    match literal {
        Literal::Null => Type::Null,
        Literal::Bool => Type::Bool,
        Literal::Int => Type::Int,
        Literal::Uint => Type::Uint,
        Literal::Double => Type::Double,
        Literal::String => Type::String,
        Literal::Bytes => Type::Bytes,
    }
}
