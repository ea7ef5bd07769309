//! [`HttpExtender`]: a program outside of the scheduler that is asked by HTTP which nodes fit, which are better, whom to preempt, and to bind.
//!
//! It is asked once, with all feasible nodes. What it says of nodes it was not asked about counts for nothing, or is an error. Its answers are read
//! as Go reads them: names of fields in any case. Upstream: pkg/scheduler/extender.go, v1.37.
//!
//! DIFFERS: proxies that the environment names are not used, and redirects are not followed.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use framework::{
    Extender, NodeIndex, NodeInfo, NodeSet, NodeToVictims, PodInfo, Snapshot, Status, Victims,
};
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use crate::config;
use crate::metrics::Metrics;

mod http_client;
#[cfg(test)]
mod tests;
mod wire;

pub use http_client::TlsFilesError;
use http_client::{CallError, HttpClient};

/// The best score of an extender; the worst is 0.
const MAX_EXTENDER_PRIORITY: i64 = 10;

/// Why an extender could not be made.
#[derive(Debug, thiserror::Error)]
#[error("couldn't build extenders: extender {url:?}: {source}")]
pub struct ExtenderError {
    /// Its URL.
    pub url: String,
    /// What is wrong with its TLS settings.
    #[source]
    pub source: TlsFilesError,
}

/// See the module.
pub struct HttpExtender {
    config: config::Extender,
    client: Arc<HttpClient>,
    tasks: tokio::runtime::Handle,
    metrics: Arc<Metrics>,
}

/// Makes the extenders of a configuration, those that are ignorable last.
///
/// # Errors
/// When TLS settings cannot be used.
pub fn new_extenders(
    configs: &[config::Extender],
    tasks: &tokio::runtime::Handle,
    metrics: &Arc<Metrics>,
) -> Result<Vec<Arc<HttpExtender>>, ExtenderError> {
    let mut extenders = Vec::new();
    for config in configs {
        let client = HttpClient::new(config).map_err(|source| ExtenderError {
            url: config.url_prefix.clone(),
            source,
        })?;
        extenders.push(Arc::new(HttpExtender {
            client: Arc::new(client),
            config: config.clone(),
            tasks: tasks.clone(),
            metrics: Arc::clone(metrics),
        }));
    }
    extenders.sort_by_key(|extender| extender.config.ignorable);
    Ok(extenders)
}

/// Resources that NodeResourcesFit leaves to extenders.
pub fn ignored_resources(configs: &[config::Extender]) -> Vec<String> {
    let managed = configs.iter().flat_map(|c| &c.managed_resources);
    managed
        .filter(|resource| resource.ignored_by_scheduler)
        .map(|resource| resource.name.clone())
        .collect()
}

impl HttpExtender {
    /// Is it asked which nodes fit?
    pub fn is_filter(&self) -> bool {
        !self.config.filter_verb.is_empty()
    }

    /// Is it asked which nodes are better?
    pub fn is_prioritizer(&self) -> bool {
        !self.config.prioritize_verb.is_empty()
    }

    /// Does it bind?
    pub fn is_binder(&self) -> bool {
        !self.config.bind_verb.is_empty()
    }

    /// Asks, and waits for the answer: not on a thread that runs tasks.
    fn call(&self, verb: &str, body: Vec<u8>) -> Result<Value, CallError> {
        self.begin(verb, body).recv().unwrap_or(Err(CallError::End))
    }

    fn begin(&self, verb: &str, body: Vec<u8>) -> mpsc::Receiver<Result<Value, CallError>> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let (client, verb) = (Arc::clone(&self.client), verb.to_owned());
        self.tasks.spawn(async move {
            // Whoever asked may be gone.
            let _ = sender.send(client.call(&verb, body).await);
        });
        receiver
    }

    fn args(&self, pod: &Pod, nodes: &[&NodeInfo]) -> Vec<u8> {
        let known = self.config.node_cache_capable;
        let args = wire::ExtenderArgs {
            pod,
            nodes: (!known)
                .then(|| wire::NodeList::new(nodes.iter().map(|node| &**node.node()).collect())),
            node_names: known.then(|| nodes.iter().map(|node| &**node.name()).collect()),
        };
        serde_json::to_vec(&args).expect("API types serialise into memory")
    }

    /// Which of the nodes it leaves, and why not the others, where it says so.
    fn filter(&self, pod: &Pod, nodes: &Nodes<'_>) -> Result<(NodeSet, Vec<Refusal>), String> {
        let body = self.args(pod, &nodes.infos);
        let answer = self.call(&self.config.filter_verb, body);
        let answer = answer.map_err(|error| error.to_string())?;
        let result = wire::FilterResult::of(&answer)?;
        if !result.error.is_empty() {
            return Err(result.error);
        }
        let names = match (self.config.node_cache_capable, result.node_names) {
            (true, Some(names)) => names,
            _ => result.nodes.unwrap_or_default(),
        };
        let mut left = NodeSet::default();
        for name in names {
            let Some(index) = nodes.by_name.get(name.as_str()) else {
                return Err(format!(
                    "extender {:?} claims a filtered node {name:?} which is not found in the input node list",
                    self.name()
                ));
            };
            left.insert(*index);
        }
        let known = |(name, status): (&String, Status)| {
            let index = nodes.by_name.get(name.as_str())?;
            Some((*index, status))
        };
        let unresolvable = result.failed_and_unresolvable.iter();
        let unresolvable = unresolvable.map(|(node, why)| (node, Status::unresolvable(why)));
        let failed = result.failed.iter();
        let failed = failed
            .filter(|(node, _)| !result.failed_and_unresolvable.contains_key(*node))
            .map(|(node, why)| (node, Status::unschedulable(why)));
        let refusals = unresolvable.chain(failed).filter_map(known).collect();
        Ok((left, refusals))
    }

    /// Binds the pod to the node.
    ///
    /// # Errors
    /// The text says what went wrong.
    pub async fn bind(&self, pod: &PodInfo, node_name: &str) -> Result<(), String> {
        let args = wire::ExtenderBindingArgs {
            pod_name: pod.name(),
            pod_namespace: pod.namespace(),
            pod_uid: &pod.uid,
            node: node_name,
        };
        let body = serde_json::to_vec(&args).expect("texts serialise into memory");
        let answer = self.client.call(&self.config.bind_verb, body).await;
        let answer = answer.map_err(|error| error.to_string())?;
        match wire::error_of(&answer)? {
            error if error.is_empty() => Ok(()),
            error => Err(error),
        }
    }
}

/// Why an extender refuses a node.
type Refusal = (NodeIndex, Status);

/// Nodes to ask about.
struct Nodes<'a> {
    infos: Vec<&'a NodeInfo>,
    by_name: HashMap<&'a str, NodeIndex>,
}

impl<'a> Nodes<'a> {
    fn new(snapshot: &'a Snapshot, nodes: &NodeSet) -> Self {
        let info = |index: NodeIndex| Some((index, &**snapshot.node(index)?));
        let nodes: Vec<(NodeIndex, &NodeInfo)> = nodes.iter().filter_map(info).collect();
        Nodes {
            by_name: nodes.iter().map(|(i, node)| (&**node.name(), *i)).collect(),
            infos: nodes.into_iter().map(|(_, node)| node).collect(),
        }
    }
}

/// Leaves of `nodes` what the extenders leave, one after the other; the reasons they gave for the rest.
///
/// # Errors
/// When one fails that is not ignorable.
pub fn filter(
    extenders: &[Arc<HttpExtender>],
    pod: &PodInfo,
    snapshot: &Snapshot,
    nodes: &mut NodeSet,
) -> Result<Vec<Refusal>, Status> {
    let mut refusals = BTreeMap::new();
    for extender in extenders.iter().filter(|extender| extender.is_filter()) {
        if nodes.is_empty() {
            break;
        }
        match extender.filter(&pod.pod, &Nodes::new(snapshot, nodes)) {
            Ok((left, refused)) => {
                refusals.extend(refused);
                *nodes = left;
            }
            Err(error) if extender.is_ignorable() => tracing::info!(
                extender = extender.name(),
                err = error,
                "Skipping extender as it returned error and has ignorable flag set"
            ),
            Err(error) => return Err(Status::error(error)),
        }
    }
    let out =
        |(index, status): (NodeIndex, Status)| (!nodes.contains(index)).then_some((index, status));
    Ok(refusals.into_iter().filter_map(out).collect())
}

/// Adds what the extenders, all asked at the same time, give to `nodes`. One that fails gives nothing.
pub fn add_scores(
    extenders: &[Arc<HttpExtender>],
    pod: &PodInfo,
    snapshot: &Snapshot,
    nodes: &NodeSet,
    totals: &mut [i64],
) {
    let asked = Nodes::new(snapshot, nodes);
    let begin = |extender: &Arc<HttpExtender>| {
        let running = extender.metrics.running("prioritizing_extender");
        let body = extender.args(&pod.pod, &asked.infos);
        let answer = extender.begin(&extender.config.prioritize_verb, body);
        (answer, running)
    };
    let prioritizers = extenders.iter().filter(|e| e.is_prioritizer());
    let begun: Vec<_> = prioritizers.map(|e| (e, begin(e))).collect();
    for (extender, (answer, running)) in begun {
        let answer = answer.recv().unwrap_or(Err(CallError::End));
        drop(running);
        let scores = answer.map_err(|error| error.to_string());
        match scores.and_then(|answer| wire::host_priorities(&answer)) {
            Ok(scores) => {
                // Upstream's plain integer arithmetic.
                let scale = framework::MAX_NODE_SCORE / MAX_EXTENDER_PRIORITY;
                let scale = extender.config.weight.wrapping_mul(scale);
                for (host, score) in scores {
                    if let Some(index) = asked.by_name.get(host.as_str()) {
                        let total = &mut totals[*index as usize];
                        *total = total.wrapping_add(score.wrapping_mul(scale));
                    }
                }
            }
            Err(error) => tracing::info!(
                pod = pod.name(),
                namespace = pod.namespace(),
                extender = extender.name(),
                err = error,
                "Failed to run extender's priority function. No score given by this extender."
            ),
        }
    }
}

/// Lets the extender bind whose business the pod is. `None`: it is no extender's.
pub async fn bind(
    extenders: &[Arc<HttpExtender>],
    pod: &PodInfo,
    node_name: &str,
) -> Option<Status> {
    for extender in extenders.iter().filter(|extender| extender.is_binder()) {
        if !extender.is_interested(&pod.pod) {
            continue;
        }
        match extender.bind(pod, node_name).await {
            Ok(()) => return Some(Status::success()),
            Err(error) if extender.is_ignorable() => tracing::info!(
                extender = extender.name(),
                err = error,
                "Skipping extender in bind as it returned error and has ignorable flag set"
            ),
            Err(error) => return Some(Status::error(error)),
        }
    }
    None
}

impl Extender for HttpExtender {
    fn name(&self) -> &str {
        &self.config.url_prefix
    }

    fn is_ignorable(&self) -> bool {
        self.config.ignorable
    }

    fn is_interested(&self, pod: &Pod) -> bool {
        let managed = &self.config.managed_resources;
        if managed.is_empty() {
            return true;
        }
        let spec = pod.spec.as_ref();
        let main = spec.into_iter().flat_map(|spec| &spec.containers);
        let init = spec
            .into_iter()
            .flat_map(|s| s.init_containers.iter().flatten());
        let resources = main.chain(init).filter_map(|c| c.resources.as_ref());
        let mut names = resources.flat_map(|r| {
            let requests = r.requests.iter().flat_map(BTreeMap::keys);
            requests.chain(r.limits.iter().flat_map(BTreeMap::keys))
        });
        names.any(|name| managed.iter().any(|managed| managed.name == *name))
    }

    fn supports_preemption(&self) -> bool {
        !self.config.preempt_verb.is_empty()
    }

    fn process_preemption(
        &self,
        pod: &PodInfo,
        candidates: &NodeToVictims,
        snapshot: &Snapshot,
    ) -> Result<NodeToVictims, String> {
        let args = wire::preemption_args(&pod.pod, candidates, self.config.node_cache_capable);
        let answer = self.call(&self.config.preempt_verb, args);
        let answer = answer.map_err(|error| error.to_string())?;
        let mut left = NodeToVictims::new();
        for (name, victims) in wire::preemption_result(&answer)? {
            let Some(node) = snapshot.get(&name) else {
                return Err(format!("nodeinfo not found for node name {name:?}"));
            };
            let mut pods = Vec::new();
            for uid in &victims.uids {
                let Some(victim) = node.pods().iter().find(|pod| *pod.uid == **uid) else {
                    return Err(format!(
                        "extender: {} claims to preempt pod (UID: {uid}) on node: {name}, but the pod is not found on that node",
                        self.name()
                    ));
                };
                pods.push(Arc::clone(victim));
            }
            let victims = Victims {
                pods,
                num_pdb_violations: victims.num_pdb_violations,
            };
            left.insert(Arc::clone(node.name()), victims);
        }
        Ok(left)
    }
}

/// The wait for an answer where nothing is said.
pub(crate) fn timeout(config: &config::Extender) -> Duration {
    match config.http_timeout.0 {
        Duration::ZERO => config::DEFAULT_EXTENDER_TIMEOUT,
        timeout => timeout,
    }
}
