//! `cargo e2e metrics`: what our kubelet and upstream's say at the same ports in one cluster, name by name and label by label.
//!
//! One node of each, with the same pods. `metrics.toml` names what ours does not have, with the reason; an entry that fits
//! nothing any more is an error, too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde::Deserialize;

use crate::cluster::{Cluster, Options};
use crate::probe::{Namespace, busybox_pod};
use crate::programs::Profile;
use crate::step::output;

const CLUSTER: &str = "metrics";
/// Ours and upstream's.
const NODES: [&str; 2] = ["node-1", "node-2"];
/// Every page of metrics that a kubelet has.
const PAGES: [&str; 4] = [
    "metrics",
    "metrics/cadvisor",
    "metrics/resource",
    "metrics/probes",
];

#[derive(Args)]
pub struct MetricsOptions {
    /// Leave the cluster up, or use the one that is.
    #[arg(long)]
    keep: bool,
}

/// What a page says of one metric.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Family {
    /// `counter`, `gauge`, `histogram`, `summary`.
    kind: String,
    /// Names of labels, of all its samples.
    labels: BTreeSet<String>,
}

/// Metrics by name.
type Page = BTreeMap<String, Family>;

/// What is not as upstream's, with the reason.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Exceptions {
    exception: Vec<Exception>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Exception {
    /// Of metrics; a `*` at the end stands for any rest. `NAME{LABEL}` is one label of one.
    names: Vec<String>,
    #[expect(dead_code, reason = "for who reads the file")]
    reason: String,
}

/// # Errors
/// The cluster does not come up, or the pages differ.
pub fn run(options: &MetricsOptions) -> Result<()> {
    let exceptions = exceptions()?;
    let cluster = match Cluster::open(CLUSTER) {
        Ok(cluster) if options.keep => cluster,
        _ => {
            Cluster::down(CLUSTER)?;
            Cluster::up(Options {
                name: CLUSTER.to_owned(),
                upstream_nodes: 1,
                profile: Profile::Dev,
                ..Options::default()
            })?
        }
    };
    let [ours, upstream] = pages_of_both(&cluster)?;
    let problems = differences(&ours, &upstream, &exceptions);
    if !options.keep {
        Cluster::down(CLUSTER)?;
    }
    for problem in &problems {
        println!("{problem}");
    }
    let count: usize = upstream.values().map(Page::len).sum();
    println!(
        "{count} metrics of upstream's kubelet, {} differences",
        problems.len()
    );
    ensure!(problems.is_empty(), "the pages differ");
    Ok(())
}

fn exceptions() -> Result<Vec<Exception>> {
    let path = crate::programs::Outputs::find()
        .workspace
        .join("e2e/metrics.toml");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let file: Exceptions = toml::from_str(&text).with_context(|| path.display().to_string())?;
    Ok(file.exception)
}

/// The pages of both nodes, after both have done the same: pods that start, fail, are probed, asked and deleted.
fn pages_of_both(cluster: &Cluster) -> Result<[BTreeMap<&'static str, Page>; 2]> {
    let ns = Namespace::create(cluster, "metrics")?;
    for node in NODES {
        ns.apply(&busybox_pod(&format!("fails-{node}"), node, "exit 1"))?;
        ns.apply(&busybox_pod(&format!("goes-{node}"), node, "sleep 36000"))?;
        ns.apply(&busy_pod(node))?;
        ns.wait_ready(&format!("pod/busy-{node}"), 120)?;
        ns.wait_ready(&format!("pod/goes-{node}"), 120)?;
        ns.kubectl(&["exec", &format!("busy-{node}"), "-c", "main", "--", "true"])?;
        ns.kubectl(&["logs", &format!("busy-{node}"), "-c", "main"])?;
        ns.kubectl(&["delete", "pod", &format!("goes-{node}")])?;
    }
    let mut both: [BTreeMap<&'static str, Page>; 2] = Default::default();
    for (pages, node) in both.iter_mut().zip(NODES) {
        for page in PAGES {
            let path = format!("/api/v1/nodes/{node}/proxy/{page}");
            let text = output(cluster.kubectl_command().args(["get", "--raw", &path]))?;
            pages.insert(page, parse(&text).with_context(|| path)?);
        }
    }
    ns.delete()?;
    Ok(both)
}

/// A pod with what metrics speak of: an init container, a restart, probes, limits, volumes.
fn busy_pod(node: &str) -> String {
    let image = "registry.k8s.io/e2e-test-images/busybox:1.37.0-2";
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: busy-{node}}}\nspec:\n  nodeName: {node}\n  terminationGracePeriodSeconds: 1\n  \
         volumes: [{{name: disk, emptyDir: {{}}}}, {{name: memory, emptyDir: {{medium: Memory}}}}]\n  \
         initContainers: [{{name: first, image: '{image}', command: ['true']}}]\n  containers:\n  \
         - name: main\n    image: '{image}'\n    command: [sh, -c, 'echo here; exec sleep 36000']\n    \
         resources: {{requests: {{cpu: 50m, memory: 32Mi}}, limits: {{cpu: 100m, memory: 64Mi}}}}\n    \
         volumeMounts: [{{name: disk, mountPath: /disk}}, {{name: memory, mountPath: /memory}}]\n    \
         startupProbe: {{exec: {{command: ['true']}}, periodSeconds: 1}}\n    \
         livenessProbe: {{exec: {{command: ['true']}}, periodSeconds: 1}}\n    \
         readinessProbe: {{exec: {{command: ['true']}}, periodSeconds: 1}}\n  \
         - {{name: again, image: '{image}', command: [sh, -c, 'test -e /disk/x && exec sleep 36000; touch /disk/x; exit 1'], \
         volumeMounts: [{{name: disk, mountPath: /disk}}]}}\n"
    )
}

/// Reads the text format of Prometheus as far as names, types and labels go.
fn parse(text: &str) -> Result<Page> {
    let mut page = Page::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').context("a TYPE without a type")?;
            page.entry(name.to_owned()).or_default().kind = kind.to_owned();
            continue;
        }
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let end = line
            .find(['{', ' '])
            .with_context(|| format!("no value: {line}"))?;
        let name = family_of(&page, &line[..end]);
        let family = page
            .get_mut(name)
            .with_context(|| format!("no TYPE before {line}"))?;
        if line[end..].starts_with('{') {
            family.labels.extend(label_names(&line[end + 1..])?);
        }
    }
    Ok(page)
}

/// A sample of a histogram or summary has an ending behind the family's name.
fn family_of<'a>(page: &Page, sample: &'a str) -> &'a str {
    ["_bucket", "_sum", "_count"]
        .iter()
        .filter_map(|ending| sample.strip_suffix(ending))
        .find(|name| {
            page.get(*name)
                .is_some_and(|family| matches!(family.kind.as_str(), "histogram" | "summary"))
        })
        .unwrap_or(sample)
}

/// `a="1",b="x\"}"} 3` as a and b.
fn label_names(mut rest: &str) -> Result<Vec<String>> {
    let mut names = Vec::new();
    while !rest.starts_with('}') {
        let (name, value) = rest.split_once("=\"").context("a label without a value")?;
        names.push(name.trim_start_matches(',').to_owned());
        let mut escaped = false;
        let end = value
            .find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            })
            .context("a label's value does not end")?;
        rest = value[end + 1..].trim_start_matches(',');
        if rest.is_empty() {
            bail!("labels do not end");
        }
    }
    Ok(names)
}

/// Everything that upstream says and ours does not, or says otherwise, and exceptions that are none any more.
fn differences(
    ours: &BTreeMap<&'static str, Page>,
    upstream: &BTreeMap<&'static str, Page>,
    exceptions: &[Exception],
) -> Vec<String> {
    let mut used = BTreeSet::new();
    let mut problems = Vec::new();
    let mut tell = |name: &str, label: Option<&str>, problem: String| {
        let whole = label.map_or_else(|| name.to_owned(), |label| format!("{name}{{{label}}}"));
        let found = exceptions
            .iter()
            .flat_map(|exception| &exception.names)
            .find(|pattern| fits(pattern, &whole) || (label.is_some() && fits(pattern, name)));
        match found {
            Some(pattern) => drop(used.insert(pattern.clone())),
            None => problems.push(problem),
        }
    };
    for (page, families) in upstream {
        let empty = Page::new();
        let ours = ours.get(page).unwrap_or(&empty);
        for (name, family) in families {
            let Some(mine) = ours.get(name) else {
                let labels: Vec<_> = family.labels.iter().map(String::as_str).collect();
                tell(
                    name,
                    None,
                    format!(
                        "{page}: {} {name}{{{}}} is missing",
                        family.kind,
                        labels.join(",")
                    ),
                );
                continue;
            };
            if mine.kind != family.kind {
                let text = format!("{page}: {name} is a {}, not a {}", family.kind, mine.kind);
                tell(name, None, text);
            }
            for label in family.labels.difference(&mine.labels) {
                tell(
                    name,
                    Some(label),
                    format!("{page}: {name} lacks label {label}"),
                );
            }
            for label in mine.labels.difference(&family.labels) {
                tell(
                    name,
                    Some(label),
                    format!("{page}: {name} has label {label} beside upstream's"),
                );
            }
        }
    }
    let stale = exceptions
        .iter()
        .flat_map(|exception| &exception.names)
        .filter(|pattern| !used.contains(*pattern))
        .map(|pattern| format!("metrics.toml: {pattern} is no difference"));
    problems.extend(stale);
    problems
}

fn fits(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => pattern == name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP a_total A.\n# TYPE a_total counter\na_total{x=\"1\",y=\"a\\\"}b,z=\\\\\"} 3\na_total{w=\"\"} 1\n\
                        # TYPE b histogram\nb_bucket{le=\"+Inf\"} 1 1700000000\nb_sum 1\nb_count 1\n# TYPE c gauge\nc 1\n";

    #[test]
    fn a_page_is_names_types_and_labels() {
        let page = parse(TEXT).unwrap();
        let shown: Vec<String> = page
            .iter()
            .map(|(name, family)| format!("{name} {} {:?}", family.kind, family.labels))
            .collect();
        assert_eq!(
            shown,
            [
                "a_total counter {\"w\", \"x\", \"y\"}",
                "b histogram {\"le\"}",
                "c gauge {}"
            ]
        );
        for torn in ["a{x=\"1", "a{x=\"1\"", "a{x} 1", "a"] {
            assert!(parse(&format!("# TYPE a gauge\n{torn}")).is_err(), "{torn}");
        }
    }

    #[test]
    fn differences_are_told_but_for_exceptions() {
        let upstream = BTreeMap::from([("metrics", parse(TEXT).unwrap())]);
        let mine = "# TYPE a_total gauge\na_total{x=\"1\",v=\"1\"} 3\n# TYPE c gauge\nc 1\n# TYPE d gauge\nd 1\n";
        let ours = BTreeMap::from([("metrics", parse(mine).unwrap())]);
        let except = |names: &[&str]| {
            let names = names.iter().map(ToString::to_string).collect();
            let reason = String::new();
            differences(&ours, &upstream, &[Exception { names, reason }])
        };
        assert_eq!(
            except(&[]),
            [
                "metrics: a_total is a counter, not a gauge",
                "metrics: a_total lacks label w",
                "metrics: a_total lacks label y",
                "metrics: a_total has label v beside upstream's",
                "metrics: histogram b{le} is missing",
            ]
        );
        assert_eq!(
            except(&["a_total{w}", "a_total{v}", "b*", "e"]),
            [
                "metrics: a_total is a counter, not a gauge",
                "metrics: a_total lacks label y",
                "metrics.toml: e is no difference",
            ]
        );
        assert!(except(&["a_total", "b"]).is_empty());
    }
}
