use component_base::config::decode_strict;

use super::*;

fn decode(text: &str) -> Result<KubeSchedulerConfiguration, ConfigError> {
    let text = format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{text}");
    let mut config = decode_strict(Path::new("scheduler.yaml"), &text, API_VERSION, KIND)?;
    set_defaults(&mut config);
    Ok(config)
}

#[test]
fn defaults() {
    let config = decode("clientConnection: {kubeconfig: /etc/kubernetes/scheduler.conf}\nleaderElection: {leaderElect: false}").expect("valid");
    assert_eq!(
        config.profiles[0].scheduler_name.as_deref(),
        Some("default-scheduler")
    );
    assert!(
        !config.leader_election.leader_elect
            && config.leader_election.resource_name == "kube-scheduler"
    );
    assert_eq!(config.client_connection.qps, 50.0);
    assert!(validate(&config).is_empty());
}

#[test]
fn what_is_unknown_or_wrong_is_named() {
    let error = decode("profiels: [{schedulerName: a}]")
        .expect_err("unknown")
        .to_string();
    assert!(error.contains("profiels"), "{error}");
    let error = decode("profiles: [{plugins: {score: {enabeld: [{name: x}]}}}]")
        .expect_err("unknown")
        .to_string();
    assert!(error.contains("enabeld"), "{error}");
    let config = decode(
        "parallelism: 0\npodMaxBackoffSeconds: 0\nextenders: [{urlPrefix: x, prioritizeVerb: p}]\nprofiles: [{schedulerName: a}, {schedulerName: a}, {plugins: {podGroupPostFilter: {enabled: [{name: DefaultPreemption}], disabled: [{name: X}]}}}]",
    )
    .expect("decodes");
    let errors: Vec<String> = validate(&config).iter().map(ToString::to_string).collect();
    for field in [
        "parallelism",
        "podMaxBackoffSeconds",
        "extenders[0].urlPrefix",
        "extenders[0].weight",
        "profiles[1].schedulerName",
        "profiles[2].schedulerName",
        "profiles[2].plugins.podGroupPostFilter.enabled[0]",
    ] {
        assert!(
            errors.iter().any(|e| e.starts_with(&format!("{field}:"))),
            "{field}: {errors:?}"
        );
    }
}

/// The texts of all problems.
fn problems(text: &str) -> Vec<String> {
    let config = decode(text).expect("decodes");
    validate(&config).iter().map(ToString::to_string).collect()
}

#[test]
fn every_field_is_checked_in_upstreams_words() {
    let check = |text: &str, want: &[&str]| assert_eq!(problems(text), want, "{text}");
    check("", &[]);
    check(
        "clientConnection: {burst: -1}",
        &["clientConnection.burst: Invalid value: -1: must be non-negative"],
    );
    check(
        "leaderElection: {leaseDuration: 5s, renewDeadline: 10s}",
        &[
            "leaderElection.leaseDuration: Invalid value: \"10s\": must be greater than `RenewDeadline`",
        ],
    );
    check(
        "leaderElection: {retryPeriod: -1s, resourceLock: endpoints}",
        &[
            "leaderElection.retryPeriod: Invalid value: \"-1s\": must be greater than zero",
            "leaderElection.resourceLock: Invalid value: \"endpoints\": resourceLock value must be \"leases\"",
        ],
    );
    check(
        "leaderElection: {leaderElect: false, leaseDuration: 1s}",
        &[],
    );
    // Zeros and empty texts are the defaults, as upstream.
    check(
        "leaderElection: {leaseDuration: 0s, resourceName: ''}\nclientConnection: {qps: 0, burst: 0}",
        &[],
    );
    check(
        "parallelism: -1\npercentageOfNodesToScore: 101\npodInitialBackoffSeconds: 0\npodMaxBackoffSeconds: -1",
        &[
            "parallelism: Invalid value: -1: should be an integer value greater than zero",
            "percentageOfNodesToScore: Invalid value: 101: not in valid range [0-100]",
            "podInitialBackoffSeconds: Invalid value: 0: must be greater than 0",
            "podMaxBackoffSeconds: Invalid value: -1: must be greater than or equal to PodInitialBackoffSeconds",
        ],
    );
    check(
        "profiles: [{schedulerName: a, percentageOfNodesToScore: -1, plugins: {filter: {enabled: [{name: EBSLimits}]}}, pluginConfig: [{name: X}, {name: X}]}]",
        &[
            "profiles[0].percentageOfNodesToScore: Invalid value: -1: not in valid range [0-100]",
            "profiles[0].plugins.filter.enabled[0]: Invalid value: \"EBSLimits\": was invalid in version \"kubescheduler.config.k8s.io/v1\" (KubeSchedulerConfiguration is version \"kubescheduler.config.k8s.io/v1\")",
            "profiles[0].pluginConfig[1]: Invalid value: \"X\": Duplicate value",
        ],
    );
    check(
        "profiles: [{schedulerName: a, plugins: {queueSort: {enabled: [{name: S}]}}, pluginConfig: [{name: S, args: {x: 1}}]}, {schedulerName: b, pluginConfig: [{name: S, args: {x: 2}}]}]",
        &[
            "profiles[1].plugins.queueSort: Invalid value: {\"enabled\":[],\"disabled\":[]}: must be the same for all profiles",
            "profiles[1].pluginConfig.args: Invalid value: {\"x\":2}: queueSort must be the same for all profiles",
        ],
    );
    check(
        "profiles: [{plugins: {queueSort: {enabled: [{name: S}, {name: T}]}}}]",
        &[
            "profiles[0].plugins.queueSort.enabled: Invalid value: 2: only one queue sort plugin can be enabled",
        ],
    );
}

#[test]
fn extenders_are_checked_in_upstreams_words() {
    let check = |text: &str, want: &[&str]| {
        assert_eq!(problems(&format!("extenders: [{text}]")), want, "{text}");
    };
    check(
        "{urlPrefix: 'http://h:1/x', filterVerb: f, prioritizeVerb: p, weight: 1, bindVerb: b, httpTimeout: 30s, managedResources: [{name: example.com/gpu, ignoredByScheduler: true}]}",
        &[],
    );
    check(
        "{urlPrefix: 'http://h', prioritizeVerb: p}",
        &["extenders[0].weight: Invalid value: 0: must have a positive weight applied to it"],
    );
    check(
        "{urlPrefix: 'http://h', bindVerb: b}, {urlPrefix: 'http://h', bindVerb: b}",
        &[
            "extenders: Invalid value: \"found 2 extenders implementing bind\": only one extender can implement bind",
        ],
    );
    check(
        "{urlPrefix: 'http://h', managedResources: [{name: example.com/gpu}, {name: cpu}]}, {urlPrefix: 'http://i', managedResources: [{name: example.com/gpu}]}",
        &[
            "extenders[0].managedResources[1].name: Invalid value: \"cpu\": is an invalid extended resource name",
            "extenders[1].managedResources[0].name: Invalid value: \"example.com/gpu\": duplicate extender managed resource name",
        ],
    );
    check(
        "{urlPrefix: 'ftp://h'}",
        &["extenders[0].urlPrefix: Invalid value: \"ftp://h\": must be an http or https URL"],
    );
    let error = decode("extenders: [{urlPrefix: 'http://h', httpTimeout: soon}]");
    assert!(error.is_err_and(|e| e.to_string().contains("soon")));
}

#[test]
fn what_is_written_means_the_same_when_read_again() {
    let registry = plugins::registry::in_tree();
    let text = "percentageOfNodesToScore: 40\nextenders: [{urlPrefix: 'https://h', filterVerb: f, enableHTTPS: true, tlsConfig: {caData: eA==}}]\nprofiles: [{plugins: {multiPoint: {disabled: [{name: ImageLocality}], enabled: [{name: TaintToleration, weight: 7}, {name: Mine}]}, score: {disabled: [{name: '*'}]}}, pluginConfig: [{name: NodeResourcesFit, args: {ignoredResources: [a/b]}}, {name: Mine, args: {x: 1}}]}]";
    let config = decode(text).expect("decodes");
    let written = completed(&config, &registry);
    let profile = &written["profiles"][0];
    let multi_point = profile["plugins"]["multiPoint"]["enabled"].as_array();
    let names: Vec<&str> = multi_point
        .expect("a list")
        .iter()
        .filter_map(|plugin| plugin["name"].as_str())
        .collect();
    assert_eq!(
        names[..5],
        [
            "SchedulingGates",
            "PrioritySort",
            "NodeName",
            "NodeUnschedulable",
            "TaintToleration"
        ]
    );
    assert!(!names.contains(&"ImageLocality") && names.last() == Some(&"Mine"));
    let args = |name: &str| {
        let configs = profile["pluginConfig"].as_array().expect("a list");
        let found = configs.iter().find(|config| config["name"] == name);
        found.unwrap_or_else(|| panic!("{name}"))["args"].clone()
    };
    assert_eq!(
        args("NodeResourcesFit")["ignoredResources"],
        serde_json::json!(["a/b"])
    );
    assert_eq!(
        args("NodeResourcesFit")["scoringStrategy"]["type"],
        "LeastAllocated"
    );
    assert_eq!(args("VolumeBinding")["bindTimeoutSeconds"], 600);
    assert_eq!(args("VolumeBinding")["kind"], "VolumeBindingArgs");
    assert_eq!(args("Mine"), serde_json::json!({"x": 1}));
    let yaml = serde_saphyr::to_string(&written).expect("encodes");
    let read: KubeSchedulerConfiguration =
        decode_strict(Path::new("written.yaml"), &yaml, API_VERSION, KIND).expect("strict");
    assert_eq!(completed(&read, &registry), written);
    assert_eq!(read.extenders, config.extenders);
}
