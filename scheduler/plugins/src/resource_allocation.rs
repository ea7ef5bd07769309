//! What NodeResourcesFit and NodeResourcesBalancedAllocation score by: for each configured resource, what a node offers, what is used, and what would be
//! used with the pod.
//!
//! Upstream: plugins/noderesources/resource_allocation.go, v1.36.

use component_helpers::resources::{CPU, EPHEMERAL_STORAGE, MEMORY, is_scalar_resource_name};
use framework::{NodeColumns, NodeIndex, NodeInfo, PodInfo, ResourceColumn};

/// One resource on one node; nothing allocatable means that it does not count there.
#[derive(Clone, Copy, Default)]
pub(crate) struct Share {
    pub allocatable: i64,
    pub allocated: i64,
    pub requested: i64,
}

/// One resource to score by, and what the pod asks for.
pub(crate) struct Wanted {
    pub name: String,
    pub weight: i64,
    pub request: i64,
    /// An extended resource the pod does not ask for does not count.
    ignored: bool,
}

/// The configured resources with the pod's requests; CPU and memory with the default for containers that ask for none, if `non_zero`.
pub(crate) fn wanted(
    pod: &PodInfo,
    resources: &[framework::args::ResourceSpec],
    non_zero: bool,
) -> Vec<Wanted> {
    let of = |spec: &framework::args::ResourceSpec| {
        let request = match spec.name.as_str() {
            CPU if non_zero => pod.requests.non_zero_milli_cpu,
            MEMORY if non_zero => pod.requests.non_zero_memory,
            name => pod.requests.resource.get(name),
        };
        let ignored = request == 0 && is_scalar_resource_name(&spec.name);
        Wanted {
            name: spec.name.clone(),
            weight: spec.weight,
            request,
            ignored,
        }
    };
    resources.iter().map(of).collect()
}

/// What these pods ask for together. A resource that none of them asks for is one that a pod does not ask for.
pub(crate) fn wanted_by_all<'a>(
    pods: impl Iterator<Item = &'a PodInfo>,
    resources: &[framework::args::ResourceSpec],
    non_zero: bool,
) -> Vec<Wanted> {
    let nothing = |spec: &framework::args::ResourceSpec| Wanted {
        name: spec.name.clone(),
        weight: spec.weight,
        request: 0,
        ignored: is_scalar_resource_name(&spec.name),
    };
    let mut all: Vec<Wanted> = resources.iter().map(nothing).collect();
    for pod in pods {
        for (sum, one) in all.iter_mut().zip(wanted(pod, resources, non_zero)) {
            sum.request = sum.request.saturating_add(one.request);
            sum.ignored &= one.ignored;
        }
    }
    all
}

/// The shares of one node, into `out`.
pub(crate) fn shares(node: &NodeInfo, wanted: &[Wanted], non_zero: bool, out: &mut Vec<Share>) {
    out.clear();
    out.extend(wanted.iter().map(|resource| {
        let allocatable = if resource.ignored {
            0
        } else {
            node.allocatable().get(&resource.name)
        };
        if allocatable == 0 {
            return Share::default();
        }
        let allocated = match resource.name.as_str() {
            CPU if non_zero => node.non_zero_milli_cpu(),
            MEMORY if non_zero => node.non_zero_memory(),
            name => node.requested().get(name),
        };
        Share {
            allocatable,
            allocated,
            requested: allocated.saturating_add(resource.request),
        }
    }));
}

/// A resource's columns of what is allocatable and allocated, and the pod's request.
type Column<'a> = (&'a [i64], &'a [i64], i64);

/// The same shares, read from columns; `None` for a resource that counts nowhere.
pub(crate) struct Columns<'a> {
    columns: Vec<Option<Column<'a>>>,
}

impl<'a> Columns<'a> {
    pub(crate) fn new(columns: &'a NodeColumns, wanted: &[Wanted], non_zero: bool) -> Self {
        let of = |resource: &Wanted| {
            let column: &ResourceColumn = match resource.name.as_str() {
                _ if resource.ignored => return None,
                CPU => &columns.cpu,
                MEMORY => &columns.memory,
                EPHEMERAL_STORAGE => &columns.ephemeral_storage,
                name => columns.scalar(name)?,
            };
            let allocated = match resource.name.as_str() {
                CPU if non_zero => &columns.non_zero_milli_cpu,
                MEMORY if non_zero => &columns.non_zero_memory,
                _ => &column.requested,
            };
            Some((&*column.allocatable, &**allocated, resource.request))
        };
        Columns {
            columns: wanted.iter().map(of).collect(),
        }
    }

    pub(crate) fn shares(&self, node: NodeIndex, out: &mut Vec<Share>) {
        out.clear();
        out.extend(self.columns.iter().map(|column| {
            let Some((allocatable, allocated, request)) = column else {
                return Share::default();
            };
            let (allocatable, allocated) = (allocatable[node as usize], allocated[node as usize]);
            if allocatable == 0 {
                return Share::default();
            }
            Share {
                allocatable,
                allocated,
                requested: allocated.saturating_add(*request),
            }
        }));
    }
}
