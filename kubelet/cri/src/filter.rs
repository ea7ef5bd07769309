//! Which of a list a client asked for. Pure.

use std::collections::HashMap;

use cri_spec::v1;
use runtime::Labels;

/// Ids may be given by their beginning. Upstream: containerd's truncated ids.
fn id(wanted: &str, id: &str) -> bool {
    wanted.is_empty() || id.starts_with(wanted)
}

fn labels<'a, L>(wanted: &HashMap<String, String>, get: L) -> bool
where
    L: Fn(&str) -> Option<&'a String>,
{
    wanted.iter().all(|(key, value)| get(key) == Some(value))
}

pub fn sandbox(filter: Option<&v1::PodSandboxFilter>, item: &v1::PodSandbox) -> bool {
    filter.is_none_or(|filter| {
        id(&filter.id, &item.id)
            && filter.state.is_none_or(|state| state.state == item.state)
            && labels(&filter.label_selector, |key| item.labels.get(key))
    })
}

pub fn container(filter: Option<&v1::ContainerFilter>, item: &v1::Container) -> bool {
    filter.is_none_or(|filter| {
        id(&filter.id, &item.id)
            && id(&filter.pod_sandbox_id, &item.pod_sandbox_id)
            && filter.state.is_none_or(|state| state.state == item.state)
            && labels(&filter.label_selector, |key| item.labels.get(key))
    })
}

pub fn container_stats(
    filter: Option<&v1::ContainerStatsFilter>,
    container: &str,
    sandbox: &str,
    of: &Labels,
) -> bool {
    filter.is_none_or(|filter| {
        id(&filter.id, container)
            && id(&filter.pod_sandbox_id, sandbox)
            && labels(&filter.label_selector, |key| of.get(key))
    })
}

pub fn sandbox_stats(
    filter: Option<&v1::PodSandboxStatsFilter>,
    sandbox: &str,
    of: &Labels,
) -> bool {
    filter.is_none_or(|filter| {
        id(&filter.id, sandbox) && labels(&filter.label_selector, |key| of.get(key))
    })
}

/// The one of `all` that `wanted` means: itself, or its beginning if no other begins so.
pub fn resolve<'a>(wanted: &str, all: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut matching: Vec<&str> = all.filter(|id| id.starts_with(wanted)).collect();
    match matching.as_slice() {
        _ if wanted.is_empty() => None,
        [one] => Some(one),
        _ => {
            matching.retain(|id| *id == wanted);
            matching.first().copied()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_meant_by_its_beginning_if_no_other_begins_so() {
        let all = ["abc", "abd", "ab"];
        for (wanted, expect) in [
            ("abc", Some("abc")),
            ("abd", Some("abd")),
            ("ab", Some("ab")),
            ("a", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(resolve(wanted, all.into_iter()), expect, "{wanted}");
        }
    }

    #[test]
    fn every_word_of_a_filter_counts() {
        let item = v1::Container {
            id: "c1".into(),
            pod_sandbox_id: "s1".into(),
            state: v1::ContainerState::ContainerRunning.into(),
            labels: [("a".to_owned(), "b".to_owned())].into(),
            ..Default::default()
        };
        let check = |change: fn(&mut v1::ContainerFilter), expect: bool| {
            let mut filter = v1::ContainerFilter::default();
            change(&mut filter);
            assert_eq!(container(Some(&filter), &item), expect, "{filter:?}");
        };
        assert!(container(None, &item));
        check(|_| {}, true);
        check(|f| f.id = "c".into(), true);
        check(|f| f.id = "c2".into(), false);
        check(|f| f.pod_sandbox_id = "s2".into(), false);
        check(
            |f| f.state = Some(v1::ContainerStateValue { state: 1 }),
            true,
        );
        check(
            |f| f.state = Some(v1::ContainerStateValue { state: 0 }),
            false,
        );
        check(
            |f| f.label_selector = [("a".to_owned(), "b".to_owned())].into(),
            true,
        );
        check(
            |f| f.label_selector = [("a".to_owned(), "c".to_owned())].into(),
            false,
        );
        check(
            |f| f.label_selector = [("x".to_owned(), String::new())].into(),
            false,
        );
    }
}
