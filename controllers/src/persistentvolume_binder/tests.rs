//! Cases of the pure core, in a small language: objects are lines, before and after.
//!
//! `pv NAME SIZE PHASE …` and `pvc NAME SIZE PHASE …` with words as `claim=c/uid-c`, `by-controller`, `class=gold`; a phase `-` is none. A
//! claim's UID is `uid-NAME` unless it says `uid=`. Objects are printed in the same language, words in one order.

mod claims;
mod provisioning;
mod shell;
mod volumes;

use std::collections::BTreeMap;
use std::sync::Arc;

use component_helpers::persistent_volume::*;
use controller_runtime::{Action, ObjectKey};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    CSIPersistentVolumeSource, HostPathVolumeSource, NFSVolumeSource, ObjectReference,
    PersistentVolume, PersistentVolumeClaim, VolumeResourceRequirements,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, Time};

use super::matching::VolumeIndex;
use super::provisioning::default_class;
use super::sync::*;

fn size(text: &str) -> BTreeMap<String, Quantity> {
    BTreeMap::from([(STORAGE.to_owned(), Quantity(text.to_owned()))])
}

fn long_modes(text: &str) -> Vec<String> {
    let long = |mode: &str| match mode {
        "RWO" => "ReadWriteOnce",
        "ROX" => "ReadOnlyMany",
        "RWX" => "ReadWriteMany",
        _ => "ReadWriteOncePod",
    };
    text.split(',').map(|mode| long(mode).to_owned()).collect()
}

fn words(text: &str) -> Vec<(&str, &str)> {
    let pair = |word| str::split_once(word, '=').unwrap_or((word, ""));
    text.split_whitespace().map(pair).collect()
}

fn label(value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("set".to_owned(), value.to_owned())])
}

/// Reads a volume.
pub fn pv(text: &str) -> PersistentVolume {
    let list = words(text);
    let mut volume = PersistentVolume::default();
    volume.metadata.name = Some(list[1].0.to_owned());
    volume.metadata.uid = Some(format!("uid-{}", list[1].0));
    let meta = &mut volume.metadata;
    let spec = volume.spec.get_or_insert_default();
    let status = volume.status.get_or_insert_default();
    spec.capacity = Some(size(list[2].0)).filter(|_| list[2].0 != "-");
    status.phase = Some(list[3].0.to_owned()).filter(|phase| phase != "-");
    spec.access_modes = Some(long_modes("RWO"));
    spec.persistent_volume_reclaim_policy = Some("Retain".to_owned());
    for (word, value) in &list[4..] {
        let text = (*value).to_owned();
        match *word {
            "claim" => {
                let (name, uid) = value.split_once('/').unwrap_or((value, ""));
                spec.claim_ref = Some(ObjectReference {
                    namespace: Some("default".to_owned()),
                    name: Some(name.to_owned()),
                    uid: Some(uid.to_owned()).filter(|uid| !uid.is_empty()),
                    ..Default::default()
                });
            }
            "by-controller" => set_annotation(meta, BOUND_BY_CONTROLLER, "yes"),
            "provisioned-by" => set_annotation(meta, PROVISIONED_BY, value),
            "migrated-to" => set_annotation(meta, MIGRATED_TO, value),
            "pre-resize" => set_annotation(meta, PRE_RESIZE_CAPACITY, value),
            "class" => spec.storage_class_name = Some(text),
            "beta-class" => set_annotation(meta, BETA_STORAGE_CLASS, value),
            "policy" => spec.persistent_volume_reclaim_policy = Some(text),
            "attributes" => spec.volume_attributes_class_name = Some(text),
            "block" => spec.volume_mode = Some(BLOCK.to_owned()),
            "modes" => spec.access_modes = Some(long_modes(value)),
            "label" => meta.labels = Some(label(value)),
            "deleted" => meta.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH)),
            "finalizer" => meta.finalizers.get_or_insert_default().push(text),
            "host-path" => {
                let path = text;
                spec.host_path = Some(HostPathVolumeSource { path, type_: None });
            }
            "nfs" => spec.nfs = Some(NFSVolumeSource::default()),
            "csi" => spec.csi = Some(CSIPersistentVolumeSource::default()),
            other => panic!("{other} of a volume"),
        }
    }
    volume
}

/// Reads a claim.
pub fn pvc(text: &str) -> PersistentVolumeClaim {
    let list = words(text);
    let mut claim = PersistentVolumeClaim::default();
    claim.metadata.namespace = Some("default".to_owned());
    claim.metadata.name = Some(list[1].0.to_owned());
    claim.metadata.uid = Some(format!("uid-{}", list[1].0));
    let meta = &mut claim.metadata;
    let spec = claim.spec.get_or_insert_default();
    let status = claim.status.get_or_insert_default();
    spec.resources = Some(VolumeResourceRequirements {
        requests: Some(size(list[2].0)),
        limits: None,
    });
    status.phase = Some(list[3].0.to_owned()).filter(|phase| phase != "-");
    spec.access_modes = Some(long_modes("RWO"));
    for (word, value) in &list[4..] {
        let text = (*value).to_owned();
        match *word {
            "uid" => meta.uid = Some(text),
            "volume" => spec.volume_name = Some(text),
            "by-controller" => set_annotation(meta, BOUND_BY_CONTROLLER, "yes"),
            "completed" => set_annotation(meta, BIND_COMPLETED, "yes"),
            "provisioner" => {
                set_annotation(meta, STORAGE_PROVISIONER, value);
                set_annotation(meta, BETA_STORAGE_PROVISIONER, value);
            }
            "beta-provisioner" => set_annotation(meta, BETA_STORAGE_PROVISIONER, value),
            "migrated-to" => set_annotation(meta, MIGRATED_TO, value),
            "selected" => set_annotation(meta, SELECTED_NODE, value),
            "class" => spec.storage_class_name = Some(text),
            "beta-class" => set_annotation(meta, BETA_STORAGE_CLASS, value),
            "attributes" => spec.volume_attributes_class_name = Some(text),
            "block" => spec.volume_mode = Some(BLOCK.to_owned()),
            "modes" => spec.access_modes = Some(long_modes(value)),
            "select" => {
                spec.selector = Some(LabelSelector {
                    match_labels: Some(label(value)),
                    ..Default::default()
                });
            }
            "has" => {
                status.capacity = Some(size(value));
                status.access_modes = spec.access_modes.clone();
            }
            "has-attributes" => status.current_volume_attributes_class_name = Some(text),
            other => panic!("{other} of a claim"),
        }
    }
    claim
}

/// `sc NAME PROVISIONER …` with `wait`, `default`, `age=SECONDS`, `policy=`, `options=`.
pub fn sc(text: &str) -> StorageClass {
    let list = words(text);
    let mut class = StorageClass {
        metadata: ObjectMeta {
            name: Some(list[1].0.to_owned()),
            creation_timestamp: Some(Time(Timestamp::from_second(1_000_000).unwrap())),
            ..Default::default()
        },
        provisioner: list[2].0.to_owned(),
        volume_binding_mode: Some("Immediate".to_owned()),
        reclaim_policy: Some("Delete".to_owned()),
        ..Default::default()
    };
    for (word, value) in &list[3..] {
        let is_default = "storageclass.kubernetes.io/is-default-class";
        match *word {
            "wait" => class.volume_binding_mode = Some("WaitForFirstConsumer".to_owned()),
            "no-mode" => class.volume_binding_mode = None,
            "default" => set_annotation(&mut class.metadata, is_default, "true"),
            "age" => {
                let age: i64 = value.parse().unwrap();
                let at = Timestamp::from_second(1_000_000 - age).unwrap();
                class.metadata.creation_timestamp = Some(Time(at));
            }
            "policy" => class.reclaim_policy = Some((*value).to_owned()),
            "options" => class.mount_options = Some(vec![(*value).to_owned()]),
            other => panic!("{other} of a class"),
        }
    }
    class
}

struct Line(String);

impl Line {
    fn word(&mut self, word: &str, value: Option<&str>) {
        if let Some(value) = value {
            let equals = if value.is_empty() { "" } else { "=" };
            self.0 += &format!(" {word}{equals}{value}");
        }
    }
    fn annotation(&mut self, word: &str, meta: &ObjectMeta, key: &str) {
        self.word(word, annotation(meta, key));
    }
    fn flag(&mut self, word: &str, set: bool) {
        self.word(word, set.then_some(""));
    }
}

fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

fn text_of(quantities: Option<&BTreeMap<String, Quantity>>) -> Option<&str> {
    storage_of(quantities).map(|quantity| quantity.0.as_str())
}

fn print_pv(volume: &PersistentVolume) -> String {
    let (meta, spec) = (&volume.metadata, volume.spec.clone().unwrap());
    let mut line = Line(format!(
        "pv {} {} {}",
        meta.name.as_deref().unwrap(),
        text_of(spec.capacity.as_ref()).unwrap_or("-"),
        or_dash(volume_phase(volume))
    ));
    let reference = spec.claim_ref.map(|reference| {
        let uid = reference.uid.map(|uid| format!("/{uid}"));
        reference.name.unwrap() + &uid.unwrap_or_default()
    });
    line.word("claim", reference.as_deref());
    line.flag("by-controller", has_annotation(meta, BOUND_BY_CONTROLLER));
    line.annotation("provisioned-by", meta, PROVISIONED_BY);
    line.annotation("migrated-to", meta, MIGRATED_TO);
    for finalizer in meta.finalizers.iter().flatten() {
        line.word("finalizer", Some(finalizer));
    }
    line.0
}

fn print_pvc(claim: &PersistentVolumeClaim) -> String {
    let (meta, spec) = (&claim.metadata, claim.spec.clone().unwrap());
    let status = claim.status.clone().unwrap();
    let requests = spec.resources.and_then(|resources| resources.requests);
    let mut line = Line(format!(
        "pvc {} {} {}",
        meta.name.as_deref().unwrap(),
        text_of(requests.as_ref()).unwrap(),
        or_dash(claim_phase(claim))
    ));
    line.word("volume", spec.volume_name.as_deref());
    line.flag("by-controller", has_annotation(meta, BOUND_BY_CONTROLLER));
    line.flag("completed", has_annotation(meta, BIND_COMPLETED));
    line.annotation("provisioner", meta, STORAGE_PROVISIONER);
    line.annotation("beta-provisioner", meta, BETA_STORAGE_PROVISIONER);
    line.annotation("migrated-to", meta, MIGRATED_TO);
    line.word("class", spec.storage_class_name.as_deref());
    line.word("has", text_of(status.capacity.as_ref()));
    let attributes = status.current_volume_attributes_class_name;
    line.word("has-attributes", attributes.as_deref());
    line.0
}

/// What there is, and what a pass makes of it.
pub struct World {
    volumes: Vec<PersistentVolume>,
    claims: Vec<PersistentVolumeClaim>,
    classes: Vec<Arc<StorageClass>>,
    pods: Vec<String>,
    dynamic_provisioning: bool,
    log: Vec<String>,
}

impl World {
    /// Reads lines; `pod NAME` uses every claim, and waits for a node.
    pub fn new(lines: &[&str]) -> Self {
        let of = |kind: &str| {
            let kind = format!("{kind} ");
            let lines = lines.iter().filter(move |line| line.starts_with(&kind));
            lines.copied().collect::<Vec<_>>()
        };
        Self {
            volumes: of("pv").into_iter().map(pv).collect(),
            claims: of("pvc").into_iter().map(pvc).collect(),
            classes: of("sc")
                .into_iter()
                .map(|line| Arc::new(sc(line)))
                .collect(),
            pods: of("pod").iter().map(|line| line[4..].to_owned()).collect(),
            dynamic_provisioning: true,
            log: Vec::new(),
        }
    }

    fn class(&self, name: &str) -> Option<&StorageClass> {
        let named = |class: &&Arc<StorageClass>| class.metadata.name.as_deref() == Some(name);
        self.classes.iter().find(named).map(|class| &**class)
    }

    /// One pass over the claim or volume of a name.
    pub fn sync(&mut self, name: &str) -> Purpose {
        let mut index = VolumeIndex::default();
        for volume in &self.volumes {
            index.insert(Arc::new(volume.clone()));
        }
        let named = |meta: &ObjectMeta| meta.name.as_deref() == Some(name);
        let plan = match self.claims.iter().find(|claim| named(&claim.metadata)) {
            Some(claim) => {
                let view = ClaimView {
                    volumes: &index,
                    class: self.class(claim_class(claim)),
                    default_class: default_class(&self.classes).map(|class| &**class),
                    unscheduled_pods: &self.pods,
                    dynamic_provisioning: self.dynamic_provisioning,
                };
                sync_claim(claim, &view)
            }
            None => {
                let volume = self.volumes.iter().find(|v| named(&v.metadata)).unwrap();
                let reference = claim_ref(volume).and_then(|reference| reference.name.clone());
                let view = VolumeView {
                    claim: self.claims.iter().find(|c| c.metadata.name == reference),
                    class: self.class(volume_class(volume)),
                    users: &self.pods,
                };
                sync_volume(volume, &view)
            }
        };
        let purpose = plan.purpose.clone();
        self.take(plan);
        purpose
    }

    fn take(&mut self, plan: Plan) {
        for step in plan.steps {
            match step {
                Step::UpdateVolume(new) => {
                    let old = self.volume(&new.metadata);
                    let status = old.status.clone();
                    *old = *new;
                    old.status = status;
                }
                Step::UpdateVolumeStatus(new) => self.volume(&new.metadata).status = new.status,
                Step::UpdateClaim(new) => {
                    let old = self.claim(&new.metadata);
                    let status = old.status.clone();
                    *old = *new;
                    old.status = status;
                }
                Step::UpdateClaimStatus(new) => self.claim(&new.metadata).status = new.status,
                Step::Event(Action::Event {
                    event_type, reason, ..
                }) => self.log.push(format!("{} {reason}", event_type.as_str())),
                Step::Event(other) => panic!("{other:?} is no event"),
                Step::SyncClaim(key) => {
                    assert_eq!(key, ObjectKey::new("default", key.name.clone()));
                    self.log.push(format!("sync {}", key.name));
                }
                Step::Start(operation) => self.log.push(operation.to_string()),
            }
        }
        self.log
            .extend(plan.error.map(|error| format!("error: {error}")));
    }

    fn volume(&mut self, meta: &ObjectMeta) -> &mut PersistentVolume {
        let mut volumes = self.volumes.iter_mut();
        volumes.find(|v| v.metadata.name == meta.name).unwrap()
    }

    fn claim(&mut self, meta: &ObjectMeta) -> &mut PersistentVolumeClaim {
        let mut claims = self.claims.iter_mut();
        claims.find(|c| c.metadata.name == meta.name).unwrap()
    }

    /// The objects in the test's language, volumes first.
    pub fn print(&self) -> Vec<String> {
        let volumes = self.volumes.iter().map(print_pv);
        volumes.chain(self.claims.iter().map(print_pvc)).collect()
    }
}

/// One pass over `name` turns `given` into `expect`, and `log` is what else it wants: events, operations, an error. Another pass has
/// nothing more to write.
pub fn check(given: &[&str], name: &str, expect: &[&str], log: &[&str]) {
    let mut world = World::new(given);
    world.sync(name);
    assert_eq!(
        world.print(),
        expect,
        "after a pass over {name} of {given:?}"
    );
    assert_eq!(world.log, log, "of a pass over {name} of {given:?}");
    world.sync(name);
    assert_eq!(
        world.print(),
        expect,
        "after two passes over {name} of {given:?}"
    );
}

/// As [`check`], when nothing changes.
pub fn check_unchanged(given: &[&str], name: &str, log: &[&str]) {
    let world = World::new(given);
    let printed = world.print();
    let expect: Vec<&str> = printed.iter().map(String::as_str).collect();
    check(given, name, &expect, log);
}
