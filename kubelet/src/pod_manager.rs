//! The pods this node is asked to run, from every source, and the mirror pods of the static ones.
//!
//! Owns: the desired pods by UID, and the links static pod <-> mirror pod. Never decides anything.
//! Upstream: `pkg/kubelet/pod/pod_manager.go`, v1.36.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use k8s_openapi::api::core::v1::Pod;

use crate::pod;

#[derive(Default)]
struct Inner {
    pods: HashMap<String, Arc<Pod>>,
    /// Mirror pods by full name, as a static pod and its mirror share only that.
    mirrors: HashMap<String, Arc<Pod>>,
}

/// Cheap to ask; shared by every part of the kubelet.
#[derive(Default)]
pub struct PodManager {
    inner: RwLock<Inner>,
}

impl PodManager {
    fn read(&self) -> std::sync::RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(|e| e.into_inner())
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(|e| e.into_inner())
    }

    /// Adds the pod or replaces the version held.
    pub fn update_pod(&self, pod: Arc<Pod>) {
        let mut inner = self.write();
        if pod::is_mirror(&pod) {
            inner.mirrors.insert(pod::full_name(&pod), pod);
        } else {
            inner.pods.insert(pod::uid(&pod).to_owned(), pod);
        }
    }

    /// Forgets the pod; a mirror only if it is still the one held.
    pub fn remove_pod(&self, pod: &Pod) {
        let mut inner = self.write();
        if pod::is_mirror(pod) {
            let full_name = pod::full_name(pod);
            if inner
                .mirrors
                .get(&full_name)
                .is_some_and(|m| m.metadata.uid == pod.metadata.uid)
            {
                inner.mirrors.remove(&full_name);
            }
        } else {
            inner.pods.remove(pod::uid(pod));
        }
    }

    /// Every pod but the mirrors.
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.read().pods.values().cloned().collect()
    }

    pub fn mirror_pods(&self) -> Vec<Arc<Pod>> {
        self.read().mirrors.values().cloned().collect()
    }

    /// What `/pods` shows: every pod as it came, static ones included, without their mirrors.
    pub fn get_pod_by_uid(&self, uid: &str) -> Option<Arc<Pod>> {
        self.read().pods.get(uid).cloned()
    }

    pub fn get_pod_by_name(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let inner = self.read();
        inner
            .pods
            .values()
            .filter(|p| pod::name(p) == name && pod::namespace(p) == namespace)
            .max_by_key(|p| {
                (
                    !pod::is_deleted(p),
                    p.metadata.creation_timestamp.as_ref().map(|t| t.0),
                )
            })
            .cloned()
    }

    pub fn get_mirror_pod_by_pod(&self, pod: &Pod) -> Option<Arc<Pod>> {
        if !pod::is_static(pod) {
            return None;
        }
        self.read().mirrors.get(&pod::full_name(pod)).cloned()
    }

    pub fn get_pod_by_mirror_pod(&self, mirror: &Pod) -> Option<Arc<Pod>> {
        let full_name = pod::full_name(mirror);
        self.read()
            .pods
            .values()
            .find(|p| pod::is_static(p) && pod::full_name(p) == full_name)
            .cloned()
    }

    /// The UID under which the kubelet works, from one that a client may have taken from the API server.
    pub fn translate_pod_uid(&self, uid: &str) -> String {
        let mirror = self
            .read()
            .mirrors
            .values()
            .find(|m| pod::uid(m) == uid)
            .cloned();
        match mirror.and_then(|m| self.get_pod_by_mirror_pod(&m)) {
            Some(pod) => pod::uid(&pod).to_owned(),
            None => uid.to_owned(),
        }
    }

    /// The pod as the API server holds it: the mirror of a static pod, the pod itself otherwise.
    pub fn api_object(&self, uid: &str) -> Option<Arc<Pod>> {
        let pod = self.get_pod_by_uid(uid)?;
        if pod::is_static(&pod) {
            self.get_mirror_pod_by_pod(&pod)
        } else {
            Some(pod)
        }
    }

    /// Mirrors whose static pod is gone.
    pub fn orphaned_mirrors(&self) -> Vec<Arc<Pod>> {
        self.mirror_pods()
            .into_iter()
            .filter(|m| self.get_pod_by_mirror_pod(m).is_none())
            .collect()
    }
}
