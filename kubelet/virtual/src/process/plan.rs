//! From a pod to commands of this machine. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use kubelet_provider::ProviderError;
use serde::{Deserialize, Serialize};

use crate::pods::record::RestartPolicy;

/// What of a pod is run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    /// `Always`, `OnFailure` or `Never`.
    policy: String,
    pub(super) containers: Vec<Command>,
}

/// A container's process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Command {
    pub(super) name: String,
    /// Not empty.
    pub(super) argv: Vec<String>,
    pub(super) env: BTreeMap<String, String>,
    /// `None`: the root directory.
    pub(super) directory: Option<String>,
}

impl Plan {
    /// # Errors
    /// Names the field that a plain process cannot have.
    pub(super) fn of(pod: &Pod) -> Result<Self, ProviderError> {
        let spec = pod.spec.as_ref();
        let containers = spec.map_or(&[][..], |spec| spec.containers.as_slice());
        let numbered = containers.iter().enumerate();
        Ok(Self {
            policy: spec
                .and_then(|s| s.restart_policy.clone())
                .unwrap_or_default(),
            containers: numbered
                .map(|(at, c)| command(at, c))
                .collect::<Result<_, _>>()?,
        })
    }

    pub(super) fn index(&self, container: &str) -> Option<usize> {
        self.containers.iter().position(|c| c.name == container)
    }

    /// Whether a container that ended so is started again.
    pub(super) fn restarts(&self, exit_code: i32) -> bool {
        let policy = match self.policy.as_str() {
            "Never" => RestartPolicy::Never,
            "OnFailure" => RestartPolicy::OnFailure,
            _ => RestartPolicy::Always,
        };
        match policy {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => exit_code != 0,
            RestartPolicy::Never => false,
        }
    }
}

fn command(at: usize, container: &Container) -> Result<Command, ProviderError> {
    let invalid = |field: &str, message: &str| ProviderError::Invalid {
        field: format!("spec.containers[{at}].{field}"),
        message: message.to_owned(),
    };
    for (field, set) in [
        ("tty", container.tty == Some(true)),
        ("stdin", container.stdin == Some(true)),
        ("restartPolicy", container.restart_policy.is_some()),
        (
            "volumeDevices",
            container.volume_devices.iter().flatten().count() > 0,
        ),
    ] {
        if set {
            return Err(invalid(field, "a plain process has no such thing"));
        }
    }
    let mut env = BTreeMap::new();
    for variable in container.env.iter().flatten() {
        let value = expand(variable.value.as_deref().unwrap_or_default(), &env);
        env.insert(variable.name.clone(), value);
    }
    let words = [&container.command, &container.args];
    let words = words.into_iter().flat_map(|list| list.iter().flatten());
    let argv: Vec<String> = words.map(|word| expand(word, &env)).collect();
    if container.command.iter().flatten().count() == 0 {
        return Err(invalid(
            "command",
            "images are not pulled, so a command of this machine must be given",
        ));
    }
    Ok(Command {
        name: container.name.clone(),
        argv,
        env,
        directory: container.working_dir.clone().filter(|d| !d.is_empty()),
    })
}

/// `$(NAME)` is a variable that was set before, `$$` a dollar. Upstream: `third_party/forked/golang/expansion`.
fn expand(text: &str, env: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let inner = rest
            .strip_prefix("$(")
            .and_then(|inner| inner.split_once(')'));
        if let Some(after) = rest.strip_prefix("$$") {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = inner {
            match env.get(name) {
                Some(value) => out.push_str(value),
                None => out.push_str(&rest[..rest.len() - after.len()]),
            }
            rest = after;
        } else {
            out.push('$');
            rest = &rest[1..];
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn plan(container: Value) -> Result<Plan, String> {
        let mut container = container;
        container["name"] = json!("c");
        let pod = json!({ "metadata": {}, "spec": { "restartPolicy": "OnFailure", "containers": [container] } });
        let pod: Pod = serde_json::from_value(pod).unwrap();
        Plan::of(&pod).map_err(|error| error.to_string())
    }

    #[test]
    fn variables_are_expanded_as_upstream_does() {
        let plan = plan(json!({
            "command": ["sh", "$(A)"], "args": ["$$(A) $(B) $(NONE) $", "$("], "workingDir": "/tmp",
            "env": [{ "name": "A", "value": "1" }, { "name": "B", "value": "$(A)2" }],
        }))
        .unwrap();
        assert_eq!(
            plan.containers[0].argv,
            ["sh", "1", "$(A) 12 $(NONE) $", "$("]
        );
        assert_eq!(plan.containers[0].env["B"], "12");
        assert_eq!(plan.containers[0].directory.as_deref(), Some("/tmp"));
        assert!(plan.restarts(1) && !plan.restarts(0));
    }

    #[test]
    fn what_a_process_has_not_is_named() {
        let check = |container: Value, field: &str| {
            let error = plan(container).unwrap_err();
            assert!(
                error.starts_with(&format!("spec.containers[0].{field}: ")),
                "{error}"
            );
        };
        check(json!({ "args": ["x"] }), "command");
        check(json!({ "command": ["x"], "tty": true }), "tty");
        check(json!({ "command": ["x"], "stdin": true }), "stdin");
        check(
            json!({ "command": ["x"], "restartPolicy": "Never" }),
            "restartPolicy",
        );
    }
}
