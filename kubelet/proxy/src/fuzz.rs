//! What must hold whatever a configuration file or a command line says: for the fuzz target in `fuzz/`, and for the cases
//! it found.

use std::path::Path;

use component_base::config::decode_strict;

use crate::config::{API_VERSION, KIND, KubeProxyConfiguration};
use crate::options::{Options, flags};

/// kube-proxy's configuration, without the two lines that say what it is, or its flags, one a line: what is read and
/// written again is read the same.
///
/// # Panics
/// When the promise is broken.
pub fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if text.starts_with("--") {
        if let Ok(flags) = flags().parse(text.lines().map(str::to_owned))
            && flags.optional("config").is_none()
        {
            let _ = Options::complete(&flags).map_err(|error| error.to_string());
        }
        return;
    }
    let head = format!("apiVersion: {API_VERSION}\nkind: {KIND}\n");
    let read = |text: &str| {
        decode_strict::<KubeProxyConfiguration>(Path::new("f"), text, API_VERSION, KIND)
    };
    match read(&(head + text)) {
        Ok(mut config) => {
            let mut value = serde_json::to_value(&config).expect("it can be written");
            value["apiVersion"] = API_VERSION.into();
            value["kind"] = KIND.into();
            let again = read(&value.to_string()).expect("what is written is read");
            assert_eq!(again, config);
            config.set_defaults();
            let errors = config.validate();
            if errors.is_empty() {
                let _ = (
                    config.masquerade_mark(),
                    config.sync_period(),
                    config.min_sync_period(),
                    config.cluster_cidrs(),
                );
            }
        }
        Err(error) => drop(error.to_string()),
    }
}

/// Files and command lines to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    [
        "",
        "mode: nftables\nclusterCIDR: 10.0.0.0/16,fd00::/64\nnftables: {masqueradeBit: 3, syncPeriod: 30s}\n",
        "conntrack: {maxPerCore: 1}\ndetectLocalMode: ClusterCIDR\nnodePortAddresses: [primary]\n",
        "--v=2\n--proxy-mode=nftables\n--healthz-bind-address=[::]:1",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

#[cfg(test)]
mod tests {
    #[test]
    fn promises_hold() {
        for case in super::seeds() {
            super::configuration(&case);
        }
    }
}
