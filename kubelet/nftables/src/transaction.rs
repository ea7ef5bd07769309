//! A transaction: operations in order, and nft's text for them. The kernel applies all of it or nothing.

use std::fmt::Write;

use crate::Rule;
use crate::object::{Hook, SetShape};
use crate::value::{Data, Family, Key, Type, write_key};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Makes the table, or finds it there.
    AddTable,
    DeleteTable,
    AddChain {
        chain: String,
        hook: Option<Hook>,
    },
    FlushChain {
        chain: String,
    },
    DeleteChain {
        chain: String,
    },
    AddRule {
        chain: String,
        rule: Rule,
    },
    /// Of a table that is not ours: rules of ours are known by their chains.
    DeleteRule {
        chain: String,
        handle: u64,
    },
    AddSet {
        set: String,
        shape: SetShape,
    },
    DeleteSet {
        set: String,
    },
    AddElements {
        set: String,
        elements: Vec<(Key, Data)>,
    },
    DeleteElements {
        set: String,
        keys: Vec<Key>,
    },
}

/// Operations on one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    pub family: Family,
    pub table: String,
    pub operations: Vec<Operation>,
}

/// The bound of a dynamic set; upstream leaves nft's own.
const DYNAMIC_SET_SIZE: u32 = 65_535;

impl Transaction {
    pub fn new(family: Family, table: impl Into<String>) -> Self {
        Self {
            family,
            table: table.into(),
            operations: Vec::new(),
        }
    }

    /// One that removes the table, there or not.
    pub fn delete_table(family: Family, table: impl Into<String>) -> Self {
        let operations = vec![Operation::AddTable, Operation::DeleteTable];
        Self {
            family,
            table: table.into(),
            operations,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// What `nft -f -` is given.
    pub fn text(&self) -> String {
        let mut out = String::with_capacity(64 * self.operations.len());
        let at = format!("{} {}", self.family, self.table);
        for operation in &self.operations {
            self.write(operation, &at, &mut out)
                .expect("writing to a string cannot fail");
        }
        out
    }

    fn write(&self, operation: &Operation, at: &str, out: &mut String) -> std::fmt::Result {
        match operation {
            Operation::AddTable => writeln!(out, "add table {at}"),
            Operation::DeleteTable => writeln!(out, "delete table {at}"),
            Operation::AddChain { chain, hook: None } => writeln!(out, "add chain {at} {chain}"),
            Operation::AddChain {
                chain,
                hook: Some(hook),
            } => writeln!(
                out,
                "add chain {at} {chain} {{ type {} hook {} priority {} ; }}",
                hook.kind.as_str(),
                hook.point.as_str(),
                hook.priority
            ),
            Operation::FlushChain { chain } => writeln!(out, "flush chain {at} {chain}"),
            Operation::DeleteChain { chain } => writeln!(out, "delete chain {at} {chain}"),
            Operation::AddRule { chain, rule } => {
                writeln!(
                    out,
                    "add rule {at} {chain} {} comment \"{}\"",
                    rule.text(self.family),
                    rule.comment()
                )
            }
            Operation::DeleteRule { chain, handle } => {
                writeln!(out, "delete rule {at} {chain} handle {handle}")
            }
            Operation::AddSet { set, shape } => {
                write_shape(at, set, shape, out);
                Ok(())
            }
            Operation::DeleteSet { set } => writeln!(out, "delete set {at} {set}"),
            Operation::AddElements { set, elements } => {
                write!(out, "add element {at} {set} {{ ")?;
                for (i, (key, data)) in elements.iter().enumerate() {
                    out.push_str(if i == 0 { "" } else { ", " });
                    write_key(key, out);
                    match data {
                        Data::None => {}
                        Data::Values(values) => {
                            out.push_str(" : ");
                            write_key(values, out);
                        }
                        Data::Verdict(verdict) => write!(out, " : {verdict}")?,
                    }
                }
                out.push_str(" }\n");
                Ok(())
            }
            Operation::DeleteElements { set, keys } => {
                write!(out, "delete element {at} {set} {{ ")?;
                for (i, key) in keys.iter().enumerate() {
                    out.push_str(if i == 0 { "" } else { ", " });
                    write_key(key, out);
                }
                out.push_str(" }\n");
                Ok(())
            }
        }
    }
}

fn write_shape(at: &str, set: &str, shape: &SetShape, out: &mut String) {
    let word = if shape.data.is_some() { "map" } else { "set" };
    // A name for every type but numgen's; there, and only there, nft must be told by example.
    let by_example = shape.key.contains(&Type::Number);
    let join = |types: &[Type]| {
        let names: Vec<_> = types
            .iter()
            .map(|t| if by_example { t.sample() } else { t.name() })
            .collect();
        names.join(" . ")
    };
    let mut body = format!(
        "{} {}",
        if by_example { "typeof" } else { "type" },
        join(&shape.key)
    );
    match shape.data.as_deref() {
        None => {}
        Some([]) => body.push_str(" : verdict"),
        Some(types) => body.push_str(&format!(" : {}", join(types))),
    }
    body.push_str(" ; ");
    if shape.interval {
        body.push_str("flags interval ; ");
    }
    if let Some(timeout) = shape.timeout {
        body.push_str(&format!(
            "flags dynamic,timeout ; timeout {}s ; size {DYNAMIC_SET_SIZE} ; ",
            timeout.as_secs()
        ));
    }
    out.push_str(&format!("add {word} {at} {set} {{ {body}}}\n"));
}
