//! [`what_if`]: where pods would go if the cluster, or the configuration, were another: nodes added, nodes drained, pods created.
//!
//! Plays on a copy of the cluster, one pod after the other as the queue would have them, and creates nothing. Each pod that finds a node takes its room
//! there. Volumes are looked at and not assumed: two pods that want the same free volume both find it. Preemption is told of, not played.

use std::collections::BTreeMap;
use std::sync::Arc;

use backend::queue::Nominator;
use framework::{NodeInfo, PodInfo, Snapshot};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde::{Deserialize, Serialize};

use crate::config::{self, KubeSchedulerConfiguration};
use crate::decide::Decider;
use crate::explain::{Explanation, explain};
use crate::scheduler::{Profiles, scheduler_name};

#[cfg(test)]
mod tests;

/// The label that tells what kind of machine a node is.
const INSTANCE_TYPE: &str = "node.kubernetes.io/instance-type";
/// The label of a node's own name.
const HOSTNAME: &str = "kubernetes.io/hostname";
/// More nodes than this are not added in one question.
const MAX_ADDED: usize = 100_000;

/// The question.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Question {
    /// Pods that would be created, in this order.
    pub pods: Vec<Pod>,
    /// The scheduler would work by this configuration (as in a file, with `apiVersion` and `kind`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<serde_json::Value>,
    /// Nodes that would be there, too.
    pub add_nodes: Vec<AddNodes>,
    /// Nodes that would not; their pods, but for those of daemon sets and static ones, look for another.
    pub drain: Vec<String>,
    /// Leave the pods alone that wait now: by default they are tried after the others.
    pub without_waiting: bool,
}

/// Nodes to add.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AddNodes {
    /// How many.
    pub count: usize,
    /// Like a node of this instance type, or of this name: one there is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub like: String,
    /// Or like this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Node>,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Answer {
    /// How many nodes there would be.
    pub nodes: usize,
    /// Each pod in the order it was tried.
    pub pods: Vec<Outcome>,
}

/// What would become of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Outcome {
    /// `drained`, `new` or `waiting`.
    pub origin: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The node it leaves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The node it would get.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Why none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<Explanation>,
    /// The question was not one for this scheduler.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
}

/// A question that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidQuestion {
    /// There is no such node.
    #[error("drain[{index}]: node {name:?} not found")]
    NoSuchNode {
        /// Its place.
        index: usize,
        /// Its name.
        name: String,
    },
    /// No node is like that.
    #[error(
        "addNodes[{index}].like: no node has the name or the {} {like:?}; give the node itself",
        INSTANCE_TYPE
    )]
    NothingLike {
        /// Its place.
        index: usize,
        /// What was asked for.
        like: String,
    },
    /// Neither or both were given.
    #[error("addNodes[{index}]: exactly one of like and node is needed")]
    LikeOrNode {
        /// Its place.
        index: usize,
    },
    /// None, or too many.
    #[error(
        "addNodes[{index}].count: Invalid value: {count}: must be between 1 and {} in all",
        MAX_ADDED
    )]
    Count {
        /// Its place.
        index: usize,
        /// How many.
        count: usize,
    },
    /// The configuration.
    #[error("config: {0}")]
    Config(String),
}

/// The configuration of a question, checked as a file is.
///
/// Extenders are refused: the scheduler would call addresses and read files of the asker's choice.
///
/// # Errors
/// What is wrong with it.
pub fn config_of(value: &serde_json::Value) -> Result<KubeSchedulerConfiguration, InvalidQuestion> {
    let invalid = |error: &dyn std::fmt::Display| InvalidQuestion::Config(error.to_string());
    let path = std::path::Path::new("config");
    let text = value.to_string();
    let read =
        component_base::config::decode_strict(path, &text, config::API_VERSION, config::KIND);
    let mut config: KubeSchedulerConfiguration = read.map_err(|error| invalid(&error))?;
    if !config.extenders.is_empty() {
        let why = "extenders: Forbidden: a question names none; leave them out";
        return Err(invalid(&why));
    }
    let mut all_args = config.profiles.iter().flat_map(|p| &p.plugin_config);
    if let Some(plugin) = all_args.find(|config| wasm_plugins::is_wasm(&config.args)) {
        let (name, kind) = (&plugin.name, wasm_plugins::KIND);
        let why = format!(
            "pluginConfig of {name:?}: kind: Forbidden: {kind}: a question names no file of the scheduler's machine"
        );
        return Err(invalid(&why));
    }
    config::set_defaults(&mut config);
    match config::validate(&config) {
        errors if errors.is_empty() => Ok(config),
        errors => Err(InvalidQuestion::Config(component_base::config::aggregate(
            &errors,
        ))),
    }
}

/// See the module. `snapshot` becomes the cluster of the question; `waiting` are the pods in the queue.
///
/// # Errors
/// When the question makes no sense; the snapshot is of no use then.
pub fn what_if(
    profiles: &Profiles,
    snapshot: &mut Snapshot,
    nominator: &Nominator,
    waiting: Vec<Arc<PodInfo>>,
    question: &Question,
) -> Result<Answer, InvalidQuestion> {
    add_nodes(snapshot, &question.add_nodes)?;
    let drained = drain(snapshot, &question.drain)?;
    let mut outcomes = Vec::new();
    let mut player = Player {
        profiles,
        snapshot,
        nominator,
        deciders: BTreeMap::new(),
    };
    for (from, pod) in drained {
        let anew = without_node(&pod.pod);
        let outcome = player.play("drained", &anew, info(&anew));
        outcomes.push(Outcome {
            from: Some(from),
            ..outcome
        });
    }
    for (i, pod) in question.pods.iter().enumerate() {
        let mut pod = pod.clone();
        // What the API server would fill in.
        pod.metadata
            .namespace
            .get_or_insert_with(|| "default".to_owned());
        pod.metadata.uid = Some(format!("what-if-{i}"));
        let pod = Arc::new(pod);
        outcomes.push(player.play("new", &pod, info(&pod)));
    }
    if !question.without_waiting {
        for pod in by_priority(waiting) {
            outcomes.push(player.play("waiting", &pod.pod, Ok(Arc::clone(&pod))));
        }
    }
    Ok(Answer {
        nodes: player.snapshot.num_nodes(),
        pods: outcomes,
    })
}

fn by_priority(mut pods: Vec<Arc<PodInfo>>) -> Vec<Arc<PodInfo>> {
    pods.sort_by_key(|pod| {
        let created = pod.pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
        (std::cmp::Reverse(pod.priority), created)
    });
    pods
}

struct Player<'a> {
    profiles: &'a Profiles,
    snapshot: &'a mut Snapshot,
    nominator: &'a Nominator,
    deciders: BTreeMap<String, Decider>,
}

impl Player<'_> {
    fn play(&mut self, origin: &str, of: &Pod, pod: Result<Arc<PodInfo>, String>) -> Outcome {
        let outcome = || Outcome {
            origin: origin.to_owned(),
            namespace: framework::pod_info::namespace(of).to_owned(),
            name: framework::pod_info::name(of).to_owned(),
            ..Outcome::default()
        };
        let pod = match pod {
            Ok(pod) => pod,
            Err(error) => {
                return Outcome { error, ..outcome() };
            }
        };
        let name = scheduler_name(&pod.pod);
        let Some(framework) = self.profiles.get(name) else {
            return Outcome {
                error: format!("no profile is named {name:?}: another scheduler is meant"),
                ..outcome()
            };
        };
        let gated = framework.points().pre_enqueue.iter().find_map(|plugin| {
            let status = plugin.as_pre_enqueue()?.pre_enqueue(&pod.pod);
            (!status.is_success()).then(|| format!("{}: {}", plugin.name(), status.message()))
        });
        if let Some(error) = gated {
            return Outcome { error, ..outcome() };
        }
        let decider = self
            .deciders
            .entry(name.to_owned())
            .or_insert_with(|| Decider::new(0));
        match decider.decide(framework, self.snapshot, &pod, self.nominator) {
            Ok(chosen) => {
                if let Some(node) = self.snapshot.get(&chosen.node_name) {
                    let mut node = NodeInfo::clone(node);
                    node.add_pod(Arc::clone(&pod));
                    self.snapshot.set_node(Arc::new(node));
                }
                Outcome {
                    node: Some(chosen.node_name.to_string()),
                    ..outcome()
                }
            }
            Err(_) => Outcome {
                why: Some(explain(
                    framework,
                    self.snapshot,
                    &pod,
                    self.nominator,
                    None,
                )),
                ..outcome()
            },
        }
    }
}

fn add_nodes(snapshot: &mut Snapshot, add: &[AddNodes]) -> Result<(), InvalidQuestion> {
    let mut total = 0usize;
    for (index, add) in add.iter().enumerate() {
        let count = add.count;
        total = total.saturating_add(count);
        if count == 0 || total > MAX_ADDED {
            return Err(InvalidQuestion::Count { index, count });
        }
        let (template, kind) = match (&add.node, add.like.as_str()) {
            (Some(node), "") => (node.clone(), String::new()),
            (None, like) if !like.is_empty() => match alike(snapshot, like) {
                Some(node) => (node, format!("{like}-")),
                None => {
                    let like = like.to_owned();
                    return Err(InvalidQuestion::NothingLike { index, like });
                }
            },
            _ => return Err(InvalidQuestion::LikeOrNode { index }),
        };
        for i in 0..count {
            let mut node = template.clone();
            let name = format!("what-if-{index}-{kind}{i}");
            node.metadata.uid = Some(name.clone());
            if let Some(hostname) = node
                .metadata
                .labels
                .as_mut()
                .and_then(|l| l.get_mut(HOSTNAME))
            {
                hostname.clone_from(&name);
            }
            node.metadata.name = Some(name);
            snapshot.set_node(Arc::new(NodeInfo::new(Arc::new(node))));
        }
    }
    Ok(())
}

/// A node like one there is, but fresh: schedulable, without the taints that tell of its present trouble.
fn alike(snapshot: &Snapshot, like: &str) -> Option<Node> {
    let of_type = |node: &Arc<NodeInfo>| {
        node.labels()
            .get(INSTANCE_TYPE)
            .is_some_and(|kind| kind == like)
    };
    let by_type = || {
        snapshot
            .list()
            .map(|(_, node)| node)
            .find(|node| of_type(node))
    };
    let node = snapshot.get(like).or_else(by_type)?;
    let mut node = Node::clone(node.node());
    if let Some(spec) = &mut node.spec {
        spec.unschedulable = None;
        if let Some(taints) = &mut spec.taints {
            taints.retain(|taint| !taint.key.starts_with("node.kubernetes.io/"));
        }
    }
    Some(node)
}

/// Takes nodes out; their pods that would look for another node, and where they were.
fn drain(
    snapshot: &mut Snapshot,
    names: &[String],
) -> Result<Vec<(String, Arc<PodInfo>)>, InvalidQuestion> {
    let mut moving = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let Some(node) = snapshot.get(name).cloned() else {
            let name = name.clone();
            return Err(InvalidQuestion::NoSuchNode { index, name });
        };
        snapshot.remove_node(name);
        for pod in by_priority(node.pods().to_vec()) {
            if moves(&pod.pod) {
                moving.push((name.clone(), pod));
            }
        }
    }
    Ok(moving)
}

/// Daemon sets' pods stay with their nodes, and so do static ones; those that end anyway need no other node.
fn moves(pod: &Pod) -> bool {
    let owners = pod.metadata.owner_references.iter().flatten();
    let of_daemon_set = owners
        .into_iter()
        .any(|o| o.controller == Some(true) && o.kind == "DaemonSet");
    let annotations = pod.metadata.annotations.as_ref();
    let is_static = annotations.is_some_and(|a| a.contains_key("kubernetes.io/config.mirror"));
    !of_daemon_set && !is_static && pod.metadata.deletion_timestamp.is_none()
}

/// The pod as its owner would make it anew.
fn without_node(pod: &Pod) -> Arc<Pod> {
    let mut anew = pod.clone();
    if let Some(spec) = &mut anew.spec {
        spec.node_name = None;
    }
    anew.status = None;
    Arc::new(anew)
}

fn info(pod: &Arc<Pod>) -> Result<Arc<PodInfo>, String> {
    let info = PodInfo::new(Arc::clone(pod));
    info.map(Arc::new).map_err(|error| error.to_string())
}
