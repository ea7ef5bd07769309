//! Integers that may be percentages.
//!
//! Upstream: k8s.io/apimachinery/pkg/util/intstr, v1.36.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::fmt;

/// A text that is neither an integer nor a percentage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidPercentage(pub String);

impl fmt::Display for InvalidPercentage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "invalid value for IntOrString: invalid type: string is not a percentage: {:?}",
            self.0
        )
    }
}

impl std::error::Error for InvalidPercentage {}

/// `value` itself where it is a number; where it is a percentage, that share of `total`, rounded up or down.
///
/// # Errors
/// A text that is no percentage.
pub fn scaled_value(
    value: &IntOrString,
    total: i32,
    round_up: bool,
) -> Result<i32, InvalidPercentage> {
    match value {
        IntOrString::Int(number) => Ok(*number),
        IntOrString::String(text) => {
            let percent: i64 = text
                .strip_suffix('%')
                .and_then(|number| number.parse::<i32>().ok())
                .ok_or_else(|| InvalidPercentage(text.clone()))?
                .into();
            let product = percent * i64::from(total);
            let scaled = if round_up {
                product.div_euclid(100) + i64::from(product.rem_euclid(100) != 0)
            } else {
                product.div_euclid(100)
            };
            Ok(scaled.clamp(i32::MIN.into(), i32::MAX.into()) as i32)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaling() {
        let text = |t: &str| IntOrString::String(t.into());
        for (value, total, up, expect) in [
            (IntOrString::Int(3), 10, true, Some(3)),
            (text("25%"), 10, true, Some(3)),
            (text("25%"), 10, false, Some(2)),
            (text("100%"), 7, false, Some(7)),
            (text("0%"), 7, true, Some(0)),
            (text("150%"), 3, true, Some(5)),
            (text("25"), 10, true, None),
            (text("%"), 10, true, None),
            (text("a%"), 10, true, None),
        ] {
            assert_eq!(
                scaled_value(&value, total, up).ok(),
                expect,
                "{value:?} of {total}"
            );
        }
    }
}
