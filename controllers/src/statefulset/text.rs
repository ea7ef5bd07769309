//! What events say of a StatefulSet's pods and claims, in upstream's words (`recordPodEvent` and `recordClaimEvent` of
//! pkg/controller/statefulset). Pure.

use std::fmt::Display;

use super::controller::Verb;

/// What something was done to, by name.
pub enum Said {
    Pod(String),
    Claim(String),
}

/// What became of it.
pub fn outcome(set: &str, what: &Said, verb: Verb, error: Option<&impl Display>) -> String {
    let verb = match verb {
        Verb::Create => "Create",
        Verb::Update => "Update",
        Verb::Delete => "Delete",
    };
    match (what, error) {
        (Said::Pod(pod), None) => format!("{verb} Pod {pod} in StatefulSet {set} successful"),
        (Said::Pod(pod), Some(error)) => {
            format!("{verb} Pod {pod} in StatefulSet {set} failed error: {error}")
        }
        (Said::Claim(claim), None) => format!(
            "{verb} Claim {claim} Pod {} in StatefulSet {set} success",
            pod_of(set, claim)
        ),
        (Said::Claim(claim), Some(error)) => format!(
            "{verb} Claim {claim} for Pod {} in StatefulSet {set} failed error: {error}",
            pod_of(set, claim)
        ),
    }
}

/// A claim is called after its template and its pod.
fn pod_of(set: &str, claim: &str) -> String {
    let ordinal = claim.rsplit('-').next().unwrap_or_default();
    format!("{set}-{ordinal}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_upstreams() {
        let none = None::<&String>;
        let error = "no".to_owned();
        let error = Some(&error);
        let (pod, claim) = (
            Said::Pod("my-web-2".to_owned()),
            Said::Claim("data-my-web-2".to_owned()),
        );
        for (what, verb, error, text) in [
            (
                &pod,
                Verb::Create,
                none,
                "Create Pod my-web-2 in StatefulSet my-web successful",
            ),
            (
                &pod,
                Verb::Delete,
                error,
                "Delete Pod my-web-2 in StatefulSet my-web failed error: no",
            ),
            (
                &claim,
                Verb::Create,
                none,
                "Create Claim data-my-web-2 Pod my-web-2 in StatefulSet my-web success",
            ),
            (
                &claim,
                Verb::Update,
                error,
                "Update Claim data-my-web-2 for Pod my-web-2 in StatefulSet my-web failed error: no",
            ),
        ] {
            assert_eq!(outcome("my-web", what, verb, error), text);
        }
    }
}
