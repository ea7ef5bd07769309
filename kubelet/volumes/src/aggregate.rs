//! Several errors as one text.

/// As Go's aggregate: `[a, b]`.
pub(crate) fn aggregate<E: std::fmt::Display>(errors: &[E]) -> String {
    let texts: Vec<_> = errors.iter().map(E::to_string).collect();
    format!("[{}]", texts.join(", "))
}
