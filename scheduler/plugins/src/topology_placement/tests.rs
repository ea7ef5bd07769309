use framework::testing::make_node;

use super::tests_support::{group, handle, member};
use super::*;

const KEY: &str = "zone";

fn snapshot(nodes: &[(&str, &str)]) -> Snapshot {
    let mut snapshot = Snapshot::new();
    for (name, zone) in nodes {
        let node = make_node(name);
        let node = match *zone {
            "" => node,
            zone => node.label(KEY, zone),
        };
        snapshot.set_node(Arc::new(node.info([])));
    }
    snapshot
}

/// The placements as `domain: nodes`, or what the plugin says.
fn check(
    constraint: Option<&str>,
    nodes: &[(&str, &str)],
    scheduled: &[(&str, &str)],
    expect: Result<&[&str], &str>,
) {
    let handle = handle();
    for (name, node) in scheduled {
        let pod = member(name);
        // One is bound, the others are on their way.
        let pod = match *name {
            "bound" => pod.node(node).build(),
            _ => pod.build(),
        };
        handle.pod_groups.set_pod(&pod);
        handle.pod_groups.assume(&pod, node);
    }
    handle.pod_groups.set_pod(&member("waits").build());
    let plugin = new(None, handle).expect("the gate is on");
    let snapshot = snapshot(nodes);
    let parent = Placement {
        name: String::new(),
        nodes: snapshot.columns().live().clone(),
    };
    let generate = plugin.as_placement_generate().expect("generates");
    let placements = generate.generate_placements(&group(constraint), &snapshot, parent);
    let text = |placement: Placement| {
        let names = placement.nodes.iter();
        let names = names.map(|node| snapshot.node(node).expect("there").name().to_string());
        let names: Vec<_> = names.collect();
        format!("{}: {}", placement.name, names.join(" "))
    };
    let placements = placements.map(|all| all.into_iter().map(text).collect::<Vec<_>>());
    match (placements, expect) {
        (Ok(placements), Ok(expect)) => assert_eq!(placements, expect),
        (Err(status), Err(expect)) => {
            assert!(status.is_error());
            let expect = format!("cannot determine domain for already scheduled pods: {expect}");
            assert_eq!(status.message(), expect);
        }
        (placements, expect) => panic!("{placements:?}, not {expect:?}"),
    }
}

#[test]
fn each_domain_is_a_placement() {
    let nodes = &[("a", "1"), ("b", "2"), ("c", "1"), ("d", "")][..];
    check(None, nodes, &[], Ok(&[": a b c d"]));
    check(Some(KEY), nodes, &[], Ok(&["1: a c", "2: b"]));
    check(Some("rack"), nodes, &[], Ok(&[]));
    check(Some(KEY), &[], &[], Ok(&[]));
}

#[test]
fn a_group_stays_where_it_is() {
    let nodes = &[("a", "1"), ("b", "2"), ("c", "1"), ("d", "")][..];
    let on = |scheduled: &[(&str, &str)], expect| check(Some(KEY), nodes, scheduled, expect);
    on(&[("bound", "a")], Ok(&["1: a c"]));
    on(&[("assumed", "b")], Ok(&["2: b"]));
    on(&[("assumed", "a"), ("bound", "c")], Ok(&["1: a c"]));
    on(
        &[("assumed", "a"), ("bound", "b")],
        Err("more than 1 domain found for pod group: 1, 2"),
    );
    on(
        &[("bound", "d")],
        Err("no topology domain found for pod default/bound"),
    );
    on(
        &[("bound", "gone")],
        Err("getting node for pod default/bound: nodeinfo not found for node name \"gone\""),
    );
    // Without a constraint nobody asks where they are.
    check(None, nodes, &[("bound", "gone")], Ok(&[": a b c d"]));
}

#[test]
fn with_the_gate_off_there_are_no_plugins() {
    let off = || crate::testing::FakeHandle {
        pod_groups: PodGroupCache::new(true),
        ..Default::default()
    };
    for new in [new, crate::pod_group_pods_count::new] {
        let error = new(None, Arc::new(off())).err().expect("off").to_string();
        assert!(error.contains("TopologyAwareWorkloadScheduling"), "{error}");
    }
}
