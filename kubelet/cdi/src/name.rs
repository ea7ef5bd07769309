//! Names of devices; pure. Upstream: pkg/parser/parser.go, pkg/cdi/annotations.go.

use std::fmt;

/// What annotations of a container begin with that name devices. Upstream: `AnnotationPrefix`.
const ANNOTATION_PREFIX: &str = "cdi.k8s.io/";

/// `vendor/class=device`, each part as its rules have it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct QualifiedName {
    pub vendor: String,
    pub class: String,
    pub device: String,
}

/// Why a text is no name of a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("unqualified device {0:?}, it must be vendor/class=device")]
    Unqualified(String),
    #[error("invalid {what} {name:?}: {why}")]
    Part {
        what: &'static str,
        name: String,
        why: &'static str,
    },
}

impl QualifiedName {
    /// # Errors
    /// It is not qualified, or a part has other characters than it may.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let unqualified = || NameError::Unqualified(text.to_owned());
        let (kind, device) = text.split_once('=').ok_or_else(unqualified)?;
        let (vendor, class) = kind.split_once('/').ok_or_else(unqualified)?;
        if vendor.is_empty() || class.is_empty() || device.is_empty() {
            return Err(unqualified());
        }
        check_vendor(vendor)?;
        check_class(class)?;
        check_device(device)?;
        Ok(Self {
            vendor: vendor.to_owned(),
            class: class.to_owned(),
            device: device.to_owned(),
        })
    }

    /// `vendor/class`, as the files have it.
    pub fn kind(&self) -> String {
        format!("{}/{}", self.vendor, self.class)
    }
}

impl fmt::Display for QualifiedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}={}", self.vendor, self.class, self.device)
    }
}

/// (vendor, class) of a file's `kind`.
pub(crate) fn parse_kind(kind: &str) -> Result<(&str, &str), NameError> {
    let (vendor, class) = kind.split_once('/').unwrap_or(("", kind));
    check_vendor(vendor)?;
    check_class(class)?;
    Ok((vendor, class))
}

fn check_vendor(name: &str) -> Result<(), NameError> {
    check("vendor", name, |c| c.is_ascii_alphabetic(), "_-.")
}

fn check_class(name: &str) -> Result<(), NameError> {
    check("class", name, |c| c.is_ascii_alphabetic(), "_-.")
}

pub(crate) fn check_device(name: &str) -> Result<(), NameError> {
    check("device name", name, |c| c.is_ascii_alphanumeric(), "_-.:")
}

fn check(
    what: &'static str,
    name: &str,
    may_begin: fn(char) -> bool,
    between: &str,
) -> Result<(), NameError> {
    let bad = |why| {
        Err(NameError::Part {
            what,
            name: name.to_owned(),
            why,
        })
    };
    let (Some(first), Some(last)) = (name.chars().next(), name.chars().next_back()) else {
        return bad("it is empty");
    };
    if !may_begin(first) {
        return bad("it begins with a character that it must not begin with");
    }
    // Of one letter there is nothing else to say.
    if !last.is_ascii_alphanumeric() {
        return bad("it should end with a letter or digit");
    }
    match name
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || between.contains(c))
    {
        true => Ok(()),
        false => bad("it has a character that names cannot have"),
    }
}

/// The devices that a container's annotations name, in the order of their keys. Clients did so before the CRI had a field.
///
/// # Errors
/// One of them is no name.
pub fn annotated_names<'a>(
    annotations: impl IntoIterator<Item = (&'a String, &'a String)>,
) -> Result<Vec<String>, NameError> {
    let mut names = Vec::new();
    let of_devices = annotations
        .into_iter()
        .filter(|(key, _)| key.starts_with(ANNOTATION_PREFIX));
    for (_, value) in of_devices {
        for name in value.split(',') {
            QualifiedName::parse(name)?;
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_name_has_a_vendor_a_class_and_a_device() {
        let check = |text: &str, expect: Option<(&str, &str, &str)>| {
            let got = QualifiedName::parse(text).ok();
            let parts = got.map(|n| (n.vendor, n.class, n.device));
            let expect = expect.map(|(a, b, c)| (a.to_owned(), b.to_owned(), c.to_owned()));
            assert_eq!(parts, expect, "{text}");
        };
        check("vendor.com/gpu=0", Some(("vendor.com", "gpu", "0")));
        check("v/c=d", Some(("v", "c", "d")));
        check("v-1.x/c_2.3=GPU-1:0", Some(("v-1.x", "c_2.3", "GPU-1:0")));
        for bad in [
            "",
            "/dev/null",
            "gpu",
            "vendor.com/gpu",
            "vendor.com=0",
            "/gpu=0",
            "vendor.com/=0",
            "vendor.com/gpu=",
            "1vendor/gpu=0",
            "vendor-/gpu=0",
            "vendor/1gpu=0",
            "vendor/gpu=-0",
            "vendor/gpu=0-",
            "vendor/gpu=a/b",
            "vendor/gpu=a=b",
            "vendor/gpu=ü",
            "vendor/g pu=0",
        ] {
            check(bad, None);
        }
    }

    #[test]
    fn annotations_name_devices_too() {
        let annotations = |value: &str| {
            BTreeMap::from([
                ("cdi.k8s.io/b".to_owned(), value.to_owned()),
                ("cdi.k8s.io/a".to_owned(), "v/c=1".to_owned()),
                ("other".to_owned(), "v/c=9".to_owned()),
            ])
        };
        let named = annotated_names(&annotations("v/c=2,v/c=3")).unwrap();
        assert_eq!(named, ["v/c=1", "v/c=2", "v/c=3"]);
        assert!(annotated_names(&annotations("v/c=2,")).is_err());
    }
}
