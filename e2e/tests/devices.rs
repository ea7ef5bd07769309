//! Promise: what a device plugin has, the node says; a pod that asks for it gets it, and one for whom nothing is left is rejected. With
//! upstream's sample plugin, as its DaemonSet runs it: `cargo e2e test devices`.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::probe::{Namespace, cluster, wait_until};

const SOON: Duration = Duration::from_secs(120);
const IMAGE: &str = "registry.k8s.io/e2e-test-images/busybox:1.37.0-2";
const PLUGIN: &str = "registry.k8s.io/e2e-test-images/sample-device-plugin:1.7";
const NODE: &str = "node-1";
/// Two of it, `Dev-1` and `Dev-2`; the plugin mounts a file of that name below /tmp.
const RESOURCE: &str = "example.com/resource";

fn plugin() -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: plugin}}, spec: {{nodeName: {NODE}, terminationGracePeriodSeconds: 1, \
         containers: [{{name: plugin, image: '{PLUGIN}', securityContext: {{privileged: true}}, \
           env: [{{name: PLUGIN_SOCK_DIR, value: /var/lib/kubelet/device-plugins}}], \
           volumeMounts: [{{name: plugins, mountPath: /var/lib/kubelet/device-plugins}}, {{name: tmp, mountPath: /tmp}}]}}], \
         volumes: [{{name: plugins, hostPath: {{path: /var/lib/kubelet/device-plugins}}}}, {{name: tmp, hostPath: {{path: /tmp}}}}]}}}}"
    )
}

fn user(name: &str, count: u32) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{nodeName: {NODE}, terminationGracePeriodSeconds: 1, \
         containers: [{{name: c, image: '{IMAGE}', command: [sh, -c, 'ls /tmp; sleep 3600'], \
           resources: {{limits: {{{RESOURCE}: {count}}}}}}}]}}}}"
    )
}

fn becomes(ns: &Namespace<'_>, what: &str, path: &str, value: &str) -> Result<()> {
    wait_until(&format!("{what}: {path} is {value:?}"), SOON, || {
        let found = ns.kubectl(&["get", what, "-o", &format!("jsonpath={{{path}}}")])?;
        Ok(found == value)
    })
}

#[test]
fn a_pod_gets_the_devices_of_a_plugin_and_one_too_many_is_rejected() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "devices")?;
    let node = format!("node/{NODE}");
    let allocatable = ".status.allocatable.example\\.com/resource";
    ns.apply(&plugin())?;
    becomes(&ns, &node, allocatable, "2")?;
    ns.apply(&user("first", 2))?;
    becomes(&ns, "pod/first", ".status.phase", "Running")?;
    let seen = ns.kubectl(&["exec", "first", "--", "ls", "/tmp"])?;
    ensure!(seen.contains("Dev-1") && seen.contains("Dev-2"), "{seen:?}");
    ns.apply(&user("second", 1))?;
    becomes(
        &ns,
        "pod/second",
        ".status.reason",
        "UnexpectedAdmissionError",
    )?;
    // The plugin goes: the devices are there, and not to be had.
    ns.kubectl(&["delete", "pod", "plugin", "--wait=true", "--timeout=60s"])?;
    becomes(&ns, &node, allocatable, "0")?;
    becomes(&ns, "pod/first", ".status.phase", "Running")
}
