//! Sets of completion indexes and their text, `0,2-4`.
//!
//! Owns: [`Indexes`], pure. A set has as many runs as its text, however many indexes these stand for: `0-2147483646` is one.

use std::collections::BTreeMap;

use component_helpers::pod::annotation;
use k8s_openapi::api::core::v1::Pod;

use super::COMPLETION_INDEX;

/// Indexes of an Indexed Job, as runs of neighbours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Indexes {
    /// First -> last. No two touch.
    runs: BTreeMap<i32, i32>,
}

impl Indexes {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.runs
            .iter()
            .map(|(first, last)| length(*first, *last))
            .sum()
    }

    /// Is this one of them?
    pub fn contains(&self, index: i32) -> bool {
        self.last_of_run(index).is_some()
    }

    /// The last of the neighbours that `index` stands among. `None`: it is none of them.
    pub fn last_of_run(&self, index: i32) -> Option<i32> {
        let (_, last) = self.runs.range(..=index).next_back()?;
        (*last >= index).then_some(*last)
    }

    /// Adds one; `false`: it was there.
    pub fn insert(&mut self, index: i32) -> bool {
        let new = !self.contains(index);
        if new {
            self.insert_run(index, index);
        }
        new
    }

    /// Adds all from `first` to `last`; none if that is before.
    fn insert_run(&mut self, mut first: i32, mut last: i32) {
        if first > last {
            return;
        }
        // What begins before it and reaches it, and then all that begins within it or right behind.
        if let Some((begin, end)) = self.runs.range(..first).next_back()
            && end.saturating_add(1) >= first
        {
            first = *begin;
        }
        while let Some((begin, end)) = self.runs.range(first..=last.saturating_add(1)).next() {
            let begin = *begin;
            last = last.max(*end);
            self.runs.remove(&begin);
        }
        self.runs.insert(first, last);
    }

    /// Adds all of `other`.
    pub fn join(&mut self, other: &Self) {
        for (first, last) in &other.runs {
            self.insert_run(*first, *last);
        }
    }

    /// How many of them are in `other`, too.
    pub fn count_in(&self, other: &Self) -> usize {
        let (mut mine, mut theirs) = (self.runs.iter(), other.runs.iter());
        let (mut a, mut b) = (mine.next(), theirs.next());
        let mut count = 0;
        while let (Some((first, last)), Some((begin, end))) = (a, b) {
            count += length(*first.max(begin), *last.min(end));
            match last < end {
                true => a = mine.next(),
                false => b = theirs.next(),
            }
        }
        count
    }
}

fn length(first: i32, last: i32) -> usize {
    usize::try_from(i64::from(last) - i64::from(first) + 1).unwrap_or(0)
}

impl Extend<i32> for Indexes {
    fn extend<I: IntoIterator<Item = i32>>(&mut self, indexes: I) {
        for index in indexes {
            self.insert(index);
        }
    }
}

impl FromIterator<i32> for Indexes {
    fn from_iter<I: IntoIterator<Item = i32>>(indexes: I) -> Self {
        let mut all = Self::new();
        all.extend(indexes);
        all
    }
}

/// Reads the text of a status or a success policy; what is no number or not below `completions` is left out.
pub fn parse(text: &str, completions: i32) -> Indexes {
    let mut indexes = Indexes::new();
    for part in text.split(',').filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) {
            indexes.insert_run(first.max(0), last.min(completions.saturating_sub(1)));
        }
    }
    indexes
}

/// The text; two neighbours stand as `1,2`, three as `1-3`.
pub fn format(indexes: &Indexes) -> String {
    let of = |(first, last): (&i32, &i32)| match length(*first, *last) {
        1 => first.to_string(),
        2 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    };
    let parts: Vec<String> = indexes.runs.iter().map(of).collect();
    parts.join(",")
}

/// The first `most` below `completions` that are in none of `sets`.
pub fn free(completions: i32, most: usize, sets: &[&Indexes]) -> Vec<i32> {
    let (mut free, mut next) = (Vec::new(), 0);
    while next < completions && free.len() < most {
        let taken = sets.iter().filter_map(|set| set.last_of_run(next)).max();
        if taken.is_none() {
            free.push(next);
        }
        // Whole runs are passed over at once.
        match taken.unwrap_or(next).checked_add(1) {
            Some(after) => next = after,
            None => break,
        }
    }
    free
}

/// The index of a pod; `None`: it has none, or one that no Job can give.
pub fn completion_index(pod: &Pod) -> Option<i32> {
    annotation(pod, COMPLETION_INDEX)?
        .parse()
        .ok()
        .filter(|i| *i >= 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_a_set() {
        let mut model = std::collections::BTreeSet::new();
        let mut indexes = Indexes::new();
        // All of 0..=60, in an order that makes, meets and joins runs.
        for n in 0..61 {
            let index = n * 37 % 61;
            assert_eq!(indexes.insert(index), model.insert(index));
            assert!(!indexes.insert(index));
            assert_eq!(indexes.len(), model.len());
            let same = |i| indexes.contains(i) == model.contains(&i);
            assert!((-2..64).all(same), "{indexes:?}");
            let again = parse(&format(&indexes), 61);
            assert_eq!(again, indexes);
            let free: Vec<i32> = (0..61).filter(|i| !model.contains(i)).take(5).collect();
            assert_eq!(super::free(61, 5, &[&indexes, &Indexes::new()]), free);
        }
        assert_eq!(format(&indexes), "0-60");
        let (some, others) = (parse("0-3,5,9-12", 20), parse("2-5,7,11-30", 20));
        assert_eq!((some.count_in(&others), others.count_in(&some)), (5, 5));
        let mut joined = some.clone();
        joined.join(&others);
        assert_eq!(format(&joined), "0-5,7,9-19");
        assert_eq!(parse("7-3,x,-1,2-", 20), Indexes::new());
    }

    /// Somebody who may make Jobs must not fill the controller manager's memory with a few bytes.
    #[test]
    fn a_run_of_all_numbers_costs_no_more_than_one() {
        let all = parse("0-2147483646", i32::MAX);
        assert_eq!(all.len(), 2_147_483_647);
        assert_eq!(format(&all), "0-2147483646");
        assert_eq!(all.count_in(&parse("5,7-8", i32::MAX)), 3);
        assert!(free(i32::MAX, 2, &[&all]).is_empty());
        let most = parse("0-2147483640,2147483643", i32::MAX);
        let left = [2_147_483_641, 2_147_483_642, 2_147_483_644];
        assert_eq!(free(i32::MAX, 3, &[&most]), left);
        let mut edge = Indexes::new();
        assert!(edge.insert(i32::MAX) && edge.insert(i32::MAX - 1) && !edge.insert(i32::MAX));
        assert_eq!(edge.len(), 2);
    }
}
