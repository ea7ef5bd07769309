//! Of a table that somebody else made: its chains, and which rules lead from one to another.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use crate::NftError;
use crate::listing::{entries, required};

/// A rule that leads to another chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jump {
    /// Where the rule stands.
    pub chain: String,
    /// What the kernel knows the rule by.
    pub handle: u64,
    /// Where it leads.
    pub target: String,
}

/// What there is in a table, as far as it can be told without understanding its rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outline {
    /// By name: whether packets come there by themselves (a base chain).
    pub chains: BTreeMap<String, bool>,
    /// In the order of the listing.
    pub jumps: Vec<Jump>,
}

/// Reads what `nft --json list table` prints.
///
/// # Errors
/// It is no listing.
pub(crate) fn read(json: &str) -> Result<Outline, NftError> {
    let mut outline = Outline::default();
    for entry in entries(json)? {
        if let Some(chain) = entry.get("chain") {
            let name = required(chain, "name")?.to_owned();
            outline.chains.insert(name, chain.get("hook").is_some());
        } else if let Some(rule) = entry.get("rule") {
            let statements = rule.get("expr").and_then(Json::as_array);
            let targets = statements.into_iter().flatten().filter_map(target);
            let handle = rule.get("handle").and_then(Json::as_u64);
            for target in targets {
                outline.jumps.push(Jump {
                    chain: required(rule, "chain")?.to_owned(),
                    handle: handle
                        .ok_or_else(|| NftError::Parse(format!("no \"handle\" in {rule}")))?,
                    target,
                });
            }
        }
    }
    Ok(outline)
}

fn target(statement: &Json) -> Option<String> {
    let target = |word: &str| statement.pointer(&format!("/{word}/target"))?.as_str();
    target("jump").or_else(|| target("goto")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leads_where() {
        let json = r#"{"nftables": [
            {"metainfo": {"version": "1.0.6"}}, {"table": {"family": "ip", "name": "nat", "handle": 1}},
            {"chain": {"family": "ip", "table": "nat", "name": "PREROUTING", "handle": 10, "type": "nat", "hook": "prerouting", "prio": -100, "policy": "accept"}},
            {"chain": {"family": "ip", "table": "nat", "name": "X", "handle": 9}},
            {"rule": {"family": "ip", "table": "nat", "chain": "PREROUTING", "handle": 11, "expr": [{"xt": {"type": "match", "name": "comment"}}, {"counter": {"packets": 0, "bytes": 0}}, {"jump": {"target": "X"}}]}},
            {"rule": {"family": "ip", "table": "nat", "chain": "X", "handle": 12, "expr": [{"goto": {"target": "Y"}}]}},
            {"rule": {"family": "ip", "table": "nat", "chain": "X", "handle": 13, "expr": [{"xt": null}, {"return": null}]}}]}"#;
        let jump = |chain: &str, handle, target: &str| Jump {
            chain: chain.to_owned(),
            handle,
            target: target.to_owned(),
        };
        let outline = read(json).unwrap();
        let chains = [("PREROUTING".to_owned(), true), ("X".to_owned(), false)];
        assert_eq!(outline.chains, chains.into());
        assert_eq!(
            outline.jumps,
            [jump("PREROUTING", 11, "X"), jump("X", 12, "Y")]
        );
        assert!(read("{}").is_err());
    }
}
