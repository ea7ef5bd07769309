//! The cgroups that have a row each, and their labels.

use std::collections::HashMap;

use runtime::api::InterfaceStats;

use super::{ContainerSnapshot, Detail, PodSnapshot, Snapshot, Usage, pod};

/// One cgroup: the node, a class of pods, a pod, or a container of a pod.
pub(super) struct Row<'a> {
    /// The name of the cgroup.
    pub(super) id: String,
    pub(super) pod: Option<&'a PodSnapshot>,
    pub(super) container: Option<&'a ContainerSnapshot>,
    pub(super) usage: Usage,
    pub(super) detail: Option<&'a Detail>,
}

/// Every row, from the node down.
pub(super) fn rows<'a>(
    snapshot: &'a Snapshot,
    details: &'a HashMap<String, Detail>,
) -> Vec<Row<'a>> {
    let row = |id: &str, pod, container, usage| Row {
        id: id.to_owned(),
        pod,
        container,
        usage,
        detail: details.get(id),
    };
    let mut rows = vec![row("/", None, None, snapshot.node)];
    for (id, usage) in &snapshot.classes {
        rows.push(row(id, None, None, *usage));
    }
    for pod in &snapshot.pods {
        if let Some(usage) = pod.usage {
            rows.push(row(&pod.cgroup, Some(pod), None, usage));
        }
        for container in &pod.containers {
            let stats = &container.stats;
            let usage = Usage {
                cpu_nanoseconds: Some(stats.cpu_usage_core_nanoseconds),
                memory_bytes: Some(stats.memory_usage_bytes),
                working_set_bytes: Some(stats.memory_working_set_bytes),
                rss_bytes: Some(stats.memory_rss_bytes),
                page_faults: Some(stats.page_faults),
                major_page_faults: Some(stats.major_page_faults),
                ..Usage::default()
            };
            let id = pod.container_cgroup(container);
            rows.push(row(&id, Some(pod), Some(container), usage));
        }
    }
    rows
}

impl<'a> Row<'a> {
    /// The labels that every metric has, and `more` of one metric's own; sorted by name, as upstream's client writes them.
    pub(super) fn labels<'b>(&'b self, more: &[(&'b str, &'b str)]) -> Vec<(&'b str, &'b str)> {
        let container = self.container.map(|container| &container.status);
        let mut labels = vec![
            (
                "container",
                container.map_or("", |c| c.metadata.name.as_str()),
            ),
            ("id", self.id.as_str()),
            ("image", container.map_or("", |c| c.image.as_str())),
            ("name", container.map_or("", |c| c.id.as_str())),
            ("namespace", self.pod.map_or("", |p| pod::namespace(&p.pod))),
            ("pod", self.pod.map_or("", |p| pod::name(&p.pod))),
        ];
        labels.extend_from_slice(more);
        labels.sort_unstable_by_key(|(name, _)| *name);
        labels
    }

    /// The interfaces told of on this row: the node's own on the node's, a pod's on the pod's.
    pub(super) fn interfaces(&self, snapshot: &'a Snapshot) -> &'a [InterfaceStats] {
        match (self.pod, self.container) {
            (None, _) if self.id == "/" => &snapshot.interfaces,
            (Some(pod), None) if !pod::is_host_network(&pod.pod) => pod
                .sandbox
                .as_ref()
                .map_or(&[], |sandbox| sandbox.interfaces.as_slice()),
            _ => &[],
        }
    }
}
