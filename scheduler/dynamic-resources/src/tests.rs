//! The allocator over clusters written as JSON. Cases: upstream's structured/internal/allocatortesting and pools, v1.37, in words of our own.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::resource::v1::{AllocationResult, DeviceClass, ResourceClaim, ResourceSlice};
use serde_json::{Value, json};

use super::*;

mod devices;
mod outcomes;
mod pools;
mod sharing;

const DRIVER: &str = "dra.example.com";

/// A cluster, and the question asked of it.
#[derive(Clone, Default)]
struct Cluster {
    slices: Vec<Value>,
    classes: Vec<Value>,
    claims: Vec<Value>,
    /// `pool/device` of devices that others have.
    taken: Vec<&'static str>,
    /// Results of claims that others have.
    allocated: Vec<Value>,
    features: Features,
}

fn read<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{error}: {value}"))
}

/// The slice `name` of the pool of a node, which it is named after.
fn slice(node: &str, devices: Value) -> Value {
    json!({"metadata": {"name": format!("slice-{node}")}, "spec": {"driver": DRIVER, "nodeName": node,
        "pool": {"name": node, "generation": 1, "resourceSliceCount": 1}, "devices": devices}})
}

/// Devices with nothing but names.
fn plain(names: &[&str]) -> Value {
    names.iter().map(|name| json!({"name": name})).collect()
}

fn class(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"selectors": [{"cel": {"expression": "device.driver == 'dra.example.com'"}}]}})
}

fn claim(name: &str, requests: Value) -> Value {
    json!({"metadata": {"name": name, "namespace": "ns"}, "spec": {"devices": {"requests": requests}}})
}

/// A request for `count` devices of the class `c`.
fn exactly(name: &str, count: i64) -> Value {
    json!({"name": name, "exactly": {"deviceClassName": "c", "allocationMode": "ExactCount", "count": count}})
}

fn all(name: &str) -> Value {
    json!({"name": name, "exactly": {"deviceClassName": "c", "allocationMode": "All"}})
}

fn with(mut value: Value, path: &str, inner: Value) -> Value {
    let (parent, field) = path.rsplit_once('/').expect("a path");
    let at = if parent.is_empty() {
        Some(&mut value)
    } else {
        value.pointer_mut(parent)
    };
    at.unwrap_or_else(|| panic!("{path}"))[field] = inner;
    value
}

impl Cluster {
    /// A slice for the node `n`, the class `c` and these claims.
    fn new(devices: Value, claims: Vec<Value>) -> Self {
        Cluster {
            slices: vec![slice("n", devices)],
            classes: vec![class("c")],
            claims,
            ..Cluster::default()
        }
    }

    fn state(&self) -> AllocatedState {
        let mut state = AllocatedState::default();
        for taken in &self.taken {
            let (pool, device) = taken.split_once('/').expect("pool/device");
            let result = json!({"devices": {"results": [{"driver": DRIVER, "pool": pool, "device": device, "request": "r"}]}});
            state.add(&read(&result), self.features.consumable_capacity);
        }
        for allocation in &self.allocated {
            let allocation = json!({"devices": {"results": allocation}});
            state.add(&read(&allocation), self.features.consumable_capacity);
        }
        state
    }

    fn ask(
        &self,
        node: &str,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<AllocationResult>>, AllocateError> {
        let slices = self
            .slices
            .iter()
            .map(|s| Arc::new(Slice::new(Arc::new(read::<ResourceSlice>(s)))));
        let classes = self
            .classes
            .iter()
            .map(|c| Arc::new(read::<DeviceClass>(c)));
        let allocator = Allocator::new(
            self.features,
            Arc::new(self.state()),
            Arc::new(Classes::new(classes)),
            Arc::new(Inventory::new(slices)),
            Arc::new(Selectors::new()),
        );
        let claims: Vec<ResourceClaim> = self.claims.iter().map(read).collect();
        let claims: Vec<&ResourceClaim> = claims.iter().collect();
        let labels = BTreeMap::from([("zone".to_owned(), format!("zone-{node}"))]);
        let node = NodeView {
            name: node,
            labels: &labels,
        };
        let shares = Cell::new(0);
        let new_share_id = || {
            shares.set(shares.get() + 1);
            format!("share-{}", shares.get())
        };
        let search = Search {
            interrupted,
            new_share_id: &new_share_id,
        };
        allocator.allocate(&node, &claims, &search)
    }

    fn results(&self, node: &str) -> Result<Option<Vec<AllocationResult>>, String> {
        self.ask(node, &|| false).map_err(|error| error.to_string())
    }

    /// `request=device` (or `request=pool/device` of pools of other names than the node) of each claim.
    fn devices(&self, node: &str) -> Result<Option<Vec<Vec<String>>>, String> {
        let told = |result: &AllocationResult| {
            let devices = result
                .devices
                .iter()
                .flat_map(|d| d.results.iter().flatten());
            devices
                .map(|d| match d.pool == node {
                    true => format!("{}={}", d.request, d.device),
                    false => format!("{}={}/{}", d.request, d.pool, d.device),
                })
                .collect()
        };
        Ok(self
            .results(node)?
            .map(|results| results.iter().map(told).collect()))
    }

    /// On the node `n`: each claim's devices; none, when it cannot be had.
    #[track_caller]
    fn check(&self, what: &str, expect: &[&[&str]]) {
        let expect: Vec<Vec<String>> = expect
            .iter()
            .map(|devices| devices.iter().map(ToString::to_string).collect())
            .collect();
        let expect = Some(expect).filter(|expect| !expect.is_empty());
        assert_eq!(self.devices("n"), Ok(expect), "{what}");
    }

    #[track_caller]
    fn check_error(&self, what: &str, expect: &str) {
        let error = self.devices("n").expect_err(what);
        assert!(error.contains(expect), "{what}: {error}");
    }
}
