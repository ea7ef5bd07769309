use std::sync::Arc;

use super::*;
use crate::object::{HookKind, HookPoint, Set, priority};
use crate::{FakeNft, Family, Field, Nft, Syncer, Value, Verdict};

/// A table that exercises every kind of object; `seed` decides what is in it.
fn sample(seed: u64) -> Table {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut chance = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let mut table = Table::new(Family::Ip, "test");
    table.base_chain(
        "pre",
        HookKind::Nat,
        HookPoint::Prerouting,
        priority::DSTNAT,
    );
    let fields = [Field::Protocol, Field::DestinationPort];
    table.add_set("to-chain", Set::verdict_map(&[Type::Protocol, Type::Port]));
    for chain in 0..chance(5) {
        let name = format!("chain-{chain}");
        for _ in 0..chance(3) {
            table.rule(&name, [Statement::MarkOr(1 << chance(4))]);
        }
        table.chain(&name);
        for _ in 0..chance(4) {
            let key = vec![
                Value::Protocol(crate::Protocol::Tcp),
                Value::Port(chance(20) as u16),
            ];
            table
                .sets
                .get_mut("to-chain")
                .unwrap()
                .insert_verdict(key, Verdict::goto(name.as_str()));
        }
    }
    table.rule("pre", [Statement::verdict_map(&fields, "to-chain")]);
    for number in 1..1 + chance(4) {
        let (chain, map) = (format!("pick-{number}"), format!("map-{number}"));
        let set = table.add_set(
            map.as_str(),
            Set::map(&[Type::Port, Type::Number], &[Type::Ipv4, Type::Port]),
        );
        for _ in 0..chance(6) {
            let key = vec![
                Value::Port(chance(9) as u16),
                Value::Number(chance(3) as u32),
            ];
            let to = vec![
                Value::Address([10, 0, 0, chance(5) as u8].into()),
                Value::Port(80),
            ];
            set.insert_values(key, to);
        }
        table.rule(
            &chain,
            [Statement::dnat_map(
                &[Field::DestinationPort, Field::Random(number as u32)],
                map,
            )],
        );
    }
    table
}

/// From any state to any other: what the kernel has then is what was wanted, and nothing is left to do.
#[tokio::test]
async fn any_state_leads_to_any_other() {
    for from in 0..30 {
        for to in 0..30 {
            let nft = Arc::new(FakeNft::new());
            let mut syncer = Syncer::new(nft.clone(), Family::Ip, "test");
            syncer.sync(sample(from)).await.unwrap();
            syncer.sync(sample(to)).await.unwrap();
            let mut got = nft.table(Family::Ip, "test").unwrap();
            let wanted = sample(to);
            // Chains that are of no use any more are empty, and deleted later.
            got.chains.retain(|name, chain| {
                let keep = wanted.chains.contains_key(name);
                assert!(keep || chain.rules.is_empty(), "{from} -> {to}: {name}");
                keep
            });
            assert_eq!(got, wanted, "{from} -> {to}");
            let again = syncer.sync(sample(to)).await.unwrap();
            assert_eq!(again.operations, 0, "{from} -> {to}");
            // One transaction each; none where nothing is to do.
            assert!(nft.applied().len() <= 2);
        }
    }
}

#[test]
fn a_changed_type_makes_the_table_anew() {
    let has_typeof_map = |table: &Table| table.sets.contains_key("map-1");
    let old = (1..).map(sample).find(has_typeof_map).unwrap();
    let mut new = old.clone();
    new.add_set(
        "to-chain",
        Set::verdict_map(&[Type::Protocol, Type::Port, Type::Mark]),
    );
    let difference = diff(Some(&old), &new);
    assert!(difference.rebuilt);
    assert_eq!(difference.transaction.operations[1], Operation::DeleteTable);

    // A rule over an old `typeof` map cannot be added: the map must be made with it.
    let mut new = old.clone();
    new.rule("pick-1", [Statement::MarkOr(1)]);
    assert!(diff(Some(&old), &new).rebuilt);
}

#[tokio::test]
async fn somebody_else_changes_the_table() {
    let nft = Arc::new(FakeNft::new());
    let mut syncer = Syncer::new(nft.clone(), Family::Ip, "test");
    syncer.sync(sample(1)).await.unwrap();
    nft.apply(&Transaction::delete_table(Family::Ip, "test"))
        .await
        .unwrap();
    syncer.sync(sample(2)).await.unwrap();
    assert_eq!(nft.table(Family::Ip, "test").unwrap(), sample(2));
    // What fails twice is the caller's to retry; then everything is looked at again.
    nft.refuse_next();
    syncer.forget();
    assert!(syncer.sync(sample(4)).await.is_err());
    syncer.sync(sample(4)).await.unwrap();
}

#[tokio::test]
async fn stale_chains_go_later() {
    let nft = Arc::new(FakeNft::new());
    let mut syncer = Syncer::new(nft.clone(), Family::Ip, "test");
    let mut with = Table::new(Family::Ip, "test");
    with.rule("gone", [Statement::MarkOr(1)]);
    let without = Table::new(Family::Ip, "test");
    syncer.sync(with.clone()).await.unwrap();
    let report = syncer.sync(without.clone()).await.unwrap();
    assert!(
        nft.table(Family::Ip, "test")
            .unwrap()
            .chains
            .contains_key("gone")
    );
    tokio::time::sleep(report.retry_after.unwrap()).await;
    assert_eq!(syncer.sync(without).await.unwrap().retry_after, None);
    assert!(nft.table(Family::Ip, "test").unwrap().chains.is_empty());
    // One that is wanted again in the meantime stays.
    syncer.sync(with.clone()).await.unwrap();
    syncer.sync(Table::new(Family::Ip, "test")).await.unwrap();
    syncer.sync(with.clone()).await.unwrap();
    assert_eq!(nft.table(Family::Ip, "test").unwrap(), with);
}
