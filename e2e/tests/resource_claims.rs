//! Promise: a pod gets the claims of its templates, a claim knows its users, and what the last one leaves is free again.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::probe::{Namespace, cluster, wait_until};

const SOON: Duration = Duration::from_secs(60);

const TEMPLATE: &str = "{apiVersion: resource.k8s.io/v1, kind: ResourceClaimTemplate, metadata: {name: t}, spec: {metadata: {labels: {from: template}}, spec: {devices: {requests: [{name: r, exactly: {deviceClassName: none.example.com}}]}}}}";

const CLAIM: &str = "{apiVersion: resource.k8s.io/v1, kind: ResourceClaim, metadata: {name: shared, finalizers: [resource.kubernetes.io/delete-protection]}, spec: {devices: {requests: [{name: r, exactly: {deviceClassName: none.example.com}}]}}}";

fn pod(name: &str, source: &str, more: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{{more} containers: [{{name: c, image: none.example.com/none}}], resourceClaims: [{{name: dev, {source}}}]}}}}"
    )
}

fn field(ns: &Namespace<'_>, what: &str, path: &str) -> Result<String> {
    ns.kubectl(&["get", what, "-o", &format!("jsonpath={{{path}}}")])
}

fn becomes(ns: &Namespace<'_>, what: &str, path: &str, value: &str) -> Result<()> {
    wait_until(&format!("{what}: {path} is {value:?}"), SOON, || {
        Ok(field(ns, what, path)? == value)
    })
}

/// The claim on record in a pod's status, once it is there.
fn recorded(ns: &Namespace<'_>, pod: &str) -> Result<String> {
    let path = ".status.resourceClaimStatuses[0].resourceClaimName";
    let mut name = String::new();
    wait_until(&format!("{pod} has its claim"), SOON, || {
        name = field(ns, &format!("pod/{pod}"), path)?;
        Ok(!name.is_empty())
    })?;
    Ok(name)
}

/// What a scheduler and a driver would do.
fn allocate(ns: &Namespace<'_>, claim: &str, users: &[(&str, &str)]) -> Result<()> {
    let users: Vec<_> = users
        .iter()
        .map(|(name, uid)| {
            format!("{{\"resource\":\"pods\",\"name\":\"{name}\",\"uid\":\"{uid}\"}}")
        })
        .collect();
    let status = format!(
        "{{\"status\":{{\"allocation\":{{\"devices\":{{\"results\":[{{\"request\":\"r\",\"driver\":\"none.example.com\",\"pool\":\"p\",\"device\":\"d\"}}]}}}},\"reservedFor\":[{}]}}}}",
        users.join(",")
    );
    let args = [
        "patch",
        "resourceclaim",
        claim,
        "--subresource=status",
        "--type=merge",
        "-p",
        &status,
    ];
    ns.kubectl(&args).map(drop)
}

#[test]
fn a_template_becomes_a_claim_that_goes_with_its_pod() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "resource-claims")?;
    ns.apply(&pod("p", "resourceClaimTemplateName: t", ""))?;
    wait_until("the pod is told what is missing", SOON, || {
        let text = ns.kubectl(&["describe", "pod/p"])?;
        Ok(text.contains("FailedResourceClaimCreation") && text.contains("\"t\" not found"))
    })?;
    ns.apply(TEMPLATE)?;
    let claim = recorded(&ns, "p")?;
    ensure!(claim.starts_with("p-dev-"), "the claim's name is {claim}");
    let what = format!("resourceclaim/{claim}");
    let uid = field(&ns, "pod/p", ".metadata.uid")?;
    let owner = ".metadata.ownerReferences[0]";
    for (path, value) in [
        (format!("{owner}.kind"), "Pod"),
        (format!("{owner}.uid"), &*uid),
        (format!("{owner}.controller"), "true"),
        (".metadata.labels.from".into(), "template"),
        (
            ".metadata.annotations.resource\\.kubernetes\\.io/pod-claim-name".into(),
            "dev",
        ),
        (
            ".spec.devices.requests[0].exactly.deviceClassName".into(),
            "none.example.com",
        ),
    ] {
        let found = field(&ns, &what, &path)?;
        ensure!(found == value, "{what}: {path} is {found:?}, not {value:?}");
    }
    // Deleted by accident: the pod gets another.
    ns.kubectl(&["delete", &what])?;
    wait_until("the claim is made anew", SOON, || {
        let now = recorded(&ns, "p")?;
        Ok(now != claim
            && !field(&ns, &format!("resourceclaim/{now}"), ".metadata.uid")?.is_empty())
    })?;
    // The pod is done and stays; its claim does not, in use or not, and does not come back.
    let claim = recorded(&ns, "p")?;
    let protected =
        "{\"metadata\":{\"finalizers\":[\"resource.kubernetes.io/delete-protection\"]}}";
    ns.kubectl(&[
        "patch",
        "resourceclaim",
        &claim,
        "--type=merge",
        "-p",
        protected,
    ])?;
    allocate(&ns, &claim, &[("p", &uid)])?;
    let done = "{\"status\":{\"phase\":\"Succeeded\"}}";
    ns.kubectl(&["patch", "pod", "p", "--subresource=status", "-p", done])?;
    let none = || {
        Ok(ns
            .kubectl(&["get", "resourceclaims", "-o", "name"])?
            .is_empty())
    };
    wait_until("the claim is gone", SOON, none)?;
    let version = field(&ns, "pod/p", ".metadata.resourceVersion")?;
    ns.kubectl(&["annotate", "pod", "p", "touched=yes"])?;
    becomes(&ns, "pod/p", ".metadata.annotations.touched", "yes")?;
    ensure!(
        none()?,
        "a claim came back after version {version} of the pod"
    );
    // Nor does one survive its pod.
    ns.apply(&pod("q", "resourceClaimTemplateName: t", ""))?;
    recorded(&ns, "q")?;
    ns.kubectl(&["delete", "pod", "q"])?;
    wait_until("the claim of the deleted pod is gone", SOON, none)?;
    ns.delete()
}

#[test]
fn a_claim_is_free_when_its_last_user_is_gone() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "resource-claims-shared")?;
    ns.apply(CLAIM)?;
    for name in ["a", "b"] {
        ns.apply(&pod(name, "resourceClaimName: shared", ""))?;
    }
    let uid = |name: &str| field(&ns, &format!("pod/{name}"), ".metadata.uid");
    let (a, b) = (uid("a")?, uid("b")?);
    // One user that never was goes at once.
    allocate(&ns, "shared", &[("a", &a), ("b", &b), ("never", "0")])?;
    let users = ".status.reservedFor[*].name";
    let allocation = ".status.allocation.devices.results[0].device";
    becomes(&ns, "resourceclaim/shared", users, "a b")?;
    ns.kubectl(&["delete", "pod", "a"])?;
    becomes(&ns, "resourceclaim/shared", users, "b")?;
    ensure!(
        field(&ns, "resourceclaim/shared", allocation)? == "d",
        "still in use"
    );
    ns.kubectl(&["delete", "pod", "b"])?;
    becomes(&ns, "resourceclaim/shared", users, "")?;
    becomes(&ns, "resourceclaim/shared", allocation, "")?;
    becomes(&ns, "resourceclaim/shared", ".metadata.finalizers", "")?;
    // Whoever binds a pod without a scheduler gets the reservation here.
    allocate(&ns, "shared", &[])?;
    ns.apply(&pod(
        "bound",
        "resourceClaimName: shared",
        "nodeName: nowhere,",
    ))
    .context("a pod on a node nobody has")?;
    becomes(&ns, "resourceclaim/shared", users, "bound")?;
    ns.kubectl(&["delete", "pod", "bound", "--grace-period=0", "--force"])?;
    becomes(&ns, "resourceclaim/shared", users, "")?;
    ns.delete()
}

const DEVICES: &str = "[{apiVersion: resource.k8s.io/v1, kind: DeviceClass, metadata: {name: gpu.example.com}, spec: {selectors: [{cel: {expression: \"device.driver == 'gpu.example.com' && device.attributes['gpu.example.com'].memory >= 40\"}}]}}";

/// A slice of one node with two devices, of which the class takes one.
fn slice(node: &str) -> String {
    format!(
        "{{apiVersion: resource.k8s.io/v1, kind: ResourceSlice, metadata: {{name: gpus-of-{node}}}, spec: {{driver: gpu.example.com, nodeName: {node}, \
         pool: {{name: {node}, generation: 1, resourceSliceCount: 1}}, devices: [\
         {{name: small, attributes: {{memory: {{int: 16}}}}}}, {{name: large, attributes: {{memory: {{int: 80}}}}}}]}}}}"
    )
}

/// Promise: the scheduler finds a device that the claim's class takes, on the node that has it, and gives it to one claim at a time.
#[test]
fn a_claim_gets_a_device_and_its_pod_the_node() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "resource-devices")?;
    let node = cluster.kubectl(&["get", "nodes", "-o", "jsonpath={.items[1].metadata.name}"])?;
    ns.apply(&format!(
        "{{apiVersion: v1, kind: List, items: {DEVICES}, {}]}}",
        slice(&node)
    ))?;
    let claim = |name: &str| {
        format!(
            "{{apiVersion: resource.k8s.io/v1, kind: ResourceClaim, metadata: {{name: {name}}}, spec: {{devices: {{requests: [\
             {{name: r, exactly: {{deviceClassName: gpu.example.com}}}}]}}}}}}"
        )
    };
    for name in ["first", "second"] {
        ns.apply(&claim(name))?;
        ns.apply(&pod(name, &format!("resourceClaimName: {name}"), ""))?;
        if name == "first" {
            becomes(&ns, "pod/first", ".spec.nodeName", &node)?;
        }
    }
    let result = ".status.allocation.devices.results[0]";
    for (path, value) in [
        (format!("{result}.device"), "large"),
        (format!("{result}.driver"), "gpu.example.com"),
        (".status.reservedFor[0].name".to_owned(), "first"),
    ] {
        let found = field(&ns, "resourceclaim/first", &path)?;
        ensure!(found == value, "{path} is {found:?}, not {value:?}");
    }
    wait_until("the second pod is told that nothing is left", SOON, || {
        let text = ns.kubectl(&["describe", "pod/second"])?;
        Ok(text.contains("cannot allocate all claims"))
    })?;
    // The node that has no driver says so, and starts nothing without the device.
    wait_until("the first pod says why it does not run", SOON, || {
        let text = ns.kubectl(&["describe", "pod/first"])?;
        Ok(text.contains("FailedPrepareDynamicResources") && text.contains("gpu.example.com"))
    })?;
    // What the first leaves, the second gets.
    ns.kubectl(&["delete", "pod/first", "--timeout=60s"])?;
    ns.kubectl(&["delete", "resourceclaim/first", "--timeout=60s"])?;
    becomes(&ns, "pod/second", ".spec.nodeName", &node)?;
    ns.kubectl(&["delete", "pod/second", "--timeout=60s"])?;
    let names = ["resourceslice/gpus-of-", "deviceclass/gpu.example.com"];
    cluster.kubectl(&["delete", &format!("{}{node}", names[0]), names[1]])?;
    ns.delete()
}
