use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use component_base::informer::ObjectKey;
use controller_runtime::Action;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use serde_json::{Value, from_value, json};

use super::actual::AttachState;
use super::desired::Place;
use super::sync::*;
use super::volume::*;

mod shell;

const MINUTE: Duration = Duration::from_secs(60);

fn pod(namespace: &str, name: &str, node: &str, claim: &str) -> Pod {
    from_value(json!({
        "metadata": { "namespace": namespace, "name": name, "uid": format!("{namespace}/{name}") },
        "spec": {
            "nodeName": node, "containers": [],
            "volumes": [{ "name": "v", "persistentVolumeClaim": { "claimName": claim } }],
        },
    }))
    .unwrap()
}

fn claim(name: &str, volume: &str) -> PersistentVolumeClaim {
    from_value(json!({
        "metadata": { "namespace": "ns", "name": name, "uid": name },
        "spec": { "volumeName": volume },
        "status": { "phase": "Bound" },
    }))
    .unwrap()
}

fn volume(name: &str, claim: &str, mode: &str) -> PersistentVolume {
    from_value(json!({
        "metadata": { "name": name },
        "spec": {
            "accessModes": [mode],
            "csi": { "driver": "d", "volumeHandle": format!("h-{name}") },
            "claimRef": { "namespace": "ns", "name": claim, "uid": claim },
        },
    }))
    .unwrap()
}

fn node(name: &str, ready: bool, taints: &[&str]) -> Node {
    let taints = taints
        .iter()
        .map(|key| json!({ "key": key, "effect": "NoExecute" }));
    from_value(json!({
        "metadata": {
            "name": name,
            "annotations": { "volumes.kubernetes.io/controller-managed-attach-detach": "true" },
        },
        "spec": { "taints": taints.collect::<Value>() },
        "status": { "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" } }] },
    }))
    .unwrap()
}

/// Everything that is looked up, and the state.
#[derive(Default)]
struct World {
    claims: HashMap<ObjectKey, PersistentVolumeClaim>,
    volumes: HashMap<String, PersistentVolume>,
    drivers: HashMap<String, CSIDriver>,
    nodes: HashMap<String, Node>,
    attachments: HashMap<String, VolumeAttachment>,
    state: State,
    now: Duration,
    disable_force_detach: bool,
}

impl Lookup for World {
    fn claim(&self, key: &ObjectKey) -> Option<Arc<PersistentVolumeClaim>> {
        self.claims.get(key).cloned().map(Arc::new)
    }
    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
        self.volumes.get(name).cloned().map(Arc::new)
    }
    fn driver(&self, name: &str) -> Option<Arc<CSIDriver>> {
        self.drivers.get(name).cloned().map(Arc::new)
    }
}

impl View for World {
    fn node(&self, name: &str) -> Option<Arc<Node>> {
        self.nodes.get(name).cloned().map(Arc::new)
    }
    fn attachment(&self, name: &str) -> Option<Arc<VolumeAttachment>> {
        self.attachments.get(name).cloned().map(Arc::new)
    }
}

impl World {
    /// Two ready nodes, and volumes `v` and `w` of claims `c` and `e`, with this access mode.
    fn new(mode: &str) -> Self {
        let mut world = Self {
            now: Duration::from_secs(1000),
            ..Self::default()
        };
        for (name, claim_name) in [("v", "c"), ("w", "e")] {
            let volume = volume(name, claim_name, mode);
            world.volumes.insert(name.to_owned(), volume);
            let claim = claim(claim_name, name);
            world.claims.insert(ObjectKey::of(&claim), claim);
        }
        for name in ["a", "b"] {
            world.add(node(name, true, &[]));
        }
        world
    }

    fn add(&mut self, node: Node) {
        let name = node.metadata.name.clone().unwrap();
        self.state.desired.manage(&name);
        self.nodes.insert(name, node);
    }

    fn pod(&mut self, pod: &Pod) {
        let mut state = std::mem::take(&mut self.state);
        state.desired.pod_changed(pod, self);
        self.state = state;
    }

    fn gone(&mut self, name: &str) {
        self.state.desired.remove(&ObjectKey::new("ns", name));
    }

    fn in_use(&mut self, node: &str, volumes: &[&str]) {
        let volumes: Vec<String> = volumes.iter().map(|v| unique(v)).collect();
        self.state.actual.set_in_use(node, &volumes);
    }

    /// A round; what it wants in words, and what pods are told.
    fn round(&mut self, expect: &[&str]) -> Vec<String> {
        let mut state = std::mem::take(&mut self.state);
        let round = sync(&mut state, self, self.disable_force_detach, self.now);
        let mut words = Vec::new();
        for (key, place, call) in &round.calls {
            let word = match call {
                Call::Attach(_) => "attach",
                Call::Detach { forced: None, .. } => "detach",
                Call::Detach {
                    forced: Some(Forced::Timeout),
                    ..
                } => "force",
                Call::Detach {
                    forced: Some(Forced::OutOfService),
                    ..
                } => "out-of-service",
            };
            let name = place.volume.rsplit('-').next().unwrap();
            words.push(format!("{word} {name} {}", place.node));
            // The write succeeds.
            let done = called(&mut state, key, Ok(false), self.now);
            assert!(done.events.is_empty());
        }
        self.state = state;
        assert_eq!(words, expect);
        messages(&round)
    }

    /// The driver's answer about a volume at a node.
    fn driver_says(&mut self, volume: &str, node: &str, status: Value) {
        let name = attachment_name("d", &format!("h-{volume}"), node);
        let attachment = from_value(json!({
            "metadata": { "name": name },
            "spec": { "attacher": "d", "nodeName": node, "source": { "persistentVolumeName": volume } },
            "status": status,
        }));
        self.attachments.insert(name, attachment.unwrap());
    }

    fn deleted(&mut self, volume: &str, node: &str) {
        let name = attachment_name("d", &format!("h-{volume}"), node);
        self.attachments.remove(&name);
    }

    /// Volume `v` is attached to node `a` for pod `p`.
    fn attached(mode: &str) -> Self {
        let mut world = Self::new(mode);
        world.pod(&pod("ns", "p", "a", "c"));
        world.round(&["attach v a"]);
        world.driver_says("v", "a", json!({ "attached": true }));
        world.round(&[]);
        world
    }

    fn reports(&mut self, node: &str, expect: &[&str]) {
        let report = self.state.actual.take_report(node);
        let names: Vec<String> = report.into_iter().map(|a| a.name).collect();
        let expect: Vec<String> = expect.iter().map(|v| unique(v)).collect();
        assert_eq!(names, expect);
    }
}

fn unique(volume: &str) -> String {
    format!("kubernetes.io/csi/d^h-{volume}")
}

fn place(volume: &str, node: &str) -> Place {
    Place {
        volume: unique(volume),
        node: node.to_owned(),
    }
}

fn messages(round: &Round) -> Vec<String> {
    let message = |action: &Action| match action {
        Action::Event {
            regarding,
            reason,
            message,
            ..
        } => {
            let name = regarding.name.as_deref().unwrap_or_default();
            format!("{name}: {reason}: {message}")
        }
        other => panic!("{other:?}"),
    };
    round.events.iter().map(message).collect()
}

#[test]
fn names_are_upstreams() {
    // printf '%s' 'vol-1driver.example.comnode-1' | sha256sum
    assert_eq!(
        attachment_name("driver.example.com", "vol-1", "node-1"),
        "csi-5a7c28392c118ae9fba26e6f716c7416b8403b65be3ba37ec7513846f80b9e58"
    );
    assert_eq!(
        split_unique_name("kubernetes.io/csi/d^h/1"),
        Some(("d", "h/1"))
    );
    assert_eq!(split_unique_name("kubernetes.io/csi/d^h^1"), None);
    assert_eq!(split_unique_name("kubernetes.io/aws-ebs/vol"), None);
}

#[test]
fn a_pods_volume_is_attached_and_detached() {
    let mut world = World::new("ReadWriteOnce");
    world.round(&[]);
    world.pod(&pod("ns", "p", "a", "c"));
    world.round(&["attach v a"]);
    // The driver is waited for.
    world.round(&[]);
    world.driver_says("v", "a", json!({ "attached": false }));
    world.round(&[]);
    world.reports("a", &[]);
    world.driver_says("v", "a", json!({ "attached": true }));
    let told = world.round(&[]);
    let message = r#"p: SuccessfulAttachVolume: AttachVolume.Attach succeeded for volume "v" "#;
    assert_eq!(told, [message]);
    assert_eq!(world.state.actual.stale(), ["a"]);
    world.reports("a", &["v"]);
    world.in_use("a", &["v"]);
    world.gone("p");
    world.round(&[]);
    world.in_use("a", &[]);
    world.round(&["detach v a"]);
    // Its kubelet must not begin to use it any more.
    world.reports("a", &[]);
    world.round(&[]);
    world.deleted("v", "a");
    world.round(&[]);
    assert_eq!(
        world.state.actual.state(&place("v", "a")),
        AttachState::Detached
    );
    world.round(&[]);
}

#[test]
fn what_is_not_attached_here() {
    for (change, expect) in [
        ("", 1),
        ("no claim", 0),
        ("pending claim", 0),
        ("no volume", 0),
        ("other claim", 0),
        ("attachRequired=false", 0),
        ("attachRequired=true", 1),
        ("local", 0),
        ("migrated", 1),
        ("done", 0),
        ("not scheduled", 0),
        ("not managed", 0),
    ] {
        let mut world = World::new("ReadWriteOnce");
        let mut user = pod("ns", "p", "a", "c");
        let key = ObjectKey::new("ns", "c");
        let spec = |world: &mut World| world.volumes.get_mut("v").unwrap().spec.take().unwrap();
        match change {
            "no claim" => drop(world.claims.remove(&key)),
            "pending claim" => world.claims.get_mut(&key).unwrap().status = None,
            "no volume" => drop(world.volumes.remove("v")),
            "other claim" => drop(
                world
                    .volumes
                    .insert("v".into(), volume("v", "e", "ReadWriteOnce")),
            ),
            "attachRequired=false" | "attachRequired=true" => {
                let required = change.ends_with("true");
                let driver =
                    json!({ "metadata": { "name": "d" }, "spec": { "attachRequired": required } });
                world
                    .drivers
                    .insert("d".into(), from_value(driver).unwrap());
            }
            "local" => {
                let mut spec = spec(&mut world);
                spec.csi = None;
                spec.local = Some(Default::default());
                world.volumes.get_mut("v").unwrap().spec = Some(spec);
            }
            "migrated" => {
                let mut spec = spec(&mut world);
                spec.csi = None;
                spec.aws_elastic_block_store =
                    Some(from_value(json!({ "volumeID": "vol-1" })).unwrap());
                world.volumes.get_mut("v").unwrap().spec = Some(spec);
            }
            "done" => user.status = Some(from_value(json!({ "phase": "Succeeded" })).unwrap()),
            "not scheduled" => user.spec.as_mut().unwrap().node_name = None,
            "not managed" => world.state.desired.forget_absent(|node| node != "a"),
            _ => {}
        }
        world.pod(&user);
        let mut state = std::mem::take(&mut world.state);
        let round = sync(&mut state, &world, false, world.now);
        assert_eq!(round.calls.len(), expect, "{change}");
        if change == "migrated" {
            let Call::Attach(attachment) = &round.calls[0].2 else {
                panic!("attaches")
            };
            assert_eq!(attachment.spec.attacher, "ebs.csi.aws.com");
        }
    }
}

#[test]
fn a_volume_for_one_node_waits_for_the_other() {
    let mut world = World::attached("ReadWriteOnce");
    world.pod(&pod("ns", "q", "b", "c"));
    let told = world.round(&[]);
    assert_eq!(
        told,
        [
            r#"q: FailedAttachVolume: Waiting for detach for volume "v" Volume is already used by pod(s) p"#
        ]
    );
    // Once is enough.
    assert!(world.round(&[]).is_empty());
    world.gone("p");
    world.in_use("a", &[]);
    world.round(&["detach v a"]);
    world.round(&[]);
    world.deleted("v", "a");
    world.round(&["attach v b"]);

    let mut shared = World::attached("ReadWriteMany");
    shared.pod(&pod("ns", "q", "b", "c"));
    shared.round(&["attach v b"]);
}

#[test]
fn only_names_of_the_own_namespace_are_told() {
    for (others, expect) in [
        (
            vec![],
            "Volume is already exclusively attached to one node, waiting on detach before it can be attached to another node",
        ),
        (
            vec!["other"],
            "Volume is already used by 1 pod(s) in different namespaces",
        ),
        (
            vec!["ns", "other"],
            "Volume is already used by pod(s) x0 and 1 pod(s) in different namespaces",
        ),
        (vec!["ns", "ns"], "Volume is already used by pod(s) x0, x1"),
    ] {
        let mut world = World::attached("ReadWriteOnce");
        world.gone("p");
        let mut claim = world.claims[&ObjectKey::new("ns", "c")].clone();
        claim.metadata.namespace = Some("other".into());
        world.claims.insert(ObjectKey::of(&claim), claim);
        for (i, namespace) in others.iter().enumerate() {
            world.pod(&pod(namespace, &format!("x{i}"), "a", "c"));
        }
        world.pod(&pod("ns", "q", "b", "c"));
        let told = world.round(&[]);
        assert_eq!(
            told,
            [format!(
                "q: FailedAttachVolume: Waiting for detach for volume \"v\" {expect}"
            )]
        );
    }
}

#[test]
fn a_node_that_does_not_answer_is_waited_for_six_minutes() {
    for (ready, disabled, used, expect_before, expect_after) in [
        (false, false, true, None, Some("force v a")),
        (false, true, true, None, None),
        (true, false, true, None, None),
        (true, false, false, Some("detach v a"), None),
        (false, false, false, Some("detach v a"), None),
    ] {
        let mut world = World::attached("ReadWriteOnce");
        world.disable_force_detach = disabled;
        world.add(node("a", ready, &[]));
        world.in_use("a", if used { &["v"] } else { &[] });
        world.gone("p");
        world.round(expect_before.as_slice());
        if expect_before.is_none() {
            world.now += 6 * MINUTE;
            world.round(&[]);
            world.now += Duration::from_millis(1);
            world.round(expect_after.as_slice());
        }
    }
}

#[test]
fn a_wish_in_between_starts_the_time_anew() {
    let mut world = World::attached("ReadWriteOnce");
    world.add(node("a", false, &[]));
    world.gone("p");
    world.round(&[]);
    world.now += 5 * MINUTE;
    world.pod(&pod("ns", "p", "a", "c"));
    world.round(&[]);
    world.gone("p");
    world.round(&[]);
    world.now += 5 * MINUTE;
    world.round(&[]);
    world.now += 2 * MINUTE;
    world.round(&["force v a"]);
}

#[test]
fn a_node_out_of_service_is_not_waited_for() {
    let mut world = World::attached("ReadWriteOnce");
    world.disable_force_detach = true;
    world.add(node("a", false, &["node.kubernetes.io/out-of-service"]));
    world.in_use("a", &["v"]);
    // As long as a pod is there, nothing is done.
    world.round(&[]);
    world.gone("p");
    world.round(&["out-of-service v a"]);
    // A node that is gone is waited for like one that is not ready.
    let mut world = World::attached("ReadWriteOnce");
    world.gone("p");
    world.nodes.remove("a");
    world.round(&[]);
    world.now += 7 * MINUTE;
    world.round(&["force v a"]);
}

#[test]
fn what_fails_is_tried_again_after_longer_and_longer() {
    let mut world = World::new("ReadWriteOnce");
    world.pod(&pod("ns", "p", "a", "c"));
    world.round(&["attach v a"]);
    world.driver_says(
        "v",
        "a",
        json!({ "attached": false, "attachError": { "message": "no room" } }),
    );
    let told = world.round(&[]);
    assert_eq!(
        told,
        [r#"p: FailedAttachVolume: AttachVolume.Attach failed for volume "v" : no room"#]
    );
    assert_eq!(
        world.state.actual.state(&place("v", "a")),
        AttachState::Uncertain
    );
    for pause in [500, 1000, 2000] {
        world.now += Duration::from_millis(pause - 1);
        world.round(&[]);
        world.now += Duration::from_millis(1);
        world.round(&["attach v a"]);
        world.round(&[]);
    }
    // Nobody wants it any more: what may be there is taken away.
    world.gone("p");
    world.in_use("a", &[]);
    world.round(&["detach v a"]);
    world.driver_says(
        "v",
        "a",
        json!({ "attached": true, "detachError": { "message": "busy" } }),
    );
    world.round(&[]);
    assert_eq!(
        world.state.actual.state(&place("v", "a")),
        AttachState::Uncertain
    );
    world.reports("a", &[]);
    world.now += MINUTE;
    world.deleted("v", "a");
    world.round(&["detach v a"]);
    world.round(&[]);
    assert_eq!(
        world.state.actual.state(&place("v", "a")),
        AttachState::Detached
    );
}

#[test]
fn drivers_that_do_not_answer_are_given_up() {
    let mut world = World::new("ReadWriteOnce");
    world.pod(&pod("ns", "p", "a", "c"));
    world.round(&["attach v a"]);
    world.now += 2 * MINUTE;
    let told = world.round(&[]);
    assert_eq!(
        told,
        [
            r#"p: FailedAttachVolume: AttachVolume.Attach failed for volume "v" : timed out waiting for external-attacher of d CSI driver to attach volume h-v"#
        ]
    );
}

#[test]
fn writes_that_fail_are_failures_too() {
    let mut world = World::new("ReadWriteOnce");
    world.pod(&pod("ns", "p", "a", "c"));
    let mut state = std::mem::take(&mut world.state);
    let round = sync(&mut state, &world, false, world.now);
    let failed = called(&mut state, &round.calls[0].0, Err("no".into()), world.now);
    assert_eq!(
        messages(&failed),
        [r#"p: FailedAttachVolume: AttachVolume.Attach failed for volume "v" : no"#]
    );
    assert_eq!(failed.next, Some(world.now + Duration::from_millis(500)));
}

#[test]
fn a_detach_that_could_not_be_announced_is_not_begun() {
    let mut world = World::attached("ReadWriteOnce");
    world.reports("a", &["v"]);
    world.gone("p");
    world.in_use("a", &[]);
    let mut state = std::mem::take(&mut world.state);
    let round = sync(&mut state, &world, false, world.now);
    let (key, at, _) = &round.calls[0];
    abandon_detach(&mut state, key, at);
    world.state = state;
    world.reports("a", &["v"]);
    world.round(&["detach v a"]);
}

#[test]
fn what_is_found_at_the_start() {
    let mut world = World::new("ReadWriteOnce");
    let mut told = node("a", true, &[]);
    let status = told.status.as_mut().unwrap();
    status.volumes_attached =
        Some(from_value(json!([{ "name": unique("v"), "devicePath": "/dev/x" }])).unwrap());
    status.volumes_in_use = Some(vec![]);
    world.state.actual.read_node(&told);
    world.state.actual.read_node(&node("b", true, &[]));
    // A VolumeAttachment that no node tells of.
    let lost = Volume::of(&world.volumes["w"]).unwrap();
    world.state.actual.populate(&place("w", "b"), lost);
    let known = Volume::of(&world.volumes["v"]).unwrap();
    world.state.actual.populate(&place("v", "a"), known);
    assert!(world.state.actual.stale().is_empty());
    assert_eq!(
        world.state.actual.state(&place("v", "a")),
        AttachState::Attached
    );
    assert_eq!(
        world.state.actual.state(&place("w", "b")),
        AttachState::Uncertain
    );
    // One is wanted elsewhere, the other where it may be.
    world.pod(&pod("ns", "p", "b", "c"));
    world.pod(&pod("ns", "q", "b", "e"));
    world.round(&["detach v a", "attach w b"]);
    world.deleted("v", "a");
    world.driver_says("w", "b", json!({ "attached": true }));
    world.round(&["attach v b"]);
    world.reports("a", &[]);
    world.reports("b", &["w"]);
}

#[test]
fn what_nobody_knows_of_any_more_is_detached_by_its_name() {
    let mut world = World::new("ReadWriteOnce");
    let mut told = node("a", true, &[]);
    let status = told.status.as_mut().unwrap();
    status.volumes_attached = Some(
        from_value(json!([
            { "name": "kubernetes.io/csi/d^gone", "devicePath": "" },
            { "name": "kubernetes.io/other/x", "devicePath": "" },
        ]))
        .unwrap(),
    );
    world.state.actual.read_node(&told);
    let mut state = std::mem::take(&mut world.state);
    let round = sync(&mut state, &world, false, world.now);
    let [(_, _, Call::Detach { attachment, .. })] = &round.calls[..] else {
        panic!("{round:?}")
    };
    assert_eq!(*attachment, attachment_name("d", "gone", "a"));
    // There was none.
    called(&mut state, &round.calls[0].0, Ok(true), world.now);
    world.state = state;
    let report = world.state.actual.take_report("a");
    assert_eq!(report.len(), 1);
    assert_eq!(report[0].name, "kubernetes.io/other/x");
}

#[test]
fn what_cannot_be_said_now_stays_as_it_was() {
    let mut world = World::attached("ReadWriteOnce");
    world.claims.clear();
    world.pod(&pod("ns", "p", "a", "c"));
    assert!(world.state.desired.wants(&place("v", "a")));
    // A driver that does not want it any more says something.
    let world = &mut World::attached("ReadWriteOnce");
    let driver = json!({ "metadata": { "name": "d" }, "spec": { "attachRequired": false } });
    world
        .drivers
        .insert("d".into(), from_value(driver).unwrap());
    world.pod(&pod("ns", "p", "a", "c"));
    assert!(!world.state.desired.wants(&place("v", "a")));
    // So does another pod of the same name.
    let world = &mut World::attached("ReadWriteOnce");
    let mut other = pod("ns", "p", "b", "e");
    other.metadata.uid = Some("other".into());
    world.pod(&other);
    assert!(!world.state.desired.wants(&place("v", "a")));
    assert!(world.state.desired.wants(&place("w", "b")));
    world.gone("p");
    assert!(!world.state.desired.wants(&place("w", "b")));
}
