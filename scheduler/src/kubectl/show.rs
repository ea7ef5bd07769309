//! Answers as text for people.

use std::fmt::Write as _;

use crate::explain::{Explanation, Group, Missing, Preemption, Waiting, Wake};
use crate::what_if::{Answer, Outcome};

/// An explanation.
pub fn show_explanation(of: &Explanation) -> String {
    let mut text = format!("pod {}/{} ", of.namespace, of.name);
    if let Some(node) = &of.node {
        return text + &format!("is on node {node}\n");
    }
    match &of.would_go_to {
        Some(node) => {
            let (fit, all) = (of.feasible_nodes, of.nodes);
            text += &format!("fits on {fit} of {all} nodes; it would go to {node} now\n");
        }
        None if of.groups.is_empty() => text += &format!("has no node: {}\n", of.message),
        None => text += &format!("fits on none of {} nodes\n", of.nodes),
    }
    if let Some(waiting) = &of.waiting {
        text += &show_waiting(waiting);
    }
    for group in &of.groups {
        text += &show_group(group);
    }
    if let Some(preemption) = &of.preemption {
        text += &show_preemption(preemption);
    }
    if !of.woken_by.is_empty() {
        text += "\nIt is tried again after:\n";
        of.woken_by.iter().for_each(|wake| text += &show_wake(wake));
    }
    text
}

fn show_waiting(of: &Waiting) -> String {
    let place = match of.queue.as_str() {
        "active" => "It is about to be tried".to_owned(),
        "inFlight" => "It is being tried".to_owned(),
        "backoff" => match of.backoff_milliseconds {
            Some(left) => format!("It is tried again in {:.1} s", left as f64 / 1000.0),
            None => "It is tried again soon".to_owned(),
        },
        "gated" => "It is kept out of the queue".to_owned(),
        _ => "It waits for an event".to_owned(),
    };
    let mut text = place;
    if let Some(gate) = &of.gated_by {
        text += &format!(" by {gate}");
    }
    let _ = write!(text, ", after {} attempts", of.attempts);
    if !of.rejected_by.is_empty() {
        text += &format!(", rejected by {}", of.rejected_by.join(", "));
    }
    text + "\n"
}

fn show_group(of: &Group) -> String {
    let mut names = of.examples.join(", ");
    if of.examples.len() < of.nodes {
        names += ", …";
    }
    let who = match of.plugin.as_str() {
        "" => "no plugin alone",
        plugin => plugin,
    };
    let why = match of.reasons.is_empty() {
        true => "no reason was given".to_owned(),
        false => of.reasons.join(", "),
    };
    let nodes = if of.nodes == 1 { "node" } else { "nodes" };
    let mut text = format!("\n{} {nodes} ({names})\n  {who}: {why}\n", of.nodes);
    for missing in &of.missing {
        text += &show_missing(missing);
    }
    text
}

fn show_missing(of: &Missing) -> String {
    let amount = |n: i64| match of.resource.as_str() {
        "cpu" => format!("{n}m"),
        "memory" | "ephemeral-storage" => bytes(n),
        _ => n.to_string(),
    };
    format!(
        "  nearest is {}: {} asks for {}, free are {} of {}: {} missing\n",
        of.node,
        of.resource,
        amount(of.requested),
        amount(of.free),
        amount(of.allocatable),
        amount(of.requested.saturating_sub(of.free)),
    )
}

fn bytes(n: i64) -> String {
    let units = [(1i64 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki")];
    match units.iter().find(|(size, _)| n.abs() >= *size) {
        Some((size, unit)) if n % size == 0 => format!("{}{unit}", n / size),
        Some((size, unit)) => format!("{:.1}{unit}", n as f64 / *size as f64),
        None => n.to_string(),
    }
}

fn show_preemption(of: &Preemption) -> String {
    match &of.node {
        Some(node) => format!(
            "\nPreemption ({}) would make room on {node} by ending {}\n",
            of.plugin,
            of.victims.join(", ")
        ),
        None => format!(
            "\nPreemption ({}) does not help: {}\n",
            of.plugin, of.refused
        ),
    }
}

fn show_wake(of: &Wake) -> String {
    let some = if of.looks_at_the_object {
        " (if that helps)"
    } else {
        ""
    };
    format!(
        "  {} {}{some}, for {}\n",
        of.resource,
        of.actions.join(", "),
        of.plugin
    )
}

/// An answer.
pub fn show_answer(of: &Answer) -> String {
    let placed = of.pods.iter().filter(|pod| pod.node.is_some()).count();
    let mut text = format!(
        "{placed} of {} pods get a node, of {} nodes\n",
        of.pods.len(),
        of.nodes
    );
    for pod in &of.pods {
        text += &show_outcome(pod);
    }
    text
}

fn show_outcome(of: &Outcome) -> String {
    let from = of
        .from
        .as_ref()
        .map_or_else(String::new, |node| format!(" from {node}"));
    let head = format!("{} {}/{}{from}", of.origin, of.namespace, of.name);
    match (&of.node, &of.why) {
        (Some(node), _) => format!("{head} -> {node}\n"),
        (None, Some(why)) => format!("{head}: {}\n", why.message),
        (None, None) => format!("{head}: {}\n", of.error),
    }
}
