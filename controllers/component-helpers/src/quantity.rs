//! Kubernetes quantities, exactly: parsing, comparison, arithmetic and the canonical form.
//!
//! An [`Amount`] is an integer number of nano-units, so nothing is ever rounded but what the API itself rounds: finer than
//! nano is rounded away from zero, larger than 2^63-1 is capped.
//! Upstream: k8s.io/apimachinery/pkg/api/resource, v1.36.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

#[cfg(test)]
mod tests;

const NANO: i128 = 1_000_000_000;
/// The largest magnitude a quantity may have: 2^63-1 units.
const MAX_NANO: i128 = i64::MAX as i128 * NANO;

/// The family of suffixes a quantity is written with; remembered from parsing and used again for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Format {
    /// `n u m "" k M G T P E`.
    #[default]
    DecimalSI,
    /// `Ki Mi Gi Ti Pi Ei`.
    BinarySI,
    /// `e3`, `E6`.
    DecimalExponent,
}

/// Why a text is not a quantity. A retry never helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseQuantityError {
    /// The text does not have the shape of a quantity.
    FormatWrong,
    /// The number before the suffix cannot be read.
    Numeric,
    /// The suffix is not one of the known ones.
    Suffix,
}

impl fmt::Display for ParseQuantityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FormatWrong => "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            Self::Numeric => "unable to parse numeric part of quantity",
            Self::Suffix => "unable to parse quantity's suffix",
        })
    }
}

impl std::error::Error for ParseQuantityError {}

/// A parsed quantity. Equality and order look at the value alone, never at the suffix it was written with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Amount {
    nano: i128,
    format: Format,
}

impl Amount {
    /// Nothing at all.
    pub const ZERO: Amount = Amount {
        nano: 0,
        format: Format::DecimalSI,
    };

    /// `value` whole units (bytes, cores, pods).
    pub const fn new(value: i64, format: Format) -> Self {
        Self {
            nano: value as i128 * NANO,
            format,
        }
    }

    /// `milli` thousandths of a unit (millicores).
    pub const fn from_milli(milli: i64) -> Self {
        Self {
            nano: milli as i128 * 1_000_000,
            format: Format::DecimalSI,
        }
    }

    /// `bytes`, written with binary suffixes.
    pub const fn from_bytes(bytes: i64) -> Self {
        Self::new(bytes, Format::BinarySI)
    }

    /// `nano` billionths of a unit (nanocores).
    pub fn from_nano(nano: i128) -> Self {
        Self {
            nano: nano.clamp(-MAX_NANO, MAX_NANO),
            format: Format::DecimalSI,
        }
    }

    /// The value in whole units, rounded away from zero; saturates.
    pub fn value(&self) -> i64 {
        self.scaled(NANO)
    }

    /// The value in thousandths, rounded away from zero; saturates.
    pub fn milli_value(&self) -> i64 {
        self.scaled(1_000_000)
    }

    /// The exact value in billionths.
    pub fn nano_value(&self) -> i128 {
        self.nano
    }

    /// The value as a float; for metrics and ratios only.
    pub fn as_f64(&self) -> f64 {
        self.nano as f64 / NANO as f64
    }

    fn scaled(&self, unit: i128) -> i64 {
        div_away_from_zero(self.nano, unit).clamp(i64::MIN as i128, i64::MAX as i128) as i64
    }

    /// Whether this is exactly nothing.
    pub fn is_zero(&self) -> bool {
        self.nano == 0
    }

    /// Whether this is more than nothing.
    pub fn is_positive(&self) -> bool {
        self.nano > 0
    }

    /// Whether this is less than nothing.
    pub fn is_negative(&self) -> bool {
        self.nano < 0
    }

    /// The suffix family used for writing.
    pub fn format(&self) -> Format {
        self.format
    }

    /// `self * factor`, capped.
    pub fn mul_int(self, factor: i64) -> Self {
        Self {
            nano: self
                .nano
                .saturating_mul(factor as i128)
                .clamp(-MAX_NANO, MAX_NANO),
            format: self.format,
        }
    }

    /// The canonical text: the largest suffix that keeps the mantissa whole.
    pub fn canonical(&self) -> String {
        if self.nano == 0 {
            return "0".into();
        }
        let whole = self.nano % NANO == 0;
        let units = self.nano / NANO;
        if self.format == Format::BinarySI && whole && units.abs() >= 1024 {
            const SUFFIXES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
            let (mut mantissa, mut i) = (units, 0);
            while i + 1 < SUFFIXES.len() && mantissa % 1024 == 0 {
                mantissa /= 1024;
                i += 1;
            }
            return format!("{mantissa}{}", SUFFIXES[i]);
        }
        const SUFFIXES: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
        let (mut mantissa, mut i) = (self.nano, 0);
        while i + 1 < SUFFIXES.len() && mantissa % 1000 == 0 {
            mantissa /= 1000;
            i += 1;
        }
        if self.format == Format::DecimalExponent {
            let exponent = i as i32 * 3 - 9;
            return if exponent == 0 {
                mantissa.to_string()
            } else {
                format!("{mantissa}e{exponent}")
            };
        }
        format!("{mantissa}{}", SUFFIXES[i])
    }
}

fn div_away_from_zero(value: i128, unit: i128) -> i128 {
    let (quotient, rest) = (value / unit, value % unit);
    if rest == 0 {
        quotient
    } else {
        quotient + rest.signum()
    }
}

impl PartialEq for Amount {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}
impl Eq for Amount {}
impl PartialOrd for Amount {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Amount {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nano.cmp(&other.nano)
    }
}
impl std::ops::Add for Amount {
    type Output = Amount;
    fn add(self, other: Amount) -> Amount {
        // A zero takes over the other's suffix family, as upstream's Add does.
        let format = if self.nano == 0 {
            other.format
        } else {
            self.format
        };
        Amount {
            nano: (self.nano + other.nano).clamp(-MAX_NANO, MAX_NANO),
            format,
        }
    }
}
impl std::ops::AddAssign for Amount {
    fn add_assign(&mut self, other: Amount) {
        *self = *self + other;
    }
}
impl std::ops::Sub for Amount {
    type Output = Amount;
    fn sub(self, other: Amount) -> Amount {
        let format = if self.nano == 0 {
            other.format
        } else {
            self.format
        };
        Amount {
            nano: (self.nano - other.nano).clamp(-MAX_NANO, MAX_NANO),
            format,
        }
    }
}
impl std::ops::SubAssign for Amount {
    fn sub_assign(&mut self, other: Amount) {
        *self = *self - other;
    }
}
impl std::ops::Neg for Amount {
    type Output = Amount;
    fn neg(self) -> Amount {
        Amount {
            nano: -self.nano,
            format: self.format,
        }
    }
}
impl std::iter::Sum for Amount {
    fn sum<I: Iterator<Item = Amount>>(amounts: I) -> Amount {
        amounts.fold(Amount::ZERO, |sum, amount| sum + amount)
    }
}
impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.canonical())
    }
}
impl From<Amount> for Quantity {
    fn from(amount: Amount) -> Quantity {
        Quantity(amount.canonical())
    }
}
impl TryFrom<&Quantity> for Amount {
    type Error = ParseQuantityError;
    fn try_from(quantity: &Quantity) -> Result<Self, ParseQuantityError> {
        quantity.0.parse()
    }
}

/// The amount a quantity of the API stands for. What is no quantity counts as zero: the API server lets none through, so
/// this is only reached by hand-made objects; where the text comes from a user, parse it and report the error instead.
pub fn amount(quantity: &Quantity) -> Amount {
    quantity.0.parse().unwrap_or(Amount::ZERO)
}

/// [`Amount::value`] of a quantity of the API.
pub fn value(quantity: &Quantity) -> i64 {
    amount(quantity).value()
}

/// [`Amount::milli_value`] of a quantity of the API.
pub fn milli_value(quantity: &Quantity) -> i64 {
    amount(quantity).milli_value()
}

/// Compares two quantities of the API by value.
pub fn cmp(a: &Quantity, b: &Quantity) -> Ordering {
    amount(a).cmp(&amount(b))
}

impl FromStr for Amount {
    type Err = ParseQuantityError;

    fn from_str(text: &str) -> Result<Self, ParseQuantityError> {
        let (negative, unsigned) = match text.as_bytes().first() {
            None => return Err(ParseQuantityError::FormatWrong),
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            Some(_) => (false, text),
        };
        let digits = |s: &str| s.bytes().take_while(u8::is_ascii_digit).count();
        let whole = &unsigned[..digits(unsigned)];
        let mut rest = &unsigned[whole.len()..];
        let mut fraction = "";
        if let Some(after) = rest.strip_prefix('.') {
            fraction = &after[..digits(after)];
            rest = &after[fraction.len()..];
        }
        if whole.is_empty() && fraction.is_empty() {
            return Err(if unsigned.starts_with('.') {
                ParseQuantityError::Numeric
            } else {
                ParseQuantityError::FormatWrong
            });
        }
        let (base2, exponent, format) = suffix(rest)?;

        // The value is whole.fraction * 2^base2 * 10^exponent; keep what is finer than nano only as a "something is left".
        let limit = 1i128 << (126 - base2);
        let (mut left, mut full) = (false, false);
        let mut mantissa: i128 = 0;
        let mut scale = exponent;
        for digit in whole
            .bytes()
            .chain(fraction.bytes())
            .map(|b| (b - b'0') as i128)
        {
            match mantissa
                .checked_mul(10)
                .and_then(|m| m.checked_add(digit))
                .filter(|m| !full && *m < limit)
            {
                Some(next) => mantissa = next,
                None => {
                    full = true;
                    left |= digit != 0;
                    scale += 1;
                }
            }
        }
        scale -= fraction.len() as i32;
        let mut nano = mantissa << base2;
        let mut power = scale + 9;
        while power > 0 && nano != 0 && nano <= MAX_NANO {
            nano = nano.saturating_mul(10);
            power -= 1;
        }
        while power < 0 && nano != 0 {
            left |= nano % 10 != 0;
            nano /= 10;
            power += 1;
        }
        if left {
            nano = nano.saturating_add(1);
        }
        nano = nano.min(MAX_NANO);
        // A fraction of a byte is written in thousandths: rounding it would lose it.
        let format = if format == Format::BinarySI && nano > 0 && nano < NANO {
            Format::DecimalSI
        } else {
            format
        };
        Ok(Amount {
            nano: if negative { -nano } else { nano },
            format,
        })
    }
}

/// The power of two, the power of ten and the family of a suffix.
fn suffix(text: &str) -> Result<(u32, i32, Format), ParseQuantityError> {
    use Format::*;
    Ok(match text {
        "" => (0, 0, DecimalSI),
        "n" => (0, -9, DecimalSI),
        "u" => (0, -6, DecimalSI),
        "m" => (0, -3, DecimalSI),
        "k" => (0, 3, DecimalSI),
        "M" => (0, 6, DecimalSI),
        "G" => (0, 9, DecimalSI),
        "T" => (0, 12, DecimalSI),
        "P" => (0, 15, DecimalSI),
        "E" => (0, 18, DecimalSI),
        "Ki" => (10, 0, BinarySI),
        "Mi" => (20, 0, BinarySI),
        "Gi" => (30, 0, BinarySI),
        "Ti" => (40, 0, BinarySI),
        "Pi" => (50, 0, BinarySI),
        "Ei" => (60, 0, BinarySI),
        _ => {
            if !text
                .bytes()
                .all(|b| b"eEinumkKMGTP+-0123456789".contains(&b))
            {
                return Err(ParseQuantityError::FormatWrong);
            }
            let exponent = text
                .strip_prefix(['e', 'E'])
                .ok_or(ParseQuantityError::Suffix)?;
            let exponent: i32 = exponent.parse().map_err(|_| ParseQuantityError::Suffix)?;
            (0, exponent.clamp(-1000, 1000), DecimalExponent)
        }
    })
}
