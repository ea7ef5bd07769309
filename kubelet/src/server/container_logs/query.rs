//! The query of a log request: `v1.PodLogOptions`.

use http::StatusCode;
use jiff::{SignedDuration, Timestamp};

use super::super::ApiError;
use super::line::Stream;

/// What of the log is wanted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct LogQuery {
    pub(super) follow: bool,
    pub(super) previous: bool,
    pub(super) timestamps: bool,
    pub(super) tail_lines: Option<u64>,
    pub(super) limit_bytes: Option<u64>,
    pub(super) since_seconds: Option<i64>,
    pub(super) since_time: Option<Timestamp>,
    /// `None`: both.
    pub(super) stream: Option<Stream>,
}

impl LogQuery {
    /// Reads the query; what is malformed is 400, what makes no sense 422.
    pub(super) fn parse(pairs: &[(String, String)]) -> Result<Self, ApiError> {
        let undecodable = || ApiError::bad_request(r#"{"message": "Unable to decode query."}"#);
        let invalid = || {
            ApiError::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                r#"{"message": "Invalid request."}"#,
            )
        };
        let mut query = Self::default();
        for (key, value) in pairs {
            let number = || value.parse::<i64>().map_err(|_| undecodable());
            match key.as_str() {
                "follow" => query.follow = flag(value),
                "previous" => query.previous = flag(value),
                "timestamps" => query.timestamps = flag(value),
                "tail" if value == "all" => query.tail_lines = None,
                "tail" | "tailLines" => {
                    query.tail_lines = Some(u64::try_from(number()?).map_err(|_| invalid())?);
                }
                "limitBytes" => {
                    let limit = u64::try_from(number()?).map_err(|_| invalid())?;
                    if limit == 0 {
                        return Err(invalid());
                    }
                    query.limit_bytes = Some(limit);
                }
                "sinceSeconds" => {
                    let seconds = number()?;
                    if seconds < 1 {
                        return Err(invalid());
                    }
                    query.since_seconds = Some(seconds);
                }
                "sinceTime" => {
                    query.since_time = Some(value.parse().map_err(|_| undecodable())?);
                }
                "stream" => {
                    query.stream = match value.as_str() {
                        "All" | "" => None,
                        "Stdout" => Some(Stream::Stdout),
                        "Stderr" => Some(Stream::Stderr),
                        _ => return Err(invalid()),
                    };
                }
                _ => {}
            }
        }
        let two_sinces = query.since_seconds.is_some() && query.since_time.is_some();
        // A tail is counted in the file, where both streams are mixed.
        let tail_of_stream = query.tail_lines.is_some() && query.stream.is_some();
        if two_sinces || tail_of_stream {
            Err(invalid())
        } else {
            Ok(query)
        }
    }

    /// The time before which lines are left out.
    pub(super) fn since(&self, now: Timestamp) -> Option<Timestamp> {
        match self.since_seconds {
            Some(seconds) => now.checked_sub(SignedDuration::from_secs(seconds)).ok(),
            None => self.since_time,
        }
    }
}

/// As apimachinery converts booleans: everything but "false" and "0" is true.
fn flag(value: &str) -> bool {
    !matches!(value.to_ascii_lowercase().as_str(), "false" | "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(query: &[(&str, &str)], expect: Result<LogQuery, ()>) {
        let pairs: Vec<_> = query
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        assert_eq!(LogQuery::parse(&pairs).map_err(|_| ()), expect, "{query:?}");
    }

    #[test]
    fn queries() {
        check(&[], Ok(LogQuery::default()));
        check(
            &[
                ("follow", "true"),
                ("tailLines", "5"),
                ("timestamps", ""),
                ("previous", "false"),
            ],
            Ok(LogQuery {
                follow: true,
                timestamps: true,
                tail_lines: Some(5),
                ..Default::default()
            }),
        );
        check(&[("tail", "all")], Ok(LogQuery::default()));
        check(
            &[("stream", "Stderr"), ("limitBytes", "9")],
            Ok(LogQuery {
                stream: Some(Stream::Stderr),
                limit_bytes: Some(9),
                ..Default::default()
            }),
        );
        check(&[("tailLines", "-1")], Err(()));
        check(&[("tailLines", "x")], Err(()));
        check(&[("limitBytes", "0")], Err(()));
        check(&[("stream", "Stdout"), ("tailLines", "1")], Err(()));
        check(
            &[("sinceSeconds", "1"), ("sinceTime", "2026-01-01T00:00:00Z")],
            Err(()),
        );
    }

    #[test]
    fn since() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let query = LogQuery {
            since_seconds: Some(60),
            ..Default::default()
        };
        assert_eq!(
            query.since(now),
            Some("2026-01-01T00:00:00Z".parse().unwrap())
        );
        assert_eq!(LogQuery::default().since(now), None);
    }
}
