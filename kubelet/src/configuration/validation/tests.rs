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
        json!({"shutdownGracePeriod": "30s", "featureGates": {"GracefulNodeShutdown": false}}),
        &["shutdownGracePeriod: Forbidden: must not be set if GracefulNodeShutdown"],
    );
    let by_priority = json!([{"priority": 1, "shutdownGracePeriodSeconds": -1}]);
    let gate = "GracefulNodeShutdownBasedOnPodPriority";
    check(
        json!({"shutdownGracePeriodByPodPriority": by_priority, "featureGates": {gate: false}}),
        &[
            "shutdownGracePeriodByPodPriority: Forbidden: must not be set if GracefulNodeShutdownBasedOnPodPriority",
            "shutdownGracePeriodByPodPriority[0].shutdownGracePeriodSeconds: Invalid value: -1",
        ],
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

#[test]
fn what_the_managers_cannot_do_is_refused() {
    let check = |given: serde_json::Value, expect: &[&str]| {
        let kc: KubeletConfiguration = serde_json::from_value(given.clone()).unwrap();
        let errors = validate_kubelet_configuration(&kc);
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(errors.len(), expect.len(), "{given} {errors:?}");
        for (error, begin) in errors.iter().zip(expect) {
            assert!(error.starts_with(begin), "{given} {error}");
        }
    };
    use serde_json::json;
    check(
        json!({"cpuManagerPolicy": "static", "reservedSystemCPUs": "0-1,8"}),
        &[],
    );
    check(
        json!({"reservedSystemCPUs": "0-x", "kubeReservedCgroup": "/kube"}),
        &[
            "reservedSystemCPUs: Forbidden: can't be used with systemReservedCgroup",
            "reservedSystemCPUs: Invalid value: \"0-x\": strconv.Atoi: parsing \"x\"",
        ],
    );
    let memory = |limits: serde_json::Value| json!({"numaNode": 0, "limits": limits});
    check(
        json!({"reservedMemory": [memory(json!({"memory": 1_073_741_824, "hugepages-2Mi": "2Mi"}))]}),
        &[],
    );
    check(
        json!({"reservedMemory": [memory(json!({"memory": "0"})), memory(json!({"cpu": "1", "memory": "x"}))]}),
        &[
            "reservedMemory[0].limits[memory]: Invalid value: \"0\": may not be zero",
            "reservedMemory[1].limits[cpu]: Unsupported value: \"cpu\"",
            "reservedMemory[1].limits[memory]: Invalid value: \"x\"",
            "reservedMemory[1].limits[memory]: Invalid value: \"x\": is given twice for one NUMA node",
        ],
    );
    check(
        json!({"memoryManagerPolicy": "BestEffort"}),
        &[
            "memoryManagerPolicy: Forbidden: policy \"BestEffort\" is not available for platform \"linux\"",
        ],
    );
}
