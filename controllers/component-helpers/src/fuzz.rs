//! What must hold whatever a user writes for a quantity: for the fuzz target in `fuzz/`, and for the cases it found.

use crate::quantity::Amount;

/// A quantity that is read is written in its canonical form, which is read as the same, in the same family, and written the
/// same again; sums and products never overflow.
///
/// # Panics
/// When the promise is broken.
pub fn quantity(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(amount) = text.parse::<Amount>() else {
        return;
    };
    let written = amount.canonical();
    let again: Amount = written.parse().expect("what is written is read");
    assert_eq!(again, amount, "{written}");
    assert_eq!(again.canonical(), written);
    assert!(amount.milli_value() >= amount.value() || amount.is_negative() || amount.is_zero());
    let negative = -amount;
    assert_eq!(amount + negative, Amount::ZERO);
    assert_eq!(amount - amount, Amount::ZERO);
    let doubled = amount + amount;
    assert_eq!(doubled, amount.mul_int(2));
}

/// Quantities to begin with; durations among them.
pub fn seeds() -> Vec<Vec<u8>> {
    [
        "1",
        "-1.5Mi",
        "1e3",
        "+.5",
        "9223372036854775807",
        "99999999999999999999E",
        "1n",
        "0.0000000001",
        "5Ki",
        "1E",
        "1E3",
        "-0",
        "1h2m3.5s",
        "100ms",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

#[cfg(test)]
mod tests {
    #[test]
    fn promises_hold() {
        for case in super::seeds() {
            super::quantity(&case);
        }
    }
}
