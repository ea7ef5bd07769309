//! A component that fails: its pod is rejected with the reason, and nothing else notices.

use framework::Code;

use super::*;

/// What `score` and `filter` say of a pod of this priority, asked as the runtime asks: all nodes first, then one.
#[track_caller]
fn check(plugin: &dyn Plugin, priority: i32, score_reason: &str, filter_reason: &str) {
    let snapshot = cluster(&["1", "4"]);
    let bad = pod(priority);
    let node = snapshot.get("n1").expect("is there");
    let status = |reason: &str| Status::new(Code::Error, reason).by("Roomy");

    assert_eq!(scores(plugin, &bad, &snapshot), None);
    let filter = plugin.as_filter().expect("it filters");
    assert_eq!(score_of(plugin, &bad, node), Err(status(score_reason)));
    assert!(verdicts(plugin, &bad, &snapshot).is_none());
    let alone = filter.filter(&CycleState::new(), &bad, node);
    assert_eq!(alone, status(filter_reason));

    // Asked about one node alone it fails for the same reason, now by itself.
    assert!(score_of(plugin, &bad, node).is_err());
    // Others do not notice.
    assert_eq!(scores(plugin, &pod(0), &snapshot), Some(vec![75, 0]));
    assert_eq!(score_of(plugin, &pod(0), node), Ok(0));
}

#[test]
fn a_trap_rejects_the_pod_and_harms_nothing_else() {
    let reason = |call| {
        format!(
            "its WASM component trapped in {call}: wasm trap: wasm `unreachable` instruction executed"
        )
    };
    check(&*plugin(), 1, &reason("score"), &reason("filter"));
}

#[test]
fn a_loop_without_end_runs_out_of_fuel() {
    let args = json!({"fuelPerCall": 100_000});
    let plugin = plugin_with(&component(WIT, GUEST), args).expect("it is a plugin");
    let reason = |call| {
        format!("its WASM component took more than 100000 units of fuel (fuelPerCall) in {call}")
    };
    check(&*plugin, 2, &reason("score"), &reason("filter"));
}

#[test]
fn memory_has_a_bound() {
    let args = json!({"memoryLimitBytes": 8 << 20});
    let plugin = plugin_with(&component(WIT, GUEST), args).expect("it is a plugin");
    let wanted = (64 + 4096) << 16;
    let reason = |call| {
        format!(
            "its WASM component asked for {wanted} bytes of memory in {call}, more than 8388608 (memoryLimitBytes)"
        )
    };
    check(&*plugin, 3, &reason("score"), &reason("filter"));
}

#[test]
fn an_answer_of_the_wrong_length_is_refused() {
    let reason = |what| format!("its WASM component gave 1 {what} for 2 nodes");
    check(&*plugin(), 4, &reason("scores"), &reason("verdicts"));
}

#[test]
fn an_answer_out_of_range_is_refused() {
    check(
        &*plugin(),
        5,
        "its WASM component gave the score 101, which is not within 0..100",
        "its WASM component gave the verdict 2 with 1 rejections",
    );
}

#[test]
fn an_answer_without_an_end_is_not_copied() {
    let guest = GUEST
        .replace(
            "(memory (export \"memory\") 64)",
            "(memory (export \"memory\") 512)",
        )
        .replace(
            "(i32.store (i32.const 8) (i32.const 9))",
            "(i32.store (i32.const 8) (i32.const 20971520))",
        );
    let plugin = plugin_with(&component(WIT, &guest), json!({})).expect("it is a plugin");
    let reason = |call| {
        format!(
            "its WASM component trapped in {call}: too much data is being copied between the host and the guest: fuel allocated for hostcalls has been exhausted"
        )
    };
    check(&*plugin, 6, &reason("score"), &reason("filter"));
}

#[test]
fn an_error_of_its_own_is_told_and_the_instance_stays() {
    let reason = |call| format!("its WASM component failed in {call}: not today");
    check(&*plugin(), 6, &reason("score"), &reason("filter"));
    // It was not made anew: it knows the nodes it was told of.
    let guest = GUEST.replace("(call $free_percent", "(call $times_told");
    let plugin = plugin_with(&component(WIT, &guest), json!({})).expect("it is a plugin");
    let snapshot = cluster(&["1", "4"]);
    assert_eq!(scores(&*plugin, &pod(0), &snapshot), Some(vec![2, 2]));
    assert_eq!(scores(&*plugin, &pod(6), &snapshot), None);
    assert_eq!(scores(&*plugin, &pod(0), &snapshot), Some(vec![2, 2]));
}

#[test]
fn scores_to_be_normalized_may_be_large_but_not_negative() {
    use framework::Normalize;
    for (normalize, expect) in [(1, false), (2, true)] {
        let guest = GUEST.replace(
            "(i32.const 0) (; normalize ;)",
            &format!("(i32.const {normalize})"),
        );
        let plugin = plugin_with(&component(WIT, &guest), json!({})).expect("it is a plugin");
        let score = plugin.as_score().expect("it scores");
        assert_eq!(score.normalize(), Normalize::ByMax { reverse: expect });
        let snapshot = cluster(&["1", "4"]);
        assert_eq!(scores(&*plugin, &pod(5), &snapshot), Some(vec![101, 101]));
        assert_eq!(scores(&*plugin, &pod(7), &snapshot), None);
        let node = snapshot.get("n0").expect("is there");
        let error = score_of(&*plugin, &pod(7), node).expect_err("refused");
        let most = i64::MAX / 100;
        assert_eq!(
            error.message(),
            format!("its WASM component gave the score -1, which is not within 0..{most}")
        );
    }
}

#[test]
fn a_failure_is_told_to_the_pod_it_happened_for() {
    let plugin = plugin();
    let snapshot = cluster(&["1", "4"]);
    let node = snapshot.get("n0").expect("is there");
    assert_eq!(scores(&*plugin, &pod(1), &snapshot), None);
    assert_eq!(score_of(&*plugin, &pod(0), node), Ok(75));
    let other = Arc::clone(&plugin);
    let copy = (**node).clone();
    let elsewhere = std::thread::spawn(move || score_of(&*other, &pod(0), &copy));
    assert_eq!(elsewhere.join().expect("ends well"), Ok(75));
    let reason = score_of(&*plugin, &pod(1), node).expect_err("it trapped");
    assert!(reason.message().contains("trapped in score"), "{reason}");
}
