//! The plugins against upstream's own answers: random clusters and pods, which nodes upstream's plugins reject and why, and what they score the others.
//!
//! `testdata/upstream_verdicts.json` is what `e2e/upstream/schedulerverdicts` prints (upstream v1.36.3). A larger run may be given by the environment variable
//! `UPSTREAM_VERDICTS`, a file. A case may have `storage`: objects with their `kind`. `testdata/upstream_device_verdicts.json` is what it prints with `-devices` (upstream
//! v1.37.2): random devices and claims, which nodes are rejected, and what upstream's allocator chooses on each; a larger run by `UPSTREAM_DEVICE_VERDICTS`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ::dynamic_resources::{Allocator, NodeView, Search};
use framework::testing::{assert_forms_agree, normalized};
use framework::{CycleState, Handle, NodeSet, Plugin, PodInfo, Snapshot, Status};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::resource::v1::{AllocationResult, ResourceClaim};
use serde_json::Value;

use crate::registry::in_tree;
use crate::testing::FakeHandle;

/// One cluster, one pod, and upstream's answer.
struct Case {
    plugins: Vec<(Arc<dyn Plugin>, i64)>,
    snapshot: Snapshot,
    pod: Arc<PodInfo>,
    answer: Value,
    handle: Arc<dyn Handle>,
}

/// A claim's devices as upstream's side writes them.
fn told_result(result: &AllocationResult) -> Vec<String> {
    let devices = result
        .devices
        .iter()
        .flat_map(|d| d.results.iter().flatten());
    let mut told: Vec<String> = devices
        .map(|d| {
            let mut text = format!("{}={}/{}/{}", d.request, d.driver, d.pool, d.device);
            for (name, amount) in d.consumed_capacity.iter().flatten() {
                text += &format!(" {name}:{}", amount.0);
            }
            text
        })
        .collect();
    told.push(format!("selector:{}", result.node_selector.is_some()));
    told
}

/// What is wrong is said in words of our own.
fn without_error_texts(mut value: Value) -> Value {
    let forget = |status: &mut Value| {
        if status["code"] == "Error" {
            status["reasons"] = Value::Null;
        }
    };
    match value.as_object_mut() {
        Some(of) if !of.contains_key("code") => of.values_mut().for_each(forget),
        Some(_) => forget(&mut value),
        None => {}
    }
    value
}

fn list<T: serde::de::DeserializeOwned>(value: &Value) -> Vec<T> {
    serde_json::from_value::<Option<Vec<T>>>(value.clone())
        .expect("objects of the API")
        .unwrap_or_default()
}

impl Case {
    fn new(value: &Value) -> Self {
        let namespaces = list::<Namespace>(&value["namespaces"]).into_iter();
        let handle = FakeHandle {
            namespaces: namespaces
                .map(|n| {
                    (
                        n.metadata.name.unwrap_or_default(),
                        n.metadata.labels.unwrap_or_default(),
                    )
                })
                .collect(),
            services: list::<Service>(&value["services"])
                .into_iter()
                .map(Arc::new)
                .collect(),
            replica_sets: list::<ReplicaSet>(&value["replicaSets"])
                .into_iter()
                .map(Arc::new)
                .collect(),
            ..FakeHandle::default()
        };
        for object in list::<Value>(&value["storage"]) {
            let object = framework::testing::storage_object(&object);
            handle.volumes.apply(None, Some(&object));
        }
        for kind in ["slices", "classes", "claims", "taintRules"] {
            for object in list::<Value>(&value[kind]) {
                let object = framework::testing::storage_object(&object);
                handle.devices.apply(None, Some(&object));
            }
        }
        let handle: Arc<dyn Handle> = Arc::new(handle);
        let info = |pod: Pod| Arc::new(PodInfo::new(Arc::new(pod)).expect("valid selectors"));
        let nodes = list::<Node>(&value["nodes"]).into_iter().map(Arc::new);
        let pods = list::<Pod>(&value["pods"]).into_iter().map(info);
        let made = in_tree()
            .into_iter()
            .filter(|line| line.default_enabled)
            .map(|line| {
                (
                    (line.factory)(None, Arc::clone(&handle)).expect("defaults are valid"),
                    line.default_weight,
                )
            });
        Case {
            plugins: made.collect(),
            snapshot: framework::testing::snapshot(nodes, pods),
            pod: info(serde_json::from_value(value["pod"].clone()).expect("a pod")),
            answer: value.clone(),
            handle,
        }
    }

    /// What the allocator chooses for the pod's claims on each node where it finds something.
    fn chosen(&self) -> BTreeMap<String, Vec<Vec<String>>> {
        let cache = self.handle.listers().devices();
        let (inventory, devices) = (cache.inventory(), cache.read());
        let (taken, classes) = (devices.allocated(), Arc::clone(devices.classes()));
        let allocator = Allocator::new(
            cache.features(),
            taken,
            classes,
            inventory,
            Arc::clone(cache.selectors()),
        );
        let entries = component_helpers::resource_claim::entries(&self.pod.pod).iter();
        let names = entries.filter_map(|entry| entry.resource_claim_name.as_deref());
        let claims =
            names.map(|name| Arc::clone(devices.claim(self.pod.namespace(), name).expect("given")));
        let claims: Vec<_> = claims
            .filter(|claim| !component_helpers::resource_claim::is_allocated(claim))
            .collect();
        let claims: Vec<&ResourceClaim> = claims.iter().map(|claim| &**claim).collect();
        let mut chosen = BTreeMap::new();
        for (_, node) in self.snapshot.iter() {
            let view = NodeView {
                name: node.name(),
                labels: node.labels(),
            };
            let search = Search {
                interrupted: &|| false,
                new_share_id: &String::new,
            };
            if let Ok(Some(results)) = allocator.allocate(&view, &claims, &search) {
                chosen.insert(
                    node.name().to_string(),
                    results.iter().map(told_result).collect(),
                );
            }
        }
        chosen
    }

    /// A status as upstream's side writes it.
    fn told(status: &Status) -> Value {
        serde_json::json!({"plugin": status.plugin(), "code": status.code().as_str(), "reasons": status.reasons()})
    }

    fn check(&self, what: &str) {
        let mut state = CycleState::new();
        let mut names: Option<BTreeSet<String>> = None;
        let mut skip = BTreeSet::new();
        for (plugin, _) in &self.plugins {
            let Some(pre_filter) = plugin.as_pre_filter() else {
                continue;
            };
            let (result, status) = pre_filter.pre_filter(&mut state, &self.pod, &self.snapshot);
            if status.is_skip() {
                skip.insert(plugin.name());
            } else if !status.is_success() {
                assert_eq!(
                    without_error_texts(Self::told(&status.by(plugin.name()))),
                    without_error_texts(self.answer["preFilter"].clone()),
                    "{what}"
                );
                return;
            }
            if let Some(own) = result.node_names {
                names = Some(names.map_or_else(
                    || own.clone(),
                    |names| names.intersection(&own).cloned().collect(),
                ));
            }
        }
        let mut rejected = BTreeMap::new();
        let mut feasible = NodeSet::default();
        for (index, node) in self.snapshot.iter() {
            if names
                .as_ref()
                .is_some_and(|names| !names.contains(&**node.name()))
            {
                continue;
            }
            let filters = self
                .plugins
                .iter()
                .filter(|(plugin, _)| !skip.contains(plugin.name()));
            let statuses = filters.filter_map(|(plugin, _)| {
                Some(
                    plugin
                        .as_filter()?
                        .filter(&state, &self.pod, node)
                        .by(plugin.name()),
                )
            });
            match statuses.into_iter().find(|status| !status.is_success()) {
                Some(status) => _ = rejected.insert(node.name().to_string(), Self::told(&status)),
                None => _ = feasible.insert(index),
            }
        }
        assert_eq!(
            without_error_texts(serde_json::to_value(&rejected).expect("JSON")),
            without_error_texts(self.answer["rejected"].clone()),
            "{what}"
        );
        if let Some(chosen) = self.answer.get("chosen") {
            let ours = serde_json::to_value(self.chosen()).expect("JSON");
            assert_eq!(&ours, chosen, "{what}");
        }
        self.check_scores(&mut state, &feasible, what);
        for (plugin, _) in &self.plugins {
            assert_forms_agree(plugin.as_ref(), &self.pod, &self.snapshot);
        }
    }

    fn check_scores(&self, state: &mut CycleState, feasible: &NodeSet, what: &str) {
        let mut scores: BTreeMap<String, BTreeMap<&str, i64>> = BTreeMap::new();
        for (plugin, weight) in &self.plugins {
            let Some(score) = plugin.as_score() else {
                continue;
            };
            if feasible.is_empty()
                || plugin.as_pre_score().is_some_and(|p| {
                    p.pre_score(state, &self.pod, &self.snapshot, feasible)
                        .is_skip()
                })
            {
                continue;
            }
            let mut raw = vec![0; self.snapshot.columns().len()];
            for index in feasible.iter() {
                raw[index as usize] = score
                    .score(
                        state,
                        &self.pod,
                        self.snapshot.node(index).expect("feasible"),
                    )
                    .expect("scores");
            }
            for s in normalized(score, state, &self.pod, &self.snapshot, feasible, &raw) {
                let node = self
                    .snapshot
                    .node(s.node)
                    .expect("feasible")
                    .name()
                    .to_string();
                scores
                    .entry(node)
                    .or_default()
                    .insert(plugin.name(), s.score * weight);
            }
        }
        // A plugin that skips scores nothing; upstream's ImageLocality and TaintToleration then say zero, which is the same.
        let without_zeros = |value: Value| -> BTreeMap<String, BTreeMap<String, i64>> {
            let all: BTreeMap<String, BTreeMap<String, i64>> =
                serde_json::from_value(value).expect("scores");
            all.into_iter()
                .map(|(node, of)| {
                    (
                        node,
                        of.into_iter().filter(|(_, score)| *score != 0).collect(),
                    )
                })
                .collect()
        };
        let ours = without_zeros(serde_json::to_value(&scores).expect("JSON"));
        assert_eq!(ours, without_zeros(self.answer["scores"].clone()), "{what}");
    }
}

#[test]
fn as_upstream_answers() {
    let given = std::env::var("UPSTREAM_VERDICTS")
        .map(|path| std::fs::read_to_string(path).expect("the file can be read"));
    let text =
        given.unwrap_or_else(|_| include_str!("../testdata/upstream_verdicts.json").to_owned());
    check_all(&text);
}

#[test]
fn as_upstream_answers_about_devices() {
    let given = std::env::var("UPSTREAM_DEVICE_VERDICTS")
        .map(|path| std::fs::read_to_string(path).expect("the file can be read"));
    let text = given
        .unwrap_or_else(|_| include_str!("../testdata/upstream_device_verdicts.json").to_owned());
    check_all(&text);
}

fn check_all(text: &str) {
    let cases: Vec<Value> = serde_json::from_str(text).expect("JSON");
    assert!(cases.len() >= 50);
    for (i, value) in cases.iter().enumerate() {
        Case::new(value).check(&format!("case {i}"));
    }
}
