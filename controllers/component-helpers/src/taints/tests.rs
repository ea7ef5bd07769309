use super::*;

fn taint(text: &str) -> Taint {
    parse_taint(text).unwrap()
}

fn toleration(key: &str, operator: &str, value: &str, effect: &str) -> Toleration {
    let some = |text: &str| Some(text.to_string());
    Toleration {
        key: some(key),
        operator: some(operator),
        value: some(value),
        effect: some(effect),
        toleration_seconds: None,
    }
}

#[test]
fn matching() {
    for (toleration, text, expect) in [
        (
            toleration("a", "Equal", "b", "NoSchedule"),
            "a=b:NoSchedule",
            true,
        ),
        (
            toleration("a", "", "b", "NoSchedule"),
            "a=b:NoSchedule",
            true,
        ),
        (
            toleration("a", "Equal", "c", "NoSchedule"),
            "a=b:NoSchedule",
            false,
        ),
        (
            toleration("a", "Equal", "b", "NoExecute"),
            "a=b:NoSchedule",
            false,
        ),
        (toleration("a", "Equal", "b", ""), "a=b:NoExecute", true),
        (toleration("a", "Exists", "", ""), "a=b:NoExecute", true),
        (toleration("", "Exists", "", ""), "x=y:NoExecute", true),
        (toleration("b", "Exists", "", ""), "a:NoExecute", false),
        (toleration("a", "Near", "", ""), "a:NoExecute", false),
        (toleration("a", "Gt", "5", ""), "a=6:NoSchedule", true),
        (toleration("a", "Gt", "5", ""), "a=5:NoSchedule", false),
        (toleration("a", "Lt", "5", ""), "a=4:NoSchedule", true),
        (toleration("a", "Lt", "05", ""), "a=4:NoSchedule", false),
        (toleration("a", "Lt", "5", ""), "a=x:NoSchedule", false),
    ] {
        assert_eq!(
            tolerates(&toleration, &taint(text), true),
            expect,
            "{toleration:?} on {text}"
        );
    }
    assert!(!tolerates(
        &toleration("a", "Lt", "5", ""),
        &taint("a=4:NoSchedule"),
        false
    ));
    assert!(tolerates(
        &Toleration {
            operator: Some("Exists".into()),
            ..Default::default()
        },
        &taint("a:NoSchedule"),
        false
    ));
}

#[test]
fn evictions() {
    let for_seconds = |key: &str, seconds| Toleration {
        toleration_seconds: seconds,
        ..toleration(key, "Exists", "", "NoExecute")
    };
    let taints = [
        taint("a:NoExecute"),
        taint("b:NoExecute"),
        taint("c:NoSchedule"),
    ];
    for (tolerations, expect) in [
        (vec![], Eviction::Now),
        (vec![for_seconds("a", None)], Eviction::Now),
        (
            vec![for_seconds("a", None), for_seconds("b", None)],
            Eviction::Never,
        ),
        (
            vec![for_seconds("a", Some(300)), for_seconds("b", Some(20))],
            Eviction::AfterSeconds(20),
        ),
        (
            vec![for_seconds("a", Some(300)), for_seconds("b", None)],
            Eviction::AfterSeconds(300),
        ),
        (
            vec![for_seconds("a", Some(0)), for_seconds("b", None)],
            Eviction::Now,
        ),
    ] {
        assert_eq!(
            eviction(&taints, &tolerations, false),
            expect,
            "{tolerations:?}"
        );
    }
    assert_eq!(eviction(&[], &[], false), Eviction::Never);
}

#[test]
fn lists_and_text() {
    let mut taints = vec![];
    assert!(add_or_update_taint(&mut taints, taint("a=1:NoSchedule")));
    assert!(!add_or_update_taint(&mut taints, taint("a=1:NoSchedule")));
    assert!(add_or_update_taint(&mut taints, taint("a=2:NoSchedule")));
    assert!(add_or_update_taint(&mut taints, taint("a=2:NoExecute")));
    assert_eq!(
        taints.iter().map(to_text).collect::<Vec<_>>(),
        ["a=2:NoSchedule", "a=2:NoExecute"]
    );
    assert!(
        taint_exists(&taints, "a", NO_EXECUTE)
            && delete_taint(&mut taints, "a", NO_EXECUTE)
            && !taint_exists(&taints, "a", NO_EXECUTE)
    );
    for bad in ["a", "a=b", "a:Never", "=b:NoSchedule", "a=-:NoSchedule"] {
        assert!(parse_taint(bad).is_err(), "{bad}");
    }
    let all = [taint("a:PreferNoSchedule"), taint("b:NoSchedule")];
    assert_eq!(
        find_matching_untolerated_taint(&all, &[], do_not_schedule, false),
        Some(&all[1])
    );
}
