use framework::testing::{make_node, make_pod};

use super::*;

fn pod(uid: &str, node: &str, cpu: &str) -> Arc<PodInfo> {
    let pod = make_pod(uid).uid(uid).req(&[("cpu", cpu)]);
    if node.is_empty() {
        pod.info()
    } else {
        pod.node(node).info()
    }
}

fn cpu(cache: &Cache, snapshot: &mut Snapshot, node: &str) -> Option<i64> {
    cache.update_snapshot(snapshot);
    snapshot.get(node).map(|n| n.requested().milli_cpu)
}

#[test]
fn an_assumed_pod_is_confirmed_forgotten_or_corrected() {
    let (cache, mut snapshot) = (Cache::new(), Snapshot::new());
    cache.add_node(make_node("a").build());
    cache.add_node(make_node("b").build());
    cache.assume_pod(pod("p", "", "1"), "a").expect("new");
    assert!(cache.is_assumed_pod("p") && cache.assume_pod(pod("p", "", "1"), "a").is_err());
    assert_eq!(cpu(&cache, &mut snapshot, "a"), Some(1000));
    cache.add_pod(pod("p", "b", "1"));
    assert_eq!(
        (
            cpu(&cache, &mut snapshot, "a"),
            cpu(&cache, &mut snapshot, "b")
        ),
        (Some(0), Some(1000))
    );
    assert!(
        cache.forget_pod(&pod("p", "", "1")).is_err(),
        "confirmed pods are not forgotten"
    );
    cache.update_pod(pod("p", "b", "3")).expect("known");
    assert_eq!(cpu(&cache, &mut snapshot, "b"), Some(3000));
    cache.remove_pod("p").expect("known");
    cache.assume_pod(pod("q", "", "2"), "a").expect("new");
    cache.forget_pod(&pod("q", "", "2")).expect("assumed");
    assert_eq!(
        (
            cpu(&cache, &mut snapshot, "a"),
            cpu(&cache, &mut snapshot, "b")
        ),
        (Some(0), Some(0))
    );
    assert_eq!(
        cache.counts(),
        CacheCounts {
            nodes: 2,
            pods: 0,
            assumed_pods: 0
        }
    );
}

#[test]
fn pods_may_come_before_their_node_and_stay_after_it() {
    let (cache, mut snapshot) = (Cache::new(), Snapshot::new());
    cache.add_pod(pod("p", "late", "1"));
    assert_eq!(
        cpu(&cache, &mut snapshot, "late"),
        None,
        "imaginary nodes are not in the snapshot"
    );
    cache.add_node(make_node("late").build());
    assert_eq!(cpu(&cache, &mut snapshot, "late"), Some(1000));
    cache.remove_node("late").expect("known");
    assert_eq!(
        (cpu(&cache, &mut snapshot, "late"), snapshot.num_nodes()),
        (None, 0)
    );
    assert!(cache.remove_node("late").is_err());
    cache.add_node(make_node("late").build());
    assert_eq!(cpu(&cache, &mut snapshot, "late"), Some(1000));
    cache.remove_node("late").expect("known");
    cache.remove_pod("p").expect("known");
    assert_eq!(cpu(&cache, &mut snapshot, "late"), None);
    assert!(cache.dump().0.is_empty());
}

#[test]
fn the_snapshot_tells_what_changed_and_its_columns_follow() {
    let (cache, mut snapshot) = (Cache::new(), Snapshot::new());
    for name in ["a", "b", "c"] {
        cache.add_node(make_node(name).capacity(&[("cpu", "4")]).zone(name).build());
    }
    cache.update_snapshot(&mut snapshot);
    let zones = snapshot.label_column("topology.kubernetes.io/zone");
    assert_eq!(zones.values.len(), 4);
    let version = snapshot.version();
    cache.assume_pod(pod("p", "", "1"), "b").expect("new");
    cache.assume_pod(pod("q", "", "1"), "b").expect("new");
    cache.update_node(
        make_node("c")
            .capacity(&[("cpu", "8")])
            .zone("a")
            .taint("k", "v", "NoSchedule")
            .unschedulable(true)
            .build(),
    );
    cache.remove_node("a").expect("known");
    cache.update_snapshot(&mut snapshot);
    let mut changed = Vec::new();
    assert!(snapshot.changes_since(version, |n| changed.push(n)));
    assert_eq!(changed.len(), 3);
    let (b, c) = (
        snapshot.index("b").expect("b"),
        snapshot.index("c").expect("c"),
    );
    let columns = snapshot.columns();
    assert_eq!(
        (
            columns.cpu.requested[b as usize],
            columns.pods.requested[b as usize]
        ),
        (2000, 2)
    );
    assert_eq!(
        (
            columns.cpu.allocatable[c as usize],
            columns.unschedulable.contains(c)
        ),
        (8000, true)
    );
    assert_eq!(columns.taints(columns.taint_set[c as usize])[0].key, "k");
    let zones = snapshot.label_column("topology.kubernetes.io/zone");
    assert_eq!(&*zones.values[zones.ids[c as usize] as usize], "a");
    assert_eq!(
        (
            snapshot.num_nodes(),
            snapshot.num_pods(),
            columns.live().len()
        ),
        (2, 2, 2)
    );
    cache.add_node(make_node("d").build());
    cache.update_snapshot(&mut snapshot);
    assert_eq!(snapshot.columns().len(), 3, "a free index is used again");
}

#[test]
fn ids_of_taint_sets_are_used_again() {
    let (cache, mut snapshot) = (Cache::new(), Snapshot::new());
    for i in 0..50 {
        let tainted = make_node("a")
            .taint("serial", &i.to_string(), "NoSchedule")
            .build();
        cache.update_node(tainted);
        cache.update_node(make_node("b").taint("serial", "same", "NoSchedule").build());
        cache.update_snapshot(&mut snapshot);
        let (a, columns) = (snapshot.index("a").expect("a") as usize, snapshot.columns());
        let value = columns.taints(columns.taint_set[a])[0].value.clone();
        assert_eq!(value, Some(i.to_string()));
    }
    assert!(snapshot.columns().num_taint_sets() <= 4);
}
