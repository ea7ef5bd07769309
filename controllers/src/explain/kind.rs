//! The kinds that can be explained.

/// A kind whose controller can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Deployment,
    ReplicaSet,
    ReplicationController,
    StatefulSet,
    DaemonSet,
    Job,
}

impl Kind {
    pub const ALL: [Self; 6] = [
        Self::Deployment,
        Self::ReplicaSet,
        Self::ReplicationController,
        Self::StatefulSet,
        Self::DaemonSet,
        Self::Job,
    ];

    /// As kubectl takes it: singular, plural, short, with or without the group.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        let (word, group) = match text.split_once('.') {
            Some((word, group)) => (word, Some(group)),
            None => (text.as_str(), None),
        };
        Self::ALL.into_iter().find(|kind| {
            let (short, of) = kind.short_and_group();
            let singular = kind.name().to_ascii_lowercase();
            let named = word == short || word == singular || word == kind.plural();
            // As in `deployments.v1.apps`, too.
            named && group.is_none_or(|group| group == of || group == format!("v1.{of}"))
        })
    }

    /// As in `kind:`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Deployment => "Deployment",
            Self::ReplicaSet => "ReplicaSet",
            Self::ReplicationController => "ReplicationController",
            Self::StatefulSet => "StatefulSet",
            Self::DaemonSet => "DaemonSet",
            Self::Job => "Job",
        }
    }

    /// The resource.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Deployment => "deployments",
            Self::ReplicaSet => "replicasets",
            Self::ReplicationController => "replicationcontrollers",
            Self::StatefulSet => "statefulsets",
            Self::DaemonSet => "daemonsets",
            Self::Job => "jobs",
        }
    }

    fn short_and_group(self) -> (&'static str, &'static str) {
        match self {
            Self::Deployment => ("deploy", "apps"),
            Self::ReplicaSet => ("rs", "apps"),
            Self::ReplicationController => ("rc", ""),
            Self::StatefulSet => ("sts", "apps"),
            Self::DaemonSet => ("ds", "apps"),
            Self::Job => ("job", "batch"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_the_names_that_kubectl_takes() {
        for (text, expect) in [
            ("deploy", Some(Kind::Deployment)),
            ("Deployments", Some(Kind::Deployment)),
            ("deployment.apps", Some(Kind::Deployment)),
            ("deployments.v1.apps", Some(Kind::Deployment)),
            ("deployment.batch", None),
            ("rs", Some(Kind::ReplicaSet)),
            ("rc", Some(Kind::ReplicationController)),
            ("sts", Some(Kind::StatefulSet)),
            ("ds", Some(Kind::DaemonSet)),
            ("jobs.batch", Some(Kind::Job)),
            ("pod", None),
            ("", None),
        ] {
            assert_eq!(Kind::parse(text), expect, "{text}");
        }
    }
}
