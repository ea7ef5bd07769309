//! The difference between two states of a table, as the operations that lead from one to the other.
//!
//! Upstream: the order of `syncProxyRules` in pkg/proxy/nftables, v1.36 (elements first out, chains last).

use crate::object::{Chain, Table};
use crate::rule::Statement;
use crate::transaction::{Operation, Transaction};
use crate::value::Type;

/// What [`diff`] found.
#[derive(Clone, Debug)]
pub struct Difference {
    /// Empty when there is nothing to do.
    pub transaction: Transaction,
    /// Chains that nothing uses any more. They are emptied at once but must be deleted later: before Linux 6.2 the
    /// kernel believes for a moment after the deletion of a map element that its chain is still in use.
    pub stale_chains: Vec<String>,
    /// A set's type or a chain's hook changed, so the whole table is made anew (still in one transaction).
    pub rebuilt: bool,
}

/// Computes what leads from the kernel's table (`None`: there is none) to the wanted one.
pub fn diff(kernel: Option<&Table>, wanted: &Table) -> Difference {
    match kernel {
        Some(kernel) if can_change(kernel, wanted) => change(kernel, wanted),
        _ => rebuild(kernel.is_some(), wanted),
    }
}

fn can_change(kernel: &Table, wanted: &Table) -> bool {
    let sets_fit = wanted
        .sets
        .iter()
        .all(|(name, set)| kernel.sets.get(name).is_none_or(|k| k.shape == set.shape));
    let chains_fit = wanted
        .chains
        .iter()
        .all(|(name, chain)| kernel.chains.get(name).is_none_or(|k| k.hook == chain.hook));
    sets_fit && chains_fit && no_rule_on_old_typeof_map(kernel, wanted)
}

/// A map that had to be declared by example (`typeof`) takes a `dnat` rule only in the transaction that makes the map:
/// nft 1.0.6 refuses a later one with "conflicting protocols specified". So whoever has such maps makes one for each
/// rule; where that did not help (a new version words the rule differently), the table is made anew.
fn no_rule_on_old_typeof_map(kernel: &Table, wanted: &Table) -> bool {
    let unchanged = |name: &String, chain: &Chain| {
        kernel
            .chains
            .get(name)
            .is_some_and(|k| k.rules == chain.rules)
    };
    let changed = wanted
        .chains
        .iter()
        .filter(|(name, chain)| !unchanged(name, chain));
    let mut statements = changed
        .flat_map(|(_, chain)| &chain.rules)
        .flat_map(|rule| rule.statements());
    statements.all(|statement| match statement {
        Statement::DnatMap { map, .. } => kernel
            .sets
            .get(&**map)
            .is_none_or(|set| !set.shape.key.contains(&Type::Number)),
        _ => true,
    })
}

/// The whole table in one transaction; what is there goes in the same.
pub(crate) fn rebuild(exists: bool, wanted: &Table) -> Difference {
    let mut transaction = Transaction::new(wanted.family, wanted.name.clone());
    transaction.operations.push(Operation::AddTable);
    if exists {
        transaction
            .operations
            .extend([Operation::DeleteTable, Operation::AddTable]);
    }
    let empty = Table::new(wanted.family, wanted.name.clone());
    transaction
        .operations
        .extend(change(&empty, wanted).transaction.operations);
    Difference {
        transaction,
        stale_chains: Vec::new(),
        rebuilt: exists,
    }
}

fn change(kernel: &Table, wanted: &Table) -> Difference {
    let mut transaction = Transaction::new(wanted.family, wanted.name.clone());
    let operations = &mut transaction.operations;
    add(kernel, wanted, operations);
    let stale_chains = remove(kernel, wanted, operations);
    Difference {
        transaction,
        stale_chains,
        rebuilt: false,
    }
}

/// What is wanted and not there: sets and chains first, then what is no longer right in them, then what is missing there.
fn add(kernel: &Table, wanted: &Table, operations: &mut Vec<Operation>) {
    for (name, set) in &wanted.sets {
        if !kernel.sets.contains_key(name) {
            operations.push(Operation::AddSet {
                set: name.clone(),
                shape: set.shape.clone(),
            });
        }
    }
    for (name, chain) in &wanted.chains {
        if !kernel.chains.contains_key(name) {
            operations.push(Operation::AddChain {
                chain: name.clone(),
                hook: chain.hook,
            });
        }
    }
    for (name, set) in &wanted.sets {
        let Some(old) = kernel.sets.get(name) else {
            continue;
        };
        let keys: Vec<_> = old
            .elements
            .iter()
            .filter(|(key, data)| set.elements.get(*key) != Some(data))
            .map(|(key, _)| key.clone())
            .collect();
        if !keys.is_empty() {
            operations.push(Operation::DeleteElements {
                set: name.clone(),
                keys,
            });
        }
    }
    for (name, chain) in &wanted.chains {
        let old = kernel.chains.get(name);
        if old.is_some_and(|old| old.rules == chain.rules) {
            continue;
        }
        if old.is_some_and(|old| !old.rules.is_empty()) {
            operations.push(Operation::FlushChain {
                chain: name.clone(),
            });
        }
        let add = |rule: &crate::Rule| Operation::AddRule {
            chain: name.clone(),
            rule: rule.clone(),
        };
        operations.extend(chain.rules.iter().map(add));
    }
    for (name, set) in &wanted.sets {
        let old = kernel.sets.get(name);
        let elements: Vec<_> = set
            .elements
            .iter()
            .filter(|(key, data)| old.is_none_or(|old| old.elements.get(*key) != Some(data)))
            .map(|(key, data)| (key.clone(), data.clone()))
            .collect();
        if !elements.is_empty() {
            operations.push(Operation::AddElements {
                set: name.clone(),
                elements,
            });
        }
    }
}

/// What is there and not wanted. The chains that go later: others may still lead to them.
fn remove(kernel: &Table, wanted: &Table, operations: &mut Vec<Operation>) -> Vec<String> {
    let mut stale_chains = Vec::new();
    for (name, chain) in &kernel.chains {
        if wanted.chains.contains_key(name) {
            continue;
        }
        if !chain.rules.is_empty() {
            operations.push(Operation::FlushChain {
                chain: name.clone(),
            });
        }
        if chain.hook.is_some() {
            operations.push(Operation::DeleteChain {
                chain: name.clone(),
            });
        } else {
            stale_chains.push(name.clone());
        }
    }
    for (name, set) in &kernel.sets {
        if wanted.sets.contains_key(name) {
            continue;
        }
        // A verdict map holds on to chains until the kernel has freed it: empty it first.
        if !set.elements.is_empty() {
            let keys = set.elements.keys().cloned().collect();
            operations.push(Operation::DeleteElements {
                set: name.clone(),
                keys,
            });
        }
        operations.push(Operation::DeleteSet { set: name.clone() });
    }
    stale_chains
}

#[cfg(test)]
mod tests;
