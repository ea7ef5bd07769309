//! How drivers' devices are; pure. Upstream: healthinfo.go, v1.37.
//!
//! What a driver says counts for as long as it says itself, or half a minute. It is on disk so that a kubelet that starts again knows it meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The name of the file, below the kubelet's root.
pub const FILE: &str = "dra_health_state";

/// Upstream: `DefaultHealthTimeout`.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// Of a driver; others it tells of are left out. Upstream: `maxDevicesPerDriver`.
const MOST_DEVICES: usize = 16384;
/// Of the words for a device. Upstream: `ResourceHealthMessageMaxLength`.
const MOST_MESSAGE_BYTES: usize = 1024;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HealthStatus {
    Healthy,
    Unhealthy,
    #[default]
    #[serde(other)]
    Unknown,
}

impl HealthStatus {
    /// As statuses of pods have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "Healthy",
            Self::Unhealthy => "Unhealthy",
            Self::Unknown => "Unknown",
        }
    }
}

/// In the words of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DeviceHealth {
    pub pool_name: String,
    pub device_name: String,
    pub health: HealthStatus,
    pub last_updated: Timestamp,
    /// In nanoseconds. Zero: [`DEFAULT_TIMEOUT`].
    pub health_check_timeout: i64,
    pub message: String,
}

impl DeviceHealth {
    fn is_over(&self, now: Timestamp) -> bool {
        let timeout = match u64::try_from(self.health_check_timeout) {
            Ok(nanoseconds) if nanoseconds > 0 => Duration::from_nanos(nanoseconds),
            _ => DEFAULT_TIMEOUT,
        };
        let age = now.duration_since(self.last_updated);
        // From the future it is of now.
        Duration::try_from(age).is_ok_and(|age| age > timeout)
    }

    fn key(&self) -> String {
        format!("{}/{}", self.pool_name, self.device_name)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct OfDriver {
    devices: BTreeMap<String, DeviceHealth>,
}

/// What changed by a report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Pool and device of those that are otherwise than before.
    pub devices: BTreeSet<(String, String)>,
    /// The file says something else than this.
    pub to_write: bool,
    /// Devices that there is no room for.
    pub left_out: usize,
}

/// Of all drivers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Health(BTreeMap<String, OfDriver>);

impl Health {
    /// The text of the file.
    pub fn encode(&self) -> String {
        serde_json::to_string(self).expect("maps with text as keys")
    }

    /// # Errors
    /// It is no such file.
    pub fn decode(text: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(text)
    }

    /// How the device is now, and what its driver says besides.
    pub fn of(
        &self,
        driver: &str,
        pool: &str,
        device: &str,
        now: Timestamp,
    ) -> (HealthStatus, &str) {
        let of_driver = self.0.get(driver);
        let told = of_driver.and_then(|d| d.devices.get(&format!("{pool}/{device}")));
        match told {
            Some(told) if !told.is_over(now) => (told.health, &told.message),
            _ => (HealthStatus::Unknown, ""),
        }
    }

    /// The driver says how its devices are. One that it does not name any longer is forgotten when its time is over.
    pub fn update(&mut self, driver: &str, devices: Vec<DeviceHealth>, now: Timestamp) -> Changed {
        let mut changed = Changed::default();
        let known = &mut self.0.entry(driver.to_owned()).or_default().devices;
        let mut told = BTreeSet::new();
        for mut device in devices {
            let key = device.key();
            told.insert(key.clone());
            device.last_updated = now;
            truncate(&mut device.message);
            let before = known.get(&key);
            if before.is_none() && known.len() >= MOST_DEVICES {
                changed.left_out += 1;
                continue;
            }
            let says = |d: &DeviceHealth| (d.health, d.message.clone(), d.health_check_timeout);
            if before.map(says) != Some(says(&device)) {
                changed.note(&device);
            }
            known.insert(key, device);
        }
        known.retain(|key, device| {
            let goes = !told.contains(key) && device.is_over(now);
            if goes {
                changed.to_write = true;
            }
            if goes && device.health != HealthStatus::Unknown {
                changed.note(device);
            }
            !goes
        });
        changed
    }

    /// The driver tells no more: its devices are in no known state.
    ///
    /// DIFFERS: their pods are told so; upstream's see it with the next status.
    pub fn clear(&mut self, driver: &str) -> Changed {
        let mut changed = Changed::default();
        let gone = self.0.remove(driver).unwrap_or_default();
        changed.to_write = !gone.devices.is_empty();
        let known = gone.devices.values();
        for device in known.filter(|device| device.health != HealthStatus::Unknown) {
            changed.note(device);
        }
        changed
    }
}

impl Changed {
    fn note(&mut self, device: &DeviceHealth) {
        let key = (device.pool_name.clone(), device.device_name.clone());
        self.devices.insert(key);
        self.to_write = true;
    }
}

/// Upstream: `truncateHealthMessage`, which cuts letters in two.
fn truncate(message: &mut String) {
    if message.len() > MOST_MESSAGE_BYTES {
        let end = message.floor_char_boundary(MOST_MESSAGE_BYTES - 3);
        message.truncate(end);
        message.push_str("...");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn device(name: &str, health: HealthStatus, timeout_seconds: i64) -> DeviceHealth {
        DeviceHealth {
            pool_name: "p".to_owned(),
            device_name: name.to_owned(),
            health,
            health_check_timeout: timeout_seconds * 1_000_000_000,
            ..DeviceHealth::default()
        }
    }

    #[test]
    fn what_a_driver_says_counts_for_its_time() {
        use HealthStatus::{Healthy, Unhealthy, Unknown};
        let mut health = Health::default();
        let names = |changed: Changed| -> Vec<String> {
            changed.devices.into_iter().map(|(_, name)| name).collect()
        };
        let both = || vec![device("a", Healthy, 0), device("b", Unhealthy, 100)];
        assert_eq!(names(health.update("d", both(), at(0))), ["a", "b"]);
        let again = health.update("d", both(), at(10));
        assert!(!again.to_write && again.devices.is_empty());
        let of = |health: &Health, name: &str, second| health.of("d", "p", name, at(second)).0;
        assert_eq!(
            (of(&health, "a", 40), of(&health, "a", 41)),
            (Healthy, Unknown)
        );
        assert_eq!(
            (of(&health, "b", 110), of(&health, "b", 111)),
            (Unhealthy, Unknown)
        );
        assert_eq!(of(&health, "c", 10), Unknown);
        assert_eq!(health.of("other", "p", "a", at(10)).0, Unknown);
        // The clock was set back.
        assert_eq!(of(&health, "a", -1000), Healthy);

        // One that is told no more goes with its time.
        let changed = health.update("d", vec![device("b", Unhealthy, 100)], at(30));
        assert!(!changed.to_write);
        let changed = health.update("d", vec![device("b", Unhealthy, 100)], at(50));
        assert_eq!(names(changed), ["a"]);
        let text = health.encode();
        assert_eq!(Health::decode(text.as_bytes()).unwrap(), health);
        assert_eq!(names(health.clear("d")), ["b"]);
        assert_eq!(health.encode(), "{}");
    }

    #[test]
    fn what_a_driver_can_make_us_keep_is_bounded() {
        let mut health = Health::default();
        let many = |from: usize| -> Vec<DeviceHealth> {
            let names = (from..from + MOST_DEVICES).map(|n| n.to_string());
            names
                .map(|name| device(&name, HealthStatus::Healthy, 0))
                .collect()
        };
        assert_eq!(health.update("d", many(0), at(0)).left_out, 0);
        assert_eq!(health.update("d", many(1), at(0)).left_out, 1);
        let mut long = device("0", HealthStatus::Unhealthy, 0);
        long.message = "ü".repeat(2000);
        health.update("d", vec![long], at(1));
        let (_, message) = health.of("d", "p", "0", at(1));
        assert!(message.len() <= MOST_MESSAGE_BYTES && message.ends_with("ü..."));
    }

    /// As Go's encoder writes upstream's types.
    #[test]
    fn upstreams_file_is_read() {
        let text = br#"{"d.example.com":{"Devices":{"p/a":{"PoolName":"p","DeviceName":"a","Health":"Unhealthy","LastUpdated":"2027-01-15T08:00:00.123456789+01:00","HealthCheckTimeout":30000000000,"Message":"hot"}}}}"#;
        let health = Health::decode(text).unwrap();
        let told = "2027-01-15T07:00:05Z".parse().unwrap();
        let (status, message) = health.of("d.example.com", "p", "a", told);
        assert_eq!((status, message), (HealthStatus::Unhealthy, "hot"));
    }
}
