//! [`FakeNft`]: a kernel of nothing but tables, as strict as the real one about what a transaction may do.

use std::collections::BTreeMap;
use std::sync::Mutex;

use async_trait::async_trait;

use crate::object::{Chain, Set};
use crate::rule::Statement;
use crate::transaction::{Operation, Transaction};
use crate::value::{Data, Key, Type};
use crate::{Family, Nft, NftError, Outline, Table};

/// Tables in memory.
#[derive(Debug, Default)]
pub struct FakeNft {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    tables: BTreeMap<(Family, String), Table>,
    applied: Vec<Transaction>,
    refuse_next: bool,
}

impl FakeNft {
    pub fn new() -> Self {
        Self::default()
    }

    /// The table as it stands.
    pub fn table(&self, family: Family, name: &str) -> Option<Table> {
        self.lock().tables.get(&(family, name.to_owned())).cloned()
    }

    /// Every transaction that was applied, oldest first.
    pub fn applied(&self) -> Vec<Transaction> {
        self.lock().applied.clone()
    }

    /// Makes the next transaction fail, as if somebody else had changed the table.
    pub fn refuse_next(&self) {
        self.lock().refuse_next = true;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the lock panics")
    }
}

#[async_trait]
impl Nft for FakeNft {
    async fn apply(&self, transaction: &Transaction) -> Result<(), NftError> {
        if transaction.is_empty() {
            return Ok(());
        }
        let refuse = |stderr: String| NftError::Refused {
            stderr,
            transaction: transaction.text(),
        };
        let mut state = self.lock();
        if std::mem::take(&mut state.refuse_next) {
            return Err(refuse("refused as told".into()));
        }
        let key = (transaction.family, transaction.table.clone());
        let mut table = state.tables.get(&key).cloned();
        refuse_rules_on_old_typeof_maps(table.as_ref(), transaction).map_err(refuse)?;
        for operation in &transaction.operations {
            apply(&mut table, transaction, operation).map_err(refuse)?;
        }
        if let Some(table) = &table {
            let dangling = table.dangling();
            if !dangling.is_empty() {
                return Err(refuse(format!("no such file or directory: {dangling:?}")));
            }
        }
        match table {
            Some(table) => state.tables.insert(key, table),
            None => state.tables.remove(&key),
        };
        state.applied.push(transaction.clone());
        Ok(())
    }

    async fn list(&self, family: Family, table: &str) -> Result<Option<Table>, NftError> {
        Ok(self.table(family, table))
    }

    async fn outline(&self, _family: Family, _table: &str) -> Result<Option<Outline>, NftError> {
        Ok(None)
    }
}

/// As nft 1.0.6 does: see `diff.rs`.
fn refuse_rules_on_old_typeof_maps(
    table: Option<&Table>,
    transaction: &Transaction,
) -> Result<(), String> {
    if transaction.operations.contains(&Operation::DeleteTable) {
        return Ok(());
    }
    for operation in &transaction.operations {
        let Operation::AddRule { rule, .. } = operation else {
            continue;
        };
        for statement in rule.statements() {
            if let Statement::DnatMap { map, .. } = statement
                && let Some(set) = table.and_then(|table| table.sets.get(&**map))
                && set.shape.key.contains(&Type::Number)
            {
                return Err(format!("conflicting protocols specified: @{map}"));
            }
        }
    }
    Ok(())
}

fn missing(what: &str, name: &str) -> String {
    format!("{what} {name}: no such file or directory")
}

fn apply(
    slot: &mut Option<Table>,
    transaction: &Transaction,
    operation: &Operation,
) -> Result<(), String> {
    if let Operation::AddTable = operation {
        slot.get_or_insert_with(|| Table::new(transaction.family, transaction.table.clone()));
        return Ok(());
    }
    if let Operation::DeleteTable = operation {
        return slot
            .take()
            .map(drop)
            .ok_or_else(|| missing("table", &transaction.table));
    }
    let table = slot
        .as_mut()
        .ok_or_else(|| missing("table", &transaction.table))?;
    match operation {
        Operation::AddTable | Operation::DeleteTable => {}
        Operation::AddChain { chain, hook } => match table.chains.get(chain) {
            Some(existing) if existing.hook != *hook => {
                return Err(format!("chain {chain} exists with another hook"));
            }
            Some(_) => {}
            None => {
                table.chains.insert(
                    chain.clone(),
                    Chain {
                        hook: *hook,
                        rules: Vec::new(),
                    },
                );
            }
        },
        Operation::FlushChain { chain } => {
            table
                .chains
                .get_mut(chain)
                .ok_or_else(|| missing("chain", chain))?
                .rules
                .clear();
        }
        Operation::DeleteChain { chain } => {
            table
                .chains
                .remove(chain)
                .ok_or_else(|| missing("chain", chain))?;
        }
        Operation::AddRule { chain, rule } => {
            table
                .chains
                .get_mut(chain)
                .ok_or_else(|| missing("chain", chain))?
                .rules
                .push(rule.clone());
        }
        // Nobody else has a table here.
        Operation::DeleteRule { chain, handle } => {
            return Err(missing("rule", &format!("{chain} handle {handle}")));
        }
        Operation::AddSet { set, shape } => match table.sets.get(set) {
            Some(existing) if existing.shape != *shape => {
                return Err(format!("set {set} exists with another type"));
            }
            Some(_) => {}
            None => {
                table.sets.insert(
                    set.clone(),
                    Set {
                        shape: shape.clone(),
                        elements: BTreeMap::new(),
                    },
                );
            }
        },
        Operation::DeleteSet { set } => {
            table.sets.remove(set).ok_or_else(|| missing("set", set))?;
        }
        Operation::AddElements { set, elements } => {
            let held = table.sets.get_mut(set).ok_or_else(|| missing("set", set))?;
            for (key, data) in elements {
                add_element(set, held, key, data)?;
            }
        }
        Operation::DeleteElements { set, keys } => {
            let held = table.sets.get_mut(set).ok_or_else(|| missing("set", set))?;
            for key in keys {
                held.elements
                    .remove(key)
                    .ok_or_else(|| format!("set {set}: {key:?}: no such file or directory"))?;
            }
        }
    }
    Ok(())
}

fn add_element(name: &str, held: &mut Set, key: &Key, data: &Data) -> Result<(), String> {
    if key.len() != held.shape.key.len() {
        return Err(format!("set {name}: key {key:?} does not fit its type"));
    }
    let fits = match (data, held.shape.data.as_deref()) {
        (Data::None, None) | (Data::Verdict(_), Some([])) => true,
        (Data::Values(values), Some(types)) => values.len() == types.len() && !types.is_empty(),
        _ => false,
    };
    if !fits {
        return Err(format!("set {name}: data {data:?} does not fit its type"));
    }
    match held.elements.get(key) {
        Some(existing) if existing != data => {
            return Err(format!("set {name}: {key:?}: file exists"));
        }
        _ => held.elements.insert(key.clone(), data.clone()),
    };
    Ok(())
}
