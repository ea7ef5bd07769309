//! The walls of the house, held by a test: which crate may depend on which, what of others is in the tree, and what every source
//! file keeps to.
//!
//! Rules of sources have a file each; where the house does not keep to one yet, the places are a table in that file which
//! may only shrink.

mod async_files;
mod calls;
mod circles;
mod deny;
mod lengths;
mod sources;

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::programs::Outputs;
use crate::step::output;

/// Every allowed arrow between our own crates: a crate, and what it may depend on.
const ARROWS: &[(&str, &[&str])] = &[
    ("component-helpers", &[]),
    // Kubernetes' protobuf for whatever has serde: no client, and none of our types.
    ("kube-protobuf", &[]),
    ("component-base", &["component-helpers", "kube-protobuf"]),
    (
        "controller-runtime",
        &["component-base", "component-helpers", "kube-protobuf"],
    ),
    (
        "kube-controller-manager",
        &["controller-runtime", "component-base", "component-helpers"],
    ),
    // What a provider is written against: no API server, and none of our machinery.
    ("cloud-provider", &[]),
    (
        "cloud-controller-manager",
        &[
            "cloud-provider",
            "controller-runtime",
            "component-base",
            "component-helpers",
        ],
    ),
    // Which devices a claim gets: a pure function of what the API server has.
    ("dynamic-resources", &["component-helpers"]),
    ("framework", &["component-helpers", "dynamic-resources"]),
    // `component-helpers` comes with the framework: a plugin compares quantities, labels and taints.
    (
        "plugins",
        &["framework", "component-helpers", "dynamic-resources"],
    ),
    // Plugins that no default profile has; they share the search of preemption with those that are in tree.
    (
        "extra-plugins",
        &["framework", "plugins", "component-helpers"],
    ),
    // Plugins in any language: what a plugin of ours may know, and the machine that runs them.
    ("wasm-plugins", &["framework"]),
    ("backend", &["framework", "component-helpers"]),
    (
        "kube-scheduler",
        &[
            "framework",
            "plugins",
            "extra-plugins",
            "wasm-plugins",
            "backend",
            "dynamic-resources",
            "component-base",
            "component-helpers",
        ],
    ),
    // As strangers' crates: a plugin, which knows the framework alone, and the program that has it.
    ("example-prefer-label", &["framework", "kube-scheduler"]),
    ("example-pool-access", &["framework", "kube-scheduler"]),
    ("example-power-cap", &["framework", "kube-scheduler"]),
    ("shim-protocol", &[]),
    // The protocols of volume drivers: generated, of use to both sides.
    ("csi-spec", &[]),
    // The Container Runtime Interface: generated, of use to whoever speaks it.
    ("cri-spec", &[]),
    // The CRI on the runtime: a library of the kubelet, and the program that answers without one.
    (
        "cri",
        &[
            "cri-spec",
            "runtime",
            "images",
            "network",
            "streaming",
            "component-base",
        ],
    ),
    // The node's pods for its agents: the protocol over whatever has pods.
    ("pods-api", &["kube-protobuf", "local-grpc"]),
    // Servers on sockets of the node, for clients written in Go.
    ("local-grpc", &[]),
    // The list of registered drivers and their calls; knows nothing of volumes.
    ("csi", &["csi-spec", "host"]),
    // Device plugins and who has which device; knows nothing of pods' objects, of the Node or of the runtime.
    (
        "devices",
        &[
            "host",
            "local-grpc",
            "resource-managers",
            "component-base",
            "component-helpers",
        ],
    ),
    // Drivers of devices and what they prepared; knows nothing of pods' or claims' objects, nor of the runtime.
    ("dra", &["host", "component-base"]),
    // Files that say what a container gets with a device; knows of no container.
    ("cdi", &["host"]),
    // Which CPUs and memory a container gets; knows nothing of the runtime, the API server or device plugins.
    ("resource-managers", &["host", "component-helpers"]),
    ("shim", &["shim-protocol", "host"]),
    // Files and trees that containers can change, for all that touch them.
    ("host", &[]),
    ("images", &["host"]),
    ("nftables", &[]),
    ("network", &["nftables", "host"]),
    (
        "runtime",
        &[
            "shim-protocol",
            "cdi",
            "images",
            "network",
            "host",
            "component-helpers",
        ],
    ),
    ("volumes", &["host", "csi", "component-helpers"]),
    // The wire protocols of exec, attach and port-forward: pure framing, of use without a kubelet.
    ("streaming", &[]),
    // systemd's daemons over D-Bus: they decide nothing and know no pods.
    ("systemd", &[]),
    (
        "kubelet",
        &[
            "runtime",
            "images",
            "network",
            "volumes",
            "host",
            "streaming",
            "systemd",
            "cri",
            "csi",
            "devices",
            "dra",
            "resource-managers",
            "pods-api",
            "component-base",
            "component-helpers",
        ],
    ),
    (
        "kube-proxy",
        &["nftables", "component-base", "component-helpers"],
    ),
    // It announces what the provider gantry gave out, by the same file.
    ("gantry-announcer", &["cloud-provider", "component-base"]),
    // What a provider of virtual nodes is written against: no API server, and none of our machinery.
    ("kubelet-provider", &[]),
    (
        "virtual-kubelet",
        &[
            "kubelet-provider",
            "streaming",
            "controller-runtime",
            "component-base",
            "component-helpers",
        ],
    ),
    ("e2e", &[]),
    // A driver for the judge's clusters: it knows the protocol, and nothing of what is judged.
    ("csi-hostpath", &["csi-spec"]),
    // Tests alone, of all programs together: for those it may depend on anything.
    ("world", &[]),
];

/// No code: one set of features of the dependencies for every selection of packages. All but `e2e`, which builds the others,
/// depend on it.
const UNIFIER: &str = "workspace-hack";

/// Crates that must stay free of a client, a runtime and the kernel.
const PURE: &[(&str, &[&str])] = &[
    ("component-helpers", &["kube", "tokio", "libc", "nix"]),
    ("kube-protobuf", &["kube", "tokio", "libc", "nix"]),
    ("dynamic-resources", &["kube", "tokio", "libc", "nix"]),
    ("framework", &["kube", "libc", "nix"]),
    ("plugins", &["kube", "libc", "nix"]),
    ("extra-plugins", &["kube", "libc", "nix"]),
    ("wasm-plugins", &["kube", "tokio", "libc", "nix"]),
    ("backend", &["kube", "libc", "nix"]),
    ("shim", &["tokio", "kube", "k8s-openapi"]),
    ("host", &["tokio", "kube", "k8s-openapi", "libc", "nix"]),
    ("resource-managers", &["tokio", "kube", "libc", "nix"]),
    ("kubelet-provider", &["kube", "libc", "nix"]),
];

const TOP_LEVEL: &[&str] = &[
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "charts",
    "controllers",
    "e2e",
    "findings",
    "fuzz",
    "kubelet",
    "scheduler",
    "workspace-hack",
];

/// # Errors
/// A wall is broken: every broken one is named.
pub fn check(outputs: &Outputs) -> Result<()> {
    let metadata = output(
        Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .current_dir(&outputs.workspace)
            .args(["metadata", "--format-version=1", "--no-deps", "--offline"]),
    )?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let mut problems = broken_arrows(&metadata)?;
    problems.extend(strays(outputs)?);
    problems.extend(promises_without_tests(outputs)?);
    let targets = sources::targets(&metadata, &outputs.workspace)?;
    problems.extend(circles::problems(&targets));
    problems.extend(lengths::problems(&targets));
    problems.extend(calls::problems(&targets));
    problems.extend(deny::problems(&outputs.workspace)?);
    if !problems.is_empty() {
        bail!("the house is out of plan:\n  {}", problems.join("\n  "));
    }
    Ok(())
}

/// Every test that SECURITY.md names exists.
fn promises_without_tests(outputs: &Outputs) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(outputs.workspace.join("SECURITY.md"))?;
    let mut tests = String::new();
    for file in output(
        Command::new("git")
            .current_dir(&outputs.workspace)
            .args(["ls-files", "*.rs"]),
    )?
    .lines()
    {
        // A file may have been removed and not yet committed so.
        tests += &std::fs::read_to_string(outputs.workspace.join(file)).unwrap_or_default();
    }
    Ok(named_tests(&text)
        .filter(|name| !tests.contains(&format!("fn {name}()")))
        .map(|name| format!("SECURITY.md names the test {name}, which does not exist"))
        .collect())
}

/// Words in backquotes that can only be tests: long, in snake case.
fn named_tests(text: &str) -> impl Iterator<Item = &str> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| word.matches('_').count() >= 3 && !word.contains('/'))
}

fn broken_arrows(metadata: &Value) -> Result<Vec<String>> {
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata has no packages")?;
    let ours: BTreeSet<&str> = packages
        .iter()
        .filter_map(|package| package["name"].as_str())
        .collect();
    let mut problems = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        if name == UNIFIER {
            continue;
        }
        let Some((_, allowed)) = ARROWS.iter().find(|(from, _)| *from == name) else {
            problems.push(format!("crate {name} is not in the plan"));
            continue;
        };
        if name != "e2e" && !depends_on(package, UNIFIER) {
            problems.push(format!(
                "{name} does not depend on {UNIFIER}: `cargo hakari manage-deps`"
            ));
        }
        let forbidden = PURE
            .iter()
            .find(|(from, _)| *from == name)
            .map_or(&[] as &[&str], |(_, names)| names);
        let dependencies = package["dependencies"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        for dependency in dependencies
            .iter()
            .filter(|dependency| dependency["kind"] != "dev")
        {
            let to = dependency["name"].as_str().unwrap_or_default();
            // A crate of the registry may share a name with one of ours.
            let local = dependency["path"].is_string();
            if local && to != UNIFIER && ours.contains(to) && !allowed.contains(&to) {
                problems.push(format!("{name} -> {to} is no arrow of the plan"));
            }
            if forbidden.contains(&to) {
                problems.push(format!("{name} must not depend on {to}"));
            }
        }
    }
    Ok(problems)
}

fn depends_on(package: &Value, name: &str) -> bool {
    let all = package["dependencies"].as_array();
    all.is_some_and(|all| all.iter().any(|dependency| dependency["name"] == name))
}

fn strays(outputs: &Outputs) -> Result<Vec<String>> {
    let listed = output(
        Command::new("git")
            .current_dir(&outputs.workspace)
            .args(["ls-files"]),
    )?;
    let mut problems = BTreeSet::new();
    for file in listed.lines() {
        let top = file.split('/').next().unwrap_or(file);
        if !top.starts_with('.') && !TOP_LEVEL.contains(&top) {
            problems.insert(format!("{top} does not belong at the top level"));
        }
        if file.ends_with("/mod.rs") {
            problems.insert(format!("{file}: a module is foo.rs beside foo/"));
        }
        let in_scope = async_files::FOLDERS
            .iter()
            .any(|folder| file.starts_with(&format!("{folder}/")));
        let is_source = file.ends_with(".rs") && !file.ends_with("/tests.rs");
        if in_scope && is_source && !async_files::ALLOWED.contains(&file) {
            let source = std::fs::read_to_string(outputs.workspace.join(file)).unwrap_or_default();
            for (line, call) in async_files::broken(&source) {
                problems.insert(format!(
                    "{file}:{line}: {call} on an async thread; hand it to off_thread or spawn_blocking"
                ));
            }
        }
    }
    Ok(problems.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::named_tests;

    #[test]
    fn tests_are_told_from_other_words() {
        let text = "| run as root | `a_number_is_a_number` | by `runAsUser`, see `e2e/tests/a_b_c_d.rs`, `hostile.rs`, not a_b_c_d |";
        assert_eq!(
            named_tests(text).collect::<Vec<_>>(),
            ["a_number_is_a_number"]
        );
    }
}
