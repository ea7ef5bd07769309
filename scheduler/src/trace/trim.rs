//! What is left out of a trace: what the scheduler does not read, and may be nobody else's business.
//!
//! Of containers only what is named here is kept, so that a field that is new to the API is left out until somebody reads it.

use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{
    Container, EphemeralContainer, PersistentVolume, Pod, ReplicationController, Service,
    ServiceSpec,
};
use k8s_openapi::api::storage::v1::{StorageClass, VolumeAttachment};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// A copy of the whole object as it was applied.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

pub(super) fn nothing<T>(_: &mut T) {}

pub(super) fn metadata(meta: &mut ObjectMeta) {
    meta.managed_fields = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove(LAST_APPLIED);
    }
}

pub(super) fn pod(pod: &mut Pod) {
    let Some(spec) = &mut pod.spec else { return };
    spec.containers.iter_mut().for_each(container);
    spec.init_containers
        .iter_mut()
        .flatten()
        .for_each(container);
    for ephemeral in spec.ephemeral_containers.iter_mut().flatten() {
        let whole = std::mem::take(ephemeral);
        *ephemeral = EphemeralContainer {
            name: whole.name,
            image: whole.image,
            volume_mounts: whole.volume_mounts,
            ..EphemeralContainer::default()
        };
    }
    for volume in spec.volumes.iter_mut().flatten() {
        if let Some(csi) = &mut volume.csi {
            csi.volume_attributes = None;
        }
        if let Some(flex) = &mut volume.flex_volume {
            flex.options = None;
        }
    }
}

fn container(container: &mut Container) {
    let whole = std::mem::take(container);
    *container = Container {
        name: whole.name,
        image: whole.image,
        ports: whole.ports,
        resources: whole.resources,
        resize_policy: whole.resize_policy,
        restart_policy: whole.restart_policy,
        restart_policy_rules: whole.restart_policy_rules,
        volume_devices: whole.volume_devices,
        volume_mounts: whole.volume_mounts,
        ..Container::default()
    };
}

pub(super) fn volume(volume: &mut PersistentVolume) {
    let Some(spec) = &mut volume.spec else { return };
    if let Some(csi) = &mut spec.csi {
        csi.volume_attributes = None;
    }
    if let Some(flex) = &mut spec.flex_volume {
        flex.options = None;
    }
}

pub(super) fn class(class: &mut StorageClass) {
    class.parameters = None;
}

pub(super) fn attachment(attachment: &mut VolumeAttachment) {
    attachment.status = None;
}

/// Their selectors are read.
pub(super) fn service(service: &mut Service) {
    service.status = None;
    if let Some(spec) = &mut service.spec {
        *spec = ServiceSpec {
            selector: spec.selector.take(),
            ..ServiceSpec::default()
        };
    }
}

/// Of this and the next two the template is left out: it is a pod.
pub(super) fn replication_controller(controller: &mut ReplicationController) {
    if let Some(spec) = &mut controller.spec {
        spec.template = None;
    }
}

pub(super) fn replica_set(set: &mut ReplicaSet) {
    set.spec.template = Default::default();
}

pub(super) fn stateful_set(set: &mut StatefulSet) {
    set.spec.template = Default::default();
    set.spec.volume_claim_templates = None;
}
