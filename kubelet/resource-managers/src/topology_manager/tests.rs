//! Hints, and what policies make of them.

use super::*;
use crate::topology::Topology;

fn manager(policy: &str, nodes: usize, options: &[(&str, &str)]) -> TopologyManager {
    let options = options.iter();
    let options = options.map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    // Two nodes a socket.
    let machine = Topology::regular([nodes.div_ceil(2), 2, 1, 1], 0);
    let nodes = &machine.nodes[..nodes];
    TopologyManager::new(policy, "container", &options.collect(), nodes).unwrap()
}

/// `01* 11`: bits, and a star for what is preferred; `-` for no preference.
fn hint(text: &str) -> TopologyHint {
    let bits = text.trim_end_matches('*');
    let nodes = bits
        .chars()
        .rev()
        .enumerate()
        .filter(|(_, bit)| *bit == '1');
    let mask = NumaMask::of(nodes.map(|(node, _)| node));
    TopologyHint {
        affinity: (bits != "-").then_some(mask),
        preferred: text.ends_with('*'),
    }
}

/// One resource a provider. `any`: no preference.
fn provider(text: &str) -> Hints {
    match text {
        "" => Hints::new(),
        "any" => [("r".to_owned(), None)].into(),
        "none" => [("r".to_owned(), Some(vec![]))].into(),
        list => {
            let list = list.split(' ').map(hint).collect();
            [("r".to_owned(), Some(list))].into()
        }
    }
}

fn check(manager: &TopologyManager, providers: &[&str], expect: &str, admitted: bool) {
    let hints: Vec<Hints> = providers.iter().map(|text| provider(text)).collect();
    let (best, admit) = manager.merge(&hints);
    assert_eq!(best, hint(expect), "{:?} {providers:?}", manager.policy());
    assert_eq!(admit, admitted, "{:?} {providers:?}", manager.policy());
}

#[test]
fn none_looks_at_nothing() {
    check(&manager("none", 2, &[]), &["none"], "-", true);
    let machine = Topology::regular([16, 2, 1, 1], 0);
    let options = [("x".to_owned(), "y".to_owned())].into();
    assert!(TopologyManager::new("none", "x", &options, &machine.nodes).is_ok());
}

#[test]
fn all_agree_on_the_narrowest_nodes() {
    for policy in ["best-effort", "restricted"] {
        let two = manager(policy, 2, &[]);
        check(&two, &["", "any"], "11*", true);
        check(&two, &["01* 10* 11", "10* 11"], "10*", true);
        check(&two, &["01* 10*", ""], "01*", true);
        check(&two, &["11*", "01* 10* 11"], "11", policy == "best-effort");
        check(&two, &["01*", "10*"], "11", policy == "best-effort");
        check(&two, &["none", "01*"], "01", policy == "best-effort");
        check(&two, &["none"], "11", policy == "best-effort");
    }
}

#[test]
fn one_node_or_nothing() {
    let two = manager("single-numa-node", 2, &[]);
    check(&two, &["", "any"], "-*", true);
    check(&two, &["01* 10* 11", "10* 11"], "10*", true);
    check(&two, &["11*"], "-", false);
    check(&two, &["01*", "10*"], "-", false);
    check(&two, &["01"], "-", false);
    check(&two, &["none"], "-", false);
    // Of one node all that is asked for is there, or not.
    let one = manager("single-numa-node", 1, &[]);
    check(&one, &["1*"], "-*", true);
    check(&one, &["none"], "-", false);
}

#[test]
fn of_what_nobody_prefers_as_many_nodes_as_the_hungriest_needs() {
    let four = manager("best-effort", 4, &[]);
    check(&four, &["0001 0010 0011", "0011 1100"], "0011", true);
    check(&four, &["0111 1111", "0001 0010"], "0001", true);
    check(&four, &["1110", "1111"], "1110", true);
}

#[test]
fn the_nearest_nodes_where_the_options_say_so() {
    let hints = ["0101* 0110* 1100*"];
    check(&manager("best-effort", 4, &[]), &hints, "0101*", true);
    let closest = [("prefer-closest-numa-nodes", "true")];
    check(&manager("best-effort", 4, &closest), &hints, "1100*", true);
    check(
        &manager("restricted", 4, &closest),
        &["0011* 1100*"],
        "0011*",
        true,
    );
    // Fewer nodes count before near ones.
    check(
        &manager("restricted", 4, &closest),
        &["1000* 1100*"],
        "1000*",
        true,
    );
}

/// Each the only outcome that upstream's own code (v1.37.2) has for such hints.
#[test]
fn hints_are_merged_as_upstream_merges_them() {
    let three = manager("best-effort", 3, &[("prefer-closest-numa-nodes", "true")]);
    let hints = [
        (
            "r0".to_owned(),
            Some(["101*", "110", "001*"].map(hint).to_vec()),
        ),
        ("r1".to_owned(), Some(["001*", "011"].map(hint).to_vec())),
    ];
    assert_eq!(
        three.merge(&[hints.into(), Hints::new()]),
        (hint("001*"), true)
    );
    let two = manager("single-numa-node", 2, &[]);
    let hints = [
        (
            "r0".to_owned(),
            Some(["10", "01*", "10", "01*"].map(hint).to_vec()),
        ),
        ("r1".to_owned(), Some(["10*", "01"].map(hint).to_vec())),
    ];
    assert_eq!(two.merge(&[hints.into()]), (hint("-"), false));
}

#[test]
fn eight_nodes_and_many_resources_are_merged_in_no_time() {
    let manager = manager("restricted", 8, &[]);
    let mut all = Vec::new();
    let nodes: Vec<usize> = (0..8).collect();
    crate::numa_mask::iterate_masks(&nodes, |mask| {
        all.push(TopologyHint {
            affinity: Some(mask),
            preferred: mask.count() == 1,
        });
    });
    let hints = (0..6).map(|n| (n.to_string(), Some(all.clone()))).collect();
    assert_eq!(manager.merge(&[hints]), (hint("1*"), true));
}

#[test]
fn what_does_not_fit_the_machine_is_refused() {
    let machine = Topology::regular([9, 1, 1, 1], 0);
    let check = |policy: &str, scope: &str, options: &[(&str, &str)], expect: &str| {
        let options = options.iter();
        let options = options.map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let got = match TopologyManager::new(policy, scope, &options.collect(), &machine.nodes) {
            Ok(manager) => format!("{:?} {:?}", manager.policy(), manager.scope()),
            Err(error) => error.to_string(),
        };
        assert_eq!(got, expect);
    };
    let nine = [("max-allowable-numa-nodes", "9")];
    check("restricted", "pod", &nine, "Restricted Pod");
    check(
        "restricted",
        "pod",
        &[],
        "unsupported on machines with more than 8 NUMA Nodes",
    );
    check("x", "pod", &nine, "unknown policy: \"x\"");
    check("best-effort", "x", &nine, "unknown scope: \"x\"");
    let mut blind = Topology::regular([2, 1, 1, 1], 0).nodes;
    blind[1].distances.clear();
    let closest = [("prefer-closest-numa-nodes".to_owned(), "1".to_owned())].into();
    let refused = TopologyManager::new("restricted", "pod", &closest, &blind).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "cannot discover NUMA topology: error getting NUMA distances from cadvisor"
    );
}
