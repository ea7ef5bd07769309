//! Which services a driver offers, by the names it registers with; pure. Upstream: plugin/dra_plugin_manager.go
//! (`validateSupportedServices`, `pickHealthService`).

/// The type with which drivers register. Upstream: `registerapi.DRAPlugin`.
pub const DRIVER_PLUGIN: &str = "DRAPlugin";

/// A driver's name is a DNS subdomain. Upstream: `DriverNameMaxLength` of the API.
const MOST_NAME_BYTES: usize = 63;

/// By which claims are prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    V1,
    V1Beta1,
}

impl Service {
    const ALL: [Self; 2] = [Self::V1, Self::V1Beta1];

    /// As drivers name it when they register.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "v1.DRAPlugin",
            Self::V1Beta1 => "v1beta1.DRAPlugin",
        }
    }

    /// The package of its messages, as gRPC's methods are called.
    pub(crate) fn package(self) -> &'static str {
        match self {
            Self::V1 => "k8s.io.kubelet.pkg.apis.dra.v1",
            Self::V1Beta1 => "k8s.io.kubelet.pkg.apis.dra.v1beta1",
        }
    }
}

/// By which a driver tells how its devices are. The newest that both know is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthService {
    V1,
    V1Alpha1,
}

impl HealthService {
    const NEWEST_FIRST: [Self; 2] = [Self::V1, Self::V1Alpha1];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "v1.DRAResourceHealth",
            Self::V1Alpha1 => "v1alpha1.DRAResourceHealth",
        }
    }

    pub(crate) fn choose(offered: &[String]) -> Option<Self> {
        let mut known = Self::NEWEST_FIRST.into_iter();
        known.find(|one| offered.iter().any(|name| name == one.as_str()))
    }
}

/// The first of those offered that is known here.
///
/// # Errors
/// Why the driver cannot be used.
pub(crate) fn choose(driver: &str, offered: &[String]) -> Result<Service, String> {
    // DIFFERS: upstream takes any name, which nobody could write into a claim.
    if !is_subdomain(driver) {
        return Err(format!(
            "the name {driver:?} is no DNS subdomain of at most {MOST_NAME_BYTES} bytes"
        ));
    }
    if offered.is_empty() {
        return Err("empty list of supported gRPC services (aka supported versions)".to_owned());
    }
    let known = |name: &String| Service::ALL.into_iter().find(|s| s.as_str() == name);
    offered.iter().find_map(known).ok_or_else(|| {
        format!(
            "none of services supported by the plugin ({offered:?}) are supported by the kubelet ({:?})",
            Service::ALL.map(Service::as_str)
        )
    })
}

fn is_subdomain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let label = |label: &str| {
        let inner = label.chars().all(|c| plain(c) || c == '-');
        label.starts_with(plain) && label.ends_with(plain) && inner
    };
    name.len() <= MOST_NAME_BYTES && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_is_called_by_the_first_service_that_both_know() {
        let check = |driver: &str, offered: &[&str], expect: Result<Service, &str>| {
            let offered: Vec<String> = offered.iter().map(|v| (*v).to_owned()).collect();
            match (choose(driver, &offered), expect) {
                (Ok(got), Ok(expect)) => assert_eq!(got, expect),
                (Err(told), Err(words)) => assert!(told.contains(words), "{told}"),
                (got, _) => panic!("{driver} {offered:?}: {got:?}"),
            }
        };
        check("d.example.com", &["v1.DRAPlugin"], Ok(Service::V1));
        check(
            "d",
            &["v9.DRAPlugin", "v1beta1.DRAPlugin", "v1.DRAPlugin"],
            Ok(Service::V1Beta1),
        );
        check("d", &[], Err("empty list of supported gRPC services"));
        check(
            "d",
            &["v1alpha4.Node", "1.0.0"],
            Err("none of services supported by the plugin"),
        );
        check("D", &["v1.DRAPlugin"], Err("no DNS subdomain"));
        check("../d", &["v1.DRAPlugin"], Err("no DNS subdomain"));
        check(&"d".repeat(64), &["v1.DRAPlugin"], Err("no DNS subdomain"));
    }

    #[test]
    fn the_newest_service_of_health_is_used() {
        let choose = |offered: &[&str]| {
            let offered: Vec<String> = offered.iter().map(|v| (*v).to_owned()).collect();
            HealthService::choose(&offered)
        };
        let (old, new) = ("v1alpha1.DRAResourceHealth", "v1.DRAResourceHealth");
        assert_eq!(choose(&["v1.DRAPlugin"]), None);
        assert_eq!(choose(&[old]), Some(HealthService::V1Alpha1));
        assert_eq!(choose(&[old, new]), Some(HealthService::V1));
    }
}
