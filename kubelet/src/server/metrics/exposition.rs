//! Prometheus' text format, for values that are read at the moment they are asked for.

use std::fmt::Write as _;

use jiff::Timestamp;

/// A page under way.
#[derive(Default)]
pub(super) struct Page {
    text: String,
}

/// One metric's samples.
pub(super) struct Family<'a> {
    page: &'a mut Page,
    name: &'static str,
}

impl Page {
    /// Starts a metric; its samples must follow before the next one starts.
    pub(super) fn family(&mut self, name: &'static str, kind: &str, help: &str) -> Family<'_> {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Family { page: self, name }
    }

    pub(super) fn finish(self) -> String {
        self.text
    }
}

impl Family<'_> {
    /// Adds a sample, with the time it was read at.
    pub(super) fn sample(&mut self, labels: &[(&str, &str)], value: f64, time: Option<Timestamp>) {
        let text = &mut self.page.text;
        text.push_str(self.name);
        if !labels.is_empty() {
            text.push('{');
            for (index, (key, value)) in labels.iter().enumerate() {
                let comma = if index > 0 { "," } else { "" };
                let value = value
                    .replace('\\', "\\\\")
                    .replace('\n', "\\n")
                    .replace('"', "\\\"");
                let _ = write!(text, "{comma}{key}=\"{value}\"");
            }
            text.push('}');
        }
        let _ = write!(text, " {value}");
        if let Some(time) = time {
            let _ = write!(text, " {}", time.as_millisecond());
        }
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn format() {
        let mut page = Page::default();
        let mut family = page.family("a_b", "gauge", "[STABLE] Help");
        family.sample(&[], 1.5, None);
        family.sample(
            &[("x", "q\"\\\n"), ("y", "")],
            2e12,
            Timestamp::from_millisecond(7).ok(),
        );
        assert_eq!(
            page.finish(),
            "# HELP a_b [STABLE] Help\n# TYPE a_b gauge\na_b 1.5\na_b{x=\"q\\\"\\\\\\n\",y=\"\"} 2000000000000 7\n"
        );
    }
}
