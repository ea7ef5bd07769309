use super::*;

const GPU: &str = "example.com/gpu";

fn device(id: &str, healthy: bool) -> pb::Device {
    let health = if healthy { pb::HEALTHY } else { "Unhealthy" };
    pb::Device {
        id: id.to_owned(),
        health: health.to_owned(),
        topology: None,
    }
}

fn devices(ids: &str) -> Vec<pb::Device> {
    let one = |id: &str| match id.strip_prefix('!') {
        Some(id) => device(id, false),
        None => device(id, true),
    };
    ids.split_whitespace().map(one).collect()
}

/// A node whose plugin has these; an exclamation mark is for a sick one.
fn node(ids: &str) -> State {
    let mut state = State::default();
    state.plugin_came(GPU);
    state.list(GPU, devices(ids));
    state
}

fn set(ids: &str) -> BTreeSet<String> {
    ids.split_whitespace().map(str::to_owned).collect()
}

/// What the container has then.
fn give(state: &mut State, pod: &str, container: &str, n: usize, reusable: &str) -> String {
    match state.plan(pod, container, GPU, n, &set(reusable)) {
        Ok(Plan::Held) => "held".to_owned(),
        Ok(Plan::Choose(choice)) => {
            let chosen = choice.complete(&[]);
            let response = ContainerAllocateResponse::default();
            state.commit((pod, container, GPU), &chosen, response);
            let chosen: Vec<_> = chosen.into_iter().collect();
            chosen.join(" ")
        }
        Err(error) => error.to_string(),
    }
}

#[test]
fn devices_are_given_once() {
    let mut state = node("a b !c d");
    assert_eq!(give(&mut state, "1", "c", 2, ""), "a b");
    assert_eq!(give(&mut state, "1", "c", 2, ""), "held");
    assert_eq!(
        give(&mut state, "2", "c", 2, ""),
        "requested number of devices unavailable for example.com/gpu. Requested: 2, Available: 1"
    );
    assert_eq!(give(&mut state, "2", "c", 1, ""), "d");
    assert!(state.pods.retain(|uid| uid != "1"));
    assert_eq!(give(&mut state, "3", "c", 2, ""), "a b");
    assert_eq!(
        give(&mut state, "3", "c", 1, ""),
        "pod \"3\" container \"c\" changed request for resource \"example.com/gpu\" from 2 to 1"
    );
}

#[test]
fn what_is_not_there_or_sick_is_not_given() {
    let mut state = State::default();
    assert_eq!(
        give(&mut state, "1", "c", 1, ""),
        "cannot allocate unregistered device example.com/gpu"
    );
    let mut state = node("!a");
    assert_eq!(
        give(&mut state, "1", "c", 1, ""),
        "no healthy devices present; cannot allocate unhealthy devices example.com/gpu"
    );
    let mut state = node("a b");
    assert_eq!(give(&mut state, "1", "c", 1, ""), "a");
    state.list(GPU, devices("!a b"));
    assert_eq!(
        give(&mut state, "1", "c", 1, ""),
        "previously allocated devices are no longer healthy; cannot allocate unhealthy devices example.com/gpu"
    );
}

#[test]
fn the_plugins_preference_counts_where_it_can() {
    let state = node("a b c d");
    let choose = |reusable: &str, n: usize, preferred: &[&str]| {
        let Ok(Plan::Choose(choice)) = state.plan("1", "c", GPU, n, &set(reusable)) else {
            panic!("there is a choice");
        };
        let preferred: Vec<String> = preferred.iter().map(|p| (*p).to_owned()).collect();
        let chosen: Vec<_> = choice.complete(&preferred).into_iter().collect();
        chosen.join(" ")
    };
    assert_eq!(choose("", 2, &["d", "c"]), "c d");
    assert_eq!(choose("", 2, &["d", "z"]), "a d");
    assert_eq!(choose("", 2, &["d", "c", "b"]), "c d");
    // What an init container leaves goes first.
    assert_eq!(choose("d", 2, &["b"]), "b d");
    assert_eq!(choose("c d", 1, &["b"]), "c");
}

/// As upstream's `TestInitContainerDeviceAllocation` and `TestRestartableInitContainerDeviceAllocation`.
#[test]
fn init_containers_leave_theirs_and_sidecars_keep_theirs() {
    let container = |name: &str, kind| ContainerRequest {
        name: name.to_owned(),
        kind,
        limits: BTreeMap::new(),
    };
    let pod = PodRequest {
        uid: "1".to_owned(),
        containers: vec![
            container("i1", Kind::Init),
            container("s", Kind::Sidecar),
            container("i2", Kind::Init),
            container("r1", Kind::Regular),
            container("r2", Kind::Regular),
        ],
    };
    let mut state = node("a b c d");
    let mut all = Vec::new();
    for (name, n) in [("i1", 2), ("s", 1), ("i2", 1), ("r1", 1), ("r2", 2)] {
        let left = state.reusable(&pod, name).remove(GPU).unwrap_or_default();
        let left: Vec<_> = left.into_iter().collect();
        let left = left.join(" ");
        let got = give(&mut state, "1", name, n, &left);
        all.push(format!("{name}: {left} -> {got}"));
    }
    assert_eq!(
        all,
        [
            "i1:  -> a b",
            "s: a b -> a",
            "i2: b -> b",
            "r1: b -> b",
            "r2:  -> c d"
        ]
    );
}

#[test]
fn the_node_says_what_there_is_and_zero_for_what_was() {
    let at = Duration::from_secs;
    let told = |state: &mut State, now: u64| {
        let (capacity, forgotten) = state.capacity(at(now));
        let of = |map: &BTreeMap<String, usize>| map.get(GPU).copied();
        let counts = (of(&capacity.capacity), of(&capacity.allocatable));
        (counts, capacity.removed.len(), forgotten)
    };
    let mut state = node("a !b");
    give(&mut state, "1", "c", 1, "");
    assert_eq!(told(&mut state, 0), ((Some(2), Some(1)), 0, false));
    state.plugins_gone(GPU, at(10));
    assert_eq!(told(&mut state, 310), ((Some(2), Some(0)), 0, false));
    // It comes back in time; its devices count once it says so.
    state.plugin_came(GPU);
    assert_eq!(told(&mut state, 320), ((Some(2), Some(0)), 0, false));
    state.list(GPU, devices("a b"));
    assert_eq!(told(&mut state, 320), ((Some(2), Some(2)), 0, false));
    // It does not come back.
    state.plugins_gone(GPU, at(400));
    assert_eq!(told(&mut state, 701), ((None, None), 1, true));
    assert_eq!(told(&mut state, 702), ((None, None), 1, false));
    state.removal_is_told(&[GPU.to_owned()].into());
    assert_eq!(told(&mut state, 703), ((None, None), 0, false));
    // What was given out is still a plugin's.
    assert!(state.is_of_plugin(GPU));
    state.pods.retain(|uid| uid != "1");
    assert!(!state.is_of_plugin(GPU));
    state.plugin_came(GPU);
    assert_eq!(told(&mut state, 703), ((Some(0), Some(0)), 0, false));
}

#[test]
fn after_a_restart_pods_keep_theirs_and_nobody_gets_more() {
    let mut before = node("a b");
    give(&mut before, "1", "c", 1, "");
    let (pods, names) = (before.pods.clone(), vec![GPU.to_owned()]);
    let mut state = State::restored(pods, names, Duration::ZERO);
    let none = "no healthy devices present; cannot allocate unhealthy devices example.com/gpu";
    assert_eq!(give(&mut state, "2", "c", 1, ""), none);
    let (capacity, _) = state.capacity(Duration::ZERO);
    assert_eq!((capacity.capacity[GPU], capacity.allocatable[GPU]), (0, 0));
    state.plugin_came(GPU);
    state.list(GPU, devices("a b"));
    assert_eq!(give(&mut state, "1", "c", 1, ""), "held");
    assert_eq!(give(&mut state, "2", "c", 1, ""), "b");
}

#[test]
fn pods_are_told_when_their_devices_fall_sick() {
    let mut state = node("a b");
    give(&mut state, "1", "c", 1, "");
    assert_eq!(state.list(GPU, devices("a !b")).pods, set(""));
    assert_eq!(state.list(GPU, devices("!a !b")).pods, set("1"));
    assert!(!state.health("1", "c")[GPU]["a"]);
    assert_eq!(state.list(GPU, devices("b")).pods, set(""));
    // Nobody tells of it.
    assert!(state.health("1", "c")[GPU]["a"]);
    assert_eq!(state.list(GPU, devices("a b")).pods, set("1"));
    assert!(state.health("1", "d").is_empty());
}

#[test]
fn devices_are_kept_by_numa_node() {
    let mut state = State::default();
    state.plugin_came(GPU);
    let on = |id: &str, nodes: &[i64]| {
        let nodes = nodes.iter().map(|id| pb::NumaNode { id: *id });
        let topology = pb::TopologyInfo {
            nodes: nodes.collect(),
        };
        pb::Device {
            topology: Some(topology),
            ..device(id, true)
        }
    };
    state.list(
        GPU,
        vec![on("a", &[0, 1]), on("b", &[1]), device("c", true)],
    );
    assert_eq!(give(&mut state, "1", "c", 3, ""), "a b c");
    let held = &state.pods.container("1", "c").unwrap()[GPU];
    let by_node: Vec<_> = held
        .devices
        .iter()
        .map(|(n, ids)| (*n, ids.join(" ")))
        .collect();
    assert_eq!(
        by_node,
        [
            (-1, "c".to_owned()),
            (0, "a".to_owned()),
            (1, "a b".to_owned())
        ]
    );
}

#[test]
fn a_list_that_leaves_the_numbers_as_they_are_is_told_from_others() {
    let mut state = State::default();
    state.plugin_came(GPU);
    for (ids, changed) in [
        ("", false),
        ("a b", true),
        ("a b", false),
        ("a !b", true),
        // One for the other.
        ("!a b", false),
        ("c b", true),
        ("b", true),
    ] {
        assert_eq!(
            state.list(GPU, devices(ids)).counts_changed,
            changed,
            "{ids}"
        );
    }
    // Its plugin went: what comes again is new.
    state.plugins_gone(GPU, Duration::ZERO);
    assert!(state.list(GPU, devices("b")).counts_changed);
}
