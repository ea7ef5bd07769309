//! Command lines as Go's `flag` package reads them, and the flags every program of this crate has.

use std::ffi::OsString;
use std::time::Duration;

use clap::{ArgAction, Args};

/// Makes `--name` of `-name` (and of `-v`), so that clap reads what Go's `flag` reads. Nothing after `--` is touched, nor what
/// cannot be a name.
pub fn as_long_options(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut is_over = false;
    args.map(|arg| {
        is_over |= arg == "--";
        let name = arg
            .to_str()
            .and_then(|text| text.strip_prefix('-'))
            .filter(|name| name.starts_with(|first: char| first.is_ascii_alphabetic()));
        match name {
            Some(name) if !is_over => OsString::from(format!("--{name}")),
            _ => arg,
        }
    })
    .collect()
}

/// A duration as Go writes it: `300ms`, `1.5s`, `1m30s`.
///
/// # Errors
/// It is none, or negative.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a duration such as 300ms, 1.5s or 1m30s");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let (mut rest, mut seconds) = (text, 0.0);
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(bad)?;
        let number: f64 = rest[..end].parse().map_err(|_| bad())?;
        rest = &rest[end..];
        let unit = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        seconds += number
            * match &rest[..unit] {
                "ns" => 1e-9,
                "us" | "µs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return Err(bad()),
            };
        rest = &rest[unit..];
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| bad())
}

/// What klog and Kubernetes' sidecars share.
#[derive(Args, Clone, Debug)]
pub struct Logging {
    /// Verbosity: from 5 on every call is logged with its contents, secrets too.
    #[arg(long, default_value_t = 0)]
    pub v: i32,
    /// Known and without an effect: the log always goes to stderr.
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    logtostderr: Option<bool>,
    /// Known and without an effect: the log is always text.
    #[arg(long, hide = true)]
    logging_format: Option<String>,
    /// Known and without an effect: a program of Go's.
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    automaxprocs: Option<bool>,
}

impl Logging {
    /// Starts the log, and says which flags have no effect.
    pub fn start(&self) {
        let level = if self.v >= 5 {
            tracing::Level::DEBUG
        } else {
            tracing::Level::INFO
        };
        // The libraries below are no part of what `--v` means.
        let filter = tracing_subscriber::EnvFilter::new(format!(
            "warn,csi_hostpath={level},hostpathplugin={level},csi_node_driver_registrar={level},livenessprobe={level}"
        ));
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(false)
            .init();
        if self
            .logging_format
            .as_ref()
            .is_some_and(|format| format != "text")
        {
            tracing::warn!("--logging-format has no effect here: the log is text");
        }
        if self.automaxprocs == Some(true) {
            tracing::warn!("--automaxprocs has no effect here");
        }
        if self.logtostderr == Some(false) {
            tracing::warn!("--logtostderr=false has no effect here");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_go_does() {
        let millis = |text| duration(text).ok().map(|duration| duration.as_millis());
        for (text, expected) in [
            ("1s", Some(1000)),
            ("1m30s", Some(90_000)),
            ("1.5s", Some(1500)),
            ("300ms", Some(300)),
            ("0", Some(0)),
            ("5", None),
            ("-1s", None),
            ("", None),
            ("1x", None),
        ] {
            assert_eq!(millis(text), expected, "{text:?}");
        }
    }

    #[test]
    fn one_dash_is_as_good_as_two() {
        let cases: &[(&[&str], &[&str])] = &[
            (&["p", "-v=5", "--x=1"], &["p", "--v=5", "--x=1"]),
            (&["p", "-csi-address", "/a"], &["p", "--csi-address", "/a"]),
            (&["p", "-1", "--", "-x"], &["p", "-1", "--", "-x"]),
        ];
        for (given, expected) in cases {
            let read = as_long_options(given.iter().map(OsString::from));
            assert_eq!(read, *expected, "{given:?}");
        }
    }
}
