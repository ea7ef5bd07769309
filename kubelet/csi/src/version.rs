//! Versions that a plugin says it speaks. Upstream: `HighestSupportedVersion` of k8s.io/apimachinery/pkg/util/version.

use std::fmt;

/// Dot-separated numbers; what follows them is not looked at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(Vec<u64>);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<_> = self.0.iter().map(u64::to_string).collect();
        f.write_str(&parts.join("."))
    }
}

impl Version {
    /// Two numbers or more, a `v` before them or not.
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let text = text.strip_prefix('v').unwrap_or(text);
        let end = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let mut parts: Vec<u64> = Vec::new();
        for part in text[..end].trim_end_matches('.').split('.') {
            parts.push(part.parse().ok()?);
        }
        (parts.len() >= 2).then_some(Self(parts))
    }
}

/// The highest 1.x of those; 2.x and later are not looked at, they may be anything.
///
/// # Errors
/// There is none, in upstream's words.
pub(crate) fn highest_supported(versions: &[String]) -> Result<Version, String> {
    if versions.is_empty() {
        return Err("empty array for supported versions".to_owned());
    }
    let highest = versions
        .iter()
        .filter_map(|v| Version::parse(v))
        .filter(|v| v.0[0] <= 1)
        .max();
    match highest {
        Some(version) if version.0[0] == 1 => Ok(version),
        Some(version) => Err(format!(
            "highest supported version reported is {version}, must be v1.x"
        )),
        None => Err(format!(
            "could not find a highest supported version from versions ([{}]) reported",
            versions.join(" ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_of_the_first_major() {
        for (given, expected) in [
            (&["1.0.0"][..], Ok("1.0.0")),
            (&["v1.3.0", "1.10", "1.9.9-rc"], Ok("1.10")),
            (&["0.3.0", "1.0.0", "2.0.0"], Ok("1.0.0")),
            (
                &["0.3.0"],
                Err("highest supported version reported is 0.3.0"),
            ),
            (
                &["2.0.0", "junk", "1"],
                Err("could not find a highest supported version"),
            ),
            (&[], Err("empty array")),
        ] {
            let given: Vec<String> = given.iter().map(|v| (*v).to_owned()).collect();
            match (highest_supported(&given), expected) {
                (Ok(version), Ok(expected)) => assert_eq!(version.to_string(), expected),
                (Err(told), Err(words)) => assert!(told.starts_with(words), "{told}"),
                (got, _) => panic!("{given:?}: {got:?}"),
            }
        }
    }
}
