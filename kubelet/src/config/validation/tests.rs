//! Manifests that upstream refuses, and the words it does so with.

use serde_json::{Value, json};

use super::*;

/// A pod that is well, with the spec's fields replaced by those of `change`.
fn pod(change: Value) -> Pod {
    let mut container = json!({"name": "c", "image": "nginx:1", "imagePullPolicy": "Always", "terminationMessagePolicy": "File"});
    let mut spec = json!({"restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "terminationGracePeriodSeconds": 30});
    // Fields of the one container stand under "c".
    for (key, value) in change.as_object().unwrap() {
        if key == "c" {
            for (key, value) in value.as_object().unwrap() {
                container[key] = value.clone();
            }
        } else {
            spec[key] = value.clone();
        }
    }
    if spec.get("containers").is_none() {
        spec["containers"] = json!([container]);
    }
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "default"}, "spec": spec}))
        .unwrap()
}

fn check(change: Value, expect: &str) {
    let shown = change.to_string();
    let told = validate_pod_create(&pod(change)).map_err(|e| e.to_string());
    match expect {
        "" => assert_eq!(told, Ok(()), "{shown}"),
        _ => assert_eq!(told, Err(format!("[{expect}]")), "{shown}"),
    }
}

fn sidecar(name: &str) -> Value {
    json!({"name": name, "image": "i", "imagePullPolicy": "Never", "terminationMessagePolicy": "File", "restartPolicy": "Always"})
}

#[test]
fn pods_that_are_well() {
    check(json!({}), "");
    check(
        json!({
            "hostNetwork": true,
            "initContainers": [sidecar("s")],
            "volumes": [{"name": "v", "hostPath": {"path": "/etc/kubernetes", "type": "DirectoryOrCreate"}}, {"name": "e", "emptyDir": {"sizeLimit": "1Gi"}}],
            "securityContext": {"runAsUser": 0, "fsGroup": 7, "sysctls": [{"name": "kernel/shm_rmid_forced", "value": "1"}], "seccompProfile": {"type": "Localhost", "localhostProfile": "a/b.json"}},
            "dnsConfig": {"nameservers": ["010.1.1.1", "fd00::1"], "searches": ["_a.b.", "."]},
            "c": {
                "ports": [{"name": "https", "containerPort": 6443, "hostPort": 6443, "protocol": "TCP"}],
                "env": [{"name": "A B-ö".replace('ö', "."), "value": "x"}, {"name": "F", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "volumeMounts": [{"name": "v", "mountPath": "/a", "subPath": "x/y", "readOnly": true, "recursiveReadOnly": "Enabled"}, {"name": "e", "mountPath": "/b"}],
                "resources": {"requests": {"cpu": "250m", "example.com/gpu": "2"}, "limits": {"cpu": "1", "example.com/gpu": "2", "hugepages-2Mi": "4Mi"}},
                "livenessProbe": {"httpGet": {"path": "/livez", "port": "https", "scheme": "HTTPS"}, "initialDelaySeconds": 10, "successThreshold": 0},
                "readinessProbe": {"grpc": {"port": 1}, "successThreshold": 3},
                "lifecycle": {"preStop": {"sleep": {"seconds": 30}}},
                "restartPolicy": "Never",
                "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [3]}}],
            },
        }),
        "",
    );
}

#[test]
fn names() {
    let label = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
    let invalid = |path: &str, name: &str| format!("{path}: Invalid value: {name:?}: {label}");
    for name in ["A", "a.b", "-a", "a-", "../x", "a b"] {
        check(
            json!({"c": {"name": name}}),
            &invalid("spec.containers[0].name", name),
        );
        check(json!({"hostname": name}), &invalid("spec.hostname", name));
    }
    check(
        json!({"c": {"name": ""}}),
        "spec.containers[0].name: Required value",
    );
    check(
        json!({"c": {"name": "a".repeat(64)}}),
        &format!(
            "spec.containers[0].name: Invalid value: {:?}: must be no more than 63 characters",
            "a".repeat(64)
        ),
    );
    check(json!({"containers": []}), "spec.containers: Required value");
    check(
        json!({"initContainers": [sidecar("c")]}),
        "spec.initContainers[0].name: Duplicate value: \"c\"",
    );
    let twice = pod(json!({})).spec.unwrap().containers[0].clone();
    check(
        json!({"containers": [twice.clone(), twice]}),
        "spec.containers[1].name: Duplicate value: \"c\"",
    );
    let named = |name: &str, namespace: &str| {
        let mut pod = pod(json!({}));
        pod.metadata.name = Some(name.into());
        pod.metadata.namespace = Some(namespace.into());
        validate_pod_create(&pod).map_err(|e| e.to_string())
    };
    assert_eq!(named("a.b-node1", "ns"), Ok(()));
    for name in ["../../etc", "UP", "a..b", "a/b"] {
        let told = named(name, "ns").unwrap_err();
        assert!(
            told.starts_with(&format!(
                "[metadata.name: Invalid value: {name:?}: a lowercase RFC 1123 subdomain must"
            )),
            "{told}"
        );
        let told = named("p", name).unwrap_err();
        assert!(
            told.starts_with(&format!(
                "[metadata.namespace: Invalid value: {name:?}: a lowercase RFC 1123 label must"
            )),
            "{told}"
        );
    }
}

#[test]
fn words() {
    for (change, expect) in [
        (
            json!({"restartPolicy": "Sometimes"}),
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
        ),
        (
            json!({"dnsPolicy": "Best"}),
            "spec.dnsPolicy: Unsupported value: \"Best\": supported values: \"ClusterFirstWithHostNet\", \"ClusterFirst\", \"Default\", \"None\"",
        ),
        (
            json!({"dnsPolicy": "None"}),
            "spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None",
        ),
        (
            json!({"dnsPolicy": "None", "dnsConfig": {}}),
            "spec.dnsConfig.nameservers: Required value: must provide at least one DNS nameserver when `dnsPolicy` is None",
        ),
        (
            json!({"dnsConfig": {"nameservers": ["1.2.3"]}}),
            "spec.dnsConfig.nameservers[0]: Invalid value: \"1.2.3\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ),
        (
            json!({"dnsConfig": {"options": [{"value": "1"}]}}),
            "spec.dnsConfig.options[0]: Required value: must not be empty",
        ),
        (
            json!({"hostAliases": [{"ip": "x"}]}),
            "spec.hostAliases[0].ip: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ),
        (
            json!({"activeDeadlineSeconds": 0}),
            "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
        ),
        (
            json!({"hostPID": true, "shareProcessNamespace": true}),
            "spec.shareProcessNamespace: Invalid value: true: ShareProcessNamespace and HostPID cannot both be enabled",
        ),
        (
            json!({"hostUsers": false, "hostIPC": true}),
            "spec.HostIPC: Forbidden: when `hostUsers` is false",
        ),
        (
            json!({"os": {"name": "plan9"}}),
            "spec.os.name: Unsupported value: \"plan9\": supported values: \"linux\", \"windows\"",
        ),
        (
            json!({"ephemeralContainers": [{"name": "e", "image": "i"}]}),
            "spec.ephemeralContainers: Forbidden: cannot be set on create",
        ),
        (
            json!({"c": {"image": ""}}),
            "spec.containers[0].image: Required value",
        ),
        (
            json!({"c": {"image": " i"}}),
            "spec.containers[0].image: Invalid value: \" i\": must not have leading or trailing whitespace",
        ),
        (
            json!({"c": {"imagePullPolicy": "Maybe"}}),
            "spec.containers[0].imagePullPolicy: Unsupported value: \"Maybe\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
        ),
        (
            json!({"c": {"terminationMessagePolicy": "Log"}}),
            "spec.containers[0].terminationMessagePolicy: Unsupported value: \"Log\": supported values: \"File\", \"FallbackToLogsOnError\"",
        ),
        (
            json!({"c": {"restartPolicy": "Often"}}),
            "spec.containers[0].restartPolicy: Unsupported value: \"Often\": supported values: \"Always\", \"Never\", \"OnFailure\"",
        ),
        (
            json!({"c": {"restartPolicyRules": [{"action": "Restart"}]}}),
            "spec.containers[0].restartPolicy: Required value: must specify restartPolicy when restart rules are used spec.containers[0].restartPolicyRules[0].exitCodes: Required value: must be specified",
        ),
        (
            json!({"c": {"resizePolicy": [{"resourceName": "disk", "restartPolicy": "NotRequired"}]}}),
            "spec.containers[0].resizePolicy: Unsupported value: \"disk\": supported values: \"cpu\", \"memory\"",
        ),
        (
            json!({"securityContext": {"runAsUser": -1}}),
            "spec.securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
        ),
        (
            json!({"securityContext": {"sysctls": [{"name": "../x", "value": ""}]}}),
            "spec.securityContext.sysctls[0].name: Invalid value: \"../x\": must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
        ),
        (
            json!({"hostNetwork": true, "securityContext": {"sysctls": [{"name": "net.ipv4.ip_forward", "value": "1"}]}}),
            "spec.securityContext.sysctls[0].name: Invalid value: \"net.ipv4.ip_forward\": may not be specified when 'hostNetwork' is true",
        ),
        (
            json!({"c": {"securityContext": {"seccompProfile": {"type": "Localhost", "localhostProfile": "../x"}}}}),
            "spec.containers[0].securityContext.seccompProfile.localhostProfile: Invalid value: \"../x\": must not contain '..'",
        ),
        (
            json!({"c": {"securityContext": {"procMount": "Unmasked"}}}),
            "spec.containers[0].securityContext.procMount: Invalid value: \"Unmasked\": `hostUsers` must be false to use `Unmasked`",
        ),
        (
            json!({"c": {"securityContext": {"privileged": true, "allowPrivilegeEscalation": false}}}),
            "spec.containers[0].securityContext: Invalid value: {\"allowPrivilegeEscalation\":false,\"privileged\":true}: cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
        ),
    ] {
        check(change, expect);
    }
}

#[test]
fn ports() {
    let at = |port: Value, expect: &str| {
        let expect = match expect {
            "" => String::new(),
            _ => format!("spec.containers[0].ports[0].{expect}"),
        };
        check(json!({"c": {"ports": [port]}}), &expect);
    };
    at(json!({"containerPort": 1, "protocol": "UDP"}), "");
    at(
        json!({"containerPort": 0, "protocol": "TCP"}),
        "containerPort: Required value",
    );
    at(
        json!({"containerPort": 65536, "protocol": "TCP"}),
        "containerPort: Invalid value: 65536: must be between 1 and 65535, inclusive",
    );
    at(
        json!({"containerPort": 1, "hostPort": -1, "protocol": "TCP"}),
        "hostPort: Invalid value: -1: must be between 1 and 65535, inclusive",
    );
    at(
        json!({"containerPort": 1, "protocol": "tcp"}),
        "protocol: Unsupported value: \"tcp\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
    );
    at(
        json!({"name": "1", "containerPort": 1, "protocol": "TCP"}),
        "name: Invalid value: \"1\": must contain at least one letter (a-z)",
    );
    at(
        json!({"name": "a--b", "containerPort": 1, "protocol": "TCP"}),
        "name: Invalid value: \"a--b\": must not contain consecutive hyphens",
    );
    let port = json!({"name": "a", "containerPort": 1, "hostPort": 9, "protocol": "TCP"});
    check(
        json!({"c": {"ports": [port, port]}}),
        "spec.containers[0].ports[1].name: Duplicate value: \"a\" spec.containers[0].ports[1].hostPort: Duplicate value: \"TCP//9\"",
    );
    check(
        json!({"hostNetwork": true, "c": {"ports": [port]}}),
        "spec.containers[0].ports[0].hostPort: Invalid value: 9: must match `containerPort` when `hostNetwork` is true",
    );
}

#[test]
fn volumes_and_mounts() {
    let volume = |volume: Value, expect: &str| check(json!({"volumes": [volume]}), expect);
    volume(
        json!({"name": "v"}),
        "spec.volumes[0]: Required value: must specify a volume type",
    );
    volume(
        json!({"name": "", "emptyDir": {}}),
        "spec.volumes[0].name: Required value",
    );
    volume(
        json!({"name": "v", "emptyDir": {"sizeLimit": "-1"}}),
        "spec.volumes[0].emptyDir.sizeLimit: Forbidden: SizeLimit field must be a valid resource quantity",
    );
    volume(
        json!({"name": "v", "emptyDir": {}, "hostPath": {"path": "/a"}}),
        "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
    );
    volume(
        json!({"name": "v", "hostPath": {"path": ""}}),
        "spec.volumes[0].hostPath.path: Required value",
    );
    volume(
        json!({"name": "v", "hostPath": {"path": "/a/../b"}}),
        "spec.volumes[0].hostPath.path: Invalid value: \"/a/../b\": must not contain '..'",
    );
    volume(
        json!({"name": "v", "hostPath": {"path": "/a", "type": "Dir"}}),
        "spec.volumes[0].hostPath.type: Unsupported value: \"Dir\": supported values: \"\", \"BlockDevice\", \"CharDevice\", \"Directory\", \"DirectoryOrCreate\", \"File\", \"FileOrCreate\", \"Socket\"",
    );
    check(
        json!({"volumes": [{"name": "v", "emptyDir": {}}, {"name": "v", "emptyDir": {}}]}),
        "spec.volumes[1].name: Duplicate value: \"v\"",
    );
    let mount = |mount: Value, expect: &str| {
        let volumes = json!([{"name": "v", "emptyDir": {}}]);
        check(
            json!({"volumes": volumes, "c": {"volumeMounts": mount}}),
            expect,
        );
    };
    mount(
        json!([{"name": "w", "mountPath": "/a"}]),
        "spec.containers[0].volumeMounts[0].name: Not found: \"w\"",
    );
    mount(
        json!([{"name": "v", "mountPath": ""}]),
        "spec.containers[0].volumeMounts[0].mountPath: Required value",
    );
    mount(
        json!([{"name": "v", "mountPath": "/a"}, {"name": "v", "mountPath": "/a"}]),
        "spec.containers[0].volumeMounts[1].mountPath: Invalid value: \"/a\": must be unique",
    );
    mount(
        json!([{"name": "v", "mountPath": "/a", "subPath": "../x"}]),
        "spec.containers[0].volumeMounts.subPath: Invalid value: \"../x\": must not contain '..'",
    );
    mount(
        json!([{"name": "v", "mountPath": "/a", "subPath": "/x"}]),
        "spec.containers[0].volumeMounts.subPath: Invalid value: \"/x\": must be a relative path",
    );
    mount(
        json!([{"name": "v", "mountPath": "/a", "mountPropagation": "Bidirectional"}]),
        "spec.containers[0].volumeMounts.mountPropagation: Forbidden: Bidirectional mount propagation is available only to privileged containers",
    );
    check(
        json!({"volumes": [{"name": "v", "emptyDir": {}}], "c": {"volumeDevices": [{"name": "v", "devicePath": "/dev/x"}]}}),
        "spec.containers[0].volumeDevices[0].name: Invalid value: \"v\": can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode",
    );
}

#[test]
fn variables() {
    for name in ["A=B", "ö", "a\nb", "x\u{0}"] {
        check(
            json!({"c": {"env": [{"name": name}]}}),
            &format!(
                "spec.containers[0].env[0].name: Invalid value: {name:?}: a valid environment variable name must consist only of printable ASCII characters other than '='"
            ),
        );
    }
    check(
        json!({"c": {"env": [{"name": "", "value": "x"}]}}),
        "spec.containers[0].env[0].name: Required value",
    );
    check(
        json!({"c": {"env": [{"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}}),
        "spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
    );
    check(
        json!({"c": {"env": [{"name": "A", "valueFrom": {}}]}}),
        "spec.containers[0].env[0].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
    );
    check(
        json!({"c": {"envFrom": [{"prefix": "A="}]}}),
        "spec.containers[0].envFrom[0].prefix: Invalid value: \"A=\": a valid environment variable name must consist only of printable ASCII characters other than '=' spec.containers[0].envFrom: Invalid value: \"\": must specify one of: `configMapRef` or `secretRef`",
    );
}

#[test]
fn probes_and_hooks() {
    let liveness = |probe: Value, expect: &str| {
        let expect = format!("spec.containers[0].livenessProbe{expect}");
        check(json!({"c": {"livenessProbe": probe}}), &expect);
    };
    liveness(json!({}), ": Required value: must specify a handler type");
    liveness(
        json!({"exec": {"command": []}}),
        ".exec.command: Required value",
    );
    liveness(
        json!({"tcpSocket": {"port": 0}}),
        ".tcpSocket.port: Invalid value: 0: must be between 1 and 65535, inclusive",
    );
    liveness(
        json!({"tcpSocket": {"port": 1}, "grpc": {"port": 2}}),
        ".grpc: Forbidden: may not specify more than 1 handler type",
    );
    liveness(
        json!({"tcpSocket": {"port": 1}, "periodSeconds": -1}),
        ".periodSeconds: Invalid value: -1: must be greater than or equal to 0",
    );
    liveness(
        json!({"tcpSocket": {"port": 1}, "successThreshold": 2}),
        ".successThreshold: Invalid value: 2: must be 1",
    );
    liveness(
        json!({"tcpSocket": {"port": 1}, "terminationGracePeriodSeconds": 0}),
        ".terminationGracePeriodSeconds: Invalid value: 0: must be greater than 0",
    );
    liveness(
        json!({"httpGet": {"port": 1, "scheme": "FTP"}}),
        ".httpGet.scheme: Unsupported value: \"FTP\": supported values: \"HTTP\", \"HTTPS\"",
    );
    liveness(
        json!({"httpGet": {"port": 1, "httpHeaders": [{"name": "a b", "value": ""}]}}),
        ".httpGet.httpHeaders: Invalid value: \"a b\": a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')",
    );
    check(
        json!({"c": {"readinessProbe": {"tcpSocket": {"port": 1}, "terminationGracePeriodSeconds": 1}}}),
        "spec.containers[0].readinessProbe.terminationGracePeriodSeconds: Invalid value: 1: must not be set for readinessProbes",
    );
    check(
        json!({"c": {"lifecycle": {"preStop": {"sleep": {"seconds": 31}}}}}),
        "spec.containers[0].lifecycle.preStop.sleep: Invalid value: 31: must be non-negative and less than terminationGracePeriodSeconds (30)",
    );
    check(
        json!({"c": {"lifecycle": {"stopSignal": "SIGTERM"}}}),
        "spec.containers[0].lifecycle.stopSignal: Forbidden: may not be set for containers with empty `spec.os.name`",
    );
    let mut init = sidecar("i");
    init["startupProbe"] = json!({"tcpSocket": {"port": 1}});
    check(json!({"initContainers": [init]}), "");
    init.as_object_mut().unwrap().remove("restartPolicy");
    check(
        json!({"initContainers": [init]}),
        "spec.initContainers[0].startupProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
    );
}

#[test]
fn resources() {
    let of = |requests: Value, limits: Value, expect: &str| {
        let expect = match expect {
            "" => String::new(),
            _ => format!("spec.containers[0].resources{expect}"),
        };
        let resources = json!({"requests": requests, "limits": limits});
        check(json!({"c": {"resources": resources}}), &expect);
    };
    of(json!({"cpu": "1000m"}), json!({"cpu": "1"}), "");
    of(
        json!({"cpu": "1100m"}),
        json!({"cpu": "1"}),
        ".requests: Invalid value: \"1100m\": must be less than or equal to cpu limit of 1",
    );
    of(
        json!({"memory": "-1Gi"}),
        json!({}),
        ".requests[memory]: Invalid value: \"-1Gi\": must be greater than or equal to 0",
    );
    of(
        json!({"cpus": "1"}),
        json!({}),
        ".requests[cpus]: Invalid value: \"cpus\": must be a standard resource type or fully qualified spec.containers[0].resources.requests[cpus]: Invalid value: \"cpus\": must be a standard resource for containers",
    );
    of(
        json!({}),
        json!({"pods": "1"}),
        ".limits[pods]: Invalid value: \"pods\": must be a standard resource for containers",
    );
    of(
        json!({"a.b/c": "1"}),
        json!({"a.b/c": "2"}),
        ".requests: Invalid value: \"1\": must be equal to a.b/c limit of 2",
    );
    of(
        json!({"a.b/c": "1"}),
        json!({}),
        ".limits: Required value: Limit must be set for non overcommitable resources",
    );
    of(
        json!({}),
        json!({"a.b/c": "500m"}),
        ".limits[a.b/c]: Invalid value: \"500m\": must be an integer",
    );
    of(
        json!({}),
        json!({"hugepages-2Mi": "2Mi"}),
        ": Forbidden: HugePages require cpu or memory",
    );
    of(
        json!({"cpu": 1}),
        json!({"hugepages-2Mi": "3Mi"}),
        ".limits[hugepages-2Mi]: Invalid value: \"3Mi\": 3Mi is not positive integer multiple of hugepages-2Mi",
    );
    check(
        json!({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}),
        "spec.resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
    );
}
