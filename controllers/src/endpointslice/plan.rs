//! What to write of a Service's slices.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::EndpointSlice;

/// Carried out in this order. An update keeps everything of the slice but endpoints, labels and the trigger time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Without a name.
    pub create: Vec<EndpointSlice>,
    pub update: Vec<EndpointSlice>,
    pub delete: Vec<Arc<EndpointSlice>>,
    /// Pods left out because their node does not exist (yet): try again.
    pub skipped: Vec<String>,
}

impl Plan {
    /// Whether anything is to be written.
    pub fn writes(&self) -> bool {
        !(self.create.is_empty() && self.update.is_empty() && self.delete.is_empty())
    }

    /// The slices of `existing` that it leaves as they are.
    pub(super) fn unchanged<'a>(
        &self,
        existing: &'a [Arc<EndpointSlice>],
    ) -> Vec<&'a Arc<EndpointSlice>> {
        let name = |slice: &EndpointSlice| slice.metadata.name.clone().unwrap_or_default();
        let updated = self.update.iter().map(name);
        let changed: BTreeSet<String> =
            updated.chain(self.delete.iter().map(|s| name(s))).collect();
        existing
            .iter()
            .filter(|s| !changed.contains(&name(s)))
            .collect()
    }
}
