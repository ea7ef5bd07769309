//! Which claims are prepared, for which pods, by which drivers; pure.
//!
//! ```text
//! attach: the pod is noted -> drivers are asked -> took: their devices -> prepared
//! detach: another pod is left -> the pod is struck out
//!         it was the last     -> unpreparing -> drivers are asked -> forget
//! ```
//!
//! Upstream: claiminfo.go, and the turns under the lock in manager.go.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

/// A claim by its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClaimKey {
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for ClaimKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What a driver is not asked for a claim's sake. Upstream: `SkipNodeOperation` of the API.
pub(crate) const SKIP_ALL: &str = "*";
pub(crate) const SKIP_PREPARE: &str = "NodePrepareResources";
pub(crate) const SKIP_UNPREPARE: &str = "NodeUnprepareResources";

/// A claim that a pod uses, as the API server has it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimRequest {
    pub key: ClaimKey,
    pub uid: String,
    /// Those that have devices in its allocation.
    pub drivers: BTreeMap<String, DriverRequest>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DriverRequest {
    /// Names of calls that the driver needs not have.
    pub skipped: Vec<String>,
}

/// A device as its driver described it. In the words of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Device {
    pub pool_name: String,
    pub device_name: String,
    #[serde(rename = "ShareID", default)]
    pub share_id: Option<String>,
    /// Empty: it is for every request of the claim.
    #[serde(default, deserialize_with = "or_default")]
    pub request_names: Vec<String>,
    #[serde(rename = "CDIDeviceIDs", default, deserialize_with = "or_default")]
    pub cdi_device_ids: Vec<String>,
}

/// What a driver has to do with a claim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverState {
    #[serde(rename = "Devices", default, deserialize_with = "or_default")]
    pub devices: Vec<Device>,
    #[serde(
        rename = "skipNodeOperations",
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub skipped: Vec<String>,
}

impl DriverState {
    fn skips(&self, call: &str) -> bool {
        self.skipped
            .iter()
            .any(|one| one == SKIP_ALL || one == call)
    }
}

/// Go writes an empty list as `null`.
pub(crate) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClaimInfo {
    pub uid: String,
    /// Those that use it on this node.
    pub pods: BTreeSet<String>,
    pub drivers: BTreeMap<String, DriverState>,
    /// Every driver said so, to this process.
    pub prepared: bool,
    /// The last pod is gone, and not every driver said so yet: nobody may use it any more.
    pub unpreparing: bool,
}

/// Why a pod cannot use a claim now. Another try may help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    #[error(
        "old ResourceClaim with same name {name} and different UID {uid} still exists (previous pod force-deleted?!)"
    )]
    OtherUid { name: String, uid: String },
    #[error("ResourceClaim {0} is being unprepared")]
    Unpreparing(String),
    #[error("unable to get claim info for ResourceClaim {} in namespace {}", .0.name, .0.namespace)]
    Unknown(ClaimKey),
}

/// What drivers are to be asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// By driver, in the order in which the claims were named.
    pub batches: BTreeMap<String, Vec<ClaimKey>>,
    /// The claims that are through when all of it is done.
    pub claims: Vec<ClaimKey>,
    /// Drivers that need not be asked, one entry a claim.
    pub skipped: Vec<String>,
}

/// All claims in use on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims(BTreeMap<ClaimKey, ClaimInfo>);

impl Claims {
    pub fn get(&self, key: &ClaimKey) -> Option<&ClaimInfo> {
        self.0.get(key)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&ClaimKey, &ClaimInfo)> {
        self.0.iter()
    }

    /// One that an earlier process knew.
    pub fn restore(&mut self, key: ClaimKey, info: ClaimInfo) {
        self.0.insert(key, info);
    }

    /// Drivers that must be here for the pod to use these claims.
    pub fn needed<'a>(wanted: &'a [ClaimRequest]) -> BTreeSet<&'a str> {
        let all = wanted.iter().flat_map(|claim| &claim.drivers);
        let asked = all.filter(|(_, of_driver)| {
            let mut skipped = of_driver.skipped.iter();
            !skipped.any(|one| one == SKIP_ALL || one == SKIP_PREPARE)
        });
        asked.map(|(name, _)| name.as_str()).collect()
    }

    /// The pod uses these claims from now on. Of the claims that are prepared already nobody is asked.
    ///
    /// # Errors
    /// One of them cannot be used: none is noted. DIFFERS: upstream notes those before it.
    pub fn attach(&mut self, pod: &str, wanted: &[ClaimRequest]) -> Result<Work, ClaimError> {
        for claim in wanted {
            match self.0.get(&claim.key) {
                Some(info) if info.uid != claim.uid => {
                    return Err(ClaimError::OtherUid {
                        name: claim.key.name.clone(),
                        uid: info.uid.clone(),
                    });
                }
                Some(info) if info.unpreparing => {
                    return Err(ClaimError::Unpreparing(claim.key.name.clone()));
                }
                _ => {}
            }
        }
        let mut work = Work::default();
        for claim in wanted {
            let new = || ClaimInfo {
                uid: claim.uid.clone(),
                drivers: claim
                    .drivers
                    .iter()
                    .map(|(name, driver)| {
                        let state = DriverState {
                            devices: Vec::new(),
                            skipped: driver.skipped.clone(),
                        };
                        (name.clone(), state)
                    })
                    .collect(),
                ..ClaimInfo::default()
            };
            let info = self.0.entry(claim.key.clone()).or_insert_with(new);
            info.pods.insert(pod.to_owned());
            if !info.prepared && !work.claims.contains(&claim.key) {
                work.add(&claim.key, info, SKIP_PREPARE);
            }
        }
        Ok(work)
    }

    /// A driver prepared the claim: what it says now is all of it.
    pub fn took(&mut self, key: &ClaimKey, driver: &str, devices: Vec<Device>) {
        if let Some(info) = self.0.get_mut(key) {
            info.drivers.entry(driver.to_owned()).or_default().devices = devices;
        }
    }

    pub fn set_prepared(&mut self, keys: &[ClaimKey]) {
        for key in keys {
            if let Some(info) = self.0.get_mut(key) {
                info.prepared = true;
            }
        }
    }

    /// The pod is through with its claims. Those that others use stay as they are.
    pub fn detach(&mut self, pod: &str, keys: &[ClaimKey]) -> Work {
        let mut work = Work::default();
        for key in keys {
            let Some(info) = self.0.get_mut(key).filter(|info| info.pods.contains(pod)) else {
                continue;
            };
            if info.pods.len() > 1 {
                info.pods.remove(pod);
                continue;
            }
            // The pod stays noted until every driver agreed: whoever asks again goes on from here.
            info.unpreparing = true;
            work.add(key, info, SKIP_UNPREPARE);
        }
        work
    }

    /// Nothing is left of these claims here.
    pub fn forget(&mut self, keys: &[ClaimKey]) {
        for key in keys {
            self.0.remove(key);
        }
    }

    /// The claims that the pod uses.
    pub fn of_pod(&self, pod: &str) -> Vec<ClaimKey> {
        let of_pod = self.0.iter().filter(|(_, info)| info.pods.contains(pod));
        of_pod.map(|(key, _)| key.clone()).collect()
    }

    /// Pods that use claims and that `active` does not know.
    pub fn stale(&self, active: impl Fn(&str) -> bool) -> BTreeSet<String> {
        let pods = self.0.values().flat_map(|info| &info.pods);
        pods.filter(|pod| !active(pod)).cloned().collect()
    }

    /// Pods that use a device of the driver, by pool and device.
    pub fn users_of(&self, driver: &str) -> BTreeMap<(&str, &str), BTreeSet<&str>> {
        let mut users: BTreeMap<_, BTreeSet<&str>> = BTreeMap::new();
        for info in self.0.values() {
            let state = info.drivers.get(driver).into_iter();
            for device in state.flat_map(|state| &state.devices) {
                let key = (device.pool_name.as_str(), device.device_name.as_str());
                let of_device = users.entry(key).or_default();
                of_device.extend(info.pods.iter().map(String::as_str));
            }
        }
        users
    }

    /// How many claims are prepared, by driver, and all of them. Upstream: `claimsInUse`.
    pub fn in_use(&self) -> (BTreeMap<String, usize>, usize) {
        let (mut by_driver, mut all) = (BTreeMap::new(), 0);
        for info in self.0.values().filter(|info| info.prepared) {
            all += 1;
            for driver in info.drivers.keys() {
                *by_driver.entry(driver.clone()).or_default() += 1;
            }
        }
        (by_driver, all)
    }
}

impl Work {
    fn add(&mut self, key: &ClaimKey, info: &ClaimInfo, call: &str) {
        self.claims.push(key.clone());
        for (driver, state) in &info.drivers {
            if state.skips(call) {
                self.skipped.push(driver.clone());
                continue;
            }
            let batch = self.batches.entry(driver.clone()).or_default();
            batch.push(key.clone());
        }
    }
}

impl ClaimInfo {
    /// Names of CDI devices of a request of the claim; `None`: of all. Upstream: `cdiDevicesAsList`.
    pub fn cdi_devices(&self, request: Option<&str>) -> impl Iterator<Item = &String> {
        let devices = self.drivers.values().flat_map(|state| &state.devices);
        let wanted = devices.filter(move |device| device.is_of(request));
        wanted.flat_map(|device| &device.cdi_device_ids)
    }
}

impl Device {
    /// Whether it is one of those of the request; `None`: of any.
    pub fn is_of(&self, request: Option<&str>) -> bool {
        let Some(request) = request else { return true };
        self.request_names.is_empty() || self.request_names.iter().any(|name| name == request)
    }
}

#[cfg(test)]
mod tests;
