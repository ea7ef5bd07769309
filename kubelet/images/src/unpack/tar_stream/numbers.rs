//! The numbers, texts and times of tar headers.

use super::TarError;

/// A moment: seconds and nanoseconds since 1970; out of the kernel's range means 1970 itself, as upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

impl Time {
    pub(crate) fn seconds(seconds: i64) -> Self {
        Self {
            seconds,
            nanoseconds: 0,
        }
    }

    /// Upstream: containerd's `boundTime`.
    pub(crate) fn bounded(self) -> Self {
        let whole = i128::from(self.seconds) * 1_000_000_000 + i128::from(self.nanoseconds);
        if (0..=i128::from(i64::MAX)).contains(&whole) {
            self
        } else {
            Self::default()
        }
    }
}

/// Up to the first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    &field[..end]
}

/// Octal, or GNU's base 256 where the first bit is set.
pub(super) fn numeric(field: &[u8]) -> Result<i64, TarError> {
    let Some(&first) = field.first().filter(|&&b| b & 0x80 != 0) else {
        return octal(field);
    };
    let flip = if first & 0x40 != 0 { 0xff } else { 0 };
    let mut value = 0u64;
    for (index, byte) in field.iter().enumerate() {
        let byte = (byte ^ flip) & if index == 0 { 0x7f } else { 0xff };
        if value >> 56 > 0 {
            return Err(TarError::Header("number"));
        }
        value = value << 8 | u64::from(byte);
    }
    let value = i64::try_from(value).map_err(|_| TarError::Header("number"))?;
    Ok(if flip == 0 { value } else { !value })
}

/// Spaces and NULs around do not count; nothing at all is zero.
pub(super) fn octal(field: &[u8]) -> Result<i64, TarError> {
    let blank = |b: &u8| matches!(b, 0 | b' ');
    let Some(start) = field.iter().position(|b| !blank(b)) else {
        return Ok(0);
    };
    let end = field.iter().rposition(|b| !blank(b)).unwrap_or(start);
    let mut value = 0u64;
    for byte in text(&field[start..=end]) {
        if !(b'0'..=b'7').contains(byte) || value >> 61 > 0 {
            return Err(TarError::Header("number"));
        }
        value = value << 3 | u64::from(byte - b'0');
    }
    Ok(value.cast_signed())
}

/// `seconds[.fraction]`, maybe negative; `None`: malformed.
pub(crate) fn pax_time(text: &str) -> Option<Time> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits = fraction.bytes().chain(std::iter::repeat(b'0')).take(9);
    let mut nanoseconds = digits.fold(0u32, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    if whole.starts_with('-') && nanoseconds > 0 {
        seconds = seconds.checked_sub(1)?;
        nanoseconds = 1_000_000_000 - nanoseconds;
    }
    Some(Time {
        seconds,
        nanoseconds,
    })
}
