//! Events about pods, containers and the node.
//!
//! Owns: the references they carry, and upstream's reasons. Upstream: `pkg/kubelet/events`, v1.36.

use component_base::events::{EventType, Recorder};
use k8s_openapi::api::core::v1::{ObjectReference, Pod};

use crate::pod;

pub use component_base::events::EventType as Type;

/// Reasons, verbatim.
pub mod reason {
    pub const CREATED: &str = "Created";
    pub const STARTED: &str = "Started";
    pub const FAILED: &str = "Failed";
    pub const KILLING: &str = "Killing";
    pub const PREEMPTING: &str = "Preempting";
    pub const BACK_OFF: &str = "BackOff";
    pub const FAILED_KILL_POD: &str = "FailedKillPod";
    pub const FAILED_CREATE_POD_CONTAINER: &str = "FailedCreatePodContainer";
    pub const NETWORK_NOT_READY: &str = "NetworkNotReady";
    pub const RESIZE_DEFERRED: &str = "ResizeDeferred";
    pub const RESIZE_INFEASIBLE: &str = "ResizeInfeasible";
    pub const RESIZE_STARTED: &str = "ResizeStarted";
    pub const RESIZE_COMPLETED: &str = "ResizeCompleted";
    pub const RESIZE_ERROR: &str = "ResizeError";
    pub const PULLING: &str = "Pulling";
    pub const PULLED: &str = "Pulled";
    pub const INSPECT_FAILED: &str = "InspectFailed";
    pub const ERR_IMAGE_NEVER_PULL: &str = "ErrImageNeverPull";
    pub const FREE_DISK_SPACE_FAILED: &str = "FreeDiskSpaceFailed";
    pub const IMAGE_GC_FAILED: &str = "ImageGCFailed";
    pub const INVALID_DISK_CAPACITY: &str = "InvalidDiskCapacity";
    pub const FAILED_MOUNT: &str = "FailedMount";
    pub const SANDBOX_CHANGED: &str = "SandboxChanged";
    pub const FAILED_CREATE_POD_SANDBOX: &str = "FailedCreatePodSandBox";
    pub const FAILED_POST_START_HOOK: &str = "FailedPostStartHook";
    pub const FAILED_PRE_STOP_HOOK: &str = "FailedPreStopHook";
    pub const UNHEALTHY: &str = "Unhealthy";
    pub const PROBE_WARNING: &str = "ProbeWarning";
    pub const EVICTED: &str = "Evicted";
    pub const FAILED_SYNC: &str = "FailedSync";
    pub const FAILED_VALIDATION: &str = "FailedValidation";
    pub const STARTING: &str = "Starting";
    pub const REBOOTED: &str = "Rebooted";
    pub const NODE_READY: &str = "NodeReady";
    pub const NODE_NOT_READY: &str = "NodeNotReady";
    pub const CIDR_NOT_AVAILABLE: &str = "CIDRNotAvailable";
    pub const UNABLE_TO_PULL_SECRETS: &str = "FailedToRetrieveImagePullSecret";
}

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct KubeletRecorder {
    recorder: Recorder,
    node_name: String,
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

    pub fn node(&self, event_type: EventType, reason: &str, message: impl Into<String>) {
        let reference = ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(self.node_name.clone()),
            // As upstream: the name stands for the UID in events about nodes.
            uid: Some(self.node_name.clone()),
            ..ObjectReference::default()
        };
        self.recorder
            .event(&reference, event_type, reason, "", message);
    }
}
