//! `LinuxContainerResources`.

use cri_spec::v1;
use runtime::Resources;

use crate::error::FieldError;

/// Every second of all the CPUs there can be.
const LONGEST_LIST: usize = 32 << 10;

/// Numbers and ranges, as the kernel lists CPUs and NUMA nodes; of none of them, too.
fn is_list(text: &str) -> bool {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse::<u32>().ok()).flatten()
    };
    let is_item = |item: &str| match item.split_once('-') {
        Some((first, last)) => {
            matches!((number(first), number(last)), (Some(first), Some(last)) if first <= last)
        }
        None => number(item).is_some(),
    };
    text.is_empty() || text.len() <= LONGEST_LIST && text.split(',').all(is_item)
}

/// What a container is made with; zero means no limit, or the kernel's default.
///
/// # Errors
/// A field is wrong or not built.
pub fn resources(resources: &v1::LinuxContainerResources) -> Result<Resources, FieldError> {
    for (value, field) in [
        (&resources.cpuset_cpus, "linux.resources.cpuset_cpus"),
        (&resources.cpuset_mems, "linux.resources.cpuset_mems"),
    ] {
        if !is_list(value) {
            let why = "must be a list of numbers and ranges (0-3,8)";
            return Err(FieldError::invalid(field, value, why));
        }
    }
    let unsigned = |value: i64, field: &'static str| match u64::try_from(value) {
        Ok(0) => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(_) => Err(FieldError::invalid(field, value, "must not be negative")),
    };
    let signed = |value: i64| (value != 0).then_some(value);
    let oom_score_adj = i32::try_from(resources.oom_score_adj)
        .ok()
        .filter(|value| (-1000..=1000).contains(value))
        .ok_or_else(|| {
            FieldError::invalid(
                "linux.resources.oom_score_adj",
                resources.oom_score_adj,
                "must be from -1000 to 1000",
            )
        })?;
    Ok(Resources {
        cpu_shares: unsigned(resources.cpu_shares, "linux.resources.cpu_shares")?,
        cpu_quota_us: signed(resources.cpu_quota),
        cpu_period_us: unsigned(resources.cpu_period, "linux.resources.cpu_period")?,
        memory_limit_bytes: signed(resources.memory_limit_in_bytes),
        memory_swap_limit_bytes: signed(resources.memory_swap_limit_in_bytes),
        oom_score_adj,
        pids_limit: None,
        hugepage_limits: resources
            .hugepage_limits
            .iter()
            .map(|limit| (limit.page_size.clone(), limit.limit))
            .collect(),
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        unified: resources.unified.clone().into_iter().collect(),
    })
}

/// What a running container is given instead; what is not said stays.
///
/// # Errors
/// As [`resources`], and for what only a new container can be given.
pub fn update(request: &v1::UpdateContainerResourcesRequest) -> Result<Resources, FieldError> {
    if request.windows.is_some() {
        return Err(FieldError::NotBuilt {
            field: "windows",
            why: "this is Linux",
        });
    }
    if !request.annotations.is_empty() {
        return Err(FieldError::NotBuilt {
            field: "annotations",
            why: "it knows none for an update of resources",
        });
    }
    let linux = request.linux.as_ref().ok_or(FieldError::Missing("linux"))?;
    if !linux.hugepage_limits.is_empty() {
        return Err(FieldError::NotBuilt {
            field: "linux.hugepage_limits",
            why: "limits of huge pages are set when a container is made",
        });
    }
    // `oom_score_adj` is a process's, set as it starts: runtimes leave it out of updates, and upstream's kubelet always sends it.
    resources(linux)
}
