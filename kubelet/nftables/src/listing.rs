//! Reading what `nft --json list table` prints.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::Value as Json;

use crate::object::{Chain, Hook, HookKind, HookPoint, Set, SetShape, Table};
use crate::value::{Data, Family, Key, Protocol, Type, Value, Verdict};
use crate::{NftError, Rule};

/// The names of all tables of a family.
pub(crate) fn table_names(family: Family, json: &str) -> Result<Vec<String>, NftError> {
    Ok(entries(json)?
        .iter()
        .filter_map(|entry| entry.get("table"))
        .filter(|table| text(table, "family") == Some(family.as_str()))
        .filter_map(|table| text(table, "name").map(str::to_owned))
        .collect())
}

/// A whole table. A rule that is not ours, or a chain or set of a type that we never make, is kept as something
/// that equals nothing wanted, so that the difference replaces it.
pub(crate) fn table(family: Family, name: &str, json: &str) -> Result<Table, NftError> {
    let mut table = Table::new(family, name);
    for entry in entries(json)? {
        if let Some(chain) = entry.get("chain") {
            let hook = hook(chain)?;
            table.chains.insert(
                required(chain, "name")?.to_owned(),
                Chain {
                    hook,
                    rules: Vec::new(),
                },
            );
        } else if let Some(rule) = entry.get("rule") {
            let fingerprint = text(rule, "comment").map_or(0, Rule::fingerprint_of_comment);
            table
                .chain(required(rule, "chain")?)
                .rules
                .push(Rule::adopted(fingerprint));
        } else if let Some(set) = entry.get("set").or_else(|| entry.get("map")) {
            table
                .sets
                .insert(required(set, "name")?.to_owned(), self::set(set)?);
        }
    }
    Ok(table)
}

pub(crate) fn entries(json: &str) -> Result<Vec<Json>, NftError> {
    let mut whole: Json = serde_json::from_str(json).map_err(|e| NftError::Parse(e.to_string()))?;
    match whole.get_mut("nftables").map(Json::take) {
        Some(Json::Array(entries)) => Ok(entries),
        _ => Err(NftError::Parse("no list \"nftables\"".into())),
    }
}

fn text<'a>(object: &'a Json, field: &str) -> Option<&'a str> {
    object.get(field).and_then(Json::as_str)
}

pub(crate) fn required<'a>(object: &'a Json, field: &str) -> Result<&'a str, NftError> {
    text(object, field).ok_or_else(|| NftError::Parse(format!("no {field:?} in {object}")))
}

fn hook(chain: &Json) -> Result<Option<Hook>, NftError> {
    let Some(point) = text(chain, "hook") else {
        return Ok(None);
    };
    let kind = match required(chain, "type")? {
        "filter" => HookKind::Filter,
        "nat" => HookKind::Nat,
        other => return Err(NftError::Parse(format!("chain type {other:?}"))),
    };
    let point =
        HookPoint::from_name(point).ok_or_else(|| NftError::Parse(format!("hook {point:?}")))?;
    let priority = chain.get("prio").and_then(Json::as_i64).unwrap_or_default();
    Ok(Some(Hook {
        kind,
        point,
        priority: i32::try_from(priority).unwrap_or_default(),
    }))
}

fn set(set: &Json) -> Result<Set, NftError> {
    let key = types(set.get("type").unwrap_or(&Json::Null))?;
    let data = match set.get("map") {
        None => None,
        Some(Json::String(verdict)) if verdict == "verdict" => Some(Vec::new()),
        Some(map) => Some(types(map)?),
    };
    let flags: Vec<_> = set
        .get("flags")
        .map(list)
        .unwrap_or_default()
        .iter()
        .filter_map(|f| f.as_str())
        .collect();
    let timeout = set
        .get("timeout")
        .and_then(Json::as_u64)
        .map(Duration::from_secs);
    let interval = flags.contains(&"interval");
    let mut elements = BTreeMap::new();
    // What rules put there is the kernel's own.
    if timeout.is_none() {
        for element in set
            .get("elem")
            .and_then(Json::as_array)
            .into_iter()
            .flatten()
        {
            let (k, d) = match (&data, element) {
                (None, key_only) => (self::key(key_only, &key)?, Data::None),
                (Some(data), Json::Array(pair)) if pair.len() == 2 => {
                    (self::key(&pair[0], &key)?, self::data(&pair[1], data)?)
                }
                _ => return Err(NftError::Parse(format!("map element {element}"))),
            };
            elements.insert(k, d);
        }
    }
    Ok(Set {
        shape: SetShape {
            key,
            data,
            interval,
            timeout,
        },
        elements,
    })
}

/// One thing or a list of them, as nft writes it.
fn list(json: &Json) -> Vec<&Json> {
    match json {
        Json::Array(list) => list.iter().collect(),
        one => vec![one],
    }
}

fn types(json: &Json) -> Result<Vec<Type>, NftError> {
    let mut types = Vec::new();
    for name in list(json) {
        for name in name.as_str().unwrap_or_default().split(" . ") {
            types.push(
                Type::from_name(name).ok_or_else(|| NftError::Parse(format!("type {json}")))?,
            );
        }
    }
    Ok(types)
}

fn key(json: &Json, types: &[Type]) -> Result<Key, NftError> {
    let json = json.pointer("/elem/val").unwrap_or(json);
    let parts = json.get("concat").map_or_else(|| vec![json], list);
    if parts.len() != types.len() {
        return Err(NftError::Parse(format!(
            "key {json}: {} parts expected",
            types.len()
        )));
    }
    parts
        .into_iter()
        .zip(types)
        .map(|(part, kind)| value(part, *kind))
        .collect()
}

fn data(json: &Json, types: &[Type]) -> Result<Data, NftError> {
    if !types.is_empty() {
        return key(json, types).map(Data::Values);
    }
    let target = |word: &str| {
        json.pointer(&format!("/{word}/target"))
            .and_then(Json::as_str)
            .map(Arc::from)
    };
    let verdict = if let Some(chain) = target("goto") {
        Verdict::Goto(chain)
    } else if let Some(chain) = target("jump") {
        Verdict::Jump(chain)
    } else if json.get("drop").is_some() {
        Verdict::Drop
    } else if json.get("accept").is_some() {
        Verdict::Accept
    } else if json.get("return").is_some() {
        Verdict::Return
    } else {
        return Err(NftError::Parse(format!("verdict {json}")));
    };
    Ok(Data::Verdict(verdict))
}

fn value(json: &Json, kind: Type) -> Result<Value, NftError> {
    let bad = || NftError::Parse(format!("{json} is no {}", kind.name()));
    let value = match kind {
        Type::Ipv4 | Type::Ipv6 => return address(json).ok_or_else(bad),
        Type::Protocol => match (json.as_str(), json.as_u64()) {
            (Some("tcp"), _) | (_, Some(6)) => Value::Protocol(Protocol::Tcp),
            (Some("udp"), _) | (_, Some(17)) => Value::Protocol(Protocol::Udp),
            (Some("sctp"), _) | (_, Some(132)) => Value::Protocol(Protocol::Sctp),
            _ => return Err(bad()),
        },
        Type::Port => Value::Port(
            json.as_u64()
                .and_then(|n| n.try_into().ok())
                .ok_or_else(bad)?,
        ),
        Type::Number | Type::Mark => Value::Number(
            json.as_u64()
                .and_then(|n| n.try_into().ok())
                .ok_or_else(bad)?,
        ),
        Type::InterfaceName => Value::Name(json.as_str().ok_or_else(bad)?.into()),
    };
    Ok(value)
}

fn address(json: &Json) -> Option<Value> {
    if let Some(text) = json.as_str() {
        return text.parse().ok().map(Value::Address);
    }
    if let Some(prefix) = json.get("prefix") {
        let address: IpAddr = text(prefix, "addr")?.parse().ok()?;
        let length = u8::try_from(prefix.get("len")?.as_u64()?).ok()?;
        return IpNet::new(address, length).ok().map(Value::net);
    }
    // A range that is a whole prefix (`0.0.0.0-255.255.255.255` in concatenations).
    let ends = json.get("range")?.as_array()?;
    let [first, last] = ends.as_slice() else {
        return None;
    };
    let (first, last): (IpAddr, IpAddr) =
        (first.as_str()?.parse().ok()?, last.as_str()?.parse().ok()?);
    let longest = if first.is_ipv4() { 32 } else { 128 };
    (0..=longest)
        .filter_map(|length| IpNet::new(first, length).ok())
        .find(|net| net.network() == first && net.broadcast() == last)
        .map(Value::net)
}

#[cfg(test)]
mod tests;
