//! What a label key and a label value may look like.

fn is_qualified_name_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    bytes.len() <= 63
        && first.is_ascii_alphanumeric()
        && last.is_ascii_alphanumeric()
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
}

fn is_dns1123_subdomain(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 253
        && text.split('.').all(|label| {
            let bytes = label.as_bytes();
            !bytes.is_empty()
                && bytes
                    .iter()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
                && bytes[0] != b'-'
                && bytes[bytes.len() - 1] != b'-'
        })
}

/// Checks a label key: `[prefix/]name`.
///
/// # Errors
/// A text that says what is expected.
pub fn validate_label_key(key: &str) -> Result<(), String> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if name.contains('/') {
        return Err("a qualified name must consist of a name and an optional DNS subdomain prefix (e.g. 'example.com/MyName')".into());
    }
    if prefix.is_some_and(|prefix| !is_dns1123_subdomain(prefix)) {
        return Err(
            "prefix part must be a lowercase RFC 1123 subdomain of at most 253 characters".into(),
        );
    }
    if !is_qualified_name_part(name) {
        return Err("name part must consist of 1 to 63 alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character".into());
    }
    Ok(())
}

/// Checks a label value: empty, or like the name part of a key.
///
/// # Errors
/// A text that says what is expected.
pub fn validate_label_value(value: &str) -> Result<(), String> {
    if value.is_empty() || is_qualified_name_part(value) {
        return Ok(());
    }
    Err("a valid label must be an empty string or consist of at most 63 alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character".into())
}
