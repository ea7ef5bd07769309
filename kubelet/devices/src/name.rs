//! Whether a plugin says who it is in valid words; pure. Upstream: plugin/v1beta1/{server,handler}.go.

use component_helpers::resources::is_extended_resource_name;

use crate::v1beta1::VERSION;

pub(crate) fn check_name(resource: &str) -> Result<(), String> {
    match is_extended_resource_name(resource) {
        true => Ok(()),
        false => Err(format!("the ResourceName {resource:?} is invalid")),
    }
}

/// May a plugin that was found in `plugins_registry` register? Upstream: `ValidatePlugin`.
///
/// # Errors
/// Why not.
pub(crate) fn validate(resource: &str, versions: &[String]) -> Result<(), String> {
    if !versions.iter().any(|version| version == VERSION) {
        return Err(format!(
            "manager version, {VERSION}, is not among plugin supported versions [{}]",
            versions.join(" ")
        ));
    }
    check_name(resource).map_err(|why| format!("invalid name of device plugin socket: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_say_who_they_are_in_valid_words() {
        let versions =
            |list: &[&str]| -> Vec<String> { list.iter().map(|v| (*v).to_owned()).collect() };
        let check = |name: &str, list: &[&str]| validate(name, &versions(list));
        assert_eq!(check("example.com/gpu", &["v1alpha1", "v1beta1"]), Ok(()));
        assert_eq!(
            check("example.com/gpu", &["v1", "v2"]).unwrap_err(),
            "manager version, v1beta1, is not among plugin supported versions [v1 v2]"
        );
        for name in [
            "gpu",
            "kubernetes.io/gpu",
            "requests.example.com/gpu",
            "example.com/",
            "a b/c",
        ] {
            assert_eq!(
                check(name, &["v1beta1"]).unwrap_err(),
                format!(
                    "invalid name of device plugin socket: the ResourceName {name:?} is invalid"
                )
            );
        }
    }
}
