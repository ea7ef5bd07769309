//! Sets of CPUs (or of cores, sockets, NUMA nodes) and the kernel's way to write them: `0-3,8`.
//!
//! Upstream: k8s.io/utils/cpuset.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// The highest id there can be; the kernel is built for 8192 CPUs at most.
const MOST: usize = 0xffff;

/// Not a list of CPUs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseCpuSetError {
    #[error("strconv.Atoi: parsing {0:?}: invalid syntax")]
    Number(String),
    #[error("invalid range {0:?} ({start} > {end})", start = .1, end = .2)]
    Range(String, usize, usize),
    #[error("CPU {0} is beyond {MOST}, the highest there can be")]
    TooHigh(usize),
}

/// In the order of their ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuSet(BTreeSet<usize>);

impl CpuSet {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn contains(&self, id: usize) -> bool {
        self.0.contains(&id)
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = usize> + '_ {
        self.0.iter().copied()
    }

    pub fn union(&self, other: &Self) -> Self {
        Self(&self.0 | &other.0)
    }

    pub fn intersection(&self, other: &Self) -> Self {
        Self(&self.0 & &other.0)
    }

    pub fn difference(&self, other: &Self) -> Self {
        Self(&self.0 - &other.0)
    }

    pub fn is_subset(&self, other: &Self) -> bool {
        self.0.is_subset(&other.0)
    }

    pub fn is_disjoint(&self, other: &Self) -> bool {
        self.0.is_disjoint(&other.0)
    }
}

impl FromIterator<usize> for CpuSet {
    fn from_iter<I: IntoIterator<Item = usize>>(ids: I) -> Self {
        Self(ids.into_iter().collect())
    }
}

impl<const N: usize> From<[usize; N]> for CpuSet {
    fn from(ids: [usize; N]) -> Self {
        ids.into_iter().collect()
    }
}

impl FromStr for CpuSet {
    type Err = ParseCpuSetError;

    fn from_str(text: &str) -> Result<Self, ParseCpuSetError> {
        let number = |part: &str| -> Result<usize, ParseCpuSetError> {
            let id: usize = part
                .parse()
                .map_err(|_| ParseCpuSetError::Number(part.to_owned()))?;
            if id > MOST {
                return Err(ParseCpuSetError::TooHigh(id));
            }
            Ok(id)
        };
        let mut ids = BTreeSet::new();
        if text.is_empty() {
            return Ok(Self::default());
        }
        for part in text.split(',') {
            let (start, end) = match part.split_once('-') {
                None => (number(part)?, number(part)?),
                Some((start, end)) => (number(start)?, number(end)?),
            };
            if start > end {
                return Err(ParseCpuSetError::Range(part.to_owned(), start, end));
            }
            ids.extend(start..=end);
        }
        Ok(Self(ids))
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ranges: Vec<(usize, usize)> = Vec::new();
        for id in self.iter() {
            match ranges.last_mut() {
                Some((_, end)) if *end + 1 == id => *end = id,
                _ => ranges.push((id, id)),
            }
        }
        for (at, (start, end)) in ranges.into_iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            match start == end {
                true => write!(f, "{start}")?,
                false => write!(f, "{start}-{end}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_written_as_the_kernel_writes_them() {
        for (text, expect) in [
            ("", ""),
            ("3", "3"),
            ("0-3,8", "0-3,8"),
            ("5,4,1-2,2", "1-2,4-5"),
            ("0,2,4", "0,2,4"),
        ] {
            let set: CpuSet = text.parse().unwrap();
            assert_eq!(set.to_string(), expect, "{text}");
            assert_eq!(expect.parse(), Ok(set));
        }
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in [
            "a",
            "1,",
            "3-1",
            "-1",
            "1-",
            "0-99999999999999999999",
            "0-4294967295",
        ] {
            assert!(text.parse::<CpuSet>().is_err(), "{text}");
        }
    }
}
