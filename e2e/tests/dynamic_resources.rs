//! Promise: a pod with a claim runs once the driver prepared it and has what the driver says of its device; when the pod is gone, the driver has let go of
//! it, and when the driver is gone, so are its devices. With upstream's test driver: `cargo e2e test dynamic_resources`.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::probe::{Namespace, cluster, wait_until};

const SOON: Duration = Duration::from_secs(120);
const IMAGE: &str = "registry.k8s.io/e2e-test-images/busybox:1.37.0-2";
const DRIVER_IMAGE: &str = "registry.k8s.io/gantry-test/dra-test-driver:1.37.2";
const NODE: &str = "node-1";
const DRIVER: &str = "dra.e2e.example.com";

/// What the driver may do in the API. Upstream: test/e2e/dra/test-driver/deploy/example/plugin-permissions.yaml.
fn permissions(namespace: &str) -> String {
    let rules = "[{apiGroups: [resource.k8s.io], resources: [resourceclaims], verbs: [get]}, \
         {apiGroups: [resource.k8s.io], resources: [resourceclaims/status], verbs: [patch, update]}, \
         {apiGroups: [''], resources: [nodes], verbs: [get]}, \
         {apiGroups: [resource.k8s.io], resources: [resourceslices], verbs: [get, list, watch, create, update, patch, delete]}]";
    format!(
        "{{apiVersion: v1, kind: ServiceAccount, metadata: {{name: driver}}}}\n---\n\
         {{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {{name: {DRIVER}}}, rules: {rules}}}\n---\n\
         {{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {{name: {DRIVER}}}, \
           subjects: [{{kind: ServiceAccount, name: driver, namespace: {namespace}}}], \
           roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {DRIVER}}}}}\n---\n\
         {{apiVersion: resource.k8s.io/v1, kind: DeviceClass, metadata: {{name: {DRIVER}}}, \
           spec: {{selectors: [{{cel: {{expression: 'device.driver == \"{DRIVER}\"'}}}}]}}}}"
    )
}

fn driver() -> String {
    let own = format!("/var/lib/kubelet/plugins/{DRIVER}");
    let mounts = [
        ("registry", "/var/lib/kubelet/plugins_registry"),
        ("own", own.as_str()),
        ("cdi", "/var/run/cdi"),
    ];
    let of_container = mounts.map(|(name, path)| format!("{{name: {name}, mountPath: {path}}}"));
    let of_pod = mounts.map(|(name, path)| {
        format!("{{name: {name}, hostPath: {{path: {path}, type: DirectoryOrCreate}}}}")
    });
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: driver}}, spec: {{nodeName: {NODE}, serviceAccountName: driver, terminationGracePeriodSeconds: 5, \
         containers: [{{name: driver, image: '{DRIVER_IMAGE}', securityContext: {{privileged: true}}, \
           args: [--drivername={DRIVER}, -v=5, kubelet-plugin, --node-name={NODE}, --num-devices=2], \
           volumeMounts: [{}]}}], volumes: [{}]}}}}",
        of_container.join(", "),
        of_pod.join(", ")
    )
}

fn template() -> String {
    format!(
        "{{apiVersion: resource.k8s.io/v1, kind: ResourceClaimTemplate, metadata: {{name: one}}, spec: {{spec: {{devices: {{\
         requests: [{{name: r, exactly: {{deviceClassName: {DRIVER}}}}}], \
         config: [{{opaque: {{driver: {DRIVER}, parameters: {{color: green}}}}}}]}}}}}}}}"
    )
}

/// Its first container uses the claim, the other does not.
fn user() -> String {
    let container = |name: &str, more: &str| {
        format!("{{name: {name}, image: '{IMAGE}', command: [sh, -c, 'env; sleep 3600']{more}}}")
    };
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: user}}, spec: {{terminationGracePeriodSeconds: 1, \
         containers: [{}, {}], resourceClaims: [{{name: dev, resourceClaimTemplateName: one}}]}}}}",
        container("with", ", resources: {claims: [{name: dev}]}"),
        container("without", "")
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

/// Files of the driver's, one a prepared claim.
fn prepared(ns: &Namespace<'_>) -> Result<String> {
    let script = format!("ls /var/run/cdi | grep {DRIVER} || true");
    ns.kubectl(&["exec", "driver", "--", "sh", "-c", &script])
}

fn slices(ns: &Namespace<'_>) -> Result<String> {
    let selector = format!("--field-selector=spec.driver={DRIVER}");
    ns.kubectl(&["get", "resourceslices", &selector, "-o", "name"])
}

struct Permissions<'a>(&'a Namespace<'a>);

impl Drop for Permissions<'_> {
    fn drop(&mut self) {
        for kind in ["clusterrolebinding", "clusterrole", "deviceclass"] {
            let _ = self
                .0
                .kubectl(&["delete", kind, DRIVER, "--ignore-not-found"]);
        }
    }
}

#[test]
#[ignore = "a driver of its own: `cargo e2e test dynamic_resources` runs it"]
fn a_pod_has_the_device_of_its_claim_and_lets_go_of_it() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "dynamic-resources")?;
    ns.apply(&permissions(&ns.name))?;
    let _permissions = Permissions(&ns);
    ns.apply(&template())?;
    ns.apply(&driver())?;
    becomes(&ns, "pod/driver", ".status.phase", "Running")?;
    wait_until("the driver's devices are known", SOON, || {
        Ok(!slices(&ns)?.is_empty())
    })?;

    ns.apply(&user())?;
    becomes(&ns, "pod/user", ".status.phase", "Running")?;
    let env = |container: &str| ns.kubectl(&["exec", "user", "-c", container, "--", "env"]);
    let with = env("with")?;
    ensure!(with.contains("user_color=green"), "{with}");
    let without = env("without")?;
    ensure!(!without.contains("user_color"), "{without}");
    ensure!(!prepared(&ns)?.is_empty(), "the driver prepared nothing");
    let status = ".status.containerStatuses[?(@.name==\"with\")].allocatedResourcesStatus[0].name";
    becomes(&ns, "pod/user", status, "claim:dev")?;

    ns.kubectl(&["delete", "pod", "user", "--wait=true", "--timeout=60s"])?;
    let left = prepared(&ns).context("look at the driver's files")?;
    ensure!(left.trim().is_empty(), "the driver still has {left}");
    wait_until("the claim goes with its pod", SOON, || {
        let claims = ns.kubectl(&["get", "resourceclaims", "-o", "name"])?;
        Ok(claims.is_empty())
    })?;

    // After half a minute nobody is given what nobody can prepare.
    ns.kubectl(&["delete", "pod", "driver", "--wait=true", "--timeout=60s"])?;
    wait_until("the driver's devices are gone", SOON, || {
        Ok(slices(&ns)?.is_empty())
    })
}
