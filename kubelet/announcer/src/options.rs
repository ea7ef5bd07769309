//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use component_base::client::ClientConfig;
use component_base::config::{FieldError, aggregate};
use component_base::flags::{FlagSet, Flags};
use component_base::options::{add_client_flags, client_config};

/// The component's name: user agent and source of events.
pub const COMPONENT: &str = "gantry-announcer";

/// The settings.
#[derive(Clone, Debug)]
pub struct Options {
    /// How to reach the API server.
    pub client: ClientConfig,
    /// `--cloud-config`: the pools, the file of the cloud-controller-manager.
    pub cloud_config: PathBuf,
    /// `--node-name`; the host's name by default.
    pub node_name: String,
    /// `--lease-namespace`.
    pub lease_namespace: String,
    /// `--pages-bind-address`; `None`: no pages.
    pub pages_address: Option<SocketAddr>,
}

/// Every flag.
pub fn flag_set() -> FlagSet {
    let mut flags = FlagSet::new(
        COMPONENT,
        "gantry-announcer runs on each node. It announces the addresses of load balancers that the cloud provider gantry gave out, by ARP and neighbour discovery: each address from one node, and from another within 3 s when that one is gone.",
    );
    add_client_flags(&mut flags, 20.0, 50);
    flags.string("cloud-config", "", "The file of the cloud provider gantry, as the cloud-controller-manager has it: nothing else than addresses of its pools is announced. Read again when it changes. Cannot be empty.");
    flags.string(
        "node-name",
        "",
        "The name of the Node this runs on. If unset, the host's name.",
    );
    flags.string(
        "lease-namespace",
        "kube-system",
        "The namespace of the leases that say which node announces which address.",
    );
    flags.string(
        "pages-bind-address",
        "127.0.0.1:10261",
        "The IP address and port for /healthz, /livez, /readyz and /metrics. Set empty to disable.",
    );
    flags
}

/// Values that are wrong, all of them.
#[derive(Debug, thiserror::Error)]
#[error("{}", aggregate(.0))]
pub struct InvalidOptions(Vec<FieldError>);

impl Options {
    /// Reads and checks the flags; every wrong value is reported at once.
    ///
    /// # Errors
    /// See [`InvalidOptions`].
    pub fn from_flags(flags: &Flags) -> Result<Self, InvalidOptions> {
        let mut errors = Vec::new();
        for flag in ["cloud-config", "lease-namespace"] {
            if flags.string(flag).is_empty() {
                errors.push(FieldError::invalid(flag, "", "cannot be empty"));
            }
        }
        let pages = flags.string("pages-bind-address");
        let pages_address = pages.parse().ok();
        if !pages.is_empty() && pages_address.is_none() {
            let reason = "is no IP address with a port";
            errors.push(FieldError::invalid("pages-bind-address", pages, reason));
        }
        let named = flags.string("node-name").trim().to_owned();
        let node_name = match named.is_empty() {
            // As the kubelet's: lower case.
            true => component_base::events::hostname().trim().to_lowercase(),
            false => named,
        };
        if !errors.is_empty() {
            return Err(InvalidOptions(errors));
        }
        Ok(Self {
            client: client_config(flags, COMPONENT),
            cloud_config: flags.string("cloud-config").into(),
            node_name,
            lease_namespace: flags.string("lease-namespace").to_owned(),
            pages_address,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(args: &[&str]) -> Result<Options, String> {
        let flags = flag_set()
            .parse(args.iter().map(ToString::to_string))
            .unwrap();
        Options::from_flags(&flags).map_err(|error| error.to_string())
    }

    #[test]
    fn flags() {
        let parsed = options(&[
            "--cloud-config=/x",
            "--node-name=n",
            "--pages-bind-address=",
        ])
        .unwrap();
        assert_eq!(
            (parsed.node_name.as_str(), parsed.pages_address),
            ("n", None)
        );
        assert_eq!(parsed.lease_namespace, "kube-system");
        let error = options(&["--pages-bind-address=x", "--lease-namespace="]).unwrap_err();
        for part in [
            "cloud-config",
            "lease-namespace",
            "pages-bind-address",
            "\"x\"",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }
}
