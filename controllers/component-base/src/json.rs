//! JSON that was read already, read once more as a type.
//!
//! Owns: nothing but the way. Each type of Kubernetes' API is compiled for each kind of reader it is read by, and a Pod alone has a hundred
//! types: read from a [`Value`] as `serde_json::from_value` does, all of them would be in the program once more. Values are few (what a test
//! or a dynamic kind has), so they take the road of text.

pub use kube_protobuf::escape;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// As `serde_json::from_value`, by the reader of text.
///
/// # Errors
/// The value is none of the type; the words are `serde_json`'s.
pub fn from_value<T: DeserializeOwned>(value: &Value) -> serde_json::Result<T> {
    serde_json::from_str(&value.to_string()).map_err(without_place)
}

/// A place in a text that nobody has seen tells nothing.
fn without_place(error: serde_json::Error) -> serde_json::Error {
    let words = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    serde::de::Error::custom(words.strip_suffix(&place).unwrap_or(&words))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::from_value;

    #[test]
    fn a_value_is_read_as_text_is() {
        let pod: Pod = from_value(&json!({"metadata": {"name": "a\n\u{1}"}})).expect("a pod");
        assert_eq!(pod.metadata.name.as_deref(), Some("a\n\u{1}"));
        let wrong = json!({"spec": {"containers": 7}});
        let words = |error: serde_json::Error| error.to_string();
        assert_eq!(
            from_value::<Pod>(&wrong).map_err(words),
            serde_json::from_value::<Pod>(wrong).map_err(words)
        );
        let large: u64 = from_value(&json!(u64::MAX)).expect("a number");
        assert_eq!(large, u64::MAX);
    }
}
