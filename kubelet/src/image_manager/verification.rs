//! Whose credentials are looked at again when an image is on the node already.
//!
//! Owns: `imagePullCredentialsVerificationPolicy` and its allowlist; pure. Upstream:
//! `pkg/kubelet/images/pullmanager/image_pull_policies.go`, v1.36.

use std::collections::BTreeSet;

use images::Reference;

/// Why an allowlist's pattern is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("leading/trailing spaces are not allowed: {0}")]
    Spaces(String),
    #[error("the supplied pattern is too short: {0}")]
    TooShort(String),
    #[error("not a valid wildcard pattern, only patterns ending with '/*' are allowed: {0}")]
    Wildcard(String),
    #[error("at least registry hostname is required")]
    NoHost,
    #[error("failed to parse as an image name: {0}")]
    Name(String),
    #[error("neither tag nor digest is accepted in an image reference: {0}")]
    TagOrDigest(String),
    #[error("unknown image pull credential verification policy: {0}")]
    UnknownPolicy(String),
}

/// Which images on the node may be used only by pods whose credentials opened them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verification {
    /// Whoever can name it may use it.
    Never,
    /// What the kubelet pulled is verified; what came otherwise is everybody's.
    NeverPreloaded,
    /// All but what the allowlist names.
    NeverAllowlisted {
        exact: BTreeSet<String>,
        /// Each ends with `/`.
        prefixes: Vec<String>,
    },
    Always,
}

impl Verification {
    /// From the two configuration fields.
    ///
    /// # Errors
    /// An unknown policy or a malformed pattern.
    pub fn new(policy: &str, allowlist: &[String]) -> Result<Self, PatternError> {
        Ok(match policy {
            "NeverVerify" => Self::Never,
            "NeverVerifyPreloadedImages" => Self::NeverPreloaded,
            "AlwaysVerify" => Self::Always,
            "NeverVerifyAllowlistedImages" => {
                let (mut exact, mut prefixes) = (BTreeSet::new(), vec![]);
                for text in allowlist {
                    match pattern(text)? {
                        Pattern::Exact(name) => drop(exact.insert(name)),
                        Pattern::Prefix(prefix) => prefixes.push(prefix),
                    }
                }
                Self::NeverAllowlisted { exact, prefixes }
            }
            other => return Err(PatternError::UnknownPolicy(other.to_owned())),
        })
    }

    /// Whether a pod must show that it may have `image`, which is on the node.
    pub fn required(&self, image: &str, pulled_by_kubelet: bool) -> bool {
        match self {
            Self::Never => false,
            Self::Always => true,
            Self::NeverPreloaded => pulled_by_kubelet,
            Self::NeverAllowlisted { exact, prefixes } => {
                let name = trim_tag_and_digest(image).unwrap_or_else(|_| image.to_owned());
                !exact.contains(&name) && !prefixes.iter().any(|p| name.starts_with(p.as_str()))
            }
        }
    }
}

enum Pattern {
    Exact(String),
    Prefix(String),
}

fn pattern(text: &str) -> Result<Pattern, PatternError> {
    if text.trim() != text {
        return Err(PatternError::Spaces(text.to_owned()));
    }
    let prefix = text
        .ends_with("/*")
        .then(|| text.trim_end_matches('*').to_owned());
    let body = prefix.as_deref().unwrap_or(text);
    if body.is_empty() {
        return Err(PatternError::TooShort(text.to_owned()));
    }
    if body.contains('*') || text.ends_with("**") {
        return Err(PatternError::Wildcard(text.to_owned()));
    }
    if let Some(prefix) = prefix {
        return match prefix.len() {
            1 => Err(PatternError::NoHost),
            _ => Ok(Pattern::Prefix(prefix)),
        };
    }
    let name = trim_tag_and_digest(text).map_err(PatternError::Name)?;
    if name != text {
        return Err(PatternError::TagOrDigest(text.to_owned()));
    }
    Ok(Pattern::Exact(name))
}

/// Every malformed pattern of an allowlist.
pub fn allowlist_errors(allowlist: &[String]) -> Vec<PatternError> {
    allowlist
        .iter()
        .filter_map(|text| pattern(text).err())
        .collect()
}

/// The name as the pod wrote it, without tag and digest: the key of pull records.
///
/// # Errors
/// It is no image name.
pub fn trim_tag_and_digest(image: &str) -> Result<String, String> {
    Reference::parse_normalized(image).map_err(|e| e.to_string())?;
    let name = image.split('@').next().unwrap_or_default();
    // A colon before the last slash is the host's port.
    let path = name.rfind('/').map_or(0, |slash| slash + 1);
    Ok(match name[path..].find(':') {
        Some(colon) => name[..path + colon].to_owned(),
        None => name.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_without_tag_and_digest() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (image, expect) in [
            ("busybox", "busybox"),
            ("busybox:1.36", "busybox"),
            ("localhost:5000/a/b", "localhost:5000/a/b"),
            ("localhost:5000/a/b:t", "localhost:5000/a/b"),
            (&format!("r.io/a:t@{digest}"), "r.io/a"),
            (&format!("r.io/a@{digest}"), "r.io/a"),
        ] {
            assert_eq!(trim_tag_and_digest(image).as_deref(), Ok(expect));
        }
        assert!(trim_tag_and_digest("UP/x:::").is_err());
    }

    #[test]
    fn policies() {
        let list: Vec<String> = ["r.io/public/*", "r.io/one", "busybox"]
            .map(str::to_owned)
            .into();
        let check = |policy: &str, image: &str, pulled: bool, expect: bool| {
            let verification = Verification::new(policy, &list).unwrap();
            assert_eq!(
                verification.required(image, pulled),
                expect,
                "{policy} {image} {pulled}"
            );
        };
        for pulled in [false, true] {
            check("NeverVerify", "r.io/x", pulled, false);
            check("AlwaysVerify", "r.io/x", pulled, true);
            check("NeverVerifyPreloadedImages", "r.io/x", pulled, pulled);
            let listed = "NeverVerifyAllowlistedImages";
            check(listed, "r.io/public/x:1", pulled, false);
            check(listed, "r.io/one:2", pulled, false);
            check(listed, "busybox", pulled, false);
            check(listed, "r.io/one/more", pulled, true);
            check(listed, "r.io/publicity", pulled, true);
        }
    }

    #[test]
    fn patterns_that_are_refused() {
        for (text, expect) in [
            (
                " r.io/x",
                "leading/trailing spaces are not allowed:  r.io/x",
            ),
            ("", "the supplied pattern is too short: "),
            (
                "r.io/*/x",
                "not a valid wildcard pattern, only patterns ending with '/*' are allowed: r.io/*/x",
            ),
            ("/*", "at least registry hostname is required"),
            (
                "r.io/x:1",
                "neither tag nor digest is accepted in an image reference: r.io/x:1",
            ),
        ] {
            let errors = allowlist_errors(&[text.to_owned()]);
            assert_eq!(errors[0].to_string(), expect);
        }
        assert!(allowlist_errors(&["r.io/*".into(), "r.io:5000/a".into()]).is_empty());
    }
}
