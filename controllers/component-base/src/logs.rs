//! Logging: `tracing` to standard error, as text or JSON, with klog's `-v` numbers.
//!
//! Upstream: `k8s.io/component-base/logs`. `-v 0..1` info, `2..4` info and debug of ours from 4, `5..7` debug, `8..` trace.

use std::str::FromStr;

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// `--logging-format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// One readable line an entry.
    #[default]
    Text,
    /// One JSON object an entry.
    Json,
}

/// A logging format nobody knows.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("format: Invalid value: {0:?}: Unsupported log format")]
pub struct UnknownFormat(String);

impl FromStr for Format {
    type Err = UnknownFormat;
    fn from_str(text: &str) -> Result<Self, UnknownFormat> {
        match text {
            "" | "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(UnknownFormat(other.to_string())),
        }
    }
}

/// Starts logging for the whole process. `RUST_LOG` overrides `verbosity`. A second call changes nothing.
pub fn init(verbosity: u32, format: Format) {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(directives(verbosity)));
    let registry = tracing_subscriber::registry().with(filter);
    // Err means that a subscriber stands already; the first one wins.
    let _ = match format {
        Format::Text => registry
            .with(fmt::layer().with_writer(std::io::stderr).with_ansi(false))
            .try_init(),
        Format::Json => registry
            .with(
                fmt::layer()
                    .json()
                    .flatten_event(true)
                    .with_writer(std::io::stderr),
            )
            .try_init(),
    };
}

fn directives(verbosity: u32) -> &'static str {
    match verbosity {
        0..=3 => "info,kube_client=warn,kube_runtime=warn,hyper=warn,rustls=warn",
        4..=6 => {
            "debug,kube_client=info,kube_runtime=info,hyper=warn,hyper_util=warn,rustls=warn,h2=warn,tower=warn"
        }
        7..=8 => "debug,hyper=info,hyper_util=info,rustls=info,h2=info",
        _ => "trace",
    }
}
