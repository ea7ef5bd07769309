//! The text of a static pod's manifest as a value.
//!
//! Owns: reading it as upstream's YAML reader does; pure. That is YAML 1.1: `0644` is octal, `yes` is true, the last of
//! repeated keys counts, and a file's first document is the file. Upstream: `sigs.k8s.io/yaml` over `go.yaml.in/yaml/v2`,
//! `apimachinery/pkg/util/yaml` `ToJSON`.

use serde_json::Value;
use serde_saphyr::{DuplicateKeyPolicy, Options};

/// The first document, numbers as JSON writes them.
///
/// # Errors
/// It is neither YAML nor JSON, or there is none.
pub fn decode(text: &str) -> Result<Value, String> {
    // As upstream: what begins with a brace is JSON.
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text).map_err(|e| e.to_string());
    }
    let options = || -> Options {
        serde_saphyr::options! {
            duplicate_keys: DuplicateKeyPolicy::LastWins,
            legacy_octal_numbers: true,
            with_snippet: false,
        }
    };
    let mut bytes = text.as_bytes();
    // What stands behind the first document is not even looked at.
    let first = serde_saphyr::read_with_options::<_, Value>(&mut bytes, options()).next();
    let mut value = first
        .ok_or_else(|| "there is no document".to_owned())?
        .map_err(|e| e.to_string())?;
    whole_numbers(&mut value);
    Ok(value)
}

/// `1e3` and `1000.0` are 1000, as Go writes a float that has no fraction.
fn whole_numbers(value: &mut Value) {
    match value {
        Value::Number(number) if number.is_f64() => {
            let float = number.as_f64().unwrap_or(f64::NAN);
            // Beyond that Go writes an exponent, which no integer field takes.
            if float.fract() == 0.0 && float.abs() < 1e21 && float.abs() <= i64::MAX as f64 {
                *value = Value::from(float as i64);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Object(map) => map.values_mut().for_each(whole_numbers),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What `yaml.YAMLToJSON` of v1.36.3's modules makes of the same text.
    #[test]
    fn as_upstream_reads_it() {
        let check = |text: &str, expect: Value| {
            assert_eq!(
                decode(text).unwrap_or_else(|e| panic!("{text}: {e}")),
                expect,
                "{text}"
            );
        };
        for (scalar, expect) in [
            ("0644", json!(420)),
            ("0o644", json!(420)),
            ("0x1f", json!(31)),
            ("0b11", json!(3)),
            ("1_000", json!(1000)),
            ("08", json!(8)),
            ("-0644", json!(-420)),
            ("+12", json!(12)),
            ("1e3", json!(1000)),
            ("8E1", json!(80)),
            ("1.5e3", json!(1500)),
            ("30.0", json!(30)),
            ("0.5", json!(0.5)),
            (".5", json!(0.5)),
            ("yes", json!(true)),
            ("On", json!(true)),
            ("n", json!(false)),
            ("off", json!(false)),
            ("~", json!(null)),
            ("", json!(null)),
            ("\"0644\"", json!("0644")),
            ("'yes'", json!("yes")),
            ("100m", json!("100m")),
            ("1.2.3", json!("1.2.3")),
            ("2001-01-01", json!("2001-01-01")),
        ] {
            check(&format!("a: {scalar}\n"), json!({"a": expect}));
        }
        check("a: 1\nb: 2\na: 3\n", json!({"a": 3, "b": 2}));
        check("a: {b: 1, b: 2}\n", json!({"a": {"b": 2}}));
        check("a: 1\n---\na: 2\n", json!({"a": 1}));
        check("# x\n---\na: 1\n---\n[ not: yaml\n", json!({"a": 1}));
        check(
            "p: &p {a: 1}\nq: {<<: *p, b: 2}\n",
            json!({"p": {"a": 1}, "q": {"a": 1, "b": 2}}),
        );
        check(" {\"a\": 1, \"a\": 2}", json!({"a": 2}));
    }

    #[test]
    fn what_is_refused() {
        for text in ["a: [", "{\"a\": 0644}"] {
            assert!(decode(text).is_err(), "{text}");
        }
    }
}
