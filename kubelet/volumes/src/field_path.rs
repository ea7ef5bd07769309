//! `fieldRef` of a downward API volume: a field of the pod as text. Upstream: pkg/fieldpath.

use std::collections::BTreeMap;
use std::fmt::Write;

use k8s_openapi::api::core::v1::Pod;

/// Why a field could not be read. No retry helps.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldPathError {
    #[error("unsupported fieldPath: {0}")]
    Unsupported(String),
    #[error("fieldPath {0:?} does not support subscript")]
    NoSubscript(String),
}

/// The fields of `metadata`; those of `spec` and `status` are only for environment variables.
pub fn extract_field_path_as_string(pod: &Pod, field_path: &str) -> Result<String, FieldPathError> {
    let meta = &pod.metadata;
    if let Some((path, subscript)) = split_maybe_subscripted_path(field_path) {
        let map = match path {
            "metadata.annotations" => &meta.annotations,
            "metadata.labels" => &meta.labels,
            _ => return Err(FieldPathError::NoSubscript(field_path.to_owned())),
        };
        return Ok(map
            .as_ref()
            .and_then(|m| m.get(subscript))
            .cloned()
            .unwrap_or_default());
    }
    match field_path {
        "metadata.annotations" => Ok(meta
            .annotations
            .as_ref()
            .map(format_map)
            .unwrap_or_default()),
        "metadata.labels" => Ok(meta.labels.as_ref().map(format_map).unwrap_or_default()),
        "metadata.name" => Ok(meta.name.clone().unwrap_or_default()),
        "metadata.namespace" => Ok(meta.namespace.clone().unwrap_or_default()),
        "metadata.uid" => Ok(meta.uid.clone().unwrap_or_default()),
        _ => Err(FieldPathError::Unsupported(field_path.to_owned())),
    }
}

/// `metadata.labels['app']` -> (`metadata.labels`, `app`); `None` without a subscript.
pub fn split_maybe_subscripted_path(field_path: &str) -> Option<(&str, &str)> {
    let (path, subscript) = field_path.strip_suffix("']")?.split_once("['")?;
    (!path.is_empty()).then_some((path, subscript))
}

/// One `key="value"` a line, sorted by key, values quoted as Go quotes them; no newline at the end.
pub fn format_map(map: &BTreeMap<String, String>) -> String {
    let lines: Vec<_> = map
        .iter()
        .map(|(key, value)| format!("{key}={}", quote(value)))
        .collect();
    lines.join("\n")
}

/// Go's `strconv.Quote`.
fn quote(value: &str) -> String {
    let mut out = String::with_capacity(value.len() + 2);
    out.push('"');
    for c in value.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            c if is_print(c) => out.push(c),
            c => {
                let code = u32::from(c);
                let written = match code {
                    0..0x20 | 0x7f => write!(out, "\\x{code:02x}"),
                    0x80..0x1_0000 => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
                written.expect("writing to a String never fails");
            }
        }
    }
    out.push('"');
    out
}

/// Whether Go would print it as it is. The standard library's own tables are reached through `escape_debug`
/// of a character that is not the first (there, marks that extend a letter are left alone).
fn is_print(c: char) -> bool {
    c == '\'' || ['x', c].iter().collect::<String>().escape_debug().nth(1) != Some('\\')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_as_go_does() {
        for (value, quoted) in [
            ("plain", r#""plain""#),
            ("a\"b\\c", r#""a\"b\\c""#),
            ("tab\tnl\n\u{7}\u{1}\u{7f}", r#""tab\tnl\n\a\x01\x7f""#),
            ("it's ünïcode 世界", r#""it's ünïcode 世界""#),
            (
                "\u{ad}\u{200b}\u{feff}\u{a0}",
                r#""\u00ad\u200b\ufeff\u00a0""#,
            ),
            ("\u{e0001}", r#""\U000e0001""#),
            ("e\u{301}", "\"e\u{301}\""),
        ] {
            assert_eq!(quote(value), quoted);
        }
    }

    #[test]
    fn reads_metadata_only() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"b": "2", "a": "1"}, "annotations": {"k": "v"}}
        }))
        .unwrap();
        for (path, expect) in [
            ("metadata.name", Some("p")),
            ("metadata.namespace", Some("n")),
            ("metadata.uid", Some("u")),
            ("metadata.labels", Some("a=\"1\"\nb=\"2\"")),
            ("metadata.labels['a']", Some("1")),
            ("metadata.labels['none']", Some("")),
            ("metadata.annotations['k']", Some("v")),
            ("metadata.annotations", Some("k=\"v\"")),
            ("spec.nodeName", None),
            ("metadata.name['x']", None),
        ] {
            assert_eq!(
                extract_field_path_as_string(&pod, path).ok().as_deref(),
                expect,
                "{path}"
            );
        }
    }
}
