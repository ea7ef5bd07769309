//! Reads objects as Go does: a null where the schema demands a time is the zero time.
//!
//! Go writes its zero time as `null`, and the API server stores what a client sent. One Service whose condition has no
//! `lastTransitionTime` would otherwise end every list and watch of Services, in every component, for as long as it exists.
//! Upstream: `Time.MarshalJSON` and `Time.UnmarshalJSON` in `k8s.io/apimachinery/pkg/apis/meta/v1/time.go`.

use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

/// Go's zero time, which upstream's decoders take for `null` again.
const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

/// Fields that k8s-openapi demands and Go may write as `null`.
const REQUIRED_TIMES: [&str; 2] = ["lastTransitionTime", "lastObservedTime"];

/// An object that is decoded once more with its nulls filled in when the plain way fails.
#[derive(Clone, Debug)]
pub(super) struct Tolerant<K>(pub K);

impl<'de, K: DeserializeOwned> Deserialize<'de> for Tolerant<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        let error = match serde_json::from_str(raw.get()) {
            Ok(object) => return Ok(Self(object)),
            Err(error) => error,
        };
        let mut value: Value = serde_json::from_str(raw.get()).map_err(D::Error::custom)?;
        if !fill_times(&mut value) {
            return Err(D::Error::custom(error));
        }
        crate::json::from_value(&value)
            .map(Self)
            .map_err(D::Error::custom)
    }
}

/// Puts the zero time in place of nulls; whether there were any.
fn fill_times(value: &mut Value) -> bool {
    match value {
        Value::Array(items) => items
            .iter_mut()
            .fold(false, |filled, item| fill_times(item) | filled),
        Value::Object(fields) => fields.iter_mut().fold(false, |filled, (name, field)| {
            if field.is_null() && REQUIRED_TIMES.contains(&name.as_str()) {
                *field = Value::String(ZERO_TIME.to_owned());
                true
            } else {
                fill_times(field) | filled
            }
        }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;
    use kube::core::{ObjectList, WatchEvent};

    use super::Tolerant;

    const CONDITION: &str =
        r#"{"type":"T","status":"True","reason":"R","message":"","lastTransitionTime":"#;

    fn service(time: &str) -> String {
        format!(
            r#"{{"kind":"Service","apiVersion":"v1","metadata":{{"name":"a"}},"status":{{"conditions":[{CONDITION}{time}}}]}}}}"#
        )
    }

    #[test]
    fn a_null_time_ends_neither_list_nor_watch() {
        for time in ["null", "\"2026-01-02T03:04:05Z\""] {
            let event = format!(r#"{{"type":"ADDED","object":{}}}"#, service(time));
            let event: WatchEvent<Tolerant<Service>> =
                serde_json::from_str(&event).expect("a watch event");
            let WatchEvent::Added(object) = event else {
                panic!("not the event that was sent");
            };
            let conditions = object.0.status.and_then(|status| status.conditions);
            let at = conditions.expect("conditions")[0].last_transition_time.0;
            let zero = time == "null";
            assert_eq!(at.to_string().starts_with("0001-01-01"), zero, "{at}");

            let list = format!(
                r#"{{"kind":"ServiceList","apiVersion":"v1","metadata":{{"resourceVersion":"7"}},"items":[{}]}}"#,
                service(time)
            );
            let list: ObjectList<Tolerant<Service>> = serde_json::from_str(&list).expect("a list");
            assert_eq!(list.items.len(), 1);
        }
    }

    #[test]
    fn other_errors_stay_errors() {
        for object in [service("7"), r#"{"metadata":[]}"#.to_owned()] {
            assert!(
                serde_json::from_str::<Tolerant<Service>>(&object).is_err(),
                "{object}"
            );
        }
    }
}
