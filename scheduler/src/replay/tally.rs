//! [`Tally`]: keeps the books of one way things went: who got which node when, who was ended, how full the cluster was. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use framework::{NodeInfo, PodInfo};
use k8s_openapi::api::core::v1::{Node, Pod};

use component_helpers::pod::{key, node_name, uid};

/// What became of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodRecord {
    /// `namespace/name`.
    pub key: String,
    /// When it came, from the beginning of the trace.
    pub arrived: Duration,
    /// It had a node when it came, or is another scheduler's: nothing was decided about it.
    pub given: bool,
    /// Where it is, or was last.
    pub node: Option<String>,
    /// When it got there.
    pub bound: Option<Duration>,
    /// How often it was tried; 0 where that is not known.
    pub attempts: u32,
    /// It was ended for another.
    pub preempted: bool,
    /// It went with its node.
    pub lost: bool,
    /// When it was gone.
    pub ended: Option<Duration>,
    /// Why it had no node the last time it was tried.
    pub reason: String,
}

impl PodRecord {
    /// How long it waited for its node; `None` when it never got one, or had one.
    pub fn waited(&self) -> Option<Duration> {
        if self.given {
            return None;
        }
        Some(self.bound?.saturating_sub(self.arrived))
    }
}

/// How full the cluster was from a moment on.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sample {
    /// From the beginning of the trace.
    pub at: Duration,
    /// The share of all CPU that pods ask for.
    pub cpu: f64,
    /// The share of all memory.
    pub memory: f64,
    /// Pods without a node.
    pub waiting: usize,
    /// Nodes with a pod.
    pub nodes_in_use: usize,
    /// All nodes.
    pub nodes: usize,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Amount {
    milli_cpu: i64,
    memory: i64,
}

impl Amount {
    fn add(&mut self, other: Amount, sign: i64) {
        self.milli_cpu += sign * other.milli_cpu;
        self.memory += sign * other.memory;
    }
}

/// One way things went, complete.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Played {
    /// Its name: a configuration file, or `recorded`.
    pub name: String,
    /// By UID.
    pub pods: BTreeMap<String, PodRecord>,
    /// Where it changed.
    pub samples: Vec<Sample>,
    /// How long it went on.
    pub length: Duration,
    /// How long each decision took here and now, shortest first: measured, and another each time.
    pub decisions: Vec<Duration>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Tally {
    played: Played,
    nodes: BTreeMap<String, Amount>,
    placed: BTreeMap<String, (String, Amount)>,
    on_node: BTreeMap<String, usize>,
    allocatable: Amount,
    requested: Amount,
    waiting: usize,
}

fn share(part: i64, whole: i64) -> f64 {
    if whole <= 0 {
        return 0.0;
    }
    part as f64 / whole as f64
}

impl Tally {
    /// Nothing has happened.
    pub fn new(name: &str) -> Self {
        Tally {
            played: Played {
                name: name.to_owned(),
                ..Played::default()
            },
            ..Tally::default()
        }
    }

    /// A node is this now (`None`: it is gone).
    pub fn node(&mut self, name: &str, node: Option<&Arc<Node>>, at: Duration) {
        let new = node.map(|node| {
            let info = NodeInfo::new(Arc::clone(node));
            Amount {
                milli_cpu: info.allocatable().milli_cpu,
                memory: info.allocatable().memory,
            }
        });
        let old = match new {
            Some(new) => self.nodes.insert(name.to_owned(), new),
            None => self.nodes.remove(name),
        };
        if old == new {
            return;
        }
        self.allocatable.add(old.unwrap_or_default(), -1);
        self.allocatable.add(new.unwrap_or_default(), 1);
        self.sample(at);
    }

    /// A pod came; `given`: nothing is to be decided about it.
    pub fn arrived(&mut self, pod: &Pod, given: bool, at: Duration) {
        let record = PodRecord {
            key: key(pod),
            arrived: at,
            given,
            ..PodRecord::default()
        };
        self.played.pods.insert(uid(pod).to_owned(), record);
        self.waiting += 1;
        if node_name(pod).is_some() {
            self.bound(pod, at);
        } else {
            self.sample(at);
        }
    }

    /// A pod has its node.
    pub fn bound(&mut self, pod: &Pod, at: Duration) {
        let (uid, Some(node)) = (uid(pod), node_name(pod)) else {
            return;
        };
        if self.placed.contains_key(uid) {
            return;
        }
        let info = PodInfo::new(Arc::new(pod.clone()));
        let amount = info.map_or_else(
            |_| Amount::default(),
            |info| Amount {
                milli_cpu: info.requests.resource.milli_cpu,
                memory: info.requests.resource.memory,
            },
        );
        self.placed
            .insert(uid.to_owned(), (node.to_owned(), amount));
        *self.on_node.entry(node.to_owned()).or_default() += 1;
        self.requested.add(amount, 1);
        self.waiting = self.waiting.saturating_sub(1);
        if let Some(record) = self.played.pods.get_mut(uid) {
            record.node = Some(node.to_owned());
            record.bound = Some(at);
            record.reason.clear();
        }
        self.sample(at);
    }

    /// A pod is gone.
    pub fn gone(&mut self, uid: &str, at: Duration) {
        let Some(record) = self.played.pods.get_mut(uid) else {
            return;
        };
        if record.ended.is_some() {
            return;
        }
        record.ended = Some(at);
        match self.placed.remove(uid) {
            Some((node, amount)) => {
                self.requested.add(amount, -1);
                if let Some(count) = self.on_node.get_mut(&node) {
                    *count -= 1;
                    if *count == 0 {
                        self.on_node.remove(&node);
                    }
                }
            }
            None => self.waiting = self.waiting.saturating_sub(1),
        }
        self.sample(at);
    }

    /// Something is to be noted of a pod.
    pub fn note(&mut self, uid: &str, note: impl FnOnce(&mut PodRecord)) {
        if let Some(record) = self.played.pods.get_mut(uid) {
            note(record);
        }
    }

    /// A decision took so long.
    pub fn decided(&mut self, uid: &str, took: Duration) {
        self.played.decisions.push(took);
        self.note(uid, |record| record.attempts += 1);
    }

    /// Was this pod ever here?
    pub fn knows(&self, uid: &str) -> bool {
        self.played.pods.contains_key(uid)
    }

    /// The pods that are on a node.
    pub fn on(&self, node: &str) -> Vec<String> {
        let placed = self.placed.iter().filter(|(_, (on, _))| on == node);
        placed.map(|(uid, _)| uid.clone()).collect()
    }

    fn sample(&mut self, at: Duration) {
        let sample = Sample {
            at,
            cpu: share(self.requested.milli_cpu, self.allocatable.milli_cpu),
            memory: share(self.requested.memory, self.allocatable.memory),
            waiting: self.waiting,
            nodes_in_use: self.on_node.len(),
            nodes: self.nodes.len(),
        };
        match self.played.samples.last_mut() {
            Some(last) if last.at == at => *last = sample,
            _ => self.played.samples.push(sample),
        }
    }

    /// All is over.
    pub fn finish(mut self, length: Duration) -> Played {
        self.played.length = length;
        self.played.decisions.sort_unstable();
        self.played
    }
}
