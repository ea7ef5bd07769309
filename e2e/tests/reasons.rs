//! Promise: a pod that cannot run says why in `kubectl describe`, with upstream's reasons; a
//! program with bad flags or files names the field and the value.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Component, control_plane};
use e2e::probe::{Namespace, cluster, wait_until};

/// A pod on which `describe` must show every one of the words.
struct Case {
    name: &'static str,
    spec: &'static str,
    words: &'static [&'static str],
}

const IMAGE: &str = "registry.k8s.io/e2e-test-images/busybox:1.37.0-2";

const CASES: &[Case] = &[
    Case {
        name: "no-such-image",
        spec: "containers: [{name: main, image: 'registry.k8s.io/e2e-test-images/nothing:1'}]",
        words: &[
            "ErrImagePull",
            "Failed to pull image \"registry.k8s.io/e2e-test-images/nothing:1\"",
            "Back-off pulling image",
        ],
    },
    Case {
        name: "bad-image-name",
        spec: "containers: [{name: main, image: 'registry.k8s.io/UPPER:1'}]",
        words: &["InvalidImageName", "couldn't parse image name"],
    },
    Case {
        name: "bad-command",
        spec: "containers: [{name: main, image: IMAGE, command: [/no/such/program]}]",
        words: &[
            "RunContainerError|CrashLoopBackOff|StartError",
            "/no/such/program",
            "128",
        ],
    },
    Case {
        name: "crash-loop",
        spec: "containers: [{name: main, image: IMAGE, command: [sh, -c, 'exit 3']}]",
        words: &[
            "Exit Code:    3",
            "Back-off restarting failed container main",
        ],
    },
    Case {
        name: "missing-config-map",
        spec: "containers: [{name: main, image: IMAGE, command: [sleep, '99'], envFrom: [{configMapRef: {name: absent}}]}]",
        words: &[
            "CreateContainerConfigError",
            "configmap \"absent\" not found",
        ],
    },
    Case {
        name: "missing-volume",
        spec: "volumes: [{name: v, configMap: {name: absent}}], containers: [{name: main, image: IMAGE, command: [sleep, '99'], volumeMounts: [{name: v, mountPath: /v}]}]",
        words: &[
            "FailedMount",
            "MountVolume.SetUp failed for volume \"v\"",
            "configmap \"absent\" not found",
        ],
    },
    Case {
        name: "bad-host-path",
        spec: "volumes: [{name: v, hostPath: {path: /no/such/folder, type: Directory}}], containers: [{name: main, image: IMAGE, command: [sleep, '99'], volumeMounts: [{name: v, mountPath: /v}]}]",
        words: &[
            "FailedMount",
            "hostPath type check failed, /no/such/folder is not a directory, unable to determine its type",
        ],
    },
    Case {
        name: "too-large",
        spec: "containers: [{name: main, image: IMAGE, resources: {requests: {cpu: '1000'}}}]",
        words: &[
            "FailedScheduling",
            "0/2 nodes are available",
            "2 Insufficient cpu",
            "PodScheduled      False|PodScheduled  False|PodScheduled   False",
        ],
    },
    Case {
        name: "no-such-node-label",
        spec: "nodeSelector: {no: such}, containers: [{name: main, image: IMAGE}]",
        words: &[
            "FailedScheduling",
            "2 node(s) didn't match Pod's node affinity/selector",
        ],
    },
    Case {
        name: "runs-as-root",
        spec: "securityContext: {runAsNonRoot: true}, containers: [{name: main, image: IMAGE, command: [sleep, '99']}]",
        words: &[
            "CreateContainerConfigError",
            "container has runAsNonRoot and image will run as root",
        ],
    },
    // The machines that run this have no AppArmor; one that has it enforces the profile.
    Case {
        name: "confined",
        spec: "securityContext: {appArmorProfile: {type: RuntimeDefault}}, containers: [{name: main, image: IMAGE, command: [sleep, '99']}]",
        words: &[
            "AppArmor|ContainersReady             True",
            "Cannot enforce AppArmor: AppArmor is not enabled on the host|ContainersReady             True",
        ],
    },
];

#[test]
fn a_pod_that_cannot_run_says_why() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "reasons")?;
    for case in CASES {
        ns.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {}}}, spec: {{terminationGracePeriodSeconds: 0, {}}}}}",
            case.name,
            case.spec.replace("IMAGE", IMAGE)
        ))?;
    }
    let mut problems = Vec::new();
    for case in CASES {
        for words in case.words {
            let found = wait_until(
                &format!("{}: {words:?}", case.name),
                Duration::from_secs(60),
                || {
                    let text = ns.kubectl(&["describe", "pod", case.name])?;
                    Ok(words.split('|').any(|words| text.contains(words)))
                },
            );
            if let Err(err) = found {
                problems.push(format!(
                    "{err:#}\n{}",
                    ns.kubectl(&["describe", "pod", case.name])
                        .unwrap_or_default()
                ));
            }
        }
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    ns.delete()
}

#[test]
fn a_taint_is_named() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "reasons-taint")?;
    cluster.kubectl(&["taint", "nodes", "--all", "reserved=yes:NoSchedule"])?;
    let found = ns
        .kubectl(&["run", "waits", &format!("--image={IMAGE}")])
        .and_then(|_| {
            wait_until("the taint in describe", Duration::from_secs(30), || {
                Ok(ns
                    .kubectl(&["describe", "pod", "waits"])?
                    .contains("untolerated taint"))
            })
        });
    cluster.kubectl(&["taint", "nodes", "--all", "reserved=yes:NoSchedule-"])?;
    found.with_context(|| {
        ns.kubectl(&["describe", "pod", "waits"])
            .unwrap_or_default()
    })?;
    ns.delete()
}

#[test]
fn bad_flags_and_files_are_refused_with_field_and_value() -> Result<()> {
    let cluster = cluster()?;
    let dir = tempfile::tempdir()?;
    let file = |name: &str, text: &str| -> Result<String> {
        let path = dir.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    };
    let kubelet = file(
        "kubelet",
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nmaxPods: -3\nnoSuchField: 1\n",
    )?;
    let scheduler = file(
        "scheduler",
        "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\nparallelism: -1\nprofiles: [{schedulerName: a, plugins: {score: {enabled: [{name: NoSuchPlugin}]}}}]\n",
    )?;
    let proxy = file(
        "proxy",
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclusterCIDR: nonsense\n",
    )?;
    for (component, argument, words) in [
        (
            Component::Kubelet,
            "--no-such-flag".to_owned(),
            vec!["no-such-flag"],
        ),
        (
            Component::Kubelet,
            format!("--config={kubelet}"),
            vec!["noSuchField"],
        ),
        (
            Component::KubeScheduler,
            "--leader-elect=perhaps".to_owned(),
            vec!["leader-elect", "perhaps"],
        ),
        (
            Component::KubeScheduler,
            format!("--config={scheduler}"),
            vec!["parallelism|NoSuchPlugin"],
        ),
        (
            Component::KubeControllerManager,
            "--node-monitor-period=nonsense".to_owned(),
            vec!["node-monitor-period", "nonsense"],
        ),
        (
            Component::KubeControllerManager,
            "--controllers=nonsense".to_owned(),
            vec!["nonsense"],
        ),
        (
            Component::KubeProxy,
            format!("--config={proxy}"),
            vec!["clusterCIDR|ClusterCIDR", "nonsense"],
        ),
    ] {
        let program = control_plane::program(&cluster, component);
        // In a network of its own: a program that takes the bad value must not disturb the cluster.
        let out = std::process::Command::new("unshare")
            .args(["--net", "timeout", "10", &program, &argument])
            .output()?;
        let text = String::from_utf8_lossy(&out.stderr).into_owned()
            + &String::from_utf8_lossy(&out.stdout);
        ensure!(
            !out.status.success() && out.status.code() != Some(124),
            "{} {argument} was not refused: {}\n{text}",
            component.name(),
            out.status
        );
        for word in words {
            ensure!(
                word.split('|').any(|word| text.contains(word)),
                "{} {argument}: {word:?} is not named:\n{text}",
                component.name()
            );
        }
    }
    Ok(())
}
