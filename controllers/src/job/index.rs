//! Sets of completion indexes and their text, `0,2-4`.

use std::collections::BTreeSet;

use component_helpers::pod::annotation;
use k8s_openapi::api::core::v1::Pod;

use super::COMPLETION_INDEX;

/// Indexes of an Indexed Job.
pub type Indexes = BTreeSet<i32>;

/// Reads the text of a status or a success policy; what is no number or not below `completions` is left out.
pub fn parse(text: &str, completions: i32) -> Indexes {
    let mut indexes = Indexes::new();
    for part in text.split(',').filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) {
            indexes.extend(first.max(0)..=last.min(completions - 1));
        }
    }
    indexes
}

/// The text; two neighbours stand as `1,2`, three as `1-3`.
pub fn format(indexes: &Indexes) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut run: Option<(i32, i32)> = None;
    let mut end = |run: Option<(i32, i32)>| match run {
        Some((first, last)) if first == last => parts.push(first.to_string()),
        Some((first, last)) if first + 1 == last => parts.push(format!("{first},{last}")),
        Some((first, last)) => parts.push(format!("{first}-{last}")),
        None => {}
    };
    for index in indexes {
        run = match run {
            Some((first, last)) if last + 1 == *index => Some((first, *index)),
            other => {
                end(other);
                Some((*index, *index))
            }
        };
    }
    end(run);
    parts.join(",")
}

/// The index of a pod; `None`: it has none, or one that no Job can give.
pub fn completion_index(pod: &Pod) -> Option<i32> {
    annotation(pod, COMPLETION_INDEX)?
        .parse()
        .ok()
        .filter(|i| *i >= 0)
}
