//! Events about pods, containers and the node.
//!
//! Owns: the references they carry, and upstream's reasons. Upstream: `pkg/kubelet/events`, v1.36.

use std::sync::{Arc, OnceLock};

use component_base::events::{EventType, Recorder};
use k8s_openapi::api::core::v1::{Node, ObjectReference, PersistentVolumeClaim, Pod};

use crate::pod;

pub use component_base::events::EventType as Type;

/// Reasons, verbatim.
pub mod reason {
    pub const CREATED: &str = "Created";
    pub const STARTED: &str = "Started";
    pub const FAILED: &str = "Failed";
    pub const KILLING: &str = "Killing";
    pub const BACK_OFF: &str = "BackOff";
    pub const EXCEEDED_GRACE_PERIOD: &str = "ExceededGracePeriod";
    pub const FAILED_KILL_POD: &str = "FailedKillPod";
    pub const FAILED_CREATE_POD_CONTAINER: &str = "FailedCreatePodContainer";
    pub const NETWORK_NOT_READY: &str = "NetworkNotReady";
    pub const RESIZE_DEFERRED: &str = "ResizeDeferred";
    pub const RESIZE_INFEASIBLE: &str = "ResizeInfeasible";
    pub const RESIZE_STARTED: &str = "ResizeStarted";
    pub const RESIZE_COMPLETED: &str = "ResizeCompleted";
    pub const RESIZE_ERROR: &str = "ResizeError";
    pub const FAILED_NODE_DECLARED_FEATURES_CHECK: &str = "FailedNodeDeclaredFeaturesCheck";
    pub const PULLING: &str = "Pulling";
    pub const PULLED: &str = "Pulled";
    pub const INSPECT_FAILED: &str = "InspectFailed";
    pub const ERR_IMAGE_NEVER_PULL: &str = "ErrImageNeverPull";
    pub const FREE_DISK_SPACE_FAILED: &str = "FreeDiskSpaceFailed";
    pub const IMAGE_GC_FAILED: &str = "ImageGCFailed";
    pub const INVALID_DISK_CAPACITY: &str = "InvalidDiskCapacity";
    pub const VOLUME_RESIZE_FAILED: &str = "VolumeResizeFailed";
    pub const FILE_SYSTEM_RESIZE_SUCCESS: &str = "FileSystemResizeSuccessful";
    pub const FAILED_MAP_VOLUME: &str = "FailedMapVolume";
    pub const FAILED_MOUNT: &str = "FailedMount";
    pub const FAILED_PREPARE_DYNAMIC_RESOURCES: &str = "FailedPrepareDynamicResources";
    pub const SANDBOX_CHANGED: &str = "SandboxChanged";
    pub const FAILED_CREATE_POD_SANDBOX: &str = "FailedCreatePodSandBox";
    pub const FAILED_STATUS_POD_SANDBOX: &str = "FailedPodSandBoxStatus";
    pub const FAILED_POST_START_HOOK: &str = "FailedPostStartHook";
    pub const FAILED_PRE_STOP_HOOK: &str = "FailedPreStopHook";
    pub const UNHEALTHY: &str = "Unhealthy";
    pub const PROBE_WARNING: &str = "ProbeWarning";
    pub const EVICTED: &str = "Evicted";
    pub const FAILED_SYNC: &str = "FailedSync";
    pub const STARTING: &str = "Starting";
    pub const NODE_SHUTDOWN: &str = "Shutdown";
    pub const REBOOTED: &str = "Rebooted";
    pub const NODE_SCHEDULABLE: &str = "NodeSchedulable";
    pub const NODE_NOT_SCHEDULABLE: &str = "NodeNotSchedulable";
    pub const NODE_ALLOCATABLE_ENFORCED: &str = "NodeAllocatableEnforced";
    pub const CGROUP_V1: &str = "CgroupV1";
    pub const CONTAINER_GC_FAILED: &str = "ContainerGCFailed";
    pub const NODE_READY: &str = "NodeReady";
    pub const NODE_NOT_READY: &str = "NodeNotReady";
    pub const CIDR_NOT_AVAILABLE: &str = "CIDRNotAvailable";
    pub const POD_CERTIFICATE_DENIED: &str = "Denied";
    pub const CERTIFICATE_OVERDUE_FOR_REFRESH: &str = "CertificateOverdueForRefresh";
    pub const CERTIFICATE_EXPIRED: &str = "CertificateExpired";
    pub const UNABLE_TO_PULL_SECRETS: &str = "FailedToRetrieveImagePullSecret";
}

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct KubeletRecorder {
    recorder: Recorder,
    node_name: String,
    /// Of the node's object, once it was read.
    node_uid: Arc<OnceLock<String>>,
}

fn pod_reference(pod: &Pod) -> ObjectReference {
    // Events about a static pod go to its mirror, which has the static pod's UID as its config hash.
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: pod.metadata.name.clone(),
        namespace: pod.metadata.namespace.clone(),
        uid: pod.metadata.uid.clone(),
        resource_version: pod.metadata.resource_version.clone(),
        field_path: None,
    }
}

impl KubeletRecorder {
    pub fn new(recorder: Recorder, node_name: &str) -> Self {
        Self {
            recorder,
            node_name: node_name.to_owned(),
            node_uid: Arc::default(),
        }
    }

    /// The node's object was read: events about the node name it by its UID from now on. The first one counts, as upstream's.
    pub fn node_is(&self, node: &Node) {
        if let Some(uid) = &node.metadata.uid {
            self.node_uid.get_or_init(|| uid.clone());
        }
    }

    pub fn pod(&self, pod: &Pod, event_type: EventType, reason: &str, message: impl Into<String>) {
        self.recorder
            .event(&pod_reference(pod), event_type, reason, "", message);
    }

    /// With the container as `fieldPath`.
    pub fn container(
        &self,
        pod: &Pod,
        container: &str,
        event_type: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        let reference = ObjectReference {
            field_path: pod::field_path(pod, container),
            ..pod_reference(pod)
        };
        self.recorder
            .event(&reference, event_type, reason, "", message);
    }

    pub fn claim(
        &self,
        claim: &PersistentVolumeClaim,
        event_type: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        let metadata = &claim.metadata;
        let reference = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("PersistentVolumeClaim".to_owned()),
            name: metadata.name.clone(),
            namespace: metadata.namespace.clone(),
            uid: metadata.uid.clone(),
            resource_version: metadata.resource_version.clone(),
            field_path: None,
        };
        self.recorder
            .event(&reference, event_type, reason, "", message);
    }

    pub fn node(&self, event_type: EventType, reason: &str, message: impl Into<String>) {
        let reference = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(self.node_name.clone()),
            // Upstream: `nodeRefWithUID`.
            uid: self.node_uid.get().cloned(),
            ..ObjectReference::default()
        };
        self.recorder
            .event(&reference, event_type, reason, "", message);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn events_about_the_node_name_it_by_its_uid_once_it_is_known() {
        let (recorder, mut events) = Recorder::fake();
        let recorder = KubeletRecorder::new(recorder, "n");
        let mut told = |recorder: &KubeletRecorder| {
            recorder.node(EventType::Normal, "R", "m");
            let regarding = events.try_recv().unwrap().regarding;
            assert_eq!(regarding.name.as_deref(), Some("n"));
            regarding.uid
        };
        assert_eq!(told(&recorder), None);
        let clone = recorder.clone();
        let mut node = Node::default();
        node.metadata.uid = Some("uid-1".into());
        recorder.node_is(&node);
        assert_eq!(told(&clone).as_deref(), Some("uid-1"));
    }

    /// Why a reason of upstream's is never seen here.
    type Never = &'static str;

    const NOT_THE_KUBELETS: Never =
        "the controllers' to tell: the kubelet attaches and grows no volumes itself";

    /// Every reason of upstream's `pkg/kubelet/events/event.go`, v1.36, under its name there.
    const UPSTREAM: &[(&str, &str, Result<(), Never>)] = &[
        ("CreatedContainer", "Created", Ok(())),
        ("StartedContainer", "Started", Ok(())),
        ("FailedToCreateContainer", "Failed", Ok(())),
        ("FailedToStartContainer", "Failed", Ok(())),
        ("KillingContainer", "Killing", Ok(())),
        ("PreemptContainer", "Preempting", Ok(())),
        ("BackOffStartContainer", "BackOff", Ok(())),
        ("ExceededGracePeriod", "ExceededGracePeriod", Ok(())),
        ("FailedToKillPod", "FailedKillPod", Ok(())),
        (
            "FailedToCreatePodContainer",
            "FailedCreatePodContainer",
            Ok(()),
        ),
        ("FailedToMakePodDataDirectories", "Failed", Ok(())),
        ("NetworkNotReady", "NetworkNotReady", Ok(())),
        ("ResizeDeferred", "ResizeDeferred", Ok(())),
        ("ResizeInfeasible", "ResizeInfeasible", Ok(())),
        ("ResizeCompleted", "ResizeCompleted", Ok(())),
        ("ResizeStarted", "ResizeStarted", Ok(())),
        ("ResizeError", "ResizeError", Ok(())),
        (
            "FailedNodeDeclaredFeaturesCheck",
            "FailedNodeDeclaredFeaturesCheck",
            Ok(()),
        ),
        ("PullingImage", "Pulling", Ok(())),
        ("PulledImage", "Pulled", Ok(())),
        ("FailedToPullImage", "Failed", Ok(())),
        ("FailedToInspectImage", "InspectFailed", Ok(())),
        ("ErrImageNeverPullPolicy", "ErrImageNeverPull", Ok(())),
        ("BackOffPullImage", "BackOff", Ok(())),
        ("NodeReady", "NodeReady", Ok(())),
        ("NodeNotReady", "NodeNotReady", Ok(())),
        ("NodeSchedulable", "NodeSchedulable", Ok(())),
        ("NodeNotSchedulable", "NodeNotSchedulable", Ok(())),
        ("StartingKubelet", "Starting", Ok(())),
        (
            "KubeletSetupFailed",
            "KubeletSetupFailed",
            Err("a failed start ends the process before it has a client to tell by"),
        ),
        (
            "FailedAttachVolume",
            "FailedAttachVolume",
            Err(NOT_THE_KUBELETS),
        ),
        ("FailedMountVolume", "FailedMount", Ok(())),
        ("VolumeResizeFailed", "VolumeResizeFailed", Ok(())),
        (
            "VolumeResizeSuccess",
            "VolumeResizeSuccessful",
            Err(NOT_THE_KUBELETS),
        ),
        (
            "FileSystemResizeFailed",
            "FileSystemResizeFailed",
            Err("a volume that a pod has read-only is not looked at"),
        ),
        (
            "VolumePermissionChangeInProgress",
            "VolumePermissionChangeInProgress",
            Err("a walk over a large volume is not told of while it goes on"),
        ),
        (
            "FileSystemResizeSuccess",
            "FileSystemResizeSuccessful",
            Ok(()),
        ),
        ("FailedMapVolume", "FailedMapVolume", Ok(())),
        (
            "WarnAlreadyMountedVolume",
            "AlreadyMountedVolume",
            Err("the group of a local volume is set without a word about the last"),
        ),
        (
            "SuccessfulAttachVolume",
            "SuccessfulAttachVolume",
            Err(NOT_THE_KUBELETS),
        ),
        (
            "SuccessfulMountVolume",
            "SuccessfulMountVolume",
            Err("of block volumes alone, with paths of the node; told of no other volume"),
        ),
        ("NodeRebooted", "Rebooted", Ok(())),
        ("NodeShutdown", "Shutdown", Ok(())),
        ("ContainerGCFailed", "ContainerGCFailed", Ok(())),
        ("ImageGCFailed", "ImageGCFailed", Ok(())),
        (
            "FailedNodeAllocatableEnforcement",
            "FailedNodeAllocatableEnforcement",
            Err("a cgroup that cannot be set is an error of the start"),
        ),
        (
            "SuccessfulNodeAllocatableEnforcement",
            "NodeAllocatableEnforced",
            Ok(()),
        ),
        ("SandboxChanged", "SandboxChanged", Ok(())),
        ("FailedCreatePodSandBox", "FailedCreatePodSandBox", Ok(())),
        ("FailedStatusPodSandBox", "FailedPodSandBoxStatus", Ok(())),
        (
            "FailedMountOnFilesystemMismatch",
            "FailedMountOnFilesystemMismatch",
            Err("file systems on devices are mounted by drivers, not by the kubelet"),
        ),
        (
            "FailedPrepareDynamicResources",
            "FailedPrepareDynamicResources",
            Ok(()),
        ),
        (
            "PossibleMemoryBackedVolumesOnDisk",
            "PossibleMemoryBackedVolumesOnDisk",
            Err("not looked for: the kernels supported keep tmpfs off swap"),
        ),
        ("CgroupV1", "CgroupV1", Ok(())),
        (
            "InvalidImageID",
            "InvalidImageID",
            Err("the image store names images by digest; there is no other id"),
        ),
        ("InvalidDiskCapacity", "InvalidDiskCapacity", Ok(())),
        ("FreeDiskSpaceFailed", "FreeDiskSpaceFailed", Ok(())),
        ("ContainerUnhealthy", "Unhealthy", Ok(())),
        ("ContainerProbeWarning", "ProbeWarning", Ok(())),
        ("FailedSync", "FailedSync", Ok(())),
        (
            "FailedValidation",
            "FailedValidation",
            Err("of two static pods of one name one is left out, and the log says so"),
        ),
        ("FailedPostStartHook", "FailedPostStartHook", Ok(())),
        ("FailedPreStopHook", "FailedPreStopHook", Ok(())),
    ];

    fn sources(dir: &Path, out: &mut String) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, out);
            } else if !path.ends_with("events.rs") && !path.ends_with("tests.rs") {
                out.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }

    #[test]
    fn every_reason_of_upstream_is_told_or_cannot_be() {
        let own = include_str!("events.rs");
        let mut code = String::new();
        sources(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
            &mut code,
        );
        for (name, value, told) in UPSTREAM {
            // By its constant here, or spelled out.
            let constant = own
                .lines()
                .find(|l| {
                    l.trim_start().starts_with("pub const") && l.contains(&format!("= {value:?};"))
                })
                .and_then(|l| l.trim().strip_prefix("pub const ")?.split(':').next());
            let by_constant = constant.is_some_and(|c| code.contains(&format!("reason::{c}")));
            let is_told = by_constant || code.contains(&format!("{value:?}"));
            match told {
                Ok(()) => assert!(is_told, "{name}: {value} is never told"),
                Err(why) => assert!(
                    !is_told && !why.is_empty(),
                    "{name}: {value} is told after all"
                ),
            }
        }
    }
}
