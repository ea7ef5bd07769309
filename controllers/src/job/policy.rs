//! `podFailurePolicy` and `successPolicy`.

use component_helpers::pod::key;
use k8s_openapi::api::batch::v1::{
    PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement, SuccessPolicy,
};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::index::{self, Indexes};

/// What the first matching rule says about a failed pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No rule matches, or it says so: counts towards the backoff limit.
    Count,
    /// Does not count.
    Ignore,
    /// The index fails for good.
    FailIndex,
    /// The Job fails; with the message of its condition.
    FailJob(String),
}

/// Asks the policy about a failed pod.
pub fn match_pod_failure_policy(policy: Option<&PodFailurePolicy>, pod: &Pod) -> Verdict {
    for (at, rule) in policy.iter().flat_map(|p| &p.rules).enumerate() {
        let message = if let Some(codes) = &rule.on_exit_codes {
            match_on_exit_codes(pod, codes).map(|(container, code)| {
                format!(
                    "Container {container} for pod {} failed with exit code {code} matching {} rule at index {at}",
                    key(pod), rule.action
                )
            })
        } else {
            match_on_conditions(pod, rule).map(|condition| {
                format!(
                    "Pod {} has condition {condition} matching {} rule at index {at}",
                    key(pod),
                    rule.action
                )
            })
        };
        let Some(message) = message else { continue };
        match rule.action.as_str() {
            "Ignore" => return Verdict::Ignore,
            "FailIndex" => return Verdict::FailIndex,
            "FailJob" => return Verdict::FailJob(message),
            "Count" => return Verdict::Count,
            // One that this version does not know: the next rules decide.
            _ => {}
        }
    }
    Verdict::Count
}

fn match_on_exit_codes(
    pod: &Pod,
    wanted: &PodFailurePolicyOnExitCodesRequirement,
) -> Option<(String, i32)> {
    let status = pod.status.as_ref()?;
    let all = status
        .container_statuses
        .iter()
        .chain(status.init_container_statuses.iter())
        .flatten();
    let code = |c: &ContainerStatus| c.state.as_ref()?.terminated.as_ref().map(|t| t.exit_code);
    all.filter(|c| {
        wanted
            .container_name
            .as_ref()
            .is_none_or(|name| *name == c.name)
    })
    .filter_map(|c| Some((c.name.clone(), code(c)?)))
    .find(|(_, code)| match wanted.operator.as_str() {
        "In" => *code != 0 && wanted.values.contains(code),
        "NotIn" => *code != 0 && !wanted.values.contains(code),
        _ => false,
    })
}

fn match_on_conditions(
    pod: &Pod,
    rule: &k8s_openapi::api::batch::v1::PodFailurePolicyRule,
) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_deref()?;
    let matches = |c: &&k8s_openapi::api::core::v1::PodCondition| {
        rule.on_pod_conditions.iter().flatten().any(|wanted| {
            wanted.type_ == c.type_ && wanted.status.as_deref().unwrap_or("True") == c.status
        })
    };
    conditions.iter().find(matches).map(|c| c.type_.clone())
}

/// The message of the first rule that is fulfilled.
pub fn match_success_policy(
    policy: Option<&SuccessPolicy>,
    completions: i32,
    succeeded: &Indexes,
) -> Option<String> {
    if completions == 0 || succeeded.is_empty() {
        return None;
    }
    let enough = |have: usize, want: i32| i32::try_from(have).unwrap_or(i32::MAX) >= want;
    let rules = policy.iter().flat_map(|p| &p.rules).enumerate();
    let (at, _) = rules.into_iter().find(|(_, rule)| {
        match (&rule.succeeded_indexes, rule.succeeded_count) {
            (Some(text), count) => {
                let wanted = index::parse(text, completions);
                let both = wanted.count_in(succeeded);
                count.map_or(both == wanted.len(), |count| enough(both, count))
            }
            (None, Some(count)) => enough(succeeded.len(), count),
            (None, None) => false,
        }
    })?;
    Some(format!("Matched rules at index {at}"))
}
