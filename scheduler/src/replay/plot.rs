//! Plots of several ways things went, as SVG. Pure.
//!
//! Hand-made: three kinds of line plots need no library. They read in light and dark, and the lines differ by more than their colour.

use std::fmt::Write as _;

use super::tally::{Played, PodRecord, Sample};

/// The size of a plot, in the units of its `viewBox`.
const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 320.0;
/// Room for numbers and names.
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 70.0;
/// No line has more points than a screen can show.
const POINTS: usize = 2_000;

/// Okabe and Ito's colours, which people of every eyesight tell apart.
const COLOURS: [&str; 8] = [
    "#767676", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d00",
];
/// And the strokes, for those who see none.
const DASHES: [&str; 4] = ["", "8 4", "2 3", "12 3 2 3"];

/// A file's name and what is in it.
pub type Plot = (&'static str, String);

struct Line {
    name: String,
    /// From left to right.
    points: Vec<(f64, f64)>,
    /// A value stands until the next one?
    steps: bool,
}

struct Axes {
    title: &'static str,
    x: &'static str,
    /// How a value is written.
    y: fn(f64) -> String,
    /// The least that the axis shows.
    least_top: f64,
}

/// All plots.
pub fn plots(played: &[Played]) -> Vec<Plot> {
    let share = |value: f64| format!("{:.0} %", value * 100.0);
    let count = |value: f64| format!("{value:.0}");
    let over_time = |title, y: fn(f64) -> String, least_top, value: fn(&Sample) -> f64| {
        let axes = Axes {
            title,
            x: "seconds since the trace began",
            y,
            least_top,
        };
        let line = |played: &Played| {
            let samples = played.samples.iter();
            let mut points: Vec<_> = samples.map(|s| (s.at.as_secs_f64(), value(s))).collect();
            if let Some(&(_, last)) = points.last() {
                points.push((played.length.as_secs_f64(), last));
            }
            Line {
                name: played.name.clone(),
                points: thin(points),
                steps: true,
            }
        };
        svg(&axes, &played.iter().map(line).collect::<Vec<_>>())
    };
    vec![
        ("cpu.svg", over_time("CPU asked for", share, 1.0, |s| s.cpu)),
        (
            "memory.svg",
            over_time("Memory asked for", share, 1.0, |s| s.memory),
        ),
        (
            "waiting.svg",
            over_time("Pods without a node", count, 1.0, |s| s.waiting as f64),
        ),
        (
            "nodes.svg",
            over_time("Nodes in use", count, 1.0, |s| s.nodes_in_use as f64),
        ),
        ("waited.svg", waited(played, share)),
    ]
}

/// Which share of the pods waited at most so long.
fn waited(played: &[Played], share: fn(f64) -> String) -> String {
    let line = |played: &Played| {
        let mut times: Vec<f64> = played
            .pods
            .values()
            .filter_map(PodRecord::waited)
            .map(|time| time.as_secs_f64())
            .collect();
        times.sort_unstable_by(f64::total_cmp);
        let all = times.len().max(1) as f64;
        let points = times
            .iter()
            .enumerate()
            .map(|(i, time)| (*time, (i + 1) as f64 / all));
        Line {
            name: played.name.clone(),
            points: thin(std::iter::once((0.0, 0.0)).chain(points).collect()),
            steps: true,
        }
    };
    let axes = Axes {
        title: "Pods that waited at most so long",
        x: "seconds",
        y: share,
        least_top: 1.0,
    };
    svg(&axes, &played.iter().map(line).collect::<Vec<_>>())
}

/// Leaves out what cannot be seen: of each stretch the highest point and the last.
fn thin(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    if points.len() <= POINTS {
        return points;
    }
    let stretch = points.len().div_ceil(POINTS / 2);
    let mut thinned = Vec::with_capacity(POINTS);
    for part in points.chunks(stretch) {
        let highest = part.iter().max_by(|a, b| a.1.total_cmp(&b.1));
        if let (Some(highest), Some(last)) = (highest, part.last()) {
            if highest.0 < last.0 {
                thinned.push(*highest);
            }
            thinned.push(*last);
        }
    }
    thinned
}

/// A round number no less than `value`.
fn round_up(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let unit = 10f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 2.5, 5.0, 10.0];
    let step = steps.iter().find(|step| *step * unit >= value);
    step.map_or(value, |step| step * unit)
}

fn escape(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    text.replace('>', "&gt;").replace('"', "&quot;")
}

fn svg(axes: &Axes, lines: &[Line]) -> String {
    let all = || lines.iter().flat_map(|line| &line.points);
    let right = round_up(all().map(|(x, _)| *x).fold(0.0, f64::max));
    let top = round_up(all().map(|(_, y)| *y).fold(axes.least_top, f64::max));
    let x = |value: f64| LEFT + value / right * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">\n\
         <style>text{{font:12px sans-serif;fill:#222}}.title{{font-size:15px}}.grid{{stroke:#ddd}}rect{{fill:#fff}}\
         @media(prefers-color-scheme:dark){{text{{fill:#ddd}}.grid{{stroke:#444}}rect{{fill:#1b1b1b}}}}</style>\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\"/>\n\
         <text class=\"title\" x=\"{LEFT}\" y=\"24\">{title}</text>\n",
        title = escape(axes.title),
    );
    // Writing into a String cannot fail.
    for part in 0..=4 {
        let share = f64::from(part) / 4.0;
        let (at_y, at_x) = (y(share * top), x(share * right));
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at_y:.1}\" y2=\"{at_y:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <text x=\"{at_x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            at_y + 4.0,
            escape(&(axes.y)(share * top)),
            HEIGHT - BOTTOM + 18.0,
            number(share * right),
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
        WIDTH - RIGHT,
        HEIGHT - BOTTOM + 34.0,
        escape(axes.x)
    );
    for (i, line) in lines.iter().enumerate() {
        let style = format!(
            "stroke=\"{}\" stroke-width=\"2\" stroke-dasharray=\"{}\"",
            COLOURS[i % COLOURS.len()],
            DASHES[i % DASHES.len()]
        );
        let mut path = String::new();
        let mut last = None;
        for (px, py) in &line.points {
            let _ = match last {
                None => write!(path, "M{:.1} {:.1}", x(*px), y(*py)),
                Some(last) if line.steps => {
                    write!(
                        path,
                        "L{:.1} {:.1}L{:.1} {:.1}",
                        x(*px),
                        y(last),
                        x(*px),
                        y(*py)
                    )
                }
                Some(_) => write!(path, "L{:.1} {:.1}", x(*px), y(*py)),
            };
            last = Some(*py);
        }
        let at = LEFT + i as f64 * (WIDTH - LEFT - RIGHT) / lines.len().max(1) as f64;
        let below = HEIGHT - 14.0;
        let _ = writeln!(
            svg,
            "<path fill=\"none\" {style} d=\"{path}\"/>\
             <line {style} x1=\"{at:.1}\" x2=\"{:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>\
             <text x=\"{:.1}\" y=\"{below}\">{}</text>",
            at + 28.0,
            below - 4.0,
            below - 4.0,
            at + 34.0,
            escape(&line.name),
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn number(value: f64) -> String {
    match value {
        value if value >= 10.0 || value == 0.0 => format!("{value:.0}"),
        value => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers() {
        for (value, expect) in [
            (0.0, 1.0),
            (1.0, 1.0),
            (1.2, 2.0),
            (23.0, 25.0),
            (260.0, 500.0),
            (9e4, 1e5),
        ] {
            assert_eq!(round_up(value), expect, "{value}");
        }
    }

    #[test]
    fn long_lines_keep_their_peaks() {
        let mut points: Vec<(f64, f64)> = (0..100_000).map(|i| (f64::from(i), 1.0)).collect();
        points[77_777].1 = 5.0;
        let thinned = thin(points);
        assert!(thinned.len() <= POINTS, "{}", thinned.len());
        assert!(thinned.contains(&(77_777.0, 5.0)));
        assert_eq!(thinned.last(), Some(&(99_999.0, 1.0)));
    }

    #[test]
    fn names_cannot_leave_their_place() {
        assert_eq!(escape("<a & \"b\">"), "&lt;a &amp; &quot;b&quot;&gt;");
    }
}
