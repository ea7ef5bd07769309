//! [`Report`]: several ways things went, side by side: as JSON for machines, as tables for people. Pure.
//!
//! Everything but `measured` is the same each time a trace is played.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::tally::{Played, PodRecord, Sample};
use crate::trace::Trace;

/// So many pods of a kind are named in the tables; the JSON has all.
const NAMED: usize = 20;

/// See the module.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// What was played.
    pub trace: TraceSummary,
    /// What settled ties.
    pub seed: u64,
    /// As recorded, then one for each configuration.
    pub runs: Vec<Run>,
    /// Of each run but the first with the first, and of each configuration with the first configuration.
    pub comparisons: Vec<Comparison>,
}

/// The trace.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TraceSummary {
    /// How many events.
    pub events: usize,
    /// From the first to the last.
    pub seconds: f64,
    /// Why it ends before its time, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truncated: Option<String>,
}

/// Numbers of a distribution, in seconds unless said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Distribution {
    /// How many there are.
    pub count: usize,
    /// The mean.
    pub mean: f64,
    /// The median.
    pub p50: f64,
    /// Nine of ten are at most this.
    pub p90: f64,
    /// 99 of 100 are.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Distribution {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_unstable_by(f64::total_cmp);
        let Some(max) = values.last().copied() else {
            return Distribution::default();
        };
        let at = |share: f64| {
            let place = (share * values.len() as f64).ceil() as usize;
            values[place.clamp(1, values.len()) - 1]
        };
        Distribution {
            count: values.len(),
            mean: values.iter().sum::<f64>() / values.len() as f64,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            max,
        }
    }
}

/// A share over time, 1 for all.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Share {
    /// Weighted by time.
    pub mean: f64,
    /// The highest.
    pub peak: f64,
}

/// One way things went.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// `recorded`, or the configuration's file.
    pub name: String,
    /// Pods that came without a node.
    pub pods: usize,
    /// Those of them that got one.
    pub bound: usize,
    /// Those that waited to the end, or to their own.
    pub never_bound: usize,
    /// Pods that were ended for others.
    pub preempted: usize,
    /// Pods that went with their node.
    pub lost: usize,
    /// How long pods waited for their node.
    pub waited: Distribution,
    /// CPU that pods ask for.
    pub cpu: Share,
    /// Memory that pods ask for.
    pub memory: Share,
    /// Nodes with a pod, of all nodes.
    pub nodes_in_use: Share,
    /// Pods that never got a node, and why, in the order of their names.
    pub unplaced: Vec<Unplaced>,
    /// Decisions on this machine; `None` for what was recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
}

/// A pod without a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unplaced {
    /// `namespace/name`.
    pub pod: String,
    /// Why; empty where it is not known.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// What decisions cost here and now.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Measured {
    /// How many there were.
    pub decisions: usize,
    /// In microseconds.
    pub p50_us: f64,
    /// In microseconds.
    pub p99_us: f64,
}

/// Two ways things went.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Comparison {
    /// The one.
    pub a: String,
    /// The other.
    pub b: String,
    /// Pods that got the same node.
    pub same_node: usize,
    /// Pods that got different ones.
    pub moved: Vec<Moved>,
    /// Pods that only the one placed.
    pub only_a: Vec<String>,
    /// Pods that only the other placed.
    pub only_b: Vec<String>,
    /// Pods that only the one ended for others.
    pub preempted_only_a: Vec<String>,
    /// Pods that only the other ended for others.
    pub preempted_only_b: Vec<String>,
    /// How much longer pods waited in the other, of those that both placed; less than none: shorter.
    pub waited_longer: Distribution,
}

/// A pod that went elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Moved {
    /// `namespace/name`.
    pub pod: String,
    /// Its node in the one.
    pub a: String,
    /// Its node in the other.
    pub b: String,
}

/// Puts them side by side; the first is what was recorded.
pub fn report(trace: &Trace, seed: u64, played: &[Played]) -> Report {
    let seconds = trace
        .span()
        .map_or(0.0, |(start, end)| end.duration_since(start).as_secs_f64());
    let mut comparisons = Vec::new();
    if let Some((first, configured)) = played.split_first() {
        comparisons.extend(configured.iter().map(|other| compare(first, other)));
        if let Some((first, others)) = configured.split_first() {
            comparisons.extend(others.iter().map(|other| compare(first, other)));
        }
    }
    Report {
        trace: TraceSummary {
            events: trace.events.len(),
            seconds,
            truncated: trace.truncated.clone(),
        },
        seed,
        runs: played.iter().map(run).collect(),
        comparisons,
    }
}

fn run(played: &Played) -> Run {
    let decided = || played.pods.values().filter(|pod| !pod.given);
    let waited = decided().filter_map(PodRecord::waited);
    let mut unplaced: Vec<Unplaced> = decided()
        .filter(|pod| pod.bound.is_none())
        .map(|pod| Unplaced {
            pod: pod.key.clone(),
            reason: pod.reason.clone(),
        })
        .collect();
    unplaced.sort_unstable_by(|a, b| a.pod.cmp(&b.pod));
    let in_use = |sample: &Sample| match sample.nodes {
        0 => 0.0,
        nodes => sample.nodes_in_use as f64 / nodes as f64,
    };
    let at = |share: f64| {
        let count = played.decisions.len();
        let place = ((share * count as f64).ceil() as usize).clamp(1, count.max(1)) - 1;
        let decision = played.decisions.get(place);
        decision.map_or(0.0, |took| took.as_secs_f64() * 1e6)
    };
    Run {
        name: played.name.clone(),
        pods: decided().count(),
        bound: decided().filter(|pod| pod.bound.is_some()).count(),
        never_bound: unplaced.len(),
        preempted: played.pods.values().filter(|pod| pod.preempted).count(),
        lost: played.pods.values().filter(|pod| pod.lost).count(),
        waited: Distribution::of(waited.map(|time| time.as_secs_f64()).collect()),
        cpu: over_time(played, |sample| sample.cpu),
        memory: over_time(played, |sample| sample.memory),
        nodes_in_use: over_time(played, in_use),
        unplaced,
        measured: (!played.decisions.is_empty()).then(|| Measured {
            decisions: played.decisions.len(),
            p50_us: at(0.5),
            p99_us: at(0.99),
        }),
    }
}

/// Weighted by how long each sample stood.
fn over_time(played: &Played, value: impl Fn(&Sample) -> f64) -> Share {
    let ends = played.samples.iter().skip(1).map(|sample| sample.at);
    let ends = ends.chain([played.length]);
    let (mut area, mut time, mut peak) = (0.0, 0.0, 0.0f64);
    for (sample, end) in played.samples.iter().zip(ends) {
        let stood = end.saturating_sub(sample.at).as_secs_f64();
        area += value(sample) * stood;
        time += stood;
        peak = peak.max(value(sample));
    }
    let mean = if time > 0.0 { area / time } else { 0.0 };
    Share { mean, peak }
}

fn compare(a: &Played, b: &Played) -> Comparison {
    let mut comparison = Comparison {
        a: a.name.clone(),
        b: b.name.clone(),
        same_node: 0,
        moved: Vec::new(),
        only_a: Vec::new(),
        only_b: Vec::new(),
        preempted_only_a: Vec::new(),
        preempted_only_b: Vec::new(),
        waited_longer: Distribution::default(),
    };
    let mut longer = Vec::new();
    let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
    for (uid, in_a) in &a.pods {
        let Some(in_b) = b.pods.get(uid) else {
            continue;
        };
        let key = || in_a.key.clone();
        match (in_a.preempted, in_b.preempted) {
            (true, false) => comparison.preempted_only_a.push(key()),
            (false, true) => comparison.preempted_only_b.push(key()),
            _ => {}
        }
        if in_a.given && in_b.given {
            continue;
        }
        match (&in_a.node, &in_b.node) {
            (Some(a), Some(b)) if a == b => comparison.same_node += 1,
            (Some(a), Some(b)) => comparison.moved.push(Moved {
                pod: key(),
                a: a.clone(),
                b: b.clone(),
            }),
            (Some(_), None) => comparison.only_a.push(key()),
            (None, Some(_)) => comparison.only_b.push(key()),
            (None, None) => {}
        }
        if let (Some(a), Some(b)) = (seconds(in_a.waited()), seconds(in_b.waited())) {
            longer.push(b - a);
        }
    }
    comparison.waited_longer = Distribution::of(longer);
    comparison.moved.sort_unstable_by(|a, b| a.pod.cmp(&b.pod));
    for list in [
        &mut comparison.only_a,
        &mut comparison.only_b,
        &mut comparison.preempted_only_a,
        &mut comparison.preempted_only_b,
    ] {
        list.sort_unstable();
    }
    comparison
}

/// Lines up columns: the first to the left, the others to the right.
fn table(rows: &[Vec<String>]) -> String {
    let mut widths: BTreeMap<usize, usize> = BTreeMap::new();
    for (column, cell) in rows.iter().flat_map(|row| row.iter().enumerate()) {
        let width = widths.entry(column).or_default();
        *width = (*width).max(cell.chars().count());
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths.get(&column).copied().unwrap_or(0);
            // Writing into a String cannot fail.
            let _ = match column {
                0 => write!(line, "{cell:<width$}"),
                _ => write!(line, "  {cell:>width$}"),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn seconds(seconds: f64) -> String {
    format!("{seconds:.3} s")
}

/// The report for people.
pub fn text(report: &Report) -> String {
    let mut text = format!(
        "{} events over {}, seed {}\n",
        report.trace.events,
        seconds(report.trace.seconds),
        report.seed
    );
    if let Some(why) = &report.trace.truncated {
        text.push_str(&format!("The trace ends before its time: {why}\n"));
    }
    text.push('\n');
    text.push_str(&runs(&report.runs));
    for comparison in &report.comparisons {
        text.push('\n');
        text.push_str(&differences(comparison));
    }
    for run in report.runs.iter().filter(|run| !run.unplaced.is_empty()) {
        text.push_str(&format!("\nWithout a node in {}:\n", run.name));
        let lines = run.unplaced.iter().map(|pod| match pod.reason.as_str() {
            "" => pod.pod.clone(),
            reason => format!("{}: {reason}", pod.pod),
        });
        text.push_str(&named(lines));
    }
    text
}

fn runs(runs: &[Run]) -> String {
    let row = |title: &str, cell: &dyn Fn(&Run) -> String| {
        let cells = runs.iter().map(cell);
        std::iter::once(title.to_owned()).chain(cells).collect()
    };
    let measured = |value: fn(&Measured) -> String| {
        move |run: &Run| run.measured.as_ref().map_or_else(|| "-".to_owned(), value)
    };
    table(&[
        row("", &|run| run.name.clone()),
        row("pods to place", &|run| run.pods.to_string()),
        row("placed", &|run| run.bound.to_string()),
        row("never placed", &|run| run.never_bound.to_string()),
        row("preempted", &|run| run.preempted.to_string()),
        row("gone with their node", &|run| run.lost.to_string()),
        row("waited, mean", &|run| seconds(run.waited.mean)),
        row("waited, p50", &|run| seconds(run.waited.p50)),
        row("waited, p90", &|run| seconds(run.waited.p90)),
        row("waited, p99", &|run| seconds(run.waited.p99)),
        row("waited, longest", &|run| seconds(run.waited.max)),
        row("CPU asked for, mean", &|run| percent(run.cpu.mean)),
        row("CPU asked for, peak", &|run| percent(run.cpu.peak)),
        row("memory asked for, mean", &|run| percent(run.memory.mean)),
        row("memory asked for, peak", &|run| percent(run.memory.peak)),
        row("nodes in use, mean", &|run| percent(run.nodes_in_use.mean)),
        row("decisions", &measured(|m| m.decisions.to_string())),
        row(
            "a decision here, p50",
            &measured(|m| format!("{:.0} us", m.p50_us)),
        ),
        row(
            "a decision here, p99",
            &measured(|m| format!("{:.0} us", m.p99_us)),
        ),
    ])
}

fn differences(comparison: &Comparison) -> String {
    let Comparison { a, b, .. } = comparison;
    let mut text = format!("{a} -> {b}:\n");
    text.push_str(&table(&[
        vec![
            "  on the same node".to_owned(),
            comparison.same_node.to_string(),
        ],
        vec![
            "  on another node".to_owned(),
            comparison.moved.len().to_string(),
        ],
        vec![
            format!("  placed by {a} only"),
            comparison.only_a.len().to_string(),
        ],
        vec![
            format!("  placed by {b} only"),
            comparison.only_b.len().to_string(),
        ],
        vec![
            format!("  preempted by {a} only"),
            comparison.preempted_only_a.len().to_string(),
        ],
        vec![
            format!("  preempted by {b} only"),
            comparison.preempted_only_b.len().to_string(),
        ],
        vec![
            "  waited longer, mean".to_owned(),
            seconds(comparison.waited_longer.mean),
        ],
    ]));
    let moved = comparison.moved.iter();
    text.push_str(&named(
        moved.map(|moved| format!("{}: {} -> {}", moved.pod, moved.a, moved.b)),
    ));
    text
}

/// The first of them, a line each.
fn named(lines: impl ExactSizeIterator<Item = String>) -> String {
    let more = lines.len().saturating_sub(NAMED);
    let mut text = String::new();
    for line in lines.take(NAMED) {
        text.push_str(&format!("    {line}\n"));
    }
    if more > 0 {
        text.push_str(&format!("    and {more} more\n"));
    }
    text
}
