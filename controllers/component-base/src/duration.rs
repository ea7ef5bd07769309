//! Go's duration text (`1h30m0s`), as flags and configuration files carry it.
//!
//! Upstream: `time.ParseDuration`, `metav1.Duration`. Negative durations are refused: no setting of ours has a use for one.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A duration in Go's text form, for typed configuration files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GoDuration(pub Duration);

/// Why a text is no duration.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DurationError {
    /// Not a number with a unit.
    #[error("time: invalid duration {0:?}")]
    Invalid(String),
    /// A number without a unit.
    #[error("time: missing unit in duration {0:?}")]
    MissingUnit(String),
    /// A unit Go does not know.
    #[error("time: unknown unit {unit:?} in duration {text:?}")]
    UnknownUnit {
        /// The unit.
        unit: String,
        /// The whole text.
        text: String,
    },
    /// Below zero.
    #[error("negative duration {0:?} is not allowed")]
    Negative(String),
}

/// Reads Go's duration text: `300ms`, `1.5h`, `2h45m`, `0`.
///
/// # Errors
/// When the text is none; the error carries it.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let invalid = || DurationError::Invalid(text.to_string());
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total_nanos: f64 = 0.0;
    let mut whole_nanos: u128 = 0;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !(c.is_ascii_digit() || c == '.'))
            .unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        if number.is_empty() || number == "." {
            return Err(invalid());
        }
        let unit_len = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_len);
        let scale: u64 = match unit {
            "" => return Err(DurationError::MissingUnit(text.to_string())),
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60 * 1_000_000_000,
            "h" => 3_600 * 1_000_000_000,
            other => {
                return Err(DurationError::UnknownUnit {
                    unit: other.to_string(),
                    text: text.to_string(),
                });
            }
        };
        match number.parse::<u64>() {
            Ok(n) => {
                let nanos = u128::from(n) * u128::from(scale);
                whole_nanos = whole_nanos.saturating_add(nanos);
            }
            Err(_) => total_nanos += number.parse::<f64>().map_err(|_| invalid())? * scale as f64,
        }
        rest = next;
    }
    // The float saturates, and what is too long must not come out short.
    let nanos = whole_nanos.saturating_add(total_nanos.round() as u128);
    if nanos > i64::MAX as u128 {
        return Err(invalid());
    }
    if negative && nanos > 0 {
        return Err(DurationError::Negative(text.to_string()));
    }
    Ok(Duration::from_nanos(nanos as u64))
}

/// Writes a duration as Go does: `1h30m0s`, `2.5s`, `10ms`, `0s`.
pub fn format(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".to_string();
    }
    if nanos < 1_000_000_000 {
        let (unit, scale) = match nanos {
            n if n < 1_000 => ("ns", 1u128),
            n if n < 1_000_000 => ("µs", 1_000),
            _ => ("ms", 1_000_000),
        };
        return fraction(nanos, scale) + unit;
    }
    let total_seconds = nanos / 1_000_000_000;
    let (hours, minutes) = (total_seconds / 3600, total_seconds / 60 % 60);
    let seconds = fraction(nanos % 60_000_000_000, 1_000_000_000);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

fn fraction(value: u128, scale: u128) -> String {
    let (whole, part) = (value / scale, value % scale);
    if part == 0 {
        return whole.to_string();
    }
    let width = scale.ilog10() as usize;
    let digits = format!("{part:0width$}");
    format!("{whole}.{}", digits.trim_end_matches('0'))
}

impl From<Duration> for GoDuration {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl std::fmt::Display for GoDuration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&format(self.0))
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse(&text).map(Self).map_err(serde::de::Error::custom)
    }
}

impl schemars::JsonSchema for GoDuration {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "description": "A duration such as 1h30m or 300ms"})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        for (text, expect) in [
            ("0", "0s"),
            ("10s", "10s"),
            ("1h30m", "1h30m0s"),
            ("300ms", "300ms"),
            ("1.5h", "1h30m0s"),
            ("2m0.5s", "2m0.5s"),
            ("1us", "1µs"),
            ("8760h", "8760h0m0s"),
        ] {
            assert_eq!(format(parse(text).unwrap()), expect, "{text}");
        }
        for bad in ["", "10", "10x", "-1s", "s", "1.s.2"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        // Longer than any number: found by the fuzz target, came out as one nanosecond less than the rest.
        let long = format!("1h2m{}s", "5".repeat(60));
        assert!(parse(&long).is_err());
    }
}
