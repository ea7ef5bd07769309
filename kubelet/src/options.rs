//! The kubelet's command line.
//!
//! Owns: what the flags (`flags`) mean, those that are fields of the configuration file aside, and whether they make sense. Upstream: `cmd/kubelet/app/options`, v1.36.

mod flags;
mod node_labels;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use component_base::flags::Flags;
use component_helpers::taints::parse_taint;
use k8s_openapi::api::core::v1::Taint;
use serde_json::{Map, Value};

pub use flags::flag_set;

/// What only the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    pub config: Option<PathBuf>,
    pub config_dir: Option<PathBuf>,
    pub kubeconfig: Option<PathBuf>,
    pub bootstrap_kubeconfig: Option<PathBuf>,
    /// `--hostname-override`, else the machine's host name, in lower case.
    pub node_name: String,
    pub hostname_override: Option<String>,
    /// Zero, one or two (dual-stack) addresses.
    pub node_ips: Vec<std::net::IpAddr>,
    pub cert_dir: PathBuf,
    pub cloud_provider_external: bool,
    pub root_dir: PathBuf,
    pub node_labels: BTreeMap<String, String>,
    pub register_with_taints: Option<Vec<Taint>>,
    pub minimum_container_ttl: Duration,
    pub max_dead_containers_per_container: i64,
    /// DIFFERS: where the built-in runtime keeps images, containers and sandboxes.
    pub runtime_root_dir: PathBuf,
    /// DIFFERS: where it keeps sockets and pinned namespaces.
    pub runtime_state_dir: PathBuf,
    /// DIFFERS: the names a RuntimeClass may give the built-in runtime, as there is no containerd whose configuration holds them.
    pub runtime_handlers: Vec<String>,
    /// DIFFERS: who connects pods; upstream leaves it to the runtime's configuration.
    pub pod_network: network::Mode,
    /// DIFFERS: what other nodes' podCIDRs are held to.
    pub pod_network_cidr: Vec<ipnet::IpNet>,
    /// DIFFERS: containerd's `config_path` of registries, as there is no containerd to hold it.
    pub registry_config_dir: PathBuf,
    /// Configuration and programs of the plugins that are asked for registry credentials; both or none.
    pub image_credential_provider: Option<CredentialProviderOptions>,
    pub feature_gates: BTreeMap<String, String>,
    /// Fields of the configuration file given as flags.
    pub config_overrides: Map<String, Value>,
}

/// `--image-credential-provider-…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialProviderOptions {
    /// A file, or a folder of files.
    pub config: PathBuf,
    /// Where the programs are.
    pub bin_dir: PathBuf,
}

/// Why a command line makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    #[error("invalid argument {value:?} for \"--{flag}\" flag: {reason}")]
    Invalid {
        flag: &'static str,
        value: String,
        reason: String,
    },
    #[error("unable to determine hostname: {0}")]
    Hostname(#[source] nix::Error),
}

fn text(flags: &Flags, name: &str) -> Option<PathBuf> {
    flags.optional(name).map(PathBuf::from)
}

/// Upstream needs both, too: it finds no program or no configuration otherwise.
fn credential_provider(flags: &Flags) -> Result<Option<CredentialProviderOptions>, OptionsError> {
    let (config, bin_dir) = (
        "image-credential-provider-config",
        "image-credential-provider-bin-dir",
    );
    let lacking = |flag, value: PathBuf, other| OptionsError::Invalid {
        flag,
        value: value.display().to_string(),
        reason: format!("--{other} must be given, too"),
    };
    match (text(flags, config), text(flags, bin_dir)) {
        (None, None) => Ok(None),
        (Some(path), None) => Err(lacking(config, path, bin_dir)),
        (None, Some(path)) => Err(lacking(bin_dir, path, config)),
        (Some(config), Some(bin_dir)) => Ok(Some(CredentialProviderOptions { config, bin_dir })),
    }
}

impl Options {
    /// # Errors
    /// One that names the flag and the value.
    pub fn from_flags(flags: &Flags) -> Result<Self, OptionsError> {
        let mut node_ips = vec![];
        if let Some(value) = flags.optional("node-ip") {
            for part in value.split(',') {
                let ip = part.trim().parse().map_err(|_| OptionsError::Invalid {
                    flag: "node-ip",
                    value: value.to_owned(),
                    reason: format!("{part:?} is not a valid IP address"),
                })?;
                node_ips.push(ip);
            }
        }
        if let Some(value) = flags
            .optional("cloud-provider")
            .filter(|v| *v != "external")
        {
            return Err(OptionsError::Invalid {
                flag: "cloud-provider",
                value: value.to_owned(),
                reason:
                    "unsupported value for 'cloud-provider' flag, must be empty or \"external\""
                        .to_owned(),
            });
        }
        let node_labels = flags.map("node-labels").clone();
        let invalid = |(value, reason)| OptionsError::Invalid {
            flag: "node-labels",
            value,
            reason,
        };
        node_labels::validate(&node_labels).map_err(invalid)?;
        let register_with_taints = if flags.changed("register-with-taints") {
            let parse = |text: &String| {
                parse_taint(text).map_err(|reason| OptionsError::Invalid {
                    flag: "register-with-taints",
                    value: text.clone(),
                    reason,
                })
            };
            Some(
                flags
                    .list("register-with-taints")
                    .iter()
                    .map(parse)
                    .collect::<Result<_, _>>()?,
            )
        } else {
            None
        };
        let hostname_override = flags
            .optional("hostname-override")
            .map(|h| h.trim().to_lowercase());
        let node_name = match &hostname_override {
            Some(name) => name.clone(),
            None => nix::unistd::gethostname()
                .map_err(OptionsError::Hostname)?
                .to_string_lossy()
                .trim()
                .to_lowercase(),
        };
        let path = |name: &str| PathBuf::from(flags.string(name));
        let pod_network = flags.string("pod-network");
        let pod_network = pod_network
            .parse()
            .map_err(|reason| OptionsError::Invalid {
                flag: "pod-network",
                value: pod_network.to_owned(),
                reason,
            })?;
        Ok(Self {
            config: text(flags, "config"),
            config_dir: text(flags, "config-dir"),
            kubeconfig: text(flags, "kubeconfig"),
            bootstrap_kubeconfig: text(flags, "bootstrap-kubeconfig"),
            node_name,
            hostname_override,
            node_ips,
            cert_dir: path("cert-dir"),
            cloud_provider_external: flags.string("cloud-provider") == "external",
            root_dir: path("root-dir"),
            node_labels,
            register_with_taints,
            minimum_container_ttl: flags.duration("minimum-container-ttl-duration"),
            max_dead_containers_per_container: flags.int("maximum-dead-containers-per-container"),
            runtime_root_dir: path("runtime-root-dir"),
            runtime_state_dir: path("runtime-state-dir"),
            runtime_handlers: flags.list("runtime-handlers").to_vec(),
            pod_network,
            pod_network_cidr: pod_network_cidr(flags)?,
            registry_config_dir: path("registry-config-dir"),
            image_credential_provider: credential_provider(flags)?,
            feature_gates: flags.map("feature-gates").clone(),
            config_overrides: flags::config_overrides(flags)?,
        })
    }
}

fn pod_network_cidr(flags: &Flags) -> Result<Vec<ipnet::IpNet>, OptionsError> {
    const FLAG: &str = "pod-network-cidr";
    let parse = |value: &String| {
        let range = value.trim().parse::<ipnet::IpNet>();
        range.map_err(|_| OptionsError::Invalid {
            flag: FLAG,
            value: value.clone(),
            reason: "must be ranges of addresses, e.g. 10.244.0.0/16,fd00:10:244::/56".to_owned(),
        })
    };
    flags.list(FLAG).iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(args: &[&str]) -> Result<Options, String> {
        let flags = flag_set()
            .parse(args.iter().map(ToString::to_string))
            .map_err(|e| e.to_string())?;
        Options::from_flags(&flags).map_err(|e| e.to_string())
    }

    #[test]
    fn the_line_of_kind() {
        let got = parse(&[
            "--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf",
            "--kubeconfig=/etc/kubernetes/kubelet.conf",
            "--config=/var/lib/kubelet/config.yaml",
            "--node-ip=172.18.0.2",
            "--node-labels=a=b,c=",
            "--provider-id=kind://docker/kind/kind-worker",
            "--runtime-cgroups=/system.slice/containerd.service",
            "--hostname-override=Kind-Worker",
            "--register-with-taints=k=v:NoSchedule",
            "--anonymous-auth=false",
        ])
        .unwrap();
        assert_eq!(got.node_name, "kind-worker");
        assert_eq!(got.node_labels.len(), 2);
        assert_eq!(got.register_with_taints.unwrap()[0].effect, "NoSchedule");
        assert_eq!(
            got.config_overrides["providerID"],
            "kind://docker/kind/kind-worker"
        );
        assert_eq!(
            got.config_overrides["authentication"]["anonymous"]["enabled"],
            false
        );
    }

    #[test]
    fn headers_of_the_url() {
        let got = parse(&["--manifest-url-header=a:hello, b:x:y,a: again"]).unwrap();
        let expect = json!({"a": ["hello", "again"], "b": ["x:y"]});
        assert_eq!(got.config_overrides["staticPodURLHeader"], expect);
        assert!(
            parse(&["--manifest-url-header=a"])
                .unwrap_err()
                .contains("malformed pair, expect string:string")
        );
    }

    #[test]
    fn reservations_of_memory() {
        let got = parse(&[
            "--reserved-memory=0:memory=1Gi,hugepages-2Mi=4Mi;1:memory=2Gi",
            "--reserved-memory=2:memory=3Gi",
        ]);
        let expect = json!([
            {"numaNode": 0, "limits": {"memory": "1Gi", "hugepages-2Mi": "4Mi"}},
            {"numaNode": 1, "limits": {"memory": "2Gi"}},
            {"numaNode": 2, "limits": {"memory": "3Gi"}},
        ]);
        assert_eq!(got.unwrap().config_overrides["reservedMemory"], expect);
        for bad in ["memory=1Gi", "x:memory=1Gi", "0:memory"] {
            let flag = format!("--reserved-memory={bad}");
            assert!(parse(&[&flag]).unwrap_err().contains("--reserved-memory"));
        }
    }

    #[test]
    fn errors_name_flag_and_value() {
        assert_eq!(
            parse(&["--pod-network-cidr=10.244.0.0/16,10.245"]).unwrap_err(),
            "invalid argument \"10.245\" for \"--pod-network-cidr\" flag: must be ranges of addresses, e.g. 10.244.0.0/16,fd00:10:244::/56"
        );
        assert_eq!(
            parse(&["--node-ip=x"]).unwrap_err(),
            "invalid argument \"x\" for \"--node-ip\" flag: \"x\" is not a valid IP address"
        );
        let role = parse(&["--node-labels=node-role.kubernetes.io/worker=,a=b"]).unwrap_err();
        assert!(
            role.starts_with("invalid argument \"node-role.kubernetes.io/worker=\" for \"--node-labels\" flag: unknown"),
            "{role}"
        );
        for (flag, other) in [("config", "bin-dir"), ("bin-dir", "config")] {
            let flag = format!("--image-credential-provider-{flag}");
            let error = parse(&[&format!("{flag}=/x")]).unwrap_err();
            let expect = format!(
                "invalid argument \"/x\" for \"{flag}\" flag: --image-credential-provider-{other} must be given, too"
            );
            assert_eq!(error, expect);
        }
        assert!(
            parse(&["--cloud-provider=aws"])
                .unwrap_err()
                .contains("cloud-provider")
        );
        assert!(
            parse(&["--nope"])
                .unwrap_err()
                .contains("unknown flag: --nope")
        );
    }
}
