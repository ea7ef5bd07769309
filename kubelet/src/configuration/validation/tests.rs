use super::*;

#[test]
fn the_defaults_are_valid() {
    assert_eq!(
        validate_kubelet_configuration(&KubeletConfiguration::default()),
        vec![]
    );
}

#[test]
fn every_error_at_once() {
    let kc = KubeletConfiguration {
        address: "nope".into(),
        image_gc_low_threshold_percent: 90,
        run_once: true,
        // Not among them: the runtime's own word counts, as upstream.
        cgroup_driver: "systemd".into(),
        eviction_hard: Some([("memory.nope".to_owned(), "1Gi".to_owned())].into()),
        ..Default::default()
    };
    let text: Vec<String> = validate_kubelet_configuration(&kc)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(text.len(), 4, "{text:?}");
    assert!(
        text[0].starts_with("imageGCLowThresholdPercent: Invalid value: 90"),
        "{text:?}"
    );
    assert!(
        text[1].starts_with("address: Invalid value: \"nope\""),
        "{text:?}"
    );
}

#[test]
fn what_upstream_refuses_is_refused_by_field_and_value() {
    let check = |given: serde_json::Value, expect: &[&str]| {
        let kc: KubeletConfiguration = serde_json::from_value(given.clone()).unwrap();
        let errors = validate_kubelet_configuration(&kc);
        let fields: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(fields.len(), expect.len(), "{given} {fields:?}");
        for (error, begin) in fields.iter().zip(expect) {
            assert!(error.starts_with(begin), "{given} {error}");
        }
    };
    use serde_json::json;
    check(
        json!({"containerLogMonitorInterval": "1ms"}),
        &["containerLogMonitorInterval: Invalid value: \"1ms\""],
    );
    check(
        json!({"kubeAPIQPS": -1, "iptablesDropBit": 32}),
        &[
            "kubeAPIQPS: Invalid value: -1",
            "iptablesDropBit: Invalid value: 32",
        ],
    );
    check(json!({"containerLogMaxSize": "-1"}), &[]);
    check(
        json!({"containerLogMaxSize": "0"}),
        &["containerLogMaxSize: Invalid value: \"0\""],
    );
    check(
        json!({"shutdownGracePeriod": "500ms", "shutdownGracePeriodCriticalPods": "2s"}),
        &[
            "shutdownGracePeriod: Invalid value: \"500ms\"",
            "shutdownGracePeriodCriticalPods: Invalid value: \"2s\"",
        ],
    );
    check(
        json!({"shutdownGracePeriod": "30s", "shutdownGracePeriodCriticalPods": "10s"}),
        &[],
    );
    check(
        json!({"registerWithTaints": [{"key": "a", "effect": "NoSchedul"}, {"key": "", "effect": "NoExecute"}]}),
        &[
            "registerWithTaints[0].effect: Unsupported value: \"NoSchedul\"",
            "registerWithTaints[1].key: Required value",
        ],
    );
    check(
        json!({"enforceNodeAllocatable": ["pods", "none"]}),
        &["enforceNodeAllocatable[1]: Invalid value: \"none\""],
    );
    check(
        json!({"enforceNodeAllocatable": ["pods", "pods"]}),
        &["enforceNodeAllocatable[1]: Invalid value: \"pods\""],
    );
    check(
        json!({"evictionHard": {"allocatableMemory.available": "100Mi"}}),
        &[],
    );
}
